"""int8 linear layers: `w8a16` (only weights rounded) and `w8a8` (activations too, row by row).

    w8a16   y = bf16(bf16(x) @ (q * scale).T)            scale bf16 [R]
    w8a8    y = a * (xq @ q.T) / 64 * scale              scale fp32 [R]
            a = max|x| of the row,  xq = round(64 + 64 * x / a) - 64, -64..64

    reference   W8A16Ref, W8A8Ref     any device; the definition
    operator    W8A16, W8A8           CPU: ATen's int8 x bf16 product; fbgemm's int8 x int8
    cost        1 B per weight + 2 or 4 B per row
    error       against the reference: w8a16 one bf16 step (<= 2**-7) of the output; w8a8 four fp32
                roundings (the integer sum is exact)
    rows        every scale of an activation belongs to one row, so no row sees its neighbours

Why 64 and not 127 levels a side: fbgemm adds two products u8 x s8 in 16 bits on processors without
VNNI, and 2 * 128 * 127 = 32512 is the most that fits; the full range saturates without a word. 64
is a power of two, so the operator's rounding is x * 64 exactly and the reference says which integer
comes out (a scale of 2/127 leaves ties at the row's own maximum to the last bit). fbgemm adds its
zero point before it rounds, in fp32, so 1.4999999 becomes 2: the reference does the same.
"""

import warnings

import torch
from torch import Tensor

from hspec_lab.quant.rounding import round_int8
from hspec_lab.quant.stored import Stored

LEVELS = 64
# smallest normal fp32: a row of zeros divides by it and stays zero
_TINY = torch.finfo(torch.float32).tiny


class W8A16Ref(Stored):
    """int8 weights, bf16 activations, written to be read."""

    __slots__ = ("q", "scale")

    def __init__(self, weight: Tensor):
        super().__init__("w8a16", weight, weight.numel() + 2 * weight.shape[0])
        self.q, self.scale = round_int8(weight, torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.bfloat16().float() @ self.dequantized().T).bfloat16().float()

    def dequantized(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None]


class W8A16(W8A16Ref):
    """The same by one ATen operator. bf16 on purpose: with fp32 rows it takes a scalar loop."""

    __slots__ = ("_multiply",)

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self._multiply = torch.ops.aten._weight_int8pack_mm.default

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x.bfloat16(), self.q, self.scale).float()


class W8A8Ref(Stored):
    """int8 weights and activations, the operator's integers modelled exactly."""

    __slots__ = ("q", "scale")

    def __init__(self, weight: Tensor):
        super().__init__("w8a8", weight, weight.numel() + 4 * weight.shape[0])
        self.q, self.scale = round_int8(weight, torch.float32)

    def __call__(self, x: Tensor) -> Tensor:
        absmax = x.abs().amax(1, keepdim=True).clamp_min(_TINY)  # [T, 1]
        xq = (x / absmax * LEVELS + LEVELS).round() - LEVELS
        # float64 holds every partial sum of integers, so this is the integer product
        sums = (xq.double() @ self.q.double().T).float()
        return sums * (self.scale / LEVELS) * absmax

    def dequantized(self) -> Tensor:
        return self.q.float() * self.scale[:, None]


class W8A8(Stored):
    """The same by fbgemm, between a division of each row by its largest magnitude and back."""

    __slots__ = ("_packed", "_multiply")

    def __init__(self, weight: Tensor):
        super().__init__("w8a8", weight, weight.numel() + 4 * weight.shape[0])
        self._packed = _pack_fbgemm(*round_int8(weight, torch.float32))
        name = "linear_with_input_q_dq_qweight_dq_output_fp32"
        self._multiply = getattr(torch.ops.quantized, name).default

    def __call__(self, x: Tensor) -> Tensor:
        # abs and amax: with the infinity norm, one call instead of two, 64 rows took twice as long
        unit = x.abs()
        absmax = unit.amax(1, True).clamp_min_(_TINY)  # [T, 1]
        torch.div(x, absmax, out=unit)
        return self._multiply(unit, 1 / LEVELS, LEVELS, self._packed).mul_(absmax)

    def dequantized(self) -> Tensor:
        # unit rows round to 64 exactly, and the powers of two cancel
        return self(torch.eye(self.shape[1])).T.contiguous()


def _pack_fbgemm(q: Tensor, scale: Tensor):
    """fbgemm's own layout of int8 [R, C] with fp32 [R] scales."""
    engine = torch.backends.quantized.engine
    zero = torch.zeros(q.shape[0], dtype=torch.int64)
    with warnings.catch_warnings():
        # torch 2.13 announces the end of quantized tensors; fbgemm takes its weights no other way
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        torch.backends.quantized.engine = "fbgemm"
        try:
            weight = torch._make_per_channel_quantized_tensor(q, scale.double(), zero, 0)
            return torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = engine
