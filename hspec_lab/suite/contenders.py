"""Who multiplies rows with a weight matrix: our kernels, PyTorch's operators and gemlite's.

Weights are made in stored form from random bytes on the device: time does not depend on values.
A scheme with 8-bit rows rounds them within its call, except fp8, whose rows come as e4m3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hspec_lab.suite.part import Bench

GROUP = 128


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to multiply.

    Attributes:
        multiply: x [T, C] -> y [T, R].
        nbytes: weights, scales and zeros.
        prepare: what becomes of x before the clock starts.
        reads_only: it touches its own bytes and neither x nor y.
    """

    multiply: Callable[[Tensor], object]
    nbytes: int
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    reads_only: bool = False


def _bytes(bench: Bench, *shape: int, below: int = 256) -> Tensor:
    """Random uint8 0..below-1."""
    return torch.randint(0, below, shape, dtype=torch.uint8, device=bench.device)


def _scales(bench: Bench, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Small positive numbers."""
    return (torch.rand(shape, device=bench.device) * 1e-3 + 1e-3).to(dtype or bench.dtype)


def _e4m3(bench: Bench, *shape: int) -> Tensor:
    """Random e4m3 numbers."""
    # without the lowest exponent bit no code is NaN
    return (_bytes(bench, *shape) & 0xF7).view(torch.float8_e4m3fn)


def _nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _read_only(bench: Bench, R: int, C: int) -> Contender:
    """Read as many bytes as `w4a16` and do nothing with them."""
    from hspec_kernels.stream_read import stream_read

    words = _bytes(bench, R * C // 2 + 4 * (R * C // GROUP)).view(torch.int32)
    return Contender(lambda x: stream_read(words), words.nbytes, reads_only=True)


def _torch_16bit(bench: Bench, R: int, C: int) -> Contender:
    weight = torch.randn(R, C, dtype=bench.dtype, device=bench.device) * C**-0.5
    return Contender(lambda x: torch.matmul(x, weight.T), weight.nbytes)


def _torch_int4(bench: Bench, R: int, C: int) -> Contender:
    """PyTorch's own 4-bit operator for CUDA ("tinygemm"); bf16 alone."""
    if not bench.on_cuda:
        raise ValueError("PyTorch's int4 operator of this layout is one for CUDA")
    aten, inner_tiles = torch.ops.aten, 8
    packed = aten._convert_weight_to_int4pack(_bytes(bench, R, C // 2), inner_tiles)
    scales = _scales(bench, C // GROUP, R, 2, dtype=torch.bfloat16)
    return Contender(
        lambda x: aten._weight_int4pack_mm(x, packed, GROUP, scales), _nbytes(packed, scales)
    )


def w4a16_weights(bench: Bench, R: int, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed 4-bit weights, scales and zeros."""
    return _bytes(bench, R, C // 2), *(_scales(bench, R, C // GROUP) for _ in range(2))


def _w4a16(bench: Bench, R: int, C: int, row_invariant: bool = False) -> Contender:
    from hspec_kernels.w4a16_matmul import w4a16_matmul

    weights = w4a16_weights(bench, R, C)
    return Contender(
        lambda x: w4a16_matmul(x, *weights, GROUP, row_invariant=row_invariant), _nbytes(*weights)
    )


def _w4a16_row_invariant(bench: Bench, R: int, C: int) -> Contender:
    return _w4a16(bench, R, C, row_invariant=True)


def _w8a16(bench: Bench, R: int, C: int) -> Contender:
    from hspec_kernels.wna16_matmul import wna16_matmul

    weights = (_bytes(bench, R, C), _scales(bench, R, 1))
    return Contender(lambda x: wna16_matmul(x, *weights, None, 8, C), _nbytes(*weights))


def _w8a8(bench: Bench, R: int, C: int) -> Contender:
    from hspec_kernels.quantize_rows import quantize_rows
    from hspec_kernels.w8a8_matmul import w8a8_matmul

    weights = (_bytes(bench, R, C).view(torch.int8), _scales(bench, R, dtype=torch.float32))
    return Contender(lambda x: w8a8_matmul(*quantize_rows(x), *weights, x.dtype), _nbytes(*weights))


def _w4a8(bench: Bench, R: int, C: int) -> Contender:
    from hspec_kernels.quantize_rows import quantize_rows
    from hspec_kernels.w4a8_matmul import w4a8_matmul

    weights = (
        _bytes(bench, R, C // 2),
        _bytes(bench, R, C // GROUP, below=8),
        _bytes(bench, R, C // GROUP, below=16),
        _scales(bench, R, dtype=torch.float32),
    )
    return Contender(
        lambda x: w4a8_matmul(*quantize_rows(x), *weights, GROUP, x.dtype), _nbytes(*weights)
    )


def _fp8(bench: Bench, R: int, C: int) -> Contender:
    """Rows of e4m3: devices from compute capability 8.9 on."""
    from hspec_kernels.fp8_matmul import E4M3, fp8_matmul

    weight = _e4m3(bench, R, C)
    scale = _scales(bench, R, dtype=torch.float32)

    def multiply(x: Tensor) -> Tensor:
        return fp8_matmul(x, ones[: len(x)], weight, scale, bench.dtype)

    ones = torch.ones(1024, device=bench.device)
    return Contender(multiply, _nbytes(weight, scale), prepare=lambda x: x.to(E4M3))


def _gemlite(bench: Bench, R: int, C: int) -> Contender:
    """gemlite's 4-bit weights, where it is installed; it tunes itself at its first call."""
    if not bench.on_cuda:
        raise ValueError("gemlite runs on CUDA devices")
    try:
        from gemlite.helper import A16Wn
    except ImportError as error:
        raise ValueError(f"gemlite cannot be imported ({error}); pip install gemlite") from None
    groups = R * C // GROUP
    codes = _bytes(bench, R, C, below=16)
    scales, zeros = (_scales(bench, groups, 1) for _ in range(2))
    layer = A16Wn(device="cuda:0").from_weights(codes, scales, zeros, 4, GROUP)
    return Contender(layer, R * C // 2 + 4 * groups)


CONTENDERS = {
    "read_only": _read_only,
    "torch_bf16": _torch_16bit,
    "torch_int4": _torch_int4,
    "w4a16": _w4a16,
    "w4a16 row_invariant": _w4a16_row_invariant,
    "w8a16": _w8a16,
    "w8a8": _w8a8,
    "w4a8": _w4a8,
    "fp8": _fp8,
    "gemlite": _gemlite,
}
