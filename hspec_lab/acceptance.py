"""Replay: the rounds that decoding would have, walked over a recorded trace; no model, no torch.

The text that rounds emit does not depend on the drafter, so a drafter's proposals at every position
of a text answer for every tree size, depth and minimum draft length.  `replay` walks one setting
and gives its rounds; `acceptance_grid` walks thousands at once and gives their sums.

At a temperature above 0 the trace holds one text drawn from the target.  Given it, a chosen node is
kept exactly when it is the text's next token, and a drawn one was recorded as kept with probability
min(1, q / p); so rounds replayed from it follow the law of decoding's rounds, and `interval` says
how far a mean over so many prompts may be off.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import (
    Chain,
    Drafting,
    Eagle2,
    Refine,
    Static,
    head_draft,
    most_nodes,
    split_model,
)

# behind every state: a verifying model that never disagrees with the target
_NEVER = np.iinfo(np.int32).max // 2
COLUMNS = (
    "prompt",
    "round",
    "kv_len",
    "n_proposed",
    "n_accepted",
    "n_emitted",
    "intermediate_trees",
    "intermediate_steps",
    "intermediate_catch_ups",
)


@dataclass(frozen=True, eq=False)
class Totals:
    """How often each stage of decoding runs over a whole trace; arrays of one shape [...].

    Attributes:
        n_rounds, n_emitted: of the target; the token that a prefill emits is not among them.
        target_rows: int64 [..., W], how many of these rounds verify so many rows.
        intermediate_rows: rows of one tree pass of the intermediate model; 0 without.
        intermediate_trees: tree passes of it.
        intermediate_steps, intermediate_catch_ups: its passes over one and over two rows.
        drafts: drafts of the head, one before each tree pass of the model it serves.
        depth: levels of such a draft, its passes; 0 without a head.
        tree_size: nodes of such a draft, the root included; 0 without a head.
    """

    n_rounds: np.ndarray
    n_emitted: np.ndarray
    target_rows: np.ndarray
    intermediate_rows: np.ndarray
    intermediate_trees: np.ndarray
    intermediate_steps: np.ndarray
    intermediate_catch_ups: np.ndarray
    drafts: np.ndarray
    depth: np.ndarray
    tree_size: np.ndarray

    @property
    def mean_emitted(self) -> np.ndarray:
        """Tokens a round emits; NaN where there was none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.n_emitted / self.n_rounds


class Walk:
    """A trace's states as arrays of row numbers, so that a step along a text is an addition.

    Attributes:
        first: [n_prompts], the state of each prompt's position 0.
        counted: [n_prompts], tokens of each prompt's text that count, t_0 among them.
        miss: [n_states], the state on the text from which the verifying model next goes elsewhere;
            it agrees with the text `miss - state` times before.
        shift: [n_states], what to add to a state's number once it lies behind `miss`.
        truth: [n_states], the text's next token behind a state on the text; -1 on a branch.
        token, second, margin: as in the trace.
    """

    def __init__(self, trace: Trace):
        states = trace.states
        names = ("prompt", "position", "branch", "token", "second", "margin")
        prompt, position, branch, *rest = (states[name].to_numpy() for name in names)
        self.token, self.second, self.margin = rest
        self.counted = np.asarray(trace.head["n_positions"], dtype=np.int64)
        prompts = np.arange(len(self.counted))
        self.first = np.searchsorted(prompt, prompts)
        text = trace.text["token"].to_numpy()
        behind = np.searchsorted(trace.text["prompt"].to_numpy(), prompts)[prompt] + position + 1
        on_text = branch == 0
        self.truth = np.where(on_text, text[np.minimum(behind, len(text) - 1)], -1)
        numbers = np.arange(len(states))
        misses = np.where(on_text & (self.token != self.truth), numbers, _NEVER)
        # the next miss at or behind each state, found from the back
        self.miss = np.minimum.accumulate(misses[::-1])[::-1]
        n_on_text = np.bincount(prompt[on_text], minlength=len(prompts))
        end = (self.first + n_on_text - 1)[prompt]
        self.miss = np.where(on_text & (self.miss <= end), self.miss, _NEVER)
        branches = np.flatnonzero(branch == 1)
        self.shift = np.zeros(len(states), dtype=np.int64)
        if len(branches):
            known = np.flatnonzero(self.miss < _NEVER)
            missed = self.miss[known]
            keys = prompt.astype(np.int64) << 32 | position
            place = np.searchsorted(keys[branches], keys[missed])
            self.shift[known] = branches[np.minimum(place, len(branches) - 1)] - missed - 1


def accepted(ranks: np.ndarray, depth: int, tree_size: int) -> np.ndarray:
    """How many nodes of the draft that starts at each state its verifying model keeps.

    Args:
        ranks: as `Trace.ranks`.

    Returns:
        int8 [n_states].
    """
    rank = ranks[:, depth, 1 : depth + 1]
    return ((rank >= 0) & (rank < tree_size - 1)).sum(axis=1, dtype=np.int8)


def check_covered(trace: Trace, draft: Drafting | None) -> None:
    """ValueError when a trace says nothing about a drafter, or not for such sizes."""
    recorded = trace.draft
    if draft is None:
        return
    if isinstance(draft, Static):
        raise ValueError(f"{draft!r} is replayed by static_trees.replay_static")
    wanted = f"{trace.name} was recorded for {recorded!r}, asked for {draft!r}: "
    head, theirs = head_draft(draft), trace.eagle
    if head is not None:
        if theirs is None or (head.top_k, head.head) != (theirs.top_k, theirs.head):
            raise ValueError(f"{wanted}another draft head or top_k; record a trace for it")
        if head.depth > theirs.depth:
            raise ValueError(f"{wanted}depths beyond {theirs.depth} were not recorded")
    if isinstance(draft, Eagle2) != isinstance(recorded, Eagle2):
        raise ValueError(f"{wanted}another kind of drafter; record a trace for it")
    if isinstance(draft, Eagle2):
        return
    if _levels(draft) not in (_levels(recorded), _levels(recorded)[:1]) or (
        isinstance(draft, Refine) and _levels(draft) != _levels(recorded)
    ):
        raise ValueError(f"{wanted}another model below the target; record a trace for it")
    if isinstance(draft, Refine) and not isinstance(draft.draft, Eagle2):
        raise ValueError(f"{wanted}only a draft head below the intermediate model is replayed")
    most = recorded.draft_len if isinstance(recorded, Chain) else recorded.at_least
    length = draft.draft_len if isinstance(draft, Chain) else draft.at_least
    if length > most:
        raise ValueError(f"{wanted}drafts of at least {most} tokens were recorded at most")
    heat = trace.config.temperature
    sampling = "sample" if isinstance(draft, Chain) else draft.sampling
    theirs = "sample" if isinstance(recorded, Chain) else recorded.sampling
    if heat and sampling != theirs:
        raise ValueError(f"{wanted}at temperature {heat:g} the levels' sampling must be the same")
    if heat and isinstance(draft, Refine) and draft.tree_size and sampling == "sample":
        raise ValueError(f"{wanted}second choices are not drawn; record with sampling='greedy'")


def _levels(draft: Drafting) -> list[tuple[str, str]]:
    found = []
    while isinstance(draft, Chain | Refine):
        found.append(split_model(draft.model))
        draft = draft.draft if isinstance(draft, Refine) else None
    return found


def replay(
    trace: Trace, draft: Drafting | None = None, max_new_tokens: int | None = None
) -> pd.DataFrame:
    """The rounds that decoding with a drafter has on the trace's prompts.

    Args:
        draft: None for plain decoding; sizes up to those recorded.
        max_new_tokens: cuts each output; None: as recorded.

    Returns:
        one row per round, see `COLUMNS`: n_proposed, n_accepted and n_emitted as in a run's
        `rounds`, and how many passes the intermediate model made: over trees, over one row and
        over two.

    Raises:
        ValueError: the trace does not cover the drafter, or holds nothing.
    """
    check_covered(trace, draft)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    if trace.n_counted == 0:
        raise ValueError(f"{trace.name} holds no positions: record it first")
    rounds, walk = _Rounds(trace, draft), trace_walk(trace)
    rows = []
    for prompt, first in enumerate(walk.first):
        counted = walk.counted[prompt]
        counted = int(counted if max_new_tokens is None else min(counted, max_new_tokens))
        rows += rounds.of_prompt(prompt, int(first), counted, trace.head["prompt_tokens"][prompt])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def trace_walk(trace: Trace) -> Walk:
    """The trace's `Walk`, made once."""
    walk = trace.__dict__.get("_walk")
    if walk is None:
        walk = trace.__dict__["_walk"] = Walk(trace)
    return walk


class _Rounds:
    """Walks one setting, prompt by prompt."""

    def __init__(self, trace: Trace, draft: Drafting | None):
        walk = trace_walk(trace)
        # lists: the walk takes them entry by entry, where arrays are slow
        self.miss, self.shift = walk.miss.tolist(), walk.shift.tolist()
        self.margin = walk.margin.tolist()
        self.walk, self.draft, self.kept = walk, draft, []
        head = head_draft(draft)
        if head is not None:
            self.kept = accepted(trace.ranks, head.depth, head.tree_size).tolist()
            self.n_nodes = most_nodes(head)

    def of_prompt(self, prompt: int, state: int, counted: int, kv_len: int) -> list[tuple]:
        """The prompt's rounds; the first starts behind the prefill's token."""
        draft, rows, left, whole, last = self.draft, [], counted - 1, True, state
        one = {type(None): _plain, Eagle2: self._eagle, Chain: self._chain, Refine: self._refine}
        one = one[type(draft)]
        while left > 0:
            n_proposed, n_kept, whole, passes = one(state, whole, not rows)
            n_emitted = min(n_kept + 1, left)
            counts = (n_proposed, min(n_kept, n_emitted), n_emitted)
            rows.append((prompt, len(rows), kv_len + state - last, *counts, *passes))
            state, left = state + n_emitted, left - n_emitted
        return rows

    # each: proposed and kept nodes, whether the model below is two tokens behind next time, and
    # its passes over trees, one row and two rows

    def _eagle(self, state: int, whole: bool, is_first: bool) -> tuple:
        return self.n_nodes - 1, self.kept[state], False, (0, 0, 0)

    def _chain(self, state: int, whole: bool, is_first: bool) -> tuple:
        n = self.draft.draft_len
        n_kept = min(n, self.miss[state] - state)
        # one token is drafted with the prompt
        passes = (0, n - 1, 0 if is_first else 1) if whole else (0, n, 0)
        return n, n_kept, n_kept == n, passes

    def _refine(self, state: int, whole: bool, is_first: bool) -> tuple:
        at, n_drafted, n_trees = state, 0, 0
        if whole:
            at, n_drafted = self._after(state, 1), 1
        while n_drafted < self.draft.at_least:
            n = self.kept[at] + 1
            at, n_drafted, n_trees = self._after(at, n), n_drafted + n, n_trees + 1
        n_kept = min(n_drafted, self.miss[state] - state)
        passes = (n_trees, 0, int(whole and not is_first))
        whole, n_proposed = n_kept == n_drafted, n_drafted
        if self.draft.tree_size is not None:
            rivals = self._rivals(state, n_drafted)
            n_proposed += len(rivals)
            missed = state + n_kept
            if not whole and n_kept in rivals and self._rival_is_right(missed):
                n_kept, whole = n_kept + 1, True
        return n_proposed, n_kept, whole, passes

    def _after(self, state: int, n_tokens: int) -> int:
        there = state + n_tokens
        return there if there <= self.miss[state] else there + self.shift[state]

    def _rivals(self, state: int, n_drafted: int) -> list[int]:
        """Places in the draft whose second choice fills a narrow tree's spare rows."""
        spare = max(0, self.draft.tree_size - n_drafted - 1)
        margins = [self.margin[self._after(state, i)] for i in range(n_drafted)]
        return sorted(range(n_drafted), key=margins.__getitem__)[:spare]

    def _rival_is_right(self, state: int) -> bool:
        return self.walk.second[state] == self.walk.truth[state]


def _plain(state: int, whole: bool, is_first: bool) -> tuple:
    return 0, 0, False, (0, 0, 0)


def totals_of(rounds: pd.DataFrame, draft: Drafting | None) -> Totals:
    """How often each stage ran in replayed rounds; arrays of shape []."""
    head = head_draft(draft)
    n_trees = rounds["intermediate_trees"].sum()
    on_target = isinstance(draft, Eagle2)
    return Totals(
        n_rounds=np.asarray(len(rounds)),
        n_emitted=np.asarray(rounds["n_emitted"].sum()),
        target_rows=np.bincount(rounds["n_proposed"] + 1, minlength=2),
        intermediate_rows=np.asarray(most_nodes(head) if head and not on_target else 0),
        intermediate_trees=np.asarray(n_trees),
        intermediate_steps=np.asarray(rounds["intermediate_steps"].sum()),
        intermediate_catch_ups=np.asarray(rounds["intermediate_catch_ups"].sum()),
        drafts=np.asarray(len(rounds) if on_target else n_trees),
        depth=np.asarray(head.depth if head else 0),
        tree_size=np.asarray(most_nodes(head) if head else 0),
    )


def interval(rounds: pd.DataFrame, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple:
    """Bootstrap interval over prompts of the tokens a round emits.

    Returns:
        low, high; NaN for a single prompt.
    """
    sums = rounds.groupby("prompt")["n_emitted"].agg(["sum", "size"]).to_numpy(dtype=float)
    if len(sums) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    drawn = sums[chosen].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return float(low), float(high)
