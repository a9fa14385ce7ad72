"""Run folders that get more than a session writes, whole or not at all: made aside, then moved."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from hspec_lab import store


@contextmanager
def aside(root: Path | str) -> Iterator[Path]:
    """A new folder beside a store's runs, which lists of runs pass over; it goes when this ends."""
    folder = Path(root) / f".unfinished-{uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def only_run(folder: Path) -> Path:
    """The one run in a folder.

    Raises:
        ValueError: there is none, or one that cannot be read.
    """
    runs = store.list_runs(folder)
    if len(runs) != 1:
        raise ValueError(f"the traced program left {len(runs)} runs, not one")
    store.read_head(folder / runs["run"][0])
    return folder / runs["run"][0]


def say_more(run: Path, facts: dict) -> None:
    """Add to the environment that a run tells of; only for runs that nobody has seen yet."""
    path = run / "run.json"
    head = json.loads(path.read_text(encoding="utf-8"))
    head["environment"] |= facts
    path.write_text(json.dumps(head, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def land(run: Path, root: Path | str) -> Path:
    """Move a run into its store and return where it lies then."""
    folder = store.new_folder(root, store.read_head(run)["config_id"])
    run.rename(folder)
    return folder
