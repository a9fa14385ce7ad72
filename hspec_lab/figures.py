"""Tables in, plotly figures out; nothing here shows, saves or computes a measurement.

Every figure says in its title what it shows and whether that was measured or replayed; the
conditions (device, threads, date) come in as `note` and stand below the title.  Colours are
fixed per phase, level, format and method, after Okabe-Ito and Tol, and keep apart for
colour-blind eyes.  Background is transparent, ink is a grey that stands out on white and on black.
"""

import html
import textwrap

import pandas as pd
import plotly.graph_objects as go

from hspec_lab.config import FORMATS
from hspec_lab.terms import ALL_METHODS, LEVELS, ROUND_PHASES

PHASE_COLOURS = {
    "prefill": "#D55E00",
    "draft": "#E69F00",
    "verify_intermediate": "#56B4E9",
    "verify_target": "#0072B2",
    "accept": "#009E73",
    "kv_commit": "#CC79A7",
    "gap": "#BBBBBB",
}
# a level has the colour of the phase in which it works
LEVEL_COLOURS = {"target": "#0072B2", "intermediate": "#56B4E9", "head": "#E69F00"}
FORMAT_COLOURS = {
    "fp32": "#B0B0B0",
    "w8a16": "#66CCEE",
    "w8a8": "#4477AA",
    "w4a16-g128": "#EE6677",
    "w4a16-g32": "#CCBB44",
    "w16a16": "#9955DD",
    "fp8": "#228833",
    "w4a8-g128": "#AA3377",
    "w3a16-g128": "#EE8866",
    "w2a16-g64": "#997700",
}
METHOD_COLOURS = {
    "ar": "#BBBBBB",
    "chain": "#AA4499",
    "eagle2": "#E69F00",
    "static": "#CC6677",
    "hierspec": "#44AA99",
}

INK = "#7b7b7b"  # 4.3:1 on white and on JupyterLab's dark background
_FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_GRID = "rgba(128,128,128,0.25)"
_NOTE_WIDTH = 72  # characters of a note line that a half-page figure still shows
_UNDERLINES = {"target": "none", "intermediate": "2px solid", "head": "2px dotted"}


def breakdown_bar(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw time per emitted token as one bar per label, stacked by phase.

    Args:
        table: columns `label`, `phase`, `us_per_emitted`; labels are drawn top down.
        origin: "measured", or "replayed" with its source.
        note: the conditions: device, threads, date.
    """
    labels = list(dict.fromkeys(table["label"]))
    cells = table.groupby(["phase", "label"])["us_per_emitted"].sum()
    totals = [sum(cells.get((phase, label), 0.0) for phase in ROUND_PHASES) for label in labels]
    scale, unit = (1e-3, "ms") if max(totals, default=0) >= 2000 else (1.0, "µs")
    figure = go.Figure()
    for phase in ROUND_PHASES:
        # the gap is a remainder and may fall a hair below nothing
        values = [max(cells.get((phase, label), 0.0), 0.0) for label in labels]
        shares = [v / total if total else 0.0 for v, total in zip(values, totals, strict=True)]
        texts = [_number(v * scale) for v in values]
        colour = PHASE_COLOURS[phase]
        figure.add_bar(
            name=phase,
            y=[html.escape(label) for label in labels],
            x=[value * scale for value in values],
            orientation="h",
            marker={"color": colour, "line": {"width": 0}},
            customdata=shares,
            text=[t if share > 0.08 else "" for t, share in zip(texts, shares, strict=True)],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": _ink_on(colour)},
            hovertemplate=f"{phase}: %{{x:.3~g}} {unit}, %{{customdata:.1%}}<extra>%{{y}}</extra>",
        )
    lay_out(figure, "Time per emitted token, by phase", origin, note, 60 * len(labels) + 104)
    # a bar's name and total stand above it, so that long names take no width from it
    for row, (label, total) in enumerate(zip(labels, totals, strict=True)):
        figure.add_annotation(
            text=f"{html.escape(label)}: <b>{_number(total * scale)} {unit}</b>",
            **{"x": 0, "y": row - 0.28, "xanchor": "left", "yanchor": "bottom"},
            **{"showarrow": False, "borderpad": 0, "font": {"size": 12.5}},
        )
    # a number that a narrow bar cannot hold at a readable size is left to hovering
    figure.update_layout(barmode="stack", bargap=0.46, legend_traceorder="normal")
    figure.update_layout(uniformtext={"minsize": 11, "mode": "hide"})
    figure.update_xaxes(
        title_text=f"{unit} per emitted token",
        range=[0, max([total * scale for total in totals], default=0) * 1.02 or 1],
    )
    figure.update_yaxes(
        range=[len(labels) - 0.6, -0.75], showgrid=False, showticklabels=False, zeroline=False
    )
    return figure


def speedup_bars(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw speed-up over plain decoding (ar) of the same format, methods side by side.

    Args:
        table: columns `format`, `method`, `speedup`; optional `low` and `high`, the ends of its
            interval, and `current`, true for the row to outline.
    """
    figure = _bars_by_format(table, "speedup", "%{y:.2f}x", "×")
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"})
    lay_out(figure, "Speed-up over ar of the same format", origin, note)
    figure.update_yaxes(title_text="speed-up", rangemode="tozero", ticksuffix="×")
    return figure


def tokens_per_s_bars(
    table: pd.DataFrame, *, origin: str = "measured", note: str = ""
) -> go.Figure:
    """Draw decoding speed: columns `format`, `method`, `tokens_per_s`, optional `low`, `high`."""
    figure = _bars_by_format(table, "tokens_per_s", "%{y:.1f} tokens/s", "")
    lay_out(figure, "Decoding speed", origin, note)
    figure.update_yaxes(title_text="tokens per second", rangemode="tozero")
    return figure


def emitted_per_round(
    table: pd.DataFrame, *, origin: str = "measured", note: str = ""
) -> go.Figure:
    """Draw how many tokens a round emits: columns `method`, `n_emitted`, one row per round."""
    figure = go.Figure()
    for method in in_order(table["method"], ALL_METHODS):
        emitted = table.loc[table["method"] == method, "n_emitted"]
        share = emitted.value_counts(normalize=True).sort_index()
        figure.add_bar(
            name=f"{method} (mean {emitted.mean():.2f})",
            x=list(share.index),
            y=list(share),
            marker={"color": METHOD_COLOURS.get(method, INK), "line": {"width": 0}},
            hovertemplate=f"%{{x}} tokens: %{{y:.1%}} of rounds<extra>{method}</extra>",
        )
    lay_out(figure, "Tokens emitted per round", origin, note)
    figure.update_xaxes(title_text="tokens emitted in a round", dtick=1, showgrid=False)
    figure.update_yaxes(title_text="share of rounds", tickformat=".0%")
    return figure


def coloured_text(tokens: pd.DataFrame, *, origin: str = "measured", note: str = "") -> str:
    """Return HTML in which each token's background tells which model produced it.

    Args:
        tokens: columns `round`, `position`, `piece`, `source` (head, intermediate, target).
    """
    shares = tokens["source"].value_counts(normalize=True)
    legend = " &ensp; ".join(
        f"{_token(level, level, '')} {shares[level]:.0%}" for level in LEVELS if level in shares
    )
    new_round = tokens["round"].ne(tokens["round"].shift())
    text = "".join(
        _token(
            row.piece,
            row.source,
            f"{row.source}, round {row.round}, position {row.position}",
            starts,
        )
        for row, starts in zip(tokens.itertuples(), new_round, strict=True)
    )
    small = f"<div style='font-size:12px;color:{INK}'>{html.escape(note)}</div>" if note else ""
    return (
        "<div style='line-height:1.75;max-width:1100px'>"
        "<div style='font-weight:600'>Which model produced each token "
        f"({html.escape(origin)})</div>{small}"
        f"<div style='margin:4px 0'>{legend} &ensp; <span style='color:{INK}'>"
        "a bar | opens each round</span></div>"
        "<pre style='white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;"
        f"margin:0;padding:0;background-color:transparent;color:inherit'>{text}</pre></div>"
    )


def _token(piece: str, level: str, title: str, starts_round: bool = False) -> str:
    colour = LEVEL_COLOURS.get(level, INK)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    style = f"background-color:rgba({red},{green},{blue},0.32)"
    if (underline := _UNDERLINES.get(level, "none")) != "none":
        style += f";border-bottom:{underline} {colour}"
    if starts_round:
        style += f";border-left:2px solid {INK}"
    tip = f" title='{html.escape(title, quote=True)}'" if title else ""
    return f"<span style='{style}'{tip}>{html.escape(str(piece))}</span>"


def _bars_by_format(table: pd.DataFrame, value: str, hover: str, suffix: str) -> go.Figure:
    figure = go.Figure()
    methods = in_order(table["method"], ALL_METHODS)
    for format in in_order(table["format"], FORMATS):
        rows = table[table["format"] == format].drop_duplicates("method", keep="last")
        rows = rows.set_index("method").reindex(methods).dropna(subset=[value])
        interval = {}
        # a single prompt has no interval, and a front end takes no NaN
        if {"low", "high"} <= set(rows) and rows["low"].notna().any():
            above, below = rows["high"] - rows[value], rows[value] - rows["low"]
            interval = {
                "array": above.astype(object).where(above.notna(), None).tolist(),
                "arrayminus": below.astype(object).where(below.notna(), None).tolist(),
                "color": INK,
                "thickness": 1.2,
            }
        current = rows["current"].astype(bool) if "current" in rows else [False] * len(rows)
        figure.add_bar(
            name=format,
            x=list(rows.index),
            y=list(rows[value]),
            error_y=interval,
            marker={
                "color": FORMAT_COLOURS.get(format, INK),
                "line": {"color": INK, "width": [3 if here else 0 for here in current]},
            },
            text=[
                f"<b>{_number(number)}{suffix}</b>" if here else f"{_number(number)}{suffix}"
                for number, here in zip(rows[value], current, strict=True)
            ],
            textposition="inside" if interval else "outside",
            insidetextanchor="start",
            textangle=0,
            textfont={"size": 11},
            constraintext="none",
            cliponaxis=False,
            hovertemplate=f"{hover}<extra>{format} %{{x}}</extra>",
        )
    figure.update_xaxes(categoryorder="array", categoryarray=methods, showgrid=False)
    return figure


def lay_out(figure: go.Figure, what: str, origin: str, note: str, height: int = 300) -> None:
    lines = textwrap.wrap(note, _NOTE_WIDTH)
    top = 44 + 16 * len(lines)
    # plotly's own subtitle slides over the title when a figure is resized
    small = "".join(
        f"<br><span style='font-size:12px'>{html.escape(line)}</span>" for line in lines
    )
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 13, "family": _FONT},
        title={
            "text": f"<b>{what}</b> ({origin}){small}",
            "font": {"size": 15},
            "x": 0.01,
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 16},
        },
        margin={"l": 12, "r": 16, "t": top, "b": 12},
        height=height + top,
        autosize=True,
        barcornerradius=2,
        legend={
            "orientation": "h",
            "xref": "container",
            "x": 0.01,
            "yref": "container",
            "y": 0.01,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        hoverlabel={"font": {"size": 12}},
    )
    if not figure.data or not len(figure.data[0].x):
        figure.add_annotation(
            text="nothing measured yet",
            **{"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False},
        )
        figure.update_layout(showlegend=False)
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": INK, "automargin": True}
    figure.update_xaxes(**axis, title_font_size=12)
    figure.update_yaxes(**axis, title_font_size=12)


def in_order(values, order: tuple[str, ...]) -> list[str]:
    """Distinct values, those of `order` first and as there, strangers after them."""
    found = list(dict.fromkeys(values))
    return [name for name in order if name in found] + [name for name in found if name not in order]


def _number(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ink_on(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"
