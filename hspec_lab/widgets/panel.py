"""The frame of the Explorer: controls on the left, views on the right, one line that says what is.

A move is painted on the event loop.  What is not known yet is worked out in the background while
the figures stay as they were and the line says so; whatever goes wrong is one line too.
"""

import threading
import time
from collections.abc import Callable, Iterable
from html import escape

import ipywidgets as ipw

from hspec_lab import breakdown
from hspec_lab.config import Config
from hspec_lab.prediction import Prediction
from hspec_lab.widgets.actions import Actions, code_of
from hspec_lab.widgets.answers import Answers
from hspec_lab.widgets.choice import Choice
from hspec_lab.widgets.controls import Controls
from hspec_lab.widgets.jobs import Soon
from hspec_lab.widgets.knowledge import Knowledge, one_line
from hspec_lab.widgets.known import Known, label
from hspec_lab.widgets.measuring import Measuring
from hspec_lab.widgets.pictures import VIEWS, draw, nothing
from hspec_lab.widgets.scene import Bar, Scene
from hspec_lab.widgets.views import HOW_TO_GET_LIVE, STYLE, fit, view

_EARLIER = "the figures are of the earlier setting"
# a browser paints nothing while updates keep coming: what a drag is watched by comes first, alone
_FIRST = ("breakdown", "speedup")
_REST_PAUSE_S, _REST_AT_MOST_S = 0.04, 0.15


class Panel(ipw.VBox):
    """Everything that paints; `Explorer` adds what a person asks of it."""

    # a widget is closed when it is forgotten, one too that was never whole
    knowledge: Knowledge | None = None
    measuring: Measuring | None = None

    def __init__(
        self,
        known: Known,
        base: Config,
        start: Choice,
        measure: Callable | None,
        answers: Answers | None,
    ):
        self.known, self.base = known, base
        self.pins: list[Bar] = []
        self._lock = threading.RLock()
        self._soon = Soon(self._paint)
        self._rest = Soon(self._paint_rest, _REST_PAUSE_S, _REST_AT_MOST_S)
        # what the views that come later are to show, and what went wrong with those before
        self._half_painted: tuple[Scene, list[str]] | None = None
        self._advice: tuple[Choice | None, str] = (None, "")
        self._searching, self._offered = False, False
        # threads do not move controls themselves: a painting would find them half moved
        self._to_move: Choice | None = None
        self._written = ""
        self.controls = Controls(start)
        options = {"root": known.root, "again": True}
        self.measuring = Measuring(measure, self._say, self._measured, **options)
        self.actions = Actions()
        self._build()
        # begins to read, and to ask for a painting, at once
        self.knowledge = Knowledge(base, answers, self._soon.ask)
        self.controls.watch(self._soon.ask)
        self._paint()

    def _build(self) -> None:
        self.status, self.footer = ipw.HTML(), ipw.HTML()
        self.measure_button, self.cancel_button = self.measuring.start, self.measuring.stop
        self.progress, self.worker = self.measuring.progress, self.measuring.worker
        self.state_text = ipw.Text(
            description="state",
            tooltip="these settings as one line: copy it, or put another one in",
            continuous_update=False,
            style={"description_width": "40px"},
            layout={"width": "340px"},
        )
        empty = Scene(self.controls.choice, self.base, self.known)
        self.views = {name: view(draw(empty, name).figure()) for name in VIEWS}
        self.breakdown_view, self.speedup_view = self.views["breakdown"], self.views["speedup"]
        grid = ipw.Box(list(self.views.values()))
        grid.add_class("hspec-grid")
        parts = [self.controls, self.measuring, self.actions, self.state_text]
        left = ipw.VBox(parts, layout={"flex": "0 0 360px"})
        shown = [self.status, grid, self.footer]
        right = ipw.VBox(shown, layout={"flex": "1 1 460px", "min_width": "0"})
        panel = ipw.Box([left, right], layout={"flex_flow": "row wrap", "width": "100%"})
        super().__init__([ipw.HTML(STYLE, layout={"display": "none"}), panel, *fit()])
        self.add_class("hspec-explorer")

    @property
    def busy(self) -> bool:
        """Whether something is being measured."""
        return self.measuring.busy

    def wait(self, timeout_s: float = 600.0) -> bool:
        """Block until all is measured, worked out and shown; False if time ran out."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self._soon.flush()
            self._rest.flush()
            idle = self.knowledge.background.idle and not self._searching
            pending = self._soon.pending or self._rest.pending
            if idle and self.measuring.settled and not pending:
                return True
            time.sleep(0.01)
        return False

    def close(self) -> None:
        """End the child process and close the panel."""
        if self.knowledge is not None:
            self._soon.stop()
            self._rest.stop()
            self.knowledge.close()
            self.measuring.close()
        super().close()

    def _guarded(self, act: Callable) -> None:
        """What a callback does: a failure is a line in the panel, never a traceback below it."""
        try:
            act()
        except Exception as error:
            self._say(one_line(error), error=True)

    def _paint(self) -> None:
        with self._lock:
            self._guarded(self._painted)

    def _painted(self) -> None:
        knowledge = self.knowledge
        if knowledge.answers is not None and not self._offered:
            self._offered = True
            self.controls.offer(knowledge.answers.devices, knowledge.answers.texts())
        if self._to_move is not None:
            self.controls.choice, self._to_move = self._to_move, None
        self.known.renew()
        choice = self.controls.choice
        scene = knowledge.look(choice, self.known, self.pins)
        problem = knowledge.problem or knowledge.failure(choice)
        # figures first: what is told besides may come a moment later
        if scene.answers is None:
            self._paint_measured(scene, problem)
        else:
            self._paint_all(scene)
        self._written = choice.query()
        self.state_text.value = self._written
        self.actions.code = code_of(choice.config(self.base))
        knowledge.want(choice, self.known)

    def _paint_all(self, scene: Scene) -> None:
        self._half_painted = scene, self._drawn(scene, _FIRST)
        self._rest.ask()

    def _paint_rest(self) -> None:
        with self._lock:
            self._guarded(self._painted_rest)

    def _painted_rest(self) -> None:
        if self._half_painted is None:
            return
        (scene, problems), self._half_painted = self._half_painted, None
        problems += self._drawn(scene, [name for name in VIEWS if name not in _FIRST])
        if n_bad := len(self.known.problems):
            problems.append(f"{n_bad} run folder{'s' * (n_bad > 1)} cannot be read, see below")
        notes = [*scene.sources(), *self.known.problems]
        sources = "".join(f"<li>{escape(note)}</li>" for note in notes)
        self.footer.value = (
            "<details class='hspec-sources'><summary>Where these numbers come from</summary>"
            f"<ul>{sources}</ul></details>"
        )
        self._stand(scene, [*scene.problems, *problems])

    def _drawn(self, scene: Scene, names: Iterable[str]) -> list[str]:
        """Draw views; a line for each that could not be."""
        problems = []
        for name in names:
            try:
                self.views[name].draw(draw(scene, name))
            except Exception as error:
                problems.append(f"{name} is of an earlier setting: {one_line(error)}")
        return problems

    def _paint_measured(self, scene: Scene, problem: str) -> None:
        """While there is no prediction: a run of just this setting, else what was shown."""
        self._half_painted = None
        if scene.bars and scene.run is not None:
            self.views["breakdown"].draw(draw(scene, "breakdown"))
        for name in VIEWS if problem else ():
            # a view that has shown nothing yet would say for ever that it is being read
            if name != "breakdown" and self.views[name].is_empty:
                self.views[name].draw(nothing(name, problem))
        reading = "" if problem else f"reading the recordings of this setting; {_EARLIER}"
        self._stand(scene, [*scene.problems, reading or f"{problem}; {_EARLIER}"], bool(problem))

    def _stand(self, scene: Scene, problems: list[str], error: bool = False) -> None:
        if not self.busy and not self._searching:
            self._say("; ".join([self._standing(scene), *filter(None, problems)]), error)

    def _standing(self, scene: Scene) -> str:
        """What is shown, in one line."""
        parts = []
        if scene.answers is not None:
            parts.append(f"{_told(scene.prediction)} predicted on {scene.choice.device}")
        run = scene.run
        if run is not None:
            try:
                speed = breakdown.tokens_per_s(run.tables["rounds"])
                parts.append(f"{speed:.1f} tokens/s, measured on {run.note}")
            except ValueError:
                run = None
        failed, why = self.measuring.failure or (None, "")
        if failed == scene.config:
            parts.append(why)
        elif run is None:
            parts.append(f"not measured yet{': press Measure' if self.worker else ''}")
        advised, advice = self._advice
        parts += [advice] if advised == scene.choice else []
        return f"{label(scene.config)}: {'; '.join(parts)}"

    def _measured(self, folder: str) -> None:
        self.known.refresh(folder)
        self._soon.ask()

    def _say(self, text: str, error: bool = False) -> None:
        line = escape(" ".join(text.split()))
        # room for two lines, so that figures do not jump with what is said above them
        colour = "#D55E00" if error else "inherit"
        style = f"color:{colour};line-height:1.4;min-height:2.8em;margin-bottom:6px"
        still = "" if self.breakdown_view.live else f"<div>{escape(HOW_TO_GET_LIVE)}</div>"
        self.status.value = f"<div role='status' style='{style}'>{line}{still}</div>"


def _told(found: Prediction) -> str:
    """Speed, and over plain decoding with its interval where that says anything."""
    speed = f"{found.tokens_per_s:.0f} tokens/s"
    if found.draft is None:
        return speed
    known = found.speedup_low == found.speedup_low  # not NaN, as of a single text
    interval = f" ({found.speedup_low:.2f} to {found.speedup_high:.2f})" if known else ""
    return f"{speed}, {found.speedup:.2f}×{interval} plain"
