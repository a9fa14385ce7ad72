"""A timeline as a still picture: SVG in HTML, for front ends without live figures."""

from html import escape, unescape

import plotly.graph_objects as go

from hspec_lab.figures import INK

_WIDTH, _LABELS, _LANE = 1100, 110, 26


def still_html(figure: go.Figure) -> str:
    """Draw a figure of `figures_trace.timeline` without a script; hovering still tells."""
    lanes = figure.layout.yaxis.ticktext or ()
    start, end = figure.layout.xaxis.range
    scale = (_WIDTH - _LABELS) / (end - start)
    bars = "".join(_bars(trace, start, scale) for trace in figure.data)
    names = "".join(
        f"<text x='{_LABELS - 8}' y='{_LANE * (at + 0.65):.0f}' text-anchor='end'>{name}</text>"
        for at, name in enumerate(lanes)
    )
    height = _LANE * (len(lanes) + 1)
    axis = f"{start:.3f} to {end:.3f} {figure.layout.xaxis.title.text}"
    return (
        f"<div>{figure.layout.title.text}</div>"
        f"<svg viewBox='0 0 {_WIDTH} {height}' style='width:100%' font-size='13' fill='{INK}'>"
        f"<svg x='{_LABELS}' width='{_WIDTH - _LABELS}' height='{height}'>{bars}</svg>"
        f"{names}<text x='{_LABELS}' y='{height - 8}'>{escape(axis)}</text></svg>{_legend(figure)}"
    )


def _bars(trace: go.Bar, start: float, scale: float) -> str:
    rows = zip(trace.x, trace.base, trace.y, trace.hovertext, strict=True)
    return "".join(
        f"<rect x='{(base - start) * scale:.2f}' width='{width * scale:.2f}' "
        f"y='{_LANE * y + 3:.0f}' height='{_LANE - 6}' fill='{trace.marker.color}'>"
        f"<title>{_plain(words)}</title></rect>"
        for width, base, y, words in rows
        if width is not None
    )


def _plain(words: str) -> str:
    """Words for hovering without their mark-up; what they quote stays quoted."""
    lines = words.replace("<br>", "\n").replace("<b>", "").replace("</b>", "")
    return escape(unescape(lines))


def _legend(figure: go.Figure) -> str:
    parts = (
        f"<span style='color:{trace.marker.color}'>&#9632;</span> {trace.name} &ensp;"
        for trace in figure.data
    )
    return f"<div>{''.join(parts)}</div>"
