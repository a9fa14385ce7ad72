"""What `w4a8_matmul` is tried on."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.w4a8_matmul import (
    CONFIGS,
    _w4a8_matmul_kernel,
    choose,
    pack_w4a8,
    w4a8_matmul,
    w4a8_matmul_ref,
)
from hspec_kernels.w4a16_matmul import Config


def make(T: int, R: int, C: int, group_size: int):
    """All codes and zeros, integer scales that keep weights in -120..120, any int8 in x."""

    def inputs(generator, device, dtype):
        def integers(low, high, *shape, dtype=torch.uint8):
            return torch.randint(low, high, shape, generator=generator, dtype=dtype).to(device)

        def scales(n):
            return (torch.rand(n, generator=generator) + 0.5).to(device)

        return {
            "xq": integers(-128, 128, T, C, dtype=torch.int8),
            "x_scale": scales(T) / 64,
            "packed": pack_w4a8(integers(0, 16, R, C)),
            "iscale": integers(1, 9, R, C // group_size),
            "zero": integers(0, 16, R, C // group_size),
            "w_scale": scales(R) / (32 * C**0.5),
            "group_size": group_size,
            "dtype": dtype,
        }

    return inputs


VALUES = [
    # tolerance 0: the sum is exact and both round the same way after it
    ValueCase(
        name=f"T{T}-R{R}-C{C}-g{G}",
        op=w4a8_matmul,
        reference=w4a8_matmul_ref,
        make=make(T, R, C, G),
    )
    for T, R, C, G in (
        (1, 1, 1, 1),
        (1, 64, 128, 128),
        (3, 97, 384, 128),
        (17, 130, 512, 256),
        (33, 70, 97, 97),
        (65, 64, 200, 200),
        (130, 65, 256, 128),
        (5, 70, 4096, 128),  # four splits
        (2, 64, 2987, 2987),  # two, the second shorter
    )
]

# by block_t; the most is sm_80's, where sums stay in registers
_MAX_REGISTERS = {16: 84, 32: 132, 64: 172}


def compiled(
    config: Config, C: int, group_size: int, chosen: bool, dtype: str = "bf16"
) -> CompileCase:
    part = f"*{dtype}" if config.splits == 1 else "*i32"
    return CompileCase(
        name=f"{dtype}-g{group_size}-t{config.block_t}-s{config.splits}",
        kernel=_w4a8_matmul_kernel,
        signature={
            "xq_ptr": "*i8",
            "x_scale_ptr": "*fp32",
            "packed_ptr": "*u8",
            "iscale_ptr": "*u8",
            "zero_ptr": "*u8",
            "w_scale_ptr": "*fp32",
            "part_ptr": part,
            "T": "i32",
            "R": "i32",
            "C": "i32",
        }
        | ({} if group_size == 128 else {"group_blocks": "i32"}),
        constants={
            "WHOLE": C % 128 == 0,
            "SPLITS": config.splits,
            "BLOCK_R": config.block_r,
            "BLOCK_T": config.block_t,
        }
        # Triton specializes an argument of 1
        | ({"group_blocks": 1} if group_size == 128 else {}),
        divisible=("R", "C"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        chosen=chosen,
        max_registers=_MAX_REGISTERS[config.block_t],
        max_shared_bytes=64 * 1024,
        facts={"weights": config.block_r * 128, "block_t": config.block_t},
    )


# Llama-3-8B: attention's output, the gate with the up projection, the down projection
_LAYERS = ((4096, 4096), (28672, 4096), (4096, 14336))
_CHOSEN = {choose(T, R, C) for T in (1, 24, 64) for R, C in _LAYERS}
COMPILED = [
    *(compiled(config, 4096, 128, config in _CHOSEN) for config in CONFIGS),
    *(compiled(config, 4096, 4096, True) for config in sorted(_CHOSEN, key=str)),
    compiled(choose(1, 28672, 4096), 4096, 128, True, "fp16"),
]
