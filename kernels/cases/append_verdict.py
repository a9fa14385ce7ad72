"""Cases of `append_verdict`."""

import torch

from hspec_kernels.append_verdict import (
    _append_verdict_kernel,
    append_verdict,
    append_verdict_ref,
)
from hspec_kernels.case import CompileCase, ValueCase


def make(P: int, n_emitted: int, n_text: int, path: list[int] | None = None, capacity: int = 64):
    """A text, and a round behind it."""

    def inputs(generator, device, dtype):
        def ids(*size):
            return torch.randint(0, 99, size, generator=generator).int().to(device)

        def one(value):
            return torch.tensor([value], dtype=torch.int32, device=device)

        entries = None if path is None else path + [-1] * (P - len(path))
        return {
            "emitted": ids(P),
            "n_emitted": one(n_emitted),
            "text": ids(capacity),
            "n_text": one(n_text),
            "kv_len": one(n_text - 1),
            "agreed": one(0),
            "bad": one(0),
            "report": torch.empty(2 + P, dtype=torch.int32, device=device),
            "path": None if path is None else torch.tensor(entries, device=device).int(),
        }

    return inputs


def written(op):
    """What the operation has changed, as results."""

    def run(**inputs):
        op(**inputs)
        return tuple(inputs[name] for name in ("text", "n_text", "kv_len", "agreed", "report"))

    return run


VALUES = [
    ValueCase(
        name=f"P{P}-emits{n}-at{n_text}-{'path' if path is None else 'tree'}",
        op=written(append_verdict),
        reference=written(append_verdict_ref),
        make=make(P, n, n_text, path),
    )
    for P, n, n_text, path in (
        (1, 1, 5, None),
        (1, 1, 63, None),  # the last place of the text
        (7, 3, 5, None),
        (16, 16, 48, None),
        (5, 0, 9, None),  # a verdict that found no distribution
        (5, 3, 9, [0, 1, 2]),
        (5, 3, 9, [0, 1, 4]),
        (33, 2, 9, [0, 30]),
    )
]

COMPILED = [
    CompileCase(
        name=f"P{P}-{'tree' if has_path else 'path'}",
        kernel=_append_verdict_kernel,
        signature=dict.fromkeys(
            ("emitted_ptr", "n_emitted_ptr", "text_ptr", "n_text_ptr", "kv_len_ptr", "agreed_ptr",
             "bad_ptr", "report_ptr", "path_ptr"), "*i32",
        ) | {"P": "i32", "capacity": "i32"},
        constants={"HAS_PATH": has_path, "BLOCK": P},
        num_warps=1,
        max_registers=64,
        max_shared_bytes=0,
    )
    for P, has_path in ((1, False), (16, False), (8, True), (64, True))
]  # fmt: skip
