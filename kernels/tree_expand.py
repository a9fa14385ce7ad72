"""One level of an EAGLE-2 tree: score every continuation of the frontier, choose the next frontier.

    score[i, j] = score of frontier node i + log_p[i, j],   next frontier = the k best of these k*k

A draft head grows a tree by confidence: it reads the k most promising nodes so far (the frontier),
proposes k continuations of each, and remembers every candidate with the log-probability of its
whole path (the history), from which `tree_rerank` picks what is proposed.  With this step on the
device and every shape fixed, drafting is one CUDA graph: head, head_topk, tree_expand, head, ...

One order holds everywhere: score descending, then history index ascending.  A log-probability is
at most 0, so no candidate comes before its parent.

    reference   tree_expand_ref   plain torch, any device; the definition
    kernel      tree_expand       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        20 bytes a candidate; latency-bound: one program sorts k*k candidates, in one warp
                up to 128
    error       none: one fp32 addition a candidate, rounded as on the CPU
    rows        one tree a call
    source      Li et al. 2024, EAGLE-2, arXiv 2406.16858
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_range, check_tensor, refuse
from hspec_kernels.head_topk import LOWEST, MAX_K, key_index, key_score, rank_key, top_k

MAX_H = 2**20


class History(NamedTuple):
    """Every candidate, level by level: k of level 0, then k*k a level; H in all."""

    tokens: Tensor  # int32 [H]
    scores: Tensor  # fp32 [H], log-probability of the path
    parents: Tensor  # int32 [H], history index, -1 the root


class Frontier(NamedTuple):
    """What the head reads next, best first: the root alone before level 0, then k nodes."""

    nodes: Tensor  # int32 [F], history index, -1 the root
    tokens: Tensor  # int32 [F]
    scores: Tensor  # fp32 [F]
    came_from: Tensor  # int32 [F], the parent's row in the frontier before
    seen: Tensor  # int64 [F, W], bit level * k + row: that frontier row is on its path, or itself


def empty_history(k: int, depth: int, device) -> History:
    """Room for `depth` levels of k candidates a node."""
    new = partial(torch.empty, _n_before(depth, k), device=device)
    return History(new(dtype=torch.int32), new(dtype=torch.float32), new(dtype=torch.int32))


def root_frontier(k: int, depth: int, device) -> Frontier:
    """What level 0 expands, with room in `seen` for `depth` levels of k rows."""
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    seen = torch.zeros(1, triton.cdiv(depth * k, 64), dtype=torch.int64, device=device)
    return Frontier(zero - 1, zero, zero.float(), zero, seen)


def tree_expand_ref(
    ids: Tensor, log_p: Tensor, frontier: Frontier, history: History, level: int
) -> Frontier:
    """Same contract as `tree_expand`, written to be read rather than to be fast."""
    k, start = ids.shape[1], _n_before(level, ids.shape[1])
    log_p = torch.where(log_p.isnan(), -torch.inf, log_p).clamp(max=0)
    scores = (frontier.scores[:, None] + log_p).flatten()
    new = slice(start, start + len(scores))
    history.tokens[new], history.scores[new] = ids.flatten(), scores
    history.parents[new] = frontier.nodes.repeat_interleave(k)
    chosen = torch.sort(scores, descending=True, stable=True).indices[:k]
    seen = frontier.seen[chosen // k]
    for row, bit in enumerate(range(level * k, level * k + k)):
        seen[row, bit // 64] |= torch.tensor(1) << bit % 64
    nodes, tokens = (start + chosen).int(), ids.flatten()[chosen]
    return Frontier(nodes, tokens, scores[chosen], (chosen // k).int(), seen)


def tree_expand(
    ids: Tensor,
    log_p: Tensor,
    frontier: Frontier,
    history: History,
    level: int,
    *,
    trusted: bool = False,
    config: "Config | None" = None,
    out: Frontier | None = None,
) -> Frontier:
    """Add a level's candidates to the history and choose the next frontier.

    Args:
        ids: int32 [F, k], most likely tokens behind each frontier node, from `head_topk`; k 1..32.
        log_p: fp32 [F, k], theirs.  Above 0 counts as 0, NaN as -inf.
        frontier: the F nodes they continue, of the levels before; `root_frontier(...)` at level 0.
        history: H <= 2**20 entries; those of this level are written, none is read.
        level: expansions before this one, 0..63.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
        config: block shape, instead of `choose(F * k)`'s.
        out: written instead of new tensors; must not share memory with `frontier`.

    Returns:
        The next frontier, k nodes.

    Raises:
        ValueError: a dtype, shape, device, stride or content that does not fit the above.
    """
    check_tensor("ids", ids, torch.int32, (None, None))
    check_range("level", level, 0, 63)
    k, H, W = ids.shape[1], len(history.tokens), frontier.seen.shape[-1]
    check_range("k", k, 1, MAX_K)
    F = k if level else 1
    check_tensor("ids", ids, torch.int32, (F, k))
    check_tensor("log_p", log_p, torch.float32, (F, k), like=ids)
    check_range("H", H, _n_before(level + 1, k), MAX_H)
    check_range("bits of frontier.seen", 64 * W, level * k + k, 64 * MAX_K)
    if out is None:
        new = partial(torch.empty, dtype=torch.int32, device=ids.device)
        scores, seen = new(k, dtype=torch.float32), new(k, W, dtype=torch.int64)
        out = Frontier(new(k), new(k), scores, new(k), seen)
    check_fields("frontier", frontier, F, ids, seen=(F, W))
    check_fields("history", history, H, ids)
    check_fields("out", out, k, ids, seen=(k, W))
    config = config or choose(F * k)
    check_range("F * k", F * k, 1, config.block)
    if not trusted:
        _check_frontier(frontier, level, _n_before(level, k))
    _tree_expand_kernel[(1,)](
        ids, log_p, frontier.nodes, frontier.scores, frontier.seen, *history, *out,
        _n_before(level, k), level * k, F * k, k, W, K_PAD=triton.next_power_of_2(k),
        W_PAD=triton.next_power_of_2(W), BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    return out


def check_fields(name: str, fields, n: int, like: Tensor, **shapes) -> None:
    """ValueError unless every field is [n], or as in `shapes`, and of its documented dtype."""
    dtypes = {"scores": torch.float32, "seen": torch.int64, "ancestors": torch.int64}
    for field, tensor in fields._asdict().items():
        dtype = dtypes.get(field, torch.int32)
        check_tensor(f"{name}.{field}", tensor, dtype, shapes.get(field, (n,)), like=like)


def _check_frontier(frontier: Frontier, level: int, n_before: int) -> None:
    """ValueError unless nodes are of the history so far, with log-probabilities."""
    nodes, wanted = (
        frontier.nodes,
        f"0..{n_before - 1} at level {level}" if level else "-1, the root",
    )
    refuse(
        (nodes < min(level, 1) - 1) | (nodes >= n_before),
        lambda i: f"frontier.nodes[{i}] must be {wanted}, got {int(nodes[i])}",
    )
    refuse(
        ~(frontier.scores <= 0),
        lambda i: f"frontier.scores[{i}] must be at most 0, got {float(frontier.scores[i])}",
    )


def _n_before(level: int, k: int) -> int:
    """History entries of all levels before this one."""
    return k + (level - 1) * k * k if level else 0


@dataclass(frozen=True, slots=True)
class Config:
    """Candidates the program holds; one warp sorts without a barrier."""

    block: int
    num_warps: int


# not swept on a GPU yet: 4 candidates a lane up to k = 11, then 8
CONFIGS = (Config(128, 1), Config(1024, 4))


def choose(n: int) -> Config:
    """The smallest block that holds n candidates."""
    return next(config for config in CONFIGS if n <= config.block)


@triton.jit
def one_bit(bit, w):
    """int64 [n, W_PAD] with bit `bit` [n] of each row set; w numbers the words."""
    hit = bit[:, None] // 64 == w[None, :]
    return tl.where(hit, tl.full([1, 1], 1, tl.int64) << (bit % 64).to(tl.int64)[:, None], 0)


@triton.jit
def _tree_expand_kernel(
    ids_ptr,  # [F, k] int32
    log_p_ptr,  # [F, k] fp32
    nodes_ptr,  # [F] int32
    scores_ptr,  # [F] fp32
    seen_ptr,  # [F, W] int64
    history_tokens_ptr,  # [H] int32
    history_scores_ptr,  # [H] fp32
    history_parents_ptr,  # [H] int32
    out_nodes_ptr,  # [k] int32
    out_tokens_ptr,  # [k] int32
    out_scores_ptr,  # [k] fp32
    out_came_from_ptr,  # [k] int32
    out_seen_ptr,  # [k, W] int64
    start,
    first_bit,
    n,
    k,
    W,
    K_PAD: tl.constexpr,
    W_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e = tl.arange(0, BLOCK)
    inside, row = e < n, e // k
    log_p = tl.load(log_p_ptr + e, mask=inside, other=0.0)
    log_p = tl.where(log_p > 0, 0.0, tl.where(log_p == log_p, log_p, -float("inf")))
    score = tl.load(scores_ptr + row, mask=inside, other=0.0) + log_p
    token = tl.load(ids_ptr + e, mask=inside, other=0)
    parent = tl.load(nodes_ptr + row, mask=inside, other=0)
    tl.store(history_tokens_ptr + start + e, token, mask=inside)
    tl.store(history_scores_ptr + start + e, score, mask=inside)
    tl.store(history_parents_ptr + start + e, parent, mask=inside)

    best = top_k(tl.where(inside, rank_key(score, e), LOWEST), BLOCK, K_PAD)
    j, w = tl.arange(0, K_PAD), tl.arange(0, W_PAD)
    real = j < k
    chosen = tl.where(real, key_index(best), 0)
    came_from = chosen // k
    tl.store(out_nodes_ptr + j, start + chosen, mask=real)
    tl.store(out_tokens_ptr + j, tl.load(ids_ptr + chosen, mask=real, other=0), mask=real)
    tl.store(out_scores_ptr + j, key_score(best), mask=real)
    tl.store(out_came_from_ptr + j, came_from, mask=real)
    in_seen = real[:, None] & (w < W)[None, :]
    seen = tl.load(seen_ptr + came_from[:, None] * W + w[None, :], mask=in_seen, other=0)
    seen |= one_bit(first_bit + j, w)
    tl.store(out_seen_ptr + j[:, None] * W + w[None, :], seen, mask=in_seen)
