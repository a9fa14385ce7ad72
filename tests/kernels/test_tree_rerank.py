"""`tree_rerank`: by hand, and with the CPU's tree for whole drafts in `test_tree_expand`."""

import pytest
import torch

from hspec_kernels.cases.tree_rerank import grown
from hspec_kernels.tree_expand import History
from hspec_kernels.tree_rerank import Config, DraftTree, tree_rerank, tree_rerank_ref

BOTH = pytest.mark.parametrize("op", [tree_rerank_ref, tree_rerank])


def ints(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def history(tokens, scores, parents, device):
    return History(ints(tokens, device), torch.tensor(scores, device=device), ints(parents, device))


def lists(fields):
    return {name: value.tolist() for name, value in fields._asdict().items()}


@BOTH
def test_the_best_nodes_are_kept_in_history_order(op, device):
    # 7 -> 5 6,  4 -> 8 9; of the two at -2.5 only the earlier fits
    past = history(
        [7, 4, 5, 6, 8, 9], [-1.0, -2.0, -2.5, -4.0, -2.5, -3.0], [-1, -1, 0, 0, 1, 1], device
    )
    assert lists(op(ints([3], device), past, 4, bucket=6)) == {
        "tokens": [3, 7, 4, 5, 0, 0],
        "parents": [-1, 0, 0, 1, -1, -1],
        "depths": [0, 1, 1, 2, 0, 0],
        "ancestors": [[0b1], [0b11], [0b101], [0b1011], [0b10000], [0b100000]],
    }


@BOTH
def test_a_certain_child_comes_behind_its_parent(op, device):
    past = history([7, 5, 2], [0.0, 0.0, -0.0], [-1, 0, 1], device)
    tree = op(ints([3], device), past, 3, bucket=3)
    assert tree.tokens.tolist() == [3, 7, 5] and tree.parents.tolist() == [-1, 0, 1]


@BOTH
def test_impossible_nodes_are_taken_last_in_order(op, device):
    past = history([7, 5, 2], [-torch.inf, -1.0, -torch.inf], [-1, -1, -1], device)
    assert op(ints([3], device), past, 3, bucket=3).tokens.tolist() == [3, 7, 5]


@BOTH
def test_a_tree_of_one_is_the_root(op, device):
    tree = op(ints([3], device), history([7], [-1.0], [-1], device), 1, bucket=2)
    assert tree.tokens.tolist() == [3, 0] and tree.parents.tolist() == [-1, -1]


@BOTH
def test_a_short_history_gives_a_short_tree(op, device):
    tree = op(ints([3], device), history([7], [-1.0], [-1], device), 4, bucket=4)
    assert tree.tokens.tolist() == [3, 7, 0, 0] and tree.parents.tolist() == [-1, 0, -1, -1]


@BOTH
def test_a_long_chain_sets_bits_in_every_word(op, device):
    n = 130
    past = history(
        list(range(1, n)), [-float(i) for i in range(1, n)], list(range(-1, n - 2)), device
    )
    tree = op(ints([0], device), past, n, bucket=n)
    assert tree.depths.tolist() == list(range(n)) == tree.tokens.tolist()
    assert tree.ancestors[129].tolist() == [-1, -1, 0b11]
    assert tree.ancestors[63].tolist() == [-1, 0, 0]


def test_a_history_of_several_blocks_is_merged_in_one_order(device):
    # whole numbers from -4 to 0 that repeat, all children of the root
    n = 1300
    scores = [-float(i * 7 % 5) for i in range(n)]
    past = history(list(range(n)), scores, [-1] * n, device)
    wanted = sorted(range(n), key=lambda i: -scores[i])[:255]
    tree = tree_rerank(ints([0], device), past, 256, bucket=256)
    assert tree.tokens[1:].tolist() == sorted(wanted)


def test_a_history_without_order_still_ends(device):
    # the child is kept, its parent is not
    past = history([7, 5], [-9.0, 0.0], [-1, 0], device)
    tree = tree_rerank(ints([3], device), past, 2, bucket=2, trusted=True)
    assert tree.parents.tolist() == [-1, 0]


def test_neighbours_in_memory_are_neither_read_nor_written(device, generator):
    past = grown(3, 2, generator)
    wanted = tree_rerank(ints([3], device), History(*(x.to(device) for x in past)), 5, bucket=6)

    def around(x, fill):
        buffer = torch.full((len(x) + 4, *x.shape[1:]), fill, dtype=x.dtype, device=device)
        buffer[2:-2] = x
        return buffer

    # a better score on either side
    wide = History(*(around(x, 0) for x in past))
    outs = DraftTree(*(around(torch.zeros_like(x), -7) for x in wanted))
    inside = DraftTree(*(x[2:-2] for x in outs))
    tree_rerank(
        ints([9, 3, 9], device)[1:2], History(*(x[2:-2] for x in wide)), 5, bucket=6, out=inside
    )
    assert lists(inside) == lists(wanted)
    assert all((x[:2] == -7).all() and (x[-2:] == -7).all() for x in outs)


def test_what_does_not_fit_is_refused(device):
    past, root = history([7, 5], [-1.0, -2.0], [-1, 0], device), ints([3], device)
    empty = History(*(x[:0] for x in past))
    for match, arguments, bucket in (
        (r"root_token must be \[1\], got \[2\]", (past.tokens, past, 3), 4),
        ("root_token must be int32, got int64", (root.long(), past, 3), 4),
        (r"H must be 1\.\.1048576, got 0", (root, empty, 3), 4),
        (
            r"history.parents must be \[2\], got \[1\]",
            (root, past._replace(parents=root), 3),
            4,
        ),
        (r"tree_size must be 1\.\.4, got 5", (root, past, 5), 4),
        (r"tree_size must be 1\.\.4, got 0", (root, past, 0), 4),
        (r"bucket must be 1\.\.256, got 257", (root, past, 3), 257),
    ):
        with pytest.raises(ValueError, match=match):
            tree_rerank(*arguments, bucket=bucket)
    narrow = tree_rerank(root, past, 3, bucket=3)
    with pytest.raises(ValueError, match=r"bucket must be 1\.\.2, got 3"):
        tree_rerank(root, past, 3, bucket=3, config=Config(2, 1))
    with pytest.raises(ValueError, match=r"out.tokens must be \[4\], got \[3\]"):
        tree_rerank(root, past, 3, bucket=4, out=narrow)
