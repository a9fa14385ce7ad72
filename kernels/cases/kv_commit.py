"""Cases of `kv_commit`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.kv_commit import (
    _advance_kernel,
    _kv_commit_kernel,
    choose,
    kv_commit,
    kv_commit_ref,
)


def make(layers: int, K: int, D: int, P: int, n_path: int, kv_len: int, int8: bool = False):
    """A cache of random rows and an increasing path through a tree of 2 * P + 1 of them."""

    def inputs(generator, device, dtype):
        shape = (layers, kv_len + 2 * P + 1, 2 * K)
        rows = torch.randn(*shape, D, generator=generator).to(dtype)
        if int8:
            rows = torch.randint(-127, 128, (*shape, D), generator=generator, dtype=torch.int8)
        path = torch.randperm(2 * P + 1, generator=generator)[:P].sort().values
        given = {
            "storage": rows,
            "path": path.int(),
            "n_path": torch.tensor([n_path], dtype=torch.int32),
            "kv_len": torch.tensor([kv_len], dtype=torch.int32),
        }
        if int8:
            given["kv_scale"] = torch.rand(*shape, generator=generator).half()
        return {name: tensor.to(device) for name, tensor in given.items()}

    return inputs


def changed(commit):
    """What a commit leaves behind."""

    def run(**given):
        commit(**given)
        left = given["storage"], given["kv_len"]
        return (*left, given["kv_scale"]) if "kv_scale" in given else left

    return run


VALUES = [
    ValueCase(
        name=f"L{layers}-K{K}-D{D}-P{P}-n{n_path}{'-int8' if int8 else ''}",
        op=changed(kv_commit),
        reference=changed(kv_commit_ref),
        make=make(layers, K, D, P, n_path, kv_len, int8),
    )
    for layers, K, D, P, n_path, kv_len, int8 in (
        (1, 1, 16, 1, 1, 0, False),
        (3, 2, 64, 7, 5, 13, False),  # fewer than the path holds
        (2, 1, 80, 64, 64, 3, False),  # the longest path; a row that is no multiple of the tile
        (2, 3, 16, 5, 0, 4, False),  # nothing accepted
        (2, 3, 32, 5, 5, 4, True),
    )
]

COMPILED = [
    *(
        CompileCase(
            name=f"move-P{P}-W{W}",
            kernel=_kv_commit_kernel,
            signature={
                "words_ptr": "*i32",
                "path_ptr": "*i32",
                "n_path_ptr": "*i32",
                "kv_len_ptr": "*i32",
                "capacity": "i32",
                "P": "i32",
            },
            constants={"W": W, "PATH": P, "BLOCK_W": choose(W)},
            max_registers=112 if P == 64 else 40,
            max_shared_bytes=0,
        )
        # Llama-3-8B and -70B have the same rows: 8 key heads of 128; the scales of int8
        for P, W in ((16, 1024), (64, 1024), (16, 8))
    ),
    CompileCase(
        name="advance",
        kernel=_advance_kernel,
        signature={"n_path_ptr": "*i32", "kv_len_ptr": "*i32", "P": "i32"},
        constants={},
        num_warps=1,
        max_registers=24,
        max_shared_bytes=0,
    ),
]
