"""Where a round's time goes: spans on the host clock, and on a device's clock if one is handed in.

A decoder is given a recorder and says what it does:

    recorder.start_prompt(0, warmup=False)
    with recorder.span("prefill", "target", n_tokens=64, kv_len=0):
        ...
    recorder.begin_round(kv_len=64)
    with recorder.span("draft", "head", n_tokens=8, kv_len=64):
        ...
    recorder.end_round(n_proposed=23, n_accepted=2, n_emitted=3)

Phases do not nest: a span inside a span, a round phase outside a round or `prefill` inside one is
a programming error and raises.  Inside a phase a watched model (`model.watched`) times its parts:

    with recorder.module("attention", layer=0, n_tokens=24):
        ...

A round that never ended (the consumer went away, an exception) leaves nothing behind.  One recorder
serves one thread.  `NO_RECORDER` is the default everywhere: it has the same methods and does
nothing.

cost: a span is one tuple, two readings of the clock and no new object besides; `measure_span_cost`
      says how many microseconds that is here.  Device marks are read when `tables` is called, so
      nothing waits for the device while decoding.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter_ns

import pandas as pd

from hspec_lab.terms import PHASES, ROUND_PHASES

ROUNDS = {
    "prompt": "int64",
    "round": "int64",
    "warmup": "bool",
    "n_proposed": "int64",
    "n_accepted": "int64",
    "n_emitted": "int64",
    "kv_len": "int64",
    "start_us": "float64",
    "duration_us": "float64",
}
SPANS = {
    "prompt": "int64",
    "round": "int64",
    "warmup": "bool",
    "phase": "str",
    "level": "str",
    "n_tokens": "int64",
    "n_nodes": "int64",
    "kv_len": "int64",
    "start_us": "float64",
    "duration_us": "float64",
    "device_us": "float64",
}
MODULES = {
    "prompt": "int64",
    "round": "int64",
    "warmup": "bool",
    "phase": "str",
    "level": "str",
    "module": "str",
    "layer": "int64",
    "n_tokens": "int64",
    "kv_len": "int64",
    "start_us": "float64",
    "duration_us": "float64",
}

# what may be recorded now; `gap` is what remains of a round, so nobody records it
_NOTHING = frozenset()
_BEFORE_ROUNDS = frozenset(["prefill"])
_IN_ROUND = frozenset(ROUND_PHASES) - {"gap"}


class Recorder:
    """Collects rounds and spans; is itself the context manager of its one open span."""

    __slots__ = (
        "_allowed",
        "_clock",
        "_device_clock",
        "_finished",
        "_kv_len",
        "_mark",
        "_module",
        "_modules",
        "_modules_finished",
        "_open",
        "_prompt",
        "_round",
        "_round_start",
        "_rounds",
        "_spans",
        "_start",
        "_what",
        "zero_ns",
    )

    def __init__(self, device_clock=None, clock: Callable[[], int] = perf_counter_ns):
        """Start the run's clock.

        Args:
            device_clock: has `mark() -> token`, called at both ends of a span, and
                `elapsed_us(a, b) -> float`, called by `tables` only; None: `device_us` is NaN.
            clock: the host clock, in nanoseconds; `zero_ns` is its reading at time 0.
        """
        self._clock, self._device_clock = clock, device_clock
        self._rounds, self._spans, self._modules = [], [], []
        # so many spans and modules came before the round that is under way
        self._finished = self._modules_finished = 0
        self._module = ModuleTimer(self)
        self._allowed, self._open = _NOTHING, False
        self._prompt, self._round = None, -1
        self.zero_ns = clock()

    @property
    def in_round(self) -> bool:
        """Whether a round began that has not ended."""
        return self._allowed is _IN_ROUND

    def start_prompt(self, prompt: int, warmup: bool = False) -> None:
        """Begin a prompt, its prefill first; an unfinished round before it is dropped."""
        self.abandon_round()
        self._prompt, self._round = (prompt, warmup), -1
        self._allowed, self._open = _BEFORE_ROUNDS, False

    def forget(self, prompt: int) -> None:
        """Drop what was recorded of a prompt, its warm-up excepted."""
        self.abandon_round()
        key = (prompt, False)
        self._rounds = [row for row in self._rounds if row[:2] != key]
        self._spans = [row for row in self._spans if row[0] != key]
        self._modules = [row for row in self._modules if row[0] != key]
        self._finished, self._modules_finished = len(self._spans), len(self._modules)
        self._allowed, self._open = _NOTHING, False

    def abandon_round(self) -> None:
        """Drop a round that began and will not end; without one, do nothing."""
        if self._allowed is _IN_ROUND:
            del self._spans[self._finished :]
            del self._modules[self._modules_finished :]
            self._allowed, self._open = _NOTHING, False

    def begin_round(self, kv_len: int) -> None:
        """Begin the prompt's next round; the target has `kv_len` tokens stored."""
        if self._allowed is _IN_ROUND or self._open or self._prompt is None:
            raise RuntimeError("begin_round needs a started prompt, and the round before it ended")
        self._finished, self._modules_finished = len(self._spans), len(self._modules)
        self._round += 1
        self._allowed, self._kv_len = _IN_ROUND, kv_len
        self._round_start = self._clock()

    def end_round(self, n_proposed: int, n_accepted: int, n_emitted: int) -> None:
        """End the round and keep it with its spans."""
        end = self._clock()
        if self._allowed is not _IN_ROUND or self._open:
            raise RuntimeError("end_round needs a round that began, and its last span closed")
        counts = (n_proposed, n_accepted, n_emitted, self._kv_len)
        self._rounds.append((*self._prompt, self._round, *counts, self._round_start, end))
        self._allowed = _NOTHING

    def span(
        self, phase: str, level: str, n_tokens: int, kv_len: int, n_nodes: int = 0
    ) -> "Recorder":
        """Return a context manager that times one phase at one level.

        Args:
            phase: `prefill` between `start_prompt` and the first round, a round phase in a round.
            level: which model works, any name.
            n_tokens: tokens that go in.
            kv_len: tokens whose keys and values that level has stored.
            n_nodes: nodes of the tree that this drafts, verifies or judges, its root included;
                0: no tree, only text that is decided.
        """
        if self._open or phase not in self._allowed:
            raise RuntimeError(self._refusal(phase))
        self._what = (phase, level, n_tokens, n_nodes, kv_len)
        return self

    def __enter__(self) -> None:
        self._open = True
        self._start = self._clock()
        if self._device_clock is not None:
            self._mark = self._device_clock.mark()

    def __exit__(self, failure, *_) -> None:
        if self._device_clock is None:
            marks = None
        else:
            marks = (self._mark, self._device_clock.mark())
        end = self._clock()
        self._open = False
        if failure is None:
            self._spans.append((self._prompt, self._round, self._what, self._start, end, marks))

    def count(self, n_tokens: int | None = None, n_nodes: int | None = None) -> None:
        """Correct the open span's `n_tokens` or `n_nodes`, where they are known only inside it."""
        phase, level, tokens, nodes, kv_len = self._what
        tokens = tokens if n_tokens is None else n_tokens
        nodes = nodes if n_nodes is None else n_nodes
        self._what = (phase, level, tokens, nodes, kv_len)

    def module(self, name: str, layer: int, n_tokens: int) -> "ModuleTimer":
        """Return a context manager that times a part of the open span's pass; parts do not nest.

        Args:
            name: attention, mlp or lm_head.
            layer: of the model; -1: of none.
            n_tokens: rows that go in.
        """
        if not self._open:
            raise RuntimeError(f"module {name!r} outside a phase")
        self._module.what = (name, layer, n_tokens)
        return self._module

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return `rounds` and `spans` as long tables, times in us since the recorder was made.

        `modules` comes with them when a watched model recorded some.
        """
        unfinished = self._allowed is _IN_ROUND
        spans = self._spans[: self._finished] if unfinished else self._spans
        modules = self._modules[: self._modules_finished] if unfinished else self._modules
        found = {
            "rounds": _table([self._round_row(row) for row in self._rounds], ROUNDS),
            "spans": _table([self._span_row(row) for row in spans], SPANS),
        }
        if modules:
            found["modules"] = _table([self._module_row(row) for row in modules], MODULES)
        return found

    def _round_row(self, row: tuple) -> tuple:
        prompt, warmup, number, *counts, start, end = row
        return prompt, number, warmup, *counts, (start - self.zero_ns) / 1e3, (end - start) / 1e3

    def _span_row(self, row: tuple) -> tuple:
        (prompt, warmup), number, what, start, end, marks = row
        device_us = float("nan") if marks is None else self._device_clock.elapsed_us(*marks)
        times = ((start - self.zero_ns) / 1e3, (end - start) / 1e3, device_us)
        return prompt, number, warmup, *what, *times

    def _module_row(self, row: tuple) -> tuple:
        (prompt, warmup), number, around, (name, layer, n_tokens), start, end = row
        phase, level, *_, kv_len = around
        times = ((start - self.zero_ns) / 1e3, (end - start) / 1e3)
        return prompt, number, warmup, phase, level, name, layer, n_tokens, kv_len, *times

    def _refusal(self, phase: str) -> str:
        if self._open:
            return f"phase {phase!r} inside phase {self._what[0]!r}: phases do not nest"
        if phase not in PHASES or phase == "gap":
            return f"no phase {phase!r} to record; known: {', '.join(PHASES[:-1])}"
        if self._prompt is None:
            return f"phase {phase!r} before start_prompt"
        where = "after the first round began" if phase == "prefill" else "outside a round"
        return f"phase {phase!r} {where}"


class ModuleTimer:
    """Times the parts of one recorder's passes, one at a time."""

    __slots__ = ("recorder", "start", "what")

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __enter__(self) -> None:
        self.start = self.recorder._clock()

    def __exit__(self, failure, *_) -> None:
        recorder = self.recorder
        end = recorder._clock()
        if failure is None:
            recorder._modules.append(
                (recorder._prompt, recorder._round, recorder._what, self.what, self.start, end)
            )


class _NoSpan:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        pass


_NO_SPAN = _NoSpan()


class NullRecorder:
    """A recorder that records nothing: every span is the same empty context manager."""

    __slots__ = ()
    zero_ns, in_round = 0, False

    def start_prompt(self, prompt, warmup=False) -> None:
        """Do nothing."""

    def forget(self, prompt) -> None:
        """Do nothing."""

    def abandon_round(self) -> None:
        """Do nothing."""

    def begin_round(self, kv_len) -> None:
        """Do nothing."""

    def end_round(self, n_proposed, n_accepted, n_emitted) -> None:
        """Do nothing."""

    def count(self, n_tokens=None, n_nodes=None) -> None:
        """Do nothing."""

    def span(self, phase, level, n_tokens, kv_len, n_nodes=0) -> _NoSpan:
        """Return the one empty context manager."""
        return _NO_SPAN

    def module(self, name, layer, n_tokens) -> _NoSpan:
        """Return the one empty context manager."""
        return _NO_SPAN

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the two tables without rows."""
        return {"rounds": _table([], ROUNDS), "spans": _table([], SPANS)}


NO_RECORDER = NullRecorder()


def measure_span_cost(recorder_factory: Callable[[], object], n: int = 20_000) -> float:
    """Return what one span costs in us: median of five loops of `n`, the bare loop taken off."""
    return median(_timed_spans(recorder_factory(), n) for _ in range(5))


def _timed_spans(recorder, n: int) -> float:
    recorder.start_prompt(0)
    recorder.begin_round(0)
    start = perf_counter_ns()
    for _ in range(n):
        pass
    bare = perf_counter_ns()
    for _ in range(n):
        with recorder.span("draft", "head", 8, 64):
            pass
    end = perf_counter_ns()
    return ((end - bare) - (bare - start)) / n / 1e3


def _table(rows: list[tuple], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
