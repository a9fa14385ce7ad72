"""The suite and whole models: curves, rounds with replayed lengths, time between kernels."""

import os

import pandas as pd
import pytest

from hspec_lab.suite import accepted, as_text, curves, gaps, rounds, run_suite
from hspec_lab.suite.folder import read_table
from hspec_lab.suite.part import Bench
from hspec_lab.suite.summary_models import (
    curves_text,
    gaps_text,
    model_lines,
    rounds_text,
    sweep_text,
)

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="tiny sizes are for the interpreter"
)
BENCH = Bench(device="cpu", tiny=True, repeats=2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    parts = ("rounds", "curves", "gaps", "sweep")
    assert run_suite(folder, device="cpu", tiny=True, parts=parts) == dict.fromkeys(parts, 0)
    return folder


@interpreted
@pytest.mark.parametrize("lengths", ["published", "zoo"])
def test_every_method_runs_rounds_with_the_lengths_it_is_given(measured, lengths):
    table = read_table(measured, "rounds").query("lengths == @lengths").set_index("method")
    assert sorted(table.index) == sorted(rounds.METHODS)
    if lengths == "published":
        assert table.loc["narrow", "note"].startswith("nothing published for narrow")
        table = table.drop(index="narrow")
    assert table.loc["ar", "mean_emitted"] == 1 and table.loc["ar", "speed_up"] == 1
    found = accepted.published if lengths == "published" else accepted.of_zoo
    # one slice of warming up has taken the first length; a draft of two with the bonus is three
    for method in ("chain", "eagle2"):
        assert table.loc[method, "mean_emitted"] == min(found(method).target[1], 3)
    assert (table["us_per_token"] > 0).all()
    drafted = table.drop(index="ar")
    assert (drafted["draft_us"] > 0).all() and (drafted["verify_target_us"] > 0).all()
    assert table.loc["hierspec", "verify_intermediate_us"] > 0
    assert (table["gap_us"] < 0.2 * table["round_us"]).all()
    assert drafted["source"].str.startswith("replayed from ").all()


@interpreted
@pytest.mark.parametrize("broken", ["ar", "chain"])
def test_a_method_that_cannot_run_leaves_the_others_their_numbers(broken, monkeypatch):
    made = rounds.builders

    def fails(memory, recorder):
        raise RuntimeError("no such kernel")

    def some(*what):
        return {name: made(*what)[name] for name in ("ar", "chain")} | {broken: fails}

    monkeypatch.setattr(rounds, "builders", some)
    found = {row["method"]: row for row in rounds.measure(BENCH, rounds.items(BENCH)[0])}
    assert found[broken]["note"] == "RuntimeError: no such kernel"
    if broken == "ar":
        assert found["chain"]["note"].startswith("plain decoding")
    else:
        assert found["ar"]["speed_up"] == 1 and "note" not in found["ar"]


@interpreted
def test_a_curve_says_what_bounds_it(measured):
    table = read_table(measured, "curves")
    assert list(table["n"]) == [1, 5] and (table["time_us"] > 0).all()
    bound_us = table["bytes"] / table["read_gb_per_s"] / 1e3
    assert (table["of_roofline"] - bound_us / table["time_us"]).abs().max() < 1e-9
    # a quarter byte more than half a byte a weight, and 40 tokens of keys and values
    assert (table["bytes"] > 40 * 2 * 2 * 32 * 2).all() and not table["graph"].any()


@interpreted
def test_tile_shapes_are_compared_with_the_chosen_one(measured):
    table = read_table(measured, "sweep")
    assert len(table) == 2 and table["chosen"].sum() == 1 and (table["time_us"] > 0).all()
    best, chosen = table["time_us"].min(), table.loc[table["chosen"], "time_us"].iloc[0]
    assert f"| 64x256 | 3 | {best:.1f} |" in sweep_text(table)
    assert f"| {chosen / best - 1:.0%} |" in sweep_text(table)


@interpreted
def test_what_needs_a_profiler_says_so_where_there_is_none(measured):
    (row,) = read_table(measured, "gaps").to_dict("records")
    assert row["note"] == "kernels are profiled on CUDA devices"
    assert "Kernels of a step: not measured" in as_text(measured)


def test_what_is_asked_for_covers_both_models_and_all_contexts():
    wanted = pd.DataFrame(curves.items(Bench()))
    plain = wanted[wanted["row_invariant"] == "no"]
    assert set(plain["context"]) == {512, 4096, 16384}
    assert set(wanted["model"]) == {"llama-3-8b", "llama-3-70b"}
    assert (wanted["row_invariant"] == "yes").any() and not wanted.duplicated().any()
    assert [item["lengths"] for item in rounds.items(Bench())[:2]] == ["published", "published"]


@pytest.mark.parametrize("method, mean, tolerance", [("eagle2", 3.4, 0), ("hierspec", 5.0, 0.05)])
def test_published_lengths_have_the_means_they_are_said_to_have(method, mean, tolerance):
    found = accepted.published(method)
    if method == "eagle2":
        assert sum(found.target) / len(found.target) == mean
        return
    assert sum(found.intermediate) / len(found.intermediate) == pytest.approx(3.2)
    emitted, n_full = cycles(found, 6, 2000)
    assert n_full / len(emitted) == 0.25
    assert sum(emitted) / len(emitted) == pytest.approx(mean, abs=tolerance)


def cycles(found, at_least: int, n: int) -> tuple[list[int], int]:
    """Emitted tokens of n cycles of a hierarchy, and how many drafts were accepted whole."""
    emitted, n_full, inner, full = [], 0, 0, False
    for cycle in range(n):
        drafted = int(full)  # the catch-up's token
        while drafted < at_least:
            drafted += found.intermediate[inner % len(found.intermediate)]
            inner += 1
        kept = min(found.target[cycle % len(found.target)], drafted + 1)
        full = kept == drafted + 1
        n_full += full
        emitted.append(kept)
    return emitted, n_full


@pytest.mark.parametrize("method", ["chain", "eagle2", "hierspec", "narrow"])
def test_lengths_of_the_shipped_runs_are_those_of_their_rounds(method):
    found = accepted.of_zoo(method)
    assert found.source.startswith("replayed from ") and len(found.target) > 200
    assert min(map(abs, found.target)) >= 1
    # rivals are a narrow tree's alone, and where it has them they are kept now and then
    share = sum(length < 0 for length in found.target) / len(found.target)
    assert (0.1 < share < 0.6) if method == "narrow" else share == 0
    if method in ("hierspec", "narrow"):
        assert len(found.intermediate) >= len(found.target)
        assert max(found.intermediate) <= 4  # a tree of depth three
    else:
        assert not found.intermediate


def test_unknown_methods_have_no_published_lengths():
    with pytest.raises(ValueError, match="nothing published for ngram; there is eagle2, chain"):
        accepted.published("ngram")


def test_a_step_is_itemised_with_the_time_between_its_kernels():
    # two steps of two kernels; the second kernel of each overlaps the first by one
    ran = [("a", 10, 14), ("b", 13, 15), ("a", 20, 24), ("b", 23, 25)]
    rows = gaps.itemise(reversed(ran), 2)
    assert [(row["kernel"], row["launches"], row["us"]) for row in rows] == [
        ("a", 1, 4),
        ("b", 1, 2),
        (gaps.BETWEEN, 0, 2.5),
    ]
    assert rows[-1]["share"] == pytest.approx(5 / 15)
    with pytest.raises(ValueError, match="the profiler noted nothing"):
        gaps.itemise([], 1)


def curve(model="llama-3-70b", share=0.7, **changes):
    known = {
        "model": model,
        "scheme": "w4a16-g128",
        "row_invariant": "no",
        "context": 512,
        "n": 1,
        "time_us": 9000.0,
        "of_roofline": share,
        "note": "",
    }
    return known | changes


def end_to_end(speed_up=3.0, **changes):
    known = {
        "target": "llama-3-70b",
        "lengths": "published",
        "method": "hierspec",
        "speed_up": speed_up,
        "low_speed_up": speed_up - 0.1,
        "high_speed_up": speed_up + 0.1,
        "mean_emitted": 5.0,
        "us_per_token": 3000.0,
        "note": "",
    }
    return known | dict.fromkeys(rounds._PHASES, 1.0) | changes


@pytest.mark.parametrize(
    "share, small, speed_up, met",
    [
        (0.7, 0.5, 3.0, [True, True, True]),
        (0.6, 0.44, 2.7, [False, False, False]),
        (0.65, 0.45, 2.78, [True, True, True]),
    ],
)
def test_whole_models_meet_or_miss_their_numbers(share, small, speed_up, met):
    curves_table = pd.DataFrame([curve(share=share), curve("llama-3-8b", small)])
    found = model_lines(curves_table, pd.DataFrame([end_to_end(speed_up)]))
    assert [line.met for line in found] == met
    assert f"{share:.1%}" in found[0].got and f"{speed_up:.2f}x" in found[2].got


def test_what_was_not_measured_stays_open_and_says_why():
    nothing = [line.met for line in model_lines(None, None)]
    assert nothing == [None, None, None]
    unfit = curve(n=0, time_us=float("nan"), of_roofline=float("nan"), note="does not fit")
    missing = end_to_end(float("nan"), us_per_token=float("nan"), method="", note="too large")
    found = model_lines(pd.DataFrame([unfit]), pd.DataFrame([missing]))
    assert found[0].got == "not measured: does not fit" and found[0].met is None
    assert found[2].got == "not measured: too large"


def test_tables_as_text_hold_what_was_measured():
    table = pd.DataFrame([curve(), curve(n=16, time_us=9450.0)])
    assert "| llama-3-70b w4a16-g128 | 512 | 9000 | 70% |  |  | 1.05 |  |  |" in curves_text(table)
    text = rounds_text(pd.DataFrame([end_to_end()]))
    assert "| llama-3-70b published | hierspec | 3.00 (2.90..3.10) | 5.00 | 3000 |" in text
    step = [
        {"model": "m", "kernel": "k", "launches": 2.0, "us": 3.0, "share": 0.75},
        {"model": "m", "kernel": gaps.BETWEEN, "launches": 0.0, "us": 1.0, "share": 0.25},
    ]
    text = gaps_text(pd.DataFrame(step))
    assert "| m | k | 2 | 3.0 | 75.0% |" in text and "between kernels | 0 | 1.0 | 25.0%" in text
