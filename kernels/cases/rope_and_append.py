"""Cases of `rope_and_append`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.rope_and_append import (
    LARGEST_SCALE,
    _rope_and_append_kernel,
    choose,
    rope_and_append,
    rope_and_append_ref,
)


def make(T: int, H: int, K: int, D: int, kv_len: int, norm: bool = False, int8: bool = False):
    """Random rows at random depths, and the usual table of angles."""

    def inputs(generator, device, dtype):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        capacity = kv_len + T + 3
        rate = 1e4 ** -(torch.arange(D // 2) / (D // 2))
        angle = torch.arange(capacity)[:, None] * rate
        given = {
            "qkv": normal(T, (H + 2 * K) * D).to(dtype),
            "cos": angle.cos(),
            "sin": angle.sin(),
            "depths": torch.randint(0, T, (T,), generator=generator, dtype=torch.int32),
            "kv": normal(capacity, 2 * K, D).to(dtype),
            "kv_len": torch.tensor([kv_len], dtype=torch.int32),
        }
        if norm:
            given["q_norm"], given["k_norm"] = (normal(D).to(dtype) for _ in range(2))
        if int8:
            given["kv"] = given["kv"].to(torch.int8)
            given["kv_scale"] = torch.rand(capacity, 2 * K, generator=generator).half()
        return {name: tensor.to(device) for name, tensor in given.items()}

    return inputs


def stored(op):
    """Rotated queries and what the cache then means: an int8 may round the other way at a tie."""

    def run(**given):
        q = op(**given)
        if "kv_scale" not in given:
            return q, given["kv"]
        return q, given["kv"].float() * given["kv_scale"][:, :, None].float()

    return run


# one rounding to 16 bits, where fp32 and fp64 may part: far below 2**-9 / sqrt(3) (bf16)
TOLERANCE = 1e-3

VALUES = [
    ValueCase(
        name=f"T{T}-H{H}-K{K}-D{D}-n{kv_len}{'-norm' if norm else ''}{'-int8' if int8 else ''}",
        op=stored(rope_and_append),
        reference=stored(rope_and_append_ref),
        make=make(T, H, K, D, kv_len, norm, int8),
        tolerance=TOLERANCE,
    )
    for T, H, K, D, kv_len, norm, int8 in (
        (1, 1, 1, 16, 0, False, False),
        (5, 7, 1, 128, 11, True, False),  # queries, key and value in one program
        (3, 12, 4, 64, 100, False, True),
        (2, 3, 2, 256, 7, True, True),  # programs of 4 heads: queries beside a key
        (13, 4, 2, 32, 997, False, False),
    )
]


def compiled(H: int, K: int, D: int, norm: bool, int8: bool, dtype: str = "bf16") -> CompileCase:
    half = f"*{dtype}"
    return CompileCase(
        name=f"{dtype}-H{H}-K{K}-D{D}{'-norm' if norm else ''}{'-int8' if int8 else ''}",
        kernel=_rope_and_append_kernel,
        signature={
            "qkv_ptr": half,
            "cos_ptr": "*fp32",
            "sin_ptr": "*fp32",
            "depths_ptr": "*i32",
            "kv_len_ptr": "*i32",
            "q_norm_ptr": half if norm else "*fp32",
            "k_norm_ptr": half if norm else "*fp32",
            "q_ptr": half,
            "kv_ptr": "*i8" if int8 else half,
            "scale_ptr": "*fp16" if int8 else half,
            "capacity": "i32",
            "max_positions": "i32",
            "eps": "fp32",
        },
        constants={
            "H": H,
            "K": K,
            "D": D,
            "HAS_NORM": norm,
            "QUANTIZED": int8,
            "LARGEST_SCALE": LARGEST_SCALE,
            "HEADS": choose(D),
        },
        max_registers=64,
        max_shared_bytes=4096,
    )


COMPILED = [
    compiled(32, 8, 128, False, False),  # Llama-3-8B
    compiled(32, 8, 128, False, False, "fp16"),
    compiled(64, 8, 128, False, True),  # Llama-3-70B
    compiled(32, 8, 128, True, False),  # Qwen3-8B
    compiled(32, 8, 128, True, True),
    compiled(32, 8, 64, False, False),  # Llama-3.2-1B
]
