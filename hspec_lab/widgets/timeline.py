"""The timeline of a run or a trace, to zoom and drag: what is in view is drawn, and only that.

view = TimelineView(run(config))
view.show_round(prompt=2, round=17)
view.figure(), view.table(), view.to_html("view.html")

Zooming asks for another view; of several such wishes the latest is drawn.  The panel runs no model
and imports no torch.
"""

import threading
import time
from dataclasses import replace
from html import escape
from pathlib import Path

import ipywidgets as ipw
import pandas as pd
import plotly.graph_objects as go

from hspec_lab import figures_trace, trace_out
from hspec_lab.analysis.attribution import attribute
from hspec_lab.analysis.rounds import slowest
from hspec_lab.timeline import Timeline
from hspec_lab.widgets.still import still_html
from hspec_lab.widgets.views import HOW_TO_GET_LIVE, STYLE, LiveView, StillView, fit, page

DEBOUNCE_S = 0.06
WIDTH_PX = 1600
# around a round, so that one sees what it lies between
_MARGIN = 0.06
# dragging by so much of a view shows nothing empty
_BEYOND = 0.5


class TimelineView(ipw.VBox):
    """A timeline with buttons, a slider over rounds, and the list of the slowest ones."""

    def __init__(self, shown):
        """Show all of it.

        Args:
            shown: a `Timeline`, or anything whose method `timeline()` gives one, as a run.
        """
        timeline = shown if isinstance(shown, Timeline) else shown.timeline()
        self.timeline, drawn = timeline, timeline
        if len(timeline.kernels):
            drawn = replace(timeline, kernels=attribute(timeline))
        self._lanes = figures_trace.lanes(drawn)
        self.rounds = timeline.ranges[timeline.ranges["kind"] == "round"].reset_index(drop=True)
        self.view = self._whole
        # a front end speaks on one thread, timers tick on another
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._wanted: tuple[tuple[float, float], bool] | None = None
        self._build()

    def _build(self) -> None:
        self.picture = _picture(self.figure())
        self.status = ipw.HTML()
        self.buttons = {
            "whole run": lambda: self._want(self._whole),
            "previous round": lambda: self._step(-1),
            "this round": lambda: self._step(0),
            "next round": lambda: self._step(1),
        }
        pressed = []
        for name, work in self.buttons.items():
            button = ipw.Button(description=name, layout={"width": "120px"})
            button.on_click(lambda _, work=work: work())
            self.buttons[name] = button
            pressed.append(button)
        self._build_choices()
        row = ipw.Box([*pressed, self.slider], layout={"flex_flow": "row wrap"})
        style = ipw.HTML(STYLE, layout={"display": "none"})
        super().__init__([style, row, self.slowest, self.picture, self.status, *fit()])
        self.add_class("hspec-explorer")
        if self.picture.live:
            self.picture.figure.layout.on_change(self._zoomed, "xaxis.range")
        self._say()

    def _build_choices(self) -> None:
        """The slider over rounds and the list of slow ones; off where there are no rounds."""
        rounds = [(_called(row), at) for at, row in enumerate(self.rounds.itertuples())]
        measured = (~self.rounds["warmup"].to_numpy()).argmax() if rounds else 0
        self.slider = ipw.SelectionSlider(
            options=rounds or [("none", 0)],
            value=int(measured),
            description="round",
            layout={"width": "480px"},
        )
        self.slowest = ipw.Dropdown(
            options=[("choose one", -1), *self._slowest()],
            description="slowest",
            layout={"width": "100%", "max_width": "1100px"},
        )
        self.slider.observe(lambda _: self._step(0), "value")
        self.slowest.observe(lambda change: self._jump(change["new"]), "value")
        by_round = [button for name, button in self.buttons.items() if name != "whole run"]
        for control in (*by_round, self.slider, self.slowest):
            control.disabled = self.rounds.empty

    @property
    def _whole(self) -> tuple[float, float]:
        return 0.0, max(self._lanes.end_ns / 1e3, 1.0)

    def figure(self) -> go.Figure:
        """Return the picture of the present view."""
        return figures_trace.timeline(self._lanes, self.view, WIDTH_PX, beyond=_BEYOND)

    def table(self) -> pd.DataFrame:
        """Return the ranges that lie in the present view, with `start_us` and `duration_us`."""
        ranges = self.timeline.ranges
        start, end = (1e3 * edge for edge in self.view)
        rows = ranges[(ranges["end_ns"] >= start) & (ranges["start_ns"] <= end)]
        took = (rows["end_ns"] - rows["start_ns"]) / 1e3
        rows = rows.assign(start_us=rows["start_ns"] / 1e3, duration_us=took)
        return rows.drop(columns=["start_ns", "end_ns"]).reset_index(drop=True)

    def to_html(self, path: Path | str) -> Path:
        """Write the present view as one offline page; returns where it lies."""
        path = Path(path)
        path.write_text(page("Timeline", self._standing(), [self.figure()]), encoding="utf-8")
        return path

    def export(self, folder: Path | str) -> pd.DataFrame:
        """Write the whole timeline in every format, into a folder.

        Returns:
            format, bytes, path, one row each.
        """
        rows = []
        for to in trace_out.FORMATS:
            path = trace_out.write(
                self.timeline, to, Path(folder) / trace_out.default_name("timeline", to)
            )
            files = path.iterdir() if path.is_dir() else [path]
            rows.append((to, sum(file.stat().st_size for file in files), str(path)))
        return pd.DataFrame(rows, columns=["format", "bytes", "path"])

    def show(self, start_us: float, end_us: float) -> None:
        """Move the view, now.

        Raises:
            ValueError: the view ends before it starts.
        """
        if not start_us < end_us:
            raise ValueError(f"a view starts before it ends, got {start_us} to {end_us} us")
        self._want((float(start_us), float(end_us)))
        self.wait()

    def show_round(self, prompt: int, round: int) -> None:
        """Move the view to a round, now.

        Raises:
            ValueError: there is no such round.
        """
        at = self._place(prompt, round)
        if at is None:
            raise ValueError(f"no round {round} of prompt {prompt} was recorded")
        self._jump(at)
        self.wait()

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Block until the last wish is drawn, for scripts and tests; False if time ran out."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                if self._timer is None:
                    return True
            time.sleep(0.005)
        return False

    def _want(self, view: tuple[float, float], move: bool = True) -> None:
        """Ask for a view; `move`: the picture is not there yet."""
        with self._lock:
            self._wanted = (view, move)
            if self._timer is None:
                self._timer = threading.Timer(DEBOUNCE_S, self._draw)
                self._timer.daemon = True
                self._timer.start()

    def _draw(self) -> None:
        with self._lock:
            self.view, move = self._wanted
            try:
                if move or not self.picture.live:
                    self.picture.show(self.figure())
                else:
                    _refill(self.picture.figure, self.figure())
                self._say()
            finally:
                # what drawing sets off itself came while the timer stood, and is no wish
                self._wanted = self._timer = None

    def _zoomed(self, _layout, shown) -> None:
        """Take the range that somebody zoomed to."""
        if shown is not None and None not in shown:
            start, end = sorted(1e3 * float(edge) for edge in shown)
            self._want((start, max(end, start + 1e-3)), move=False)

    def _chosen(self) -> tuple[float, float]:
        row = self.rounds.iloc[self.slider.value]
        start, end = (float(row[edge]) / 1e3 for edge in ("start_ns", "end_ns"))
        margin = _MARGIN * max(end - start, 1.0)
        return start - margin, end + margin

    def _step(self, by: int) -> None:
        """Move on by a round, and show it even where there is none further."""
        at = min(max(self.slider.value + by, 0), len(self.rounds) - 1)
        self.slider.value = at
        self._want(self._chosen())

    def _jump(self, at: int) -> None:
        if at >= 0:
            self.slider.value = at
            self._want(self._chosen())

    def _place(self, prompt: int, round: int) -> int | None:
        rounds = self.rounds
        here = (rounds["prompt"] == prompt) & (rounds["round"] == round) & ~rounds["warmup"]
        return int(here.to_numpy().argmax()) if here.any() else None

    def _slowest(self) -> list[tuple[str, int]]:
        tables = self.timeline.tables()
        if tables["rounds"].empty or tables["spans"].empty:
            return []
        try:
            rows = slowest(tables["rounds"], tables["spans"])
        except ValueError:  # of a foreign trace; its rounds can be looked at all the same
            return []
        return [(_told(row), self._place(row.prompt, row.round)) for row in rows.itertuples()]

    def _standing(self) -> str:
        """What is shown, in one line."""
        start, end = self.view
        counts = self.picture.figure.layout.meta
        drawn = f"{counts['n_spans']:,} spans drawn as {counts['n_bars']:,} bars"
        took, whole = (figures_trace.time(edge) for edge in (end - start, self._whole[1]))
        return f"{took} of {whole} in view; there and beside it {drawn}"

    def _say(self) -> None:
        still = "" if self.picture.live else f"<div>{escape(HOW_TO_GET_LIVE)}</div>"
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.timeline.notes)
        words = f"<div role='status'>{escape(self._standing())}</div>{still}{notes}"
        self.status.value = f"<div style='line-height:1.4'>{words}</div>"


def _picture(figure: go.Figure) -> LiveView | StillView:
    """A widget that shows timelines; live where plotly's FigureWidget works."""
    try:
        live = LiveView(figure)
    except ImportError:
        return StillView(figure, still_html)
    live.figure._config = {"responsive": True, "displayModeBar": False, "scrollZoom": True}
    return live


def _refill(live: go.FigureWidget, figure: go.Figure) -> None:
    """Give a figure other bars and leave its axes where somebody holds them."""
    with live.batch_update():
        for old, new in zip(live.data, figure.data, strict=True):
            old.update(new.to_plotly_json(), overwrite=True)
        live.layout.meta = figure.layout.meta


def _called(row) -> str:
    words = f"{row.round} of prompt {row.prompt}" if row.round >= 0 else "not numbered"
    return f"warm-up, {words}" if row.warmup else words


def _told(row) -> str:
    return f"{row.duration_us / 1e3:.2f} ms, prompt {row.prompt}, round {row.round}: {row.why}"
