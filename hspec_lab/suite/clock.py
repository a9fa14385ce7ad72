"""Interleaved timing: all that is compared takes turns, in shuffled order, on a cold L2 cache.

Clocks and temperatures of a GPU drift within seconds, so two things timed one after the other are
not comparable to a few percent; turn by turn they are.  Before every call a buffer of twice the L2
cache is *read*, as the rest of a model would be: written, its lines would have to go back to memory
while the call is timed.  Before every turn the device is kept waiting until the host has queued
all of it, so that launch costs do not show.
"""

import random
from collections.abc import Callable
from time import perf_counter_ns

import numpy as np
import torch

from hspec_lab.suite.part import Bench

WARMUP_TURNS = 2
# no device here runs at more than 2.5 GHz: the wait is at least 1.6 times what the host needed
_CYCLES_PER_NS = 4

Times = dict[str, tuple[float, float, float]]


def time_interleaved(calls: dict[str, Callable[[], object]], bench: Bench) -> Times:
    """Time calls in turns.

    Args:
        calls: name -> what to call; each is called `WARMUP_TURNS` times more than it is timed,
            and compiles there.

    Returns:
        name -> (median, lower quartile, upper quartile), us: of the device's clock on cuda, of
        the host's else.
    """
    if not calls:
        return {}
    turn = _CudaTurn(calls) if bench.on_cuda else _HostTurn(calls)
    order = random.Random(bench.seed)
    samples = {name: [] for name in calls}
    for i in range(WARMUP_TURNS + bench.repeats):
        found = turn(order.sample(list(calls), len(calls)))
        if i >= WARMUP_TURNS:
            for name, time_us in found.items():
                samples[name].append(time_us)
    return {name: spread(times) for name, times in samples.items()}


def spread(times) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile)."""
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)


class _HostTurn:
    """Every call once; us of the host's clock."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, order: list[str]) -> dict[str, float]:
        found = {}
        for name in order:
            begun = perf_counter_ns()
            self.calls[name]()
            found[name] = (perf_counter_ns() - begun) / 1e3
        return found


class _CudaTurn:
    """Every call once, queued whole before any of it runs; us between pairs of CUDA events."""

    def __init__(self, calls):
        self.calls = calls
        n_bytes = 2 * torch.cuda.get_device_properties().L2_cache_size
        self.other = torch.zeros(max(1, n_bytes // 4), device="cuda")
        self.host_ns = 0  # what queueing the last turn took the host

    def __call__(self, order: list[str]) -> dict[str, float]:
        events = {}
        torch.cuda._sleep(_CYCLES_PER_NS * self.host_ns)
        queued = perf_counter_ns()
        for name in order:
            self.other.sum()
            events[name] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[name][0].record()
            self.calls[name]()
            events[name][1].record()
        # a first turn compiles, which no later one has to wait for
        self.host_ns = min(perf_counter_ns() - queued, 50_000_000)
        torch.cuda.synchronize()
        return {name: begun.elapsed_time(ended) * 1e3 for name, (begun, ended) in events.items()}
