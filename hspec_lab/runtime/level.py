"""One level of a hierarchy, on the device: the questions of `verify.Verifier`.

    propose -> verify -> accept -> commit, each one or more stages, then one read

`tokens` and `cache.kv_len` are what the host knows; `state` holds the same on the device.
"""

import torch
from torch import Tensor

from hspec_lab.runtime.memory import Memory, State
from hspec_lab.runtime.offer import Offer
from hspec_lab.runtime.passes import CatchUp, PathPass, TreePass
from hspec_lab.runtime.rule import Greedy, GreedyWithRivals, rule_of
from hspec_lab.runtime.stage import bucket_of
from hspec_lab.trace import NO_RECORDER
from hspec_lab.verify import Step


class DeviceLevel:
    """A model that verifies what its drafter puts into device memory.

    Args:
        model: a `FusedTransformer`.
        drafter: one of this package's; None for plain decoding.
        level: its name in records.
        phase: what its forward passes count as.
        temperature: 0 is greedy.
    """

    def __init__(
        self,
        model,
        drafter,
        memory: Memory,
        *,
        level: str,
        phase: str,
        temperature: float = 0.0,
        recorder=NO_RECORDER,
    ):
        self.model, self.drafter, self.memory = model, drafter, memory
        self.level, self.phase, self.recorder = level, phase, recorder
        self.state = State(model, memory)
        self.rule = rule_of(self.state, temperature)
        self.agreed = memory.int32(1)  # tokens of the text that the last round left as they were
        self.features: Tensor | None = None
        # recorded lengths and whose turn it is, int32 [N] and [1], instead of this level's verdicts
        self.replay: tuple[Tensor, Tensor] | None = None
        self.tokens: list[int] = []
        self._passes: dict[tuple, object] = {}
        if drafter is not None:
            drafter.attach(self)

    @property
    def cache(self):
        return self.state.cache

    def keep_features(self) -> Tensor:
        """From now on feature i of token i stays in row i of this dtype [capacity, hidden]."""
        if self.features is None:
            size = self.memory.capacity, self.model.shape.hidden
            self.features = torch.zeros(size, dtype=self.model.dtype, device=self.memory.device)
        return self.features

    def keep_rivals(self) -> GreedyWithRivals:
        """From now on this level notes what it would have said second; it must be greedy."""
        if not isinstance(self.rule, Greedy):
            raise ValueError("second choices are kept of greedy levels; this one draws its tokens")
        self.rule = GreedyWithRivals(self.state)
        return self.rule

    def start(self, tokens: list[int]) -> Step:
        """Forget everything, run a prompt and emit the first token behind it."""
        n = len(tokens)
        room = self.memory.capacity
        if n + 1 > room:
            raise ValueError(f"a prompt of {n} tokens does not fit a text of {room}")
        self.cache.truncate(0)
        self.tokens = list(tokens)
        with self.recorder.span("prefill", self.level, n, 0):
            features = self.model.read(tokens, self.cache)
            if self.features is not None:
                self.features[:n] = features
            first = self.rule.first(features[-1:], position=n)
        self.memory.bad.zero_()
        self.tokens.append(first)
        self.memory.write(0, self.tokens)
        self.state.n_text.fill_(n + 1)
        if self.drafter is not None:
            self.drafter.prepare()
        return Step([first], [self.level], 0, None)

    def start_made_up(self, n_tokens: int) -> None:
        """Pretend that a text of `n_tokens` is stored: for timing, where values do not matter."""
        self.tokens = [0] * (n_tokens + 1)
        self.state.stand_at(n_tokens)
        if self.drafter is not None:
            self.drafter.start_made_up()

    def round(self) -> Step:
        """Draft, verify, accept and commit once; at least one token is emitted."""
        pending = len(self.tokens) - self.cache.kv_len
        if pending > 1 or self.drafter is None:
            work, n_nodes = self._pass(CatchUp, bucket_of(pending)), pending
        else:
            offer = self.drafter.propose()
            work, n_nodes = self._pass_for(offer), offer.n_nodes
        tokens, n_stored = self._run(work, n_nodes)
        accepted = tokens[:-1] if work.drafted else []
        sources = [self.level]
        if accepted:
            sources = self.drafter.sources_of(accepted) + sources
        self.cache.kv_len += n_stored
        self.tokens += tokens
        if self.drafter is not None:
            self.drafter.followed(self.cache.kv_len)
        return Step(tokens, sources, n_nodes - 1 if work.drafted else 0, None)

    def _pass_for(self, offer: Offer):
        if offer.tree is None:
            return self._pass(PathPass, bucket_of(offer.n_nodes))
        return self._pass(TreePass, offer.tree, offer.longest, offer.path_first)

    def _pass(self, kind, *shape):
        """The pass of this shape, made when it is first needed."""
        key = kind, id(shape[0]) if kind is TreePass else shape
        if key not in self._passes:
            self._passes[key] = kind(self, *shape)
        return self._passes[key]

    def _run(self, work, n_nodes: int) -> tuple[list[int], int]:
        """Emitted tokens, and how many rows the cache gained."""
        recorder, kv_len = self.recorder, self.cache.kv_len
        nodes = n_nodes if work.drafted else 1
        with recorder.span(self.phase, self.level, n_nodes, kv_len, nodes):
            work.verify()
        with recorder.span("accept", self.level, n_nodes, kv_len, nodes):
            work.accept()
        with recorder.span("kv_commit", self.level, n_nodes, kv_len, nodes):
            work.commit()
            tokens = work.report.read(self.model.folder.name)
            n_stored = len(tokens) if work.drafted else n_nodes
            recorder.count(n_stored)
        return tokens, n_stored
