"""What `fp8_matmul` is tried on."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.fp8_matmul import (
    CONFIGS,
    E4M3,
    _fp8_matmul_kernel,
    choose,
    constants,
    fp8_matmul,
    fp8_matmul_ref,
)
from hspec_kernels.w4a16_matmul import Config


def make(T: int, R: int, C: int, narrow: bool, **options):
    """Random weights of all exponents; rows of e4m3 (`narrow`) or of the tried dtype."""

    def inputs(generator, device, dtype):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        weight = normal(R, C) * torch.exp2(torch.randint(-9, 7, (R, C), generator=generator))
        scale = torch.rand(T, generator=generator) + 0.5
        return {
            "x": normal(T, C).to(E4M3 if narrow else dtype).to(device),
            "x_scale": scale.to(device) if narrow else None,
            "weight": weight.to(E4M3).to(device),
            "w_scale": ((torch.rand(R, generator=generator) + 0.5) / (32 * C**0.5)).to(device),
            "dtype": dtype,
        } | options

    return inputs


# the reference rounds y too, so only sums that round differently count; sums of e4m3 products may
# miss by 2**-14 on sm_90 and then do so often
TOLERANCE = {True: 2e-3, False: 2e-4}

VALUES = [
    ValueCase(
        name=f"{'e4m3' if narrow else 'half'}-T{T}-R{R}-C{C}",
        op=fp8_matmul,
        reference=fp8_matmul_ref,
        make=make(T, R, C, narrow),
        tolerance=TOLERANCE[narrow],
    )
    for narrow in (True, False)
    for T, R, C in (
        (1, 1, 1),
        (1, 64, 128),
        (3, 97, 384),
        (17, 130, 131),
        (65, 65, 200),
        (2, 64, 4224),  # four splits, the last shorter
    )
]

# by (16-bit rows, block_t)
_MAX_REGISTERS = {
    (False, 16): 44,
    (False, 32): 60,
    (False, 64): 112,
    (True, 16): 72,
    (True, 32): 96,
    (True, 64): 136,
}


def compiled(
    config: Config, kind: str, chosen: bool = True, native: bool = True, out: str = "bf16"
) -> CompileCase:
    """`native`: for devices that know e4m3; the others take weights as bytes."""
    dtype = {"fp8e4nv": E4M3, "fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    return CompileCase(
        name=f"{kind}-{'native' if native else 'bytes'}-t{config.block_t}-s{config.splits}",
        kernel=_fp8_matmul_kernel,
        signature={
            "x_ptr": f"*{kind}",
            "x_scale_ptr": "*fp32",
            "weight_ptr": "*fp8e4nv" if native else "*u8",
            "w_scale_ptr": "*fp32",
            "part_ptr": f"*{out}" if config.splits == 1 else "*fp32",
            "T": "i32",
            "R": "i32",
            "C": "i32",
        },
        constants=constants(dtype, 4096)
        | {
            "SPLITS": config.splits,
            "BLOCK_R": config.block_r,
            "BLOCK_T": config.block_t,
        },
        divisible=("R", "C"),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        chosen=chosen,
        max_registers=_MAX_REGISTERS[kind != "fp8e4nv", config.block_t],
        max_shared_bytes=68 * 1024,
        targets=(90, 100) if native else (80,),
        facts={"weights": config.block_r * 128, "block_t": config.block_t},
    )


# Llama-3-8B: attention's output, the gate with the up projection, the down projection
_LAYERS = ((4096, 4096), (28672, 4096), (4096, 14336))
_CHOSEN = {choose(T, R, C) for T in (1, 24, 64) for R, C in _LAYERS}
COMPILED = [
    *(compiled(config, "fp8e4nv", config in _CHOSEN) for config in CONFIGS),
    *(compiled(config, "bf16", config in _CHOSEN) for config in CONFIGS),
    *(compiled(config, "bf16", config in _CHOSEN, native=False) for config in CONFIGS),
    *(compiled(choose(24, 28672, 4096), "fp16", native=n, out="fp16") for n in (True, False)),
]
