"""Cases of `rms_norm`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.rms_norm import _rms_norm_kernel, choose, rms_norm, rms_norm_ref


def make(T: int, C: int, residual: str | None, wide_weight: bool):
    """Random rows; the residual stream in x's dtype ("half"), in fp32 ("float") or none."""

    def inputs(generator, device, dtype):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        given = {"x": normal(T, C).to(dtype), "weight": normal(C), "eps": 1e-5}
        if not wide_weight:
            given["weight"] = given["weight"].to(dtype)
        if residual:
            given["residual"] = normal(T, C).to(dtype if residual == "half" else torch.float32)
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}

    return inputs


# one rounding to 16 bits, where fp32 and fp64 may part: far below 2**-9 / sqrt(3) (bf16)
TOLERANCE = 1e-3

VALUES = [
    ValueCase(
        name=f"T{T}-C{C}{f'-{residual}-residual' if residual else ''}",
        op=rms_norm,
        reference=rms_norm_ref,
        make=make(T, C, residual, wide_weight),
        tolerance=TOLERANCE,
    )
    for T, C, residual, wide_weight in (
        (1, 1, None, False),
        (3, 127, "half", True),
        (7, 4096, "float", False),
        (2, 5120, None, True),
        (2, 16384, "half", False),
    )
]


def compiled(C: int, residual: str | None, registers: int, dtype: str = "bf16") -> CompileCase:
    stream = "*fp32" if residual == "fp32" else f"*{dtype}"
    block_c, num_warps = choose(C)
    return CompileCase(
        name=f"{dtype}-C{C}{f'-{residual}-residual' if residual else ''}",
        kernel=_rms_norm_kernel,
        signature={
            "x_ptr": f"*{dtype}",
            "residual_ptr": stream,
            "weight_ptr": f"*{dtype}",
            "total_ptr": stream,
            "y_ptr": f"*{dtype}",
            "C": "i32",
            "eps": "fp32",
        },
        constants={"ADD": residual is not None, "BLOCK_C": block_c},
        num_warps=num_warps,
        divisible=("C",),
        max_registers=registers,
        # values of an fp32 stream are spread over threads differently from 16-bit ones
        max_shared_bytes=16384 if residual == "fp32" else 64,
    )


COMPILED = [
    compiled(4096, "bf16", 64),  # Llama-3-8B
    compiled(4096, None, 64),
    compiled(4096, "fp16", 64, "fp16"),
    compiled(8192, "fp32", 64),  # Llama-3-70B with a stream in fp32
    compiled(16384, "fp32", 104),  # the limit
]
