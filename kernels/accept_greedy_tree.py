"""Greedy acceptance of a token tree: walk down while a child is what the target says next.

    path = root, then from node to its first child c with tokens[c] == target_ids[node], to the end

A drafter has proposed a tree of tokens and the target has said, behind every node, which token it
would emit there.  Starting at the root, the round keeps following the child that carries the
target's own token; where there is none, the target's token is emitted all the same: *recovered*
after a rejection, *bonus* behind a leaf.  So the emitted tokens are what the target says along the
path, one for each node of it.  The walk is a handful of dependent steps; done on the device, no
tree and no verdict has to visit the host before the K/V rows of the path are kept.

    reference   accept_greedy_tree_ref   plain torch, any device; the definition
    kernel      accept_greedy_tree       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads 3*n ids, writes 2*n + 1; latency-bound: one program, one reduction over n
                per accepted token
    error       none, integers
    rows        one tree a call
    source      Miao et al. 2024 (SpecInfer), arXiv 2305.09781, greedy verification
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_parents, check_range, check_tensor

MAX_NODES = 1024
NOTHING = -1  # fills path and emitted behind their last entry


def accept_greedy_tree_ref(
    tokens: Tensor, parents: Tensor, target_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `accept_greedy_tree`, written to be read rather than to be fast."""
    wanted, path = target_ids.tolist(), [0]
    # parents come before children, so one pass meets every level of the path
    for child, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
        if parent == path[-1] and token == wanted[parent]:
            path.append(child)
    return as_verdict(path, [wanted[node] for node in path], like=tokens)


def accept_greedy_tree(
    tokens: Tensor,
    parents: Tensor,
    target_ids: Tensor,
    *,
    trusted: bool = False,
    config: "Config | None" = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept the path on which every token is the target's choice behind its parent.

    Args:
        tokens: int32 [n], the tree's tokens, node 0 the root; n is 1..1024.
        parents: int32 [n], node numbers, each before its child; -1 for the root.  Any other node
            with -1 is padding and never accepted.
        target_ids: int32 [n], the target's most likely next token behind each node.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
        config: block shape, instead of `choose(n)`'s.
        out: (path, n_path, emitted), written instead of new tensors.

    Returns:
        path: int32 [n], accepted nodes, the root first, then -1.  Of several children with the
            same token the first is kept.
        n_path: int32 [1], nodes on the path: accepted tokens + 1.
        emitted: int32 [n], the n_path emitted tokens (accepted ones, then the recovered or bonus
            token), then -1.

    Raises:
        ValueError: a dtype, shape, device, stride or content that does not fit the above.
    """
    check_tensor("tokens", tokens, torch.int32, (None,))
    n = len(tokens)
    check_range("n", n, 1, MAX_NODES)
    check_tensor("parents", parents, torch.int32, (n,), like=tokens)
    check_tensor("target_ids", target_ids, torch.int32, (n,), like=tokens)
    path, n_path, emitted = verdict_tensors(n, out, like=tokens)
    config = config or choose(n)
    check_range("n", n, 1, config.block)
    if not trusted:
        check_parents(parents)
    _accept_greedy_tree_kernel[(1,)](
        tokens, parents, target_ids, path, n_path, emitted, n,
        NOTHING=NOTHING, BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    return path, n_path, emitted


def as_verdict(path: list[int], emitted: list[int], like: Tensor):
    """What a definition has found, in the form the operations give it; `like` has n entries."""
    fill = [NOTHING] * (len(like) - len(path))
    new = partial(torch.tensor, dtype=torch.int32, device=like.device)
    return new(path + fill), new([len(path)]), new(emitted + fill)


def verdict_tensors(n: int, out, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """New int32 path [n], n_path [1] and emitted [n], or those of `out` after a check."""
    new = partial(torch.empty, dtype=torch.int32, device=like.device)
    out = out or (new(n), new(1), new(n))
    for name, tensor, size in zip(("path", "n_path", "emitted"), out, (n, 1, n), strict=True):
        check_tensor(name, tensor, torch.int32, (size,), like=like)
    return out


@dataclass(frozen=True, slots=True)
class Config:
    """Nodes the program holds; one warp reduces without a barrier."""

    block: int
    num_warps: int


# not swept on a GPU yet: up to 8 nodes a thread
CONFIGS = (Config(64, 1), Config(256, 1), Config(1024, 4))


def choose(n: int) -> Config:
    """The smallest block that holds n nodes."""
    return next(config for config in CONFIGS if n <= config.block)


@triton.jit
def first_true(where_true, N: tl.constexpr):
    """The first true entry of [N], N when there is none."""
    return tl.min(tl.where(where_true, tl.arange(0, N), N), axis=0)


@triton.jit
def entry(values, index, N: tl.constexpr):
    """Entry `index` of `values` [N]."""
    return tl.sum(tl.where(tl.arange(0, N) == index, values, 0), axis=0)


@triton.jit
def _accept_greedy_tree_kernel(
    tokens_ptr,  # [n] int32
    parents_ptr,  # [n] int32
    target_ids_ptr,  # [n] int32
    path_ptr,  # [n] int32
    n_path_ptr,  # [1] int32
    emitted_ptr,  # [n] int32
    n,
    NOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + i, mask=i < n, other=0)
    parent = tl.load(parents_ptr + i, mask=i < n, other=-1)
    # a parent before its child: every gather is in bounds, and the walk below ends
    has_parent = (parent >= 0) & (parent < i)
    wanted = tl.load(target_ids_ptr + parent, mask=has_parent, other=0)
    parent = tl.where(has_parent & (token == wanted), parent, -1)  # whom it would continue
    path = tl.where(i == 0, 0, NOTHING)
    n_path = 1
    node = first_true(parent == 0, BLOCK)
    while node < BLOCK:
        path = tl.where(i == n_path, node, path)
        n_path += 1
        node = first_true(parent == node, BLOCK)
    tl.store(path_ptr + i, path, mask=i < n)
    tl.store(n_path_ptr, n_path)
    on_path = i < n_path
    tl.store(
        emitted_ptr + i,
        tl.load(target_ids_ptr + path, mask=on_path, other=NOTHING),
        mask=i < n,
    )
