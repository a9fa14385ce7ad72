"""What `quantize_rows` is tried on."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.quantize_rows import (
    CONFIGS,
    LARGEST,
    TINY,
    Config,
    _quantize_rows_kernel,
    choose,
    quantize_rows,
    quantize_rows_ref,
)


def make(T: int, C: int):
    """Rows of very different sizes, now and then one of zeros."""

    def inputs(generator, device, dtype):
        size = torch.exp2(torch.randint(-12, 9, (T, 1), generator=generator))
        size = size.masked_fill(torch.rand(T, 1, generator=generator) < 0.1, 0)
        x = torch.randn(T, C, generator=generator) * size
        return {"x": x.to(dtype).to(device)}

    return inputs


VALUES = [
    ValueCase(name=f"T{T}-C{C}", op=quantize_rows, reference=quantize_rows_ref, make=make(T, C))
    for T, C in (
        (1, 1),
        (3, 2),
        (64, 127),
        (17, 512),
        (16, 1031),
        (8, 4096),
        (5, 14336),
        (2, 28672),
        (1, 32768),
    )
]


def compiled(config: Config, dtype: str, chosen: bool) -> CompileCase:
    return CompileCase(
        name=f"{dtype}-c{config.block_c}",
        kernel=_quantize_rows_kernel,
        signature={"x_ptr": f"*{dtype}", "q_ptr": "*i8", "scale_ptr": "*fp32", "C": "i32"},
        constants={"LARGEST": LARGEST, "TINY": TINY, "BLOCK_C": config.block_c},
        divisible=("C",),
        num_warps=config.num_warps,
        chosen=chosen,
        max_registers=56 if config.block_c > 16384 else 40,
        max_shared_bytes=256,
    )


# rows of Llama-3-8B and 70B
_CHOSEN = {choose(C) for C in (4096, 8192, 14336, 28672)}
COMPILED = [
    *(compiled(config, "bf16", config in _CHOSEN) for config in CONFIGS),
    compiled(choose(4096), "fp16", True),
]
