"""Cases of `tree_rerank`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.tree_expand import History, empty_history, root_frontier, tree_expand_ref
from hspec_kernels.tree_rerank import _tree_rerank_kernel, choose, tree_rerank, tree_rerank_ref


def grown(k: int, depth: int, generator: torch.Generator, step: float = 0.25) -> History:
    """A history of random tokens; log-probabilities in steps, so that many scores tie."""
    history, frontier = empty_history(k, depth, "cpu"), root_frontier(k, depth, "cpu")
    for level in range(depth):
        F = len(frontier.nodes)
        ids = torch.randint(1000, (F, k), generator=generator, dtype=torch.int32)
        log_p = -step * torch.randint(0, 9, (F, k), generator=generator)
        log_p = log_p.sort(dim=1, descending=True).values
        frontier = tree_expand_ref(ids, log_p, frontier, history, level)
    return history


def make(k: int, depth: int, tree_size: int, bucket: int):
    def inputs(generator, device, dtype):
        history = grown(k, depth, generator)
        return {
            "root_token": torch.tensor([77], dtype=torch.int32, device=device),
            "history": History(*(tensor.to(device) for tensor in history)),
            "tree_size": tree_size,
            "bucket": bucket,
        }

    return inputs


VALUES = [
    ValueCase(
        name=f"k{k}-depth{depth}-n{tree_size}-bucket{bucket}",
        op=tree_rerank,
        reference=tree_rerank_ref,
        make=make(k, depth, tree_size, bucket),
    )
    for k, depth, tree_size, bucket in (
        (1, 1, 1, 1),
        (1, 1, 9, 9),  # more nodes wanted than there are
        (1, 7, 5, 8),
        (3, 4, 13, 16),
        (10, 3, 30, 32),
        (10, 6, 60, 64),
        (8, 4, 70, 80),  # two words, bucket not a power of two
        (10, 7, 60, 64),  # a history of two blocks
    )
]


def compiled(bucket: int, max_registers: int) -> CompileCase:
    config, W = choose(bucket), -(-bucket // 64)
    return CompileCase(
        name=f"bucket{bucket}",
        kernel=_tree_rerank_kernel,
        signature={
            "root_token_ptr": "*i32",
            "tokens_ptr": "*i32",
            "scores_ptr": "*fp32",
            "parents_ptr": "*i32",
            "out_tokens_ptr": "*i32",
            "out_parents_ptr": "*i32",
            "out_depths_ptr": "*i32",
            "out_ancestors_ptr": "*i64",
            "H": "i32",
            "n": "i32",
            "bucket": "i32",
            "W": "i32",
        },
        constants={
            "NODES": 1 << (bucket - 1).bit_length(),
            "W_PAD": 1 << (W - 1).bit_length(),
            "BLOCK": config.block,
        },
        num_warps=config.num_warps,
        max_registers=max_registers,
        max_shared_bytes=8192,
    )


COMPILED = [compiled(32, 80), compiled(64, 80), compiled(128, 88), compiled(256, 96)]
