"""What `from hspec_lab import run` gives: measure a config, get the run back as a value."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from hspec_lab import store
from hspec_lab.config import Config, config_id, split_model
from hspec_lab.experiment import Progress, environment, measure
from hspec_lab.formats import Format
from hspec_lab.lab import Run
from hspec_lab.pipeline import levels
from hspec_lab.quantize import make_missing

# a stored run answers only where these agree with here and now
SAME = ("device", "cpu", "threads", "torch", "weights")


def run(
    config: Config,
    *,
    root: Path | str | None = None,
    progress: Progress | None = None,
    again: bool = False,
    modules: bool = False,
) -> Run:
    """Decode a config's prompts, or return the stored run of the same config on this machine.

    Args:
        root: the store; $HSPEC_STORE or ./hspec_runs when None.
        progress: called with tokens done, tokens in all and a few words; a progress bar when None.
        again: measure even when a stored run would answer.
        modules: also time attention, mlp and lm_head inside the phases (CPU); measures again
            unless the stored run has them.

    Raises:
        ValueError: something about the config, a checkpoint or a prompt is wrong.
    """
    root = Path(root) if root is not None else store.store_root()
    told = (lambda unit, work: work(progress)) if progress else partial(_with_bar, config)
    if any(Format.parse(split_model(model)[1]).is_made for model in levels(config)):
        told("layer", partial(make_missing, config))
    here = environment(config)
    key = {name: here[name] for name in SAME}
    folder = None if again else store.find(root, config_id(config), key)
    if folder is None or (modules and not (folder / "modules.parquet").exists()):
        folder = told("token", partial(measure, config, root, modules=modules))
    return Run(folder)


def _with_bar(config: Config, unit: str, work: Callable[[Progress], object]):
    """Do work that reports progress, with a bar."""
    with tqdm(desc=config.method, unit=unit, leave=False) as bar:

        def progress(done: int, total: int, text: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"{config.method} {config.format}, {text}", refresh=True)

        return work(progress)
