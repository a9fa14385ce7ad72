"""End a round: append its tokens to the text, move the counters on, and note what the host reads.

    text[n_text + i] = emitted[i]      i < n_emitted
    n_text  += n_emitted
    kv_len   = n_text - 1              the last emitted token has no cache row yet
    agreed   = n_text before - 1 + how far the path runs along nodes 0, 1, 2, ...
    report   = [n_emitted, bad, emitted...]

Between two rounds of a device-held decoder a dozen numbers change, each a launch of its own if left
to tensor operations; here one small program does it.  `agreed` says how much of the text is as the
levels below have drafted it: a draft that is a path lies in the text itself, so everything stored
agrees; in a tree only what follows its first nodes does.

    reference   append_verdict_ref   plain torch, any device; the definition
    kernel      append_verdict       Triton, CUDA (or CPU under TRITON_INTERPRET=1)
    cost        a few hundred bytes; latency-bound: one launch, one program
    error       none, integers
    rows        one sequence a call
    source      none
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hspec_kernels._check import check_range, check_tensor

MAX_EMITTED = 1024


def append_verdict_ref(
    emitted: Tensor,
    n_emitted: Tensor,
    text: Tensor,
    n_text: Tensor,
    kv_len: Tensor,
    agreed: Tensor,
    bad: Tensor,
    report: Tensor,
    *,
    path: Tensor | None = None,
) -> None:
    """Same contract as `append_verdict`, written to be read rather than to be fast."""
    n, start = min(int(n_emitted), len(emitted)), int(n_text)
    text[start : start + n] = emitted[:n]
    n_text += n
    kv_len.copy_(n_text - 1)
    agreed.copy_(kv_len)
    if path is not None:
        along = path[:n] == torch.arange(n, device=path.device)
        agreed.fill_(start - 1 + int(along.int().cumprod(0).sum()))
    report[0], report[1] = n, bad[0]
    report[2 : 2 + len(emitted)] = emitted


def append_verdict(
    emitted: Tensor,
    n_emitted: Tensor,
    text: Tensor,
    n_text: Tensor,
    kv_len: Tensor,
    agreed: Tensor,
    bad: Tensor,
    report: Tensor,
    *,
    path: Tensor | None = None,
    trusted: bool = False,
) -> None:
    """Write down what a round has emitted, all in place.

    Args:
        emitted: int32 [P], tokens, n_emitted of which count; P is 1..1024.
        n_emitted: int32 [1], 0..P.
        text: int32 [capacity], written at n_text..; nothing is written beyond its end.
        n_text: int32 [1], tokens of the text, advanced.
        kv_len: int32 [1], becomes n_text - 1.
        agreed: int32 [1], becomes the number of tokens that levels below may keep.
        bad: int32 [1], noted in the report.
        report: int32 [2 + P], written whole.
        path: int32 [P], accepted nodes of a tree, increasing; None for a path that lies in the
            text, of which all that is stored then agrees.
        trusted: contents are known to be right: nothing is read back; needed inside a CUDA graph.

    Raises:
        ValueError: a dtype, shape, device or stride that does not fit the above; unless `trusted`,
            a text without room.
    """
    check_tensor("emitted", emitted, torch.int32, (None,))
    P = len(emitted)
    check_range("P", P, 1, MAX_EMITTED)
    check_tensor("text", text, torch.int32, (None,), like=emitted)
    counters = {"n_emitted": n_emitted, "n_text": n_text, "kv_len": kv_len}
    for name, counter in (counters | {"agreed": agreed, "bad": bad}).items():
        check_tensor(name, counter, torch.int32, (1,), like=emitted)
    check_tensor("report", report, torch.int32, (2 + P,), like=emitted)
    if path is not None:
        check_tensor("path", path, torch.int32, (P,), like=emitted)
    if not trusted:
        n = int(n_emitted)
        check_range("n_emitted", n, 0, P)
        check_range("n_text", int(n_text), 0, len(text) - n)
    _append_verdict_kernel[(1,)](
        emitted, n_emitted, text, n_text, kv_len, agreed, bad, report,
        emitted if path is None else path, P, len(text),
        HAS_PATH=path is not None, BLOCK=triton.next_power_of_2(P), num_warps=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["P", "capacity"])
def _append_verdict_kernel(
    emitted_ptr,  # [P] int32
    n_emitted_ptr,  # [1] int32
    text_ptr,  # [capacity] int32
    n_text_ptr,  # [1] int32
    kv_len_ptr,  # [1] int32
    agreed_ptr,  # [1] int32
    bad_ptr,  # [1] int32
    report_ptr,  # [2 + P] int32
    path_ptr,  # [P] int32; not read without HAS_PATH
    P,
    capacity,
    HAS_PATH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    n_emitted = tl.maximum(tl.minimum(tl.load(n_emitted_ptr), P), 0)
    n_text = tl.load(n_text_ptr)
    emitted = tl.load(emitted_ptr + i, mask=i < P, other=0)
    tl.store(text_ptr + n_text + i, emitted, mask=(i < n_emitted) & (n_text + i < capacity))
    agreed = n_text + n_emitted - 1
    if HAS_PATH:
        node = tl.load(path_ptr + i, mask=i < n_emitted, other=-1)
        # a path increases, so once it has left the first nodes it never meets them again
        agreed = n_text - 1 + tl.sum((node == i).to(tl.int32), axis=0)
    tl.store(n_text_ptr, n_text + n_emitted)
    tl.store(kv_len_ptr, n_text + n_emitted - 1)
    tl.store(agreed_ptr, agreed)
    tl.store(report_ptr, n_emitted)
    tl.store(report_ptr + 1, tl.load(bad_ptr))
    tl.store(report_ptr + 2 + i, emitted, mask=i < P)
