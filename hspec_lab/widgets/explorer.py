"""The Explorer: controls that choose a configuration, and everything the lab can say of it.

Dragging answers from replay; *Measure* runs the configuration in a child process.  The panel never
runs a model and never waits.  What it shows is there without a browser too: `choice`, `config`,
`state`, `table(view)`, `figure(view)`, `to_html(path)`, and the buttons as functions.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from html import escape
from pathlib import Path

import ipywidgets as ipw
import pandas as pd
import plotly.graph_objects as go

from hspec_lab import breakdown, trace_out
from hspec_lab.config import Config
from hspec_lab.timeline import of_run
from hspec_lab.widgets.actions import Actions, code_of
from hspec_lab.widgets.answers import Answers
from hspec_lab.widgets.choice import Choice, choice_of, from_query
from hspec_lab.widgets.controls import Controls
from hspec_lab.widgets.knowledge import Knowledge
from hspec_lab.widgets.known import Known, baseline, comparison, label
from hspec_lab.widgets.measuring import Measuring
from hspec_lab.widgets.pictures import VIEWS, draw
from hspec_lab.widgets.scene import Bar, Scene
from hspec_lab.widgets.views import HOW_TO_GET_LIVE, STYLE, fit, page, view

NO_MEASURE = "to measure here, hand over the function that does it: Explorer(store, measure=run)"


class Explorer(ipw.VBox):
    """A panel over a store of runs: `Explorer(result.store, measure=run, config=result.config)`."""

    def __init__(
        self,
        store,
        measure: Callable | None = None,
        config: Config | None = None,
        answers: Answers | None = None,
    ):
        """Show what is recorded, and what `store` knows.

        Args:
            store: the folder of runs, or anything with a `root` such as `lab.open_store()`.
            measure: (config, progress=callable(done, total, text)) -> an object with `.folder`;
                called in a child process, so it must be importable there.  One that takes `root`
                and `again`, as `hspec_lab.run` does, writes into this store and measures anew.
            config: where the controls begin; prompts, lengths, device and threads stay its own.
                None: the newest run's, else HierSpec on the zoo.
            answers: what predictions are made of; None: what ships, read in the background.

        Raises:
            ValueError: `measure` cannot be handed to another process, or `config` has a drafter
                that no control spells.
        """
        # a path has a `root` too, the disk's
        self.known = Known(store if isinstance(store, str | Path) else store.root)
        self.base, start = _start(self.known, config)
        self.pins: list[Bar] = []
        self._lock = threading.RLock()
        self._soon = Soon(self._paint)
        self._search, self._searching = 0, False
        self._advice: tuple[Choice, str] | None = None
        self.controls = Controls(start)
        self.measuring = Measuring(
            measure, self._say, self._measured, root=self.known.root, again=True
        )
        self.actions = Actions()
        self.knowledge = Knowledge(self.base, answers, self._soon.ask)
        self._offered = False
        self._build()
        self._connect()
        self._paint()

    def _build(self) -> None:
        self.status, self.footer = ipw.HTML(), ipw.HTML()
        self.measure_button, self.cancel_button = self.measuring.start, self.measuring.stop
        self.progress = self.measuring.progress
        self.measure_button.tooltip = (
            NO_MEASURE if self.measure_button.disabled else "run this configuration now"
        )
        self.state_text = ipw.Text(
            description="state",
            tooltip="these settings as one line: copy it, or put another one in",
            continuous_update=False,
            style={"description_width": "40px"},
            layout={"width": "340px"},
        )
        empty = self.knowledge.look(self.choice, self.known, [])
        self.views = {name: view(draw(empty, name).figure()) for name in VIEWS}
        self.breakdown_view, self.speedup_view = self.views["breakdown"], self.views["speedup"]
        grid = ipw.Box(list(self.views.values()))
        grid.layout.display = None
        grid.add_class("hspec-grid")
        parts = [self.controls, self.measuring, self.actions, self.state_text]
        left = ipw.VBox(parts, layout={"flex": "0 0 360px"})
        left.add_class("hspec-controls")
        right = ipw.VBox(
            [self.status, grid, self.footer], layout={"flex": "1 1 460px", "min_width": "0"}
        )
        panel = ipw.Box([left, right], layout={"flex_flow": "row wrap", "width": "100%"})
        super().__init__([ipw.HTML(STYLE, layout={"display": "none"}), panel, *fit()])
        self.add_class("hspec-explorer")

    def _connect(self) -> None:
        """Every callback is guarded: what fails is one line in the panel."""
        self.controls.watch(self._soon.ask)
        presses = {
            self.measure_button: self.measure,
            self.cancel_button: self.cancel,
            self.actions.find_best: self.find_best,
            self.actions.pin: self.pin,
            self.actions.unpin: self.unpin,
            self.actions.export: self._export,
        }
        for button, act in presses.items():
            button.on_click(lambda _, act=act: self._guarded(act))
        self.actions.on_copy(self._copied)
        self.views["acceptance"].on_click(
            lambda x, y: self._guarded(lambda: self._pick(int(x), int(y)))
        )
        self.state_text.observe(lambda change: self._guarded(self._typed), "value")

    @property
    def choice(self) -> Choice:
        """What the controls spell now; set it to move them."""
        return self.controls.choice

    @choice.setter
    def choice(self, choice: Choice) -> None:
        self.controls.choice = choice

    @property
    def config(self) -> Config:
        """The configuration that the controls spell now."""
        return self.choice.config(self.base)

    @property
    def state(self) -> str:
        """The choice as one line, as behind a `?` in an address; set it to move the controls."""
        return self.choice.query()

    @state.setter
    def state(self, text: str) -> None:
        unsaid = replace(self.choice, head="", context=None, prompt=None)
        choice, answers = from_query(text, unsaid), self.knowledge.answers
        if answers is not None and choice.device not in answers.devices:
            raise ValueError(
                f"device is one of {', '.join(answers.devices)}; got {choice.device!r}"
            )
        self.choice = choice

    @property
    def worker(self):
        """The child process that measures; None without `measure`."""
        return self.measuring.worker

    @property
    def busy(self) -> bool:
        """Whether something is being measured."""
        return self.measuring.busy

    def table(self, view: str | None = None) -> pd.DataFrame:
        """Return the numbers of a view; None: every run under the present conditions."""
        if view is None:
            return comparison(self.known.like(self.config), self.config)
        return table_of(self._whole(view), view)

    def figure(self, view: str = "breakdown") -> go.Figure:
        """Return a view of the present choice, one of `VIEWS`, worked out in full."""
        return draw(self._whole(view), view).figure()

    def to_html(self, path: Path | str) -> Path:
        """Write all views and the status as one offline page; returns where it lies."""
        path, scene = Path(path), self._whole("scatter")
        drawn = [draw(scene, name).figure() for name in VIEWS]
        footer = "; ".join(scene.sources())
        text = page(label(self.config), self._standing(scene), drawn, footer)
        path.write_text(text, encoding="utf-8")
        return path

    def code(self) -> str:
        """Return Python that makes this configuration and measures it."""
        return code_of(self.config)

    def export(self, format: str = "perfetto", path: Path | str | None = None) -> Path:
        """Write the measured run of this configuration, or with "page" all views; say where.

        Raises:
            ValueError: it is not measured, an unknown format, or the path is taken.
        """
        if format == "page":
            return self.to_html(path or "explorer.html")
        run = self.known.find(self.config)
        if run is None:
            raise ValueError(f"{label(self.config)} is not measured: press Measure, then Export")
        path = path or trace_out.default_name(run.folder.name, format)
        return trace_out.write(of_run(run.head, run.tables), format, path)
