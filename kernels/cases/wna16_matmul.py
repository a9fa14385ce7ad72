"""What `wna16_matmul` is tried on."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.w4a16_matmul import Config
from hspec_kernels.wna16_matmul import (
    _wna16_matmul_kernel,
    choose,
    constants,
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
# size at most (bf16); fp16 stays below 6e-4, which the tests of this operation ask for
TOLERANCE = 4e-3

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


# by (bits, block_r, block_t); the most is always sm_80's, where sums stay in registers
_MAX_REGISTERS = {
    (2, 128, 16): 128,
    (2, 128, 32): 144,
    (2, 64, 16): 96,
    (2, 64, 32): 116,
    (2, 64, 64): 132,
    (3, 64, 16): 132,
    (3, 64, 32): 132,
    (3, 64, 64): 156,
    (8, 64, 16): 84,
    (8, 64, 32): 96,
    (8, 64, 64): 164,
}


def compiled(
    config: Config, bits: int, C: int, group_size: int, dtype: str, zeros: bool = True
) -> CompileCase:
    kind = constants(getattr(torch, dtype), C, bits, group_size)
    name = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
    pointers = dict.fromkeys(("x_ptr", "scale_ptr", "zero_ptr"), f"*{name}")
    part = f"*{name}" if config.splits == 1 else "*fp32"
    sizes = dict.fromkeys(("T", "R", "C", "n_groups"), "i32")
    tile = f"r{config.block_r}-t{config.block_t}-s{config.splits}"
    return CompileCase(
        name=f"{name}-{bits}b-g{group_size}{'' if zeros else '-symmetric'}-{tile}",
        kernel=_wna16_matmul_kernel,
        signature=pointers | {"packed_ptr": "*u8", "part_ptr": part} | sizes,
        constants=kind
        | {
            "HAS_ZERO": zeros,
            "SPLITS": config.splits,
            "BLOCK_R": config.block_r,
            "BLOCK_T": config.block_t,
        },
        divisible=("R", "C"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        max_registers=_MAX_REGISTERS[bits, config.block_r, config.block_t],
        max_shared_bytes=76 * 1024,
        facts={"bits": bits, "weights": config.block_r * 128, "block_t": config.block_t},
    )


# Llama-3-8B's gate and up projection, and its down projection
_LAYERS = ((28672, 4096), (4096, 14336))
_CHOSEN = {
    (choose(T, R, C, bits), bits, C) for bits in (8, 3, 2) for T in (1, 24, 64) for R, C in _LAYERS
}
COMPILED = [
    *(compiled(*key, 128, "bfloat16") for key in sorted(_CHOSEN, key=str)),
    *(compiled(choose(24, 4096, 14336, b), b, 14336, 128, "float16") for b in (8, 3, 2)),
    *(compiled(choose(24, 4096, 14336, b), b, 14336, 32, "bfloat16") for b in (8, 3, 2)),
    *(compiled(choose(1, 28672, 4096, b), b, 4096, 4096, "bfloat16", False) for b in (8, 3, 2)),
]
