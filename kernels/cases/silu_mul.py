"""Cases of `silu_mul`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.silu_mul import CONFIGS, _silu_mul_kernel, silu_mul, silu_mul_ref


def make(T: int, inner: int):
    """Random gates and ups."""

    def inputs(generator, device, dtype):
        gate_up = torch.randn(T, 2 * inner, generator=generator) * 3
        return {"gate_up": gate_up.to(dtype).to(device)}

    return inputs


# one rounding to 16 bits, where fp32 and fp64 may part: far below 2**-9 / sqrt(3) (bf16)
TOLERANCE = 1e-3

VALUES = [
    ValueCase(
        name=f"T{T}-I{inner}",
        op=silu_mul,
        reference=silu_mul_ref,
        make=make(T, inner),
        tolerance=TOLERANCE,
    )
    for T, inner in ((1, 1), (3, 127), (5, 1024), (2, 2731), (17, 64))
]

COMPILED = [
    CompileCase(
        name=dtype,
        kernel=_silu_mul_kernel,
        signature={"gate_up_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "I": "i32"},
        constants={"BLOCK_I": CONFIGS[0][0]},
        num_warps=CONFIGS[0][1],
        divisible=("I",),
        max_registers=40,
        max_shared_bytes=0,
    )
    for dtype in ("fp16", "bf16")
]
