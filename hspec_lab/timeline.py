"""What happened when, whoever noted it: ranges on the host, launches, and kernels on a device.

Every recorder, exporter and importer meets here.  A run folder becomes a `Timeline` (`of_run`), so
does a trace of another tool (`hspec_lab.trace_in`), and exports are written from one
(`hspec_lab.trace_out`).  Times are whole nanoseconds from a start that all three tables share.

    ranges    rounds, phases, modules; of other tools' traces, whatever somebody named
    launches  calls of the host that start work on a device
    kernels   what a device ran: kernels, copies, fills

A launch and what it started carry the same `correlation`; the kernels of a CUDA graph all carry
that of the graph's launch, and each a `graph_node` of its own.
"""

from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pandas as pd

from hspec_lab.config import from_dict, schemes
from hspec_lab.store import MORE_TABLES, TABLES
from hspec_lab.terms import category_of

DOMAIN = "hspec_lab"
# ranges that cross a range from above hide its parent beyond so many
_DEEPEST = 1000
# what an entry holds when nobody knows: numbers UNKNOWN, words ""
UNKNOWN = -1
RANGES = {
    "range": "int64",  # 0, 1, ...: the row
    "parent": "int64",  # the innermost range around it on its thread; UNKNOWN: none
    "kind": "str",  # round, phase, module; range: somebody else's
    "name": "str",  # "round", a phase, a module, or what somebody called it
    "domain": "str",
    "category": "str",  # terms.category_of, or somebody's own
    "level": "str",
    "phase": "str",  # of a phase its own, of a module that around it
    "scheme": "str",  # of the level's weights
    "prompt": "int64",
    "round": "int64",  # UNKNOWN: the prefill's, or not known
    "warmup": "bool",
    "layer": "int64",  # of a module
    "n_tokens": "int64",
    "n_nodes": "int64",
    "kv_len": "int64",
    "n_proposed": "int64",  # of a round, as the next two
    "n_accepted": "int64",
    "n_emitted": "int64",
    "thread": "int64",
    "start_ns": "int64",
    "end_ns": "int64",
    "device_us": "float64",  # between the device's own marks; NaN: none
}
LAUNCHES = {
    "name": "str",
    "thread": "int64",
    "correlation": "int64",
    "start_ns": "int64",
    "end_ns": "int64",
}
KERNELS = {
    "name": "str",
    "kind": "str",  # kernel, memcpy, memset
    "device": "int64",
    "stream": "int64",
    "correlation": "int64",  # UNKNOWN: nothing says who launched it
    "graph_node": "int64",  # 0: not of a graph, or graphs were noted as a whole
    "bytes": "int64",  # of copies and fills; UNKNOWN of kernels
    "start_ns": "int64",
    "end_ns": "int64",
}


@dataclass(frozen=True)
class Timeline:
    """Ranges, launches and kernels on one clock.

    Attributes:
        ranges, launches, kernels: columns `RANGES`, `LAUNCHES`, `KERNELS`; use `table` to make
            them.  Ranges come sorted by start, longer ones first.
        notes: one line for each thing that was left out or guessed, and why.
        about: where it comes from: source, versions, config, environment; JSON values.
    """

    ranges: pd.DataFrame
    launches: pd.DataFrame = field(default_factory=lambda: table(LAUNCHES))
    kernels: pd.DataFrame = field(default_factory=lambda: table(KERNELS))
    notes: tuple[str, ...] = ()
    about: dict = field(default_factory=dict)

    def noting(self, *notes: str) -> "Timeline":
        """The same timeline with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return what a run folder would hold: rounds, spans, and modules, kernels and launches.

        Only ranges that are ours come back (rounds, phases and modules); the last three tables
        are there when they have rows.
        """
        ours = self.ranges.assign(
            start_us=self.ranges["start_ns"] / 1e3,
            duration_us=(self.ranges["end_ns"] - self.ranges["start_ns"]) / 1e3,
        )
        rounds = ours[ours["kind"] == "round"].reset_index(drop=True)
        phases = ours[ours["kind"] == "phase"].reset_index(drop=True)
        modules = ours[ours["kind"] == "module"].rename(columns={"name": "module"})
        found = {
            "rounds": rounds[list(TABLES["rounds"])].astype(TABLES["rounds"]),
            "spans": phases[list(TABLES["spans"])].astype(TABLES["spans"]),
        }
        more = {"modules": modules.reset_index(drop=True)}
        for name, rows in (("kernels", self.kernels), ("launches", self.launches)):
            duration_us = (rows["end_ns"] - rows["start_ns"]) / 1e3
            more[name] = rows.assign(start_us=rows["start_ns"] / 1e3, duration_us=duration_us)
        for name, rows in more.items():
            if len(rows):
                found[name] = rows[list(MORE_TABLES[name])].astype(MORE_TABLES[name])
        return found


def of_run(head: dict, tables: dict[str, pd.DataFrame]) -> Timeline:
    """The timeline of a recorded run.

    Args:
        head, tables: what `store.read_run` returns.
    """
    rounds = _placed(tables["rounds"]).assign(kind="round", name="round", category="round")
    spans = _placed(tables["spans"])
    spans = spans.assign(kind="phase", name=spans["phase"], category=_categories(spans))
    parts = [rounds, spans]
    if "modules" in tables:
        modules = _placed(tables["modules"]).rename(columns={"module": "name"})
        parts.append(modules.assign(kind="module", category=_categories(modules)))
    rows = pd.concat(parts, ignore_index=True)
    formats = schemes(from_dict(head["config"])) if "config" in head else {}
    scheme = [formats.get(level, "") for level in rows.get("level", [""] * len(rows))]
    ranges = table(RANGES, rows, domain=DOMAIN, thread=0, scheme=scheme)
    known = ("kind", "config_id", "method", "format", "config", "environment")
    return Timeline(
        nested(ranges),
        table(LAUNCHES, _placed(tables["launches"])) if "launches" in tables else table(LAUNCHES),
        table(KERNELS, _placed(tables["kernels"])) if "kernels" in tables else table(KERNELS),
        about={"source": "hspec_lab run"} | {name: head[name] for name in known if name in head},
    )


def table(columns: dict[str, str], rows: pd.DataFrame | None = None, **filled) -> pd.DataFrame:
    """A table with exactly these columns; what is missing becomes `filled`, or unknown.

    Args:
        columns: `RANGES`, `LAUNCHES` or `KERNELS`.
        rows: some of them; others are dropped.
        filled: one value, or one per row, for a column.
    """
    n = 0 if rows is None else len(rows)
    found = {}
    for name, kind in columns.items():
        unknown = {"str": "", "bool": False, "float64": np.nan}.get(kind, UNKNOWN)
        values = filled.get(name, unknown)
        if rows is not None and name in rows:
            values = _without_gaps(rows[name], values).to_numpy()
        found[name] = pd.Series(values, index=range(n), dtype=object if n == 0 else None)
    return pd.DataFrame(found).astype(columns)


def _without_gaps(column: pd.Series, filled) -> pd.Series:
    missing = column.isna()
    return column.astype(object).where(~missing, filled) if missing.any() else column


def nested(ranges: pd.DataFrame) -> pd.DataFrame:
    """Sort ranges by start, number them, and say which range lies around which on its thread.

    A range's parent is the innermost one that begins no later and ends no earlier; ranges that
    merely cross are no parents.  Of two equal ones the first row, and of a round, a phase and a
    module the larger kind, lies around the other.
    """
    size = ranges["kind"].map({"round": 0, "phase": 1, "module": 2}).fillna(1)
    order = np.lexsort((np.arange(len(ranges)), size, -ranges["end_ns"], ranges["start_ns"]))
    ranges = ranges.iloc[order].reset_index(drop=True)
    parents = np.full(len(ranges), UNKNOWN)
    stacks: dict[int, list[tuple[int, int]]] = {}
    keys = [ranges[key].tolist() for key in ("thread", "start_ns", "end_ns")]
    for row, (thread, start, end) in enumerate(zip(*keys, strict=True)):
        stack = stacks.setdefault(thread, [])
        # what has ended lies around nothing that comes, an empty range at that very moment excepted
        while stack and stack[-1][0] <= start and not stack[-1][0] == start == end:
            stack.pop()
        around = islice(reversed(stack), _DEEPEST)
        parents[row] = next((at for until, at in around if until >= end), UNKNOWN)
        stack.append((end, row))
    return ranges.assign(range=np.arange(len(ranges)), parent=parents)


def _categories(rows: pd.DataFrame) -> list[str]:
    return [category_of(*key) for key in zip(rows["level"], rows["phase"], strict=True)]


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """With whole nanoseconds; `start_us + duration_us` may end a rounding error too late."""
    start = (rows["start_us"] * 1e3).round().astype("int64")
    duration = (rows["duration_us"] * 1e3).round().astype("int64")
    return rows.assign(start_ns=start, end_ns=start + duration)
