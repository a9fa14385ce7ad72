"""Weights as a sum of blocks of about one bit each, of which any number may be loaded.

A block is a sign per weight and a thin product for the magnitudes; each block holds what those
before it left over, so that the first n are a model of their own and memory is a slider:

    weight = (sum over blocks of sign * (up @ down)) / s        s: fp32 [C], see `quantize.bitstack`

    cost    1 + 16 k (R + C) / (R C) bits per weight and block: 1.13 at rank 16 on 4096 x 4096,
            1.79 on 2048 x 384
    source  BitStack, Wang et al. 2024, arXiv 2410.23918
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hspec_lab.quant.forms import Form, pack_codes, unpack_codes


@dataclass(frozen=True, slots=True)
class Stack(Form):
    """Blocks of signs and thin magnitudes, the most telling first.

    Attributes:
        shape: (R, C).
        signs: uint8 [N, R, bytes], one bit per weight as `pack_codes` packs them; 1 is positive.
        up, down: bf16 [N, R, k] and [N, k, C].
        scale: fp32 [C], s; what input channels were multiplied by before they were taken apart.
    """

    shape: tuple[int, int]
    signs: Tensor
    up: Tensor
    down: Tensor
    scale: Tensor

    @classmethod
    def of(cls, blocks: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> "Stack":
        """Put blocks together: packed signs, up and down of each, as `pack_signs` and bf16."""
        signs, up, down = (torch.stack(parts) for parts in zip(*blocks, strict=True))
        return cls((up.shape[1], down.shape[2]), signs, up, down, scale)

    @classmethod
    def from_file(cls, kind: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> "Stack":
        """The stack that `kind` and `tensors` were written of.

        Raises:
            ValueError: the tensors are of another stack than `kind` says.
        """
        names = ("signs", "up", "down", "scale")
        stack = cls(tuple(shape), *(tensors[name] for name in names))
        if kind != stack.kind:
            raise ValueError(f"a {kind!r} was to be read, its tensors are of a {stack.kind!r}")
        return stack

    @property
    def kind(self) -> str:
        return f"stack {self.rank} {self.n_blocks}"

    @property
    def rank(self) -> int:
        return self.up.shape[2]

    @property
    def n_blocks(self) -> int:
        return len(self.signs)

    @property
    def block_nbytes(self) -> int:
        """Bytes that one block more takes."""
        return sum(part[0].nbytes for part in (self.signs, self.up, self.down))

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs, "up": self.up, "down": self.down, "scale": self.scale}

    def block(self, index: int) -> Tensor:
        """fp32 [R, C]: what one block adds, before the division by s."""
        return expand_block(self.signs[index], self.up[index], self.down[index])

    def dequantized(self) -> Tensor:
        total = self.block(0)
        for index in range(1, self.n_blocks):
            total += self.block(index)
        return total / self.scale

    def cut(self, n_blocks: int) -> "Stack":
        """The first `n_blocks` blocks, in the same memory.

        Raises:
            ValueError: fewer than one or more than there are.
        """
        if not 1 <= n_blocks <= self.n_blocks:
            raise ValueError(f"this stack has 1 to {self.n_blocks} blocks to keep, not {n_blocks}")
        parts = (part[:n_blocks] for part in (self.signs, self.up, self.down))
        return Stack(self.shape, *parts, self.scale)

    def reordered(self, order: Tensor) -> "Stack":
        return Stack(self.shape, self.signs[:, order], self.up[:, order], self.down, self.scale)


def pack_signs(matrix: Tensor) -> Tensor:
    """uint8 [R, bytes] from fp32 [R, C]; zero counts as positive."""
    return pack_codes((matrix >= 0).to(torch.uint8), 1)


def expand_block(signs: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """fp32 [R, C] of one block: packed signs uint8 [R, bytes], bf16 [R, k] and [k, C]."""
    magnitude = up.float() @ down.float()
    positive = unpack_codes(signs, 1, down.shape[1]).bool()
    return torch.where(positive, magnitude, -magnitude)
