"""8-, 3- and 2-bit weights times 16-bit rows (4 bits have a file of their own: `w4a16_matmul`).

    y[t, r] = sum over c of x[t, c] * w[r, c],   w[r, c] = (q - 2**(bits-1)) * scale + zero

with one scale, and perhaps one zero, for each group of G columns of a row.  Fewer bits are fewer
bytes to read, but no less arithmetic: what it costs to turn codes into numbers decides how many
rows are free.  A row is packed in blocks, the last one filled up, each of 16-bit words:

    8 bits  128 columns, 64 words: word j of each half holds its columns j and j + 32
    2 bits  256 columns, 32 words: word j holds columns j, j + 32, ..., j + 224
    3 bits  256 columns, 48 words: word j of third i holds columns 80*i + j, + 16, ..., + 64 and, in
            its highest bit, bit i of column 240 + j

first columns lowest.  So equal bits of neighbouring words are neighbouring columns and one
contiguous product, and one instruction takes a code out of two words at once: into the mantissa of
1024 (fp16) or 128 (bf16).  A code at bit s of it stays there and adds 2**s * q; one exact multiply-
add leaves q - middle.  bf16 has no room for 128 + q of 8 bits: the lower seven become 128 + q % 128
and the highest chooses -128 or -256, which is added.

    reference   wna16_matmul_ref   plain torch, any device; the definition
    kernel      wna16_matmul       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        R*C*bits/8 bytes and 2 or 4 a group, T*C of x a tile of weight rows (cached); with
                S splits 8*S*T*R bytes more; one launch: the last split to arrive adds them all
    error       weights are rounded to x's dtype after the scale and after the zero, y once: tested
                as an RMS ratio below 6e-4 (fp16) and 8e-3 (bf16) against a float64 product; one
                scale for a row without a zero is applied to sums, and rounds no weight
    rows        with `row_invariant` tiles and splits follow from R, C, bits and device, not from T
    source      the magic number: Kim et al. 2022, arXiv 2211.10017
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor
from hspec_kernels._splits import add_when_last, arrival_counters
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.w8a8_matmul import SPLITS, WANTED_PROGRAMS, part_like, splits_for

# by bits: columns of a packed block, and of one product
BLOCK_C, WIDTH = {2: 256, 3: 256, 8: 128}, {2: 32, 3: 16, 8: 32}
GROUP_SIZES = (32, 64, 128)
_MAX_ROWS = 1024  # of one launch: bounds the buffer of the splits


def pack_wna16(q: Tensor, bits: int) -> Tensor:
    """uint8 [R, C], values 0..2**bits-1 -> uint8 [R, bytes] as above; any C >= 1."""
    q = torch.nn.functional.pad(q, (0, -q.shape[1] % BLOCK_C[bits]), value=2 ** (bits - 1)).int()
    parts = q.view(len(q), -1, BLOCK_C[bits] // WIDTH[bits], WIDTH[bits])
    last, places = parts[:, :, 15:], bits * torch.arange(16 // bits, device=q.device)
    parts = parts[:, :, : parts.shape[2] // len(places) * len(places)]
    words = parts.unflatten(2, (-1, len(places))) << places[:, None]
    words = words.sum(3, dtype=torch.int32)  # [R, blocks, words of a column, WIDTH]
    if bits == 3:
        words |= (last >> torch.arange(3, device=q.device)[:, None] & 1) << 15
    return torch.stack([words & 0xFF, words >> 8], dim=-1).to(torch.uint8).flatten(1)


def unpack_wna16(packed: Tensor, bits: int, C: int) -> Tensor:
    """Inverse of `pack_wna16`: uint8 [R, C]."""
    n_words = BLOCK_C[bits] * bits // (16 * WIDTH[bits])
    low, high = packed.view(len(packed), -1, n_words, WIDTH[bits], 2).int().unbind(-1)
    words, places = low | high << 8, bits * torch.arange(16 // bits, device=packed.device)
    parts = (words[:, :, :, None] >> places[:, None] & (2**bits - 1)).flatten(2, 3)
    if bits == 3:
        last = (words >> 15) << torch.arange(3, device=packed.device)[:, None]
        parts = torch.cat([parts, last.sum(2, keepdim=True, dtype=torch.int32)], dim=2)
    return parts.flatten(1)[:, :C].to(torch.uint8)


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
    config = config or choose(T, R, C, bits, row_invariant, keeps_sums_apart(x.device))
    for rows, y in zip(x.split(_MAX_ROWS), out.split(_MAX_ROWS), strict=True):
        _launch(rows, packed.view(torch.int16), scale, zero, bits, group_size, config, y)
    return out


def _launch(x, words, scale, zero, bits: int, group_size: int, config: Config, out: Tensor) -> None:
    (T, C), R = x.shape, len(words)
    n_splits = min(config.splits, triton.cdiv(C, BLOCK_C[bits]))
    grid = (triton.cdiv(T, config.block_t), triton.cdiv(R, config.block_r), n_splits)
    part = part_like(out, n_splits, torch.float32)
    arrived = words if n_splits == 1 else arrival_counters(x.device, grid[0] * grid[1])
    _wna16_matmul_kernel[grid](
        x, words, scale, scale if zero is None else zero, part, arrived, out, T, R, C,
        BITS=bits, G=0 if group_size == C else group_size, HAS_ZERO=zero is not None,
        EVEN=C % BLOCK_C[bits] == 0, ASM=x.is_cuda, SPLITS=n_splits,
        BLOCK_R=config.block_r, BLOCK_T=config.block_t,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


# (block_r, block_t, num_stages) that leave shared memory for two programs a processor from sm_80
# on; not swept on a GPU yet
TILES = ((128, 16, 3), (128, 32, 3), (64, 16, 3), (64, 32, 3), (64, 64, 3), (64, 64, 2))
CONFIGS = tuple(Config(r, t, splits, 4, n) for r, t, n in TILES for splits in SPLITS)


def choose(
    T: int, R: int, C: int, bits: int, row_invariant: bool = False, tensor_memory: bool = False
) -> Config:
    """Tile shapes for T rows; `row_invariant`: from R, C, bits and the device alone."""
    # before Triton 3.9 each of the 16 products that 3 bits take kept sums of its own in sm_100's
    # tensor memory, which has 512 columns: more than they were became a trap
    few = tensor_memory and bits == 3
    block_t = 32 if row_invariant else min(max(16, triton.next_power_of_2(T)), 32 if few else 64)
    tiles_t = 1 if row_invariant else triton.cdiv(T, block_t)
    num_stages = 2 if block_t == 64 and bits < 8 else 3
    # the taller tile does less beside its codes, where registers and enough programs allow it
    programs = triton.cdiv(R, 128) * tiles_t
    splits = splits_for(programs, C)
    if block_t < (32 if few else 64) and programs * splits >= WANTED_PROGRAMS:
        return Config(128, block_t, splits, 4, num_stages)
    return Config(64, block_t, splits_for(triton.cdiv(R, 64) * tiles_t, C), 4, num_stages)


def keeps_sums_apart(device: torch.device) -> bool:
    """Whether sums lie in tensor memory, as on sm_100, rather than in registers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 10


def _assembly(bits: int, mantissa: int) -> str:
    """PTX: two words in a register, all of a column, to two numbers in a register for each part.

    Each number is 2**mantissa + 2**s * q, s as in `_centred`: a shift serves all codes that then
    lie in the mantissa.
    """
    magic, per = {10: 0x64006400, 7: 0x43004300}[mantissa], mantissa // bits
    n_words, n_parts = (1, 8) if bits == 2 else (3, 16)
    lines, shifted = [], {}

    def take(part: int, word: int, shift: int, mask: int, rest: str) -> None:
        source = f"${n_parts + word}"
        if shift and (word, shift) not in shifted:
            shifted[word, shift] = f"s{len(shifted)}"
            lines.append(f"shr.b32 {shifted[word, shift]}, {source}, {shift};")
        source = shifted.get((word, shift), source)
        # 0xEA is the truth table of (a and b) or c
        lines.append(f"lop3.b32 ${part}, {source}, 0x{mask:04X}{mask:04X}, {rest}, 0xEA;")

    for part in range(n_words * (16 // bits)):
        word, place = divmod(part, 16 // bits)
        mask = (2**bits - 1) << bits * (place % per)
        take(part, word, place // per * bits * per, mask, f"0x{magic:08X}")
    for bit in range(n_words if bits == 3 else 0):
        s = 3 * (5 % per) + bit
        take(15, bit, 15 - s, 1 << s, "$15" if bit else f"0x{magic:08X}")
    names = f".reg .b32 {', '.join(shifted.values())};"
    return "\n    ".join(["{", names, *lines]) + "\n}"


TWO_FP16, TWO_BF16 = tl.constexpr(_assembly(2, 10)), tl.constexpr(_assembly(2, 7))
THREE_FP16, THREE_BF16 = tl.constexpr(_assembly(3, 10)), tl.constexpr(_assembly(3, 7))
# whole bytes: 1024 + q
EIGHT_FP16 = tl.constexpr("""{
    prmt.b32 $0, $2, 0x64646464, 0x4240;
    prmt.b32 $1, $2, 0x64646464, 0x4341;
}""")
# 128 + q % 128, then -128 or, without the highest bit, -256: 0xAE is (not a and b) or c
EIGHT_BF16 = tl.constexpr("""{
    .reg .b32 s0;
    shr.b32 s0, $4, 8;
    lop3.b32 $0, $4, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 $1, s0, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 $2, $4, 0x00800080, 0xC300C300, 0xAE;
    lop3.b32 $3, s0, 0x00800080, 0xC300C300, 0xAE;
}""")
# outputs are written before all inputs are read, so they share no register with them
TO_2, TO_4 = tl.constexpr("=&r," * 2 + "r"), tl.constexpr("=&r," * 4 + "r")
TO_8, TO_16 = tl.constexpr("=&r," * 8 + "r"), tl.constexpr("=&r," * 16 + "r,r,r")


@triton.jit
def _taken_apart(w0, w1, w2, BITS: tl.constexpr, dtype: tl.constexpr):
    """int16 bit patterns, of one part after the other; 8-bit bf16: then what to add to each."""
    if BITS == 8:
        if dtype == tl.float16:
            return tl.inline_asm_elementwise(EIGHT_FP16, TO_2, [w0], (tl.int16,) * 2, True, 2)
        else:
            return tl.inline_asm_elementwise(EIGHT_BF16, TO_4, [w0], (tl.int16,) * 4, True, 2)
    elif BITS == 2:
        TWO: tl.constexpr = TWO_FP16 if dtype == tl.float16 else TWO_BF16
        return tl.inline_asm_elementwise(TWO, TO_8, [w0], (tl.int16,) * 8, True, 2)
    else:
        THREE: tl.constexpr = THREE_FP16 if dtype == tl.float16 else THREE_BF16
        return tl.inline_asm_elementwise(THREE, TO_16, [w0, w1, w2], (tl.int16,) * 16, True, 2)


@triton.jit
def _centred(patterns, PART: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Codes of one part as numbers minus their middle, exactly."""
    if BITS == 8:
        number = patterns[PART % 2].to(dtype, bitcast=True)
        if dtype == tl.float16:
            return number - 1152.0
        else:
            return number + patterns[PART % 2 + 2].to(dtype, bitcast=True)
    else:
        MANTISSA: tl.constexpr = 10 if dtype == tl.float16 else 7
        PLACE: tl.constexpr = 5 if PART == 15 else PART % (16 // BITS)
        S: tl.constexpr = BITS * (PLACE % (MANTISSA // BITS))
        number = patterns[PART].to(dtype, bitcast=True)
        return number * 2.0**-S - (2.0 ** (MANTISSA - S) + 2 ** (BITS - 1))


@triton.jit
def _centred_slowly(w0, w1, w2, PART: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """What `_taken_apart` and `_centred` compute, without assembly."""
    if BITS == 3 and PART == 15:
        code = ((w0 >> 15) & 1) | ((w1 >> 14) & 2) | ((w2 >> 13) & 4)
    else:
        COLUMN: tl.constexpr = PART // (16 // BITS)
        words = w0 if COLUMN == 0 else w1 if COLUMN == 1 else w2
        code = (words >> (PART % (16 // BITS) * BITS)) & (2**BITS - 1)
    return code.to(dtype) - 2 ** (BITS - 1)


@triton.jit(do_not_specialize=["T"])
def _wna16_matmul_kernel(
    x_ptr,  # [T, C]
    packed_ptr,  # [R, n_blocks * WORDS] int16
    scale_ptr,  # [R, C/G]
    zero_ptr,  # [R, C/G]; not read without HAS_ZERO
    part_ptr,  # fp32 [SPLITS, T, R]; not used without splits
    arrived_ptr,  # [tiles] int32, zeros; not used without splits
    out_ptr,  # [T, R]
    T,
    R,
    C,
    BITS: tl.constexpr,
    G: tl.constexpr,  # 0: one group for the row
    HAS_ZERO: tl.constexpr,
    EVEN: tl.constexpr,  # the last block is full
    ASM: tl.constexpr,  # the interpreter knows no assembly
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    WIDTH: tl.constexpr = 16 if BITS == 3 else 32  # columns of a product
    BLOCK: tl.constexpr = 128 if BITS == 8 else 256
    WORDS: tl.constexpr = BLOCK * BITS // 16
    LATE: tl.constexpr = G == 0 and not HAS_ZERO  # scales are applied to sums
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # tiles of x are the fastest axis: programs that share weights run side by side
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    j = tl.arange(0, WIDTH)
    in_t, in_r = t < T, r < R
    n_blocks = tl.cdiv(C, BLOCK)
    per_split = tl.cdiv(n_blocks, SPLITS)
    first = split * per_split
    # int64: R * C passes 2**31 for the largest layers
    row = r.to(tl.int64)
    word_row = packed_ptr + row[:, None] * (WORDS * n_blocks) + j[None, :]  # [BLOCK_R, WIDTH]
    x_column = x_ptr + t.to(tl.int64)[None, :] * C + j[:, None]  # [WIDTH, BLOCK_T]
    if G == 0 and HAS_ZERO:
        scale = tl.load(scale_ptr + row, mask=in_r, other=0.0)[:, None]
        zero = tl.load(zero_ptr + row, mask=in_r, other=0.0)[:, None]
    sums = tl.zeros((BLOCK_R, BLOCK_T), dtype=tl.float32)
    for b in tl.range(first, tl.minimum(first + per_split, n_blocks)):
        at = word_row + b * WORDS
        w0 = tl.load(at, mask=in_r[:, None], other=0, eviction_policy="evict_first")
        w1, w2 = w0, w0
        if BITS != 2:
            w1 = tl.load(at + WIDTH, mask=in_r[:, None], other=0, eviction_policy="evict_first")
        if BITS == 3:
            w2 = tl.load(at + 2 * WIDTH, mask=in_r[:, None], other=0, eviction_policy="evict_first")
        for part in tl.static_range(BLOCK // WIDTH):
            c = b * BLOCK + part * WIDTH
            known = in_t[None, :]
            if not EVEN:
                known &= (c + j < C)[:, None]
            x = tl.load(x_column + c, mask=known, other=0.0)  # [WIDTH, BLOCK_T]
            if ASM:
                if part == 0 or (BITS == 8 and part == 2):
                    patterns = _taken_apart(w0 if part == 0 else w1, w1, w2, BITS, dtype)
                w = _centred(patterns, part, BITS, dtype)
            else:
                w = _centred_slowly(w0, w1, w2, part, BITS, dtype)
            if G != 0 and part * WIDTH % max(G, 1) == 0:
                # what fills up the last block takes the last group's, and meets an x of 0
                group = c // G if EVEN else tl.minimum(c // G, C // G - 1)
                cell = row * (C // G) + group
                scale = tl.load(scale_ptr + cell, mask=in_r, other=0.0)[:, None]
                if HAS_ZERO:
                    zero = tl.load(zero_ptr + cell, mask=in_r, other=0.0)[:, None]
            if not LATE:
                w = w * scale
            if HAS_ZERO:
                w += zero
            sums = tl.dot(w, x, sums)
    if LATE:
        sums *= tl.load(scale_ptr + row, mask=in_r, other=0.0).to(tl.float32)[:, None]
    inside = in_r[:, None] & in_t[None, :]
    # int32 within a tile, int64 to get there
    tile = tl.program_id(0).to(tl.int64) * BLOCK_T * R
    where = tl.arange(0, BLOCK_T)[None, :] * R + r[:, None]
    if SPLITS > 1:
        counter_ptr = arrived_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        size = tl.cast(T, tl.int64) * R
        add_when_last(
            sums, part_ptr + tile, out_ptr + tile, counter_ptr, where, inside, split, size, SPLITS
        )
    else:
        tl.store(out_ptr + tile + where, sums.to(out_ptr.dtype.element_ty), mask=inside)
