"""The best static tree for a text: measured acceptance, dynamic programming, replay; no torch.

A static tree has the same shape in every round: node i takes the head's `places[i]`-th most
probable token behind node `parents[i]`.  A round keeps the nodes on the path that the text takes,
so a tree emits on average

    1 + sum over its nodes of P(the text goes through that node)

and with P(place i at level l | all above right) measured on a trace, the best tree of n nodes is
found level by level from the bottom: what m nodes below one node are worth is the best way to share
them out among its children.  Sequoia takes one probability per place; here each level has its own.

The table of probabilities only proposes trees.  What a tree really emits on the trace is replayed,
round by round, and the size and depth are chosen by time per token from that.

    cost    depth * places * n^2 additions for all trees up to n nodes; a replay is one look at
            each state per level
    source  Chen et al. 2024 (Sequoia), arXiv 2402.12374, section 3.1
"""

from collections.abc import Sequence

import numpy as np

from hspec_lab.acceptance import Totals, trace_walk
from hspec_lab.acceptance_folder import MAX_CHILD, Trace, child_columns
from hspec_lab.config import Eagle2, Static


def place_counts(trace: Trace, starts: np.ndarray | None = None) -> np.ndarray:
    """How often the text's token stands at each place of each level.

    Args:
        starts: int64, the states to count, as often as they are named; None: each state of the
            trace once.

    Returns:
        int64 [depth, MAX_CHILD + 1]: by level and place, among states whose levels above are all
        at a known place; the last column counts what is behind them all.

    Raises:
        ValueError: the trace was recorded without a draft head, or holds nothing.
    """
    found = _children(trace)
    if starts is not None:
        found = found[starts]
    counts = np.zeros((trace.depth, MAX_CHILD + 1), dtype=np.int64)
    for level in range(trace.depth):
        # -1 takes the last column
        places = found[:, level] % (MAX_CHILD + 1)
        counts[level] = np.bincount(places, minlength=MAX_CHILD + 1)
        found = found[places < MAX_CHILD]
    return counts


def rates_of(counts: np.ndarray) -> np.ndarray:
    """fp64 [depth, MAX_CHILD]: P(place | all above right) from `place_counts`."""
    return counts[:, :-1] / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def best_trees(rates: np.ndarray, tree_size: int, head: str | None = None) -> list[Static]:
    """The tree of each size that keeps most on average, by dynamic programming.

    Args:
        rates: [depth, places], see `rates_of`; its rows say how deep a tree may be.
        tree_size: the largest, the root included.
        head: as `Static.head`.

    Returns:
        trees of at most 1, 2, ..., `tree_size` nodes; fewer where a further one is never right.
    """
    shares = _shares(rates[:, :tree_size], tree_size - 1)
    return [_as_tree(_paths(shares, 0, n, ()), head) for n in range(tree_size)]


def expected_kept(rates: np.ndarray, draft: Static) -> float:
    """Nodes that a round keeps on average, by the probabilities alone."""
    reached = [1.0]
    for node in range(1, draft.tree_size):
        rate = rates[draft.depths[node] - 1, draft.places[node]]
        reached.append(reached[draft.parents[node]] * rate)
    return float(sum(reached[1:]))


def propose(
    trace: Trace, tree_sizes: Sequence[int], depths: Sequence[int] | None = None
) -> list[Static]:
    """The best trees of some sizes and depths, each once, as a trace's probabilities say.

    Raises:
        ValueError: as `place_counts`; a depth was not recorded.
    """
    depths = range(1, trace.depth + 1) if depths is None else depths
    if not len(tree_sizes) or min(tree_sizes) < 1 or not len(depths) or min(depths) < 1:
        raise ValueError(f"sizes and depths must be >= 1, got {[*tree_sizes]} and {[*depths]}")
    if max(depths) > trace.depth:
        raise ValueError(f"{trace.name} was recorded to depth {trace.depth}, got {max(depths)}")
    rates, found = rates_of(place_counts(trace)), {}
    for depth in depths:
        trees = best_trees(rates[:depth], max(tree_sizes), trace.eagle.head)
        found |= dict.fromkeys(trees[size - 1] for size in tree_sizes)
    return list(found)


def kept_by(trace: Trace, draft: Static) -> np.ndarray:
    """How many nodes of a static tree the verifying model keeps in each state, int64 [n_states].

    Raises:
        ValueError: the trace has no draft head or another one, or its depth or places end before.
    """
    children = _children(trace)
    wanted = f"{trace.name} was recorded for {trace.draft!r}"
    if draft.head != trace.eagle.head:
        raise ValueError(f"{wanted}, a static tree asks for the head {draft.head!r}")
    if draft.depth > trace.depth or draft.top_k > MAX_CHILD:
        raise ValueError(
            f"{wanted} and {MAX_CHILD} places, a static tree has depth {draft.depth} and place "
            f"{draft.top_k - 1}"
        )
    # behind the last node: none, with no children
    below = np.full((draft.tree_size + 1, MAX_CHILD + 1), draft.tree_size)
    for node in range(1, draft.tree_size):
        below[draft.parents[node], draft.places[node]] = node
    at, kept = np.zeros(len(children), dtype=np.int64), np.zeros(len(children), dtype=np.int64)
    for places in children.T[: draft.depth]:
        at = below[at, places]
        kept += at < draft.tree_size
    return kept


def replay_static(trace: Trace, draft: Static, max_new_tokens: int | None = None) -> Totals:
    """How often each stage runs when the target's head fills a static tree.

    Args:
        max_new_tokens: cuts each output; None: as recorded.

    Returns:
        of each prompt, arrays [P].

    Raises:
        ValueError: as `kept_by`; the head serves another model than the target.
    """
    if not isinstance(trace.draft, Eagle2):
        raise ValueError(f"{trace.name}: static trees are replayed for a head of the target alone")
    walk, kept = trace_walk(trace), kept_by(trace, draft).tolist()
    counted = walk.counted if max_new_tokens is None else np.minimum(walk.counted, max_new_tokens)
    n_emitted = np.maximum(counted - 1, 0)
    spans = zip(walk.first.tolist(), n_emitted.tolist(), strict=True)
    n_rounds = np.array([_n_rounds(kept, *span) for span in spans])
    rows = np.arange(draft.tree_size + 1) == draft.tree_size
    none, one = np.zeros_like(n_rounds), np.ones_like(n_rounds)
    return Totals(
        n_rounds=n_rounds,
        n_emitted=n_emitted,
        target_rows=n_rounds[:, None] * rows,
        intermediate_rows=none,
        intermediate_trees=none,
        intermediate_steps=none,
        intermediate_catch_ups=none,
        drafts=n_rounds,
        depth=draft.depth * one,
        tree_size=draft.tree_size * one,
    )


def _n_rounds(kept: list[int], state: int, left: int) -> int:
    """Rounds that emit `left` tokens behind a state; each begins where the last one ended."""
    n, end = 0, state + left
    while state < end:
        state += kept[state] + 1
        n += 1
    return n


def _children(trace: Trace) -> np.ndarray:
    """int64 [n_states, depth], the place of the true token at each level; -1 is not known."""
    if not trace.depth:
        raise ValueError(f"{trace.name} was recorded without a draft head: static trees need one")
    if not len(trace.states):
        raise ValueError(f"{trace.name} holds no positions: record it first")
    return trace.states[child_columns(trace.depth)].to_numpy(dtype=np.int64)


def _shares(rates: np.ndarray, n: int) -> np.ndarray:
    """int64 [depth, places, n + 1]: nodes that a place gets, itself included, of so many.

    The nodes are those that are left for this place and all behind it, below one parent.
    """
    nodes = np.arange(n + 1)
    left = nodes[:, None] - nodes  # [of m nodes, s are spent]
    shares, below = np.zeros((*rates.shape, n + 1), dtype=np.int64), np.zeros(n + 1)
    for level in reversed(range(len(rates))):
        behind = np.zeros(n + 1)
        for place in reversed(range(rates.shape[1])):
            # a child with s nodes is right with its rate, and then so is the best of s - 1 below
            worth = np.append(0.0, rates[level, place] * (1 + below[:-1]))
            worths = np.where(left >= 0, worth + behind[left], -np.inf)
            shares[level, place] = worths.argmax(axis=1)
            behind = worths.max(axis=1)
        below = behind
    return shares


def _paths(shares: np.ndarray, level: int, n: int, above: tuple) -> list[tuple]:
    """Places from the root down to each of `n` nodes below the node at `above`."""
    found = []
    if level == len(shares):
        return found
    for place, wanted in enumerate(shares[level]):
        if spent := int(wanted[n]):
            path = (*above, place)
            found += [path, *_paths(shares, level + 1, spent - 1, path)]
            n -= spent
    return found


def _as_tree(paths: list[tuple], head: str | None) -> Static:
    """A tree from the places that lead to each node, level by level."""
    paths = [(), *sorted(paths, key=lambda path: (len(path), path))]
    number = {path: node for node, path in enumerate(paths)}
    parents = [-1, *(number[path[:-1]] for path in paths[1:])]
    return Static(tuple(parents), (-1, *(path[-1] for path in paths[1:])), head)
