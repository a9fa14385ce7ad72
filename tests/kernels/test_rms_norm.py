"""RMS norm: rows by hand, the sum with the residual, what must stay as it was."""

import pytest
import torch

from hspec_kernels.rms_norm import rms_norm, rms_norm_ref

BOTH = pytest.mark.parametrize("norm", [rms_norm_ref, rms_norm])
HALF = torch.float16


def half(*rows, device: str) -> torch.Tensor:
    return torch.tensor(rows, dtype=HALF, device=device)


@BOTH
def test_a_row_is_divided_by_its_root_mean_square(norm, device):
    x = half([1.0, 7.0], [-2.0, 14.0], [0.0, 0.0], device=device)  # rms 5, 10, 0
    y = norm(x, half(5.0, 10.0, device=device), 1e-9)
    assert y.tolist() == [[1, 14], [-1, 14], [0, 0]]


@BOTH
def test_eps_is_added_to_the_mean_square(norm, device):
    y = norm(half([1.0, 1.0, 1.0], device=device), torch.ones(3, device=device), 3.0)
    assert y.tolist() == [[0.5, 0.5, 0.5]]


@BOTH
@pytest.mark.parametrize("stream", [HALF, torch.float32], ids=str)
def test_the_residual_is_added_first_and_the_sum_returned(norm, stream, device):
    x, residual = half([3.0, 1.0], device=device), half([-2.0, 6.0], device=device).to(stream)
    total, y = norm(x, half(5.0, 5.0, device=device), 1e-9, residual=residual)
    assert total.tolist() == [[1, 7]] and total.dtype == stream
    assert y.tolist() == [[1, 7]] and y.dtype == HALF


@BOTH
def test_the_norm_is_that_of_the_sum_as_stored(norm, device):
    # 2048 + 1 is no fp16 number: both round to 2048, whose norm is 1
    x, weight = half([1.0], device=device), half(1.0, device=device)
    total, y = norm(x, weight, 1e-9, residual=half([2048.0], device=device))
    assert total.tolist() == [[2048]] and y.tolist() == [[1]]
    total, _ = norm(x, weight, 1e-9, residual=torch.full((1, 1), 2048.0, device=device))
    assert total.tolist() == [[2049]]  # fp32 keeps it


def test_adding_and_normalising_at_once_or_in_turn_gives_the_same_bits(device, generator):
    x, residual = (torch.randn(3, 300, generator=generator).to(HALF).to(device) for _ in range(2))
    weight = torch.randn(300, generator=generator).to(device)
    total, y = rms_norm(x, weight, 1e-5, residual=residual)
    assert torch.equal(total, x + residual) and torch.equal(y, rms_norm(total, weight, 1e-5))


def test_results_may_take_the_place_of_inputs(device, generator):
    x, residual = (torch.randn(3, 100, generator=generator).to(HALF).to(device) for _ in range(2))
    weight = torch.ones(100, dtype=HALF, device=device)
    wanted = rms_norm(x, weight, 1e-5, residual=residual)
    total, y = rms_norm(x, weight, 1e-5, residual=residual, total=residual, out=x)
    assert total.data_ptr() == residual.data_ptr() and y.data_ptr() == x.data_ptr()
    assert torch.equal(total, wanted[0]) and torch.equal(y, wanted[1])


def test_neighbours_of_every_tensor_are_left_alone(device, generator):
    # C = 5 in a tile of 8: what lies behind a row must not enter it
    inner = torch.randn(2, 5, generator=generator).to(HALF).to(device)
    x, residual, total, out = (
        torch.full((4, 5), torch.nan, dtype=HALF, device=device) for _ in "1234"
    )
    x[1:3], residual[1:3] = inner, inner
    weight = torch.full((10,), torch.nan, device=device)
    weight[:5] = 1
    given = {"residual": residual[1:3], "total": total[1:3], "out": out[1:3]}
    rms_norm(x[1:3], weight[:5], 1e-5, **given)
    for tensor, wanted in zip(
        (total, out), rms_norm_ref(inner, weight[:5], 1e-5, residual=inner), strict=True
    ):
        assert torch.equal(tensor[1:3], wanted) and tensor[[0, 3]].isnan().all()


X = torch.zeros(2, 8, dtype=HALF)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 8)}, "x must be float16 or bfloat16, got float32"),
        ({"x": torch.zeros(8, dtype=HALF)}, r"x must be \[any, any\], got \[8\]"),
        ({"x": torch.zeros(8, 2, dtype=HALF).T}, "x must be contiguous"),
        ({"x": torch.zeros(0, 8, dtype=HALF)}, "T must be 1..1073741824, got 0"),
        ({"x": torch.zeros(2, 0, dtype=HALF)}, "C must be 1..16384, got 0"),
        ({"x": torch.zeros(2, 16385, dtype=HALF)}, "C must be 1..16384, got 16385"),
        ({"weight": torch.zeros(7)}, r"weight must be \[8\], got \[7\]"),
        ({"weight": torch.zeros(8, dtype=torch.bfloat16)}, "weight must be float16 or float32"),
        ({"residual": torch.zeros(1, 8)}, r"residual must be \[2, 8\], got \[1, 8\]"),
        ({"residual": X.bfloat16()}, "residual must be float16 or float32"),
        ({"residual": X, "total": X.float()}, "total must be float16, got float32"),
        ({"total": X}, "total is written only with a residual"),
        ({"out": X.float()}, "out must be float16, got float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, device):
    given = {"x": X, "weight": torch.ones(8), "eps": 1e-5} | change
    given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(ValueError, match=message):
        rms_norm(**given)
