"""Our own export for speedscope, back as it was: the tables under its key `hspec_lab`."""

import json
from pathlib import Path

import pandas as pd

from hspec_lab.timeline import Timeline
from hspec_lab.trace_in.json_text import text_pieces
from hspec_lab.trace_in.ranges import COLUMNS, restored

SCHEMA = "https://www.speedscope.app/file-format-schema.json"
# characters of the largest file that is read; the text is held whole
MOST_CHARS = 1 << 30
# no string can hold this: its quotes would be escaped
_OURS = '"hspec_lab":{"hspec_lab":'


def read(path: Path) -> Timeline:
    """Read a file that our export wrote, gzipped or not.

    Raises:
        ValueError: it is another tool's, of another version, cut off or too large.
    """
    notes: list[str] = []
    found = _ours(_text(path, notes), path)
    tables = {}
    for name, columns in COLUMNS.items():
        given = found.get(name)
        given = given if isinstance(given, dict) else {}
        lists = {key: given[key] for key in columns if isinstance(given.get(key), list)}
        if len({len(values) for values in lists.values()}) > 1:
            raise ValueError(f"{path}: the columns of its {name} differ in length")
        tables[name] = pd.DataFrame(lists)
    return restored(found, tables, notes, path)


def _text(path: Path, notes: list[str]) -> str:
    pieces, n_chars = [], 0
    for piece in text_pieces(path, notes):
        n_chars += len(piece)
        if n_chars > MOST_CHARS:
            raise ValueError(f"{path}: a speedscope file of more than {MOST_CHARS} characters")
        pieces.append(piece)
    return "".join(pieces)


def _ours(text: str, path: Path) -> dict:
    """The entry that holds the tables; the profiles before it say the same once more."""
    at = text.rfind(_OURS)
    try:
        if at >= 0:
            return json.JSONDecoder().raw_decode(text, at + _OURS.index("{"))[0]
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: a speedscope file that is damaged or cut off: {reason}"
        ) from None
    ours = found.get("hspec_lab") if isinstance(found, dict) else None
    if not isinstance(ours, dict):
        raise ValueError(
            f"{path}: another tool's speedscope file; only those that hspec export wrote are read"
        )
    return ours
