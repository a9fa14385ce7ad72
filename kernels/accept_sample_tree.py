"""Sampled acceptance of a tree of chosen nodes: the emitted text follows the target exactly.

    at a node, for its children c in order: accept c if u[c] < p(token c) / what is left of p,
    otherwise rule token c out; in the end emit the token at which the cdf of the rest passes u[0]

A drafter that *chooses* its nodes (EAGLE-2) instead of drawing them proposes with certainty: a
child is accepted with the probability the target gives it, and a rejection only rules its token
out.  p = softmax(logits / temperature) is never written down, ratios are all that is needed.  One
program per row and block of columns notes each child's own logit, and the sum of exponentials of
the columns that no child stands for; then one program walks from the root.  What is left of p is
that sum plus the later children: positive numbers, so nothing cancels however little is left.  The
last token is looked up in the list of block sums first, then inside one block.

    reference   accept_sample_tree_ref   plain torch, any device; the definition
    kernel      accept_sample_tree       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        reads n*V logits once, one block again; two launches, the second one program
    error       sums are fp32: a boundary between two outcomes moves by a few steps of 2**-24
    rows        what is noted of a row depends on the row and its children alone
    source      Miao et al. 2024 (SpecInfer), arXiv 2305.09781, with point masses for drafts
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._sampled import HUGE, check_sampling, draw, load_tree, store_sampled
from hspec_kernels.accept_greedy_tree import as_verdict, entry, first_true, verdict_tensors


def accept_sample_tree_ref(
    logits: Tensor, tokens: Tensor, parents: Tensor, uniforms: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `accept_sample_tree`, in float64, written to be read."""
    p_target = torch.softmax(logits.double() / temperature, dim=-1)
    u, path, emitted = uniforms.tolist(), [0], []
    while len(emitted) < len(path):
        p = p_target[path[-1]].clone()
        for child in (parents == path[-1]).nonzero().flatten().tolist():
            if u[child] * p.sum() < p[tokens[child]]:
                path.append(child)
                emitted.append(int(tokens[child]))
                break
            p[tokens[child]] = 0
        else:
            emitted.append(int((p.cumsum(0) > u[0] * p.sum()).int().argmax()))
    if not p_target[path].isfinite().all():
        path, emitted = [], []
    return as_verdict(path, emitted, like=tokens)


def accept_sample_tree(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    uniforms: Tensor,
    temperature: float,
    *,
    trusted: bool = False,
    config: dict | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept a path of chosen nodes such that the emitted tokens follow the target.

    Args:
        logits: fp16, bf16 or fp32 [n, V], the target's, below 1e30; n 1..256, V up to 2**20.
        tokens: int32 [n], the tree's tokens, node 0 the root; one outside 0..V-1 is never accepted.
        parents: int32 [n], node numbers, each before its child; -1 for the root and padding.
        uniforms: fp32 [n] in [0, 1): entry c decides about node c, entry 0 draws the last token.
        temperature: 1e-6..1e6.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.
        config: block shape, instead of `choose(V)`'s.
        out: (path, n_path, emitted), written instead of new tensors.

    Returns:
        path, n_path, emitted: int32 [n], [1], [n], as from `accept_greedy_tree`.  When a visited
            row has no distribution (NaN, +inf, nothing but -inf) n_path is 0 and the rest -1.

    Raises:
        ValueError: a dtype, shape, device, stride, size or content that does not fit the above.
    """
    n, V = check_sampling(logits, tokens, parents, uniforms, temperature, trusted)
    path, n_path, emitted = verdict_tensors(n, out, like=logits)
    config = (config or choose(V)) | {"N_PAD": triton.next_power_of_2(n)}
    S = triton.cdiv(V, config["BLOCK"])
    new = partial(torch.empty, dtype=torch.float32, device=logits.device)
    peak, mass, child_logit = new(n, S), new(n, S), new(n)
    _accept_sample_tree_weigh_kernel[(n, S)](
        logits, tokens, parents, peak, mass, child_logit, n, V, 1 / temperature, **config
    )
    _accept_sample_tree_walk_kernel[(1,)](
        logits, tokens, parents, uniforms, peak, mass, child_logit, path, n_path, emitted,
        n, V, S, 1 / temperature, S_PAD=triton.next_power_of_2(S),
        **config | {"num_warps": WALK_WARPS * config["num_warps"]},
    )  # fmt: skip
    return path, n_path, emitted


# not swept on a GPU yet: up to 16 columns a thread, and 32 programs a row up to V = 2**17
CONFIGS = tuple({"BLOCK": b, "num_warps": w} for b, w in ((1024, 4), (4096, 8)))
WALK_WARPS = 2  # for one of the first kernel: this one is alone, and must not spill


def choose(V: int) -> dict:
    """The smallest block that cuts a row of V columns into at most 32, or else the largest."""
    fits = (config for config in CONFIGS if triton.cdiv(V, config["BLOCK"]) <= 32)
    return next(fits, CONFIGS[-1])


@triton.jit
def _load_rest(
    logits_ptr, child_logit_ptr, token, parent, row, block, V,
    N_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of a row with -inf at its children; notes what stood there, -inf for a second one."""
    column = block * BLOCK + tl.arange(0, BLOCK)
    # int64: n * V passes 2**31
    row_ptr = logits_ptr + row.to(tl.int64) * V
    x = tl.load(row_ptr + column, mask=column < V, other=-float("inf")).to(tl.float32)
    here = (parent == row) & (token // BLOCK == block)
    child = first_true(here, N_PAD)
    while child < N_PAD:
        own = column == entry(token, child, N_PAD)
        tl.store(child_logit_ptr + child, tl.sum(tl.where(own, x, 0.0), axis=0))
        x = tl.where(own, -float("inf"), x)
        child = first_true(here & (tl.arange(0, N_PAD) > child), N_PAD)
    return x


@triton.jit
def _accept_sample_tree_weigh_kernel(
    logits_ptr,  # [n, V] fp16, bf16 or fp32
    tokens_ptr,  # [n] int32
    parents_ptr,  # [n] int32
    peak_ptr,  # [n, S] fp32
    mass_ptr,  # [n, S] fp32
    child_logit_ptr,  # [n] fp32, entry c: of token c in its parent's row
    n,
    V,
    inverse_temperature,
    N_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = tl.program_id(0), tl.program_id(1)
    token, parent = load_tree(tokens_ptr, parents_ptr, n, V, N_PAD)
    x = _load_rest(logits_ptr, child_logit_ptr, token, parent, row, block, V, N_PAD, BLOCK)
    peak = tl.minimum(tl.maximum(tl.max(x, axis=0), -HUGE), HUGE)
    part = row * tl.num_programs(1) + block
    tl.store(peak_ptr + part, peak)
    tl.store(mass_ptr + part, tl.sum(tl.exp((x - peak) * inverse_temperature), axis=0))


@triton.jit
def _accept_sample_tree_walk_kernel(
    logits_ptr,  # [n, V] fp16, bf16 or fp32
    tokens_ptr,  # [n] int32
    parents_ptr,  # [n] int32
    uniforms_ptr,  # [n] fp32
    peak_ptr,  # [n, S] fp32
    mass_ptr,  # [n, S] fp32
    child_logit_ptr,  # [n] fp32
    path_ptr,  # [n] int32
    n_path_ptr,  # [1] int32
    emitted_ptr,  # [n] int32
    n,
    V,
    S,
    inverse_temperature,
    N_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, s = tl.arange(0, N_PAD), tl.arange(0, S_PAD)
    token, parent = load_tree(tokens_ptr, parents_ptr, n, V, N_PAD)
    u = tl.load(uniforms_ptr + i, mask=i < n, other=0.0)
    noted = tl.load(child_logit_ptr + i, mask=parent >= 0, other=0.0)
    path = tl.full([N_PAD], -1, tl.int32)
    emitted = path
    node, child, n_path, good = 0, 0, 0, True
    weight = tl.zeros([S_PAD], dtype=tl.float32)
    while child < N_PAD:
        node = child
        path = tl.where(i == n_path, node, path)
        peak = tl.load(peak_ptr + node * S + s, mask=s < S, other=-HUGE)
        mass = tl.load(mass_ptr + node * S + s, mask=s < S, other=0.0)
        logit = tl.where(parent == node, noted, -float("inf"))
        top = tl.maximum(tl.max(peak, axis=0), tl.minimum(tl.max(logit, axis=0), HUGE))
        weight = mass * tl.exp((peak - top) * inverse_temperature)  # of columns without a child
        child_weight = tl.exp((logit - top) * inverse_temperature)
        rest = tl.sum(weight, axis=0)
        total = rest + tl.sum(child_weight, axis=0)
        good = (total > 0) & (total < float("inf"))
        left = rest + tl.cumsum(child_weight, reverse=True)  # when it is child i's turn
        # the first that would be accepted: those before it were tried and rejected
        child = first_true((parent == node) & (u * left < child_weight), N_PAD)
        child = tl.where(good, child, N_PAD)
        emitted = tl.where((i == n_path) & (child < N_PAD), entry(token, child, N_PAD), emitted)
        n_path += 1
    # the last token: first its block, then its column
    block, u_in_block = draw(weight, tl.load(uniforms_ptr), S_PAD)
    x = _load_rest(logits_ptr, child_logit_ptr, token, parent, node, block, V, N_PAD, BLOCK)
    e = tl.exp((x - tl.load(peak_ptr + node * S + block)) * inverse_temperature)
    column, _ = draw(e, u_in_block, BLOCK)
    emitted = tl.where(i == n_path - 1, block * BLOCK + column, emitted)
    store_sampled(path_ptr, n_path_ptr, emitted_ptr, path, n_path, emitted, good, n, N_PAD)
