"""Figures of the tables of `hspec_lab.analysis`; nothing is computed here but sums for labels."""

import html
import textwrap

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures
from hspec_lab.figures import INK, PHASE_COLOURS
from hspec_lab.figures_trace.timeline import time
from hspec_lab.terms import PHASES, ROUND_PHASES

_ROW_PX = 46
_LETTERS = 130  # of a line above a bar; the whole text is in what hovering shows
_WHERE = ("device", "host", "gap")
_UNSURE = 0.35  # opacity of what may be nothing


def phase_difference(
    table: pd.DataFrame,
    *,
    names: tuple[str, str] = ("a", "b"),
    origin: str = "measured",
    note: str = "",
) -> go.Figure:
    """Draw what the second of two runs spends more or less per emitted token, phase by phase.

    Phases whose interval holds 0 are pale.

    Args:
        table: of `analysis.difference`: `phase`, `a_us_per_emitted`, `b_us_per_emitted`,
            `difference` with its `_low` and `_high`, `changed`; optional `level`.
        names: what the two runs are called.
    """
    rows = table.reset_index(drop=True)
    figure = go.Figure(_difference_bars(rows))
    labels = [
        f"{_where(row)}: {time(row.a_us_per_emitted)} → {time(row.b_us_per_emitted)}"
        + (f" (×{row.b_us_per_emitted / row.a_us_per_emitted:.2f})" if row.a_us_per_emitted else "")
        for row in rows.itertuples()
    ]
    what = f"Time per emitted token, {html.escape(names[1])} against {html.escape(names[0])}"
    _lay_out(figure, what, origin, note, labels)
    figure.add_vline(x=0.0, line={"color": INK, "width": 1.5})
    figure.update_xaxes(title_text="µs per emitted token: left less, right more", tickformat="+~s")
    return figure


def _difference_bars(rows: pd.DataFrame) -> go.Bar:
    above, below = (
        (rows[edge] - rows["difference"]).abs() for edge in ("difference_high", "difference_low")
    )
    changed = [bool(value) for value in rows["changed"]]
    return go.Bar(
        x=list(rows["difference"]),
        y=list(range(len(rows))),
        orientation="h",
        error_x={
            "array": _known(above),
            "arrayminus": _known(below),
            "color": INK,
            "thickness": 1.2,
        },
        marker={
            "color": [_colour(phase) for phase in rows["phase"]],
            "opacity": [1.0 if sure else _UNSURE for sure in changed],
            "line": {"width": 0},
        },
        hovertext=[
            f"<b>{_where(row)}</b><br>{row.difference:+.3g} µs{_ends(row)}"
            + ("" if sure else "<br>may be nothing")
            for row, sure in zip(rows.itertuples(), changed, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )


def slowest_rounds(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw the slowest rounds, stacked by phase, each with a sentence on why.

    Args:
        table: of `analysis.slowest`: `prompt`, `round`, `duration_us`, `why`, a column of us for
            each phase, and `gap`.
    """
    rows = table.reset_index(drop=True)
    longest = rows["duration_us"].max() if len(rows) else 0.0
    scale, unit = (1e-3, "ms") if longest >= 2000 else (1.0, "µs")
    figure = go.Figure()
    for phase in [name for name in ROUND_PHASES if name in rows] or ROUND_PHASES[:1]:
        # the gap is a remainder and may fall a hair below nothing
        us = rows[phase].clip(lower=0) if phase in rows else pd.Series(dtype=float)
        figure.add_bar(
            name=phase,
            x=list(us * scale),
            y=list(range(len(us))),
            orientation="h",
            marker={"color": PHASE_COLOURS[phase], "line": {"width": 0}},
            hovertext=[
                f"{phase}: {time(spent)}<br>{'<br>'.join(textwrap.wrap(html.escape(why), 80))}"
                for spent, why in zip(us, rows["why"], strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    labels = [
        f"prompt {row.prompt}, round {row.round}: {time(row.duration_us)}; {row.why}"
        for row in rows.itertuples()
    ]
    _lay_out(figure, "The slowest rounds, and why", origin, note, labels)
    figure.update_xaxes(title_text=f"{unit} of the round", rangemode="tozero")
    return figure


def kernels_by_time(
    table: pd.DataFrame, *, n: int = 12, origin: str = "measured", note: str = ""
) -> go.Figure:
    """Draw the kernels that take most of the device's time.

    Args:
        table: of `analysis.by_kernel`: `name`, `n`, `total_us`, `share`, `median_us`, `phases`.
        n: so many of them; the rest is one more bar.
    """
    rows = table.sort_values("total_us", ascending=False, kind="stable").reset_index(drop=True)
    rest, rows = rows.iloc[n:], rows.iloc[:n]
    if len(rest):
        sums = rest[["n", "total_us", "share"]].sum().to_dict()
        sums |= {"name": f"{len(rest)} more", "median_us": float("nan"), "phases": ""}
        rows = pd.concat([rows, pd.DataFrame([sums])], ignore_index=True)
    figure = go.Figure()
    figure.add_bar(
        x=list(rows["total_us"] / 1e3),
        y=list(range(len(rows))),
        orientation="h",
        marker={
            "color": [_colour(phases.partition(", ")[0]) for phases in rows["phases"]],
            "line": {"width": 0},
        },
        hovertext=[_kernel_words(row) for row in rows.itertuples()],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    labels = [
        f"{row.name}: {row.share:.0%}, {int(row.n):,} times" for row in rows.itertuples(False)
    ]
    _lay_out(figure, "Kernels by time on the device", origin, note, labels)
    figure.update_xaxes(title_text="ms in all", rangemode="tozero")
    return figure


def critical_path(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw what a round waits for: device, host or neither, stacked by phase.

    Args:
        table: of `analysis.critical_path`: `prompt`, `round`, `warmup`, `phase`, `level`,
            `where`, `us`; warm-up rounds do not count.
    """
    rows = table[~table["warmup"].astype(bool)]
    n_rounds = max(len(rows[["prompt", "round"]].drop_duplicates()), 1)
    places = [where for where in _WHERE if (rows["where"] == where).any()]
    spent = rows.groupby(["where", "phase"])["us"].sum() / n_rounds
    figure = go.Figure()
    for phase in figures.in_order(rows["phase"], PHASES):
        us = [spent.get((where, phase), 0.0) for where in places]
        figure.add_bar(
            name=_named(phase),
            x=us,
            y=list(range(len(places))),
            orientation="h",
            marker={"color": _colour(phase), "line": {"width": 0}},
            hovertext=[f"{_named(phase)}: {time(value)}" for value in us],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    totals = spent.groupby(level=0).sum()
    labels = [f"{where}: {time(totals[where])}" for where in places]
    _lay_out(figure, "What the time was spent on", origin, note, labels)
    of = "of a round, on average" if (rows["round"] >= 0).any() else "of the trace"
    figure.update_xaxes(title_text=f"µs {of}", rangemode="tozero")
    return figure


def limits(table: pd.DataFrame, *, origin: str = "measured", note: str = "") -> go.Figure:
    """Draw what each phase took beside the least that the device's memory and arithmetic allow.

    Args:
        table: of `analysis.limits`: `phase`, `level`, `passes_per_round`, `launches_per_round`,
            `bytes_per_round`, `measured_us`, `memory_us`, `compute_us`, `limit_us`, `share`.
    """
    rows = table.reset_index(drop=True)
    figure = go.Figure()
    figure.add_bar(
        name="measured",
        x=list(rows["measured_us"]),
        y=list(range(len(rows))),
        orientation="h",
        marker={"color": [_colour(phase) for phase in rows["phase"]], "line": {"width": 0}},
        hovertext=[_limit_words(row) for row in rows.itertuples()],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    for name, symbol in (("memory", "diamond"), ("compute", "circle")):
        known = rows[rows[f"{name}_us"].notna()]
        figure.add_scatter(
            name=f"least for {name}",
            x=list(known[f"{name}_us"]),
            y=list(known.index),
            mode="markers",
            marker={
                "symbol": symbol,
                "color": "#ffffff",
                "size": 12,
                "line": {"color": "#444444", "width": 2},
            },
            hovertemplate=f"least for {name}: %{{x:.3~g}} µs<extra></extra>",
        )
    labels = [_limit_label(row) for row in rows.itertuples()]
    _lay_out(figure, "Time of a round beside the device's limits", origin, note, labels)
    figure.update_xaxes(title_text="µs of a round", rangemode="tozero")
    return figure


def _limit_label(row) -> str:
    known = row.limit_us == row.limit_us
    least = f"at least {time(row.limit_us)} ({row.share:.0%})" if known else "no limit known"
    return f"{_where(row)}: {time(row.measured_us)}, {least}"


def _ends(row) -> str:
    """An interval in words; a run of one prompt has none."""
    if row.difference_low != row.difference_low:
        return ", one prompt, so no interval"
    return f" ({row.difference_low:+.3g} to {row.difference_high:+.3g})"


def _limit_words(row) -> str:
    launches, size = row.launches_per_round, row.bytes_per_round
    lines = [
        f"<b>{_where(row)}</b>: {time(row.measured_us)} of a round",
        f"{passes:.3g} passes" if (passes := row.passes_per_round) == passes else "",
        f"{launches:.3g} launches" if launches == launches else "launches were not recorded",
        f"{size / 1e6:.3g} MB read" if size == size else "",
        html.escape(str(getattr(row, "reason", "") or "")),
    ]
    return "<br>".join(line for line in lines if line)


def _lay_out(figure: go.Figure, what: str, origin: str, note: str, labels: list[str]) -> None:
    """With a line above each bar, so that long words take no width from the bars."""
    figures.lay_out(figure, what, origin, note, _ROW_PX * len(labels) + 104)
    for row, label in enumerate(labels):
        figure.add_annotation(
            text=html.escape(textwrap.shorten(label, _LETTERS, placeholder=" …")),
            **{"x": 0, "xref": "paper", "y": row - 0.26, "xanchor": "left", "yanchor": "bottom"},
            **{"showarrow": False, "borderpad": 0, "xshift": 4, "font": {"size": 12}},
        )
    figure.update_layout(barmode="stack", bargap=0.5, legend_traceorder="normal")
    figure.update_yaxes(
        range=[max(len(labels), 1) - 0.65, -0.75],
        showgrid=False,
        showticklabels=False,
        zeroline=False,
    )


def _kernel_words(row) -> str:
    name = "<br>".join(textwrap.wrap(html.escape(row.name), 80))
    median = f", median {time(row.median_us)}" if row.median_us == row.median_us else ""
    of = f"<br>{html.escape(str(row.phases))}" if row.phases else ""
    return f"<b>{name}</b><br>{time(row.total_us)} in {int(row.n):,} launches{median}{of}"


def _where(row) -> str:
    level = getattr(row, "level", "")
    return html.escape(f"{row.phase} ({level})" if level else row.phase)


def _known(values: pd.Series) -> list:
    """A front end takes no NaN."""
    return values.astype(object).where(values.notna(), None).tolist()


def _colour(phase: str) -> str:
    return PHASE_COLOURS.get(phase, INK)


def _named(phase: str) -> str:
    return html.escape(phase or "no phase")
