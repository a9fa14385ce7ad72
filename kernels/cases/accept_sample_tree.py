"""Cases of `accept_sample_tree`."""

from functools import partial

import torch

from hspec_kernels.accept_sample_tree import (
    WALK_WARPS,
    _accept_sample_tree_walk_kernel,
    _accept_sample_tree_weigh_kernel,
    accept_sample_tree,
    accept_sample_tree_ref,
    choose,
)
from hspec_kernels.case import CompileCase, ValueCase


def make(n: int, V: int, reach: int, *, likely: bool = False, temperature: float = 0.8):
    """A random tree; `likely`: tokens are the target's most likely, so that paths are long."""

    def inputs(generator, device, dtype):
        logits = (2 * torch.randn(n, V, generator=generator)).to(dtype)
        back = torch.randint(1, reach + 1, (n,), generator=generator)
        parents = (torch.arange(n) - back).clamp(min=0)
        tokens = torch.randint(V, (n,), generator=generator)
        if likely:
            logits[:, 0] += 9
            tokens = logits[parents].argmax(dim=1)
        parents[0] = -1
        return {
            "logits": logits.to(device),
            "tokens": tokens.int().to(device),
            "parents": parents.int().to(device),
            "uniforms": torch.rand(n, generator=generator).to(device),
            "temperature": temperature,
        }

    return inputs


VALUES = [
    ValueCase(
        name=f"n{n}-V{V}-reach{reach}{'-likely' if options else ''}",
        op=partial(accept_sample_tree, config=config),
        reference=accept_sample_tree_ref,
        make=make(n, V, reach, **options),
    )
    for n, V, reach, options, config in (
        (1, 1, 1, {}, None),
        (1, 1531, 1, {}, None),
        (6, 2, 3, {}, None),
        (9, 3, 1, {"likely": True}, None),
        (13, 61, 4, {"likely": True}, None),
        # many blocks a row without many programs
        (2, 67, 1, {"temperature": 2.5}, {"BLOCK": 8, "num_warps": 1}),
        (3, 128256, 2, {"likely": True}, {"BLOCK": 65536, "num_warps": 8}),
    )
]


def compiled(n: int, V: int, dtype: str) -> list[CompileCase]:
    """Both kernels for trees of up to n nodes."""
    config = choose(V)
    S = -(-V // config["BLOCK"])
    shared = {
        "logits_ptr": f"*{dtype}",
        "tokens_ptr": "*i32",
        "parents_ptr": "*i32",
        "peak_ptr": "*fp32",
        "mass_ptr": "*fp32",
        "child_logit_ptr": "*fp32",
        "n": "i32",
        "V": "i32",
        "inverse_temperature": "fp32",
    }
    constants = {"N_PAD": n, "BLOCK": config["BLOCK"]}
    weigh = CompileCase(
        name=f"weigh-n{n}-V{V}-{dtype}",
        kernel=_accept_sample_tree_weigh_kernel,
        signature=shared,
        constants=constants,
        num_warps=config["num_warps"],
        divisible=("V",),
        max_registers=80,
        max_shared_bytes=256,
    )
    walk = CompileCase(
        name=f"walk-n{n}-V{V}-{dtype}",
        kernel=_accept_sample_tree_walk_kernel,
        signature=shared
        | {
            "uniforms_ptr": "*fp32",
            "path_ptr": "*i32",
            "n_path_ptr": "*i32",
            "emitted_ptr": "*i32",
            "S": "i32",
        },
        constants=constants | {"S_PAD": 1 << (S - 1).bit_length()},
        num_warps=WALK_WARPS * config["num_warps"],
        divisible=("V",),
        max_registers=72,
        max_shared_bytes=1024,
    )
    return [weigh, walk]


COMPILED = [
    *compiled(64, 128256, "fp16"),
    *compiled(256, 151936, "bf16"),
    *compiled(256, 32000, "fp32"),
]
