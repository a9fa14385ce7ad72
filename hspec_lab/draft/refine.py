"""A speculative decoder over a smaller model is itself a drafter.

`RefineDrafter` lets a verifier of its own (the intermediate model, with any drafter behind it, or
none) run rounds until at least `at_least` tokens of that model's continuation exist, and proposes
them as a chain.  With an EAGLE-2 drafter behind it that is HierSpec; with none it is ordinary
speculation with a draft model; with another `RefineDrafter` behind it the hierarchy is deeper.

    source  Zhang et al. 2025 (HierSpec), arXiv 2505.22179
"""

import torch
from torch import Tensor

from hspec_lab.accept import Proposal
from hspec_lab.tree import chain
from hspec_lab.verify import Step, Verifier


class RefineDrafter:
    """Proposes a chain of its own model's tokens.

    Args:
        verifier: the smaller model's level.
        at_least: tokens to have before proposing; the last inner round may exceed it.
    """

    def __init__(self, verifier: Verifier, at_least: int):
        self.verifier, self.at_least = verifier, at_least
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
        return Proposal(chain([root, *tokens]), ["", *sources], rows)
