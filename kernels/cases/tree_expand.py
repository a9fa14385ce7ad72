"""Cases of `tree_expand`."""

from functools import partial

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.tree_expand import (
    Frontier,
    History,
    _tree_expand_kernel,
    choose,
    root_frontier,
    tree_expand,
    tree_expand_ref,
)


def make(k: int, level: int, W: int):
    """A random frontier; scores in steps of 1/4, so that many tie."""

    def inputs(generator, device, dtype):
        def whole(low, high, *shape):
            return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

        F = k if level else 1
        frontier = root_frontier(k, level + 1, "cpu")
        if level:
            scores = (-whole(0, 9, k).float() / 4).sort(descending=True).values
            seen = torch.randint(2 ** min(level * k % 64, 62), (k, W), generator=generator)
            nodes = whole(0, k + (level - 1) * k * k, k)
            frontier = Frontier(nodes, whole(0, 99, k), scores, whole(0, k, k), seen)
        log_p = (-whole(0, 9, F, k).float() / 4).sort(dim=1, descending=True).values
        return {
            "ids": whole(0, 999, F, k).to(device),
            "log_p": log_p.to(device),
            "frontier": Frontier(*(tensor.to(device) for tensor in frontier)),
            "level": level,
        }

    return inputs


def with_history(expand):
    """An expansion that starts from a history of its own and returns it as well."""

    def run(ids, log_p, frontier, level):
        k = ids.shape[1]
        new = partial(torch.zeros, k + level * k * k + 3, device=ids.device)
        history = History(new(dtype=torch.int32), new(), new(dtype=torch.int32))
        return *expand(ids, log_p, frontier, history, level), *history

    return run


VALUES = [
    ValueCase(
        name=f"k{k}-level{level}",
        op=with_history(tree_expand),
        reference=with_history(tree_expand_ref),
        make=make(k, level, W),
    )
    for k, level, W in (
        (1, 0, 1),
        (10, 0, 1),
        (1, 3, 1),
        (7, 2, 3),
        (10, 6, 2),  # bits 60..69: two words
        (32, 1, 1),
        (32, 2, 2),
    )
]


def compiled(k: int, W: int) -> CompileCase:
    config = choose(k * k)
    return CompileCase(
        name=f"k{k}-W{W}",
        kernel=_tree_expand_kernel,
        signature={
            "ids_ptr": "*i32",
            "log_p_ptr": "*fp32",
            "nodes_ptr": "*i32",
            "scores_ptr": "*fp32",
            "seen_ptr": "*i64",
            "history_tokens_ptr": "*i32",
            "history_scores_ptr": "*fp32",
            "history_parents_ptr": "*i32",
            "out_nodes_ptr": "*i32",
            "out_tokens_ptr": "*i32",
            "out_scores_ptr": "*fp32",
            "out_came_from_ptr": "*i32",
            "out_seen_ptr": "*i64",
        }
        | dict.fromkeys(("start", "first_bit", "n", "k", "W"), "i32"),
        constants={
            "K_PAD": 1 << (k - 1).bit_length(),
            "W_PAD": 1 << (W - 1).bit_length(),
            "BLOCK": config.block,
        },
        num_warps=config.num_warps,
        max_registers=64,
        max_shared_bytes=4096,
    )


COMPILED = [compiled(8, 1), compiled(10, 1), compiled(32, 4)]
