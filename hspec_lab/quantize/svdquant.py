"""A thin branch in bf16 beside rounded weights: W ~ Q + up @ down, of rank k.

Rounding spreads its error over all directions of the input; the rows that really come in lie in
few.  The branch therefore is not the best approximation of a weight but of what comes out: with
H = E[x x^T] = G G^T (Cholesky) the output error of a difference D is |D G|^2, so the branch is the
truncated SVD of D G, brought back by G^-1.  Q and branch are fitted in turns,

    Q <- round(W - up @ down)        up @ down <- best of rank k for W - Q

once beginning with the branch of W itself (it takes outliers, rounding is spared them) and once
without a branch (it takes what rounding lost); the better pair stays.

    cost    16 k (R + C) / (R C) bits per weight: 0.25 at rank 32 on 4096 x 4096, but 1.6 on
            2048 x 384, where rank 8 (0.4) is the fairer choice
    choice  Cholesky, not the diagonal of H: on four units of the zoo's target at w4a16-g128 and
            rank 16, on rows held out, three turns leave 0.39-0.56 of round-to-nearest's error
            with it, 0.63-0.76 with the diagonal and 0.64-0.73 without inputs (2026-11-21)
    source  Li et al. 2024, arXiv 2411.05007.  Their smoothing of outliers into the weights is a
            transform of its own here; the whitening is SVD-LLM's, Wang et al. 2024,
            arXiv 2403.07378
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hspec_lab.quant.forms import Form, LowRank, rounded
from hspec_lab.quantize.calibration import Inputs
from hspec_lab.scheme import Scheme

Rounder = Callable[[Tensor, Inputs | None, Scheme], Form]

# of the mean of H's diagonal: channels that the text never used stay finite
_DAMPING = 0.01
_OVERSAMPLING = 16
_POWER_STEPS = 4


def svdquant(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: Scheme,
    *,
    rank: int = 32,
    iters: int = 3,
    rounder: Rounder | None = None,
) -> LowRank:
    """Round weights beside a low-rank branch that takes what rounding does badly.

    Args:
        weight: fp32 [R, C].
        inputs: what flows in; None: the error of the weights themselves is made small.
        scheme: of the rounded part, any that rounds.
        rank: k, of the branch; below min(R, C).
        iters: turns of fitting Q and branch, at least 1.
        rounder: (weight, inputs, scheme) -> form, for Q; None: round to nearest.

    Raises:
        ValueError: a rank or number of turns that makes no sense, a scheme that rounds nothing,
            inputs that are not finite.
    """
    _check(weight, scheme, rank, iters)
    rounder = rounder or (lambda residual, inputs, scheme: rounded(residual, scheme))
    factor = None if inputs is None else _factor(inputs.hessian)
    nothing = (weight.new_zeros(len(weight), 0), weight.new_zeros(0, weight.shape[1]))
    best, least = None, float("inf")
    for up, down in (_branch(weight, factor, rank), nothing):
        for _ in range(iters):
            base = rounder(weight - up.float() @ down.float(), inputs, scheme)
            rest = weight - base.dequantized()
            up, down = _branch(rest, factor, rank)
            lost = _size(rest - up.float() @ down.float(), factor)
            if best is None or lost < least:
                best, least = LowRank(base, up, down), lost
    return best


def best_of_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product of two thin matrices, by subspace iteration from a fixed start.

    Args:
        matrix: fp32 [R, C].
        rank: k, at most min(R, C).

    Returns:
        up, down: fp32 [R, k] and [k, C], of singular values shared evenly between them. Exact
            where k + 16 >= min(R, C), nearly so elsewhere, and O(R C k) instead of an SVD's cubes.
    """
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q  # [R, width]
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return (basis @ u[:, :rank]) * root, root[:, None] * v[:rank]


def _branch(matrix: Tensor, factor: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """bf16 up and down whose product is nearest to `matrix` as the inputs see it."""
    up, down = best_of_rank(matrix if factor is None else matrix @ factor, rank)
    if factor is not None:
        down = torch.linalg.solve_triangular(factor, down, upper=False, left=False)
    return up.bfloat16(), down.bfloat16()


def _factor(hessian: Tensor) -> Tensor:
    """fp32 [C, C], lower: the Cholesky factor of H with a little added to its diagonal."""
    if not torch.isfinite(hessian).all():
        raise ValueError(
            "svdquant: the inputs' Hessian has NaN or infinite entries: rows overflowed"
        )
    mean = hessian.diagonal().mean().double().clamp_min(torch.finfo(torch.float32).tiny)
    damped = hessian.double() / mean
    damped.diagonal().add_(_DAMPING)
    return torch.linalg.cholesky(damped).float()


def _size(difference: Tensor, factor: Tensor | None) -> float:
    seen = difference if factor is None else difference @ factor
    return float(seen.square().sum())


def _check(weight: Tensor, scheme: Scheme, rank: int, iters: int) -> None:
    R, C = weight.shape
    if not 1 <= rank < min(R, C):
        raise ValueError(
            f"svdquant: a branch of {R} x {C} weights has rank 1 to {min(R, C) - 1}, not {rank}"
        )
    if iters < 1:
        raise ValueError(f"svdquant: iters must be at least 1, got {iters}")
    if not scheme.rounds:
        raise ValueError(f"svdquant: {scheme} rounds no weight, so a branch has nothing to take")
