"""What a format asks of a model, found from names and sizes before any weight is read."""

from dataclasses import replace

import torch

from hspec_lab.formats import ALLOCATIONS, Format
from hspec_lab.model import Checkpoint
from hspec_lab.model.checkpoint import UNITS, layer_tensors, model_tensors
from hspec_lab.model.shape import ModelShape
from hspec_lab.model.transformer import check_format as check_shapes
from hspec_lab.quant.stack import Stack
from hspec_lab.quantize.bitstack import cut_to
from hspec_lab.quantize.widths import near_levels
from hspec_lab.text import load_tokenizer, n_entries

BLOCKS = 16


def check_possible(source: Checkpoint, format: Format) -> None:
    """ValueError when a model cannot be quantized so.

    Args:
        source: an opened folder.
        format: one whose weights are made.
    """
    if source.format is not None:
        raise ValueError(
            f"{source.folder} is quantized already ({source.format}): name the folder it came from"
        )
    shape, scheme = source.shape, format.scheme
    source.check(model_tensors(shape))
    check_shapes(shape, replace(format, reference=True))
    n = n_entries(load_tokenizer(source.folder))
    if n > shape.vocab:
        raise ValueError(f"{source.folder}: the tokenizer has {n} entries, the model {shape.vocab}")
    if not ALLOCATIONS.keys().isdisjoint(format.steps):
        near_levels(scheme.bits)
    if scheme.grid == "bitstack":
        _check_stacks(source, format)
    for unit, (R, _) in unit_sizes(shape).items():
        if "adadim" in format.steps and R % scheme.group:
            raise ValueError(
                f"{format}: {unit} has {R} outputs, which groups of {scheme.group} along the "
                "outputs do not divide"
            )


def unit_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each unit of a layer."""
    sizes = layer_tensors(shape, "layer")
    found = {unit: [sizes[f"layer.{n}.weight"] for n in names] for unit, names in UNITS.items()}
    return {unit: (sum(R for R, _ in own), own[0][1]) for unit, own in found.items()}


def rank_of(R: int, C: int) -> int:
    """Of a block's magnitudes: the published 16 on large matrices, less on small."""
    return min(16, max(2, min(R, C) // 48))


def _check_stacks(source: Checkpoint, format: Format) -> None:
    shape = source.shape
    if "awqscale" in format.steps:
        raise ValueError(
            f"{format}: awqscale searches scales for a grid's groups, which a stack has not: "
            "leave out +awqscale"
        )
    stacks = {
        f"{index}.{unit}": _empty_stack(*size)
        for index in range(shape.layers)
        for unit, size in unit_sizes(shape).items()
    }
    try:
        cut_to(stacks, [], format.scheme.megabytes * 1e6)
    except ValueError as problem:
        raise ValueError(f"{source.folder.name}@{format}: {problem}") from None


def _empty_stack(R: int, C: int) -> Stack:
    """A stack that has sizes and no numbers."""
    rank = rank_of(R, C)
    sizes = (BLOCKS, R, -(-C // 8)), (BLOCKS, R, rank), (BLOCKS, rank, C), (C,)
    dtypes = torch.uint8, torch.bfloat16, torch.bfloat16, torch.float32
    parts = (torch.empty(n, dtype=d, device="meta") for n, d in zip(sizes, dtypes, strict=True))
    return Stack((R, C), *parts)
