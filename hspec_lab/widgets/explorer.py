"""The Explorer: controls that choose a configuration, and everything the lab can say of it.

Dragging answers from replay; *Measure* runs the configuration in a child process.  The panel never
runs a model and never waits.  What it shows is there without a browser too: `choice`, `config`,
`state`, `table(view)`, `figure(view)`, `to_html(path)`, and the buttons as functions.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from hspec_lab import trace_out
from hspec_lab.config import Config
from hspec_lab.timeline import of_run
from hspec_lab.widgets.actions import code_of
from hspec_lab.widgets.answers import Answers
from hspec_lab.widgets.choice import Choice, choice_of, from_query
from hspec_lab.widgets.knowledge import one_line
from hspec_lab.widgets.known import Known, baseline, comparison, label
from hspec_lab.widgets.measuring import NO_MEASURE
from hspec_lab.widgets.panel import Panel
from hspec_lab.widgets.pictures import VIEWS, draw
from hspec_lab.widgets.scene import table_of
from hspec_lab.widgets.views import page

MOST_PINS = 4  # bars that a breakdown keeps readable


class Explorer(Panel):
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
                None: the newest run's that controls can spell, else HierSpec on the zoo.
            answers: what predictions are made of; None: what ships, read in the background.

        Raises:
            ValueError: `measure` cannot be handed to another process, or `config` has a drafter
                that no control spells.
        """
        # a path has a `root` too, the disk's
        known = Known(store if isinstance(store, str | Path) else store.root)
        base, start = _start(known, config)
        super().__init__(known, base, start, measure, answers)
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
        self.views["acceptance"].on_click(lambda x, y: self._guarded(lambda: self.pick(x, y)))
        self.state_text.observe(lambda _: self._guarded(self._typed), "value")

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
        """The choice as one line, as behind a `?` in an address; set it to move the controls.

        A line that leaves out head, context or text speaks of them as by default; ValueError where
        it says what no control can.
        """
        return self.choice.query()

    @state.setter
    def state(self, text: str) -> None:
        unsaid = replace(self.choice, head="", context=None, prompt=None)
        choice, answers = from_query(text, unsaid), self.knowledge.answers
        if answers is not None and choice.device not in answers.devices:
            known = ", ".join(answers.devices)
            raise ValueError(f"device is one of {known}; got {choice.device!r}")
        choice.config(self.base)  # refuses what no configuration can hold
        self.choice = choice

    def table(self, view: str | None = None) -> pd.DataFrame:
        """Return the numbers of a view; None: every run under the present conditions."""
        if view is None:
            return comparison(self.known.like(self.config), self.config)
        found = table_of(self._whole(view), view)
        # what views are drawn from is theirs
        copied = found.copy()
        copied.attrs = dict(found.attrs)
        return copied

    def figure(self, view: str = "breakdown") -> go.Figure:
        """Return a view of the present choice, one of `VIEWS`, worked out in full."""
        return draw(self._whole(view), view).figure()

    def to_html(self, path: Path | str) -> Path:
        """Write all views and the status as one offline page; returns where it lies."""
        path, scene = Path(path), self._whole("scatter")
        drawn = [draw(scene, name).figure() for name in VIEWS]
        text = page(label(self.config), self._standing(scene), drawn, "; ".join(scene.sources()))
        path.write_text(text, encoding="utf-8")
        return path

    def measure(self) -> None:
        """Measure this configuration, and its ar first if that is unknown; returns at once."""
        if not self.worker:
            return self._say(NO_MEASURE, error=True)
        answers = self.knowledge.answers
        if answers is not None and self.choice.device != answers.here:
            # what is measured here stands beside predictions for here
            self.choice = replace(self.choice, device=answers.here)
        config = self.config
        plain = baseline(config)
        # an ar that is known is measured again only when asked for by itself
        first = [plain] if plain != config and not self.known.find(plain) else []
        self.measuring.begin([*first, config])

    def cancel(self) -> None:
        """End the measurement under way; what it has finished before stays."""
        if self.measuring.cancel():
            scene = self.knowledge.look(self.choice, self.known, self.pins)
            self._say(f"cancelled; {self._standing(scene)}")

    def find_best(self) -> None:
        """Move the controls to the fastest recorded setting of this device; returns at once."""
        if self._searching:
            return
        self._searching = True
        self._say("looking through every recorded setting")
        threading.Thread(target=self._found, args=(self.choice,), daemon=True).start()

    def pin(self) -> None:
        """Keep the bars of this setting for comparison."""
        self.known.renew()
        scene = self.knowledge.look(self._choice_here(), self.known, self.pins)
        if not scene.own_bars:
            return self._say("nothing to pin yet: its recordings are being read; press Pin again")
        new = scene.pinned()
        names = {bar.label for bar in new}
        self.pins = [*(bar for bar in self.pins if bar.label not in names), *new][-MOST_PINS:]
        self._pinned()

    def unpin(self) -> None:
        """Drop the bars that were kept."""
        self.pins = []
        self._pinned()

    def pick(self, tree_size: float, depth: float) -> None:
        """Move the sliders to a cell of the acceptance map, and to a method that has a tree."""
        method = self.knowledge.look(self.choice, self.known, []).tree_choice.method
        sizes = {"tree_size": int(tree_size), "depth": int(depth)}
        self.choice = replace(self.choice, method=method, **sizes)

    def code(self) -> str:
        """Return Python that makes this configuration and measures it."""
        return code_of(self.config)

    def export(self, format: str = "perfetto", path: Path | str | None = None) -> Path:
        """Write the measured run of this configuration, or with "page" all views; say where.

        Args:
            format: one of `trace_out.FORMATS`, or "page".

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

    def _whole(self, view: str):
        if view not in VIEWS:
            raise ValueError(f"a view is one of {', '.join(VIEWS)}; got {view!r}")
        self.known.renew()
        return self.knowledge.whole(view, self._choice_here(), self.known, self.pins)

    def _choice_here(self) -> Choice:
        """The choice; before recordings are read no device has been chosen yet."""
        choice = self.choice
        return choice if choice.device else replace(choice, device=self._first_device())

    def _first_device(self) -> str:
        try:
            return self.knowledge.wait().here
        except ValueError:
            return ""

    def _found(self, choice: Choice) -> None:
        """On a thread: search, then move."""
        try:
            found, advice = self.knowledge.wait().best(choice)
            self._advice = found, advice
            self._to_move = found
        except Exception as error:
            self._advice = choice, f"nothing found: {one_line(error)}"
        finally:
            self._searching = False
            self._soon.ask()

    def _pinned(self) -> None:
        self.actions.unpin.disabled = not self.pins
        self._soon.ask()

    def _typed(self) -> None:
        if self.state_text.value != self._written:
            self.state = self.state_text.value

    def _copied(self, done: bool) -> None:
        said = "copied to the clipboard" if done else "select the text below the buttons, copy it"
        self._say(f"the config as code: {said}")

    def _export(self) -> None:
        self._say(f"written: {self.export(self.actions.format.value)}")


def _start(known: Known, config: Config | None) -> tuple[Config, Choice]:
    """What the controls begin with, and what they leave as it is."""
    if config is not None:
        return config, choice_of(config)
    for run in known:
        try:
            return run.config, choice_of(run.config)
        except ValueError:
            continue
    return Config(), Choice()
