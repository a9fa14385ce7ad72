"""Attention of a token tree to a stored prefix and to itself.

    y[t, h] = sum over n of softmax(q[t, h] . k[n, h // G] / sqrt(D))[n] * v[n, h // G]

    n: cache rows 0..kv_len-1, and of the T rows behind them those that row t descends from

Decoding is bound by reading keys and values, so they are read once for many queries: the G query
heads that share a key head and the rows of the tree are packed into one tile for the tensor cores.
One sequence would occupy few processors, so the prefix is also cut into splits, each a program
with a softmax of its own, which a second launch merges by their log-sum-exp.  The tree's own rows
are one more split, the only one with a mask: bit i of row t's words says that t sees row i.

In `row_invariant` mode each row walks its own path: the prefix, then its ancestors as if they had
been committed behind it, cut at fixed places.  Splits inside the prefix are the same for all rows
and still share tiles; behind it each row has its own program.  A row thus adds the same numbers in
the same order as decoding it alone would, after committing its path.

    reference   tree_attention_ref  plain torch, any device; the definition
    kernel      tree_attention      Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        2 * (kv_len + T) * K * D cache values for each tile of queries (all but the first
                time from L2) and splits * T * H * (D + 1) fp32 written and read; two launches;
                `row_invariant`: up to two more splits' cache values for each row, and splits that
                follow from the capacity: a cache far larger than its text leaves processors idle
    error       scores and sums in fp32, probabilities rounded to q's dtype; tested as an RMS ratio
                below 4e-3 against float64
    rows        with `row_invariant` a row's bits follow from its path and the cache's capacity;
                without, tiles and splits follow T, and a NaN reaches rows that do not see it
    source      Milakov and Gimelshein 2018, arXiv 1805.02867 (online softmax)
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_ancestors, check_range, check_room, check_tensor

HEAD_DIMS = (16, 32, 64, 128, 256)
MAX_ROWS, MAX_GROUP = 1024, 64
BLOCK_N = 32  # cache rows of a tile: half a word of the mask


def tree_attention_ref(
    q, kv, kv_len, ancestors=None, *, kv_scale=None, row_invariant: bool = False
) -> Tensor:
    """Same contract as `tree_attention`, in float64, written to be read rather than to be fast."""
    (T, H, D), K, n_prefix = q.shape, kv.shape[1] // 2, int(kv_len)
    stored = kv[: n_prefix + T].double()  # [n, 2 * K, D]
    if kv_scale is not None:
        stored = stored * kv_scale[: n_prefix + T, :, None].double()
    column = torch.arange(T, device=q.device)
    if ancestors is None:
        seen = column <= column[:, None]  # [T, T]
    else:
        seen = (ancestors[:, column // 64] >> (column % 64)) & 1 == 1
    seen = torch.cat([seen.new_ones(T, n_prefix), seen], dim=1)[:, None, None]
    scores = torch.einsum("tkgd,nkd->tkgn", q.double().view(T, K, H // K, D), stored[:, :K])
    weights = torch.softmax(torch.where(seen, scores * D**-0.5, -torch.inf), dim=-1)
    return torch.einsum("tkgn,nkd->tkgd", weights, stored[:, K:]).reshape(T, H, D).to(q.dtype)


def tree_attention(
    q: Tensor,
    kv: Tensor,
    kv_len: Tensor,
    ancestors: Tensor | None = None,
    *,
    kv_scale: Tensor | None = None,
    row_invariant: bool = False,
    trusted: bool = False,
    config: "Config | None" = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend from T rows, whose keys and values lie behind the prefix, to prefix and path.

    Args:
        q: fp16 or bf16 [T, H, D], rotated; T <= 1024 (tuned for 1..128), D a power of two 16..256.
        kv: q's dtype or int8 [capacity, 2 * K, D], one layer of the cache, keys first; K divides
            H, at most 64 times.
        kv_len: int32 [1], rows of the prefix; row t of the tree is cache row kv_len + t, and
            kv_len + T <= capacity.
        ancestors: int64 [T, ceil(T / 64)], bit i % 64 of word i // 64 of row t: row i is t or
            above it, parents before children; None for a path: row t sees rows 0..t.
        kv_scale: fp16 [capacity, 2 * K], by which int8 values are multiplied; only with int8.
        row_invariant: same bits for a row whatever rows are beside it.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
            Outside the cache nothing is read all the same.
        config: tile shapes, instead of `choose(...)`'s.
        out: q's dtype [T, H, D], written instead of a new tensor.

    Returns:
        y: q's dtype [T, H, D].

    Raises:
        ValueError: a dtype, shape, device, stride or content that does not fit the above.
    """
    check_tensor("q", q, HALF, (None, None, None))
    T, H, D = q.shape
    check_range("T", T, 1, MAX_ROWS)
    if D not in HEAD_DIMS:
        raise ValueError(f"D must be one of {HEAD_DIMS}, got {D}")
    check_tensor("kv", kv, (q.dtype, torch.int8), (None, None, D), like=q)
    capacity, K = kv.shape[0], kv.shape[1] // 2
    check_range("capacity", capacity, T, 2**30)
    if kv.shape[1] % 2 or not K or H % K or not 1 <= H // K <= MAX_GROUP:
        raise ValueError(
            f"kv must be [capacity, 2 * K, D] with H = {H} a multiple 1..{MAX_GROUP} of K, "
            f"got {list(kv.shape)}"
        )
    if (kv.dtype == torch.int8) != (kv_scale is not None):
        raise ValueError(f"kv_scale goes with int8 kv and with nothing else, got kv {kv.dtype}")
    if kv_scale is not None:
        check_tensor("kv_scale", kv_scale, torch.float16, (capacity, 2 * K), like=q)
    check_tensor("kv_len", kv_len, torch.int32, (1,), like=q)
    n_words = triton.cdiv(T, 64)
    if ancestors is not None:
        check_tensor("ancestors", ancestors, torch.int64, (T, n_words), like=q)
    if out is None:
        out = torch.empty(T, H, D, dtype=q.dtype, device=q.device)
    check_tensor("out", out, q.dtype, (T, H, D), like=q)
    if not trusted:
        check_room(kv_len, T, capacity)
        if ancestors is not None:
            check_ancestors(ancestors, T)
    config = config or choose(T, H, K, D, capacity, row_invariant)
    part = torch.empty(config.splits, T * H, D, dtype=torch.float32, device=q.device)
    lse = torch.empty(config.splits, T * H, dtype=torch.float32, device=q.device)
    tiles = T if row_invariant else triton.cdiv(T * (H // K), config.block_m)
    _tree_attention_kernel[(tiles, K, config.splits)](
        q, kv, kv_len if kv_scale is None else kv_scale, kv_len,
        kv_len if ancestors is None else ancestors, part, lse, T, capacity, K=K, G=H // K, D=D,
        TREE=ancestors is not None, QUANTIZED=kv_scale is not None, ROW_INVARIANT=row_invariant,
        COLUMNS=64 * triton.next_power_of_2(n_words), SPLITS=config.splits,
        BLOCK_M=config.block_m, BLOCK_N=BLOCK_N, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    _merge_kernel[(T * H,)](part, lse, out, T * H, D=D, SPLITS=config.splits, num_warps=2)
    return out


@dataclass(frozen=True, slots=True)
class Config:
    """Queries of a tile, splits (a power of two), and what the compiler may use."""

    block_m: int
    splits: int
    num_warps: int
    num_stages: int


# not swept on a GPU yet: chosen from the compiled form
CONFIGS = tuple(
    Config(block_m, splits, num_warps, num_stages)
    for block_m, num_warps in ((16, 4), (32, 4), (64, 4), (128, 8))
    for splits in (2, 4, 8, 16, 32)
    for num_stages in (2, 3)
)
# programs that fill the largest device listed (148 SMs) about twice
_WANTED_PROGRAMS = 264


def choose(T: int, H: int, K: int, D: int, capacity: int, row_invariant: bool = False) -> Config:
    """Tiles and splits, never from kv_len; `row_invariant`: from the cache's shape alone."""
    queries = MAX_GROUP if row_invariant else T * (H // K)
    block_m = min(128 if D <= 128 else 64, max(16, triton.next_power_of_2(queries)))
    programs, splits = triton.cdiv(queries, block_m) * K, 2
    while splits < 32 and 2 * splits * programs <= _WANTED_PROGRAMS and 256 * splits < capacity:
        splits *= 2
    num_warps = 8 if block_m == 128 or D > 128 else 4
    return Config(block_m, splits, num_warps, num_stages=3 if D <= 128 else 2)


# T and capacity are not specialised: one compiled kernel serves trees of every size
@triton.jit(do_not_specialize=["T", "capacity"])
def _tree_attention_kernel(
    q_ptr,  # [T, K * G, D]
    kv_ptr,  # [capacity, 2 * K, D]
    scale_ptr,  # [capacity, 2 * K]; not read unless QUANTIZED
    kv_len_ptr,  # [1] int32
    ancestors_ptr,  # [T, ceil(T / 64)] int64; not read unless TREE
    part_ptr,  # [SPLITS, T * K * G, D] fp32
    lse_ptr,  # [SPLITS, T * K * G] fp32, in units of log 2
    T,
    capacity,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    TREE: tl.constexpr,
    QUANTIZED: tl.constexpr,
    ROW_INVARIANT: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_len = tl.maximum(tl.minimum(tl.load(kv_len_ptr), capacity), 0)
    n_words = tl.cdiv(T, 64)
    in_tree = split == SPLITS - 1
    # queries first..stop-1, G to a row; places start..end-1 of the prefix and the rows behind it
    if ROW_INVARIANT:
        share = tl.cdiv(tl.cdiv(capacity, SPLITS), BLOCK_N) * BLOCK_N
        start = split * share
        # inside the prefix every ROWS-th program works for ROWS rows, behind it each for its own
        ROWS: tl.constexpr = BLOCK_M // G
        n_rows = tl.where(start + share <= kv_len, tl.where(tile % ROWS == 0, ROWS, 0), 1)
        first, stop = tile * G, tl.minimum(tile + n_rows, T) * G
        length = tile + 1
        if TREE:
            i = tl.arange(0, COLUMNS)
            word = tl.load(ancestors_ptr + tile * n_words + i // 64, mask=i < T, other=0)
            rank = tl.cumsum(((word >> (i % 64)) & 1).to(tl.int32), axis=0)  # in the path, from 1
            length = tl.max(rank, axis=0)
        end = tl.where(n_rows > 0, tl.minimum(start + share, kv_len + length), start)
    else:
        first, stop = tile * BLOCK_M, tl.minimum((tile + 1) * BLOCK_M, T * G)
        share = tl.cdiv(tl.cdiv(kv_len, BLOCK_N), SPLITS - 1) * BLOCK_N
        start = tl.minimum(split * share, kv_len)
        # parents come first, so nothing behind the tile's last row is seen
        end = tl.where(in_tree, kv_len + (stop - 1) // G + 1, tl.minimum(start + share, kv_len))

    m = first + tl.arange(0, BLOCK_M)
    t, valid = m // G, m < stop
    masked = m < tl.where(in_tree, stop, 0)  # queries that do not see all rows of their split
    last = tl.where(in_tree, kv_len + t, end - 1)  # what such a query sees last, if a path
    q_row = t * (K * G) + head * G + m % G
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, D)
    q = tl.load(q_ptr + q_row[:, None] * D + d[None, :], mask=valid[:, None], other=0.0)
    # a finite floor: a block of which nothing is seen then adds exact zeros, not NaN
    best = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, D), tl.float32)
    for at in tl.range(start, end, BLOCK_N):
        row = at + n
        stored = row < end
        if ROW_INVARIANT:
            seen = stored[None, :]
            if TREE:
                # as many nodes lie before the p-th of a path as have a rank of at most p
                node = tl.sum((rank[None, :] <= (row - kv_len)[:, None]).to(tl.int32), axis=1)
                row = tl.where(row < kv_len, row, kv_len + node)
        elif TREE:
            word_at = ancestors_ptr + t * n_words + (at - kv_len) // 64
            word = tl.load(word_at, mask=masked, other=-1)
            half = (word >> (at - kv_len) % 64).to(tl.int32)  # BLOCK_N bits a query
            seen = (((half[:, None] >> n[None, :]) & 1) != 0) & stored[None, :]
        else:
            seen = row[None, :] <= last[:, None]
        stored &= row < capacity
        # int64: a long cache of many heads passes 2**31 values
        cell = row.to(tl.int64) * (2 * K) + head
        k_at = kv_ptr + cell[:, None] * D + d[None, :]  # [BLOCK_N, D]; its value is K * D further
        k = tl.load(k_at, mask=stored[:, None], other=0.0)
        v = tl.load(k_at + K * D, mask=stored[:, None], other=0.0)
        # in units of log 2, for exp2
        scores = tl.dot(q, tl.trans(k.to(q.dtype))) * (D**-0.5 * 1.4426950408889634)
        if QUANTIZED:
            scores *= tl.load(scale_ptr + cell, mask=stored, other=0.0).to(tl.float32)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        weight = tl.exp2(scores - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        best, total = new_best, total * shrink + tl.sum(weight, axis=1)
        if QUANTIZED:
            weight *= tl.load(scale_ptr + cell + K, mask=stored, other=0.0).to(tl.float32)[None, :]
        sums = tl.dot(weight.to(q.dtype), v.to(q.dtype), sums * shrink[:, None])

    # a split that saw nothing writes -inf and no values; NaN counts as seen
    found = total != 0
    total = tl.where(found, total, 1.0)
    cell = split.to(tl.int64) * (T * K * G) + q_row
    tl.store(lse_ptr + cell, tl.where(found, best + tl.log2(total), float("-inf")), mask=valid)
    part_at = part_ptr + cell[:, None] * D + d[None, :]
    tl.store(part_at, sums / total[:, None], mask=(valid & found)[:, None])


@triton.jit(do_not_specialize=["n_rows"])
def _merge_kernel(
    part_ptr,  # [SPLITS, n_rows, D] fp32
    lse_ptr,  # [SPLITS, n_rows] fp32
    out_ptr,  # [n_rows, D]
    n_rows,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    d = tl.arange(0, D)
    cell = tl.arange(0, SPLITS).to(tl.int64) * n_rows + tl.program_id(0)
    lse = tl.load(lse_ptr + cell)
    # the floor as above: -inf and NaN alone would leave -inf, NaN ignored
    weight = tl.exp2(lse - tl.maximum(tl.max(lse, axis=0), -1e30))  # [SPLITS]
    part = tl.load(part_ptr + cell[:, None] * D + d[None, :], mask=weight[:, None] > 0, other=0.0)
    y = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out_ptr + tl.program_id(0) * D + d, y.to(out_ptr.dtype.element_ty))
