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
    if isinstance(what, Config):
        check_sources(what)
    for reference in levels(what) if isinstance(what, Config) else what:
        where, name = split_model(reference)
        format = Format.parse(name)
        if not format.is_made or where.startswith("shape:"):
            continue
        source = Checkpoint(locate(where))
        missing = source.format is None and not made_folder(source, format).is_dir()
        # a head that was trained on, or came later, is rotated anew beside a model that is there
        if missing or (source.format is None and format.rotates):
            quantize(reference, progress=progress)
