"""Which layers keep more bits: an order by importance, cut where a target average is met.

Two measures of a layer's importance, neither of which rounds anything:

    lim_scores   how much the layer changes its rows: minus the cosine of what goes in and what
                 comes out; the higher, the more important
    zd_scores    the share of its weights that are more than a standard deviation above their
                 mean; the *lower*, the more important

    source  LIM and ZD, Dumitru et al. 2024, arXiv 2406.17415
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def lim_scores(
    inputs_of_layers: Sequence[Tensor], outputs_of_layers: Sequence[Tensor]
) -> list[float]:
    """Layer input modification: minus the cosine of a layer's input and output, mean over rows.

    Args:
        inputs_of_layers: fp32 [n, C] of each layer, its residual stream before.
        outputs_of_layers: the same rows after it.

    Returns:
        scores: -1 (rows kept their direction) to 1; the higher, the more important.

    Raises:
        ValueError: inputs and outputs that are not of the same layers and rows.
    """
    before, after = list(inputs_of_layers), list(outputs_of_layers)
    if [x.shape for x in before] != [y.shape for y in after]:
        raise ValueError(
            "lim_scores: every layer needs inputs and outputs of one shape, got "
            f"{[list(x.shape) for x in before]} and {[list(y.shape) for y in after]}"
        )
    cosine = torch.nn.functional.cosine_similarity
    return [-float(cosine(x, y, dim=1).mean()) for x, y in zip(before, after, strict=True)]


def zd_scores(weights_of_layer: Iterable[Tensor]) -> float:
    """Z-score distribution: the share of a layer's weights whose z-score is above 1.

    The lower, the more important: hand `-zd_scores(...)` to `allocate_by_score`.

    Args:
        weights_of_layer: fp32, of any shapes; mean and deviation are of all of them together.

    Returns:
        share: 0..1; 0 where all weights are equal.
    """
    weights = torch.cat([weight.flatten() for weight in weights_of_layer])
    deviation, mean = torch.std_mean(weights, correction=0)
    return int((weights - mean > deviation).sum()) / weights.numel()


def allocate_by_score(
    scores: Sequence[float],
    sizes: Sequence[int],
    *,
    target_bits: float,
    bits: tuple[int, int] = (4, 2),
) -> list[int]:
    """Keep layers at the higher width, the most important first, while the target allows it.

    The first layer in order of score that would not fit ends it, even if a smaller one behind it
    would: no layer is low while a less important one is high.  Of equal scores the earlier goes
    first.

    Args:
        scores: of each layer, the higher the more important.
        sizes: weights of each layer.
        target_bits: what the average over weights may be at most.
        bits: the higher and the lower width.

    Returns:
        widths: one of `bits` for each layer.

    Raises:
        ValueError: scores and sizes of different lengths, a score that is not finite, or a target
            below the lower width.
    """
    high, low = max(bits), min(bits)
    if len(scores) != len(sizes) or not all(map(math.isfinite, scores)):
        raise ValueError(
            f"allocate: {len(sizes)} layers need as many finite scores, got {list(scores)}"
        )
    if target_bits < low:
        raise ValueError(
            f"allocate: an average of {target_bits:g} bits is out of reach at widths of {low} and "
            f"{high}; the least is {low}"
        )
    widths, total = [low] * len(sizes), sum(sizes)
    used = low * total
    for layer in sorted(range(len(sizes)), key=lambda layer: -scores[layer]):
        used += (high - low) * sizes[layer]
        # the quotient and not the product: it rounds to the very number a target is written as
        if used / total > target_bits:
            break
        widths[layer] = high
    return widths
