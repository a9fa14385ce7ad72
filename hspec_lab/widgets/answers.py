"""What a panel can say of any setting without running it: replayed acceptance times stage costs.

A `Choice` finds its `Source`: the trace of just these formats where there is one, else the nearest,
which every figure then says; the stages measured here, else those of a roofline.

No torch, no widgets: the same answers serve tests and pages.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab import best, store
from hspec_lab.acceptance_folder import Trace, shipped_traces
from hspec_lab.config import Chain, Config, Eagle2, Refine, head_draft, split_model
from hspec_lab.cost import Measured
from hspec_lab.formats import Format
from hspec_lab.matching import as_recorded, check_fits
from hspec_lab.prediction import Prediction
from hspec_lab.space import Space, of_prompts
from hspec_lab.stages_folder import shipped_stages
from hspec_lab.widgets.choice import USED, Choice, choice_of
from hspec_lab.widgets.costs import Costs, with_top_k
from hspec_lab.widgets.sources import ALLOWED, Source

# formats whose acceptance is alike stand for each other: fewer bits differ more
_BITS_APART, _NOT_THE_SAME, _TOP_K_APART = 1.0, 0.5, 0.25
# each holds a priced table; what was walked is shared and stays
_MOST_SOURCES = 48
_KINDS = {"ar": object, "chain": Chain | Refine, "eagle2": Eagle2, "hierspec": Refine}
# what controls can spell: trees that grow, sequences without rivals
_SPELLED = Space(static=False, narrow=())


class Answers:
    """Everything that can be said without running, from recordings and measured stages.

    Args:
        traces: recorded acceptance; None: the greedy ones that ship.
        stages: measured in rounds; None: those that ship.
        curves: cost curves measured on the same device, to which its roofline is fitted where
            stages are missing; None: none.
        base: names the models; formats are the choices' own.
        elsewhere: models that stand for the base's on other devices, `{"target":
            "shape:llama-3-70b", "intermediate": "shape:llama-3-8b"}`.

    Attributes:
        here: the device where stages were measured.
        devices: names, `here` first.
    """

    def __init__(
        self,
        traces: Sequence[Trace] | None = None,
        stages: Measured | None = None,
        curves: Measured | None = None,
        base: Config | None = None,
        elsewhere: dict[str, str] | None = None,
    ):
        if traces is None:
            traces = [trace for trace in shipped_traces() if trace.config.temperature == 0]
        self.traces = [trace for trace in traces if trace.n_counted]
        self.base = base or Config()
        self.costs = Costs(stages or shipped_stages(), curves, self.base, elsewhere or {})
        self.here, self.devices = self.costs.here, self.costs.devices
        self._sources: dict[tuple, Source] = {}
        self._walks: dict[tuple, dict] = {}
        self._plain = lru_cache(maxsize=64)(self._plainly)
        self._passes = lru_cache(maxsize=32)(self.costs.passes)

    def source(self, choice: Choice) -> Source:
        """The recordings behind a choice; ValueError says what is missing and what would help."""
        key = source_key(choice)
        if key not in self._sources:
            made = self._made(*key)
            while len(self._sources) >= _MOST_SOURCES:
                self._sources.pop(next(iter(self._sources)), None)
            self._sources[key] = made
        return self._sources[key]

    def ready(self, choice: Choice) -> bool:
        """Whether all of a choice's answers are a look into arrays, fast enough for a slider."""
        source = self._sources.get(source_key(choice))
        return source is not None and source.is_walked(choice.prompt)

    def prepare(self, choice: Choice) -> None:
        """Make a choice `ready`; takes seconds where its recording was not walked before."""
        self.table(choice)
        self.plain(choice)

    def prediction(self, choice: Choice) -> Prediction:
        """Time per token and phase of a choice."""
        return self.source(choice).prediction(choice)

    def plain(self, choice: Choice) -> Prediction:
        """Plain decoding in the format of a choice, in the stages of its own drafter."""
        return self._plain(source_key(choice), choice.prompt)

    def table(self, choice: Choice) -> pd.DataFrame:
        """Every recorded size of a choice's method and formats, with `attrs` for figures."""
        return self.source(choice).table(choice.prompt)

    def passes(self, choice: Choice) -> pd.DataFrame:
        """What a pass of the target costs in every format, with `attrs` for figures."""
        return self._passes(choice.device, tuple(self.formats(choice)), choice.context)

    def formats(self, choice: Choice) -> list[str]:
        """Target formats with a trace or stages of their own, the choice's among them."""
        recorded = [split_model(trace.config.target)[1] for trace in self.traces]
        return list(dict.fromkeys([choice.target, *recorded]))

    def texts(self) -> list[str]:
        """The prompts of the recordings, by number."""
        return list(self.traces[0].head["prompts"]) if self.traces else []

    def best(self, choice: Choice) -> tuple[Choice, str]:
        """The fastest recorded setting on the device of a choice, and the advice in words."""
        found = best.best(best.search(self._candidates(choice), _SPELLED, allow=ALLOWED)).iloc[0]
        config = replace(self.base, target=found["target"], draft=found["draft"])
        there = choice_of(config)
        # sizes that the method does not have stay where they are
        names = ("target", "method", *USED[there.method])
        return replace(choice, **{name: getattr(there, name) for name in names}), found["advice"]

    def _candidates(self, choice: Choice) -> list[tuple]:
        """Every trace with the stages of its own formats, chains apart."""
        found = []
        for trace in self.traces:
            target = split_model(trace.config.target)[1]
            if choice.prompt is not None:
                trace = of_prompts(trace, choice.prompt, choice.prompt + 1)
            drafts = [trace.draft]
            if isinstance(trace.draft, Refine):
                drafts.append(Chain(trace.draft.model, trace.draft.at_least))
            for draft in drafts:
                try:
                    costs, _ = self.costs.of(choice.device, target, draft, choice.context)
                except ValueError:
                    continue
                if head_draft(draft) is None or costs.top_k == trace.eagle.top_k:
                    found.append((trace, costs))
        return found

    def _plainly(self, key: tuple, prompt: int | None) -> Prediction:
        source = self._sources.get(key) or self._made(*key)
        return source.plain.prediction(Choice(method="ar", prompt=prompt))

    def _made(
        self, device: str, method: str, target: str, below: str, head: str, top_k: int, context
    ) -> Source:
        smallest = Choice(device, target, below, head, method, 2, 1, max(top_k, 1), 1)
        draft, notes = smallest.drafter(self.base), self._general()
        if isinstance(draft, Refine):
            draft = replace(draft, tree_size=None)
        trace = self._nearest(method, target, below, top_k)
        costs, more = self.costs.of(device, target, draft, context)
        notes += more
        if isinstance(draft, Eagle2 | Refine) and trace.eagle.top_k != top_k:
            notes.append(f"acceptance is of top-k {trace.eagle.top_k}, which stands for {top_k}")
            draft = with_top_k(draft, trace.eagle.top_k)
        # what differs stands among a prediction's warnings; here it only has to be allowed
        check_fits(trace, costs, as_recorded(trace, draft), ALLOWED)
        walks = self._walks.setdefault((trace.name, method), {})
        return Source(trace, costs, draft, tuple(notes), walks)

    def _general(self) -> list[str]:
        """What holds for every answer about these models."""
        notes = []
        if self.base.temperature:
            notes.append(
                f"acceptance is of greedy decoding, not of temperature {self.base.temperature:g}"
            )
        if any(value.tree_size for value in self.base.refines):
            notes.append("narrow trees are predicted as the sequence alone")
        return notes

    def _nearest(self, method: str, target: str, below: str, top_k: int) -> Trace:
        """The trace that is most like what is asked for; ties go to the first by name."""

        def distance(trace: Trace) -> float:
            found = _apart(split_model(trace.config.target)[1], target)
            if below:
                found += _apart(split_model(trace.draft.model)[1], below)
            if top_k and trace.eagle is not None and trace.eagle.top_k != top_k:
                found += _TOP_K_APART
            return found

        found = [trace for trace in self.traces if isinstance(trace.draft, _KINDS[method])]
        if not found:
            raise ValueError(f"no acceptance of {method} is recorded: run `hspec record` with it")
        return min(found, key=distance)


def shipped(base: Config) -> Answers:
    """Answers from the recordings, stages and curves that ship with the zoo."""
    curves = store.read_cost(Path(str(resources.files("hspec_profiles") / "costs" / "zoo")))
    return Answers(curves=curves, base=base)


def source_key(choice: Choice) -> tuple:
    """What a choice's source depends on: all but sizes and text."""
    used = USED[choice.method]
    return (
        choice.device,
        choice.method,
        choice.target,
        choice.intermediate if "intermediate" in used else "",
        choice.head if "head" in used else "",
        choice.top_k if "top_k" in used else 0,
        choice.context,
    )


def _apart(one: str, other: str) -> float:
    """How unlike two formats are, in steps of halved bits."""
    if one == other:
        return 0.0
    a, b = (Format.parse(name).scheme.weights.bits for name in (one, other))
    return _NOT_THE_SAME + _BITS_APART * abs(np.log2(a / b))
