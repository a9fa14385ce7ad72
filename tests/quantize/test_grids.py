"""Grids: values by hand, the nearest of all codes, stated errors, groups that are odd."""

import pytest
import torch

from hspec_lab.quant.grids import (
    E4M3,
    PROTECTED_MAX,
    Integers,
    MxFp4,
    NormalFloat4,
    TwoLevels,
    grid_of,
    to_row_units,
)
from hspec_lab.scheme import parse

GRIDS = {
    **{f"int{bits}": Integers(bits) for bits in (2, 3, 4, 6, 8)},
    **{f"int{bits}-sym": Integers(bits, zero=False) for bits in (2, 3, 4, 6, 8)},
    **{f"int{bits}-rows": Integers(bits, False, torch.float32) for bits in (2, 3, 4, 6, 8)},
    "two levels": TwoLevels(),
    "mxfp4": MxFp4(),
    "nf4": NormalFloat4(),
    "e4m3": E4M3(),
}
# what rounding to bf16 costs at most, in parts of what is stored; a quotient in fp32 beside a tie
BF16, NEAR = 2.0**-8, 1 + 1e-6
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
by_width = pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(kind: str) -> torch.Tensor:
    """fp32 [24, 32]: groups of one kind."""
    w = normal(24, 32)
    loud = w.clone()
    loud[:, 5] = 1e3
    return {
        "normal": w,
        "heavy tails": w**5,
        "tiny": w * 1e-6,
        "positive": w.abs() + 3,
        "negative": -w.abs() - 3,
        "signs": w.sign(),
        "one loud": loud,
        "constant": w[:, :1].expand(24, 32).contiguous(),
        "zeros": torch.zeros(24, 32),
    }[kind]


KINDS = ("normal", "heavy tails", "tiny", "positive", "negative", "signs", "one loud", "constant",
         "zeros")  # fmt: skip


def in_units(grid, w):
    """Groups as a grid takes them."""
    return to_row_units(w)[0] if grid.two_levels else w


def all_codes(grid) -> torch.Tensor:
    """uint8 [n]: codes that a grid may give; symmetric integers leave out the lowest."""
    codes = torch.arange(256 if isinstance(grid, E4M3) else 1 << grid.bits, dtype=torch.uint8)
    if isinstance(grid, E4M3):
        return codes[codes.view(torch.float8_e4m3fn).float().isfinite()]
    return codes[1:] if isinstance(grid, Integers) and not grid.zero else codes


# every grid


@every_grid
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrink", [1.0, 0.7])
def test_no_other_code_is_nearer(grid, kind, shrink):
    groups = in_units(grid, weights(kind))
    scale, zero = grid.fit(groups, shrink)
    codes = grid.round(groups, scale, zero)
    error = (grid.expand(codes, scale, zero) - groups).abs()
    known = all_codes(grid)
    assert torch.isin(codes, known).all()
    values = grid.expand(known.expand(len(groups), -1).contiguous(), scale, zero)  # [groups, codes]
    nearest = (values[:, None] - groups[..., None]).abs().amin(2)
    # ties aside: a quotient that rounds onto one
    slack = values.abs().amax(1, keepdim=True) * 2.0**-21
    assert (error <= nearest + slack).all()


@every_grid
def test_codes_are_chosen_for_the_stored_scale(grid):
    """Rounding once more what was stored gives the same codes, as long as the scale stays."""
    groups = in_units(grid, weights("normal"))
    scale, zero = grid.fit(groups)
    codes = grid.round(groups, scale, zero)
    kept = grid.expand(codes, scale, zero)
    assert torch.equal(grid.expand(grid.round(kept, scale, zero), scale, zero), kept)
    # for a scale of another group's too
    other = tuple(None if t is None else t.roll(1, 0) for t in (scale, zero))
    kept = grid.expand(grid.round(groups, *other), *other)
    assert torch.equal(grid.expand(grid.round(kept, *other), *other), kept)


@every_grid
@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_finite_and_in_their_stored_dtypes(grid, kind):
    scale, zero = grid.fit(in_units(grid, weights(kind)))
    dtypes = {Integers: getattr(grid, "dtype", None), NormalFloat4: torch.bfloat16}
    dtypes |= {TwoLevels: torch.uint8, MxFp4: torch.uint8, E4M3: torch.float32}
    assert scale.dtype == dtypes[type(grid)] and scale.shape == (24,)
    assert scale.float().isfinite().all()
    has_zero = grid.two_levels or getattr(grid, "zero", False)
    assert (zero is not None) == has_zero and (zero is None or zero.dtype == scale.dtype)


@every_grid
def test_groups_of_zeros_stay_zeros(grid):
    groups = weights("zeros")
    scale, zero = grid.fit(groups)
    assert not grid.expand(grid.round(groups, scale, zero), scale, zero).any()


@every_grid
def test_groups_do_not_see_each_other(grid):
    groups = in_units(grid, weights("normal"))
    together = grid.fit(groups)
    alone = grid.fit(groups[3:4])
    assert torch.equal(alone[0], together[0][3:4])
    codes = grid.round(groups[3:4], *alone)
    assert torch.equal(codes, grid.round(groups, *together)[3:4])


@every_grid
def test_more_dimensions_are_more_groups(grid):
    flat = in_units(grid, weights("normal"))
    cubed = flat.view(2, 12, 32)
    scale, zero = grid.fit(cubed)
    assert scale.shape == (2, 12)
    codes = grid.round(cubed, scale, zero)
    flat_scale, flat_zero = grid.fit(flat)
    flat_codes = grid.round(flat, flat_scale, flat_zero)
    assert torch.equal(codes.view(24, 32), flat_codes)
    kept = grid.expand(codes, scale, zero).view(24, 32)
    assert torch.equal(kept, grid.expand(flat_codes, flat_scale, flat_zero))


# integers


@by_width
@pytest.mark.parametrize("kind", KINDS)
def test_integers_with_zeros_keep_weights_to_half_a_step(bits, kind):
    grid, groups = Integers(bits), weights(kind)
    scale, zero = grid.fit(groups)
    error = (grid.expand(grid.round(groups, scale, zero), scale, zero) - groups).abs()
    # the ends of a group: the step's rounding to bf16, once for each step, and the zero's
    bound = scale.float() * (0.5 + (2**bits - 1) * BF16) + zero.float().abs() * BF16
    assert (error <= bound[:, None] * NEAR).all()


@by_width
@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, BF16), (torch.float32, 2.0**-23)])
@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_integers_keep_weights_to_half_a_step(bits, dtype, rounding, kind):
    grid, groups = Integers(bits, False, dtype), weights(kind)
    scale, _ = grid.fit(groups)
    codes = grid.round(groups, scale, None)
    error = (grid.expand(codes, scale, None) - groups).abs()
    bound = scale.float() * (0.5 + (grid.middle - 1) * rounding)
    assert codes.min() >= 1 and (error <= bound[:, None] * NEAR).all()


def test_fewer_bits_span_a_group_with_fewer_levels():
    groups = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    scale, zero = Integers(2).fit(groups)
    assert (scale.tolist(), zero.tolist()) == ([1.0, 0.0], [1.0, 5.0])
    assert Integers(2).round(groups, scale, zero).tolist() == [[0, 1, 2, 3], [2, 2, 2, 2]]


@pytest.mark.parametrize(
    "bits, scale, codes, values",
    [
        (2, 7.0, [1, 3, 2, 2], [-7.0, 7.0, 0.0, 0.0]),
        (4, 1.0, [1, 15, 10, 8], [-7.0, 7.0, 2.0, 0.0]),  # 2.5 and 0.5: ties to even
    ],
)
def test_symmetric_integers_by_hand(bits, scale, codes, values):
    grid, groups = Integers(bits, zero=False), torch.tensor([[-7.0, 7.0, 2.5, 0.5]])
    stored, zero = grid.fit(groups)
    found = grid.round(groups, stored, zero)
    assert (stored.item(), zero, found.tolist()) == (scale, None, [codes])
    assert grid.expand(found, stored, zero).tolist() == [values]


def test_a_scale_is_rounded_before_its_codes_are_chosen():
    """A step of 1.0027 is stored as 1; before that, 7.5 would have been nearer to code 7."""
    groups = torch.tensor([[0.0, 15.04, 7.5]])
    scale, zero = Integers(4).fit(groups)
    assert (scale.item(), zero.item()) == (1.0, 8.0)  # 1.0027 in bf16
    assert Integers(4).round(groups, scale, zero).tolist() == [[0, 15, 8]]
    # the zero is 128 stored steps above the lowest, not 128 of 1.003
    scale, zero = Integers(8).fit(torch.tensor([[-100.0, 155.77]]))
    assert (scale.item(), zero.item()) == (1.0, 28.0)


def test_a_shrunk_range_clips_both_ends_alike():
    groups = torch.tensor([[-16.0, 0.0, 14.0]])
    scale, zero = Integers(4).fit(groups, 0.5)
    assert (scale.item(), zero.item()) == (1.0, -0.5)
    codes = Integers(4).round(groups, scale, zero)
    assert codes.tolist() == [[0, 8, 15]]
    per_group = torch.tensor([1.0, 0.5])
    scale, _ = Integers(4).fit(groups.expand(2, 3), per_group)
    assert scale.tolist() == [2.0, 1.0]


# two levels


def test_two_levels_by_hand():
    row = torch.tensor([[119.0, -31.0, 40.0, 0.0, -119.0, -119.0, -118.0, -104.0]]) / 2
    units, row_scale = to_row_units(row)
    groups, grid = units.view(2, 4), TwoLevels()
    scale, zero = grid.fit(groups)
    # spans of 150 and 15 in steps of 10 and 1
    assert (row_scale.tolist(), scale.tolist(), zero.tolist()) == ([0.5], [10, 1], [3, 119])
    codes = grid.round(groups, scale, zero)
    assert codes.tolist() == [[15, 0, 7, 3], [0, 0, 1, 15]]
    assert grid.expand(codes, scale, zero).tolist() == [
        [120.0, -30.0, 40.0, 0.0], [-119.0, -119.0, -118.0, -104.0]
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_two_levels_stay_int8_and_near(kind):
    units, _ = to_row_units(weights(kind))
    assert units.abs().max() <= PROTECTED_MAX
    groups, grid = units.view(48, 16), TwoLevels()
    scale, zero = grid.fit(groups)
    kept = grid.expand(grid.round(groups, scale, zero), scale, zero)
    assert zero.max() <= PROTECTED_MAX and 1 <= scale.min() and scale.max() <= 16
    assert torch.equal(kept, kept.round()) and kept.abs().max() <= 127
    bound = scale.float()[:, None] / 2 + 7.5
    assert ((kept - groups).abs() <= bound * NEAR).all()


def test_rows_of_zeros_have_a_scale_of_one():
    units, scale = to_row_units(torch.tensor([[0.0, 0.0], [238.0, -1.0]]))
    assert scale.tolist() == [1.0, 2.0] and units.tolist() == [[0.0, 0.0], [119.0, -0.5]]


# floats and tables


def test_mxfp4_ties_go_to_the_even_code():
    """The values between neighbours of e2m1 (OCP Microscaling Formats 1.0, section 5.3.3)."""
    ties = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.9]])
    scale, zero = MxFp4().fit(ties)
    assert (scale.item(), zero) == (127, None)
    codes = MxFp4().round(torch.cat([ties, -ties]), scale.expand(2))
    assert codes.tolist() == [[0, 2, 2, 4, 4, 6, 6, 7], [8, 10, 10, 12, 12, 14, 14, 15]]
    kept = MxFp4().expand(codes, scale.expand(2))
    assert kept[0].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert torch.equal(kept[1], -kept[0])


@pytest.mark.parametrize(
    "largest, exponent",
    [(4.0, 127), (7.99, 127), (8.0, 128), (3.99, 126), (1.0, 125), (2.0**-130, 5), (2.0**127, 252)],
)
def test_mxfp4_exponents_put_the_largest_weight_into_four_to_eight(largest, exponent):
    scale, _ = MxFp4().fit(torch.tensor([[largest, 0.0]]))
    assert scale.item() == exponent
    kept = MxFp4().expand(MxFp4().round(torch.tensor([[largest, 0.0]]), scale), scale)
    assert kept.isfinite().all() and kept[0, 1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_mxfp4_errs_by_a_step_of_its_binade_and_clips_above_six(kind):
    groups, grid = weights(kind), MxFp4()
    scale, _ = grid.fit(groups)
    unit = torch.ldexp(torch.ones(24), scale.int() - 127)[:, None]
    error = (grid.expand(grid.round(groups, scale), scale) - groups).abs()
    # steps of 1/2 below 2, 1 below 4, 2 above; up to 8 becomes 6
    size = groups.abs() / unit
    bound = torch.where(size <= 2, 0.25, torch.where(size <= 4, 0.5, (size - 6).clamp_min(1.0)))
    assert (error <= bound * unit).all() and (size < 8).all()


def test_nf4_ends_are_exact_and_zero_is_a_code():
    groups = torch.tensor([[-2.0, 2.0, 0.0, 1.5, -0.06]])
    scale, zero = NormalFloat4().fit(groups)
    codes = NormalFloat4().round(groups, scale)
    assert (scale.item(), zero, codes.tolist()) == (2.0, None, [[0, 15, 7, 14, 7]])
    kept = NormalFloat4().expand(codes, scale)
    assert kept[0, :3].tolist() == [-2.0, 2.0, 0.0]
    assert kept[0, 3].item() == pytest.approx(2 * 0.7229568)


def test_nf4_holds_quantiles_of_a_normal_distribution():
    """Dettmers et al. 2023, section 3: seven below zero, eight above."""
    table = NormalFloat4().expand(torch.arange(16, dtype=torch.uint8)[None], torch.ones(1))[0]
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    upper = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1].double()).flip(0)
    lower = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1].double())
    wanted = torch.cat([lower, torch.zeros(1), upper]) / upper.max()
    torch.testing.assert_close(table, wanted.float(), rtol=0, atol=1e-6)


def test_e4m3_keeps_three_bits_of_fraction_below_the_largest():
    grid, rows = E4M3(), torch.tensor([[896.0, 34.0, -3.0, 2.0**-9], [0.0, 0.0, 0.0, 0.0]])
    scale, _ = grid.fit(rows)
    codes = grid.round(rows, scale, None)
    # 34 is halfway between 32 and 36, in steps of 4: to even; 2**-10 lies halfway to zero
    assert grid.expand(codes, scale, None).tolist() == [[896.0, 32.0, -3.0, 0.0], [0.0] * 4]
    assert scale[0] == 2 and codes[0, 0] == 0x7E  # 1111.110: the largest, and no NaN


@pytest.mark.parametrize("kind", KINDS)
def test_e4m3_keeps_weights_to_one_part_in_16(kind):
    grid, groups = E4M3(), weights(kind)
    scale, _ = grid.fit(groups)
    error = (grid.expand(grid.round(groups, scale), scale) - groups).abs()
    bound = torch.maximum(groups.abs() / 16, 2.0**-10 * scale[:, None])
    assert (error <= bound * (1 + 1e-5)).all()


# schemes


@pytest.mark.parametrize(
    "scheme, grid",
    [
        ("w4a16-g128", Integers(4)),
        ("w4a16-sym", Integers(4, zero=False)),
        ("w8a16", Integers(8, zero=False)),
        ("w8a16-zp", Integers(8)),
        ("w8a8", Integers(8, False, torch.float32)),
        ("w3a4", Integers(3, False, torch.float32)),
        ("w4a8", Integers(4, False, torch.float32)),
        ("w4a8-g32", TwoLevels()),
        ("mxfp4", MxFp4()),
        ("nf4", NormalFloat4()),
        ("fp8", E4M3()),
        ("fp8a16", E4M3()),
    ],
)
def test_a_scheme_names_its_grid(scheme, grid):
    assert grid_of(parse(scheme)) == grid


@pytest.mark.parametrize("scheme", ["fp32", "w16a16", "bitstack-6.5mb"])
def test_schemes_without_a_grid_are_refused(scheme):
    with pytest.raises(ValueError, match=f"^{scheme}: its weights are on no grid$"):
        grid_of(parse(scheme))
