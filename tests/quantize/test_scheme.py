"""Names of schemes and formats: one for each, read back as written, contradictions refused."""

import re
from dataclasses import replace
from itertools import product

import pytest

from hspec_lab.formats import ALGORITHMS, RECIPES, Format
from hspec_lab.scheme import FP32, Scheme, has_operator, parse

# more than is allowed, so that what a scheme accepts is found and not listed here
FIELDS = {
    "grid": ("int", "float", "mxfp4", "nf4", "e4m3", "bitstack", "other"),
    "bits": (32, 16, 8, 7, 6, 4, 3, 2, 1),
    "rows": (32, 16, 8, 4, 2),
    "group": (None, 0, 32, 64, 100, 128),
    "zero": (False, True),
    "megabytes": (None, 0.0, 6.5, 1234567.25, float("inf")),
}
PARTS = {"kv": (16, 8, 4, 2), "head": (None, 16, 8, 6, 4, 3, 2), "embedding": (16, 8, 4)}


def _accepted() -> list[Scheme]:
    found = []
    for values in product(*FIELDS.values()):
        try:
            found.append(Scheme(**dict(zip(FIELDS, values, strict=True))))
        except ValueError as refusal:
            assert len(str(refusal).splitlines()) == 1
    return found


SCHEMES = _accepted()


def test_a_scheme_accepts_what_is_stored_and_nothing_else():
    # integers beside 16-bit rows; beside integer rows; two levels; the rest has names of its own
    assert len(SCHEMES) == 5 * 4 * 2 + 2 * 5 + 3 + len(("fp32", "w16a16")) + 4 + 2
    assert {scheme.grid for scheme in SCHEMES} == set(FIELDS["grid"]) - {"other"}


def test_every_name_is_read_back_as_the_scheme_that_wrote_it():
    names = set()
    for scheme in SCHEMES:
        for values in product(*PARTS.values()):
            whole = replace(scheme, **dict(zip(PARTS, values, strict=True)))
            name = str(whole)
            assert parse(name) == whole and str(parse(name)) == name
            assert whole.weights == scheme
            names.add(name)
    assert len(names) == len(SCHEMES) * 4 * 7 * 3


@pytest.mark.parametrize(
    "typed, short",
    [
        ("w4", "w4a16"),
        ("w4-g128", "w4a16-g128"),
        ("w4a16-g128-zp", "w4a16-g128"),
        ("w8a16-sym", "w8a16"),
        ("w4a8-g32-sym", "w4a8-g32"),
        ("w32a32", "fp32"),
        ("w16", "w16a16"),
        ("w8-kv16-emb16", "w8a16"),
        ("bitstack-06.50mb", "bitstack-6.5mb"),
        ("bitstack-7.0mb", "bitstack-7mb"),
    ],
)
def test_what_goes_without_saying_is_left_out_of_a_name(typed, short):
    assert str(parse(typed)) == short


def test_names_say_what_the_fields_hold():
    assert parse("w4a16-g128-sym-kv4-head6-emb8") == Scheme(
        bits=4, rows=16, group=128, zero=False, kv=4, head=6, embedding=8
    )
    assert parse("w4a8-g64") == Scheme(bits=4, rows=8, group=64) and parse("w4a8-g64").two_levels
    assert parse("w3a16").zero and not parse("w8a16").zero and not parse("w4a8").zero
    assert parse("fp32") == FP32 and not FP32.rounds and parse("fp8").rows == 8
    assert parse("bitstack-6.5mb").megabytes == 6.5


@pytest.mark.parametrize(
    "name, output",
    [
        ("fp32", "fp32"),
        ("w16a16", "w16a16"),
        ("fp8", "fp8"),
        ("w8a16-g64-zp", "w8a16-g64-zp"),
        ("w4a16-g32-kv4", "w8a16"),
        ("mxfp4", "w8a16"),
        ("w3a8", "w8a8"),
        ("w4a4", "w8a8"),
        ("w4a8-g128-head4", "w4a8"),
        ("w4a16-g32-head4", "w4a16-g32"),
        ("w4a16-head3", "w3a16-g128"),
        ("nf4-head4", "w4a16-g128"),
        ("w8a8-head16", "w16a16"),
        ("fp32-head8", "w8a16"),
        ("fp32-head16", "fp32"),
    ],
)
def test_the_output_layer_keeps_eight_bits_unless_told(name, output):
    assert str(parse(name).output) == output


def test_schemes_with_an_operator_on_cpus_are_integers_mxfp4_and_fp32():
    without = {str(scheme) for scheme in SCHEMES if not has_operator(scheme)}
    stacks = {"bitstack-6.5mb", "bitstack-1234567.25mb"}
    assert without == {"w16a16", "nf4", "fp8", "fp8a16"} | stacks


CONTRADICTIONS = [
    ("w16-g128", "16-bit weights are not rounded: leave out -g128"),
    ("w16-sym", "16-bit weights are not rounded: leave out -sym"),
    ("w16a16-g0", "16-bit weights are not rounded: leave out -g0"),
    ("w16a8", "rows of 8 bits need weights of at most 8"),
    ("fp32-sym", "32-bit weights are not rounded: leave out -sym"),
    ("fp32-g0", "32-bit weights are not rounded: leave out -g0"),
    ("w8a8-g128", "integer sums over groups need two levels of scales, which w4a8 has: "
                  "leave out -g128"),
    ("w4a4-g32", "integer sums over groups need two levels of scales, which w4a8 has: "
                 "leave out -g32"),
    ("w4a8-zp", "weights that meet rows of 8 bits are symmetric: leave out -zp"),
    ("w4a8-g128-zp", "weights that meet rows of 8 bits are symmetric: leave out -zp"),
    ("w5", "weights have 16, 8, 6, 4, 3, 2 bits, not 5"),
    ("w32", "weights have 16, 8, 6, 4, 3, 2 bits, not 32"),
    ("w4a32", "rows have 16, 8, 4 bits, not 32"),
    ("w4-g100", "groups are of 32, 64, 128 inputs or a row, not 100"),
    ("w4-g0", "groups are of 32, 64, 128 inputs or a row, not 0"),
    ("mxfp4-g32", "groups and zeros of mxfp4 are fixed: leave out -g32"),
    ("nf4-zp", "groups and zeros of nf4 are fixed: leave out -zp"),
    ("fp8-g128-sym", "groups and zeros of fp8 are fixed: leave out -g128"),
    ("bitstack-6mb-g64", "groups and zeros of bitstack are fixed: leave out -g64"),
    ("bitstack-0mb", "a stack is cut to a size above 0 MB, not 0.0"),
    ("w4a16-kv3", "keys and values have 16, 8, 4, 2 bits, not 3"),
    ("w4a16-kv0", "keys and values have 16, 8, 4, 2 bits, not 0"),
    ("fp32-head5", "the output layer has 16, 8, 6, 4, 3, 2 bits, not 5"),
    ("nf4-emb2", "the embedding has 16, 8, 4 bits, not 2"),
    ("w4+gptq+hqq", "one rounding at most, got gptq and hqq"),
    ("w4+awq+gptq", "one rounding at most, got awq and gptq"),
    ("w4+lim+zd", "one allocation at most, got lim and zd"),
    ("w4+gptq+quarot", "transforms come first, rounding last: write +quarot+gptq"),
    ("w3+gptq+evopress", "transforms come first, rounding last: write +evopress+gptq"),
    ("w4+gptq+gptq", "an algorithm is applied twice: gptq, gptq"),
    ("w4+awq+awqscale", "an algorithm is applied twice: awqscale, clip, awqscale"),
    ("w4+reference+reference", "reference is said twice"),
    ("w4-sym+hqq", "hqq needs weights with zeros, which w4a16-sym has not"),
    ("nf4+hqq", "hqq needs weights with zeros, which nf4 has not"),
    ("w4a8+finequant", "finequant needs integer weights with 16-bit rows, which w4a8 has not"),
    ("mxfp4+evopress", "evopress needs integer weights with 16-bit rows, which mxfp4 has not"),
    ("w4+adadim", "adadim needs groups along inputs, which w4a16 has not"),
    ("w4a8-g128+adadim", "adadim needs groups along inputs, which w4a8-g128 has not"),
    ("fp32+gptq", "nothing is rounded, so leave out +gptq"),
    ("w16+awq", "nothing is rounded, so leave out +awq"),
    ("bitstack-6mb+gptq", "a stack has a solver of its own, so leave out +gptq"),
]  # fmt: skip


@pytest.mark.parametrize("name, problem", CONTRADICTIONS, ids=[name for name, _ in CONTRADICTIONS])
def test_contradictions_are_refused_under_the_name_that_came(name, problem):
    with pytest.raises(ValueError) as refusal:
        Format.parse(name)
    assert str(refusal.value) == f"{name}: {problem}"


@pytest.mark.parametrize(
    "name",
    ["", "W4", "w4a", "w4_g128", "w4-kv4-g128", "w4-emb8-kv8", "w4-sym-zp", "bf16", "int4", "w4.5",
     "bitstack", "bitstack-mb", "bitstack-6", "bitstack--1mb", "bitstack-1e3mb", "fp32a16", "w4 "],
)  # fmt: skip
def test_what_is_no_name_is_told_how_names_are_made(name):
    with pytest.raises(ValueError) as refusal:
        parse(name)
    line = str(refusal.value)
    assert line.startswith(f"unknown format {name!r}; a format is fp32, w16a16, ")
    assert line.endswith("such as w4a16-g128 or w8a8") and "\n" not in line
    # what it offers can be typed
    assert set(re.findall(r"w\da\d+\S*", line)) == {"w4a16-g128", "w8a8"}


@pytest.mark.parametrize("name", [None, 4, b"w4", ["w4"], Scheme(bits=4)])
def test_what_is_no_text_is_refused(name):
    for read in (parse, Format.parse):
        with pytest.raises(ValueError, match="format"):
            read(name)


@pytest.mark.parametrize("name", ["w4+", "w4+GPTQ", "w4+quip", "+gptq"])
def test_unknown_algorithms_are_told_the_known_ones(name):
    with pytest.raises(ValueError, match="^unknown (algorithm|format) ") as refusal:
        Format.parse(name)
    if not name.startswith("+"):
        assert str(refusal.value).endswith(f"known: {', '.join(ALGORITHMS)}; and reference")


def test_a_format_names_scheme_algorithms_and_reference_in_this_order():
    format = Format.parse("w4+reference+quarot+gptq")
    assert format == Format(parse("w4a16"), ("quarot", "gptq"), True)
    assert str(format) == "w4a16+quarot+gptq+reference"
    assert Format.parse(str(format)) == format


def test_every_algorithm_has_a_scheme_it_works_for_and_a_name_that_is_read_back():
    for scheme in ("w4a16-g128", "w4a8-g128-kv4"):
        for name in ALGORITHMS:
            if scheme != "w4a16-g128" and name not in ("gptq", "qoq", "smooth", "quarot"):
                continue
            format = Format.parse(f"{scheme}+{name}")
            assert str(format) == f"{scheme}+{name}" and format.is_made
            assert format.steps == RECIPES.get(name, (name,))
            assert format.rotates == (name in ("quarot", "qoq"))


def test_rounding_to_nearest_needs_no_folder_and_a_stack_does():
    assert not Format.parse("w4a16-g128+reference").is_made
    assert Format.parse("bitstack-6.5mb").is_made
    # a transform alone keeps the function, so that weights that are not rounded may have one
    assert Format.parse("fp32+quarot").is_made
