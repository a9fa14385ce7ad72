"""A number to reach, and tables as text; needs no torch."""

from typing import NamedTuple


class Line(NamedTuple):
    """One number to reach; `met` is None where it was not measured."""

    wanted: str
    got: str
    met: bool | None
    where: str


def not_measured(wanted: str, where: str, row=None) -> Line:
    """The line of a number that lacks, with the note of the row that should hold it."""
    why = f": {row['note']}" if row is not None and row["note"] else ""
    return Line(wanted, f"not measured{why}", None, where)


def as_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    ruled = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)
