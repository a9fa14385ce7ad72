"""A speculative decoder over a smaller model is itself a drafter.

`RefineDrafter` lets a verifier of its own (the intermediate model, with any drafter behind it, or
none) run rounds until at least `at_least` tokens of that model's continuation exist, and proposes
them as a chain.  With an EAGLE-2 drafter behind it that is HierSpec; with none it is ordinary
speculation with a draft model; with another `RefineDrafter` behind it the hierarchy is deeper.

With a `tree_size` the chain becomes a narrow tree: rows that are left offer what the model would
have said second, at the places where it was least sure.  Where the level above disagrees, it often
agrees with that.

    source  Zhang et al. 2025 (HierSpec), arXiv 2505.22179
"""

import torch
from torch import Tensor

from hspec_lab.accept import Proposal
from hspec_lab.tree import chain, from_parents
from hspec_lab.verify import Step, Verifier


class RefineDrafter:
    """Proposes a chain of its own model's tokens.

    Args:
        verifier: the smaller model's level.
        at_least: tokens to have before proposing; the last inner round may exceed it.
        tree_size: nodes to fill up to with second choices, the root included; None: none.
    """

    def __init__(self, verifier: Verifier, at_least: int, tree_size: int | None = None):
        self.verifier, self.at_least, self.tree_size = verifier, at_least, tree_size
        verifier.second_choices = tree_size is not None
        self.n_tokens = 0  # of the outer text; the inner text runs ahead by the draft
        self._draft: list[Step] = []

    def extend(self, tokens: list[int], features: Tensor) -> None:
        verifier, known = self.verifier, self.n_tokens
        drafted = verifier.tokens[known:]
        same = 0
        while same < min(len(drafted), len(tokens) - 1) and drafted[same] == tokens[same]:
            same += 1
        if known + same < len(verifier.tokens):
            verifier.rollback(known + same)
        verifier.extend(tokens[same:])
        self.n_tokens = known + len(tokens)
        self._draft = []

    def rollback(self, n_tokens: int) -> None:
        self.verifier.rollback(n_tokens)
        self.n_tokens = min(self.n_tokens, n_tokens)
        self._draft = []

    def prepare(self) -> None:
        """Run the prompt; its first token behind the pending one is drafted already."""
        self._draft = [self.verifier.start(self.verifier.tokens)]

    def propose(self) -> Proposal:
        steps, self._draft = self._draft, []
        n_drafted = sum(len(step.tokens) for step in steps)
        while n_drafted < self.at_least:
            steps.append(self.verifier.round())
            n_drafted += len(steps[-1].tokens)
        tokens = [token for step in steps for token in step.tokens]
        sources = [source for step in steps for source in step.sources]
        root = self.verifier.tokens[self.n_tokens - 1]
        rows = None
        if steps[0].p_model is not None:
            rows = torch.cat([step.p_model for step in steps])
            rows = torch.cat([rows[:1], rows])  # row 0, the root's, is unused
        if self.tree_size is not None:
            seconds = [second for step in steps for second in step.seconds]
            return self._narrow_tree(root, tokens, ["", *sources], seconds)
        return Proposal(chain([root, *tokens]), ["", *sources], rows)

    def _narrow_tree(self, root: int, tokens: list[int], sources: list[str], seconds) -> Proposal:
        """The chain, then leaves: second choices where the first was nearest to them."""
        spare = max(0, self.tree_size - len(tokens) - 1)
        least_sure = sorted(range(len(tokens)), key=lambda i: seconds[i].margin)[:spare]
        leaves = [seconds[i].token for i in least_sure]
        # token i is node i + 1, so that its rival's parent is node i
        tree = from_parents([root, *tokens, *leaves], [*range(-1, len(tokens)), *least_sure])
        return Proposal(tree, sources + [self.verifier.level] * len(leaves))
