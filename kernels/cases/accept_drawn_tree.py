"""Cases of `accept_drawn_tree`."""

from functools import partial

import torch

from hspec_kernels.accept_drawn_tree import (
    _accept_drawn_tree_turn_kernel,
    _accept_drawn_tree_walk_kernel,
    accept_drawn_tree,
    accept_drawn_tree_ref,
)
from hspec_kernels.accept_sample_tree import choose
from hspec_kernels.case import CompileCase, ValueCase


def make(n: int, V: int, reach: int, max_children: int, temperature: float = 0.8):
    """A random tree whose tokens are drawn from rows that resemble the target's."""

    def inputs(generator, device, dtype):
        back = torch.randint(1, reach + 1, (n,), generator=generator)
        parents = (torch.arange(n) - back).clamp(min=0)
        logits = (2 * torch.randn(n, V, generator=generator)).to(dtype)
        noise = 0.4 * torch.randn(n, V, generator=generator)
        p_draft = torch.softmax(logits[parents].float() / temperature + noise, dim=-1)
        tokens = torch.multinomial(p_draft, 1, generator=generator).flatten()
        parents[0] = -1
        return {
            "logits": logits.to(device),
            "tokens": tokens.int().to(device),
            "parents": parents.int().to(device),
            "uniforms": torch.rand(n, generator=generator).to(device),
            "temperature": temperature,
            "p_draft": p_draft.to(device),
            "max_children": max_children,
        }

    return inputs


VALUES = [
    ValueCase(
        name=f"n{n}-V{V}-reach{reach}-children{max_children}",
        op=partial(accept_drawn_tree, config=config),
        reference=accept_drawn_tree_ref,
        make=make(n, V, reach, max_children),
    )
    for n, V, reach, max_children, config in (
        (1, 1, 1, 1, None),
        (7, 3, 1, 1, None),
        (5, 1531, 1, 1, None),
        (9, 5, 4, 3, None),
        (3, 67, 1, 1, {"BLOCK": 32, "num_warps": 1}),
        (3, 128256, 2, 2, {"BLOCK": 65536, "num_warps": 8}),
    )
]


def compiled(n: int, V: int, dtype: str) -> list[CompileCase]:
    """The kernels of this file for trees of up to n nodes."""
    config = choose(V)
    S = -(-V // config["BLOCK"])
    shared = {
        "logits_ptr": f"*{dtype}",
        "tokens_ptr": "*i32",
        "parents_ptr": "*i32",
        "p_draft_ptr": "*fp32",
        "peak_ptr": "*fp32",
        "mass_ptr": "*fp32",
        "left_ptr": "*fp32",
        "p_child_ptr": "*fp32",
        "n": "i32",
        "V": "i32",
        "S": "i32",
        "inverse_temperature": "fp32",
    }
    verdict = {
        "uniforms_ptr": "*fp32",
        "path_ptr": "*i32",
        "n_path_ptr": "*i32",
        "emitted_ptr": "*i32",
        "max_children": "i32",
    }
    return [
        CompileCase(
            name=f"{name}-n{n}-V{V}-{dtype}",
            kernel=kernel,
            signature=signature,
            constants={"N_PAD": n, "S_PAD": 1 << (S - 1).bit_length(), "BLOCK": config["BLOCK"]},
            num_warps=config["num_warps"],
            divisible=("V",),
            max_registers=88,
            max_shared_bytes=1024,
        )
        for name, kernel, signature in (
            ("turn", _accept_drawn_tree_turn_kernel, shared | {"turn": "i32"}),
            ("walk", _accept_drawn_tree_walk_kernel, shared | verdict),
        )
    ]


COMPILED = [
    *compiled(16, 128256, "fp16"),
    *compiled(256, 151936, "bf16"),
    *compiled(256, 32000, "fp32"),
]
