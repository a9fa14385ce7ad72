"""Many settings walk over a trace together, or one of them alone.

How far a step of a draft goes depends on the state, the tree size and the depth alone; so each such
pair becomes a table `state -> next state` (`acceptance_numbers`), and all settings of some prompts,
the *lanes*, step together: one gather and one comparison.  A lane whose draft is long enough ends
its round and begins the next.

    cost  per lane one gather for each pass of the model below, some fifteen reads and writes by
          place for each round of the target; `benchmarks/replay.py` says what that takes
"""

from dataclasses import dataclass

import numpy as np

from hspec_lab.acceptance_folder import Trace
from hspec_lab.acceptance_numbers import Numbers, numbers_of, saved_by_second, step_tables

# enough lanes that a step's arithmetic outweighs numpy's calls, few enough that their tables stay
# in cache
_LANES = 8192
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Rounds:
    """What C pairs of tree size and depth do at A draft lengths, summed over prompts.

    Attributes:
        drafted: int64 [C, A, W, 2], rounds of the target by tokens drafted and by whether the
            next one begins with a pass over two rows below; of a head that serves the target, by
            tokens emitted.
        steps: int64 [C, A], rounds of the model below.
        catch_ups: int64 [C, A], passes over two rows below.
    """

    drafted: np.ndarray
    steps: np.ndarray
    catch_ups: np.ndarray

    @property
    def n_rounds(self) -> np.ndarray:
        """int64 [C, A]."""
        return self.drafted.sum(axis=(2, 3))


def walk_rounds(
    trace: Trace,
    pairs: np.ndarray | None,
    lengths: np.ndarray,
    left: np.ndarray,
    narrow: int | None = None,
) -> Rounds:
    """Walk all settings over all prompts.

    Args:
        pairs: int [C, 2], nodes and depth; None: nothing drafts for the model below.
        lengths: int [A], tokens drafted at least; [1] for a head that serves the target.
        left: int [P], tokens that rounds emit.
        narrow: rows of a narrow tree; None: none.
    """
    numbers, n_pairs = numbers_of(trace), 1 if pairs is None else len(pairs)
    saved = None if narrow is None else saved_by_second(numbers, narrow)
    shape = (n_pairs, len(lengths))
    drafted = np.zeros((*shape, numbers.reach + 1, 2), dtype=np.int64)
    total = Rounds(drafted, *np.zeros((2, *shape), dtype=np.int64))
    begun = np.flatnonzero(left)
    if shape == (1, 1):
        _walk_alone(numbers, pairs, int(lengths[0]), left, saved, total)
        return total
    per_block = max(1, _LANES // (n_pairs * len(lengths)))
    for i in range(0, len(begun), per_block):
        lanes = _Lanes(numbers, pairs, lengths, left, begun[i : i + per_block], saved)
        lanes.walk()
        lanes.add_to(total)
    return total


def _walk_alone(numbers: Numbers, pairs, length: int, left, saved, total: Rounds) -> None:
    """Walk one setting entry by entry: over few lanes numpy's calls would take longer."""
    behind, whole, start, begin, first, opening = numbers.lists
    there = step_tables(numbers, pairs, 0, len(numbers.row))[0].tolist()
    drafted = [[0, 0] for _ in range(total.drafted.shape[2])]
    n_steps, n_catch_ups = 0, 0
    for prompt in np.flatnonzero(left).tolist():
        at, now, end, goals = opening[prompt], 0, int(left[prompt]), first[prompt]
        while now < end:
            goal = goals[now + length]
            while at < goal:
                at = there[at]
                n_steps += 1
            n_drafted, is_whole, before = behind[at] - now, whole[at], now
            now, at = start[at], begin[at]
            if saved is not None and saved[prompt, before, n_drafted]:
                now, at, is_whole = now + 1, begin[numbers.text[prompt, now]], True
            drafted[n_drafted][is_whole] += 1
            n_catch_ups += is_whole and now < end
    total.drafted[0, 0] = drafted
    total.steps[...], total.catch_ups[...] = n_steps, n_catch_ups


class _Lanes:
    """All settings on some prompts, [prompts, C, A] of them."""

    def __init__(self, numbers: Numbers, pairs, lengths, left, prompts, saved):
        low, high = numbers.origin[prompts[0]], numbers.origin[prompts[-1] + 1]
        tables = step_tables(numbers, pairs, low, high)
        self.shape = (len(prompts), len(tables), len(lengths))
        of_prompt, of_pair, of_length = (axis.ravel() for axis in np.indices(self.shape))
        self.tables, self.base = tables.ravel(), of_pair * (high - low)
        self.behind, self.start = numbers.behind[low:high], numbers.start[low:high]
        self.whole, self.begin = numbers.whole[low:high], numbers.begin[low:high] - low
        # the first state at which a draft begun at a position is long enough; positions behind the
        # last that counts have none that is ever reached
        first, position = numbers.first[prompts] - low, np.arange(numbers.first.shape[1])
        goals = first[:, np.minimum(position + lengths[:, None], len(position) - 1)]
        goals[np.broadcast_to(position >= left[prompts, None, None], goals.shape)] = _NEVER
        self.goals, n = goals.ravel(), len(position)
        self.goal_base = (of_prompt * len(lengths) + of_length) * n
        self.width = numbers.reach + 1
        self.lane, self.n_through = np.arange(len(self.base)), 0
        self.at, self.now = (numbers.opening[prompts] - low)[of_prompt], np.zeros_like(self.lane)
        self.goal = self.goals[self.goal_base]
        # a draft of one token is there already, behind a prefill and a pass over two rows
        self.idle = (lengths == 1) & (not numbers.serves_target)
        self.drafted = np.zeros((len(self.lane) * self.width * 2), dtype=np.int32)
        self.steps, self.ended_whole = np.zeros((2, len(self.lane)), dtype=np.int64)
        self.saved = None
        if saved is not None:
            self.saved, self.text = saved[prompts].ravel(), (numbers.text[prompts] - low).ravel()
            self.text_base = of_prompt * n

    def walk(self) -> None:
        """Step until all have emitted what is to be emitted."""
        n_steps, idles = 0, self.idle.any()
        while len(self.lane):
            n_steps += 1
            at = self.tables.take(self.base + self.at)
            self.at = np.where(self.at < self.goal, at, self.at) if idles else at
            ended = np.flatnonzero(self.at >= self.goal)
            if len(ended) and self._end_rounds(ended, n_steps):
                self._drop_finished()

    def _end_rounds(self, ended: np.ndarray, n_steps: int) -> bool:
        """End the rounds of some lanes and begin the next; whether enough lanes are through."""
        last, before, lane = self.at[ended], self.now[ended], self.lane[ended]
        n_drafted, whole = self.behind[last] - before, self.whole[last]
        now, at = self.start[last], self.begin[last]
        if self.saved is not None:
            base = self.text_base[ended]
            saved = self.saved[(base + before) * self.width + n_drafted]
            at = np.where(saved, self.begin[self.text[base + now]], at)
            now, whole = now + saved, whole | saved
        self.drafted[(lane * self.width + n_drafted) * 2 + whole] += 1
        goal = self.goals[self.goal_base[ended] + now]
        self.at[ended], self.now[ended], self.goal[ended] = at, now, goal
        through = np.flatnonzero(goal == _NEVER)
        if len(through):
            self.steps[lane[through]] = n_steps
            self.ended_whole[lane[through]] = whole[through]
            self.n_through += len(through)
        return 4 * self.n_through >= len(self.lane)

    def _drop_finished(self) -> None:
        stays, self.n_through = self.goal != _NEVER, 0
        names = ["base", "goal_base", "lane", "at", "now", "goal"]
        for name in names if self.saved is None else [*names, "text_base"]:
            setattr(self, name, getattr(self, name)[stays])

    def add_to(self, total: Rounds) -> None:
        """Add what was found, over prompts."""
        drafted = self.drafted.reshape(*self.shape, self.width, 2).sum(axis=0, dtype=np.int64)
        ended_whole = self.ended_whole.reshape(self.shape).sum(axis=0)
        catch_ups = drafted[..., 1].sum(axis=2) - ended_whole
        total.drafted[...] += drafted
        total.catch_ups[...] += catch_ups
        total.steps[...] += self.steps.reshape(self.shape).sum(axis=0)
        # lanes step together: those that had a token in time for the next round waited
        total.steps[:, self.idle] -= catch_ups[:, self.idle] + self.shape[0]
