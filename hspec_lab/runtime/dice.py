"""Uniform numbers in device memory: drawn on the host, taken by launches.

A captured launch cannot be handed a new number, but it can read one: a block of them lies on the
device with a cursor, and every launch takes the next.  The host knows how many a stage takes, and
uploads the next block before a stage that the rest would not serve.
"""

import torch
from torch import Tensor

from hspec_lab.sample import seed_of


class Dice:
    """Seeded uniforms in [0, 1), one stream for each prompt.

    Args:
        seed: with the prompt's number it decides about the whole stream.
        size: numbers of a block; more than any stage takes.

    Attributes:
        block: fp32 [size].
        cursor: int64 [1], numbers taken from the block.
        left: the rest of it, as the host knows it.
    """

    def __init__(self, seed: int, device: torch.device | str, size: int = 2**16):
        self.seed, self._generator = seed, torch.Generator()
        self.block = torch.zeros(size, dtype=torch.float32, device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.begin(0)

    def begin(self, prompt: int) -> None:
        """Start the stream of one prompt, whatever was taken before."""
        self._generator.manual_seed(seed_of(self.seed, prompt))
        self.left = 0

    def provide(self, n: int) -> None:
        """Have n numbers ready for the launches that follow; drops a rest that is too short."""
        if n > len(self.block):
            raise ValueError(f"a stage takes at most {len(self.block)} numbers at once, got {n}")
        if self.left < n:
            self.left = len(self.block)
            new = torch.rand(self.left, generator=self._generator, dtype=torch.float32)
            self.block.copy_(new)
            self.cursor.zero_()
        self.left -= n

    def take(self, n: int) -> Tensor:
        """Launches: the next n numbers, fp32 [n]; as many must have been provided."""
        place = torch.arange(n, device=self.block.device)
        numbers = self.block.index_select(0, self.cursor + place)
        self.cursor += n
        return numbers
