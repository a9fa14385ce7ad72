"""`narrow_tree`: the draft first, then rivals where the drafting model was least sure."""

import pytest
import torch

from hspec_kernels.narrow_tree import narrow_tree, narrow_tree_ref
from hspec_lab.tree import ancestor_bitsets, from_parents

BOTH = pytest.mark.parametrize("op", [narrow_tree_ref, narrow_tree])


def draft(device, margins, n_text=2):
    """Text 10, 11, ...; behind the first two tokens the draft, whose rivals are 100 more."""

    def ids(values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    n = n_text + len(margins)
    return {
        "text": ids(list(range(10, 10 + n + 3))),
        "rivals": ids(list(range(110, 110 + n + 3))),
        "margins": torch.tensor([9.0] * n_text + margins + [0.0] * 3, device=device),
        "n_text": ids([n_text]),
        "n_drafted": ids([n]),
    }


@BOTH
def test_rivals_stand_where_margins_are_smallest(op, device):
    tree = op(**draft(device, [3.0, 0.5, 0.5, 2.0]), tree_size=8, bucket=10)
    assert tree.tokens.tolist() == [11, 12, 13, 14, 15, 113, 114, 115, 0, 0]
    assert tree.parents.tolist() == [-1, 0, 1, 2, 3, 1, 2, 3, -1, -1]
    assert tree.depths.tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 0, 0]
    same = from_parents(tree.tokens.tolist()[:8], tree.parents.tolist()[:8])
    wanted = ancestor_bitsets(same)[:, 0].tolist() + [1 << 8, 1 << 9]
    assert tree.ancestors[:, 0].tolist() == wanted


@BOTH
def test_the_last_bit_of_a_word_is_a_node_as_any_other(op, device):
    tree = op(**draft(device, [1.0] * 63), tree_size=64, bucket=64)
    assert tree.ancestors[63, 0] == -1 and tree.depths[63] == 63


@BOTH
def test_a_margin_that_is_not_a_number_comes_last(op, device):
    tree = op(**draft(device, [float("nan"), 1e30]), tree_size=4, bucket=4)
    assert tree.parents.tolist() == [-1, 0, 1, 1]


def test_a_tree_beyond_its_bucket_is_refused(device):
    with pytest.raises(ValueError, match="tree_size must be 1..8, got 9"):
        narrow_tree(**draft(device, [1.0]), tree_size=9, bucket=8)
    with pytest.raises(ValueError, match="bucket must be 1..64, got 65"):
        narrow_tree(**draft(device, [1.0]), tree_size=9, bucket=65)
