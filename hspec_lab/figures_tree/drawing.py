"""One proposal as a figure: tokens above their nodes, both models' probabilities below.

cost: O(n log n) for n nodes; eight traces whatever n is, so that one tree replaces another in
      place.
"""

from collections import defaultdict

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hspec_lab.figures import INK, LEVEL_COLOURS, PHASE_COLOURS, lay_out
from hspec_lab.figures_tree.places import (
    ACCEPTED,
    OWN,
    PENDING,
    REFUSED,
    REST,
    Placed,
    height_of,
    placed,
)
from hspec_lab.figures_tree.words import chance, refusal, safe, shown, title_of

ACCENT = PHASE_COLOURS["accept"]
# in the order of the legend: marker, px, fill (the own token's is its level's)
_STATES = {
    PENDING: ("circle", 11, INK),
    ACCEPTED: ("circle", 12, ACCENT),
    OWN: ("diamond", 13, INK),
    REFUSED: ("x", 11, PHASE_COLOURS["prefill"]),
    REST: ("circle-open", 8, INK),
}
# px: a label's letter, a label above its marker, a line of numbers below it
_LETTER, _ABOVE, _LINE = 7.4, 19, 13
# what stands below a node, and the px it takes
_NUMBERS = {"{pd} #{rd} → {pm} #{rm}": 104, "{pd} → {pm}": 68, "{pd}<br>{pm}": 30}
# px around the tree
_HEAD, _FOOT, _ABOVE_ROOT, _BELOW_TREE = 112, 92, 30, 38
_DOWN = 7  # px from a node to its numbers
_EDGE = 0.5  # of a column, where an edge turns down: between labels
_FAINT = "rgba(128,128,128,0.55)"
_SILENT = {"hoverinfo": "skip", "showlegend": False}


def tree_figure(
    nodes: pd.DataFrame, *, note: str = "", width: int = 760, height: int | None = None
) -> go.Figure:
    """Draw one proposal as a tree.

    Args:
        nodes: of one proposal, columns as `trees_folder.NODES`.
        note: the conditions: device, threads, date.
        width: px that labels may count on; a wider figure only has more room.
        height: px of the rows together; None: what they need, see `height_of`.
    """
    height = height or height_of(nodes)
    drawn = placed(nodes, height)
    deepest = max(drawn.columns)
    column_px = width / (deepest + 1.2)
    form = _number_form(column_px)
    labels, numbers = _labels(drawn, column_px, form)
    figure = go.Figure()
    _add_edges(figure, drawn)
    _add_nodes(figure, drawn, labels)
    _add_numbers(figure, drawn, numbers)
    told = "; ".join(filter(None, [refusal(drawn), _how_to_read(drawn, form), note]))
    lay_out(figure, title_of(nodes), "looked at", told)
    inner = height + _ABOVE_ROOT + _BELOW_TREE
    # a sentence more or less must not move what stands below the figure
    margin = {"l": 12, "r": 16, "t": _HEAD, "b": _FOOT}
    figure.update_layout(height=inner + _HEAD + _FOOT, margin=margin, hovermode="closest")
    figure.update_xaxes(
        range=[-0.5, deepest + 0.6],
        tickvals=list(range(deepest + 1)),
        ticktext=["pending", *(f"+{column}" for column in range(1, deepest + 1))],
        title_text="tokens behind the text",
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(range=[height + _BELOW_TREE, -_ABOVE_ROOT], visible=False)
    return figure


def _add_edges(figure: go.Figure, drawn: Placed) -> None:
    """Add all edges as one line, and those of the emitted path as a thick one."""
    # arrays, because plotly looks at each entry of a list; NaN parts one edge from the next
    columns, y, children = np.array(drawn.columns), np.array(drawn.y), np.arange(1, len(drawn.y))
    on_path = np.isin(np.array(drawn.states)[1:], (ACCEPTED, OWN))
    # there is always a path, if only to the model's own token
    for colour, width, here in ((ACCENT, 5, on_path), (_FAINT, 1.2, ~on_path)):
        child = children[here]
        parent = np.array(drawn.parents)[child]
        turn, gap = columns[parent] + _EDGE, np.full(len(child), np.nan)
        xs = np.stack([columns[parent], turn, turn, columns[child], gap], axis=1).ravel()
        ys = np.stack([y[parent], y[parent], y[child], y[child], gap], axis=1).ravel()
        line = {"color": colour, "width": width}
        same = {"marker": {"color": colour}, "text": "", "hovertext": ""} | _SILENT
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, **same)


def _add_nodes(figure: go.Figure, drawn: Placed, labels: list[str]) -> None:
    """Add the nodes, one trace per state; all states, so that traces can change in place."""
    for state, (symbol, size, colour) in _STATES.items():
        here = [node for node, found in enumerate(drawn.states) if found == state]
        if state == OWN:
            colour = LEVEL_COLOURS.get(drawn.level, INK)
        figure.add_scatter(
            x=np.array([drawn.columns[node] for node in here], dtype=float),
            y=np.array([drawn.y[node] for node in here], dtype=float),
            mode="markers+text",
            name=state,
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 1.5}},
            text=np.array([labels[node] for node in here], dtype=str),
            textposition="top center",
            textfont={"size": 12, "color": INK, "family": "monospace"},
            cliponaxis=False,
            hovertext=np.array([_hover(drawn, node) for node in here], dtype=str),
            hoverinfo="text",
            showlegend=True,
        )


def _add_numbers(figure: go.Figure, drawn: Placed, numbers: list[str]) -> None:
    """Add what stands below the nodes."""
    here = [node for node, text in enumerate(numbers) if text]
    figure.add_scatter(
        x=np.array([drawn.columns[node] for node in here], dtype=float),
        y=np.array([drawn.y[node] + _DOWN for node in here], dtype=float),
        text=np.array([numbers[node] for node in here], dtype=str),
        mode="text",
        textposition="bottom center",
        textfont={"size": 11, "color": INK},
        cliponaxis=False,
        marker={"color": INK},
        hovertext="",
        **_SILENT,
    )


def _labels(drawn: Placed, column_px: float, form: str) -> tuple[list[str], list[str]]:
    """Tokens above and numbers below the nodes, "" where they would lie over something."""
    y, states = drawn.y, drawn.states
    labels, numbers = [""] * len(y), [""] * len(y)
    by_column = defaultdict(list)
    for node, column in enumerate(drawn.columns):
        by_column[column].append(node)
    most = max(2, int(column_px / _LETTER) - 1)
    need = _ABOVE + _LINE * (form.count("<br>") + 1) + 4
    for column in by_column.values():
        column.sort(key=y.__getitem__)
        neighbours = zip([None, *column], column, [*column[1:], None], strict=False)
        for above, node, below_it in neighbours:
            if above is None or y[node] - y[above] >= _ABOVE or states[node] == REFUSED:
                labels[node] = safe(shown(drawn.nodes[node]["piece"], most))
            roomy = below_it is None or y[below_it] - y[node] >= need
            if roomy and states[node] != PENDING:
                numbers[node] = _numbers(drawn.nodes[node], form)
    return labels, numbers


def _number_form(column_px: float) -> str:
    """The longest form of a node's numbers that fits a column; "" if none does."""
    return next((form for form, px in _NUMBERS.items() if px <= column_px), "")


def _numbers(node: dict, form: str) -> str:
    if "#" in form and node["rank"] < 0:
        form = "{pd} → {pm}"
    return form.format(
        pd=chance(node["p_draft"]),
        rd=node["rank"] + 1,
        pm=chance(node["p_model"]),
        rm=node["model_rank"] + 1,
    )


def _how_to_read(drawn: Placed, form: str) -> str:
    if not form or not drawn.drafter:
        return ""
    between = "above" if "<br>" in form else "→"
    place = " and #place" if "#" in form else ""
    return f"below a token: its probability{place}, {drawn.drafter}'s {between} {drawn.level}'s"


def _hover(drawn: Placed, number: int) -> str:
    """Everything that is known of a node."""
    node, level, drafter = drawn.nodes[number], drawn.level, drawn.drafter
    lines = [f"<b>{safe(shown(node['piece'], 60))}</b>: {drawn.states[number]}"]
    if drawn.states[number] != PENDING:
        lines.append(f"thought of by {node['source']}")
        sides = ((drafter, "p_draft", "rank"), (level, "p_model", "model_rank"))
        for who, p, rank in sides:
            place = f", place {node[rank] + 1}" if node[rank] >= 0 else ""
            lines.append(f"{who}: {chance(node[p])}{place}" if who else "not drafted")
    if "choice_piece" in node:
        said = f"{safe(shown(node['choice_piece'], 60))} ({chance(node['choice_p'])})"
        theirs = f"; {drafter} {chance(node['choice_p_draft'])}" if drafter else ""
        lines.append(f"next, {level} says {said}{theirs}")
    return "<br>".join(lines)
