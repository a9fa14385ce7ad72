"""Per-round choice of sizes: the drafting that pays most where the text now is; no torch.

A controller keeps one number, the running acceptance: of the last twenty or so drafted tokens on
the target's path, how many it kept, newer ones counting more.  Sorted into a few states, it says
what each option is expected to emit there and to cost (`gain`, `cost_us`: learned from a trace of
other prompts, see `goodput.learn`), and the option with the most tokens per microsecond of its
state is chosen.

Why the state's own rate and no global one: the text is given, so a round saves the time that its
tokens would have taken *here*.  A hard passage has to be emitted anyway, and a token of it is worth
more microseconds than one of an easy passage.  A rate averaged over all text undervalues it.

What a round shows is cut off: a tree of depth 2 that was kept whole says nothing about level 3.  So
levels kept count as kept, the first one lost as lost, and those behind it not at all.  A plain step
shows nothing; behind several of them one round drafts nevertheless, and the next as well as long as
all is kept; where it is not, that happens ever more rarely.

Sizes follow from rounds that are over, never from what this one draws, so greedy text and sampled
distributions stay the target's own.

    cost    about a microsecond per round: an entry of a list that was made before
    source  Liu et al. 2024 (SmartSpec), arXiv 2406.14066: tokens per time as the objective, running
            acceptance, length 0 allowed; Chen et al. 2024 (Sequoia), arXiv 2402.12374: sizes from
            measured cost
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hspec_lab.config import Chain, Drafting, Eagle2, Refine

DECAY = 0.95  # weight of a drafted token that one more has followed
# plain steps before a round drafts nevertheless: at first, and at most
_FIRST_PROBE, _LAST_PROBE = 16, 64


def levels_of(draft: Drafting | None) -> int:
    """How many tokens in a row a round of an option can be sure to offer; 0 for a plain step."""
    if draft is None:
        return 0
    if isinstance(draft, Chain):
        return draft.draft_len
    if isinstance(draft, Refine):
        return draft.at_least
    return min(draft.depth, draft.tree_size - 1)


class Controller:
    """Chooses an option for each round from what the rounds before it kept.

    Args:
        options: drafters that differ in sizes alone; None is a plain step.
        gain: [S, O], tokens that a round of each option emits in each state.
        cost_us: [O] or [S, O], what it takes.
        edges: [S - 1], ascending, where running acceptance passes from a state to the next.
        start: running acceptance before the first round of a prompt, 0..1.
        decay: see `DECAY`.

    Raises:
        ValueError: shapes do not fit each other, or an entry is no positive number.
    """

    def __init__(
        self,
        options: Sequence[Drafting | None],
        gain: np.ndarray,
        cost_us: np.ndarray,
        *,
        edges: Sequence[float],
        start: float,
        decay: float = DECAY,
    ):
        gain, cost_us = np.asarray(gain, dtype=float), np.asarray(cost_us, dtype=float)
        _check(options, gain, cost_us, edges, start, decay)
        self.options, self.edges, self.start, self.decay = tuple(options), edges, start, decay
        self._levels = [levels_of(option) for option in self.options]
        rate = gain / cost_us
        self._best = rate.argmax(axis=1).tolist()
        drafting = np.array(self._levels) > 0
        # where only plain steps are known there is nothing to probe
        self._probe = np.where(drafting, rate, -1).argmax(axis=1).tolist()
        self.reset()

    def reset(self) -> None:
        """Forget what the rounds so far have shown: another prompt begins."""
        self.acceptance = self.start
        self._plain_steps, self._probe_after = 0, _FIRST_PROBE

    @property
    def state(self) -> int:
        """Which state running acceptance is in, 0 the lowest."""
        state = 0
        for edge in self.edges:
            state += self.acceptance > edge
        return state

    def choose(self) -> int:
        """The number of the option for the next round."""
        state = self.state
        option = self._best[state]
        if self._levels[option] == 0 and self._plain_steps >= self._probe_after:
            return self._probe[state]
        return option

    def observe(self, option: int, n_kept: int) -> None:
        """Take in what a round has shown.

        Args:
            option: what was chosen for it.
            n_kept: drafted tokens that the target kept.
        """
        levels = self._levels[option]
        if levels == 0:
            self._plain_steps += 1
            return
        lost = n_kept < levels
        self._plan_probe(lost)
        weight = self.decay**n_kept
        self.acceptance = self.acceptance * weight + 1 - weight
        if lost:
            self.acceptance *= self.decay

    def _plan_probe(self, lost: bool) -> None:
        if self._plain_steps < self._probe_after:
            self._plain_steps = 0
        elif lost:
            self._plain_steps = 0
            self._probe_after = min(2 * self._probe_after, _LAST_PROBE)
        else:  # one token or two say little: draft on until one is lost
            self._plain_steps = self._probe_after = _FIRST_PROBE


def resize(level, draft: Drafting | None) -> None:
    """Give the drafters behind a level the sizes of an option.

    Args:
        level: a `verify.Verifier`, built for the largest sizes.
        draft: as `check_option` wants it.
    """
    level.drafts = draft is not None
    drafter = level.drafter
    while isinstance(draft, Refine):
        drafter.at_least, drafter.tree_size = draft.at_least, draft.tree_size
        drafter, draft = drafter.verifier.drafter, draft.draft
    if isinstance(draft, Chain):
        drafter.at_least = draft.draft_len
    elif draft is not None:
        drafter.tree_size, drafter.depth = draft.tree_size, draft.depth


def largest(options: Sequence[Drafting | None]) -> Drafting | None:
    """What decoding must be built for: the largest of every size; None with plain steps alone.

    Raises:
        ValueError: the options differ in more than sizes.
    """
    drafts = [option for option in options if option is not None]
    found = _largest(drafts) if drafts else None
    for option in options:
        check_option(option, found)
    return found


def _largest(drafts: list[Drafting]) -> Drafting:
    first = drafts[0]
    if len({type(draft) for draft in drafts}) > 1:
        return first  # which does not fit the others
    names = {Chain: ["draft_len"], Refine: ["at_least", "tree_size"]}
    names = names.get(type(first), ["tree_size", "depth"] if isinstance(first, Eagle2) else [])
    sizes = {name: [getattr(draft, name) for draft in drafts] for name in names}
    most = {name: max(found) for name, found in sizes.items() if None not in found}
    if isinstance(first, Refine):
        most["draft"] = _largest([draft.draft for draft in drafts])
    return replace(first, **most)


def check_option(option: Drafting | None, built: Drafting | None) -> None:
    """ValueError when a drafter cannot take an option's sizes because it was built for others."""
    if option is not None and not _fits(option, built):
        raise ValueError(
            f"a controller changes sizes alone, up to those decoding was built for: {built!r}, got "
            f"the option {option!r}"
        )


def _fits(option: Drafting, built: Drafting | None) -> bool:
    if type(option) is not type(built):
        return False
    if isinstance(option, Refine):
        narrow = option.tree_size is None, built.tree_size is None
        return (
            (option.model, option.sampling) == (built.model, built.sampling)
            and option.at_least <= built.at_least
            and narrow[0] == narrow[1]
            and (narrow[0] or option.tree_size <= built.tree_size)
            and _fits(option.draft, built.draft)
        )
    if isinstance(option, Chain):
        return option.model == built.model and option.draft_len <= built.draft_len
    if not isinstance(option, Eagle2):  # one tree, no sizes
        return option == built
    same = (option.head, option.top_k) == (built.head, built.top_k)
    return same and option.tree_size <= built.tree_size and option.depth <= built.depth


def _check(options, gain: np.ndarray, cost_us: np.ndarray, edges, start: float, decay: float):
    shape = (len(edges) + 1, len(options))
    if not len(options) or gain.shape != shape or cost_us.shape not in (shape, shape[1:]):
        raise ValueError(
            f"{len(options)} options and {len(edges)} edges need gain {shape} and cost_us {shape} "
            f"or {shape[1:]}, got {gain.shape} and {cost_us.shape}"
        )
    if not ((gain > 0).all() and (cost_us > 0).all() and np.isfinite(gain / cost_us).all()):
        raise ValueError("gain and cost_us must be numbers above 0: leave out unmeasured options")
    if list(edges) != sorted(edges) or not 0 <= start <= 1 or not 0 < decay < 1:
        raise ValueError(
            "edges must ascend, start lie in 0..1 and decay between 0 and 1, got "
            f"{list(edges)}, {start!r} and {decay!r}"
        )
