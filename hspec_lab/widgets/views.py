"""A figure in a panel: live where plotly's FigureWidget works, plain HTML where it does not."""

from collections.abc import Callable
from html import escape

import ipywidgets as ipw
import plotly.graph_objects as go
from plotly.basedatatypes import BasePlotlyType

from hspec_lab.widgets.drawn import Drawn, put
from hspec_lab.widgets.still_figure import still_html

_NONE = object()
HOW_TO_GET_LIVE = (
    "Figures are still pictures here; for live ones: pip install 'hspec-lab[lab]', restart."
)

# a figure draws itself once and then listens to the window alone; tell it when its panel changes
_FIT = """
export default { render({ el }) {
  let width = 0, timer;
  const seen = new ResizeObserver(([panel]) => {
    if (Math.abs(panel.contentRect.width - width) < 2) return;
    width = panel.contentRect.width;
    clearTimeout(timer);
    timer = setTimeout(() => window.dispatchEvent(new Event("resize")), 60);
  });
  const start = () => {
    const panel = el.closest(".hspec-explorer");
    if (panel) seen.observe(panel); else timer = setTimeout(start, 50);
  };
  start();
  return () => { clearTimeout(timer); seen.disconnect(); };
} };
"""

# in the notebook's own ink, which a figure alone cannot know; side by side where there is room
STYLE = """<style>
.hspec-explorer .js-plotly-plot text:not(.bartext, .hoverlayer text) {
  fill: var(--jp-content-font-color1, #7b7b7b) !important; }
.hspec-explorer .modebar { display: none; }
.hspec-explorer { container-type: inline-size; }
.hspec-views > * { flex: 1 1 440px; min-width: 0; max-width: 1100px; overflow: hidden; }
.hspec-views > * > * { width: 100%; min-width: 0; }
.hspec-controls { align-self: flex-start; }
.hspec-grid { display: grid; grid-template-columns: minmax(0, 1fr); gap: 4px 12px; }
.hspec-grid > * { min-width: 0; max-width: none; overflow: hidden; }
@container (min-width: 900px) {
  .hspec-grid { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .hspec-grid > :first-child { grid-column: 1 / -1; } }
@container (min-width: 1700px) {
  .hspec-grid { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .hspec-grid > :first-child { grid-column: span 2; } }
.hspec-explorer .widget-label, .hspec-explorer .widget-readout {
  color: var(--jp-ui-font-color1, inherit); }
.hspec-explorer textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
</style>"""


def view(figure: go.Figure) -> "LiveView | StillView":
    """Return a widget that shows `figure`, and others through its `show`."""
    try:
        return LiveView(figure)
    except ImportError:
        return StillView(figure)


def fit() -> list[ipw.Widget]:
    """Return what makes live figures follow their panel's width; nothing without anywidget."""
    try:
        import anywidget
    except ImportError:
        return []
    return [type("Fit", (anywidget.AnyWidget,), {"_esm": _FIT})()]


class LiveView(ipw.VBox):
    """A FigureWidget whose traces change in place."""

    live = True

    def __init__(self, figure: go.Figure):
        self.figure = go.FigureWidget(figure)
        self.figure._config = {"responsive": True, "displayModeBar": False}
        self._drawn, self._clicked = None, None
        super().__init__([self.figure])

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been drawn yet."""
        return not self.figure.data

    def show(self, figure: go.Figure) -> None:
        """Replace what is shown."""
        live = self.figure
        self._drawn = None
        with live.batch_update():
            same = [trace.type for trace in live.data] == [trace.type for trace in figure.data]
            if same:
                for old, new in zip(live.data, figure.data, strict=True):
                    _replace(old, new)
            _replace(live.layout, figure.layout)
        if not same:
            live.data = ()
            live.add_traces(figure.data)
            self._listen()

    def draw(self, drawn: Drawn) -> None:
        """Show a figure; where only its marks moved since, send these alone."""
        if self._drawn is None or drawn.key != self._drawn.key:
            self.show(drawn.figure())
        else:
            moved = self._drawn.moves
            news = {at: new for at, new in drawn.moves.items() if moved.get(at, _NONE) != new}
            if news:
                with self.figure.batch_update():
                    put(self.figure, news)
        self._drawn = drawn

    def on_click(self, clicked: Callable[[float, float], None]) -> None:
        """Call `clicked(x, y)` with the point of a map that somebody clicks."""
        self._clicked = clicked
        self._listen()

    def _listen(self) -> None:
        for trace in self.figure.data if self._clicked else ():
            if trace.type == "heatmap":
                trace.on_click(lambda _, points, __: self._tell(points))

    def _tell(self, points) -> None:
        if points.xs and points.ys:
            self._clicked(points.xs[0], points.ys[0])


def _replace(old: BasePlotlyType, new: BasePlotlyType) -> None:
    """Make a live trace or layout like another; what only the old one said is taken back."""
    said = new.to_plotly_json()
    gone = dict.fromkeys(old.to_plotly_json().keys() - said.keys() - {"uid"})
    old.update(said | gone, overwrite=True)


class StillView(ipw.HTML):
    """A figure drawn in HTML alone, for front ends without live ones."""

    live = False

    def __init__(self, figure: go.Figure, still: Callable[[go.Figure], str] | None = None):
        """Show a figure; `still` draws it as HTML, as bars or points where it is None."""
        self.figure, self._still = figure, still or _still
        super().__init__(self._still(figure))

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been drawn yet."""
        return not self.figure.data

    def show(self, figure: go.Figure) -> None:
        """Replace what is shown."""
        self.figure = figure
        self.value = self._still(figure)

    def draw(self, drawn: Drawn) -> None:
        """Show a figure."""
        self.show(drawn.figure())

    def on_click(self, clicked: Callable[[float, float], None]) -> None:
        """A picture hears no clicks; sliders do the same."""


def _still(figure: go.Figure) -> str:
    has_bars = any(trace.type == "bar" for trace in figure.data)
    return bars_html(figure) if has_bars else still_html(figure)


def bars_html(figure: go.Figure) -> str:
    """Draw the bars of a figure as HTML: stacked ones in one row, grouped ones a row each."""
    bars = [trace for trace in figure.data if trace.type == "bar"]
    stacked = figure.layout.barmode == "stack"
    rows: dict[str, list[tuple]] = {}
    for trace in bars:
        names, values = (trace.y, trace.x) if stacked else (trace.x, trace.y)
        for name, value in zip(names, values, strict=True):
            row = str(name).replace("<br>", ", ") + ("" if stacked else f", {trace.name}")
            rows.setdefault(row, []).append((trace.name, value, trace.marker.color))
    longest = max((sum(value for _, value, _ in parts) for parts in rows.values()), default=0) or 1
    unit = figure.layout.xaxis.title.text if stacked else figure.layout.yaxis.title.text
    lines = "".join(_row(name, parts, longest) for name, parts in sorted(rows.items()))
    return (
        f"<div><div>{figure.layout.title.text}</div>"
        f"<table style='width:100%'>{lines}</table><div style='opacity:.7'>{unit or ''}</div></div>"
    )


def _row(name: str, parts: list[tuple], longest: float) -> str:
    pieces = "".join(
        f"<span title='{escape(part)} {value:.3g}' style='display:inline-block;height:16px;"
        f"background:{colour};width:{value / longest * 90:.2f}%'></span>"
        for part, value, colour in parts
        if value
    )
    total = sum(value for _, value, _ in parts)
    return (
        f"<tr><td style='white-space:nowrap;padding-right:8px'>{escape(name)}</td>"
        f"<td style='width:100%;line-height:16px'>{pieces} {total:.3g}</td></tr>"
    )


def page(title: str, status: str, drawn: list[go.Figure], footer: str = "") -> str:
    """Return one offline HTML page with these figures."""
    plots = "".join(
        figure.to_html(full_html=False, include_plotlyjs=position == 0)
        for position, figure in enumerate(drawn)
    )
    return (
        "<!doctype html><meta charset='utf-8'><meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)}</title>"
        "<body style='font:15px system-ui;max-width:1100px;margin:auto'>"
        f"<h1 style='font-size:22px'>{escape(title)}</h1><p>{escape(status)}</p>{plots}"
        f"<p style='font-size:12px;opacity:.8'>{escape(footer)}</p></body>"
    )
