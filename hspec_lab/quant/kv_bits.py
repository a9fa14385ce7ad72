"""Keys and values in 8, 4 or 2 bits: the head of a token is a group of its own.

    stored      codes of D values, one scale, below 8 bits one zero, for each token and head
    rotated     codes are of H x / sqrt(n): outliers of a few channels are spread over all
    sinks       the first tokens of a text keep their numbers: attention leans on them

A group is rounded when its token is written and before any row reads it, so that what a token
stores follows from that token alone, whatever is computed beside it.  The Hadamard transform H is
made of sums and differences in a fixed order, not of a matrix product, for the same reason.

What a code q stands for, before the rotation back:

    8 bits      q * scale                            q in -127..127, scale fp16, no zero
    4, 2 bits   (q - middle) * scale + zero          see `grids`; scale and zero bf16

8 bits need neither rotation nor sinks, and the kernels have neither: `rounding_of` leaves both out
there, so that a CPU rounds as a device does.  Fewer bits have no kernel.

    cost        2K * (ceil(D * bits / 8) + 2 or 4) bytes a token and layer; D log2 D additions each
                way.  On a CPU no operator attends to codes: they are expanded at once, and the
                cache holds what they stand for.  That shows what rounding does to a text; it saves
                neither memory nor time there.
    error       half a step of the group's range, beside bf16's rounding of scale and zero
    source      rotation: QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; sinks kept: RotateKV,
                Su et al. 2025, arXiv 2501.16383
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hspec_lab.quant.forms import pack_codes, unpack_codes
from hspec_lab.quant.grids import Integers
from hspec_lab.scheme import Scheme

BITS = (8, 4, 2)
DEVICE_BITS = (16, 8)
_INT8_MAX = 127
_LARGEST_SCALE = 65504.0  # of fp16


def hadamard(x: Tensor) -> Tensor:
    """Rotate vectors by the orthonormal Hadamard matrix; its own inverse.

    A row's bits do not depend on the number of rows.

    Args:
        x: fp32 [..., D]; where D is no power of two, blocks of the largest that divides it.
    """
    n = x.shape[-1] & -x.shape[-1]
    y = x.unflatten(-1, (-1, n))
    for _ in range(n.bit_length() - 1):
        even, odd = y[..., 0::2], y[..., 1::2]
        y = torch.cat([even + odd, even - odd], dim=-1)
    return (y * n**-0.5).flatten(-2)


@dataclass(frozen=True, slots=True)
class KVRounding:
    """How the keys and values of one token are rounded.

    Attributes:
        bits: 8, 4 or 2.
        head_dim: D, values of a group.
        sinks: tokens at the start of a text that keep their numbers.
        rotate: whether groups are rotated before they are rounded.

    Raises:
        ValueError: bits or sizes that there are none of.
    """

    bits: int
    head_dim: int
    sinks: int = 4
    rotate: bool = True

    def __post_init__(self):
        if self.bits not in BITS:
            raise ValueError(f"keys and values are rounded to 8, 4 or 2 bits, not {self.bits}")
        if self.head_dim < 1 or self.sinks < 0:
            raise ValueError(
                f"head_dim must be at least 1 and sinks at least 0, got {self.head_dim} and "
                f"{self.sinks}"
            )

    def round(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """What the codes of `rows` stand for; sinks come back bit for bit.

        Args:
            rows: fp32 [T, 2 * kv_heads, D], keys first.
            positions: int64 [T], places in the text; None: no sinks are among them.  A node of a
                tree has the place it would have if its path were kept, not its cache row.

        Returns:
            fp32 [T, 2 * kv_heads, D], in the basis of `rows`.
        """
        rounded = self._values(*self._codes(rows))
        if positions is None:
            return rounded
        return torch.where((positions < self.sinks)[:, None, None], rows, rounded)

    def pack(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is stored of tokens that are no sinks.

        Args:
            rows: fp32 [T, 2 * kv_heads, D].

        Returns:
            codes: int8 [T, 2 * kv_heads, D] of 8 bits; below, uint8 [..., ceil(D * bits / 8)], 2 or
                4 neighbours a byte, the first in the lowest bits.
            scale: fp16 (8 bits) or bf16 [T, 2 * kv_heads].
            zero: bf16 [T, 2 * kv_heads]; None for 8 bits.
        """
        codes, scale, zero = self._codes(rows)
        if self.bits < 8:
            codes = pack_codes(codes.flatten(0, 1), self.bits).view(*codes.shape[:2], -1)
        return codes, scale, zero

    def unpack(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The fp32 rows that `pack` stored; the same bits as `round` without sinks."""
        if self.bits < 8:
            codes = unpack_codes(codes.flatten(0, 1), self.bits, self.head_dim)
            codes = codes.view(*scale.shape, self.head_dim)
        return self._values(codes, scale, zero)

    def bytes_per_token(self, layers: int, kv_heads: int) -> int:
        """Packed codes, scales and zeros of a token that is no sink."""
        numbers = 2 if self.bits == 8 else 4  # bytes of a scale, and of a zero where there is one
        return layers * 2 * kv_heads * (-(-self.head_dim * self.bits // 8) + numbers)

    @property
    def effective_bits(self) -> float:
        """Stored bits per value, scale and zero included, sinks not."""
        return 8 * self.bytes_per_token(1, 1) / (2 * self.head_dim)

    def _codes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """One code a value, as int8 or uint8, and scale and zero as stored."""
        groups = hadamard(rows) if self.rotate else rows
        if self.bits == 8:
            return *_round_int8(groups), None
        grid = Integers(self.bits)
        scale, zero = grid.fit(groups)
        return grid.round(groups, scale, zero), scale, zero

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        if self.bits == 8:
            groups = codes.float() * scale.float()[..., None]
        else:
            groups = Integers(self.bits).expand(codes, scale, zero)
        return hadamard(groups) if self.rotate else groups


def _round_int8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric codes int8 [..., D] and scales fp16 [...], as `rope_and_append` stores them."""
    scale = (groups.abs().amax(-1) / _INT8_MAX).clamp_(max=_LARGEST_SCALE).half()
    unit = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    q = (groups / unit[..., None]).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    return q.to(torch.int8), scale


def rounding_of(scheme: Scheme, head_dim: int) -> KVRounding | None:
    """How a scheme rounds keys and values; None where it keeps 16 bits.

    8 bits are rounded as the kernels do it, without rotation and sinks.
    """
    if scheme.kv == 16:
        return None
    if scheme.kv == 8:
        return KVRounding(8, head_dim, sinks=0, rotate=False)
    return KVRounding(scheme.kv, head_dim)


def check_device_kv(bits: int) -> None:
    """ValueError when keys and values of so many bits have no kernel."""
    if bits not in DEVICE_BITS:
        raise ValueError(
            f"kv{bits} has no kernel; keys and values on a device have 16 bits or, with -kv8, 8"
        )
