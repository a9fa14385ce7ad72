"""Sampled acceptance of a tree of drawn nodes: the emitted text follows the target exactly.

    at a node, for its children c in order, q = p_draft[c]: accept c if u[c] * q(c) < p(c),
    otherwise p becomes norm(max(p - q, 0)); in the end emit the token at which p's cdf passes u[0]

When a drafter *draws* its tokens, a token it likes more than the target does must be accepted less
often than drawn, and what the target misses by that is made up for after the rejection.  (Nodes
that were chosen need no rows: `accept_sample_tree`.)  What is left after some rejections does not
depend on the dice, so it is weighed for all nodes beforehand, side by side: first every row, as
sums over blocks of columns; then, one launch for every turn, the first children of all nodes, the
second children of all nodes, ...; a chain has one turn.  One program then only walks and looks up.
No distribution is written down: a block of p is computed again from the logits where needed.

    reference   accept_drawn_tree_ref   plain torch, any device; the definition
    kernel      accept_drawn_tree       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads n*V logits, and for the child of turn t its parent's logits and t + 1 rows of
                p_draft; max_children + 2 launches, the last one program
    error       sums are fp32: a boundary between two outcomes moves by a few steps of 2**-24
    rows        what is weighed of a node depends on its parent's row and its siblings alone
    source      Leviathan et al. 2023, arXiv 2211.17192; Miao et al. 2024 (SpecInfer),
                arXiv 2305.09781, several children
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_range, check_tensor
from hspec_kernels._sampled import HUGE, check_sampling, draw, load_tree, store_sampled
from hspec_kernels.accept_greedy_tree import as_verdict, entry, first_true, verdict_tensors
from hspec_kernels.accept_sample_tree import _accept_sample_tree_weigh_kernel, choose


def accept_drawn_tree_ref(
    logits, tokens, parents, uniforms, temperature, p_draft, *, max_children=1
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `accept_drawn_tree`, in float64, written to be read."""
    p_target = torch.softmax(logits.double() / temperature, dim=-1)
    u, q, path, emitted = uniforms.tolist(), p_draft.double(), [0], []
    while len(emitted) < len(path):
        p = p_target[path[-1]]
        for child in (parents == path[-1]).nonzero().flatten().tolist()[:max_children]:
            token = int(tokens[child])
            if u[child] * q[child, token] < p[token]:
                path.append(child)
                emitted.append(token)
                break
            rest = (p - q[child]).clamp(min=0)
            # nothing is left only when the child was certain, up to rounding
            p = rest / rest.sum() if rest.sum() > 0 else p
        else:
            emitted.append(int((p.cumsum(0) > u[0] * p.sum()).int().argmax()))
    if not p_target[path].isfinite().all():
        path, emitted = [], []
    return as_verdict(path, emitted, like=tokens)


def accept_drawn_tree(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    uniforms: Tensor,
    temperature: float,
    p_draft: Tensor,
    *,
    max_children: int = 1,
    trusted: bool = False,
    config: dict | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept a path of drawn nodes such that the emitted tokens follow the target.

    Args:
        logits, tokens, parents, uniforms, temperature: as for `accept_sample_tree`.
        p_draft: fp32 [n, V], the distribution each node's token was really drawn from; row 0 and
            those of padding are not read.
        max_children: 1..n; of a node with more the rest are never tried, which is exact as well.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
        config: block shape, instead of `accept_sample_tree.choose(V)`'s.
        out: (path, n_path, emitted), written instead of new tensors.

    Returns:
        path, n_path, emitted: int32 [n], [1], [n], as from `accept_sample_tree`.

    Raises:
        ValueError: a dtype, shape, device, stride, size or content that does not fit the above.
    """
    n, V = check_sampling(logits, tokens, parents, uniforms, temperature, trusted)
    check_tensor("p_draft", p_draft, torch.float32, (n, V), like=logits)
    check_range("max_children", max_children, 1, n)
    path, n_path, emitted = verdict_tensors(n, out, like=logits)
    config = config or choose(V)
    S = triton.cdiv(V, config["BLOCK"])
    pads = config | {"N_PAD": triton.next_power_of_2(n), "S_PAD": triton.next_power_of_2(S)}
    new = partial(torch.empty, dtype=torch.float32, device=logits.device)
    peak, mass, left, p_child = new(n, S), new(n, S), new(n, S), new(n)
    rows = logits, tokens, parents, p_draft, peak, mass, left, p_child
    # a tree of no nodes: no column is set aside for a child
    _accept_sample_tree_weigh_kernel[(n, S)](
        logits, tokens, parents, peak, mass, p_child, 0, V, 1 / temperature, N_PAD=1, **config
    )
    for turn in range(max_children):
        _accept_drawn_tree_turn_kernel[(n, S)](*rows, n, V, S, turn, 1 / temperature, **pads)
    _accept_drawn_tree_walk_kernel[(1,)](
        *rows, uniforms, path, n_path, emitted, n, V, S, max_children, 1 / temperature, **pads
    )
    return path, n_path, emitted


@triton.jit
def _weights(peak_ptr, mass_ptr, row, S, inverse_temperature, S_PAD: tl.constexpr):
    """The largest logit of a row, and the weights [S_PAD] of its blocks relative to it."""
    s = tl.arange(0, S_PAD)
    peak = tl.load(peak_ptr + row * S + s, mask=s < S, other=-HUGE)
    mass = tl.load(mass_ptr + row * S + s, mask=s < S, other=0.0)
    top = tl.max(peak, axis=0)
    return top, mass * tl.exp((peak - top) * inverse_temperature)


@triton.jit
def _residual(
    logits_ptr, p_draft_ptr, peak_ptr, mass_ptr, left_ptr, row, rejected, block, V, S,
    inverse_temperature, N_PAD: tl.constexpr, S_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of p after the children `rejected` [N_PAD] of a row, in order."""
    i, s = tl.arange(0, N_PAD), tl.arange(0, S_PAD)
    column = block * BLOCK + tl.arange(0, BLOCK)
    top, weight = _weights(peak_ptr, mass_ptr, row, S, inverse_temperature, S_PAD)
    total = tl.sum(weight, axis=0)
    # int64: n * V passes 2**31
    row_ptr = logits_ptr + row.to(tl.int64) * V
    x = tl.load(row_ptr + column, mask=column < V, other=-float("inf")).to(tl.float32)
    p = tl.minimum(tl.exp((x - top) * inverse_temperature), 1.0) / tl.where(total > 0, total, 1.0)
    child = first_true(rejected, N_PAD)
    while child < N_PAD:
        left = tl.sum(tl.load(left_ptr + child * S + s, mask=s < S, other=0.0), axis=0)
        q_ptr = p_draft_ptr + child.to(tl.int64) * V
        rest = tl.maximum(p - tl.load(q_ptr + column, mask=column < V, other=0.0), 0.0)
        # nothing is left only when the child was certain, up to rounding
        p = tl.where(left > 0, rest / tl.where(left > 0, left, 1.0), p)
        child = first_true(rejected & (i > child), N_PAD)
    return p


@triton.jit
def _accept_drawn_tree_turn_kernel(
    logits_ptr,  # [n, V] fp16, bf16 or fp32
    tokens_ptr,  # [n] int32
    parents_ptr,  # [n] int32
    p_draft_ptr,  # [n, V] fp32
    peak_ptr,  # [n, S] fp32
    mass_ptr,  # [n, S] fp32
    left_ptr,  # [n, S] fp32, what child c leaves of p
    p_child_ptr,  # [n] fp32, p(token c) when it is child c's turn
    n,
    V,
    S,
    turn,
    inverse_temperature,
    N_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    child, block = tl.program_id(0), tl.program_id(1)
    token, parent = load_tree(tokens_ptr, parents_ptr, n, V, N_PAD)
    row = entry(parent, child, N_PAD)
    before = (parent == row) & (tl.arange(0, N_PAD) < child)
    if (row >= 0) & (tl.sum(before.to(tl.int32), axis=0) == turn):
        p = _residual(
            logits_ptr, p_draft_ptr, peak_ptr, mass_ptr, left_ptr, row, before, block, V, S,
            inverse_temperature, N_PAD, S_PAD, BLOCK,
        )  # fmt: skip
        column = block * BLOCK + tl.arange(0, BLOCK)
        q_ptr = p_draft_ptr + child.to(tl.int64) * V
        q = tl.load(q_ptr + column, mask=column < V, other=0.0)
        tl.store(left_ptr + child * S + block, tl.sum(tl.maximum(p - q, 0.0), axis=0))
        own = entry(token, child, N_PAD)
        p_own = tl.sum(tl.where(column == own, p, 0.0), axis=0)
        tl.store(p_child_ptr + child, p_own, mask=own // BLOCK == block)


@triton.jit
def _accept_drawn_tree_walk_kernel(
    logits_ptr,  # [n, V] fp16, bf16 or fp32
    tokens_ptr,  # [n] int32
    parents_ptr,  # [n] int32
    p_draft_ptr,  # [n, V] fp32
    peak_ptr,  # [n, S] fp32
    mass_ptr,  # [n, S] fp32
    left_ptr,  # [n, S] fp32
    p_child_ptr,  # [n] fp32
    uniforms_ptr,  # [n] fp32
    path_ptr,  # [n] int32
    n_path_ptr,  # [1] int32
    emitted_ptr,  # [n] int32
    n,
    V,
    S,
    max_children,
    inverse_temperature,
    N_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, s = tl.arange(0, N_PAD), tl.arange(0, S_PAD)
    token, parent = load_tree(tokens_ptr, parents_ptr, n, V, N_PAD)
    u = tl.load(uniforms_ptr + i, mask=i < n, other=0.0)
    p = tl.load(p_child_ptr + i, mask=parent >= 0, other=0.0)
    q = tl.load(p_draft_ptr + i.to(tl.int64) * V + token, mask=parent >= 0, other=0.0)
    path = tl.full([N_PAD], -1, tl.int32)
    emitted = path
    node, child, n_path, good = 0, 0, 0, True
    tried = i < 0
    weight = tl.zeros([S_PAD], dtype=tl.float32)
    while child < N_PAD:
        node = child
        path = tl.where(i == n_path, node, path)
        _, weight = _weights(peak_ptr, mass_ptr, node, S, inverse_temperature, S_PAD)
        total = tl.sum(weight, axis=0)
        good = (total > 0) & (total < float("inf"))
        tried = parent == node
        tried &= tl.cumsum(tried.to(tl.int32)) <= max_children
        # the first that would be accepted: those before it were tried and rejected
        child = tl.where(good, first_true(tried & (u * q < p), N_PAD), N_PAD)
        emitted = tl.where((i == n_path) & (child < N_PAD), entry(token, child, N_PAD), emitted)
        n_path += 1
    # the last token: first its block, then its column
    child = first_true(tried, N_PAD)
    while child < N_PAD:
        left = tl.load(left_ptr + child * S + s, mask=s < S, other=0.0)
        weight = tl.where(tl.sum(left, axis=0) > 0, left, weight)
        child = first_true(tried & (i > child), N_PAD)
    block, u_in_block = draw(weight, tl.load(uniforms_ptr), S_PAD)
    rest = _residual(
        logits_ptr, p_draft_ptr, peak_ptr, mass_ptr, left_ptr, node, tried, block, V, S,
        inverse_temperature, N_PAD, S_PAD, BLOCK,
    )  # fmt: skip
    column, _ = draw(rest, u_in_block, BLOCK)
    emitted = tl.where(i == n_path - 1, block * BLOCK + column, emitted)
    store_sampled(path_ptr, n_path_ptr, emitted_ptr, path, n_path, emitted, good, n, N_PAD)
