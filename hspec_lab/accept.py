"""Which proposed tokens stay: one rule for chains, trees and every level of a hierarchy.

Greedy: a node stays when it is its parent's most likely next token.  Sampling: at each node the
children are tried in order; a child drawn from q is accepted with probability min(1, p / q), after
a rejection p becomes norm(max(p - q, 0)); at the end one more token is drawn from what is left of
p.  A child that was *chosen* rather than drawn has a point mass for q: it is accepted with
probability p(child), and a rejection removes it from p.  Whatever was proposed, the emitted tokens
are distributed as the verifying model's own, provided `p_draft` is what the tokens were really
drawn from.

    source  Leviathan et al. 2023, arXiv 2211.17192; Miao et al. 2024 (SpecInfer), arXiv 2305.09781
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hspec_lab.sample import Choose, distribution
from hspec_lab.tree import Tree


@dataclass(frozen=True, slots=True)
class Proposal:
    """A tree of tokens on offer.

    Attributes:
        tree: n nodes; node 0 is the pending token.
        sources: n names, which level thought of each node (the root's is unused).
        p_draft: fp32 [n, V], the distribution each node's token was really drawn from (row 0
            unused); None when every node was chosen deterministically.
    """

    tree: Tree
    sources: list[str]
    p_draft: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifying model made of a proposal.

    Attributes:
        path: accepted nodes from the root down, the root included.
        tokens: the emitted tokens, len(path) of them; the last is the model's own.
        p_model: fp32 [len(path), V], the distributions the emitted tokens follow; None if greedy.
    """

    path: list[int]
    tokens: list[int]
    p_model: Tensor | None = None

    @property
    def n_accepted(self) -> int:
        return len(self.path) - 1


def accept_greedy(tree: Tree, best: list[int]) -> Verdict:
    """Keep the deepest path on which every token is its parent's `best`.

    Args:
        best: n token ids, the verifying model's most likely next token behind each node.
    """
    # siblings carry different tokens, so at most one child of a kept node is kept
    node, path, tokens, parents = 0, [0], tree.tokens, tree.parents
    for child in range(1, len(tokens)):
        if parents[child] == node and tokens[child] == best[node]:
            node = child
            path.append(node)
    return Verdict(path, [best[node] for node in path])


def accept_sampling(proposal: Proposal, p_model: Tensor, choose: Choose) -> Verdict:
    """Keep a path such that the emitted tokens follow `p_model` exactly.

    Args:
        p_model: fp32 [n, V], the verifying model's distribution behind each node.
        choose: draws an index from fp32 [m] probabilities.
    """
    tree, node, path, tokens = proposal.tree, 0, [0], []
    children: dict[int, list[int]] = {}
    for child, parent in enumerate(tree.parents[1:], 1):
        children.setdefault(parent, []).append(child)
    while True:
        p, accepted = p_model[node], None
        for child in children.get(node, []):
            token = tree.tokens[child]
            keep, rest = _trial(p, token, proposal.p_draft, child)
            if choose(torch.stack([keep, 1 - keep])) == 0:
                accepted = child
                break
            p = rest
        if accepted is None:
            tokens.append(choose(p))
            return Verdict(path, tokens, p_model[path])
        node = accepted
        path.append(node)
        tokens.append(tree.tokens[node])


def _trial(p: Tensor, token: int, p_draft: Tensor | None, child: int) -> tuple[Tensor, Tensor]:
    """Acceptance probability of a child, and the distribution left after its rejection."""
    if p_draft is None:
        keep, rest = p[token], p.clone()
        rest[token] = 0
    else:
        q = p_draft[child]
        keep, rest = (p[token] / q[token]).clamp(max=1), (p - q).clamp(min=0)
    total = rest.sum()
    # nothing is left only when the child was certain; then the rest is never drawn from
    return keep.clamp(0, 1), rest / total if total > 0 else p


def accept(
    proposal: Proposal, logits: Tensor, temperature: float, choose: Choose, sampling: bool = True
) -> Verdict:
    """Accept by the rule that fits the temperature.

    Args:
        logits: fp32 [n, V], the verifying model's, behind each node of the proposal.
        temperature: 0 is greedy.
        sampling: False keeps a level greedy although the temperature is not 0 (its tokens are
            then chosen, not drawn, and carry no `p_model`).
    """
    if temperature == 0 or not sampling:
        return accept_greedy(proposal.tree, logits.argmax(dim=-1).tolist())
    return accept_sampling(proposal, distribution(logits, temperature), choose)
