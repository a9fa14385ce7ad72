"""Take weights apart into blocks of about one bit, and choose which blocks a budget buys.

A unit's weights are multiplied by how large its input channels are, W s, and taken apart again
and again: the signs of what is left, and the nearest thin product of its magnitudes.  Magnitudes
are alike, signs are not, which is why this loses less than an SVD of the same size.  No block
needs another rounding: the same stacks serve every size between their first blocks and all of
them.

Which unit gets the next block is decided once for all sizes.  The benefit of a block is by how much
it lowers its unit's output error tr((W - W') H (W - W')^T) / tr(W H W^T), which units are compared
by as they are, per byte of the block.  A unit's blocks stay in their order; one that helps little
is judged together with the better ones behind it.

    error   of the scaled weights, it falls with every block by what its thin product explains; H
            knows correlations that s does not, so the output error may now and then rise.  On four
            units of the zoo's target, rank 16, on rows held out, a block leaves 0.24-0.63 of it
            and the first six together 0.002-0.006 of the output (2026-11-21)
    source  Wang et al. 2024, arXiv 2410.23918; they sort by the perplexity of the model, the
            relative output error needs no run of it
"""

import math

import torch
from torch import Tensor

from hspec_lab.quant.stack import Stack, expand_block, pack_signs
from hspec_lab.quantize.calibration import Inputs, output_error
from hspec_lab.quantize.svdquant import best_of_rank

# of the mean: a channel that the text never used must not blow its blocks' errors up
_LEAST_SCALE = 0.01


def stack_of(weight: Tensor, inputs: Inputs | None, *, blocks: int = 16, rank: int = 16) -> Stack:
    """Take weights apart, each block from what those before it left.

    Args:
        weight: fp32 [R, C].
        inputs: their channels' root mean squares are the scaling s; None: s is 1.
        blocks: how many, at least 1.
        rank: k, of the magnitudes; 1 to min(R, C).

    Raises:
        ValueError: a number of blocks or a rank that makes no sense.
    """
    R, C = weight.shape
    if blocks < 1:
        raise ValueError(f"bitstack: a stack has at least 1 block, not {blocks}")
    if not 1 <= rank <= min(R, C):
        raise ValueError(
            f"bitstack: magnitudes of {R} x {C} weights have a rank of 1 to {min(R, C)}, not {rank}"
        )
    scale = _channel_scale(weight, inputs)
    left, parts = weight * scale, []
    for _ in range(blocks):
        signs = pack_signs(left)
        up, down = (thin.bfloat16() for thin in best_of_rank(left.abs(), rank))
        parts.append((signs, up, down))
        # what is stored decides, so that the next block sees the error of its bf16
        left = left - expand_block(signs, up, down)
    return Stack.of(parts, scale)


def _channel_scale(weight: Tensor, inputs: Inputs | None) -> Tensor:
    if inputs is None:
        return torch.ones_like(weight[0])
    size = inputs.hessian.diagonal().clamp_min(0).sqrt()
    if not torch.isfinite(size).all():
        raise ValueError(
            "bitstack: the inputs' Hessian has NaN or infinite entries: rows overflowed"
        )
    mean = size.mean()
    return (size / mean).clamp_min(_LEAST_SCALE) if mean > 0 else torch.ones_like(size)


def block_errors(weight: Tensor, stack: Stack, inputs: Inputs | None) -> list[float]:
    """Relative output error with 1, 2, ... blocks kept; without inputs, of the weights."""
    C = weight.shape[1]
    hessian = torch.eye(C, device=weight.device) if inputs is None else inputs.hessian
    total, errors = torch.zeros_like(weight), []
    for index in range(stack.n_blocks):
        total += stack.block(index)
        errors.append(output_error(weight, total / stack.scale, hessian))
    return errors


def order_blocks(stacks: dict[str, Stack], errors: dict[str, list[float]]) -> list[tuple[str, int]]:
    """All blocks, the most useful first: every unit's first block, then by error fall per byte.

    Args:
        stacks: of each unit.
        errors: of each unit with 1, 2, ... blocks, as `block_errors` gives them.

    Returns:
        order: unit and index of the block; a unit's indices ascend.

    Raises:
        ValueError: errors that are missing, too many or not finite.
    """
    ranked = []
    for place, (name, stack) in enumerate(stacks.items()):
        known = errors.get(name, [])
        if len(known) != stack.n_blocks or not all(map(math.isfinite, known)):
            raise ValueError(
                f"{name}: {stack.n_blocks} blocks need as many finite errors, got {known}"
            )
        falls = [(a - b) / stack.block_nbytes for a, b in zip(known, known[1:], strict=False)]
        ranked += [(-b, place, i, name) for i, b in enumerate(_never_rising(falls), start=1)]
    return [(name, 0) for name in stacks] + [(name, i) for _, _, i, name in sorted(ranked)]


def _never_rising(benefits: list[float]) -> list[float]:
    """Means of neighbours that are merged until none is above the one before it."""
    runs: list[list[float]] = []  # sum and length
    for benefit in benefits:
        runs.append([benefit, 1])
        while len(runs) > 1 and runs[-1][0] / runs[-1][1] > runs[-2][0] / runs[-2][1]:
            total, length = runs.pop()
            runs[-1][0] += total
            runs[-1][1] += length
    return [total / length for total, length in runs for _ in range(length)]


def cut_to(
    stacks: dict[str, Stack], order: list[tuple[str, int]], budget_bytes: float
) -> dict[str, int]:
    """How many blocks of each unit a budget buys, in the order given, at least one of each.

    Larger budgets keep what smaller ones had, and all but the bytes of one block are used.

    Raises:
        ValueError: a budget below the first blocks of all or above all blocks.
    """
    least = sum(stack.cut(1).nbytes for stack in stacks.values())
    most = sum(stack.nbytes for stack in stacks.values())
    if not least <= budget_bytes <= most:
        raise ValueError(
            f"a budget of {budget_bytes / 1e6:.6g} MB: these {len(stacks)} stacks take from "
            f"{least / 1e6:.6g} MB (one block each) to {most / 1e6:.6g} MB (all blocks)"
        )
    kept, used = dict.fromkeys(stacks, 1), least
    for name, index in order:
        if index == 0:
            continue
        used += stacks[name].block_nbytes
        if used > budget_bytes:
            break
        kept[name] = index + 1
    return kept
