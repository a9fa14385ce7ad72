"""`accept_sample_tree`: the law of what is emitted, the CPU code's decisions, and the edges."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
import torch

from hspec_kernels.accept_sample_tree import (
    CONFIGS,
    accept_sample_tree,
    accept_sample_tree_ref,
    choose,
)
from hspec_lab.accept import Proposal, accept
from hspec_lab.tree import from_parents

BOTH = pytest.mark.parametrize("op", [accept_sample_tree_ref, accept_sample_tree])
NAN, INF = float("nan"), float("inf")
BELOW_ONE = 1 - 2**-24


def ids(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def floats(values, device):
    return torch.tensor(values, dtype=torch.float32, device=device)


def run(op, p, tokens, parents, uniforms, device, temperature=1.0, **options):
    """(path, emitted) for rows of probabilities."""
    logits = floats(p, device).log() * temperature
    tree = ids(tokens, device), ids(parents, device), floats(uniforms, device)
    path, n_path, emitted = op(logits, *tree, temperature, **options)
    n = int(n_path)
    assert set(path[n:].tolist()) | set(emitted[n:].tolist()) <= {-1}
    return path[:n].tolist(), emitted[:n].tolist()


# the root's children ask for 2, 0 and again 2: of 1/4, of 1/2 of what is left, of nothing; the
# child behind node 1 asks for 1, of 1/2; whatever is left in the end is split in halves
TOKENS, PARENTS = [9, 2, 0, 2, 1], [-1, 0, 0, 0, 1]
P = [[3 / 8, 3 / 8, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 2, 0, 1 / 2], [1, 0, 0], [0, 1 / 2, 1 / 2]]
HALVES, QUARTERS = [1 / 4, 3 / 4], [1 / 8, 3 / 8, 5 / 8, 7 / 8]


@BOTH
def test_emitted_tokens_follow_the_target_exactly(op, device):
    # the outcome is constant between multiples of 1/4: midpoints integrate exactly; of nodes 2
    # and 4 at most one is looked at, and one number serves both
    found = Counter()
    for u_last, u_1, u_2 in itertools.product(HALVES, QUARTERS, QUARTERS):
        _, emitted = run(op, P, TOKENS, PARENTS, [u_last, u_1, u_2, 0.0, u_2], device)
        found[tuple(emitted)] += Fraction(1, 32)
    # the law of tokens drawn from the rows alone: first, second behind 2 or 0, third behind 2 1
    wanted = {(1,): P[0][1]}
    wanted |= {(0, token): P[0][0] * P[2][token] for token in (0, 2)}
    wanted |= {(2, token): P[0][2] * P[1][token] for token in (0, 2)}
    wanted |= {(2, 1, token): P[0][2] * P[1][1] * P[4][token] for token in (1, 2)}
    assert found == wanted


class Decided:
    """The CPU code's chooser, deciding by the same uniform numbers."""

    def __init__(self, tree, uniforms):
        self.tree, self.u = tree, uniforms
        self.waiting = self.children(0)

    def children(self, node):
        return [i for i, parent in enumerate(self.tree.parents) if parent == node]

    def __call__(self, probabilities):
        if not self.waiting:
            passed = probabilities.cumsum(0) > self.u[0] * probabilities.sum()
            return int(passed.int().argmax())
        child = self.waiting.pop(0)
        if self.u[child] >= probabilities[0]:
            return 1
        self.waiting = self.children(child)
        return 0


def test_given_the_same_choices_it_is_the_cpu_code(device, generator):
    draw, lengths = random.Random(0), set()
    for _ in range(30):
        n = draw.randint(3, 8)
        parents = [-1] + [draw.randrange((i + 2) // 3) for i in range(1, n)]
        logits = torch.randn(n, 4, generator=generator)
        tokens = [draw.randrange(4)] + [
            int(logits[parent].argmax()) if draw.random() < 0.6 else draw.randrange(4)
            for parent in parents[1:]
        ]
        uniforms = torch.rand(n, generator=generator)
        tree = from_parents(tokens, parents)
        decided = Decided(tree, uniforms.tolist())
        wanted = accept(Proposal(tree, [""] * n), logits, 0.7, decided)
        path, n_path, emitted = accept_sample_tree(
            logits.to(device), ids(tokens, device), ids(parents, device), uniforms.to(device), 0.7
        )
        assert path[: int(n_path)].tolist() == wanted.path
        assert emitted[: int(n_path)].tolist() == wanted.tokens
        lengths.add(int(n_path))
    assert len(lengths) > 2


@BOTH
def test_the_last_token_is_found_across_blocks(op, device):
    p = [[0.0, 0.1, 0.2, 0.0, 0.0, 0.1, 0.0, 0.2, 0.4, 0.0]]
    options = {"config": {"BLOCK": 4, "num_warps": 1}} if op is accept_sample_tree else {}
    found = [
        run(op, p, [0], [-1], [u], device, **options)[1][0]
        for u in (0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, BELOW_ONE)
    ]
    assert found == [1, 1, 2, 2, 5, 7, 7, 8, 8]


@pytest.mark.parametrize("seed", [1, 5])
def test_rounding_never_leaves_the_vocabulary(seed, device):
    # rows whose running sum, added one by one, ends below the largest uniform number's share
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(seed)).to(device)
    u = floats([BELOW_ONE], device)
    _, _, emitted = accept_sample_tree(logits, ids([0], device), ids([-1], device), u, 1.0)
    assert 990 < int(emitted) < 1000


@BOTH
@pytest.mark.parametrize("u", [0.0, BELOW_ONE])
def test_a_rejected_token_is_never_emitted(op, u, device):
    p = [[1 / 4, 1 / 2, 1 / 4], *[[1.0, 0, 0]] * 2]
    assert run(op, p, [0, 0, 2], [-1, 0, 0], [u, BELOW_ONE, BELOW_ONE], device) == ([0], [1])


@BOTH
def test_what_little_is_left_keeps_its_proportions(op, device):
    # 4e-7 beside the rejected child, 3 : 1
    logits = floats([[15.0, 0.0, -1.0986123], [0.0, 0.0, 0.0]], device)
    for u, token in ((0.74, 1), (0.76, 2)):
        uniforms = floats([u, BELOW_ONE], device)
        found = op(logits, ids([0, 0], device), ids([-1, 0], device), uniforms, 1.0)
        assert found[1].tolist() == [1] and found[2].tolist() == [token, -1]


@BOTH
def test_a_certain_child_is_always_kept(op, device):
    p = [[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]
    found = run(op, p, [0, 1], [-1, 0], [0.6, BELOW_ONE], device)
    assert found == ([0, 1], [1, 1])


@BOTH
def test_an_impossible_child_is_never_kept(op, device):
    p = [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]
    assert run(op, p, [0, 1], [-1, 0], [0.6, 0.0], device) == ([0], [2])


@BOTH
def test_padding_changes_nothing(op, device):
    p, u = [[0.5, 0.5], [0.25, 0.75]], [0.6, 0.4]
    bare = run(op, p, [0, 1], [-1, 0], u, device)
    padded = run(
        op, p + [[0.5, 0.5]] * 3, [0, 1, 0, 0, 0], [-1, 0, -1, -1, -1], u + [0] * 3, device
    )
    assert bare == padded == ([0, 1], [1, 1])


def test_what_lies_outside_the_vocabulary_or_order_is_never_kept(device):
    p = [[0.5, 0.5]] * 4
    given = p, [0, 9999, -1, 0], [-1, 0, 0, 3], [0.0] * 4, device
    with pytest.raises(ValueError, match=r"parents\[3\] must be -1\.\.2, got 3"):
        run(accept_sample_tree, *given)
    assert run(accept_sample_tree, *given, trusted=True) == ([0], [0])


@BOTH
@pytest.mark.parametrize("temperature, kept", [(1.0, False), (0.5, True)])
def test_temperature_divides_the_logits(op, temperature, kept, device):
    # 2/3 at temperature 1, 4/5 at 1/2
    logits = floats([[0.6931472, 0.0], [0.0, 0.0]], device)
    tree = ids([0, 0], device), ids([-1, 0], device), floats([0.0, 0.7], device)
    assert op(logits, *tree, temperature)[1].tolist() == [1 + kept]


@BOTH
def test_the_lowest_temperature_takes_the_largest_logit(op, device):
    logits = floats([[-60000.0, 3.0, 2.9999, -INF]], device)
    found = op(logits, ids([0], device), ids([-1], device), floats([BELOW_ONE], device), 1e-6)
    assert found[2].tolist() == [1]


@BOTH
@pytest.mark.parametrize(
    "bad", [[0.0, NAN, 0.0, 0.0], [NAN, 0.0, 0.0, 0.0], [INF, 0.0, 0.0, 0.0], [-INF] * 4]
)
def test_a_visited_row_without_a_distribution_empties_the_verdict(op, bad, device):
    # node 1 is accepted and asks for token 0 next; node 2 is not visited
    logits = floats([[0.0] * 4, bad, bad], device)
    tree = ids([0, 3, 0], device), ids([-1, 0, 1], device)
    path, n_path, emitted = op(logits, *tree, floats([0.5, 0.2, 0.5], device), 1.0)
    assert n_path.tolist() == [0]
    assert path.tolist() == emitted.tolist() == [-1] * 3
    _, n_path, emitted = op(logits, *tree, floats([0.5, 0.9, 0.5], device), 1.0)
    assert n_path.tolist() == [1] and emitted.tolist() == [1, -1, -1]


def test_neighbours_in_memory_are_neither_read_nor_written(device):
    logits = torch.full((4, 3), NAN, device=device)
    logits[1:3] = floats(P[:2], device).log()
    tokens, parents = ids([2, 9, 2, 1], device), ids([-1, -1, 0, 1], device)
    uniforms = floats([0.0, 0.75, 0.125, 0.0], device)
    outs = [ids([-7] * 4, device) for _ in range(3)]
    inside = slice(1, 3)
    accept_sample_tree(
        logits[inside],
        tokens[inside],
        parents[inside],
        uniforms[inside],
        1.0,
        out=(outs[0][inside], outs[1][1:2], outs[2][inside]),
    )
    assert [out.tolist() for out in outs] == [[-7, 0, 1, -7], [-7, 2, -7, -7], [-7, 2, 2, -7]]


@pytest.mark.parametrize(
    "V, block", [(1, 1024), (32768, 1024), (32769, 4096), (131072, 4096), (2**20, 4096)]
)
def test_the_smallest_block_that_cuts_a_row_into_32_or_the_largest_is_chosen(V, block):
    assert choose(V)["BLOCK"] == block and choose(V) in CONFIGS


def test_what_does_not_fit_is_refused(device):
    logits, tree, u = torch.zeros(2, 3, device=device), ids([-1, 0], device), floats([0, 0], device)
    many = torch.zeros(257, 1, device=device)
    for match, arguments in (
        ("logits must be float16 or bfloat16 or float32", (logits.double(), tree, tree, u, 1.0)),
        ("logits must be contiguous", (logits[:, :2], tree, tree, u, 1.0)),
        (r"n must be 1\.\.256, got 257", (many, tree, tree, u, 1.0)),
        (r"V must be 1\.\.1048576, got 0", (logits[:, :0].contiguous(), tree, tree, u, 1.0)),
        (r"tokens must be \[2\], got \[1\]", (logits, tree[:1], tree, u, 1.0)),
        ("parents must be int32, got int64", (logits, tree, tree.long(), u, 1.0)),
        ("uniforms must be float32, got float64", (logits, tree, tree, u.double(), 1.0)),
        (r"temperature must be 1e-06\.\.1000000\.0, got 0\.0", (logits, tree, tree, u, 0.0)),
        ("temperature must be", (logits, tree, tree, u, NAN)),
        (r"parents\[0\] must be -1\.\.-1, got 0", (logits, tree, tree + 1, u, 1.0)),
        (r"uniforms\[0\] must be in \[0, 1\), got 1\.0", (logits, tree, tree, u + 1, 1.0)),
        (r"uniforms\[0\] must be in \[0, 1\), got nan", (logits, tree, tree, u + NAN, 1.0)),
    ):
        with pytest.raises(ValueError, match=match):
            accept_sample_tree(*arguments)
    with pytest.raises(ValueError, match=r"n_path must be \[1\], got \[2\]"):
        accept_sample_tree(logits, tree, tree, u, 1.0, out=(tree, tree, tree))
