"""What the acceptances that sample share: their checks, draws by a number, trees and verdicts."""

import torch
import triton
import triton.language as tl

from hspec_kernels._check import check_parents, check_range, check_tensor, check_uniforms
from hspec_kernels.accept_greedy_tree import entry, first_true
from hspec_kernels.head_topk import FLOATS, MAX_V

MAX_NODES = 256  # each program holds the whole tree: 1024 nodes spilled (Triton 3.6, sm_90)


def check_sampling(logits, tokens, parents, uniforms, temperature, trusted) -> tuple[int, int]:
    """n and V, or ValueError."""
    check_tensor("logits", logits, FLOATS, (None, None))
    n, V = logits.shape
    check_range("n", n, 1, MAX_NODES)
    check_range("V", V, 1, MAX_V)
    check_tensor("tokens", tokens, torch.int32, (n,), like=logits)
    check_tensor("parents", parents, torch.int32, (n,), like=logits)
    check_tensor("uniforms", uniforms, torch.float32, (n,), like=logits)
    check_range("temperature", temperature, 1e-6, 1e6)
    if not trusted:
        check_parents(parents)
        check_uniforms(uniforms)
    return n, V


# finite, so that an infinity can be subtracted from, and divided by the lowest temperature
HUGE = tl.constexpr(1e30)


@triton.jit
def draw(weight, u, N: tl.constexpr):
    """An entry of `weight` [N] drawn by u in [0, 1), never one of 0; how far into it u reached."""
    i = tl.arange(0, N)
    aim = u * tl.sum(weight, axis=0)
    # the running sum may fall short of the aim, or rise at a weight of 0, by rounding
    drawn = first_true((weight > 0) & (tl.cumsum(weight) > aim), N)
    drawn = tl.minimum(drawn, tl.max(tl.where(weight > 0, i, 0), axis=0))
    into = aim - tl.sum(tl.where(i < drawn, weight, 0.0), axis=0)
    return drawn, into / tl.maximum(entry(weight, drawn, N), 1e-30)


@triton.jit
def load_tree(tokens_ptr, parents_ptr, n, V, N_PAD: tl.constexpr):
    """Tokens and parents [N_PAD], -1 for the parent of what can never be accepted."""
    i = tl.arange(0, N_PAD)
    token = tl.load(tokens_ptr + i, mask=i < n, other=0)
    parent = tl.load(parents_ptr + i, mask=i < n, other=-1)
    return token, tl.where((parent < i) & (token >= 0) & (token < V), parent, -1)


@triton.jit
def store_sampled(
    path_ptr, n_path_ptr, emitted_ptr, path, n_path, emitted, good, n, N_PAD: tl.constexpr
):
    """A verdict, empty unless every row on its path has a distribution."""
    i = tl.arange(0, N_PAD)
    tl.store(path_ptr + i, tl.where(good, path, -1), mask=i < n)
    tl.store(n_path_ptr, tl.where(good, n_path, 0))
    tl.store(emitted_ptr + i, tl.where(good, emitted, -1), mask=i < n)
