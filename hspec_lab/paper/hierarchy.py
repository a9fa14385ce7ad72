"""HierSpec's round in the model: how long its drafts are, what they emit, what a cycle costs.

The intermediate model runs trees until a draft has `at_least` tokens; the target verifies it with
always as many rows as the longest draft needs.  After a wholly accepted draft the intermediate
model catches up over two rows, which gives the next draft its first token.
"""

from dataclasses import dataclass

from hspec_lab.paper.engine import Engine, Kernel, mean_emitted


@dataclass(frozen=True)
class Sizes:
    """Settings: the tree on the intermediate model, the least draft, the target's rows."""

    tree_size: int
    depth: int
    at_least: int
    target_rows: int


@dataclass(frozen=True)
class Cycle:
    """Means over rounds of the target.

    Attributes:
        emitted: tokens.
        trees: rounds of the intermediate model.
        whole: share of drafts accepted whole.
        us: time.
    """

    emitted: float
    trees: float
    whole: float
    us: float


def cycle(target: Engine, intermediate: Engine, kernel: Kernel, sizes: Sizes) -> Cycle:
    """HierSpec's mean round, both models in one format, acceptance by the engines' parameters."""
    agreement = target.fitted.agreement
    starts = [_drafts(intermediate.fitted.accept_8b, sizes, start) for start in (0, 1)]
    wholes = [sum(p * agreement**length for length, _, p in start) for start in starts]
    # whether a draft is accepted whole decides how the next one starts
    whole = wholes[0] / (1 + wholes[0] - wholes[1])
    drafts = [(n, trees, p * (1 - whole)) for n, trees, p in starts[0]]
    drafts += [(n, trees, p * whole) for n, trees, p in starts[1]]
    n_trees = sum(p * trees for _, trees, p in drafts)
    tree_us = intermediate.draft_us(sizes.depth) + intermediate.pass_us(kernel, sizes.tree_size)
    return Cycle(
        emitted=sum(p * mean_emitted(agreement, length) for length, _, p in drafts),
        trees=n_trees,
        whole=whole,
        us=n_trees * tree_us
        + whole * intermediate.pass_us(kernel, 2)
        + target.pass_us(kernel, sizes.target_rows),
    )


def _drafts(accept: float, sizes: Sizes, start: int) -> list[tuple[int, int, float]]:
    """How drafts end that start with so many tokens: length, trees, probability."""
    depth = sizes.depth
    emits = [accept**level * (1 - accept) for level in range(depth)] + [accept**depth]
    open_, done = {(start, 0): 1.0}, []
    while open_:
        (length, trees), p = open_.popitem()
        if length >= sizes.at_least:
            done.append((length, trees, p))
            continue
        for kept, share in enumerate(emits):
            key = (length + kept + 1, trees + 1)
            open_[key] = open_.get(key, 0.0) + p * share
    return done
