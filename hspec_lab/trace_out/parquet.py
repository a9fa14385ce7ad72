"""A timeline as a folder of Parquet tables, for pandas, DuckDB and the like.

timeline.json                               version, notes, where it comes from
ranges.parquet launches.parquet kernels.parquet   all of it, in whole ns
rounds.parquet spans.parquet modules.parquet      our ranges as run folders hold them, in us
"""

import json
from pathlib import Path

from hspec_lab.timeline import Timeline
from hspec_lab.trace_out.head import VERSION, head

_HEAD = "timeline.json"
_WHOLE = ("ranges", "launches", "kernels")
_OF_RUNS = ("rounds", "spans", "modules")
_NAMES = {_HEAD, *(f"{name}.parquet" for name in _WHOLE + _OF_RUNS)}


def write(timeline: Timeline, path: Path) -> None:
    """Write a timeline as a new folder."""
    path.mkdir()
    of_runs = timeline.tables()
    tables = {name: getattr(timeline, name) for name in _WHOLE}
    tables |= {name: of_runs[name] for name in _OF_RUNS if name in of_runs}
    for name, table in tables.items():
        table.to_parquet(path / f"{name}.parquet", index=False)
    text = json.dumps(head(timeline), indent=2, allow_nan=False)
    (path / _HEAD).write_text(text + "\n", encoding="ascii")


def is_ours(path: Path) -> bool:
    """Say whether `write` wrote this folder and nobody put anything else into it."""
    if path.is_symlink() or not (path / _HEAD).is_file():
        return False
    try:
        found = json.loads((path / _HEAD).read_text(encoding="ascii"))
    except (ValueError, RecursionError):
        return False
    ours = isinstance(found, dict) and found.get("hspec_lab") == VERSION
    return ours and {entry.name for entry in path.iterdir()} <= _NAMES
