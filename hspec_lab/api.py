"""What `from hspec_lab import run` gives: measure a config, get the run back as a value."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from hspec_lab import store
from hspec_lab.config import Config, config_id, split_model
from hspec_lab.experiment import Progress, environment, measure_together
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
    return _run([config], root, progress, again, modules)[0]


def run_together(
    configs: Sequence[Config],
    *,
    root: Path | str | None = None,
    progress: Progress | None = None,
    again: bool = False,
    modules: bool = False,
) -> list[Run]:
    """Decode the prompts of several configs in turns, prompt by prompt, so that they compare.

    Stored runs answer when they took turns with each other; else all are measured anew.

    Args:
        configs: with the same prompts, device and threads.
        root, progress, again, modules: as for `run`.

    Raises:
        ValueError: as `run`; or the configs' prompts, devices or threads differ.
    """
    return _run(list(configs), root, progress, again, modules)


def _run(configs: list[Config], root, progress, again: bool, modules: bool) -> list[Run]:
    root = Path(root) if root is not None else store.store_root()
    words = " and ".join(f"{config.method} {config.format}" for config in configs)
    told = (lambda unit, work: work(progress)) if progress else partial(_with_bar, words)
    for config in configs:
        if any(Format.parse(split_model(model)[1]).is_made for model in levels(config)):
            told("layer", partial(make_missing, config))
    folders = [None if again else _stored(config, root, modules) for config in configs]
    if not all(folders) or not _took_turns(folders):
        work = partial(measure_together, configs, root, modules=modules)
        folders = told("token", work)
    return [Run(folder) for folder in folders]


def _stored(config: Config, root: Path, modules: bool) -> Path | None:
    """The newest run that answers for a config here."""
    here = environment(config)
    folder = store.find(root, config_id(config), {name: here[name] for name in SAME})
    lacks = folder is not None and modules and not (folder / "modules.parquet").exists()
    return None if lacks else folder


def _took_turns(folders: list[Path]) -> bool:
    found = {store.read_head(folder).get("together", "") for folder in folders}
    return len(folders) == 1 or (len(found) == 1 and found != {""})


def _with_bar(words: str, unit: str, work: Callable[[Progress], object]):
    """Do work that reports progress, with a bar."""
    with tqdm(desc=words, unit=unit, leave=False) as bar:

        def progress(done: int, total: int, text: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"{words}, {text}", refresh=True)

        return work(progress)
