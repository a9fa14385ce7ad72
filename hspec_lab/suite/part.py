"""What a part of the suite is: a list of items, and how one of them becomes rows of a table.

A row holds its item's entries as columns, so the table itself says which items are done.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Row = dict[str, object]
_BLANK = {"float64": float("nan"), "int64": 0, "str": "", "boolean": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured on, and how carefully.

    Attributes:
        device: "cuda", or "cpu" under Triton's interpreter.
        tiny: sizes and lists small enough for the interpreter.
        repeats: turns of everything that is timed.
        seed: of orders and of inputs whose values do not matter.
    """

    device: str = "cuda"
    tiny: bool = False
    repeats: int = 40
    seed: int = 0

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of rows: the interpreter computes in fp16 alone."""
        return torch.bfloat16 if self.on_cuda else torch.float16

    def settle(self) -> None:
        """Wait for the device; an error of an earlier launch is raised here."""
        if self.on_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table of the suite.

    Attributes:
        name: of the part and of its file.
        answers: what its numbers answer, in one line.
        columns: of the table, name -> float64, int64, str or boolean; the last one is `note`,
            which says in words why a row has no numbers.
        items: what is to be measured, the most wanted first; entries are columns.
        measure: one item's rows.
        release: frees what is kept between items.
    """

    name: str
    answers: str
    columns: dict[str, str]
    items: Callable[[Bench], list[Row]]
    measure: Callable[[Bench, Row], list[Row]]
    release: Callable[[], None] = lambda: None

    def filled(self, row: Row) -> Row:
        """A row with every column, those that were not measured blank."""
        return {name: row.get(name, _BLANK[kind]) for name, kind in self.columns.items()}


def attempt(make: Callable):
    """(what `make()` gives, ""), or (None, why not) where it raises.

    A measurement that cannot be had on some device is a finding, whatever the reason.
    """
    try:
        return make(), ""
    except Exception as error:
        return None, reason(error)


def reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit the device's memory"
    line = next(iter(str(error).splitlines()), "").strip()
    if isinstance(error, ValueError) and line:
        return line
    return f"{type(error).__name__}: {line}"[:200]
