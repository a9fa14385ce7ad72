"""Linear layers on the project's own Triton kernels: 16-bit rows in, 16-bit rows out.

The same rounding as the CPU formats, stored the way the kernels read it, and formats that a CPU
has no operator for.  `hspec_kernels` is imported when the first layer is made, so that everything
else works where triton is missing.

    format        product          activations                      scales
    w16a16        torch's own      fp16 or bf16                     none
    w8a16         wna16_matmul     fp16 or bf16                     one per row
    w8a8          w8a8_matmul      int8, per row, by quantize_rows  one per row
    fp8           fp8_matmul       e4m3, per row, by torch          one per row
    w4a16-g*      w4a16_matmul     fp16 or bf16                     scale and zero per group
    w4a8-g128     w4a8_matmul      int8, per row, by quantize_rows  two levels: see `grids`
    w3a16-g128,   wna16_matmul     fp16 or bf16                     scale and zero per group
    w2a16-g64

Matrices are rounded and packed a block of rows at a time: beside the weights that come in and twice
the bytes that are stored, the largest of layers needs less than a gigabyte on its way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hspec_lab.config import DEVICE_FORMATS
from hspec_lab.quant.forms import Form, Grouped, Plain, rounded
from hspec_lab.quant.grids import E4M3, Integers, TwoLevels
from hspec_lab.quant.stored import Biased, Stored
from hspec_lab.scheme import Scheme, parse

_BLOCK = 1 << 24  # weights rounded at a time
_ROWS = 16  # of each product of a row-invariant w16a16


def make_device_linear(
    weight: Tensor | Form,
    scheme: Scheme | str,
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    row_invariant: bool = False,
) -> Stored:
    """The layer that multiplies with a weight matrix on kernels.

    Args:
        weight: fp32, bf16 or fp16 [R, C], rounded to nearest; or a form, rounded by whatever
            algorithm. Its device is the layer's.
        scheme: of one of DEVICE_FORMATS; or its name.
        dtype: fp16 or bf16, of rows and results.
        bias: [R], added to the result.
        row_invariant: a row's bits must not depend on the number of rows beside it.

    Returns:
        linear: x dtype [T, C] -> y dtype [T, R].

    Raises:
        ValueError: a format or form without a kernel on the weight's device, a shape or dtype it
            does not take, or triton is not installed.
    """
    scheme = (parse(scheme) if isinstance(scheme, str) else scheme).weights
    if isinstance(weight, Form):
        _check_form(weight, scheme)
        scheme = weight.scheme if isinstance(weight, Grouped) else scheme
    device = next(iter(weight.tensors().values())).device if isinstance(weight, Form) else None
    check_device_format(str(scheme), device or weight.device)
    check_device_shape(*weight.shape, str(scheme))
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"{scheme}: dtype must be float16 or bfloat16, got {dtype}")
    kind = _KINDS[str(scheme).partition("-g")[0]]
    linear = kind(weight, scheme, dtype, row_invariant)
    return linear if bias is None else Biased(linear, bias.to(dtype))


def _check_form(form: Form, scheme: Scheme) -> None:
    """ValueError for forms that only a CPU multiplies."""
    if isinstance(form, Plain):
        known = not scheme.rounds
    else:
        # bits may differ from layer to layer, what rows are rounded to does not
        known = isinstance(form, Grouped) and str(form.scheme) in DEVICE_FORMATS
        known = known and form.scheme.rows == scheme.rows
    if not known:
        raise ValueError(
            f"{scheme} of the form {form.kind!r} has no kernel; forms with one: "
            f"{', '.join(DEVICE_FORMATS)}"
        )


def check_device_format(format: str, device: torch.device | str) -> None:
    """ValueError where `device` cannot multiply in `format`; reads no weight."""
    if format not in DEVICE_FORMATS:
        raise ValueError(f"{format} has no kernel; formats with one: {', '.join(DEVICE_FORMATS)}")
    check_triton()
    if format != "fp8":
        return
    from hspec_kernels.fp8_matmul import knows_e4m3

    if not knows_e4m3(torch.device(device)):
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ValueError(
            f"fp8 needs compute capability 8.9, {device} has {found}: take w8a8 or w8a16"
        )


def check_device_shape(R: int, C: int, scheme: Scheme | str) -> None:
    """ValueError when a matrix of R outputs and C inputs cannot be stored so."""
    format = str(scheme)
    group_size = _group_size(format)
    if group_size and C % group_size:
        raise ValueError(f"{format}: {C} input features are not a multiple of {group_size}")
    if format in ("w8a8", "w4a8-g128"):
        from hspec_kernels.quantize_rows import MAX_C

        if C > MAX_C:
            raise ValueError(f"{format}: {C} input features, rows are rounded up to {MAX_C}")


def check_triton() -> None:
    """ValueError that says what to install where there is no triton."""
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            "the kernels need triton, which is not installed here; "
            "pip install 'hspec-lab[kernels]' on Linux, or use device='cpu'"
        ) from None


def _group_size(format: str) -> int:
    """Inputs that share a scale; 0: all of a row."""
    return int(format.partition("-g")[2] or 0)


class _DeviceLinear(Stored):
    """A layer that holds nothing but `tensors`; their bytes are what it stores."""

    __slots__ = ("tensors", "dtype", "row_invariant", "group_size")

    def __init__(self, weight: Tensor | Form, scheme: Scheme, dtype, row_invariant: bool):
        self.dtype, self.row_invariant = dtype, row_invariant
        self.group_size = scheme.group or weight.shape[1]
        stored = [self.stored(form) for form in _forms(weight, scheme)]
        self.tensors = tuple(torch.cat(parts) for parts in zip(*stored, strict=True))
        n_bytes = sum(tensor.nbytes for tensor in self.tensors)
        super().__init__(str(scheme), weight.shape, n_bytes, self.tensors[0].device)

    def stored(self, form: Form) -> tuple[Tensor, ...]:
        """The tensors of a block of n rows; each is n long."""
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """fp32 [R, C], the weights that the stored numbers stand for."""
        q, scale = self.tensors
        return q.float() * scale[:, None]


def _forms(weight: Tensor | Form, scheme: Scheme) -> list[Form]:
    """A form as it is; a matrix rounded a block of rows at a time."""
    if isinstance(weight, Form):
        return [weight]
    if not scheme.rounds:
        return [Plain(weight.detach())]
    blocks = weight.detach().split(max(1, _BLOCK // weight.shape[1]))
    return [rounded(rows.float().contiguous(), scheme) for rows in blocks]


class DeviceW16A16(_DeviceLinear):
    """Weights in 16 bits, multiplied by the library that torch brings.

    That library promises no row the same bits beside any number of others.  With `row_invariant`
    each product therefore is of exactly 16 rows, the last filled up with zeros: one shape, one
    choice of kernel, and within it rows are alike.  That is reason to expect it, not a proof.
    """

    __slots__ = ()

    def stored(self, form: Plain) -> tuple[Tensor, ...]:
        return (form.weight.to(self.dtype),)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.row_invariant:
            return F.linear(x, *self.tensors)
        filled = F.pad(x, (0, 0, 0, -len(x) % _ROWS))
        return torch.cat([F.linear(rows, *self.tensors) for rows in filled.split(_ROWS)])[: len(x)]

    def dequantized(self) -> Tensor:
        return self.tensors[0].float()


class DeviceW8A16(_DeviceLinear):
    """8-bit weights, a scale per row."""

    __slots__ = ()

    def stored(self, form: Grouped) -> tuple[Tensor, ...]:
        from hspec_kernels.wna16_matmul import pack_wna16

        return pack_wna16(form.codes(), 8), form.scale.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        from hspec_kernels.wna16_matmul import wna16_matmul

        packed, scale = self.tensors
        C = self.shape[1]
        return wna16_matmul(x, packed, scale, None, 8, C, row_invariant=self.row_invariant)

    def dequantized(self) -> Tensor:
        from hspec_kernels.wna16_matmul import unpack_wna16

        packed, scale = self.tensors
        return (unpack_wna16(packed, 8, self.shape[1]).float() - 128) * scale.float()


class DeviceWNA16(_DeviceLinear):
    """Weights of 3 or 2 bits, a scale and a zero per group."""

    __slots__ = ("bits",)

    def stored(self, form: Grouped) -> tuple[Tensor, ...]:
        from hspec_kernels.wna16_matmul import pack_wna16

        self.bits = form.scheme.bits
        packed = pack_wna16(form.codes(), self.bits)
        return packed, form.scale.to(self.dtype), form.zero.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        from hspec_kernels.wna16_matmul import wna16_matmul

        how = {"row_invariant": self.row_invariant}
        return wna16_matmul(x, *self.tensors, self.bits, self.group_size, **how)

    def dequantized(self) -> Tensor:
        from hspec_kernels.wna16_matmul import unpack_wna16

        packed, scale, zero = self.tensors
        return _expanded(
            Integers(self.bits), unpack_wna16(packed, self.bits, self.shape[1]), scale, zero
        )


class DeviceW4A16(_DeviceLinear):
    """4-bit weights in block quarters, a scale and a zero per group."""

    __slots__ = ()

    def stored(self, form: Grouped) -> tuple[Tensor, ...]:
        from hspec_kernels.w4a16_matmul import pack_w4a16

        return pack_w4a16(form.codes()), form.scale.to(self.dtype), form.zero.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        from hspec_kernels.w4a16_matmul import w4a16_matmul

        how = {"row_invariant": self.row_invariant}
        return w4a16_matmul(x, *self.tensors, self.group_size, **how)

    def dequantized(self) -> Tensor:
        from hspec_kernels.w4a16_matmul import unpack_w4a16

        packed, scale, zero = self.tensors
        return _expanded(Integers(4), unpack_w4a16(packed, self.shape[1]), scale, zero)


class DeviceW8A8(_DeviceLinear):
    """8-bit weights and rows; the long sum is exact, so row-invariant as it is."""

    __slots__ = ()

    def stored(self, form: Grouped) -> tuple[Tensor, ...]:
        return form.integers()

    def __call__(self, x: Tensor) -> Tensor:
        from hspec_kernels.quantize_rows import quantize_rows
        from hspec_kernels.w8a8_matmul import w8a8_matmul

        return w8a8_matmul(*quantize_rows(x), *self.tensors, self.dtype)


class DeviceW4A8(_DeviceLinear):
    """4-bit weights that stand for int8 ones, and 8-bit rows; row-invariant as it is."""

    __slots__ = ()

    def stored(self, form: Grouped) -> tuple[Tensor, ...]:
        from hspec_kernels.w4a8_matmul import pack_w4a8

        return pack_w4a8(form.codes()), form.scale, form.zero, form.row_scale

    def __call__(self, x: Tensor) -> Tensor:
        from hspec_kernels.quantize_rows import quantize_rows
        from hspec_kernels.w4a8_matmul import w4a8_matmul

        return w4a8_matmul(*quantize_rows(x), *self.tensors, self.group_size, self.dtype)

    def dequantized(self) -> Tensor:
        from hspec_kernels.w4a8_matmul import unpack_w4a8

        packed, scale, zero, row_scale = self.tensors
        codes = unpack_w4a8(packed, self.shape[1])
        return _expanded(TwoLevels(), codes, scale, zero) * row_scale[:, None]


class DeviceFp8(_DeviceLinear):
    """e4m3 weights and rows, a scale for each row of either."""

    __slots__ = ()

    def __init__(self, weight: Tensor | Form, scheme: Scheme, dtype, row_invariant: bool):
        super().__init__(weight, scheme, dtype, row_invariant)
        q, scale = self.tensors
        self.tensors = q.view(torch.float8_e4m3fn), scale

    def stored(self, form: Grouped) -> tuple[Tensor, ...]:
        # as bytes: not every device joins tensors of e4m3
        return form.codes(), form.scale[:, 0]

    def __call__(self, x: Tensor) -> Tensor:
        from hspec_kernels.fp8_matmul import fp8_matmul

        grid, rows = E4M3(), x.float()
        scale, _ = grid.fit(rows)
        q = grid.round(rows, scale).view(torch.float8_e4m3fn)
        how = {"row_invariant": self.row_invariant}
        return fp8_matmul(q, scale, *self.tensors, self.dtype, **how)


def _expanded(grid, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """fp32 [R, C] from codes [R, C] and the scales and zeros [R, C/G] of their groups."""
    groups = codes.view(*scale.shape, -1)
    return grid.expand(groups, scale, zero).flatten(1)


_KINDS = {
    "w16a16": DeviceW16A16,
    "w8a16": DeviceW8A16,
    "w8a8": DeviceW8A8,
    "fp8": DeviceFp8,
    "w4a16": DeviceW4A16,
    "w4a8": DeviceW4A8,
    "w3a16": DeviceWNA16,
    "w2a16": DeviceWNA16,
}
