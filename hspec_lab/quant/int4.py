"""int4 linear layers in groups along the inputs: `w4a16-g128`, `w4a16-g32`.

Each group of G weights has a scale and a zero of its own:

    w[r, c] = (q[r, c] - 8) * scale[r, c // G] + zero[r, c // G]     q in 0..15, scale, zero bf16
    y = bf16(bf16(x) @ w.T)

    reference   W4A16Ref   any device; the definition; two weights per byte along C, low first
    operator    W4A16      ATen's int4 x bf16 product for CPU; its layout depends on the processor
    cost        1/2 B per weight + 4/G B of scale and zero: 4.25 bits at G = 128, 5 at G = 32
    error       against the reference: one bf16 step (<= 2**-7) of the output
"""

import torch
from torch import Tensor

from hspec_lab.quant.rounding import (
    INT4_MIDDLE,
    expand_int4,
    pack_nibbles,
    round_int4,
    unpack_nibbles,
)
from hspec_lab.quant.stored import Stored


def _nbytes(weight: Tensor, group_size: int) -> int:
    return weight.numel() // 2 + 4 * (weight.numel() // group_size)


class W4A16Ref(Stored):
    """Expand to fp32, then multiply; written to be read."""

    __slots__ = ("packed", "scale", "zero")

    def __init__(self, weight: Tensor, group_size: int):
        super().__init__(f"w4a16-g{group_size}", weight, _nbytes(weight, group_size))
        q, self.scale, self.zero = round_int4(weight, group_size)
        self.packed = pack_nibbles(q)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.bfloat16().float() @ self.dequantized().T).bfloat16().float()

    def dequantized(self) -> Tensor:
        return expand_int4(unpack_nibbles(self.packed), self.scale, self.zero)


class W4A16(Stored):
    """The same by one ATen operator. bf16 on purpose: with fp32 rows it takes a scalar loop."""

    __slots__ = ("_packed", "_group_size", "_scale_zero", "_multiply")

    def __init__(self, weight: Tensor, group_size: int):
        super().__init__(f"w4a16-g{group_size}", weight, _nbytes(weight, group_size))
        q, scale, zero = round_int4(weight, group_size)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        self._group_size = group_size
        self._scale_zero = torch.stack([scale.T, zero.T], dim=2).contiguous()  # [C/G, R, 2]
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def __call__(self, x: Tensor) -> Tensor:
        y = self._multiply(x.bfloat16(), self._packed, self._group_size, self._scale_zero)
        return y.float()

    def dequantized(self) -> Tensor:
        # multiplied with unit rows at scale 1 and zero 0 the operator gives back q - 8, exactly,
        # whatever its layout
        ones = torch.zeros_like(self._scale_zero)
        ones[..., 0] = 1
        unit = torch.eye(self.shape[1], dtype=torch.bfloat16)
        q = self._multiply(unit, self._packed, self._group_size, ones).T + INT4_MIDDLE
        return expand_int4(q, self._scale_zero[..., 0].T, self._scale_zero[..., 1].T)
