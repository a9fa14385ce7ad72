import pytest
import torch

from hspec_lab.quant.forms import rounded
from hspec_lab.quantize.finequant import finequant
from hspec_lab.scheme import parse

SEEDS = range(10)


def normal(R, C, seed):
    return torch.randn(R, C, generator=torch.Generator().manual_seed(seed))


def blocks(R, C, width, seed):
    """Normal weights, every block of `width` inputs of each row at a magnitude of its own."""
    magnitude = (2 * normal(R, C // width, 100 + seed)).exp()
    return normal(R, C, seed) * magnitude.repeat_interleave(width, dim=1)


def chosen(weight, name, **options):
    return finequant(weight, None, parse(name), **options).scheme.group


def lost(weight, form):
    return (weight - form.dequantized()).square().mean()


@pytest.mark.parametrize("name", ["w4a16", "w3a16-sym", "w4a8"])
@pytest.mark.parametrize("shape", [(16, 128), (16, 384), (8, 4096)], ids=str)
def test_independent_normal_weights_stay_in_whole_rows(shape, name):
    assert [chosen(normal(*shape, seed), name) for seed in SEEDS] == [None] * 10


@pytest.mark.parametrize("name", ["w4a16", "w3a16-sym", "w4a8"])
@pytest.mark.parametrize("width", [128, 64, 32])
def test_blocks_of_unlike_ranges_get_groups_of_their_width(width, name):
    assert [chosen(blocks(16, 1024, width, seed), name) for seed in SEEDS] == [width] * 10


@pytest.mark.parametrize("group", [128, 64, 32])
def test_groups_are_no_finer_than_the_scheme_allows(group):
    weight = blocks(16, 1024, 32, 0)
    assert chosen(weight, f"w4a16-g{group}") == group


def test_groups_that_do_not_divide_the_row_are_passed_over():
    """192 inputs: 64 and 32 divide them; 96: 32 does; 80: none does."""
    assert chosen(blocks(16, 192, 64, 0), "w4a16") == 64
    assert chosen(blocks(16, 96, 32, 0), "w4a16") == 32
    assert chosen(blocks(16, 80, 16, 0), "w4a16") is None


def test_stops_at_the_first_step_that_brings_nothing():
    """One loud block of 32 in every 128: only the next but one step would help."""
    weight = normal(16, 1024, 0)
    weight.view(16, -1, 4, 32)[:, :, 0] *= 100
    assert chosen(weight, "w4a16") is None
    assert chosen(weight, "w4a16", ratio=2.0) == 32


@pytest.mark.parametrize("name", ["w4a16", "w3a16-sym", "w2a16", "w4a8"])
@pytest.mark.parametrize("width", [512, 128, 32], ids=["normal", "wide_blocks", "narrow_blocks"])
def test_error_is_never_above_that_of_whole_rows(width, name):
    for seed in SEEDS:
        weight = blocks(16, 512, width, seed)
        form, whole = finequant(weight, None, parse(name)), rounded(weight, parse(name))
        assert lost(weight, form) <= lost(weight, whole), seed
        assert width == 512 or lost(weight, form) < lost(weight, whole), seed


def test_the_form_is_rounding_to_nearest_at_the_chosen_group():
    weight = blocks(16, 256, 64, 0)
    form, nearest = finequant(weight, None, parse("w4a16")), rounded(weight, parse("w4a16-g64"))
    assert form.kind == "w4a16-g64"
    assert torch.equal(form.dequantized(), nearest.dequantized())


def test_a_matrix_of_zeros_stays_in_whole_rows():
    assert chosen(torch.zeros(4, 256), "w4a16") is None


@pytest.mark.parametrize("name", ["nf4", "mxfp4", "fp8", "w8a8", "w4a4", "w16a16"])
def test_refuses_grids_whose_groups_are_fixed(name):
    with pytest.raises(ValueError, match="take integers with 16-bit rows"):
        finequant(normal(2, 128, 0), None, parse(name))
