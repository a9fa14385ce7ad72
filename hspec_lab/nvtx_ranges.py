"""The same rounds, phases and modules as NVTX ranges, for Nsight Systems and whoever else listens.

    nsys profile --trace=cuda,nvtx python yours.py      # or a kernel that JupyterLab's Nsight runs

`listening()` asks the `nvtx` package whether a tool has attached itself to this process; only then
is a recorder made that also pushes ranges, so that nothing is paid else.  One domain, one category
per level and phase, registered strings, parameters as a struct in the payload; push and pop, which
is what tools join kernels with.  What a round emitted is known at its end: a mark says it.

Ranges open before the host's clock is read and close after it: their own cost lies outside spans.

    source  NVTX for Python, https://nvidia.github.io/NVTX/python/
"""

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from hspec_lab.terms import category_of
from hspec_lab.timeline import DOMAIN
from hspec_lab.trace import ModuleTimer, Recorder

RANGE_PAYLOAD = ("prompt", "round", "warmup", "n_tokens", "n_nodes", "kv_len", "layer")
EMITTED_PAYLOAD = ("prompt", "round", "warmup", "n_proposed", "n_accepted", "n_emitted")


def listening(wanted: bool | None = None):
    """The NVTX domain to write to; None: nobody listens, or nobody should.

    Args:
        wanted: None: if a tool listens to this process; True: in any case; False: never.

    Raises:
        ValueError: wanted, but the `nvtx` package is missing.
    """
    if wanted is False:
        return None
    try:
        import nvtx
    except ImportError:
        if wanted:
            raise ValueError("NVTX ranges need the nvtx package: pip install nvtx") from None
        return None
    domain = nvtx.get_domain(DOMAIN)
    nobody = type(domain).__name__ == "DummyDomain"
    return None if nobody and wanted is None else domain


class _Event:
    """A message in a category with a payload whose numbers change from one use to the next."""

    __slots__ = ("attributes", "payload")

    def __init__(self, domain, message: str, category: str, fields: tuple[str, ...]):
        # without a dimension, so that the tool is handed this very memory at every use
        self.payload = np.zeros((), dtype=[(name, "i8") for name in fields])
        self.attributes = domain.get_event_attributes(
            message=message, category=category, payload=self.payload
        )

    def holding(self, *numbers: int):
        self.payload[()] = numbers
        return self.attributes


class NvtxRecorder(Recorder):
    """A recorder whose rounds, spans and modules are NVTX ranges as well."""

    __slots__ = ("_domain", "_emitted", "_events")

    def __init__(
        self, domain, device_clock=None, clock: Callable[[], int] = perf_counter_ns
    ) -> None:
        """As `Recorder`; `domain` comes from `listening`."""
        super().__init__(device_clock, clock)
        self._domain, self._events = domain, {}
        self._emitted = _Event(domain, "emitted", "round", EMITTED_PAYLOAD)
        self._module = _NvtxModule(self)

    def abandon_round(self) -> None:
        in_round = self.in_round
        super().abandon_round()
        if in_round:
            self._domain.pop_range()

    def begin_round(self, kv_len: int) -> None:
        super().begin_round(kv_len)
        # the clock was read inside: read it again, for the push to lie outside
        self._push("round", "round", 0, 0, kv_len)
        self._round_start = self._clock()

    def end_round(self, n_proposed: int, n_accepted: int, n_emitted: int) -> None:
        super().end_round(n_proposed, n_accepted, n_emitted)
        prompt, warmup = self._prompt
        counts = (n_proposed, n_accepted, n_emitted)
        self._domain.mark(self._emitted.holding(prompt, self._round, warmup, *counts))
        self._domain.pop_range()

    def __enter__(self) -> None:
        phase, level, n_tokens, n_nodes, kv_len = self._what
        self._push(phase, category_of(level, phase), n_tokens, n_nodes, kv_len)
        super().__enter__()

    def __exit__(self, failure, *rest) -> None:
        try:
            super().__exit__(failure, *rest)
        finally:
            # a device that failed must not leave the range open
            self._domain.pop_range()

    def _push(
        self, message: str, category: str, n_tokens: int, n_nodes: int, kv_len: int, layer: int = -1
    ) -> None:
        event = self._events.get((message, category))
        if event is None:
            event = _Event(self._domain, message, category, RANGE_PAYLOAD)
            self._events[message, category] = event
        prompt, warmup = self._prompt
        self._domain.push_range(
            event.holding(prompt, self._round, warmup, n_tokens, n_nodes, kv_len, layer)
        )


class _NvtxModule(ModuleTimer):
    __slots__ = ()

    def __enter__(self) -> None:
        recorder, (name, layer, n_tokens) = self.recorder, self.what
        phase, level, *_, kv_len = recorder._what
        recorder._push(name, category_of(level, phase), n_tokens, 0, kv_len, layer)
        super().__enter__()

    def __exit__(self, failure, *rest) -> None:
        super().__exit__(failure, *rest)
        self.recorder._domain.pop_range()
