"""Trees: paths, bitsets and the mask they spell out."""

import numpy as np
import pytest

from hspec_lab.tree import ancestor_bitsets, chain, from_parents, pack_bits, visible


def test_bitsets_hold_a_node_and_its_ancestors():
    tree = from_parents([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3])
    assert ancestor_bitsets(tree).tolist() == [[0b1], [0b11], [0b101], [0b1011], [0b11011]]
    assert tree.depths == [0, 1, 1, 2, 3]
    assert tree.path(4) == [0, 1, 3, 4]


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130, 1024])
def test_mask_follows_parents_at_every_word_border(n):
    rng = np.random.default_rng(n)
    parents = [-1, *(int(rng.integers(0, j)) for j in range(1, n))]
    tree = from_parents(list(range(n)), parents)
    expected = np.zeros((n, n), dtype=bool)
    for node in range(n):
        expected[node, tree.path(node)] = True
    assert (visible(tree) == expected).all()
    assert (pack_bits(expected) == ancestor_bitsets(tree)).all()
    assert ancestor_bitsets(tree).shape == (n, (n + 63) // 64)


def test_a_chain_is_a_tree():
    assert chain([1, 2, 3]) == from_parents([1, 2, 3], [-1, 0, 1])
    assert chain([4]).is_chain
    assert not from_parents([1, 2, 3], [-1, 0, 0]).is_chain


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, 2, 0], []])
def test_a_parent_after_its_child_is_refused(parents):
    with pytest.raises(ValueError, match="parent"):
        from_parents(list(range(len(parents))), parents)
