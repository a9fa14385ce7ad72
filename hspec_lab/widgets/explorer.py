"""The Explorer: controls that choose a configuration, and what a store of runs knows of it.

Moving a control shows the recorded run of that configuration at once, or says that there is none;
*Measure* makes one in a child process.  The panel never runs a model and never waits.  What it
shows is there without a browser too: `config`, `table()`, `figure()`, `to_html(path)`.
"""

import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as ipw
import pandas as pd
import plotly.graph_objects as go

from hspec_lab import breakdown, figures
from hspec_lab.config import Config
from hspec_lab.widgets.controls import Controls
from hspec_lab.widgets.known import Known, baseline, best_of_each, comparison, label, stacked
from hspec_lab.widgets.views import HOW_TO_GET_LIVE, STYLE, fit, page, view
from hspec_lab.widgets.worker import Message, Worker

DEBOUNCE_S = 0.1
NO_MEASURE = "to measure here, hand over the function that does it: Explorer(store, measure=run)"


class Explorer(ipw.VBox):
    """A panel over a store of runs: `Explorer(result.store, measure=run, config=result.config)`."""

    worker: Worker | None = None

    def __init__(self, store, measure: Callable | None = None, config: Config | None = None):
        """Show what `store` knows.

        Args:
            store: the folder of runs, or anything with a `root` such as `lab.open_store()`.
            measure: (config, progress=callable(done, total, text)) -> an object with `.folder`;
                called in a child process, so it must be importable there.  One that takes `root`
                and `again`, as `hspec_lab.run` does, writes into this store and measures anew.
            config: where the controls begin; prompts, lengths, device and threads stay its own.

        Raises:
            ValueError: `measure` cannot be handed to another process.
        """
        # a path has a `root` too, the disk's
        self.known = Known(store if isinstance(store, str | Path) else store.root)
        if measure:
            self.worker = Worker(measure, self._tell, root=self.known.root, again=True)
        # controls move on one thread, the child speaks on another, timers tick on a third
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._todo: list[Config] = []
        self._n_jobs = self._job = 0
        self.controls = Controls(config or Config())
        self._build()
        self.controls.watch(self._moved)
        self._say(self._standing())

    def _build(self) -> None:
        self.status = ipw.HTML()
        self.measure_button = ipw.Button(description="Measure", icon="play", button_style="primary")
        self.cancel_button = ipw.Button(description="Cancel", disabled=True)
        self.measure_button.disabled = self.worker is None
        self.measure_button.tooltip = "run this configuration now" if self.worker else NO_MEASURE
        self.measure_button.on_click(lambda _: self.measure())
        self.cancel_button.on_click(lambda _: self.cancel())
        self.progress = ipw.FloatProgress(
            max=1.0, layout={"width": "340px", "visibility": "hidden"}
        )
        self.breakdown_view = view(self.figure())
        self.speedup_view = view(self.speedup_figure())
        views = ipw.Box([self.breakdown_view, self.speedup_view], layout={"flex_flow": "row wrap"})
        views.add_class("hspec-views")
        buttons = ipw.HBox([self.measure_button, self.cancel_button])
        left = ipw.VBox([self.controls, buttons, self.progress], layout={"flex": "0 0 360px"})
        right = ipw.VBox([self.status, views], layout={"flex": "1 1 460px", "min_width": "0"})
        panel = ipw.Box([left, right], layout={"flex_flow": "row wrap", "width": "100%"})
        super().__init__([ipw.HTML(STYLE, layout={"display": "none"}), panel, *fit()])
        self.add_class("hspec-explorer")

    @property
    def config(self) -> Config:
        """The configuration that the controls spell now."""
        return self.controls.config

    @property
    def busy(self) -> bool:
        """Whether something is being measured."""
        return bool(self._todo)

    def table(self) -> pd.DataFrame:
        """Return every measured configuration under the present conditions, newest first."""
        config = self.config
        return comparison(self.known.like(config), config)

    def figure(self) -> go.Figure:
        """Return the time per emitted token by phase: this configuration, and ar beside it."""
        config = self.config
        here = self.known.find(config)
        runs = [run for run in (self.known.find(baseline(config)), here) if run]
        if here and here.config.method == "ar":
            runs = [here]
        return figures.breakdown_bar(stacked(runs), note=(runs[-1].note if runs else ""))

    def speedup_figure(self) -> go.Figure:
        """Return the speed-up of the best known configuration of each method and format."""
        config = self.config
        runs = self.known.like(config)
        note = "fastest known of each, the current one outlined; " + runs[0].note if runs else ""
        return figures.speedup_bars(best_of_each(comparison(runs, config)), note=note)

    def to_html(self, path: Path | str) -> Path:
        """Write both figures and the status as one offline page; returns where it lies."""
        path = Path(path)
        drawn = [self.figure(), self.speedup_figure()]
        path.write_text(page(label(self.config), self._standing(), drawn), encoding="utf-8")
        return path

    def measure(self) -> None:
        """Measure this configuration, and its ar first if that is unknown; returns at once."""
        if not self.worker:
            return self._say(NO_MEASURE, error=True)
        config = self.config
        plain = baseline(config)
        with self._lock:
            # an ar that is known is measured again only when asked for by itself
            first = [plain] if plain != config and not self.known.find(plain) else []
            self._todo = [*first, config]
            self._n_jobs = len(self._todo)
            self.cancel_button.disabled = False
            self.progress.value = 0.0
            self.progress.layout.visibility = "visible"
            self._next()

    def cancel(self) -> None:
        """End the measurement under way; what it has finished before stays."""
        with self._lock:
            if self.busy:
                self.worker.cancel()
                self._finish()
                self._say("cancelled; " + self._standing())

    def wait(self, timeout_s: float = 600.0) -> bool:
        """Block until all is measured and shown, for scripts and tests; False if time ran out."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                if not self.busy and self._timer is None:
                    return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        """End the child process and close the panel."""
        if self.worker:
            self.worker.cancel()
        super().close()

    def _moved(self) -> None:
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(DEBOUNCE_S, self._show)
                self._timer.daemon = True
                self._timer.start()

    def _show(self) -> None:
        with self._lock:
            try:
                self.breakdown_view.show(self.figure())
                self.speedup_view.show(self.speedup_figure())
                if not self.busy:
                    self._say(self._standing())
            except ValueError as error:
                self._say(str(error), error=True)
            finally:
                self._timer = None

    def _next(self) -> None:
        self._job = self.worker.submit(self._todo[0])
        self._say(self._doing("starting"))

    def _tell(self, message: Message) -> None:
        """Take what the child says; runs on the worker's thread."""
        with self._lock:
            if message.job != self._job or not self.busy:
                return
            if message.kind == "progress":
                self._progressed(message)
            elif message.kind == "done":
                self._measured(message.text)
            else:
                self._finish()
                self._say(f"not measured: {message.text}", error=True)

    def _progressed(self, message: Message) -> None:
        done_before = self._n_jobs - len(self._todo)
        share = min(message.done / message.total, 1.0) if message.total else 0.0
        self.progress.value = (done_before + share) / self._n_jobs
        self._say(self._doing(message.text))

    def _measured(self, folder: str) -> None:
        self.known.refresh(folder)
        self._todo.pop(0)
        if self._todo:
            self._next()
        else:
            self._finish()
        self._show()

    def _finish(self) -> None:
        self._todo = []
        self.cancel_button.disabled = True
        self.progress.layout.visibility = "hidden"

    def _doing(self, text: str) -> str:
        which = (
            f" ({self._n_jobs - len(self._todo) + 1} of {self._n_jobs})" if self._n_jobs > 1 else ""
        )
        return f"measuring {label(self._todo[0])}{which}: {text}"

    def _standing(self) -> str:
        """What is shown, in one line."""
        config = self.config
        run = self.known.find(config)
        if run is None:
            return f"{label(config)}: not measured yet" + (
                ": press Measure" if self.worker else "; " + NO_MEASURE
            )
        speed = run.tables["rounds"].pipe(breakdown.tokens_per_s)
        return f"{label(config)}: {speed:.1f} tokens/s, measured on {run.note}"

    def _say(self, text: str, error: bool = False) -> None:
        line = escape(" ".join(text.split()))
        style = f"color:{'#D55E00' if error else 'inherit'};line-height:1.4;margin-bottom:8px"
        still = "" if self.breakdown_view.live else f"<div>{escape(HOW_TO_GET_LIVE)}</div>"
        self.status.value = f"<div role='status' style='{style}'>{line}{still}</div>"
