"""4-bit weights times 16-bit rows: the product every verification of a 4-bit target is made of.

    y[t, r] = sum over c of x[t, c] * w[r, c],   w[r, c] = (q[r, c] - 8) * scale[r, c // G] + zero

Plain decoding multiplies one row and is bound by reading weights; verifying a tree multiplies
tens of rows with the same weights and should cost the same.  It does as long as turning nibbles
into numbers stays hidden, and that is what the form is about: weights are the *left* operand of
the tensor cores (y is computed transposed), so that warps share the weight tile by output rows and
each weight is expanded once, however many rows of x there are.

Packing, "block quarters": in each block of 128 inputs 16-bit word j holds inputs j, j + 32, j + 64
and j + 96, the first in its lowest nibble.  So each nibble plane is one contiguous dot, and of two
words in a register a shift, a mask and a magic number make two neighbouring weights at once: a
nibble becomes a number by being written into the mantissa of 1024 (fp16) or 128 (bf16).  At one row
instructions, not bytes, are what a program runs out of, and this form needs the fewest.

    reference   w4a16_matmul_ref    plain torch, any device; the definition
    kernel      w4a16_matmul        Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        R*C/2 bytes of weights + 2 or 4 bytes per group; bandwidth-bound up to a few tens of
                rows; one launch: the last split of C to arrive adds them all, in order; C is padded
                to a multiple of 128
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
from hspec_kernels._splits import add_when_last, arrival_counters

MIDDLE = 8
BLOCK_C = 128  # inputs of a block of the packing, and of a step of the kernel
GROUP_SIZES = (32, 64, 128)
MAX_BLOCK_T = 64
_MAX_ROWS = 1024  # of one launch: bounds the buffer of the splits


def pack_w4a16(q: Tensor) -> Tensor:
    """uint8 [R, C], values 0..15 -> uint8 [R, 64 * ceil(C / 128)] in block quarters."""
    blocks = torch.nn.functional.pad(q, (0, -q.shape[1] % BLOCK_C), value=MIDDLE)
    blocks = blocks.view(q.shape[0], -1, 4, BLOCK_C // 4)
    bytes_ = [blocks[:, :, 0] | (blocks[:, :, 1] << 4), blocks[:, :, 2] | (blocks[:, :, 3] << 4)]
    return torch.stack(bytes_, dim=-1).reshape(q.shape[0], -1)


def unpack_w4a16(packed: Tensor, C: int) -> Tensor:
    """Inverse of `pack_w4a16`, uint8 [R, C]."""
    first, second = packed.view(packed.shape[0], -1, BLOCK_C // 4, 2).unbind(-1)
    planes = torch.stack([first & 0xF, first >> 4, second & 0xF, second >> 4], dim=2)
    return planes.reshape(packed.shape[0], -1)[:, :C]


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
    q = unpack_w4a16(packed, x.shape[1]).double() - MIDDLE  # [R, C]
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
        packed: uint8 [R, 64 * ceil(C / 128)], from `pack_w4a16`.
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
    check_tensor("packed", packed, torch.uint8, (None, triton.cdiv(C, BLOCK_C) * 64), like=x)
    R = packed.shape[0]
    check_range("R", R, 1, 2**24)
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
    n_splits = min(config.splits, triton.cdiv(C, BLOCK_C))
    part, arrived = out, packed
    grid = (triton.cdiv(R, config.block_r), triton.cdiv(T, config.block_t), n_splits)
    if n_splits > 1:
        part = torch.empty(n_splits, T, R, dtype=torch.float32, device=x.device)
        arrived = arrival_counters(x.device, grid[0] * grid[1])
    _w4a16_matmul_kernel[grid](
        x, packed.view(torch.int16), scale, scale if zero is None else zero, part, arrived, out,
        T, R, C,
        G=group_size, HAS_ZERO=zero is not None, EVEN=C % BLOCK_C == 0, ASM=x.is_cuda,
        SPLITS=n_splits, BLOCK_R=config.block_r, BLOCK_T=config.block_t,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """Tile of output rows x rows of x, how often C is split, and what the compiler may use."""

    block_r: int
    block_t: int
    splits: int
    num_warps: int
    num_stages: int


# not swept on a GPU yet: chosen by counting instructions a weight and bytes under way in the
# compiled form (docs/kernels.md): 128 rows halve what a step costs beside its weights
CONFIGS = tuple(
    Config(block_r, block_t, splits, num_warps, num_stages)
    for block_r, block_t, num_warps in (
        (128, 16, 4),
        (128, 32, 4),
        (64, 16, 4),
        (64, 32, 4),
        (64, 64, 4),
    )
    for splits in (1, 2, 4, 8)
    for num_stages in (3, 4)
)
# programs that fill the largest device listed (148 SMs) about twice
_WANTED_PROGRAMS = 264


def choose(T: int, R: int, C: int, row_invariant: bool = False) -> Config:
    """Tile shapes for T rows; `row_invariant`: from R and C alone."""
    block_t = 16 if row_invariant else min(MAX_BLOCK_T, max(16, triton.next_power_of_2(T)))
    block_r = 128 if block_t <= 32 else 64
    # with more rows than a tile the tiles along T are programs too, and splitting C buys nothing
    programs = triton.cdiv(R, block_r) * (1 if row_invariant else triton.cdiv(T, block_t))
    # every split's sums are written and read again, 8 bytes for block_t rows of each output
    most = min(8, max(1, C // max(1024, 64 * block_t)))
    splits = 1
    while 2 * splits <= most and programs * splits < _WANTED_PROGRAMS:
        splits *= 2
    return Config(block_r, block_t, splits, num_warps=4, num_stages=3)


# two 16-bit words in a register to four registers of two numbers each, one a plane
_WIDEN = """{
    .reg .b32 a, b, c;
    shr.b32 a, $4, 4;
    shr.b32 b, $4, 8;
    shr.b32 c, $4, 12;
    lop3.b32 $0, $4, 0x000F000F, MAGIC, 0xEA;
    lop3.b32 $1, a, 0x000F000F, MAGIC, 0xEA;
    lop3.b32 $2, b, 0x000F000F, MAGIC, 0xEA;
    lop3.b32 $3, c, 0x000F000F, MAGIC, 0xEA;
}"""
WIDEN_FP16 = tl.constexpr(_WIDEN.replace("MAGIC", "0x64006400"))
WIDEN_BF16 = tl.constexpr(_WIDEN.replace("MAGIC", "0x43004300"))


@triton.jit
def _widen(words, dtype: tl.constexpr, ASM: tl.constexpr):
    """The four nibbles of int16 as numbers minus 8, in `dtype`, exactly."""
    # the interpreter knows no assembly, and compiled without it a number costs twice as much
    if dtype == tl.float16:
        if ASM:
            n0, n1, n2, n3 = tl.inline_asm_elementwise(
                WIDEN_FP16, "=r,=r,=r,=r,r", [words], (tl.float16,) * 4, True, 2
            )
        else:
            n0 = ((words & 0xF) | 0x6400).to(tl.float16, bitcast=True)
            n1 = (((words >> 4) & 0xF) | 0x6400).to(tl.float16, bitcast=True)
            n2 = (((words >> 8) & 0xF) | 0x6400).to(tl.float16, bitcast=True)
            n3 = (((words >> 12) & 0xF) | 0x6400).to(tl.float16, bitcast=True)
        return n0 - 1032.0, n1 - 1032.0, n2 - 1032.0, n3 - 1032.0
    else:
        n0, n1, n2, n3 = tl.inline_asm_elementwise(
            WIDEN_BF16, "=r,=r,=r,=r,r", [words], (tl.bfloat16,) * 4, True, 2
        )
        return n0 - 136.0, n1 - 136.0, n2 - 136.0, n3 - 136.0


@triton.jit(do_not_specialize_on_alignment=["T"])
def _w4a16_matmul_kernel(
    x_ptr,  # [T, C]
    packed_ptr,  # [R, 32 * ceil(C / 128)] int16
    scale_ptr,  # [R, C/G]
    zero_ptr,  # [R, C/G]; not read without HAS_ZERO
    part_ptr,  # fp32 [SPLITS, T, R]; not used without splits
    arrived_ptr,  # [tiles] int32, zeros; not used without splits
    out_ptr,  # [T, R]
    T,
    R,
    C,
    G: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    EVEN: tl.constexpr,
    ASM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    split = tl.program_id(2)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tl.arange(0, 32)
    in_r, in_t = r < R, t < T
    n_blocks, n_groups = tl.cdiv(C, 128), C // G
    per_split = tl.cdiv(n_blocks, SPLITS)
    first = split * per_split
    last = tl.minimum(first + per_split, n_blocks)

    # int64: R * C passes 2**31 for the largest layers
    row = r.to(tl.int64)
    word_row = packed_ptr + row[:, None] * (32 * n_blocks) + j[None, :]  # [BLOCK_R, 32]
    x_column = x_ptr + t.to(tl.int64)[None, :] * C + j[:, None]  # [32, BLOCK_T]
    sums = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.float32)
    for b in tl.range(first, last):
        words = tl.load(
            word_row + b * 32, mask=in_r[:, None], other=0, eviction_policy="evict_first"
        )
        planes = _widen(words, x_column.dtype.element_ty, ASM)
        for p in tl.static_range(4):
            known = in_t[None, :]
            if not EVEN:
                known &= (b * 128 + p * 32 + j < C)[:, None]
            x = tl.load(x_column + b * 128 + p * 32, mask=known, other=0.0)  # [32, BLOCK_T]
            if p * 32 % G == 0:
                # one value a row, spread afterwards: as a [BLOCK_R, 1] load it cost 97 registers
                group = (b * 128 + p * 32) // G
                in_group = in_r if EVEN else in_r & (r * 0 + group < n_groups)
                cell = row * n_groups + group
                scale = tl.load(scale_ptr + cell, mask=in_group, other=0.0)[:, None]
                if HAS_ZERO:
                    zero = tl.load(zero_ptr + cell, mask=in_group, other=0.0)[:, None]
            w = planes[p] * scale
            if HAS_ZERO:
                w += zero
            sums = tl.dot(w, x, sums)
    inside = in_r[:, None] & in_t[None, :]
    # int32 within a tile, int64 to get there
    tile = tl.program_id(1).to(tl.int64) * BLOCK_T * R
    where = tl.arange(0, BLOCK_T)[None, :] * R + r[:, None]
    if SPLITS > 1:
        counter_ptr = arrived_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        size = tl.cast(T, tl.int64) * R
        add_when_last(
            sums, part_ptr + tile, out_ptr + tile, counter_ptr, where, inside, split, size, SPLITS
        )
    else:
        tl.store(out_ptr + tile + where, sums.to(out_ptr.dtype.element_ty), mask=inside)
