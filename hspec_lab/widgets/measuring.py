"""What a panel measures: a configuration, its plain decoding first, in a child; the latest wins."""

import threading
from collections.abc import Callable
from html import escape

import ipywidgets as ipw

from hspec_lab.config import Config
from hspec_lab.widgets.known import label
from hspec_lab.widgets.worker import Message, Worker

NO_MEASURE = "to measure here, hand over the function that does it: Explorer(store, measure=run)"


class Measuring(ipw.VBox):
    """Two buttons and a bar: what is being measured and how far it is.

    Args:
        measure: as of `Explorer`; None: the button is off.
        told: called with what a person should know, and whether that is an error.
        done: called with the folder of each run that was written.
        options: handed to `measure`, see `Worker`.
    """

    worker: Worker | None = None

    def __init__(
        self,
        measure: Callable | None,
        told: Callable[[str, bool], None],
        done: Callable[[str], None],
        **options,
    ):
        self.worker = Worker(measure, self._take, **options) if measure else None
        self._told, self._done = told, done
        # controls move on one thread, the child speaks on another
        self._lock = threading.RLock()
        self._todo: list[Config] = []
        self._n_jobs = self._job = 0
        self._telling = False
        # what failed last, and why: a person is told until something else is chosen or measured
        self.failure: tuple[Config, str] | None = None
        self.start = ipw.Button(description="Measure", icon="play", button_style="primary")
        self.stop = ipw.Button(
            description="Cancel", icon="stop", disabled=True, tooltip="end what is being measured"
        )
        self.start.disabled = self.worker is None
        self.start.tooltip = "run this configuration now"
        self.progress = ipw.FloatProgress(
            max=1.0, layout={"width": "340px", "visibility": "hidden"}
        )
        rows = [ipw.HBox([self.start, self.stop]), self.progress]
        if self.worker is None:
            self.start.tooltip = NO_MEASURE
            words = f"<div style='line-height:1.3;opacity:.8'>{escape(NO_MEASURE)}</div>"
            rows[1] = ipw.HTML(words, layout={"width": "340px"})
        super().__init__(rows)

    @property
    def busy(self) -> bool:
        """Whether something is being measured."""
        return bool(self._todo)

    @property
    def settled(self) -> bool:
        """Whether nothing is being measured and everybody was told."""
        return not self.busy and not self._telling

    def begin(self, configs: list[Config]) -> None:
        """Measure these one after the other, ending whatever is under way; returns at once."""
        with self._lock:
            self._todo, self.failure = list(configs), None
            self._last = configs[-1]
            self._n_jobs = len(configs)
            self.stop.disabled = False
            self.progress.value = 0.0
            self.progress.layout.visibility = "visible"
            self._next()

    def cancel(self) -> bool:
        """End what is under way; says whether anything was."""
        with self._lock:
            was_busy = self.busy
            if was_busy:
                self.worker.cancel()
                self._finish()
            return was_busy

    def close(self) -> None:
        """End the child and close the buttons."""
        if self.worker:
            self.worker.cancel()
        super().close()

    def _next(self) -> None:
        self._told(self._doing("starting"), False)
        self._job = self.worker.submit(self._todo[0])

    def _take(self, message: Message) -> None:
        """Take what the child says; runs on the worker's thread."""
        with self._lock:
            if message.job != self._job or not self.busy:
                return
            if message.kind == "progress":
                self._progressed(message)
            elif message.kind == "done":
                self._measured(message.text)
            else:
                self._telling = True
                self.failure = self._last, f"not measured: {message.text}"
                self._finish()
                self._told(self.failure[1], True)
                self._telling = False

    def _progressed(self, message: Message) -> None:
        done_before = self._n_jobs - len(self._todo)
        share = min(message.done / message.total, 1.0) if message.total else 0.0
        self.progress.value = (done_before + share) / self._n_jobs
        self._told(self._doing(message.text), False)

    def _measured(self, folder: str) -> None:
        # whoever waits goes on when there is something to see, not a moment before
        self._telling = True
        self._todo.pop(0)
        if self._todo:
            self._next()
        else:
            self._finish()
        self._done(folder)
        self._telling = False

    def _finish(self) -> None:
        self._todo = []
        self.stop.disabled = True
        self.progress.layout.visibility = "hidden"

    def _doing(self, text: str) -> str:
        number = self._n_jobs - len(self._todo) + 1
        which = f" ({number} of {self._n_jobs})" if self._n_jobs > 1 else ""
        return f"measuring {label(self._todo[0])}{which}: {text}"
