"""Cost curves: fixed columns, resumable, conditions never mixed; shapes without weights."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from hspec_lab import cli, cost, measure, measure_passes, store
from hspec_lab.measure import Plan, measure_costs, of_turns
from hspec_lab.measure_passes import bushy, cache_bytes, curve_of_turns, n_plain
from hspec_lab.model import Transformer
from hspec_lab.model.synthetic import SyntheticCheckpoint, shapes

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture
def shape(tmp_path):
    """A folder with a config.json and no weights."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    return f"shape:{folder}"


def plan(shape, *formats, **changes):
    some = {"contexts": (8,), "rows": (2, 5), "repeats": 3, "threads": 1}
    return Plan(models=tuple(f"{shape}@{format}" for format in formats), **some | changes)


def test_a_curve_has_one_row_per_n_and_always_the_one_token_pass(shape, tmp_path):
    table = measure_costs(plan(shape, "fp32", "w8a8", contexts=(8, 16)), tmp_path / "out")
    assert list(table.columns) == [*store.COSTS, *store.COSTS_MORE]
    assert table.groupby(["scheme", "context"])["n"].apply(list).tolist() == [[1, 2, 5]] * 4
    assert (table["low_us"] <= table["time_us"]).all()
    assert (table["time_us"] <= table["high_us"]).all() and (table["low_us"] > 0).all()
    assert not table["graph"].any() and (table["repeats"] == 3).all()
    head, stored = store.read_cost(tmp_path / "out")
    pd.testing.assert_frame_equal(stored, table)
    assert head["conditions"]["threads"] == 1 and head["read_gb_per_s"] > 0
    # 2 layers of (32 + 16 + 16 + 32 + 64 * 3) x 32 weights and the output layer
    n_weights = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32) + 64 * 32
    assert head["weight_bytes"][f"{shape}@fp32"] == 4 * n_weights


def test_what_is_there_is_not_measured_again(shape, tmp_path):
    told = []

    def stopped(done, total, text):
        told.append(text)
        if "w8a8" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_costs(plan(shape, "fp32", "w8a8"), tmp_path / "out", stopped)
    first = store.read_cost(tmp_path / "out")[1]
    assert first["scheme"].unique().tolist() == ["fp32"]
    whole = measure_costs(plan(shape, "fp32", "w8a8"), tmp_path / "out")
    assert whole["scheme"].unique().tolist() == ["fp32", "w8a8"]
    pd.testing.assert_frame_equal(whole[:3], first)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cost.parquet",
        "measure.json",
    ]


def test_curves_of_other_conditions_are_not_mixed(shape, tmp_path):
    measure_costs(plan(shape, "fp32"), tmp_path / "out")
    with pytest.raises(ValueError, match="measured with threads 1, now it is 2: give another"):
        measure_costs(plan(shape, "fp32", threads=2), tmp_path / "out")


def test_cold_and_warm_curves_are_not_mixed(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_passes, "cache_bytes", lambda: 1 << 16)
    table = measure_costs(plan(shape, "fp32", cold=True), tmp_path / "cold")
    assert table["cold"].all()
    with pytest.raises(ValueError, match="measured with cold True, now it is False: give another"):
        measure_costs(plan(shape, "w8a8"), tmp_path / "cold")
    assert not measure_costs(plan(shape, "fp32"), tmp_path / "warm")["cold"].any()


def test_every_time_stands_in_units_of_the_plain_step_of_its_turns(shape, tmp_path):
    table = measure_costs(plan(shape, "fp32", "w8a8", repeats=5), tmp_path / "out")
    assert (table.groupby("scheme")["plain_us"].nunique() == 1).all()
    assert (table["plain_us"] > 0).all()
    assert (table["median_low_us"] <= table["time_us"]).all()
    assert (table["time_us"] <= table["median_high_us"]).all()
    assert (table["ratio_low"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["ratio_high"]).all()


def test_ratios_are_paired_by_turn_so_that_drift_cancels():
    drift = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])[:, None]
    found = of_turns(drift * [[10.0, 30.0]], drift * [[9.0, 10.0, 11.0]])
    assert found["ratio"].tolist() == found["ratio_low"].tolist() == [1.0, 3.0]
    assert found["ratio_high"].tolist() == [1.0, 3.0]
    assert found["time_us"].tolist() == [45.0, 135.0] and found["plain_us"].tolist() == [45.0] * 2
    # of 8 turns the second smallest and the second largest
    assert found["median_low_us"].tolist() == [20.0, 60.0]
    assert found["median_high_us"].tolist() == [70.0, 210.0]
    assert found["unstable"].tolist() == [True, True]


def test_an_interval_holds_the_true_median_nineteen_times_of_twenty():
    draw = np.random.default_rng(0)
    times = draw.lognormal(0, 0.3, (15, 4000))
    found = of_turns(times, np.ones((15, 1)))
    inside = (found["median_low_us"] <= 1) & (1 <= found["median_high_us"])
    assert 0.94 < inside.mean() < 0.99


def test_spread_and_drift_are_flagged():
    steady = np.full(10, 100.0) + np.arange(10) % 2
    spread = np.where(np.arange(10) % 2, 80.0, 120.0)
    drift = np.where(np.arange(10) < 5, 80.0, 110.0)
    spike = steady + 900 * (np.arange(10) == 4)
    found = of_turns(np.stack([steady, spread, drift, spike], axis=1), np.ones((10, 1)))
    assert found["unstable"].tolist() == [False, True, True, False]
    assert of_turns(np.array([[5.0]]), np.array([[5.0]]))["unstable"].tolist() == [False]


class CountingModel:
    """Pretends to be a model and notes how many rows each pass has."""

    def __init__(self):
        self.rows, self.shape = [], type("Shape", (), {"vocab": 9})

    def new_cache(self, capacity):
        return type("Cache", (), {"fill_noise": lambda self, generator: None})()

    def forward(self, tokens, cache, tree):
        assert len(tokens) == len(tree) and cache.kv_len == 7
        self.rows.append(len(tokens))
        return tokens

    def logits(self, features):
        return features


def test_each_turn_has_every_row_once_in_another_order_and_the_plain_step_many_times():
    model, turns = CountingModel(), []
    rows = list(range(1, 65))
    times, plain = curve_of_turns(model, 7, rows, repeats=3, tell=turns.append)
    assert times.shape == (3, 64) and plain.shape == (3, n_plain(64)) and n_plain(64) == 8
    assert (times > 0).all() and (plain > 0).all()
    assert turns == [0, 1, 2, 3, 4]  # two of them warm up
    by_turn = np.array(model.rows).reshape(5, 64 + 8)
    for order in by_turn:
        assert sorted(order) == [1] * 8 + rows
    assert len({tuple(order) for order in by_turn}) == 5


def test_a_cold_pass_reads_more_than_the_largest_cache_before_it(monkeypatch):
    read = []

    class Other:
        def __init__(self, n):
            self.n = n

        def sum(self):
            read.append(self.n)

    monkeypatch.setattr(measure_passes.torch, "zeros", Other)
    model = CountingModel()
    curve_of_turns(model, 7, [1, 2], repeats=1)
    assert not read
    curve_of_turns(model, 7, [1, 2], repeats=1, cold=True)
    assert len(read) == 3 * (2 + n_plain(2)) and min(read) * 4 > cache_bytes() >= 1 << 15


def test_graphs_are_cold_and_their_ratios_follow_from_the_quartiles(shape, tmp_path, monkeypatch):
    spreads = [(100.0, 99.0, 101.0), (110.0, 108.0, 112.0), (150.0, 120.0, 160.0)]
    fakes = {
        "open_model": lambda *asked: None,
        "load": lambda *asked: type("Model", (), {"bytes_read": 7})(),
        "conditions": lambda *asked: {"gpu": "G", "device": "cuda"},
        "device_read_bandwidth": lambda threads: 9.0,
        "curve_of_graphs": lambda model, context, rows, bench: (spreads, None),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(measure, name, fake)
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: True)
    table = measure_costs(plan(shape, "w8a8", device="cuda", repeats=16), tmp_path / "out")
    assert table["n"].tolist() == [1, 2, 5] and set(table["device"]) == {"G"}
    assert table["graph"].all() and table["cold"].all() and (table["plain_us"] == 100).all()
    assert table["ratio"].tolist() == [1.0, 1.1, 1.5]
    assert table["ratio_high"][1] == pytest.approx((110 + 1.82 * 4 / 4) / 100)
    assert table["unstable"].tolist() == [False, False, True]
    pd.testing.assert_frame_equal(store.read_cost(tmp_path / "out")[1], table)


def test_the_default_plan_has_every_n_up_to_128():
    assert Plan(models=("zoo:target",)).rows == tuple(range(1, 129))


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_the_measured_tree_has_two_children_a_node(n):
    tree = bushy(n)
    assert len(tree) == n and max(map(tree.parents.count, range(n))) <= 2
    assert max(tree.depths) == n.bit_length() - 1


def test_times_are_put_in_units_of_the_one_token_pass_of_their_own_curve():
    rows = [("fp32", 1, 10.0), ("fp32", 4, 15.0), ("w8a8", 1, 4.0), ("w8a8", 4, 12.0)]
    table = pd.DataFrame(rows, columns=["scheme", "n", "time_us"])
    table = table.assign(device="d", model="m", context=8)
    assert cost.relative(table)["ratio"].tolist() == [1.0, 1.5, 1.0, 3.0]
    with pytest.raises(ValueError, match="no one-token time for d, m, fp32, 8"):
        cost.relative(table[table["n"] > 1])


@pytest.mark.parametrize("name", shapes())
def test_every_shape_that_ships_can_be_read(name):
    shape = SyntheticCheckpoint(name, 20_000).shape
    assert shape.context >= 20_000 and shape.heads % shape.kv_heads == 0
    assert shape.hidden % 128 == 0 and shape.inner % 128 == 0


def test_a_made_up_model_is_the_same_each_time_and_stays_near_one(shape):
    checkpoint = SyntheticCheckpoint(shape.removeprefix("shape:"))
    features = []
    for _ in range(2):
        model = Transformer(checkpoint, "fp32")
        features.append(model.forward([1, 2, 3], model.new_cache(3)))
    assert bool((features[0] == features[1]).all())
    assert 0.5 < float(features[0].square().mean()) < 2


def test_made_up_numbers_stay_what_they_were():
    weight = SyntheticCheckpoint("llama-3-8b").tensor("model.layers.3.self_attn.k_proj.weight")
    assert weight.dtype == torch.bfloat16 and weight.shape == (1024, 4096)
    first = torch.tensor([-0.00372314453125, 0.0037994384765625, -0.006439208984375])
    # processors draw alike to the last bits of fp32
    torch.testing.assert_close(weight[0, :3].float(), first, rtol=2**-7, atol=0)
    numbers = weight.flatten().view(4, 1 << 20)
    assert bool((numbers == numbers[0]).all()) and numbers[0].unique().numel() > 1000


def test_made_up_tensors_are_made_on_their_device(shape):
    checkpoint = SyntheticCheckpoint(shape.removeprefix("shape:"), device="meta")
    cpu = SyntheticCheckpoint(shape.removeprefix("shape:"))
    for name in ("model.norm.weight", "model.embed_tokens.weight", "fc.weight"):
        made = checkpoint.tensor(name)
        assert made.device.type == "meta" and checkpoint.optional(name).device == made.device
        assert (made.shape, made.dtype) == (cpu.tensor(name).shape, cpu.tensor(name).dtype)


@pytest.mark.parametrize(
    "words,message",
    [
        (["--shape", "llama-9"], "no shape 'llama-9'; there are llama-3-70b"),
        (["--model", "zoo:target", "--rows", "0"], "rows must be whole numbers 1..1024, got [0]"),
        (["--model", "zoo:target", "--rows", "1-x"], "--rows takes numbers and ranges"),
        (["--model", "zoo:target", "--contexts", "5000"], "has 1024 positions"),
        (["--model", "zoo:target@w5"], "w5: weights have"),
        (["--model", "zoo:target@w16a16"], "w16a16 has no fast operator on cpu; formats with one"),
        (["--model", "zoo:target", "--repeats", "0"], "repeats must be a whole number >= 1"),
        (["--model", "zoo:target", "--device", "cuda"], "finds no CUDA device; use cpu"),
        ([], "name at least one model or shape"),
    ],
)
def test_what_cannot_be_measured_is_one_line_before_anything_loads(
    words, message, tmp_path, capsys
):
    assert cli.main(["measure", "--out", str(tmp_path / "out"), *words]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_prints_how_each_curve_grows(shape, tmp_path, capsys):
    words = ["--shape", shape.removeprefix("shape:"), "--schemes", "fp32", "--contexts", "8"]
    words += ["--rows", "1,2,4", "--repeats", "2", "--threads", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["measure", *words]) == 0
    shown = capsys.readouterr().out
    assert "T(4)/T(1)" in shown and f"{shape}@fp32" in shown and "GB/s" in shown
