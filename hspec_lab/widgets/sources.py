"""A recording and the stages of a device, multiplied: every size of one drafter at once.

A source walks its trace once over the whole grid of sizes (0.3 s for 6,000 settings); from then on
each answer is a look into arrays, fast enough for a slider that is being dragged.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from hspec_lab.acceptance import Totals
from hspec_lab.acceptance_folder import Trace
from hspec_lab.acceptance_grid import chain_grid, grid, point
from hspec_lab.config import Chain, Drafting, Eagle2, Refine
from hspec_lab.predict import predict_grid, predict_totals
from hspec_lab.prediction import Prediction
from hspec_lab.space import of_prompts
from hspec_lab.stages import StageCosts
from hspec_lab.widgets.choice import Choice

# a panel shows figures that differ from what was asked for, and says so on each
ALLOWED = ("scheme", "model", "tokenizer", "top_k")

_MOST_TABLES = 4


@dataclass(frozen=True, eq=False)
class Source:
    """A trace, the stages it is priced with, and every setting between the two.

    Attributes:
        draft: the kind of drafter, its models named as asked for; None: plain decoding.
        notes: where trace or stages stand for others.
        walks: totals by prompt; sources of one trace and kind of drafter share them, as stages
            and devices do not change what is accepted.
    """

    trace: Trace
    costs: StageCosts
    draft: Drafting | None
    notes: tuple[str, ...] = ()
    walks: dict[int, Totals] = field(default_factory=dict, repr=False)
    _tables: dict = field(default_factory=dict, repr=False)

    @cached_property
    def axes(self) -> dict[str, list[int]]:
        """The sizes that were recorded, by the names of `Choice`."""
        trace, found = self.trace, {}
        if isinstance(self.draft, Eagle2 | Refine):
            found["tree_size"] = list(range(1, trace.eagle.tree_size + 1))
            found["depth"] = list(range(1, trace.depth + 1))
        if isinstance(self.draft, Refine):
            found["length"] = list(range(1, trace.draft.at_least + 1))
        if isinstance(self.draft, Chain):
            recorded = trace.draft
            longest = recorded.draft_len if isinstance(recorded, Chain) else recorded.at_least
            found["length"] = list(range(1, longest + 1))
        return found

    def totals(self, prompt: int | None) -> list[Totals]:
        """How often stages run, for each prompt over all axes; walked once."""
        return [self._of_prompt(number) for number in self._numbers(prompt)]

    def is_walked(self, prompt: int | None) -> bool:
        """Whether answers about this text are a look into arrays."""
        return all(number in self.walks for number in self._numbers(prompt))

    def _numbers(self, prompt: int | None) -> list[int]:
        """Prompts whose texts hold a round."""
        counted = self.trace.head["n_positions"]
        if prompt is not None and not 0 <= prompt < len(counted):
            raise ValueError(
                f"{self.trace.name} holds the texts 0..{len(counted) - 1}, got {prompt}: choose "
                "another text, or all"
            )
        numbers = range(len(counted)) if prompt is None else [prompt]
        found = [number for number in numbers if counted[number] > 1]
        if not found:
            raise ValueError(f"{self.trace.name} has no round on this text: choose another text")
        return found

    def _of_prompt(self, number: int) -> Totals:
        if number not in self.walks:
            one, axes = of_prompts(self.trace, number, number + 1), self.axes
            if self.draft is None:
                found = point(one, None)
            elif isinstance(self.draft, Chain):
                found = chain_grid(one, draft_lens=axes["length"])
            else:
                sizes = {"tree_sizes": axes["tree_size"], "depths": axes["depth"]}
                found = grid(one, **sizes, at_least=axes.get("length", ()))
            self.walks[number] = _packed(found)
        return self.walks[number]

    def table(self, prompt: int | None) -> pd.DataFrame:
        """`predict_grid` over all axes, columns `tree_size`, `depth`, `at_least` as asked for.

        The same table each time it is asked for: not to be changed.
        """
        if prompt not in self._tables:
            # a table is 1 MB, and there may be thirty texts
            while len(self._tables) >= _MOST_TABLES:
                self._tables.pop(next(iter(self._tables)))
            self._tables[prompt] = self._priced(prompt)
        return self._tables[prompt]

    def _priced(self, prompt: int | None) -> pd.DataFrame:
        totals = _summed(self.totals(prompt))
        names = {"tree_size": "tree_size", "depth": "depth", "length": "at_least"}
        axes = {names[name]: values for name, values in self.axes.items()}
        table = predict_grid(self.trace, self.costs, totals, allow=ALLOWED, axes=axes)
        if self.notes:
            table.attrs["note"] = "; ".join([table.attrs["note"], *self.notes])
        return table

    @cached_property
    def plain(self) -> "Source":
        """Plain decoding of the same target, in the same stages."""
        return replace(self, draft=None, walks={}, _tables={})

    def place(self, choice: Choice) -> tuple[tuple[int, ...], list[str]]:
        """Where a choice lies in the grid, and a note for every size beyond what was recorded."""
        place, notes = [], []
        for name, values in self.axes.items():
            asked = getattr(choice, name)
            if asked > values[-1]:
                words = {"tree_size": "trees", "depth": "depths", "length": "lengths"}[name]
                notes.append(f"{words} are recorded up to {values[-1]}, which stands for {asked}")
            place.append(min(asked, values[-1]) - values[0])
        return tuple(place), notes

    def prediction(self, choice: Choice) -> Prediction:
        """The setting of a choice, with all phases and intervals."""
        place, notes = self.place(choice)
        totals = self.at(choice)
        draft = self.sized(choice, place)
        found = predict_totals(self.trace, draft, self.costs, totals, allow=ALLOWED)
        return replace(found, warnings=(*self.notes, *notes, *found.warnings))

    def at(self, choice: Choice) -> Totals:
        """How often stages run in the setting of a choice, one entry per text."""
        place, _ = self.place(choice)
        return _stacked([_at(one, place) for one in self.totals(choice.prompt)])

    def rows(self, choice: Choice) -> float:
        """Rows that a pass of the target verifies in this setting, on average."""
        by_rows = self.at(choice).target_rows.sum(axis=0)
        return float((by_rows * np.arange(len(by_rows))).sum() / by_rows.sum())

    def sized(self, choice: Choice, place: tuple[int, ...]) -> Drafting | None:
        """The drafter at a place of the grid."""
        sizes = {name: self.axes[name][i] for name, i in zip(self.axes, place, strict=True)}
        draft = self.draft
        if isinstance(draft, Chain):
            return replace(draft, draft_len=sizes["length"])
        tree = {name: sizes[name] for name in ("tree_size", "depth") if name in sizes}
        if isinstance(draft, Refine):
            return replace(draft, draft=replace(draft.draft, **tree), at_least=sizes["length"])
        return replace(draft, **tree) if draft else None


def _at(totals: Totals, place: tuple[int, ...]) -> Totals:
    shape = np.shape(totals.n_rounds)
    return Totals(
        **{
            name: np.broadcast_to(value, shape + np.shape(value)[len(shape) :])[place]
            if np.ndim(value) >= len(shape)
            else value
            for name, value in vars(totals).items()
        }
    )


def _packed(totals: Totals) -> Totals:
    """The same counts in the smallest integers that hold them: a panel keeps all of them."""
    packed = {
        name: np.asarray(value).astype(np.min_scalar_type(np.max(value, initial=0)))
        for name, value in vars(totals).items()
    }
    return Totals(**packed)


def _padded(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Counts by rows, all as wide as the widest."""
    width = max(one.shape[-1] for one in rows)
    return [np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, width - one.shape[-1])]) for one in rows]


# the same for every prompt of a setting: shapes of passes, not counts of them
_SIZES = ("intermediate_rows", "depth", "tree_size")


def _summed(parts: list[Totals]) -> Totals:
    """Totals of several texts together."""
    found = {}
    for name in Totals.__dataclass_fields__:
        values = [getattr(one, name) for one in parts]
        if name == "target_rows":
            values = _padded(values)
        # packed counts would wrap around
        summed = np.asarray(values[0], dtype=np.int64)
        found[name] = summed if name in _SIZES else np.sum(values, axis=0, dtype=np.int64)
    return Totals(**found)


def _stacked(parts: list[Totals]) -> Totals:
    """Totals of one setting, one entry per text."""
    found = {}
    for name in Totals.__dataclass_fields__:
        values = [np.asarray(getattr(one, name)) for one in parts]
        if name == "target_rows":
            values = _padded(values)
        found[name] = np.stack(values).astype(np.int64)
    return Totals(**found)
