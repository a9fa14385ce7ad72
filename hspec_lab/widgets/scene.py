"""One moment of a panel as a value: what is chosen, and all that can be said of it."""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from hspec_lab.config import Config, head_draft
from hspec_lab.predict import join_grids
from hspec_lab.prediction import Prediction
from hspec_lab.terms import ROUND_PHASES
from hspec_lab.widgets.answers import Answers
from hspec_lab.widgets.choice import Choice
from hspec_lab.widgets.known import Known, Measured, baseline, label

# parts of a note that the page says once, below all figures
_SAID_BELOW = ("acceptance replayed from ", "stages ", "roofline: ")


@dataclass(frozen=True)
class Bar:
    """Time per emitted token of one setting.

    Attributes:
        us: by phase, us per emitted token.
        low, high: 95 % interval of the sum; NaN where unknown.
        note: conditions, as a figure says them.
    """

    label: str
    origin: str
    us: dict[str, float]
    low: float
    high: float
    note: str

    @property
    def total_us(self) -> float:
        return sum(self.us.values())


@dataclass(frozen=True, eq=False)
class Scene:
    """A choice with its answers; what is asked for is worked out once.

    Attributes:
        answers: None while recordings are being read: what is measured can still be shown.
        formats: target formats whose answers are there, the choice's among them.
        against: predictions beside stored runs, see `against_runs`; None: not worked out yet.
        pins: bars kept for comparison.
    """

    choice: Choice
    base: Config
    known: Known
    answers: Answers | None = None
    formats: tuple[str, ...] = ()
    against: pd.DataFrame | None = None
    pins: tuple[Bar, ...] = ()
    problems: list[str] = field(default_factory=list)

    @cached_property
    def config(self) -> Config:
        return self.choice.config(self.base)

    @cached_property
    def prediction(self) -> Prediction:
        return self.answers.prediction(self.choice)

    @property
    def is_here(self) -> bool:
        """Whether runs of this machine belong beside the predictions."""
        return self.answers is None or self.choice.device == self.answers.here

    @cached_property
    def bars(self) -> list[Bar]:
        """Plain decoding, then this setting, each predicted and measured; then what is pinned."""
        found = []
        plain = baseline(self.config)
        if plain != self.config:
            if self.answers is not None:
                found.append(_predicted(label(plain), self.answers.plain(self.choice)))
            found += self._measured(plain)
        return [*found, *self.own_bars, *self.pins]

    @cached_property
    def own_bars(self) -> list[Bar]:
        """This setting, predicted and measured."""
        found = []
        if self.answers is not None:
            found.append(_predicted(label(self.config), self.prediction))
        return [*found, *self._measured(self.config)]

    @cached_property
    def run(self) -> Measured | None:
        """The newest run of this configuration."""
        return self.known.find(self.config)

    def pinned(self) -> list[Bar]:
        """The bars of this setting under a name that says all of it."""
        draft = self.config.draft
        tree, parts = head_draft(draft), [label(self.config)]
        if tree is not None:
            parts.append(f"tree {tree.tree_size}, depth {tree.depth}, top-k {tree.top_k}")
        if self.choice.method in ("chain", "hierspec"):
            parts.append(f"length {self.choice.length}")
        if self.answers is not None and not self.is_here:
            parts.append(self.choice.device)
        return [
            replace(bar, label=f"pin: {', '.join(parts)} · {bar.origin}") for bar in self.own_bars
        ]

    @property
    def tree_choice(self) -> Choice:
        """The choice itself, or where its method has no tree, hierspec's with the same sliders."""
        has_tree = self.choice.method in ("eagle2", "hierspec")
        return self.choice if has_tree else replace(self.choice, method="hierspec")

    @property
    def curve_choice(self) -> Choice:
        """The choice whose sizes the speed-up runs over; plain decoding has none."""
        return self.tree_choice if self.choice.method == "ar" else self.choice

    @cached_property
    def grids(self) -> dict[str, pd.DataFrame]:
        """Every recorded size, by format; `attrs` as of figures."""
        choices = {name: replace(self.curve_choice, target=name) for name in self.formats}
        return {name: self.answers.table(one) for name, one in choices.items()}

    def speedups(self) -> pd.DataFrame:
        """All formats in one table with a column `format`."""
        return join_grids(self.grids)

    @cached_property
    def emitted(self) -> pd.DataFrame:
        """Tokens a round emits over tree size and depth, at the minimum length of the choice."""
        table = self.answers.table(self.tree_choice)
        if "at_least" not in table:
            return table
        length = min(self.choice.length, int(table["at_least"].max()))
        found = table[table["at_least"] == length]
        found.attrs = dict(table.attrs)
        return found

    @cached_property
    def rows(self) -> int:
        """Rows that a pass of the target verifies, on average."""
        return max(1, round(self.answers.source(self.choice).rows(self.choice)))

    def sources(self) -> list[str]:
        """Where numbers come from, in full, each once."""
        notes = [bar.note for bar in self.bars if bar.origin != "measured"]
        if self.against is not None:
            problems = [text for text in self.against["problem"].unique() if text]
            notes += [f"a stored run is not predicted: {text}" for text in problems]
        return list(dict.fromkeys(notes))

    def _measured(self, config: Config) -> list[Bar]:
        run = self.known.find(config) if self.is_here else None
        if run is None:
            return []
        try:
            us = run.phases.set_index("phase")["us_per_emitted"].to_dict()
            interval = run.us_interval
        except ValueError as error:
            self.problems.append(f"a run is left out, press Measure for another: {error}")
            return []
        us = {phase: max(us.get(phase, 0.0), 0.0) for phase in ROUND_PHASES}
        return [
            Bar(f"{label(config)} · measured", "measured", us, *interval, f"measured on {run.note}")
        ]


def _predicted(name: str, found: Prediction) -> Bar:
    us = dict(zip(found.phases["phase"], found.phases["us_per_emitted"], strict=True))
    us = {phase: float(us.get(phase, 0.0)) for phase in ROUND_PHASES}
    ends = found.us_per_token_low, found.us_per_token_high
    return Bar(f"{name} · predicted", "predicted", us, *ends, found.caption()["note"])


def short(note: str) -> list[str]:
    """What a figure must say of a note: what stands for what; where it all lies is said below."""
    parts = re.sub(r" \([^()]*(\([^()]*\))?[^()]*\)", "", note).split("; ")
    parts = [part.removeprefix("but: ") for part in parts]
    return [part for part in dict.fromkeys(parts) if part and not part.startswith(_SAID_BELOW)]


def bars_table(bars: list[Bar]) -> pd.DataFrame:
    """One row per bar and phase: label, phase, us_per_emitted, origin; low, high of the bar."""
    rows = [
        (bar.label, phase, us, bar.origin, bar.low, bar.high)
        for bar in bars
        for phase, us in bar.us.items()
    ]
    columns = ["label", "phase", "us_per_emitted", "origin", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def table_of(scene: Scene, view: str) -> pd.DataFrame:
    """The numbers behind a view."""
    tables = {
        "breakdown": lambda: bars_table(scene.bars),
        "speedup": scene.speedups,
        "cost": lambda: scene.answers.passes(scene.choice),
        "acceptance": lambda: scene.emitted,
        "scatter": lambda: scene.against,
    }
    if view not in tables:
        raise ValueError(f"a view is one of {', '.join(tables)}; got {view!r}")
    return tables[view]()


def half_widths(middle: float, low: float, high: float) -> tuple[float, float]:
    """How far an interval reaches up and down; nothing where it is unknown."""
    up, down = high - middle, middle - low
    return tuple(float(part) if np.isfinite(part) else 0.0 for part in (up, down))
