"""A rotated model's head, written beside it: a head reads and guesses its model's features."""

import shutil
from pathlib import Path

from hspec_lab.model import Checkpoint
from hspec_lab.model.checkpoint import check_head
from hspec_lab.model.eagle import check_head_fits
from hspec_lab.model.shape import read_object
from hspec_lab.quantize import rotate
from hspec_lab.quantize.folder import Unfinished


def head_to_rotate(source: Checkpoint, head: Path | None) -> Checkpoint | None:
    """The head that was named, or the one beside the model, where there is one.

    Raises:
        ValueError: not a head of this model, or features that cannot be rotated.
    """
    folder = source.folder.resolve()
    beside = folder.with_name(folder.name + "-eagle2")
    if head is None and not beside.is_dir():
        return None
    found = Checkpoint(head or beside)
    check_head_fits(found, source)
    check_head(found)
    rotate.check_gain(source.tensor("model.norm.weight"))
    return found


def write_rotated(head: Checkpoint, source: Checkpoint, folder: Path) -> None:
    """Rotate a head as its model was, unless that was done.

    Args:
        folder: of the rotated model.
    """
    final = folder.with_name(folder.name + "-eagle2")
    origin = {"source": str(head.folder.resolve()), "fingerprint": head.fingerprint()}
    if final.is_dir():
        held = read_object(final / "config.json").get("hspec", {})
        if origin.items() <= held.items():
            return
        # of another head, or of this one before it was trained on
        shutil.rmtree(final)
    tensors = {name: head.tensor(name).float() for name in head.names()}
    gain = source.tensor("model.norm.weight").float()
    Q = rotate.orthogonal(source.shape.hidden)
    half = Unfinished(final)
    half.put("model", rotate.rotate_head(tensors, gain, Q), {})
    half.finish(head.folder, {"basis": rotate.basis_id(Q, gain)} | origin)
