"""Our own export as a folder of Parquet tables, back as it was."""

import json
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException

from hspec_lab.timeline import Timeline
from hspec_lab.trace_in.ranges import COLUMNS, check_version, restored

HEAD = "timeline.json"


def read(folder: Path) -> Timeline:
    """Read a folder that our export wrote.

    Raises:
        ValueError: a file is damaged, of another version, or the ranges are missing.
    """
    head = _head(folder / HEAD)
    tables, notes = {}, []
    for name in COLUMNS:
        path = folder / f"{name}.parquet"
        if path.is_file():
            tables[name] = _table(path, name)
        elif name == "ranges":
            raise ValueError(f"{path} is missing")
        else:
            notes.append(f"{path.name} is missing: no {name}")
    return restored(head, tables, notes, folder)


def _head(path: Path) -> dict:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged or cut off: {reason}") from None
    if not isinstance(head, dict):
        raise ValueError(f"{path} holds no object")
    check_version(head, path)
    return head


def _table(path: Path, name: str) -> pd.DataFrame:
    try:
        found = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged or cut off: {reason}") from None
    if missing := [column for column in COLUMNS[name] if column not in found]:
        raise ValueError(f"{path} lacks the columns {missing}")
    return found
