"""Arithmetic of half-open intervals [start, end): unions, what two sets share, what one lacks.

A set of intervals is an int64 array [n, 2].  Any order and any overlap may go in; empty and
backward intervals count for nothing.  What comes out is in normal form: sorted, disjoint, not
touching, none empty.  cost: one sort of the ends.
"""

import numpy as np


def of(starts, ends) -> np.ndarray:
    """Intervals from their starts and ends, int64 [n, 2]."""
    return np.stack([np.asarray(starts, np.int64), np.asarray(ends, np.int64)], axis=1)


def union(intervals: np.ndarray) -> np.ndarray:
    """Where at least one of them runs."""
    return overlap(intervals, 1)


def overlap(intervals: np.ndarray, least: int = 2) -> np.ndarray:
    """Where at least `least` of them run at the same time.

    Raises:
        ValueError: `least` is below 1.
    """
    if least < 1:
        raise ValueError(f"least must be 1 or more, got {least}")
    return _where(_proper(intervals), 1, lambda depth: depth >= least)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where one of `a` and one of `b` run."""
    return overlap(np.concatenate([union(a), union(b)]), 2)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where one of `a` runs and none of `b`."""
    a, b = union(a), union(b)
    weights = np.repeat([1, -2], [len(a), len(b)])
    return _where(np.concatenate([a, b]), weights, lambda depth: depth == 1)


def total(intervals: np.ndarray) -> int:
    """How long at least one of them runs."""
    merged = union(intervals)
    return int((merged[:, 1] - merged[:, 0]).sum())


def covered(intervals: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """How much of each window they cover.

    Args:
        intervals: int64 [n, 2].
        windows: int64 [m, 2]; they may overlap each other.

    Returns:
        int64 [m].
    """
    merged, windows = union(intervals), np.asarray(windows, np.int64).reshape(-1, 2)
    if len(merged) == 0:
        return np.zeros(len(windows), np.int64)
    lengths = merged[:, 1] - merged[:, 0]
    before = np.cumsum(lengths) - lengths

    def until(time):
        at = np.maximum(np.searchsorted(merged[:, 0], time, side="right") - 1, 0)
        return before[at] + np.clip(time - merged[at, 0], 0, lengths[at])

    return np.maximum(until(windows[:, 1]) - until(windows[:, 0]), 0)


def _proper(intervals: np.ndarray) -> np.ndarray:
    intervals = np.asarray(intervals, np.int64).reshape(-1, 2)
    return intervals[intervals[:, 0] < intervals[:, 1]]


def _where(intervals: np.ndarray, weights, wanted) -> np.ndarray:
    """Where the sum of the weights of what runs is wanted."""
    weights = np.broadcast_to(weights, len(intervals))
    times, steps = intervals.T.ravel(), np.concatenate([weights, -weights])
    order = np.argsort(times, kind="stable")
    times, sums = times[order], np.cumsum(steps[order])
    # what runs from a time on is known once all that happens then has happened
    settled = np.append(times[1:] != times[:-1], len(times) > 0)[: len(times)]
    times, inside = times[settled], wanted(sums[settled])
    # nothing runs after the last end, so what begins also ends
    turns = np.diff(np.concatenate([[False], inside]).astype(np.int8))
    return of(times[turns == 1], times[turns == -1])
