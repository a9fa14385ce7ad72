"""A timeline as SQLite in the layout of `nsys export`, so that its readers read our runs too.

Ranges become NVTX push/pop ranges of their domain, with registered strings for names and
categories; those that cross a neighbour on their thread cannot be pushed and popped and become
start/end ranges.  What a range of ours says besides its name stands in `jsonText`, under the names
of the payload that our own NVTX carries.  A round's result stands in a mark at its end as well.
Launches become runtime calls and kernels kernels, copies and fills, each table only where it has
rows; grids and registers are 0, as nobody noted them.

What the layout has no place for lies beside it: `about` and `notes` in META_DATA_EXPORT, the names
of copies and fills in HSPEC_LAB_NAMES.  So reading an export gives the same timeline again.

cost: one transaction; 663 rounds took 0.1 to 0.4 s, with 41,215 kernels 0.3 to 0.7 s, on one core
    of a busy two-core EPYC, 2026-11-21.
source: `nsys_layout`.
"""

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd

from hspec_lab.timeline import DOMAIN, UNKNOWN, Timeline
from hspec_lab.trace_out import nsys_layout as layout

_PAYLOAD = ("prompt", "round", "warmup", "n_tokens", "n_nodes", "kv_len", "layer")
_RESULT = ("n_proposed", "n_accepted", "n_emitted")
_WORDS = ("kind", "level", "phase", "scheme")
_CONTEXT = 1


def write(timeline: Timeline, path: Path | str) -> Path:
    """Write a timeline; the file appears whole or not at all, and replaces one that is there.

    Args:
        timeline: what to write.
        path: the file.

    Returns:
        the path.
    """
    path = Path(path)
    beside = path.with_name(f".unfinished-{path.name}-{uuid4().hex[:8]}")
    try:
        with closing(sqlite3.connect(beside)) as db:
            # nothing is lost when this is cut short: the file has no name yet
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("PRAGMA synchronous = OFF")
            with db:
                _Writer(db).write(timeline)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


class _Writer:
    """Fills one database; names are stored once and known by their number."""

    def __init__(self, db: sqlite3.Connection):
        self._db = db
        self._ids: dict[str, int] = {}

    def write(self, timeline: Timeline) -> None:
        for name, rows in layout.ENUMS.items():
            self._insert(name, list(layout.TABLES[name]), rows)
        self._ranges(timeline.ranges)
        if len(timeline.launches):
            self._launches(timeline.launches)
        if len(timeline.kernels):
            self._kernels(timeline.kernels, timeline.launches)
            self._devices(timeline)
        self._about(timeline)
        self._insert("StringIds", ["id", "value"], [(id, name) for name, id in self._ids.items()])

    def _ranges(self, ranges: pd.DataFrame) -> None:
        domains = {"": 0}
        for name in dict.fromkeys(ranges["domain"]):
            domains.setdefault(name, len(domains))
        categories = {("", ""): None}
        for key in dict.fromkeys(zip(ranges["domain"], ranges["category"], strict=True)):
            categories.setdefault(key, len(categories) if key[1] else None)
        self._named(ranges, domains, categories)
        columns = {
            "start": ranges["start_ns"].tolist(),
            "end": ranges["end_ns"].tolist(),
            "eventType": np.where(
                layout.crossing(ranges), layout.START_END, layout.PUSH_POP
            ).tolist(),
            "category": [categories[key] for key in _pairs(ranges, "domain", "category")],
            "globalTid": layout.threads(ranges["thread"]),
            "textId": self._numbers(ranges["name"]),
            "domainId": [domains[name] for name in ranges["domain"]],
            "jsonText": _payloads(ranges, (*_WORDS, *_PAYLOAD, *_RESULT)),
        }
        self._insert("NVTX_EVENTS", list(columns), zip(*columns.values(), strict=True))
        self._marks(ranges, domains, categories)

    def _named(self, ranges: pd.DataFrame, domains: dict, categories: dict) -> None:
        """Say what each process calls its domains and categories, before anything happens."""
        start = min(ranges["start_ns"].tolist(), default=0)
        processes = [tid and tid >> 24 << 24 for tid in layout.threads(ranges["thread"])]
        used = zip(processes, *(ranges[name] for name in ("domain", "category")), strict=True)
        rows = {}
        for process, domain, category in used:
            place = process, domains[domain]
            if domain:
                rows[*place, None] = (start, layout.DOMAIN_CREATE, None, domain, *place)
            if (id := categories[domain, category]) is not None:
                rows[*place, id] = (start, layout.CATEGORY, id, category, *place)
        columns = ["start", "eventType", "category", "text", "globalTid", "domainId"]
        self._insert("NVTX_EVENTS", columns, rows.values())

    def _marks(self, ranges: pd.DataFrame, domains: dict, categories: dict) -> None:
        rounds = ranges[(ranges["kind"] == "round") & (ranges["n_emitted"] != UNKNOWN)]
        columns = {
            "start": rounds["end_ns"].tolist(),
            "eventType": [layout.MARK] * len(rounds),
            "category": [categories[key] for key in _pairs(rounds, "domain", "category")],
            "globalTid": layout.threads(rounds["thread"]),
            "textId": [self._number("emitted")] * len(rounds),
            "domainId": [domains[name] for name in rounds["domain"]],
            "jsonText": _payloads(rounds, (*_PAYLOAD[:3], *_RESULT)),
        }
        self._insert("NVTX_EVENTS", list(columns), zip(*columns.values(), strict=True))

    def _launches(self, launches: pd.DataFrame) -> None:
        columns = {
            "start": launches["start_ns"].tolist(),
            "end": launches["end_ns"].tolist(),
            "eventClass": [int(not name.startswith("cuda")) for name in launches["name"]],
            "globalTid": layout.threads(launches["thread"]),
            "correlationId": _known(launches["correlation"]),
            "nameId": self._numbers(launches["name"]),
            "returnValue": [0] * len(launches),
        }
        name = "CUPTI_ACTIVITY_KIND_RUNTIME"
        self._insert(name, list(columns), zip(*columns.values(), strict=True))

    def _kernels(self, kernels: pd.DataFrame, launches: pd.DataFrame) -> None:
        threads = layout.threads(launches["thread"])
        processes = {
            correlation: layout.PROCESS if thread is None else thread >> 24 << 24
            for correlation, thread in zip(launches["correlation"].tolist(), threads, strict=True)
        }
        for kind, rows in kernels.groupby("kind", sort=False):
            table = f"CUPTI_ACTIVITY_KIND_{kind.upper()}"
            needed = [name for name, kind in layout.TABLES[table].items() if "NOT NULL" in kind]
            columns = dict.fromkeys(needed, [0] * len(rows)) | _on_device(rows, processes)
            if kind == "kernel":
                columns["demangledName"] = self._numbers(rows["name"])
                columns["shortName"] = self._numbers(rows["name"].map(layout.short_name))
            else:
                columns["bytes"] = rows["bytes"].clip(lower=0).tolist()
                self._beside(table, rows)
            if kind == "memcpy":
                columns["copyKind"] = [layout.copy_kind(name) for name in rows["name"]]
            self._insert(table, list(columns), zip(*columns.values(), strict=True))

    def _beside(self, table: str, rows: pd.DataFrame) -> None:
        columns = [table] * len(rows), range(1, len(rows) + 1), self._numbers(rows["name"])
        self._insert("HSPEC_LAB_NAMES", ["activity", "row", "nameId"], zip(*columns, strict=True))

    def _devices(self, timeline: Timeline) -> None:
        name = timeline.about.get("environment", {}).get("gpu") or None
        devices = sorted(set(timeline.kernels["device"].tolist()))
        rows = [(layout.PROCESS >> 48 << 48, id, name, id) for id in devices]
        self._insert("TARGET_INFO_GPU", ["vmId", "id", "name", "cuDevice"], rows)
        rows = [(id, id, layout.PROCESS >> 24 & 0xFFFFFF) for id in devices]
        self._insert("TARGET_INFO_CUDA_DEVICE", ["gpuId", "cudaId", "pid"], rows)

    def _about(self, timeline: Timeline) -> None:
        tables = (timeline.ranges, timeline.launches, timeline.kernels)
        start = min((int(rows["start_ns"].min()) for rows in tables if len(rows)), default=0)
        stop = max((int(rows["end_ns"].max()) for rows in tables if len(rows)), default=0)
        machine = layout.PROCESS >> 48 << 48
        details = list(layout.TABLES["ANALYSIS_DETAILS"])
        self._insert("ANALYSIS_DETAILS", details, [(machine, stop - start, start, stop)])
        process = layout.PROCESS >> 24 & 0xFFFFFF
        self._insert(
            "PROCESSES", ["globalPid", "pid", "name"], [(layout.PROCESS, process, "hspec_lab")]
        )
        version = dict(zip(("MAJOR", "MINOR", "MICRO"), layout.SCHEMA, strict=True))
        rows = [("EXPORT_SCHEMA_VERSION", ".".join(map(str, layout.SCHEMA)))]
        rows += [(f"EXPORT_SCHEMA_VERSION_{name}", str(n)) for name, n in version.items()]
        rows += [("EXPORT_PRODUCT_NAME", "hspec_lab")]
        rows += [("HSPEC_LAB_ABOUT", json.dumps(timeline.about, default=str))]
        rows += [("HSPEC_LAB_NOTES", json.dumps(timeline.notes))]
        self._insert("META_DATA_EXPORT", ["name", "value"], rows)

    def _insert(self, name: str, columns: list[str], rows) -> None:
        """Add rows to a table, which is made when its first ones come."""
        self._db.execute(layout.create(name).replace("TABLE", "TABLE IF NOT EXISTS", 1))
        names, marks = ", ".join(f'"{c}"' for c in columns), ", ".join("?" * len(columns))
        self._db.executemany(f'INSERT INTO "{name}" ({names}) VALUES ({marks})', rows)

    def _number(self, name: str) -> int:
        # SQLite takes what follows a zero for no part of a text
        name = name.replace("\0", "\ufffd")
        return self._ids.setdefault(name, len(self._ids) + 1)

    def _numbers(self, names: pd.Series) -> list[int]:
        return [self._number(name) for name in names.tolist()]


def _on_device(rows: pd.DataFrame, processes: dict[int, int]) -> dict[str, list]:
    """The columns that kernels, copies and fills share."""
    return {
        "start": rows["start_ns"].tolist(),
        "end": rows["end_ns"].tolist(),
        "deviceId": rows["device"].tolist(),
        "contextId": [_CONTEXT] * len(rows),
        "streamId": rows["stream"].tolist(),
        "correlationId": _known(rows["correlation"]),
        "globalPid": [processes.get(id, layout.PROCESS) for id in rows["correlation"].tolist()],
        "graphNodeId": [node or None for node in rows["graph_node"].tolist()],
    }


def _known(values: pd.Series) -> list[int | None]:
    return [None if value == UNKNOWN else value for value in values.tolist()]


def _pairs(rows: pd.DataFrame, *names: str):
    return zip(*(rows[name].tolist() for name in names), strict=True)


def _payloads(ranges: pd.DataFrame, names: tuple[str, ...]) -> list[str | None]:
    """What ranges of ours say of themselves, as JSON; None for ranges of others."""
    texts: list[str | None] = []
    device = ranges["device_us"].tolist() if names[0] == "kind" else [math.nan] * len(ranges)
    values = zip(*(ranges[name].tolist() for name in names), strict=True)
    for domain, row, device_us in zip(ranges["domain"].tolist(), values, device, strict=True):
        said = dict(zip(names, row, strict=True))
        said["warmup"] = int(said["warmup"])
        if not math.isnan(device_us):
            said["device_us"] = device_us
        texts.append(json.dumps(said) if domain == DOMAIN else None)
    return texts
