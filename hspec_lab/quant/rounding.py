"""Round-to-nearest: fp32 weights -> small integers and their scales. No calibration data.

Storage rules, R outputs x C inputs, a scale per row or per group of G inputs, g = c // G:

    int8        w[r, c] = q[r, c] * scale[r]                                        q in -127..127
    e4m3        w[r, c] = q[r, c] * scale[r]                                 |q| in 2**-9..448 or 0
    int4, 3, 2  w[r, c] = (q[r, c] - middle) * scale[r, g] + zero[r, g]    q in 0..2 * middle - 1
    two levels  w[r, c] = (q[r, c] - zero[r, g]) * iscale[r, g] * scale[r]              q in 0..15

    error       int8: half a step, |w - w'| <= scale / 2.
                e4m3: one part in 16 of the weight, or 2**-10 * scale where that is more.
                int4, 3, 2: half a step plus the rounding of `zero` to bf16, |zero| / 256.
                two levels: half a step, scale * iscale / 2; at a group's top up to 7.5 * scale
                more, where `iscale` was rounded down.
    choice      int4 spans each group's minimum..maximum ("asymmetric"). On normal and Student-t(4)
                weights, G = 32 and 128, its root mean square error is 0.81-0.97 of the best
                symmetric rule's (signed scale, largest magnitude at code 0) and 0.71-0.85 of
                absmax / 7's. The operator reads a zero either way: the better rule is free.
                Two levels with `iscale` rounded up lose nothing at the top, but their root mean
                square error is 1.04 (normal) and 1.06 (t(4)) of the nearest one's, G = 128.
    source      two levels: QoQ, Lin et al. 2024, arXiv 2405.04532
"""

import torch
from torch import Tensor

INT8_MAX = 127
INT4_MAX = 15
INT4_MIDDLE = 8
E4M3_MAX = 448.0
PROTECTED_MAX = 119
TINY = 2.0**-100


def round_int8(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round each row to symmetric int8.

    Args:
        weight: fp32 [R, C].
        scale_dtype: what the scales are stored in; integers are chosen for the stored scale.

    Returns:
        q: int8 [R, C], -127..127 (never -128).
        scale: scale_dtype [R]; 1 for a row of zeros.
    """
    scale = (weight.abs().amax(1) / INT8_MAX).to(scale_dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = (weight / scale.float()[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX)
    return q.to(torch.int8), scale


def round_e4m3(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to e4m3, its largest magnitude becoming 448; for weights and activations.

    Args:
        values: fp32 [R, C], finite.

    Returns:
        q: float8_e4m3fn [R, C].
        scale: fp32 [R], at least 2**-100, so that rows of zeros can be divided by it.
    """
    scale = (values.abs().amax(1) / E4M3_MAX).clamp_min_(TINY)
    # a quotient may exceed 448 by its own rounding, and e4m3 knows no infinity
    q = (values / scale[:, None]).clamp_(-E4M3_MAX, E4M3_MAX)
    return q.to(torch.float8_e4m3fn), scale


def round_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`round_groups` to 4 bits."""
    return round_groups(weight, 4, group_size)


def round_groups(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group of `group_size` inputs to 2**bits levels between its minimum and maximum.

    Args:
        weight: fp32 [R, C].
        bits: 1..8.
        group_size: G; divides C.

    Returns:
        q: uint8 [R, C], 0..2**bits - 1.
        scale, zero: bf16 [R, C/G]; integers are chosen for these stored values. A group whose
            weights are all equal has scale 0 and is all in its zero.
    """
    R, C = weight.shape
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    groups = weight.view(R, C // group_size, group_size)
    low, high = groups.amin(2), groups.amax(2)  # [R, C/G]
    scale = ((high - low) / top).bfloat16()
    zero = (low + middle * scale.float()).bfloat16()
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    q = (groups - zero.float()[..., None]) / step[..., None]
    q = q.round_().add_(middle).clamp_(0, top)
    q = torch.where(scale[..., None] > 0, q, middle)
    return q.view(R, C).to(torch.uint8), scale, zero


def expand_int4(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`expand_groups` of 4 bits."""
    return expand_groups(q, 4, scale, zero)


def expand_groups(q: Tensor, bits: int, scale: Tensor, zero: Tensor) -> Tensor:
    """fp32 [R, C] from q [R, C] and 16-bit [R, C/G] scales and zeros."""
    group_size = q.shape[1] // scale.shape[1]
    scale, zero = (s.float().repeat_interleave(group_size, 1) for s in (scale, zero))
    return (q.float() - 2 ** (bits - 1)) * scale + zero


def round_two_levels(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round each row to int8 numbers that 4-bit codes and small integers of a group make.

    Rows are scaled to -119..119, not 127: half a step more, 8 at most, then still is an int8.

    Args:
        weight: fp32 [R, C].
        group_size: G; divides C.

    Returns:
        q: uint8 [R, C], 0..15; (q - zero) * iscale is in -127..127.
        iscale: uint8 [R, C/G], 1..16.
        zero: uint8 [R, C/G], 0..119; the kernel subtracts no negative one, so that a group of
            positive weights spans 0..maximum.
        scale: fp32 [R]; 1 for a row of zeros.
    """
    R, C = weight.shape
    scale = weight.abs().amax(1) / PROTECTED_MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    groups = (weight / scale[:, None]).clamp_(-PROTECTED_MAX, PROTECTED_MAX)
    groups = groups.view(R, C // group_size, group_size)
    low, high = groups.amin(2).clamp_max_(0), groups.amax(2)  # [R, C/G]
    iscale = ((high - low) / INT4_MAX).round_().clamp_min_(1)
    zero = (-low / iscale).round_()
    q = groups.div_(iscale[..., None]).round_().add_(zero[..., None]).clamp_(0, INT4_MAX)
    iscale, zero = iscale.to(torch.uint8), zero.to(torch.uint8)
    return q.view(R, C).to(torch.uint8), iscale, zero, scale


def expand_two_levels(q: Tensor, iscale: Tensor, zero: Tensor, scale: Tensor) -> Tensor:
    """fp32 [R, C] from what `round_two_levels` returns."""
    group_size = q.shape[1] // iscale.shape[1]
    iscale, zero = (n.float().repeat_interleave(group_size, 1) for n in (iscale, zero))
    return (q.float() - zero) * iscale * scale[:, None]


def pack_nibbles(q: Tensor) -> Tensor:
    """uint8 [R, C], values 0..15 -> uint8 [R, C/2], two along C, low nibble first."""
    return q[:, 0::2] | (q[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)
