"""The k most likely next tokens of each row, with their log-probabilities, straight from logits.

    ids[t] = the k best columns of logits[t],   log_p[t, i] = log softmax(logits[t])[ids[t, i]]

A draft head asks this at every level of its tree: which k tokens may follow, and how likely is
each?  Softmax followed by sort would pass over the vocabulary several times.  Here each block of
it is one program, which notes its largest logit, the sum of exponentials relative to that, and its
own k best; a second, small kernel merges the blocks.  A block sorts only the maxima of its groups:
the k best columns lie in the k best groups, and just those are read again.

A column is ranked by one int64: the logit's bits, made to order like an integer, above the negated
column.  No two are equal, so the order is total, however the work is cut: logit descending, then
column ascending; -0.0 equals 0.0.

    reference   head_topk_ref   plain torch, any device; the definition
    kernel      head_topk       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads T*V logits once, and k groups of a block again from cache; two launches
    error       ids are exact; log_p sums V exponentials in fp32: tested as an RMS ratio below 2e-6
    rows        a row's bits do not depend on the other rows: blocks follow from V alone
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import HALF, check_range, check_tensor

MAX_K = 32
MAX_V = 2**20
FLOATS = (*HALF, torch.float32)


def head_topk_ref(
    logits: Tensor, k: int, *, token_map: Tensor | None = None, n_known: int | None = None
) -> tuple[Tensor, Tensor]:
    """Same contract as `head_topk`, in float64, written to be read rather than to be fast."""
    known = logits[:, :n_known].double()
    # rounding must not lift a log-probability above 0, or a child would outrank its parent
    log_p = torch.log_softmax(known, dim=-1).clamp(max=0)
    columns = torch.sort(known, dim=-1, descending=True, stable=True).indices[:, :k]
    no_distribution = log_p.isnan().any(dim=-1, keepdim=True)
    columns = torch.where(no_distribution, torch.arange(k, device=logits.device), columns)
    log_p = log_p.gather(1, columns).masked_fill(no_distribution, torch.nan)
    ids = columns if token_map is None else token_map[columns]
    return ids.int(), log_p.float()


def head_topk(
    logits: Tensor,
    k: int,
    *,
    token_map: Tensor | None = None,
    n_known: int | None = None,
    config: "Config | None" = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Find each row's k largest logits and their log-probabilities over all known columns.

    Args:
        logits: fp16, bf16 or fp32 [T, V]; any T >= 1, V up to 2**20; -inf is a probability of 0.
        k: 1..32, at most the number of known columns.
        token_map: int32 [V], the token id of each column of a trimmed vocabulary; None: the column.
        n_known: columns that count, 1..V; the rest are padding and never read.  None: all.
        config: block shape, instead of `choose(V)`'s.
        out: (ids, log_p), written instead of new tensors.

    Returns:
        ids: int32 [T, k], by logit descending, then column ascending.
        log_p: fp32 [T, k], at most 0.  A row with a NaN or +inf, or of nothing but -inf, has no
            distribution: NaN throughout, with the ids of columns 0..k-1 to keep a graph in bounds.

    Raises:
        ValueError: a dtype, shape, device, stride or size that does not fit the above.
    """
    check_tensor("logits", logits, FLOATS, (None, None))
    T, V = logits.shape
    check_range("T", T, 1, 2**31 - 1)
    check_range("V", V, 1, MAX_V)
    n_known = V if n_known is None else n_known
    check_range("n_known", n_known, 1, V)
    check_range("k", k, 1, min(MAX_K, n_known))
    if token_map is not None:
        check_tensor("token_map", token_map, torch.int32, (V,), like=logits)
    new = partial(torch.empty, device=logits.device)
    ids, log_p = out or (new(T, k, dtype=torch.int32), new(T, k, dtype=torch.float32))
    check_tensor("ids", ids, torch.int32, (T, k), like=logits)
    check_tensor("log_p", log_p, torch.float32, (T, k), like=logits)
    config = config or choose(V)
    n_blocks = triton.cdiv(V, config.block)
    K_PAD = triton.next_power_of_2(k)
    key = new(T, n_blocks, K_PAD, dtype=torch.int64)
    peak, mass = new(2, T, n_blocks, dtype=torch.float32)
    _head_topk_block_kernel[(T, n_blocks)](
        logits, key, peak, mass, V, n_known,
        K_PAD=K_PAD, GROUP=config.group, BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    _head_topk_merge_kernel[(T,)](
        key, peak, mass, ids if token_map is None else token_map, ids, log_p, n_blocks, k,
        HAS_MAP=token_map is not None, K_PAD=K_PAD, S_PAD=triton.next_power_of_2(n_blocks),
        num_warps=MERGE_WARPS,
    )  # fmt: skip
    return ids, log_p


@dataclass(frozen=True, slots=True)
class Config:
    """Columns a program reads, and columns to a group; at least 32 groups to a block."""

    block: int
    group: int
    num_warps: int


# not swept on a GPU yet: 32 columns a thread, 32 programs a row
CONFIGS = (Config(1024, 16, 4), Config(2048, 16, 4), Config(4096, 16, 4), Config(8192, 16, 8))
MERGE_WARPS = 4


def choose(V: int) -> Config:
    """The smallest block that cuts a row of V columns into at most 32."""
    fits = (config for config in CONFIGS if triton.cdiv(V, config.block) <= 32)
    return next(fits, CONFIGS[-1])


LOWEST = tl.constexpr(-(2**63))
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def rank_key(score, index):
    """int64 that orders by score (fp32) ascending, then index (int32) descending."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    # a negative float's bits grow as it falls
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index)


@triton.jit
def key_score(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    return 0x7FFFFFFF - key.to(tl.int32)


@triton.jit
def sort_runs(x, N: tl.constexpr, RUN: tl.constexpr, RISING: tl.constexpr = 0):
    """Sort the bitonic runs of x [N] by turns falling and rising, or rising and falling."""
    for i in tl.static_range(1, 11):
        if RUN >> i > 0:
            x = _exchange(x, N, RUN, RUN >> i, RISING)
    return x


@triton.jit
def _exchange(x, N: tl.constexpr, RUN: tl.constexpr, STEP: tl.constexpr, RISING: tl.constexpr):
    """Order every two entries of x [N] that lie STEP apart in a run."""
    pair = tl.reshape(x, [N // (2 * STEP), 2, STEP])
    partner = tl.sum(pair, axis=1, keep_dims=True) - pair
    right = tl.arange(0, 2)[None, :, None]
    run = tl.arange(0, N // (2 * STEP))[:, None, None] * (2 * STEP) // RUN
    rising = (run + RISING) % 2
    return tl.reshape(tl.where((partner > pair) == (right == rising), partner, pair), [N])


@triton.jit
def top_k(x, N: tl.constexpr, K: tl.constexpr, RISING: tl.constexpr = 0):
    """The K largest of x int64 [N], falling or rising; powers of two, K <= 1024, N <= 8192."""
    for i in tl.static_range(1, 11):
        if 1 << i <= K:
            x = sort_runs(x, N, 1 << i, RISING)
    for i in tl.static_range(1, 14):
        if N >> i >= K:
            # the larger of a falling and a rising run: the best K of both, a bitonic run again
            x = tl.max(tl.reshape(x, [(N >> i) // K, 2, K]), axis=1)
            x = sort_runs(tl.reshape(x, [N >> i]), N >> i, K, RISING)
    return x


@triton.jit
def _head_topk_block_kernel(
    logits_ptr,  # [T, V] fp16, bf16 or fp32
    key_ptr,  # [T, S, K_PAD] int64
    peak_ptr,  # [T, S] fp32
    mass_ptr,  # [T, S] fp32
    V,
    n_known,
    K_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    N_GROUPS: tl.constexpr = BLOCK // GROUP
    # int64: T * V passes 2**31
    t, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = t * tl.num_programs(1) + block
    row_ptr = logits_ptr + t * V
    g, j = tl.arange(0, N_GROUPS), tl.arange(0, GROUP)
    column = block * BLOCK + g[:, None] * GROUP + j[None, :]
    x = tl.load(row_ptr + column, mask=column < n_known, other=-float("inf")).to(tl.float32)
    group_peak = tl.max(x, axis=1)  # [N_GROUPS]
    # finite, so that an infinity can be subtracted from
    peak = tl.minimum(tl.maximum(tl.max(group_peak, axis=0), -LARGEST), LARGEST)
    tl.store(peak_ptr + part, peak)
    tl.store(mass_ptr + part, tl.sum(tl.sum(tl.exp(x - peak), axis=1), axis=0))
    best_group = key_index(top_k(rank_key(group_peak, g), N_GROUPS, K_PAD))  # [K_PAD]
    column = block * BLOCK + best_group[:, None] * GROUP + j[None, :]
    x = tl.load(row_ptr + column, mask=column < n_known, other=0.0).to(tl.float32)
    key = tl.where(column < n_known, rank_key(x, column), LOWEST)
    best = top_k(tl.reshape(key, [K_PAD * GROUP]), K_PAD * GROUP, K_PAD)
    tl.store(key_ptr + part * K_PAD + tl.arange(0, K_PAD), best)


@triton.jit
def _head_topk_merge_kernel(
    key_ptr,  # [T, S, K_PAD] int64
    peak_ptr,  # [T, S] fp32
    mass_ptr,  # [T, S] fp32
    token_map_ptr,  # [V] int32; not read without HAS_MAP
    ids_ptr,  # [T, k] int32
    log_p_ptr,  # [T, k] fp32
    S,
    k,
    HAS_MAP: tl.constexpr,
    K_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
):
    t, s = tl.program_id(0).to(tl.int64), tl.arange(0, S_PAD)
    peaks = tl.load(peak_ptr + t * S + s, mask=s < S, other=-LARGEST)
    masses = tl.load(mass_ptr + t * S + s, mask=s < S, other=0.0)
    peak = tl.max(peaks, axis=0)
    mass = tl.sum(masses * tl.exp(peaks - peak), axis=0)
    # NaN or +inf anywhere makes it NaN or infinite, nothing but -inf makes it 0
    good = (mass > 0) & (mass < float("inf"))
    e = tl.arange(0, S_PAD * K_PAD)
    keys = tl.load(key_ptr + t * S * K_PAD + e, mask=e < S * K_PAD, other=LOWEST)
    best = top_k(keys, S_PAD * K_PAD, K_PAD)
    rank = tl.arange(0, K_PAD)
    log_p = tl.minimum(key_score(best) - peak - tl.log(tl.where(good, mass, 1.0)), 0.0)
    token = tl.where(good, key_index(best), rank)
    if HAS_MAP:
        token = tl.load(token_map_ptr + token, mask=rank < k, other=0)
    tl.store(ids_ptr + t * k + rank, token, mask=rank < k)
    tl.store(log_p_ptr + t * k + rank, tl.where(good, log_p, float("nan")), mask=rank < k)
