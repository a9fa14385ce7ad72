"""Drafts, prefill, memory and stage costs by the roofline; bytes of weights; what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from hspec_lab import device as devices
from hspec_lab.roofline import (
    Family,
    draft_us,
    families_for,
    fits,
    head_bytes,
    matrix_bytes,
    memory_bytes,
    pass_table,
    pass_us,
    prefill_us,
    shape_of,
    split_reference,
    stage_costs,
)
from hspec_lab.scheme import parse
from tests.rooflines import SHAPE, W16, WEIGHTS, a_device, bare


@pytest.mark.parametrize(
    ("scheme", "n_bytes"),
    [
        # what the linear layers themselves counted, see profiles/studies/compat-zoo/measure.json
        ("fp32", 37748736),
        ("w8a8", 9522688),
        ("w8a16", 9479936),
        ("w4a16-g128", 5758976),
        ("w4a16-g32", 6496256),
    ],
)
def test_bytes_of_the_shipped_target_are_those_its_layers_count(scheme, n_bytes):
    shape, found = split_reference(f"zoo:target@{scheme}")
    layer = sum(matrix_bytes(found, *size, "cpu") for size in shape.matrices.values())
    head = matrix_bytes(found.output, shape.vocab, shape.hidden, "cpu")
    assert shape.layers * layer + head == n_bytes


@pytest.mark.parametrize(
    ("scheme", "bytes_a_weight"),
    [
        ("w16a16", 2),
        ("w8a8", 1 + 4 / 128),
        ("w8a16", 1 + 2 / 128),
        ("w4a16-g128", 0.5 + 4 / 128),
        ("w4a16-g128-sym", 0.5 + 2 / 128),
        ("w4a8-g128", 0.5 + 2 / 128 + 4 / 128),
        ("mxfp4", 0.5 + 1 / 32),
        ("fp8", 1 + 4 / 128),
    ],
)
def test_bytes_on_a_gpu_include_scales_and_zeros(scheme, bytes_a_weight):
    assert matrix_bytes(parse(scheme), 64, 128) == pytest.approx(64 * 128 * bytes_a_weight)


def test_two_planes_are_read_and_multiplied_twice_on_a_cpu():
    families = bare("fp32")
    found = a_device(1e9, kind="cpu", fp32=1e9)
    six, four = (
        pass_table(SHAPE, parse(s), [3], 0, found, families).iloc[0]
        for s in ("w6a16-g32", "w4a16-g32")
    )
    assert six["bytes"] == 2 * four["bytes"] and six["flops"] == 2 * four["flops"]


def test_a_draft_is_d_passes_of_fc_one_layer_and_the_output_layer():
    slow = a_device(1e9, 1e18)
    us = draft_us(SHAPE, W16, W16, 3, 5, 0, slow, replace(bare(), head_launches=0))
    layer = 2 * (WEIGHTS - 100 * 64) / 3
    weights = layer + 2 * 64 * 128 + 2 * 100 * 64
    # keys and values of one layer: 4 rows ingested, then levels of 5 run again with those above
    kv = np.cumsum([4, 5, 10]) * 2 * 2 * 16 * 2
    assert np.isnan(us[0]) and us[1:] == pytest.approx((np.arange(1, 4) * weights + kv) / 1e3)


def test_on_a_cpu_a_level_runs_without_the_levels_above_it():
    fast = a_device(1e18, kind="cpu", fp32=1e9)
    fp32 = parse("fp32")
    us = draft_us(SHAPE, fp32, fp32, 4, 5, 0, fast, replace(bare("fp32"), head_launches=0))
    assert np.diff(us[2:]) == pytest.approx([us[2] - us[1]] * 2)


def test_launches_of_a_draft_grow_with_its_depth():
    families = replace(bare(launch_us=2.0), layer_launches=7, head_launches=16, head_us=1.0)
    us = draft_us(SHAPE, W16, W16, 4, 8, 0, a_device(1e18, 1e18), families)
    # fc, four products of the layer and the output layer
    assert np.diff(us[1:]) == pytest.approx(2.0 * (7 + 16 + 6) + 1.0, rel=1e-3)


def test_prefill_is_compute_bound_and_about_linear_in_the_prompt():
    shape, found = shape_of("llama-3-8b"), devices.load("a100-80gb")
    us = [prefill_us(shape, W16, n, found) for n in (512, 1024, 4096)]
    # 7.0e9 weights of layers, two operations each, 0.6 of 312e12 a second
    assert us[0] == pytest.approx(2 * 6.98e9 * 512 / (0.6 * 312e12) * 1e6, rel=0.1)
    assert us[1] / us[0] == pytest.approx(2, rel=0.05) and 8 < us[2] / us[0] < 9
    assert prefill_us(shape, W16, 513, found) > us[0]


def test_memory_counts_weights_table_and_keys_and_values():
    shape = shape_of("llama-3-8b")
    found = memory_bytes(shape, W16, 8192)
    assert found.weights + found.embedding == pytest.approx(8.03e9 * 2, rel=0.001)
    assert found.kv == 8192 * 32 * 2 * 8 * 128 * 2
    tied = memory_bytes(shape_of("llama-3.2-1b"), W16, 0)
    assert tied.embedding == 0 and tied.kv == 0
    assert memory_bytes(shape_of("llama-3.2-1b"), parse("w8a16"), 0).embedding > 0
    assert memory_bytes(shape, parse("w4a16-g128"), 0).weights < found.weights / 3


def test_a_head_needs_its_layer_fc_keys_and_the_features_of_the_text():
    found = head_bytes(SHAPE, W16, 100)
    assert found.weights == 2 * ((WEIGHTS - 100 * 64) / 3 + 64 * 128)
    assert (found.kv, found.activations) == (100 * 4 * 16 * 2, 100 * 64 * 2)


def test_what_does_not_fit_is_told():
    shape, head = shape_of("llama-3-70b"), head_bytes(shape_of("llama-3-70b"), W16, 2048)
    levels = {s: memory_bytes(shape, parse(s), 2048) for s in ("w16a16", "w8a8", "w4a16-g128")}
    fit = {s: fits(devices.load("a100-80gb"), [level, head]) for s, level in levels.items()}
    assert fit == {"w16a16": False, "w8a8": False, "w4a16-g128": True}
    assert not fits(devices.load("rtx-3090"), [levels["w4a16-g128"]])
    assert fits(devices.load("h200"), [levels["w8a8"], head])


def test_stage_costs_of_a_hierarchy_are_the_roofline_s_own():
    found = devices.load("h200")
    target, small = "shape:llama-3-70b@w4a16-g128", "shape:llama-3-8b@w4a16-g128"
    costs = stage_costs(found, target, small, top_k=10, context=700)
    assert (costs.origin, costs.device, costs.context) == ("roofline", found.title, 700)
    assert (costs.target, costs.intermediate, costs.top_k) == (target, small, 10)
    assert costs.head == "shape:llama-3-8b-eagle2@w16a16"
    rows = np.arange(1, 129)
    shape, scheme = split_reference(small)
    assert costs.intermediate_us[1:] == pytest.approx(pass_us(shape, scheme, rows, 700, found))
    assert np.isnan(costs.target_us[0]) and len(costs.target_us) == 129
    assert costs.draft_us[1:] == pytest.approx(
        draft_us(shape, W16, scheme.output, 12, 10, 700, found)[1:]
    )
    beside = costs.accept_us[1] + costs.commit_us + costs.gap_us
    assert costs.plain_us == pytest.approx(costs.target_us[1] + beside)
    assert costs.accept_intermediate_us is not None and costs.gap_intermediate_us == costs.gap_us
    assert any("assumed" in told for told in costs.warnings)


def test_without_an_intermediate_model_the_head_drafts_for_the_target():
    costs = stage_costs(devices.load("a100-80gb"), "shape:llama-3-8b@w8a8", context=9000)
    assert costs.intermediate is None and costs.accept_intermediate_us is None
    assert costs.head == "shape:llama-3-8b-eagle2@w16a16"
    assert any("trained for 8192 positions" in told for told in costs.warnings)


def test_a_four_bit_target_bends_early_and_a_sixteen_bit_one_late():
    found = devices.load("a100-80gb")
    ratio = {}
    for scheme in ("w16a16", "w4a16-g128"):
        curve = stage_costs(found, f"shape:llama-3-8b@{scheme}").target_us
        ratio[scheme] = curve[[16, 60]] / curve[1]
    assert ratio["w16a16"] == pytest.approx([1, 1], abs=0.05)
    assert ratio["w4a16-g128"][0] < 1.05 and ratio["w4a16-g128"][1] > 1.5


def test_families_of_a_device_have_every_kernel_of_the_project():
    for name in ("a100-80gb", "h100", "b200", "rtx-5090"):
        products = families_for(devices.load(name)).products
        assert set(products) >= {"w16a16", "w8a16", "w8a8", "fp8", "w4a16", "w4a8", "w3a16"}
    assert set(families_for(devices.load("epyc-zen5-2-cores")).products) >= {"fp32", "w8a8"}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda d: pass_us(SHAPE, parse("nf4"), [1], 0, d),
            "no kernel family 'nf4'; known: w16a16",
        ),
        (lambda d: pass_us(SHAPE, W16, [0], 0, d), "rows must be whole numbers >= 1"),
        (lambda d: pass_us(SHAPE, W16, [], 0, d), "rows must be whole numbers >= 1"),
        (lambda d: pass_us(SHAPE, W16, [1], -1, d), "context must be a number of tokens"),
        (lambda d: prefill_us(SHAPE, W16, 0, d), "a prompt has at least one token"),
        (lambda d: draft_us(SHAPE, W16, W16, 0, 8, 0, d), "depth and top_k >= 1"),
        (lambda d: shape_of("llama-9"), "no shape 'llama-9'; there are llama-3-70b"),
        (lambda d: shape_of("zoo:nobody"), "the zoo has no 'nobody'"),
        (lambda d: split_reference("zoo:target@nf4+reference"), "a definition has no kernel"),
        (lambda d: matrix_bytes(parse("bitstack-6mb"), 8, 8), "a stack has no bits a weight"),
        (lambda d: stage_costs(d, "zoo:target@w16a16", rows=0), "rows must be 1..1024"),
        (lambda d: Family(operand="fp16", peak_share=0), "peak_share must be above 0"),
        (lambda d: Family(operand="fp16", tiles=(32, 16)), "tiles must be rising"),
        (lambda d: Family(operand="fp16", overlap=2), "overlap must be 0..1"),
        (lambda d: Family(operand="fp16", instructions=(1, 2)), "1 tiles have 2 instructions"),
    ],
)
def test_bad_input_is_told_in_one_line(call, told):
    with pytest.raises(ValueError, match=told):
        call(a_device())


def test_a_config_without_sizes_is_refused_by_the_entry_that_is_wrong(tmp_path):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": -4}')
    with pytest.raises(ValueError, match="hidden_size must be a whole number >= 1, got -4"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        shape_of(tmp_path)
