"""A speculative decoder over a smaller model as a drafter; see `draft.RefineDrafter`."""

from torch import Tensor

from hspec_lab.runtime.level import DeviceLevel
from hspec_lab.runtime.offer import Offer, empty_tree
from hspec_lab.runtime.stage import bucket_of


class DeviceRefine:
    """Proposes a chain of its own level's tokens, which that level has put behind the text.

    Args:
        level: the smaller model's level.
        at_least: tokens to have before proposing; the last inner round may exceed it.
        tree_size: nodes to fill up to with second choices, the root included; None: none.

    Attributes:
        longest: nodes of the longest path on offer, the root included.
        p_draft: fp32 [n, V], what node i's token was drawn from in row i; None when the level is
            greedy and its tokens are chosen.
    """

    def __init__(self, level: DeviceLevel, at_least: int, tree_size: int | None = None):
        self.level, self.at_least, self.n_text = level, at_least, level.state.n_text
        self.tree_size = tree_size
        # a round that begins one token short emits one for each node of its own longest path
        self._one_round = level.drafter.longest if level.drafter is not None else 1
        self.longest = at_least + self._one_round
        self._sources: list[str] = []
        self.tree = None
        if tree_size is not None:
            self.rule = level.keep_rivals()
            self.tree = empty_tree(level.memory, bucket_of(max(tree_size, self.longest)))
            self._lay_out = level.memory.stage(self._narrow_tree)

    def attach(self, level: DeviceLevel) -> None:
        self.outer = level
        # that round writes a row for each row it verifies, padding included
        n_rows = max(self.at_least + bucket_of(self._one_round), bucket_of(self.longest))
        self.p_draft = self.level.rule.keep_rows(level.state, n_rows)

    def prepare(self) -> None:
        """Run the prompt; the first token behind the pending one is drafted already."""
        self._sources = list(self.level.start(self.outer.tokens).sources)

    def start_made_up(self) -> None:
        self._sources = []
        self.level.start_made_up(self.outer.cache.kv_len)

    def propose(self) -> Offer:
        inner, outer = self.level, self.outer
        while len(inner.tokens) - len(outer.tokens) < self.at_least:
            self._sources += inner.round().sources
        n_path = len(inner.tokens) - outer.cache.kv_len
        if self.tree is None:
            return Offer(n_path)
        self._lay_out()
        n_nodes = max(n_path, min(self.tree_size, 2 * n_path - 1))
        return Offer(n_nodes, self.tree, longest=self.longest, path_first=True)

    def _narrow_tree(self) -> None:
        from hspec_kernels.narrow_tree import narrow_tree

        narrow_tree(
            self.level.memory.text,
            self.rule.rivals,
            self.rule.margins,
            self.outer.state.n_text,
            self.n_text,
            self.tree_size,
            bucket=len(self.tree.tokens),
            out=self.tree,
        )

    def follow(self, agreed: Tensor) -> None:
        self.level.state.follow(self.outer.state.n_text, agreed)
        if self.level.drafter is not None:
            self.level.drafter.follow(agreed)

    def followed(self, agreed: int) -> None:
        inner, tokens = self.level, self.outer.tokens
        if self.tree is not None and inner.tokens[:agreed] != tokens[:agreed]:
            # a rival was kept: as on the device, what is the same ends before it
            agreed = next(i for i in range(agreed) if inner.tokens[i] != tokens[i])
        inner.tokens[agreed:] = tokens[agreed:]
        inner.cache.kv_len = min(inner.cache.kv_len, agreed)
        self._sources = []
        if inner.drafter is not None:
            inner.drafter.followed(agreed)

    def sources_of(self, accepted: list[int]) -> list[str]:
        n_text, inner = len(self.outer.tokens), self.level
        drafted = zip(self._sources, inner.tokens[n_text:], accepted, strict=False)
        # a rival is the inner level's own
        return [source if mine == token else inner.level for source, mine, token in drafted]
