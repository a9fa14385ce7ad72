"""A sequence and, in the rows that are left, second choices: the tree of a narrow draft.

    nodes 0..m          the pending token and the m tokens drafted behind it, a path
    nodes m+1..N-1      for the drafted tokens with the smallest margins: the rival of token i,
                        a leaf beside it (its parent is node i)

A verifying model's cost grows in steps of its kernels' tiles, so a sequence of seven costs what a
tree of sixteen does.  The rows between are given to what the drafting model would have said second
where it was least sure; where the verifying model disagrees, it often agrees with that.

    reference   narrow_tree_ref   plain torch, any device; the definition
    kernel      narrow_tree       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        a few hundred bytes; latency-bound: one launch, one program, N*N comparisons
    error       none, integers; a NaN margin counts as the largest
    rows        one tree a call
    source      none
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_range, check_tensor
from hspec_kernels.tree_expand import check_fields
from hspec_kernels.tree_rerank import DraftTree

MAX_BUCKET = 64  # one word of a bitset


def narrow_tree_ref(
    text: Tensor,
    rivals: Tensor,
    margins: Tensor,
    n_text: Tensor,
    n_drafted: Tensor,
    tree_size: int,
    *,
    bucket: int,
) -> DraftTree:
    """Same contract as `narrow_tree`, written to be read rather than to be fast."""
    start = int(n_text)
    m = max(0, min(int(n_drafted) - start, bucket - 1))
    # comparing first whether it is NaN puts those last
    keys = [(value != value, value) for value in margins[start : start + m].tolist()]
    spare = max(0, min(tree_size - m - 1, m))
    least = sorted(range(m), key=lambda i: keys[i])[:spare]
    tokens = text[start - 1 : start + m].tolist() + [int(rivals[start + i]) for i in least]
    parents = [*range(-1, m), *least]
    depths, rows = [], []
    for node in range(bucket):
        parent = parents[node] if node < len(parents) else -1
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
        rows.append((rows[parent] if parent >= 0 else 0) | 1 << node)
    pad = bucket - len(tokens)
    new = partial(torch.tensor, dtype=torch.int32, device=text.device)
    words = b"".join(row.to_bytes(8, "little") for row in rows)
    ancestors = torch.frombuffer(bytearray(words), dtype=torch.int64).view(bucket, 1)
    parents = new(parents + [-1] * pad)
    return DraftTree(new(tokens + [0] * pad), parents, new(depths), ancestors.to(text.device))


def narrow_tree(
    text: Tensor,
    rivals: Tensor,
    margins: Tensor,
    n_text: Tensor,
    n_drafted: Tensor,
    tree_size: int,
    *,
    bucket: int,
    out: DraftTree | None = None,
) -> DraftTree:
    """Lay a draft and its rivals out as a tree, padded to a bucket.

    Args:
        text: int32 [capacity], the text and behind it the draft.
        rivals: int32 [capacity], the second choice at each place of the draft.
        margins: fp32 [capacity], by how much the first was preferred there.
        n_text: int32 [1], tokens of the text, at least 1; the last one is pending.
        n_drafted: int32 [1], tokens of text and draft; with more than fit, the first are taken.
        tree_size: nodes to fill up to, the root included, 1..bucket.
        bucket: nodes of the padded tree, 1..64.
        out: written instead of new tensors.

    Returns:
        The tree: the path first, then leaves by margin ascending, then place ascending.

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above.
    """
    check_tensor("text", text, torch.int32, (None,))
    capacity = len(text)
    check_tensor("rivals", rivals, torch.int32, (capacity,), like=text)
    check_tensor("margins", margins, torch.float32, (capacity,), like=text)
    for name, counter in {"n_text": n_text, "n_drafted": n_drafted}.items():
        check_tensor(name, counter, torch.int32, (1,), like=text)
    check_range("bucket", bucket, 1, MAX_BUCKET)
    check_range("tree_size", tree_size, 1, bucket)
    if out is None:
        new = partial(torch.empty, dtype=torch.int32, device=text.device)
        out = DraftTree(new(bucket), new(bucket), new(bucket), new(bucket, 1, dtype=torch.int64))
    check_fields("out", out, bucket, text, ancestors=(bucket, 1))
    _narrow_tree_kernel[(1,)](
        text, rivals, margins, n_text, n_drafted, *out, capacity, tree_size, bucket,
        BLOCK=triton.next_power_of_2(bucket), num_warps=1,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["capacity", "tree_size", "bucket"])
def _narrow_tree_kernel(
    text_ptr,  # [capacity] int32
    rivals_ptr,  # [capacity] int32
    margins_ptr,  # [capacity] fp32
    n_text_ptr,  # [1] int32
    n_drafted_ptr,  # [1] int32
    tokens_ptr,  # [bucket] int32
    parents_ptr,  # [bucket] int32
    depths_ptr,  # [bucket] int32
    ancestors_ptr,  # [bucket, 1] int64
    capacity,
    tree_size,
    bucket,
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    n_text = tl.minimum(tl.maximum(tl.load(n_text_ptr), 1), capacity)
    m = tl.minimum(tl.load(n_drafted_ptr), capacity) - n_text
    m = tl.maximum(tl.minimum(m, bucket - 1), 0)
    n_leaves = tl.maximum(tl.minimum(tree_size - m - 1, m), 0)

    # the path, and padding behind everything, which sees only itself
    on_path = i <= m
    one = tl.full((BLOCK,), 1, tl.int64)
    own = one << i.to(tl.int64)
    token = tl.load(text_ptr + n_text - 1 + i, mask=on_path, other=0)
    free = (i < bucket) & (on_path | (i > m + n_leaves))
    tl.store(tokens_ptr + i, token, mask=free)
    tl.store(parents_ptr + i, tl.where(on_path, i - 1, -1), mask=free)
    tl.store(depths_ptr + i, tl.where(on_path, i, 0), mask=free)
    # all bits up to its own; a shift by 64 would be undefined
    tl.store(ancestors_ptr + i, tl.where(on_path, own | (own - 1), own), mask=free)

    # lane i is token i of the draft; as many are less sure than it as its rank says
    drafted = i < m
    margin = tl.load(margins_ptr + n_text + i, mask=drafted, other=float("inf"))
    margin = tl.where(margin == margin, margin, float("inf"))
    j = tl.arange(0, BLOCK)
    other = tl.load(margins_ptr + n_text + j, mask=j < m, other=float("inf"))
    other = tl.where(other == other, other, float("inf"))
    before = (other[None, :] < margin[:, None]) | (
        (other[None, :] == margin[:, None]) & (j[None, :] < i[:, None])
    )
    rank = tl.sum((before & (j < m)[None, :]).to(tl.int32), axis=1)
    chosen = drafted & (rank < n_leaves)
    node = m + 1 + rank
    rival = tl.load(rivals_ptr + n_text + i, mask=chosen, other=0)
    tl.store(tokens_ptr + node, rival, mask=chosen)
    tl.store(parents_ptr + node, i, mask=chosen)
    tl.store(depths_ptr + node, i + 1, mask=chosen)
    tl.store(ancestors_ptr + node, own | (own - 1) | (one << node.to(tl.int64)), mask=chosen)
