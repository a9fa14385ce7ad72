"""Products with 8-bit integers on CPUs: 16-bit rows, or rows of integers too.

    Int8Rows       y = bf16(bf16(x) @ (q * scale).T)   ATen's int8 x bf16 product; scale bf16 [R]
    IntegerRows    y = (xq @ q.T) * scale * unit       fbgemm's int8 x int8 product; scale fp32 [R];
                                                       xq and unit: `reference.row_integers`

Weights of 6 bits and fewer, and the 4-bit codes of two levels, are int8 numbers as well: where rows
are integers they are multiplied as such, a byte each.

    cost    1 B per weight and 2 or 4 B per row
    error   against the reference: Int8Rows one bf16 step (<= 2**-7) of the output; IntegerRows four
            fp32 roundings (the integer sum is exact)
"""

import warnings

import torch
from torch import Tensor

from hspec_lab.quant.forms import Grouped
from hspec_lab.quant.reference import LEVELS, TINY, ZERO_POINT
from hspec_lab.quant.stored import Stored

# int8 x bf16 reads past the end of rows that are not a multiple of it instead of asking
INPUTS = 16


class Int8Rows(Stored):
    """int8 weights, bf16 rows. bf16 on purpose: with fp32 rows it takes a scalar loop."""

    __slots__ = ("_q", "_scale", "_multiply")

    def __init__(self, form: Grouped, format: str):
        super().__init__(format, form.shape, form.nbytes, form.packed.device)
        self._q, scale = form.integers()
        self._scale = scale.bfloat16()
        self._multiply = torch.ops.aten._weight_int8pack_mm.default

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x.bfloat16(), self._q, self._scale).float()

    def dequantized(self) -> Tensor:
        return self._q.float() * self._scale.float()[:, None]


class IntegerRows(Stored):
    """Integers by fbgemm, between a division of each row by its largest magnitude and back."""

    __slots__ = ("_packed", "_multiply", "_levels")

    def __init__(self, form: Grouped, format: str, bits: int):
        q, scale = form.integers()
        read = q.numel() + 4 * len(q)
        super().__init__(format, form.shape, form.nbytes, form.packed.device, read)
        self._packed, self._levels = _pack_fbgemm(q, scale), LEVELS[bits]
        name = "linear_with_input_q_dq_qweight_dq_output_fp32"
        self._multiply = getattr(torch.ops.quantized, name).default

    def __call__(self, x: Tensor) -> Tensor:
        # abs and amax: with the infinity norm, one call instead of two, 64 rows took twice as long
        unit = x.abs()
        absmax = unit.amax(1, True).clamp_min_(TINY)  # [T, 1]
        torch.div(x, absmax, out=unit)
        if self._levels == ZERO_POINT:  # a power of two, so that its inverse is exact
            return self._multiply(unit, 1 / self._levels, ZERO_POINT, self._packed).mul_(absmax)
        y = self._multiply(unit.mul_(self._levels), 1.0, ZERO_POINT, self._packed)
        return y.mul_(absmax.div_(self._levels))

    def dequantized(self) -> Tensor:
        # unit rows become their largest integer exactly
        y = self._multiply(torch.eye(self.shape[1]), 1.0, ZERO_POINT, self._packed)
        return y.T.contiguous()


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
