"""A trace's states in one order, so that walking it is a comparison and a look into a table.

A prompt's states, those on the text and those on branches, are numbered by how many tokens of text
lie before them.  A draft that began at position q then has `at_least` tokens exactly when the
number reached is not below that of the first state `at_least` tokens behind q.

Where the round behind a draft starts is a property of the state that the draft ends at.  On the
text all of it was kept, and the round emits one token more; on a branch what lies before the branch
was kept, and the token more is the target's own.  A head that serves the target is simpler: one
draft is a round, and it ends where the next one starts.
"""

from functools import cached_property

import numpy as np

from hspec_lab.acceptance import trace_walk
from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Chain, Eagle2, Refine

_NEVER = np.iinfo(np.int32).max
# -1, not there, as a number without a sign: behind every other
_NOWHERE = np.iinfo(np.uint16).max


class Numbers:
    """A trace's states, N of them: with those that a draft may only end at, so not recorded.

    An entry that names a state is its number.  Positions count from 0 in each prompt, X of them.

    Attributes:
        reach: tokens of the longest draft that the trace answers for.
        origin: [P + 1], each prompt's first state.
        row: [N], the row of `Trace.states`; -1 where none was recorded.
        behind: [N], tokens before it, counted from the prompt's position 0.
        ahead: [N, depth + 2], the state so many tokens on, as the model that drafts goes.
        whole: bool [N], a draft that ends here was kept whole.
        start: [N], position at which the round behind such a draft starts.
        begin: [N], state at which that round's drafting starts; on the text one token of it is
            there already, from the pass over two rows.
        text: [P, X], the state of each position.
        first: [P, X], the first state with so many tokens before it, or with more.
        opening: [P], where the first round's drafting starts: one token came with the prompt.
    """

    def __init__(self, trace: Trace):
        self.trace, self.walk, draft = trace, trace_walk(trace), trace.draft
        self.serves_target = isinstance(draft, Eagle2)
        length = draft.draft_len if isinstance(draft, Chain) else 1
        length = draft.at_least if isinstance(draft, Refine) else length
        self.reach = length + trace.depth
        branch = trace.states["branch"].to_numpy()
        edges = np.append(self.walk.first, len(branch))
        edges = zip(edges[:-1], edges[1:], strict=True)
        parts = [self._of_prompt(low, branch[low:high]) for low, high in edges]
        self.origin = np.cumsum([0, *(len(part["row"]) for part in parts)])
        for name in ("row", "behind", "whole", "start"):
            setattr(self, name, np.concatenate([part[name] for part in parts]))
        for name in ("ahead", "begin"):
            moved = [part[name] + low for part, low in zip(parts, self.origin, strict=False)]
            setattr(self, name, np.concatenate(moved))
        n = max(len(part["text"]) for part in parts)
        for name in ("text", "first"):
            wide = [np.pad(part[name], (0, n - len(part[name])), "edge") for part in parts]
            setattr(self, name, np.stack(wide) + self.origin[:-1, None])
        self.opening = self.text[:, 0]
        if not self.serves_target:
            self.opening = self.ahead[self.opening, 1]

    def _of_prompt(self, low: int, branch: np.ndarray) -> dict[str, np.ndarray]:
        """One prompt's arrays, its states counted from 0; `low` is its first row."""
        n_rows, n_text, reach = len(branch), int((branch == 0).sum()), self.reach
        position = np.arange(n_text + self.reach + self.trace.depth + 3)
        n, miss = len(position), np.full(len(position), _NEVER)
        known = self.walk.miss[low : low + n_text] - low
        miss[:n_text] = np.where(known < n_rows, known, _NEVER)
        missed = np.unique(miss[miss < _NEVER])
        off = missed[:, None] + np.arange(1, reach + 1)
        off_row = off + self.walk.shift[low + missed][:, None]
        recorded = branch[np.minimum(off_row, n_rows - 1)] == off - missed[:, None]
        recorded &= off_row < n_rows
        behind = np.concatenate([position, off.ravel()])
        order = np.argsort(behind, kind="stable")
        number = np.argsort(order)
        text, on_branch = number[:n], number[n:].reshape(off.shape)
        ahead = _ahead(text, on_branch, miss, missed, self.trace.depth + 1)
        next_one = np.minimum(position + 1, n - 1)
        found = {
            "row": np.where(position < n_text, low + position, -1),
            "whole": np.full(n, not self.serves_target),
            "start": position if self.serves_target else position + 1,
            "begin": text if self.serves_target else ahead[next_one, 1],
        }
        on_branches = {
            "row": np.where(recorded, low + off_row, -1),
            "whole": np.zeros(off.shape, dtype=bool),
            "start": np.broadcast_to(missed[:, None] + 1, off.shape),
            "begin": np.broadcast_to(text[missed + 1][:, None], off.shape),
        }
        found = {k: np.concatenate([v, on_branches[k].ravel()])[order] for k, v in found.items()}
        behind = behind[order]
        first = np.searchsorted(behind, position)
        return found | {"behind": behind, "ahead": ahead[order], "text": text, "first": first}

    @cached_property
    def ranks(self) -> np.ndarray:
        """uint16 [depth + 1, depth + 1, N]: `Trace.ranks` by depth limit and level."""
        ranks = self.trace.ranks[self.row].transpose(1, 2, 0).astype(np.uint16)
        ranks[:, :, self.row < 0] = _NOWHERE
        return ranks

    @cached_property
    def preferred(self) -> np.ndarray:
        """int32 [P, X, W], by the position at which a round starts and the tokens drafted.

        How many places of the draft offer their second choice sooner than the place of the first
        disagreement does; `_NEVER` where there is none, or where that second choice is wrong.
        """
        states, walk = self.trace.states, self.walk
        at, path = self.text, []
        for _ in range(self.reach):
            path.append(self.row[at])
            at = self.ahead[at, 1]
        # row -1, not recorded, takes the entry added at the end
        path = np.stack(path, axis=-1)
        margin = np.append(states["margin"].to_numpy(), np.inf)[path]
        differs = (states["branch"].to_numpy() == 0) & (walk.token != walk.truth)
        differs = np.append(differs, False)[path]
        place = differs.argmax(axis=-1)[..., None]
        missed = np.take_along_axis(path, place, axis=-1)
        that = np.take_along_axis(margin, place, axis=-1)
        sooner = (margin < that) | ((margin == that) & (np.arange(self.reach) < place))
        found = np.pad(sooner.cumsum(axis=-1, dtype=np.int32), ((0, 0), (0, 0), (1, 0)))
        can = np.append(walk.second == walk.truth, False)[missed] & differs.any(-1, keepdims=True)
        return np.where(can & (place < np.arange(self.reach + 1)), found, _NEVER)

    @cached_property
    def lists(self) -> tuple[list, ...]:
        """`behind`, `whole`, `start`, `begin`, `first` and `opening`, for entry by entry."""
        names = ("behind", "whole", "start", "begin", "first", "opening")
        return tuple(getattr(self, name).tolist() for name in names)


def numbers_of(trace: Trace) -> Numbers:
    """The trace's `Numbers`, made once."""
    found = trace.__dict__.get("_numbers")
    if found is None:
        found = trace.__dict__["_numbers"] = Numbers(trace)
    return found


def _ahead(text, on_branch, miss, missed, most: int) -> np.ndarray:
    """[states on the text, then those on branches; most + 1]: the state so many tokens on."""
    steps = np.arange(most + 1)
    there = np.arange(len(text))[:, None] + steps
    on_text = text[np.minimum(there, len(text) - 1)]
    if not len(missed):
        return on_text
    # positions behind the last disagreement never use theirs
    which = np.minimum(np.searchsorted(missed, miss), len(missed) - 1)[:, None]
    reach = on_branch.shape[1]
    beyond = there - miss[:, None]
    off = on_branch[which, np.clip(beyond, 1, reach) - 1]
    places = np.minimum(np.arange(reach)[:, None] + steps, reach - 1)
    on = on_branch[:, places].reshape(-1, most + 1)
    return np.concatenate([np.where(beyond > 0, off, on_text), on])


def step_tables(numbers: Numbers, pairs: np.ndarray | None, low: int, high: int) -> np.ndarray:
    """Where a draft and its verdict lead from each state, for each tree size and depth.

    Args:
        pairs: int [C, 2], nodes and depth; None: no draft, one token at a time.
        low, high: the states' numbers.

    Returns:
        int32 [C, high - low], numbers counted from `low`.
    """
    ahead = (numbers.ahead[low:high] - low).astype(np.int32)
    if pairs is None:
        return ahead[None, :, 1]
    tables = np.empty((len(pairs), len(ahead)), dtype=np.int32)
    places = np.arange(len(ahead)) * ahead.shape[1] + 1
    for depth in np.unique(pairs[:, 1]):
        chosen = np.flatnonzero(pairs[:, 1] == depth)
        n_below_root = (pairs[chosen, :1] - 1).astype(np.uint16)
        kept = np.zeros((len(chosen), len(ahead)), dtype=np.int8)
        for rank in numbers.ranks[depth, 1 : depth + 1, low:high]:
            kept += rank < n_below_root
        tables[chosen] = ahead.ravel().take(places + kept)
    return tables


def saved_by_second(numbers: Numbers, tree_size: int) -> np.ndarray:
    """Where a narrow tree's second choices hold what the target says instead.

    Returns:
        bool [P, X, W], by the position at which a round starts and the tokens drafted.
    """
    n_drafted = np.arange(numbers.reach + 1)
    return numbers.preferred < np.maximum(0, tree_size - n_drafted - 1)
