"""int8 rows times int8 weights: the verification of a W8A8 target, computed exactly.

    y[t, r] = (sum over c of xq[t, c] * weight[r, c]) * x_scale[t] * w_scale[r]

Both operands are integers with a scale a row (`quantize_rows` makes those of x), so the long sum
runs in int32 without any rounding, and scales and the output's dtype come in once, at the end.
Half the bytes of a 16-bit layer are read, and int8 tensor cores do twice the work of 16-bit ones:
W8A8 stays cheap in the number of rows verified for longer than formats that only shrink weights.

Weights are the *left* operand (y is computed transposed): tensor cores want 64 rows on the left
and take 8 or 16 on the right, and decoding has many weight rows and few rows of x.  Layers too
small to fill the device are also split along C; a second kernel adds the int32 parts.  Atomic
additions would be as exact, but need a launch to clear the buffer besides the one that scales.

    reference   w8a8_matmul_ref   plain torch, any device; the definition
    kernel      w8a8_matmul       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads R*C bytes of weights once and T*C of x a tile of weight rows (cached), writes
                2*T*R bytes; with S splits 8*S*T*R more bytes and a second launch
    error       none: the sum is exact, then both round it to fp32, scale twice, round to 16 bits
    rows        a row's bits do not depend on the other rows: integer sums are exact in any tiling
    source      SmoothQuant's kernels: Xiao et al. 2023, arXiv 2211.10438
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor

# 128 * 128 * C fits an int32
MAX_C = 2**17 - 1
MAX_R = 2**21
MAX_T = 2**24


def w8a8_matmul_ref(
    xq: Tensor, x_scale: Tensor, weight: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Same contract as `w8a8_matmul`, written to be read rather than to be fast."""
    total = xq.double() @ weight.double().T  # [T, R], exact: below 2**31
    return (total.float() * x_scale[:, None] * w_scale).to(dtype)


def w8a8_matmul(
    xq: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype,
    *,
    config: "Config | None" = None,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply int8 rows with int8 weights and scale the exact sums.

    Args:
        xq: int8 [T, C], rows from `quantize_rows`; T of 1..2**24 (tuned for 1..128), C up to
            131071, where an int32 still holds any sum.
        x_scale: fp32 [T].
        weight: int8 [R, C].
        w_scale: fp32 [R].
        dtype: fp16 or bf16, of the result.
        config: tile shapes, instead of `choose(...)`'s.
        out: dtype [T, R], written instead of a new tensor.

    Returns:
        y: dtype [T, R].

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("xq", xq, torch.int8, (None, None))
    T, C = xq.shape
    check_range("T", T, 1, MAX_T)
    check_range("C", C, 1, MAX_C)
    check_tensor("weight", weight, torch.int8, (None, C), like=xq)
    R = weight.shape[0]
    check_range("R", R, 1, MAX_R)
    check_tensor("x_scale", x_scale, torch.float32, (T,), like=xq)
    check_tensor("w_scale", w_scale, torch.float32, (R,), like=xq)
    if dtype not in HALF:
        raise ValueError(f"dtype must be float16 or bfloat16, got {dtype}")
    if out is None:
        out = torch.empty(T, R, dtype=dtype, device=xq.device)
    check_tensor("out", out, dtype, (T, R), like=xq)
    config = config or choose(T, R, C)
    part = part_like(out, config.splits)
    grid = (triton.cdiv(T, config.block_t), triton.cdiv(R, config.block_r), config.splits)
    _w8a8_matmul_kernel[grid](
        xq, x_scale, weight, w_scale, part, T, R, C,
        SPLITS=config.splits, BLOCK_R=config.block_r, BLOCK_T=config.block_t,
        BLOCK_C=config.block_c, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if config.splits > 1:
        add_scaled_parts(part, x_scale, w_scale, out)
    return out


def part_like(out: Tensor, splits: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """What a kernel with so many splits writes: `out`, or dtype [splits, T, R]."""
    if splits == 1:
        return out
    return torch.empty(splits, *out.shape, dtype=dtype, device=out.device)


def add_scaled_parts(part: Tensor, x_scale: Tensor, w_scale: Tensor, out: Tensor) -> Tensor:
    """Add int32 [splits, T, R], scale by rows and columns, into `out` [T, R]."""
    (T, R), BLOCK_R = out.shape, 1024
    _add_scaled_parts_kernel[(T, triton.cdiv(R, BLOCK_R))](
        part, x_scale, w_scale, out, T, R, SPLITS=part.shape[0], BLOCK_R=BLOCK_R
    )
    return out


@dataclass(frozen=True, slots=True)
class Config:
    """Tile of output rows x rows of x, columns a step, splits of C, and the compiler's share."""

    block_r: int
    block_t: int
    block_c: int
    splits: int
    num_warps: int
    num_stages: int


SPLITS = (1, 2, 4, 8)
# (block_t, num_warps, num_stages) that leave shared memory for two programs a processor from sm_80
# on; not swept on a GPU yet
CONFIGS = tuple(
    Config(64, block_t, 128, splits, num_warps, num_stages)
    for block_t, num_warps, num_stages in ((16, 4, 4), (32, 4, 4), (64, 4, 4), (128, 8, 3))
    for splits in SPLITS
)
WANTED_PROGRAMS = 256  # about twice the 132 processors of an H100
MIN_SPLIT = 1024  # columns that still fill a pipeline


def choose(T: int, R: int, C: int) -> Config:
    """The smallest tile that holds T rows, and splits until the device is busy.

    T may decide here, other than in a floating-point sum: no choice changes a bit of the result.
    """
    block_t = min(max(16, triton.next_power_of_2(T)), 128)
    splits = splits_for(triton.cdiv(T, block_t) * triton.cdiv(R, 64), C)
    return next(c for c in CONFIGS if (c.block_t, c.splits) == (block_t, splits))


def splits_for(programs: int, C: int) -> int:
    """Into how many parts to cut C, were there so many programs without: 1, 2, 4 or 8."""
    enough = (s for s in SPLITS if programs * s >= WANTED_PROGRAMS or C < 2 * s * MIN_SPLIT)
    return min(enough, default=SPLITS[-1])


@triton.jit(do_not_specialize=["T"])
def _w8a8_matmul_kernel(
    xq_ptr,  # [T, C] int8
    x_scale_ptr,  # [T] fp32
    weight_ptr,  # [R, C] int8
    w_scale_ptr,  # [R] fp32
    part_ptr,  # [T, R], or int32 [SPLITS, T, R]
    T,
    R,
    C,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # tiles of x are the fastest axis: programs that share weights run side by side
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    in_t, in_r = t < T, r < R
    per_split = tl.cdiv(tl.cdiv(C, BLOCK_C), SPLITS) * BLOCK_C
    first = split * per_split
    # int64: R * C passes 2**31 for the largest layers, T * C for long prompts
    weight_row = weight_ptr + r.to(tl.int64)[:, None] * C  # [BLOCK_R, 1]
    x_column = xq_ptr + t.to(tl.int64)[None, :] * C  # [1, BLOCK_T]
    total = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.int32)
    for c0 in tl.range(first, tl.minimum(first + per_split, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        weight = tl.load(
            weight_row + c[None, :],
            mask=in_r[:, None] & (c < C)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        x = tl.load(x_column + c[:, None], mask=in_t[None, :] & (c < C)[:, None], other=0)
        total = tl.dot(weight, x, total, out_dtype=tl.int32)

    inside = in_r[:, None] & in_t[None, :]
    y = t.to(tl.int64)[None, :] * R + r[:, None]  # [BLOCK_R, BLOCK_T]
    if SPLITS == 1:
        x_scale = tl.load(x_scale_ptr + t, mask=in_t, other=0.0)
        w_scale = tl.load(w_scale_ptr + r, mask=in_r, other=0.0)
        scaled = total.to(tl.float32) * x_scale[None, :] * w_scale[:, None]
        tl.store(part_ptr + y, scaled.to(part_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(part_ptr + split.to(tl.int64) * T * R + y, total, mask=inside)


@triton.jit
def _add_scaled_parts_kernel(
    part_ptr,  # [SPLITS, T, R] int32
    x_scale_ptr,  # [T] fp32
    w_scale_ptr,  # [R] fp32
    y_ptr,  # [T, R]
    T,
    R,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_r = r < R
    total = tl.zeros((BLOCK_R,), dtype=tl.int32)
    for split in tl.static_range(SPLITS):
        total += tl.load(part_ptr + (split * T + t) * R + r, mask=in_r, other=0)
    w_scale = tl.load(w_scale_ptr + r, mask=in_r, other=0.0)
    scaled = total.to(tl.float32) * tl.load(x_scale_ptr + t) * w_scale
    tl.store(y_ptr + t * R + r, scaled.to(y_ptr.dtype.element_ty), mask=in_r)
