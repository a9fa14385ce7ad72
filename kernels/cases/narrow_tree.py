"""Cases of `narrow_tree`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.narrow_tree import _narrow_tree_kernel, narrow_tree, narrow_tree_ref


def make(m: int, tree_size: int, bucket: int, n_text: int = 5, levels: int = 4, capacity=80):
    """A draft of m tokens; margins of few values, so that many are equal."""

    def inputs(generator, device, dtype):
        def ids(*size, below=99):
            return torch.randint(0, below, size, generator=generator).int().to(device)

        def one(value):
            return torch.tensor([value], dtype=torch.int32, device=device)

        return {
            "text": ids(capacity),
            "rivals": ids(capacity),
            "margins": ids(capacity, below=levels).float(),
            "n_text": one(n_text),
            "n_drafted": one(n_text + m),
            "tree_size": tree_size,
            "bucket": bucket,
        }

    return inputs


VALUES = [
    ValueCase(
        name=f"m{m}-size{tree_size}-bucket{bucket}",
        op=narrow_tree,
        reference=narrow_tree_ref,
        make=make(m, tree_size, bucket),
    )
    for m, tree_size, bucket in (
        (0, 1, 1),
        (1, 3, 4),
        (7, 16, 16),
        (9, 16, 16),
        (15, 16, 16),  # no row is left
        (20, 16, 16),  # more than fit
        (6, 40, 48),  # fewer rivals than rows
        (33, 64, 64),
    )
]

COMPILED = [
    CompileCase(
        name=f"bucket{bucket}",
        kernel=_narrow_tree_kernel,
        signature=dict.fromkeys(
            ("text_ptr", "rivals_ptr", "n_text_ptr", "n_drafted_ptr", "tokens_ptr", "parents_ptr",
             "depths_ptr"), "*i32",
        ) | {"margins_ptr": "*fp32", "ancestors_ptr": "*i64"}
        | dict.fromkeys(("capacity", "tree_size", "bucket"), "i32"),
        constants={"BLOCK": bucket},
        num_warps=1,
        max_registers=255,
        max_shared_bytes=4096,
    )
    for bucket in (16, 32, 64)
]  # fmt: skip
