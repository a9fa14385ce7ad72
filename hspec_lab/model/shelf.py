"""Where quantized folders lie: `$HSPEC_MODELS`, else `.models` in the store.

A folder's name says what it holds; its last twelve digits change when the model's files, the
format, the calibration text or the way of making it do, so that a stale one is never taken.
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from hspec_lab.formats import Format
from hspec_lab.model.checkpoint import Checkpoint
from hspec_lab.store import store_root

# raised when algorithms give other weights than before
VERSION = 1
# the calibration text that is taken when none is named
OWN_TEXT = "held-out text of the zoo"


def shelf_root() -> Path:
    """Where quantized folders are kept."""
    return Path(os.environ.get("HSPEC_MODELS") or store_root() / ".models")


def made_folder(source: Checkpoint, format: Format, text: str = OWN_TEXT) -> Path:
    """Where a model in a format lies once it is made; it need not exist.

    Args:
        text: names the calibration text and how it is cut.
    """
    return _named(source, str(replace(format, reference=False)), text)


def stacks_folder(source: Checkpoint, transforms: tuple[str, ...], text: str = OWN_TEXT) -> Path:
    """Where all blocks of a model's bitstacks lie, from which any size is cut.

    Args:
        transforms: what was done to the model before it was taken apart.
    """
    return _named(source, "+".join(("stacks", *transforms)), text)


def _named(source: Checkpoint, name: str, text: str) -> Path:
    key = json.dumps([source.fingerprint(), name, text, VERSION])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return shelf_root() / f"{source.folder.resolve().name}-{name}-{digest}"


def locate_made(source: Path, format: Format) -> Path:
    """The folder of a model in a format: its own, or the quantized one.

    Raises:
        ValueError: it is not made yet; says how to make it.
    """
    if not format.is_made:
        return source
    checkpoint = Checkpoint(source)
    if checkpoint.format is not None:  # a quantized folder was named itself
        return source
    folder = made_folder(checkpoint, format)
    if not folder.is_dir():
        raise ValueError(
            f"{source.name}@{format} is not made yet; `hspec quantize {source}@{format}` makes it"
        )
    return folder
