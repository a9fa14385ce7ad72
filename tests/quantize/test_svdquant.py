"""The low-rank branch beside rounded weights."""

import pytest
import torch

from hspec_lab.quant.forms import LowRank, rounded
from hspec_lab.quantize.calibration import InputSums, output_error
from hspec_lab.quantize.svdquant import best_of_rank, svdquant
from hspec_lab.scheme import parse

R, C = 72, 128
GRIDS = ("w4a16-g128", "w4a16-g32", "w2a16-g64", "w4a16-g128-sym", "w8a16", "w4a8-g128", "w8a8")
GRIDS += ("w4a4", "nf4", "mxfp4", "fp8")


def correlated_rows(n, seed):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(C, C, generator=generator)).Q
    spread = torch.arange(1, C + 1).float() ** -0.75
    return (torch.randn(n, C, generator=generator) * spread) @ basis


def inputs_of(rows):
    sums = InputSums(len(rows))
    sums.add(rows)
    return sums.result()


def normal_weight(seed):
    return torch.randn(R, C, generator=torch.Generator().manual_seed(1000 + seed))


def error_of(weight, form, inputs):
    return output_error(weight, form.dequantized(), inputs.hessian)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(10))
def test_the_output_error_on_held_out_rows_is_below_round_to_nearests(seed, grid):
    weight, scheme, rows = normal_weight(seed), parse(grid), correlated_rows(900, seed)
    inputs, held_out = inputs_of(rows[:600]), inputs_of(rows[600:])
    form = svdquant(weight, inputs, scheme, rank=8, iters=2)
    nearest = error_of(weight, rounded(weight, scheme), held_out)
    assert error_of(weight, form, held_out) < 0.85 * nearest


@pytest.mark.parametrize("grid", ["w4a16-g128", "w8a8", "mxfp4"])
def test_without_inputs_the_weights_themselves_come_nearer(grid):
    weight, scheme = normal_weight(0), parse(grid)
    form = svdquant(weight, None, scheme, rank=8)
    lost = (weight - form.dequantized()).square().sum()
    assert lost < 0.9 * (weight - rounded(weight, scheme).dequantized()).square().sum()


@pytest.mark.parametrize("seed", range(5))
def test_inputs_make_the_branch_better_than_weights_alone(seed):
    weight, scheme, inputs = normal_weight(seed), parse("w4a16-g128"), None
    inputs = inputs_of(correlated_rows(600, seed))
    seen = error_of(weight, svdquant(weight, inputs, scheme, rank=8), inputs)
    unseen = error_of(weight, svdquant(weight, None, scheme, rank=8), inputs)
    assert seen < 0.8 * unseen


def test_outliers_go_into_the_branch_and_rounding_is_spared_them():
    """A loud row and a loud column, rank two: what is left has the range of the rest."""
    weight, scheme = normal_weight(0), parse("w4a16")
    loud = weight.clone()
    loud[3] *= 60
    loud[:, 7] *= 60
    lost = {
        name: (loud - form.dequantized()).square().sum()
        for name, form in (
            ("branch", svdquant(loud, None, scheme, rank=4)),
            ("nearest", rounded(loud, scheme)),
        )
    }
    assert lost["branch"] < 0.05 * lost["nearest"]


def test_weights_of_low_rank_are_left_to_the_branch():
    up, down = normal_weight(0)[:, :4], normal_weight(1)[:4]
    weight = up @ down
    form = svdquant(weight, None, parse("w2a16-g64"), rank=4)
    assert output_error(weight, form.dequantized(), torch.eye(C)) < 1e-5


def test_more_turns_and_more_rank_never_lose():
    weight, scheme = normal_weight(0), parse("w3a16-g64")
    inputs = inputs_of(correlated_rows(600, 0))
    by_turns = [
        error_of(weight, svdquant(weight, inputs, scheme, rank=8, iters=n), inputs)
        for n in (1, 2, 4)
    ]
    # the damped error decides, which the error proper follows closely
    assert by_turns[2] < by_turns[0] and by_turns[1] < 1.001 * by_turns[0]
    by_rank = [
        error_of(weight, svdquant(weight, inputs, scheme, rank=k), inputs) for k in (1, 8, 32)
    ]
    assert by_rank == sorted(by_rank, reverse=True)


def test_effective_bits_say_what_the_branch_costs():
    scheme = parse("w4a16-g128")
    form = svdquant(normal_weight(0), None, scheme, rank=8)
    assert isinstance(form, LowRank)
    assert (form.up.shape, form.down.shape) == ((R, 8), (8, C))
    assert form.up.dtype == form.down.dtype == torch.bfloat16
    assert form.base.effective_bits == 4.25
    assert form.effective_bits == pytest.approx(4.25 + 16 * 8 * (R + C) / (R * C))


def test_the_rounder_is_handed_what_the_branch_leaves():
    weight, scheme = normal_weight(0), parse("w4a16-g32")
    inputs, seen = inputs_of(correlated_rows(300, 0)), []

    def rounder(residual, given, asked):
        assert given is inputs and asked is scheme
        seen.append(residual)
        return rounded(residual, asked)

    own = svdquant(weight, inputs, scheme, rank=4, iters=2, rounder=rounder)
    assert len(seen) == 4
    # once with a branch of the weights, once without
    assert not torch.equal(seen[0], weight) and torch.equal(seen[2], weight)
    default = svdquant(weight, inputs, scheme, rank=4, iters=2)
    assert torch.equal(own.dequantized(), default.dequantized())


def test_channels_that_never_came_in_stay_finite():
    rows = correlated_rows(60, 0)  # fewer than channels: the Hessian is singular
    rows[:, 5] = 0
    weight, scheme = normal_weight(0), parse("w4a16-g32")
    for seen in (rows, torch.zeros(4, C)):
        form = svdquant(weight, inputs_of(seen), scheme, rank=4)
        lost = (weight - form.dequantized()).abs()
        assert torch.isfinite(lost).all() and lost[:, 5].max() < 1


def test_the_same_arguments_give_the_same_form():
    weight, scheme = normal_weight(0), parse("w4a16-g128")
    inputs = inputs_of(correlated_rows(300, 0))
    first = svdquant(weight, inputs, scheme, rank=4)
    torch.randn(3)
    again = svdquant(weight, inputs, scheme, rank=4)
    assert torch.equal(first.up, again.up) and torch.equal(first.down, again.down)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (200, 200), (5, 3)])
def test_best_of_rank_comes_near_the_singular_value_decomposition(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for rank in (1, 3):
        up, down = best_of_rank(matrix, rank)
        least = torch.linalg.svdvals(matrix)[rank:].square().sum()
        assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
        assert (matrix - up @ down).square().sum() <= 1.01 * least + 1e-4
        # singular values are shared, so that neither factor leaves bf16's range first
        assert up.square().sum(0) == pytest.approx(down.square().sum(1), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": R}, "72 x 128 weights has rank 1 to 71, not 72"),
        ({"rank": 0}, "has rank 1 to 71, not 0"),
        ({"iters": 0}, "iters must be at least 1, got 0"),
        ({"scheme": parse("w16a16")}, "w16a16 rounds no weight"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValueError, match=told) as refused:
        svdquant(
            **({"weight": normal_weight(0), "inputs": None, "scheme": parse("w8a8")} | options)
        )
    assert "\n" not in str(refused.value)


def test_rows_that_overflowed_are_refused():
    rows = correlated_rows(10, 0)
    rows[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        svdquant(normal_weight(0), inputs_of(rows), parse("w4a16-g128"))
