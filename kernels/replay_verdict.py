"""Accept as many tokens as were accepted elsewhere: a verdict for made-up weights.

    n = min(|lengths[cursor]|, n_nodes),   path = 0, S, 2 S, ...,   cursor moves on, round and round
    lengths[cursor] < 0:  the last node is the one behind it instead
    emitted = tokens[path[1]], tokens[path[2]], ..., best[path[n - 1]]

A model with real shapes and random weights costs what the real one costs, but agrees with nobody.
To time whole rounds of it, the number of accepted tokens is read from a recorded list, and all that
follows a verdict (moving cache rows, roll-back, the next draft) happens as if it had been found.
Which nodes are kept does not matter for that, only that a tree's are not the first ones; and of a
narrow tree whether the last one is, or a rival: a negative length says so.

    reference   replay_verdict_ref   plain torch, any device; the definition
    kernel      replay_verdict       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        a few hundred bytes; latency-bound: one launch, one program
    error       none, integers
    rows        one tree a call
    source      none
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_range, check_tensor
from hspec_kernels.accept_greedy_tree import NOTHING, verdict_tensors

MAX_NODES = 1024


def replay_verdict_ref(
    tokens: Tensor,
    best: Tensor,
    lengths: Tensor,
    cursor: Tensor,
    n_nodes: Tensor,
    stride: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `replay_verdict`, written to be read rather than to be fast."""
    size, at = len(tokens), int(cursor)
    fits = (min(int(n_nodes), size) - 1) // stride + 1
    length = int(lengths[at])
    n = max(1, min(abs(length), fits))
    cursor.fill_((at + 1) % len(lengths))
    path = [stride * i for i in range(n)]
    if length < 0 and n > 1 and path[-1] + 1 < min(int(n_nodes), size):
        path[-1] += 1
    emitted = [int(tokens[node]) for node in path[1:]] + [int(best[path[-1]])]
    fill = [NOTHING] * (size - n)
    new = partial(torch.tensor, dtype=torch.int32, device=tokens.device)
    return new(path + fill), new([n]), new(emitted + fill)


def replay_verdict(
    tokens: Tensor,
    best: Tensor,
    lengths: Tensor,
    cursor: Tensor,
    n_nodes: Tensor,
    stride: int = 1,
    *,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the nodes 0, S, 2 S, ..., as many as the list says next.

    Args:
        tokens: int32 [n], the proposed nodes' tokens; n is 1..1024.
        best: int32 [n], the verifying model's most likely next token behind each node.
        lengths: int32 [N], emitted tokens of recorded rounds, in order, each at least 1; negative
            where the last accepted one was a rival.
        cursor: int32 [1], 0..N-1, whose turn it is; moved on.
        n_nodes: int32 [1], nodes that are not padding, 1..n.
        stride: S; 1 for a path.
        out: (path, n_path, emitted), written instead of new tensors.

    Returns:
        path, n_path, emitted: int32 [n], [1], [n], as from `accept_greedy_tree`.

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("tokens", tokens, torch.int32, (None,))
    n = len(tokens)
    check_range("n", n, 1, MAX_NODES)
    check_range("stride", stride, 1, MAX_NODES)
    check_tensor("best", best, torch.int32, (n,), like=tokens)
    check_tensor("lengths", lengths, torch.int32, (None,), like=tokens)
    check_range("N", len(lengths), 1, 2**24)
    for name, counter in {"cursor": cursor, "n_nodes": n_nodes}.items():
        check_tensor(name, counter, torch.int32, (1,), like=tokens)
    path, n_path, emitted = verdict_tensors(n, out, like=tokens)
    _replay_verdict_kernel[(1,)](
        tokens, best, lengths, cursor, n_nodes, path, n_path, emitted, n, len(lengths), stride,
        NOTHING=NOTHING, BLOCK=triton.next_power_of_2(n), num_warps=1,
    )  # fmt: skip
    return path, n_path, emitted


@triton.jit(do_not_specialize=["n", "N", "stride"])
def _replay_verdict_kernel(
    tokens_ptr,  # [n] int32
    best_ptr,  # [n] int32
    lengths_ptr,  # [N] int32
    cursor_ptr,  # [1] int32
    n_nodes_ptr,  # [1] int32
    path_ptr,  # [n] int32
    n_path_ptr,  # [1] int32
    emitted_ptr,  # [n] int32
    n,
    N,
    stride,
    NOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    cursor = tl.maximum(tl.minimum(tl.load(cursor_ptr), N - 1), 0)
    n_nodes = tl.maximum(tl.minimum(tl.load(n_nodes_ptr), n), 1)
    length = tl.load(lengths_ptr + cursor)
    n_path = tl.maximum(tl.minimum(tl.abs(length), (n_nodes - 1) // stride + 1), 1)
    last = n_path - 1
    has_rival = (length < 0) & (last > 0) & (last * stride + 1 < n_nodes)
    beside = tl.where(has_rival, 1, 0)
    node = i * stride + tl.where(i == last, beside, 0)
    behind = (i + 1) * stride + tl.where(i + 1 == last, beside, 0)
    accepted = tl.load(tokens_ptr + behind, mask=i < last, other=NOTHING)
    own = tl.load(best_ptr + node, mask=i == last, other=NOTHING)
    tl.store(path_ptr + i, tl.where(i < n_path, node, NOTHING), mask=i < n)
    tl.store(emitted_ptr + i, tl.where(i == last, own, accepted), mask=i < n)
    tl.store(n_path_ptr, n_path)
    tl.store(cursor_ptr, (cursor + 1) % N)
