"""A row's bits do not depend on the rows beside it, and many rows are taken as well as few."""

import os
from importlib import import_module

import numpy as np
import pytest
import torch

from hspec_kernels.case import value_cases
from hspec_kernels.cases.rope_and_append import make as rope
from hspec_kernels.cases.tree_attention import bitsets, random_tree
from hspec_kernels.fp8_matmul import knows_e4m3
from hspec_kernels.head_topk import Config
from hspec_kernels.rope_and_append import rope_and_append
from hspec_kernels.tree_attention import MAX_ROWS, choose, tree_attention
from hspec_lab.model.transformer import PREFILL_CHUNK

MANY = 1030  # more than one launch of a product takes
ROWS = (2, 3, 5, 8, 16, 17, 33)
# by operation and kind: what a case's `make` takes behind the number of rows, and the inputs that
# have one entry a row.  64 weight rows: with fewer, sums in another order often round alike
KINDS = {
    ("w4a16_matmul", "g128"): ((64, 256, 128), {"row_invariant": True}, ("x",)),
    ("w4a16_matmul", "splits"): ((64, 2048, 128), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "8b"): ((64, 192, 8, 64), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "3b"): ((64, 320, 3, 64), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "2b"): ((64, 192, 2, 64), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "splits"): ((64, 2048, 2, 128), {"row_invariant": True}, ("x",)),
    ("fp8_matmul", "e4m3"): ((64, 200, True), {"row_invariant": True}, ("x", "x_scale")),
    ("fp8_matmul", "half"): ((64, 200, False), {"row_invariant": True}, ("x",)),
    ("fp8_matmul", "splits"): ((64, 2048, False), {"row_invariant": True}, ("x",)),
    ("w8a8_matmul", "one"): ((64, 200), {}, ("xq", "x_scale")),
    ("w8a8_matmul", "splits"): ((64, 2100), {}, ("xq", "x_scale")),
    ("w4a8_matmul", "one"): ((64, 256, 128), {}, ("xq", "x_scale")),
    ("w4a8_matmul", "splits"): ((64, 2100, 2100), {}, ("xq", "x_scale")),
    ("quantize_rows", ""): ((61,), {}, ("x",)),
    ("rms_norm", "plain"): ((61, None, False), {}, ("x",)),
    ("rms_norm", "residual"): ((61, "float", True), {}, ("x", "residual")),
    ("silu_mul", ""): ((61,), {}, ("gate_up",)),
    ("head_topk", ""): ((61, 2), {"config": Config(64, 2, 4)}, ("logits",)),
}


def each(kinds):
    names = ["-".join(filter(None, kind)) for kind in kinds]
    return pytest.mark.parametrize("operation, kind", kinds, ids=names)


@pytest.fixture(autouse=True)
def columns_alike(monkeypatch):
    """Interpreted products that, as tensor cores, compute each column of a tile in one way.

    The interpreter's own call a BLAS, which treats some columns differently from others.
    """

    def matmul(a, b, dtype):
        total = np.zeros((a.shape[0], b.shape[1]), dtype)
        for k in range(a.shape[1]):
            total += a[:, k : k + 1].astype(dtype) * b[k : k + 1].astype(dtype)
        return total

    if os.environ.get("TRITON_INTERPRET") == "1":
        monkeypatch.setattr("triton.runtime.interpreter.np.matmul", matmul)


@pytest.fixture
def results(device, generator):
    """(operation, kind, T) -> what it makes of some of T random rows."""

    def prepared(operation: str, kind: str, T: int):
        sizes, options, by_row = KINDS[operation, kind]
        if kind == "e4m3" and not knows_e4m3(torch.device(device)):
            pytest.skip("e4m3 rows need compute capability 8.9")
        make = import_module(f"hspec_kernels.cases.{operation}").make
        given = make(T, *sizes, **options)(generator, device, torch.float16)
        op = value_cases(operation)[0].op

        def of(rows: slice) -> tuple[torch.Tensor, ...]:
            found = op(**given | {name: given[name][rows] for name in by_row})
            return found if isinstance(found, tuple) else (found,)

        return of

    return prepared


def assert_same(found, wanted, rows: slice) -> None:
    for one, whole in zip(found, wanted, strict=True):
        assert torch.equal(one, whole[rows])


def assert_alone_as_among_others(of) -> None:
    """AssertionError unless 16 rows alone, and the last n, have the bits they have among 64."""
    together = of(slice(0, 64))
    for t in range(3, 64, 4):
        assert_same(of(slice(t, t + 1)), together, slice(t, t + 1))
    for n in ROWS:
        assert_same(of(slice(64 - n, 64)), together, slice(64 - n, 64))


@each(KINDS)
def test_a_row_has_the_same_bits_among_any_number_of_rows(operation, kind, results):
    assert_alone_as_among_others(results(operation, kind, 64))


@each([kind for kind in KINDS if kind[0] != "head_topk"])
def test_more_rows_than_a_launch_takes_are_computed_as_apart(operation, kind, results):
    of = results(operation, kind, MANY)
    together = of(slice(0, MANY))
    for rows in (slice(0, 1), slice(1020, 1027), slice(1024, MANY)):
        assert_same(of(rows), together, rows)


@pytest.fixture(params=[False, True], ids=["half", "int8"])
def appended(request, device, generator):
    """What `rope_and_append` makes of some of many rows: queries, cache rows and their scales."""
    make = rope(PREFILL_CHUNK + 9, 1, 1, 16, 5, norm=True, int8=request.param)
    given = make(generator, device, torch.float16)

    def of(rows: slice) -> tuple[torch.Tensor, ...]:
        cache = {name: given[name].clone() for name in ("kv", "kv_scale") if name in given}
        some = {name: given[name][rows] for name in ("qkv", "depths")}
        q = rope_and_append(**given | cache | some)
        return q, *(written[5 : 5 + len(q)] for written in cache.values())

    return of


def test_a_row_is_rotated_and_stored_alike_among_any_number_of_rows(appended):
    assert_alone_as_among_others(appended)


def test_more_rows_than_a_prompts_part_are_rotated_as_apart(appended):
    end = PREFILL_CHUNK + 9
    together = appended(slice(0, end))
    for rows in (slice(0, 1), slice(PREFILL_CHUNK - 3, end)):
        assert_same(appended(rows), together, rows)


def cached(device, generator, T: int, kv_len: int):
    """Queries of T rows, and a cache that holds their keys and values behind others."""
    q = torch.randn(T, 2, 16, generator=generator).half().to(device)
    kv = torch.randn(kv_len + T, 2, 16, generator=generator).half().to(device)
    return q, kv, torch.tensor([kv_len], dtype=torch.int32, device=device)


def test_a_row_attends_alike_among_any_number_of_rows(device, generator):
    q, kv, kv_len = cached(device, generator, 64, 29)

    def of(rows: slice):
        return (tree_attention(q[rows], kv, kv_len + rows.start, row_invariant=True),)

    assert_alone_as_among_others(of)


def test_row_invariant_splits_do_not_follow_the_number_of_rows():
    for H, K, D, capacity in ((32, 8, 128, 8192), (64, 8, 128, 700), (8, 4, 256, 32768)):
        assert len({choose(T, H, K, D, capacity, row_invariant=True) for T in range(1, 129)}) == 1
        assert len({choose(T, H, K, D, capacity) for T in range(1, 129)}) > 1


def test_a_node_attends_alike_among_many_and_after_its_path_was_committed(device, generator):
    q, kv, kv_len = cached(device, generator, 65, 29)
    seen = bitsets(random_tree(generator, 65)).to(device)
    y = tree_attention(q, kv, kv_len, seen, row_invariant=True)
    for node in (0, 1, 16, 33, 63, 64):
        path = [i for i in range(65) if int(seen[node, i // 64]) >> (i % 64) & 1]
        committed = kv.clone()
        committed[29 : 29 + len(path)] = kv[[29 + i for i in path]]
        at = kv_len + len(path) - 1
        alone = tree_attention(q[node : node + 1], committed, at, row_invariant=True)
        assert torch.equal(alone[0], y[node])


def test_a_prompt_is_read_in_parts_that_attention_takes():
    assert PREFILL_CHUNK <= MAX_ROWS
