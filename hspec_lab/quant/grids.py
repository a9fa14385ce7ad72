"""What a rounded weight may be: integers, 4-bit floats, tables; and the scales of its group.

A grid answers three questions about groups of weights, fp32 [..., G]:

    scale, zero = grid.fit(groups)                    in the dtypes they are stored in, [...]
    codes       = grid.round(groups, scale, zero)     uint8 [..., G], the nearest code
    weights     = grid.expand(codes, scale, zero)     fp32 [..., G]

Codes are chosen for the stored scale.  What a code q stands for:

    integers with zeros     (q - middle) * scale + zero      middle = 2**(bits - 1)
    symmetric integers      (q - middle) * scale             q in 1..2**bits - 1
    two levels              (q - zero) * scale               integers, in units of the row's scale
    mxfp4                   e2m1 * 2**(scale - 127)          a sign, two bits of exponent, one more
    nf4                     table[q] * scale                 quantiles of a normal distribution
    e4m3                    e4m3 * scale                     the code is the number's own byte

    error   half a step, beside what rounding the scale or zero to bf16 costs; a weight beyond the
            largest code is clipped to it.
            e4m3: one part in 16 of the weight, or 2**-10 * scale where that is more.
            two levels: half a step, and up to 7.5 steps of the row at a group's top, where the
            integer scale was rounded down.
    choice  Zeros cost nothing where the operator reads one anyway: on normal and Student-t(4)
            weights, G = 32 and 128, 4 bits, the root mean square error with them is 0.71-0.85 of
            the symmetric grid's.  Two levels with the integer scale rounded up lose nothing at the
            top, but their error is 1.04 (normal) and 1.06 (t(4)) of the nearest one's, G = 128.
    source  mxfp4: OCP Microscaling Formats 1.0, 2023.  nf4: Dettmers et al. 2023, arXiv 2305.14314.
            two levels: QoQ, Lin et al. 2024, arXiv 2405.04532.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hspec_lab.scheme import Scheme

E4M3_MAX = 448.0
PROTECTED_MAX = 119
TINY = 2.0**-100
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Integers:
    """Integers of `bits` bits, 2..8, with or without a zero; scale and zero in `dtype`."""

    bits: int
    zero: bool = True
    dtype: torch.dtype = torch.bfloat16
    two_levels = False

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    def fit(self, groups: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor | None]:
        """Scale and zero of each group.

        Args:
            groups: fp32 [..., G].
            shrink: of the range, 0..1, broadcast against [...]; below 1 the outermost are clipped.
        """
        if not self.zero:
            scale = (groups.abs().amax(-1) * shrink / (self.middle - 1)).to(self.dtype)
            return torch.where(scale > 0, scale, torch.ones_like(scale)), None
        low, high = groups.amin(-1), groups.amax(-1)
        if isinstance(shrink, Tensor) or shrink != 1:
            spare = (high - low) * (1 - shrink) / 2
            low, high = low + spare, high - spare
        scale = ((high - low) / (2 * self.middle - 1)).to(self.dtype)
        return scale, (low + self.middle * scale.float()).to(self.dtype)

    def round(self, groups: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        if not self.zero:
            q = (groups / scale.float()[..., None]).round_()
            q = q.clamp_(1 - self.middle, self.middle - 1).add_(self.middle)
            return q.to(torch.uint8)
        # a group whose weights are all equal has scale 0 and is all in its zero
        step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
        q = (groups - zero.float()[..., None]) / step[..., None]
        q = q.round_().add_(self.middle).clamp_(0, 2 * self.middle - 1)
        return torch.where(scale[..., None] > 0, q, self.middle).to(torch.uint8)

    def expand(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        weights = (codes.float() - self.middle) * scale.float()[..., None]
        return weights if zero is None else weights + zero.float()[..., None]


@dataclass(frozen=True, slots=True)
class TwoLevels:
    """4-bit codes with an integer scale and zero; groups come in units of their row's scale."""

    bits: int = 4
    two_levels = True

    def fit(self, groups: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """uint8 scale, 1..16, and uint8 zero, 0..119, of groups within -119..119.

        The zero is not negative, because kernels subtract none: a group of positive weights spans
        0..maximum.
        """
        low, high = groups.amin(-1).clamp_max_(0) * shrink, groups.amax(-1) * shrink
        scale = ((high - low) / 15).round_().clamp_min_(1)
        return scale.to(torch.uint8), (-low / scale).round_().clamp_(0, PROTECTED_MAX).to(
            torch.uint8
        )

    def round(self, groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        q = (groups / scale.float()[..., None]).round_().add_(zero.float()[..., None])
        return q.clamp_(0, 15).to(torch.uint8)

    def expand(self, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (codes.float() - zero.float()[..., None]) * scale.float()[..., None]


@dataclass(frozen=True, slots=True)
class MxFp4:
    """Four-bit floats e2m1 under a power of two."""

    bits: int = 4
    two_levels = False

    def fit(self, groups: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, None]:
        """uint8 exponents, 127 for 1; a largest weight lands in 4..8, and above 6 is clipped."""
        absmax = (groups.abs().amax(-1) * shrink).clamp_min(2.0**-120)
        exponent = torch.frexp(absmax).exponent - 1 - 2
        return (exponent + 127).clamp_(0, 254).to(torch.uint8), None

    def round(self, groups: Tensor, scale: Tensor, zero: None = None) -> Tensor:
        units = torch.ldexp(groups, 127 - scale.int()[..., None])
        magnitude = units.abs()
        # ties go to the even code, as in any float
        below = torch.tensor(_midpoints(_E2M1), device=groups.device)
        code = torch.bucketize(magnitude, below)
        tie = (code < 7) & (magnitude == below[code.clamp_max(6)]) & (code % 2 == 1)
        return ((code + tie) | ((units < 0).long() << 3)).to(torch.uint8)

    def expand(self, codes: Tensor, scale: Tensor, zero: None = None) -> Tensor:
        table = torch.tensor((*_E2M1, *(-x for x in _E2M1)), device=codes.device)
        return torch.ldexp(table[codes.long()], scale.int()[..., None] - 127)


@dataclass(frozen=True, slots=True)
class NormalFloat4:
    """Sixteen quantiles of a normal distribution, scaled to a group's largest magnitude."""

    bits: int = 4
    two_levels = False

    def fit(self, groups: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, None]:
        """bf16 scale; 1 for a group of zeros."""
        scale = (groups.abs().amax(-1) * shrink).bfloat16()
        return torch.where(scale > 0, scale, torch.ones_like(scale)), None

    def round(self, groups: Tensor, scale: Tensor, zero: None = None) -> Tensor:
        below = torch.tensor(_midpoints(_NF4), device=groups.device)
        return torch.bucketize(groups / scale.float()[..., None], below).to(torch.uint8)

    def expand(self, codes: Tensor, scale: Tensor, zero: None = None) -> Tensor:
        table = torch.tensor(_NF4, device=codes.device)
        return table[codes.long()] * scale.float()[..., None]


@dataclass(frozen=True, slots=True)
class E4M3:
    """8-bit floats, their largest 448."""

    bits: int = 8
    two_levels = False

    def fit(self, groups: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, None]:
        """fp32 scale, at least 2**-100, so that groups of zeros can be divided by it."""
        return (groups.abs().amax(-1) * shrink / E4M3_MAX).clamp_min(TINY), None

    def round(self, groups: Tensor, scale: Tensor, zero: None = None) -> Tensor:
        # a quotient may exceed 448 by its own rounding, and e4m3 knows no infinity
        q = (groups / scale[..., None]).clamp_(-E4M3_MAX, E4M3_MAX)
        return q.to(torch.float8_e4m3fn).view(torch.uint8)

    def expand(self, codes: Tensor, scale: Tensor, zero: None = None) -> Tensor:
        return codes.view(torch.float8_e4m3fn).float() * scale[..., None]


Grid = Integers | TwoLevels | MxFp4 | NormalFloat4 | E4M3


def _midpoints(table: tuple[float, ...]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(table, table[1:], strict=False)]


def grid_of(scheme: Scheme) -> Grid:
    """The grid of a scheme's weights.

    Raises:
        ValueError: the scheme rounds no weight, or stores them in no grid.
    """
    if scheme.grid == "int":
        if scheme.two_levels:
            return TwoLevels()
        # an integer product multiplies its sums by the scale, in fp32
        dtype = torch.bfloat16 if scheme.rows == 16 else torch.float32
        return Integers(scheme.bits, scheme.zero, dtype)
    named = {"mxfp4": MxFp4, "nf4": NormalFloat4, "e4m3": E4M3}
    if scheme.grid not in named:
        raise ValueError(f"{scheme}: its weights are on no grid")
    return named[scheme.grid]()


def to_row_units(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Divide rows by what makes their largest magnitude 119; fp32 [R, C] and fp32 [R].

    119 and not 127: half a step of a group more, 8 at most, then still is an int8.
    """
    scale = weight.abs().amax(1) / PROTECTED_MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale[:, None]).clamp_(-PROTECTED_MAX, PROTECTED_MAX), scale
