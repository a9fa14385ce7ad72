"""HQQ: move the zeros of groups so that most weights fit well and a few fit badly; no data.

Rounding to nearest lays the zero so that the outermost weights fit.  HQQ keeps the scale and moves
the zero to make the mean of |w - w'|**p small, p < 1, which forgives large errors.  Each step sets
aside what counts as an outlier, e, and takes the mean of what remains:

    e    = sign(d) * max(0, |d| - |d|**(p-1) / beta)        d = w - w', in steps of the group
    zero = mean(w - (q - middle) * scale - e)
    beta = beta * kappa

    units   Errors are taken in steps of their group; the authors' code takes them in weights, so
            that there the same beta does something else where weights are small.
    cost    iters passes over the weights.
    error   no group's mean of |w - w'|**p is above rounding to nearest: the best zero seen is kept,
            judged as stored.
    source  Badri and Shaji 2023, Half-Quadratic Quantization of large machine learning models,
            dropbox.github.io/hqq_blog
"""

import torch
from torch import Tensor

from hspec_lab.quant.forms import Form, Grouped
from hspec_lab.quant.grids import Integers, grid_of
from hspec_lab.quantize.calibration import Inputs
from hspec_lab.scheme import Scheme


def hqq(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: Scheme,
    *,
    iters: int = 20,
    p: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
) -> Form:
    """Round a matrix with zeros that a half-quadratic solver finds; integers with zeros only.

    Args:
        weight: fp32 [R, C].
        inputs: not read.
        scheme: of these weights, integers with zeros; its group divides C.
        iters: steps of the solver.
        p: power of the errors, above 0 and at most 1.
        beta: how little counts as an outlier, 1/steps**(2-p); above 0.
        kappa: what beta is multiplied by after each step.

    Raises:
        ValueError: weights without zeros; a group that does not divide C; p out of its range.
    """
    grid, (R, C) = grid_of(scheme), weight.shape
    if not isinstance(grid, Integers) or not grid.zero:
        raise ValueError(
            f"hqq moves zeros and {scheme} has none: take integers with zeros, such as w4a16-g128"
        )
    if not 0 < p <= 1:
        raise ValueError(f"hqq: p is above 0 and at most 1, not {p}")
    if scheme.group and C % scheme.group:
        raise ValueError(f"hqq: groups of {scheme.group} do not divide {C} inputs")
    groups = weight.reshape(R, -1, scheme.group or C)
    scale, zero = grid.fit(groups)
    zero = _best_zero(grid, groups, scale, zero, (iters, p, beta, kappa))
    codes = grid.round(groups, scale, zero)
    return Grouped.of(scheme, codes.view(R, C), scale, zero)


def _best_zero(
    grid: Integers,
    groups: Tensor,
    scale: Tensor,
    zero: Tensor,
    options: tuple[int, float, float, float],
) -> Tensor:
    """The zeros [R, C/G] with the smallest losses seen, from the given ones on."""
    iters, p, beta, kappa = options
    # groups of equal weights have scale 0, and their zero is right as it is
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()[..., None]
    best, least = zero, torch.full_like(step[..., 0], torch.inf)
    for _ in range(iters + 1):
        codes = grid.round(groups, scale, zero)
        error = groups - grid.expand(codes, scale, zero)
        loss = error.abs().pow_(p).mean(-1)
        best, least = torch.where(loss < least, zero, best), torch.minimum(loss, least)
        outliers = _shrunk(error / step, p, beta).mul_(step)
        zero = (zero.float() + (error - outliers).mean(-1)).to(zero.dtype)
        beta *= kappa
    return best


def _shrunk(error: Tensor, p: float, beta: float) -> Tensor:
    magnitude = error.abs()
    # an error of 0 has an infinite threshold where p < 1, and shrinks to 0 as it should
    return error.sign() * (magnitude - magnitude.pow(p - 1) / beta).clamp_min_(0)
