"""The suite's folder on disk: `suite.json` and one Parquet table a part; needs no torch.

Each file is replaced whole or not at all.
"""

import json
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException

from hspec_lab.store import read_head_file, replace_file

SCHEMA_VERSION = 1
# what must not change within a folder
SAME = ("device", "gpu", "torch", "triton", "tiny")


def begin(folder: Path, found: dict) -> dict:
    """Make a folder ready for measuring and note that a session begins.

    Args:
        found: the conditions now; `SAME` must be among them.

    Returns:
        what `suite.json` says now.

    Raises:
        ValueError: the folder was measured under other conditions, or is damaged.
    """
    if (folder / "suite.json").exists():
        head = read_head(folder)
        for name in SAME:
            if head["conditions"].get(name) != found[name]:
                raise ValueError(
                    f"{folder} was measured with {name} {head['conditions'].get(name)!r}, "
                    f"now it is {found[name]!r}: give another folder"
                )
    else:
        head = {"schema": SCHEMA_VERSION, "kind": "gpu suite", "conditions": found}
    # clocks and code may differ between sessions, so each is noted
    session = {name: value for name, value in found.items() if name in ("date", "commit", "clocks")}
    head["sessions"] = [*head.get("sessions", ()), session]
    folder.mkdir(parents=True, exist_ok=True)
    write_head(folder, head)
    return head


def write_head(folder: Path, head: dict) -> None:
    """Replace `suite.json`."""
    text = json.dumps(head, indent=2, allow_nan=False) + "\n"
    replace_file(folder / "suite.json", lambda path: path.write_text(text, encoding="utf-8"))


def read_head(folder: Path) -> dict:
    """What `suite.json` says; ValueError where it is missing, damaged or of another schema."""
    return read_head_file(Path(folder) / "suite.json", SCHEMA_VERSION, "measured suite")


def read_table(folder: Path, name: str) -> pd.DataFrame | None:
    """A part's table; None where nothing of it was measured."""
    path = Path(folder) / f"{name}.parquet"
    if not path.exists():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Replace a part's table."""
    path = Path(folder) / f"{name}.parquet"
    replace_file(path, lambda path: table.to_parquet(path, index=False))
