"""A model that verifies: its cache, its text so far, and the drafter that proposes to it.

One round, on every level of a hierarchy and in plain decoding alike:

    propose -> forward over the tree -> accept -> commit the accepted rows -> tell the drafter

`tokens` is the text this level believes in; its last token is *pending*: it has no cache row yet.
When more than one token is pending (the prompt, or after a whole draft was accepted the draft's
last token and the bonus), the round runs them as a path and emits one token without drafting.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hspec_lab.accept import Proposal, Verdict, accept
from hspec_lab.sample import Choose
from hspec_lab.trace import NO_RECORDER
from hspec_lab.tree import chain


class Second(NamedTuple):
    """What a model would have emitted second, and by how much less likely (in logits)."""

    token: int
    margin: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one round of a level emitted.

    Attributes:
        tokens: emitted tokens, the last one the verifying model's own.
        sources: which level thought of each.
        n_proposed: nodes on offer, the root not counted.
        p_model: fp32 [len(tokens), V], the distributions they follow; None if greedy.
        seconds: the second choice behind each emitted token, where they are kept.
    """

    tokens: list[int]
    sources: list[str]
    n_proposed: int
    p_model: Tensor | None
    seconds: list[Second] = ()


class Verifier:
    """One level of a hierarchy.

    Args:
        model: `forward`, `logits`, `read` and `new_cache` as in `model.Transformer`.
        drafter: proposes trees to this level; None for plain decoding.
        level: its name in records.
        phase: what its forward passes count as.
        capacity: cache rows.
        temperature, choose: how it picks tokens; 0 is greedy.
        sampling: False keeps this level greedy whatever the temperature.
    """

    def __init__(
        self,
        model,
        drafter,
        *,
        level: str,
        phase: str,
        capacity: int,
        temperature: float,
        choose: Choose,
        sampling: bool = True,
        recorder=NO_RECORDER,
    ):
        self.model, self.drafter, self.recorder = model, drafter, recorder
        self.level, self.phase = level, phase
        self.temperature, self.choose, self.sampling = temperature, choose, sampling
        self.second_choices = False  # whether steps say what would have been emitted second
        self.drafts = True  # False: plain steps, although there is a drafter
        self.looker = None  # or told of every step: what was offered, its logits, what was kept
        self.cache = model.new_cache(capacity)
        # feature i belongs to token i; the drafter is told from here what it does not know yet
        self.features = torch.zeros(capacity, model.shape.hidden, device=model.device)
        self.tokens: list[int] = []

    def start(self, tokens: list[int]) -> Step:
        """Forget everything, run a prompt and emit the first token behind it."""
        self.cache.truncate(0)
        self.tokens = list(tokens)
        if self.drafter is not None:
            self.drafter.rollback(0)
        with self.recorder.span("prefill", self.level, len(tokens), 0):
            features = self.model.read(tokens, self.cache)
            self.features[: len(tokens)] = features
            step = self._choose(self.model.logits(features[-1:]))
        self._tell_drafter(step.tokens)
        if self.drafter is not None:
            self.drafter.prepare()
        return step

    def round(self) -> Step:
        """Draft, verify, accept and commit once; at least one token is emitted."""
        pending = self.tokens[self.cache.kv_len :]
        if len(pending) > 1 or self.drafter is None or not self.drafts:
            return self._catch_up(pending)
        proposal = self.drafter.propose()
        tree, cache = proposal.tree, self.cache
        at = cache.kv_len, len(tree)
        with self.recorder.span(self.phase, self.level, len(tree), *at):
            features = self.model.forward(tree.tokens, cache, tree)
            logits = self.model.logits(features)
        with self.recorder.span("accept", self.level, len(tree), *at):
            verdict = accept(proposal, logits, self.temperature, self.choose, self.sampling)
        if self.looker is not None:
            self.looker(proposal, logits, verdict)
        with self.recorder.span("kv_commit", self.level, len(verdict.path), *at):
            self._commit(verdict.path, features)
        self._tell_drafter(verdict.tokens)
        sources = [proposal.sources[node] for node in verdict.path[1:]] + [self.level]
        seconds = self._seconds(logits, verdict)
        return Step(verdict.tokens, sources, len(tree) - 1, verdict.p_model, seconds)

    def rollback(self, n_tokens: int) -> None:
        """Cut the text to its first `n_tokens` tokens, here and on the levels below."""
        del self.tokens[n_tokens:]
        self.cache.truncate(n_tokens)
        if self.drafter is not None:
            self.drafter.rollback(n_tokens)

    def extend(self, tokens: list[int]) -> None:
        """Append tokens that somebody else decided on; they are pending."""
        self.tokens += tokens
        self._tell_drafter()

    def _catch_up(self, pending: list[int]) -> Step:
        """Run all pending tokens as one path and emit the token behind them."""
        start = self.cache.kv_len
        with self.recorder.span(self.phase, self.level, len(pending), start, 1):
            features = self.model.forward(pending, self.cache)
            logits = self.model.logits(features[-1:])
        with self.recorder.span("accept", self.level, 1, start, 1):
            step = self._choose(logits)
        with self.recorder.span("kv_commit", self.level, len(pending), start, 1):
            self._commit(list(range(len(pending))), features)
        self._tell_drafter(step.tokens)
        return step

    def _choose(self, logits: Tensor) -> Step:
        """The token behind one row of logits, [1, V]."""
        root = Proposal(chain([0]), [""])
        verdict = accept(root, logits, self.temperature, self.choose, self.sampling)
        if self.looker is not None:
            self.looker(root, logits, verdict)
        return Step(
            verdict.tokens, [self.level], 0, verdict.p_model, self._seconds(logits, verdict)
        )

    def _seconds(self, logits: Tensor, verdict: Verdict) -> list[Second]:
        if not self.second_choices:
            return []
        rows = logits[verdict.path]
        emitted = torch.tensor(verdict.tokens, device=rows.device)[:, None]
        first = rows.gather(1, emitted)
        rest = rows.scatter(1, emitted, -torch.inf)
        tokens = rest.argmax(dim=-1, keepdim=True)
        margins = first - rest.gather(1, tokens)
        return list(map(Second, tokens.flatten().tolist(), margins.flatten().tolist()))

    def _commit(self, path: list[int], features: Tensor) -> None:
        start = self.cache.kv_len
        self.features[start : start + len(path)] = features[path]
        self.cache.commit(path)

    def _tell_drafter(self, tokens: list[int] = ()) -> None:
        """Hand the drafter every (feature, next token) pair it has not seen."""
        self.tokens += tokens
        drafter = self.drafter
        if drafter is None:
            return
        known, stored = drafter.n_tokens, self.cache.kv_len
        # a token is told together with the feature that led to it; the first token has none
        upto = min(len(self.tokens), stored + 1)
        if known < upto:
            drafter.extend(self.tokens[known:upto], self.features[max(known - 1, 0) : upto - 1])
