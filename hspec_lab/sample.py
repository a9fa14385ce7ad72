"""Choosing tokens: the one place where randomness enters decoding.

Everything random goes through `choose(probabilities) -> index`.  The shipped chooser draws with a
seeded generator; a test hands in one that walks every branch and multiplies the probabilities.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[Tensor], int]


def seed_of(seed: int, prompt: int) -> int:
    """The seed of one prompt's stream of draws, whatever other prompts there are."""
    both = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return int.from_bytes(both[:7], "little")


class SeededChoose:
    """Draws an index from fp32 [m] probabilities, which need not sum to exactly one."""

    def __init__(self, seed: int):
        self.seed, self._generator = seed, torch.Generator()
        self.begin(0)

    def begin(self, prompt: int) -> None:
        """Start the stream of draws of one prompt, whatever was drawn before."""
        self._generator.manual_seed(seed_of(self.seed, prompt))

    def __call__(self, probabilities: Tensor) -> int:
        return int(torch.multinomial(probabilities.cpu(), 1, generator=self._generator))


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities at a temperature > 0, fp32, same shape as `logits`."""
    # the largest first, or a tiny temperature would make infinity minus infinity of it
    shifted = logits.float() - logits.amax(dim=-1, keepdim=True)
    return torch.softmax(shifted / temperature, dim=-1)


def check_finite(logits: Tensor, who: str) -> None:
    """ValueError when a model has produced NaN or infinite logits."""
    # one reduction: a NaN or infinity anywhere makes the sum NaN or infinite
    if not torch.isfinite(logits.sum()):
        bad = ~torch.isfinite(logits).all(dim=-1)
        if bad.any():
            kind = "NaN" if torch.isnan(logits).any() else "infinity"
            raise ValueError(
                f"{who}: {kind} in the logits of {int(bad.sum())} of {logits.shape[0]} rows; "
                "check the checkpoint, or decode it at fp32"
            )
