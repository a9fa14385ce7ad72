"""What `wna16_matmul` is tried on."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.wna16_matmul import (
    BLOCK_C,
    _wna16_matmul_kernel,
    choose,
    pack_wna16,
    wna16_matmul,
    wna16_matmul_ref,
)


def make(T: int, R: int, C: int, bits: int, group_size: int, zeros: bool = True, **options):
    """Random rows and codes; scales of a unit-norm layer."""

    def inputs(generator, device, dtype):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        q = torch.randint(0, 2**bits, (R, C), generator=generator, dtype=torch.uint8)
        step = 2 / (2**bits * C**0.5)
        scale = step * (normal(R, C // group_size).abs() + 1)
        zero = step * normal(R, C // group_size)
        return {
            "x": normal(T, C).to(dtype).to(device),
            "packed": pack_wna16(q, bits).to(device),
            "scale": scale.to(dtype).to(device),
            "zero": zero.to(dtype).to(device) if zeros else None,
            "bits": bits,
            "group_size": group_size,
        } | options

    return inputs


# roundings of a weight, after the scale and after the zero, and of y, each 2**-9 / sqrt(3) of its
# size at most (bf16; up to 5e-3 in tries where a zero makes weights small); fp16 stays below 6e-4,
# which the tests of this operation ask for
TOLERANCE = 8e-3

VALUES = [
    ValueCase(
        name=f"{bits}b-T{T}-R{R}-C{C}-g{G}-{'zero' if zeros else 'symmetric'}",
        op=wna16_matmul,
        reference=wna16_matmul_ref,
        make=make(T, R, C, bits, G, zeros),
        tolerance=TOLERANCE,
    )
    for bits, T, R, C, G, zeros in (
        (8, 1, 64, 128, 128, True),
        (8, 3, 97, 320, 64, True),
        (8, 17, 130, 256, 32, False),
        (8, 5, 70, 131, 131, True),
        (8, 2, 64, 2944, 128, False),
        (3, 1, 64, 256, 128, True),
        (3, 65, 130, 320, 32, True),
        (3, 5, 97, 1, 1, False),
        (3, 33, 64, 448, 64, False),
        (3, 2, 64, 4224, 128, True),
        (2, 1, 1, 128, 128, False),
        (2, 65, 130, 160, 32, True),
        (2, 17, 97, 192, 64, True),
        (2, 3, 64, 389, 389, False),
        (2, 2, 64, 4224, 128, True),
    )
]


# by (bits, group size, block_r, block_t): registers, the most of all targets, and instructions a
# weight, the most of sm_80 and sm_90
_MOST = {
    (8, 0, 128, 16): (112, 3.25),
    (8, 0, 128, 32): (140, 3.25),
    (8, 0, 64, 32): (104, 4.0),
    (8, 0, 64, 64): (104, 4.75),
    (8, 32, 128, 32): (168, 4.75),
    (3, 128, 128, 16): (168, 3.25),
    (3, 128, 128, 32): (168, 3.25),
    (3, 128, 64, 32): (120, 4.5),
    (3, 128, 64, 64): (132, 4.5),
    (2, 64, 128, 16): (200, 3.25),
    (2, 64, 128, 32): (200, 3.25),
    (2, 64, 64, 64): (160, 4.75),
}


def compiled(
    config: Config,
    bits: int,
    group_size: int,
    dtype: str,
    zeros: bool = True,
    targets=(80, 90, 100),
) -> CompileCase:
    """`group_size` 0: one for the row."""
    pointers = dict.fromkeys(("x_ptr", "scale_ptr", "zero_ptr", "out_ptr"), f"*{dtype}")
    part = f"*{dtype}" if config.splits == 1 else "*fp32"
    pointers |= {"packed_ptr": "*i16", "part_ptr": part}
    pointers["arrived_ptr"] = "*i16" if config.splits == 1 else "*i32"
    registers, loop = _MOST[bits, group_size, config.block_r, config.block_t]
    tile = f"r{config.block_r}-t{config.block_t}-s{config.splits}"
    return CompileCase(
        name=f"{dtype}-{bits}b-g{group_size or 'C'}{'' if zeros else '-symmetric'}-{tile}",
        kernel=_wna16_matmul_kernel,
        signature=pointers | dict.fromkeys(("T", "R", "C"), "i32"),
        constants={
            "BITS": bits,
            "G": group_size,
            "HAS_ZERO": zeros,
            "EVEN": True,
            "ASM": True,
            "SPLITS": config.splits,
            "BLOCK_R": config.block_r,
            "BLOCK_T": config.block_t,
        },
        divisible=("R", "C"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        max_registers=registers,
        max_shared_bytes=76 * 1024,
        max_loop_per_weight=loop,
        targets=targets,
        facts={
            "bits": bits,
            "weights": config.block_r * BLOCK_C[bits],
            "block_t": config.block_t,
        },
    )


# bits, group size and zeros of the formats that are made of them; Llama-3-8B's gate and up
# projection, output layer, down projection, and a layer too small for tall tiles
_FORMATS = ((8, 0, False), (2, 64, True))
COMPILED = [
    *(
        compiled(choose(T, 28672, 4096, bits), bits, G, "bf16", zeros)
        for bits, G, zeros in _FORMATS
        for T in (1, 24, 64)
    ),
    compiled(choose(1, 128256, 4096, 8), 8, 0, "fp16", False),
    compiled(choose(24, 4096, 14336, 2), 2, 64, "fp16"),
    compiled(choose(24, 4096, 4096, 8), 8, 0, "bf16", False),
    # small groups with zeros: the most that is done to a weight
    compiled(choose(24, 28672, 4096, 8), 8, 32, "bf16"),
    # 3 bits: sm_100 has tiles of its own for more than 16 rows
    compiled(choose(1, 28672, 4096, 3), 3, 128, "bf16"),
    compiled(choose(24, 28672, 4096, 3), 3, 128, "bf16", targets=(80, 90)),
    compiled(choose(64, 28672, 4096, 3), 3, 128, "bf16", targets=(80, 90)),
    compiled(choose(24, 4096, 14336, 3), 3, 128, "fp16", targets=(80, 90)),
    compiled(choose(24, 28672, 4096, 3, tensor_memory=True), 3, 128, "bf16", targets=(100,)),
]
