"""What every export says first: that it is one of ours, of which version, and where it is from."""

import json
import sqlite3
from contextlib import closing
from math import isfinite
from pathlib import Path

from hspec_lab.timeline import Timeline

# of the exports that can be read back exactly; goes up when a reader of this one would be misled
VERSION = 1
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
encode = _ENCODER.encode


def head(timeline: Timeline) -> dict:
    """Return the version, the notes and the origin of a timeline, ready for strict JSON."""
    return {
        "hspec_lab": VERSION,
        "notes": list(timeline.notes),
        "about": _finite(timeline.about),
    }


def begins_with(path: Path, text: str) -> bool:
    """Say whether a file begins with this ASCII text; False for anything that is no file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(text)) == text.encode("ascii")


def is_our_sqlite(path: Path) -> bool:
    """Say whether `nsys_sqlite.write` wrote this file."""
    if not begins_with(path, "SQLite format 3"):
        return False
    # tables only: a view of this name would run what somebody else wrote
    is_table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'META_DATA_EXPORT'"
    is_ours = "SELECT 1 FROM META_DATA_EXPORT WHERE name = 'HSPEC_LAB_ABOUT'"
    try:
        where = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(where, uri=True)) as db:
            return bool(db.execute(is_table).fetchone() and db.execute(is_ours).fetchone())
    except sqlite3.Error:
        return False


def _finite(value):
    """A JSON value with null where strict JSON has no number."""
    if isinstance(value, dict):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value
