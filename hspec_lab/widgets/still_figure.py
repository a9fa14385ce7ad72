"""Lines, points and maps of a figure as a still picture: SVG in HTML, for front ends without more.

It shows what the live figure shows at rest: the same data, the same colours, the same words.
"""

from html import escape

import numpy as np
import plotly.graph_objects as go

from hspec_lab.figures import INK

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 480, 300, 48, 36
# dark to bright, as the live map's ends and middle
_MAP = np.array([[68, 1, 84], [33, 145, 140], [253, 231, 37]])


def still_html(figure: go.Figure) -> str:
    """Draw the scatter and heatmap traces of a figure without a script; hovering still tells."""
    spans = [_span(figure, axis) for axis in ("x", "y")]
    parts = [_trace(trace, spans) for trace in figure.data]
    if not figure.data:
        parts.append(f"<text x='{_WIDTH / 2}' y='{_HEIGHT / 2}'>nothing to show yet</text>")
    (x0, x1), (y0, y1) = spans
    axes = (
        f"<text x='{_LEFT}' y='{_HEIGHT - 18}'>{x0:.3g}</text>"
        f"<text x='{_WIDTH - 4}' y='{_HEIGHT - 18}' text-anchor='end'>{x1:.3g}</text>"
        f"<text x='{_LEFT - 6}' y='{_HEIGHT - _BOTTOM}' text-anchor='end'>{y0:.3g}</text>"
        f"<text x='{_LEFT - 6}' y='14' text-anchor='end'>{y1:.3g}</text>"
    )
    words = [figure.layout.yaxis.title.text, figure.layout.xaxis.title.text]
    told = " over ".join(word for word in words if word)
    return (
        f"<div><div>{figure.layout.title.text}</div>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' style='width:100%' font-size='12' fill='{INK}'>"
        f"{''.join(parts)}{axes}</svg><div style='opacity:.7'>{escape(told)}</div>"
        f"{_legend(figure)}</div>"
    )


def _span(figure: go.Figure, axis: str) -> tuple[float, float]:
    """The ends of an axis: where the data end, and nothing unless it is a map."""
    found = [_numbers(trace[axis]) for trace in figure.data if trace[axis] is not None]
    found = [part[np.isfinite(part)] for part in found]
    values = np.concatenate(found) if found else np.zeros(0)
    if not len(values):
        return 0.0, 1.0
    if any(trace.type == "heatmap" for trace in figure.data):
        return float(values.min()) - 0.5, float(values.max()) + 0.5
    return 0.0, float(values.max()) * 1.05 or 1.0


def _trace(trace, spans) -> str:
    if trace.type == "heatmap":
        return _cells(trace, spans)
    colour = trace.line.color or trace.marker.color or INK
    x, y = (_placed(trace[axis], axis, spans) for axis in ("x", "y"))
    points = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]
    if "markers" in (trace.mode or ""):
        name = f"<title>{escape(trace.name or '')}</title>"
        return "".join(
            f"<circle cx='{a:.1f}' cy='{b:.1f}' r='5' fill='none' stroke='{colour}' "
            f"stroke-width='2'>{name}</circle>"
            for a, b in points
        )
    if trace.fill or not points:
        return ""
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>"


def _cells(trace, spans) -> str:
    low, high = trace.zmin or 0.0, trace.zmax or 1.0
    (x0, x1), (y0, y1) = spans
    width = (_WIDTH - _LEFT) / (x1 - x0)
    height = (_HEIGHT - _BOTTOM) / (y1 - y0)
    cells = []
    for y, row in zip(trace.y, trace.z, strict=True):
        for x, z in zip(trace.x, row, strict=True):
            if z is None:
                continue
            share = 2 * min(max((z - low) / ((high - low) or 1), 0), 1)
            mixed = [int(np.interp(share, [0, 1, 2], channel)) for channel in _MAP.T]
            left, top = _LEFT + (x - 0.5 - x0) * width, (y1 - y - 0.5) * height
            cells.append(
                f"<rect x='{left:.1f}' y='{top:.1f}' width='{width + 0.3:.1f}' "
                f"height='{height + 0.3:.1f}' fill='rgb{tuple(mixed)}'>"
                f"<title>{x}, {y}: {z:.2f}</title></rect>"
            )
    return "".join(cells)


def _placed(values, axis: str, spans) -> np.ndarray:
    low, high = spans["xy".index(axis)]
    share = (_numbers(values) - low) / (high - low)
    if axis == "x":
        return _LEFT + share * (_WIDTH - _LEFT)
    return (1 - share) * (_HEIGHT - _BOTTOM)


def _numbers(values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _legend(figure: go.Figure) -> str:
    named = [trace for trace in figure.data if trace.name and trace.showlegend is not False]
    return "<div>{}</div>".format(
        " &ensp; ".join(
            f"<span style='color:{trace.line.color or trace.marker.color}'>&#9632;</span> "
            f"{escape(trace.name)}"
            for trace in named
            if trace.type == "scatter"
        )
    )
