"""Round each row to int8 with a scale of its own: activations on their way to an integer matmul.

    scale[t] = absmax[t] / 127,   q[t, c] = round(x[t, c] * (127 / absmax[t]))

Integer tensor cores multiply int8 numbers, so a row of activations is measured in steps chosen to
let its largest entry be 127 (or -127) of them, and rounded to whole steps, ties to the even one.
The rows of a batch differ in size and each gets its own step.

A row stays in registers between the search for its maximum and the rounding, so memory is read
once.  An addition rounds: in 1.5 * 2**23 + v, where fp32 numbers lie one apart, v has become a
whole number, and the sum's low byte is the int8 wanted.

    reference   quantize_rows_ref   plain torch, any device; the definition
    kernel      quantize_rows       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads T*C 16-bit numbers once, writes T*C bytes and T scales; one launch,
                launch-bound at decoding sizes
    error       none against the reference; against x half a step, and 2**-16 of one for the rounded
                inverse and product
    rows        a row's bits do not depend on the other rows: one program a row, in any case
    source      per-token dynamic scales: Xiao et al. 2023, arXiv 2211.10438
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor

LARGEST = 127
# rows of nothing larger count as zeros (only bf16 has such): fp32 could not hold 127 / absmax
TINY = 2.0**-100
MAX_C = 32768


def quantize_rows_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """Same contract as `quantize_rows`, written to be read rather than to be fast."""
    absmax = x.float().abs().amax(dim=1)  # [T]
    # a tensor on both sides: with a number torch multiplies by a rounded inverse instead
    largest = torch.full_like(absmax, LARGEST)
    absmax = torch.where(absmax > TINY, absmax, largest)
    steps = x.float() * (largest / absmax)[:, None]
    return torch.round(steps.clamp(-LARGEST, LARGEST)).to(torch.int8), absmax / largest


def quantize_rows(x: Tensor, *, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Round each row to int8, symmetrically, its largest magnitude becoming 127.

    Args:
        x: fp16 or bf16 [T, C], finite; any T >= 1, C of 1..32768.
        out: (q, scale), written instead of new tensors.

    Returns:
        q: int8 [T, C], -127..127, ties to even.
        scale: fp32 [T], x is about q * scale; 1 for a row of zeros.

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("x", x, HALF, (None, None))
    T, C = x.shape
    check_range("T", T, 1, 2**31 - 1)
    check_range("C", C, 1, MAX_C)
    if out is None:
        q = torch.empty(T, C, dtype=torch.int8, device=x.device)
        scale = torch.empty(T, dtype=torch.float32, device=x.device)
    else:
        q, scale = out
    check_tensor("q", q, torch.int8, (T, C), like=x)
    check_tensor("scale", scale, torch.float32, (T,), like=x)
    config = choose(C)
    _quantize_rows_kernel[(T,)](
        x, q, scale, C,
        LARGEST=LARGEST, TINY=TINY, BLOCK_C=config.block_c, num_warps=config.num_warps,
    )  # fmt: skip
    return q, scale


@dataclass(frozen=True, slots=True)
class Config:
    """Columns a program holds in registers, and the warps that share them."""

    block_c: int
    num_warps: int


# 16 numbers a thread (two 16-byte loads), more where 32 warps cannot hold a row so; not swept on a
# GPU yet
CONFIGS = (
    Config(512, 1),
    Config(1024, 2),
    Config(2048, 4),
    Config(4096, 8),
    Config(8192, 16),
    Config(16384, 32),
    Config(32768, 32),
)


def choose(C: int) -> Config:
    """The smallest block that holds a row of C."""
    return next(config for config in CONFIGS if config.block_c >= C)


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # [T, C]
    q_ptr,  # [T, C] int8
    scale_ptr,  # [T] fp32
    C,
    LARGEST: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # int64: T * C passes 2**31 for a long prompt
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    inside = c < C
    x = tl.load(x_ptr + t * C + c, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_C]
    absmax = tl.max(tl.abs(x), axis=0)
    absmax = tl.where(absmax > TINY, absmax, LARGEST * 1.0)
    # div_rn: plain division is allowed an error of two units
    tl.store(scale_ptr + t, tl.math.div_rn(absmax, LARGEST * 1.0))
    steps = x * tl.math.div_rn(LARGEST * 1.0, absmax)
    # the clamp also keeps compilers from fusing product and sum, which would move ties
    steps = tl.minimum(tl.maximum(steps, -LARGEST * 1.0), LARGEST * 1.0)
    shifted = steps + 12582912.0  # 1.5 * 2**23
    tl.store(q_ptr + t * C + c, shifted.to(tl.int32, bitcast=True).to(tl.int8), mask=inside)
