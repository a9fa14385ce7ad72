"""A timeline for ui.perfetto.dev and chrome://tracing: Chrome Trace Event JSON.

One process for the host and one per device.  The host has a track for the rounds, one per level
with the modules in it, one per thread of somebody else's ranges and one for the launches; a device
has one per stream.  Arrows lead each proposal to the pass that verifies it, and each launch to the
first kernel it started; counters show accepted, emitted and stored tokens.

`args` of a slice hold its row: `table`, and every column of `timeline.RANGES`, `LAUNCHES` or
`KERNELS` that is known (`graph_node` that is not 0), so that the same timeline can be read back;
`otherData` holds the rest.

source: Trace Event Format (phases M, X, C, s, f), and how Perfetto's importer reads it: it cuts
        the product of a time in us and 1000 off to whole ns, names tracks by `tid` alone, and
        binds an arrow to the slice that began last on its track.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab.timeline import DOMAIN, KERNELS, LAUNCHES, RANGES, UNKNOWN, Timeline
from hspec_lab.trace_out.head import VERSION, begins_with, encode, head
from hspec_lab.trace_out.tracks import HOST, Track, below, by_level

_FIRST = '{"otherData":{"hspec_lab":' + str(VERSION) + ","
_HOST_PID = 1
# above every pid: viewers take a thread with the number of its process for the main one
_FIRST_TID = 101
_COLUMNS = {"ranges": RANGES, "launches": LAUNCHES, "kernels": KERNELS}
_UNKNOWN = {"int64": UNKNOWN, "str": "", "bool": False, "float64": None}
# the columns among a slice's arguments, and what goes without saying; parents follow from times
_SAID = {
    name: {
        column: 0 if column == "graph_node" else _UNKNOWN[kind]
        for column, kind in columns.items()
        if column != "parent"
    }
    for name, columns in _COLUMNS.items()
}
_COUNTERS = ("n_accepted", "n_emitted", "kv_len")
# a round's proposals flow through these, in the order of time
_HANDS_ON = ("draft", "verify_intermediate")
_VERIFIES = ("verify_intermediate", "verify_target")


def write(timeline: Timeline, path: Path) -> None:
    """Write a timeline as one JSON file, an event per line."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write('{"otherData":' + encode(head(timeline)) + ',"displayTimeUnit":"ms",')
        file.write('"traceEvents":[')
        separator = "\n"
        for event in events(timeline):
            file.write(separator + encode(event))
            separator = ",\n"
        file.write("\n]}\n")


def is_ours(path: Path) -> bool:
    """Say whether `write` wrote this file."""
    return begins_with(path, _FIRST)


def events(timeline: Timeline) -> Iterator[dict]:
    """Yield the trace's events: names, slices each with the arrows at it, counters."""
    tracks = [*by_level(timeline.ranges), *below(timeline)]
    pids = {HOST: _HOST_PID}
    for track in tracks:
        pids.setdefault(track.place, _HOST_PID + len(pids))
    yield from _names(timeline.about, tracks, pids)
    tables = {name: getattr(timeline, name) for name in _COLUMNS}
    at = {name: np.zeros((len(table), 2), dtype="int64") for name, table in tables.items()}
    for tid, track in enumerate(tracks, _FIRST_TID):
        at[track.table][track.rows] = pids[track.place], tid
    arrows = _arrows(timeline)
    for name, table in tables.items():
        yield from _slices(name, table, at[name].tolist(), arrows[name])
    yield from _counters(timeline.ranges)


def _names(about: dict, tracks: list[Track], pids: dict[str | int, int]) -> Iterator[dict]:
    said = [str(about[name]) for name in ("method", "format", "config_id") if name in about]
    title = " ".join(["hspec_lab", *(said or [str(about.get("source", ""))])]).strip()
    named = set()
    for tid, track in enumerate(tracks, _FIRST_TID):
        pid = pids[track.place]
        # viewers know a thread by its tid alone, so its process is named on one of its own tracks
        if pid not in named:
            named.add(pid)
            name = title if track.place == HOST else f"device {track.place}"
            yield _meta("process_name", pid, tid, name=name)
            yield _meta("process_sort_index", pid, tid, sort_index=pid)
        yield _meta("thread_name", pid, tid, name=track.name)
        yield _meta("thread_sort_index", pid, tid, sort_index=tid)


def _meta(kind: str, pid: int, tid: int, **args) -> dict:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _slices(
    name: str, table: pd.DataFrame, at: list[list[int]], arrows: dict[int, list[dict]]
) -> Iterator[dict]:
    """Every row of a table as a slice, in the table's order, and behind each its arrows' ends."""
    columns = _SAID[name]
    starts = _us(table["start_ns"])
    durations = _us(table["end_ns"] - table["start_ns"])
    rows = zip(*(table[column].tolist() for column in columns), strict=True)
    for row, values in enumerate(rows):
        # NaN is the one value that differs from itself
        args = {"table": name} | {
            column: value
            for (column, unsaid), value in zip(columns.items(), values, strict=True)
            if value != unsaid and value == value
        }
        pid, tid = at[row]
        place = {"pid": pid, "tid": tid, "ts": starts[row]}
        yield {
            "ph": "X",
            "name": _title(args),
            "cat": _category(args),
            **place,
            "dur": durations[row],
            "args": args,
        }
        for end in arrows.get(row, ()):
            yield end | place


def _title(args: dict) -> str:
    if args.get("kind") == "round" and "round" in args:
        return f"round {args['round']}"
    return args.get("name", "")


def _category(args: dict) -> str:
    if args["table"] == "ranges":
        return args.get("category", "range")
    return args.get("kind", "launch")


def _us(ns: pd.Series) -> list[float]:
    """Microseconds that are whole ns again whether a reader rounds or cuts off."""
    ns = ns.to_numpy()
    us = ns / 1e3
    return np.where((us * 1e3).astype("int64") < ns, np.nextafter(us, np.inf), us).tolist()


def _arrows(timeline: Timeline) -> dict[str, dict[int, list[dict]]]:
    """Both ends of every arrow, by table and row."""
    found = {name: {} for name in _COLUMNS}
    links = [("proposal", "ranges", a, "ranges", b) for a, b in _proposals(timeline.ranges)]
    links += [("launch", "launches", a, "kernels", b) for a, b in _started(timeline)]
    for number, (name, giver, a, taker, b) in enumerate(links, 1):
        flow = {"id": number, "name": name, "cat": name}
        found[giver].setdefault(a, []).append({"ph": "s", **flow})
        found[taker].setdefault(b, []).append({"ph": "f", "bp": "e", **flow})
    return found


def _proposals(ranges: pd.DataFrame) -> Iterator[tuple[int, int]]:
    """Link each verifying pass with the proposal just before it in its round."""
    givers = {}
    ours = ranges[(ranges["kind"] == "phase") & (ranges["domain"] == DOMAIN)]
    keys = ("range", "thread", "prompt", "round", "warmup", "phase", "level")
    rows = zip(*(ours[key].tolist() for key in keys), strict=True)
    for row, thread, *where, phase, level in rows:
        giver = givers.get(thread)
        # a second pass of the same level is its catch-up, not a hand-over
        if giver and phase in _VERIFIES and giver[1:] != (where, phase, level):
            if giver[1] == where:
                yield giver[0], row
                givers.pop(thread)
        if phase in _HANDS_ON:
            givers[thread] = (row, where, phase, level)


def _started(timeline: Timeline) -> list[tuple[int, int]]:
    """Link each launch with the first kernel of its correlation, if that began no earlier."""
    calls = timeline.launches.reset_index(names="a").drop_duplicates("correlation")
    runs = timeline.kernels.reset_index(names="b").sort_values("start_ns", kind="stable")
    runs = runs[runs["correlation"] != UNKNOWN].drop_duplicates("correlation")
    pairs = calls.merge(runs, on="correlation", suffixes=("", "_run"))
    pairs = pairs[pairs["start_ns"] <= pairs["start_ns_run"]]
    return list(zip(pairs["a"].tolist(), pairs["b"].tolist(), strict=True))


def _counters(ranges: pd.DataFrame) -> Iterator[dict]:
    rounds = ranges[ranges["kind"] == "round"].sort_values("start_ns", kind="stable")
    starts = _us(rounds["start_ns"])
    for name in _COUNTERS:
        for ts, count in zip(starts, rounds[name].tolist(), strict=True):
            if count != UNKNOWN:
                shared = {"ph": "C", "name": name, "pid": _HOST_PID, "tid": _FIRST_TID}
                yield shared | {"ts": ts, "args": {"tokens": count}}
