"""Answers on their way: recordings are read and walked on a thread of their own, the rest waits."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pandas as pd

from hspec_lab.against import against_runs
from hspec_lab.config import Config
from hspec_lab.widgets.answers import Answers, shipped, source_key
from hspec_lab.widgets.choice import Choice
from hspec_lab.widgets.jobs import Background
from hspec_lab.widgets.known import Known
from hspec_lab.widgets.scene import Bar, Scene


class Knowledge:
    """What a panel can say now, and what it is still working out.

    Args:
        base: names the models.
        answers: None: those that ship, read in the background.
        told: called on another thread whenever more is known.

    Attributes:
        answers: None until they are read.
        problem: why recordings cannot be read; empty while that is not known.
    """

    def __init__(self, base: Config, answers: Answers | None, told: Callable[[], None]):
        self.base, self.answers, self.problem = base, answers, ""
        self._loaded = threading.Event()
        self._failures: dict[tuple, str] = {}
        self._against: tuple[tuple, pd.DataFrame] | None = None
        self.background = Background(told)
        if answers is None:
            self.background.want({"load": self._load})
        else:
            self._loaded.set()

    def wait(self) -> Answers:
        """The answers, waited for; ValueError when they cannot be read."""
        self._loaded.wait()
        if self.answers is None:
            raise ValueError(self.problem)
        return self.answers

    def failure(self, choice: Choice) -> str:
        """Why there is no answer for a choice; empty when there is or may be one."""
        return self._failures.get(_key(choice), "")

    def ready(self, choice: Choice) -> bool:
        """Whether all about this choice can be said at once."""
        return self.answers is not None and self.answers.ready(choice)

    def look(self, choice: Choice, known: Known, pins: list[Bar]) -> Scene:
        """What can be said at once: a scene without answers where they are not there."""
        if not self.ready(choice):
            return Scene(choice, self.base, known, pins=tuple(pins))
        found = Scene(choice, self.base, known, self.answers, pins=tuple(pins))
        names = self.answers.formats(choice)
        curve = found.curve_choice
        formats = tuple(one for one in names if self.ready(replace(curve, target=one)))
        against = self._against[1] if self._against else None
        return replace(found, formats=formats, against=against)

    def whole(self, view: str, choice: Choice, known: Known, pins: list[Bar]) -> Scene:
        """All that a view shows, worked out now.

        Raises:
            ValueError: there is no answer, and nothing measured in its stead.
        """
        try:
            self.wait().prepare(choice)
        except ValueError:
            scene = Scene(choice, self.base, known, pins=tuple(pins))
            if view == "breakdown" and scene.bars:
                return scene
            raise
        for one in self._beside(choice) if view != "breakdown" else ():
            self._prepare(one)
        if view == "scatter":
            self._compare(known)
        return self.look(choice, known, pins)

    def want(self, choice: Choice, known: Known) -> None:
        """Work out what is missing about a choice: itself first, then what stands beside it."""
        if self.answers is None:
            return
        lacking = [one for one in (choice, *self._beside(choice)) if not self._settled(one)]
        jobs = {_key(one): partial(self._prepare, one) for one in lacking}
        if self._against is None or self._against[0] != _runs(known):
            jobs["against"] = partial(self._compare, known)
        self.background.want(jobs)

    def close(self) -> None:
        """Work out nothing more."""
        self.background.close()

    def _beside(self, choice: Choice) -> list[Choice]:
        """The same in every format, of methods with a tree where the choice's has none."""
        scene = Scene(choice, self.base, None)
        names = self.answers.formats(choice)
        found = [replace(scene.curve_choice, target=name) for name in names]
        return list(dict.fromkeys([scene.tree_choice, *found]))

    def _settled(self, choice: Choice) -> bool:
        return self.ready(choice) or _key(choice) in self._failures

    def _load(self) -> None:
        try:
            self.answers = shipped(self.base)
        except Exception as error:
            self.problem = f"no predictions: {one_line(error)}"
        self._loaded.set()

    def _prepare(self, choice: Choice) -> None:
        try:
            self.answers.prepare(choice)
        except Exception as error:
            self._failures[_key(choice)] = one_line(error)

    def _compare(self, known: Known) -> None:
        """Predictions beside every stored run that can be read."""
        names = _runs(known)
        if self._against and self._against[0] == names:
            return
        try:
            self._against = names, self._compared(known)
        except Exception as error:
            empty = pd.DataFrame(columns=["problem", "ar_steps", "ar_steps_measured", "run"])
            empty.attrs = {"origin": f"not compared: {one_line(error)}", "note": ""}
            self._against = names, empty

    def _compared(self, known: Known) -> pd.DataFrame:
        runs, costs, folders = [], {}, []
        for run in known:
            try:
                tables = run.tables
                costs |= self._stages(run.config)
            except ValueError:
                continue
            runs.append((run.head, tables["rounds"], tables["spans"]))
            folders.append(run.folder.name)
        table = against_runs(runs, self.answers.traces, list(costs.values()))
        attrs = table.attrs
        table = table.assign(run=folders)
        table.attrs = attrs
        return table

    def _stages(self, config: Config) -> dict:
        try:
            costs, _ = self.answers.costs.of(self.answers.here, config.format, config.draft, None)
        except ValueError:
            return {}
        return {(costs.target, costs.intermediate, costs.head): costs}


def one_line(error: Exception) -> str:
    """What went wrong, in one line; its kind too where a person was not meant to read it."""
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"


def _key(choice: Choice) -> tuple:
    return source_key(choice), choice.prompt


def _runs(known: Known) -> tuple:
    return tuple(run.folder for run in known)
