"""Weights of up to 8 bits and 16-bit rows, by one or two products of 4-bit weights.

ATen has one product of low-bit weights in groups on CPUs: int4 x bf16, a scale and a zero a group,

    w[r, c] = (q[r, c] - 8) * scale[r, c // G] + zero[r, c // G]     q in 0..15, scale, zero bf16

Integers of 2 and 3 bits are such numbers.  6- and 8-bit integers and e2m1 floats are sums of two
of them, a coarse one and a fine one, whose scales differ by a power of two and so are exact:

    bits      coarse               fine
    2, 3, 4   v, scale s, zero z   -                             v = code - middle
    6         v >> 2, 4 s, z       v & 3, s, 0
    8         v >> 4, 16 s, z      (v & 15) - 8, s, 8 s
    mxfp4     t >> 2, 4 u, 0       t & 3, u, 0                   t = 2 * e2m1, u = 2**(scale - 128)

    cost      1/2 B per weight and plane, 4/G B of scale and zero: 4.25 bits a plane at G = 128.
              Two planes cost two products: 4096 x 4096, 1 and 8 rows, 0.49 and 1.6 ms, one 0.24
              and 0.8, fp32 1.3 and 1.5 (Zen 5 with AVX-512, 2 threads, torch 2.13, 2026-11-21).
    error     against the reference: one bf16 step (<= 2**-7) of each plane's product
    layout    depends on the processor; bf16 rows on purpose: with fp32 ones it is a scalar loop
"""

import torch
from torch import Tensor

from hspec_lab.quant.forms import Form, Grouped
from hspec_lab.quant.grids import Integers, MxFp4
from hspec_lab.quant.stored import Stored

# what the operator takes; whole rows are cut into the largest that divides them
GROUPS = (256, 128, 64, 32)
OUTPUTS = 16
_MIDDLE = 8


def planes_of(form: Form) -> int:
    """How many products multiply this form's weights; 0: none does."""
    if not isinstance(form, Grouped):
        return 0
    if isinstance(form.grid, MxFp4):
        return 2
    return (1 if form.grid.bits <= 4 else 2) if isinstance(form.grid, Integers) else 0


def _planes(form: Grouped) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(integers -8..7, scale, zero) of each plane, in fp32; their sum are the weights."""
    codes = form.codes().int()
    nothing = torch.zeros(form.scale.shape)
    if isinstance(form.grid, MxFp4):
        halves = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])
        t = halves[codes.long()].int()
        unit = torch.ldexp(torch.ones(form.scale.shape), form.scale.int() - 128)
        return [(t >> 2, 4 * unit, nothing), (t & 3, unit, nothing)]
    v, scale = codes - form.grid.middle, form.scale.float()
    zero = nothing if form.zero is None else form.zero.float()
    if form.grid.bits <= 4:
        return [(v, scale, zero)]
    if form.grid.bits == 6:
        return [(v >> 2, 4 * scale, zero), (v & 3, scale, nothing)]
    return [(v >> 4, 16 * scale, zero), ((v & 15) - 8, scale, 8 * scale)]


class Int4Planes(Stored):
    """A form's planes, packed for the operator."""

    __slots__ = ("_planes", "_group")

    def __init__(self, form: Grouped, format: str):
        R, C = form.shape
        group = form.group if form.group in GROUPS else next(g for g in GROUPS if C % g == 0)
        repeat = form.group // group
        self._group, self._planes = group, []
        for integers, scale, zero in _planes(form):
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers + _MIDDLE, 1)
            both = torch.stack([scale, zero], dim=2).repeat_interleave(repeat, 1).bfloat16()
            self._planes.append((packed, both.transpose(0, 1).contiguous()))  # [C/G, R, 2]
        read = len(self._planes) * (R * C // 2 + 4 * (R * C // group))
        super().__init__(format, form.shape, form.nbytes, form.packed.device, read)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.bfloat16()
        y = _multiply(x, *self._planes[0], self._group).float()
        for packed, scale_zero in self._planes[1:]:
            y += _multiply(x, packed, scale_zero, self._group)
        return y

    def dequantized(self) -> Tensor:
        # multiplied with unit rows at scale 1 and zero 0 the operator gives back q - 8, exactly,
        # whatever its layout; zeros are added last, as in the form
        unit = torch.eye(self.shape[1], dtype=torch.bfloat16)
        weight, zeros = 0.0, 0.0
        for packed, scale_zero in self._planes:
            ones = torch.zeros_like(scale_zero)
            ones[..., 0] = 1
            q = _multiply(unit, packed, ones, self._group).T.float()
            scale, zero = scale_zero.float().repeat_interleave(self._group, 0).permute(2, 1, 0)
            weight, zeros = weight + q * scale, zeros + zero
        return weight + zeros


def _multiply(x: Tensor, packed: Tensor, scale_zero: Tensor, group: int) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm_for_cpu.default(x, packed, group, scale_zero)
