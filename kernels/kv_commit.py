"""Keep the accepted path of a tree in the key/value cache: move its rows together, count them.

    storage[l, kv_len + i] = storage[l, kv_len + path[i]]  for i < n_path, all read before any write
    kv_len = kv_len + n_path

A tree writes one cache row a node; of these only the path that was accepted may stay, and in one
piece, since the next pass treats what lies before kv_len as a prefix.  Rows are moved as 32-bit
words, whatever they hold, for all layers in one launch.  Each program owns some words of one
layer's rows, so no other program reads what it writes; within a program a barrier lets no thread
write before all have read.

A second launch, of one thread, adds n_path to kv_len.  Programs of the first read kv_len, and no
order holds between them: advanced there, some would already see the new value.  Launches of one
stream, or of one captured graph, do run in order.

    reference   kv_commit_ref   plain torch, any device; the definition
    kernel      kv_commit       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads and writes layers * moved rows * row bytes; rows already in place are left;
                two launches, three where scales are moved as well
    error       none: bits are copied
    rows        each row is a copy
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_below, check_range, check_room, check_tensor

MAX_PATH = 64


def kv_commit_ref(
    storage: Tensor,
    path: Tensor,
    n_path: Tensor,
    kv_len: Tensor,
    *,
    kv_scale: Tensor | None = None,
) -> None:
    """Same contract as `kv_commit`, written to be read rather than to be fast."""
    n, start = min(int(n_path), len(path)), int(kv_len)
    for rows in (storage, kv_scale):
        if rows is not None:
            rows[:, start : start + n] = rows[:, start + path[:n].long()]  # indexing copies
    kv_len += n


def kv_commit(
    storage: Tensor,
    path: Tensor,
    n_path: Tensor,
    kv_len: Tensor,
    *,
    kv_scale: Tensor | None = None,
    trusted: bool = False,
) -> None:
    """Move the rows at kv_len + path[i] to kv_len + i and add n_path to kv_len, all in place.

    Args:
        storage: any dtype [layers, capacity, 2 * K, D], a cache; a row's bytes a multiple of 4.
        path: int32 [P], offsets behind kv_len; any order, repeats too; 1 <= P <= 64.
        n_path: int32 [1], how many of them count, 0..P; their rows lie below capacity.
        kv_len: int32 [1], rows that count; advanced.  kv_len + n_path <= capacity.
        kv_scale: any dtype [layers, capacity, 2 * K], scales of an int8 cache, moved likewise.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
            Outside the cache nothing is read or written all the same.

    Raises:
        ValueError: a dtype, shape, device, stride or content that does not fit the above.
    """
    check_tensor("storage", storage, storage.dtype, (None, None, None, None))
    layers, capacity = storage.shape[:2]
    check_tensor("path", path, torch.int32, (None,), like=storage)
    P = path.shape[0]
    check_range("P", P, 1, MAX_PATH)
    check_tensor("n_path", n_path, torch.int32, (1,), like=storage)
    check_tensor("kv_len", kv_len, torch.int32, (1,), like=storage)
    moved = [_words("storage", storage)]
    if kv_scale is not None:
        check_tensor("kv_scale", kv_scale, kv_scale.dtype, (*storage.shape[:3],), like=storage)
        moved.append(_words("kv_scale", kv_scale))
    if not trusted:
        n = int(n_path)
        check_range("n_path", n, 0, P)
        start = check_room(kv_len, n, capacity)
        check_below("path", path[:n], capacity - start, f"behind kv_len {start}")
    for words in moved:
        n_words = words.shape[2]
        block_w = choose(n_words)
        _kv_commit_kernel[(layers, triton.cdiv(n_words, block_w))](
            words, path, n_path, kv_len, capacity, P,
            W=n_words, PATH=triton.next_power_of_2(P), BLOCK_W=block_w, num_warps=4,
        )  # fmt: skip
    _advance_kernel[(1,)](n_path, kv_len, P, num_warps=1)


def _words(name: str, rows: Tensor) -> Tensor:
    """The rows of a cache, [layers, capacity, ...], as int32 [layers, capacity, W]; no copy."""
    row = rows.flatten(2)
    if row.shape[2] * row.element_size() % 4 or not row.shape[2]:
        raise ValueError(
            f"a row of {name} must be a multiple of 4 bytes, got {list(row.shape[2:])} of "
            f"{row.element_size()} bytes"
        )
    return row.view(torch.int32)


# words of a tile's rows, not swept on a GPU yet: 512 bytes of each row to a program
CONFIGS = (128,)


def choose(n_words: int) -> int:
    """Words of each row that one program moves."""
    return min(CONFIGS[0], triton.next_power_of_2(n_words))


@triton.jit(do_not_specialize=["capacity", "P"])
def _kv_commit_kernel(
    words_ptr,  # [layers, capacity, W] int32
    path_ptr,  # [P] int32
    n_path_ptr,  # [1] int32
    kv_len_ptr,  # [1] int32
    capacity,
    P,
    W: tl.constexpr,
    PATH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    i = tl.arange(0, PATH)
    n_path = tl.minimum(tl.load(n_path_ptr), P)
    path = tl.load(path_ptr + i, mask=i < n_path, other=0)
    kv_len = tl.load(kv_len_ptr)
    source, target = kv_len + path, kv_len + i
    moves = (i < n_path) & (source != target) & (source < capacity) & (target < capacity)
    moves &= (source >= 0) & (target >= 0)
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = moves[:, None] & (w < W)[None, :]
    # int64: the cache of all layers passes 2**31 words
    layer = words_ptr + tl.program_id(0).to(tl.int64) * capacity * W + w[None, :]
    kept = tl.load(layer + source.to(tl.int64)[:, None] * W, mask=mask, other=0)  # [PATH, BLOCK_W]
    # a row is some thread's source and another's target
    tl.debug_barrier()
    tl.store(layer + target.to(tl.int64)[:, None] * W, kept, mask=mask)


@triton.jit(do_not_specialize=["P"])
def _advance_kernel(
    n_path_ptr,  # [1] int32
    kv_len_ptr,  # [1] int32
    P,
):
    n_path = tl.minimum(tl.load(n_path_ptr), P)
    tl.store(kv_len_ptr, tl.load(kv_len_ptr) + n_path)
