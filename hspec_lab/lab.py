"""Recorded runs, looked at without the models that made them: no torch, no GPU.

run = Run("hspec_runs/0123456789ab-20260102T030405")
run.tokens_per_s, run.breakdown(), run.figure(), run.export("perfetto")
open_store().compare()
"""

from collections.abc import Iterator
from functools import cached_property
from html import escape
from pathlib import Path

import pandas as pd

from hspec_lab import breakdown, store, trace_out
from hspec_lab.config import Config, config_id, from_dict, schemes
from hspec_lab.timeline import Timeline, of_run


class Run:
    """One run folder; its tables are read when first asked for."""

    def __init__(self, folder: Path | str):
        """Open a run; ValueError with one line if its `run.json` cannot be read."""
        self.folder = Path(folder)
        self.head: dict = store.read_head(self.folder)

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return store.read_run(self.folder)[1]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def store(self) -> "Store":
        """The store in which this run lies."""
        return Store(self.folder.parent)

    @property
    def config(self) -> Config:
        """What was asked for."""
        return from_dict(self.head["config"])

    @property
    def environment(self) -> dict:
        """Where it was measured: device, threads, versions, commit, date."""
        return self.head["environment"]

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per decoding round."""
        return self._tables["rounds"]

    @property
    def spans(self) -> pd.DataFrame:
        """One row per timed phase."""
        return self._tables["spans"]

    @property
    def tokens(self) -> pd.DataFrame:
        """One row per output token."""
        return self._tables["tokens"]

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return self.head["prompts"]

    @property
    def texts(self) -> list[str]:
        """The outputs, one per prompt."""
        return self.head["outputs"]

    @property
    def mismatches(self) -> int:
        """How many greedy outputs differ from plain greedy decoding, see `head["audits"]`."""
        return len(self.head["audits"])

    @cached_property
    def _summary(self) -> dict[str, float]:
        return breakdown.summary(self.rounds, self.spans, self.tokens)

    def summary(self) -> dict[str, float]:
        """Return the run in a dozen numbers, as `breakdown.summary` defines them."""
        return dict(self._summary)

    @property
    def tokens_per_s(self) -> float:
        """Tokens that rounds emitted over the wall time of those rounds; no prefill."""
        return self._summary["tokens_per_s"]

    @property
    def mean_emitted(self) -> float:
        """Tokens emitted per round."""
        return self._summary["mean_emitted"]

    @property
    def label(self) -> str:
        """What a figure calls this run."""
        return f"{self.head['method']} {self.head['format']}"

    @property
    def schemes(self) -> dict[str, str]:
        """The format of each level's weights: {"target": "w4a16-g128", "head": "fp32", ...}."""
        return schemes(self.config)

    def timeline(self) -> Timeline:
        """Return everything the run recorded, on one clock: what exports and analyses take."""
        return of_run(self.head, self._tables)

    def breakdown(self, by_level: bool = False) -> pd.DataFrame:
        """Return where the time of a round went, by phase, as `breakdown.phase_table` says."""
        table = breakdown.phase_table(self.rounds, self.spans, by_level)
        return table.assign(label=self.label)

    def figure(self):
        """Return the breakdown as a plotly figure: one stacked bar, us per emitted token."""
        from hspec_lab import figures

        return figures.breakdown_bar(self.breakdown(), **self._caption())

    def text_html(self, prompt: int = 0) -> str:
        """Return one output as HTML, each token in the colour of the model that produced it."""
        from hspec_lab import figures

        if not 0 <= prompt < len(self.texts):
            raise ValueError(f"prompt must be 0..{len(self.texts) - 1}, got {prompt}")
        tokens = self.tokens[self.tokens["prompt"] == prompt]
        return figures.coloured_text(tokens, **self._caption())

    def export(self, format: str = "perfetto", path: Path | str | None = None) -> Path:
        """Write the run for another tool and say where.

        Args:
            format: one of `trace_out.FORMATS`: `perfetto` for ui.perfetto.dev, `nsys-sqlite` as
                `nsys export` writes, `parquet`, `speedscope`.
            path: where; None: in the working directory, named after the run.
        """
        path = path or trace_out.default_name(self.name, format)
        return trace_out.write(self.timeline(), format, path)

    def _conditions(self) -> dict[str, str]:
        found = self.environment
        threads = f", {store.threads_text(found['threads'])}" if found.get("threads") else ""
        processor = f" ({found['cpu']})" if found.get("cpu") else ""
        conditions = {
            "method": self.head["method"],
            "format": self.head["format"],
            "kind": self.head["kind"],
            "device": f"{found.get('device', 'unknown')}{processor}{threads}",
            "date": found.get("date"),
            "commit": found.get("commit"),
            "run": self.name,
        }
        return {name: str(value) for name, value in conditions.items() if value}

    def _caption(self) -> dict[str, str]:
        facts = self._conditions()
        note = [facts[name] for name in ("device", "date", "run") if name in facts]
        return {"origin": self.head["kind"], "note": ", ".join(note)}

    def _results(self) -> dict[str, str]:
        numbers = self._summary
        low, high = numbers["tokens_per_s_low"], numbers["tokens_per_s_high"]
        interval = f" ({low:.1f} to {high:.1f})" if low == low else ""
        return {
            "tokens/s": f"{numbers['tokens_per_s']:.1f}{interval}",
            "emitted per round": f"{numbers['mean_emitted']:.2f}",
            "tokens in loops": f"{numbers['loop_share']:.0%}",
            "mismatches": str(self.mismatches),
        }

    def __repr__(self) -> str:
        facts = {**self._conditions(), **self._results()}
        return "Run(" + ", ".join(f"{name}: {value}" for name, value in facts.items()) + ")"

    def _repr_html_(self) -> str:
        facts = {**self._results(), **self._conditions()}
        rows = (
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table>{''.join(rows)}</table>"


class Store:
    """A folder of runs; iterating gives those that can be read, newest first."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def runs(self) -> pd.DataFrame:
        """Return one row per run folder, those that cannot be read with their `problem`."""
        return store.list_runs(self.root)

    def latest(self, config: Config, environment_key: dict | None = None) -> Run | None:
        """Return the newest run of a config, or None; `environment_key` as in `store.find`."""
        folder = store.find(self.root, config_id(config), environment_key)
        return Run(folder) if folder else None

    def compare(self) -> pd.DataFrame:
        """Return each run's speed over plain decoding under the same conditions."""
        runs = list(self)
        table = breakdown.speedups([(run.head, run.rounds, run.spans) for run in runs])
        table.insert(0, "run", [run.name for run in runs])
        return table

    def __iter__(self) -> Iterator[Run]:
        runs = self.runs()
        return (Run(self.root / name) for name in runs.loc[runs["problem"] == "", "run"])

    def __len__(self) -> int:
        return int((self.runs()["problem"] == "").sum())

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, {len(self)} runs)"

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self.root))}</p>{self.runs().to_html(index=False)}"


def open_store(root: Path | str | None = None) -> Store:
    """Open a folder of runs; None: $HSPEC_STORE, else ./hspec_runs."""
    return Store(root if root is not None else store.store_root())
