"""The figure of methods on several devices; same rules as `figures`: tables in."""

import html

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.figures import INK, METHOD_COLOURS
from hspec_lab.terms import ALL_METHODS

_FAINT = 0.35


def methods_by_device(
    table: pd.DataFrame, *, origin: str = "acceptance replayed, stages roofline", note: str = ""
) -> go.Figure:
    """Draw the best speed-up of each method on each device, plain decoding as the line.

    Args:
        table: columns `device`, `method`, `setting`, `speedup`; optional `low` and `high`, the ends
            of its interval, and `fits`, false where it does not fit the device's memory: faint.
    """
    table = table[table["method"] != "ar"]
    fits = table["fits"].ne(False) if "fits" in table else table["speedup"].notna()
    table = table.assign(fits=fits)
    whole = table.groupby("device")["fits"].transform("all")
    suffix = whole.map({True: "", False: " (does not fit)"})
    table = table.assign(
        place=table["device"].map(html.escape) + suffix, setting=table["setting"].map(html.escape)
    )
    places = list(dict.fromkeys(table["place"]))
    figure = go.Figure()
    for method in figures.in_order(table["method"], ALL_METHODS):
        rows = table[table["method"] == method]
        figure.add_bar(
            name=method,
            y=list(rows["place"]),
            x=list(rows["speedup"]),
            orientation="h",
            error_x=_interval(rows),
            marker={
                "color": METHOD_COLOURS.get(method, INK),
                "opacity": [1.0 if there else _FAINT for there in rows["fits"]],
                "line": {"width": 0},
            },
            text=[
                f"{value:.2f}×" if there else ""
                for value, there in zip(rows["speedup"], rows["fits"], strict=True)
            ],
            textposition="inside",
            insidetextanchor="start",
            textfont={"size": 11},
            customdata=list(rows["setting"]),
            hovertemplate=f"%{{x:.2f}}×, %{{customdata}}<extra>{method}, %{{y}}</extra>",
        )
    figure.add_vline(x=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    what = "Best speed-up over ar of each method"
    figures.lay_out(figure, what, origin, note, 76 * len(places) + 90)
    figure.update_xaxes(title_text="speed-up over ar", rangemode="tozero", ticksuffix="×")
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=places,
        autorange="reversed",
        showgrid=False,
        ticksuffix=" ",
    )
    figure.update_layout(legend_traceorder="normal", bargap=0.28)
    return figure


def _interval(rows: pd.DataFrame) -> dict:
    if not {"low", "high"} <= set(rows):
        return {}
    return {
        "array": list(rows["high"] - rows["speedup"]),
        "arrayminus": list(rows["speedup"] - rows["low"]),
        "color": INK,
        "thickness": 1.2,
    }
