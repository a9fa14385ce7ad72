"""fp32 linear layers: y = x @ w.T, the format that nothing was done to.

    operator    oneDNN on a weight blocked once, at construction
    cost        4 B per weight, one copy: the blocked weight replaces the plain one, and
                `dequantized` turns it back
    error       rounding of one fp32 sum of C products

Why oneDNN. Compared on an AVX-512 Zen 5, torch 2.13, 1 thread, 2026-11-21, a training job beside
it, 50 MB of weights in rotation, quartiles of interleaved calls; times relative to F.linear (MKL)
at the same T, the range over shapes (R, C) in (384, 384) (384, 1024) (2048, 384) (4096, 384):

    T                                       1         2         4         8         16        64
    blocked by oneDNN, hint 16 (this)   .5-.7     .3-.7     .5-.6     .4-.6     .45-.55   .4-.5
    x @ wt, wt contiguous [C, R]        .6-.9     .6-.7     .8-1.0    .9-1.0    .9-1.0    .9-1.0
    (w @ x.T).T                         1.0       .4-.6     .5-.6     .8-1.5    1.1       1.0
    packed by MKL for this very T       .6-1.1    .5-.8     .9-1.0    .9-1.0    .9-1.0    1.0

`torch.mv` on wt equals x @ wt. The hint matters: blocked for one row, oneDNN runs up to 2.5x
slower. A blocked layer spends 9 us on a matrix of no size (F.linear 2 us), which is why x @ wt
keeps up with it at (384, 384), T = 1. Held to AVX2 it takes .5-1.0 of F.linear's time and is the
fastest form from T = 8 on. Bits of a row depended neither on the other rows nor on 1 or 2 threads,
in both instruction sets; F.linear's do. The first call at each T compiles: warm up every T before
timing.
"""

import torch
from torch import Tensor

from hspec_lab.quant.stored import Stored

# the number of rows the blocking is chosen for
_ROWS_HINT = 16


class Fp32(Stored):
    """The same product by oneDNN on a blocked copy of the weight; CPU."""

    __slots__ = ("_blocked", "_multiply")

    def __init__(self, weight: Tensor):
        super().__init__("fp32", weight.shape, 4 * weight.numel(), weight.device)
        self._blocked = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._blocked, None, "none", [], "")

    def dequantized(self) -> Tensor:
        return self._blocked.to_dense()
