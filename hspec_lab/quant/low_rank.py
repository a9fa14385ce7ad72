"""A rounded product and a thin one beside it: y = base(x) + (x @ down.T) @ up.T, in fp32.

cost    4 B per weight of the branch, k * (R + C), and two more products
error   the base's, and fp32 rounding
"""

import torch.nn.functional as F
from torch import Tensor

from hspec_lab.quant.forms import LowRank
from hspec_lab.quant.stored import Stored


class WithBranch(Stored):
    """A layer and a low-rank branch."""

    __slots__ = ("_base", "_up", "_down")

    def __init__(self, base: Stored, form: LowRank, format: str):
        self._base, self._up, self._down = base, form.up.float(), form.down.float()
        read = base.bytes_read + self._up.nbytes + self._down.nbytes
        super().__init__(format, form.shape, form.nbytes, base.device, read)

    def __call__(self, x: Tensor) -> Tensor:
        return self._base(x).add_(F.linear(F.linear(x, self._down), self._up))

    def __repr__(self) -> str:
        # what is found of a layer is remembered by this text: a branch beside a definition is
        # another layer than one beside an operator
        return f"{super().__repr__()} on {self._base!r}"

    def dequantized(self) -> Tensor:
        return self._base.dequantized() + self._up @ self._down
