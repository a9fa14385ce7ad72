"""What a proposal says in words: titles, refusals, tokens with visible space, the text beside."""

import html
import re

import pandas as pd

from hspec_lab.figures import INK, LEVEL_COLOURS
from hspec_lab.figures_tree.places import OWN, REFUSED, TALLEST, Placed, placed
from hspec_lab.terms import LEVELS

_UNDERLINES = {"intermediate": "2px solid", "head": "2px dotted"}


def title_of(nodes: pd.DataFrame) -> str:
    """What happened to a proposal, in a few words."""
    first, accepted = nodes.iloc[0], int(nodes["accepted"].sum()) - 1
    where = "Prefill" if first["round"] < 0 else f"Round {first['round']}"
    if first["level"] != "target":
        where += f", {first['level']}, step {first['step'] + 1}"
    else:
        where += ", target"
    if len(nodes) == 1:
        return f"{where}: one token, nothing drafted"
    return f"{where}: {accepted} of {len(nodes) - 1} drafted tokens kept, 1 added"


def disagreement(nodes: pd.DataFrame) -> str:
    """Where the model refused the drafter's best token, and both chances of both; "" if nowhere."""
    return refusal(placed(nodes, TALLEST))


def refusal(drawn: Placed) -> str:
    """`disagreement`, of nodes that have their states."""
    if REFUSED not in drawn.states:
        return ""
    level, drafter = drawn.level, drawn.drafter
    refused, own = (drawn.nodes[drawn.states.index(state)] for state in (REFUSED, OWN))
    sides = [
        f"“{shown(node['piece'])}” ({drafter} {chance(node['p_draft'])}, "
        f"{level} {chance(node['p_model'])})"
        for node in (refused, own)
    ]
    # two dollars would begin a formula
    return f"{level} refuses {sides[0]} and says {sides[1]}".replace("$", "＄")


def shown(piece: str, most: int = 40) -> str:
    """A token's text with its white space visible, cut after `most` characters."""
    text = piece.replace("\n", "↵").replace("\t", "⇥").replace("\r", "←")
    text = re.sub(" +", lambda run: "␣" if len(run[0]) == 1 else f"␣×{len(run[0])}", text)
    return text if len(text) <= most else text[: most - 1] + "…"


def chance(value: float) -> str:
    """A probability in two digits; – where it is unknown."""
    if value != value:
        return "–"
    return f"{value:.2f}" if value >= 0.005 else "<.01"


def safe(text: str) -> str:
    """Text that plotly draws as it is: no tags, and no dollar that a formula could begin with."""
    return html.escape(text).replace("$", "&#36;")


def text_so_far(
    prompt: str, tokens: pd.DataFrame, round: int, drafted: pd.DataFrame | None = None
) -> str:
    """Return HTML: the output up to a round, coloured by who produced each token.

    Args:
        prompt: its end is shown before the output.
        tokens: of one prompt, columns `round`, `position`, `piece`, `source`.
        round: its tokens are outlined; later ones are left out.
        drafted: tokens that exist only as a draft yet, columns `piece`, `source`; they stand
            behind the output with a dashed outline, and the round's own are left out.
    """
    last = round if drafted is None else round - 1
    told = tokens[tokens["round"] <= last]
    spans = [
        _span(
            row.piece,
            row.source,
            f"{row.source}, round {row.round}",
            "solid" * (row.round == round),
        )
        for row in told.itertuples()
    ]
    if drafted is not None:
        spans += [
            _span(row.piece, row.source, f"{row.source}, drafted", "dashed")
            for row in drafted.itertuples()
        ]
    legend = " &ensp; ".join(_span(level, level, "", "") for level in LEVELS)
    lines = "\n".join(prompt.splitlines()[-6:])
    outlined = "outlined: this round's" if drafted is None else "dashed: a draft yet"
    # column-reverse keeps the end of a long text in view
    return (
        f"<div style='font-weight:600'>The text, by who produced it</div>"
        f"<div style='margin:4px 0'>{legend} &ensp; <span style='color:{INK}'>{outlined}"
        "</span></div><div style='display:flex;flex-direction:column-reverse;max-height:420px;"
        "overflow:auto'><pre style='white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;"
        "margin:0;padding:0;background-color:transparent;color:inherit'>"
        f"<span style='opacity:.6'>{html.escape(lines)}</span>{''.join(spans)}</pre></div>"
    )


def _span(piece: str, source: str, title: str, outline: str) -> str:
    """A token; `outline` is a CSS style of a line, or empty."""
    colour = LEVEL_COLOURS.get(source, INK)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    style = f"background-color:rgba({red},{green},{blue},0.32)"
    if source in _UNDERLINES:
        style += f";border-bottom:{_UNDERLINES[source]} {colour}"
    if outline:
        style += f";outline:1.5px {outline} currentColor"
    tip = f" title='{html.escape(title, quote=True)}'" if title else ""
    return f"<span style='{style}'{tip}>{html.escape(str(piece))}</span>"
