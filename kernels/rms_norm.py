"""Divide each row by its root mean square, after adding it to the residual stream.

    total = x + residual
    y = total / sqrt(mean(total ** 2) + eps) * weight

What a layer computes is added to the stream of hidden states, and the next layer reads the stream
normalised.  Both are bound by memory, so one launch does both: the sum is written once and
normalised while its row is still in registers.  The norm is that of the sum as stored, so adding
first and normalising later gives the same bits.

    reference   rms_norm_ref  plain torch, any device; the definition
    kernel      rms_norm      Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads and writes T * C values, twice with a residual; one launch, a program a row
    error       squares and their sum in fp32, one rounding of y: half a step of the dtype
    rows        each row on its own, in one tile that follows from C: row-invariant
    source      Zhang and Sennrich 2019, arXiv 1910.07467
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor

MAX_COLUMNS = 16384


def rms_norm_ref(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Same contract as `rms_norm`, in float64, written to be read rather than to be fast."""
    total = x if residual is None else (x.double() + residual.double()).to(residual.dtype)
    mean_square = total.double().square().mean(dim=1, keepdim=True)
    y = (total.double() / (mean_square + eps).sqrt() * weight.double()).to(x.dtype)
    return y if residual is None else (total, y)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise rows, with a residual their sum with it.

    Args:
        x: fp16 or bf16 [T, C]; T >= 1, C <= 16384.
        weight: x's dtype or fp32 [C].
        eps: added to the mean square.
        residual: x's dtype or fp32 [T, C], added to x first.
        total: residual's dtype [T, C], written instead of a new tensor; may be the residual.
        out: x's dtype [T, C], written instead of a new tensor; may be x.

    Returns:
        y: x's dtype [T, C]; with a residual a pair (total, y), total rounded to its dtype.

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("x", x, HALF, (None, None))
    T, C = x.shape
    check_range("T", T, 1, 2**30)
    check_range("C", C, 1, MAX_COLUMNS)
    check_tensor("weight", weight, (x.dtype, torch.float32), (C,), like=x)
    if residual is not None:
        check_tensor("residual", residual, (x.dtype, torch.float32), (T, C), like=x)
        total = torch.empty_like(residual) if total is None else total
        check_tensor("total", total, residual.dtype, (T, C), like=x)
    elif total is not None:
        raise ValueError("total is written only with a residual, got none")
    out = torch.empty_like(x) if out is None else out
    check_tensor("out", out, x.dtype, (T, C), like=x)
    block_c, num_warps = choose(C)
    _rms_norm_kernel[(T,)](
        x, x if residual is None else residual, weight, x if residual is None else total, out,
        C, eps, ADD=residual is not None, BLOCK_C=block_c, num_warps=num_warps,
    )  # fmt: skip
    return out if residual is None else (total, out)


# values of a row to a warp and most warps, not swept on a GPU yet: 16 values a thread
CONFIGS = ((512, 16),)


def choose(C: int) -> tuple[int, int]:
    """The tile that holds a row, and its warps."""
    per_warp, most = CONFIGS[0]
    block_c = triton.next_power_of_2(C)
    return block_c, min(most, max(1, block_c // per_warp))


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, C]
    residual_ptr,  # [T, C]; not read without ADD
    weight_ptr,  # [C]
    total_ptr,  # [T, C]; not written without ADD
    y_ptr,  # [T, C]
    C,
    eps,
    ADD: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    # int64: a long prompt of a wide model passes 2**31 values
    at = tl.program_id(0).to(tl.int64) * C + c
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + c, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        total = x + tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
        total = total.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, total, mask=mask)
        x = total.to(tl.float32)
    y = x * tl.math.rsqrt(tl.sum(x * x, axis=0) / C + eps) * weight
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
