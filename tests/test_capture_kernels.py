"""A device's kernels on the clock of the spans: two clocks that drift, marks lost and misread."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from hspec_lab.capture import kernels as module
from hspec_lab.capture.kernels import MARK, N_MARKS, align, kernels_of, placed
from hspec_lab.store import MORE_TABLES
from hspec_lab.timeline import KERNELS, LAUNCHES, RANGES, Timeline, nested, table


def clocks(seed, offset=5_000_000_000, drift=3e-6, span=2_000_000_000):
    """Marks at both ends on two clocks that drift apart; the trace's clock is the true one."""
    draw = np.random.default_rng(seed)
    ours = lambda t: np.rint(t + offset + drift * t).astype(np.int64)  # noqa: E731
    ends, calls = [], []
    for at in (0, span):
        start = at + np.arange(N_MARKS) * 30_000 + draw.integers(0, 9_000, N_MARKS)
        stop = start + draw.integers(2_000, 6_000, N_MARKS)
        before = start - draw.integers(300, 8_000, N_MARKS)
        after = stop + draw.integers(300, 8_000, N_MARKS)
        ends.append(np.stack([ours(before), ours(after)], axis=1))
        calls.append(np.stack([start, stop], axis=1))
    return *ends, np.concatenate(calls), ours


@pytest.mark.parametrize("drift", [0.0, 3e-6, -40e-6])
@pytest.mark.parametrize("seed", range(5))
def test_times_come_out_within_the_uncertainty_that_is_said(seed, drift):
    begin, end, calls, ours = clocks(seed, drift=drift)
    order = np.random.default_rng(seed).permutation(len(calls))
    found = align(begin, end, calls[order])
    times = np.linspace(0, calls[-1, 0], 1000).astype(np.int64)
    assert np.abs(found.ours(times) - ours(times)).max() <= found.uncertainty_ns + 2
    assert 0 < found.uncertainty_ns < 6_000
    # both ends may be wrong, in opposite directions
    assert abs(found.drift - drift) <= 2 * (found.uncertainty_ns + 2) / 2e9 * 1.01


def test_a_late_trace_keeps_its_nanoseconds():
    begin, end, calls, ours = clocks(0, offset=10**18, drift=0.0)
    found = align(begin, end, calls)
    assert found.ours(calls[:, 0] + 1).tolist() == (found.ours(calls[:, 0]) + 1).tolist()


def test_marks_that_are_missing_are_told():
    begin, end, calls, _ = clocks(0)
    with pytest.raises(ValueError, match="noted 15 of the 16 marks"):
        align(begin, end, calls[1:])


def test_marks_that_contradict_each_other_are_told():
    begin, end, calls, _ = clocks(0)
    calls[3] += 100_000
    with pytest.raises(ValueError, match="contradict our clock by"):
        align(begin, end, calls)


def test_clocks_that_drift_apart_too_fast_were_matched_wrongly():
    begin, end, calls, _ = clocks(0)
    with pytest.raises(ValueError, match="drift apart by 1"):
        align(begin, end + 20_000_000, calls)


def profiled(calls, ours):
    """A trace: marks, two kernels of a graph and one of nobody, and what the profiler does."""
    rows = [(f"at::{MARK}(long)", s + 9_000, s + 10_000, i, s, e) for i, (s, e) in enumerate(calls)]
    at = 1_000_000
    rows += [("gemm", at + 50_000, at + 60_000, 100, at, at + 4_000)]
    rows += [("gemm", at + 61_000, at + 64_000, 100, None, None)]
    rows += [("own", calls[-1, 1] + 90_000, calls[-1, 1] + 91_000, 101, *(calls[-1] + 80_000))]
    kernels = pd.DataFrame(
        [(name, start, end, key) for name, start, end, key, *_ in rows],
        columns=["name", "start_ns", "end_ns", "correlation"],
    )
    launches = pd.DataFrame(
        [("launch", key, start, end) for *_, key, start, end in rows if start is not None],
        columns=["name", "correlation", "start_ns", "end_ns"],
    )
    filled = {"kind": "kernel", "device": 0, "stream": 7, "graph_node": 0}
    return Timeline(
        nested(table(RANGES)),
        table(LAUNCHES, launches, thread=1),
        table(KERNELS, kernels, **filled),
        notes=("one thing was left out",),
    ), int(ours(np.array([at]))[0])


def test_kernels_and_launches_land_on_the_clock_of_the_spans_without_the_marks():
    begin, end, calls, ours = clocks(1)
    trace, at = profiled(calls, ours)
    zero_ns = at - 2_000_000
    tables, facts = placed(trace, begin, end, zero_ns)
    for name, rows in tables.items():
        assert {key: str(kind) for key, kind in rows.dtypes.items()}.keys() == MORE_TABLES[
            name
        ].keys()
    kernels, launches = tables["kernels"], tables["launches"]
    # what the profiler does behind the last mark is not the run's
    assert kernels["name"].tolist() == ["gemm", "gemm"]
    assert launches["correlation"].tolist() == [100]
    # so that launches are found in the run's spans, which are of thread 0
    assert launches["thread"].tolist() == [0]
    error = facts["uncertainty_us"] + 0.01
    assert launches["start_us"][0] == pytest.approx(2_000, abs=error)
    assert kernels["start_us"].tolist() == pytest.approx([2_050, 2_061], abs=error)
    assert kernels["duration_us"].tolist() == pytest.approx([10, 3], abs=0.01)
    assert facts["notes"] == ["one thing was left out"]
    json.dumps(facts, allow_nan=False)


# ---- the profiler's file ---------------------------------------------------------------------


def events(name, start_us, correlation, kernel_us):
    """A launch of 4 us and the kernel that it starts, as torch.profiler writes them."""
    launch = {
        "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1,
        "ts": start_us, "dur": 4.0, "args": {"correlation": correlation},
    }  # fmt: skip
    kernel = {
        "ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7,
        "ts": start_us + 9, "dur": kernel_us,
        "args": {"correlation": correlation, "device": 0, "stream": 7},
    }  # fmt: skip
    return [launch, kernel]


@pytest.fixture
def device(monkeypatch):
    """A device that starts what it is told to at once, and a profiler that notes it."""
    now, noted = SimpleNamespace(us=1_000.0), []

    def start(name, kernel_us):
        noted.extend(events(name, now.us + 77_000_000, len(noted), kernel_us))
        now.us += 6

    def clock():
        now.us += 1
        return int(now.us * 1e3)

    class Profiler:
        def export_chrome_trace(self, path):
            with open(path, "w") as file:
                json.dump({"schemaVersion": 1, "traceEvents": noted}, file)

    @contextmanager
    def profile(activities):
        assert [activity.name for activity in activities] == ["CUDA"]
        noted.clear()
        yield Profiler()

    monkeypatch.setattr(module, "perf_counter_ns", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: start(f"at::{MARK}(long)", 1.0))
    monkeypatch.setattr(torch.profiler, "profile", profile)
    return SimpleNamespace(start=start, now=now)


def test_what_the_profiler_writes_becomes_tables_of_the_run(device):
    begun = []

    def decode():
        device.now.us += 500
        begun.append(device.now.us)
        device.start("gemm", 20.0)
        device.now.us += 500

    tables, facts = kernels_of(decode, zero_ns=1_000_000)
    assert tables["kernels"]["name"].tolist() == ["gemm"]
    error = facts["uncertainty_us"] + 0.01
    assert 0 < error < 4
    assert tables["launches"]["start_us"][0] == pytest.approx(begun[0] - 1_000, abs=error)
    assert tables["kernels"]["start_us"][0] == pytest.approx(begun[0] - 991, abs=error)
    assert tables["kernels"]["duration_us"][0] == pytest.approx(20, abs=0.01)


def test_a_profiler_that_noted_nothing_is_told(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: device.start("other", 1.0))
    with pytest.raises(ValueError, match="noted 0 of the 16 marks"):
        kernels_of(lambda: None, 0)
