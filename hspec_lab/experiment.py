"""Run a config on its prompts and store what happened.

A `Session` is one config made ready: checked, loaded, tokenized.  It decodes prompts one by one, so
that several sessions can take turns (interleaved, they see the same noise of a shared machine),
and writes one run folder at the end.
"""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pandas as pd
import torch

from hspec_lab import store, zoo
from hspec_lab.config import Config, as_dict, config_id
from hspec_lab.control import Controller, check_option
from hspec_lab.decode import Round, decode
from hspec_lab.nvtx_ranges import NvtxRecorder, listening
from hspec_lab.pipeline import (
    Models,
    build,
    check_folders,
    check_prompts,
    check_sources,
    fingerprint,
    levels,
    randomness,
    tokenizer_of,
)
from hspec_lab.quantize import make_missing
from hspec_lab.runtime.clock import CudaClock
from hspec_lab.suite.device_facts import device_facts
from hspec_lab.text import TextStream
from hspec_lab.trace import NO_RECORDER, Recorder

# the first decoding of a process pays for memory and for operators that tune themselves
WARMUP_TOKENS = 16

Progress = Callable[[int, int, str], None]


def environment(config: Config) -> dict:
    """The conditions of a run."""
    return conditions(config.device, config.threads) | {"weights": fingerprint(config)}


def conditions(device: str, threads: int) -> dict:
    """The conditions of a measurement, whatever was measured."""
    gpu = {} if device == "cpu" else device_facts(device)
    return gpu | {
        "device": device,
        "cpu": _cpu_name(),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hspec_lab": version("hspec-lab"),
        "commit": _commit(),
        "system": platform.platform(terse=True),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this checkout, `+` behind it when files differ; empty outside one."""
    try:
        here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "timeout": 5}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **here)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **here)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if head.returncode == 0 and changed.stdout.strip() else "")


def prompts_of(config: Config) -> list[str]:
    """The prompts a config asks for: its own, or the first of the zoo's."""
    if config.prompts:
        return list(config.prompts)
    shipped = zoo.prompts()
    if config.n_prompts > len(shipped):
        raise ValueError(f"n_prompts is {config.n_prompts}, the zoo has {len(shipped)} prompts")
    return shipped[: config.n_prompts]


class Session:
    """One config, ready to decode.

    Args:
        config: is checked before anything is loaded.
        models: share one among sessions and each model is loaded once.
        record: False decodes without a recorder; nothing can be written then.
        progress: told about models that have to be quantized first.
        controller: chooses sizes for each round, up to those of the config.
        modules: record attention, mlp and lm_head inside the phases, too (CPU).
        nvtx: also push NVTX ranges; None: when a tool listens, see `nvtx_ranges`.

    Raises:
        ValueError: something about the config, a checkpoint or a prompt is wrong.
    """

    def __init__(
        self,
        config: Config,
        models: Models | None = None,
        *,
        record: bool = True,
        progress: Progress | None = None,
        controller: Controller | None = None,
        modules: bool = False,
        nvtx: bool | None = None,
    ):
        if modules and not record:
            raise ValueError("modules=True records: leave record as True")
        check_sources(config)
        self.controller = controller
        for option in controller.options if controller else ():
            check_option(option, config.draft)
        self.config, self.prompts = config, prompts_of(config)
        self.tokenizer = tokenizer_of(config)
        self.prompt_ids = [self.tokenizer.encode(prompt).ids for prompt in self.prompts]
        check_prompts(config, self.prompt_ids)
        make_missing(levels(config), progress)
        check_folders(config)
        torch.set_num_threads(config.threads)
        # a tool that listens is told about rounds that nobody else records
        self._records, self.recorder = record, _recorder(config.device, record, nvtx)
        models = models or Models()
        if controller is not None and models.on_kernels(config.device):
            raise ValueError("sizes are fixed where rounds stay on the device: no controller there")
        self.choose = randomness(config, models)
        self.verifier = build(
            config,
            models,
            max(map(len, self.prompt_ids)),
            choose=self.choose,
            recorder=self.recorder,
            modules=modules,
        )
        self.eos_ids = self.verifier.model.shape.eos_ids
        self.rounds: dict[int, list[Round]] = {}

    def rounds_of(self, index: int, warmup: bool = False, max_new_tokens: int | None = None):
        """Decode prompt `index`, yielding its rounds; only a whole output is kept.

        What is drawn depends on the seed and the prompt alone.  Decoding a prompt again replaces
        its earlier output.
        """
        torch.set_num_threads(self.config.threads)
        if not warmup:
            self._forget(index)
        self.choose.begin(index)
        rounds = []
        try:
            for item in decode(
                self.verifier,
                self.prompt_ids[index],
                TextStream(self.tokenizer, self.config.stop),
                max_new_tokens=max_new_tokens or self.config.max_new_tokens,
                eos_ids=self.eos_ids,
                prompt_index=index,
                warmup=warmup,
                recorder=self.recorder,
                controller=self.controller,
            ):
                rounds.append(item)
                yield item
        finally:
            # the consumer may have gone away within a round
            self.recorder.abandon_round()
            if not warmup:
                if rounds and rounds[-1].finished:
                    self.rounds[index] = rounds
                else:
                    self._forget(index)

    def _forget(self, index: int) -> None:
        self.rounds.pop(index, None)
        self.recorder.forget(index)

    def warm_up(self) -> None:
        """Decode a few tokens that do not count."""
        n = min(WARMUP_TOKENS, self.config.max_new_tokens)
        for _ in self.rounds_of(0, warmup=True, max_new_tokens=n):
            pass

    def output_ids(self, index: int) -> list[int]:
        """Token ids of a decoded output."""
        return [token for item in self.rounds[index] for token in item.tokens]

    def output(self, index: int) -> str:
        """Text of a decoded output."""
        return "".join(item.text for item in self.rounds[index])

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of a run folder."""
        rows = [
            (index, item.index, *entry)
            for index, rounds in sorted(self.rounds.items())
            for item in rounds
            for entry in zip(item.tokens, item.pieces, item.sources, strict=True)
        ]
        columns = ["prompt", "round", "token", "piece", "source"]
        tokens = pd.DataFrame(rows, columns=columns)
        tokens.insert(2, "position", tokens.groupby("prompt").cumcount())
        return self.recorder.tables() | {"tokens": tokens}

    def write(
        self,
        root: Path,
        audits: list[dict] = (),
        kind: str = "measured",
        more: dict[str, pd.DataFrame] | None = None,
        together: str = "",
    ) -> Path:
        """Store everything decoded so far as one run folder; returns it.

        Args:
            root: the store.
            audits: outputs that differ from plain decoding.
            kind: what the run is.
            more: tables of `store.MORE_TABLES` that somebody else recorded.
            together: a name that runs share which took turns.
        """
        if self.controller is not None:
            raise ValueError("a run folder holds one drafter's rounds: decode without a controller")
        if not self._records or not self.rounds:
            raise ValueError("nothing was recorded: decode at least one prompt, with record=True")
        # a prompt that was not decoded has no rows and an empty output
        decoded = range(max(self.rounds) + 1)
        head = {
            "kind": kind,
            "config": as_dict(self.config),
            "config_id": config_id(self.config),
            "method": self.config.method,
            "format": self.config.format,
            "environment": environment(self.config),
            "prompts": [self.prompts[index] for index in decoded],
            "outputs": [self.output(i) if i in self.rounds else "" for i in decoded],
            "prefill": {"prompt_tokens": [len(self.prompt_ids[index]) for index in decoded]},
            "audits": list(audits),
            "together": together,
        }
        tables = self.tables() | (more or {})
        return store.write_new_run(root, config_id(self.config), head, tables)


def _recorder(device: str, record: bool, nvtx: bool | None):
    """What a session records with; NVTX ranges come from a recorder, too."""
    domain = listening(nvtx)
    if not record and domain is None:
        return NO_RECORDER
    clock = None if device == "cpu" else CudaClock()
    return Recorder(clock) if domain is None else NvtxRecorder(domain, clock)


def measure(
    config: Config, root: Path, progress: Progress | None = None, *, modules: bool = False
) -> Path:
    """Decode all prompts of a config and store the run.

    Args:
        root: the store.
        modules: as for `Session`.
        progress: called with tokens done, tokens at most, and a few words, ten times a second
            at most and never inside a round.

    Returns:
        The run folder.
    """
    return measure_together([config], root, progress, modules=modules)[0]


def measure_together(
    configs: Sequence[Config],
    root: Path,
    progress: Progress | None = None,
    *,
    modules: bool = False,
) -> list[Path]:
    """Decode the prompts of several configs, taking turns prompt by prompt; store a run of each.

    What slows a machine for a while then slows all of them, so that their runs compare.

    Args:
        configs: with the same prompts, device and threads.
        root, progress, modules: as for `measure`.

    Returns:
        The run folders, in the configs' order.

    Raises:
        ValueError: the configs' prompts, devices or threads differ.
    """
    _check_comparable(configs)
    report, models = _Throttled(progress), Models()
    report(0, 1, "loading")
    sessions = [Session(config, models, progress=progress, modules=modules) for config in configs]
    n_prompts = len(sessions[0].prompts)
    total = n_prompts * sum(config.max_new_tokens for config in configs)
    report(0, total, "warming up")
    for session in sessions:
        session.warm_up()
    done = 0
    for index in range(n_prompts):
        # who comes first changes from prompt to prompt
        first = index % len(sessions)
        for session in (*sessions[first:], *sessions[:first]):
            before = done
            for item in session.rounds_of(index):
                done += item.n_emitted
                report(done, total, f"prompt {index + 1} of {n_prompts}")
            done = before + session.config.max_new_tokens
    together = uuid4().hex[:12] if len(sessions) > 1 else ""
    folders = [session.write(root, together=together) for session in sessions]
    report.now(total, total, "stored")
    return folders


def _check_comparable(configs: Sequence[Config]) -> None:
    if not configs:
        raise ValueError("give at least one config to measure")
    for name in ("prompts", "n_prompts", "device", "threads"):
        found = list(dict.fromkeys(getattr(config, name) for config in configs))
        if len(found) > 1:
            values = f"{found[0]!r} and {found[1]!r}"
            raise ValueError(f"configs that take turns share {name}, got {values}")


class _Throttled:
    """Hands progress on at most every 0.1 s."""

    def __init__(self, progress: Progress | None):
        self._progress, self._next = progress, 0.0

    def __call__(self, done: int, total: int, text: str) -> None:
        if self._progress and time.monotonic() >= self._next:
            self.now(done, total, text)

    def now(self, done: int, total: int, text: str) -> None:
        if self._progress:
            self._next = time.monotonic() + 0.1
            self._progress(done, total, text)
