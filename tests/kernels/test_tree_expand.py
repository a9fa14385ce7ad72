"""`tree_expand`: by hand, and level by level with the drafter that ships."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hspec_kernels.tree_expand import (
    CONFIGS,
    Config,
    Frontier,
    History,
    choose,
    empty_history,
    root_frontier,
    tree_expand,
    tree_expand_ref,
)
from hspec_kernels.tree_rerank import tree_rerank
from hspec_lab.draft.eagle2 import Eagle2Drafter
from hspec_lab.tree import ancestor_bitsets

BOTH = pytest.mark.parametrize("op", [tree_expand_ref, tree_expand])


def tensor(values, device, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=device)


def lists(fields):
    return {name: value.tolist() for name, value in fields._asdict().items()}


@BOTH
def test_two_levels_by_hand(op, device):
    history, root = empty_history(2, 2, device), root_frontier(2, 2, device)
    first = op(
        tensor([[7, 4]], device), tensor([[-1, -2]], device, torch.float32), root, history, 0
    )
    assert lists(first) == {
        "nodes": [0, 1],
        "tokens": [7, 4],
        "scores": [-1, -2],
        "came_from": [0, 0],
        "seen": [[0b01], [0b10]],
    }
    log_p = tensor([[-1.5, -3], [-0.5, -1]], device, torch.float32)
    second = op(tensor([[5, 6], [8, 9]], device), log_p, first, history, 1)
    # scores -2.5 -4 -2.5 -3: the tie goes to the lower history index
    assert lists(second) == {
        "nodes": [2, 4],
        "tokens": [5, 8],
        "scores": [-2.5, -2.5],
        "came_from": [0, 1],
        "seen": [[0b0101], [0b1010]],
    }
    assert lists(history) == {
        "tokens": [7, 4, 5, 6, 8, 9],
        "scores": [-1, -2, -2.5, -4, -2.5, -3],
        "parents": [-1, -1, 0, 0, 1, 1],
    }


@BOTH
def test_a_child_is_never_above_its_parent_and_nan_is_never_likely(op, device):
    history = empty_history(3, 1, device)
    log_p = tensor([[1e-7, math.nan, -5.0]], device, torch.float32)
    found = op(tensor([[1, 2, 3]], device), log_p, root_frontier(3, 1, device), history, 0)
    assert found.tokens.tolist() == [1, 3, 2]
    assert found.scores.tolist() == [0, -5, -math.inf]


@BOTH
def test_impossible_continuations_keep_their_order(op, device):
    history, frontier = empty_history(2, 2, device), root_frontier(2, 2, device)
    nothing = torch.full((2, 2), -math.inf, device=device)
    for level in range(2):
        ids = tensor([[1, 2], [3, 4]][: level + 1], device)
        frontier = op(ids, nothing[: level + 1], frontier, history, level)
    assert frontier.tokens.tolist() == [1, 2]
    assert frontier.scores.tolist() == [-math.inf] * 2


@BOTH
def test_seen_uses_every_bit_of_every_word(op, device):
    k, level = 2, 32
    frontier = Frontier(
        nodes=tensor([0, 1], device),
        tokens=tensor([0, 0], device),
        scores=tensor([0, 0], device, torch.float32),
        came_from=tensor([0, 0], device),
        seen=tensor([[-(2**63), 0], [2**62, 0]], device, torch.int64),
    )
    log_p = tensor([[-3, -4], [-1, -2]], device, torch.float32)
    history = empty_history(k, level + 1, device)
    found = op(tensor([[1, 2], [3, 4]], device), log_p, frontier, history, level)
    assert found.tokens.tolist() == [3, 4]
    assert found.seen.tolist() == [[2**62, 0b01], [2**62, 0b10]]


def drafted_by_the_cpu(rows, root_token, tree_size):
    """The proposal of the shipped drafter, and what its head was handed at every level.

    Args:
        rows: per level, ids int32 [F, k] and log-probabilities fp32 [F, k] of the frontier rows.
    """
    k, depth, handed = rows[0][0].shape[1], len(rows), []

    def tree_rows(base, seen, depths, hidden_before):
        handed.append({"seen": seen.numpy()})

    def forward(tokens, features, cache, rows):
        handed[-1] |= {"tokens": tokens.tolist(), "came_from": features[:, 0].tolist()}
        return torch.arange(k)[:, None]  # a row's feature is its number

    left = iter(rows)

    def top_k(guessed):
        ids, log_p = next(left)
        return log_p.clamp(max=0).numpy(), ids.numpy().astype(np.int64)

    drafter = Eagle2Drafter.__new__(Eagle2Drafter)
    drafter.tree_size, drafter.depth, drafter.top_k, drafter.level = tree_size, depth, k, ""
    drafter.cache, drafter._root = SimpleNamespace(kv_len=0), torch.zeros(1, 1, dtype=torch.long)
    drafter._last, drafter._top_k, drafter._tokens = root_token, top_k, []
    drafter.head = SimpleNamespace(
        model=SimpleNamespace(device="cpu"),
        geometry=SimpleNamespace(tree_rows=tree_rows),
        forward=forward,
    )
    return drafter._rerank(*drafter.grow()).tree, handed


def unpacked(words, n_bits):
    bits = np.unpackbits(words.numpy(force=True).view(np.uint8), axis=1, bitorder="little")
    return bits[:, :n_bits].astype(bool)


@pytest.mark.parametrize("step", [0.5, 0.1], ids=["many-ties", "rounded-sums"])
@pytest.mark.parametrize(
    "k, depth, tree_size",
    [(1, 1, 2), (1, 5, 4), (2, 3, 7), (3, 1, 9), (5, 4, 24), (7, 3, 30), (10, 6, 60)],
)
def test_drafting_is_that_of_the_cpu_code(k, depth, tree_size, step, device, generator):
    rows, frontier, history = [], root_frontier(k, depth, device), empty_history(k, depth, device)
    frontiers = []
    for level in range(depth):
        F = k if level else 1
        ids = torch.randint(50, (F, k), generator=generator, dtype=torch.int32)
        # as head_topk gives them, but sometimes a little above 0
        log_p = step * torch.randint(-6, 2, (F, k), generator=generator)
        rows.append((ids, log_p.sort(dim=1, descending=True).values))
        frontier = tree_expand(ids.to(device), rows[-1][1].to(device), frontier, history, level)
        frontiers.append(frontier)
    bucket = tree_size + 5
    root_token = tensor([123], device)
    found = tree_rerank(root_token, history, tree_size, bucket=bucket)

    tree, handed = drafted_by_the_cpu(rows, 123, tree_size)
    n = len(tree)
    assert n == min(tree_size, len(history.tokens) + 1)
    assert found.tokens[:n].tolist() == tree.tokens
    assert found.parents[:n].tolist() == tree.parents
    assert found.depths[:n].tolist() == tree.depths
    wanted = ancestor_bitsets(tree)
    assert np.array_equal(
        unpacked(found.ancestors, n)[:n], unpacked(torch.tensor(wanted.view(np.int64)), n)
    )
    for level, (frontier, at) in enumerate(zip(frontiers, handed, strict=False)):
        assert frontier.tokens.tolist() == at["tokens"]
        if level:  # at level 0 every row comes from the root
            assert frontier.came_from.tolist() == at["came_from"]
        n_bits = (level + 1) * k
        assert np.array_equal(unpacked(frontier.seen, n_bits), at["seen"])


def within(buffers, rows):
    return type(buffers)(*(buffer[rows] for buffer in buffers))


def test_neighbours_in_memory_are_neither_read_nor_written(device):
    # around the inputs the best possible scores, around the outputs -7
    ids, log_p = tensor([[99] * 2] * 4, device), torch.zeros(4, 2, device=device)
    ids[1:3], log_p[1:3] = tensor([[1, 2], [3, 4]], device), -1
    zero, seven = tensor([0] * 10, device), tensor([-7] * 10, device)
    frontier = Frontier(zero, zero, zero.float(), zero, zero.long()[:, None])
    history = History(seven.clone(), seven.float(), seven.clone())
    ints = (seven.clone() for _ in range(3))
    out = Frontier(next(ints), next(ints), seven.float(), next(ints), seven.long()[:, None])
    inside, of_level = slice(2, 4), slice(4, 8)  # two of level 0 come before
    tree_expand(
        ids[1:3],
        log_p[1:3],
        within(frontier, inside),
        within(history, slice(2, 8)),
        1,
        out=within(out, inside),
    )
    for buffers, written in ((history, of_level), (out, inside)):
        for buffer in buffers:
            touched = (buffer != -7).flatten().nonzero().flatten().tolist()
            assert touched == list(range(written.start, written.stop))
    assert out.tokens[inside].tolist() == [1, 2]


def test_the_smallest_block_that_holds_the_candidates_is_chosen():
    assert [choose(n) for n in (1, 128, 129, 1024)] == [CONFIGS[0]] * 2 + [CONFIGS[1]] * 2


def test_what_does_not_fit_is_refused(device):
    ids, log_p = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 3)
    root, history = root_frontier(3, 2, device), empty_history(3, 2, device)
    for match, arguments in (
        ("ids must be int32, got int64", (ids.long(), log_p, root, history, 0)),
        (r"ids must be \[3, 3\], got \[1, 3\]", (ids, log_p, root, history, 1)),
        (r"level must be 0\.\.63, got 64", (ids, log_p, root, history, 64)),
        (r"log_p must be \[1, 3\]", (ids, log_p[:, :2], root, history, 0)),
        (r"k must be 1\.\.32, got 33", (ids.new_zeros(1, 33), log_p, root, history, 0)),
        (
            r"frontier.nodes must be \[1\], got \[3\]",
            (ids, log_p, root._replace(nodes=ids[0]), history, 0),
        ),
        (
            r"frontier.seen must be int64",
            (ids, log_p, root._replace(seen=root.seen.int()), history, 0),
        ),
        (
            r"bits of frontier.seen must be 192\.\.2048, got 64",
            (
                *(x.expand(3, 3).contiguous() for x in (ids, log_p)),
                root,
                empty_history(3, 64, device),
                63,
            ),
        ),
        (
            r"H must be 3\.\.1048576, got 2",
            (ids, log_p, root, History(*(x[:2] for x in history)), 0),
        ),
        (
            r"history.scores must be float32",
            (ids, log_p, root, history._replace(scores=history.tokens), 0),
        ),
    ):
        ids_, log_p_, *others = arguments
        with pytest.raises(ValueError, match=match):
            tree_expand(ids_.to(device), log_p_.to(device), *others)
    with pytest.raises(ValueError, match=r"F \* k must be 1\.\.2, got 3"):
        tree_expand(ids.to(device), log_p.to(device), root, history, 0, config=Config(2, 1))
    with pytest.raises(ValueError, match=r"out.nodes must be \[3\], got \[1\]"):
        tree_expand(ids.to(device), log_p.to(device), root, history, 0, out=root)
