"""Acceptance rules as distributions, by walking every branch of the shipped code."""

import pytest
import torch

from hspec_lab.accept import Proposal, accept, accept_greedy
from hspec_lab.tree import chain, from_parents

P = torch.tensor(
    [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]
)
Q = torch.tensor(
    [[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]
)


class Walk:
    """A chooser that follows a script, then takes the first branch and notes the others."""

    def __init__(self, script):
        self.script, self.taken, self.others, self.weight = script, [], [], 1.0

    def __call__(self, probabilities):
        able = [i for i, p in enumerate(probabilities.tolist()) if p > 0]
        at = len(self.taken)
        picked = self.script[at] if at < len(self.script) else able[0]
        if at >= len(self.script):
            self.others += [[*self.taken, other] for other in able[1:]]
        self.taken.append(picked)
        self.weight *= float(probabilities[picked] / probabilities.sum())
        return picked


def every_branch(run):
    """(result, probability) of `run(choose)` for every way its choices can fall."""
    scripts = [[]]
    while scripts:
        walk = Walk(scripts.pop())
        yield run(walk), walk.weight
        scripts += walk.others


def distribution_of(run):
    """Result -> probability, summed over all branches."""
    found = {}
    for result, weight in every_branch(run):
        found[result] = found.get(result, 0.0) + weight
    assert sum(found.values()) == pytest.approx(1)
    return found


def test_greedy_keeps_the_path_of_the_models_own_tokens():
    tree = from_parents([9, 1, 2, 5, 6, 7], [-1, 0, 0, 2, 2, 4])
    best = [2, 0, 6, 0, 7, 4]
    verdict = accept_greedy(tree, best)
    assert verdict.path == [0, 2, 4, 5]
    assert verdict.tokens == [2, 6, 7, 4]
    assert verdict.n_accepted == 3


def test_greedy_rejection_emits_the_models_own_token():
    assert accept_greedy(chain([9, 1, 2]), [3, 0, 0]).tokens == [3]


@pytest.mark.parametrize("temperature, sampling", [(0.0, True), (1.0, False)])
def test_greedy_levels_hand_up_no_distribution(temperature, sampling):
    verdict = accept(Proposal(chain([0, 1]), [""] * 2), P[:2].log(), temperature, None, sampling)
    assert verdict.p_model is None


@pytest.mark.parametrize(
    "parents, tokens",
    [
        pytest.param([-1, 0, 1], [0, 1, 2], id="chain"),
        pytest.param([-1, 0, 0, 0], [0, 0, 1, 2], id="all-children"),
        pytest.param([-1, 0, 0, 1, 1], [0, 2, 1, 0, 1], id="tree"),
    ],
)
def test_chosen_nodes_leave_the_models_distribution(parents, tokens):
    tree = from_parents(tokens, parents)
    proposal = Proposal(tree, [""] * len(tree))
    p = P[: len(tree)]

    def first_two(choose):
        verdict = accept(proposal, p.log(), 1.0, choose)
        return tuple(verdict.tokens[:2])

    found = distribution_of(first_two)
    first = [sum(w for t, w in found.items() if t[0] == token) for token in range(3)]
    assert first == pytest.approx(P[0].tolist(), abs=1e-6)
    for node in range(1, len(tree)):  # behind an accepted child, the child's own row decides
        if tree.parents[node] == 0 and P[0, tree.tokens[node]] > 0:
            token = tree.tokens[node]
            second = [found.get((token, t), 0.0) / first[token] for t in range(3)]
            assert second == pytest.approx(P[node].tolist(), abs=1e-6)


def drawn_chain(choose, wrong=False):
    """Two tokens drawn from Q, then judged against P; the emitted tokens' first."""
    one, two = choose(Q[1]), choose(Q[2])
    rows = torch.full_like(Q[:3], 1 / 3) if wrong else Q[:3]
    proposal = Proposal(chain([0, one, two]), [""] * 3, rows)
    return accept(proposal, P[:3].log(), 1.0, choose).tokens[0]


def test_drawn_tokens_leave_the_models_distribution():
    found = distribution_of(drawn_chain)
    assert [found[t] for t in range(3)] == pytest.approx(P[0].tolist(), abs=1e-6)


def test_a_wrong_p_draft_shows():
    found = distribution_of(lambda choose: drawn_chain(choose, wrong=True))
    assert max(abs(found[t] - float(P[0, t])) for t in range(3)) > 0.02


def test_temperature_divides_the_logits():
    proposal = Proposal(chain([0, 1]), [""] * 2)
    found = distribution_of(lambda c: accept(proposal, P[:2].log(), 0.5, c).tokens[0])
    squared = (P[0] ** 2 / (P[0] ** 2).sum()).tolist()
    assert [found[t] for t in range(3)] == pytest.approx(squared, abs=1e-6)


def test_a_certain_child_is_always_kept():
    p = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    proposal = Proposal(chain([0, 1]), [""] * 2)
    assert {
        t[0] for t in distribution_of(lambda c: tuple(accept(proposal, p.log(), 1.0, c).tokens))
    } == {1}
