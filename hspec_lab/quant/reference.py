"""The definition of every scheme in plain torch: expand the weights, round the rows, multiply.

    rows of 32 bits   y = x @ w.T                              fp32
    rows of 16 bits   y = bf16(bf16(x) @ w.T)                  sums in fp32
    rows of 8 bits    y = (xq @ w.T) * a / 64                  a = max|x| of the row,
                      xq = round(64 + 64 * x / a) - 64         -64..64
    rows of 4 bits    y = (xq @ w.T) * a / 7                   xq = round(7 * x / a), -7..7
    rows in e4m3      y = e4m3(x) @ w.T                        a scale per row

    cost    the weights are expanded once: 4 B each (8 B where rows are rounded, whose sums are
            taken in float64 so that they are the integer sums); a layer's time is not its scheme's
    rows    every scale of an activation belongs to one row, so no row sees its neighbours

Why 64 and not 127 levels a side: fbgemm adds two products u8 x s8 in 16 bits on processors without
VNNI, and 2 * 128 * 127 = 32512 is the most that fits; the full range saturates without a word. 64
is a power of two, so the operator's rounding is x * 64 exactly and the reference says which integer
comes out (a scale of 2/127 leaves ties at the row's own maximum to the last bit). fbgemm adds its
zero point before it rounds, in fp32, so 1.4999999 becomes 2: the reference does the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hspec_lab.quant.forms import Form, Grouped
from hspec_lab.quant.grids import E4M3
from hspec_lab.quant.stored import Stored
from hspec_lab.scheme import Scheme

# integers a side, and the operator's zero point, which it adds before it rounds
LEVELS = {8: 64, 4: 7}
ZERO_POINT = 64
# smallest normal fp32: a row of zeros divides by it and stays zero
TINY = torch.finfo(torch.float32).tiny


def row_integers(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rows as integers in fp32 [T, C], and what makes them the rows again, fp32 [T, 1]."""
    absmax = x.abs().amax(1, keepdim=True).clamp_min(TINY)
    levels = LEVELS[bits]
    return (x / absmax * levels + ZERO_POINT).round() - ZERO_POINT, absmax / levels


class Reference(Stored):
    """Expand, round, multiply; any device, any form."""

    __slots__ = ("_rows", "_weight", "_scale")

    def __init__(self, form: Form, scheme: Scheme):
        self._rows = "e4m3" if scheme.grid == "e4m3" and scheme.rows == 8 else scheme.rows
        self._weight, self._scale = form.dequantized(), 1.0
        if self._rows in LEVELS:
            if isinstance(form, Grouped) and form.has_integers:
                self._weight, self._scale = form.integers()
            self._weight = self._weight.double()
        read = self._weight.nbytes
        super().__init__(str(scheme), form.shape, form.nbytes, self._weight.device, read)

    def __call__(self, x: Tensor) -> Tensor:
        if self._rows == 32:
            return F.linear(x, self._weight)
        if self._rows == 16:
            return F.linear(x.bfloat16().float(), self._weight).bfloat16().float()
        if self._rows == "e4m3":
            grid = E4M3()
            scale, _ = grid.fit(x)
            return F.linear(grid.expand(grid.round(x, scale), scale), self._weight)
        integers, unit = row_integers(x, self._rows)
        sums = (integers.double() @ self._weight.T).float()
        return sums * (self._scale * unit)

    def dequantized(self) -> Tensor:
        scale = self._scale[:, None] if isinstance(self._scale, Tensor) else self._scale
        return self._weight.float() * scale
