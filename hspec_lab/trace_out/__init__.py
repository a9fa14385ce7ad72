"""Timelines for other tools: Perfetto, Nsight Systems, data frames, speedscope.

    write(timeline, "perfetto", "run.perfetto.json")

Each holds the whole timeline, so that `hspec_lab.trace_in` reads the same one back.  Names in a
timeline are data, and no path is made of them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from hspec_lab.timeline import Timeline
from hspec_lab.trace_out import nsys_sqlite, parquet, perfetto, speedscope
from hspec_lab.trace_out.head import is_our_sqlite


class Format(NamedTuple):
    """How one format is written to a new path, known again, and called."""

    write: Callable[[Timeline, Path], object]
    is_ours: Callable[[Path], bool]
    ending: str


FORMATS = {
    "perfetto": Format(perfetto.write, perfetto.is_ours, ".perfetto.json"),
    "nsys-sqlite": Format(nsys_sqlite.write, is_our_sqlite, ".sqlite"),
    "parquet": Format(parquet.write, parquet.is_ours, ".tables"),
    "speedscope": Format(speedscope.write, speedscope.is_ours, ".speedscope.json"),
}


def write(timeline: Timeline, to: str, path: Path | str) -> Path:
    """Write a timeline for another tool, whole or not at all, and say where.

    Args:
        timeline: what to write.
        to: one of `FORMATS`.
        path: the file to write, of `parquet` the folder; what an earlier export in this format
            wrote there is replaced.  Folders above it are made.

    Raises:
        ValueError: a format that nobody knows, or something else stands there already.
    """
    form, path = _known(to), Path(path)
    if (path.exists() or path.is_symlink()) and not form.is_ours(path):
        raise ValueError(f"{path} exists and is no {to} export of hspec_lab; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{uuid4().hex[:8]}")
    try:
        form.write(timeline, unfinished)
        _put(unfinished, path)
    finally:
        _remove(unfinished)
    return path


def default_name(run_name: str, to: str) -> str:
    """Return what an export of a run is called where nobody says: its name and an ending."""
    if run_name != Path(run_name).name:
        raise ValueError(f"a run's name is no path, got {run_name!r}")
    return run_name + _known(to).ending


def _known(to: str) -> Format:
    if to not in FORMATS:
        raise ValueError(f"unknown export {to!r}; known: {', '.join(FORMATS)}")
    return FORMATS[to]


def _put(unfinished: Path, path: Path) -> None:
    """Rename what was written to its place; a folder that stands there goes first."""
    if not path.is_dir():
        os.replace(unfinished, path)
        return
    former = path.with_name(f"{unfinished.name}-former")
    os.rename(path, former)
    try:
        os.rename(unfinished, path)
    except OSError:
        os.rename(former, path)
        raise
    _remove(former)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
