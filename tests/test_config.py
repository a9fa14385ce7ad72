"""Configs: values that refuse what is wrong, print as code, and have one id each."""

import dataclasses

import pytest

from hspec_lab.config import (
    CPU_FORMATS,
    DEVICE_FORMATS,
    FORMATS,
    MENU,
    Chain,
    Config,
    Eagle2,
    Refine,
    as_dict,
    check_format,
    config_id,
    from_dict,
    split_model,
)
from hspec_lab.formats import ALGORITHMS, RECIPES, Format

HIERARCHY = Config(
    target="zoo:target@w4a16-g128",
    draft=Refine("zoo:intermediate@w8a8", Eagle2(tree_size=24, depth=4, top_k=8), at_least=6),
    prompts=("one", "two"),
)


def test_a_config_prints_as_the_code_that_makes_it():
    assert eval(repr(HIERARCHY)) == HIERARCHY


def test_a_config_survives_its_json():
    assert from_dict(as_dict(HIERARCHY)) == HIERARCHY
    assert config_id(from_dict(as_dict(HIERARCHY))) == config_id(HIERARCHY)


def test_the_id_follows_every_field():
    changes = {"target": "zoo:target", "draft": None, "prompts": ("one",), "n_prompts": 3}
    changes |= {"max_new_tokens": 5, "temperature": 0.5, "seed": 1, "stop": ("x",)}
    changes |= {"row_invariant": True, "threads": 1, "device": "cuda"}
    assert set(changes) == {field.name for field in dataclasses.fields(Config)}
    ids = {config_id(dataclasses.replace(HIERARCHY, **{k: v})) for k, v in changes.items()}
    assert len(ids | {config_id(HIERARCHY)}) == len(changes) + 1


def test_equal_configs_have_equal_ids():
    assert config_id(Config(temperature=0)) == config_id(Config(temperature=0.0))


@pytest.mark.parametrize(
    "draft, method",
    [
        (None, "ar"),
        (Chain("zoo:intermediate"), "chain"),
        (Eagle2(), "eagle2"),
        (Refine("zoo:intermediate", Eagle2()), "hierspec"),
    ],
)
def test_the_method_follows_from_the_drafter(draft, method):
    assert Config(draft=draft).method == method


def test_an_at_sign_in_a_folder_is_not_a_format():
    assert split_model("/data/a@b/c") == ("/data/a@b/c", "fp32")
    assert split_model("/data/a@b/c@w8a8") == ("/data/a@b/c", "w8a8")


def test_formats_are_what_either_kind_of_device_multiplies():
    assert set(FORMATS) == {*CPU_FORMATS, *DEVICE_FORMATS} and len(set(FORMATS)) == len(FORMATS)
    for format in FORMATS:
        assert split_model(f"x@{format}") == ("x", format)


# what else a line of refusal offers: a format of the other kind of device, the definition
@pytest.mark.parametrize(
    "device, format, others",
    [
        ("cpu", "w16a16", "w16a16+reference, or device='cuda'"),
        ("cpu", "fp8", "fp8+reference, or device='cuda'"),
        ("cpu", "nf4", "nf4+reference"),
        ("cpu", "nf4+gptq", "nf4+gptq+reference"),
        ("cpu", "bitstack-6.5mb", "bitstack-6.5mb+reference"),
        ("cuda", "fp32", "device='cpu'"),
        ("cuda:1", "w4a16-g64", "device='cpu'"),
        ("cuda", "nf4+reference", "device='cpu'"),
        ("cuda", "mxfp4", "device='cpu'"),
    ],
)
def test_a_format_without_a_fast_operator_names_those_with_one(device, format, others):
    known = CPU_FORMATS if device == "cpu" else DEVICE_FORMATS
    with pytest.raises(ValueError) as refusal:
        check_format(format, device)
    assert str(refusal.value) == (
        f"{format} has no fast operator on {device}; formats with one: "
        f"{', '.join(known)}, or {others}"
    )


@pytest.mark.parametrize(
    "device, formats", [("cpu", CPU_FORMATS), ("cuda", DEVICE_FORMATS), ("cuda:1", DEVICE_FORMATS)]
)
def test_formats_with_a_fast_operator_are_taken_under_their_short_name(device, formats):
    for format in formats:
        assert check_format(format, device) == format
    assert check_format("w4-g128+awq", device) == "w4a16-g128+awq"


def test_a_cpu_takes_more_formats_than_are_offered_and_all_by_their_definition():
    for format in ("w3a16-g64-sym", "mxfp4", "w4a4", "w6a8", "w4a8-g32-kv4-head4-emb4"):
        assert check_format(format, "cpu") == format
    for format in (
        "nf4+reference",
        "fp8a16+reference",
        "w16a16+reference",
        "w4a8-head16+reference",
    ):
        assert check_format(format, "cpu") == format


@pytest.mark.parametrize(
    "device, format, part",
    [
        ("cpu", "w4a16-g128-head16", "its output layer, w16a16"),
        ("cuda", "w4a16-g128-head3", None),
        ("cuda", "w8a16-head3", None),
        ("cuda", "w4a16-g128-head6", "its output layer, w6a16-g128"),
        ("cuda", "w8a8-kv4", "keys and values of 4 bits"),
        ("cuda", "w8a8-emb8", "its embedding"),
    ],
)
def test_a_part_without_a_fast_operator_is_named(device, format, part):
    if part is None:
        assert check_format(format, device) == format
        return
    with pytest.raises(ValueError) as refusal:
        check_format(format, device)
    line = f"{format} has no fast operator on {device} ({part}); formats with one: "
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Config(target="zoo:target@w5"), "^w5: weights have 16, 8, 6, .* not 5$"),
        (lambda: Config(target="zoo:target@bf16"), "unknown format 'bf16'; a format is fp32, "),
        (lambda: Config(target="zoo:target@fp32+gptq"), "nothing is rounded, so leave out [+]gptq"),
        (lambda: Config(target="@fp32"), "a model is written"),
        (lambda: Config(target=5), "a model is written"),
        (lambda: Eagle2(tree_size=0), r"tree_size must be 1..1024, got 0"),
        (lambda: Eagle2(tree_size=1025), r"tree_size must be 1..1024, got 1025"),
        (lambda: Eagle2(tree_size=True), "tree_size must be"),
        (lambda: Eagle2(depth=0), "depth must be"),
        (lambda: Eagle2(top_k="8"), "top_k must be"),
        (lambda: Eagle2(head="x@w4a16-g128+gptq"), "format is a scheme alone, got w4a16-g128.gptq"),
        (lambda: Eagle2(head="x@w8a8-kv4"), "w8a8 says all there is, got w8a8-kv4"),
        (lambda: Chain("zoo:intermediate", draft_len=0), "draft_len must be"),
        (lambda: Refine("zoo:intermediate", None), "draft must be Eagle2, Chain or Refine"),
        (lambda: Refine("zoo:intermediate", Eagle2(), sampling="x"), "sampling must be"),
        (lambda: Refine("zoo:intermediate", Eagle2(), tree_size=0), "tree_size must be"),
        (
            lambda: Config(temperature=1, draft=Refine("a", Refine("b", Eagle2(), tree_size=8))),
            'second choices, which are not drawn; at temperature 1 it needs sampling="greedy"',
        ),
        (lambda: Config(draft="eagle2"), "draft must be None, Eagle2"),
        (lambda: Config(prompts="text"), "prompts must be a tuple"),
        (lambda: Config(prompts=("",)), "prompts must be a tuple of non-empty"),
        (lambda: Config(prompts=("\ud800",)), "prompts must be a tuple"),
        (lambda: Config(stop=None), "stop must be a tuple"),
        (lambda: Config(temperature=float("nan")), "temperature must be"),
        (lambda: Config(temperature=1e-9), "temperature must be"),
        (lambda: Config(temperature="1"), "temperature must be"),
        (lambda: Config(seed=-1), "seed must be"),
        (lambda: Config(seed=1.5), "seed must be"),
        (lambda: Config(row_invariant="no"), "row_invariant must be True or False"),
        (lambda: Config(max_new_tokens=0), "max_new_tokens must be"),
        (lambda: from_dict({"targt": "zoo:target"}), "Config has no targt; known: "),
        (lambda: from_dict({"draft": {"kind": "Medusa"}}), "unknown drafter 'Medusa'; known"),
        (lambda: from_dict({"draft": {"kind": "Chain"}}), "Chain: .*model"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_menu_offers_every_algorithm_in_formats_that_a_cpu_takes():
    assert all(check_format(name, "cpu") == name for name in MENU) and len(set(MENU)) == len(MENU)
    offered = {step for name in MENU for step in Format.parse(name).algorithms}
    spelled_out = {step for name in offered for step in RECIPES.get(name, ())}
    assert offered | spelled_out == set(ALGORITHMS)
