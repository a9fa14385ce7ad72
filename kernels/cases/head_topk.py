"""Cases of `head_topk`."""

from functools import partial

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.head_topk import (
    MERGE_WARPS,
    Config,
    _head_topk_block_kernel,
    _head_topk_merge_kernel,
    choose,
    head_topk,
    head_topk_ref,
)


def make(T: int, V: int, k: int, *, coarse: bool = False, trimmed: bool = False, **options):
    """Random logits; `coarse`: whole numbers, so that most columns tie."""

    def inputs(generator, device, dtype):
        logits = 3 * torch.randn(T, V, generator=generator)
        logits = logits.round() if coarse else logits
        token_map = torch.randperm(V, generator=generator).int() * 3 if trimmed else None
        return {
            "logits": logits.to(dtype).to(device),
            "k": k,
            "token_map": token_map.to(device) if trimmed else None,
        } | options

    return inputs


VALUES = [
    ValueCase(
        name=name,
        op=head_topk,
        reference=head_topk_ref,
        make=make(T, V, k, **options),
        tolerance=2e-6,
    )
    for name, T, V, k, options in (
        ("one-column", 1, 1, 1, {}),
        ("k-is-V", 3, 7, 7, {"coarse": True}),
        ("ties", 2, 1531, 10, {"coarse": True}),
        ("two-blocks-k32-trimmed", 1, 2039, 32, {"trimmed": True}),
        ("padding-columns", 1, 1100, 5, {"n_known": 1025}),
    )
] + [
    ValueCase(
        name="llama3",
        # the shipped block would be 32 programs, seconds in the interpreter
        op=partial(head_topk, config=Config(65536, 64, 8)),
        reference=head_topk_ref,
        make=make(1, 128256, 10),
        tolerance=2e-6,
    )
]


def compiled(V: int, k_pad: int, dtype: str) -> list[CompileCase]:
    """Both kernels for a vocabulary."""
    config = choose(V)
    n_blocks = -(-V // config.block)
    block = CompileCase(
        name=f"block-V{V}-k{k_pad}-{dtype}",
        kernel=_head_topk_block_kernel,
        signature={
            "logits_ptr": f"*{dtype}",
            "key_ptr": "*i64",
            "peak_ptr": "*fp32",
            "mass_ptr": "*fp32",
            "V": "i32",
            "n_known": "i32",
        },
        constants={"K_PAD": k_pad, "GROUP": config.group, "BLOCK": config.block},
        num_warps=config.num_warps,
        divisible=("V", "n_known") if V % 16 == 0 else (),
        max_registers=72,
        max_shared_bytes=2048,
    )
    merge = CompileCase(
        name=f"merge-V{V}-k{k_pad}",
        kernel=_head_topk_merge_kernel,
        signature={
            "key_ptr": "*i64",
            "peak_ptr": "*fp32",
            "mass_ptr": "*fp32",
            "token_map_ptr": "*i32",
            "ids_ptr": "*i32",
            "log_p_ptr": "*fp32",
            "S": "i32",
            "k": "i32",
        },
        constants={
            "HAS_MAP": True,
            "K_PAD": k_pad,
            "S_PAD": 1 << (n_blocks - 1).bit_length(),
        },
        num_warps=MERGE_WARPS,
        max_registers=64,
        max_shared_bytes=2048,
    )
    return [block, merge]


COMPILED = [
    *compiled(128256, 16, "fp16"),
    *compiled(128256, 32, "bf16"),
    *compiled(151936, 16, "fp32"),
    *compiled(32000, 16, "fp16"),
]
