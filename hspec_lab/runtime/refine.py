"""A speculative decoder over a smaller model as a drafter; see `draft.RefineDrafter`."""

from torch import Tensor

from hspec_lab.runtime.level import DeviceLevel
from hspec_lab.runtime.offer import Offer
from hspec_lab.runtime.stage import bucket_of


class DeviceRefine:
    """Proposes a chain of its own level's tokens, which that level has put behind the text.

    Args:
        level: the smaller model's level.
        at_least: tokens to have before proposing; the last inner round may exceed it.

    Attributes:
        longest: nodes of the longest path on offer, the root included.
        p_draft: fp32 [n, V], what node i's token was drawn from in row i; None when the level is
            greedy and its tokens are chosen.
    """

    def __init__(self, level: DeviceLevel, at_least: int):
        self.level, self.at_least, self.n_text = level, at_least, level.state.n_text
        # a round that begins one token short emits one for each node of its own longest path
        self._one_round = level.drafter.longest if level.drafter is not None else 1
        self.longest = at_least + self._one_round
        self._sources: list[str] = []

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
        return Offer(len(inner.tokens) - outer.cache.kv_len)

    def follow(self, agreed: Tensor) -> None:
        self.level.state.follow(self.outer.state.n_text, agreed)
        if self.level.drafter is not None:
            self.level.drafter.follow(agreed)

    def followed(self, agreed: int) -> None:
        inner = self.level
        inner.tokens[agreed:] = self.outer.tokens[agreed:]
        inner.cache.kv_len = min(inner.cache.kv_len, agreed)
        self._sources = []
        if inner.drafter is not None:
            inner.drafter.followed(agreed)

    def sources_of(self, accepted: list[int]) -> list[str]:
        return self._sources[: len(accepted)]
