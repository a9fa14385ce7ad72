"""How rounded weights are kept: packed tensors that a file holds and operators are made from.

    form         tensors                                                   weights
    Plain        weight [R, C], as it came                                 itself
    Grouped      codes, scale [R, C/G], zero or none, row_scale or none    see `grids`
    PerInput     a `Grouped` of the transpose: groups along the outputs    its transpose
    LowRank      a form and two thin matrices                              form + up @ down
    Stack        layers of signs and thin magnitudes, see `stack`          their sum

A form knows its `nbytes` (of all its tensors) and `effective_bits`, expands to fp32, and goes to a
file and back: `form.tensors()` and `form.kind` are all that is written.

Codes are packed along the inputs in planes of 8, 4, 2 or 1 bits, low bits first: 6 bits are a
plane of 4 and one of 2, 3 bits one of 2 and one of 1.  In a plane of b bits a byte holds 8/b
neighbours, the first in its lowest bits; a row is filled up to a whole byte with zeros.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hspec_lab.quant.grids import Grid, grid_of, to_row_units
from hspec_lab.scheme import Scheme, parse

_PLANES = {8: (8,), 6: (4, 2), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 [R, C], values below 2**bits -> uint8 [R, bytes of a row]."""
    planes, shift = [], 0
    for b in _PLANES[bits]:
        planes.append(_pack_plane((codes >> shift) & ((1 << b) - 1), b))
        shift += b
    return torch.cat(planes, dim=1)


def _pack_plane(values: Tensor, b: int) -> Tensor:
    per_byte = 8 // b
    filled = torch.nn.functional.pad(values, (0, -values.shape[1] % per_byte))
    lanes = filled.view(len(values), -1, per_byte)
    packed = torch.zeros_like(lanes[..., 0])
    for lane in range(per_byte):
        packed |= lanes[..., lane] << (lane * b)
    return packed


def unpack_codes(packed: Tensor, bits: int, C: int) -> Tensor:
    """Inverse of `pack_codes`: uint8 [R, C]."""
    codes, start, shift = 0, 0, 0
    for b in _PLANES[bits]:
        width = -(-C * b // 8)
        plane = packed[:, start : start + width]
        lanes = [(plane >> (lane * b)) & ((1 << b) - 1) for lane in range(8 // b)]
        codes = codes | (torch.stack(lanes, dim=-1).flatten(1)[:, :C] << shift)
        start, shift = start + width, shift + b
    return codes


class Form:
    """What all forms answer; `shape` is (R, C), R outputs and C inputs."""

    shape: tuple[int, int]
    kind: str

    def tensors(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """fp32 [R, C]."""
        raise NotImplementedError

    def reordered(self, order: Tensor) -> "Form":
        """The same with rows `order`, int64 [R]."""
        raise NotImplementedError

    def to(self, device) -> "Form":
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        there = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor | Form)}
        return replace(self, **there)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight, scales and zeros included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


@dataclass(frozen=True, slots=True)
class Plain(Form):
    """Weights that were not rounded."""

    weight: Tensor
    kind = "plain"

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def dequantized(self) -> Tensor:
        return self.weight.float()

    def reordered(self, order: Tensor) -> "Plain":
        return Plain(self.weight[order])


@dataclass(frozen=True, slots=True)
class Grouped(Form):
    """Codes of a scheme's grid in groups along the inputs.

    Attributes:
        scheme: of the decoder layers alone (`Scheme.weights`); says grid and bits.
        shape: (R, C).
        packed: uint8 [R, bytes], see `pack_codes`.
        scale, zero: [R, C/G], in the grid's dtypes; zero may be None.
        row_scale: fp32 [R]; only of two levels.
    """

    scheme: Scheme
    shape: tuple[int, int]
    packed: Tensor
    scale: Tensor
    zero: Tensor | None = None
    row_scale: Tensor | None = None

    @classmethod
    def of(
        cls,
        scheme: Scheme,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        row_scale: Tensor | None = None,
    ) -> "Grouped":
        """Pack codes, uint8 [R, C]; C / scale.shape[1] inputs share a scale."""
        scheme = scheme.weights
        packed = pack_codes(codes, scheme.bits)
        return cls(scheme, tuple(codes.shape), packed, scale, zero, row_scale)

    @property
    def kind(self) -> str:
        return str(self.scheme)

    @property
    def grid(self) -> Grid:
        return grid_of(self.scheme)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def codes(self) -> Tensor:
        """uint8 [R, C]."""
        return unpack_codes(self.packed, self.scheme.bits, self.shape[1])

    @property
    def has_integers(self) -> bool:
        """Whether a row is int8 numbers under one scale, as `integers` gives them."""
        if self.scheme.grid != "int":
            return False
        return self.scheme.two_levels or (self.zero is None and self.scale.shape[1] == 1)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Where every row has one scale: int8 numbers [R, C] and those scales, fp32 [R]."""
        codes = self.codes().int()
        if self.grid.two_levels:
            scale, zero = (
                t.int().repeat_interleave(self.group, 1) for t in (self.scale, self.zero)
            )
            return ((codes - zero) * scale).to(torch.int8), self.row_scale
        return (codes - self.grid.middle).to(torch.int8), self.scale[:, 0].float()

    def tensors(self) -> dict[str, Tensor]:
        named = {"codes": self.packed, "scale": self.scale}
        named |= {"zero": self.zero, "row_scale": self.row_scale}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def dequantized(self) -> Tensor:
        R, C = self.shape
        codes = self.codes().view(R, -1, self.group)
        weight = self.grid.expand(codes, self.scale, self.zero).view(R, C)
        return weight if self.row_scale is None else weight * self.row_scale[:, None]

    def reordered(self, order: Tensor) -> "Grouped":
        def picked(tensor):
            return None if tensor is None else tensor[order]

        tensors = (self.packed, self.scale, self.zero, self.row_scale)
        return Grouped(self.scheme, self.shape, *map(picked, tensors))


@dataclass(frozen=True, slots=True)
class PerInput(Form):
    """Groups along the outputs, each within one input channel: a form of the transpose.

    source  AdaDim, Heo et al. 2023, arXiv 2309.15531
    """

    transposed: Grouped
    order: Tensor | None = None  # int64 [R]: rows after a reordering

    @property
    def shape(self) -> tuple[int, int]:
        return self.transposed.shape[::-1]

    @property
    def kind(self) -> str:
        return f"per-input {self.transposed.kind}"

    def tensors(self) -> dict[str, Tensor]:
        return self.transposed.tensors()

    def dequantized(self) -> Tensor:
        weight = self.transposed.dequantized().T
        return weight.contiguous() if self.order is None else weight[self.order]

    def reordered(self, order: Tensor) -> "PerInput":
        return PerInput(self.transposed, order if self.order is None else self.order[order])


@dataclass(frozen=True, slots=True)
class LowRank(Form):
    """A form plus a thin product in bf16: what rounding lost, or what it was spared.

    Attributes:
        base: form [R, C].
        up, down: bf16 [R, k] and [k, C].

    source  SVDQuant, Li et al. 2024, arXiv 2411.05007
    """

    base: Form
    up: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def kind(self) -> str:
        return f"low-rank {self.base.kind}"

    def tensors(self) -> dict[str, Tensor]:
        return self.base.tensors() | {"up": self.up, "down": self.down}

    def dequantized(self) -> Tensor:
        return self.base.dequantized() + self.up.float() @ self.down.float()

    def reordered(self, order: Tensor) -> "LowRank":
        return LowRank(self.base.reordered(order), self.up[order], self.down)


def rounded(weight: Tensor, scheme: Scheme) -> Form:
    """Round to nearest: each group fitted to its own weights, no data.

    Args:
        weight: fp32 [R, C].
        scheme: of these weights; its group divides C.
    """
    if not scheme.rounds:
        return Plain(weight.bfloat16() if scheme.bits == 16 else weight)
    grid, (R, C) = grid_of(scheme), weight.shape
    weight, row_scale = to_row_units(weight) if grid.two_levels else (weight, None)
    groups = weight.view(R, -1, scheme.group or C)
    scale, zero = grid.fit(groups)
    codes = grid.round(groups, scale, zero).view(R, C)
    return Grouped.of(scheme, codes, scale, zero, row_scale)


def from_file(kind: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Form:
    """The form that `kind` and `tensors` were written of."""
    if kind == "plain":
        return Plain(tensors["weight"])
    word, _, rest = kind.partition(" ")
    if word == "low-rank":
        base = {name: t for name, t in tensors.items() if name not in ("up", "down")}
        return LowRank(from_file(rest, base, shape), tensors["up"], tensors["down"])
    if word == "per-input":
        return PerInput(from_file(rest, tensors, shape[::-1]))
    if word == "stack":
        from hspec_lab.quant.stack import Stack

        return Stack.from_file(kind, tensors, shape)
    names = ("codes", "scale", "zero", "row_scale")
    form = Grouped(parse(kind), tuple(shape), *(tensors.get(name) for name in names))
    if problem := _misfit(form):
        raise ValueError(f"a form {kind!r} of {list(shape)} weights {problem}")
    return form


def _misfit(form: Grouped) -> str | None:
    """What of a form's tensors cannot be, as a file may be damaged."""
    (R, C), scheme = form.shape, form.scheme
    width = sum(-(-C * bits // 8) for bits in _PLANES[scheme.bits])
    if form.packed is None or form.scale is None:
        return "lacks codes or scales"
    if tuple(form.packed.shape) != (R, width):
        return f"has codes of {list(form.packed.shape)} bytes, not {[R, width]}"
    if form.scale.ndim != 2 or len(form.scale) != R or C % form.scale.shape[1]:
        return f"has scales {list(form.scale.shape)}"
    wanted = form.scale.shape if scheme.zero or scheme.two_levels else None
    if (None if form.zero is None else form.zero.shape) != wanted:
        return "has zeros that do not fit it"
    rows = None if form.row_scale is None else tuple(form.row_scale.shape)
    if rows != ((R,) if scheme.two_levels else None):
        return "has scales of rows that do not fit it"
    return None
