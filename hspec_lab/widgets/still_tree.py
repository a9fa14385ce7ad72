"""A tree as a still picture: SVG in HTML, for front ends without live figures."""

from html import escape, unescape

import plotly.graph_objects as go

from hspec_lab.figures import INK

_WIDTH, _ABOVE, _BELOW = 1000, 8, 18  # px; of a label and of numbers, from their node


def still_html(figure: go.Figure) -> str:
    """Draw a figure of `figures_tree.tree_figure` without a script; hovering still tells."""
    left, right = figure.layout.xaxis.range
    bottom, top = figure.layout.yaxis.range

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * _WIDTH, y - top

    drawn = "".join(
        _lines(trace, place) if trace.mode == "lines" else _nodes(trace, place)
        for trace in figure.data
    )
    legend = "".join(
        f"<span style='color:{trace.marker.color}'>&#9679;</span> {escape(trace.name)} &ensp;"
        for trace in figure.data
        if trace.name and len(trace.x)
    )
    return (
        f"<div>{figure.layout.title.text}</div><svg viewBox='0 0 {_WIDTH} {bottom - top:.0f}' "
        f"style='width:100%' font-size='12' fill='{INK}'>{drawn}</svg><div>{legend}</div>"
    )


def _lines(trace: go.Scatter, place) -> str:
    parts, begins = [], True
    for x, y in zip(trace.x, trace.y, strict=True):
        if x != x:
            begins = True
            continue
        across, down = place(x, y)
        parts.append(f"{'M' if begins else 'L'}{across:.1f} {down:.1f}")
        begins = False
    return (
        f"<path d='{''.join(parts)}' fill='none' stroke='{trace.line.color}' "
        f"stroke-width='{trace.line.width}'/>"
    )


def _nodes(trace: go.Scatter, place) -> str:
    """Markers with their words for hovering, and labels."""
    marked = "markers" in trace.mode
    words = trace.hovertext if marked else [""] * len(trace.x)
    shift = -_ABOVE if marked else _BELOW - 7
    found = []
    for x, y, label, told in zip(trace.x, trace.y, trace.text, words, strict=True):
        across, down = place(x, y)
        if marked:
            found.append(
                f"<circle cx='{across:.1f}' cy='{down:.1f}' r='{trace.marker.size / 2}' "
                f"fill='{trace.marker.color}'><title>{_plain(told)}</title></circle>"
            )
        for line, text in enumerate(label.split("<br>") if label else ()):
            at = f"x='{across:.1f}' y='{down + shift + 12 * line:.1f}'"
            found.append(f"<text {at} text-anchor='middle'>{text}</text>")
    return "".join(found)


def _plain(words: str) -> str:
    """Words for hovering without their mark-up; what they quote stays quoted."""
    lines = words.replace("<br>", "\n").replace("<b>", "").replace("</b>", "")
    return escape(unescape(lines))
