"""A study's folder on disk: what was asked, and one row per cell, prompt and turn; no torch.

<folder>/study.json      schema, kind, conditions, plan, fingerprints of weights, sessions
         cells.parquet   see `CELLS`; raw values, so medians are taken when it is read
         measure.json    conditions of the cost curves
         cost.parquet    cost curves, see `store.COSTS`

Each file is replaced whole or not at all, so a study that was stopped goes on where it was.
"""

import json
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException

from hspec_lab.store import read_head_file, replace_file

SCHEMA_VERSION = 1
# what must not change within a folder
SAME_CONDITIONS = ("device", "gpu", "cpu", "threads", "torch")
SAME_PLAN = ("prompts", "n_prompts", "max_new_tokens", "repeats", "context", "head")
CELL = ["device", "model", "scheme", "tree_size", "depth", "top_k"]
CELLS = {
    "device": "str",
    "model": "str",
    "scheme": "str",
    "tree_size": "int64",  # nodes, the root included: what a verification runs
    "depth": "int64",  # levels below the root: passes of the head in a round
    "top_k": "int64",
    "prompt": "int64",
    "turn": "int64",
    "n_rounds": "int64",
    "n_emitted": "int64",  # by these rounds; the first token comes from the prefill
    "rounds_us": "float64",  # wall time of these rounds
    "draft_us": "float64",  # medians over rounds
    "verify_us": "float64",
    "rest_us": "float64",  # accepting, committing, and what no span covers
    "plain_rounds": "int64",  # plain decoding of the same prompt in the same turn
    "plain_us": "float64",  # wall time of its rounds
    "step_us": "float64",  # median over its rounds, one token each
    "same_text": "bool",  # whether both decoded the same tokens
}


def begin(folder: Path, found: dict, plan: dict, weights: dict[str, str]) -> pd.DataFrame:
    """Make a folder ready for measuring and note that a session begins.

    Args:
        found: the conditions now; `SAME_CONDITIONS` where they are known.
        plan: what is asked for; `SAME_PLAN` must be among it.
        weights: a fingerprint per model reference.

    Returns:
        the cells that `folder` holds already.

    Raises:
        ValueError: the folder is damaged, or was measured under other conditions, with another
            plan or with other weights.
    """
    plan = json.loads(json.dumps(plan))  # tuples become what a file gives back
    cells = _no_cells()
    head = {"schema": SCHEMA_VERSION, "kind": "measured", "conditions": found}
    if (folder / "study.json").exists():
        head = read_head(folder)
        for name in SAME_CONDITIONS:
            check_same(folder, name, head["conditions"].get(name), found.get(name))
        for name in SAME_PLAN:
            check_same(folder, name, head["plan"].get(name), plan[name])
        for reference in sorted(set(head["weights"]) & set(weights)):
            check_same(
                folder, f"weights of {reference}", head["weights"][reference], weights[reference]
            )
        cells = read_cells(folder)
    session = {name: found.get(name) for name in ("date", "commit", "load_average")}
    head |= {"plan": plan, "weights": head.get("weights", {}) | weights}
    head["sessions"] = [*head.get("sessions", ()), session]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head, indent=2, allow_nan=False) + "\n"
    replace_file(folder / "study.json", lambda path: path.write_text(text, encoding="utf-8"))
    return cells


def check_same(folder: Path, name: str, stored, found) -> None:
    """ValueError where a folder was measured under other conditions, plans or weights."""
    if stored != found:
        raise ValueError(
            f"{folder} was measured with {name} {repr(stored)[:120]}, now it is "
            f"{repr(found)[:120]}: give another folder"
        )


def write_cells(folder: Path, cells: pd.DataFrame) -> None:
    """Replace the table; ValueError when a column is missing or foreign."""
    _check_columns("a study", cells)
    cells = cells.astype(CELLS)
    replace_file(folder / "cells.parquet", lambda path: cells.to_parquet(path, index=False))


def read_head(folder: Path) -> dict:
    """What `study.json` says; ValueError where it is missing, damaged or of another schema."""
    return read_head_file(Path(folder) / "study.json", SCHEMA_VERSION, "study")


def read_cells(folder: Path) -> pd.DataFrame:
    """The table, without rows where no cell is finished; ValueError where it is damaged."""
    path = Path(folder) / "cells.parquet"
    if not path.exists():
        return _no_cells()
    try:
        cells = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None
    _check_columns(str(path), cells)
    return cells


def _no_cells() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in CELLS.items()})


def _check_columns(where: str, cells: pd.DataFrame) -> None:
    if list(cells.columns) != list(CELLS):
        raise ValueError(f"{where} has the columns {list(CELLS)}, got {list(cells.columns)}")
