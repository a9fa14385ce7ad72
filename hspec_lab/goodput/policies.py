"""Policies walk a text: what they take, and how a controller learns from it; no torch."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hspec_lab.control import Controller, levels_of
from hspec_lab.goodput.outcomes import AHEAD, BEHIND, LEVEL, Outcomes

# where running acceptance passes from a state to the next
EDGES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
_PASSES = 8  # of learning: each walks with what those before it have learned
_PRIOR_ROUNDS = 30  # of the average text, added to what each state has seen


class Visit(NamedTuple):
    """One round of a walk; `behind`: tokens that the model below was behind when it began."""

    prompt: int
    place: int
    behind: int
    option: int
    n_kept: int
    n_emitted: int
    us: float


_GAIN_AND_COST = Visit._fields.index("n_emitted"), Visit._fields.index("us")


class Fixed:
    """The policy that always chooses the same option."""

    def __init__(self, option: int):
        self.option = option

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self) -> int:
        return self.option

    def observe(self, option: int, n_kept: int) -> None:
        """Nothing to learn."""


def walk(
    found: Outcomes, policy, prompts: Iterable[int] | None = None, one_text: bool = False
) -> list[Visit]:
    """The rounds that decoding with a policy has.

    Args:
        policy: `choose`, `observe` and `reset` as a `control.Controller`, of the same options.
        prompts: their numbers, in the order of decoding; None: all.
        one_text: they follow each other in one text, and the policy is not told where one ends.
    """
    rounds: list[Visit] = []
    policy.reset()
    for prompt in found.prompts if prompts is None else prompts:
        if not one_text:
            policy.reset()
        place, end, behind = int(found.begin[prompt]), int(found.end[prompt]), AHEAD
        while place < end:
            option = policy.choose()
            kept = int(found.kept[option, min(behind, BEHIND), place])
            policy.observe(option, kept)
            n_emitted = min(kept + 1, end - place)
            us = found.us_of(option, behind, place)
            n_kept = min(kept, n_emitted)
            rounds.append(Visit(prompt, place, behind, option, n_kept, n_emitted, us))
            behind, place = found.after(option, behind, place), place + n_emitted
    return rounds


def simulate(
    found: Outcomes, policy, prompts: Iterable[int] | None = None, one_text: bool = False
) -> pd.DataFrame:
    """`walk` as a table: one row per round, the columns of `Visit`."""
    return pd.DataFrame(walk(found, policy, prompts, one_text), columns=Visit._fields)


def learn(found: Outcomes, prompts: Sequence[int] | None = None) -> Controller:
    """Make a controller from what rounds did on some prompts.

    It begins as the best fixed setting, walks the prompts with what it knows, notes in which state
    each round began and what *every* option would have done there, and walks again with that, a few
    times over; of all these the fastest stays.

    Args:
        prompts: their numbers; None: all.

    Raises:
        ValueError: these prompts have no rounds.
    """
    prompts = list(found.prompts if prompts is None else prompts)
    if not any(found.end[prompt] > found.begin[prompt] for prompt in prompts):
        raise ValueError(f"no round to learn from on prompts {prompts}")
    own = [walk(found, Fixed(option), prompts) for option in range(len(found.options))]
    means = [np.array([np.mean([v[i] for v in rounds]) for rounds in own]) for i in _GAIN_AND_COST]
    start = _mean_acceptance(found, own, int((means[0] / means[1]).argmax()))
    # what each state has seen, an average text first
    n = np.full((len(EDGES) + 1, 1), float(_PRIOR_ROUNDS))
    sums = [n * mean for mean in means]
    fastest, least_us = None, np.inf
    for _ in range(_PASSES):
        gain, cost_us = (sum_ / n for sum_ in sums)
        controller = Controller(found.options, gain, cost_us, edges=EDGES, start=start)
        noting = _Noting(controller)
        rounds = walk(found, noting, prompts)
        us = sum(visit.us for visit in rounds)
        if us < least_us:
            fastest, least_us = controller, us
        state = np.array(noting.states) == np.arange(len(n))[:, None]
        behind, places = _starts(found, rounds), [visit.place for visit in rounds]
        for sum_, table in zip(sums, (found.kept + 1, found.us), strict=True):
            sum_ += state @ table[:, behind, places].T
        n += state.sum(axis=1, keepdims=True)
    return fastest


def _starts(found: Outcomes, rounds: list[Visit]) -> list[int]:
    """How far behind the model below is taken to be where an option is judged.

    Plain steps leave it behind, which makes the first draft cheaper than those that would follow;
    so there an option is judged as if the round before had drafted.
    """
    before = [None, *(found.options[visit.option] for visit in rounds[:-1])]
    return [
        LEVEL if draft is None else min(visit.behind, BEHIND)
        for draft, visit in zip(before, rounds, strict=True)
    ]


class _Noting:
    """A controller that writes down the state behind each of its choices."""

    def __init__(self, controller: Controller):
        self.controller, self.states = controller, []
        self.reset, self.observe = controller.reset, controller.observe

    def choose(self) -> int:
        self.states.append(self.controller.state)
        return self.controller.choose()


def _mean_acceptance(found: Outcomes, own: list[list[Visit]], option: int) -> float:
    """Drafted tokens kept by an option's rounds, of those kept or the first to be lost."""
    levels = [levels_of(draft) for draft in found.options]
    if levels[option] == 0:  # a plain step shows nothing
        option = int(np.argmax(levels))
    kept = np.array([visit.n_kept for visit in own[option]])
    return float(kept.sum() / max(1, (kept + (kept < levels[option])).sum()))
