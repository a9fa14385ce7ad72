"""The tree that is proposed: the root and the best nodes of everything a draft head has scored.

    kept = the n - 1 best of the history,   node m + 1 = the m-th of them in history order

Drafting leaves hundreds of candidates; the target verifies only the most promising.  A candidate's
score is never above its parent's and the parent has the lower history index, so under the one order
(score descending, then history index ascending) the parent of a kept node is kept as well, and
history order lists it first.  The root is history index -1: it comes before all and is node 0.

The program merges the history into a sorted list of the best, block by block, sorts that by history
index, finds each parent in it by binary search, and climbs from every node to the root, collecting
depths and ancestor bitsets.

    reference   tree_rerank_ref   plain torch, any device; the definition
    kernel      tree_rerank       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        4 bytes a history entry, 28 a node; latency-bound: one program, a sorting network
                for every 512 entries, one gather a level of the tree
    error       none, integers
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

from hspec_kernels._check import check_parents, check_range, check_tensor, refuse
from hspec_kernels.head_topk import LOWEST, key_index, rank_key, sort_runs, top_k
from hspec_kernels.tree_expand import MAX_H, History, check_fields, one_bit

MAX_NODES = 256


class DraftTree(NamedTuple):
    """Nodes parents first, the root at 0; behind the last comes padding that sees only itself."""

    tokens: Tensor  # int32 [bucket], 0 for padding
    parents: Tensor  # int32 [bucket], -1 for the root and padding
    depths: Tensor  # int32 [bucket], levels below the root, 0 for padding
    ancestors: Tensor  # int64 [bucket, W], bit i of row j: i is j or above it


def tree_rerank_ref(
    root_token: Tensor, history: History, tree_size: int, *, bucket: int
) -> DraftTree:
    """Same contract as `tree_rerank`, written to be read rather than to be fast."""
    best = torch.sort(history.scores, descending=True, stable=True).indices[: tree_size - 1]
    kept = best.sort().values.tolist()
    number = {-1: 0} | {index: node for node, index in enumerate(kept, 1)}
    tokens = [int(root_token), *history.tokens[kept].tolist()]
    parents = [-1] + [number[parent] for parent in history.parents[kept].tolist()]
    pad = [0] * (bucket - len(tokens))
    parents += [-1] * len(pad)
    depths, rows = [], []
    for node, parent in enumerate(parents):
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
        rows.append((rows[parent] if parent >= 0 else 0) | 1 << node)
    packed = b"".join(row.to_bytes(8 * triton.cdiv(bucket, 64), "little") for row in rows)
    device = history.tokens.device
    ancestors = torch.frombuffer(bytearray(packed), dtype=torch.int64).view(bucket, -1).to(device)
    new = partial(torch.tensor, dtype=torch.int32, device=device)
    return DraftTree(new(tokens + pad), new(parents), new(depths), ancestors)


def tree_rerank(
    root_token: Tensor,
    history: History,
    tree_size: int,
    *,
    bucket: int,
    trusted: bool = False,
    config: "Config | None" = None,
    out: DraftTree | None = None,
) -> DraftTree:
    """Choose the best nodes of a history and lay them out as a tree, padded to a bucket.

    Args:
        root_token: int32 [1], the pending token.
        history: H entries, H >= 1, written by `tree_expand`: parents first, no score NaN or above
            its parent's.
        tree_size: nodes wanted, the root included, 1..bucket; with a shorter history H + 1.
        bucket: nodes of the padded tree, 1..256.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
        config: block shape, instead of `choose(bucket)`'s.
        out: written instead of new tensors.

    Returns:
        The tree.

    Raises:
        ValueError: a dtype, shape, device, stride or content that does not fit the above.
    """
    check_tensor("root_token", root_token, torch.int32, (1,))
    H, W = len(history.tokens), triton.cdiv(bucket, 64)
    check_range("H", H, 1, MAX_H)
    check_fields("history", history, H, root_token)
    check_range("bucket", bucket, 1, MAX_NODES)
    check_range("tree_size", tree_size, 1, bucket)
    if out is None:
        new = partial(torch.empty, dtype=torch.int32, device=root_token.device)
        ancestors = new(bucket, W, dtype=torch.int64)
        out = DraftTree(new(bucket), new(bucket), new(bucket), ancestors)
    check_fields("out", out, bucket, root_token, ancestors=(bucket, W))
    config = config or choose(bucket)
    check_range("bucket", bucket, 1, config.block)
    if not trusted:
        _check_history(history)
    _tree_rerank_kernel[(1,)](
        root_token, *history, *out, H, min(tree_size, H + 1), bucket, W,
        NODES=triton.next_power_of_2(bucket), W_PAD=triton.next_power_of_2(W), BLOCK=config.block,
        num_warps=config.num_warps,
    )  # fmt: skip
    return out


def _check_history(history: History) -> None:
    """ValueError unless every candidate comes behind its parent under the one order."""
    scores, parents = history.scores, history.parents
    check_parents(parents, "history.parents")
    above = torch.where(parents >= 0, scores[parents.clamp(min=0)], torch.inf)
    refuse(
        ~(scores <= above),
        lambda i: (
            f"history.scores[{i}] must be a number and at most its parent's, "
            f"{float(above[i])}, got {float(scores[i])}"
        ),
    )


@dataclass(frozen=True, slots=True)
class Config:
    """History entries sorted at a time, at least as many as nodes, and warps."""

    block: int
    num_warps: int


# not swept on a GPU yet: a history of k = 10, depth 6 is one block, 4 entries a thread
CONFIGS = (Config(512, 4),)


def choose(bucket: int) -> Config:
    """The smallest block that holds the tree."""
    return next(config for config in CONFIGS if bucket <= config.block)


@triton.jit
def _position(ascending, wanted, N: tl.constexpr):
    """Where each `wanted` stands in `ascending` [N]; N a power of two up to 256."""
    at = tl.zeros_like(wanted)
    for i in tl.static_range(1, 9):
        if N >> i > 0:
            probe = tl.gather(ascending, at + ((N >> i) - 1), axis=0)
            at += tl.where(probe < wanted, N >> i, 0)
    return at


@triton.jit
def _tree_rerank_kernel(
    root_token_ptr,  # [1] int32
    tokens_ptr,  # [H] int32
    scores_ptr,  # [H] fp32
    parents_ptr,  # [H] int32
    out_tokens_ptr,  # [bucket] int32
    out_parents_ptr,  # [bucket] int32
    out_depths_ptr,  # [bucket] int32
    out_ancestors_ptr,  # [bucket, W] int64
    H,
    n,
    bucket,
    W,
    NODES: tl.constexpr,
    W_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    best = tl.full([NODES], LOWEST, tl.int64)
    for first in tl.range(0, H, BLOCK):
        e = first + tl.arange(0, BLOCK)
        score = tl.load(scores_ptr + e, mask=e < H, other=0.0)
        block = top_k(tl.where(e < H, rank_key(score, e), LOWEST), BLOCK, NODES, RISING=1)
        # the larger of a falling and a rising run: the best of both, one bitonic run
        best = sort_runs(tl.maximum(best, block), NODES, NODES)
    j, w = tl.arange(0, NODES), tl.arange(0, W_PAD)
    # falling negatives are rising indices; the root's -1 first, padding last
    falling = tl.where(j < n - 1, -key_index(best).to(tl.int64), tl.where(j < n, 1, LOWEST))
    index = (-top_k(falling, NODES, NODES)).to(tl.int32)
    index = tl.where(j < n, index, 0x7FFFFFFF)  # [NODES], history index of each node

    in_history = (j > 0) & (j < n)
    token = tl.load(tokens_ptr + index, mask=in_history, other=0)
    token = tl.where(j == 0, tl.load(root_token_ptr), token)
    above = tl.load(parents_ptr + index, mask=in_history, other=-1)
    # below j whatever the history holds, so that every climb ends
    parent = tl.minimum(tl.where(in_history, _position(index, above, NODES), -1), j - 1)
    depth = tl.zeros_like(j) - 1
    bits = tl.zeros((NODES, W_PAD), dtype=tl.int64)
    node = j
    while tl.max(node, axis=0) >= 0:
        depth += (node >= 0).to(tl.int32)
        bits |= tl.where(node[:, None] >= 0, one_bit(node, w), 0)
        # the root's parent is -1, and so stays where the climb has ended
        node = tl.gather(parent, tl.maximum(node, 0), axis=0)
    inside = j < bucket
    tl.store(out_tokens_ptr + j, token, mask=inside)
    tl.store(out_parents_ptr + j, parent, mask=inside)
    tl.store(out_depths_ptr + j, depth, mask=inside)
    tl.store(
        out_ancestors_ptr + j[:, None] * W + w[None, :],
        bits,
        mask=inside[:, None] & (w < W)[None, :],
    )
