"""What a drafter has put into device memory for the level above it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offer:
    """A tree, or a path that lies behind the text.

    Attributes:
        n_nodes: nodes, the root included, padding not.
        tree: a `DraftTree` of padded nodes; None for a path.
        longest: nodes of the longest path through a tree.
    """

    n_nodes: int
    tree: tuple | None = None
    longest: int = 0
