import pytest
import torch

from hspec_lab.quant.forms import rounded
from hspec_lab.quantize.hqq import _shrunk, hqq
from hspec_lab.scheme import parse

P = 0.7


def heavy_tailed(R, C, seed):
    """Student's t with 4 degrees of freedom, of the size that weights have."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(R, C, generator=generator)
    return 0.02 * normal / torch.randn(4, R, C, generator=generator).square().mean(0).sqrt()


def loss(weight, form, p=P):
    """Mean |error|**p of each group, [R, C/G]."""
    errors = (weight - form.dequantized()).abs().pow(p)
    return errors.view(*form.scale.shape, -1).mean(-1)


@pytest.mark.parametrize("name", ["w4a16-g128", "w3a16-g64", "w2a16-g32", "w4a16", "w8a16-g32-zp"])
def test_its_own_objective_is_below_rounding_to_nearest_in_no_group_above(name):
    scheme = parse(name)
    for seed in range(10):
        weight = heavy_tailed(16, 256, seed)
        ours, nearest = (
            loss(weight, f) for f in (hqq(weight, None, scheme), rounded(weight, scheme))
        )
        assert ours.mean() < nearest.mean(), seed
        assert (ours <= nearest).all(), seed


@pytest.mark.parametrize("name", ["w4a16-g128", "w3a16-g64", "w2a16-g32"])
def test_gains_half_of_what_trying_every_zero_would(name):
    weight, scheme = heavy_tailed(16, 256, 0), parse(name)
    nearest = rounded(weight, scheme)
    groups, grid = weight.view(*nearest.scale.shape, -1), nearest.grid
    least = loss(weight, nearest)
    for steps in torch.linspace(-4, 4, 801):
        zero = (nearest.zero + steps * nearest.scale).bfloat16()
        expanded = grid.expand(grid.round(groups, nearest.scale, zero), nearest.scale, zero)
        least = torch.minimum(least, (groups - expanded).abs().pow(P).mean(-1))
    found = loss(weight, hqq(weight, None, scheme)).mean()
    before = loss(weight, nearest).mean()
    assert before - found > (before - least.mean()) / 2


def test_only_zeros_move():
    weight, scheme = heavy_tailed(16, 256, 0), parse("w4a16-g64")
    form, nearest = hqq(weight, None, scheme), rounded(weight, scheme)
    assert torch.equal(form.scale, nearest.scale)
    assert not torch.equal(form.zero, nearest.zero)
    groups = weight.view(16, -1, 64)
    codes = form.grid.round(groups, form.scale, form.zero).view(16, 256)
    assert torch.equal(form.codes(), codes)


@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3], ids=str)
@pytest.mark.parametrize("p", [0.3, 1.0], ids=str)
def test_no_option_makes_a_group_worse(p, beta):
    weight, scheme = heavy_tailed(16, 256, 0), parse("w3a16-g32")
    form = hqq(weight, None, scheme, p=p, beta=beta, kappa=1.5)
    assert (loss(weight, form, p) <= loss(weight, rounded(weight, scheme), p)).all()


def test_smaller_weights_have_the_same_codes():
    """Errors are judged in steps; a power of two leaves no other difference."""
    weight, scheme = heavy_tailed(8, 128, 0), parse("w4a16-g32")
    form, small = hqq(weight, None, scheme), hqq(weight * 2**-8, None, scheme)
    assert torch.equal(form.codes(), small.codes())


def test_outliers_are_what_exceeds_the_threshold():
    """By hand: p = 1 takes off 1/beta; at p = 1/2 an error of 4 loses 4**(-1/2) / beta."""
    error = torch.tensor([-3.0, -0.25, 0.0, 0.5, 2.0])
    assert _shrunk(error, 1.0, 2.0).tolist() == [-2.5, 0.0, 0.0, 0.0, 1.5]
    assert _shrunk(torch.tensor([-4.0, 4.0]), 0.5, 2.0).tolist() == [-3.75, 3.75]


def test_equal_weights_are_all_in_their_zero():
    weight = torch.full((2, 64), 0.75)
    assert torch.equal(hqq(weight, None, parse("w4a16-g32")).dequantized(), weight)


@pytest.mark.parametrize("name", ["w4a16-g128-sym", "w8a8", "w4a8-g128", "nf4", "mxfp4", "fp8"])
def test_refuses_weights_without_a_zero_to_move(name):
    with pytest.raises(ValueError, match="take integers with zeros, such as w4a16-g128"):
        hqq(heavy_tailed(2, 128, 0), None, parse(name))


def test_refuses_a_power_above_one_and_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="p is above 0 and at most 1, not 2"):
        hqq(heavy_tailed(2, 128, 0), None, parse("w4a16"), p=2)
    with pytest.raises(ValueError, match="groups of 32 do not divide 48"):
        hqq(heavy_tailed(2, 48, 0), None, parse("w4a16-g32"))
