"""4-bit weights times 16-bit rows: the product every verification of a 4-bit target is made of.

    y[t, r] = sum over c of x[t, c] * w[r, c],   w[r, c] = (q[r, c] - 8) * scale[r, c // G] + zero

Plain decoding multiplies one row and is bound by reading weights; verifying a tree multiplies
tens of rows with the same weights and should cost the same.  It does as long as turning nibbles
into numbers stays hidden, and that is what the form is about: weights are the *left* operand of
the tensor cores (y is computed transposed), so that warps share the weight tile by output rows and
each weight is expanded once, however many rows of x there are.

Packing, "block halves": in each block of 128 inputs (of G, where G is smaller) byte j holds input
j in its low nibble and input j + half in its high one, so each nibble plane is one contiguous dot.
A nibble becomes a number by being written into the mantissa of 1024 (fp16) or 128 (bf16).

    reference   w4a16_matmul_ref    plain torch, any device; the definition
    kernel      w4a16_matmul        Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        R*C/2 bytes of weights + 2 or 4 bytes per group; bandwidth-bound up to a few tens of
                rows; a second launch adds the splits of C
    error       weights are rounded to x's dtype once, products are summed in fp32; tested as an RMS
                ratio below 1e-3 (fp16) and 8e-3 (bf16) against a float64 product
    rows        with `row_invariant` a row's bits are the same whatever rows are beside it: tiles
                and splits then follow from R and C alone
    source      the magic number: Kim et al. 2022, arXiv 2211.10017
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor

MIDDLE = 8
GROUP_SIZES = (32, 64, 128)
MAX_BLOCK_T = 64
_MAX_ROWS = 1024  # of one launch: bounds the buffer of the splits


def pack_w4a16(q: Tensor, group_size: int) -> Tensor:
    """uint8 [R, C], values 0..15 -> uint8 [R, C/2] in block halves; C a multiple of the group."""
    half = group_size // 2
    blocks = q.view(q.shape[0], -1, 2, half)
    return (blocks[:, :, 0] | (blocks[:, :, 1] << 4)).reshape(q.shape[0], -1)


def unpack_w4a16(packed: Tensor, group_size: int) -> Tensor:
    """Inverse of `pack_w4a16`."""
    blocks = packed.view(packed.shape[0], -1, group_size // 2)
    return torch.stack([blocks & 0xF, blocks >> 4], dim=2).reshape(packed.shape[0], -1)


def w4a16_matmul_ref(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    *,
    row_invariant: bool = False,
) -> Tensor:
    """Same contract as `w4a16_matmul`, in float64, written to be read rather than to be fast."""
    q = unpack_w4a16(packed, group_size).double() - MIDDLE  # [R, C]
    w = q * scale.double().repeat_interleave(group_size, dim=1)
    if zero is not None:
        w = w + zero.double().repeat_interleave(group_size, dim=1)
    return (x.double() @ w.T).to(x.dtype)


def w4a16_matmul(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    *,
    row_invariant: bool = False,
    config: "Config | None" = None,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply rows with 4-bit weights.

    Args:
        x: fp16 or bf16 [T, C]; any T >= 1 (tuned for 1..128).
        packed: uint8 [R, C/2], from `pack_w4a16` with the same group size.
        scale: x's dtype [R, C/G].
        zero: x's dtype [R, C/G], or None for weights symmetric about zero.
        group_size: G, 32, 64 or 128; divides C.
        row_invariant: same bits for a row however many rows there are.
        config: tile shapes, instead of `choose(...)`'s.
        out: x's dtype [T, R], written instead of a new tensor.

    Returns:
        y: x's dtype [T, R].

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("x", x, HALF, (None, None))
    T, C = x.shape
    if group_size not in GROUP_SIZES or C % group_size or not C:
        raise ValueError(
            f"group_size must be one of {GROUP_SIZES} and divide C = {C}, got {group_size}"
        )
    check_tensor("packed", packed, torch.uint8, (None, C // 2), like=x)
    R = packed.shape[0]
    check_range("R", R, 1, 2**30)
    check_range("T", T, 1, 2**20)
    check_tensor("scale", scale, x.dtype, (R, C // group_size), like=x)
    if zero is not None:
        check_tensor("zero", zero, x.dtype, (R, C // group_size), like=x)
    if out is None:
        out = torch.empty(T, R, dtype=x.dtype, device=x.device)
    check_tensor("out", out, x.dtype, (T, R), like=x)
    config = config or choose(T, R, C, row_invariant)
    for first in range(0, T, _MAX_ROWS):
        rows = slice(first, first + _MAX_ROWS)
        _launch(x[rows], packed, scale, zero, group_size, config, out[rows])
    return out


def _launch(x, packed, scale, zero, group_size: int, config: "Config", out: Tensor) -> None:
    (T, C), R = x.shape, packed.shape[0]
    n_splits = min(config.splits, C // group_size)
    part = (
        out if n_splits == 1 else torch.empty(n_splits, T, R, dtype=torch.float32, device=x.device)
    )
    grid = (triton.cdiv(R, config.block_r), triton.cdiv(T, config.block_t), n_splits)
    _w4a16_matmul_kernel[grid](
        x, packed, scale, scale if zero is None else zero, part, T, R, C,
        G=group_size, HAS_ZERO=zero is not None, SPLITS=n_splits,
        BLOCK_R=config.block_r, BLOCK_T=config.block_t,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if n_splits > 1:
        add_splits(part, out)


def add_splits(part: Tensor, out: Tensor) -> Tensor:
    """Add fp32 [splits, T, R] in order into `out` [T, R]."""
    n = out.numel()
    BLOCK = 1024
    _add_splits_kernel[(triton.cdiv(n, BLOCK),)](part, out, n, SPLITS=part.shape[0], BLOCK=BLOCK)
    return out


@dataclass(frozen=True, slots=True)
class Config:
    """Tile of output rows x rows of x, how often C is split, and what the compiler may use."""

    block_r: int
    block_t: int
    splits: int
    num_warps: int
    num_stages: int


# not swept on a GPU yet: chosen for occupancy from the compiled form (docs/kernels.md)
CONFIGS = tuple(
    Config(block_r, block_t, splits, num_warps, num_stages)
    for block_r in (64, 128)
    for block_t in (16, 32, 64)
    for splits in (1, 2, 4, 8)
    for num_warps in (4,)
    for num_stages in (3, 4)
)
# programs that fill the largest device listed (148 SMs) about twice
_WANTED_PROGRAMS = 264


def choose(T: int, R: int, C: int, row_invariant: bool = False) -> Config:
    """Tile shapes for T rows; `row_invariant`: from R and C alone."""
    block_t = 16 if row_invariant else min(MAX_BLOCK_T, max(16, triton.next_power_of_2(T)))
    # with more rows than a tile the tiles along T are programs too, and splitting C buys nothing
    programs = triton.cdiv(R, 64) * (1 if row_invariant else triton.cdiv(T, block_t))
    splits = 1
    while splits < 8 and programs * splits < _WANTED_PROGRAMS and C // (2 * splits) >= 1024:
        splits *= 2
    return Config(block_r=64, block_t=block_t, splits=splits, num_warps=4, num_stages=4)


@triton.jit
def _widen(nibbles, like):
    """Integers 0..15 as numbers minus 8, in the dtype of `like`, exactly."""
    if like.dtype == tl.float16:
        return (nibbles.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    else:
        return (nibbles.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0


@triton.jit
def _w4a16_matmul_kernel(
    x_ptr,  # [T, C]
    packed_ptr,  # [R, C/2] uint8
    scale_ptr,  # [R, C/G]
    zero_ptr,  # [R, C/G]; not read without HAS_ZERO
    part_ptr,  # [T, R], or fp32 [SPLITS, T, R]
    T,
    R,
    C,
    G: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    HALF_G: tl.constexpr = G // 2
    split = tl.program_id(2)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.arange(0, HALF_G)
    in_r, in_t = r < R, t < T
    n_groups = C // G
    per_split = tl.cdiv(n_groups, SPLITS)
    first = split * per_split
    last = tl.minimum(first + per_split, n_groups)

    # int64: R * C passes 2**31 for the largest layers
    row = r.to(tl.int64)[:, None]
    packed_row = packed_ptr + row * (C // 2) + h[None, :]  # [BLOCK_R, G/2]
    x_column = x_ptr + t.to(tl.int64)[None, :] * C + h[:, None]  # [G/2, BLOCK_T]
    scale_row = r.to(tl.int64) * n_groups
    sums = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.float32)
    for g in tl.range(first, last):
        bytes_ = tl.load(
            packed_row + g * HALF_G, mask=in_r[:, None], other=0, eviction_policy="evict_first"
        )
        x_low = tl.load(x_column + g * G, mask=in_t[None, :], other=0.0)
        x_high = tl.load(x_column + g * G + HALF_G, mask=in_t[None, :], other=0.0)
        # one value a row, spread afterwards: as a [BLOCK_R, 1] load it cost 97 registers on sm_80
        scale = tl.load(scale_ptr + scale_row + g, mask=in_r, other=0.0)[:, None]
        low = _widen(bytes_ & 0xF, x_low) * scale
        high = _widen(bytes_ >> 4, x_high) * scale
        if HAS_ZERO:
            zero = tl.load(zero_ptr + scale_row + g, mask=in_r, other=0.0)[:, None]
            low += zero
            high += zero
        sums = tl.dot(low, x_low, sums)
        sums = tl.dot(high, x_high, sums)
    where = (split.to(tl.int64) * T + t[None, :]) * R + r[:, None]
    tl.store(
        part_ptr + where, sums.to(part_ptr.dtype.element_ty), mask=in_r[:, None] & in_t[None, :]
    )


@triton.jit
def _add_splits_kernel(
    part_ptr,  # [SPLITS, n] fp32
    out_ptr,  # [n]
    n,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(part_ptr + split * n + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < n)
