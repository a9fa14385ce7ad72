"""What a drafter has put into device memory for the level above it."""

from dataclasses import dataclass

import torch

from hspec_lab.runtime.memory import Memory


@dataclass(frozen=True, slots=True)
class Offer:
    """A tree, or a path that lies behind the text.

    Attributes:
        n_nodes: nodes, the root included, padding not.
        tree: a `DraftTree` of padded nodes; None for a path.
        longest: nodes of the longest path through a tree.
        path_first: the tree begins with the path that lies behind the text; rivals follow.
    """

    n_nodes: int
    tree: tuple | None = None
    longest: int = 0
    path_first: bool = False


def empty_tree(memory: Memory, bucket: int):
    """Room for a `DraftTree` of so many nodes, padding included."""
    from hspec_kernels.tree_rerank import DraftTree

    size = bucket, -(-bucket // 64)
    ancestors = torch.zeros(size, dtype=torch.int64, device=memory.device)
    return DraftTree(*(memory.int32(bucket) for _ in range(3)), ancestors)
