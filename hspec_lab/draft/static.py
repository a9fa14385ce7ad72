"""A static tree: an EAGLE-2 head fills the same tree in every round.

Nothing is scored and re-ranked, so a round costs fewer operations than a dynamic tree of its size,
and no fewer passes: one per level that has children.  Which tree is best for a text follows from
how often the first, second, ... child is right, see `static_trees`.

    source  Chen et al. 2024 (Sequoia), arXiv 2402.12374
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hspec_lab.accept import Proposal
from hspec_lab.config import Static
from hspec_lab.draft.eagle2 import Eagle2Drafter
from hspec_lab.model.eagle import EagleHead
from hspec_lab.trace import NO_RECORDER
from hspec_lab.tree import Tree, from_parents, visible


@dataclass(frozen=True)
class _Level:
    """One pass of the head: the nodes of a level that have children, m of them.

    Attributes:
        nodes: int64 [m], their numbers.
        above: int64 [m], the row of each node's parent in the pass before.
        seen: bool [m, rows of the passes before + m], what each row may attend to.
        depth, n_before: of these nodes; rows of the passes before.
        children, rows, places: int64 [c], the nodes below, the row each hangs from and which of
            that row's tokens it takes.
    """

    nodes: np.ndarray
    above: Tensor
    seen: Tensor
    depth: int
    n_before: int
    children: np.ndarray
    rows: np.ndarray
    places: np.ndarray


def _levels_of(draft: Static) -> list[_Level]:
    """The passes of a tree, the root's first; its row is the guess that is there already."""
    parents, places, depths = map(np.asarray, (draft.parents, draft.places, draft.depths))
    inner = np.unique(parents[1:])
    sees = visible(from_parents([0] * len(parents), list(draft.parents)))
    found, before, above = [], np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for depth in range(draft.depth):
        nodes = inner[depths[inner] == depth]
        children = np.flatnonzero(np.isin(parents, nodes))
        rows = np.concatenate([before, nodes])
        found.append(
            _Level(
                nodes,
                torch.from_numpy(np.searchsorted(above, parents[nodes]) if depth else above),
                torch.from_numpy(sees[np.ix_(nodes, rows)]),
                depth,
                len(before),
                children,
                np.searchsorted(nodes, parents[children]),
                places[children],
            )
        )
        before, above = (rows if depth else before), nodes
    return found


class StaticDrafter(Eagle2Drafter):
    """Proposes the same tree every round; its nodes are chosen, not drawn.

    Raises:
        ValueError: a node asks for a place that the vocabulary has not.
    """

    def __init__(
        self,
        head: EagleHead,
        draft: Static,
        *,
        capacity: int,
        recorder=NO_RECORDER,
        level: str = "head",
    ):
        if draft.top_k > head.model.n_known:
            raise ValueError(
                f"Static: place {draft.top_k - 1} of a vocabulary of {head.model.n_known} tokens"
            )
        super().__init__(
            head,
            tree_size=draft.tree_size,
            depth=draft.depth,
            top_k=draft.top_k,
            capacity=capacity + draft.tree_size,
            recorder=recorder,
            level=level,
        )
        self.draft, self._levels = draft, _levels_of(draft)

    def propose(self) -> Proposal:
        n_rows = len(self._tokens) + 1
        nodes = self.draft.tree_size
        with self.recorder.span("draft", self.level, n_rows, self.cache.kv_len, nodes):
            if self._tokens:
                self._ingest()
            tokens = self.filled()
            tree = Tree(tokens.tolist(), list(self.draft.parents), list(self.draft.depths))
            return Proposal(tree, [self.level] * len(tree))

    def filled(self, log_p: np.ndarray | None = None) -> np.ndarray:
        """Run the head over the tree.

        Args:
            log_p: fp32 [tree_size], receives each token's log-probability given its parent, the
                root's excepted; None: nobody asks.

        Returns:
            int64 [tree_size], the tree's tokens, the pending one first.
        """
        device, base, guessed = self.head.model.device, self.cache.kv_len, self._root
        tokens = np.full(self.draft.tree_size, self._last, dtype=np.int64)
        for level in self._levels:
            if level.depth:
                depths = [level.depth - 1] * len(level.nodes)
                rows = self.head.geometry.tree_rows(base, level.seen, depths, level.n_before)
                ids = torch.from_numpy(tokens[level.nodes]).to(device)
                features = guessed[level.above.to(device)]
                guessed = self.head.forward(ids, features, self.cache, rows)
            values, best = self._top_k(guessed)
            tokens[level.children] = best[level.rows, level.places]
            if log_p is not None:
                log_p[level.children] = values[level.rows, level.places]
        return tokens
