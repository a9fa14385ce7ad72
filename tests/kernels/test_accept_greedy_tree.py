"""`accept_greedy_tree`: the path and the tokens of it, as the CPU code and by hand."""

import random

import pytest
import torch

from hspec_kernels.accept_greedy_tree import (
    CONFIGS,
    accept_greedy_tree,
    accept_greedy_tree_ref,
    choose,
)
from hspec_lab.accept import accept_greedy
from hspec_lab.tree import from_parents

BOTH = pytest.mark.parametrize("op", [accept_greedy_tree_ref, accept_greedy_tree])


def ids(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


@BOTH
@pytest.mark.parametrize(
    "tokens, parents, target, path, emitted",
    [
        pytest.param([9], [-1], [4], [0], [4], id="root-alone-emits-one"),
        pytest.param([9, 1, 2], [-1, 0, 1], [1, 2, 7], [0, 1, 2], [1, 2, 7], id="chain-then-bonus"),
        pytest.param([9, 1, 2], [-1, 0, 1], [1, 3, 7], [0, 1], [1, 3], id="chain-then-recovered"),
        pytest.param([9, 1, 2], [-1, 0, 1], [2, 2, 7], [0], [2], id="grandchild-does-not-count"),
        pytest.param(
            [9, 1, 2, 5, 6, 7],
            [-1, 0, 0, 2, 2, 4],
            [2, 0, 6, 0, 7, 4],
            [0, 2, 4, 5],
            [2, 6, 7, 4],
            id="tree",
        ),
        pytest.param([0, 3, 3, 4], [-1, 0, 0, 2], [3, 9, 4, 9], [0, 1], [3, 9], id="first-twin"),
        pytest.param([0, 3, 3], [-1, -1, 0], [3, 0, 5], [0, 2], [3, 5], id="padding-is-skipped"),
        pytest.param([0, 0], [-1, 0], [0, 0], [0, 1], [0, 0], id="token-zero"),
    ],
)
def test_follows_the_targets_own_tokens(op, tokens, parents, target, path, emitted, device):
    found = op(ids(tokens, device), ids(parents, device), ids(target, device))
    fill = [-1] * (len(tokens) - len(path))
    assert found[0].tolist() == path + fill
    assert found[1].tolist() == [len(path)]
    assert found[2].tolist() == emitted + fill


def test_random_trees_end_as_in_the_cpu_code(device):
    draw = random.Random(0)
    n_accepted = set()
    for _ in range(40):
        n = draw.randint(1, 40)
        parents = [-1] + [draw.randrange(max(0, i - 5), i) for i in range(1, n)]
        tokens, target = ([draw.randrange(2) for _ in range(n)] for _ in range(2))
        wanted = accept_greedy(from_parents(tokens, parents), target)
        path, n_path, emitted = accept_greedy_tree(
            ids(tokens, device), ids(parents, device), ids(target, device)
        )
        assert path[: int(n_path)].tolist() == wanted.path
        assert emitted[: int(n_path)].tolist() == wanted.tokens
        n_accepted.add(wanted.n_accepted)
    assert len(n_accepted) > 4


def test_a_parent_behind_its_child_is_never_followed(device):
    tree = ids([5, 5, 5], device), ids([1, 2, 1], device), ids([5] * 3, device)
    with pytest.raises(ValueError, match=r"parents\[0\] must be -1\.\.-1, got 1"):
        accept_greedy_tree(*tree)
    assert accept_greedy_tree(*tree, trusted=True)[0].tolist() == [0, -1, -1]


def test_neighbours_in_memory_are_neither_read_nor_written(device):
    # 2s everywhere: beyond the slice they would continue the path
    tokens, target = ids([2] * 9, device), ids([2] * 9, device)
    parents = ids([-1, 0, 1, -1, 0, 1, 2, 3, 4], device)
    outs = [ids([-7] * 9, device) for _ in range(3)]
    inside = slice(3, 6)
    accept_greedy_tree(
        tokens[inside],
        parents[inside],
        target[inside],
        out=(outs[0][inside], outs[1][4:5], outs[2][inside]),
    )
    assert outs[0].tolist() == [-7] * 3 + [0, 1, 2] + [-7] * 3
    assert outs[1].tolist() == [-7] * 4 + [3] + [-7] * 4
    assert outs[2].tolist() == [-7] * 3 + [2, 2, 2] + [-7] * 3


@pytest.mark.parametrize("n, block", [(1, 64), (64, 64), (65, 256), (257, 1024), (1024, 1024)])
def test_the_smallest_block_that_holds_the_tree_is_chosen(n, block):
    assert choose(n).block == block


def test_what_does_not_fit_is_refused(device):
    good = ids([0, 1, 2], device)
    many = torch.zeros(1025, dtype=torch.int32, device=device)
    for match, tokens, parents, target, options in (
        ("tokens must be int32, got int64", good.long(), good, good, {}),
        (r"tokens must be \[any\], got \[1, 3\]", good[None], good, good, {}),
        (r"n must be 1\.\.1024, got 1025", many, many, many, {}),
        (r"n must be 1\.\.1024, got 0", many[:0], many[:0], many[:0], {}),
        (r"parents must be \[3\], got \[2\]", good, good[:2], good, {}),
        ("target_ids must be contiguous", good, good, many[:6:2], {}),
        (r"n_path must be \[1\], got \[3\]", good, good, good, {"out": (good, good, good)}),
        (r"n must be 1\.\.64, got 65", many[:65], many[:65], many[:65], {"config": CONFIGS[0]}),
    ):
        with pytest.raises(ValueError, match=match):
            accept_greedy_tree(tokens, parents, target, **options)
