"""The decoding loop: a generator of rounds.

Whoever wants text, progress, timing or a picture consumes it.  The first `Round` is the prefill's:
one token, drafted by nobody.  EOS, a stop text or the token limit cut a round; what was cut does
not count as emitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hspec_lab.control import Controller, resize
from hspec_lab.text import TextStream
from hspec_lab.trace import NO_RECORDER
from hspec_lab.verify import Step, Verifier


@dataclass(frozen=True, slots=True)
class Round:
    """What one round added to the output.

    Attributes:
        index: 0, 1, ...; -1 for the prefill.
        tokens: emitted ids, after cutting.
        pieces: their texts; all pieces of all rounds join to the output.
        sources: the level that thought of each token.
        n_proposed, n_accepted: nodes offered, the root not counted, and how many were kept.
        kv_len: tokens the target had stored when the round began.
        finished: None, or why the output ends here: "eos", "stop" or "length".
    """

    index: int
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    sources: tuple[str, ...]
    n_proposed: int
    n_accepted: int
    kv_len: int
    finished: str | None = None

    @property
    def n_emitted(self) -> int:
        return len(self.tokens)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class _Cutter:
    """Turns steps into rounds, ending the output where it must end."""

    def __init__(self, stream: TextStream, eos_ids: tuple[int, ...], max_new_tokens: int):
        self.stream, self.eos_ids, self.left = stream, eos_ids, max_new_tokens

    def __call__(self, index: int, step: Step, kv_len: int) -> Round:
        tokens, pieces, finished = [], [], None
        for token in step.tokens:
            tokens.append(token)
            pieces.append(self.stream.push(token))
            self.left -= 1
            finished = self._why_finished(token)
            if finished:
                break
        if finished in ("eos", "length"):
            pieces[-1] += self.stream.flush()
        n_accepted = min(len(step.tokens) - 1, len(tokens))
        sources = tuple(step.sources[: len(tokens)])
        return Round(
            index,
            tuple(tokens),
            tuple(pieces),
            sources,
            step.n_proposed,
            n_accepted,
            kv_len,
            finished,
        )

    def _why_finished(self, token: int) -> str | None:
        if token in self.eos_ids:
            return "eos"
        if self.stream.stopped:
            return "stop"
        return "length" if self.left == 0 else None


def decode(
    verifier: Verifier,
    prompt: list[int],
    stream: TextStream,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...] = (),
    recorder=NO_RECORDER,
    controller: Controller | None = None,
    prompt_index: int = 0,
    warmup: bool = False,
) -> Iterator[Round]:
    """Decode behind a prompt, round by round.

    Args:
        verifier: the target's level, its drafters behind it (`pipeline.build`).
        prompt: token ids, at least one.
        stream: turns emitted ids into text and watches for stop texts.
        recorder: `trace.Recorder`, or nothing.
        controller: chooses sizes for each round; None: as built.

    Yields:
        Rounds until one is `finished`.
    """
    if not prompt or max_new_tokens < 1:
        raise ValueError(
            f"decoding needs a prompt and a token to emit, got {len(prompt)} and {max_new_tokens}"
        )
    with torch.inference_mode():
        cut = _Cutter(stream, eos_ids, max_new_tokens)
        recorder.start_prompt(prompt_index, warmup)
        last = cut(-1, verifier.start(prompt), 0)
        text = verifier.tokens
    if controller is not None:
        controller.reset()
    yield last
    while not last.finished:
        if verifier.tokens is not text:
            raise RuntimeError("another decoding was started on this level; one at a time")
        # the mode must not leak into the consumer's code between two rounds
        with torch.inference_mode():
            kv_len = verifier.cache.kv_len
            recorder.begin_round(kv_len)
            step = verifier.round() if controller is None else _controlled(verifier, controller)
            last = cut(last.index + 1, step, kv_len)
            recorder.end_round(last.n_proposed, last.n_accepted, last.n_emitted)
        yield last


def _controlled(verifier: Verifier, controller: Controller) -> Step:
    """A round of the sizes that a controller chooses; it is shown what became of it."""
    option = controller.choose()
    resize(verifier, controller.options[option])
    step = verifier.round()
    controller.observe(option, len(step.tokens) - 1)
    return step
