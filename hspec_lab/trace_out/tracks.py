"""Which row of a timeline is drawn on which line of a viewer.

Viewers draw a line as a stack: what lies on one line has to nest or to be apart.  Rows that cross
others go to further lanes of their line, "stream 7 (2)".  A range nests in the lane of the one
around it; kernels and launches call nothing, so any that overlap go to lanes of their own.

cost: O(n log n) for n rows, however they overlap.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import pandas as pd

from hspec_lab.terms import LEVELS
from hspec_lab.timeline import Timeline

HOST = "host"
# ancestors on other lines that a row looks past for the lane to nest in
_LOOKS_PAST = 64


@dataclass(frozen=True, slots=True)
class Track:
    """One line of a viewer.

    Attributes:
        place: `HOST`, or the number of a device.
        name: what a viewer calls it.
        table: `ranges`, `launches` or `kernels`.
        rows: positions in that table, by start; longer ones first.
    """

    place: str | int
    name: str
    table: str
    rows: list[int]


def by_level(ranges: pd.DataFrame) -> list[Track]:
    """Lay out ranges: our rounds, our levels with their modules, then a line per thread.

    Args:
        ranges: columns `timeline.RANGES`.
    """
    several = ranges.loc[ranges["kind"] != "range", "thread"].nunique() > 1
    keys = []
    for kind, level, thread in _columns(ranges, "kind", "level", "thread"):
        rank, name = _line(kind, level, thread)
        with_thread = several and kind != "range"
        keys.append((HOST, rank, f"{name}, thread {thread}" if with_thread else name))
    return _laned(ranges, "ranges", keys, ranges["parent"].tolist())


def by_thread(ranges: pd.DataFrame) -> list[Track]:
    """Lay out ranges: a line per thread, on which rounds hold phases and phases hold modules."""
    several = ranges["thread"].nunique() > 1
    keys = [(HOST, 0, f"thread {n}" if several else HOST) for n in ranges["thread"].tolist()]
    return _laned(ranges, "ranges", keys, ranges["parent"].tolist())


def below(timeline: Timeline) -> list[Track]:
    """Lay out launches, a line per thread, and kernels, a line per device and stream."""
    several = timeline.launches["thread"].nunique() > 1
    threads = timeline.launches["thread"].tolist()
    calls = [(HOST, 0, f"launches, thread {n}" if several else "launches") for n in threads]
    streams = _columns(timeline.kernels, "device", "stream")
    runs = [(device, stream, f"stream {stream}") for device, stream in streams]
    return [
        *_laned(timeline.launches, "launches", calls),
        *_laned(timeline.kernels, "kernels", runs),
    ]


def lanes(
    rows: Iterable[int], start: list[int], end: list[int], parent: list[int] | None = None
) -> list[list[int]]:
    """Spread rows over as few lanes as their order allows, so that none crosses another in one.

    Args:
        rows: positions, by start; longer ones first.
        start, end: of every row of the table, ns.
        parent: the row around each, UNKNOWN where there is none; None: nothing nests.

    Returns:
        The rows of each lane, in the order given.
    """
    found, stacks, lane_of = [], [], {}
    busy, idle = [], []
    for row in rows:
        while busy and busy[0][0] <= start[row]:
            heappush(idle, heappop(busy)[1])
        lane = None if parent is None else _around(row, parent, lane_of)
        if lane is None or not _fits(stacks[lane], start[row], end[row]):
            lane = heappop(idle) if idle else len(found)
            if lane == len(found):
                found.append([])
                stacks.append([])
            heappush(busy, (end[row], lane))
        stacks[lane].append(end[row])
        found[lane].append(row)
        lane_of[row] = lane
    return found


def _around(row: int, parent: list[int], lane_of: dict[int, int]) -> int | None:
    """The lane of the nearest ancestor that is drawn on this line."""
    for _ in range(_LOOKS_PAST):
        row = parent[row]
        if row < 0 or row in lane_of:
            break
    return lane_of.get(row)


def _fits(stack: list[int], start: int, end: int) -> bool:
    while stack and stack[-1] <= start:
        stack.pop()
    return bool(stack) and end <= stack[-1]


def _line(kind: str, level: str, thread: int) -> tuple[int, str]:
    """Where from the top the line of a range is, and its name."""
    if kind == "round":
        return 0, "rounds"
    if kind == "range":
        return len(LEVELS) + 2, f"thread {thread}"
    place = LEVELS.index(level) if level in LEVELS else len(LEVELS)
    return place + 1, level or "phases"


def _laned(
    table: pd.DataFrame, name: str, keys: list[tuple], parent: list[int] | None = None
) -> list[Track]:
    """One track per lane of each key: place, rank, title; equal ranks as they come."""
    start, end = table["start_ns"].tolist(), table["end_ns"].tolist()
    groups: dict[tuple, list[int]] = {}
    for row in np.lexsort((-table["end_ns"], table["start_ns"])).tolist():
        groups.setdefault(keys[row], []).append(row)
    return [
        Track(key[0], key[2] if number == 1 else f"{key[2]} ({number})", name, rows)
        for key in sorted(groups, key=lambda key: key[:2])
        for number, rows in enumerate(lanes(groups[key], start, end, parent), 1)
    ]


def _columns(table: pd.DataFrame, *names: str) -> Iterable[tuple]:
    return zip(*(table[name].tolist() for name in names), strict=True)
