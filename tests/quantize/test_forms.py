"""Forms: packing bit by bit, sizes by formula, to a file and back, rows in another order."""

import pytest
import torch
from safetensors.torch import load, save

from hspec_lab.quant.forms import (
    Form,
    Grouped,
    LowRank,
    PerInput,
    Plain,
    from_file,
    pack_codes,
    rounded,
    unpack_codes,
)
from hspec_lab.quant.grids import grid_of, to_row_units
from hspec_lab.scheme import parse

WIDTHS = (8, 6, 4, 3, 2)
SCHEMES = [f"w{b}a16{g}{z}" for b in WIDTHS for g in ("", "-g32", "-g128") for z in ("-sym", "-zp")]
SCHEMES += [f"w{b}a{rows}" for b in WIDTHS for rows in (8, 4)]
SCHEMES += ["w4a8-g32", "w4a8-g128", "mxfp4", "nf4", "fp8", "fp8a16", "w16a16", "fp32"]
R, C = 11, 256
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def per_input(scheme: str, seed=0) -> PerInput:
    """Groups of 32 along 64 outputs, of 5 inputs."""
    return PerInput(rounded(normal(5, 64, seed=seed), parse(scheme)))


def low_rank(base: Form, k=3) -> LowRank:
    rows, columns = base.shape
    return LowRank(base, normal(rows, k).bfloat16(), normal(k, columns, seed=1).bfloat16())


FORMS = {name: rounded(normal(R, C), parse(name)) for name in SCHEMES}
FORMS["an odd row"] = rounded(normal(7, 37), parse("w3a16"))
FORMS["per input"] = per_input("w4a16-g32")
FORMS["per input, symmetric"] = per_input("w3a16-g32-sym")
FORMS["low rank"] = low_rank(FORMS["w4a16-g32-zp"])
FORMS["low rank of two levels"] = low_rank(FORMS["w4a8-g128"])
FORMS["low rank per input"] = low_rank(FORMS["per input"])
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def assert_same(one: Form, other: Form):
    assert (one.kind, one.shape, type(one)) == (other.kind, other.shape, type(other))
    named, others = one.tensors(), other.tensors()
    assert list(named) == list(others)
    for name, tensor in named.items():
        assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name])
    assert torch.equal(one.dequantized(), other.dequantized())


# packing


@pytest.mark.parametrize(
    "bits, codes, packed",
    [
        (8, [1, 255], [1, 255]),
        (4, [1, 2, 15], [0x21, 0x0F]),
        (2, [3, 0, 1, 2, 1], [0b10_01_00_11, 0b01]),
        (1, [1, 0, 0, 0, 0, 0, 0, 1, 1], [0b1000_0001, 1]),
        # low two bits of 5, 2, 7, 0, 6, then the high bits
        (3, [5, 2, 7, 0, 6], [0b00_11_10_01, 0b10, 0b10101]),
        # low four bits of 33, 31, 48, then the high two
        (6, [0x21, 0x1F, 0x30], [0xF1, 0x00, 0b11_01_10]),
    ],
)
def test_codes_are_packed_in_planes_low_bits_first(bits, codes, packed):
    found = pack_codes(torch.tensor([codes, codes[::-1]], dtype=torch.uint8), bits)
    assert found[0].tolist() == packed
    assert unpack_codes(found, bits, len(codes)).tolist() == [codes, codes[::-1]]


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2, 1])
def test_packed_codes_come_back_whatever_the_shape(bits):
    generator = torch.Generator().manual_seed(bits)
    planes = {8: (8,), 6: (4, 2), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}[bits]
    for _ in range(40):
        rows, columns = torch.randint(1, 70, (2,), generator=generator).tolist()
        codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
        packed = pack_codes(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.shape == (rows, sum(-(-columns * b // 8) for b in planes))
        assert torch.equal(unpack_codes(packed, bits, columns), codes)


def test_packing_leaves_codes_alone():
    codes = torch.arange(9, dtype=torch.uint8)[None]
    pack_codes(codes, 3)
    assert codes.tolist() == [list(range(9))]


# rounding to nearest


@every_scheme
def test_every_group_is_rounded_by_its_own_weights(scheme):
    scheme, weight = parse(scheme), normal(R, C, seed=1)
    kept = rounded(weight, scheme).dequantized()
    if not scheme.rounds:
        wanted = weight if scheme.bits == 32 else weight.bfloat16().float()
        assert torch.equal(kept, wanted)
        return
    grid = grid_of(scheme)
    units, row_scale = to_row_units(weight) if grid.two_levels else (weight, torch.ones(R))
    G = scheme.group or C
    for start in range(0, C, G):
        group = units[:, start : start + G]
        scale, zero = grid.fit(group)
        wanted = grid.expand(grid.round(group, scale, zero), scale, zero) * row_scale[:, None]
        assert torch.equal(kept[:, start : start + G], wanted)


def test_rounding_leaves_weights_alone():
    for scheme in SCHEMES:
        weight = normal(R, C)
        rounded(weight, parse(scheme))
        assert torch.equal(weight, normal(R, C))


def test_a_form_keeps_the_scheme_of_the_weights_alone():
    form = rounded(normal(R, C), parse("w4a16-g128-kv4-head6-emb8"))
    assert form.kind == "w4a16-g128" and form.group == 128
    codes = form.codes()
    again = Grouped.of(parse("w4a16-g128-kv2"), codes, form.scale, form.zero)
    assert_same(again, form)


# sizes


def stored_bytes(name: str, R: int, C: int) -> int:
    """Bytes of a scheme's weights: codes in whole bytes of a row, then scales and zeros."""
    scheme = parse(name)
    if not scheme.rounds:
        return R * C * scheme.bits // 8
    planes = {6: (4, 2), 3: (2, 1)}.get(scheme.bits, (scheme.bits,))
    codes = sum(-(-C * b // 8) for b in planes)
    n = C // (scheme.group or C)
    if scheme.two_levels:  # a byte of scale and one of zero, and fp32 for the row
        return R * (codes + 2 * n + 4)
    of_a_group = {"mxfp4": 1, "nf4": 2, "e4m3": 4}.get(scheme.grid)
    if scheme.grid == "int":  # bf16, where rows are integers fp32
        of_a_group = (2 if scheme.rows == 16 else 4) * (2 if scheme.zero else 1)
    return R * (codes + of_a_group * n)


@every_scheme
def test_stored_bytes_follow_from_the_scheme(scheme):
    form = FORMS[scheme]
    assert form.nbytes == stored_bytes(scheme, R, C)
    assert form.effective_bits == 8 * form.nbytes / (R * C)


@pytest.mark.parametrize(
    "form, bits",
    [
        ("w4a16-g128-zp", 4.25),
        ("w4a16-g128-sym", 4.125),
        ("w3a16-g32-zp", 4.0),
        ("w2a16-g32-zp", 3.0),
        ("w6a16-g128-sym", 6.125),
        ("w8a8", 8 + 32 / C),
        ("w4a8-g128", 4.125 + 32 / C),
        ("mxfp4", 4.25),
        ("nf4", 4.25),
        ("fp8", 8 + 32 / C),
        ("w16a16", 16.0),
        # 64 outputs of an input share two scales and two zeros
        ("per input", 5.0),
        ("low rank", 5.0 + 16 * 3 * (R + C) / (R * C)),
        ("an odd row", 8 * (10 + 5 + 4) / 37),
    ],
)
def test_effective_bits_by_hand(form, bits):
    assert FORMS[form].effective_bits == pytest.approx(bits, rel=1e-12)


# to a file and elsewhere


@every_form
def test_a_form_goes_to_a_file_and_back(form):
    tensors = {name: tensor.contiguous() for name, tensor in form.tensors().items()}
    assert_same(from_file(form.kind, load(save(tensors)), form.shape), form)


@every_form
def test_a_form_answers_in_fp32_and_in_its_shape(form):
    kept = form.dequantized()
    assert kept.dtype == torch.float32 and tuple(kept.shape) == form.shape
    assert kept.isfinite().all() and kept.is_contiguous()


@every_form
def test_rows_in_another_order_are_the_same_rows(form):
    R = form.shape[0]
    order = torch.randperm(R, generator=torch.Generator().manual_seed(1))
    once = form.reordered(order)
    assert once.shape == form.shape and once.kind == form.kind and once.nbytes == form.nbytes
    assert torch.equal(once.dequantized(), form.dequantized()[order])
    # an order after an order, and back
    back = once.reordered(torch.roll(torch.arange(R), 1)).reordered(torch.roll(order.argsort(), 1))
    wanted = form.dequantized()[order].roll(1, 0)[torch.roll(order.argsort(), 1)]
    assert torch.equal(back.dequantized(), wanted)
    assert torch.equal(once.reordered(order.argsort()).dequantized(), form.dequantized())


@every_form
def test_a_form_moves_with_all_of_its_tensors(form):
    assert_same(form.to("cpu"), form)
    there = form.reordered(torch.arange(form.shape[0])).to("meta")
    assert {tensor.device.type for tensor in there.tensors().values()} == {"meta"}
    assert there.shape == form.shape and there.dequantized().device.type == "meta"


# more than one


def test_groups_along_the_outputs_are_a_form_of_the_transpose():
    weight = normal(5, 64)
    form = PerInput(rounded(weight, parse("w4a16-g32")))
    assert form.shape == (64, 5) and form.kind == "per-input w4a16-g32"
    assert torch.equal(form.dequantized(), rounded(weight, parse("w4a16-g32")).dequantized().T)
    # a loud input keeps to itself
    loud = weight.clone()
    loud[2] *= 1e3
    kept = PerInput(rounded(loud, parse("w4a16-g32"))).dequantized()
    others = [0, 1, 3, 4]
    assert torch.equal(kept[:, others], form.dequantized()[:, others])


def test_a_branch_is_added_to_what_was_rounded():
    base = rounded(normal(2, 32), parse("w8a16"))
    up, down = torch.tensor([[1.0], [2.0]]).bfloat16(), torch.ones(1, 32).bfloat16()
    form = LowRank(base, up, down)
    added = torch.tensor([[1.0], [2.0]]).expand(2, 32)
    assert torch.equal(form.dequantized(), base.dequantized() + added)
    assert form.kind == "low-rank w8a16" and form.nbytes == base.nbytes + 2 * (2 + 32)


def test_weights_in_two_levels_are_integers_of_their_row():
    form = rounded(normal(R, C), parse("w4a8-g128"))
    q, scale = form.integers()
    assert form.has_integers and q.dtype == torch.int8 and scale.dtype == torch.float32
    assert torch.equal(q.float() * scale[:, None], form.dequantized())


@every_scheme
def test_integers_are_the_weights_where_a_row_has_one_scale(scheme):
    form, scheme = FORMS[scheme], parse(scheme)
    if isinstance(form, Plain):
        return
    whole = scheme.grid == "int" and scheme.group is None and not scheme.zero
    assert form.has_integers == (whole or scheme.two_levels)
    if form.has_integers:
        q, scale = form.integers()
        assert q.min() >= -127
        assert torch.equal(q.float() * scale[:, None], form.dequantized())


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown format 'w4a16-g128-packed'"):
        from_file("w4a16-g128-packed", {}, (R, C))
