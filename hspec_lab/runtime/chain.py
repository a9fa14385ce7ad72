"""A draft model on the device: all its passes are one stage."""

from torch import Tensor

from hspec_lab.runtime.memory import Memory, State
from hspec_lab.runtime.offer import Offer
from hspec_lab.runtime.rule import rule_of
from hspec_lab.runtime.stage import bucket_of
from hspec_lab.trace import NO_RECORDER


class DeviceChain:
    """Proposes `draft_len` tokens of a smaller model, one after the other.

    Args:
        model: a `FusedTransformer`.
        level: its name in records.
        temperature: what tokens are drawn at; 0 proposes the most likely ones.

    Attributes:
        longest: nodes of the path on offer, the root included.
        p_draft: fp32 [n, V], what node i's token was drawn from in row i; None when greedy.
    """

    def __init__(
        self,
        model,
        memory: Memory,
        *,
        draft_len: int,
        level: str,
        temperature: float = 0.0,
        recorder=NO_RECORDER,
    ):
        self.model, self.memory, self.recorder = model, memory, recorder
        self.draft_len, self.level, self.longest = draft_len, level, draft_len + 1
        self.state = State(model, memory)
        self.cache, self.n_text = self.state.cache, self.state.n_text
        self.rule = rule_of(self.state, temperature)
        self._stages = {}

    def attach(self, level) -> None:
        self.outer = level
        self.p_draft = self.rule.keep_rows(level.state, bucket_of(self.longest))

    def prepare(self) -> None:
        """Run the text but for its last token, with which the first draft begins."""
        n = len(self.outer.tokens)
        self.cache.truncate(0)
        with self.recorder.span("prefill", self.level, n - 1, 0):
            self.model.read(self.outer.tokens[:-1], self.cache)
        self.n_text.fill_(n)

    def start_made_up(self) -> None:
        self.state.stand_at(self.outer.cache.kv_len)

    def propose(self) -> Offer:
        n_text, kv_len = len(self.outer.tokens), self.cache.kv_len
        rows = bucket_of(n_text - kv_len)
        if rows not in self._stages:
            self._stages[rows] = self.rule.stage(lambda: self._draft(rows), self.draft_len)
        with self.recorder.span("draft", self.level, self.draft_len, kv_len, self.longest):
            self._stages[rows]()
        self.cache.kv_len = n_text + self.draft_len - 1
        return Offer(self.longest)

    def _draft(self, rows: int) -> None:
        """Launches: first everything pending, then a token at a time."""
        state, text = self.state, self.memory.text
        for drafted in range(self.draft_len):
            features = state.run_path(1 if drafted else rows)
            last = features.index_select(0, state.n_text - state.kv_len - 1)
            state.kv_len.copy_(state.n_text)
            text.index_copy_(0, state.n_text.long(), self.rule.pick(last))
            state.n_text += 1

    def follow(self, agreed: Tensor) -> None:
        self.state.follow(self.outer.state.n_text, agreed)

    def followed(self, agreed: int) -> None:
        self.cache.kv_len = min(self.cache.kv_len, agreed)

    def sources_of(self, accepted: list[int]) -> list[str]:
        return [self.level] * len(accepted)
