"""How the GPU suite times, what it asks for, and what its summary says of a table."""

import json
import os
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from hspec_lab.suite import as_text, clock, matmuls, run_suite
from hspec_lab.suite.contenders import CONTENDERS, _e4m3
from hspec_lab.suite.part import Bench
from hspec_lab.suite.right import COLUMNS
from hspec_lab.suite.summary import WANTED_SIZES, lines

BENCH = Bench(device="cpu", tiny=True, repeats=5)


def test_calls_take_turns_equally_often_in_shuffled_order(monkeypatch):
    now, seen = [0], []
    monkeypatch.setattr(clock, "perf_counter_ns", lambda: now[0])

    def call(name, cost_us):
        def made():
            seen.append(name)
            now[0] += int(cost_us * 1e3)

        return made

    calls = {name: call(name, cost) for name, cost in (("a", 3), ("b", 20), ("c", 7))}
    bench = Bench(device="cpu", repeats=8)
    found = clock.time_interleaved(calls, bench)
    assert found == {"a": (3, 3, 3), "b": (20, 20, 20), "c": (7, 7, 7)}
    turns = [tuple(seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert len(turns) == clock.WARMUP_TURNS + bench.repeats
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 2


def test_warm_up_is_not_timed_and_quartiles_are_of_the_rest(monkeypatch):
    now, costs = [0], iter([1000, 1000, 1, 2, 3, 4, 5])
    monkeypatch.setattr(clock, "perf_counter_ns", lambda: now[0])

    def call():
        now[0] += next(costs) * 1000

    assert clock.time_interleaved({"a": call}, BENCH)["a"] == (3, 2, 4)
    assert clock.time_interleaved({}, BENCH) == {}


def test_a_turn_on_cuda_is_queued_whole_on_a_cold_cache_before_it_is_waited_for(monkeypatch):
    log, made = [], iter(range(1, 1000))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.ms = next(made)
            log.append("record")

        def elapsed_time(self, later):
            return later.ms - self.ms

    cuda = SimpleNamespace(
        Event=Event,
        _sleep=lambda cycles: log.append("wait" if cycles else "first"),
        synchronize=lambda: log.append("synchronize"),
        get_device_properties=lambda: SimpleNamespace(L2_cache_size=6000),
    )

    def zeros(n, device):
        assert (n, device) == (2 * 6000 // 4, "cuda")
        return SimpleNamespace(sum=lambda: log.append("flush"))

    monkeypatch.setattr(clock, "torch", SimpleNamespace(cuda=cuda, zeros=zeros))
    calls = {"a": lambda: log.append("call"), "b": lambda: log.append("call")}
    found = clock.time_interleaved(calls, Bench(repeats=3))
    # between the two records of a call lies one tick of this clock, a millisecond
    assert found == {"a": (1000, 1000, 1000), "b": (1000, 1000, 1000)}
    turn = ["flush", "record", "call", "record"] * 2 + ["synchronize"]
    assert log == ["first", *turn, *(["wait", *turn] * (clock.WARMUP_TURNS + 2))]


def test_a_damaged_or_newer_folder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no measured suite"):
        as_text(tmp_path)
    (tmp_path / "suite.json").write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="schema 2, this code reads 1"):
        as_text(tmp_path)
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(ValueError, match="damaged or cut off"):
        as_text(tmp_path)


def test_layers_are_those_of_the_models_and_the_wanted_come_first():
    found = matmuls.layers()
    assert list(found)[:2] == list(WANTED_SIZES)
    assert found[4096, 14336] == "llama-3-8b down" and found[6144, 4096] == "llama-3-8b qkv"
    assert found[57344, 8192] == "llama-3-70b gate_up" and len(found) == 8
    assert matmuls.layers(())[8192, 28672] == "8192x28672"
    items = matmuls.items(Bench())
    first = [(item["R"], item["C"], item["rows"]) for item in items[:6]]
    assert first == [(*size, rows) for size in WANTED_SIZES for rows in (1, 16, 64)]
    assert len(items) == len({tuple(item.values()) for item in items}) == 8 * 11


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tiny: interpreted")
@pytest.mark.parametrize("name", ["w4a16", "w8a16", "w8a8", "w4a8", "fp8", "torch_bf16"])
def test_a_contender_multiplies_finite_numbers_of_the_right_shape(name):
    made = CONTENDERS[name](BENCH, 32, 256)
    x = torch.randn(3, 256).half()
    y = made.multiply(made.prepare(x))
    assert y.shape == (3, 32) and y.dtype == torch.float16 and bool(y.isfinite().all())


def test_random_weights_of_fp8_hold_no_nan():
    weight = _e4m3(BENCH, 4096)
    assert bool(weight.float().isfinite().all())
    assert weight.view(torch.uint8).unique().numel() > 100


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no part 'speed'; there are kernels_right, ceilings"):
        run_suite(tmp_path, parts=("speed",))


def matmul_table(times):
    """A table from (rows, contender) -> us, the same for both wanted layers."""
    rows = [
        {"shape": "s", "R": R, "C": C, "rows": n, "contender": name, "time_us": time}
        | {"gb_per_s": 1.0, "of_read": 8.5 / time if n == 1 else 0.1, "note": ""}
        for R, C in WANTED_SIZES
        for (n, name), time in times.items()
    ]
    return pd.DataFrame(rows)


GOOD = {(1, "w4a16"): 10.0, (16, "w4a16"): 11.0, (64, "w4a16"): 20.0}
GOOD |= {(1, "torch_int4"): 10.0, (64, "torch_int4"): 40.0, (96, "torch_int4"): 1.0}
GOOD |= {(96, "w4a16"): 30.0}


def verdicts(times, ok=(True, True)):
    right = pd.DataFrame({"ok": pd.array(ok, dtype="boolean"), "note": ""})
    tables = {"kernels_right": right, "matmuls": matmul_table(times)}
    return [line.met for line in lines(tables)]


def test_numbers_that_are_reached_are_met():
    assert verdicts(GOOD, (True, True, None)) == [True] * 8


@pytest.mark.parametrize(
    "change,missed",
    [
        # one row beyond 8.5 / 0.8 us; what grows from it grows less
        ({(1, "w4a16"): 10.7, (1, "torch_int4"): 11.0}, [1, 2]),
        ({(16, "w4a16"): 11.2}, [3, 4]),
        ({(64, "w4a16"): 20.1}, [5, 6]),
        ({(64, "torch_int4"): 19.0}, [7]),
    ],
    ids=["of_read", "T16", "T64", "int4"],
)
def test_a_number_that_is_missed_is_missed_alone(change, missed):
    assert verdicts(GOOD | change) == [i not in missed for i in range(8)]


def test_a_wrong_kernel_is_missed():
    assert verdicts(GOOD, (True, False))[0] is False


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert [line.met for line in lines({})] == [None] * 8
    assert all(line.got == "not measured" for line in lines({}))
    table = matmul_table({(1, "w4a16"): float("nan")})
    table["of_read"], table["note"] = float("nan"), "does not fit the device's memory"
    found = lines({"matmuls": table})
    assert [line.met for line in found] == [None] * 8
    assert found[1].got == "not measured: does not fit the device's memory"


def test_the_worst_row_count_against_pytorch_is_named():
    table = matmul_table(GOOD | {(64, "torch_int4"): 16.0})
    found = lines({"matmuls": table})[-1]
    assert "at most 1.25 of its time, over 4 measured; worst at s, 64 rows" in found.got


def test_failed_kernels_are_listed_with_their_error(tmp_path):
    head = {"schema": 1, "conditions": {"device": "cuda", "gpu": "a GPU"}, "items": {}}
    (tmp_path / "suite.json").write_text(json.dumps(head))
    row = {"operation": "op", "case": "c", "dtype": "bfloat16", "seed": 1, "error": 0.5}
    row |= {"tolerance": 0.1, "ok": False, "note": ""}
    pd.DataFrame([row]).astype(COLUMNS).to_parquet(tmp_path / "kernels_right.parquet")
    shown = as_text(tmp_path)
    assert "| op | c | bfloat16 | 0.5 |  |" in shown and "| 0 of 1 | MISSED |" in shown
    assert "Cost of row-invariance: not measured" in shown and "Ceilings: not measured" in shown


def test_an_unfinished_part_can_miss_but_not_meet_what_holds_of_all():
    right = pd.DataFrame({"ok": pd.array([True], dtype="boolean"), "note": ""})
    tables = {"kernels_right": right, "matmuls": matmul_table(GOOD)}
    both = {"kernels_right", "matmuls"}
    assert [line.met for line in lines(tables, both)] == [None, *[True] * 6, None]
    assert lines(tables, both)[0].got == "so far 1 of 1"
    tables["kernels_right"] = right.assign(ok=pd.array([False], dtype="boolean"))
    assert lines(tables, both)[0].met is False
