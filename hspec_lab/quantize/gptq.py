"""GPTQ: round a matrix column by column, each column's error made up for by those still to come.

A weight's error matters only through the product's error, tr((W - W') H (W - W')^T).  Once a column
is rounded, the best change of the others has a closed form: with the Cholesky factor U of the
inverse, H^-1 = U^T U, U upper,

    w_j -= (w_i - w'_i) * U[i, j] / U[i, i]        j > i

    order   by falling H[i, i], so that inputs that carry most are rounded while many columns are
            left to make up for them.  Groups stay contiguous as stored, and are then fitted to the
            weights as they came; in stored order each is fitted when its first column is reached.
    dead    an input that was always zero on the calibration text says nothing of its weights: they
            are rounded to nearest, not set to zero, because another text may need them.
    cost    C**3 for the factor, in fp64, and R * C**2, a block of columns at a time.
    error   no bound of its own.  On rows like the calibration's the product's error is as a rule
            well below rounding to nearest, a single weight's is above.
    source  Frantar et al. 2022, arXiv 2210.17323; the order and its static groups are options of
            the authors' code.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hspec_lab.quant.forms import Form, Grouped
from hspec_lab.quant.grids import PROTECTED_MAX, Grid, grid_of, to_row_units
from hspec_lab.quantize.calibration import Inputs
from hspec_lab.scheme import Scheme

# columns after which all later ones hear of the errors; groups divide it or are whole rows
BLOCK = 128
LARGEST_DAMPING = 1.0


def gptq(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: Scheme,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    raise_damping: bool = False,
    name: str = "",
) -> Form:
    """Round a matrix so that its products change little on the calibration text; on any grid.

    Args:
        weight: fp32 [R, C].
        inputs: of this matrix; only the Hessian is read.
        scheme: of these weights; its group divides C.
        damping: added to the Hessian's diagonal, as a share of its mean.
        act_order: round inputs that carry most first.
        raise_damping: where the damped Hessian cannot be factored, take ten times the damping.
        name: of the layer, for errors, such as model.layers.3.down.

    Raises:
        ValueError: no inputs, or of another matrix; a group that does not divide C; a Hessian that
            is not finite or cannot be factored.
    """
    grid, C = grid_of(scheme), weight.shape[1]
    _check(weight, inputs, scheme, name or "this matrix")
    hessian = inputs.hessian.to(weight.device)
    order = torch.arange(C, device=weight.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    U, _ = cholesky_of_inverse(hessian[order[:, None], order], damping, raise_damping, name)
    weight, row_scale = to_row_units(weight) if grid.two_levels else (weight, None)
    refit = None if act_order else scheme.group or C
    codes, scale, zero = _round_columns(weight, U, order, grid, scheme.group or C, refit)
    return Grouped.of(scheme, codes, scale, zero, row_scale)


def _check(weight: Tensor, inputs: Inputs | None, scheme: Scheme, name: str) -> None:
    C = weight.shape[1]
    if inputs is None:
        raise ValueError(f"{name}: gptq needs calibration inputs and got none")
    if inputs.hessian.shape != (C, C):
        raise ValueError(
            f"{name}: the Hessian of {C} inputs is [{C}, {C}], not {list(inputs.hessian.shape)}"
        )
    if scheme.group and C % scheme.group:
        raise ValueError(f"{name}: groups of {scheme.group} do not divide {C} inputs")


def cholesky_of_inverse(
    hessian: Tensor, damping: float = 0.01, raise_damping: bool = False, name: str = ""
) -> tuple[Tensor, float]:
    """Factor the inverse of a damped Hessian.

    Args:
        hessian: fp32 [C, C], the mean of x x^T; an input that was always zero counts as an average
            one that goes with no other.
        damping: added to the diagonal, as a share of its mean over inputs that were not zero.
        raise_damping: multiply the damping by ten until it works, to 1 at most.
        name: of the layer, for errors.

    Returns:
        U: fp32 [C, C], upper; U^T U is the inverse.
        damping: the one that was used.

    Raises:
        ValueError: not finite, or not positive definite at any damping that was allowed.
    """
    name = name or "this matrix"
    if not 0 <= damping < math.inf:
        raise ValueError(f"{name}: damping is 0 or more, 0.01 as a rule, not {damping}")
    if not hessian.isfinite().all():
        raise ValueError(
            f"{name}: the Hessian is not finite, because calibration inputs overflowed or were not "
            "numbers: no damping repairs that; calibrate in fp32 and look at the layers before"
        )
    diagonal = hessian.diagonal().double()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones_like(diagonal[0])
    live = torch.where(dead, mean, diagonal)
    for tried in _dampings(damping, raise_damping):
        U = _upper_of_inverse(hessian, live + tried * mean)
        if U is not None:
            return U, tried
    try_next = "" if raise_damping else "raise_damping=True (--raise-damping), a larger damping or "
    raise ValueError(
        f"{name}: the Hessian is not positive definite with damping {tried:g}: "
        f"pass {try_next}more calibration text"
    )


def _upper_of_inverse(hessian: Tensor, diagonal: Tensor) -> Tensor | None:
    """Upper U with U^T U the inverse, in fp64; None where that is not positive definite.

    Args:
        hessian: fp32 [C, C].
        diagonal: fp64 [C], in place of its own.

    Returns:
        fp32 [C, C].  At most three matrices of fp64 are in memory at once.
    """
    # H = V V^T with V upper is the factor of H turned by 180 degrees, and U is V's inverse
    turned = hessian.flip(0, 1).double()
    turned.diagonal().copy_(diagonal.flip(0))
    lower, failed = torch.linalg.cholesky_ex(turned)
    del turned
    if failed:
        return None
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return inverse.float().flip(0, 1)


def _dampings(first: float, rising: bool) -> Iterator[float]:
    yield first
    while rising and first < LARGEST_DAMPING:
        first = min(10 * first, LARGEST_DAMPING) if first else 0.01
        yield first


def _round_columns(
    weight: Tensor, U: Tensor, order: Tensor, grid: Grid, group: int, refit: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes uint8 [R, C], scale and zero [R, C/group]; refit: columns between two fits."""
    R, C = weight.shape
    scale, zero = _fit(grid, weight.reshape(R, -1, group))
    group_of = (order // group).tolist()
    # rows of errors are in weights once U has a unit diagonal
    U = U / U.diagonal()[:, None]
    # a column of weights is a row here, so that it lies in one piece
    weight = weight.T[order].contiguous()  # [C, R]
    codes = torch.empty(C, R, dtype=torch.uint8, device=weight.device)
    for start in range(0, C, BLOCK):
        end = min(start + BLOCK, C)
        errors = torch.empty(end - start, R, device=weight.device)
        for i in range(start, end):
            g = group_of[i]
            if refit and i % refit == 0:
                _put(scale, zero, g, _fit(grid, weight[i : i + group].T))
            fitted = scale[:, g], None if zero is None else zero[:, g]
            codes[i], errors[i - start] = _round_column(weight[i], grid, *fitted)
            weight[i + 1 : end].addr_(U[i, i + 1 : end], errors[i - start], alpha=-1)
        weight[end:].addmm_(U[start:end, end:].T, errors, alpha=-1)
    stored = torch.empty_like(codes)
    stored[order] = codes
    return stored.T.contiguous(), scale, zero


def _round_column(
    column: Tensor, grid: Grid, scale: Tensor, zero: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes and errors, [R] each: the column is R groups of one weight."""
    codes = grid.round(_within(grid, column[:, None]), scale, zero)
    return codes[:, 0], column - grid.expand(codes, scale, zero)[:, 0]


def _fit(grid: Grid, groups: Tensor) -> tuple[Tensor, Tensor | None]:
    return grid.fit(_within(grid, groups))


def _within(grid: Grid, weights: Tensor) -> Tensor:
    # making up for errors may move weights out of what two levels keep within an int8
    return weights.clamp(-PROTECTED_MAX, PROTECTED_MAX) if grid.two_levels else weights


def _put(scale: Tensor, zero: Tensor | None, g: int, fitted: tuple[Tensor, Tensor | None]) -> None:
    scale[:, g] = fitted[0]
    if zero is not None:
        zero[:, g] = fitted[1]
