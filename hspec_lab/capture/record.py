"""Decode a configuration and store the run with everything asked for: modules, kernels, ranges."""

from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from hspec_lab.capture.kernels import kernels_of
from hspec_lab.capture.landing import aside, land, say_more
from hspec_lab.config import Config, from_dict
from hspec_lab.experiment import Progress, Session, prompts_of
from hspec_lab.pipeline import Models

# of runs whose times a profiler disturbed, so that nobody compares them with measured ones
TRACED = "traced"


def record(
    config: Config,
    root: Path,
    *,
    n_rounds: int | None = None,
    modules: bool = False,
    kernels: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Decode all prompts of a configuration, in this process, and store the run.

    Args:
        config: what is decoded.
        root: the store.
        n_rounds: of the first prompt only so many rounds; None: all prompts to their end.
        modules: time attention, mlp and lm_head, too (CPU).
        kernels: record what the device ran, too (CUDA).
        progress: told about models that have to be quantized first, and about prompts.

    Returns:
        The run folder.

    Raises:
        ValueError: kernels of the CPU, or what `Session` raises.
    """
    if kernels and config.device == "cpu":
        raise ValueError("kernels are what a CUDA device runs; this configuration runs on the cpu")
    session = _opened(config, n_rounds, modules=modules, progress=progress)
    if not kernels:
        _warmed_up(session)
        return _decoded(session, progress).write(root)
    _warmed_up(session, whole=True)
    more, facts = _kernels(session, progress)
    with aside(root) as folder:
        run = session.write(folder, kind=TRACED, more=more)
        say_more(run, {"kernels": facts})
        return land(run, root)


def watched_run(
    fields: dict, root: Path | str | None, *, n_rounds: int | None = None, modules: bool = False
) -> Path | None:
    """Decode a configuration while a profiler watches: NVTX ranges, and its capture range.

    A profiler that waits for `cudaProfilerStart` sees everything behind the warm-up.

    Args:
        fields: the configuration, as a run's `run.json` has it.
        root: the store; None: nothing is stored.
        n_rounds, modules: as for `record`.

    Returns:
        The run folder, or None.
    """
    config = from_dict(fields)
    session = _opened(config, n_rounds, modules=modules, nvtx=True)
    _warmed_up(session, whole=True)
    with _capture_range(config.device):
        _decoded(session)
    return None if root is None else session.write(Path(root), kind=TRACED)


def first_rounds(config: Config, n_rounds: int, models: Models) -> Config:
    """Return the configuration of the first prompt, ended where a round ends.

    Which tokens come does not depend on how many are asked for, so decoding once says how many
    the first rounds emit.

    Args:
        config: may have any number of prompts.
        n_rounds: at most so many rounds, behind the prefill.
        models: keeps what is loaded here.
    """
    if n_rounds < 1:
        raise ValueError(f"--rounds must be >= 1, got {n_rounds}")
    prompts = prompts_of(config)
    if len(prompts) > 1:
        config = replace(config, prompts=(prompts[0],))
    session = Session(config, models, record=False, nvtx=False)
    n_tokens = 0
    with closing(session.rounds_of(0, warmup=True)) as rounds:
        for item in rounds:
            n_tokens += item.n_emitted
            if item.finished:
                return config
            # the prefill's is round -1
            if item.index + 1 >= n_rounds:
                break
    return replace(config, max_new_tokens=n_tokens)


def _opened(config: Config, n_rounds: int | None, **asked) -> Session:
    models = Models()
    if n_rounds is not None:
        config = first_rounds(config, n_rounds, models)
    return Session(config, models, **asked)


def _warmed_up(session: Session, whole: bool = False) -> None:
    """Decode what does not count; `whole`: a whole output, so that all it needs is ready."""
    if not whole:
        session.warm_up()
        return
    for _ in session.rounds_of(0, warmup=True):
        pass


def _decoded(session: Session, progress: Progress | None = None) -> Session:
    n_prompts = len(session.prompts)
    for index in range(n_prompts):
        if progress:
            progress(index, n_prompts, f"prompt {index + 1} of {n_prompts}")
        for _ in session.rounds_of(index):
            pass
    return session


def _kernels(session: Session, progress: Progress | None):
    # marks go where the work goes
    with torch.cuda.device(session.config.device):
        return kernels_of(lambda: _decoded(session, progress), session.recorder.zero_ns)


@contextmanager
def _capture_range(device: str):
    if device == "cpu":
        yield
        return
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        with torch.cuda.profiler.profile():
            yield
            # what was launched inside belongs inside
            torch.cuda.synchronize()
