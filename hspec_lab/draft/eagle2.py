"""EAGLE-2: a draft head grows a tree by confidence, and the best nodes of it are proposed.

Level by level the `top_k` most probable nodes so far are expanded into their `top_k` children; of
all nodes seen, the `tree_size - 1` with the highest cumulative log-probability are kept.  One
order holds everywhere: score descending, then history index (or token id) ascending, by a stable
sort.  A log-probability is at most 0, so with that order a node's parent is always kept before it.

    source  Li et al. 2024, EAGLE-2, arXiv 2406.16858
"""

import numpy as np
import torch
from torch import Tensor

from hspec_lab.accept import Proposal
from hspec_lab.model.eagle import EagleHead
from hspec_lab.model.transformer import PREFILL_CHUNK
from hspec_lab.trace import NO_RECORDER
from hspec_lab.tree import Tree


def stable_top_k(log_p: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest entries of each row, ties to the lower index.

    Args:
        log_p: fp32 [T, V].

    Returns:
        values fp32 [T, k] descending, and ids int64 [T, k].
    """
    values, ids = torch.topk(log_p, min(k + 1, log_p.shape[1]), dim=-1)
    values, ids = values.numpy(force=True), ids.numpy(force=True)
    k = min(k, log_p.shape[1])
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else np.zeros(0, dtype=bool)
    values, ids = values[:, :k], ids[:, :k]
    # a tie across the border: topk may have kept the wrong ones. 16-bit logits tie often, and to
    # sort whole rows for it would cost more than the pass that made them
    for row in np.flatnonzero(tied):
        border = values[row, -1]
        n_above = int((values[row] > border).sum())
        equal = (log_p[row] == float(border)).nonzero().flatten()
        ids[row, n_above:] = equal[: k - n_above].numpy(force=True)
    order = np.lexsort((ids, -values), axis=-1)
    return np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1)


def best_first(scores: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n highest scores, ties to the lower position."""
    return np.argsort(-scores, kind="stable")[:n]


class Eagle2Drafter:
    """Proposes a dynamic tree; its nodes are chosen, not drawn."""

    def __init__(
        self,
        head: EagleHead,
        *,
        tree_size: int,
        depth: int,
        top_k: int,
        capacity: int,
        recorder=NO_RECORDER,
        level: str = "head",
    ):
        self.head, self.recorder, self.level = head, recorder, level
        self.tree_size, self.depth, self.top_k = tree_size, depth, top_k
        self.cache = head.new_cache(capacity + depth * top_k)
        self.n_tokens = 0
        self._last = 0  # the pending token
        self._tokens: list[int] = []  # told, not ingested yet
        self._features: list[Tensor] = []
        self._root: Tensor | None = None  # guessed feature behind the pending token, [1, hidden]

    def extend(self, tokens: list[int], features: Tensor) -> None:
        if self.n_tokens == 0:
            self._last, tokens, self.n_tokens = tokens[0], tokens[1:], 1
        if tokens:
            self._tokens += tokens
            self._features.append(features)
            self._last = tokens[-1]
            self.n_tokens += len(tokens)

    def rollback(self, n_tokens: int) -> None:
        if n_tokens >= self.n_tokens:
            return
        rows = max(n_tokens - 1, 0)
        pending = max(rows - self.cache.kv_len, 0)
        self.cache.truncate(rows)
        self._tokens = self._tokens[:pending]
        self._features = [torch.cat(self._features)[:pending]] if pending else []
        self.n_tokens, self._root = n_tokens, None

    def prepare(self) -> None:
        with self.recorder.span("prefill", self.level, len(self._tokens), self.cache.kv_len):
            self._ingest()
            self.head.model.logits(self._root)  # refuses a head whose weights are not finite

    def propose(self) -> Proposal:
        n_rows = len(self._tokens) + 1
        nodes = self.tree_size  # at most
        with self.recorder.span("draft", self.level, n_rows, self.cache.kv_len, nodes):
            proposal = self._rerank(*self.grow())
            self.recorder.count(n_nodes=len(proposal.tree))
        return proposal

    def _ingest(self) -> None:
        """Run the head over what it was told, with the model's true features."""
        tokens = torch.tensor(self._tokens, device=self.head.model.device)
        features = torch.cat(self._features)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            part = slice(start, start + PREFILL_CHUNK)
            n = len(tokens[part])
            rows = self.head.geometry.path_rows(self.cache.kv_len, n)
            guessed = self.head.forward(tokens[part], features[part], self.cache, rows)
            self.cache.commit(list(range(n)))
        self._root = guessed[-1:]
        self._tokens, self._features = [], []

    def _top_k(self, guessed: Tensor, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        logits = self.head.model.lm_head(guessed)[:, : self.head.model.n_known]
        # rounding can lift a log-probability above 0, and a child above its parent with it
        log_p = torch.log_softmax(logits.float(), dim=-1).clamp_(max=0)
        return stable_top_k(log_p, k or self.top_k)

    def grow(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ingest what was told, then expand level by level.

        A smaller depth sees the same nodes, as far as it goes: top_k of the first level, top_k^2
        of each further one.

        Returns:
            of every node ever scored, level by level: tokens int64, cumulative log-probabilities
            fp32, and the number of its parent, -1 for the root.
        """
        if self._tokens:
            self._ingest()
        device, base = self.head.model.device, self.cache.kv_len
        values, ids = self._top_k(self._root)
        k = values.shape[1]
        # parents and frontier are history indices, -1 the root
        tokens, scores, parents = [ids[0]], [values[0]], [np.full(k, -1)]
        frontier = np.arange(k)
        features = self._root.expand(k, -1)
        # rows of earlier levels that each frontier node descends from
        seen = np.zeros((k, 0), dtype=bool)
        n_history = k
        for level in range(1, self.depth):
            node_tokens = np.concatenate(tokens)[frontier]
            node_scores = np.concatenate(scores)[frontier]
            seen = np.concatenate([seen, np.eye(k, dtype=bool)], axis=1)
            rows = self.head.geometry.tree_rows(
                base, torch.from_numpy(seen), [level - 1] * k, hidden_before=(level - 1) * k
            )
            ids_in = torch.from_numpy(node_tokens).to(device)
            guessed = self.head.forward(ids_in, features, self.cache, rows)
            values, ids = self._top_k(guessed)
            child_scores = (node_scores[:, None] + values).ravel()
            tokens.append(ids.ravel())
            scores.append(child_scores)
            parents.append(np.repeat(frontier, k))
            if level + 1 < self.depth:
                chosen = best_first(child_scores, k)
                frontier = n_history + chosen
                came_from = chosen // k
                seen = seen[came_from]
                features = guessed[torch.from_numpy(came_from).to(device)]
            n_history += k * k
        return np.concatenate(tokens), np.concatenate(scores), np.concatenate(parents)

    def places(self, tokens: list[int], n: int) -> list[int]:
        """Where each token of a path stands among its parent's `n` most probable children.

        To be called behind `grow`, whose rows it overwrites.

        Args:
            tokens: a path below the pending token.

        Returns:
            as many places, 0 the most probable; -1 behind the n-th, and from there on.
        """
        device, base = self.head.model.device, self.cache.kv_len
        guessed, found = self._root, []
        for level, token in enumerate(tokens):
            if level:
                seen = torch.ones(1, level, dtype=torch.bool)
                rows = self.head.geometry.tree_rows(
                    base, seen, [level - 1], hidden_before=level - 1
                )
                ids_in = torch.tensor([tokens[level - 1]], device=device)
                guessed = self.head.forward(ids_in, guessed, self.cache, rows)
            here = np.flatnonzero(self._top_k(guessed, n)[1][0] == token)
            if not len(here):
                return found + [-1] * (len(tokens) - level)
            found.append(int(here[0]))
        return found

    def kept(self, scores: np.ndarray) -> np.ndarray:
        """Which of the nodes that `grow` scored are proposed, in the order of the tree's nodes."""
        return np.sort(best_first(scores, self.tree_size - 1))

    def _rerank(self, tokens: np.ndarray, scores: np.ndarray, parents: np.ndarray) -> Proposal:
        """Keep the best `tree_size - 1` nodes."""
        kept = self.kept(scores)
        number = {-1: 0} | {int(history): node for node, history in enumerate(kept, 1)}
        tree_parents, depths = [-1], [0]
        for history in kept:
            parent = number[int(parents[history])]
            tree_parents.append(parent)
            depths.append(depths[parent] + 1)
        tree = Tree([self._last, *tokens[kept].tolist()], tree_parents, depths)
        return Proposal(tree, [self.level] * len(tree))
