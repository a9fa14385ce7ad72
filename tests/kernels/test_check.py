"""What wrappers refuse for its contents, and that a trusted call reads nothing back."""

import pytest
import torch

from hspec_kernels._check import check_ancestors, check_parents
from hspec_kernels.accept_drawn_tree import accept_drawn_tree
from hspec_kernels.accept_greedy_tree import accept_greedy_tree
from hspec_kernels.accept_sample_tree import accept_sample_tree
from hspec_kernels.cases.accept_drawn_tree import make as drawn
from hspec_kernels.cases.accept_greedy_tree import make as greedy
from hspec_kernels.cases.accept_sample_tree import make as sampled
from hspec_kernels.cases.kv_commit import make as commit
from hspec_kernels.cases.rope_and_append import make as rope
from hspec_kernels.cases.tree_attention import bitsets, random_tree
from hspec_kernels.cases.tree_attention import make as attention
from hspec_kernels.cases.tree_rerank import make as rerank
from hspec_kernels.kv_commit import kv_commit
from hspec_kernels.rope_and_append import rope_and_append
from hspec_kernels.tree_attention import tree_attention
from hspec_kernels.tree_expand import empty_history, root_frontier, tree_expand
from hspec_kernels.tree_rerank import tree_rerank


def words(*rows: list[int]) -> torch.Tensor:
    """Bitsets of which each row lists its bits."""
    n_words = (len(rows) + 63) // 64
    seen = torch.zeros(len(rows), 64 * n_words, dtype=torch.int64)
    for row, bits in enumerate(rows):
        seen[row, bits] = 1
    return (seen.view(len(rows), n_words, 64) << torch.arange(64)).sum(dim=2)


TREE = [[0], [0, 1], [0, 2], [0, 1, 3]]


def test_trees_of_any_shape_are_taken(generator):
    check_ancestors(words(*TREE), 4)
    check_ancestors(words([0], [1], [0, 2]), 3)  # two roots: padding
    for T in (1, 63, 64, 65, 130, 200):
        parents = random_tree(generator, T)
        check_ancestors(bitsets(parents), T)
        check_parents(torch.tensor(parents, dtype=torch.int32))


@pytest.mark.parametrize(
    "row, bits, message",
    [
        (1, [0], r"ancestors of row 1 must be 1 and rows before it, got \[0\]"),
        (1, [1, 3], r"ancestors of row 1 must be 1 and rows before it, got \[1, 3\]"),
        (1, [0, 1, 63], r"row 1 must be 1 and rows before it, got \[0, 1, 63\]"),  # no such row
        (3, [1, 3], r"row 3 must be those of its parent and 3, \[0, 1, 3\], got \[1, 3\]"),
        (3, [0, 1, 2, 3], r"\[0, 2, 3\], got \[0, 1, 2, 3\]"),
    ],
    ids=["not-itself", "a-child", "outside", "a-missing-root", "an-uncle"],
)
def test_a_mask_that_is_no_trees_is_refused(row, bits, message):
    rows = list(TREE)
    rows[row] = bits
    with pytest.raises(ValueError, match=message):
        check_ancestors(words(*rows), 4)


def test_a_late_mask_is_refused_in_any_word():
    rows = [[*range(t + 1)] for t in range(130)]  # a path
    check_ancestors(words(*rows), 130)
    rows[70] = [*rows[70], 129]
    with pytest.raises(ValueError, match="ancestors of row 70 must be 70 and rows before it"):
        check_ancestors(words(*rows), 130)


@pytest.mark.parametrize(
    "parents, message",
    [
        ([0, 0], r"parents\[0\] must be -1\.\.-1, got 0"),
        ([-1, 0, 2], r"parents\[2\] must be -1\.\.1, got 2"),
        ([-1, -2, 3], r"parents\[1\] must be -1\.\.0, got -2"),
    ],
)
def test_a_parent_that_follows_its_child_is_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        check_parents(torch.tensor(parents, dtype=torch.int32))


def expansion(generator, device, dtype):
    """Arguments of a first level of three nodes."""
    return {
        "ids": torch.tensor([[5, 6, 7]], dtype=torch.int32, device=device),
        "log_p": torch.tensor([[-1.0, -2.0, -3.0]], device=device),
        "frontier": root_frontier(3, 2, device),
        "history": empty_history(3, 2, device),
        "level": 0,
    }


# every operation whose contract depends on contents: valid inputs, and how to spoil one of them
GIVEN = {
    "accept_greedy": (accept_greedy_tree, greedy(5, 2)),
    "accept_sample": (accept_sample_tree, sampled(5, 9, 2)),
    "accept_drawn": (accept_drawn_tree, drawn(5, 9, 2, 2)),
    "kv_commit": (kv_commit, commit(1, 1, 16, 3, 2, 4)),  # a cache of 11
    "rope": (rope_and_append, rope(3, 1, 1, 16, 4)),  # a cache and tables of 10
    "attention": (tree_attention, attention(3, 1, 1, 16, 10, 4, True, False)),
    "expand": (tree_expand, expansion),
    "rerank": (tree_rerank, rerank(2, 3, 5, 6)),
}


def spoilt(given: dict, name: str, index, value) -> dict:
    """`given` with one entry of a tensor, or of a field of one, replaced."""
    name, _, field = name.partition(".")
    tensor = getattr(given[name], field) if field else given[name]
    tensor = tensor.clone()
    tensor[index] = value
    return given | {name: given[name]._replace(**{field: tensor}) if field else tensor}


@pytest.mark.parametrize(
    "operation, name, index, value, message",
    [
        ("accept_greedy", "parents", 4, 4, r"parents\[4\] must be -1\.\.3, got 4"),
        ("accept_sample", "parents", 1, 2, r"parents\[1\] must be -1\.\.0, got 2"),
        ("accept_sample", "uniforms", 3, 1.0, r"uniforms\[3\] must be in \[0, 1\), got 1\.0"),
        ("accept_drawn", "parents", 1, -2, r"parents\[1\] must be -1\.\.0, got -2"),
        ("accept_drawn", "uniforms", 0, -0.5, r"uniforms\[0\] must be in \[0, 1\), got -0\.5"),
        ("kv_commit", "n_path", 0, 4, r"n_path must be 0\.\.3, got 4"),
        ("kv_commit", "n_path", 0, -1, r"n_path must be 0\.\.3, got -1"),
        (
            "kv_commit",
            "kv_len",
            0,
            10,
            r"kv_len must be 0\.\.9 for 2 rows in a cache of 11",
        ),
        ("kv_commit", "kv_len", 0, -1, r"kv_len must be 0\.\.9 .*, got -1"),
        ("kv_commit", "path", 1, 7, r"path\[1\] must be 0\.\.6 behind kv_len 4, got 7"),
        ("kv_commit", "path", 0, -1, r"path\[0\] must be 0\.\.6 behind kv_len 4, got -1"),
        ("rope", "kv_len", 0, 8, r"kv_len must be 0\.\.7 for 3 rows in a cache of 10, got 8"),
        ("rope", "depths", 2, 6, r"depths\[2\] must be 0\.\.5 behind kv_len 4 in a table of 10"),
        ("rope", "depths", 0, -1, r"depths\[0\] must be 0\.\.5 .*, got -1"),
        ("attention", "kv_len", 0, 8, r"kv_len must be 0\.\.7 for 3 rows in a cache of 10, got 8"),
        ("attention", "ancestors", 0, 2, r"ancestors of row 0 must be 0 and rows before it"),
        ("expand", "frontier.nodes", 0, 0, r"frontier.nodes\[0\] must be -1, the root, got 0"),
        ("expand", "frontier.scores", 0, 0.5, r"frontier.scores\[0\] must be at most 0, got 0\.5"),
        ("rerank", "history.parents", 3, 3, r"history.parents\[3\] must be -1\.\.2, got 3"),
        ("rerank", "history.scores", 2, torch.nan, r"history.scores\[2\] must be a number and at"),
        (
            "rerank",
            "history.scores",
            4,
            1.0,
            r"history.scores\[4\] .* its parent's, -.*1\.0",
        ),
    ],
)
def test_contents_that_do_not_fit_are_refused(
    operation, name, index, value, message, device, generator
):
    op, make = GIVEN[operation]
    given = make(generator, device, torch.float16)
    with pytest.raises(ValueError, match=message):
        op(**spoilt(given, name, index, value))
    op(**given)


def test_a_node_of_a_later_level_is_refused_in_a_frontier(device):
    given = expansion(None, device, None)
    given["frontier"] = tree_expand(**given)  # nodes 0, 1 and 2 of the history
    given |= {name: given[name].expand(3, 3).contiguous() for name in ("ids", "log_p")}
    later = spoilt(given | {"level": 1}, "frontier.nodes", 1, 3)
    with pytest.raises(ValueError, match=r"nodes\[1\] must be 0\.\.2 at level 1, got 3"):
        tree_expand(**later)
    tree_expand(**given | {"level": 1})


READS = ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "numpy")


@pytest.mark.parametrize("operation", GIVEN)
def test_only_a_trusted_call_reads_nothing_back(operation, device, generator, monkeypatch):
    op, make = GIVEN[operation]
    given = make(generator, device, torch.float16)
    op(**given, trusted=True)  # a GPU compiles here
    n_reads = 0

    def counted(read):
        def reading(*args, **kwargs):
            nonlocal n_reads
            n_reads += 1
            return read(*args, **kwargs)

        return reading

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    op(**given, trusted=True)
    trusted_reads, n_reads = n_reads, 0
    op(**given)
    assert trusted_reads == 0 < n_reads
