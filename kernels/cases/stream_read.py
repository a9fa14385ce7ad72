"""Cases of `stream_read`."""

import torch

from hspec_kernels.case import CompileCase, ValueCase
from hspec_kernels.stream_read import (
    BLOCK,
    CONFIGS,
    _nothing_kernel,
    _stream_read_kernel,
    stream_read,
    stream_read_ref,
)


def make(n: int, low: int = -(2**31), high: int = 2**31):
    """Random words."""

    def inputs(generator, device, dtype):
        words = torch.randint(low, high, (n,), generator=generator)
        return {"words": words.int().to(device)}

    return inputs


VALUES = [
    ValueCase(name=f"N{n}", op=stream_read, reference=stream_read_ref, make=make(n))
    for n in (1, 127, 4096, 4097, 3 * 4096 - 1)
] + [
    # sums that pass 2**31
    ValueCase(
        name="overflow",
        op=stream_read,
        reference=stream_read_ref,
        make=make(5000, 2**30, 2**31),
    ),
]

COMPILED = [
    CompileCase(
        name=f"read-w{num_warps}",
        kernel=_stream_read_kernel,
        signature={"words_ptr": "*i32", "sums_ptr": "*i32", "N": "i32"},
        constants={"BLOCK": BLOCK},
        num_warps=num_warps,
        divisible=("N",),
        max_registers=64,
        max_shared_bytes=128,
    )
    for num_warps in CONFIGS
] + [
    CompileCase(
        name="nothing",
        kernel=_nothing_kernel,
        signature={"anything_ptr": "*i32"},
        constants={},
        num_warps=1,
        max_registers=16,
        max_shared_bytes=0,
    )
]
