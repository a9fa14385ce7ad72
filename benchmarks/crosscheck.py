"""Our quantization beside other people's code, on the same weights and the same inputs.

    PYTHONPATH=<this repository> python benchmarks/crosscheck.py

Runs where hqq, llmcompressor, torchao and bitsandbytes are installed, in an environment of their
own: docs/crosschecks.md says how to make it, what was found and why numbers differ. No network,
no GPU, some 15 seconds on one thread. Prints a Markdown table; errors are relative ones of the
product under the Hessian for GPTQ, mean |error|**0.7 for HQQ, mean squared error for formats.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from crosscheck_peers import (
    HQQ_P,
    compressor_gptq,
    their_hqq,
    their_steps,
    torchao_int4,
    torchao_int8,
)
from torch import Tensor

import hspec_lab
from hspec_lab import zoo
from hspec_lab.model.checkpoint import Checkpoint
from hspec_lab.quant.forms import Form, rounded
from hspec_lab.quant.grids import Integers, grid_of
from hspec_lab.quant.kv_bits import hadamard
from hspec_lab.quantize.calibration import Inputs, InputSums, output_error
from hspec_lab.quantize.gptq import gptq
from hspec_lab.quantize.hqq import hqq
from hspec_lab.quantize.layers import Walk, read_layer
from hspec_lab.quantize.text import Calibration
from hspec_lab.scheme import parse
from hspec_lab.text import load_tokenizer

LIBRARIES = ("hqq", "llmcompressor", "torchao", "bitsandbytes")
LAYER = 2
COLUMNS = ("algorithm", "against", "matrix", "format", "equal codes", "ours", "theirs", "nearest")


@dataclass(frozen=True, slots=True)
class Case:
    """A matrix fp32 [R, C] and what flows into it."""

    name: str
    weight: Tensor
    inputs: Inputs

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """Weight and Hessian."""
        return self.weight, self.inputs.hessian


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
    return float((weight - other).abs().pow(HQQ_P).mean())


def same(codes: Tensor, others: Tensor) -> str:
    """The share of equal codes."""
    share = float((codes.long() == others.long().view_as(codes)).double().mean())
    # 0.99999 is not all of them
    return "all" if share == 1 else f"{min(share, 0.99999):.5f}"


# ---- HQQ -----------------------------------------------------------------------------------------


def hqq_rows(case: Case) -> Iterator[tuple]:
    """The package's step within our loop; the package as it is; the same on larger weights."""
    from hqq.core.quantize import Quantizer

    weight = case.weight
    for name in ("w4a16-g128", "w2a16-g64"):
        scheme = parse(name)
        form, nearest = hqq(weight, None, scheme), rounded(weight, scheme)
        ours, start = loss(weight, form.dequantized()), loss(weight, nearest.dequantized())
        unit = float(nearest.scale.float().mean())
        for kind, size in (("as shipped", 1.0), ("weights / mean step", 1 / unit)):
            codes, theirs = their_hqq(Quantizer, weight * size, scheme)
            found = same(form.codes(), codes), ours, loss(weight, theirs / size), start
            yield "hqq", "hqq", case.name, f"{name}, {kind}", *found
        exact = Integers(scheme.bits, dtype=torch.float32)
        with mock.patch.object(sys.modules[hqq.__module__], "grid_of", return_value=exact):
            form = hqq(weight, None, scheme)
        groups = form.codes().view(*form.scale.shape, -1)
        ours = loss(weight, exact.expand(groups, form.scale, form.zero).view_as(weight))
        codes, theirs = their_steps(weight, scheme, exact)
        found = same(form.codes(), codes), ours, loss(weight, theirs), start
        yield "hqq", "hqq", case.name, f"{name}, its step in our loop, fp32 zeros", *found


# ---- GPTQ ----------------------------------------------------------------------------------------


def gptq_rows(case: Case) -> Iterator[tuple]:
    """Grids handed over, in both orders; grids found on the way; then grids of their own."""
    row = partial(gptq_row, case)
    for name in ("w4a16", "w4a16-g128", "w2a16-g64"):
        scheme = parse(name)
        # a row's one grid is the same in either order, those of groups are not
        for act_order in (True, False)[: 2 if scheme.group is None else 1]:
            form = gptq(case.weight, case.inputs, scheme, act_order=act_order)
            theirs = compressor_gptq(*case.matrices, scheme, act_order, (form.scale, form.zero))
            groups = theirs.view(*form.scale.shape, -1)
            codes = grid_of(scheme).round(groups, form.scale, form.zero)
            order = "largest first" if act_order else "stored order"
            yield row("llmcompressor", f"{name}, {order}", form, theirs, codes)
    form = gptq(case.weight, case.inputs, parse("w4a16-g128"))
    theirs = compressor_gptq(*case.matrices, form.scheme, True)
    yield row("llmcompressor", "w4a16-g128, largest first, own grids", form, theirs)
    form = gptq(case.weight, case.inputs, form.scheme, act_order=False)
    for dtype in (torch.bfloat16, torch.float32):
        codes, theirs = torchao_int4(*case.matrices, dtype)
        what = f"w4a16-g128, stored order, its scales {str(dtype).removeprefix('torch.')}"
        yield row("torchao", what, form, theirs, codes)
    form = gptq(case.weight, case.inputs, parse("w8a16"), act_order=False)
    theirs = torchao_int8(*case.matrices)
    yield row("torchao", "w8a16, stored order, own grids", form, theirs)


def gptq_row(
    case: Case, against: str, what: str, form: Form, theirs: Tensor, codes: Tensor | None = None
) -> tuple:
    nearest = rounded(case.weight, form.scheme).dequantized()
    others = form.dequantized(), theirs, nearest
    errors = (output_error(case.weight, other, case.inputs.hessian) for other in others)
    equal = "" if codes is None else same(form.codes(), codes)
    return "gptq", against, case.name, what, equal, *errors


# ---- formats -------------------------------------------------------------------------------------


def format_rows(case: Case) -> Iterator[tuple]:
    """nf4 beside bitsandbytes, mxfp4 beside torchao."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from torchao.prototype.mx_formats.kernels import unpack_uint4
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    packed, state = quantize_4bit(case.weight, blocksize=64, quant_type="nf4")
    # the first of two neighbours lies in the upper half of a byte
    codes = torch.cat([packed >> 4, packed & 15], dim=1)
    for dtype in (torch.bfloat16, torch.float32):
        # ours are bf16 and theirs fp32, both the largest magnitude of a group
        scale = state.absmax.to(dtype).view(len(case.weight), -1)
        what = f"our scales {str(dtype).removeprefix('torch.')}"
        theirs = dequantize_4bit(packed, state)
        yield format_row(case, ("nf4", "bitsandbytes", what), (codes, theirs), 64, scale)
    exponents, packed = to_mx(case.weight, torch.float4_e2m1fn_x2, 32)
    theirs = to_dtype(packed, exponents, torch.float4_e2m1fn_x2, 32, torch.float32)
    yield format_row(case, ("mxfp4", "torchao", ""), (unpack_uint4(packed), theirs), 32)


def format_row(
    case: Case, names: tuple, other: tuple, G: int, scale: Tensor | None = None
) -> tuple:
    """A row of the table; `names` are format, library and what is said of it."""
    format, against, what = names
    grid, groups = grid_of(parse(format)), case.weight.view(len(case.weight), -1, G)
    scale = grid.fit(groups)[0] if scale is None else scale
    codes = grid.round(groups, scale)
    expanded = grid.expand(codes, scale).view_as(case.weight), other[1]
    errors = (float((case.weight - values).square().mean()) for values in expanded)
    return format, against, case.name, what, same(codes, other[0]), *errors, None


def hadamard_row(D: int = 64) -> tuple:
    """The rotation of keys and values beside Sylvester's matrix."""
    from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix

    ours = hadamard(torch.eye(D)) * D**0.5
    equal = same(ours, deterministic_hadamard_matrix(D, torch.float32))
    return "hadamard", "compressed-tensors", f"{D} x {D}", "signs", equal, None, None, None


def main() -> None:
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}; see docs/crosschecks.md")
    # some of them ask a hub for more code, and wait where there is no network
    os.environ |= {"HF_HUB_OFFLINE": "1", "LLM_COMPRESSOR_LOG_DISABLED": "true"}
    root = Path(hspec_lab.__file__).parents[1]
    if (root / "pyproject.toml").exists():
        # transformers looks for a package `kernels`, and would take our folder for it
        sys.path = [path for path in sys.path if Path(path).resolve() != root.resolve()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *LIBRARIES))
    print(f"{versions}; threads: {torch.get_num_threads()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for case in (made_case(), zoo_case()):
        for rows in (hqq_rows, gptq_rows, format_rows):
            for row in rows(case):
                print(f"| {' | '.join(map(shown, row))} |", flush=True)
    print(f"| {' | '.join(map(shown, hadamard_row()))} |")


def shown(cell: str | float | None) -> str:
    return cell if isinstance(cell, str) else "" if cell is None else f"{cell:.5g}"


if __name__ == "__main__":
    main()
