"""Which phase of which round a kernel belongs to: the call that launched it decides.

    kernel --correlation--> launch --thread, start--> innermost range --parents--> phase, round

A kernel may run long after its range has closed, so the clock is asked only where no launch is
known: then the innermost range that contains the kernel's start, and only in traces in which a
single thread has ranges.

A range contains the times start <= t < end.  Of several launches with one correlation (counters
wrap around) the latest that began no later than the kernel counts, or the first of them if all
began later.  A graph's kernels share the correlation of its launch, so they all follow it.

Phases are ours where a trace has any; a trace without takes the innermost range's name for one.

cost: sorts and binary searches; a climb over d parents takes log2(d) steps.
"""

import numpy as np
import pandas as pd

from hspec_lab.timeline import UNKNOWN, Timeline


def attribute(timeline: Timeline) -> pd.DataFrame:
    """Return the kernels, copies and fills, each with what it belongs to.

    Returns:
        the columns of `timeline.KERNELS`, and

        range        row of the innermost range around the launch; -1: none
        phase, level of the nearest phase of ours around it; "" outside; where a trace has no
                     phases of ours, the range's name and ""
        prompt, round, warmup   of the round around it, else of the phase; -1: not known
        round_range  row of the round around it; -1: none
        launch_ns    start of the launching call; -1: not known
        how          correlation: through the launch; time: by the clock; none: in no range
    """
    kernels, launches, ranges = timeline.kernels, timeline.launches, timeline.ranges
    launch = _launch_of(kernels, launches)
    rows = _taken(launch_ranges(timeline), launch)
    how = np.where(rows >= 0, "correlation", "none").astype(object)
    threads = ranges["thread"].unique()
    lost = np.flatnonzero(launch < 0)
    if len(threads) == 1 and len(lost):
        times = kernels["start_ns"].to_numpy()[lost]
        rows[lost] = innermost(ranges, np.full(len(lost), threads[0]), times)
        how[lost[rows[lost] >= 0]] = "time"
    found = owners(ranges).iloc[rows].reset_index(drop=True)
    launch_ns = _taken(launches["start_ns"].to_numpy(), launch)
    more = pd.DataFrame({"range": rows, "launch_ns": launch_ns, "how": pd.Series(how, dtype="str")})
    return pd.concat([kernels.reset_index(drop=True), found, more], axis=1)


def launch_ranges(timeline: Timeline) -> np.ndarray:
    """Row of the innermost range around the start of each launch on its thread; -1: none."""
    launches = timeline.launches
    keys = (launches[name].to_numpy() for name in ("thread", "start_ns"))
    return innermost(timeline.ranges, *keys)


def innermost(ranges: pd.DataFrame, threads: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Find the range that begins last of those that contain a time on a thread.

    Args:
        ranges: as `timeline.nested` leaves them.
        threads, times: int64 [n], ns.

    Returns:
        int64 [n], rows of `ranges`; -1: none.
    """
    keys = ("thread", "start_ns", "end_ns", "parent")
    thread, start, end, parent = (ranges[key].to_numpy() for key in keys)
    # rows of one start stay in order, the innermost last
    order = np.lexsort((start, thread))
    last = _last_until(thread[order], start[order], threads, times)
    rows = _taken(order, last)
    ended = np.flatnonzero((rows >= 0) & (end[rows] <= times)) if len(end) else []
    if len(ended):
        rows[ended] = _still_open(rows[ended], times[ended], parent, end)
    return rows


def owners(ranges: pd.DataFrame) -> pd.DataFrame:
    """Say of each range what it belongs to.

    Returns:
        phase, level, prompt, round, warmup, round_range, as `attribute` has them.  One row per
        range, and one more at the end for "in no range", so that row -1 finds it.
    """
    kind, phases, parent = (ranges[key].to_numpy() for key in ("kind", "phase", "parent"))
    named = ((kind == "phase") | (kind == "module")) & (phases != "")
    has_phases = bool(named.any())
    phase_at, round_at = _nearest(parent, named), _nearest(parent, kind == "round")
    key_at = np.where(round_at >= 0, round_at, phase_at)
    own = {"phase": _taken(phases, phase_at, ""), "level": _taken(ranges["level"], phase_at, "")}
    if not has_phases:
        own["phase"] = np.where(kind == "round", "", ranges["name"].to_numpy(object))
    own |= {key: _taken(ranges[key].to_numpy(), key_at) for key in ("prompt", "round")}
    own["warmup"] = _taken(ranges["warmup"].to_numpy(), key_at, False)
    own["round_range"] = round_at
    unknown = {"phase": "", "level": "", "warmup": False}
    kinds = {"phase": "str", "level": "str", "warmup": "bool"}
    full = {key: np.append(values, unknown.get(key, UNKNOWN)) for key, values in own.items()}
    return pd.DataFrame(full).astype({key: kinds.get(key, "int64") for key in full})


def notes_on(attributed: pd.DataFrame) -> tuple[str, ...]:
    """One line for each way in which attribution fell short of launch correlation."""
    n, found = len(attributed), []
    by_time = int((attributed["how"] == "time").sum())
    if by_time:
        found.append(f"{by_time} of {n} kernels and copies have no launch; placed by time")
    nowhere = attributed["how"] == "none"
    if nowhere.any():
        us = (attributed["end_ns"] - attributed["start_ns"])[nowhere].sum() / 1e3
        found.append(f"{nowhere.sum()} of {n} kernels and copies ({us:.0f} us) are in no range")
    return tuple(found)


def _launch_of(kernels: pd.DataFrame, launches: pd.DataFrame) -> np.ndarray:
    """Row of the launch that started each kernel; -1: none."""
    correlation, start = (launches[key].to_numpy() for key in ("correlation", "start_ns"))
    known = np.flatnonzero(correlation != UNKNOWN)
    order = known[np.lexsort((start[known], correlation[known]))]
    correlation, start = correlation[order], start[order]
    asked, times = (kernels[key].to_numpy() for key in ("correlation", "start_ns"))
    if len(order) == 0:
        return np.full(len(asked), UNKNOWN)
    first = np.minimum(np.searchsorted(correlation, asked), len(order) - 1)
    last = _last_until(correlation, start, asked, times)
    # clocks of host and device may disagree by a little
    last = np.where((last < 0) & (correlation[first] == asked), first, last)
    return _taken(order, last)


def _last_until(keys, times, asked_keys, asked_times) -> np.ndarray:
    """Position of the last entry of a key that is no later than a time; -1: none.

    `keys`, then `times`, ascend.
    """
    if len(keys) == 0:
        return np.full(len(asked_keys), UNKNOWN)
    begins = np.append(True, keys[1:] != keys[:-1])
    known, code, moments = keys[begins], np.cumsum(begins) - 1, np.sort(times)
    # ranks instead of values: the pair fits one integer whatever the clock says
    scale = len(moments) + 1
    packed = code * scale + np.searchsorted(moments, times, side="right")
    asked = np.minimum(np.searchsorted(known, asked_keys), len(known) - 1)
    ranks = np.searchsorted(moments, asked_times, side="right")
    at = np.searchsorted(packed, asked * scale + ranks, side="right") - 1
    return np.where((known[asked] == asked_keys) & (at >= 0) & (code[at] == asked), at, UNKNOWN)


def _still_open(rows, times, parent, end) -> np.ndarray:
    """Climb from ranges that have ended to the nearest around them that have not; -1: none."""
    steps = [parent]  # so many parents up: 1, 2, 4, ...
    for _ in range(len(parent).bit_length()):
        if (steps[-1] < 0).all():
            break
        steps.append(_taken(steps[-1], steps[-1]))
    # ends only grow on the way up, so the last range that has ended is found by halving
    for step in reversed(steps):
        above = step[rows]
        rows = np.where((above >= 0) & (end[above] <= times), above, rows)
    return parent[rows]


def _nearest(parent: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row of the nearest wanted range, itself included; -1: none."""
    at = np.where(wanted, np.arange(len(parent)), parent)
    for _ in range(len(parent).bit_length()):
        onward = (at >= 0) & ~wanted[at]
        if not onward.any():
            break
        at = np.where(onward, at[at], at)
    return np.where((at >= 0) & wanted[at], at, UNKNOWN) if len(at) else at


def _taken(values, rows: np.ndarray, missing=UNKNOWN) -> np.ndarray:
    """`values[rows]`, and `missing` where a row is -1."""
    values = np.asarray(values, object if isinstance(missing, str) else None)
    if len(values) == 0:
        return np.full(len(rows), missing)
    return np.where(rows >= 0, values[rows], missing)
