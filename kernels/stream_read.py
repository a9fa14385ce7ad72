"""Read memory once and sum it as it comes: the ceiling of everything that reads weights.

    sums[b] = sum of words[b * 4096 : (b + 1) * 4096]  modulo 2**32

A product with one row does little but read its weights, so the question about a matmul kernel is
how near it comes to one that reads the same bytes and does nothing else.  Copying is no such
ceiling: half of its traffic is writes.  One program reads 16 KiB, all loads in flight at once, and
writes 4 bytes.

`launch_nothing` is the other floor: a kernel that does nothing, whose time is that of a launch.

    reference   stream_read_ref   plain torch, any device; the definition
    kernel      stream_read       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads 4*N bytes, writes 4 for every 16 KiB; one launch
    error       none: integers
    source      the read-only form of STREAM: McCalpin 1995
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_range, check_tensor

BLOCK = 4096  # words of one sum
MAX_WORDS = 2**40


def stream_read_ref(words: Tensor) -> Tensor:
    """Same contract as `stream_read`, written to be read rather than to be fast."""
    blocks = torch.nn.functional.pad(words, (0, -len(words) % BLOCK)).view(-1, BLOCK)
    total = blocks.sum(1, dtype=torch.int64) & 0xFFFFFFFF
    return torch.where(total < 2**31, total, total - 2**32).int()


def stream_read(
    words: Tensor, *, num_warps: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Read every word once and sum them by blocks of 4096.

    Args:
        words: int32 [N], N of 1..2**40.
        num_warps: of a program, one of `CONFIGS`, instead of the first.
        out: int32 [ceil(N / 4096)], written instead of a new tensor.

    Returns:
        sums: int32 [ceil(N / 4096)], modulo 2**32.

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("words", words, torch.int32, (None,))
    check_range("N", len(words), 1, MAX_WORDS)
    n_blocks = triton.cdiv(len(words), BLOCK)
    if out is None:
        out = torch.empty(n_blocks, dtype=torch.int32, device=words.device)
    check_tensor("out", out, torch.int32, (n_blocks,), like=words)
    num_warps = num_warps or CONFIGS[0]
    _stream_read_kernel[(n_blocks,)](words, out, len(words), BLOCK=BLOCK, num_warps=num_warps)
    return out


def launch_nothing(anything: Tensor) -> None:
    """Launch one program that neither reads nor writes; `anything` says on which device."""
    _nothing_kernel[(1,)](anything, num_warps=1)


# warps of a program, so 8, 4 or 2 loads of 16 bytes a thread; not swept on a GPU yet
CONFIGS = (4, 8, 16)


@triton.jit
def _stream_read_kernel(
    words_ptr,  # [N] int32
    sums_ptr,  # [ceil(N / BLOCK)] int32
    N,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0)
    # int64: N may pass 2**31
    i = b.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + i, mask=i < N, other=0)
    tl.store(sums_ptr + b, tl.sum(words, axis=0))


@triton.jit
def _nothing_kernel(
    anything_ptr,  # not read
):
    pass
