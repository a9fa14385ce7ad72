import pytest
import torch

from hspec_lab.quant import CPU_FORMATS, is_row_invariant, make_linear
from hspec_lab.quant.forms import rounded
from hspec_lab.quant.stored import RowByRow, Stored
from hspec_lab.scheme import parse

AWKWARD_T = (1, 2, 3, 7, 31, 64)
# outputs and inputs that every operator takes, neither a power of two
R, C = 48, 384

# how far an operator may be from its reference: one output step of the format, relative
BF16_STEP = 2**-7
TOLERANCE = {"fp32": 1e-5, "w8a8": 4 * 2**-24}

every_format = pytest.mark.parametrize("format", CPU_FORMATS)
both = pytest.mark.parametrize("reference", [True, False], ids=["reference", "operator"])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads wait for each other on a busy machine; only one test needs them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=CPU_FORMATS)
def linear(request):
    return make_linear(random(R, C), request.param)


def assert_equal(a, b):
    assert torch.equal(a, b), f"largest difference {(a - b).abs().max():.3g}"


# by hand


@every_format
@both
def test_small_integers_multiply_exactly(format, reference):
    """Weights and rows whose roundings are exact in every format: 0, 1, 15 in each group."""
    weight = torch.zeros(16, 128)
    weight[0] = torch.tensor([0.0, 15.0]).repeat(64)  # int4: scale 1, zero 8; int8: 15 is the top
    weight[1, ::32] = 15.0  # one per group of 32
    weight[2, ::32] = -15.0
    x = torch.zeros(2, 128)
    x[0, 0], x[0, 1], x[1, 32] = 2.0, -1.0, 4.0
    y = make_linear(weight, format, reference=reference)(x)
    # int8 keeps 15 as 127 * (15 / 127), where the scale is rounded to bf16 or fp32
    step = {"w8a16": BF16_STEP, "w8a8": 2**-22}.get(format, 0.0)
    expected = torch.zeros(2, 16)
    expected[0, :3] = torch.tensor([2 * 0.0 - 15.0, 30.0, -30.0])
    expected[1, :3] = torch.tensor([0.0, 60.0, -60.0])
    torch.testing.assert_close(y, expected, rtol=step, atol=0)


@both
def test_w8a8_rounds_each_row_to_129_levels_by_hand(reference):
    weight = torch.zeros(1, 4)
    weight[0] = torch.tensor([127.0, 64.0, 0.0, -127.0])  # scale exactly 1
    x = torch.tensor([[64.0, 1.4, 0.0, 0.0], [0.0, 2.5, 64.0, 3.5], [128.0, 3.0, 0.0, -128.0]])
    y = make_linear(weight, "w8a8", reference=reference)(x)
    # rows in steps: 64, 1 | 2.5 -> 2 and 3.5 -> 4, ties to even | 64, 1.5 -> 2, -64 in steps of 2
    assert y.flatten().tolist() == [64 * 127 + 64, 2 * 64 - 4 * 127, 128 * 127 + 4 * 64 + 128 * 127]


@both
def test_w8a16_rounds_activations_to_bf16_and_weights_to_127_levels(reference):
    weight = torch.zeros(1, 16)
    weight[0, :3] = torch.tensor([127.0, 2.4, -3.6])  # scale 1: 127, 2, -4
    x = torch.zeros(1, 16)
    x[0, 1], x[0, 2] = 1 + 2**-9, 1.0  # the first is half a bf16 step above 1: rounds to even, 1
    assert make_linear(weight, "w8a16", reference=reference)(x).item() == 2 - 4


@both
@pytest.mark.parametrize("group_size", [32, 128])
def test_w4a16_reads_each_group_with_its_own_scale(group_size, reference):
    weight = torch.zeros(16, 256)
    for group in range(256 // group_size):  # spans 0..15 * 2**group: scale 2**group, all exact
        at = group * group_size
        weight[:, at : at + 16] = torch.arange(16.0) * 2.0**group
    linear = make_linear(weight, f"w4a16-g{group_size}", reference=reference)
    assert_equal(linear.dequantized(), weight)
    assert_equal(linear(torch.eye(256)), weight.T)


# operator against reference


@every_format
@pytest.mark.parametrize("T", AWKWARD_T)
def test_operator_equals_reference_within_one_step(format, T):
    weight, x = random(R, C), random(T, C, seed=T)
    y, expected = (make_linear(weight, format, reference=r)(x) for r in (False, True))
    # fp32: cancelling terms leave an error in steps of the terms, not of their sum
    atol = 1e-4 if format == "fp32" else 1e-2 * BF16_STEP if "a16" in format else 0.0
    torch.testing.assert_close(y, expected, rtol=TOLERANCE.get(format, BF16_STEP), atol=atol)


@every_format
def test_operator_and_reference_stand_for_the_same_weights(format):
    a, b = (make_linear(random(R, C), format, reference=r) for r in (False, True))
    assert_equal(a.dequantized(), b.dequantized())
    assert (a.format, a.shape) == (b.format, b.shape) == (format, (R, C))
    assert a.nbytes == b.nbytes


@every_format
def test_weights_are_kept_to_half_a_step(format):
    weight = random(R, C)
    error = (make_linear(weight, format).dequantized() - weight).abs()
    bound = torch.zeros(R, 1)
    if format != "fp32":
        form = rounded(weight, parse(format))
        zero = torch.zeros(1) if form.zero is None else form.zero.float().abs()
        bound = (form.scale.float() / 2 + zero / 256).repeat_interleave(form.group, 1)
    assert (error <= bound * (1 + 1e-5)).all()


@every_format
def test_a_bias_is_added_in_fp32(format):
    weight, bias, x = random(R, C), random(R, seed=1), random(3, C, seed=2)
    with_bias = make_linear(weight, format, bias=bias)
    assert_equal(with_bias(x), make_linear(weight, format)(x) + bias)
    assert with_bias.nbytes == make_linear(weight, format).nbytes


def test_bf16_weights_are_taken_as_they_are():
    weight = random(R, C).bfloat16()
    assert_equal(make_linear(weight, "fp32").dequantized(), weight.float())


@pytest.mark.parametrize(
    "format, bits",
    [("fp32", 32), ("w8a16", 8 + 16 / C), ("w8a8", 8 + 32 / C), ("w4a16-g128", 4.25),
     ("w4a16-g32", 5)],
)  # fmt: skip
def test_stored_bits_count_scales_and_zeros(format, bits):
    assert make_linear(random(R, C), format).effective_bits == pytest.approx(bits)


# rows


def test_a_loud_neighbour_changes_no_other_row(linear):
    quiet = random(8, C, seed=3)
    loud = quiet.clone()
    loud[5] *= 1e3
    others = [0, 1, 2, 3, 4, 6, 7]
    assert_equal(linear(loud)[others], linear(quiet)[others])


@every_format
@both
@pytest.mark.parametrize("n_threads", [1, 2])
def test_row_invariant_layers_give_the_same_bits_for_any_number_of_rows(
    format, reference, n_threads
):
    torch.set_num_threads(n_threads)
    linear = make_linear(random(R, C), format, reference=reference, row_invariant=True)
    x = random(64, C, seed=4)
    together = linear(x)
    for n in (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63):
        assert_equal(linear(x[:n]), together[:n])
        assert_equal(linear(x[64 - n :]), together[64 - n :])


def test_row_by_row_repairs_an_operator_that_depends_on_the_batch():
    class Careless(Stored):
        __slots__ = ()

        def dequantized(self):
            return torch.eye(16)

        def __call__(self, x):
            return x + len(x)

    careless = Careless("fp32", (16, 16), 0, "cpu")
    assert not is_row_invariant(careless)
    repaired = RowByRow(careless)
    assert_equal(repaired(torch.zeros(3, 16)), torch.ones(3, 16))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_constant_rows_do_not_saturate(linear, sign):
    constant = make_linear(torch.full((R, C), 0.05), linear.format)
    y = constant(torch.full((2, C), sign))
    torch.testing.assert_close(y, torch.full((2, R), sign * 0.05 * C), rtol=BF16_STEP, atol=0)


@both
@pytest.mark.parametrize("value, level", [(1.4999999, 2), (2.5, 2), (1.499, 1), (-1.5, -2)])
def test_w8a8_rounds_alike_wherever_a_value_sits_in_the_row(value, level, reference):
    """Near ties: 1.4999999 + 64 is 65.5 in fp32, which rounds to even, in every lane."""
    linear = make_linear(torch.full((1, 35), 127.0), "w8a8", reference=reference)  # scale 1
    x = torch.zeros(34, 35)  # a length no vector register divides
    x[:, 0] = 64.0
    x[torch.arange(34), torch.arange(1, 35)] = value
    assert_equal(linear(x), torch.full((34, 1), 127.0 * (64 + level)))


def test_zero_rows_of_weights_and_activations_give_zeros(linear):
    weight = random(R, C)
    weight[3] = 0
    x = random(4, C, seed=5)
    x[2] = 0
    y = make_linear(weight, linear.format)(x)
    assert (y[2] == 0).all() and (y[:, 3] == 0).all()
    assert torch.isfinite(y).all() and (y[0, :3] != 0).all()


def test_layers_take_slices_of_a_larger_tensor(linear):
    wide = random(5, 2 * C, seed=6)
    for rows in (wide[:, ::2], wide[:, C:], wide[1:4, :C]):
        assert_equal(linear(rows), linear(rows.contiguous()))


def test_layers_leave_their_input_alone(linear):
    x = random(3, C, seed=7)
    before = x.clone()
    linear(x)
    assert_equal(x, before)


# refused


@pytest.mark.parametrize(
    "shape, format, message",
    [
        ((R, 192), "w4a16-g128", "w4a16-g128: 192 input features are not a multiple of 128"),
        ((R, 48), "w4a16-g32", "48 input features are not a multiple of 32"),
        ((40, C), "w4a16-g32", "40 output features are not a multiple of 16"),
        ((R, 40), "w8a16", "40 input features are not a multiple of 16"),
        ((R, C), "int3", "unknown format 'int3'; a format is fp32"),
        ((C,), "fp32", r"weight must be fp32 or bf16 \[R, C\], got torch.float32 \[384\]"),
        ((0, C), "w8a8", r"got torch.float32 \[0, 384\]"),
    ],
)
def test_says_what_came_and_what_would_be_right(shape, format, message):
    with pytest.raises(ValueError, match=message):
        make_linear(torch.ones(shape), format)


def test_refuses_integers_nan_and_a_bias_of_another_length():
    with pytest.raises(ValueError, match="got torch.int64"):
        make_linear(torch.ones(R, C, dtype=torch.int64), "fp32")
    with pytest.raises(ValueError, match="2 of 16 weights are NaN or infinite"):
        make_linear(torch.tensor([[float("nan"), float("inf")] + [1.0] * 14]), "w8a16")
    with pytest.raises(ValueError, match=r"bias must be \[48\], got \[47\]"):
        make_linear(random(R, C), "fp32", bias=torch.ones(47))


@pytest.mark.parametrize("format", CPU_FORMATS[1:])
def test_a_device_without_the_operator_is_named(format):
    with pytest.raises(ValueError, match=f"{format} has no operator on meta"):
        make_linear(torch.empty(R, C, device="meta"), format)


def test_the_reference_takes_shapes_that_the_operators_refuse():
    assert make_linear(random(5, 40), "w8a16", reference=True)(random(2, 40)).shape == (2, 5)
    assert make_linear(random(5, 32), "w4a16-g32", reference=True)(random(2, 32)).shape == (2, 5)
