"""A timeline for www.speedscope.app: flame graphs of what lies around what.

One profile per host thread, on which rounds hold phases and phases hold modules, one per thread of
launches and one per stream of a device; further lanes of a line are profiles of their own.  Frames
are names, those of our phases with their level, so that "left heavy" sums up what each cost.

The key `hspec_lab` holds all three tables as columns, so that the same timeline can be read back;
null stands for an unknown time of the device.

source: speedscope's file format (`evented` profiles, times in ns); its schema allows further keys.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from hspec_lab.timeline import Timeline
from hspec_lab.trace_out.head import VERSION, begins_with, encode, head
from hspec_lab.trace_out.tracks import HOST, Track, below, by_thread

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_EXPORTER = f"hspec_lab@{VERSION}"
_FIRST = encode({"$schema": _SCHEMA, "exporter": _EXPORTER})[:-1] + ","


def write(timeline: Timeline, path: Path) -> None:
    """Write a timeline as one JSON file."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write(encode(content(timeline)) + "\n")


def is_ours(path: Path) -> bool:
    """Say whether `write` wrote this file."""
    return begins_with(path, _FIRST)


def content(timeline: Timeline) -> dict:
    """Return what the file says."""
    names = {
        "ranges": _frame_names(timeline.ranges),
        "launches": timeline.launches["name"].tolist(),
        "kernels": timeline.kernels["name"].tolist(),
    }
    frames = {name: at for at, name in enumerate(dict.fromkeys(chain(*names.values())))}
    of_row = {table: [frames[name] for name in given] for table, given in names.items()}
    tracks = [*by_thread(timeline.ranges), *below(timeline)]
    # a file needs a profile to open
    tracks = tracks or [Track(HOST, HOST, "ranges", [])]
    tables = {name: getattr(timeline, name) for name in names}
    times = {
        name: (table["start_ns"].tolist(), table["end_ns"].tolist())
        for name, table in tables.items()
    }
    end = max((max(ends) for _, ends in times.values() if ends), default=0)
    return {
        "$schema": _SCHEMA,
        "exporter": _EXPORTER,
        "name": _title(timeline.about),
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": [
            _profile(track, of_row[track.table], *times[track.table], end) for track in tracks
        ],
        "hspec_lab": head(timeline) | {name: _compact(table) for name, table in tables.items()},
    }


def _frame_names(ranges: pd.DataFrame) -> list[str]:
    columns = (ranges[name].tolist() for name in ("kind", "name", "level"))
    return [
        f"{name} ({level})" if kind == "phase" and level else name
        for kind, name, level in zip(*columns, strict=True)
    ]


def _title(about: dict) -> str:
    said = [str(about[name]) for name in ("method", "format", "config_id") if name in about]
    return " ".join(said) or str(about.get("source", "")) or "hspec_lab"


def _profile(
    track: Track, frames: list[int], starts: list[int], ends: list[int], last: int
) -> dict:
    name = track.name if track.place == HOST else f"device {track.place}, {track.name}"
    return {
        "type": "evented",
        "name": name,
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": last,
        "events": list(_events(track.rows, frames, starts, ends)),
    }


def _events(
    rows: list[int], frames: list[int], starts: list[int], ends: list[int]
) -> Iterator[dict]:
    """Open and close every row, the inner before what lies around it."""
    under_way = []
    for row in rows:
        while under_way and ends[under_way[-1]] <= starts[row]:
            yield _event("C", frames, under_way.pop(), ends)
        yield _event("O", frames, row, starts)
        under_way.append(row)
    while under_way:
        yield _event("C", frames, under_way.pop(), ends)


def _event(kind: str, frames: list[int], row: int, times: list[int]) -> dict:
    return {"type": kind, "frame": frames[row], "at": times[row]}


def _compact(table: pd.DataFrame) -> dict[str, list]:
    return {
        name: [None if value != value else value for value in table[name].tolist()]
        for name in table
    }
