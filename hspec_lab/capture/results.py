"""A trace's analysis as files, and in the run folder that the trace belongs to.

<run>/traces/<name>/analysis.json   where it is from, notes, numbers of the device
                    analysis.txt    the same for reading
                    <table>.parquet one per table of the analysis
                    trace.tables/   ranges, launches and kernels, to be analyzed again

Names come from file names of other people: they are reduced to what is safe in a file name, and
nothing is written outside the run folder.  Needs no torch.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd

from hspec_lab import store, trace_out
from hspec_lab.analysis.kernels import device_summary
from hspec_lab.analysis.text import as_text, report
from hspec_lab.timeline import UNKNOWN, Timeline

SCHEMA_VERSION = 1
COUNTS = ("n_proposed", "n_accepted", "n_emitted", "kv_len")
# beyond so many rows a table stays out of JSON; Parquet has it whole
_MOST_ROWS = 10_000
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def add_trace(trace: Path, timeline: Timeline, run: Path, *, again: bool = False) -> Path:
    """Write a trace's tables and its analysis into the run folder that it belongs to.

    Args:
        trace: what was read; the folder is named after it.
        timeline: what it holds.
        run: the run folder.
        again: replace what an earlier trace of this name left there.

    Returns:
        The folder.

    Raises:
        ValueError: no run folder, or it holds a trace of this name already.
    """
    store.read_head(run)
    folder = run / "traces" / safe_name(trace)
    if not folder.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"{folder} leads out of the run folder")
    if folder.exists() and not again:
        raise ValueError(f"{folder} holds a trace already; --again replaces it")
    folder.parent.mkdir(exist_ok=True)
    write_analysis(timeline, folder, again=again, tables=True)
    return folder


def write_analysis(
    timeline: Timeline, folder: Path, *, again: bool = False, tables: bool = False
) -> None:
    """Write the analysis of a timeline as a folder, whole or not at all.

    Args:
        timeline: what is analyzed.
        folder: must not exist, unless `again`.
        again: replace it.
        tables: the timeline itself comes with it, as `trace.tables`.
    """
    unfinished = folder.with_name(f".unfinished-{uuid4().hex[:12]}")
    try:
        unfinished.mkdir(parents=True)
        _write_files(timeline, unfinished)
        if tables:
            trace_out.write(timeline, "parquet", unfinished / "trace.tables")
        if again and folder.exists():
            former = unfinished.with_name(f"{unfinished.name}-former")
            folder.rename(former)
            unfinished.rename(folder)
            shutil.rmtree(former)
        else:
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def as_json(timeline: Timeline) -> dict:
    """The analysis of a timeline as JSON values; numbers that are not finite become null."""
    return _as_json(timeline, report(timeline))


def with_counts(timeline: Timeline, rounds: pd.DataFrame) -> Timeline:
    """Fill in what rounds proposed, accepted and emitted where a trace does not know.

    Rounds are told apart by prompt and round; where a trace has no such numbers, by their order,
    if there are as many.  What the trace knows stays.

    Args:
        timeline: a trace of the run, or of the same configuration.
        rounds: the run's table.
    """
    ranges = timeline.ranges
    is_round = (ranges["kind"] == "round") & ~ranges["warmup"]
    ours = ranges[is_round]
    if not len(ours) or not (ours[list(COUNTS)] == UNKNOWN).any(axis=None):
        return timeline
    rounds = rounds[~rounds["warmup"]]
    keys = ["prompt", "round"]
    if (ours["prompt"] != UNKNOWN).all():
        found = rounds.set_index(keys)[list(COUNTS)].reindex(pd.MultiIndex.from_frame(ours[keys]))
    elif len(ours) == len(rounds):
        found = rounds.sort_values("start_us", kind="stable")
    else:
        return timeline.noting(
            f"emitted counts are not known: the trace has {len(ours)} rounds, the run {len(rounds)}"
        )
    if found["n_emitted"].isna().all():
        return timeline.noting("emitted counts are not known: the run has none of these rounds")
    filled = {}
    for name in COUNTS:
        theirs, mine = found[name].fillna(UNKNOWN).to_numpy(), ours[name].to_numpy()
        column = ranges[name].to_numpy().copy()
        column[is_round] = np.where(mine == UNKNOWN, theirs, mine)
        filled[name] = column
    note = "what rounds proposed, accepted and emitted was taken from the run folder"
    return replace(timeline, ranges=ranges.assign(**filled)).noting(note)


def safe_name(path: Path) -> str:
    """A file name's stem, reduced to letters, digits, dots, dashes and underscores."""
    stem = path.name
    for ending in (".gz", ".json", ".sqlite", ".perfetto", ".speedscope", ".tables"):
        stem = stem.removesuffix(ending)
    return _UNSAFE.sub("-", stem).strip(".-")[:80] or "trace"


def write_tables(timeline: Timeline, folder: Path) -> list[Path]:
    """Write the tables of the analysis into a folder, as Parquet and as CSV each.

    Raises:
        ValueError: one of these files exists.
    """
    tables = report(timeline)
    paths = [folder / f"{name}{ending}" for name in tables for ending in (".parquet", ".csv")]
    if there := [path for path in paths if path.exists()]:
        raise ValueError(f"{there[0]} exists already; name another folder by --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)
    return paths


def _write_files(timeline: Timeline, folder: Path) -> None:
    tables = report(timeline)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    text = json.dumps(_as_json(timeline, tables), indent=2, allow_nan=False)
    (folder / "analysis.json").write_text(text + "\n", encoding="utf-8")
    (folder / "analysis.txt").write_text(as_text(timeline) + "\n", encoding="utf-8")


def _as_json(timeline: Timeline, tables: dict[str, pd.DataFrame]) -> dict:
    return {
        "schema": SCHEMA_VERSION,
        "about": store.json_value(timeline.about),
        "notes": list(timeline.notes),
        "device": store.json_value(device_summary(timeline)),
        "tables": {
            name: json.loads(table.to_json(orient="records"))
            for name, table in tables.items()
            if len(table) <= _MOST_ROWS
        },
        "tables_left_out": [name for name, table in tables.items() if len(table) > _MOST_ROWS],
    }
