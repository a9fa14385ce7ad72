"""8-, 3- and 2-bit weights times 16-bit rows (4 bits have a file of their own: `w4a16_matmul`).

    y[t, r] = sum over c of x[t, c] * w[r, c],   w[r, c] = (q - 2**(bits-1)) * scale + zero

with one scale, and perhaps one zero, for each group of G columns of a row.  Fewer bits are fewer
bytes to read, but no less arithmetic: what it costs to turn codes into numbers decides how many
rows are free.  A row is packed in blocks of 128 columns (256 at 3 bits), the last one filled up:

    8 bits  a block is 128 bytes, one a column
    2 bits  "block quarters", 32 bytes: byte j holds columns j, j+32, j+64, j+96, low bits first
    3 bits  two quarter blocks with the low two bits, then 32 bytes with the high one in "block
            eighths": bit 2 * ((e + 1) % 4) + e // 4 of byte j belongs to column j + 32*e

so equal bits of neighbouring bytes are neighbouring columns, and one contiguous product.  A code at
bit s stays there: ORed into the mantissa of 1024 (fp16) or 128 (bf16) it adds 2**s * q, and one
exact multiply-add leaves q - middle.  (High bits lie two above their low ones where they can.)

    reference   wna16_matmul_ref   plain torch, any device; the definition
    kernel      wna16_matmul       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        R*C*bits/8 bytes and 2 or 4 a group, T*C of x a tile of weight rows (cached); with
                S splits 8*S*T*R bytes more and a second launch
    error       weights are rounded to x's dtype after the scale and after the zero, y once: tested
                as an RMS ratio below 6e-4 (fp16) and 4e-3 (bf16) against a float64 product
    rows        with `row_invariant` tiles and splits follow from R, C and bits, not from T
    source      the magic number: Kim et al. 2022, arXiv 2211.10017
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor
from hspec_kernels.w4a16_matmul import Config, add_splits
from hspec_kernels.w8a8_matmul import SPLITS, part_like, splits_for

BLOCK_C = {2: 128, 3: 256, 8: 128}  # by bits: columns of a packed block
LOW_BITS, HIGH_BITS = (0, 2, 4, 6), (2, 4, 6, 0, 3, 5, 7, 1)  # where a byte holds its parts
GROUP_SIZES = (32, 64, 128)
# the number whose mantissa counts in ones, as a bit pattern, and that mantissa's length
MAGIC = {torch.float16: (0x6400, 10), torch.bfloat16: (0x4300, 7)}
_MAX_ROWS = 1024  # of one launch: bounds the buffer of the splits


def pack_wna16(q: Tensor, bits: int) -> Tensor:
    """uint8 [R, C], values 0..2**bits-1 -> uint8 [R, bytes] as above; any C >= 1."""
    q = torch.nn.functional.pad(q, (0, -q.shape[1] % BLOCK_C[bits]), value=2 ** (bits - 1))
    planes = {8: [(q, [0])], 2: [(q, LOW_BITS)], 3: [(q & 3, LOW_BITS), (q >> 2, HIGH_BITS)]}[bits]
    for i, (codes, places) in enumerate(planes):
        shift = torch.tensor(places, dtype=torch.uint8, device=q.device)[:, None]
        plane = (codes.reshape(len(q), -1, len(places), 32) << shift).sum(2, dtype=torch.uint8)
        planes[i] = plane.view(len(q), -1, BLOCK_C[bits] // len(places))
    return torch.cat(planes, dim=2).flatten(1)


def unpack_wna16(packed: Tensor, bits: int, C: int) -> Tensor:
    """Inverse of `pack_wna16`: [R, C]."""
    if bits == 8:
        return packed[:, :C]
    c = torch.arange(C, device=packed.device)
    part = c % BLOCK_C[bits] // 32
    byte = c // BLOCK_C[bits] * (BLOCK_C[bits] * bits // 8) + c % 32
    low = (packed[:, byte + part // 4 * 32] >> (2 * (part % 4))) & 3
    place = 2 * ((part + 1) % 4) + part // 4
    return low if bits == 2 else low | (((packed[:, byte + 64] >> place) & 1) << 2)


def wna16_matmul_ref(x, packed, scale, zero, bits, group_size, *, row_invariant=False) -> Tensor:
    """Same contract as `wna16_matmul`, in float64, written to be read rather than to be fast."""
    w = unpack_wna16(packed, bits, x.shape[1]).double() - 2 ** (bits - 1)  # [R, C]
    w = w * scale.double().repeat_interleave(group_size, dim=1)
    if zero is not None:
        w = w + zero.double().repeat_interleave(group_size, dim=1)
    return (x.double() @ w.T).to(x.dtype)


def wna16_matmul(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    *,
    row_invariant: bool = False,
    config: Config | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply rows with 8-, 3- or 2-bit weights.

    Args:
        x: fp16 or bf16 [T, C]; T of 1..2**24 (tuned for 1..64).
        packed: uint8 [R, bytes], from `pack_wna16`.
        scale: x's dtype [R, C/G].
        zero: x's dtype [R, C/G], or None for weights symmetric about zero.
        bits: 8, 3 or 2.
        group_size: G, one of 32, 64 and 128 that divides C, or C.
        row_invariant: same bits for a row however many rows there are.
        config: tile shapes, instead of `choose(...)`'s.
        out: x's dtype [T, R], written instead of a new tensor.

    Returns:
        y: x's dtype [T, R].

    Raises:
        ValueError: a dtype, shape, device, stride or number that does not fit the above.
    """
    check_tensor("x", x, HALF, (None, None))
    T, C = x.shape
    check_range("T", T, 1, 2**24)
    check_range("C", C, 1, 2**24)
    if bits not in BLOCK_C:
        raise ValueError(f"bits must be one of {tuple(BLOCK_C)}, got {bits}")
    if group_size != C and (group_size not in GROUP_SIZES or C % group_size):
        raise ValueError(
            f"group_size must be {C} or of {GROUP_SIZES} and divide it, got {group_size}"
        )
    row_bytes = triton.cdiv(C, BLOCK_C[bits]) * BLOCK_C[bits] * bits // 8
    check_tensor("packed", packed, torch.uint8, (None, row_bytes), like=x)
    R, n_groups = len(packed), C // group_size
    check_range("R", R, 1, 2**21)
    check_tensor("scale", scale, x.dtype, (R, n_groups), like=x)
    if zero is not None:
        check_tensor("zero", zero, x.dtype, (R, n_groups), like=x)
    out = torch.empty(T, R, dtype=x.dtype, device=x.device) if out is None else out
    check_tensor("out", out, x.dtype, (T, R), like=x)
    config = config or choose(T, R, C, bits, row_invariant)
    for rows, y in zip(x.split(_MAX_ROWS), out.split(_MAX_ROWS), strict=True):
        part = part_like(y, config.splits, torch.float32)
        grid = (triton.cdiv(len(y), config.block_t), triton.cdiv(R, config.block_r), config.splits)
        _wna16_matmul_kernel[grid](
            rows, packed, scale, scale if zero is None else zero, part, len(y), R, C, n_groups,
            **constants(x.dtype, C, bits, group_size), HAS_ZERO=zero is not None,
            SPLITS=config.splits, BLOCK_R=config.block_r, BLOCK_T=config.block_t,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        if config.splits > 1:
            add_splits(part, y)
    return out


def constants(dtype: torch.dtype, C: int, bits: int, group_size: int) -> dict:
    """What the kernel is specialized for, other than its tiles."""
    block, width = BLOCK_C[bits], 32 if bits < 8 or group_size == 32 else 64
    n_groups, (magic, mantissa) = 0 if group_size == C else block // group_size, MAGIC[dtype]
    return {"BITS": bits, "WIDTH": width, "PARTS": block // width, "GROUPS": n_groups,
            "WHOLE": C % block == 0, "MAGIC": magic, "MANTISSA": mantissa}  # fmt: skip


# (block_r, block_t, num_stages) that leave shared memory for two programs a processor from sm_80
# on; not swept on a GPU yet
TILES = ((64, 16, 4), (64, 32, 3), (64, 64, 3), (64, 64, 2), (128, 16, 4), (128, 32, 3))
CONFIGS = tuple(Config(r, t, splits, 4, n) for r, t, n in TILES for splits in SPLITS)


def choose(T: int, R: int, C: int, bits: int, row_invariant: bool = False) -> Config:
    """Tile shapes for T rows; `row_invariant`: from R, C and bits alone."""
    block_t = 32 if row_invariant else min(max(16, triton.next_power_of_2(T)), 64)
    # taller tiles do less beside the codes, where registers allow
    block_r = 128 if bits == 2 and block_t < 64 and R >= 2**14 else 64
    programs = triton.cdiv(R, block_r) * (1 if row_invariant else triton.cdiv(T, block_t))
    num_stages = {16: 4, 32: 3, 64: 2 if bits == 3 else 3}[block_t]
    return Config(block_r, block_t, splits_for(programs, C), 4, num_stages)


@triton.jit
def _centred(low, high, PART: tl.constexpr, BITS: tl.constexpr, MAGIC: tl.constexpr,
             MANTISSA: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """Codes of one part of 2- or 3-bit planes as numbers minus their middle, exactly."""
    # down only where a code would stick out of the mantissa
    DOWN: tl.constexpr = max(2 * (PART % 4) + BITS - MANTISSA, 0)
    AT: tl.constexpr = 2 * (PART % 4) - DOWN
    code = (low.to(tl.int16) >> DOWN) & (3 << AT)
    if BITS == 3:
        UP: tl.constexpr = AT + 2 - (2 * ((PART + 1) % 4) + PART // 4)
        code |= (high.to(tl.int16) << max(UP, 0) >> max(-UP, 0)) & (4 << AT)
    number = (code | MAGIC).to(dtype, bitcast=True)  # 2**MANTISSA + 2**AT * q
    return number * 2.0**-AT - (2.0 ** (MANTISSA - AT) + 2 ** (BITS - 1))


@triton.jit
def _wna16_matmul_kernel(
    x_ptr,  # [T, C]
    packed_ptr,  # [R, n_blocks * BYTES] uint8
    scale_ptr,  # [R, n_groups]
    zero_ptr,  # [R, n_groups]; not read without HAS_ZERO
    part_ptr,  # [T, R], or fp32 [SPLITS, T, R]
    T,
    R,
    C,
    n_groups,
    BITS: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of one product
    PARTS: tl.constexpr,  # products of a block
    GROUPS: tl.constexpr,  # groups of a block; 0: one for the row
    WHOLE: tl.constexpr,  # the last block is full
    MAGIC: tl.constexpr,
    MANTISSA: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    BLOCK: tl.constexpr = WIDTH * PARTS
    BYTES: tl.constexpr = BLOCK * BITS // 8
    PER_GROUP: tl.constexpr = PARTS // max(GROUPS, 1)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    k = tl.arange(0, WIDTH)
    in_t, in_r = t < T, r < R
    n_blocks = tl.cdiv(C, BLOCK)
    per_split = tl.cdiv(n_blocks, SPLITS)
    first = split * per_split
    packed_row = packed_ptr + r.to(tl.int64)[:, None] * n_blocks * BYTES + k[None, :]  # > 2**31
    x_column = x_ptr + t.to(tl.int64)[None, :] * C + k[:, None]  # [WIDTH, BLOCK_T]
    row_group = r.to(tl.int64) * n_groups
    sums = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.float32)
    for block in tl.range(first, tl.minimum(first + per_split, n_blocks)):
        for part in tl.static_range(PARTS):
            c = block * BLOCK + part * WIDTH
            in_c = tl.full((WIDTH,), 1, tl.int1) if WHOLE else c + k < C
            x = tl.load(x_column + c, mask=in_t[None, :] & in_c[:, None], other=0.0)
            if part % PER_GROUP == 0:
                # what fills up the last block takes the last group's, and meets an x of 0
                group = row_group + tl.minimum(block * GROUPS + part // PER_GROUP, n_groups - 1)
                scale = tl.load(scale_ptr + group, mask=in_r, other=0.0)[:, None]
                if HAS_ZERO:
                    zero = tl.load(zero_ptr + group, mask=in_r, other=0.0)[:, None]
            # a plane of two bits serves four parts, one of one bit all eight
            at = packed_row + block * BYTES  # [BLOCK_R, WIDTH]
            if BITS == 8 or part % 4 == 0:
                low = tl.load(at + part * (WIDTH if BITS == 8 else 8), mask=in_r[:, None], other=0)
            if BITS == 3 and part == 0:
                high = tl.load(at + 64, mask=in_r[:, None], other=0)
            if BITS == 8:
                # by way of fp32's 2**23: bf16 has no room for 128 + q
                shifted = (low.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
                w = (shifted - (2.0**23 + 128)).to(dtype) * scale
            else:
                plane = high if BITS == 3 else low
                w = _centred(low, plane, part, BITS, MAGIC, MANTISSA, dtype) * scale
            if HAS_ZERO:
                w += zero
            sums = tl.dot(w, x, sums)
    y = part_ptr + (split.to(tl.int64) * T + t[None, :]) * R + r[:, None]
    tl.store(y, sums.to(part_ptr.dtype.element_ty), mask=in_r[:, None] & in_t[None, :])
