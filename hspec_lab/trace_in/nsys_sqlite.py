"""Read what `nsys export --type sqlite` wrote, or our own export in that layout.

Tables come into being with their first row, and columns came and went with versions of nsys: what
is there is read, what is missing is noted.  Kernels carry the correlation of the call that
launched them; of calls only those are kept that started something.  The file is nobody's friend:
`sqlite_file` says how it is opened.

cost: 500,000 each of ranges, calls and kernels (68 MB) took 7 to 9 s and 0.65 GB, on one core of a
    busy two-core EPYC, 2026-11-21.
source: NVIDIA Nsight Systems User Guide, "SQLite Schema Reference",
    https://docs.nvidia.com/nsight-systems/UserGuide/index.html.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab.timeline import KERNELS, LAUNCHES, UNKNOWN, Timeline, table
from hspec_lab.trace_in.nsys_kernels import CALLS, KERNEL, ON_DEVICE, read_kernels, read_launches
from hspec_lab.trace_in.nsys_ranges import EVENTS, placed, read_ranges
from hspec_lab.trace_in.ranges import about_of
from hspec_lab.trace_in.sqlite_file import MISSING, Tables, opened

MOST_ROWS = 2_000_000
NEWEST_MAJOR = 3
# what our export puts around threads that are small numbers
_OURS = 0x48 << 56 | 0x53 << 48 | 1 << 24
_LATEST = 1 << 61
_NEEDED = {name: {"start", "end"} for name in (EVENTS, CALLS, *ON_DEVICE)}
_STARTS = re.compile(r"^cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")


def read(path: Path | str, most_rows: int = MOST_ROWS) -> Timeline:
    """Read an export.

    Args:
        path: the file.
        most_rows: of each table; what follows is left out and noted.

    Returns:
        a timeline whose `notes` say what was left out or guessed.

    Raises:
        ValueError: one line; the file is not SQLite, damaged, or lacks what an export needs.
    """
    with opened(path) as tables:
        meta = _meta(tables)
        notes = _checked(path, tables, meta)
        ours = meta.get("EXPORT_PRODUCT_NAME") == "hspec_lab"
        ranges, marks, more = read_ranges(tables, most_rows, ours)
        notes += more
        kernels = read_kernels(tables, most_rows, notes)
        launches = read_launches(tables, most_rows, notes)
        about = _about(tables, meta, ours)
        notes += _restored(meta.get("HSPEC_LAB_NOTES"), list) if ours else _absent(tables)
    launches, kernels = _sound(launches, "calls", notes), _sound(kernels, "kernels", notes)
    ranges = _closed(ranges, (launches, kernels), notes)
    if not ours:
        _shift(ranges, marks, launches, kernels)
        launches = _starting(launches, kernels, notes)
    _identify(ranges, launches, kernels, ours, notes)
    # our export says a round's result with the round as well
    ranges, more = placed(ranges, marks.head(0) if ours else marks)
    launches, kernels = table(LAUNCHES, launches), table(KERNELS, kernels)
    return Timeline(ranges, launches, kernels, (*notes, *more), about)


def _meta(tables: Tables) -> dict[str, str]:
    """What META_DATA_EXPORT says."""
    found: dict[str, str] = {}
    if "META_DATA_EXPORT" in tables:
        for part in tables.rows("META_DATA_EXPORT", [], ["name", "value"], "LIMIT 1000"):
            pairs = zip(part["name"], part["value"], strict=True)
            found |= {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}
    return found


def _version(meta: dict[str, str]) -> str:
    parts = [meta.get(f"EXPORT_SCHEMA_VERSION_{part}", "") for part in ("MAJOR", "MINOR", "MICRO")]
    return meta.get("EXPORT_SCHEMA_VERSION") or ".".join(filter(None, parts))


def _checked(path: Path | str, tables: Tables, meta: dict[str, str]) -> list[str]:
    """Refuse a file that is no export or cannot be understood; say what is unusual."""
    if wrong := sorted(tables.refused & {*_NEEDED, "StringIds", "META_DATA_EXPORT"}):
        raise ValueError(f"{path}: {wrong[0]} is a view or virtual table; exports have plain ones")
    if EVENTS not in tables and not any(name in tables for name in ON_DEVICE):
        raise ValueError(
            f"{path} is an SQLite file without {EVENTS} and {KERNEL}: no export of nsys with "
            "NVTX or CUDA traces"
        )
    version, notes = _version(meta), []
    for name, needed in _NEEDED.items():
        if name in tables and (missing := sorted(needed - set(tables.columns[name]))):
            said = f"schema {version}" if version else "it says no schema version"
            raise ValueError(
                f"{path}: {name} has no column {', '.join(missing)} ({said}; this code reads "
                f"schemas up to {NEWEST_MAJOR})"
            )
    major = version.partition(".")[0]
    if not version:
        notes.append("no schema version: read by the columns that are there")
    elif not major.isdecimal() or int(major[:9]) > NEWEST_MAJOR:
        notes.append(f"schema {version[:20]} is not known: read by the columns that are there")
    log = Path(f"{path}-wal")
    if log.is_file() and log.stat().st_size:
        notes.append(f"{log.name} holds changes that are not in the file yet: they were not read")
    return notes


def _absent(tables: Tables) -> list[str]:
    """What a timeline lacks because its table never came into being."""
    absent = {
        EVENTS: "nothing names what ran",
        KERNEL: "no kernels were recorded",
        CALLS: "nothing says which call launched what",
    }
    return [f"no table {name}: {what}" for name, what in absent.items() if name not in tables]


def _about(tables: Tables, meta: dict[str, str], ours: bool) -> dict:
    """Where the export comes from; of ours what the timeline said itself."""
    if ours:
        return about_of(_restored(meta.get("HSPEC_LAB_ABOUT"), dict))
    about = {"source": "nsys SQLite export", "schema": _version(meta)}
    about |= {"product": meta.get("EXPORT_PRODUCT_VERSION", "")}
    if {"id", "name"} <= set(tables.columns.get("TARGET_INFO_GPU", ())):
        for part in tables.rows("TARGET_INFO_GPU", ["id"], ["name"], "LIMIT 256"):
            names = zip(part["id"], part["name"], strict=True)
            about["devices"] = {str(id): name for id, name in names if isinstance(name, str)}
    return about


def _restored(text: str | None, kind: type):
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return kind()
    if kind is list and isinstance(found, list):
        return [line for line in found if isinstance(line, str)]
    return found if isinstance(found, kind) else kind()


def _sound(rows: pd.DataFrame, what: str, notes: list[str]) -> pd.DataFrame:
    """Without rows that end before they begin, or lie where no clock goes."""
    backwards = rows["end_ns"] < rows["start_ns"]
    far = (rows[["start_ns", "end_ns"]].abs() > _LATEST).any(axis=1)
    far |= (rows[["start_ns", "end_ns"]] == MISSING).any(axis=1)
    if n := int(far.sum()):
        notes.append(f"{what} without a time that a clock can show, left out: {n:,}")
    if n := int((backwards & ~far).sum()):
        notes.append(f"{what} that end before they begin, left out: {n:,}")
    return rows[~(backwards | far)].reset_index(drop=True)


def _closed(
    ranges: pd.DataFrame, others: tuple[pd.DataFrame, ...], notes: list[str]
) -> pd.DataFrame:
    """Sound ranges; those that never closed last to the end of the trace."""
    is_open = ranges["end_ns"] == MISSING
    if n := int(is_open.sum()):
        notes.append(f"ranges that never closed, taken to last to the end of the trace: {n:,}")
    never, closed = ranges[is_open], _sound(ranges[~is_open], "ranges", notes)
    starts = never["start_ns"][never["start_ns"] <= _LATEST]
    ends = [rows["end_ns"] for rows in (closed, *others)] + [starts]
    end = max((int(times.max()) for times in ends if len(times)), default=0)
    never = _sound(never.assign(end_ns=end), "ranges", notes)
    return pd.concat([closed, never], ignore_index=True) if n else closed


def _shift(*tables: pd.DataFrame) -> None:
    """Let time begin with the first of all rows."""
    ranges, marks, launches, kernels = tables
    rows = [rows for rows in (ranges, launches, kernels) if len(rows)]
    first = min((int(rows["start_ns"].min()) for rows in rows), default=0)
    for rows in tables:
        rows["start_ns"] -= first
        rows["end_ns"] -= first


def _starting(launches: pd.DataFrame, kernels: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Calls that started something on a device; without kernels those that are called so."""
    plain = {name: re.sub(r"_v\d{4,5}$", "", name) for name in launches["name"].unique()}
    names = [plain[name] for name in launches["name"]]
    keep = launches["correlation"].isin(set(kernels["correlation"]) - {UNKNOWN})
    if not len(kernels):
        keep = pd.Series([bool(_STARTS.match(name)) for name in names], dtype=bool)
    if n := int((~keep).sum()):
        notes.append(f"CUDA calls that started nothing on a device, left out: {n:,}")
    return launches.assign(name=names)[keep].reset_index(drop=True)


def _identify(
    ranges: pd.DataFrame,
    launches: pd.DataFrame,
    kernels: pd.DataFrame,
    ours: bool,
    notes: list[str],
) -> None:
    """Number threads and correlations so that those of several processes stay apart."""
    threads = [rows["globalTid"].to_numpy() for rows in (ranges, launches)]
    of_calls = [launches["globalTid"].to_numpy() >> 24, kernels["globalPid"].to_numpy() >> 24]
    known = np.unique(np.concatenate([tids[tids != MISSING] >> 24 for tids in threads]))
    several = len(known) > 1
    for rows, tids in zip((ranges, launches), threads, strict=True):
        small = tids >> 24 == _OURS >> 24 if ours else np.full(len(tids), not several)
        tids = np.where(small, tids & 0xFFFFFF, tids)
        rows["thread"] = np.where(rows["globalTid"] == MISSING, UNKNOWN, tids)
    processes = np.unique(np.concatenate([p[p != MISSING >> 24] for p in of_calls]))
    if len(processes) > 1 and not ours:
        notes.append(f"processes that ran kernels or launched them: {len(processes)}")
        for rows, process in zip((launches, kernels), of_calls, strict=True):
            number = np.searchsorted(processes, process)
            has = rows["correlation"] != UNKNOWN
            rows["correlation"] += np.where(has & (process != MISSING >> 24), number, 0) << 32
