import pytest
import torch

from hspec_lab.quant.forms import rounded
from hspec_lab.quant.grids import grid_of
from hspec_lab.quantize.calibration import InputSums, output_error
from hspec_lab.quantize.gptq import cholesky_of_inverse, gptq
from hspec_lab.scheme import parse

GRIDS = ("w4a16-g128", "w3a16-g64", "w4a16-g128-sym", "w4a8", "w4a8-g128", "w8a8", "w2a16")
GRIDS += ("nf4", "mxfp4", "fp8")
DAMPING = 0.01

both_orders = pytest.mark.parametrize("act_order", [True, False], ids=["act_order", "stored_order"])


def correlated_rows(n, C, seed):
    """Rows of a random covariance whose spectrum decays as 1, 2**-1.5, 3**-1.5, ..."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(C, C, generator=generator)).Q
    spread = torch.arange(1, C + 1).float() ** -0.75
    return (torch.randn(n, C, generator=generator) * spread) @ basis


def normal_weight(R, C, seed):
    return torch.randn(R, C, generator=torch.Generator().manual_seed(1000 + seed))


def inputs_of(rows):
    sums = InputSums(len(rows))
    sums.add(rows)
    return sums.result()


def inputs_with(hessian):
    """Inputs of which only the Hessian is read."""
    C = len(hessian)
    rows = torch.ones(1, C)
    sums = inputs_of(rows)
    return type(sums)(hessian, sums.absmax, sums.mean_abs, sums.rows, 1)


# what it is for


@both_orders
@pytest.mark.parametrize("name", ["w4a16-g128", "w3a16-g64", "w4a8", "w4a8-g128", "nf4", "mxfp4"])
def test_error_on_rows_never_seen_is_half_of_rounding_to_nearest_at_most(name, act_order):
    """Ten seeds, rows of one distribution, half of them for calibration and half to measure on."""
    scheme = parse(name)
    for seed in range(10):
        seen, held_out = correlated_rows(1536, 256, seed).chunk(2)
        weight, hessian = normal_weight(16, 256, seed), inputs_of(held_out).hessian
        form = gptq(weight, inputs_of(seen), scheme, act_order=act_order)
        nearest = output_error(weight, rounded(weight, scheme).dequantized(), hessian)
        assert output_error(weight, form.dequantized(), hessian) < nearest / 2, seed


# what exactly it does


@both_orders
@pytest.mark.parametrize("name", GRIDS)
def test_inputs_that_never_go_together_round_to_nearest(name, act_order):
    """With a diagonal Hessian no column can make up for another."""
    weight, scheme = normal_weight(5, 256, 0), parse(name)
    inputs = inputs_with(torch.rand(256, generator=torch.Generator().manual_seed(1)).diag())
    form = gptq(weight, inputs, scheme, act_order=act_order)
    for tensor, nearest in zip(
        form.tensors().values(), rounded(weight, scheme).tensors().values(), strict=True
    ):
        assert torch.equal(tensor, nearest)


def obvious_gptq(weight, hessian, scheme, act_order):
    """Optimal brain quantization in fp64: each column in turn, the inverse reduced after each."""
    grid, (R, C) = grid_of(scheme), weight.shape
    group = scheme.group or C
    mean = hessian.double().diagonal().mean()
    inverse = torch.linalg.inv(hessian.double() + DAMPING * mean * torch.eye(C))
    order = hessian.diagonal().sort(descending=True).indices if act_order else torch.arange(C)
    scale, zero = grid.fit(weight.view(R, -1, group))
    weight, codes = weight.double(), torch.empty(R, C, dtype=torch.uint8)
    for i in order.tolist():
        g = i // group
        if not act_order and i % group == 0:
            scale[:, g], zero[:, g] = grid.fit(weight[:, i : i + group].float())
        fitted = scale[:, g], zero[:, g]
        codes[:, i : i + 1] = grid.round(weight[:, i : i + 1].float(), *fitted)
        error = weight[:, i] - grid.expand(codes[:, i : i + 1], *fitted)[:, 0]
        weight = weight - torch.outer(error, inverse[i]) / inverse[i, i]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes, scale, zero


@both_orders
@pytest.mark.parametrize(
    ("name", "R", "C", "seeds"),
    [("w3a16", 1, 3, 30), ("w4a16-g32", 3, 64, 5), ("w3a16-g64", 2, 320, 2), ("w4a16", 2, 150, 2)],
    ids=["three_weights", "groups", "several_blocks", "a_short_last_block"],
)
def test_codes_are_those_of_the_greedy_algorithm_written_plainly(name, R, C, seeds, act_order):
    scheme, moved = parse(name), 0
    for seed in range(seeds):
        weight, inputs = normal_weight(R, C, seed), inputs_of(correlated_rows(2 * C, C, seed))
        form = gptq(weight, inputs, scheme, damping=DAMPING, act_order=act_order)
        codes, scale, zero = obvious_gptq(weight, inputs.hessian, scheme, act_order)
        assert torch.equal(form.codes(), codes), seed
        assert torch.equal(form.scale, scale) and torch.equal(form.zero, zero), seed
        moved += int((codes != rounded(weight, scheme).codes()).sum())
    assert moved > 0


def test_groups_are_fitted_to_the_weights_as_they_came_when_columns_are_reordered():
    weight, scheme = normal_weight(4, 256, 0), parse("w4a16-g32")
    form = gptq(weight, inputs_of(correlated_rows(512, 256, 0)), scheme)
    nearest = rounded(weight, scheme)
    assert torch.equal(form.scale, nearest.scale) and torch.equal(form.zero, nearest.zero)


@both_orders
def test_two_levels_stay_within_an_int8_though_errors_push_weights_beyond_their_row(act_order):
    """Inputs that go together, the last of them faint: what they make up for is large for them."""
    sign = torch.tensor([1.0, -1.0]).repeat(16)
    loudness = torch.cat([torch.ones(96), 0.01 * sign])
    rows = normal_weight(512, 1, 0) * loudness + 1e-3 * normal_weight(512, 128, 1)
    weight = normal_weight(64, 128, 2)
    # near the ends of the row's range, where a little more of the same sign leaves it
    weight[:, 96:] = 4 * sign + 0.1 * weight[:, 96:]
    form = gptq(weight, inputs_of(rows), parse("w4a8-g32"), damping=1e-4, act_order=act_order)
    codes = form.codes().view(64, -1, 32).int()
    integers = (codes - form.zero[..., None].int()) * form.scale[..., None].int()
    assert -128 <= integers.min() and integers.max() <= 127
    assert form.scale.max() <= 16


@both_orders
def test_inputs_that_were_always_zero_keep_their_weights_and_disturb_no_others(act_order):
    """Half of each group is dead; without damping the Hessian would have no inverse."""
    scheme, live = parse("w4a16-sym"), torch.arange(64) % 2 == 0
    rows = correlated_rows(256, 32, 0)
    spread = torch.zeros(256, 64)
    spread[:, live] = rows
    weight = normal_weight(4, 64, 0)
    # the largest weight of each row is live, so that scales agree
    weight[:, 0] = 5.0
    options = {"damping": 0.0, "act_order": act_order}
    form = gptq(weight, inputs_of(spread), scheme, **options)
    alone = gptq(weight[:, live], inputs_of(rows), scheme, **options)
    assert torch.equal(form.codes()[:, ~live], rounded(weight, scheme).codes()[:, ~live])
    assert torch.equal(form.codes()[:, live], alone.codes())


# the factor


def test_factor_is_upper_and_its_square_is_the_inverse():
    hessian = inputs_of(correlated_rows(256, 48, 0)).hessian
    U, damping = cholesky_of_inverse(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48)
    assert damping == 0.01
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.T @ U @ damped, torch.eye(48), atol=1e-4)


def with_smallest_eigenvalue(smallest):
    """A Hessian of mean diagonal 1 whose smallest eigenvalue is `smallest`, 0 or below."""
    basis = torch.linalg.qr(normal_weight(8, 8, 0).double()).Q
    values = torch.full((8,), (8 - smallest) / 7).double()
    values[0] = smallest
    return ((basis * values) @ basis.T).float()


@pytest.mark.parametrize(
    ("smallest", "first", "used"),
    [(-0.05, 0.01, 0.1), (-0.5, 0.01, 1.0), (-0.5, 0.3, 1.0), (-0.005, 0.0, 0.01), (1.0, 0.0, 0.0)],
)
def test_damping_rises_by_tens_until_the_hessian_can_be_factored(smallest, first, used):
    _, damping = cholesky_of_inverse(with_smallest_eigenvalue(smallest), first, raise_damping=True)
    assert damping == pytest.approx(used)


def test_layer_and_damping_are_named_where_the_hessian_cannot_be_factored():
    hessian = with_smallest_eigenvalue(-0.05)
    weight, scheme = normal_weight(2, 8, 0), parse("w4a16")
    message = r"model\.layers\.3\.down: .* damping 0\.01: pass raise_damping=True"
    with pytest.raises(ValueError, match=message):
        gptq(weight, inputs_with(hessian), scheme, name="model.layers.3.down")
    gptq(weight, inputs_with(hessian), scheme, raise_damping=True)


def test_damping_rises_to_one_and_no_further():
    with pytest.raises(ValueError, match="with damping 1: pass more calibration text"):
        cholesky_of_inverse(with_smallest_eigenvalue(-1.5), 0.01, raise_damping=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_overflowed_inputs_are_refused_whatever_the_damping(value):
    hessian = torch.eye(8)
    hessian[2, 3] = value
    with pytest.raises(ValueError, match=r"model\.layers\.0\.qkv: .*not finite.*overflowed"):
        gptq(
            normal_weight(2, 8, 0),
            inputs_with(hessian),
            parse("w4a16"),
            raise_damping=True,
            name="model.layers.0.qkv",
        )


def test_text_that_reaches_no_input_rounds_to_nearest():
    weight, scheme = normal_weight(2, 8, 0), parse("w4a16")
    form = gptq(weight, inputs_with(torch.zeros(8, 8)), scheme)
    assert torch.equal(form.codes(), rounded(weight, scheme).codes())


# what is refused


def test_refuses_what_it_cannot_round():
    weight, inputs = normal_weight(2, 48, 0), inputs_with(torch.eye(48))
    with pytest.raises(ValueError, match="needs calibration inputs"):
        gptq(weight, None, parse("w4a16"))
    with pytest.raises(ValueError, match=r"is \[48, 48\], not \[8, 8\]"):
        gptq(weight, inputs_with(torch.eye(8)), parse("w4a16"))
    with pytest.raises(ValueError, match="groups of 32 do not divide 48 inputs"):
        gptq(weight, inputs, parse("w4a16-g32"))
    with pytest.raises(ValueError, match="damping is 0 or more"):
        gptq(weight, inputs, parse("w4a16"), damping=-0.1)
    with pytest.raises(ValueError, match="no grid"):
        gptq(weight, inputs, parse("w16a16"))
