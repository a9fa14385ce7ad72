"""Linear layers: rounded weights and what multiplies them, `make_linear(weight, "w4a16-g128")(x)`.

A scheme (`hspec_lab.scheme`) says how weights and rows are rounded, a form (`forms`) holds rounded
weights, and a layer multiplies them by the fastest operator PyTorch has on this CPU:

    weights                                   rows       operator              bytes read a weight
    fp32                                      fp32       oneDNN, blocked       4
    8 bits, a scale a row                     16 bits    ATen int8 x bf16      1
    2, 3, 4 bits                              16 bits    ATen int4 x bf16      1/2
    6, 8 bits in groups or with zeros; mxfp4  16 bits    the same twice        1
    integers with a scale a row; two levels   8, 4 bits  fbgemm int8 x int8    1
    any, and a low-rank branch                16 bits    that and fp32         + the branch

Everything else (nf4, e4m3, groups along the outputs, stacks) has no operator here and is computed
by its definition, expanded to fp32, when `reference` asks for it.  What only a GPU multiplies is in
`hspec_lab.quant.device`.

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

from hspec_lab.config import CPU_FORMATS
from hspec_lab.quant import int4, int8
from hspec_lab.quant.forms import Form, Grouped, LowRank, Plain, rounded
from hspec_lab.quant.fp32 import Fp32
from hspec_lab.quant.low_rank import WithBranch
from hspec_lab.quant.reference import Reference
from hspec_lab.quant.stored import Biased, RowByRow, Stored, is_row_invariant
from hspec_lab.scheme import Scheme, has_operator, parse

__all__ = ["CPU_FORMATS", "Linear", "check_shape", "is_row_invariant", "make_linear"]


class Linear(Protocol):
    """A stored weight matrix of R outputs and C inputs that multiplies rows."""

    format: str
    shape: tuple[int, int]
    nbytes: int
    bytes_read: int
    effective_bits: float

    def __call__(self, x: Tensor) -> Tensor:
        """fp32 [T, C] -> fp32 [T, R]."""
        ...

    def dequantized(self) -> Tensor:
        """fp32 [R, C], the weights that the stored numbers stand for."""
        ...


def make_linear(
    weight: Tensor | Form,
    scheme: Scheme | str,
    *,
    bias: Tensor | None = None,
    reference: bool = False,
    row_invariant: bool = False,
) -> Linear:
    """The layer that multiplies with a weight matrix.

    Args:
        weight: fp32 or bf16 [R, C], R outputs, C inputs, which is rounded to nearest; or a form,
            rounded by whatever algorithm. Its device is the layer's.
        scheme: or its name; of a form, what its rows are rounded to.
        bias: fp32 or bf16 [R], added in fp32.
        reference: the scheme's definition in plain torch instead of an operator.
        row_invariant: a row's bits must not depend on the number of rows beside it.

    Returns:
        linear: x fp32 [T, C] -> y fp32 [T, R].

    Raises:
        ValueError: unknown format, a weight or bias that is none, a shape the format or its
            operator cannot take, or a device or form without an operator for it.
    """
    scheme = (parse(scheme) if isinstance(scheme, str) else scheme).weights
    form = weight
    if not isinstance(form, Form):
        check_shape(*_checked(weight, scheme), scheme, reference)
        if not reference:
            _check_device(weight.device.type, scheme)
        _check_finite(weight, scheme)
        form = rounded(weight.detach().float().contiguous(), scheme)
    _check_bias(bias, form, scheme)
    linear = _layer(form, scheme, reference)
    if bias is not None:
        linear = Biased(linear, bias.detach().float())
    # a definition's sums depend on the batch, which results in bf16 mostly hide from a probe
    hidden = reference and scheme.rows == 16
    if row_invariant and (hidden or not is_row_invariant(linear)):
        linear = RowByRow(linear)
    return linear


def _layer(form: Form, scheme: Scheme, reference: bool) -> Stored:
    """A form by its definition or by the fastest operator here; a branch beside either."""
    if isinstance(form, LowRank):
        return WithBranch(_layer(form.base, scheme, reference), form, str(scheme))
    return Reference(form, scheme) if reference else _operator(form, scheme)


def _operator(form: Form, scheme: Scheme) -> Stored:
    """The fastest operator for a form here."""
    name = str(scheme)
    _check_device(_device_of(form), scheme)
    if isinstance(form, Plain) and scheme.rows == 32:
        # a matrix product is a good operator wherever oneDNN's blocked form does not exist
        has_onednn = form.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        return Fp32(form.weight) if has_onednn else Reference(form, scheme)
    takes_integers = scheme.rows < 16 and scheme.grid == "int"
    if isinstance(form, Grouped) and takes_integers and form.has_integers:
        return int8.IntegerRows(form, name, scheme.rows)
    if isinstance(form, Grouped) and scheme.rows == 16:
        is_int8 = _is_int8(form.scheme, form.group == form.shape[1])
        if is_int8 or int4.planes_of(form):
            _check_operator_shape(*form.shape, scheme, is_int8)
            return int8.Int8Rows(form, name) if is_int8 else int4.Int4Planes(form, name)
    raise ValueError(
        f"{name} of the form {form.kind!r} has no operator on {_device_of(form)} here; "
        f"add +reference to its name to multiply the dequantized weights instead"
    )


def _is_int8(scheme: Scheme, whole_rows: bool) -> bool:
    """Whether ATen's int8 x bf16 product takes such weights."""
    return scheme.grid == "int" and scheme.bits == 8 and not scheme.zero and whole_rows


def _device_of(form: Form) -> str:
    return next(iter(form.tensors().values())).device.type


def check_shape(R: int, C: int, scheme: Scheme | str, reference: bool = False) -> None:
    """ValueError when R outputs and C inputs cannot be stored so, or no CPU operator takes them.

    Args:
        reference: any shape that can be stored will do.
    """
    scheme = (parse(scheme) if isinstance(scheme, str) else scheme).weights
    if scheme.group and C % scheme.group:
        raise ValueError(f"{scheme}: {C} input features are not a multiple of {scheme.group}")
    if reference:
        return
    if not has_operator(scheme):
        raise ValueError(
            f"{scheme} has no fast operator on cpu; formats with one: {', '.join(CPU_FORMATS)}, "
            f"or {scheme}+reference"
        )
    if scheme.rows == 16:
        _check_operator_shape(R, C, scheme, _is_int8(scheme, scheme.group is None))


def _check_operator_shape(R: int, C: int, scheme: Scheme, is_int8: bool) -> None:
    if is_int8:
        needs = [("input", C, int8.INPUTS)]
    else:
        needs = [("output", R, int4.OUTPUTS), ("input", C, int4.GROUPS[-1])]
    for what, n, divisor in needs:
        if n % divisor:
            raise ValueError(
                f"{scheme}: {n} {what} features are not a multiple of {divisor}, which the "
                "CPU operator needs; +reference takes any"
            )


def _checked(weight: Tensor, scheme: Scheme) -> tuple[int, int]:
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.bfloat16) or not len(weight):
        raise ValueError(
            f"{scheme}: weight must be fp32 or bf16 [R, C], got {weight.dtype} {list(weight.shape)}"
        )
    return tuple(weight.shape)


def _check_finite(weight: Tensor, scheme: Scheme) -> None:
    if not torch.isfinite(weight).all():
        n_bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"{scheme}: {n_bad} of {weight.numel()} weights are NaN or infinite")


def _check_bias(bias: Tensor | None, form: Form, scheme: Scheme) -> None:
    if bias is not None and tuple(bias.shape) != form.shape[:1]:
        raise ValueError(f"{scheme}: bias must be [{form.shape[0]}], got {list(bias.shape)}")


def _check_device(device: str, scheme: Scheme) -> None:
    if not scheme.rounds:
        return
    has_fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    if device != "cpu" or (scheme.rows < 16 and not has_fbgemm):
        raise ValueError(
            f"{scheme} has no operator on {device} here; reference=True multiplies the "
            "dequantized weights instead"
        )
