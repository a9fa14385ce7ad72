"""NVTX ranges of an `nsys` SQLite export as rows of a timeline.

Ranges of our domain tell their kind by name and category; the rest comes from their payload
(`nsys_payloads`), or where that cannot be read from the range around them.  All other ranges are
somebody's names and stay so.  Times are those of the file; nothing is left out here but what is no
range at all.
"""

from collections.abc import Iterator
from itertools import compress

import numpy as np
import pandas as pd

from hspec_lab.terms import PHASES, phase_of
from hspec_lab.timeline import DOMAIN, RANGES, UNKNOWN, nested, table
from hspec_lab.trace_in import nsys_payloads
from hspec_lab.trace_in.ranges import MOST
from hspec_lab.trace_in.sqlite_file import MISSING, Tables

EVENTS = "NVTX_EVENTS"
MODULES = ("attention", "mlp", "lm_head")
_TYPES = {
    "NvtxCategory": 33,
    "NvtxMark": 34,
    "NvtxPushPopRange": 59,
    "NvtxStartEndRange": 60,
    "NvtxtPushPopRange": 70,
    "NvtxtStartEndRange": 71,
    "NvtxDomainCreate": 75,
}
_START_END = "NvtxStartEndRange"
_WHOLE = ("start", "end", "eventType", "category", "globalTid", "textId", "domainId")
_TEXTS = ("text", "jsonText", "binaryData")
_NUMBERS = ("prompt", "round", "layer", "n_tokens", "n_nodes", "kv_len")
_WORDS = ("kind", "level", "phase", "scheme")
_RESULT = ["n_proposed", "n_accepted", "n_emitted"]
_ROUND = ["prompt", "round", "warmup"]


def read_ranges(
    tables: Tables, most_rows: int, ours: bool
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Read ranges, and the marks of ours that tell a round's result.

    Args:
        tables: an open export.
        most_rows: read no more ranges and marks than these.
        ours: this export is hspec_lab's.

    Returns:
        ranges (columns of `RANGES`, `read`: its payload was, `global_tid`; `end_ns` is `MISSING`
        where a range never closed), marks, notes.
    """
    types, rows, notes = _types(tables), [_framed([])], []
    names = _Names(tables, types)
    for part in _parts(tables, types, names.payload):
        rows.append(part)
        if sum(map(len, rows)) > most_rows:
            notes.append(f"{EVENTS}: read the first {most_rows:,} ranges and marks, no more")
            break
    found = _named(pd.concat(rows, ignore_index=True).head(most_rows), names, notes)
    is_mark = found["eventType"] == types["NvtxMark"]
    if not ours and (n := int((found["eventType"] == types[_START_END]).sum())):
        notes.append(f"start/end ranges, which may cross others, taken as they are: {n:,}")
    marks = found[is_mark & (found["name"] == "emitted") & (found["domain"] == DOMAIN)]
    return found[~is_mark].reset_index(drop=True), marks.reset_index(drop=True), notes


def placed(ranges: pd.DataFrame, marks: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Nest ranges, and let those without numbers take them from marks and what lies around them.

    Args:
        ranges: of `read_ranges`, closed, with `thread`.
        marks: of `read_ranges`.
    """
    found = nested(table(RANGES, ranges).assign(read=ranges["read"].to_numpy()))
    lacking = ~found.pop("read").to_numpy() & (found["kind"] != "range").to_numpy()
    is_round = (found["kind"] == "round").to_numpy()
    notes = []
    if n := int(lacking.sum()):
        notes.append(f"ranges of ours without a payload that can be read: {n:,}")
    if n := int((lacking & is_round).sum()):
        notes[-1] += "; their numbers are unknown, and rounds are numbered in order of time"
        first = 1 + int(found.loc[is_round, "round"].max())
        found.loc[lacking & is_round, "round"] = np.arange(first, first + n)
    _inherit(found, lacking)
    _add_results(found, marks)
    return found, notes


class _Names:
    """Strings, domains and categories of an export, and its payloads."""

    def __init__(self, tables: Tables, types: dict[str, int]):
        self.tables = tables
        self.payload = nsys_payloads.reader(tables)
        self.domains: dict[tuple, str] = {}
        self.categories: dict[tuple, str] = {}
        if "eventType" not in tables.columns.get(EVENTS, ()):
            return
        wanted = types["NvtxCategory"], types["NvtxDomainCreate"]
        where = f'WHERE "eventType" IN {wanted} LIMIT 100000'
        for part in tables.rows(EVENTS, _WHOLE, _TEXTS[:1], where):
            strings = tables.named("StringIds", part["textId"])
            rows = zip(*(part[name] for name in (*_WHOLE, "text")), strict=True)
            for _, _, kind, category, thread, text_id, domain, text in rows:
                name = text if isinstance(text, str) else strings.get(text_id, "")
                if kind == wanted[0]:
                    self.categories[thread >> 24, domain, category] = name
                else:
                    self.domains[thread >> 24, domain] = name


def _types(tables: Tables) -> dict[str, int]:
    """Numbers of event types: as documented, unless the export numbers them otherwise."""
    types = dict(_TYPES)
    if {"id", "name"} <= set(tables.columns.get("ENUM_NSYS_EVENT_TYPE", ())):
        for part in tables.rows("ENUM_NSYS_EVENT_TYPE", ["id"], ["name"], "LIMIT 1000"):
            pairs = zip(part["name"], part["id"], strict=True)
            types |= {name: id for name, id in pairs if name in _TYPES and id != MISSING}
    return types


def _parts(tables: Tables, types: dict[str, int], payload) -> Iterator[pd.DataFrame]:
    """Ranges and marks of a table, with what their payloads say."""
    if EVENTS not in tables:
        return
    untyped = "eventType" not in tables.columns[EVENTS]
    wanted = {id for name, id in types.items() if "Range" in name or name == "NvtxMark"}
    for part in tables.rows(EVENTS, _WHOLE, _TEXTS):
        if untyped:
            part["eventType"] = [types["NvtxPushPopRange"]] * len(part["start"])
        keep = [kind in wanted for kind in part["eventType"]]
        part = {name: list(compress(values, keep)) for name, values in part.items()}
        texts, data = part.pop("jsonText"), part.pop("binaryData")
        part["text"] = [tables.kept(t) if isinstance(t, str) else None for t in part["text"]]
        given = [
            payload(text, blob, domain) if text or blob else None
            for text, blob, domain in zip(texts, data, part["domainId"], strict=True)
        ]
        yield _framed(given, part)


def _framed(given: list[dict | None], part: dict[str, list] | None = None) -> pd.DataFrame:
    """One row per event, with the numbers of its payload."""
    said = [payload or {} for payload in given]
    numbers = {name: np.full(len(said), UNKNOWN) for name in (*_NUMBERS, *_RESULT, "warmup")}
    for name in numbers if any(said) else ():
        numbers[name][:] = [_whole(row.get(name)) for row in said]
    words = {f"said_{name}": [row.get(name) for row in said] for name in _WORDS}
    device = [us if isinstance(us := row.get("device_us"), float) else np.nan for row in said]
    part = part or dict.fromkeys((*_WHOLE, "text"), [])
    plain = {name: np.array(part[name], dtype="int64") for name in _WHOLE}
    text = pd.Series(part["text"], dtype=object)
    read = np.array(["prompt" in row and "round" in row for row in said], dtype=bool)
    columns = plain | {"text": text} | numbers | {"device_us": np.array(device, dtype="float64")}
    words = {name: pd.Series(values, dtype=object) for name, values in words.items()}
    return pd.DataFrame(columns | words | {"read": read})


def _whole(value) -> int:
    return int(value) if isinstance(value, int) and 0 <= value <= MOST else UNKNOWN


def _named(found: pd.DataFrame, names: _Names, notes: list[str]) -> pd.DataFrame:
    """Add names, and what they say about the kind of a range."""
    ids = found["textId"].tolist()
    strings = names.tables.named("StringIds", ids)
    name, lost = [], 0
    for text, id in zip(found["text"], ids, strict=True):
        if not isinstance(text, str):
            lost += id != MISSING and id not in strings
            text = strings.get(id, f"string {id}" if id != MISSING else "")
        name.append(text)
    if lost:
        notes.append(f'ranges whose names are not in StringIds, called "string <id>": {lost:,}')
    keys = [(tid >> 24, domain) for tid, domain in _pairs(found, "globalTid", "domainId")]
    default = {0: "", MISSING: ""}
    domain = [names.domains.get(key, default.get(key[1], f"domain {key[1]}")) for key in keys]
    category = [
        names.categories.get((*key, id), default.get(id, f"category {id}"))
        for key, id in zip(keys, found["category"].tolist(), strict=True)
    ]
    found = found.assign(name=name, domain=domain, category=category)
    found["warmup"] = found["warmup"] == 1
    found["start_ns"], found["end_ns"] = found["start"], found["end"]
    words = (found.pop(f"said_{word}").tolist() for word in _WORDS)
    said = [_words(*row) for row in zip(domain, name, category, *words, strict=True)]
    return found.assign(**pd.DataFrame(said, columns=list(_WORDS), index=found.index))


def _words(domain, name, category, kind, level, phase, scheme) -> tuple[str, str, str, str]:
    """Kind, level, phase, scheme: a range's own words where they make sense, else its name's."""
    if domain != DOMAIN:
        return "range", "", "", ""
    scheme = scheme if isinstance(scheme, str) else ""
    if kind in ("round", "phase", "module", "range") and phase in ("", *PHASES):
        if isinstance(level, str) and (kind != "phase" or phase == name):
            return kind, level, phase, scheme
    if name == "round":
        return "round", "", "", scheme
    if name in PHASES:
        return "phase", category.partition("/")[0] if "/" in category else "", name, scheme
    if name in MODULES:
        return "module", *(phase_of(category) or ("", "")), scheme
    return "range", "", "", scheme


def _inherit(ranges: pd.DataFrame, lacking: np.ndarray) -> None:
    """Give ranges without numbers those of the round around them, modules the phase's names."""
    kinds, parents = ranges["kind"].tolist(), ranges["parent"].tolist()
    within = {"round": [UNKNOWN] * len(ranges), "phase": [UNKNOWN] * len(ranges)}
    for row, (kind, parent) in enumerate(zip(kinds, parents, strict=True)):
        # what lies around a row comes before it
        for name, rows in within.items():
            rows[row] = row if kind == name else rows[parent] if parent >= 0 else UNKNOWN
    around = np.array(within["round"], dtype="int64")
    rows = lacking & (around >= 0) & (ranges["kind"] != "round").to_numpy()
    for name in _ROUND:
        ranges.loc[rows, name] = ranges[name].to_numpy()[around[rows]]
    around = np.array(within["phase"], dtype="int64")
    nameless = (ranges["kind"] == "module") & (ranges["phase"] == "")
    rows = nameless.to_numpy() & (around >= 0)
    for name in ("level", "phase"):
        ranges.loc[rows, name] = ranges[name].to_numpy()[around[rows]]


def _add_results(ranges: pd.DataFrame, marks: pd.DataFrame) -> None:
    """Give rounds without a result that of the mark of the same round that follows their start."""
    rounds = ranges[(ranges["kind"] == "round") & (ranges["n_emitted"] == UNKNOWN)]
    marks = marks[marks["read"]].sort_values("start_ns", kind="stable")
    if len(rounds) and len(marks):
        marks = marks[["start_ns", *_ROUND, *_RESULT]]
        rounds = rounds[["start_ns", *_ROUND, "range"]]
        found = pd.merge_asof(marks, rounds, on="start_ns", by=_ROUND).dropna(subset="range")
        ranges.loc[found["range"].astype("int64"), _RESULT] = found[_RESULT].to_numpy()


def _pairs(rows: pd.DataFrame, *names: str):
    return zip(*(rows[name].tolist() for name in names), strict=True)
