"""Our quantization beside other people's code, on the same weights and the same inputs.

    PYTHONPATH=<this repository> python benchmarks/crosscheck.py

Runs where hqq, llmcompressor, torchao and bitsandbytes are installed, in an environment of their
own: docs/crosschecks.md says how to make it, what was found and why numbers differ. No network, no
GPU, about a minute on one thread. Prints a Markdown table; errors are relative ones of the product
under the Hessian for GPTQ, mean |error|**0.7 for HQQ, mean squared error for formats.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from sys import modules
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

from hspec_lab import zoo
from hspec_lab.model.checkpoint import Checkpoint
from hspec_lab.model.tokens import load_tokenizer
from hspec_lab.quant.forms import Form, rounded
from hspec_lab.quant.grids import Integers, MxFp4, NormalFloat4, grid_of
from hspec_lab.quant.kv_bits import hadamard
from hspec_lab.quantize.calibration import Inputs, InputSums, output_error
from hspec_lab.quantize.gptq import gptq
from hspec_lab.quantize.hqq import hqq
from hspec_lab.quantize.layers import Walk, read_layer
from hspec_lab.quantize.text import Calibration
from hspec_lab.scheme import Scheme, parse

LIBRARIES = ("hqq", "llmcompressor", "torchao", "bitsandbytes")
LAYER = 2
P, BETA, KAPPA, STEPS = 0.7, 10.0, 1.01, 20
COLUMNS = ("algorithm", "against", "matrix", "format", "equal codes", "ours", "theirs", "nearest")
TORCHAO_REFUSAL = 'assert device.type == "cuda", "GPTQ only supports CUDA currently"'


@dataclass(frozen=True, slots=True)
class Case:
    """A matrix fp32 [R, C] and what flows into it."""

    name: str
    weight: Tensor
    inputs: Inputs


def made_case(R: int = 256, C: int = 512, n: int = 4096) -> Case:
    """Heavy-tailed weights; inputs that are mixtures of fewer sources, some channels loud."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = 0.02 * normal(R, C) / normal(4, R, C).square().mean(0).sqrt()
    mixture = normal(C // 4, C) * torch.exp(0.7 * normal(C)) / (C // 4) ** 0.5
    sums = InputSums(n)
    sums.add(normal(n, C // 4) @ mixture + 0.1 * normal(n, C))
    return Case("made", weight, sums.result())


def zoo_case() -> Case:
    """The target's down projection of layer 2 on our calibration text, layers before it in fp32."""
    source = Checkpoint(zoo.folder("target"))
    windows = Calibration().windows(load_tokenizer(source.folder), source.shape.context)
    walk = Walk(source, source.tensor("model.embed_tokens.weight"), windows)
    for index in range(LAYER):
        walk.advance(read_layer(source, index))
    layer = read_layer(source, LAYER)
    return Case("zoo", layer["mlp.down_proj.weight"], walk.overhear(layer)[0]["down"])


def loss(weight: Tensor, other: Tensor) -> float:
    """HQQ's objective."""
    return float((weight - other).abs().pow(P).mean())


def same(codes: Tensor, others: Tensor) -> str:
    """The share of equal codes."""
    share = float((codes.long() == others.long().view_as(codes)).double().mean())
    # 0.99999 is not all of them
    return "all" if share == 1 else f"{min(share, 0.99999):.5f}"


# ---- HQQ -----------------------------------------------------------------------------------------


def hqq_rows(case: Case) -> Iterator[tuple]:
    """One step of the solver with errors in our units; then the package's solvers as they are."""
    from hqq.core.optimize import optimize_weights_proximal_slow
    from hqq.core.quantize import Quantizer

    weight = case.weight
    for name in ("w4a16-g128", "w2a16-g64"):
        scheme = parse(name)
        nearest = loss(weight, rounded(weight, scheme).dequantized())
        exact = Integers(scheme.bits, dtype=torch.float32)
        with mock.patch.object(modules[hqq.__module__], "grid_of", return_value=exact):
            form = hqq(weight, None, scheme)
        ours = exact.expand(form.codes().view(*form.scale.shape, -1), form.scale, form.zero)
        codes, theirs = their_steps(weight, scheme, exact)
        found = loss(weight, ours.view_as(weight)), loss(weight, theirs)
        yield "hqq, steps", "hqq", case.name, f"{name}, fp32", same(form.codes(), codes), *found, nearest
        form = hqq(weight, None, scheme)
        solvers = {"as shipped": Quantizer.optimize_weights, "slow": optimize_weights_proximal_slow}
        for kind, solver in solvers.items():
            with mock.patch.object(Quantizer, "optimize_weights", solver):
                codes, theirs = their_hqq(Quantizer, weight, scheme)
            found = loss(weight, form.dequantized()), loss(weight, theirs)
            yield f"hqq, {kind}", "hqq", case.name, name, same(form.codes(), codes), *found, nearest


def their_steps(weight: Tensor, scheme: Scheme, grid: Integers) -> tuple[Tensor, Tensor]:
    """Codes and weights after our number of the package's steps, of each group its best ones.

    Groups are handed over in units of their step, so that its `beta` means what ours does.
    """
    from hqq.core.optimize import optimize_weights_proximal_legacy_step as one_step

    groups = weight.reshape(-1, scheme.group)
    scale, zero = (part[:, None] for part in grid.fit(groups))
    units, place, beta = groups / scale, grid.middle - zero / scale, BETA
    best, least = None, torch.full_like(place, torch.inf)
    for _ in range(STEPS + 1):
        shown = (0, 2 * grid.middle - 1)
        values, codes, place, _ = one_step(units, 1.0, place, shown, beta, P, 1)
        error = (units - values).abs().pow(P).mean(1, keepdim=True)
        now = torch.stack([codes, values * scale])
        best = now if best is None else torch.where(error < least, now, best)
        least, beta = torch.minimum(error, least), beta * KAPPA
    return best[0].view_as(weight), best[1].view_as(weight)


def their_hqq(quantizer, weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Codes and weights of the package's own `Quantizer.quantize`."""
    options = {"nbits": scheme.bits, "group_size": scheme.group, "axis": 1, "device": "cpu"}
    codes, meta = quantizer.quantize(weight, bitpack=False, **options)
    return codes, ((codes - meta["zero"]) * meta["scale"]).view_as(weight)


# ---- GPTQ ----------------------------------------------------------------------------------------


def gptq_rows(case: Case) -> Iterator[tuple]:
    """Three orders and grids that are handed over, then both sides with grids of their own."""
    weight, hessian = case.weight, case.inputs.hessian
    plans = [("w4a16", False), ("w4a16", True), ("w4a16-g128", True), ("w2a16-g64", True)]
    for name, act_order in plans:
        scheme = parse(name)
        form = gptq(weight, case.inputs, scheme, act_order=act_order)
        theirs = compressor_gptq(case, scheme, act_order, (form.scale, form.zero))
        codes = grid_of(scheme).round(
            theirs.view(*form.scale.shape, -1), form.scale, form.zero
        )
        order = "by H" if act_order else "stored order"
        yield gptq_row("llmcompressor", case, f"{name}, {order}", form, codes, theirs)
    form = gptq(weight, case.inputs, parse("w4a16-g128"))
    theirs = compressor_gptq(case, form.scheme, True)
    yield gptq_row("llmcompressor", case, "w4a16-g128, by H, own grids", form, None, theirs)
    form = gptq(weight, case.inputs, form.scheme, act_order=False)
    for dtype in (torch.bfloat16, torch.float32):
        codes, theirs = torchao_int4(weight, hessian, dtype)
        what = f"w4a16-g128, stored order, {str(dtype)[6:]} scales there"
        yield gptq_row("torchao", case, what, form, codes, theirs)
    form = gptq(weight, case.inputs, parse("w8a16"), act_order=False)
    theirs = torchao_int8(weight, hessian)
    yield gptq_row("torchao", case, "w8a16, stored order, own grids", form, None, theirs)


def gptq_row(against: str, case: Case, what: str, form: Form, codes, theirs: Tensor) -> tuple:
    others = form.dequantized(), theirs, rounded(case.weight, form.scheme).dequantized()
    errors = (output_error(case.weight, other, case.inputs.hessian) for other in others)
    return "gptq", against, case.name, what, "" if codes is None else same(form.codes(), codes), *errors


def compressor_gptq(case: Case, scheme: Scheme, act_order: bool, grid=None) -> Tensor:
    """llmcompressor's `quantize_weight`: weights fp32 [R, C].

    Args:
        grid: our scales and zeros [R, C/G]; None: its own min-max ones.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    how = {"strategy": "group", "group_size": scheme.group or case.weight.shape[1]}
    how["actorder"] = "static" if act_order else None
    args = QuantizationArgs(num_bits=scheme.bits, symmetric=False, **how)
    if grid is None:
        groups = case.weight.view(len(case.weight), -1, args.group_size)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    else:
        scale = grid[0].float()
        # their codes are signed as ours less the middle, and their zeros are in codes
        zero = -grid[1].float() / scale
    parts = case.weight, case.inputs.hessian, scale, zero
    weight, hessian, scale, zero = (part.clone()[None] for part in parts)
    return quantize_weight(weight, hessian, scale, zero, None, args)[0][0]


def torchao_gptq(weight: Tensor, hessian: Tensor, base_config, **stand_ins):
    """torchao's `gptq_quantize`, run on a CPU: without its first line that refuses one.

    Args:
        stand_ins: what replaces names of its module.
    """
    from torchao.prototype.gptq import api

    source = inspect.getsource(api.gptq_quantize)
    if TORCHAO_REFUSAL not in source:
        raise ValueError(f"torchao 0.18.0 is what this knows to run, not {version('torchao')}")
    names = vars(api) | stand_ins
    exec(source.replace(TORCHAO_REFUSAL, ""), names)
    config = {"gptq_quantize_block_size": 256, "percdamp": 0.01, "base_config": base_config}
    # its Hessian is twice the mean, which changes nothing: damping is relative
    with mock.patch("torch.cuda.synchronize"):
        return names["gptq_quantize"](2 * hessian, weight.clone(), SimpleNamespace(**config))


def torchao_int4(weight: Tensor, hessian: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and weights; groups of 128 are fitted by our grid, as the package it uses has none."""
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

    return torchao_gptq(weight, hessian, Int8WeightOnlyConfig(granularity=PerRow())).dequantize()


# ---- formats -------------------------------------------------------------------------------------


def format_rows(case: Case) -> Iterator[tuple]:
    """nf4 beside bitsandbytes, mxfp4 beside torchao, the Hadamard rotation beside llmcompressor."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from torchao.prototype.mx_formats.kernels import unpack_uint4
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    weight = case.weight
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    # the first of two neighbours lies in the upper half of a byte
    codes = torch.cat([packed >> 4, packed & 15], dim=1)
    theirs = dequantize_4bit(packed, state)
    groups = weight.view(len(weight), -1, 64)
    for kind, scale in {
        "bf16 scales": NormalFloat4().fit(groups)[0],
        "fp32 scales": groups.abs().amax(-1),
    }.items():
        ours = NormalFloat4().round(groups, scale)
        shown = NormalFloat4().expand(ours, scale).view_as(weight)
        equal = same(ours, codes)
        yield "nf4", "bitsandbytes", case.name, kind, equal, *squares(weight, shown, theirs)
    kind = torch.float4_e2m1fn_x2
    exponents, packed = to_mx(weight, kind, 32)
    theirs = to_dtype(packed, exponents, kind, 32, torch.float32)
    groups, grid = weight.view(len(weight), -1, 32), MxFp4()
    scale, _ = grid.fit(groups)
    ours = grid.round(groups, scale)
    shown = grid.expand(ours, scale).view_as(weight)
    equal = f"{same(ours, unpack_uint4(packed))}; exponents {same(scale, exponents.view(torch.uint8))}"
    yield "mxfp4", "torchao", case.name, "", equal, *squares(weight, shown, theirs)


def squares(weight: Tensor, *others: Tensor) -> tuple:
    return *(float((weight - other).square().mean()) for other in others), None
