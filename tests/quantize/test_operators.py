"""Operators of every scheme against its definition, and the definition against the weights."""

import pytest
import torch

from hspec_lab.quant import check_shape, make_linear
from hspec_lab.quant.embedding import Embedding
from hspec_lab.quant.forms import Grouped, LowRank, PerInput, rounded
from hspec_lab.quant.reference import row_integers
from hspec_lab.scheme import has_operator, parse

T_MAX, AWKWARD_T = 64, (1, 2, 3, 7, 31, 64)
WIDTHS = (8, 6, 4, 3, 2)
GROUPED = [
    f"w{bits}a16{group}{zero}"
    for bits in WIDTHS
    for group in ("", "-g32", "-g64", "-g128")
    for zero in ("-sym", "-zp")
]
INTEGERS = [f"w{bits}a{rows}" for bits in WIDTHS for rows in (8, 4)]
TWO_LEVELS = ["w4a8-g32", "w4a8-g64", "w4a8-g128"]
OPERATORS = ["fp32", "mxfp4", *GROUPED, *INTEGERS, *TWO_LEVELS]
DEFINED = ["w16a16", "nf4", "fp8", "fp8a16"]
EVEN, ODD = (48, 384), (37, 45)
# bf16 has a step of at most 2**-7 of a value, fp32 a rounding of 2**-24
BF16_STEP, ULP = 2.0**-7, 2.0**-24

with_operator = pytest.mark.parametrize("scheme", OPERATORS)
every_scheme = pytest.mark.parametrize("scheme", OPERATORS + DEFINED)
# of every scheme its definition, and its operator where there is one
every_way = pytest.mark.parametrize(
    "scheme, reference",
    [(scheme, True) for scheme in OPERATORS + DEFINED] + [(scheme, False) for scheme in OPERATORS],
)
both = pytest.mark.parametrize("reference", [True, False], ids=["reference", "operator"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shapes(scheme: str) -> list[tuple[int, int]]:
    """An even shape, and the oddest that the scheme's operator takes."""
    scheme = parse(scheme)
    if scheme.group:
        rows = 37 if scheme.rows < 16 else 80
        return [EVEN, (rows, 3 * scheme.group)]
    if scheme.rows != 16:
        return [EVEN, ODD]
    return [EVEN, (37, 112) if (scheme.bits, scheme.zero) == (8, False) else (80, 160)]


def pair(scheme: str, weight, **options):
    """The operator and the definition of the same weights."""
    return (make_linear(weight, scheme, reference=r, **options) for r in (False, True))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planes(form: Grouped) -> list[torch.Tensor]:
    """What each product of 4-bit weights multiplies, fp64 [R, C], as `int4` states it."""
    weight, group = form.dequantized().double(), form.group
    mxfp4 = form.scheme.grid == "mxfp4"
    if form.scheme.bits <= 4 and not mxfp4:
        return [weight]
    scale = form.scale.float() if not mxfp4 else 2.0 ** (form.scale.float() - 128)
    unit = scale.double().repeat_interleave(group, 1)
    number = (weight / unit).int() if mxfp4 else form.codes().int() - form.grid.middle
    fine = (number & (15 if form.scheme.bits == 8 else 3)) * unit
    return [weight - fine, fine]


def tolerance(scheme: str, form, x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far operator and definition may lie apart, fp64 [T, R]."""
    if parse(scheme).rows < 16:
        return 4 * ULP * expected.abs().double()
    x = x.double() if parse(scheme).rows == 32 else x.bfloat16().double()
    kept = [form.dequantized().double()] if scheme == "fp32" else planes(form)
    summed = sum(x.abs() @ plane.abs().T for plane in kept)
    if getattr(form, "zero", None) is not None:
        zero = form.zero.double().abs().repeat_interleave(form.group, 1)
        summed += 2 * (x.abs() @ zero.T)
    # sums in fp32, of whatever order
    apart = x.shape[1] * ULP * summed
    # half a step where each product is rounded, and half a step of the definition's sum
    steps = 0 if scheme == "fp32" else BF16_STEP
    return apart + steps * sum((x @ plane.T).abs() for plane in kept) * (1 + BF16_STEP)


# the definition


@every_scheme
def test_the_definition_multiplies_rounded_rows_with_dequantized_weights(scheme):
    weight, x = normal(*EVEN), normal(7, EVEN[1], seed=1)
    form = rounded(weight, parse(scheme))
    y = make_linear(weight, scheme, reference=True)(x)
    rows, a = parse(scheme).rows, x.abs().amax(1, keepdim=True)
    if scheme == "fp8":
        x = (x / (a / 448)).clamp(-448, 448).to(torch.float8_e4m3fn).float() * (a / 448)
    elif rows < 16:
        levels = {8: 64, 4: 7}[rows]
        x = (64 + x / a * levels).round().double().sub(64) * a.double() / levels
    elif rows == 16:
        x = x.bfloat16()
    x, kept = x.double(), form.dequantized().double()
    wanted = x @ kept.T
    # a sum in fp32, and what rounding the result costs; integer sums are exact
    bound = EVEN[1] * ULP * (x.abs() @ kept.abs().T)
    if rows < 16 and scheme != "fp8":
        bound = 4 * ULP * wanted.abs() + ULP * (x.abs() @ kept.abs().T)
    elif rows == 16:
        bound = bound + BF16_STEP / 2 * wanted.abs()
        assert torch.equal(y, y.bfloat16().float())
    assert y.dtype == torch.float32 and ((y.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize(
    "bits, x, integers, unit",
    [
        (8, [64.0, 1.4, 2.5, 3.5, -64.0], [64, 1, 2, 4, -64], 1.0),
        (8, [128.0, 3.0, -3.0, 0.0, 0.9], [64, 2, -2, 0, 0], 2.0),
        (4, [7.0, 1.5, 2.5, -7.0, -0.5], [7, 2, 2, -7, 0], 1.0),
        (4, [0.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, 0], 0.0),
    ],
)
def test_rows_are_rounded_by_hand(bits, x, integers, unit):
    found, step = row_integers(torch.tensor([x]), bits)
    assert found.tolist() == [integers] and step.item() == pytest.approx(unit, abs=1e-37)


@pytest.mark.parametrize("bits, levels", [(8, 64), (4, 7)])
def test_rows_are_kept_to_half_a_step_of_their_own(bits, levels):
    x = normal(9, 45) * 10.0 ** torch.arange(-4, 5)[:, None]
    integers, step = row_integers(x, bits)
    assert integers.abs().amax(1).eq(levels).all()
    assert ((integers * step - x).abs() <= step / 2 * (1 + 1e-5)).all()


# operators


@with_operator
def test_an_operator_equals_its_definition_to_a_step_of_each_product(scheme):
    for R, C in shapes(scheme):
        weight = normal(R, C)
        form = rounded(weight, parse(scheme))
        fast, definition = pair(scheme, weight)
        for T in AWKWARD_T:
            x = normal(T, C, seed=T)
            y, expected = fast(x), definition(x)
            assert y.dtype == expected.dtype == torch.float32 and y.shape == (T, R)
            apart = (y.double() - expected.double()).abs()
            assert (apart <= tolerance(scheme, form, x, expected)).all()


@with_operator
@pytest.mark.parametrize("kind", ["one loud weight", "far from zero", "constant groups"])
def test_an_operator_equals_its_definition_on_odd_weights(scheme, kind):
    weight, x = normal(*EVEN), normal(7, EVEN[1], seed=1)
    if kind == "one loud weight":
        weight[3, 5] = 1e3
    elif kind == "far from zero":
        weight += 30
    else:
        weight = weight[:, :3].repeat_interleave(128, 1)
    form = rounded(weight, parse(scheme))
    fast, definition = pair(scheme, weight)
    expected = definition(x)
    apart = (fast(x).double() - expected.double()).abs()
    assert (apart <= tolerance(scheme, form, x, expected)).all()
    assert torch.equal(fast.dequantized(), form.dequantized())


@every_scheme
def test_all_layers_of_a_form_stand_for_its_weights(scheme):
    for R, C in shapes(scheme) if has_operator(parse(scheme)) else [EVEN]:
        form = rounded(normal(R, C), parse(scheme))
        layers = [make_linear(form, scheme, reference=True)]
        if has_operator(parse(scheme)):
            layers += [make_linear(form, scheme), make_linear(normal(R, C), scheme)]
        for layer in layers:
            assert torch.equal(layer.dequantized(), form.dequantized())
            assert layer.format == str(parse(scheme))
            assert (layer.shape, layer.nbytes) == ((R, C), form.nbytes)
            assert layer.effective_bits == form.effective_bits


@with_operator
def test_a_form_multiplies_as_the_weights_that_it_was_rounded_from(scheme):
    weight, x = normal(*EVEN), normal(3, EVEN[1], seed=1)
    form = rounded(weight, parse(scheme))
    for reference in (False, True):
        one = make_linear(form, scheme, reference=reference)
        assert torch.equal(one(x), make_linear(weight, scheme, reference=reference)(x))


@every_way
def test_a_loud_neighbour_changes_no_other_row(scheme, reference):
    quiet = normal(8, EVEN[1], seed=3)
    loud = quiet.clone()
    loud[5] *= 1e3
    linear = make_linear(normal(*EVEN), scheme, reference=reference)
    others = [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(linear(loud)[others], linear(quiet)[others])
    assert not torch.equal(linear(loud)[5], linear(quiet)[5])


@every_way
def test_row_invariant_layers_give_the_same_bits_for_any_number_of_rows(scheme, reference):
    R, C = shapes(scheme)[-1] if scheme in OPERATORS else EVEN
    linear = make_linear(normal(R, C), scheme, reference=reference, row_invariant=True)
    x = normal(T_MAX, C, seed=4)
    together = linear(x)
    for T in (*AWKWARD_T, 33):
        assert torch.equal(linear(x[:T]), together[:T])
        assert torch.equal(linear(x[-T:]), together[-T:])


@with_operator
def test_what_a_product_reads_is_counted_in_the_operators_own_layout(scheme):
    R, C = EVEN
    known = parse(scheme)
    linear = make_linear(normal(R, C), scheme)
    if known.rows < 16:
        wanted = R * C + 4 * R
    elif scheme == "fp32" or scheme == "w8a16-sym":
        wanted = linear.nbytes
    else:
        n_planes = 1 if known.bits <= 4 and known.grid == "int" else 2
        # a scale and a zero of 16 bits each; whole rows of 384 are cut into groups of 128
        wanted = n_planes * (R * C // 2 + 4 * R * C // (known.group or 128))
    assert linear.bytes_read == wanted


# forms of other schemes, branches, refusals


@pytest.mark.parametrize("bits", [2, 3, 6, 8])
def test_a_layer_may_have_other_bits_than_its_model(bits):
    form, x = rounded(normal(*EVEN), parse(f"w{bits}a16-g64-zp")), normal(3, EVEN[1], seed=1)
    fast, definition = pair("w4a16-g128", form)
    apart = (fast(x).double() - definition(x).double()).abs()
    assert (apart <= tolerance("w4a16-g128", form, x, definition(x))).all()
    assert fast.format == "w4a16-g128" and torch.equal(fast.dequantized(), form.dequantized())


@pytest.mark.parametrize(
    "scheme, reference",
    [(scheme, way) for scheme in ("w4a16-g128", "w8a16", "w4a8", "mxfp4") for way in (True, False)]
    + [("nf4", True)],
)
def test_a_branch_adds_its_product_in_fp32(scheme, reference):
    base, x = rounded(normal(*EVEN), parse(scheme)), normal(5, EVEN[1], seed=1)
    up, down = normal(EVEN[0], 4).bfloat16(), normal(4, EVEN[1], seed=2).bfloat16()
    form = LowRank(base, up, down)
    linear = make_linear(form, scheme, reference=reference)
    alone = make_linear(base, scheme, reference=reference)
    wanted = alone(x).double() + x.double() @ down.double().T @ up.double().T
    torch.testing.assert_close(linear(x).double(), wanted, rtol=1e-6, atol=1e-3)
    assert torch.equal(linear.dequantized(), form.dequantized())
    assert (linear.nbytes, linear.shape) == (form.nbytes, EVEN)
    assert linear.bytes_read == alone.bytes_read + 4 * 4 * sum(EVEN)


@pytest.mark.parametrize("scheme", DEFINED)
def test_schemes_without_an_operator_run_by_their_definition_alone(scheme):
    line = f"^{scheme} has no fast operator on cpu; formats with one: .* or {scheme}.reference$"
    with pytest.raises(ValueError, match=line):
        make_linear(torch.zeros(EVEN), scheme)
    with pytest.raises(ValueError, match=line):
        check_shape(*EVEN, scheme)
    check_shape(*EVEN, scheme, reference=True)
    assert make_linear(normal(*EVEN), scheme, reference=True)(normal(2, EVEN[1])).any()


FORMS = {
    "groups along outputs": PerInput(rounded(normal(64, 32), parse("w4a16-g32"))),
    "nf4": rounded(normal(32, 64), parse("nf4")),
    "e4m3": rounded(normal(32, 64), parse("fp8a16")),
    "not rounded": rounded(normal(32, 64), parse("w16a16")),
}
FORMS["a branch"] = LowRank(
    FORMS["nf4"], torch.ones(32, 2).bfloat16(), torch.ones(2, 64).bfloat16()
)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_without_an_operator_run_by_their_definition_alone(form):
    with pytest.raises(
        ValueError, match="^w4a16-g32 of the form '.*' has no operator on cpu here;"
    ):
        make_linear(form, "w4a16-g32")
    x = normal(3, form.shape[1])
    y = make_linear(form, "w4a16-g32", reference=True)(x)
    torch.testing.assert_close(y, x @ form.dequantized().T, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("held", ["w4a16", "w4a16-g32", "w4a16-g32-sym", "mxfp4", "fp8"])
@pytest.mark.parametrize("asked", ["w8a8", "w4a4"])
def test_integer_rows_need_integers_with_one_scale_a_row(held, asked):
    form, x = rounded(normal(32, 64), parse(held)), normal(3, 64, seed=1)
    with pytest.raises(ValueError, match=f"^{asked} of the form '{held}' has no operator"):
        make_linear(form, asked)
    y = make_linear(form, asked, reference=True)(x)
    integers, step = row_integers(x, parse(asked).rows)
    torch.testing.assert_close(y, (integers * step) @ form.dequantized().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "scheme, shape, problem",
    [
        ("w4a16-g32", (40, 64), "40 output features are not a multiple of 16"),
        ("w8a16-zp", (16, 48), "48 input features are not a multiple of 32"),
        ("w3a16", (16, 40), "40 input features are not a multiple of 32"),
        ("mxfp4", (17, 64), "17 output features are not a multiple of 16"),
        ("w8a16", (16, 40), "40 input features are not a multiple of 16"),
    ],
)
def test_shapes_of_no_operator_are_refused_and_run_by_the_definition(scheme, shape, problem):
    weight, x = normal(*shape), normal(3, shape[1])
    form = rounded(weight, parse(scheme))
    line = f"^{scheme}: {problem}, which the CPU operator needs; .reference takes any$"
    for what in (weight, form):
        with pytest.raises(ValueError, match=line):
            make_linear(what, scheme)
    with pytest.raises(ValueError, match=line):
        check_shape(*shape, scheme)
    y = make_linear(weight, scheme, reference=True)(x)
    torch.testing.assert_close(y, x @ form.dequantized().T, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("scheme, C", [("w4a16-g128", 192), ("mxfp4", 48), ("nf4", 96)])
@both
def test_groups_that_do_not_fit_are_refused_by_the_definition_too(scheme, C, reference):
    with pytest.raises(ValueError, match=f"{scheme}: {C} input features are not a multiple of"):
        make_linear(torch.ones(16, C), scheme, reference=reference)


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w8a16", "w8a8"])
def test_a_form_on_another_device_is_refused(scheme):
    with pytest.raises(ValueError, match=f"^{scheme} has no operator on meta here"):
        make_linear(rounded(normal(32, 64), parse(scheme)).to("meta"), scheme)


# embeddings


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("hidden", [64, 37])
def test_looked_up_rows_are_the_dequantized_rows(bits, hidden):
    weight = normal(50, hidden) * 10.0 ** torch.linspace(-3, 3, 50)[:, None]
    embedding, ids = Embedding.of(weight, bits), torch.tensor([49, 0, 7, 7, 31])
    rows = embedding[ids]
    assert rows.dtype == torch.float32
    assert torch.equal(rows, embedding.form.dequantized()[ids])
    # half a step of a token's own largest, beside what rounding its scale to bf16 costs
    step = weight.abs().amax(1, keepdim=True)[ids] / (2 ** (bits - 1) - 1)
    bound = step * (0.51 + 2.0**-8 * 2 ** (bits - 1))
    assert ((rows - weight[ids]).abs() <= bound).all()
    assert embedding.nbytes == 50 * (-(-hidden * bits // 8) + 2)


def test_an_embedding_of_16_bits_is_itself():
    weight = normal(5, 8)
    assert Embedding.of(weight, 16) is weight
