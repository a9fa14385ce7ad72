"""Cases of `replay_verdict`."""

import torch

from hspec_kernels.accept_greedy_tree import NOTHING
from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.replay_verdict import (
    _replay_verdict_kernel,
    replay_verdict,
    replay_verdict_ref,
)


def make(n: int, n_nodes: int, length: int, stride: int, N: int = 5):
    """A recorded list whose last entry is due."""

    def inputs(generator, device, dtype):
        def ids(*size):
            return torch.randint(0, 99, size, generator=generator).int().to(device)

        def one(value):
            return torch.tensor([value], dtype=torch.int32, device=device)

        lengths = ids(N)
        lengths[-1] = length
        return {
            "tokens": ids(n),
            "best": ids(n),
            "lengths": lengths,
            "cursor": one(N - 1),
            "n_nodes": one(n_nodes),
            "stride": stride,
        }

    return inputs


def moved(op):
    """The verdict, and where the cursor stands afterwards."""

    def run(**inputs):
        return (*op(**inputs), inputs["cursor"])

    return run


VALUES = [
    ValueCase(
        name=f"n{n}-{n_nodes}nodes-length{length}-stride{stride}",
        op=moved(replay_verdict),
        reference=moved(replay_verdict_ref),
        make=make(n, n_nodes, length, stride),
    )
    for n, n_nodes, length, stride in (
        (1, 1, 1, 1),
        (16, 10, 4, 1),
        (16, 10, 12, 1),  # longer than the draft
        (24, 24, 5, 2),
        (33, 30, 99, 2),
        (8, 5, 0, 1),  # a round emits one token at least
        (16, 16, -4, 1),
        (16, 4, -9, 1),  # no node is left for a rival
        (16, 16, -1, 1),
    )
]

COMPILED = [
    CompileCase(
        name=f"n{n}",
        kernel=_replay_verdict_kernel,
        signature=dict.fromkeys(
            ("tokens_ptr", "best_ptr", "lengths_ptr", "cursor_ptr", "n_nodes_ptr", "path_ptr",
             "n_path_ptr", "emitted_ptr"), "*i32",
        ) | {"n": "i32", "N": "i32", "stride": "i32"},
        constants={"NOTHING": NOTHING, "BLOCK": n},
        num_warps=1,
        max_registers=64,
        max_shared_bytes=0,
    )
    for n in (16, 64)
]  # fmt: skip
