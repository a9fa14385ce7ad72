"""Cases of `w4a16_matmul`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.w4a16_matmul import (
    CONFIGS,
    Config,
    _w4a16_matmul_kernel,
    choose,
    pack_w4a16,
    w4a16_matmul,
    w4a16_matmul_ref,
)


def make(T: int, R: int, C: int, group_size: int, zeros: bool = True, **options):
    """Random rows and weights; scales of a unit-norm layer."""

    def inputs(generator, device, dtype):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        q = torch.randint(0, 16, (R, C), generator=generator, dtype=torch.uint8)
        scale = normal(R, C // group_size).abs() * 0.1 / C**0.5 + 0.1 / C**0.5
        zero = normal(R, C // group_size) * 0.1 / C**0.5
        return {
            "x": normal(T, C).to(dtype).to(device),
            "packed": pack_w4a16(q).to(device),
            "scale": scale.to(dtype).to(device),
            "zero": zero.to(dtype).to(device) if zeros else None,
            "group_size": group_size,
        } | options

    return inputs


# a weight is rounded to 16 bits after the scale and after the zero, and weights are the smaller for
# their zero: in bf16 emulated in fp32 the most of 400 seeds was 6e-3, over 33 results or more
TOLERANCE = 8e-3

VALUES = [
    ValueCase(
        name=f"T{T}-R{R}-C{C}-g{G}-{'zero' if zeros else 'symmetric'}",
        op=w4a16_matmul,
        reference=w4a16_matmul_ref,
        make=make(T, R, C, G, zeros),
        tolerance=TOLERANCE,
    )
    for T, R, C, G, zeros in (
        (1, 64, 128, 128, True),
        (1, 97, 384, 128, False),
        (33, 1, 32, 32, True),
        (17, 130, 320, 64, True),
        (65, 200, 96, 32, False),
        (128, 64, 256, 128, True),
        (5, 64, 4096, 128, True),  # several splits, an uneven last one below
        (2, 64, 2944, 128, False),
    )
]


def compiled(config: Config, R: int, C: int, chosen: bool, dtype: str = "fp16") -> CompileCase:
    pointers = dict.fromkeys(("x_ptr", "scale_ptr", "zero_ptr"), f"*{dtype}")
    pointers |= {"part_ptr": "*fp32", "arrived_ptr": "*i32", "out_ptr": f"*{dtype}"}
    return CompileCase(
        name=f"{dtype}-r{config.block_r}-t{config.block_t}-s{config.splits}-p{config.num_stages}",
        kernel=_w4a16_matmul_kernel,
        signature=pointers | {"packed_ptr": "*i16", "T": "i32", "R": "i32", "C": "i32"},
        constants={
            "G": 128,
            "HAS_ZERO": True,
            "EVEN": True,
            "ASM": True,
            "SPLITS": config.splits,
            "BLOCK_R": config.block_r,
            "BLOCK_T": config.block_t,
        },
        divisible=("R", "C"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        chosen=chosen,
        max_registers=168,
        max_loop_per_weight=3.5 if config.block_r == 128 else 5.0,
        facts={"weights": config.block_r * 128, "block_t": config.block_t},
    )


_CHOSEN = {choose(T, 4096, 14336) for T in (1, 32, 64)}
COMPILED = [
    *(compiled(config, 4096, 14336, True) for config in sorted(_CHOSEN, key=str)),
    compiled(choose(64, 4096, 14336), 4096, 14336, True, "bf16"),
    *(compiled(config, 4096, 14336, False) for config in CONFIGS if config not in _CHOSEN),
]
