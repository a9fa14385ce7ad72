"""Figures of the paper beside ours; same rules as `figures`: tables in, nothing computed.

What the paper published is pale, ours is full where it was predicted and hatched or hollow where
a parameter saw it.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hspec_lab import figures
from hspec_lab.figures import INK, METHOD_COLOURS

ORIGIN = "roofline, calibrated: fitted and predicted apart"
ALONE, BOTH, GAIN = "quantization only", "with EAGLE-2", "gain of EAGLE-2"
OTHERS = ("verification", "HierSpec", "replication")
_WIDTH = 0.38  # of a bar, where formats are 1 apart
_PALE = 0.45
_LOSS = "#CC3311"
_COLUMN_COLOURS = ("#4477AA", "#EE6677", "#228833")
_SYMBOLS = ("circle", "square", "diamond")
_BANDS = (0.1, 0.25)


def bars_beside(table: pd.DataFrame, *, origin: str = ORIGIN, note: str = "") -> go.Figure:
    """Draw figure 1 twice: bars of the paper to the left, ours to the right, one row a column.

    What EAGLE-2 adds stands on the bar without it; where it takes some away, that is red.

    Args:
        table: columns `column`, `scheme`, `kind`, `paper`, `ours`, `error`, `role`.
    """
    table = table[table["kind"].isin((ALONE, BOTH))]
    columns, told = list(dict.fromkeys(table["column"])), set()
    figure = make_subplots(
        rows=max(len(columns), 1), cols=1, subplot_titles=columns, vertical_spacing=0.09
    )
    for row, column in enumerate(columns, start=1):
        rows = table[table["column"] == column]
        schemes = list(dict.fromkeys(rows["scheme"]))
        for trace in [*_bars(rows, schemes), _error_texts(rows, schemes)]:
            trace.showlegend = trace.showlegend is not False and trace.name not in told
            told.add(trace.name)
            figure.add_trace(trace, row=row, col=1)
        ticks = {"tickvals": list(range(len(schemes))), "ticktext": schemes}
        figure.update_xaxes(**ticks, range=[-0.6, len(schemes) - 0.4], row=row)
        top = float(rows[["paper", "ours"]].to_numpy().max()) * 1.18
        figure.update_yaxes(range=[0, top], title_text=f"× {schemes[0]}", row=row)
    what = "Speed over plain decoding: the paper (pale) and ours"
    figures.lay_out(figure, what, origin, note, 230 * max(len(columns), 1) + 90)
    figure.update_layout(barmode="overlay", margin={"t": figure.layout.margin.t + 20, "b": 96})
    figure.update_annotations(font={"size": 12.5, "color": INK})
    figure.update_xaxes(showgrid=False, zeroline=False)
    return figure


def _bars(rows: pd.DataFrame, schemes: list[str]) -> list[go.Bar]:
    """Plain decoding, and what EAGLE-2 adds or takes; the paper first, then ours by role."""
    cells, found = rows.set_index(["scheme", "kind"]), []
    for who in ("paper", "ours"):
        for kind in (ALONE, BOTH):
            groups: dict[tuple, list[str]] = {}
            for scheme in schemes:
                seen = who == "ours" and cells.loc[(scheme, kind), "role"] != "predicted"
                loses = kind == BOTH and _part(cells, scheme, who, kind)[1] < 0
                groups.setdefault((seen, loses), []).append(scheme)
            for (seen, loses), chosen in sorted(groups.items()):
                places = [schemes.index(scheme) for scheme in chosen]
                found.append(_bar(cells, chosen, places, who, kind, seen, loses))
    return found


def _part(cells: pd.DataFrame, scheme: str, who: str, kind: str) -> tuple[float, float]:
    """Where a bar's part begins, and how long it is."""
    alone = float(cells.loc[(scheme, ALONE), who])
    return (0.0, alone) if kind == ALONE else (alone, float(cells.loc[(scheme, BOTH), who]) - alone)


def _bar(
    cells: pd.DataFrame,
    chosen: list[str],
    places: list[int],
    who: str,
    kind: str,
    seen: bool,
    loses: bool,
) -> go.Bar:
    """One part of the bars of some formats."""
    parts = [_part(cells, scheme, who, kind) for scheme in chosen]
    told = cells.loc[[(scheme, kind) for scheme in chosen], [who, "error"]].to_numpy().tolist()
    role = "" if who == "paper" else (", fitted or the unit" if seen else ", predicted")
    what = "EAGLE-2 takes away" if loses else kind
    colour = _LOSS if loses else METHOD_COLOURS["ar" if kind == ALONE else "eagle2"]
    return go.Bar(
        name=f"{who}, {what}{role}",
        legendgroup=f"{who}, {what}{role}",
        x=places,
        y=[length for _, length in parts],
        base=[start for start, _ in parts],
        width=_WIDTH,
        offset=-_WIDTH - 0.01 if who == "paper" else 0.01,
        marker={
            "color": _faded(colour, _PALE) if who == "paper" else colour,
            "line": {"width": 0},
            "pattern": {"shape": "/" if seen else "", "fillmode": "overlay", "size": 6},
        },
        customdata=[[scheme, *cell] for scheme, cell in zip(chosen, told, strict=True)],
        hovertemplate=(
            f"%{{customdata[0]}} {kind}: %{{customdata[1]:.2f}}× "
            f"(ours is off by %{{customdata[2]:+.1%}})<extra>{who}{role}</extra>"
        ),
    )


def _faded(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _error_texts(rows: pd.DataFrame, schemes: list[str]) -> go.Scatter:
    """The error of every predicted whole bar of ours, above it."""
    whole = rows[(rows["kind"] == BOTH) & (rows["role"] == "predicted")]
    tops = rows.groupby("scheme")["ours"].max()
    return go.Scatter(
        name="error",
        x=[schemes.index(scheme) + _WIDTH / 2 for scheme in whole["scheme"]],
        y=[float(tops[scheme]) for scheme in whole["scheme"]],
        text=[_percent(error) for error in whole["error"]],
        mode="text",
        textposition="top center",
        textfont={"size": 11},
        hoverinfo="skip",
        showlegend=False,
    )


def _percent(error: float) -> str:
    """With its sign, and none on nothing."""
    return f"{error:+.0%}" if abs(error) >= 0.005 else "0%"


def errors_by_cell(table: pd.DataFrame, *, origin: str = ORIGIN, note: str = "") -> go.Figure:
    """Draw every bar's error, one panel a kind; fitted cells are hollow.

    Args:
        table: columns `column`, `scheme`, `kind`, `error`, `role`.
    """
    kinds, columns = (ALONE, BOTH, GAIN), list(dict.fromkeys(table["column"]))
    table = table[table["kind"].isin(kinds)]
    schemes = list(dict.fromkeys(table["scheme"]))
    table = table[table["role"] != "unit"]
    figure = make_subplots(
        rows=1, cols=3, subplot_titles=kinds, shared_yaxes=True, horizontal_spacing=0.03
    )
    for place, kind in enumerate(kinds, start=1):
        rows = table[table["kind"] == kind]
        for role in ("predicted", "fitted"):
            for number, column in enumerate(columns):
                these = rows[(rows["column"] == column) & (rows["role"] == role)]
                trace = _errors(these, schemes, column, role, number)
                trace.showlegend = kind == GAIN and role == "predicted"
                if len(these):
                    figure.add_trace(trace, row=1, col=place)
    what = "Error of each bar, fitted hollow"
    predicted = table.loc[table["role"] == "predicted", "error"].abs()
    if len(predicted):
        what += f"; median of predicted {predicted.median():.1%}"
    figures.lay_out(figure, what, origin, note, 40 * len(schemes) + 130)
    figure.update_layout(margin={"t": figure.layout.margin.t + 22, "b": 76})
    figure.update_annotations(font={"size": 12.5, "color": INK})
    for at in (sign * band for band in _BANDS for sign in (-1, 1)):
        figure.add_vline(x=at, line={"color": INK, "width": 1, "dash": "dot"})
    most = 1.15 * max([0.28, *table["error"].abs()])
    ticks = {"tickvals": [-0.25, -0.1, 0, 0.1, 0.25], "tickformat": "+.0%"}
    figure.update_xaxes(**ticks, range=[-most, most], title_text="ours over the paper")
    lines = {"tickvals": list(range(len(schemes))), "ticktext": schemes}
    figure.update_yaxes(**lines, range=[len(schemes) - 0.5, -0.5], zeroline=False)
    return figure


def _errors(
    rows: pd.DataFrame, schemes: list[str], column: str, role: str, number: int
) -> go.Scatter:
    """One column's marks of one role; columns stand beside each other in a format's line."""
    colour, symbol = _COLUMN_COLOURS[number % 3], _SYMBOLS[number % 3]
    return go.Scatter(
        name=column,
        legendgroup=column,
        x=list(rows["error"]),
        y=[schemes.index(scheme) + 0.2 * (number - 1) for scheme in rows["scheme"]],
        mode="markers",
        marker={
            "symbol": f"{symbol}-open" if role == "fitted" else symbol,
            "color": colour,
            "size": 9,
            "line": {"width": 1.5, "color": colour},
        },
        customdata=list(rows["scheme"]),
        hovertemplate=f"%{{customdata}}, {role}: %{{x:+.1%}}<extra>{column}</extra>",
    )


def headlines_beside(table: pd.DataFrame, *, origin: str = ORIGIN, note: str = "") -> go.Figure:
    """Draw what is no bar of figure 1: verification, HierSpec, replications; fitted ones hollow.

    Args:
        table: columns `column`, `scheme`, `kind`, `paper`, `ours`, `error`, `role`.
    """
    table = table[table["kind"].isin(OTHERS)]
    names = [f"{row.column.split(',')[0]}, {row.scheme}" for row in table.itertuples()]
    table = table.assign(name=names)
    figure = go.Figure()
    _add_marks(figure, table, "published", "paper", "line-ns", INK)
    for role, symbol in (("predicted", "diamond"), ("fitted", "diamond-open")):
        rows = table[table["role"] == role]
        _add_marks(figure, rows, f"ours, {role}", "ours", symbol, METHOD_COLOURS["hierspec"])
    for row in table[table["role"] == "predicted"].itertuples():
        text = {"text": _percent(row.error), "showarrow": False, "font": {"size": 11}}
        place = {"x": max(row.paper, row.ours), "y": row.name, "xanchor": "left", "xshift": 12}
        figure.add_annotation(**text, **place)
    what = "Verification, HierSpec and third parties"
    figures.lay_out(figure, what, origin, note, 27 * len(table) + 110)
    figure.update_layout(margin={"b": 72})
    most = float(table[["paper", "ours"]].to_numpy().max()) if len(table) else 1.0
    figure.update_xaxes(title_text="speed-up, or T(60)/T(1)", range=[0.9, most * 1.12])
    figure.update_yaxes(categoryorder="array", categoryarray=list(table["name"])[::-1])
    return figure


def _add_marks(
    figure: go.Figure, rows: pd.DataFrame, name: str, value: str, symbol: str, colour: str
) -> None:
    figure.add_scatter(
        name=name,
        x=list(rows[value]),
        y=list(rows["name"]),
        mode="markers",
        marker={
            "symbol": symbol,
            "size": 11,
            "color": colour,
            "line": {"width": 3 if symbol == "line-ns" else 1.5, "color": colour},
        },
        hovertemplate=f"%{{y}}: %{{x:.2f}}<extra>{name}</extra>",
    )
