"""A figure in two parts: what is drawn once, and the few values that move with a slider."""

import html
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go

# the same for every setting: nothing jumps, and plotly stops following its panel's width once a
# live figure is given another height
HEIGHTS = {"breakdown": 420, "speedup": 480, "cost": 480, "acceptance": 420, "scatter": 420}
_NARROW = 54  # characters of a line above a figure


@dataclass(frozen=True)
class Drawn:
    """A figure in two parts.

    Attributes:
        key: what `make` depends on.
        make: draws the whole figure.
        moves: by (trace number, or "layout") and path, the values that change in between.
    """

    key: tuple
    make: Callable[[], go.Figure]
    moves: dict[tuple, object] = field(default_factory=dict)

    def figure(self) -> go.Figure:
        figure = self.make()
        figure.layout.height = HEIGHTS[self.key[0]]
        if self.key[0] != "breakdown":
            _narrow(figure)
        put(figure, self.moves)
        return figure


def put(figure: go.Figure, moves: dict[tuple, object]) -> None:
    """Change values in a figure, a live one too."""
    for (where, path), value in moves.items():
        (figure.layout if where == "layout" else figure.data[where])[path] = value


def _narrow(figure: go.Figure) -> None:
    """Break the lines above a figure so that half a laptop's width shows them whole."""
    first, *rest = figure.layout.title.text.split("<br>")
    what, _, origin = first.partition("</b> ")
    # a line ends where the words do, so that joining them with blanks gives the note back
    small = " ".join([origin, *(re.sub("<[^>]*>", "", line) for line in rest)])
    lines = [html.escape(line) for line in textwrap.wrap(html.unescape(small), _NARROW)]
    spans = "".join(f"<br><span style='font-size:12px'>{line}</span>" for line in lines)
    figure.layout.title.text = f"{what}</b>{spans}"
    figure.layout.margin.t = 44 + 16 * len(lines)
    figure.layout.legend.font.size = 11


def by_length(table: pd.DataFrame) -> pd.DataFrame:
    """A chain's table as figures of trees read it: its length is its size."""
    return table.assign(tree_size=table["at_least"]).drop(columns=["at_least", "depth"])


def in_lengths(figure: go.Figure) -> go.Figure:
    """A chain has no tree: its size is its length, in every word of the figure."""
    for trace in figure.data:
        trace.name = trace.name.replace("at tree ", "at length ")
        trace.hovertemplate = trace.hovertemplate.replace("tree ", "length ")
        if trace.customdata is not None:
            trace.customdata = [text.replace("tree ", "length ") for text in trace.customdata]
    figure.layout.title.text = figure.layout.title.text.replace("tree size", "draft length")
    figure.layout.xaxis.title.text = "draft length, tokens"
    return figure
