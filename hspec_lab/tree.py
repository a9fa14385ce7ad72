"""Token trees: what a drafter proposes and a model verifies in one pass.

A tree lists its nodes parents first; node 0 is the root, the pending token.  A chain is a tree.
Which node sees which is kept as one ancestor bitset per node (bit i of row j: i is j or above it),
the form attention kernels read; everything else follows from `tokens` and `parents`.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Tree:
    """A token tree of n nodes, parents before children.

    Attributes:
        tokens: n token ids.
        parents: n node numbers; -1 for the root.
        depths: n levels below the root.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return self.depths[-1] == len(self.tokens) - 1

    def path(self, node: int) -> list[int]:
        """Node numbers from the root down to `node`."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]


def chain(tokens: list[int]) -> Tree:
    """The tree that is one path."""
    n = len(tokens)
    return Tree(tokens, list(range(-1, n - 1)), list(range(n)))


def from_parents(tokens: list[int], parents: list[int]) -> Tree:
    """A tree from its parent numbers.

    Raises:
        ValueError: node 0 is not the root, or a parent does not come before its child.
    """
    if not tokens or len(tokens) != len(parents) or parents[0] != -1:
        raise ValueError(f"node 0 must be the root with parent -1, got parents {parents[:8]}")
    depths = [0]
    for node, parent in enumerate(parents[1:], 1):
        if not 0 <= parent < node:
            raise ValueError(f"node {node} must come after its parent, got parent {parent}")
        depths.append(depths[parent] + 1)
    return Tree(tokens, parents, depths)


def ancestor_bitsets(tree: Tree) -> np.ndarray:
    """uint64 [n, ceil(n / 64)]: bit i of row j is set when i is j itself or an ancestor of it."""
    n_bytes = (len(tree) + 63) // 64 * 8
    rows = [1]
    for node, parent in enumerate(tree.parents[1:], 1):
        rows.append(rows[parent] | 1 << node)
    packed = b"".join(row.to_bytes(n_bytes, "little") for row in rows)
    return np.frombuffer(packed, dtype="<u8").reshape(len(tree), -1)


def pack_bits(seen: np.ndarray) -> np.ndarray:
    """uint64 [n, ceil(m / 64)] from bool [n, m]: bit i of row j is `seen[j, i]`."""
    n, m = seen.shape
    whole = np.zeros((n, (m + 63) // 64 * 64), dtype=bool)
    whole[:, :m] = seen
    return np.packbits(whole, axis=1, bitorder="little").view("<u8")


def visible(tree: Tree) -> np.ndarray:
    """bool [n, n]: the bitsets spelled out; row j may attend to column i."""
    bits = np.unpackbits(ancestor_bitsets(tree).view(np.uint8), axis=1, bitorder="little")
    return bits[:, : len(tree)].astype(bool)
