"""Scales of a unit's inputs, folded into what comes before it: the layer's function stays.

A unit that reads x / s with weights W * s gives what it gave before; whoever wrote x writes x / s:

    unit      reads the output of                     which is divided by s
    qkv       the layer's first norm                  gain
    o         attention, a mixture of values          rows of v_proj, the bias too
    gate_up   the layer's second norm                 gain
    down      silu(gate) * up                         rows of up_proj, the bias too

Query heads that share a value head must share their scales in `o`; `shareable_o` makes them.

    cost    a pass over the layer's weights; nothing while decoding
    error   fp32 rounding; exact for powers of two
    source  Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, eq. 4
            Lin et al. 2024, QoQ, arXiv 2405.04532, SmoothAttention, section 4.2
"""

import torch
from torch import Tensor

from hspec_lab.model.checkpoint import UNITS
from hspec_lab.model.shape import ModelShape
from hspec_lab.quantize.calibration import Inputs

Tensors = dict[str, Tensor]

NORMS = {"qkv": "input_layernorm.weight", "gate_up": "post_attention_layernorm.weight"}


def unit_weight(tensors: Tensors, unit: str) -> Tensor:
    """fp32 [R, C], the matrices of one unit stacked along their outputs."""
    return torch.cat([tensors[f"{name}.weight"] for name in UNITS[unit]])


def fold_scale(tensors: Tensors, shape: ModelShape, unit: str, s: Tensor) -> Tensors:
    """Divide the inputs of one unit by s and multiply its weights by it.

    Args:
        tensors: of one layer, fp32, named as in a checkpoint without the prefix.
        unit: qkv, o, gate_up or down.
        s: fp32 [C], positive; for `o` the same for all query heads of a value head.

    Returns:
        The layer's tensors; those given stay as they are.

    Raises:
        ValueError: another unit or size, a scale that is not positive, or `o` not shared.
    """
    if unit not in UNITS:
        raise ValueError(f"{unit!r} is no unit of a layer; units are {', '.join(UNITS)}")
    C = tensors[f"{UNITS[unit][0]}.weight"].shape[1]
    if s.shape != (C,) or not bool((torch.isfinite(s) & (s > 0)).all()):
        raise ValueError(f"{unit}: scales must be {C} positive numbers, got {_range(s)}")
    names = [f"{name}.weight" for name in UNITS[unit]]
    folded = tensors | {name: tensors[name] * s for name in names}
    if unit in NORMS:
        return folded | {NORMS[unit]: tensors[NORMS[unit]] / s}
    if unit == "down":
        return folded | _scaled_rows(tensors, "mlp.up_proj", 1 / s)
    return folded | _scaled_rows(tensors, "self_attn.v_proj", 1 / _per_value(s, shape))


def _range(s: Tensor) -> str:
    return f"{list(s.shape)} in {float(s.min()):g}..{float(s.max()):g}"


def _scaled_rows(tensors: Tensors, name: str, scale: Tensor) -> Tensors:
    """Weight and bias of a matrix with outputs multiplied by `scale` [R]."""
    rows = {f"{name}.weight": tensors[f"{name}.weight"] * scale[:, None]}
    if (bias := tensors.get(f"{name}.bias")) is not None:
        rows[f"{name}.bias"] = bias * scale
    return rows


def _per_value(s: Tensor, shape: ModelShape) -> Tensor:
    """fp32 [kv_heads * D] from scales that a group's query heads share."""
    by_head = s.view(shape.kv_heads, -1, shape.head_dim)
    if not torch.allclose(by_head, by_head[:, :1], rtol=1e-5, atol=0):
        raise ValueError(
            f"o: {by_head.shape[1]} query heads read each value head and must share its scales; "
            "shareable_o makes them share"
        )
    return by_head[:, 0].flatten()


def shareable_o(s: Tensor, shape: ModelShape) -> Tensor:
    """The geometric mean over the query heads of each value head, given to all of them.

    Args:
        s: fp32 [heads * D], not negative.

    Returns:
        fp32 [heads * D].
    """
    by_head = s.view(shape.kv_heads, -1, shape.head_dim)
    return by_head.log().mean(1, keepdim=True).exp().expand_as(by_head).flatten()


def smooth_scale(absmax_x: Tensor, absmax_w: Tensor, alpha: float = 0.5) -> Tensor:
    """Share the range of each channel between inputs and weights: max|x|^a / max|w|^(1 - a).

    Args:
        absmax_x, absmax_w: fp32 [C], largest magnitudes of inputs and of the weights reading them.
        alpha: 0..1, how much of the inputs' range moves into the weights.

    Returns:
        fp32 [C]; 1 for a channel whose inputs or weights are all zero.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    s = absmax_x**alpha / absmax_w ** (1 - alpha)
    return torch.where((absmax_x > 0) & (absmax_w > 0), s, torch.ones_like(s))


def smooth_layer(
    tensors: Tensors,
    shape: ModelShape,
    inputs: dict[str, Inputs],
    alpha: float = 0.5,
    units: tuple[str, ...] = ("qkv", "gate_up"),
) -> tuple[Tensors, dict[str, Tensor]]:
    """SmoothQuant: move the range of loud input channels into the weights that read them.

    Args:
        tensors: of one layer, as in `fold_scale`.
        inputs: what flows into each of the units before the change.
        units: those with a norm before them, as published; `down` and `o` may be named too.

    Returns:
        The layer's tensors, and fp32 [C] by unit, what its inputs are divided by.
    """
    scales = {}
    for unit in units:
        absmax_w = unit_weight(tensors, unit).abs().amax(0)
        s = smooth_scale(inputs[unit].absmax, absmax_w, alpha)
        scales[unit] = shareable_o(s, shape) if unit == "o" else s
        tensors = fold_scale(tensors, shape, unit, scales[unit])
    return tensors, scales


def smooth_attention(
    tensors: Tensors, shape: ModelShape, absmax_k: Tensor, alpha: float = 0.5
) -> Tensors:
    """SmoothAttention: divide loud channels of the keys, multiply the queries that meet them.

    Channels i and i + D / 2 are rotated into each other and share one scale, and so do the query
    heads of a key head.  Where queries and keys have norms of their own (Qwen3), the scale goes
    into the gains, which are the same for all heads: the loudest head decides.

    Args:
        tensors: of one layer, as in `fold_scale`.
        absmax_k: fp32 [kv_heads * D], largest magnitudes of the keys as cached, channels in the
            checkpoint's order.

    Returns:
        The layer's tensors; those given stay as they are.
    """
    K, D = shape.kv_heads, shape.head_dim
    loudest = absmax_k.view(K, 2, D // 2).amax(1)  # [K, D / 2]
    if shape.qk_norm:
        loudest = loudest.amax(0, keepdim=True)
    s = torch.where(loudest > 0, loudest**alpha, torch.ones_like(loudest)).repeat(1, 2)  # [K, D]
    if shape.qk_norm:
        q, k = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
        return tensors | {q: tensors[q] * s[0], k: tensors[k] / s[0]}
    per_query = s.repeat_interleave(shape.heads // K, 0).flatten()
    queries = _scaled_rows(tensors, "self_attn.q_proj", per_query)
    return tensors | queries | _scaled_rows(tensors, "self_attn.k_proj", 1 / s.flatten())
