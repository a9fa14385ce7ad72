"""Replay of thousands of settings at once: the sums of `acceptance.replay` as arrays; no torch.

Tree sizes, depths and minimum draft lengths span a grid; each point of it is exactly what
`totals_of(replay(trace, draft))` says there.  `point` is one of them, fast enough to follow a
slider.  How it walks: `acceptance_lanes`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hspec_lab.acceptance import Totals, check_covered, trace_walk
from hspec_lab.acceptance_folder import Trace
from hspec_lab.acceptance_lanes import Rounds, walk_rounds
from hspec_lab.config import Chain, Drafting, Eagle2, Refine, head_draft, most_nodes


def grid(
    trace: Trace,
    *,
    tree_sizes: Sequence[int],
    depths: Sequence[int],
    at_least: Sequence[int] = (),
    narrow: int | None = None,
    max_new_tokens: int | None = None,
) -> Totals:
    """How often each stage runs, for every tree size, depth and minimum draft length.

    Args:
        trace: of a draft head on the target, or of a hierarchy.
        tree_sizes: beyond what a depth can hold they mean as many nodes as there are.
        at_least: of a hierarchy.
        narrow: a hierarchy's `Refine.tree_size`; None: the sequence alone.
        max_new_tokens: cuts each output; None: as recorded.

    Returns:
        arrays [S, D]; of a hierarchy [S, D, A].

    Raises:
        ValueError: a list is empty, or the trace does not cover a size.
    """
    if not isinstance(trace.draft, Eagle2 | Refine):
        raise ValueError(f"{trace.name} was recorded without a draft head: use chain_grid")
    is_refine = isinstance(trace.draft, Refine)
    sizes, depths = _listed("tree_sizes", tree_sizes), _listed("depths", depths)
    if not is_refine and (len(at_least) or narrow is not None):
        raise ValueError(
            f"{trace.name} has no model between head and target: leave out at_least and narrow, "
            f"got {list(at_least)} and {narrow}"
        )
    lengths = _listed("at_least", at_least) if is_refine else [1]
    for pick in (min, max):
        head = replace(trace.eagle, tree_size=pick(sizes), depth=pick(depths))
        if is_refine:
            head = replace(trace.draft, draft=head, at_least=pick(lengths), tree_size=narrow)
        check_covered(trace, head)
    heads = [[replace(trace.eagle, tree_size=s, depth=d) for d in depths] for s in sizes]
    # sizes that hold the same tree are walked once
    pairs = np.array([[(most_nodes(head), head.depth) for head in row] for row in heads])
    pairs, place = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    left = _left(trace, max_new_tokens)
    rounds = walk_rounds(trace, pairs, np.array(lengths), left, narrow)
    found = _of_refine(pairs, rounds, left, narrow) if is_refine else _of_eagle(pairs, rounds, left)
    return _at(found, place.reshape(len(sizes), len(depths)))


def chain_grid(
    trace: Trace, *, draft_lens: Sequence[int], max_new_tokens: int | None = None
) -> Totals:
    """How often each stage runs when the model below the target drafts by itself.

    Args:
        trace: of a chain, or of a hierarchy with the same model.
        max_new_tokens: as for `grid`.

    Returns:
        arrays [K].

    Raises:
        ValueError: as `grid`.
    """
    if not isinstance(trace.draft, Chain | Refine):
        raise ValueError(f"{trace.name} was recorded without a model below the target")
    lens = _listed("draft_lens", draft_lens)
    for pick in (min, max):
        check_covered(trace, Chain(trace.draft.model, pick(lens)))
    left = _left(trace, max_new_tokens)
    return _of_chain(walk_rounds(trace, None, np.array(lens), left), left)


def point(trace: Trace, draft: Drafting | None, max_new_tokens: int | None = None) -> Totals:
    """What `totals_of(replay(trace, draft))` says, sooner; arrays of shape [].

    Raises:
        ValueError: the trace does not cover the drafter, or holds nothing.
    """
    check_covered(trace, draft)
    left = _left(trace, max_new_tokens)
    if draft is None:
        n_rounds = left.sum()
        return _totals(left, n_rounds, np.array([0, n_rounds]))
    if isinstance(draft, Chain):
        rounds = walk_rounds(trace, None, np.array([draft.draft_len]), left)
        return _at(_of_chain(rounds, left), 0)
    head = head_draft(draft)
    pairs = np.array([(most_nodes(head), head.depth)])
    if isinstance(draft, Eagle2):
        return _at(_of_eagle(pairs, walk_rounds(trace, pairs, np.array([1]), left), left), 0)
    narrow = draft.tree_size
    rounds = walk_rounds(trace, pairs, np.array([draft.at_least]), left, narrow)
    return _at(_of_refine(pairs, rounds, left, narrow), (0, 0))


def _listed(name: str, values: Sequence[int]) -> list[int]:
    found = np.asarray(values)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a list of whole numbers, one at least, got {values!r}")
    return found.tolist()


def _left(trace: Trace, max_new_tokens: int | None) -> np.ndarray:
    """Tokens of each prompt that rounds emit, [P]: all that count but the prefill's."""
    if trace.n_counted == 0:
        raise ValueError(f"{trace.name} holds no positions: record it first")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens!r}")
    counted = trace_walk(trace).counted
    cut = counted if max_new_tokens is None else np.minimum(counted, max_new_tokens)
    return np.maximum(cut - 1, 0)


def _of_eagle(pairs: np.ndarray, rounds: Rounds, left: np.ndarray) -> Totals:
    """Totals [C] of a head that serves the target."""
    n_rounds = rounds.n_rounds[:, 0]
    nodes, depth = pairs.T
    rows = np.arange(nodes.max() + 1)
    return _totals(
        left,
        n_rounds,
        np.where(rows == nodes[:, None], n_rounds[:, None], 0),
        drafts=n_rounds,
        depth=depth,
        tree_size=nodes,
    )


def _of_refine(pairs: np.ndarray, rounds: Rounds, left: np.ndarray, narrow=None) -> Totals:
    """Totals [C, A] of a hierarchy."""
    drafted = rounds.drafted.sum(axis=3)
    rows = np.arange(drafted.shape[2]) + 1
    if narrow is not None:
        # the root and the sequence, and second choices as far as there are rows and choices
        rows = np.where(rows == 1, 1, rows + np.clip(narrow - rows, 0, rows - 1))
    target_rows = np.zeros((*drafted.shape[:2], rows.max() + 1), dtype=np.int64)
    for n_drafted, row in enumerate(rows):
        target_rows[..., row] += drafted[..., n_drafted]
    nodes, depth = (np.broadcast_to(part[:, None], drafted.shape[:2]) for part in pairs.T)
    return _totals(
        left,
        rounds.n_rounds,
        target_rows,
        intermediate_rows=nodes,
        intermediate_trees=rounds.steps,
        intermediate_catch_ups=rounds.catch_ups,
        drafts=rounds.steps,
        depth=depth,
        tree_size=nodes,
    )


def _of_chain(rounds: Rounds, left: np.ndarray) -> Totals:
    """Totals [K] of a model that drafts by itself."""
    drafted = rounds.drafted[0].sum(axis=2)
    return _totals(
        left,
        rounds.n_rounds[0],
        np.pad(drafted, ((0, 0), (1, 0))),
        intermediate_steps=rounds.steps[0],
        intermediate_catch_ups=rounds.catch_ups[0],
    )


def _totals(left, n_rounds: np.ndarray, target_rows: np.ndarray, **counts: np.ndarray) -> Totals:
    """Totals of which the counts not given are 0; rows end with the largest that occurs."""
    occurs = np.flatnonzero(target_rows.reshape(-1, target_rows.shape[-1]).any(axis=0))
    names = Totals.__dataclass_fields__.keys() - {"n_rounds", "n_emitted", "target_rows"}
    return Totals(
        n_rounds=n_rounds,
        n_emitted=np.full_like(n_rounds, left.sum()),
        target_rows=target_rows[..., : max(occurs, default=1) + 1],
        **dict.fromkeys(names, np.zeros_like(n_rounds)) | counts,
    )


def _at(totals: Totals, place) -> Totals:
    """The totals at some places of the first axis."""
    return Totals(**{name: np.asarray(v[place]) for name, v in vars(totals).items()})
