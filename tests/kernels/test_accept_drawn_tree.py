"""`accept_drawn_tree`: the law of what is emitted, the CPU code's decisions, and the edges."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
import torch

from hspec_kernels.accept_drawn_tree import accept_drawn_tree, accept_drawn_tree_ref
from hspec_lab.accept import Proposal, accept
from hspec_lab.tree import from_parents

BOTH = pytest.mark.parametrize("op", [accept_drawn_tree_ref, accept_drawn_tree])
NAN, INF = float("nan"), float("inf")
BELOW_ONE = 1 - 2**-24
HALVES = [1 / 4, 3 / 4]


def ids(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def floats(values, device):
    return torch.tensor(values, dtype=torch.float32, device=device)


def run(op, p, tokens, parents, uniforms, p_draft, device, **options):
    """(path, emitted) for rows of probabilities."""
    tree = ids(tokens, device), ids(parents, device), floats(uniforms, device)
    path, n_path, emitted = op(
        floats(p, device).log(), *tree, 1.0, floats(p_draft, device), **options
    )
    n = int(n_path)
    assert set(path[n:].tolist()) | set(emitted[n:].tolist()) <= {-1}
    return path[:n].tolist(), emitted[:n].tolist()


# rows whose ratios are 1/2 or 1 and whose residuals are halves: sure of a grid of quarters
P = [[3 / 8, 3 / 8, 1 / 4], [1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2]]
Q_1 = [1 / 4, 1 / 4, 1 / 2]


def emitted_law(op, parents, q_2, device, max_children):
    """Probability of what is emitted, over the draws of both drafts and over the uniforms."""
    found = Counter()
    drafts = [(1, q) for q in range(3)], [(2, q) for q in range(3) if q_2[q]]
    for (_, first), (_, second) in itertools.product(*drafts):
        weight = Fraction(Q_1[first]) * Fraction(q_2[second])
        for u in itertools.product(HALVES, repeat=3):
            path, emitted = run(
                op,
                P,
                [0, first, second],
                parents,
                u,
                [Q_1, Q_1, q_2],
                device,
                max_children=max_children,
            )
            assert len(path) == len(emitted)
            found[tuple(emitted)] += weight / 8
    return found


@BOTH
def test_a_drawn_chain_leaves_the_targets_law(op, device):
    found = emitted_law(op, [-1, 0, 1], [0, 1, 0], device, 1)
    first = Counter()
    for tokens, weight in found.items():
        first[tokens[0]] += weight
    assert [first[token] for token in range(3)] == P[0]
    # behind an accepted first token, row 1 decides; behind two, row 2
    accepted = {
        token: sum(w for t, w in found.items() if t[0] == token and len(t) > 1)
        for token in range(3)
    }
    for token in range(3):
        pairs = Counter()
        for tokens, weight in found.items():
            if tokens[0] == token and len(tokens) > 1:
                pairs[tokens[1]] += weight / accepted[token]
        assert [pairs[second] for second in range(3)] == P[1]
    third = Counter()
    for tokens, weight in found.items():
        if len(tokens) == 3:
            third[tokens[2]] += weight
    assert third[1] == third[2] > 0 == third[0]


@BOTH
@pytest.mark.parametrize("max_children", [1, 2])
def test_drawn_siblings_leave_the_targets_law(op, max_children, device):
    # what the first leaves is 1/2 1/2 0: the second is kept half of the time
    found = emitted_law(op, [-1, 0, 0], [0, 1, 0], device, max_children)
    first = Counter()
    for tokens, weight in found.items():
        first[tokens[0]] += weight
    assert [first[token] for token in range(3)] == P[0]
    n_second = sum(
        weight for tokens, weight in found.items() if tokens[:1] == (1,) and len(tokens) == 2
    )
    assert n_second > 0


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
    for _ in range(16):
        n = draw.randint(3, 8)
        parents = [-1] + [draw.randrange((i + 2) // 3) for i in range(1, n)]
        logits = torch.randn(n, 4, generator=generator)
        p_draft = torch.softmax(logits[parents] + torch.randn(n, 4, generator=generator), dim=-1)
        tokens = torch.multinomial(p_draft, 1, generator=generator).flatten().tolist()
        uniforms = torch.rand(n, generator=generator)
        tree = from_parents(tokens, parents)
        decided = Decided(tree, uniforms.tolist())
        wanted = accept(Proposal(tree, [""] * n, p_draft), logits, 0.7, decided)
        path, n_path, emitted = accept_drawn_tree(
            logits.to(device),
            ids(tokens, device),
            ids(parents, device),
            uniforms.to(device),
            0.7,
            p_draft.to(device),
            max_children=max(parents.count(node) for node in range(n)),
        )
        assert path[: int(n_path)].tolist() == wanted.path
        assert emitted[: int(n_path)].tolist() == wanted.tokens
        lengths.add(int(n_path))
    assert len(lengths) > 2


@BOTH
def test_a_target_that_agrees_keeps_everything(op, device):
    found = run(
        op, P, [0, 0, 1], [-1, 0, 1], [0.3, BELOW_ONE, BELOW_ONE], [P[0], P[0], P[1]], device
    )
    assert found == ([0, 1, 2], [0, 1, 1])


@BOTH
def test_the_residual_is_found_across_blocks(op, device):
    # the target has 1/6 in six columns; the draft took column 1 and half of 4 and 5
    p = [[1 / 6, 1 / 6, 0, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 0], [1 / 8] * 8]
    q = [0, 2 / 3 + 1 / 6, 0, 0, 1 / 12, 1 / 12, 0, 0]
    options = {"config": {"BLOCK": 2, "num_warps": 1}} if op is accept_drawn_tree else {}
    uniforms = (0.0, 0.2, 0.3, 0.45, 0.55, 0.62, 0.65, 0.7, 0.9, BELOW_ONE)
    found = [
        run(op, p, [0, 1], [-1, 0], [u, 0.99], [q, q], device, **options)[1][0] for u in uniforms
    ]
    # what is left: 2/8 2/8 1/8 1/8 2/8 at columns 0 3 4 5 6
    assert found == [0, 0, 3, 3, 4, 4, 5, 5, 6, 6]


@BOTH
def test_a_certain_child_that_is_turned_down_by_rounding_leaves_p(op, device):
    # p - q is zero everywhere: what is left is p itself, in the second of two blocks
    logits, q = floats([[-INF, -INF, 0.0, -INF]] * 2, device), floats([[0, 0, 1, 0]] * 2, device)
    options = {"config": {"BLOCK": 2, "num_warps": 1}} if op is accept_drawn_tree else {}
    tree = ids([0, 2], device), ids([-1, 0], device)
    # no number below 1 turns it down without such rounding
    options |= {"trusted": True} if op is accept_drawn_tree else {}
    found = op(logits, *tree, floats([0.5, 1.0], device), 1.0, q, **options)
    assert found[1].tolist() == [1] and found[2].tolist() == [2, -1]


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_a_child_too_many_is_never_tried(memory, device, monkeypatch):
    # whatever lies in memory that is not written for it
    def filled(*args, **kwargs):
        return torch.full(args, memory, **kwargs)

    monkeypatch.setattr(torch, "empty", filled)
    p, q = [[0.25, 0.25, 0.5]] * 3, [[0.0, 0.5, 0.5]] * 3
    uniforms = [0.9, 0.9, 0.1]
    args = accept_drawn_tree, p, [0, 1, 2], [-1, 0, 0], uniforms, q, device
    # what is left of p after the first is token 0 alone
    assert run(*args, max_children=1) == ([0], [0])


@BOTH
def test_padding_and_its_rows_change_nothing(op, device):
    tokens, parents, u, q = [0, 2], [-1, 0], [0.6, 0.4], [Q_1, Q_1]
    bare = run(op, P[:2], tokens, parents, u, q, device)
    nan = [NAN] * 3
    padded = run(op, P, [*tokens, 0], [*parents, -1], [*u, 0.0], [nan, Q_1, nan], device)
    assert bare == padded == ([0, 1], [2, 1])


# numpy remarks on infinity / infinity in the interpreter; the verdict is empty all the same
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@BOTH
@pytest.mark.parametrize("bad", [[0.0, NAN, 0.0], [INF, 0.0, 0.0], [-INF] * 3])
def test_a_visited_row_without_a_distribution_empties_the_verdict(op, bad, device):
    logits = torch.cat([floats(P[:1], device).log(), floats([bad, bad], device)])
    tree = ids([0, 0, 1], device), ids([-1, 0, 1], device)
    q = floats([Q_1] * 3, device)
    path, n_path, emitted = op(logits, *tree, floats([0.5, 0.9, 0.5], device), 1.0, q)
    assert n_path.tolist() == [0] and path.tolist() == emitted.tolist() == [-1] * 3


def test_neighbours_in_memory_are_neither_read_nor_written(device):
    logits, p_draft = (torch.full((4, 3), NAN, device=device) for _ in range(2))
    logits[1:3], p_draft[2] = floats(P[:2], device).log(), floats(Q_1, device)
    tokens, parents = ids([2, 9, 2, 1], device), ids([-1, -1, 0, 1], device)
    uniforms = floats([0.0, 0.75, 0.125, 0.0], device)
    outs = [ids([-7] * 4, device) for _ in range(3)]
    inside = slice(1, 3)
    accept_drawn_tree(
        logits[inside],
        tokens[inside],
        parents[inside],
        uniforms[inside],
        1.0,
        p_draft[inside],
        out=(outs[0][inside], outs[1][1:2], outs[2][inside]),
    )
    assert [out.tolist() for out in outs] == [[-7, 0, 1, -7], [-7, 2, -7, -7], [-7, 2, 1, -7]]


def test_what_does_not_fit_is_refused(device):
    logits, tree, u = torch.zeros(2, 3, device=device), ids([-1, 0], device), floats([0, 0], device)
    rows = torch.zeros(2, 3, device=device)
    for match, arguments, max_children in (
        ("logits must be float16 or bfloat16", (logits.double(), tree, tree, u, 1.0, rows), 1),
        ("tokens must be int32", (logits, tree.long(), tree, u, 1.0, rows), 1),
        ("temperature must be", (logits, tree, tree, u, 0.0, rows), 1),
        (r"p_draft must be \[2, 3\], got \[1, 3\]", (logits, tree, tree, u, 1.0, rows[:1]), 1),
        ("p_draft must be float32, got float16", (logits, tree, tree, u, 1.0, rows.half()), 1),
        (r"parents\[0\] must be -1\.\.-1, got 1", (logits, tree, tree.abs(), u, 1.0, rows), 1),
        (r"uniforms\[0\] must be in \[0, 1\)", (logits, tree, tree, u - 1, 1.0, rows), 1),
        (r"max_children must be 1\.\.2, got 3", (logits, tree, tree, u, 1.0, rows), 3),
    ):
        with pytest.raises(ValueError, match=match):
            accept_drawn_tree(*arguments, max_children=max_children)
