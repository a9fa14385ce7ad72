"""Linear layers, one class per storage format: `make_linear(weight, "w4a16-g128")(x)`.

Weights are rounded to nearest when the layer is made and multiplied by the fastest operator this
device has; `reference=True` gives the plain-torch definition of the same format instead, which
runs on any device. Formats that only a GPU multiplies are in `hspec_lab.quant.device`.

    format        weights         activations     bits per weight
    fp32          fp32            fp32            32
    w8a16         int8, per row   bf16            8 + 16 / C
    w8a8          int8, per row   int8, per row   8 + 32 / C
    w4a16-g128    int4, per 128   bf16            4.25
    w4a16-g32     int4, per 32    bf16            5

What T rows cost relative to one row, over five shapes of 384..4096 (Zen 5 with AVX-512, torch
2.13, 2 threads, 2026-11-21, other work on the machine; `benchmarks/linear.py` measures yours):

    T         2         8         16        64
    fp32      1.0-1.1   1.1-1.2   1.3-1.5   2.2-3.6
    w8a16     1.0-1.5   1.8-3.5   2.7-5.6   6.6-16
    w8a8      1.0-1.1   1.1-1.3   1.5-1.7   2.5-3.6
    w4a16     1.1       1.6-2.7   2.5-4.6   6.5-17

A row's result depends on that row alone, in every format. `row_invariant=True` promises more: the
same bits however many rows (up to 128) are computed with it. On the processors tried (Zen 5 with
AVX-512, and the same held to AVX2) all operators here keep that promise as they are; where
`is_row_invariant` finds otherwise, the layer goes row by row.

Rows may be a slice of a larger tensor but not a transpose. Layers are for inference: nothing here
has a gradient.
"""

from typing import Protocol

import torch
from torch import Tensor

from hspec_lab.config import CPU_FORMATS, check_format
from hspec_lab.quant.fp32 import Fp32, Fp32Ref
from hspec_lab.quant.int4 import W4A16, W4A16Ref
from hspec_lab.quant.int8 import W8A8, W8A16, W8A8Ref, W8A16Ref
from hspec_lab.quant.stored import Biased, RowByRow, Stored, is_row_invariant

__all__ = ["CPU_FORMATS", "Linear", "check_shape", "is_row_invariant", "make_linear"]

# what the CPU operators ask of the shape; int8 x bf16 reads past the end instead of asking
_W8A16_INPUTS = 16
_W4A16_OUTPUTS = 16


class Linear(Protocol):
    """A stored weight matrix of R outputs and C inputs that multiplies rows."""

    format: str
    shape: tuple[int, int]
    nbytes: int
    effective_bits: float

    def __call__(self, x: Tensor) -> Tensor:
        """fp32 [T, C] -> fp32 [T, R]."""
        ...

    def dequantized(self) -> Tensor:
        """fp32 [R, C], the weights that the stored integers stand for."""
        ...


def make_linear(
    weight: Tensor,
    format: str,
    *,
    bias: Tensor | None = None,
    reference: bool = False,
    row_invariant: bool = False,
) -> Linear:
    """Round a weight matrix to `format` and return the layer that multiplies with it.

    Args:
        weight: fp32 or bf16 [R, C], R outputs, C inputs; its device is the layer's.
        format: one of CPU_FORMATS.
        bias: fp32 or bf16 [R], added in fp32.
        reference: the format's definition in plain torch instead of an operator.
        row_invariant: a row's bits must not depend on the number of rows beside it.

    Returns:
        linear: x fp32 [T, C] -> y fp32 [T, R].

    Raises:
        ValueError: unknown format, a weight or bias that is none, a shape the format or its
            operator cannot take, or a device without an operator for it.
    """
    check_format(format, "cpu")
    if not reference:
        _check_device(weight.device.type, format)
    _check_weight(weight, bias, format)
    weight = weight.detach().float().contiguous()
    linear = _make_reference(weight, format) if reference else _make_operator(weight, format)
    if bias is not None:
        linear = Biased(linear, bias.detach().float())
    if row_invariant and not is_row_invariant(linear):
        linear = RowByRow(linear)
    return linear


def _make_reference(weight: Tensor, format: str) -> Stored:
    if format.startswith("w4a16"):
        return W4A16Ref(weight, _group_size(weight.shape[1], format))
    return {"fp32": Fp32Ref, "w8a16": W8A16Ref, "w8a8": W8A8Ref}[format](weight)


def _make_operator(weight: Tensor, format: str) -> Stored:
    if format == "fp32":
        # F.linear is a good operator wherever oneDNN's blocked form does not exist
        has_onednn = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        return Fp32(weight) if has_onednn else Fp32Ref(weight)
    check_shape(*weight.shape, format)
    if format == "w8a8":
        return W8A8(weight)
    if format == "w8a16":
        return W8A16(weight)
    return W4A16(weight, _group_size(weight.shape[1], format))


def check_shape(R: int, C: int, format: str) -> None:
    """ValueError when no CPU operator takes R outputs and C inputs in `format`."""
    check_format(format, "cpu")
    if format == "w8a16" and C % _W8A16_INPUTS:
        raise ValueError(
            f"w8a16: {C} input features are not a multiple of {_W8A16_INPUTS}, which the CPU "
            "operator needs; reference=True takes any"
        )
    if format.startswith("w4a16"):
        _group_size(C, format)
        if R % _W4A16_OUTPUTS:
            raise ValueError(
                f"{format}: {R} output features are not a multiple of {_W4A16_OUTPUTS}, which the "
                "CPU operator needs; reference=True takes any"
            )


def _group_size(C: int, format: str) -> int:
    group_size = int(format.partition("-g")[2])
    if C % group_size:
        raise ValueError(f"{format}: {C} input features are not a multiple of {group_size}")
    return group_size


def _check_weight(weight: Tensor, bias: Tensor | None, format: str) -> None:
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.bfloat16) or not len(weight):
        raise ValueError(
            f"{format}: weight must be fp32 or bf16 [R, C], got {weight.dtype} {list(weight.shape)}"
        )
    if not torch.isfinite(weight).all():
        n_bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"{format}: {n_bad} of {weight.numel()} weights are NaN or infinite")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{format}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")


def _check_device(device: str, format: str) -> None:
    if format == "fp32":
        return
    if device != "cpu" or (format == "w8a8" and not _has_fbgemm()):
        raise ValueError(
            f"{format} has no operator on {device} here; reference=True multiplies the "
            "dequantized weights instead"
        )


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines
