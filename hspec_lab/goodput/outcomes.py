"""What a round of each option would do at each place of a recorded text, as arrays; no torch.

Recorded acceptance (`acceptance`) times stored cost (`stage_times`), for every option at once, so
that a policy can walk a text with another option each round.

Plain steps leave a model below the target further behind than two tokens; its catch-up then runs
as many rows.  A draft head that ingests those rows later is taken to cost what it always does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from hspec_lab.acceptance import Totals, accepted, check_covered, trace_walk
from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Chain, Drafting, Eagle2, Refine, head_draft, most_nodes
from hspec_lab.control import levels_of
from hspec_lab.matching import caption, check_fits
from hspec_lab.stage_times import phase_us, stage_us
from hspec_lab.stages import StageCosts

# how far the model below is behind where a round starts: one token drafted ahead (with the prompt),
# one token pending, or more, which it catches up on first
AHEAD, LEVEL, BEHIND = 0, 1, 2
_SIZES = (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a round of each of O options does at each of P places.

    A place is a counted token behind which a round may start; those of a prompt follow each other.
    Its second axis says how far behind the model below is there.

    Attributes:
        options: None is a plain step.
        kept: int64 [O, 3, P], drafted tokens that the target keeps.
        whole: bool [O, 3, P], whether it leaves the model below two tokens behind, not one.
        us: float64 [O, 3, P].
        row_us: float64 [N], what a catch-up over n rows takes more than one over two; its last
            entry stands for longer ones; empty without a model below.
        begin, end: int64 [n_prompts], first place and the one behind the last of each prompt.
        plain_us: a plain step.
        origin, note: where the numbers come from; keyword arguments of a figure.
    """

    options: tuple[Drafting | None, ...]
    kept: np.ndarray
    whole: np.ndarray
    us: np.ndarray
    row_us: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    plain_us: float
    origin: str
    note: str

    @property
    def prompts(self) -> range:
        """The prompts' numbers."""
        return range(len(self.begin))

    def us_of(self, option: int, behind: int, place: int) -> float:
        """What a round of an option takes where the model below is so far behind."""
        us = self.us[option, min(behind, BEHIND), place]
        if behind > 2 and len(self.row_us) and self.options[option] is not None:
            us += self.row_us[min(behind, len(self.row_us) - 1)]
        return float(us)

    def after(self, option: int, behind: int, place: int) -> int:
        """Tokens that the model below is behind once a round of an option is over."""
        if self.options[option] is None:
            return behind + 1
        return 2 if self.whole[option, min(behind, BEHIND), place] else 1


def options_for(trace: Trace, costs: StageCosts) -> tuple[Drafting | None, ...]:
    """A plain step and some sizes up to those recorded and measured, at most some 150.

    A hierarchy's trace with the stages of a chain gives chains.
    """
    draft = trace.draft
    if isinstance(draft, Refine) and costs.head is None:
        draft = Chain(draft.model, draft.at_least)
    if isinstance(draft, Chain):
        found = [replace(draft, draft_len=n) for n in range(1, draft.draft_len + 1)]
    elif isinstance(draft, Eagle2):
        found = _heads(draft, _SIZES, range(1, draft.depth + 1))
    else:
        lengths = [n for n in (1, 2, 3, 4, 6, 8, 10, 12) if n <= draft.at_least]
        heads = _heads(draft.draft, (2, 4, 6, 8, 16, 24), (1, 2, 3, 4))
        found = [replace(draft, draft=h, at_least=n) for h, n in product(heads, lengths)]
    return None, *(option for option in found if _is_measured(option, costs))


def _heads(draft: Eagle2, sizes: Sequence[int], depths: Sequence[int]) -> list[Eagle2]:
    every = (replace(draft, tree_size=n, depth=d) for d, n in product(depths, sizes))
    # smaller ones never reach their last level, larger ones are cut to what there is
    return [h for h in every if h.depth <= min(h.tree_size - 1, draft.depth) and _all_there(h)]


def _all_there(head: Eagle2) -> bool:
    return head.tree_size == most_nodes(head)


def _is_measured(option: Drafting, costs: StageCosts) -> bool:
    """Whether the curves reach as far as the longest round that is likely."""
    head, on_target = head_draft(option), isinstance(option, Eagle2)
    longest = head.tree_size if on_target else levels_of(option) + (head.depth if head else 0) + 1
    if isinstance(option, Refine):
        longest = max(longest, option.tree_size or 0)
    curves = [(costs.target_us, longest)]
    if head is not None:
        curves.append((costs.draft_us, head.depth))
    if not on_target:
        curves.append((costs.intermediate_us, max(2, head.tree_size if head else 2)))
    return all(n < len(curve) and np.isfinite(curve[n]) for curve, n in curves)


def outcomes(
    trace: Trace,
    costs: StageCosts,
    options: Sequence[Drafting | None] | None = None,
    *,
    allow: Iterable[str] = (),
) -> Outcomes:
    """What each option does at each place of a trace.

    Args:
        options: sizes up to those recorded; None: `options_for`.
        allow: in what acceptance and stages may differ, see `matching.check_fits`.

    Raises:
        ValueError: the trace does not cover an option, a time was not measured, or the two do not
            speak of the same models.
    """
    options = options_for(trace, costs) if options is None else tuple(options)
    warnings = check_fits(trace, costs, trace.draft, allow)
    walk = trace_walk(trace)
    lengths = np.maximum(walk.counted - 1, 0)
    end = np.cumsum(lengths)
    if not len(end) or not end[-1]:
        raise ValueError(f"{trace.name} holds no rounds: record longer texts")
    places = np.repeat(walk.first - end + lengths, lengths) + np.arange(end[-1])
    found = [_of_option(trace, costs, option, places) for option in options]
    kept, whole, us = (np.stack([each[i] for each in found]) for i in range(3))
    for option, times in zip(options, us, strict=True):
        if not np.isfinite(times).all():
            raise ValueError(f"{option!r} needs times that {costs.device} was not measured for")
    rows = costs.intermediate_us if costs.intermediate else np.zeros(0)
    return Outcomes(
        options=tuple(options),
        kept=kept,
        whole=whole,
        us=us,
        row_us=rows - rows[2] if len(rows) > 2 else np.zeros(0),
        begin=end - lengths,
        end=end,
        plain_us=costs.plain_us,
        **caption(trace.caption(), costs, warnings),
    )


def _of_option(trace: Trace, costs: StageCosts, option: Drafting | None, places: np.ndarray):
    """kept, whole and us of one option, each [3, P]."""
    check_covered(trace, option)
    shape = (3, len(places))
    if option is None:
        return np.zeros(shape, int), np.zeros(shape, bool), np.full(shape, costs.plain_us)
    rounds = [_rounds(trace, option, places, start) for start in (AHEAD, LEVEL, BEHIND)]
    us = [sum(phase_us(stage_us(costs, totals)).values()) for _, _, totals in rounds]
    return np.stack([r[0] for r in rounds]), np.stack([r[1] for r in rounds]), np.stack(us)


def _rounds(trace: Trace, option: Drafting, places: np.ndarray, start: int):
    """kept and whole, [P], and what the rounds run, arrays of shape [P]."""
    walk, head, one = trace_walk(trace), head_draft(option), np.ones(len(places), dtype=int)
    until_miss = walk.miss[places] - places
    kept_by_state = accepted(trace.ranks, head.depth, head.tree_size) if head else None
    on_target = isinstance(option, Eagle2)
    trees, steps, catch_ups = 0 * one, 0 * one, one * (start == BEHIND and not on_target)
    if on_target:
        kept, whole = kept_by_state[places].astype(int), one == 0
        n_proposed = one * (most_nodes(head) - 1)
    elif isinstance(option, Chain):
        n_proposed = one * option.draft_len
        kept = np.minimum(n_proposed, until_miss)
        steps, whole = n_proposed - (start != LEVEL), kept == n_proposed
    else:
        n_proposed, trees = _refined(walk, option, kept_by_state, places, start)
        kept = np.minimum(n_proposed, until_miss)
        whole = kept == n_proposed
        if option.tree_size is not None:
            rescued, rivals = _rescued(walk, option, places, kept, n_proposed)
            kept, whole, n_proposed = kept + rescued, whole | rescued, n_proposed + rivals
    n_nodes = most_nodes(head) if head else 0
    totals = Totals(
        n_rounds=one,
        n_emitted=kept + 1,
        target_rows=(n_proposed[:, None] + 1 == np.arange(n_proposed.max() + 2)).astype(int),
        intermediate_rows=np.asarray(0 if on_target else n_nodes),
        intermediate_trees=trees,
        intermediate_steps=steps,
        intermediate_catch_ups=catch_ups,
        drafts=one if on_target else trees,
        depth=np.asarray(head.depth if head else 0),
        tree_size=np.asarray(n_nodes),
    )
    return kept, whole, totals


def _after(walk, state: np.ndarray, n_tokens) -> np.ndarray:
    """Where the model below stands so many of its own tokens behind a state."""
    there = state + n_tokens
    return np.where(there <= walk.miss[state], there, there + walk.shift[state])


def _refined(walk, option: Refine, kept_by_state: np.ndarray, places: np.ndarray, start: int):
    """Tokens that the model below drafts, and tree passes that it needs."""
    # behind a catch-up and with the prompt one token is there without a draft
    n = np.full(len(places), int(start != LEVEL))
    at, trees = _after(walk, places, n), np.zeros(len(places), dtype=int)
    while (short := n < option.at_least).any():
        more = kept_by_state[at[short]].astype(int) + 1
        at[short] = _after(walk, at[short], more)
        n[short] += more
        trees[short] += 1
    return n, trees


def _rescued(walk, option: Refine, places: np.ndarray, kept: np.ndarray, n_drafted: np.ndarray):
    """Where a narrow tree's second choice is what the target says; and its second choices."""
    rivals = np.minimum(np.maximum(0, option.tree_size - n_drafted - 1), n_drafted)
    order = np.arange(n_drafted.max())
    inside = order < n_drafted[:, None]
    margin = np.where(inside, walk.margin[_after(walk, places[:, None], order * inside)], np.inf)
    lost = np.minimum(kept, n_drafted - 1)[:, None]
    own = np.take_along_axis(margin, lost, axis=1)
    before = ((margin < own) | ((margin == own) & (order < lost))).sum(axis=1)
    missed = places + kept
    right = walk.second[missed] == walk.truth[missed]
    return (kept < n_drafted) & (before < rivals) & right, rivals
