"""4-bit weights times int8 rows, all in integers: the two-level weights of QoQ.

    y[t, r] = (sum over c of xq[t, c] * w8[r, c]) * x_scale[t] * w_scale[r]
    w8[r, c] = (q[r, c] - zero[r, c // G]) * iscale[r, c // G],   q in 0..15

W4A16 saves reading but multiplies in 16 bits; W8A8 multiplies in 8 but reads twice as much.  Here
weights are 4-bit codes in memory and stand for int8 numbers, because scale and zero of a group are
integers too; one floating-point scale a row follows at the end.

Making those int8 numbers costs more instructions than everything else in the loop, so it is not
done: by the distributive law the sum over a group is iscale * (sum xq * q - zero * sum xq).  Codes
go to the tensor cores as they lie in memory, and so does the zero, as an operand with one value a
row; what comes out is scaled once a group.  Integers make that exactly the same.

Packing, "block halves": in each block of 128 columns, the last filled up, byte j holds column j in
its low nibble and column j + 64 in its high one.  The high nibble is not moved either: with its
top bit flipped the byte is 16 * (q - 8) in int8, and its sum is divided by 16, exactly.

    reference   w4a8_matmul_ref   plain torch, any device; the definition
    kernel      w4a8_matmul       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        R*C/2 bytes of weights and 2 a group, T*C of x a tile of weight rows (cached), twice
                the multiplications of W8A8; with S splits 8*S*T*R bytes more and a second launch
    error       none: the sum is exact, then both round it to fp32, scale twice, round to 16 bits
    rows        a row's bits do not depend on the other rows: integer sums are exact in any tiling
    source      QServe: Lin et al. 2024, arXiv 2405.04532 (there int8 weights are made)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.w8a8_matmul import (
    MAX_C,
    MAX_R,
    MAX_T,
    SPLITS,
    add_scaled_parts,
    part_like,
    splits_for,
)

BLOCK_C = 128  # columns of a packed block


def pack_w4a8(q: Tensor) -> Tensor:
    """uint8 [R, C], values 0..15 -> uint8 [R, 64 * ceil(C / 128)] in block halves; any C >= 1."""
    blocks = torch.nn.functional.pad(q, (0, -q.shape[1] % BLOCK_C)).view(len(q), -1, 2, 64)
    return (blocks[:, :, 0] | (blocks[:, :, 1] << 4)).flatten(1)


def unpack_w4a8(packed: Tensor, C: int) -> Tensor:
    """Inverse of `pack_w4a8`: uint8 [R, C]."""
    blocks = packed.view(len(packed), -1, 64)
    return torch.stack([blocks & 0xF, blocks >> 4], dim=2).flatten(1)[:, :C]


def w4a8_matmul_ref(
    xq: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    iscale: Tensor,
    zero: Tensor,
    w_scale: Tensor,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Same contract as `w4a8_matmul`, written to be read rather than to be fast."""
    q = unpack_w4a8(packed, xq.shape[1]).double()  # [R, C]
    iscale, zero = (n.double().repeat_interleave(group_size, dim=1) for n in (iscale, zero))
    total = xq.double() @ ((q - zero) * iscale).T  # [T, R], exact: below 2**31
    return (total.float() * x_scale[:, None] * w_scale).to(dtype)


def w4a8_matmul(
    xq: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    iscale: Tensor,
    zero: Tensor,
    w_scale: Tensor,
    group_size: int,
    dtype: torch.dtype,
    *,
    config: Config | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply int8 rows with 4-bit weights of integer scales and zeros.

    Args:
        xq: int8 [T, C], rows from `quantize_rows`; T of 1..2**24 (tuned for 1..64), C up to 131071.
        x_scale: fp32 [T].
        packed: uint8 [R, bytes], from `pack_w4a8`.
        iscale: uint8 [R, C/G], such that (q - zero) * iscale is an int8: sums are int32.
        zero: uint8 [R, C/G], 0..127.
        w_scale: fp32 [R].
        group_size: G, a multiple of 128 that divides C, or C ("per channel").
        dtype: fp16 or bf16, of the result.
        config: tile shapes, instead of `choose(...)`'s.
        out: dtype [T, R], written instead of a new tensor.

    Returns:
        y: dtype [T, R].

    Raises:
        ValueError: a dtype, shape, device, stride or group that does not fit the above; values
            are not looked at.
    """
    check_tensor("xq", xq, torch.int8, (None, None))
    T, C = xq.shape
    check_range("T", T, 1, MAX_T)
    check_range("C", C, 1, MAX_C)
    if group_size != C and (group_size < 1 or group_size % BLOCK_C or C % group_size):
        raise ValueError(f"group_size must be {C}, or a multiple of 128 in it, got {group_size}")
    n_blocks, n_groups = triton.cdiv(C, BLOCK_C), C // group_size
    check_tensor("packed", packed, torch.uint8, (None, 64 * n_blocks), like=xq)
    R = packed.shape[0]
    check_range("R", R, 1, MAX_R)
    check_tensor("iscale", iscale, torch.uint8, (R, n_groups), like=xq)
    check_tensor("zero", zero, torch.uint8, (R, n_groups), like=xq)
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
    _w4a8_matmul_kernel[grid](
        xq, x_scale, packed, iscale, zero, w_scale, part, T, R, C, n_blocks // n_groups,
        WHOLE=C % BLOCK_C == 0, SPLITS=config.splits, BLOCK_R=config.block_r,
        BLOCK_T=config.block_t, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if config.splits > 1:
        add_scaled_parts(part, x_scale, w_scale, out)
    return out


# taller and wider tiles cost more registers than sm_80 has; not swept on a GPU yet
CONFIGS = tuple(Config(64, block_t, splits, 4, 4) for block_t in (16, 32, 64) for splits in SPLITS)


def choose(T: int, R: int, C: int) -> Config:
    """The smallest tile that holds T rows, and splits until the device is busy.

    T may decide here, other than in a floating-point sum: no choice changes a bit of the result.
    """
    block_t = min(max(16, triton.next_power_of_2(T)), 64)
    splits = splits_for(triton.cdiv(T, block_t) * triton.cdiv(R, 64), C)
    return next(c for c in CONFIGS if (c.block_t, c.splits) == (block_t, splits))


@triton.jit(do_not_specialize=["T"])
def _w4a8_matmul_kernel(
    xq_ptr,  # [T, C] int8
    x_scale_ptr,  # [T] fp32
    packed_ptr,  # [R, 64 * n_blocks] uint8
    iscale_ptr,  # [R, n_groups] uint8
    zero_ptr,  # [R, n_groups] uint8
    w_scale_ptr,  # [R] fp32
    part_ptr,  # [T, R], or int32 [SPLITS, T, R]
    T,
    R,
    C,
    group_blocks,
    WHOLE: tl.constexpr,  # the last block is full
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    j = tl.arange(0, 64)
    in_t, in_r = t < T, r < R
    n_blocks = tl.cdiv(C, 128)
    per_split = tl.cdiv(n_blocks, SPLITS)
    first = split * per_split
    # int64: R * C passes 2**31 for the largest layers, T * C for long prompts
    packed_row = packed_ptr + r.to(tl.int64)[:, None] * n_blocks * 64 + j[None, :]
    x_column = xq_ptr + t.to(tl.int64)[None, :] * C + j[:, None]  # [64, BLOCK_T]
    row_group = r.to(tl.int64) * (n_blocks // group_blocks)
    total = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.int32)
    for block in tl.range(first, tl.minimum(first + per_split, n_blocks)):
        in_low = tl.full((64,), 1, tl.int1) if WHOLE else block * 128 + j < C
        in_high = tl.full((64,), 1, tl.int1) if WHOLE else block * 128 + 64 + j < C
        x = x_column + block * 128
        x_low = tl.load(x, mask=in_t[None, :] & in_low[:, None], other=0)
        x_high = tl.load(x + 64, mask=in_t[None, :] & in_high[:, None], other=0)
        codes = tl.load(packed_row + block * 64, mask=in_r[:, None], other=0)  # [BLOCK_R, 64]
        group = row_group + block // group_blocks
        iscale = tl.load(iscale_ptr + group, mask=in_r, other=0).to(tl.int32)
        zero = tl.load(zero_ptr + group, mask=in_r, other=0).to(tl.int32)
        # the high codes come as 16 * (q - 8), so their zero is smaller by 8
        low = (codes & 0x0F).to(tl.int8, bitcast=True)
        high = ((codes & 0xF0) ^ 0x80).to(tl.int8, bitcast=True)
        zero_low = tl.broadcast_to((0 - zero).to(tl.int8)[:, None], (BLOCK_R, 64))
        zero_high = tl.broadcast_to((8 - zero).to(tl.int8)[:, None], (BLOCK_R, 64))
        sums = tl.dot(high, x_high, out_dtype=tl.int32) >> 4
        sums = tl.dot(low, x_low, sums, out_dtype=tl.int32)
        sums = tl.dot(zero_low, x_low, sums, out_dtype=tl.int32)
        sums = tl.dot(zero_high, x_high, sums, out_dtype=tl.int32)
        total += sums * iscale[:, None]

    inside = in_r[:, None] & in_t[None, :]
    y = part_ptr + (split.to(tl.int64) * T + t[None, :]) * R + r[:, None]
    if SPLITS == 1:
        x_scale = tl.load(x_scale_ptr + t, mask=in_t, other=0.0)
        w_scale = tl.load(w_scale_ptr + r, mask=in_r, other=0.0)
        scaled = total.to(tl.float32) * x_scale[None, :] * w_scale[:, None]
        tl.store(y, scaled.to(part_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(y, total, mask=inside)
