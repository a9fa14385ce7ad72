"""The roofline on made-up devices whose times are known by hand, and against published knees."""

from dataclasses import replace

import numpy as np
import pytest

from hspec_lab import device as devices
from hspec_lab.roofline import Family, knee, pass_table, pass_us, shape_of, stage_costs
from hspec_lab.scheme import parse
from tests.rooflines import SHAPE, W16, WEIGHTS, a_device, bare


def test_a_bandwidth_bound_pass_takes_its_bytes_over_the_bandwidth_for_any_rows():
    slow = a_device(bandwidth=1e9, fp16=1e18)
    us = pass_us(SHAPE, W16, [1, 7, 64], 0, slow, bare())
    keys_and_values = np.array([1, 7, 64]) * 3 * 2 * 2 * 16 * 2
    embedding = np.array([1, 7, 64]) * 64 * 2
    assert us == pytest.approx((WEIGHTS * 2 + keys_and_values + embedding) / 1e3)


def test_a_compute_bound_pass_takes_two_operations_a_weight_and_row():
    fast = a_device(bandwidth=1e18, fp16=1e9)
    rows, context = np.array([1, 5, 40]), 10
    attending = 4 * 3 * rows * (context + rows) * 64
    us = pass_us(SHAPE, W16, rows, context, fast, bare())
    assert us == pytest.approx((2 * WEIGHTS * rows + attending) / 1e3)


def test_shares_divide_the_ceilings():
    full = pass_us(SHAPE, W16, [1], 0, a_device(1e9, 1e18), bare())
    half = bare()
    for key in ("w16a16", "attention"):
        half = half.changed(key, bandwidth_share=0.5)
    assert pass_us(SHAPE, W16, [1], 0, a_device(1e9, 1e18), half) == pytest.approx(2 * full)


def test_the_bound_changes_from_memory_to_compute_exactly_at_the_knee():
    found = a_device(bandwidth=1e12, fp16=100e12)
    assert knee(W16, found) == pytest.approx(100)
    table = pass_table(SHAPE, W16, np.arange(98, 104), 0, found, bare())
    bound = table[table["module"] == "down"].set_index("n")["bound_by"]
    assert bound.to_dict() == {
        98: "memory",
        99: "memory",
        100: "memory",
        101: "compute",
        102: "compute",
        103: "compute",
    }


@pytest.mark.parametrize(
    ("name", "knees"),
    [
        ("a100-80gb", (153, 153, 39, 77)),
        ("rtx-3090", (76, 152, 20, 76)),
        ("rtx-4090", (164, 328, 42, 164)),
        ("h200", (206, 206, 53, 103)),
    ],
)
def test_published_knees_are_met_within_five_per_cent(name, knees):
    found = devices.load(name)
    # the published table has 0.516 bytes a weight at w4a16-g128, no zeros, and 0.5 at w4a8
    ours = [knee(parse(s), found) for s in ("w16a16", "w8a8", "w4a16-g128-sym", "w4a8-g128")]
    assert ours == pytest.approx(knees, rel=0.05)


def test_rows_are_filled_up_to_tiles():
    family = Family(operand="fp16", tiles=(16, 32, 64), instructions=(1.0, 2.0, 3.0))
    rows, unpacking = family.tiled(np.array([1, 16, 17, 32, 33, 64, 65, 129]))
    assert rows.tolist() == [16, 16, 32, 32, 64, 64, 128, 192]
    assert unpacking.tolist() == [1, 1, 2, 2, 3, 3, 6, 9]
    assert Family(operand="fp16").tiled(np.array([1, 7]))[0].tolist() == [1, 7]


def test_a_compute_bound_curve_is_flat_within_a_tile_and_steps_between_tiles():
    fast, families = a_device(1e18, 1e9), bare(tiles=(16, 32))
    table = pass_table(SHAPE, W16, np.arange(1, 70), 0, fast, families)
    us = table[table["module"] == "qkv"]["us"].to_numpy()
    steps = np.flatnonzero(np.diff(us)) + 2
    assert steps.tolist() == [17, 33, 65]
    assert us[16] / us[0] == pytest.approx(2) and us[64] / us[0] == pytest.approx(6)


def test_unpacking_bounds_where_instructions_are_many():
    found, families = a_device(1e18, 1e18), bare(tiles=(16,), instructions=(4.0,))
    table = pass_table(SHAPE, W16, [1, 17], 0, found, families)
    o = table[table["module"] == "o"]
    # one multiprocessor at 1 GHz issues for 128 threads a cycle; two tiles unpack twice
    assert o["us"].tolist() == pytest.approx([s * 3 * 64 * 64 * 4 / 128e3 for s in (1, 2)])
    assert set(o["bound_by"]) == {"unpacking"}


def test_without_overlap_reading_and_multiplying_add_up():
    found = a_device(1e9, 1e9)
    hidden = pass_us(SHAPE, W16, [1], 0, a_device(1e9, 1e18), bare())
    computed = pass_us(SHAPE, W16, [1], 0, a_device(1e18, 1e9), bare())
    apart = bare(overlap=0.0)
    apart = apart.changed("attention", overlap=0.0)
    assert pass_us(SHAPE, W16, [1], 0, found, apart) == pytest.approx(hidden + computed, rel=1e-6)


def test_a_tiny_model_is_bound_by_its_launches():
    families = replace(bare(launch_us=3.0), layer_launches=7, pass_launches=6, mask_us=0.0)
    table = pass_table(SHAPE, W16, [1], 0, a_device(1e18, 1e18), families)
    assert table["us"].sum() == pytest.approx(3.0 * (3 * (7 + 4) + 6 + 1), rel=1e-3)
    assert table.iloc[-1][["module", "bound_by"]].tolist() == ["launches", "launches"]


def test_masks_cost_where_several_rows_attend():
    families = replace(bare(), mask_us=5.0)
    one, two = pass_us(SHAPE, W16, [1, 2], 0, a_device(1e18, 1e18), families)
    assert two - one == pytest.approx(15.0, abs=1e-3)


def test_reading_keys_and_values_grows_linearly_with_the_context():
    slow = a_device(1e9, 1e18)
    us = [pass_us(SHAPE, W16, [1], context, slow, bare())[0] for context in (0, 1000, 2000)]
    # 3 layers of 2 x 2 heads of 16 numbers of two bytes
    assert np.diff(us) == pytest.approx([1000 * 3 * 4 * 16 * 2 / 1e3] * 2)
    eight = parse("w8a16-kv8")
    kv8 = [pass_us(SHAPE, eight, [1], context, slow, bare())[0] for context in (0, 1000)]
    assert kv8[1] - kv8[0] == pytest.approx(1000 * 3 * 4 * (16 + 2) / 1e3)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        (name, scheme)
        for name in devices.known()
        for scheme in ("fp32" if "epyc" in name else "w16a16", "w8a8", "w8a16", "w4a16-g128")
    ],
)
def test_time_never_falls_as_rows_or_context_grow(name, scheme):
    found = devices.load(name)
    shape = shape_of("llama-3.2-1b")
    us = pass_us(shape, parse(scheme), np.arange(1, 129), 512, found)
    assert np.isfinite(us).all() and (np.diff(us) >= -1e-9).all()
    assert (pass_us(shape, parse(scheme), [1, 60], 4096, found) > us[[0, 59]]).all()


def test_the_modules_of_a_pass_add_up_to_it():
    found, shape = devices.load("h100"), shape_of("qwen3-8b")
    table = pass_table(shape, parse("w8a8"), [1, 33], 700, found)
    us = pass_us(shape, parse("w8a8"), [1, 33], 700, found)
    assert table.groupby("n")["us"].sum().to_numpy() == pytest.approx(us)
    wanted = ["qkv", "o", "gate_up", "down", "attention", "lm_head", "embedding", "launches"]
    assert table[table["n"] == 33]["module"].tolist() == wanted


def test_a_device_without_the_needed_peak_is_refused_with_file_and_key():
    shape = shape_of("llama-3.2-1b")
    with pytest.raises(ValueError, match=r"a100-80gb.toml: no peaks.fp8"):
        pass_us(shape, parse("fp8"), [1], 0, devices.load("a100-80gb"))
    with pytest.raises(ValueError, match=r"made-up.toml: no peaks.int8"):
        stage_costs(a_device(), "shape:llama-3.2-1b@w8a8")
