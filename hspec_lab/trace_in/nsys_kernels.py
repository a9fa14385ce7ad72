"""Kernels, copies, fills and the calls that launch them, from an `nsys` SQLite export.

Tables are read as they are: times of the file, `MISSING` where an identity is not known.  A graph
that was traced whole becomes one kernel.
"""

import numpy as np
import pandas as pd

from hspec_lab.timeline import UNKNOWN
from hspec_lab.trace_in.sqlite_file import MISSING, Tables

_CUPTI = "CUPTI_ACTIVITY_KIND_"
CALLS, KERNEL = f"{_CUPTI}RUNTIME", f"{_CUPTI}KERNEL"
_GRAPH, _MEMCPY, _MEMSET = (f"{_CUPTI}{name}" for name in ("GRAPH_TRACE", "MEMCPY", "MEMSET"))
ON_DEVICE = (KERNEL, _MEMCPY, _MEMSET, _GRAPH)
_PLACES = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid", "graphNodeId")
_NAME_IDS = ("demangledName", "shortName", "mangledName")
_COPIES = {0: "Unknown", 1: "Host-to-Device", 2: "Device-to-Host", 8: "Device-to-Device"}
_COPIES |= {9: "Host-to-Host", 10: "Peer-to-Peer"}


def read_kernels(tables: Tables, most_rows: int, notes: list[str]) -> pd.DataFrame:
    """Kernels, copies, fills, and graphs that were traced whole."""
    parts = []
    for name, read_one in (
        (KERNEL, _plain_kernels),
        (_MEMCPY, _copies),
        (_MEMSET, _fills),
        (_GRAPH, _graphs),
    ):
        if name in tables:
            more = (*_NAME_IDS, "bytes", "copyKind", "graphId")
            rows = _rows(tables, name, (*_PLACES, *more), most_rows, notes)
            parts.append(read_one(tables, rows, notes))
    parts = [rows for rows in parts if len(rows)] or [_rows(tables, "", _PLACES, 0, notes)]
    found = pd.concat(parts, ignore_index=True).rename(
        columns={"deviceId": "device", "streamId": "stream", "graphNodeId": "graph_node"}
    )
    places = ["device", "stream", "correlation"]
    found[places] = found[places].replace(MISSING, UNKNOWN)
    found["graph_node"] = found["graph_node"].replace(MISSING, 0)
    return found.sort_values("start_ns", kind="stable", ignore_index=True)


def _plain_kernels(tables: Tables, rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    ids = np.full(len(rows), MISSING)
    for name in _NAME_IDS:
        ids = np.where(ids == MISSING, rows[name], ids)
    return rows.assign(kind="kernel", name=_strings(tables, ids, "kernels", notes), bytes=UNKNOWN)


def _copies(tables: Tables, rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    ways = rows["copyKind"].tolist()
    names = [f"[CUDA memcpy {_COPIES.get(way, _COPIES[0])}]" for way in ways]
    return _beside(tables, _MEMCPY, rows.assign(kind="memcpy", name=names))


def _fills(tables: Tables, rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    return _beside(tables, _MEMSET, rows.assign(kind="memset", name="[CUDA memset]"))


def _beside(tables: Tables, activity: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Copies and fills with the names that our own export keeps beside them."""
    names = rows["name"].to_numpy(dtype=object)
    if "HSPEC_LAB_NAMES" in tables:
        for part in tables.rows("HSPEC_LAB_NAMES", ["row", "nameId"], ["activity"]):
            strings = tables.named("StringIds", part["nameId"])
            for row, id, table_name in zip(*part.values(), strict=True):
                if table_name == activity and 1 <= row <= len(names) and id in strings:
                    names[row - 1] = strings[id]
    sizes = rows["bytes"].where(rows["bytes"] >= 0, UNKNOWN)
    return rows.assign(name=names, bytes=sizes)


def _graphs(tables: Tables, rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    if len(rows):
        notes.append(
            f"CUDA graphs traced whole: {len(rows):,}; --cuda-graph-trace=node shows their kernels"
        )
    names = [f"graph {id}" if id != MISSING else "graph" for id in rows["graphId"].tolist()]
    return rows.assign(kind="kernel", name=names, bytes=UNKNOWN)


def read_launches(tables: Tables, most_rows: int, notes: list[str]) -> pd.DataFrame:
    columns = ("start", "end", "correlationId", "globalTid", "nameId")
    rows = _rows(tables, CALLS if CALLS in tables else "", columns, most_rows, notes)
    rows["correlation"] = rows["correlation"].replace(MISSING, UNKNOWN)
    return rows.assign(name=_strings(tables, rows["nameId"].to_numpy(), "calls", notes))


def _rows(
    tables: Tables, name: str, columns: tuple[str, ...], most_rows: int, notes: list[str]
) -> pd.DataFrame:
    """A table of integers, with our names for times and correlations."""
    parts: list[dict[str, np.ndarray]] = []
    n_rows = 0
    for part in tables.rows(name, columns) if name else ():
        parts.append({key: np.array(values, dtype="int64") for key, values in part.items()})
        n_rows += len(part["start"])
        if n_rows > most_rows:
            notes.append(f"{name}: read the first {most_rows:,} rows, no more")
            break
    empty = [np.empty(0, dtype="int64")]
    found = {key: np.concatenate([part[key] for part in parts] or empty) for key in columns}
    names = {"start": "start_ns", "end": "end_ns", "correlationId": "correlation"}
    return pd.DataFrame(found).head(most_rows).rename(columns=names)


def _strings(tables: Tables, ids: np.ndarray, what: str, notes: list[str]) -> list[str]:
    strings = tables.named("StringIds", np.unique(ids).tolist())
    if lost := sum(id not in strings for id in ids.tolist()):
        notes.append(f'{what} whose names are not in StringIds, called "string <id>": {lost:,}')
    return [strings.get(id) or f"string {id}" for id in ids.tolist()]
