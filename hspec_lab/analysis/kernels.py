"""What a device did, kernel by kernel and phase by phase, and what it waited for.

Counted are rounds that are not warm-up.  A trace without rounds counts as one window, from the
first thing in it to the last, and everything per round is NaN.  Work belongs to the round and
phase that launched it (`attribution`), whenever it ran; busy and idle times are facts of the
clock, inside the counted rounds, whoever launched what ran there.

    work       kernels, copies and fills; only kernels count in n_kernels
    device_us  sum of durations; work on two streams at once counts twice
    launch     one call of the host; a graph's launch is one, however many kernels it starts
    busy       the union of the work on all streams of a device
    idle       from a device's first work inside the rounds to its last, minus busy
    host bound rounds minus busy: the device waits for a host that is inside a round, before a
               round's first kernel and after its last one too
    overlap    at least two streams of a device work
"""

import numpy as np
import pandas as pd

from hspec_lab.analysis import intervals as iv
from hspec_lab.analysis.attribution import attribute, launch_ranges, owners
from hspec_lab.analysis.windows import (
    between,
    counted_rounds,
    counts,
    has_rounds,
    labelled,
    overlap_of_streams,
    windows,
)
from hspec_lab.terms import ROUND_PHASES
from hspec_lab.timeline import Timeline

_ORDER = {phase: place for place, phase in enumerate([*ROUND_PHASES, "prefill"])}
_COUNTS = ["n_kernels", "n_launches"]
_TIMES = ["device_us", "host_us"]
# a trace of others may name every single range differently
_MOST_NAMED = 8


def by_kernel(timeline: Timeline, attributed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the work of the counted rounds by name, what took longest first.

    Args:
        attributed: what `attribute` says of the timeline, where it is known already.

    Returns:
        name, kind, n, total_us, share of all work's total, median_us, phases: those that launched
        it, the one that spent most first, 8 of them by name.
    """
    work = _counted(timeline, attributed)
    work = work.assign(device_us=(work["end_ns"] - work["start_ns"]) / 1e3)
    nowhere = "gap" if has_rounds(timeline) else ""
    keys = ["name", "kind"]
    grouped = work.groupby(keys, sort=False)["device_us"]
    table = grouped.agg(n="size", total_us="sum", median_us="median").reset_index()
    table["share"] = table["total_us"] / (table["total_us"].sum() or np.nan)
    spent = work.groupby([*keys, "phase"], sort=False)["device_us"].sum()
    phases: dict[tuple, list[str]] = {}
    for name, kind, phase in spent.sort_values(ascending=False, kind="stable").index:
        phases.setdefault((name, kind), []).append(phase or nowhere)
    pairs = zip(table["name"], table["kind"], strict=True)
    named = [_listed([phase for phase in phases[pair] if phase]) for pair in pairs]
    table["phases"] = pd.Series(named, index=table.index, dtype="str")
    table = table.sort_values("total_us", ascending=False, kind="stable", ignore_index=True)
    return table[["name", "kind", "n", "total_us", "share", "median_us", "phases"]]


def by_phase(timeline: Timeline, attributed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return what each phase launched, how long that ran, and how long the host was in it.

    `gap` is what lies in a round but in no phase.  Behind the phases of rounds come the prefill
    and "", all else outside rounds, both without columns per round.  A trace without phases of
    ours lists its ranges by name; each has what lies in no range inside it.

    Args:
        attributed: what `attribute` says of the timeline, where it is known already.

    Returns:
        phase, level, n_kernels, n_launches, device_us, host_us, kernels_per_round,
        launches_per_round, device_us_per_round, host_us_per_round, device_us_per_emitted,
        host_us_per_emitted.  Without any recorded work device_us is the time between the
        device's own marks, NaN where there are none.
    """
    parts = pd.concat([_device(timeline, attributed), _host(timeline)], ignore_index=True)
    parts = parts.reindex(columns=["phase", "level", "round_range", *_COUNTS, *_TIMES])
    parts["in_round"] = parts["round_range"].fillna(-1) >= 0
    grouped = parts.groupby(["phase", "level"], sort=False)
    table = grouped[[*_COUNTS, *_TIMES]].sum(min_count=1)
    table = table.assign(in_round=grouped["in_round"].any()).reset_index()
    table[_COUNTS] = table[_COUNTS].fillna(0).astype("int64")
    if len(timeline.kernels):
        table["device_us"] = table["device_us"].fillna(0.0)
    return _ordered(_per_round(table, timeline))


def device_summary(
    timeline: Timeline, attributed: pd.DataFrame | None = None, device: int | None = None
) -> dict[str, float]:
    """Return what devices did during the counted rounds; the words are defined above.

    Without recorded work everything but n_rounds, wall_us and n_launches is 0 or NaN.

    Args:
        attributed: what `attribute` says of the timeline, where it is known already.
        device: of this one alone; None: of all together, busy while any of them works, and
            overlap summed over them.

    Returns:
        n_rounds                             counted rounds
        wall_us                              their wall time, or that of the window
        n_devices, n_streams                 that were given work in the rounds
        n_kernels, n_copies                  launched in the rounds; copies and fills are one sort
        n_launches                           calls in the rounds, for whichever device
        kernels_per_round, launches_per_round
        kernel_us, copy_us                   sums of durations
        busy_us, busy_share                  the share is of wall_us
        idle_us, idle_share                  the share is of idle and busy
        host_bound_us, host_bound_share      the share is of wall_us
        stream_overlap_us
    """
    return _summed(timeline, _counted(timeline, attributed), device)


def device_table(timeline: Timeline, attributed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return `device_summary` of each device, one row each, with its `device`."""
    work = _counted(timeline, attributed)
    ids = sorted(timeline.kernels["device"].unique().tolist())
    rows = [{"device": id} | _summed(timeline, work, id) for id in ids]
    columns = ["device", *_summed(Timeline(timeline.ranges), work.iloc[:0], None)]
    return pd.DataFrame(rows, columns=columns)


def _counted(timeline: Timeline, attributed: pd.DataFrame | None) -> pd.DataFrame:
    """What was launched in rounds that count."""
    attributed = attribute(timeline) if attributed is None else attributed
    return attributed[counts(owners(timeline.ranges), timeline)[attributed["range"]]]


def _listed(phases: list[str]) -> str:
    more = [f"and {len(phases) - _MOST_NAMED} more"] if len(phases) > _MOST_NAMED else []
    return ", ".join([*phases[:_MOST_NAMED], *more])


def _device(timeline: Timeline, attributed: pd.DataFrame | None) -> pd.DataFrame:
    """What each range, and the lack of one, launched: counts and device_us, labelled."""
    attributed = attribute(timeline) if attributed is None else attributed
    own = owners(timeline.ranges)
    us = (attributed["end_ns"] - attributed["start_ns"]) / 1e3
    launched = {
        "n_kernels": (attributed["range"], attributed["kind"] == "kernel"),
        "n_launches": (launch_ranges(timeline), None),
        "device_us": (attributed["range"], us),
        "n_parts": (attributed["range"], None),
    }
    for name, (rows, weights) in launched.items():
        # the last row stands for what is in no range, as -1 finds it
        own[name] = np.bincount(np.asarray(rows) % len(own), weights, len(own))
    used = (own["n_parts"] > 0) | (own["n_launches"] > 0)
    return labelled(own[used] if len(attributed) else own[used].drop(columns="device_us"), timeline)


def _host(timeline: Timeline) -> pd.DataFrame:
    """The host's time in each phase, and in a round's gap; ranges of others less those inside."""
    ranges = timeline.ranges
    us = ((ranges["end_ns"] - ranges["start_ns"]) / 1e3).to_numpy()
    rows = owners(ranges).iloc[:-1].assign(host_us=us)
    if len(timeline.kernels) == 0:
        rows["device_us"] = ranges["device_us"]
    if (ranges["kind"] == "phase").any():
        rows = rows[ranges["kind"] == "phase"]
    else:
        inner = np.flatnonzero(ranges["parent"] >= 0)
        inside = np.bincount(ranges["parent"].to_numpy()[inner], us[inner], len(us))
        rows["host_us"] = np.maximum(us - inside, 0)
        rows = rows[ranges["kind"] != "round"]
    rows = labelled(rows, timeline)
    counted = counted_rounds(timeline)
    if not counted.any():
        return rows
    spent = rows.loc[rows["round_range"] >= 0, "host_us"].sum()
    gap = {"phase": "gap", "level": "", "round_range": 0, "host_us": us[counted].sum() - spent}
    return pd.concat([rows, pd.DataFrame([gap])], ignore_index=True)


def _per_round(table: pd.DataFrame, timeline: Timeline) -> pd.DataFrame:
    counted = counted_rounds(timeline)
    emitted = timeline.ranges.loc[counted, "n_emitted"]
    n_emitted = emitted.sum() if (emitted >= 0).all() else 0
    inside = table["in_round"].map({True: 1.0, False: np.nan})
    recorded = {"n_kernels": len(timeline.kernels), "n_launches": len(timeline.launches)}
    for name in [*_COUNTS, *_TIMES]:
        known = inside if recorded.get(name, 1) else np.nan
        column = name.removeprefix("n_") + "_per_round"
        table[column] = table[name] * known / (counted.sum() or np.nan)
    for name in _TIMES:
        table[f"{name}_per_emitted"] = table[name] * inside / (n_emitted or np.nan)
    return table.drop(columns="in_round")


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Phases of ours in the order of figures, others by their time; what is in none comes last."""
    place = table["phase"].map(_ORDER).fillna(len(_ORDER))
    table = table.assign(nowhere=table["phase"] == "", place=place)
    keys = ["nowhere", "place", *_TIMES]
    table = table.sort_values(keys, ascending=[True, True, False, False], kind="stable")
    return table.drop(columns=["nowhere", "place"]).reset_index(drop=True)


def _summed(timeline: Timeline, work: pd.DataFrame, device: int | None) -> dict[str, float]:
    if device is not None:
        work = work[work["device"] == device]
    n_rounds = int(counted_rounds(timeline).sum())
    numbers = {"n_rounds": n_rounds, "wall_us": iv.total(windows(timeline)) / 1e3}
    numbers |= {"n_devices": work["device"].nunique()}
    numbers |= {"n_streams": len(work[["device", "stream"]].drop_duplicates())}
    kernel, us = work["kind"] == "kernel", (work["end_ns"] - work["start_ns"]) / 1e3
    calls = counts(owners(timeline.ranges), timeline)[launch_ranges(timeline)]
    numbers |= {"n_kernels": int(kernel.sum()), "n_copies": int((~kernel).sum())}
    numbers |= {"n_launches": int(calls.sum())}
    for name in ("kernels", "launches"):
        known = n_rounds and len(getattr(timeline, name))
        numbers[f"{name}_per_round"] = numbers[f"n_{name}"] / n_rounds if known else np.nan
    numbers |= {"kernel_us": float(us[kernel].sum()), "copy_us": float(us[~kernel].sum())}
    return numbers | _clock(timeline, device)


def _clock(timeline: Timeline, device: int | None) -> dict[str, float]:
    """Busy, idle, host bound and overlap inside the windows."""
    work, inside = timeline.kernels, windows(timeline)
    if device is not None:
        work = work[work["device"] == device]
    names = ("busy", "idle", "host_bound")
    if len(work) == 0:
        numbers = {f"{name}_{what}": np.nan for name in names for what in ("us", "share")}
        return numbers | {"stream_overlap_us": np.nan}
    busy = iv.intersection(between(work), inside)
    wall, busy_us = iv.total(inside) / 1e3, iv.total(busy) / 1e3
    span = iv.of([busy[0, 0]], [busy[-1, 1]]) if len(busy) else busy
    idle_us = iv.total(iv.difference(iv.intersection(span, inside), busy)) / 1e3
    times = ((busy_us, wall), (idle_us, busy_us + idle_us), (wall - busy_us, wall))
    numbers = {}
    for name, (us, of) in zip(names, times, strict=True):
        numbers |= {f"{name}_us": us, f"{name}_share": us / (of or np.nan)}
    shared = [iv.intersection(overlap_of_streams(one), inside) for _, one in work.groupby("device")]
    return numbers | {"stream_overlap_us": sum(map(iv.total, shared)) / 1e3}
