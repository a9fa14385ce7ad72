"""Which part of a trace counts: rounds that are not warm-up, or everything; as intervals."""

import numpy as np
import pandas as pd

from hspec_lab.analysis import intervals as iv
from hspec_lab.timeline import Timeline


def has_rounds(timeline: Timeline) -> bool:
    """Say whether a trace has rounds of ours, warm-up or not."""
    return bool((timeline.ranges["kind"] == "round").any())


def counted_rounds(timeline: Timeline) -> pd.Series:
    """Say of each range whether it is a round that counts."""
    return (timeline.ranges["kind"] == "round") & ~timeline.ranges["warmup"].astype(bool)


def windows(timeline: Timeline) -> np.ndarray:
    """The counted rounds as int64 [n, 2], ns; the whole trace where it has no rounds."""
    if has_rounds(timeline):
        return between(timeline.ranges[counted_rounds(timeline)])
    return whole(timeline)


def whole(timeline: Timeline) -> np.ndarray:
    """From the first thing in a trace to the last: int64 [1, 2], ns; [0, 2] if it is empty."""
    parts = (timeline.ranges, timeline.launches, timeline.kernels)
    all_of_it = np.concatenate([between(part) for part in parts])
    return iv.of([all_of_it[:, 0].min()], [all_of_it[:, 1].max()]) if len(all_of_it) else all_of_it


def between(rows: pd.DataFrame) -> np.ndarray:
    """From start to end of each row: int64 [n, 2], ns."""
    return iv.of(rows["start_ns"], rows["end_ns"])


def overlap_of_streams(work: pd.DataFrame) -> np.ndarray:
    """Where at least two streams of one device work; work of one stream never overlaps itself."""
    work = work.sort_values(["stream", "start_ns"])
    stream, start = work["stream"].to_numpy(), work["start_ns"].to_numpy()
    until = work.groupby("stream")["end_ns"].cummax().to_numpy()
    begins = np.append(True, (stream[1:] != stream[:-1]) | (start[1:] > until[:-1]))
    ends = np.append(begins[1:], True)
    return iv.overlap(iv.of(start[begins], until[ends]), 2)


def counts(own: pd.DataFrame, timeline: Timeline) -> np.ndarray:
    """Say of rows whether they belong to a round that counts, or to a trace without rounds.

    Args:
        own: what `attribution.owners` says of each.
    """
    inside = (own["round_range"] >= 0) | (not has_rounds(timeline))
    return (inside & ~own["warmup"].astype(bool)).to_numpy()


def labelled(rows: pd.DataFrame, timeline: Timeline) -> pd.DataFrame:
    """Return the rows that count, in a trace with rounds under the names that tables give them.

    In a round but in no phase is `gap`; of all outside rounds only the prefill keeps its name.

    Args:
        rows: with what `attribution.owners` says of each.
    """
    rows = rows[~rows["warmup"].astype(bool)]
    if not has_rounds(timeline):
        return rows.copy()
    inside = rows["round_range"] >= 0
    outside = ~inside & (rows["phase"] != "prefill")
    phase = rows["phase"].mask(inside & (rows["phase"] == ""), "gap").mask(outside, "")
    return rows.assign(phase=phase, level=rows["level"].mask(outside, ""))
