"""How other people's quantizers are called on one matrix; what `crosscheck.py` compares with.

Libraries are imported where they are used, so that one that is missing is named by `crosscheck.py`.
"""

import inspect
from importlib.metadata import version
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

from hspec_lab.quant.grids import Integers
from hspec_lab.scheme import Scheme

# the defaults of both sides' solvers
HQQ_P, HQQ_BETA, HQQ_KAPPA, HQQ_STEPS = 0.7, 10.0, 1.01, 20
TORCHAO_REFUSAL = 'assert device.type == "cuda", "GPTQ only supports CUDA currently"'


def their_steps(weight: Tensor, scheme: Scheme, grid: Integers) -> tuple[Tensor, Tensor]:
    """Codes and weights after our number of the package's steps, of each group its best ones.

    Groups are handed over in units of their step, so that its `beta` means what ours does.
    """
    from hqq.core.optimize import optimize_weights_proximal_legacy_step as one_step

    groups = weight.reshape(-1, scheme.group)
    scale, zero = (part[:, None] for part in grid.fit(groups))
    units, place, beta = groups / scale, grid.middle - zero / scale, HQQ_BETA
    limits = (0, 2 * grid.middle - 1)
    best, least = None, torch.full_like(place, torch.inf)
    for _ in range(HQQ_STEPS + 1):
        values, codes, place, _ = one_step(units, 1.0, place, limits, beta, HQQ_P, 1)
        error = (units - values).abs().pow(HQQ_P).mean(1, keepdim=True)
        now = torch.stack([codes, values * scale])
        best = now if best is None else torch.where(error < least, now, best)
        least, beta = torch.minimum(error, least), beta * HQQ_KAPPA
    return best[0].view_as(weight), best[1].view_as(weight)


def their_hqq(quantizer, weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Codes and weights of the package's own `Quantizer.quantize`."""
    options = {"nbits": scheme.bits, "group_size": scheme.group, "axis": 1, "device": "cpu"}
    codes, meta = quantizer.quantize(weight, bitpack=False, **options)
    return codes, ((codes - meta["zero"]) * meta["scale"]).view_as(weight)


def compressor_gptq(
    weight: Tensor, hessian: Tensor, scheme: Scheme, act_order: bool, grid=None
) -> Tensor:
    """Weights fp32 [R, C] of llmcompressor's `quantize_weight`.

    Args:
        weight: fp32 [R, C].
        hessian: fp32 [C, C], the mean of x x^T.
        grid: our scales and zeros [R, C/G]; None: its own min-max ones.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    how = {"strategy": "group", "group_size": scheme.group or weight.shape[1]}
    how["actorder"] = "static" if act_order else None
    args = QuantizationArgs(num_bits=scheme.bits, symmetric=False, **how)
    if grid is None:
        groups = weight.view(len(weight), -1, args.group_size)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    else:
        scale = grid[0].float()
        # their codes are signed as ours less the middle, and their zeros are in codes
        zero = -grid[1].float() / scale
    parts = weight, hessian, scale, zero
    weight, hessian, scale, zero = (part.clone()[None] for part in parts)
    return quantize_weight(weight, hessian, scale, zero, None, args)[0][0]


def torchao_gptq(weight: Tensor, hessian: Tensor, base_config, block: int = 256, **stand_ins):
    """torchao's `gptq_quantize`, run on a CPU: without the line that refuses one.

    Args:
        block: columns after which later ones hear of the errors; the default is its own.
        stand_ins: what replaces names of its module.
    """
    from torchao.prototype.gptq import api

    source = inspect.getsource(api.gptq_quantize)
    if TORCHAO_REFUSAL not in source:
        raise ValueError(f"torchao 0.18.0 is what this knows to run, not {version('torchao')}")
    names = vars(api) | stand_ins
    exec(source.replace(TORCHAO_REFUSAL, ""), names)
    config = {"gptq_quantize_block_size": block, "percdamp": 0.01, "base_config": base_config}
    # its Hessian is twice the mean, which changes nothing: damping is relative
    with mock.patch("torch.cuda.synchronize"):
        return names["gptq_quantize"](2 * hessian, weight.clone(), SimpleNamespace(**config))


def torchao_int4(weight: Tensor, hessian: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and weights; our grid fits the groups, in place of mslk, which is empty on PyPI."""
    from torchao.prototype.gptq.api import _int4_row_dequantize_zp
    from torchao.quantization import Int4WeightOnlyConfig

    def fit(groups: Tensor, group: int) -> tuple[None, Tensor, Tensor]:
        scale, zero = Integers(4, dtype=dtype).fit(groups)
        return None, scale.float()[None], zero.float()[None]

    parts = {"Int4Tensor": SimpleNamespace, "int4_row_quantize_zp": fit, "pack_int4": torch.clone}
    made = torchao_gptq(weight, hessian, Int4WeightOnlyConfig(group_size=128), **parts)
    theirs = _int4_row_dequantize_zp(made.qdata, made.scale, made.zero_point, 128)
    return made.qdata + 8, theirs


def torchao_int8(weight: Tensor, hessian: Tensor) -> Tensor:
    """Weights of its symmetric 8 bits, a scale a row."""
    from torchao.quantization import Int8WeightOnlyConfig, PerRow

    config = Int8WeightOnlyConfig(granularity=PerRow())
    # with smaller blocks the scale of a row is that of its first block alone
    return torchao_gptq(weight, hessian, config, block=weight.shape[1]).dequantize()
