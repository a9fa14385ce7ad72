"""The GPU suite, interpreted: it measures, stops, goes on, and says what it found."""

import json
import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from hspec_lab import cli
from hspec_lab.suite import as_text, run, run_suite
from hspec_lab.suite.contenders import CONTENDERS
from hspec_lab.suite.folder import read_head, read_table
from hspec_lab.suite.part import Bench, Part

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="tiny sizes are for the interpreter"
)
BENCH = Bench(device="cpu", tiny=True, repeats=5)
NAMES = ["kernels_right", "ceilings", "matmuls"]


def tiny_suite(folder, **options):
    return run_suite(folder, device="cpu", tiny=True, **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with everything measured."""
    folder = tmp_path_factory.mktemp("suite")
    left = tiny_suite(folder, parts=tuple(NAMES))
    assert left == dict.fromkeys(NAMES, 0)
    return folder


@interpreted
def test_every_kernel_is_compared_with_its_definition(measured):
    from hspec_kernels.case import operations

    table = read_table(measured, "kernels_right")
    assert sorted(table["operation"]) == operations()
    assert table["ok"].all(), table[~table["ok"]][["operation", "case", "error", "note"]]
    assert table["seed"].nunique() > 1  # drawn anew for every case
    floats = table[table["tolerance"] > 0]
    assert (floats["error"] <= floats["tolerance"]).all()


@interpreted
def test_a_kernel_that_is_wrong_or_fails_is_a_row_that_says_so(monkeypatch):
    from hspec_kernels import case as cases

    real = cases.value_cases("silu_mul")[0]

    def off(gate_up):
        return real.reference(gate_up) + 0.25

    def broken(gate_up):
        raise RuntimeError("no such thing\nsecond line")

    for op, error, note in ((off, True, ""), (broken, False, "RuntimeError: no such thing")):
        wrong = cases.ValueCase(
            name="wrong", op=op, reference=real.reference, make=real.make, tolerance=1e-3
        )
        with monkeypatch.context() as patch:
            patch.setattr(cases, "value_cases", lambda operation, wrong=wrong: [wrong])
            item = {"operation": "silu_mul", "case": "wrong", "dtype": "float16"}
            (row,) = run.right.measure(BENCH, item)
        assert not row["ok"] and row.get("note", "") == note
        assert ("error" in row) == error


@interpreted
def test_a_device_without_e4m3_leaves_ok_open_and_says_why(monkeypatch):
    from hspec_kernels import fp8_matmul
    from hspec_kernels.case import value_cases

    monkeypatch.setattr(fp8_matmul, "knows_e4m3", lambda device: False)
    names = [case.name for case in value_cases("fp8_matmul")]
    narrow = next(name for name in names if name.startswith("e4m3"))
    item = {"operation": "fp8_matmul", "case": narrow, "dtype": "float16"}
    (row,) = run.right.measure(BENCH, item)
    row = run.right.PART.filled(row)
    assert row["ok"] is None and "compute capability 8.9" in row["note"]


@interpreted
def test_ceilings_have_times_and_rates_or_say_why_not(measured):
    table = read_table(measured, "ceilings")
    timed = table.dropna(subset="time_us")
    assert set(timed["what"]) == {"read", "copy", "matmul", "launch"}
    assert (timed["low_us"] <= timed["time_us"]).all()
    assert (timed["time_us"] <= timed["high_us"]).all()
    read = timed[timed["what"] == "read"]
    assert read["rate"].tolist() == pytest.approx(read["n_bytes"] / read["time_us"] / 1e3)
    assert list(table[table["time_us"].isna()]["note"]) == ["CUDA graphs need a CUDA device"]


@interpreted
def test_contenders_are_timed_side_by_side_and_the_unfit_say_why(measured):
    table = read_table(measured, "matmuls")
    assert set(table["contender"]) == set(CONTENDERS)
    for _, item in table.groupby(["shape", "rows"]):
        assert len(item) == len(CONTENDERS)
    unfit = table[table["time_us"].isna()]
    assert set(unfit["contender"]) == {"torch_int4", "gemlite"}
    assert unfit["note"].str.contains("CUDA").all()
    timed = table.dropna(subset="time_us")
    assert (timed["note"] == "").all()
    assert timed[timed["contender"] == "read_only"]["of_read"].eq(1).all()
    w4a16 = timed[(timed["contender"] == "w4a16") & (timed["shape"] == "tiny")].iloc[0]
    R, C, T = 64, 128, w4a16["rows"]
    assert w4a16["bytes"] == R * C // 2 + 2 * 2 * R + 2 * T * (R + C)


@interpreted
def test_a_suite_without_time_measures_one_item_and_goes_on_to_the_same_table(tmp_path, measured):
    left = [tiny_suite(tmp_path, minutes=0, parts=("matmuls",)) for _ in range(2)]
    assert [n["matmuls"] for n in left] == [3, 2]
    begun = read_table(tmp_path, "matmuls")
    assert tiny_suite(tmp_path, parts=("matmuls",)) == {"matmuls": 0}
    whole = read_table(tmp_path, "matmuls")
    pd.testing.assert_frame_equal(whole.head(len(begun)), begun)
    keys = ["shape", "R", "C", "rows", "contender"]
    wanted = read_table(measured, "matmuls")[keys]
    pd.testing.assert_frame_equal(
        whole[keys].sort_values(keys, ignore_index=True),
        wanted.sort_values(keys, ignore_index=True),
    )
    head = read_head(tmp_path)
    assert len(head["sessions"]) == 3 and head["items"]["matmuls"] == {"done": 4, "all": 4}
    assert not list(tmp_path.glob(".unfinished*"))


def counting(name, n, seen, stop_at=None):
    """A part of n items that notes what it is asked for."""

    def measure(bench, item):
        if item["i"] == stop_at:
            raise KeyboardInterrupt
        seen.append((name, item["i"]))
        return [item | {"value": 1.0}]

    return Part(
        name=name,
        answers="How often was it asked?",
        columns={"i": "int64", "value": "float64", "note": "str"},
        items=lambda bench: [{"i": i} for i in range(n)],
        measure=measure,
    )


@interpreted
def test_an_interrupted_suite_keeps_what_it_measured(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(run, "PARTS", (counting("some", 5, seen, stop_at=3),))
    with pytest.raises(KeyboardInterrupt):
        tiny_suite(tmp_path)
    assert list(read_table(tmp_path, "some")["i"]) == [0, 1, 2]
    assert read_head(tmp_path)["items"]["some"] == {"done": 3, "all": 5}


@interpreted
def test_parts_share_the_time_and_what_one_leaves_goes_to_the_others(monkeypatch, tmp_path):
    now, seen = [0.0], []

    def slow(part, seconds):
        def measure(bench, item):
            now[0] += seconds
            return part.measure(bench, item)

        return replace(part, measure=measure)

    parts = [slow(counting("long", 100, seen), 10), slow(counting("short", 2, seen), 1)]
    monkeypatch.setattr(run, "PARTS", (*parts, slow(counting("other", 100, seen), 10)))
    monkeypatch.setattr(run, "monotonic", lambda: now[0])
    left = tiny_suite(tmp_path, minutes=5)
    assert left["short"] == 0 and now[0] <= 300
    counts = {name: sum(n == name for n, _ in seen) for name in ("long", "short", "other")}
    assert counts["short"] == 2 and counts["long"] >= 9 and counts["other"] >= 14
    assert counts["long"] + counts["other"] >= 27  # of 29 that fit


@interpreted
def test_an_item_that_fails_is_a_row_with_a_note(monkeypatch, tmp_path):
    part = counting("some", 2, [])

    def measure(bench, item):
        raise torch.OutOfMemoryError("tried to allocate")

    failing = replace(part, measure=measure)
    monkeypatch.setattr(run, "PARTS", (failing,))
    assert tiny_suite(tmp_path) == {"some": 0}
    table = read_table(tmp_path, "some")
    assert list(table["note"]) == ["does not fit the device's memory"] * 2
    assert table["value"].isna().all()


@interpreted
@pytest.mark.parametrize("name", ["gpu", "torch", "triton"])
def test_a_folder_measured_elsewhere_is_refused_and_left_alone(name, measured, tmp_path):
    head = read_head(measured)
    head["conditions"][name] = "another"
    text = json.dumps(head)
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(ValueError, match=f"measured with {name} 'another', now it is"):
        tiny_suite(tmp_path)
    assert (tmp_path / "suite.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["suite.json"]


@interpreted
@pytest.mark.parametrize(
    "words,message",
    [
        ([], "needs a CUDA device, and torch"),
        (["--device", "cpu"], "is measured on cuda, got 'cpu'"),
        (["--minutes", "-1"], "minutes must be 0 or more"),
        (["--model", "zoo:target"], "leave out --model and --shape"),
    ],
)
def test_a_suite_that_cannot_run_is_one_line(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["measure", "--suite", "gpu", "--out", str(out), *words]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not out.exists()


@interpreted
def test_the_command_prints_the_summary_and_says_what_is_left(monkeypatch, tmp_path, capsys):
    def tiny(folder, **options):
        assert options.pop("device") == "cuda" and options["minutes"] == 0
        return tiny_suite(folder, parts=("matmuls",), **options)

    monkeypatch.setattr(run, "run_suite", tiny)
    words = ["measure", "--suite", "gpu", "--minutes", "0", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "| wanted | got |" in shown.out and "3 items are left" in shown.err


@interpreted
def test_the_text_has_conditions_verdicts_ratios_and_ceilings(measured):
    shown = as_text(measured)
    assert "TINY" in shown and "triton " in shown and "matmuls 4 of 4" in shown
    assert "| w4a16, T(16)/T(1) <= 1.1 | not measured | open | matmuls 4096x14336 |" in shown
    assert "| rows | row_invariant | PyTorch int4 |" in shown
    assert "| graph_launch |  | not measured: CUDA graphs need a CUDA device |  |" in shown
