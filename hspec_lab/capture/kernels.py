"""What a device ran, noted by torch.profiler and placed on the clock of the spans.

The profiler's clock is not ours.  So the device is given a few kernels that nobody else starts, at
the beginning and at the end, and our clock is read on both sides of each: the call that launched
such a kernel, as the profiler noted it, lies between our two readings.  All of one end together
bound the difference of the two clocks; the line through both ends is what times are moved by.

error: half of what the bounds leave, said as `uncertainty_us`; between the ends, as much again as
       the profiler's clock departs from a straight line, which is not known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns

import numpy as np
import pandas as pd
import torch

from hspec_lab import trace_in
from hspec_lab.store import MORE_TABLES
from hspec_lab.timeline import Timeline

# marks at each end: the first ones are slow, one quick one is enough
N_MARKS = 8
# what torch.cuda._sleep launches
MARK = "spin_kernel"
# clocks of one machine that drift further apart than this were matched wrongly
_MOST_DRIFT = 1e-3
# bounds may contradict each other by what the clocks' readings are rounded to
_SLACK_NS = 2_000


@dataclass(frozen=True)
class Alignment:
    """How a trace's times become ours: by a line through two moments.

    Attributes:
        begin_ns, end_ns: the two moments, on the trace's clock.
        begin_by_ns, end_by_ns: what is added there.
        uncertainty_ns: how far either may be wrong.
    """

    begin_ns: int
    end_ns: int
    begin_by_ns: int
    end_by_ns: int
    uncertainty_ns: int

    @property
    def drift(self) -> float:
        """How much faster our clock runs, as a share."""
        return (self.end_by_ns - self.begin_by_ns) / max(self.end_ns - self.begin_ns, 1)

    def ours(self, times_ns: np.ndarray) -> np.ndarray:
        """Times of the trace on our clock, int64 ns."""
        times_ns = np.asarray(times_ns, dtype=np.int64)
        moved = np.rint((times_ns - self.begin_ns) * self.drift).astype(np.int64)
        return times_ns + self.begin_by_ns + moved

    def facts(self) -> dict:
        """What a run says of it."""
        return {
            "clock": "torch.profiler, moved to the clock of the spans by marks at both ends",
            "uncertainty_us": self.uncertainty_ns / 1e3,
            "drift_ppm": self.drift * 1e6,
        }


def align(begin: np.ndarray, end: np.ndarray, calls: np.ndarray) -> Alignment:
    """Say how a trace's clock differs from ours.

    Args:
        begin, end: int64 [marks, 2], our clock before and after each call that launched a mark, at
            the beginning and at the end, ns.
        calls: int64 [2 * marks, 2], start and end of those calls in the trace, ns.

    Raises:
        ValueError: marks are missing, or the bounds contradict each other.
    """
    begin, end, calls = (np.asarray(times, dtype=np.int64) for times in (begin, end, calls))
    if len(calls) != len(begin) + len(end):
        n = len(begin) + len(end)
        raise ValueError(f"the profiler noted {len(calls)} of the {n} marks that place its clock")
    calls = calls[np.argsort(calls[:, 0], kind="stable")]
    first, last = calls[: len(begin)], calls[len(begin) :]
    begin_by, begin_error = _offset(begin, first)
    end_by, end_error = _offset(end, last)
    found = Alignment(
        int(first[:, 0].mean()),
        int(last[:, 0].mean()),
        begin_by,
        end_by,
        max(begin_error, end_error),
    )
    if abs(found.drift) > _MOST_DRIFT:
        raise ValueError(
            f"the profiler's clock and ours drift apart by {found.drift:.2%}: "
            "its marks cannot be trusted"
        )
    return found


def placed(
    trace: Timeline, begin: np.ndarray, end: np.ndarray, zero_ns: int
) -> tuple[dict[str, pd.DataFrame], dict]:
    """Kernels and launches of a trace as a run's tables, marks taken off.

    Args:
        trace: as the profiler noted it.
        begin, end: as for `align`.
        zero_ns: our clock at the run's time 0.

    Returns:
        `kernels` and `launches` with the columns of `store.MORE_TABLES`, and what is known of the
        alignment.
    """
    marks = trace.kernels[trace.kernels["name"].str.contains(MARK, regex=False)]
    is_mark = trace.launches["correlation"].isin(marks["correlation"])
    calls = trace.launches.loc[is_mark, ["start_ns", "end_ns"]].to_numpy()
    found = align(begin, end, calls)
    # outside the marks the profiler is at work for itself; the device is idle at both of them
    starts = np.sort(calls[:, 0])
    around = (starts[len(begin) - 1], starts[len(begin)])
    launches = trace.launches[trace.launches["start_ns"].between(*around) & ~is_mark]
    # a run's spans are of thread 0: the one that launched the marks
    ours = trace.launches.loc[is_mark, "thread"].iloc[0]
    launches = launches.assign(thread=_numbered(launches["thread"], ours))
    is_ours = trace.kernels["start_ns"].between(*around)
    kernels = trace.kernels[is_ours & ~trace.kernels.index.isin(marks.index)]
    tables = {"kernels": kernels, "launches": launches}
    placed_tables = {name: _table(name, rows, found, zero_ns) for name, rows in tables.items()}
    return placed_tables, found.facts() | {"notes": list(trace.notes)}


def kernels_of(decode: Callable[[], object], zero_ns: int) -> tuple[dict[str, pd.DataFrame], dict]:
    """Decode under torch.profiler.

    Args:
        decode: does the work.
        zero_ns: the recorder's time 0.

    Returns:
        As `placed`.

    Raises:
        ValueError: what the profiler noted cannot be placed.
    """
    from torch.profiler import ProfilerActivity, profile

    _marks(1)
    torch.cuda.synchronize()
    # the device alone: noting every operator on the host would slow what is being timed
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        begin = _marks(N_MARKS)
        torch.cuda.synchronize()
        decode()
        torch.cuda.synchronize()
        end = _marks(N_MARKS)
        torch.cuda.synchronize()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = trace_in.read_trace(path)
    return placed(trace, begin, end, zero_ns)


def _marks(n: int) -> np.ndarray:
    """Launch `n` marks: int64 [n, 2], our clock before and after each."""
    times = []
    for _ in range(n):
        before = perf_counter_ns()
        torch.cuda._sleep(1)
        times.append((before, perf_counter_ns()))
    return np.array(times)


def _offset(ours: np.ndarray, calls: np.ndarray) -> tuple[int, int]:
    """What is added to the trace's times, and how far that may be wrong, ns."""
    low = int((ours[:, 0] - calls[:, 0]).max())
    high = int((ours[:, 1] - calls[:, 1]).min())
    if low - high > _SLACK_NS:
        raise ValueError(
            f"the profiler's marks contradict our clock by {(low - high) / 1e3:.0f} us: "
            "kernels cannot be placed"
        )
    return (low + high) // 2, max(high - low, 0) // 2


def _numbered(threads: pd.Series, first: int) -> np.ndarray:
    """Threads as 0, 1, ..., `first` being 0."""
    return pd.factorize(np.concatenate([[first], threads]))[0][1:]


def _table(name: str, rows: pd.DataFrame, alignment: Alignment, zero_ns: int) -> pd.DataFrame:
    start, end = (alignment.ours(rows[key].to_numpy()) for key in ("start_ns", "end_ns"))
    rows = rows.assign(start_us=(start - zero_ns) / 1e3, duration_us=(end - start) / 1e3)
    columns = MORE_TABLES[name]
    return rows[list(columns)].reset_index(drop=True).astype(columns)
