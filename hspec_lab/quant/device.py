"""Linear layers on the project's own Triton kernels: 16-bit rows in, 16-bit rows out.

The same rounding as the CPU formats, stored the way the kernels read it.  `hspec_kernels` is
imported when the first layer is made, so that everything else works where triton is missing.

    format        kernel           activations                      scales
    w8a16         wna16_matmul     fp16 or bf16                     one per row
    w8a8          w8a8_matmul      int8, per row, by quantize_rows  one per row
    w4a16-g*      w4a16_matmul     fp16 or bf16                     scale and zero per group
"""

import torch
from torch import Tensor

from hspec_lab.quant.rounding import round_int4, round_int8
from hspec_lab.quant.stored import Stored

DEVICE_FORMATS = ("w8a16", "w8a8", "w4a16-g128", "w4a16-g32")


def make_device_linear(
    weight: Tensor,
    format: str,
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    row_invariant: bool = False,
) -> Stored:
    """Round a weight matrix to `format` and return the layer that multiplies with it.

    Args:
        weight: fp32 or bf16 [R, C]; its device is the layer's.
        format: one of DEVICE_FORMATS.
        dtype: fp16 or bf16, of rows and results.
        bias: [R], added to the result.
        row_invariant: a row's bits must not depend on the number of rows beside it.

    Returns:
        linear: x dtype [T, C] -> y dtype [T, R].

    Raises:
        ValueError: a format without a kernel, or triton is not installed.
    """
    if format not in DEVICE_FORMATS:
        raise ValueError(f"{format} has no kernel; formats with one: {', '.join(DEVICE_FORMATS)}")
    check_triton()
    weight = weight.detach().float().contiguous()
    if format == "w8a8":
        linear = DeviceW8A8(weight, dtype)
    elif format == "w8a16":
        linear = DeviceW8A16(weight, dtype, row_invariant)
    else:
        linear = DeviceW4A16(weight, int(format.partition("-g")[2]), dtype, row_invariant)
    return linear if bias is None else DeviceBiased(linear, bias.to(dtype))


def check_triton() -> None:
    """ValueError that says what to install where there is no triton."""
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            "the kernels need triton, which is not installed here; "
            "pip install 'hspec-lab[kernels]' on Linux, or use device='cpu'"
        ) from None


class DeviceW4A16(Stored):
    """4-bit weights in block halves, a scale and a zero per group."""

    __slots__ = ("_packed", "_scale", "_zero", "_group_size", "_row_invariant", "_multiply")

    def __init__(self, weight: Tensor, group_size: int, dtype: torch.dtype, row_invariant: bool):
        from hspec_kernels.w4a16_matmul import pack_w4a16, w4a16_matmul

        nbytes = weight.numel() // 2 + 4 * (weight.numel() // group_size)
        super().__init__(f"w4a16-g{group_size}", weight, nbytes)
        q, scale, zero = round_int4(weight, group_size)
        self._packed = pack_w4a16(q, group_size)
        self._scale, self._zero = scale.to(dtype), zero.to(dtype)
        self._group_size, self._row_invariant = group_size, row_invariant
        self._multiply = w4a16_matmul

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(
            x,
            self._packed,
            self._scale,
            self._zero,
            self._group_size,
            row_invariant=self._row_invariant,
        )


class DeviceW8A16(Stored):
    """8-bit weights, a scale per row."""

    __slots__ = ("_packed", "_scale", "_row_invariant", "_multiply")

    def __init__(self, weight: Tensor, dtype: torch.dtype, row_invariant: bool):
        from hspec_kernels.wna16_matmul import pack_wna16, wna16_matmul

        super().__init__("w8a16", weight, weight.numel() + 2 * weight.shape[0])
        q, scale = round_int8(weight, torch.bfloat16)
        self._packed = pack_wna16((q.int() + 128).to(torch.uint8), 8)
        self._scale = scale.to(dtype)[:, None].contiguous()
        self._row_invariant, self._multiply = row_invariant, wna16_matmul

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(
            x, self._packed, self._scale, None, 8, x.shape[1], row_invariant=self._row_invariant
        )


class DeviceW8A8(Stored):
    """8-bit weights and rows; the long sum is exact, so row-invariant as it is."""

    __slots__ = ("_q", "_scale", "_dtype", "_multiply", "_quantize")

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        from hspec_kernels.quantize_rows import quantize_rows
        from hspec_kernels.w8a8_matmul import w8a8_matmul

        super().__init__("w8a8", weight, weight.numel() + 4 * weight.shape[0])
        self._q, self._scale = round_int8(weight, torch.float32)
        self._dtype, self._multiply, self._quantize = dtype, w8a8_matmul, quantize_rows

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(*self._quantize(x), self._q, self._scale, self._dtype)


class DeviceBiased(Stored):
    """y = inner(x) + bias. The bias is not counted in `nbytes`."""

    __slots__ = ("inner", "bias")

    def __init__(self, inner: Stored, bias: Tensor):
        self.format, self.nbytes = inner.format, inner.nbytes
        self.shape, self.device = inner.shape, inner.device
        self.inner, self.bias = inner, bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x).add_(self.bias)
