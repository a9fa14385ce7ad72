"""Rounds in the order in which they ran: what each emitted, and what its tokens cost."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hspec_lab import figures
from hspec_lab.figures import INK, METHOD_COLOURS

WINDOW = 25  # rounds of a mean, where a run has some ten times as many
# beyond so many, lines between prompts would hide what lies between them
_MOST_PROMPTS = 60
_DOT = 0.55  # opacity


def in_order_of_time(rounds: pd.DataFrame, window: int = WINDOW) -> pd.DataFrame:
    """Return measured rounds in the order of their start, with means over neighbours.

    Args:
        rounds: recorded table.
        window: rounds of a mean, centred; at most a tenth of the rounds, at least 1.

    Returns:
        number (0, 1, ...), prompt, round, n_emitted, us_per_emitted (NaN where a round emitted
        nothing), mean_emitted, mean_us_per_emitted (sum of times over sum of tokens).
    """
    rows = rounds[~rounds["warmup"].astype(bool)].sort_values("start_us", kind="stable")
    rows = rows.reset_index(drop=True)
    window = max(min(window, len(rows) // 10), 1)
    around = rows[["n_emitted", "duration_us"]].rolling(window, center=True, min_periods=1)
    sums, counts = around.sum(), around["n_emitted"].count()
    return pd.DataFrame(
        {
            "number": rows.index,
            "prompt": rows["prompt"],
            "round": rows["round"],
            "n_emitted": rows["n_emitted"],
            "us_per_emitted": rows["duration_us"] / rows["n_emitted"].where(rows["n_emitted"] > 0),
            "mean_emitted": sums["n_emitted"] / counts,
            "mean_us_per_emitted": sums["duration_us"]
            / sums["n_emitted"].where(sums["n_emitted"] > 0),
        }
    )


def rounds_over_time(
    table: pd.DataFrame, *, method: str = "", origin: str = "measured", note: str = ""
) -> go.Figure:
    """Draw tokens and time per token of every round, as dots, and their means as lines.

    Args:
        table: of `in_order_of_time`.
        method: gives the lines their colour.
    """
    scale, unit = (1e-3, "ms") if table["us_per_emitted"].median() >= 2000 else (1.0, "µs")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    colour = METHOD_COLOURS.get(method, METHOD_COLOURS["hierspec"])
    panels = (("emitted", 1.0, "tokens a round"), ("us_per_emitted", scale, f"{unit} a token"))
    for row, (name, factor, words) in enumerate(panels, start=1):
        raw = "n_emitted" if name == "emitted" else name
        known = table.dropna(subset=[raw, f"mean_{name}"])
        for trace in _dots_and_line(known, raw, f"mean_{name}", factor, words, colour):
            trace.showlegend = row == 1
            figure.add_trace(trace, row=row, col=1)
    most = _most_of(table)
    if beyond := int((table["us_per_emitted"] > most).sum()):
        words = f"above the lower panel: {beyond} of {len(table)} rounds"
        note = f"{note}; {words}".removeprefix("; ")
    figures.lay_out(figure, "Round by round: tokens, and time per token", origin, note, 420)
    figure.update_layout(shapes=_between_prompts(table))
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(title_text="rounds, in the order they ran", row=2)
    figure.update_yaxes(title_text="tokens per round", rangemode="tozero", row=1)
    figure.update_yaxes(title_text=f"{unit} per token", range=[0, most * scale], row=2)
    return figure


def _dots_and_line(
    rows: pd.DataFrame, raw: str, mean: str, factor: float, words: str, colour: str
) -> list[go.Scatter]:
    x = list(rows["number"])
    where = rows[["prompt", "round"]].to_numpy().tolist()
    number = "%{y}" if raw == "n_emitted" else "%{y:.3~g}"
    dots = go.Scatter(
        name="one round",
        x=x,
        y=list(rows[raw] * factor),
        mode="markers",
        marker={"color": INK, "size": 4, "opacity": _DOT},
        customdata=where,
        hovertemplate=(
            "prompt %{customdata[0]}, round %{customdata[1]}: "
            f"{number} {words}<extra>one round</extra>"
        ),
    )
    line = go.Scatter(
        name="mean of its neighbours",
        x=x,
        y=list(rows[mean] * factor),
        mode="lines",
        line={"color": colour, "width": 2.5},
        hovertemplate=f"%{{y:.3~g}} {words}<extra>mean of neighbours</extra>",
    )
    return [dots, line]


def _most_of(table: pd.DataFrame) -> float:
    """us just above nearly every round: one hiccup should not flatten the rest."""
    us = table["us_per_emitted"].dropna()
    if us.empty:
        return 1.0
    return 1.1 * float(max(us.quantile(0.99), table["mean_us_per_emitted"].max()))


def _between_prompts(table: pd.DataFrame) -> list[dict]:
    """A thin line wherever another prompt begins."""
    begins = table.loc[table["prompt"].diff().fillna(0) != 0, "number"]
    if len(begins) > _MOST_PROMPTS:
        return []
    line = {"color": INK, "width": 0.6, "dash": "dot"}
    ends = {"y0": 0, "y1": 1, "yref": "paper", "type": "line", "layer": "below"}
    return [{"x0": at - 0.5, "x1": at - 0.5, "line": line} | ends for at in begins.tolist()]
