"""A row's bits do not depend on the rows beside it, and many rows are taken as well as few."""

from importlib import import_module

import pytest
import torch

from hspec_kernels.case import value_cases
from hspec_kernels.fp8_matmul import knows_e4m3

MANY = 1030  # more than a launch of those that go in parts
ROWS = (1, 2, 3, 5, 8, 16, 17, 33, 64)
# by operation and kind: what a case's `make` takes behind the number of rows, and the inputs that
# have one entry a row; two of a matmul's shapes: C in one piece, and in splits
KINDS = {
    ("w4a16_matmul", "g128"): ((3, 256, 128), {"row_invariant": True}, ("x",)),
    ("w4a16_matmul", "splits"): ((3, 2048, 128), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "8b"): ((3, 192, 8, 64), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "3b"): ((3, 320, 3, 64), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "2b"): ((3, 192, 2, 64), {"row_invariant": True}, ("x",)),
    ("wna16_matmul", "splits"): ((3, 2048, 2, 128), {"row_invariant": True}, ("x",)),
    ("fp8_matmul", "e4m3"): ((3, 200, True), {"row_invariant": True}, ("x", "x_scale")),
    ("fp8_matmul", "half"): ((3, 200, False), {"row_invariant": True}, ("x",)),
    ("fp8_matmul", "splits"): ((3, 2048, False), {"row_invariant": True}, ("x",)),
    ("w8a8_matmul", "one"): ((3, 200), {}, ("xq", "x_scale")),
    ("w8a8_matmul", "splits"): ((3, 2100), {}, ("xq", "x_scale")),
    ("w4a8_matmul", "one"): ((3, 256, 128), {}, ("xq", "x_scale")),
    ("w4a8_matmul", "splits"): ((3, 2100, 2100), {}, ("xq", "x_scale")),
    ("quantize_rows", ""): ((61,), {}, ("x",)),
    ("rms_norm", "plain"): ((61, None, False), {}, ("x",)),
    ("rms_norm", "residual"): ((61, "float", True), {}, ("x", "residual")),
    ("silu_mul", ""): ((61,), {}, ("gate_up",)),
    ("head_topk", ""): ((61, 5), {}, ("logits",)),
}
EVERY = pytest.mark.parametrize(
    "operation, kind", KINDS, ids=["-".join(filter(None, key)) for key in KINDS]
)


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


@EVERY
def test_a_row_has_the_same_bits_among_any_number_of_rows(operation, kind, results):
    of = results(operation, kind, ROWS[-1])
    alone = [of(slice(t, t + 1)) for t in range(ROWS[-1])]
    alone = tuple(torch.cat(parts) for parts in zip(*alone, strict=True))
    for n in ROWS[1:]:
        for rows in (slice(0, n), slice(ROWS[-1] - n, ROWS[-1])):
            assert_same(of(rows), alone, rows)


@EVERY
def test_more_rows_than_a_launch_takes_are_computed_as_apart(operation, kind, results):
    of = results(operation, kind, MANY)
    together = of(slice(0, MANY))
    for rows in (slice(0, 1), slice(1020, 1027), slice(1024, MANY)):
        assert_same(of(rows), together, rows)
