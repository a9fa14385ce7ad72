"""The five views of the Explorer: a scene becomes a figure, and the few numbers that move in it.

A figure is drawn anew only when its `key` changes.  While a slider is dragged just `moves` change:
bars' lengths, the marks of the present setting, a map's colours.
"""

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures, figures_cost, figures_predict
from hspec_lab.figures import INK
from hspec_lab.terms import ROUND_PHASES
from hspec_lab.widgets.drawn import Drawn, by_length, in_lengths
from hspec_lab.widgets.scene import Scene, bars_table, half_widths, short

VIEWS = ("breakdown", "speedup", "cost", "acceptance", "scatter")
CURRENT = "current"
_RING = {"symbol": "circle-open", "size": 18, "line": {"width": 3}}


def draw(scene: Scene, view: str) -> Drawn:
    """Draw one of `VIEWS`; ValueError says what it lacks."""
    if view not in VIEWS:
        raise ValueError(f"a view is one of {', '.join(VIEWS)}; got {view!r}")
    if scene.answers is None and view != "breakdown":
        return nothing(view, "recordings are being read")
    return _DRAWERS[view](scene)


def _breakdown(scene: Scene) -> Drawn:
    bars = scene.bars
    labels = [bar.label for bar in bars]
    totals = [bar.total_us for bar in bars]
    scale, unit = (1e-3, "ms") if max(totals, default=0) >= 2000 else (1.0, "µs")
    origins = dict.fromkeys(bar.origin for bar in bars)
    where = [f"predicted on {scene.choice.device}, {_texts(scene)}"] if scene.answers else []
    notes = where + [part for bar in bars for part in short(bar.note)]
    if any(np.isfinite(bar.low) for bar in bars):
        notes.append("whiskers: 95 %")
    origin, note = " / ".join(origins) or "measured", "; ".join(dict.fromkeys(notes))

    def make() -> go.Figure:
        figure = figures.breakdown_bar(bars_table(bars), origin=origin, note=note)
        if bars:
            figure.add_scatter(
                x=[0.0] * len(bars),
                y=labels,
                mode="markers",
                marker={"color": INK, "size": 1},
                error_x={"color": INK, "thickness": 1.5, "array": [], "arrayminus": []},
                hoverinfo="skip",
                showlegend=False,
            )
        return figure

    moves, told_of = {}, [html.escape(label) for label in labels]
    for number, phase in enumerate(ROUND_PHASES if bars else ()):
        values = [bar.us[phase] for bar in bars]
        shares = [v / total if total else 0.0 for v, total in zip(values, totals, strict=True)]
        told = [_digits(value * scale) for value in values]
        moves[number, "y"] = labels
        moves[number, "hovertext"] = told_of
        moves[number, "x"] = [value * scale for value in values]
        moves[number, "customdata"] = shares
        moves[number, "text"] = [t if s > 0.08 else "" for t, s in zip(told, shares, strict=True)]
    if bars:
        reach = [half_widths(bar.total_us, bar.low, bar.high) for bar in bars]
        number = len(ROUND_PHASES)
        moves[number, "y"] = labels
        moves[number, "x"] = [total * scale for total in totals]
        moves[number, "error_x.array"] = [up * scale for up, _ in reach]
        moves[number, "error_x.arrayminus"] = [down * scale for _, down in reach]
        most = max(total + up for total, (up, _) in zip(totals, reach, strict=True))
        moves["layout", "xaxis.range"] = [0, most * scale * 1.02 or 1]
    for row, (name, total) in enumerate(zip(told_of, totals, strict=True)):
        text = f"{name}: <b>{_digits(total * scale)} {unit}</b>"
        moves["layout", f"annotations[{row}].text"] = text
    return Drawn(("breakdown", len(bars), unit, origin, note), make, moves)


def _speedup(scene: Scene) -> Drawn:
    choice, curve = scene.choice, scene.curve_choice
    grids, moves, x = list(scene.grids.values()), {}, None
    said = [part for table in grids for part in _stand_ins(table)]
    note = "; ".join([_texts(scene), *dict.fromkeys(said)])
    stages = [table.attrs["origin"].rpartition(" ")[2] for table in grids]
    origin = f"acceptance replayed, stages {' / '.join(dict.fromkeys(stages))}"
    size = "length" if curve.method == "chain" else "tree_size"
    if choice.method != "ar":
        found = scene.prediction
        source = scene.answers.source(choice)
        x = min(getattr(choice, size), source.axes[size][-1])
        up, down = half_widths(found.speedup, found.speedup_low, found.speedup_high)
        moves = {(-1, "x"): [x], (-1, "y"): [found.speedup]}
        moves |= {(-1, "error_y.array"): [up], (-1, "error_y.arrayminus"): [down]}
        moves[-1, "hovertemplate"] = f"current: {found.speedup:.2f}×<extra></extra>"
    else:
        note = f"the line at 1× is plain decoding, curves are hierspec's; {note}"

    def make() -> go.Figure:
        table = scene.speedups()
        shown = table if size == "tree_size" else by_length(table)
        current = None if x is None else {"tree_size": x, "speedup": scene.prediction.speedup}
        figure = figures_predict.speedup_over_size(shown, current=current, origin=origin, note=note)
        if current is not None:
            figure.data[-1].error_y = {"color": INK, "thickness": 1.5, "array": [0.0]}
        return in_lengths(figure) if size == "length" else figure

    tables = tuple(id(table) for table in grids)
    return Drawn(("speedup", size, x is None, scene.formats, note, tables), make, moves)


def _cost(scene: Scene) -> Drawn:
    choice, n = scene.choice, scene.rows
    table = scene.answers.passes(choice)
    notes = [table.attrs["note"]]
    mine = table[table["scheme"] == choice.target]
    if mine.empty:
        have = ", ".join(table["scheme"].unique())
        notes.append(f"no curve of {choice.target}, only of {have}: `hspec measure` adds one")
    origin, note = table.attrs["origin"], "; ".join(notes)

    def make() -> go.Figure:
        figure = figures_cost.cost_curves(table, origin=origin, note=note, current=n)
        marker = _RING | {"color": INK}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=CURRENT, marker=marker)
        return figure

    moves = {("layout", f"shapes[1].{end}"): n for end in ("x0", "x1")}
    moves["layout", "annotations[0].x"] = n
    moves["layout", "annotations[0].text"] = f"n = {n}"
    there = mine[mine["n"] == n]
    ratio = float(there["ratio"].iloc[0]) if len(there) else None
    moves |= {(-1, "x"): [n], (-1, "y"): [ratio]}
    told = f"a round verifies {n} rows" + (f": {ratio:.2f} passes" if ratio else "")
    moves[-1, "hovertemplate"] = f"{told}<extra>{choice.target}</extra>"
    return Drawn(("cost", id(table), note), make, moves)


def _acceptance(scene: Scene) -> Drawn:
    choice, table = scene.choice, scene.emitted
    shown = scene.tree_choice
    source = scene.answers.source(shown)
    notes = [_texts(scene), *_stand_ins(table)]
    if shown.method == "hierspec":
        notes.append("at the minimum draft length chosen")
    if shown != choice:
        notes.append(f"of hierspec, as {choice.method} has no tree")
    note = "; ".join([*notes, "click a cell to set the sliders"])
    whole = scene.answers.table(shown)
    axes = source.axes
    shape = len(axes["tree_size"]), len(axes["depth"])

    def make() -> go.Figure:
        figure = figures_predict.acceptance_map(
            table, current={"tree_size": 1, "depth": 1}, origin="acceptance replayed", note=note
        )
        figure.data[0].update(zmin=1.0, zmax=float(whole["mean_emitted"].max()))
        return figure

    x, y = min(choice.tree_size, axes["tree_size"][-1]), min(choice.depth, axes["depth"][-1])
    z = table["mean_emitted"].to_numpy().reshape(shape)
    moves = {
        (0, "z"): np.round(z.T, 4).tolist(),
        (1, "x"): [x],
        (1, "y"): [y],
        (1, "hovertemplate"): (
            f"tree {x}, depth {y}: {z[x - 1, y - 1]:.2f} tokens a round<extra>{CURRENT}</extra>"
        ),
    }
    return Drawn(("acceptance", shown.method, id(whole), shape, note), make, moves)


def _scatter(scene: Scene) -> Drawn:
    table = scene.against
    if table is None:
        return nothing("scatter", "stored runs are being compared")
    notes = [f"{len(table)} stored runs"]
    if n_problems := int((table["problem"] != "").sum()):
        notes.append(f"{n_problems} of them without a trace or stages of their own: see below")
    lacking = table["ar_steps_measured"].isna() & (table["problem"] == "")
    if lacking.any():
        notes.append("a run needs plain decoding measured beside it: press Measure on ar")
    origin, note = table.attrs["origin"], "; ".join(notes)

    def make() -> go.Figure:
        figure = figures_predict.predicted_vs_measured(table, origin=origin, note=note)
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=CURRENT, marker=_RING | {"color": INK}
        )
        return figure

    mine = table[table["run"] == (scene.run.folder.name if scene.run else "")]
    mine = mine.dropna(subset=["ar_steps", "ar_steps_measured"])
    point = mine[["ar_steps_measured", "ar_steps"]].to_numpy().tolist()
    x, y = point[0] if point else (None, None)
    return Drawn(("scatter", id(table), note), make, {(-1, "x"): [x], (-1, "y"): [y]})


def nothing(view: str, why: str) -> Drawn:
    what = {
        "speedup": "Predicted speed-up by tree size",
        "cost": "Time of a pass over n tokens",
        "acceptance": "Tokens emitted per round",
        "scatter": "Predicted against measured time",
    }[view]

    def make() -> go.Figure:
        figure = go.Figure()
        figures.lay_out(figure, what, why, "")
        figure.layout.annotations = ()
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        return figure

    return Drawn((view, why), make)


def _stand_ins(table: pd.DataFrame) -> list[str]:
    """What stands for what, of a table's notes: the breakdown has room for all of them."""
    words = ("stands for", "not of temperature")
    return [part for part in short(table.attrs["note"]) if any(word in part for word in words)]


def _texts(scene: Scene) -> str:
    prompt = scene.choice.prompt
    return "all texts" if prompt is None else f"text {prompt}"


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_DRAWERS = {
    "breakdown": _breakdown,
    "speedup": _speedup,
    "cost": _cost,
    "acceptance": _acceptance,
    "scatter": _scatter,
}
