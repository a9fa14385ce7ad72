"""What a store already knows: the configurations measured, found by value and kept in memory."""

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from hspec_lab import breakdown, store
from hspec_lab.config import Chain, Config, Refine, from_dict, split_model

COLUMNS = ["format", "method", "tokens_per_s", "speedup", "low", "high", "mean_emitted"]
COLUMNS += ["current", "draft", "run"]


@dataclass(frozen=True)
class Measured:
    """One run folder, its tables read when first asked for."""

    folder: Path
    head: dict

    @cached_property
    def config(self) -> Config:
        return from_dict(self.head["config"])

    @cached_property
    def conditions(self) -> tuple:
        """What two runs must share to be compared: all but the target's format and the drafter."""
        environment = self.head["environment"]
        return conditions(self.config), environment.get("device"), environment.get("threads")

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        return store.read_run(self.folder)[1]

    @property
    def is_read(self) -> bool:
        """Whether the tables are in memory."""
        return "tables" in self.__dict__

    @cached_property
    def phases(self) -> pd.DataFrame:
        """Columns `phase`, `us_per_emitted` and more, see `breakdown.phase_table`."""
        return breakdown.phase_table(self.tables["rounds"], self.tables["spans"])

    @cached_property
    def us_interval(self) -> tuple[float, float]:
        """95 % interval of us per emitted token over prompts; NaN for a single one."""
        numbers = breakdown.summary(self.tables["rounds"], self.tables["spans"])
        return 1e6 / numbers["tokens_per_s_high"], 1e6 / numbers["tokens_per_s_low"]

    @property
    def note(self) -> str:
        """Where, on what and when, in one line."""
        environment, config = self.head["environment"], self.config
        n_prompts = len(config.prompts) or config.n_prompts
        greedy = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}"
        work = (
            f"{n_prompts} prompt{'s' * (n_prompts > 1)} × {config.max_new_tokens} tokens, {greedy}"
        )
        processor = f" ({environment['cpu']})" if environment.get("cpu") else ""
        device = f"{environment.get('device', config.device)}{processor}"
        where = f"{device}, {store.threads_text(config.threads)}"
        when = str(environment.get("date", "date unknown"))[:16].replace("T", " ")
        return f"{where}; {work}; {when} UTC"


class Known:
    """The runs of a store, newest first, by configuration.

    Attributes:
        problems: why folders cannot be read, a line each.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self._runs: dict[Path, Measured | None] = {}
        self._elsewhere: list[Path] = []
        self._seen_ns, self.problems = 0, []
        # the event loop looks here, and so does the thread that hears of a new run
        self._lock = threading.RLock()
        self.refresh()

    def renew(self) -> bool:
        """Look for new folders if the store has changed since; says whether it had."""
        changed = _changed_ns(self.root) != self._seen_ns
        if changed:
            self.refresh()
        return changed

    def refresh(self, written: Path | str | None = None) -> None:
        """Look for new folders; `written` is one that may lie outside the store."""
        with self._lock:
            if written and Path(written).parent.resolve() != self.root.resolve():
                self._elsewhere.insert(0, Path(written))
            self._refresh()

    def _refresh(self) -> None:
        self._seen_ns = _changed_ns(self.root)
        names = store.list_runs(self.root)
        good = names.loc[names["problem"] == "", "run"]
        folders = [*self._elsewhere, *(self.root / name for name in good)]
        # what was read before a folder was damaged stays: figures keep their last good bar
        bad = names[names["problem"] != ""]
        self.problems = list(bad["problem"])
        damaged = [self.root / name for name in bad["run"]]
        folders += [folder for folder in damaged if (run := self._runs.get(folder)) and run.is_read]
        self._runs = {folder: self._runs.get(folder) or _read(folder) for folder in folders}

    def find(self, config: Config) -> Measured | None:
        """Return the newest run of exactly this configuration."""
        return next((run for run in self if run.config == config), None)

    def like(self, config: Config) -> list[Measured]:
        """Return the runs under the conditions of `config`, on the device of the newest of them."""
        wanted = conditions(config)
        runs = [run for run in self if run.conditions[0] == wanted]
        return [run for run in runs if run.conditions == runs[0].conditions]

    def __iter__(self):
        return (run for run in self._runs.values() if run)


def baseline(config: Config) -> Config:
    """Plain decoding of the same target under the same conditions."""
    return replace(config, draft=None)


def conditions(config: Config) -> Config:
    """The configuration with its choices of format and drafter taken out."""
    return replace(config, target=split_model(config.target)[0], draft=None)


def label(config: Config) -> str:
    """A bar's name: method, then formats; the rest stands on the sliders."""
    if isinstance(config.draft, Chain | Refine):
        return f"{config.method}, {config.format} over {split_model(config.draft.model)[1]}"
    return f"{config.method}, {config.format}"


def comparison(runs: list[Measured], current: Config) -> pd.DataFrame:
    """One row per configuration whose ar is known too, newest first; columns `COLUMNS`."""
    if not runs:
        return pd.DataFrame(columns=COLUMNS)
    table = breakdown.speedups([(r.head, r.tables["rounds"], r.tables["spans"]) for r in runs])
    table = table.rename(columns={"speedup_low": "low", "speedup_high": "high"}).assign(
        mean_emitted=[run.tables["rounds"].query("not warmup")["n_emitted"].mean() for run in runs],
        current=[run.config == current for run in runs],
        draft=[repr(run.config.draft) for run in runs],
        run=[run.folder.name for run in runs],
    )
    table = table.dropna(subset=["speedup"]).drop_duplicates("config_id")
    return table[COLUMNS].reset_index(drop=True)


def _changed_ns(root: Path) -> int:
    try:
        return root.stat().st_mtime_ns
    except OSError:
        return 0


def _read(folder: Path) -> Measured | None:
    try:
        run = Measured(folder, store.read_head(folder))
        return run if run.config else None
    except ValueError:
        return None
