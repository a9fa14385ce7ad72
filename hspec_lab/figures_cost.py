"""Figures of what passes and stages cost; same rules as `figures`: tables in, nothing measured.

Every figure names the origin of its numbers in the title.  Lines of schemes differ in colour and
dash, as in `figures_bits`; a time that was not firm is a hollow point.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.config import FORMATS
from hspec_lab.cost import CURVE, knee, plateaus, relative
from hspec_lab.figures import INK, LEVEL_COLOURS
from hspec_lab.figures_bits import format_colour
from hspec_lab.stages import StageCosts

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_BAND, _STROKE = 0.22, 0.25  # opacities
KNEE_FACTOR = 1.5


def cost_curves(
    table: pd.DataFrame,
    *,
    origin: str = "measured",
    note: str = "",
    current: int | None = None,
    knees: bool = True,
    steps: bool = True,
) -> go.Figure:
    """Draw what a pass over n tokens costs, in one-token passes measured in the same turns.

    Args:
        table: a cost table, see `store.COSTS`; one line per curve in it.
        current: an n to mark.
        knees: mark where each curve leaves 1.5 one-token passes.
        steps: shade the stretches over which a curve is flat.
    """
    figure, table = go.Figure(), relative(table) if len(table) else table
    curves = _named_curves(table)
    for number, (name, rows) in enumerate(curves.items()):
        colour = format_colour(rows["scheme"].iloc[0])
        curve = rows.set_index("n")["ratio"]
        last_knee = knee(curve, KNEE_FACTOR) if knees else None
        if steps:
            _shade(figure, curve, colour, name)
        _add_curve(figure, name, rows, colour, _DASHES[number % 5], last_knee)
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    if current is not None:
        figure.add_vline(x=current, line={"color": INK, "width": 1.5, "dash": "dot"})
        label = {"text": f"n = {current}", "showarrow": False, "font": {"size": 12}}
        where = {"x": current, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top"}
        figure.add_annotation(**label, **where, xshift=4)
    what = "Time of a pass over n tokens, T(n) / T(1)"
    figures.lay_out(figure, what, origin, _with_key(note, table, knees, steps), 380)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text="n, tokens of the pass", rangemode="tozero", showgrid=False)
    figure.update_yaxes(title_text="one-token passes", rangemode="tozero")
    return figure


def stage_curves(costs: StageCosts, *, note: str = "") -> go.Figure:
    """Draw what the stages of a round cost over rows and depth, in plain steps of the target."""
    figure = go.Figure()
    curves = {
        f"{costs.target}, n rows": (costs.target_us, "target"),
        f"{costs.intermediate}, n rows": (costs.intermediate_us, "intermediate"),
        f"draft of depth n, top-k {costs.top_k}": (costs.draft_us, "head"),
    }
    for name, (times, level) in curves.items():
        known = np.flatnonzero(np.isfinite(times))
        if not len(known):
            continue
        figure.add_scatter(
            name=name,
            x=known.tolist(),
            y=(times[known] / costs.plain_us).tolist(),
            mode="lines+markers" if level == "head" else "lines",
            line={"color": LEVEL_COLOURS[level], "width": 2.5},
            hovertemplate=f"%{{x}}: %{{y:.2f}} plain steps<extra>{name}</extra>",
        )
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    said = [note, costs.device, f"{costs.context} tokens stored", costs.note, *costs.warnings]
    said.append(f"a plain step is {costs.plain_us:.0f} µs")
    figures.lay_out(figure, "What stages cost", costs.origin, ", ".join(filter(None, said)), 360)
    figure.update_xaxes(
        title_text="rows of a pass, depth of a draft", rangemode="tozero", showgrid=False
    )
    figure.update_yaxes(title_text="plain steps of the target", rangemode="tozero")
    return figure


def _named_curves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each curve under what tells it from the others; the scheme is always said."""
    found = {}
    if table.empty:
        return found
    differ = [name for name in CURVE if table[name].nunique() > 1 and name != "scheme"]
    known = {scheme: i for i, scheme in enumerate(figures.in_order(table["scheme"], FORMATS))}
    ordered = table.sort_values("scheme", key=lambda some: some.map(known), kind="stable")
    for key, rows in ordered.groupby(CURVE, sort=False):
        said = dict(zip(CURVE, map(str, key), strict=True))
        said["context"] = f"{said['context']} stored"
        name = ", ".join([said["scheme"], *(said[name] for name in differ)])
        found[name] = rows.sort_values("n")
    return found


def _add_curve(figure, name: str, rows: pd.DataFrame, colour: str, dash: str, last_knee) -> None:
    """The band first, so that the line lies on it; then points that are unstable or the knee."""
    n, ratio = list(rows["n"]), list(rows["ratio"])
    shared = {"legendgroup": name, "showlegend": False}
    if {"ratio_low", "ratio_high"} <= set(rows):
        figure.add_scatter(
            x=[*n, *n[::-1]],
            y=[*rows["ratio_high"], *rows["ratio_low"][::-1]],
            fill="toself",
            fillcolor=_faint(colour, _BAND),
            line={"width": 0},
            hoverinfo="skip",
            mode="lines",
            **shared,
        )
    told = name if last_knee is None else f"{name}: knee at {last_knee}"
    figure.add_scatter(
        name=told,
        x=n,
        y=ratio,
        mode="lines",
        line={"color": colour, "dash": dash, "width": 2.5},
        legendgroup=name,
        hovertemplate=f"%{{x}} tokens: %{{y:.2f}} passes<extra>{name}</extra>",
    )
    unstable = rows[rows["unstable"]] if "unstable" in rows else rows[:0]
    figure.add_scatter(
        x=list(unstable["n"]),
        y=list(unstable["ratio"]),
        mode="markers",
        marker={"symbol": "circle-open", "color": colour, "size": 7, "line": {"width": 1.5}},
        hovertemplate=f"%{{x}} tokens: %{{y:.2f}} passes, unstable<extra>{name}</extra>",
        **shared,
    )
    if last_knee is not None:
        at = rows[rows["n"] == last_knee].iloc[0]
        figure.add_scatter(
            x=[last_knee],
            y=[at["ratio"]],
            mode="markers",
            marker={"symbol": "diamond", "color": colour, "size": 12}
            | {"line": {"color": INK, "width": 1.5}},
            hovertemplate=f"knee: {last_knee} tokens at %{{y:.2f}} passes<extra>{name}</extra>",
            **shared,
        )


def _shade(figure: go.Figure, curve: pd.Series, colour: str, name: str) -> None:
    """A broad faint stroke under each flat stretch; across the whole height several would mix."""
    x, y = [], []
    for first, last in plateaus(curve):
        level = float(curve.loc[first:last].median())
        x += [first, last, None]
        y += [level, level, None]
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": _faint(colour, _STROKE), "width": 14},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        )


def _with_key(note: str, table: pd.DataFrame, knees: bool, steps: bool) -> str:
    """The note, and what the marks mean that are there."""
    said = [note]
    if knees:
        said.append(f"◆ last n within {KNEE_FACTOR:g} one-token passes")
    if steps:
        said.append("broad strokes: flat")
    if "unstable" in table and (n_unstable := int(table["unstable"].sum())):
        said.append(f"○ unstable ({n_unstable} of {len(table)} times)")
    if "cold" in table and len(table):
        said.append("cold cache" if table["cold"].all() else "warm cache")
    return ", ".join(filter(None, said))


def _faint(colour: str, share: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"
