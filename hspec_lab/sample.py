"""Choosing tokens: the one place where randomness enters decoding.

Everything random goes through `choose(probabilities) -> index`.  The shipped chooser draws with a
seeded generator; a test hands in one that walks every branch and multiplies the probabilities.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[Tensor], int]


def seeded_choose(seed: int) -> Choose:
    """A chooser that draws from fp32 [m] probabilities; they need not sum to exactly one."""
    generator = torch.Generator().manual_seed(seed)

    def choose(probabilities: Tensor) -> int:
        return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))

    return choose


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities at a temperature > 0, fp32, same shape as `logits`."""
    return torch.softmax(logits.float() / temperature, dim=-1)


def check_finite(logits: Tensor, who: str) -> None:
    """ValueError when a model has produced NaN; infinities would do no harm in a softmax."""
    # one reduction: a NaN anywhere makes the sum NaN, and so does inf - inf
    if torch.isnan(logits.sum()):
        n_bad = int(torch.isnan(logits).any(dim=-1).sum())
        if n_bad:
            raise ValueError(
                f"{who}: NaN in the logits of {n_bad} of {logits.shape[0]} rows; "
                "check the checkpoint, or decode it at fp32"
            )
