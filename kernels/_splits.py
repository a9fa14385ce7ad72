"""A sum cut into splits, each a program, and how they are added in the same order every time.

Either the last program of a tile to arrive adds all of them, for which it has to be counted, or a
second launch does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_counters: dict[torch.device, Tensor] = {}
_outgrown: list[Tensor] = []  # captured graphs may still use them


def arrival_counters(device: torch.device, n: int) -> Tensor:
    """int32 [>= n] zeros that every launch leaves as zeros; one stream of a device at a time."""
    counters = _counters.get(device)
    if counters is None or len(counters) < n:
        if counters is not None:
            _outgrown.append(counters)
        counters = torch.zeros(max(n, 1 << 16), dtype=torch.int32, device=device)
        _counters[device] = counters
    return counters


def add_splits(part: Tensor, out: Tensor) -> Tensor:
    """Add fp32 [splits, T, R] in order into `out` [T, R]."""
    n = out.numel()
    BLOCK = 1024
    _add_splits_kernel[(triton.cdiv(n, BLOCK),)](part, out, n, SPLITS=part.shape[0], BLOCK=BLOCK)
    return out


@triton.jit
def add_when_last(
    sums,  # [BLOCK_R, BLOCK_T] fp32, this split's
    part_ptr,  # fp32 [SPLITS, size], at the tile
    out_ptr,  # [size], at the tile
    counter_ptr,  # int32, the tile's
    where,  # int32 [BLOCK_R, BLOCK_T], from the tile's begin
    inside,  # bool [BLOCK_R, BLOCK_T]
    split,
    size,  # int64
    SPLITS: tl.constexpr,
):
    """Store a split; whichever comes last adds them all, in the same order every time."""
    tl.store(part_ptr + split * size + where, sums, mask=inside)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == SPLITS - 1:
        total = tl.zeros_like(sums)
        for other in tl.range(0, SPLITS, num_stages=1, loop_unroll_factor=1):
            # from L2: another processor has written it
            one = part_ptr + other * size + where
            total += tl.load(one, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(out_ptr + where, total.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(counter_ptr, 0)


@triton.jit
def _add_splits_kernel(
    part_ptr,  # [SPLITS, n] fp32
    out_ptr,  # [n]
    n,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(part_ptr + split * n + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < n)
