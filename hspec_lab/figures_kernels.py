"""Figures of the project's kernels; same rules as `figures`: tables in, nothing compiled or run."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hspec_lab import figures
from hspec_lab.figures import INK

MOST_REGISTERS = 255
_TARGETS = {
    "sm_80": ("#0072B2", "circle", "A100, sm_80"),
    "sm_90": ("#E69F00", "square", "H100, sm_90"),
    "sm_100": ("#009E73", "diamond", "B200, sm_100"),
}
_BOUNDS = {
    "memory": ("#0072B2", "solid", "reading weights"),
    "compute": ("#D55E00", "dash", "multiplying"),
    "unpacking": ("#CC79A7", "dot", "unpacking weights"),
}


def registers_by_operation(
    table: pd.DataFrame, *, origin: str = "compiled", note: str = ""
) -> go.Figure:
    """Draw registers a thread, a point a compiled configuration; those that spill are crossed out.

    Args:
        table: columns `operation`, `configuration`, `target`, `registers`, `spilled`, `shared`, see
            `kernel_facts.compiled`.
    """
    figure = go.Figure()
    order = table.groupby("operation")["registers"].max().sort_values().index
    for target in figures.in_order(table["target"], tuple(_TARGETS)):
        colour, symbol, name = _TARGETS.get(target, (INK, "x", target))
        rows = table[table["target"] == target]
        figure.add_scatter(
            name=name,
            x=list(rows["registers"]),
            y=list(rows["operation"]),
            mode="markers",
            marker={
                "symbol": [f"{symbol}-x" if spilled else symbol for spilled in rows["spilled"]],
                "color": colour,
                "size": 8,
                "opacity": 0.75,
            },
            customdata=rows[["configuration", "shared", "spilled"]].to_numpy().tolist(),
            hovertemplate=(
                "%{customdata[0]}: %{x} registers, %{customdata[1]} bytes shared, "
                "%{customdata[2]} spilled"
                f"<extra>%{{y}}, {name}</extra>"
            ),
        )
    figure.add_vline(x=MOST_REGISTERS, line={"color": INK, "width": 1.5, "dash": "dash"})
    what = "Registers a thread of every compiled configuration"
    figures.lay_out(figure, what, origin, note, 22 * len(order) + 100)
    figure.update_xaxes(title_text="registers a thread; dashed: the most there are", dtick=32)
    figure.update_xaxes(range=[0, MOST_REGISTERS + 10])
    figure.update_yaxes(categoryorder="array", categoryarray=list(order), ticksuffix=" ")
    return figure


def product_ceilings(table: pd.DataFrame, *, origin: str = "roofline", note: str = "") -> go.Figure:
    """Draw what reading, multiplying and unpacking alone would take, a panel a format.

    The longest of the three at each number of rows is the product's time.

    Args:
        table: columns `format`, `n`, `bound`, `us`, see `kernel_facts.ceilings`.
    """
    formats, named = list(dict.fromkeys(table["format"])), set()
    figure = make_subplots(
        cols=max(len(formats), 1),
        subplot_titles=formats,
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    for column, format in enumerate(formats, 1):
        rows = table[(table["format"] == format) & (table["us"] > 0)]
        longest = rows.groupby("n")["us"].max()
        figure.add_scatter(
            name="the longest: the product's time",
            x=list(longest.index),
            y=list(longest),
            mode="lines",
            line={"color": "rgba(128,128,128,0.35)", "width": 10, "shape": "hv"},
            hoverinfo="skip",
            legendgroup="longest",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        for bound, (colour, dash, words) in _BOUNDS.items():
            part = rows[rows["bound"] == bound]
            if part.empty:
                continue
            figure.add_scatter(
                name=words,
                x=list(part["n"]),
                y=list(part["us"]),
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2.5, "shape": "hv"},
                hovertemplate=f"{words}, %{{x}} rows: %{{y:.3~g}} µs<extra>{format}</extra>",
                legendgroup=bound,
                showlegend=bound not in named,
                row=1,
                col=column,
            )
            named.add(bound)
    figures.lay_out(figure, "What holds one matrix product back", origin, note, 400)
    top = figure.layout.margin.t + 22  # room for the panels' names
    figure.update_layout(margin_t=top, height=figure.layout.height + 22)
    figure.update_xaxes(title_text="rows", type="log", tickvals=[1, 2, 4, 8, 16, 32, 64, 128])
    figure.update_yaxes(type="log", dtick=1)
    figure.update_yaxes(title_text="µs", col=1)
    return figure
