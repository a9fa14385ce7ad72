"""AWQ: scale input channels by how loud they are, then clip the range of each group.

A weight that meets loud inputs costs more when it is rounded.  Multiplying its channel by s > 1
and the inputs by 1 / s leaves the product as it is and makes the weight's own rounding finer by s,
the others' in its group a little coarser.  s = mean|x|^a, one exponent a per unit, is searched by
the error of the unit's output; then each group is rounded over shrunken ranges, and the range with
the least error stays.

    cost    scale: `n_grid` roundings and products [R, C] x [C, C] per unit
            clip: `n_shrinks` roundings and products [R, C] x [G, G]; G = C without groups
    error   on the calibration rows neither step is worse than rounding to nearest: a = 0 and the
            whole range are among what is searched, and a row whose clipped groups do worse together
            than they did one by one is left unclipped
    source  Lin et al. 2023, arXiv 2306.00978; here errors come from the Hessian of the inputs
            (`calibration`), not from running the layer
"""

from dataclasses import replace

import torch
from torch import Tensor

from hspec_lab.model.shape import ModelShape
from hspec_lab.quant.forms import Form, Grouped, rounded
from hspec_lab.quant.grids import Grid, grid_of, to_row_units
from hspec_lab.quantize.calibration import Inputs, output_error
from hspec_lab.quantize.fold import Tensors, fold_scale, shareable_o, unit_weight
from hspec_lab.scheme import Scheme

# of the loudest channel's mean; nothing is known of a channel quieter than that
_FLOOR = 1e-4
# codes, scale, zero
_Rounding = tuple[Tensor, Tensor, Tensor | None]


def awq_scale(weight: Tensor, inputs: Inputs, scheme: Scheme, n_grid: int = 20) -> Tensor:
    """The channel scale under which rounding to nearest loses least of the output.

    Args:
        weight: fp32 [R, C], of one unit.
        inputs: what flows into it.
        scheme: how it will be rounded; only of its weights is the error counted.
        n_grid: exponents tried, evenly spaced in 0..1, the 1 excluded.

    Returns:
        fp32 [C]; weights are to be multiplied by it, inputs divided. Ones where nothing is better.
    """
    best, least = None, torch.inf
    for step in range(n_grid):
        s = _power_of_mean(inputs.mean_abs, step / n_grid)
        other = rounded(weight * s, scheme).dequantized() / s
        error = output_error(weight, other, inputs.hessian)
        if best is None or error < least:
            best, least = s, error
    return best


def _power_of_mean(mean_abs: Tensor, exponent: float) -> Tensor:
    """mean|x|^a [C], centred: its largest times its smallest is 1."""
    loudest = mean_abs.amax()
    if loudest == 0:
        return torch.ones_like(mean_abs)
    s = mean_abs.clamp_min(float(loudest) * _FLOOR) ** exponent
    return s / (s.amax() * s.amin()).sqrt()


def awq_clip(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: Scheme,
    *,
    least: float = 0.5,
    n_shrinks: int = 11,
) -> Form:
    """Round over the range of each group, shrunken to where the output suffers least.

    Args:
        weight: fp32 [R, C].
        inputs: what flows in; None: all channels count alike.
        scheme: any whose weights lie on a grid, or that rounds nothing.
        least: smallest part of a range that is tried.
        n_shrinks: parts tried, evenly spaced in `least`..1, both included.
    """
    if not scheme.rounds:
        return rounded(weight, scheme)
    grid, (R, C) = grid_of(scheme), weight.shape
    units, row_scale = to_row_units(weight) if grid.two_levels else (weight, None)
    groups = units.view(R, -1, scheme.group or C)
    blocks = None if inputs is None else _diagonal_blocks(inputs.hessian, groups.shape[2])
    nearest, clipped = _search(grid, groups, blocks, torch.linspace(1, least, n_shrinks).tolist())
    if inputs is not None:
        # groups were judged alone; errors of neighbours that cancelled may no longer do so
        better = [_row_error(grid, groups, how, inputs.hessian) for how in (clipped, nearest)]
        keep = (better[0] < better[1])[:, None].expand(groups.shape[:2])
        clipped = _pick(keep, clipped, nearest)
    codes, scale, zero = clipped
    return Grouped.of(scheme, codes.view(R, C), scale, zero, row_scale)


def awq(weight: Tensor, inputs: Inputs | None, scheme: Scheme) -> Form:
    """The rounder of AWQ: `awq_clip` of weights that `awq_layer` has scaled."""
    return awq_clip(weight, inputs, scheme)


def _search(
    grid: Grid, groups: Tensor, blocks: Tensor | None, shrinks: list[float]
) -> tuple[_Rounding, _Rounding]:
    """Rounding over the first of the ranges, and over each group's best; groups fp32 [R, n, G]."""
    first = best = _rounding(grid, groups, shrinks[0])
    least = _group_error(grid, groups, best, blocks)
    for shrink in shrinks[1:]:
        tried = _rounding(grid, groups, shrink)
        error = _group_error(grid, groups, tried, blocks)
        best = _pick(error < least, tried, best)
        least = torch.minimum(error, least)
    return first, best


def _rounding(grid: Grid, groups: Tensor, shrink: float) -> _Rounding:
    scale, zero = grid.fit(groups, shrink)
    return grid.round(groups, scale, zero), scale, zero


def _pick(mask: Tensor, one: _Rounding, other: _Rounding) -> _Rounding:
    """`one` where mask, bool [R, n], and `other` elsewhere."""
    codes = torch.where(mask[..., None], one[0], other[0])
    zero = None if one[2] is None else torch.where(mask, one[2], other[2])
    return codes, torch.where(mask, one[1], other[1]), zero


def _diagonal_blocks(hessian: Tensor, G: int) -> Tensor:
    """fp32 [C/G, G, G], what each group's inputs have in common."""
    n = len(hessian) // G
    return hessian.view(n, G, n, G).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _group_error(grid: Grid, groups: Tensor, how: _Rounding, blocks: Tensor | None) -> Tensor:
    """fp32 [R, n], each group's squared error of the output on its own."""
    lost = groups - grid.expand(*how)
    if blocks is None:
        return lost.square().sum(-1)
    return ((lost.transpose(0, 1) @ blocks).transpose(0, 1) * lost).sum(-1)


def _row_error(grid: Grid, groups: Tensor, how: _Rounding, hessian: Tensor) -> Tensor:
    """fp32 [R], the squared error of each output."""
    lost = (groups - grid.expand(*how)).flatten(1)
    return ((lost @ hessian) * lost).sum(-1)


def awq_layer(
    tensors: Tensors, shape: ModelShape, inputs: dict[str, Inputs], scheme: Scheme
) -> tuple[Tensors, dict[str, Tensor]]:
    """Fold the best scale of every unit into what comes before it; the function stays.

    `o` and `down` go first: their scales are folded into rows of the other two, which are then
    searched as they will be rounded.

    Args:
        tensors: of one layer, fp32, named as in a checkpoint without the prefix.
        inputs: what flows into each unit before the change.

    Returns:
        The layer's tensors, and fp32 [C] by unit, what its inputs are divided by.
    """
    scales = {}
    for unit in ("o", "down", "qkv", "gate_up"):
        seen = inputs[unit]
        if unit == "o":
            # a power of what query heads share is shared, too
            seen = replace(seen, mean_abs=shareable_o(seen.mean_abs, shape))
        scales[unit] = awq_scale(unit_weight(tensors, unit), seen, scheme)
        tensors = fold_scale(tensors, shape, unit, scales[unit])
    return tensors, scales
