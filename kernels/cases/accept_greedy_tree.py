"""Cases of `accept_greedy_tree`."""

import torch

from hspec_kernels.accept_greedy_tree import (
    CONFIGS,
    NOTHING,
    _accept_greedy_tree_kernel,
    accept_greedy_tree,
    accept_greedy_tree_ref,
)
from hspec_kernels.case import CompileCase, ValueCase


def make(n: int, reach: int, vocabulary: int = 2):
    """A random tree in which a parent lies at most `reach` before its child."""

    def inputs(generator, device, dtype):
        def ids():
            return torch.randint(0, vocabulary, (n,), generator=generator).int()

        back = torch.randint(1, reach + 1, (n,), generator=generator)
        parents = (torch.arange(n) - back).clamp(min=0)
        parents[0] = -1
        return {
            "tokens": ids().to(device),
            "parents": parents.int().to(device),
            "target_ids": ids().to(device),
        }

    return inputs


VALUES = [
    ValueCase(
        name=f"n{n}-reach{reach}-{vocabulary}tokens",
        op=accept_greedy_tree,
        reference=accept_greedy_tree_ref,
        make=make(n, reach, vocabulary),
    )
    for n, reach, vocabulary in (
        (1, 1, 2),
        (2, 1, 1),
        (17, 1, 1),  # a chain, all accepted
        (60, 8, 2),
        (65, 12, 2),
        (1024, 400, 2),
    )
]

COMPILED = [
    CompileCase(
        name=f"n{config.block}",
        kernel=_accept_greedy_tree_kernel,
        signature={
            "tokens_ptr": "*i32",
            "parents_ptr": "*i32",
            "target_ids_ptr": "*i32",
            "path_ptr": "*i32",
            "n_path_ptr": "*i32",
            "emitted_ptr": "*i32",
            "n": "i32",
        },
        constants={"NOTHING": NOTHING, "BLOCK": config.block},
        num_warps=config.num_warps,
        max_registers=56,
        max_shared_bytes=4608,
    )
    for config in CONFIGS
]
