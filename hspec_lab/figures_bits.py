"""Figures of quantization and speculation; same rules as `figures`: tables in, nothing computed.

Lines of formats differ in colour, dash and marker, so that they keep apart in print and for
colour-blind eyes.  A format without a colour of its own gets one that follows from its name.
"""

import colorsys
import zlib

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hspec_lab import figures
from hspec_lab.config import FORMATS
from hspec_lab.figures import FORMAT_COLOURS, INK

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x")
_MAP_COLUMNS = 3
# few to many: light to dark, as numbers stand on it in black or white
_EMITTED_SCALE = "Viridis"


def format_colour(format: str) -> str:
    """The colour of a format; strangers get a hue of their name, the same each time."""
    if format in FORMAT_COLOURS:
        return FORMAT_COLOURS[format]
    hue = zlib.crc32(format.encode()) % 360 / 360
    channels = colorsys.hls_to_rgb(hue, 0.5, 0.45)
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)


def cost_curves(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw what a pass over n tokens costs, in units of the same format's one-token pass.

    Args:
        table: columns `format`, `n`, `ratio`.
    """
    figure = go.Figure()
    for format, style in _styles(table):
        rows = table[table["format"] == format].sort_values("n")
        figure.add_scatter(
            name=format,
            x=list(rows["n"]),
            y=list(rows["ratio"]),
            mode="lines",
            line=style["line"],
            hovertemplate=f"%{{x}} tokens: %{{y:.2f}} steps<extra>{format}</extra>",
        )
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    figures.lay_out(figure, "Time of a pass over n tokens, T(n) / T(1)", origin, note, 360)
    figure.update_xaxes(title_text="n, tokens of the pass", rangemode="tozero", showgrid=False)
    figure.update_yaxes(title_text="one-token passes", rangemode="tozero")
    return figure


def drafting_bars(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw what drafting costs a round, in plain steps of each format.

    Args:
        table: columns `format`, `depth`, `draft_ratio`, `low`, `high`.
    """
    figure = go.Figure()
    for format, _ in _styles(table):
        rows = table[table["format"] == format].sort_values("depth")
        figure.add_bar(
            name=format,
            x=[str(depth) for depth in rows["depth"]],
            y=list(rows["draft_ratio"]),
            error_y=_interval(rows, "draft_ratio"),
            marker={"color": format_colour(format), "line": {"width": 0}},
            hovertemplate=f"depth %{{x}}: %{{y:.2f}} steps<extra>{format}</extra>",
        )
    figures.lay_out(figure, "Drafting cost of a round, d T_d / T_t", origin, note, 320)
    depths = [str(depth) for depth in sorted(set(table["depth"]))]
    order = {"type": "category", "categoryorder": "array", "categoryarray": depths}
    figure.update_xaxes(title_text="depth d, passes of the draft head", showgrid=False, **order)
    figure.update_yaxes(title_text="plain steps of the format", rangemode="tozero")
    return figure


def emitted_map(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw tokens emitted per round over tree size and depth, one map a format.

    Args:
        table: columns `format`, `tree_size`, `depth`, `mean_emitted`.
    """
    formats = figures.in_order(table["format"], FORMATS)
    n_columns = min(_MAP_COLUMNS, max(len(formats), 1))
    n_rows = -(-max(len(formats), 1) // n_columns)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=formats,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.4 / n_rows,
    )
    for number, format in enumerate(formats):
        rows = table[table["format"] == format]
        cells = rows.pivot_table(index="depth", columns="tree_size", values="mean_emitted")
        place = {"row": number // n_columns + 1, "col": number % n_columns + 1}
        figure.add_trace(_emitted_cells(format, cells), **place)
    what = "Tokens emitted per round"
    figures.lay_out(figure, what, origin, note, 215 * n_rows + 70)
    # room for the maps' own titles, and no legend below
    figure.update_layout(margin={"t": figure.layout.margin.t + 20, "b": 24})
    figure.update_annotations(font={"size": 12.5, "color": INK})
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(title_text="tree size, root included", row=n_rows)
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_yaxes(title_text="depth", col=1)
    bounds = {"cmin": 1, "cmax": float(table["mean_emitted"].max()) if len(table) else 2}
    figure.update_layout(
        coloraxis={"colorscale": _EMITTED_SCALE, "showscale": False} | bounds, showlegend=False
    )
    return figure


def _emitted_cells(format: str, cells: pd.DataFrame) -> go.Heatmap:
    values = cells.astype(object).where(cells.notna(), None)  # a front end takes no NaN
    return go.Heatmap(
        name=format,
        x=[str(size) for size in cells.columns],
        y=[str(depth) for depth in cells.index],
        z=values.to_numpy().tolist(),
        coloraxis="coloraxis",
        texttemplate="%{z:.1f}",
        textfont={"size": 11},
        xgap=1,
        ygap=1,
        hovertemplate=(
            f"tree %{{x}}, depth %{{y}}: %{{z:.2f}} tokens a round<extra>{format}</extra>"
        ),
    )


def speedup_over_size(
    table: pd.DataFrame, *, origin: str = "measured", note: str = ""
) -> go.Figure:
    """Draw speed-up over tree size, at each size with its fastest depth.

    Optima are marked, their numbers stand in the legend: several may lie on one another.

    Args:
        table: columns `format`, `tree_size`, `depth`, `speedup`, `low`, `high`; all depths.
    """
    figure = go.Figure()
    for format, style in _styles(table):
        rows = _fastest(table[table["format"] == format], "tree_size").sort_values("tree_size")
        best = rows.loc[rows["speedup"].idxmax()]
        is_best = rows["tree_size"] == best["tree_size"]
        figure.add_scatter(
            name=(
                f"{format}: {best['speedup']:.2f}× at tree {best['tree_size']}, "
                f"depth {best['depth']}"
            ),
            x=[str(size) for size in rows["tree_size"]],
            y=list(rows["speedup"]),
            error_y=_interval(rows, "speedup"),
            mode="lines+markers",
            line=style["line"],
            marker={
                "symbol": style["symbol"],
                "color": style["line"]["color"],
                "size": [14 if here else 7 for here in is_best],
                "line": {"color": INK, "width": [2 if here else 0 for here in is_best]},
            },
            customdata=list(rows["depth"]),
            cliponaxis=False,
            hovertemplate=(
                f"tree %{{x}}, depth %{{customdata}}: %{{y:.2f}}×<extra>{format}</extra>"
            ),
        )
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    figures.lay_out(figure, "Speed-up of EAGLE-2 over ar of the same format", origin, note, 420)
    sizes = [str(size) for size in sorted(set(table["tree_size"]))]
    order = {"type": "category", "categoryorder": "array", "categoryarray": sizes}
    figure.update_xaxes(title_text="tree size, root included", showgrid=False, **order)
    figure.update_yaxes(title_text="speed-up", rangemode="tozero", ticksuffix="×")
    return figure


def predicted_against_measured(
    table: pd.DataFrame, *, origin: str = "predicted and measured", note: str = ""
) -> go.Figure:
    """Draw what the equation says beside what was measured, one point a cell.

    Args:
        table: columns `format`, `tree_size`, `depth`, `speedup`, `predicted`, `error`.
    """
    table = table.dropna(subset=["speedup", "predicted"])
    figure = go.Figure()
    for format, style in _styles(table):
        rows = table[table["format"] == format]
        figure.add_scatter(
            name=format,
            x=list(rows["speedup"]),
            y=list(rows["predicted"]),
            mode="markers",
            marker={"symbol": style["symbol"], "color": style["line"]["color"], "size": 8},
            customdata=rows[["tree_size", "depth", "error"]].to_numpy().tolist(),
            hovertemplate=(
                "tree %{customdata[0]}, depth %{customdata[1]}: predicted %{y:.2f}×, measured "
                f"%{{x:.2f}}× (%{{customdata[2]:+.0%}})<extra>{format}</extra>"
            ),
        )
    error = table["error"].abs().median()
    what = "Speed-up by the equation"
    if len(table):
        what += f": median error {error:.0%}"
        most = float(table[["speedup", "predicted"]].to_numpy().max()) * 1.05
        line = {"color": INK, "width": 1.5, "dash": "dash"}
        figure.add_shape(type="line", x0=0, y0=0, x1=most, y1=most, line=line)
    figures.lay_out(figure, what, origin, note, 420)
    figure.update_xaxes(title_text="measured speed-up", rangemode="tozero", ticksuffix="×")
    figure.update_yaxes(title_text="predicted speed-up", rangemode="tozero", ticksuffix="×")
    return figure


def _styles(table: pd.DataFrame) -> list[tuple[str, dict]]:
    """Formats in their order, each with its line and marker."""
    found = []
    for number, format in enumerate(figures.in_order(table["format"], FORMATS)):
        line = {"color": format_colour(format), "dash": _DASHES[number % 5], "width": 2.5}
        found.append((format, {"line": line, "symbol": _MARKERS[number % 5]}))
    return found


def _fastest(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    rows = rows.dropna(subset="speedup")
    return rows.loc[rows.groupby(key)["speedup"].idxmax()]


def _interval(rows: pd.DataFrame, value: str) -> dict:
    """Bars from `low` to `high`; none where a table has none."""
    if not {"low", "high"} <= set(rows):
        return {}
    above, below = rows["high"] - rows[value], rows[value] - rows["low"]
    return {
        "array": above.astype(object).where(above.notna(), None).tolist(),
        "arrayminus": below.astype(object).where(below.notna(), None).tolist(),
        "color": INK,
        "thickness": 1,
        "width": 2,
    }
