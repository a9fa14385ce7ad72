"""Limits by hand: made-up models and devices whose bytes and times can be worked out."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from rooflines import WEIGHTS, a_device

from hspec_lab import store
from hspec_lab.analysis.limits import COLUMNS, MEASURED, ROOFLINE, limits
from hspec_lab.config import Chain, Config, Eagle2, Refine, Static, as_dict

CPU = {"device": "cpu", "gpu": None, "cpu": "Invented 9000", "threads": 2, "cpu_capability": "no"}
GPU = CPU | {"device": "cuda", "gpu": "NVIDIA H200", "capability": "9.0"}
# keys and values of a token in all layers of `rooflines.SHAPE`, fp32 and 16 bits
KV_32, KV_16 = 3 * 2 * 2 * 16 * 4, 3 * 2 * 2 * 16 * 2


@pytest.fixture
def model(tmp_path):
    """A folder with the sizes of `rooflines.SHAPE`."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"vocab_size": 100, "max_position_embeddings": 4096}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes))
    return str(folder)


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path / "store"))


def head_of(environment=CPU, **config):
    return {"config": as_dict(Config(**config)), "environment": environment}


def spans_of(*rows):
    """Spans of one round each: (phase, level, n_tokens, kv_len, start_us, duration_us)."""
    found = [
        [0, number, False, *row[:3], row[2], *row[3:], np.nan] for number, row in enumerate(rows)
    ]
    return pd.DataFrame(found, columns=list(store.TABLES["spans"])).astype(store.TABLES["spans"])


def test_a_pass_reads_weights_once_and_the_context_behind_every_token(model):
    spans = spans_of(
        ("verify_target", "target", 5, 10, 0.0, 100.0),
        ("verify_target", "target", 1, 30, 200.0, 300.0),
    )
    slow = a_device(bandwidth=1e9, kind="cpu", fp32=1e15)
    found = limits(head_of(target=f"{model}@fp32"), spans, device=slow).iloc[0]
    weights = 4 * WEIGHTS + 4 * 64 * (5 + 1) / 2  # the embedding's rows, 3 a round
    assert found["weight_bytes"] == weights
    assert found["kv_bytes"] == KV_32 * (15 + 31) / 2
    assert found["bytes_per_round"] == found["weight_bytes"] + found["kv_bytes"]
    assert found["memory_us"] == pytest.approx(found["bytes_per_round"] / 1e3)
    assert found["limit_us"] == pytest.approx(found["memory_us"])
    assert (found["measured_us"], found["passes_per_round"]) == (200.0, 1.0)
    assert found["share"] == pytest.approx(found["limit_us"] / 200.0)


def test_operations_bound_where_the_peak_is_low(model):
    spans = spans_of(("verify_target", "target", 5, 10, 0.0, 100.0))
    weak = a_device(bandwidth=1e15, kind="cpu", fp32=1e9)
    found = limits(head_of(target=f"{model}@fp32"), spans, device=weak).iloc[0]
    flops = 2 * 5 * WEIGHTS + 4 * 3 * 5 * 15 * 64
    assert found["flops_per_round"] == flops
    assert found["limit_us"] == pytest.approx(flops / 1e3, rel=1e-5)


def test_rows_are_not_filled_up_to_the_tiles_of_kernels(model):
    spans = spans_of(("verify_target", "target", 5, 10, 0.0, 100.0))
    head = head_of(GPU, target=f"{model}@w16a16", device="cuda")
    found = limits(head, spans, device=a_device()).iloc[0]
    assert found["flops_per_round"] == 2 * 5 * WEIGHTS + 4 * 3 * 5 * 15 * 64
    assert found["kv_bytes"] == KV_16 * 15


def test_a_head_ingests_what_is_new_and_then_runs_its_levels(model):
    spans = spans_of(("draft", "head", 3, 10, 0.0, 100.0), ("draft", "head", 1, 12, 200.0, 100.0))
    eagle = Eagle2(tree_size=9, depth=3, top_k=4)
    found = limits(head_of(target=f"{model}@fp32", draft=eagle), spans).iloc[0]
    layer = (WEIGHTS - 100 * 64) / 3
    # 2 levels each, and the first draft's 2 new tokens; the second's root was ingested before
    assert found["passes_per_round"] == 5 / 2
    assert found["weight_bytes"] == 4 * (layer + 64 * 128 + 100 * 64) * 5 / 2
    contexts = [10 + 2] + [12 + 4, 12 + 8] * 2
    assert found["kv_bytes"] == KV_32 / 3 * sum(contexts) / 2


def test_on_a_gpu_a_heads_levels_run_with_those_above(model):
    spans = spans_of(("draft", "head", 1, 12, 0.0, 100.0))
    eagle = Eagle2(tree_size=9, depth=3, top_k=4)
    head = head_of(GPU, target=f"{model}@w16a16", draft=eagle, device="cuda")
    found = limits(head, spans).iloc[0]
    per_row = 2 * ((WEIGHTS - 100 * 64) / 3 + 64 * 128)
    attends = 4 * 64 * (4 * 16 + 8 * 20)
    assert found["flops_per_round"] == per_row * (4 + 8) + 2 * 2 * 4 * 100 * 64 + attends


def test_a_static_tree_runs_the_nodes_that_get_children(model):
    spans = spans_of(("draft", "head", 1, 12, 0.0, 100.0))
    # the root has 2 children, both of these have one, and one of those a leaf
    tree = Static(parents=(-1, 0, 0, 1, 2, 3), places=(-1, 0, 1, 0, 0, 0))
    found = limits(head_of(target=f"{model}@fp32", draft=tree), spans).iloc[0]
    assert found["passes_per_round"] == 2
    assert found["kv_bytes"] == KV_32 / 3 * ((12 + 2) + (12 + 2 + 1))


def test_a_chain_is_one_span_on_a_gpu_and_as_many_passes_as_tokens(model):
    spans = spans_of(("draft", "intermediate", 3, 10, 0.0, 100.0))
    reference = f"{model}@w16a16"
    config = {"target": reference, "draft": Chain(reference, 3), "device": "cuda"}
    found = limits(head_of(GPU, **config), spans).iloc[0]
    assert found["passes_per_round"] == 3
    assert found["kv_bytes"] == KV_16 * (11 + 12 + 13)
    assert found["weight_bytes"] == 3 * 2 * (WEIGHTS + 64)


def test_levels_below_each_other_have_their_own_models(model):
    spans = spans_of(
        ("verify_intermediate", "intermediate", 1, 9, 0.0, 9.0),
        ("verify_intermediate", "intermediate2", 1, 9, 10.0, 9.0),
        ("verify_intermediate", "intermediate3", 1, 9, 20.0, 9.0),
    )
    inner = Refine(f"{model}@w8a8", Eagle2())
    head = head_of(target=f"{model}@fp32", draft=Refine(f"{model}@fp32", inner))
    found = limits(head, spans).set_index("level")
    assert found["weight_bytes"]["intermediate"] > 3 * found["weight_bytes"]["intermediate2"]
    assert np.isnan(found["weight_bytes"]["intermediate3"])
    assert "no level 'intermediate3'" in found["reason"]["intermediate3"]


def test_launches_count_in_the_span_in_which_the_host_began_them(model):
    spans = spans_of(
        ("draft", "head", 1, 9, 0.0, 10.0),
        ("verify_target", "target", 1, 9, 20.0, 10.0),
        ("verify_target", "target", 1, 9, 40.0, 10.0),
    )
    at = [-1.0, 0.0, 9.9, 10.0, 15.0, 20.0, 29.0, 41.0, 60.0]
    launches = pd.DataFrame({"start_us": at})
    head = head_of(target=f"{model}@fp32", draft=Eagle2())
    found = limits(head, spans, launches).set_index("phase")["launches_per_round"]
    assert found["draft"] == 2 / 3 and found["verify_target"] == 3 / 3
    assert limits(head, spans)["launches_per_round"].isna().all()


def test_the_devices_clock_counts_only_where_all_spans_have_it(model):
    spans = spans_of(*[("verify_target", "target", 1, 9, 0.0, 100.0)] * 2)
    head = head_of(target=f"{model}@fp32")
    for device_us, clock, measured in (([7.0, 9.0], "device", 8.0), ([7.0, None], "host", 100.0)):
        found = limits(head, spans.assign(device_us=pd.array(device_us, "Float64"))).iloc[0]
        assert (found["clock"], found["measured_us"]) == (clock, measured)


def test_a_phase_without_a_pass_is_measured_alone(model):
    spans = spans_of(("accept", "target", 5, 9, 0.0, 10.0))
    found = limits(head_of(target=f"{model}@fp32"), spans).iloc[0]
    assert (found["kind"], found["reason"]) == ("measured", "accept runs no pass of a model")
    assert found[[*ROOFLINE, "share"]].isna().all() and found["measured_us"] == 10


def test_of_an_unknown_device_bytes_are_known_and_limits_are_not(model):
    spans = spans_of(("verify_target", "target", 1, 9, 0.0, 10.0))
    found = limits(head_of(target=f"{model}@fp32"), spans).iloc[0]
    assert found["bytes_per_round"] > 0
    assert found[["memory_us", "compute_us", "limit_us", "share"]].isna().all()
    assert "no bandwidth known of Invented 9000, 2 threads" in found["reason"]
    assert "no fp32 peak known" in found["reason"]


def test_of_a_bandwidth_alone_the_limit_is_of_reading(model):
    spans = spans_of(("verify_target", "target", 1, 9, 0.0, 10.0))
    head = head_of(CPU | {"read_gb_per_s": 50.0}, target=f"{model}@fp32")
    found = limits(head, spans).iloc[0]
    assert found["limit_us"] == pytest.approx(found["bytes_per_round"] / 50e3)
    assert found["reason"].endswith("the limit is of reading alone")
    assert found["source"] == "measured: the run's own environment"


def test_faster_than_memory_is_said_to_come_from_a_cache(model):
    spans = spans_of(("verify_target", "target", 1, 9, 0.0, 10.0))
    slow = a_device(bandwidth=1e9, kind="cpu", fp32=1e15)
    found = limits(head_of(target=f"{model}@fp32"), spans, device=slow).iloc[0]
    assert found["share"] > 1 and "lies in a cache" in found["reason"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "no config"),
        ({"target": "nowhere@fp32"}, "no shape 'nowhere'"),
        ({"targets": "?"}, "targets"),
    ],
    ids=["none", "model not there", "not ours"],
)
def test_models_that_nobody_knows_leave_bytes_unknown(config, told):
    spans = spans_of(("verify_target", "target", 1, 9, 0.0, 10.0))
    found = limits({"config": config, "environment": CPU}, spans).iloc[0]
    assert np.isnan(found["bytes_per_round"]) and found["measured_us"] == 10
    assert found["reason"].startswith("bytes are not known") and told in found["reason"]


def test_spans_without_sizes_leave_bytes_unknown(model):
    spans = spans_of(("verify_target", "target", -1, -1, 0.0, 10.0))
    found = limits(head_of(target=f"{model}@fp32"), spans).iloc[0]
    assert np.isnan(found["bytes_per_round"]) and "how many tokens" in found["reason"]


def test_no_spans_give_no_rows(model):
    found = limits(head_of(target=f"{model}@fp32"), spans_of())
    assert len(found) == 0 and list(found) == list(COLUMNS)


def test_of_recorded_runs_the_weights_are_those_that_were_stored():
    head, tables = store.read_run("profiles/runs/zoo/chain")
    begin = time.process_time()
    found = limits(head, tables["spans"]).set_index(["phase", "level"])
    assert time.process_time() - begin < 0.3
    assert set(MEASURED) | set(ROOFLINE) < set(found)
    stored = store.read_cost("profiles/costs/zoo")[0]["weight_bytes"]
    verify = found.loc[("verify_target", "target")]
    verified = tables["spans"].query("phase == 'verify_target' and not warmup")["n_tokens"].mean()
    # beside the weights, the rows of the embedding
    embedding = verified * 384 * 4
    expected = stored["zoo:target@w4a16-g128"] + embedding
    assert verify["weight_bytes"] == pytest.approx(expected, rel=1e-9)
    draft = found.loc[("draft", "intermediate")]
    per_pass = draft["weight_bytes"] / draft["passes_per_round"]
    assert per_pass == pytest.approx(stored["zoo:intermediate@w4a16-g128"], rel=2e-3)
    assert found["launches_per_round"].isna().all() and (found["clock"] == "host").all()
