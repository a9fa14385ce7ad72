"""Figures of predictions: tables in, nothing computed; same rules as `figures`.

`origin` and `note` are those of `Prediction.caption()` or of a table's `attrs`: they say what was
measured, replayed, calibrated or computed by a roofline, and every warning.

speedup_over_size(table, **table.attrs)
"""

import html
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.config import FORMATS
from hspec_lab.figures import INK, METHOD_COLOURS
from hspec_lab.figures_bits import format_colour
from hspec_lab.prediction import Prediction
from hspec_lab.terms import ALL_METHODS

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x")
_REPLAYED = "acceptance replayed"
_BAND = "rgba(128,128,128,0.16)"
_EMITTED_SCALE = "Viridis"


def predicted_vs_measured(
    table: pd.DataFrame, *, origin: str = _REPLAYED, note: str = ""
) -> go.Figure:
    """Draw predicted over measured time per token, in plain steps, one point a run.

    The band around the diagonal is +-10 %.  Rows without a prediction or a yardstick are counted
    in the note.

    Args:
        table: columns `method`, `format`, `ar_steps`, `ar_steps_measured`, `error`; optional
            `ar_steps_low`, `ar_steps_high` and the same of `ar_steps_measured`.
    """
    shown = table.dropna(subset=["ar_steps", "ar_steps_measured"])
    figure = go.Figure()
    formats = figures.in_order(shown["format"], FORMATS)
    for method in figures.in_order(shown["method"], ALL_METHODS):
        for format in formats:
            rows = shown[(shown["method"] == method) & (shown["format"] == format)]
            if len(rows):
                symbol = _MARKERS[formats.index(format) % len(_MARKERS)]
                figure.add_trace(_points(f"{method} {format}", rows, method, symbol))
    what = "Predicted against measured time"
    if len(shown):
        note = f"median error {shown['error'].abs().median():.0%}; {note}".removesuffix("; ")
        columns = [name for name in shown if name.startswith("ar_steps")]
        _add_diagonal(figure, float(shown[columns].max().max()) * 1.08)
    if n_missing := len(table) - len(shown):
        note = f"{note}; {n_missing} of {len(table)} runs cannot be compared".removeprefix("; ")
    _lay_out(figure, what, origin, note, 420)
    figure.update_xaxes(title_text="measured, plain steps per token", rangemode="tozero")
    figure.update_yaxes(title_text="predicted, plain steps per token", rangemode="tozero")
    return figure


def _points(name: str, rows: pd.DataFrame, method: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=list(rows["ar_steps_measured"]),
        y=list(rows["ar_steps"]),
        error_x=_interval(rows, "ar_steps_measured"),
        error_y=_interval(rows, "ar_steps"),
        mode="markers",
        marker={"symbol": symbol, "color": METHOD_COLOURS.get(method, INK), "size": 9},
        customdata=list(rows["error"]),
        hovertemplate=(
            "predicted %{y:.3f}, measured %{x:.3f} steps (%{customdata:+.0%})"
            f"<extra>{html.escape(name)}</extra>"
        ),
    )


def _add_diagonal(figure: go.Figure, most: float) -> None:
    path = f"M0,0 L{most},{1.1 * most} L{most},{0.9 * most} Z"
    figure.add_shape(type="path", path=path, fillcolor=_BAND, line={"width": 0}, layer="below")
    line = {"color": INK, "width": 1.5, "dash": "dash"}
    figure.add_shape(type="line", x0=0, y0=0, x1=most, y1=most, line=line, layer="below")
    figure.update_xaxes(range=[0, most])
    figure.update_yaxes(range=[0, most])


def speedup_over_size(
    table: pd.DataFrame,
    *,
    current: Mapping | None = None,
    origin: str = _REPLAYED,
    note: str = "",
) -> go.Figure:
    """Draw speed-up over tree size, at each size with its fastest depth and minimum length.

    Args:
        table: columns `format`, `tree_size`, `speedup`; optional `depth`, `at_least`, shown where a
            line is at its best.
        current: the setting to mark: `tree_size` and `speedup`.
    """
    figure = go.Figure()
    for number, format in enumerate(figures.in_order(table["format"], FORMATS)):
        rows = table[table["format"] == format].dropna(subset="speedup")
        if len(rows):
            rows = rows.loc[rows.groupby("tree_size")["speedup"].idxmax()]
            _add_line(figure, format, rows.sort_values("tree_size"), number)
    if current is not None:
        _add_current(figure, current["tree_size"], current["speedup"], f"{current['speedup']:.2f}×")
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    _lay_out(figure, "Predicted speed-up by tree size", origin, note, 420)
    figure.update_xaxes(title_text="tree size, root included", rangemode="tozero", showgrid=False)
    figure.update_yaxes(title_text="speed-up over ar", rangemode="tozero", ticksuffix="×")
    return figure


def _add_line(figure: go.Figure, format: str, rows: pd.DataFrame, number: int) -> None:
    best, colour = rows.loc[rows["speedup"].idxmax()], format_colour(format)
    settings = [_setting(row) for row in rows.to_dict("records")]
    figure.add_scatter(
        name=f"{format}: best {best['speedup']:.2f}× at {_setting(best)}",
        x=list(rows["tree_size"]),
        y=list(rows["speedup"]),
        mode="lines",
        line={"color": colour, "dash": _DASHES[number % len(_DASHES)], "width": 2.5},
        customdata=settings,
        hovertemplate=f"%{{customdata}}: %{{y:.2f}}×<extra>{html.escape(format)}</extra>",
        legendgroup=format,
    )
    figure.add_scatter(
        name=f"{format}, best",
        x=[best["tree_size"]],
        y=[best["speedup"]],
        mode="markers",
        marker={
            "symbol": _MARKERS[number % len(_MARKERS)],
            "color": colour,
            "size": 12,
            "line": {"color": INK, "width": 2},
        },
        hovertemplate=f"{_setting(best)}: %{{y:.2f}}×<extra>{html.escape(format)}, best</extra>",
        legendgroup=format,
        showlegend=False,
    )


def _setting(row: Mapping) -> str:
    words = {"depth": "depth", "at_least": "at least"}
    parts = [f"{words[name]} {int(row[name])}" for name in words if name in row and row[name]]
    return ", ".join([f"tree {int(row['tree_size'])}", *parts])


def _add_current(figure: go.Figure, x, y, words: str, colour: str = INK) -> None:
    figure.add_scatter(
        name="current",
        x=[x],
        y=[y],
        mode="markers",
        marker={"symbol": "circle-open", "color": colour, "size": 18, "line": {"width": 3}},
        hovertemplate=f"current: {words}<extra></extra>",
    )


def acceptance_map(
    table: pd.DataFrame,
    *,
    current: Mapping | None = None,
    origin: str = _REPLAYED,
    note: str = "",
) -> go.Figure:
    """Draw tokens emitted per round over tree size and depth, of one trace.

    Args:
        table: columns `tree_size`, `depth`, `mean_emitted`; of several rows at one place the
            highest counts.
        current: the setting to mark: `tree_size` and `depth`.
    """
    rows = table.dropna(subset="mean_emitted")
    cells = rows.pivot_table(
        index="depth", columns="tree_size", values="mean_emitted", aggfunc="max"
    )
    values = cells.astype(object).where(cells.notna(), None)  # a front end takes no NaN
    figure = go.Figure()
    figure.add_heatmap(
        x=list(cells.columns),
        y=list(cells.index),
        z=values.to_numpy().tolist(),
        colorscale=_EMITTED_SCALE,
        colorbar={"title": {"text": "tokens", "side": "right"}, "thickness": 12},
        texttemplate="%{z:.1f}" if cells.size <= 120 else None,
        hovertemplate="tree %{x}, depth %{y}: %{z:.2f} tokens a round<extra></extra>",
        showscale=bool(cells.size),
    )
    if current is not None:
        # a grey ring would drown in the map's colours
        _add_current(figure, current["tree_size"], current["depth"], _setting(current), "#ffffff")
    _lay_out(figure, "Tokens emitted per round", origin, note, 300)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="tree size, root included", showgrid=False)
    figure.update_yaxes(title_text="depth", dtick=1, showgrid=False)
    return figure


def phase_bars(
    predictions: Sequence[tuple[str, Prediction]],
    *,
    origin: str | None = None,
    note: str | None = None,
) -> go.Figure:
    """Draw predicted time per emitted token by phase, one bar a prediction.

    Args:
        predictions: (label, prediction), top down.
        origin, note: None: those of the predictions, each said once.
    """
    columns = ["label", "phase", "us_per_emitted"]
    parts = [one.phases.assign(label=label) for label, one in predictions]
    table = pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)
    said = [one.caption() for _, one in predictions]
    origin = origin or _once(said, "origin", " / ") or _REPLAYED
    note = _once(said, "note", " / ") if note is None else note
    figure = figures.breakdown_bar(table, origin=origin, note=note)
    _say_nothing_predicted(figure)
    return figure


def _once(captions: list[dict], name: str, between: str) -> str:
    return between.join(dict.fromkeys(caption[name] for caption in captions))


def best_bars(table: pd.DataFrame, *, origin: str = _REPLAYED, note: str = "") -> go.Figure:
    """Draw the speed-up of candidates, the first on top, a bar each, plain decoding as the line.

    Args:
        table: columns `label`, `method`, `speedup`; optional `low` and `high`, the ends of its
            interval, and `fits`, false where it does not fit the device's memory.
    """
    rows = table.dropna(subset="speedup")
    fits = rows["fits"].fillna(True).astype(bool) if "fits" in rows else rows["speedup"].notna()
    labels = [
        html.escape(label if there else f"{label} (does not fit)")
        for label, there in zip(rows["label"].astype(str), fits, strict=True)
    ]
    figure = go.Figure()
    figure.add_bar(
        x=list(rows["speedup"]),
        y=labels,
        orientation="h",
        error_x=_interval(
            rows.rename(columns={"low": "speedup_low", "high": "speedup_high"}), "speedup"
        ),
        marker={
            "color": [METHOD_COLOURS.get(method, INK) for method in rows["method"]],
            "opacity": [1.0 if there else 0.35 for there in fits],
            "line": {"width": 0},
        },
        text=[f"{value:.2f}×" for value in rows["speedup"]],
        textposition="inside",
        insidetextanchor="start",
        hovertemplate="%{y}: %{x:.2f}×<extra></extra>",
    )
    figure.add_vline(x=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    _lay_out(figure, "Predicted speed-up of candidates", origin, note, 28 * len(rows) + 90)
    figure.update_xaxes(title_text="speed-up over ar", rangemode="tozero", ticksuffix="×")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _interval(rows: pd.DataFrame, value: str) -> dict:
    """Bars from `<value>_low` to `<value>_high`; none where a table has none."""
    low, high = f"{value}_low", f"{value}_high"
    if not {low, high} <= set(rows):
        return {}
    above, below = rows[high] - rows[value], rows[value] - rows[low]
    return {
        "array": above.astype(object).where(above.notna(), None).tolist(),
        "arrayminus": below.astype(object).where(below.notna(), None).tolist(),
        "color": INK,
        "thickness": 1,
        "width": 2,
    }


def _lay_out(figure: go.Figure, what: str, origin: str, note: str, height: int) -> None:
    figures.lay_out(figure, what, origin, note, height)
    _say_nothing_predicted(figure)


def _say_nothing_predicted(figure: go.Figure) -> None:
    for annotation in figure.layout.annotations:
        if annotation.text == "nothing measured yet":
            annotation.text = "nothing predicted yet"
