"""What a timeline's picture has to draw: lanes of spans, and those of them that a view can show.

`lanes` sorts a timeline once; `in_view` is then a binary search and
a few sums over what lies in the view, however long the recording is.

A lane holds spans that do not overlap.  Spans narrower than a pixel are joined to blocks of a few
pixels, which know how many spans they stand for and how much time those covered.  Nothing is
dropped but what the picture has no lane for, and that is counted.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hspec_lab.figures import INK, PHASE_COLOURS, in_order
from hspec_lab.terms import LEVELS, PHASES, phase_of
from hspec_lab.timeline import Timeline

# a block of spans too narrow to be seen is as wide as that
_BLOCK_PX = 3
# spans that overlap on a track go to lanes below; deeper ones, and later tracks, are counted only
_MOST_DEEP, _MOST_LANES = 10, 40
# names that are not ours get these in order of their time, after Tol; the rest is "other"
_COLOURS = ("#77AADD", "#EE8866", "#44BB99", "#EEDD88", "#FFAABB", "#BBCC33", "#99DDFF", "#AAAA00")
_PLAIN = {"round": "#AAAAAA", "launch": INK, "kernel": INK, "other": INK}


@dataclass(frozen=True)
class Lane:
    """Spans that do not overlap, sorted; times in ns.

    Attributes:
        name: what stands beside it.
        table: the timeline's table that its spans come from: ranges, launches or kernels.
        rows: int64 [n], their rows there.
        starts, ends: int64 [n].
        colours: int64 [n], which of `Lanes.colours` each has.
    """

    name: str
    table: str
    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class Lanes:
    """A timeline made ready to be drawn.

    Attributes:
        timeline: where it comes from.
        lanes: top down.
        colours: what is drawn in a colour of its own -> that colour, in the legend's order.
        end_ns: when the last span ends.
        n_left_out: spans for which there is no lane.
    """

    timeline: Timeline
    lanes: tuple[Lane, ...]
    colours: dict[str, str]
    end_ns: int
    n_left_out: int


def lanes(timeline: Timeline) -> Lanes:
    """Sort a timeline into lanes: rounds, levels with their modules, threads, launches, streams.

    Args:
        timeline: kernels and launches with a column `phase`, as attribution gives them, are drawn
            in its colour.
    """
    tables = {name: getattr(timeline, name) for name in ("ranges", "launches", "kernels")}
    keys = {name: _keys(name, rows) for name, rows in tables.items()}
    colours = _coloured(tables, keys)
    places = {key: place for place, key in enumerate(colours)}
    found, n_left_out = [], 0
    for name, table, rows in _tracks(tables):
        parts, deeper = _apart(tables[table].iloc[rows])
        for depth, part in enumerate(parts):
            if len(found) == _MOST_LANES:
                n_left_out += len(part)
                continue
            at = rows[part]
            times = [tables[table][end].to_numpy()[at] for end in ("start_ns", "end_ns")]
            kinds = [places.get(key, places.get("other", 0)) for key in keys[table][at]]
            label = name if depth == 0 else ""
            found.append(Lane(label, table, at, *times, np.array(kinds, dtype=np.int64)))
        n_left_out += deeper
    end_ns = max((int(rows["end_ns"].max()) for rows in tables.values() if len(rows)), default=0)
    return Lanes(timeline, tuple(found), colours, end_ns, n_left_out)


def in_view(ready: Lanes, view_ns: tuple[float, float], pixel_ns: float, most: int) -> pd.DataFrame:
    """Return the bars that show everything between two times, at most about `most` of them.

    Args:
        view_ns: from, to.
        pixel_ns: what a pixel shows; grown until few enough bars are left.

    Returns:
        lane, colour (their numbers), n (spans in the bar), row (of its lane's table, of the
        first span), start_ns, end_ns, covered_ns (by its spans).
    """
    widest = 4 * max(view_ns[1] - view_ns[0], 1)
    while True:
        parts = [_bars(lane, view_ns, pixel_ns) for lane in ready.lanes]
        n = sum(len(part["n"]) for part in parts)
        if n <= most or pixel_ns > widest:
            break
        pixel_ns *= max(1.5, n / most)
    for number, part in enumerate(parts):
        part["lane"] = np.full(len(part["n"]), number)
    names = ("lane", "colour", "n", "row", "start_ns", "end_ns", "covered_ns")
    none = [np.zeros(0, dtype=np.int64)]
    return pd.DataFrame(
        {name: np.concatenate([part[name] for part in parts] or none) for name in names}
    )


def _bars(lane: Lane, view_ns: tuple[float, float], pixel_ns: float) -> dict[str, np.ndarray]:
    """The spans of a lane that lie in view, narrow neighbours joined."""
    first = np.searchsorted(lane.ends, view_ns[0], "left")
    last = max(np.searchsorted(lane.starts, view_ns[1], "right"), first)
    starts, ends = lane.starts[first:last], lane.ends[first:last]
    colours, lengths = lane.colours[first:last], ends - starts
    wide = lengths >= pixel_ns
    # blocks lie on a grid of the recording's, not the view's, so that they stay while it moves
    block = (starts // max(_BLOCK_PX * pixel_ns, 1)).astype(np.int64)
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = wide[1:] | wide[:-1] | (block[1:] != block[:-1])
    at = np.flatnonzero(begins)
    sizes = np.diff(np.append(at, len(starts)))
    return {
        "colour": _dominating(colours, lengths, np.repeat(np.arange(len(at)), sizes), len(at)),
        "n": sizes,
        "row": lane.rows[first:last][at],
        "start_ns": starts[at],
        "end_ns": ends[at + sizes - 1],
        "covered_ns": np.add.reduceat(lengths, at) if len(at) else lengths,
    }


def _dominating(
    colours: np.ndarray, lengths: np.ndarray, bars: np.ndarray, n_bars: int
) -> np.ndarray:
    """The colour with the most time in each bar; the most frequent where no time passed."""
    n_colours = int(colours.max(initial=0)) + 1
    weights = lengths + 1e-3
    spent = np.bincount(bars * n_colours + colours, weights, minlength=n_bars * n_colours)
    return spent.reshape(n_bars, n_colours).argmax(axis=1)


def _tracks(tables: dict[str, pd.DataFrame]) -> list[tuple[str, str, np.ndarray]]:
    """(label, table, rows) of what is drawn one below the other."""
    ranges, kinds = tables["ranges"], tables["ranges"]["kind"].to_numpy()
    tracks = [("rounds", "ranges", np.flatnonzero(kinds == "round"))]
    levels = ranges["level"].to_numpy()
    ours = (kinds == "phase") | (kinds == "module")
    for level in in_order(pd.unique(levels[ours]), LEVELS):
        for kind, label in (("phase", level), ("module", "modules")):
            tracks.append((label, "ranges", np.flatnonzero((levels == level) & (kinds == kind))))
    foreign = np.flatnonzero(kinds == "range")
    tracks += _by(ranges, foreign, "ranges", {"thread": "thread {}"})
    launches, kernels = tables["launches"], tables["kernels"]
    many = launches["thread"].nunique() > 1
    named = {"thread": "launches, thread {}" if many else "launches"}
    tracks += _by(launches, np.arange(len(launches)), "launches", named)
    many = kernels["device"].nunique() > 1
    named = {"device": "device {}, " if many else "", "stream": "stream {}"}
    tracks += _by(kernels, np.arange(len(kernels)), "kernels", named)
    return [track for track in tracks if len(track[2])]


def _by(rows: pd.DataFrame, at: np.ndarray, table: str, labels: dict[str, str]) -> list[tuple]:
    """A track for each value of some columns; `labels`: column -> how it is written."""
    groups = rows.iloc[at].groupby(list(labels), sort=True).indices
    tracks = []
    for values, members in groups.items():
        values = values if isinstance(values, tuple) else (values,)
        label = "".join(
            text.format(value) for text, value in zip(labels.values(), values, strict=True)
        )
        tracks.append((label, table, at[np.sort(members)]))
    return tracks


def _apart(rows: pd.DataFrame) -> tuple[list[np.ndarray], int]:
    """Positions of rows sorted into lanes without overlap, and how many found no lane."""
    starts, ends = rows["start_ns"].to_numpy(), rows["end_ns"].to_numpy()
    order = np.lexsort((-ends, starts))
    if (starts[order][1:] >= ends[order][:-1]).all():
        return [order], 0
    # of nested spans the outer one comes first, so each lane is a depth
    free_from: list[int] = []
    parts: list[list[int]] = []
    n_deeper = 0
    for at in order.tolist():
        depth = next((d for d, free in enumerate(free_from) if free <= starts[at]), len(parts))
        if depth == _MOST_DEEP:
            n_deeper += 1
            continue
        if depth == len(parts):
            free_from.append(0)
            parts.append([])
        free_from[depth] = ends[at]
        parts[depth].append(at)
    return [np.array(part) for part in parts], n_deeper


def _keys(table: str, rows: pd.DataFrame) -> np.ndarray:
    """What decides the colour of each row: its phase, else its name."""
    if table != "ranges":
        one = "launch" if table == "launches" else "kernel"
        if "phase" not in rows:
            return np.full(len(rows), one, dtype=object)
        return rows["phase"].where(rows["phase"] != "", one).to_numpy(object)
    known = {category: phase_of(category) for category in rows["category"].unique()}
    filed = np.array([known[name][1] if known[name] else "" for name in rows["category"]], object)
    own, names, kinds = (rows[column].to_numpy(object) for column in ("phase", "name", "kind"))
    keys = np.where(rows["phase"].isin(PHASES), own, np.where(filed != "", filed, names))
    return np.where(kinds == "round", "round", keys)


def _coloured(tables: dict, keys: dict[str, np.ndarray]) -> dict[str, str]:
    """A colour for every key: phases their own, the longest other names one each."""
    parts = [
        pd.Series((rows["end_ns"] - rows["start_ns"]).to_numpy(), index=keys[name])
        for name, rows in tables.items()
        if len(rows)
    ]
    if not parts:
        return {}
    spent = pd.concat(parts).groupby(level=0).sum().sort_values(ascending=False, kind="stable")
    fixed = {"round": _PLAIN["round"]} | PHASE_COLOURS | _PLAIN
    named = [key for key in spent.index if key not in fixed]
    colours = {key: colour for key, colour in fixed.items() if key in spent.index}
    colours |= dict(zip(named, _COLOURS, strict=False))
    return colours if len(named) <= len(_COLOURS) else {"other": INK} | colours
