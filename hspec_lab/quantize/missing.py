"""Make what references name and nobody has made yet."""

from collections.abc import Sequence

from hspec_lab.config import Config, split_model
from hspec_lab.formats import Format
from hspec_lab.model import Checkpoint
from hspec_lab.model.shelf import made_folder
from hspec_lab.pipeline import check_sources, levels, locate
from hspec_lab.quantize.driver import Progress, quantize


def make_missing(what: Config | Sequence[str], progress: Progress | None = None) -> None:
    """Quantize the models of a config, or those of some references, that are not made yet.

    Args:
        what: references whose format no algorithm chose are left alone, and so are shapes.
        progress: called with steps done, steps in all and a few words.

    Raises:
        ValueError: what `quantize` says; of a config also, before anything is made, what is wrong
            with its models.
    """
    references = levels(what) if isinstance(what, Config) else what
    todo = [reference for reference in references if _is_to_make(reference)]
    if todo and isinstance(what, Config):
        check_sources(what)
    for reference in todo:
        quantize(reference, progress=progress)


def _is_to_make(reference: str) -> bool:
    where, name = split_model(reference)
    format = Format.parse(name)
    if not format.is_made or where.startswith("shape:"):
        return False
    source = Checkpoint(locate(where))
    if source.format is not None:  # a quantized folder was named itself
        return False
    # a head that was trained on, or came later, is rotated anew beside a model that is there
    return format.rotates or not made_folder(source, format).is_dir()
