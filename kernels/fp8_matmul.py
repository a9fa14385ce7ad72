"""e4m3 weights times rows: of e4m3 too, on tensor cores of 8 bits, or of 16 bits (weight-only).

    y[t, r] = (sum over c of x[t, c] * weight[r, c]) * x_scale[t] * w_scale[r]

An e4m3 number has a sign, four bits of exponent and three of fraction: 2**-9 .. 448, about as
coarse as int8 but spread over 17 powers of two, so that a row's one scale need not be careful.
Given e4m3 rows and their scales, both sides go to the tensor cores as they are (compute capability
8.9 on).  Given fp16 or bf16 rows, x_scale is absent and weights are widened on the way.

Devices before 8.9 have no instruction for that: there an e4m3 number's bits are moved to the places
of the 16-bit format, which makes it the same number with another bias of the exponent, subnormal or
not, and 2**8 (fp16) or 2**120 (bf16) times that is the number itself, exactly.  Weights are the
left operand: see `w4a16_matmul`.

    reference   fp8_matmul_ref   plain torch, any device; the definition
    kernel      fp8_matmul       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        R*C bytes of weights, T*C of x a tile of weight rows (cached); with S splits 8*S*T*R
                bytes more and a second launch
    error       weights and products are exact, sums fp32, y is rounded once: tested as an RMS ratio
                below 2e-4 against a float64 product rounded likewise; below 2e-3 with e4m3 rows,
                whose sums sm_90 keeps in fewer bits for 128 columns (not measured yet)
    rows        with `row_invariant` tiles and splits follow from R and C, not from T
    source      Micikevicius et al. 2022, arXiv 2209.05433
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor
from hspec_kernels._splits import add_splits
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.w8a8_matmul import MAX_R, MAX_T, SPLITS, part_like, splits_for

E4M3 = torch.float8_e4m3fn
_MAX_ROWS = 1024  # of one launch: bounds the buffer of the splits


def fp8_matmul_ref(x, x_scale, weight, w_scale, dtype=None, *, row_invariant=False) -> Tensor:
    """Same contract as `fp8_matmul`, in float64, written to be read rather than to be fast."""
    y = (x.double() @ weight.double().T) * w_scale.double()  # [T, R]
    if x_scale is not None:
        y = y * x_scale.double()[:, None]
    return y.to(dtype or x.dtype)


def fp8_matmul(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype | None = None,
    *,
    row_invariant: bool = False,
    config: Config | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply rows with e4m3 weights and scale.

    Args:
        x: float8_e4m3fn, fp16 or bf16 [T, C], finite; T of 1..2**24 (tuned for 1..64).
        x_scale: fp32 [T] of e4m3 rows; None for 16-bit ones.
        weight: float8_e4m3fn [R, C], finite.
        w_scale: fp32 [R].
        dtype: fp16 or bf16, of the result; None: x's, which then has 16 bits.
        row_invariant: same bits for a row however many rows there are.
        config: tile shapes, instead of `choose(...)`'s.
        out: dtype [T, R], written instead of a new tensor.

    Returns:
        y: dtype [T, R].

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above, or e4m3 rows on
            a device of compute capability below 8.9.
    """
    check_tensor("x", x, (E4M3, *HALF), (None, None))
    T, C = x.shape
    check_range("T", T, 1, MAX_T)
    check_range("C", C, 1, 2**24)
    check_tensor("weight", weight, E4M3, (None, C), like=x)
    R = weight.shape[0]
    check_range("R", R, 1, MAX_R)
    check_tensor("w_scale", w_scale, torch.float32, (R,), like=x)
    narrow, native = x.dtype == E4M3, knows_e4m3(x.device)
    if narrow != (x_scale is not None):
        raise ValueError(f"x_scale goes with float8_e4m3fn rows and no others, x is {x.dtype}")
    if narrow:
        check_tensor("x_scale", x_scale, torch.float32, (T,), like=x)
    if narrow and not native:
        raise ValueError("float8_e4m3fn rows need compute capability 8.9: pass x as float16")
    dtype = dtype or x.dtype
    if dtype not in HALF:
        raise ValueError(f"dtype must be float16 or bfloat16, got {dtype}")
    if out is None:
        out = torch.empty(T, R, dtype=dtype, device=x.device)
    check_tensor("out", out, dtype, (T, R), like=x)
    config = config or choose(T, R, C, row_invariant)
    codes = weight if native else weight.view(torch.uint8)
    for first in range(0, T, _MAX_ROWS):
        rows, y = x[first : first + _MAX_ROWS], out[first : first + _MAX_ROWS]
        scale = x_scale[first : first + _MAX_ROWS] if narrow else w_scale
        part = part_like(y, config.splits, torch.float32)
        grid = (triton.cdiv(len(y), config.block_t), triton.cdiv(R, config.block_r), config.splits)
        _fp8_matmul_kernel[grid](
            rows, scale, codes, w_scale, part, len(y), R, C, **constants(x.dtype, C),
            SPLITS=config.splits, BLOCK_R=config.block_r, BLOCK_T=config.block_t,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        if config.splits > 1:
            add_splits(part, y)
    return out


def knows_e4m3(device: torch.device) -> bool:
    """Whether the device multiplies and converts e4m3; the interpreter does."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def constants(dtype: torch.dtype, C: int) -> dict:
    """What the kernel is specialized for, other than its tiles."""
    # places to move a code up, and what the two formats' exponents then differ by
    shift, bias = {E4M3: (0, 0), torch.float16: (7, 8), torch.bfloat16: (4, 120)}[dtype]
    return {"SHIFT": shift, "BIAS": bias, "WIDTH": 128 if dtype == E4M3 else 64,
            "WHOLE": C % 128 == 0}  # fmt: skip


# (block_t, num_stages) that leave shared memory for two programs a processor from sm_80 on; not
# swept on a GPU yet
TILES = ((16, 4), (32, 4), (64, 3))
CONFIGS = tuple(Config(64, t, splits, 4, stages) for t, stages in TILES for splits in SPLITS)


def choose(T: int, R: int, C: int, row_invariant: bool = False) -> Config:
    """Tile shapes for T rows; `row_invariant`: from R and C alone."""
    block_t = 32 if row_invariant else min(max(16, triton.next_power_of_2(T)), 64)
    programs = triton.cdiv(R, 64) * (1 if row_invariant else triton.cdiv(T, block_t))
    splits = splits_for(programs, C)
    return next(c for c in CONFIGS if (c.block_t, c.splits) == (block_t, splits))


@triton.jit(do_not_specialize=["T"])
def _fp8_matmul_kernel(
    x_ptr,  # [T, C]
    x_scale_ptr,  # [T] fp32; not read unless x is e4m3
    weight_ptr,  # [R, C] e4m3, or the same bytes as uint8
    w_scale_ptr,  # [R] fp32
    part_ptr,  # [T, R], or fp32 [SPLITS, T, R]
    T,
    R,
    C,
    SHIFT: tl.constexpr,
    BIAS: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of one product
    WHOLE: tl.constexpr,  # C is a multiple of 128
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    narrow: tl.constexpr = weight_ptr.dtype.element_ty == dtype
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    k = tl.arange(0, WIDTH)
    in_t, in_r = t < T, r < R
    n_blocks = tl.cdiv(C, 128)
    per_split = tl.cdiv(n_blocks, SPLITS)
    first = split * per_split
    # int64: R * C passes 2**31 for the largest layers
    weight_row = weight_ptr + r.to(tl.int64)[:, None] * C + k[None, :]  # [BLOCK_R, WIDTH]
    x_column = x_ptr + t.to(tl.int64)[None, :] * C + k[:, None]  # [WIDTH, BLOCK_T]
    sums = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.float32)
    for block in tl.range(first, tl.minimum(first + per_split, n_blocks)):
        for part in tl.static_range(128 // WIDTH):
            c = block * 128 + part * WIDTH
            in_c = tl.full((WIDTH,), 1, tl.int1) if WHOLE else c + k < C
            x = tl.load(x_column + c, mask=in_t[None, :] & in_c[:, None], other=0.0)
            weight = tl.load(weight_row + c, mask=in_r[:, None] & in_c[None, :], other=0.0)
            if narrow:
                # sm_90 sums e4m3 products in few bits; after so many columns the rest is fp32
                sums = tl.dot(weight, x, sums, max_num_imprecise_acc=WIDTH)
            elif weight_ptr.dtype.element_ty == tl.uint8:
                # the sign, repeated by widening, is cleared from the places between
                bits = weight.to(tl.int8, bitcast=True).to(tl.int16) << SHIFT
                bits &= (0x7F << SHIFT) - 0x8000
                sums = tl.dot(bits.to(dtype, bitcast=True) * 2.0**BIAS, x, sums)
            else:
                # by way of fp32: straight to bf16 takes a slow instruction
                sums = tl.dot(weight.to(tl.float32).to(dtype), x, sums)

    w_scale = tl.load(w_scale_ptr + r, mask=in_r, other=0.0)
    sums *= w_scale[:, None]
    if narrow:
        sums *= tl.load(x_scale_ptr + t, mask=in_t, other=0.0)[None, :]
    y = part_ptr + (split.to(tl.int64) * T + t[None, :]) * R + r[:, None]
    tl.store(y, sums.to(part_ptr.dtype.element_ty), mask=in_r[:, None] & in_t[None, :])
