"""No kernel touches what lies beside its tensors, whatever the accepted input's sizes.

Inputs, results and what wrappers allocate for themselves are slices of larger buffers, with NaN or
the largest numbers on both sides: read, they would show in the result; written, they would have
changed.  The interpreter also tells every address, so that even a read without consequence is seen.
"""

import os
import random
from importlib import import_module

import pytest
import torch
from guards import Guards, copied, follow, same

from hspec_kernels.case import operations, rms_ratio, value_cases


@pytest.fixture
def guards(monkeypatch) -> Guards:
    """Guards that also surround what wrappers allocate and, interpreted, follow every address."""
    guards = Guards()
    monkeypatch.setattr(torch, "empty", guards.new)
    monkeypatch.setattr(
        torch, "empty_like", lambda x: guards.new(x.shape, dtype=x.dtype, device=x.device)
    )
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: guards.new(*args, **kwargs).zero_())
    # counters that are kept between calls were made without guards
    monkeypatch.setattr("hspec_kernels._splits._counters", {})
    if os.environ.get("TRITON_INTERPRET") == "1":
        follow(guards, monkeypatch)
    return guards


def rows(draw) -> int:
    return draw.choice((1, 2, 3, 5, 7, 16, 17, 31, 33, 61, 64, 65))


def weight_rows(draw) -> int:
    return draw.choice((1, 3, 61, 64, 67, 129))


def whole_groups(draw) -> tuple[int, int]:
    """C and a group size of 16-bit matmuls."""
    group = draw.choice((32, 64, 128))
    return group * draw.choice((1, 2, 3, 5)), group


def with_group(draw, bits=()) -> tuple:
    C, group = whole_groups(draw)
    return rows(draw), weight_rows(draw), C, *bits, group, draw.random() < 0.5


def drawn_tree_expand(draw) -> tuple:
    k, level = draw.choice((1, 2, 5, 7, 11, 32)), draw.randint(0, 4)
    return k, level, -(-(level + 1) * k // 64) + draw.randint(0, 1)


def drawn_tree_rerank(draw) -> tuple:
    bucket = draw.choice((1, 3, 17, 61, 67, 129))
    return draw.choice((1, 2, 3, 7)), draw.randint(1, 5), draw.randint(1, bucket), bucket


def drawn_attention(draw) -> tuple:
    T, K, kv_len = rows(draw), draw.choice((1, 2, 3)), draw.choice((0, 1, 31, 61, 200))
    H, D = K * draw.choice((1, 2, 3, 5)), draw.choice((16, 32))
    # often a cache without a row to spare
    capacity = kv_len + T + draw.choice((0, 1, 67))
    return T, H, K, D, capacity, kv_len, *(draw.random() < 0.5 for _ in range(2))


def drawn_commit(draw) -> tuple:
    P, K, D = draw.randint(1, 64), draw.choice((1, 3)), draw.choice((16, 40, 130))
    return draw.randint(1, 3), K, D, P, draw.randint(0, P), draw.randint(0, 9), draw.random() < 0.5


def drawn_rope(draw) -> tuple:
    T, K = draw.choice((1, 2, 5, 13)), draw.choice((1, 2, 3))
    H, D = K * draw.choice((1, 2, 3)), draw.choice((16, 64, 256))
    return T, H, K, D, draw.randint(0, 99), draw.random() < 0.5, draw.random() < 0.5


# what a case's `make` takes with `row_invariant`, besides drawn shapes
ROW_INVARIANT = {
    "fp8_matmul": [],
    "tree_attention": [(192, 1, 1, 16, 192, 0, True, False), (3, 2, 1, 16, 130, 125, True, True)],
    "w4a16_matmul": [],
    "wna16_matmul": [],
}
# what a case's `make` takes: some drawn, then limits and odd ends by hand
SHAPES = {
    "accept_drawn_tree": (
        lambda draw: (draw.choice((1, 3, 17)), draw.choice((2, 61, 1031)), draw.randint(1, 4), 1),
        [(256, 3, 100, 1), (2, 1025, 1, 2)],
    ),
    "accept_greedy_tree": (
        lambda draw: (draw.choice((1, 7, 65, 127, 300)), draw.randint(1, 9)),
        [(1024, 1, 1), (1024, 900, 2)],
    ),
    "accept_sample_tree": (
        lambda draw: (draw.choice((1, 3, 17, 61)), draw.choice((1, 61, 1031)), draw.randint(1, 9)),
        [(256, 3, 100), (2, 2049, 1)],
    ),
    "fp8_matmul": (
        lambda draw: (rows(draw), weight_rows(draw), draw.choice((1, 61, 128, 200)), False),
        [(3, 67, 131, True), (1, 64, 2100, False)],
    ),
    "head_topk": (
        lambda draw: (draw.choice((1, 2, 5)), draw.choice((1, 2, 61, 1024, 1031)), 1),
        [(1, 32, 32), (1, 2049, 31), (3, 67, 5)],
    ),
    "kv_commit": (drawn_commit, [(1, 1, 16, 1, 1, 0), (2, 1, 16, 64, 64, 3, True)]),
    "quantize_rows": (
        lambda draw: (rows(draw), draw.choice((1, 3, 61, 512, 513, 1000))),
        [(1, 32768), (2, 16385)],
    ),
    "rms_norm": (
        lambda draw: (
            rows(draw),
            draw.choice((1, 3, 61, 512, 1031)),
            draw.choice((None, "half", "float")),
            draw.random() < 0.5,
        ),
        [(1, 16384, None, False), (2, 8193, "float", True)],
    ),
    "rope_and_append": (drawn_rope, [(1, 1, 1, 16, 0, False, False), (3, 5, 1, 32, 7, True, True)]),
    "silu_mul": (
        lambda draw: (rows(draw), draw.choice((1, 61, 1024, 1025, 2731))),
        [(1, 4097)],
    ),
    "tree_attention": (
        drawn_attention,
        [(129, 2, 1, 16, 129, 0, True, False), (1024, 1, 1, 16, 1031, 7, False, False)],
    ),
    "tree_expand": (drawn_tree_expand, [(32, 63, 32), (1, 63, 1)]),
    "tree_rerank": (drawn_tree_rerank, [(32, 3, 256, 256), (1, 1, 256, 256)]),
    "w4a16_matmul": (with_group, [(1, 67, 2176, 128), (128, 3, 32, 32)]),
    "w4a8_matmul": (
        lambda draw: (rows(draw), weight_rows(draw), *draw.choice(((1, 1), (61, 61), (384, 128)))),
        [(3, 67, 2100, 2100), (65, 1, 256, 256)],
    ),
    "w8a8_matmul": (
        lambda draw: (rows(draw), weight_rows(draw), draw.choice((1, 61, 128, 300))),
        [(3, 67, 2101), (129, 1, 7)],
    ),
    "wna16_matmul": (
        lambda draw: with_group(draw, (draw.choice((8, 3, 2)),)),
        [(3, 67, 2101, 2, 2101), (1, 3, 1, 3, 1), (65, 1, 2176, 8, 64)],
    ),
}
N_DRAWN = 4


def inputs_of(operation: str):
    """(name, make) of every input an operation is tried on: drawn, or else its cases'."""
    if operation not in SHAPES:
        return [(case.name, case.make) for case in value_cases(operation)]
    one, by_hand = SHAPES[operation]
    draw = random.Random(operation)
    shapes = [one(draw) for _ in range(N_DRAWN)] + by_hand
    make = import_module(f"hspec_kernels.cases.{operation}").make
    found = [("-".join(map(str, shape)), make(*shape)) for shape in shapes]
    if operation in ROW_INVARIANT:
        shapes = [one(draw) for _ in range(N_DRAWN)] + ROW_INVARIANT[operation]
        options = {"row_invariant": True}
        found += [("-".join(map(str, (*s, *options))), make(*s, **options)) for s in shapes]
    return found


ALL = [(operation, *given) for operation in operations() for given in inputs_of(operation)]


@pytest.mark.parametrize(
    "operation, make",
    [(operation, make) for operation, _, make in ALL],
    ids=[f"{operation}-{name}" for operation, name, _ in ALL],
)
def test_nothing_outside_the_tensors_is_read_or_written(operation, make, device, generator, guards):
    case = value_cases(operation)[0]
    given = make(generator, device, torch.float16)
    copies = {name: copied(value) for name, value in given.items()}
    wanted = case.reference(**copies)
    inside = {name: guards.around(value) for name, value in given.items()}
    found = case.op(**inside)
    assert guards.untouched()
    for name, value in inside.items():  # only what the definition writes has changed
        assert same(value, given[name]) or not same(copies[name], given[name]), name
    found, wanted = (x if isinstance(x, tuple) else (x,) for x in (found, wanted))
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.is_floating_point():
            assert rms_ratio(ours, theirs) <= case.tolerance
        else:
            assert torch.equal(ours, theirs)
