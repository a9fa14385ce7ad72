"""The critical path: what each instant of a round's wall time was spent on.

Every instant goes to exactly one thing:

    device  the phase that launched the kernel, copy or fill that runs; of several that run, the
            one that ends last, since nothing that waits for all of them begins earlier
    host    nothing runs: the innermost phase that the round's thread is in
    gap     neither

so a round's rows add up to its wall time.  Of rounds that overlap, which no recorder of ours
makes, the one that begins first counts.  A trace without rounds is one round, -1, on the thread
that launches most (that has most ranges, if none launches).

cost: sorts and binary searches over the ends of rounds, phases and kernels.
"""

import numpy as np
import pandas as pd

from hspec_lab.analysis.attribution import attribute, innermost, owners
from hspec_lab.analysis.windows import whole
from hspec_lab.timeline import UNKNOWN, Timeline

_WHERE = ("device", "host", "gap")


def critical_path(timeline: Timeline, attributed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return where the wall time of each round went, warm-up rounds included and flagged.

    Args:
        attributed: what `attribute` says of the timeline, where it is known already.

    Returns:
        prompt, round, warmup, phase, level, where (device, host or gap), us.  phase is "" for work
        that no phase launched, and "gap" in a gap.
    """
    attributed = attribute(timeline) if attributed is None else attributed
    own = owners(timeline.ranges)
    labels = own.groupby(["phase", "level"], sort=False).ngroup().to_numpy()
    rounds = _rounds(timeline)
    left, length, at = _pieces(timeline, rounds)
    running = _ends_last(attributed, left)
    thread = rounds["thread"].to_numpy()[at]
    on_device = running >= 0
    rows = innermost(timeline.ranges, thread, left)
    if len(attributed):
        rows = np.where(on_device, attributed["range"].to_numpy()[running], rows)
    named = own["phase"].to_numpy()[rows] != ""
    where = np.where(on_device, 0, np.where(named, 1, 2))
    spent = pd.DataFrame({"at": at, "label": labels[rows], "where": where, "us": length})
    spent = spent.groupby(["at", "where", "label"])["us"].sum().reset_index()
    first = own.drop_duplicates(["phase", "level"])[["phase", "level"]].reset_index(drop=True)
    keys = rounds[["prompt", "round", "warmup"]].iloc[spent["at"]].reset_index(drop=True)
    path = pd.concat([keys, first.iloc[spent["label"]].reset_index(drop=True)], axis=1)
    path["phase"] = path["phase"].mask(spent["where"] == 2, "gap")
    where = np.array(_WHERE, object)[spent["where"].to_numpy()]
    return path.assign(where=pd.Series(where, dtype="str"), us=spent["us"] / 1e3)


def summed(path: pd.DataFrame) -> pd.DataFrame:
    """Return a critical path over all rounds that are not warm-up, what took longest first.

    Args:
        path: what `critical_path` says.

    Returns:
        phase, level, where, us, us_per_round (NaN without rounds), share.
    """
    path = path[~path["warmup"].astype(bool)]
    n_rounds = len(path.loc[path["round"] >= 0, ["prompt", "round"]].drop_duplicates())
    table = path.groupby(["phase", "level", "where"], sort=False)["us"].sum().reset_index()
    table["us_per_round"] = table["us"] / (n_rounds or np.nan)
    table["share"] = table["us"] / (table["us"].sum() or np.nan)
    return table.sort_values("us", ascending=False, kind="stable", ignore_index=True)


def _rounds(timeline: Timeline) -> pd.DataFrame:
    """Rounds that overlap none before them: prompt, round, warmup, thread, start_ns, end_ns."""
    rounds = timeline.ranges[timeline.ranges["kind"] == "round"]
    if len(rounds) == 0:
        rounds = timeline.ranges.iloc[:0]
        window = whole(timeline)
        if len(window):
            row = {"prompt": UNKNOWN, "round": UNKNOWN, "warmup": False}
            times = dict(zip(("start_ns", "end_ns"), window[0], strict=True))
            rounds = pd.DataFrame([row | {"thread": _busiest(timeline)} | times])
    kept, until = [], None
    for place, (start, end) in enumerate(
        zip(rounds["start_ns"].tolist(), rounds["end_ns"].tolist(), strict=True)
    ):
        if until is None or start >= until:
            kept.append(place)
            until = end
    return rounds.iloc[kept].reset_index(drop=True)


def _busiest(timeline: Timeline) -> int:
    """The thread that launches most, or has most ranges."""
    rows = timeline.launches if len(timeline.launches) else timeline.ranges
    return int(rows["thread"].mode()[0]) if len(rows) else UNKNOWN


def _pieces(timeline: Timeline, rounds: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """Rounds cut wherever something begins or ends: start, length, row of the round."""
    ranges = timeline.ranges
    # where phases are ours, nothing else changes a label
    ours = ranges[ranges["kind"].isin(["phase", "module"])]
    cut = (rounds, ours if len(ours) else ranges, timeline.kernels)
    cuts = np.sort(np.concatenate([t[key] for t in cut for key in ("start_ns", "end_ns")]))
    left, length = cuts[:-1], np.diff(cuts)
    at = np.searchsorted(rounds["start_ns"].to_numpy(), left, side="right") - 1
    inside = (at >= 0) & (length > 0)
    inside[inside] = left[inside] < rounds["end_ns"].to_numpy()[at[inside]]
    return left[inside], length[inside], at[inside]


def _ends_last(work: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """Row of the work that runs at each time, of several the one that ends last; -1: none."""
    if len(work) == 0:
        return np.full(len(times), UNKNOWN)
    order = np.argsort(work["start_ns"].to_numpy(), kind="stable")
    start, end = (work[key].to_numpy()[order] for key in ("start_ns", "end_ns"))
    # of all that has begun, what ends last runs if anything does
    latest = np.maximum.accumulate(end)
    leads = np.append(True, end[1:] > latest[:-1])
    leader = np.maximum.accumulate(np.where(leads, np.arange(len(end)), 0))
    at = np.searchsorted(start, times, side="right") - 1
    return np.where((at >= 0) & (latest[at] > times), order[leader[at]], UNKNOWN)
