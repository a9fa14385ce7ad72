"""What `w8a8_matmul` is tried on."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.w8a8_matmul import (
    CONFIGS,
    Config,
    _add_scaled_parts_kernel,
    _w8a8_matmul_kernel,
    choose,
    w8a8_matmul,
    w8a8_matmul_ref,
)


def make(T: int, R: int, C: int):
    """All int8 values, -128 too, with scales of a unit-norm layer."""

    def inputs(generator, device, dtype):
        def bytes_(*shape):
            return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)

        def scales(n):
            return torch.rand(n, generator=generator) + 0.5

        return {
            "xq": bytes_(T, C).to(device),
            "x_scale": (scales(T) / 64).to(device),
            "weight": bytes_(R, C).to(device),
            "w_scale": (scales(R) / (64 * C**0.5)).to(device),
            "dtype": dtype,
        }

    return inputs


VALUES = [
    # tolerance 0: the sum is exact and both round the same way after it
    ValueCase(name=f"T{T}-R{R}-C{C}", op=w8a8_matmul, reference=w8a8_matmul_ref, make=make(T, R, C))
    for T, R, C in (
        (1, 1, 1),
        (1, 64, 128),
        (3, 97, 130),
        (17, 130, 256),
        (33, 70, 97),
        (65, 64, 300),
        (130, 129, 64),
        (5, 70, 4096),  # four splits
        (2, 64, 2987),  # two, the second shorter
        (1, 3, 17001),  # eight
    )
]


# of sm_80, where sums stay in registers and operands pass through them
_MAX_REGISTERS = {16: 88, 32: 124, 64: 172, 128: 200}


def compiled(config: Config, dtype: str, chosen: bool) -> CompileCase:
    matrices = {"xq_ptr": "*i8", "weight_ptr": "*i8"}
    scales = {"x_scale_ptr": "*fp32", "w_scale_ptr": "*fp32"}
    part = f"*{dtype}" if config.splits == 1 else "*i32"
    return CompileCase(
        name=f"{dtype}-t{config.block_t}-s{config.splits}",
        kernel=_w8a8_matmul_kernel,
        signature=matrices | scales | {"part_ptr": part, "T": "i32", "R": "i32", "C": "i32"},
        constants={
            "SPLITS": config.splits,
            "BLOCK_R": config.block_r,
            "BLOCK_T": config.block_t,
            "BLOCK_C": config.block_c,
        },
        divisible=("R", "C"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        chosen=chosen,
        max_registers=_MAX_REGISTERS[config.block_t],
        facts={"weights": config.block_r * config.block_c, "block_t": config.block_t},
    )


def compiled_sum(splits: int, dtype: str) -> CompileCase:
    return CompileCase(
        name=f"{dtype}-add-s{splits}",
        kernel=_add_scaled_parts_kernel,
        signature={
            "part_ptr": "*i32",
            "x_scale_ptr": "*fp32",
            "w_scale_ptr": "*fp32",
            "y_ptr": f"*{dtype}",
            "T": "i32",
            "R": "i32",
        },
        constants={"SPLITS": splits, "BLOCK_R": 1024},
        divisible=("R",),
        max_registers=44,
    )


# Llama-3-8B: attention's output, the gate with the up projection, the down projection
_LAYERS = ((4096, 4096), (28672, 4096), (4096, 14336))
_CHOSEN = {choose(T, R, C) for T in (1, 24, 64, 128) for R, C in _LAYERS}
COMPILED = [
    *(compiled(config, "bf16", config in _CHOSEN) for config in CONFIGS),
    compiled(choose(1, 28672, 4096), "fp16", True),
    *(compiled_sum(splits, "bf16") for splits in sorted({c.splits for c in _CHOSEN} - {1})),
]
