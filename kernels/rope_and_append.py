"""Rotate queries and keys by their positions and write keys and values into the cache.

    x'[2i]     = x[2i] * cos[p, i] - x[2i + 1] * sin[p, i]
    x'[2i + 1] = x[2i + 1] * cos[p, i] + x[2i] * sin[p, i],    p = kv_len + depth

Between the projection and attention every value of a row is touched once more: normalised per head
in some models (Qwen3: x / rms(x) * weight), rotated, and for keys and values stored behind the
prefix.  One launch does it all.  Rotated pairs lie side by side, since the projection's rows were
reordered at loading; a tree's rows lie one behind the other in the cache, but siblings share a
position: kv_len plus their depth.  With an int8 cache a key or value head is divided by its largest
magnitude / 127 and rounded, so that what one row stores does not depend on other rows.

    reference   rope_and_append_ref  plain torch, any device; the definition
    kernel      rope_and_append      Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads T * (H + 2K) * D values and two table rows a row, writes as many values (keys
                and values at 1 byte with int8, plus 2 bytes a head); one launch
    error       computed in fp32, rounded once: half a step of the dtype; int8: half a scale
    rows        each row on its own, in fixed tiles: row-invariant
    source      Su et al. 2021, arXiv 2104.09864 (RoPE), in complex form
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_below, check_range, check_room, check_tensor

HEAD_DIMS = (16, 32, 64, 128, 256)
LARGEST_SCALE = 65504.0  # of fp16


def rope_and_append_ref(
    qkv, cos, sin, depths, kv, kv_len, *, q_norm=None, k_norm=None, eps=1e-6, kv_scale=None
) -> Tensor:
    """Same contract as `rope_and_append`, in float64, written to be read rather than to be fast."""
    T, K, D, start = qkv.shape[0], kv.shape[1] // 2, kv.shape[2], int(kv_len)
    heads = qkv.double().view(T, -1, D)
    q, k, v = heads.split([heads.shape[1] - 2 * K, K, K], dim=1)
    if q_norm is not None:
        q = torch.nn.functional.rms_norm(q, (D,), q_norm.double(), eps)
        k = torch.nn.functional.rms_norm(k, (D,), k_norm.double(), eps)
    angle = torch.complex(cos.double(), sin.double())[start + depths.long(), None]  # [T, 1, D/2]

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:2], D // 2, 2))
        return torch.view_as_real(pairs * angle).flatten(2)

    rows = torch.cat([rotate(k), v], dim=1)  # [T, 2K, D]
    if kv_scale is not None:
        scale = (rows.abs().amax(dim=2) / 127).clamp(max=LARGEST_SCALE).half()
        kv_scale[start : start + T] = scale
        unit = scale.double().where(scale > 0, 1.0)[:, :, None]
        rows = (rows / unit).round().clamp(-127, 127)
    kv[start : start + T] = rows.to(kv.dtype)
    return rotate(q).to(qkv.dtype)


def rope_and_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    depths: Tensor,
    kv: Tensor,
    kv_len: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scale: Tensor | None = None,
    trusted: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate T rows of a projection and store their keys and values at cache rows kv_len + t.

    Args:
        qkv: fp16 or bf16 [T, (H + 2 * K) * D], queries, keys, values; T >= 1.
        cos, sin: fp32 [max_positions, D / 2]; kv_len + depth < max_positions.
        depths: int32 [T], places behind the prefix: of tree nodes their levels, of a path 0..T-1.
        kv: qkv's dtype or int8 [capacity, 2 * K, D], one layer of the cache, keys first; written.
            D is a power of two 16..256.
        kv_len: int32 [1], rows of the prefix; kv_len + T <= capacity.
        q_norm, k_norm: qkv's dtype or fp32 [D], weights of a norm per head before the rotation,
            reordered as the projection is; both or neither.
        eps: added to the mean square in these norms.
        kv_scale: fp16 [capacity, 2 * K], scales of an int8 cache; written.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
            Outside the table queries and keys become zeros, outside the cache nothing is stored.
        out: qkv's dtype [T, H, D], written instead of a new tensor.

    Returns:
        q: qkv's dtype [T, H, D], rotated.

    Raises:
        ValueError: a dtype, shape, device, stride or content that does not fit the above.
    """
    check_tensor("qkv", qkv, HALF, (None, None))
    check_tensor("kv", kv, (qkv.dtype, torch.int8), (None, None, None), like=qkv)
    T, width = qkv.shape
    capacity, K, D = kv.shape[0], kv.shape[1] // 2, kv.shape[2]
    H = width // D - 2 * K if D in HEAD_DIMS else 0
    check_range("T", T, 1, 2**20)
    if H < 1 or kv.shape[1] != 2 * K or not K or width % D:
        raise ValueError(
            f"qkv must be [T, (H + 2 * K) * D] and kv [capacity, 2 * K, D] with D one of "
            f"{HEAD_DIMS}, got {list(qkv.shape)} and {list(kv.shape)}"
        )
    check_tensor("cos", cos, torch.float32, (None, D // 2), like=qkv)
    check_tensor("sin", sin, torch.float32, cos.shape, like=qkv)
    check_tensor("depths", depths, torch.int32, (T,), like=qkv)
    check_tensor("kv_len", kv_len, torch.int32, (1,), like=qkv)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm must come together, got one of them")
    if q_norm is not None:
        check_tensor("q_norm", q_norm, (qkv.dtype, torch.float32), (D,), like=qkv)
        check_tensor("k_norm", k_norm, q_norm.dtype, (D,), like=qkv)
    if (kv.dtype == torch.int8) != (kv_scale is not None):
        raise ValueError(f"kv_scale goes with int8 kv and with nothing else, got kv {kv.dtype}")
    if kv_scale is not None:
        check_tensor("kv_scale", kv_scale, torch.float16, (capacity, 2 * K), like=qkv)
    if out is None:
        out = torch.empty(T, H, D, dtype=qkv.dtype, device=qkv.device)
    check_tensor("out", out, qkv.dtype, (T, H, D), like=qkv)
    if not trusted:
        n, end = check_room(kv_len, T, capacity), cos.shape[0]
        check_below("depths", depths, end - n, f"behind kv_len {n} in a table of {end}")
    heads = choose(D)
    _rope_and_append_kernel[(T, triton.cdiv(H + 2 * K, heads))](
        qkv, cos, sin, depths, kv_len, cos if q_norm is None else q_norm,
        cos if k_norm is None else k_norm, out, kv, kv if kv_scale is None else kv_scale,
        capacity, cos.shape[0], eps, H=H, K=K, D=D, HAS_NORM=q_norm is not None,
        QUANTIZED=kv_scale is not None, LARGEST_SCALE=LARGEST_SCALE, HEADS=heads, num_warps=4,
    )  # fmt: skip
    return out


# values of a program's heads, not swept on a GPU yet: 16 bytes a thread
CONFIGS = (1024,)


def choose(D: int) -> int:
    """Heads of a row that one program works on."""
    return CONFIGS[0] // D


@triton.jit(do_not_specialize=["capacity", "max_positions"])
def _rope_and_append_kernel(
    qkv_ptr,  # [T, H + 2 * K, D]
    cos_ptr,  # [max_positions, D / 2] fp32
    sin_ptr,  # [max_positions, D / 2] fp32
    depths_ptr,  # [T] int32
    kv_len_ptr,  # [1] int32
    q_norm_ptr,  # [D]; not read without HAS_NORM
    k_norm_ptr,  # [D]; not read without HAS_NORM
    q_ptr,  # [T, H, D]
    kv_ptr,  # [capacity, 2 * K, D]
    scale_ptr,  # [capacity, 2 * K] fp16; not written unless QUANTIZED
    capacity,
    max_positions,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HAS_NORM: tl.constexpr,
    QUANTIZED: tl.constexpr,
    LARGEST_SCALE: tl.constexpr,
    HEADS: tl.constexpr,
):
    # int64: a long prompt's rows and a long cache pass 2**31 values
    t = tl.program_id(0).to(tl.int64)
    kv_len = tl.load(kv_len_ptr)
    row, position = kv_len + t, (kv_len + tl.load(depths_ptr + t)).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)  # of queries, keys, values
    d, i = tl.arange(0, D), tl.arange(0, D // 2)
    is_query, is_key, is_stored = h < H, (h >= H) & (h < H + K), (h >= H) & (h < H + 2 * K)
    in_row = h < H + 2 * K
    x_at = qkv_ptr + (t * (H + 2 * K) + h)[:, None] * D + d[None, :]
    x = tl.load(x_at, mask=in_row[:, None], other=0.0).to(tl.float32)  # [HEADS, D]

    y = x
    if HAS_NORM:
        y *= tl.math.rsqrt(tl.sum(x * x, axis=1) / D + eps)[:, None]
        q_norm = tl.load(q_norm_ptr + d).to(tl.float32)
        k_norm = tl.load(k_norm_ptr + d).to(tl.float32)
        y *= tl.where(is_query[:, None], q_norm[None, :], k_norm[None, :])
    angle = position * (D // 2) + i
    in_table = (angle >= 0) & (angle < max_positions.to(tl.int64) * (D // 2))
    cos = tl.load(cos_ptr + angle, mask=in_table, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=in_table, other=0.0)[None, :]
    even, odd = tl.split(tl.reshape(y, (HEADS, D // 2, 2)))
    y = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    y = tl.where((is_query | is_key)[:, None], tl.reshape(y, (HEADS, D)), x)

    q_at = q_ptr + (t * H + h)[:, None] * D + d[None, :]
    tl.store(q_at, y.to(q_ptr.dtype.element_ty), mask=is_query[:, None])
    cell = row * (2 * K) + h - H
    keep = is_stored & (cell >= 0) & (cell < capacity.to(tl.int64) * (2 * K))
    if QUANTIZED:
        largest = tl.max(tl.abs(y), axis=1) / 127
        scale = tl.minimum(largest, LARGEST_SCALE).to(tl.float16)
        tl.store(scale_ptr + cell, scale, mask=keep)
        unit = tl.where(scale > 0, scale.to(tl.float32), 1.0)
        # adding 1.5 * 2**23 leaves no bits for a fraction: rounds half to even
        y = tl.math.div_rn(y, tl.broadcast_to(unit[:, None], (HEADS, D))) + 12582912.0
        y = tl.minimum(tl.maximum(y - 12582912.0, -127.0), 127.0)
    kv_at = kv_ptr + cell[:, None] * D + d[None, :]
    tl.store(kv_at, y.to(kv_ptr.dtype.element_ty), mask=keep[:, None])
