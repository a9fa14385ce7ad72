"""Kernels, phases, device time and critical path of traces that can be worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from synthetic_traces import a_round, kernel, launch, module, named, phase, trace

from hspec_lab import breakdown, store, timeline
from hspec_lab.analysis import as_text, by_kernel, by_phase, critical_path, report
from hspec_lab.analysis.critical import summed
from hspec_lab.analysis.kernels import device_summary, device_table


def two_rounds():
    """A warm-up round and two that count, 0.1 us each; one graph, one copy, two streams.

    round 0: [1000, 1100), draft [1000, 1040), verify_target [1050, 1090)
    round 1: [1100, 1200), draft [1100, 1150)
    """
    ranges = [
        phase("prefill", "target", 100, 200, number=-1),
        a_round(500, 600, warmup=True),
        phase("draft", "head", 500, 600, warmup=True),
        a_round(1000, 1100, number=0, emitted=3),
        phase("draft", "head", 1000, 1040),
        phase("verify_target", "target", 1050, 1090),
        a_round(1100, 1200, number=1, emitted=1),
        phase("draft", "head", 1100, 1150, number=1),
    ]
    launches = [
        launch(1, at=110),
        launch(2, at=510),
        launch(3, at=1010, name="cudaGraphLaunch"),
        launch(4, at=1050, name="cudaMemcpyAsync"),
        launch(5, at=1060),
        launch(6, at=1095),
        launch(7, at=1110),
        launch(8, at=1300),
    ]
    kernels = [
        kernel(1, 120, 180, name="prefill_gemm"),
        kernel(2, 520, 560),
        kernel(3, 1020, 1030, node=1),
        kernel(3, 1030, 1060, node=2, name="attend"),
        kernel(4, 1055, 1075, name="copy", kind="memcpy", stream=8),
        kernel(5, 1080, 1110),
        kernel(6, 1110, 1112, name="stray"),
        kernel(7, 1120, 1130),
        kernel(8, 1310, 1320),
    ]
    return trace(ranges, launches, kernels)


def rows_of(table, *keys):
    """Each row as (key values) -> dict."""
    return {tuple(row[k] for k in keys): row for row in table.to_dict("records")}


def test_kernels_are_summed_by_name_over_the_rounds_that_count():
    table = by_kernel(two_rounds())
    rows = rows_of(table, "name")
    assert list(rows) == [("gemm",), ("attend",), ("copy",), ("stray",)]
    gemm = rows[("gemm",)]
    assert (gemm["n"], gemm["kind"]) == (3, "kernel")
    assert gemm["total_us"] == pytest.approx(0.050)
    assert gemm["median_us"] == pytest.approx(0.010)
    assert gemm["phases"] == "verify_target, draft"
    assert rows[("stray",)]["phases"] == "gap"
    assert table["share"].sum() == pytest.approx(1)
    assert rows[("copy",)]["share"] == pytest.approx(20 / 102)


def test_a_graph_counts_as_one_launch_and_a_copy_as_no_kernel():
    rows = rows_of(by_phase(two_rounds()), "phase", "level")
    draft, verify = rows[("draft", "head")], rows[("verify_target", "target")]
    assert (draft["n_kernels"], draft["n_launches"]) == (3, 2)
    assert (verify["n_kernels"], verify["n_launches"]) == (1, 2)
    assert draft["device_us"] == pytest.approx(0.050)
    assert verify["device_us"] == pytest.approx(0.050)
    assert (draft["kernels_per_round"], draft["launches_per_round"]) == (1.5, 1.0)


def test_the_host_has_its_own_time_per_phase_and_the_gap_is_the_rest():
    rows = rows_of(by_phase(two_rounds()), "phase", "level")
    assert rows[("draft", "head")]["host_us"] == pytest.approx(0.090)
    assert rows[("draft", "head")]["host_us_per_emitted"] == pytest.approx(0.0225)
    gap = rows[("gap", "")]
    assert gap["host_us"] == pytest.approx(0.070)
    assert (gap["n_kernels"], gap["n_launches"]) == (1, 1)


def test_what_lies_outside_rounds_comes_last_and_has_nothing_per_round():
    table = by_phase(two_rounds())
    assert table["phase"].tolist() == ["draft", "verify_target", "gap", "prefill", ""]
    outside = table[table["phase"].isin(["prefill", ""])]
    assert outside["n_kernels"].tolist() == [1, 1]
    assert outside.filter(like="_per_").isna().all().all()


def test_a_phase_that_lost_its_round_does_not_pass_for_one_inside():
    ranges = [a_round(0, 100), phase("draft", "head", 0, 50), phase("draft", "head", 200, 300)]
    launches = [launch(1, at=10), launch(2, at=210)]
    rows = rows_of(
        by_phase(trace(ranges, launches, [kernel(1, 20, 30), kernel(2, 220, 260)])), "phase"
    )
    assert rows[("draft",)]["device_us"] == pytest.approx(0.010)
    assert rows[("draft",)]["host_us"] == pytest.approx(0.050)
    assert rows[("",)]["device_us"] == pytest.approx(0.040)


def test_device_time_inside_the_rounds():
    found = device_summary(two_rounds())
    # [1020, 1075), [1080, 1112), [1120, 1130)
    assert found["busy_us"] == pytest.approx(0.097)
    assert found["idle_us"] == pytest.approx(0.013)
    assert found["idle_share"] == pytest.approx(13 / 110)
    assert found["host_bound_share"] == pytest.approx(103 / 200)
    # the copy on its own stream beside the graph's second kernel
    assert found["stream_overlap_us"] == pytest.approx(0.005)
    assert (found["n_rounds"], found["wall_us"]) == (2, 0.2)
    assert (found["n_kernels"], found["n_copies"], found["n_launches"]) == (5, 1, 5)
    assert (found["kernels_per_round"], found["launches_per_round"]) == (2.5, 2.5)
    assert (found["kernel_us"], found["copy_us"]) == (pytest.approx(0.082), pytest.approx(0.020))


def test_idle_between_rounds_is_nobody_s():
    ranges = [a_round(0, 100), a_round(500, 600, number=1)]
    kernels = [kernel(1, 20, 100), kernel(2, 500, 550)]
    found = device_summary(trace(ranges, [], kernels))
    assert found["idle_us"] == 0
    assert found["host_bound_us"] == pytest.approx(0.070)


def test_kernels_of_one_stream_never_overlap_each_other():
    kernels = [kernel(1, 0, 60), kernel(2, 50, 90), kernel(3, 80, 100, stream=8)]
    found = device_summary(trace([a_round(0, 100)], [], kernels))
    assert found["stream_overlap_us"] == pytest.approx(0.010)


def test_streams_that_overlap_outside_rounds_do_not_count():
    kernels = [kernel(1, 50, 160), kernel(2, 90, 190, stream=8)]
    found = device_summary(trace([a_round(0, 100)], [], kernels))
    assert found["stream_overlap_us"] == pytest.approx(0.010)


def test_each_device_has_its_own_time():
    kernels = [kernel(1, 0, 60), kernel(2, 40, 100, device=1), kernel(3, 90, 95)]
    tl = trace([a_round(0, 100)], [], kernels)
    table = device_table(tl).set_index("device")
    assert table["busy_us"].tolist() == pytest.approx([0.065, 0.060])
    assert table["idle_us"].tolist() == pytest.approx([0.030, 0.0])
    assert table["n_kernels"].tolist() == [2, 1]
    together = device_summary(tl)
    assert together["busy_us"] == pytest.approx(0.1)
    # streams of two devices are no overlap of streams
    assert together["stream_overlap_us"] == 0


def test_every_instant_of_a_round_goes_to_one_thing():
    path = critical_path(two_rounds())
    rows = rows_of(path[~path["warmup"]], "round", "phase", "level", "where")
    us = {key: round(row["us"] * 1e3) for key, row in rows.items()}
    assert us == {
        # the graph and, from 1060 on, the copy that outlasts it
        (0, "draft", "head", "device"): 35,
        (0, "verify_target", "target", "device"): 40,
        (0, "draft", "head", "host"): 20,
        (0, "verify_target", "target", "host"): 5,
        # nothing else is left, so there is no gap
        (1, "verify_target", "target", "device"): 10,
        (1, "", "", "device"): 2,
        (1, "draft", "head", "device"): 10,
        (1, "draft", "head", "host"): 28,
        (1, "gap", "", "gap"): 50,
    }


def test_of_kernels_that_run_together_the_one_that_ends_last_counts():
    ranges = [a_round(0, 100), phase("draft", "head", 0, 20), phase("accept", "target", 20, 40)]
    launches = [launch(1, at=5), launch(2, at=25)]
    kernels = [
        kernel(1, 10, 90),
        kernel(2, 30, 60, stream=8),
        # ends later than the one before it, but not last
        kernel(2, 35, 65, stream=9),
    ]
    path = critical_path(trace(ranges, launches, kernels))
    us = {(row["phase"], row["where"]): row["us"] for row in path.to_dict("records")}
    assert us == pytest.approx(
        {("draft", "device"): 0.080, ("draft", "host"): 0.010, ("gap", "gap"): 0.010}
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_critical_path_adds_up_to_the_rounds_and_a_device_part_to_busy_time(seed):
    rng = np.random.default_rng(seed)
    ranges, at = [], 0
    for number in range(20):
        start, length = at + int(rng.integers(0, 50)), int(rng.integers(0, 300))
        ranges.append(a_round(start, start + length, number=number))
        cut = start + length // 2
        ranges += [phase("draft", "head", start, cut, number=number), named("x", start + 1, cut)]
        at = start + length
    launches = [launch(i, int(rng.integers(0, at))) for i in range(80)]
    starts = rng.integers(0, at, 100)
    kernels = [
        kernel(i, int(s), int(s + rng.integers(0, 90)), stream=i % 3) for i, s in enumerate(starts)
    ]
    tl = trace(ranges, launches, kernels)
    path, found = critical_path(tl), device_summary(tl)
    assert path["us"].sum() == pytest.approx(found["wall_us"])
    assert path.loc[path["where"] == "device", "us"].sum() == pytest.approx(found["busy_us"])
    lengths = tl.ranges[tl.ranges["kind"] == "round"].set_index("round").eval("end_ns - start_ns")
    by_round = path.groupby("round")["us"].sum().reindex(lengths.index, fill_value=0.0)
    assert (by_round * 1e3).tolist() == pytest.approx(lengths.tolist())


def test_without_kernels_the_path_is_the_host_s_phases():
    ranges = [
        a_round(0, 100),
        phase("draft", "head", 10, 70),
        module("mlp", "draft", "head", 20, 30),
    ]
    path = critical_path(trace(ranges))
    us = dict(zip(path["phase"], path["us"], strict=True))
    assert us == pytest.approx({"draft": 0.060, "gap": 0.040})


def test_of_rounds_that_overlap_the_first_counts():
    path = critical_path(trace([a_round(0, 100), a_round(50, 150, number=1)]))
    assert path["round"].tolist() == [0] and path["us"].tolist() == [0.1]


def foreign():
    """step [0, 100) around attention [10, 50); a kernel from each."""
    ranges = [named("step", 0, 100), named("attention", 10, 50), named("else", 0, 30, thread=9)]
    launches = [launch(1, at=5), launch(2, at=20)]
    return trace(ranges, launches, [kernel(1, 6, 9), kernel(2, 60, 90, name="attend")])


def test_a_trace_without_rounds_is_one_window_with_its_ranges_by_name():
    rows = rows_of(by_phase(foreign()), "phase")
    assert [key[0] for key in rows] == ["attention", "step", "else"]
    assert rows[("step",)]["host_us"] == pytest.approx(0.060)
    assert rows[("attention",)]["device_us"] == pytest.approx(0.030)
    assert math.isnan(rows[("step",)]["host_us_per_round"])
    found = device_summary(foreign())
    assert (found["n_rounds"], found["wall_us"]) == (0, 0.1)
    assert found["idle_us"] == pytest.approx(0.051)
    assert math.isnan(found["launches_per_round"]) and found["n_launches"] == 2


def test_a_trace_without_rounds_has_one_critical_path_on_the_busiest_thread():
    path = critical_path(foreign())
    us = {(row["phase"], row["where"]): row["us"] for row in path.to_dict("records")}
    expected = {("step", "device"): 0.003, ("attention", "device"): 0.030}
    expected |= {("step", "host"): 0.027, ("attention", "host"): 0.040}
    assert us == pytest.approx(expected)
    assert summed(path)["us_per_round"].isna().all()


@pytest.mark.parametrize("tl", [trace(), trace([a_round(0, 100), phase("draft", "head", 0, 50)])])
def test_zero_kernels_leave_tables_with_their_columns(tl):
    found, full = report(tl), report(two_rounds())
    for name, table in full.items():
        assert list(found[name].columns) == list(table.columns)
    assert len(found["kernels"]) == len(found["devices"]) == 0
    assert found["summary"]["n_kernels"][0] == 0 and found["summary"]["busy_us"].isna().all()
    assert "no kernels were recorded" in as_text(tl) and "hspec trace CONFIG" in as_text(tl)


def test_only_warm_up_leaves_nothing_per_round():
    tl = trace([a_round(0, 100, warmup=True)], [launch(1, 10)], [kernel(1, 20, 30)])
    found = report(tl)
    assert len(found["kernels"]) == len(found["phases"]) == len(found["critical_path"]) == 0
    assert found["summary"]["wall_us"][0] == 0
    assert "1 warm-up rounds left out" in as_text(tl)


def test_device_marks_stand_in_where_no_kernels_were_recorded():
    ranges = [a_round(0, 100), phase("draft", "head", 0, 50) | {"device_us": 0.03}]
    assert by_phase(trace(ranges))["device_us"][0] == pytest.approx(0.03)


def test_launches_alone_say_nothing_of_the_device():
    ranges = [a_round(0, 100), phase("draft", "head", 0, 50), phase("accept", "target", 50, 60)]
    table = by_phase(trace(ranges, [launch(1, at=10)]))
    assert table["n_launches"].tolist() == [1, 0, 0] and table["device_us"].isna().all()
    table = by_phase(trace(ranges, [launch(1, at=10)], [kernel(1, 20, 30)]))
    assert table["device_us"].tolist() == pytest.approx([0.010, 0, 0])


def test_of_many_ranges_that_launch_a_kernel_the_first_are_named():
    ranges = [named(f"n{i:02}", i * 100, i * 100 + 90) for i in range(20)]
    launches = [launch(i, at=i * 100) for i in range(20)]
    kernels = [kernel(i, i * 100, i * 100 + 80 - i) for i in range(20)]
    phases = by_kernel(trace(ranges, launches, kernels))["phases"][0]
    assert phases == "n00, n01, n02, n03, n04, n05, n06, n07, and 12 more"


def test_unknown_counts_of_tokens_leave_nothing_per_token():
    table = by_phase(trace([a_round(0, 100, emitted=-1), phase("draft", "head", 0, 50)]))
    assert table["host_us_per_emitted"].isna().all()
    assert table["host_us_per_round"].tolist() == pytest.approx([0.05, 0.05])


def test_phases_of_a_recorded_run_are_those_of_its_breakdown():
    _, tables = run = store.read_run("profiles/runs/zoo/narrow")
    expected = breakdown.phase_table(tables["rounds"], tables["spans"], by_level=True)
    table = by_phase(timeline.of_run(*run))
    table = table[~table["phase"].isin(["prefill", ""])].reset_index(drop=True)
    both = expected.merge(table, on=["phase", "level"])
    assert len(both) == len(expected) == len(table)
    for ours, theirs in (("host_us", "total_us"), ("host_us_per_emitted", "us_per_emitted")):
        # whole nanoseconds against microseconds
        assert both[ours].to_numpy() == pytest.approx(both[theirs].to_numpy(), rel=1e-3)
    path = summed(critical_path(timeline.of_run(*run)))
    assert path["us"].sum() == pytest.approx(expected["total_us"].sum(), rel=1e-6)


def test_the_text_says_where_from_what_counts_and_what_was_guessed():
    about = {"source": "nsys 2025.3", "environment": {"gpu": "H200"}}
    tl = two_rounds().noting("a note " * 40)
    text = as_text(timeline.Timeline(tl.ranges, tl.launches, tl.kernels, tl.notes, about))
    for words in ("nsys 2025.3", "gpu H200", "2 rounds in", "4 tokens emitted", "1 warm-up"):
        assert words in text
    for heading in ("Phases, per", "Outside rounds", "Kernels and copies", "Devices", "Critical"):
        assert heading in text
    assert "1 of 9 kernels and copies (0 us) are in no range" in text
    assert max(map(len, text.splitlines())) <= 100


def test_names_of_a_hostile_trace_neither_widen_nor_steer_a_terminal():
    name = "a\x1b]0;owned\x07\n\u202e" + "x" * 500
    tl = trace([named(name, 0, 10**15)], [launch(1, 5)], [kernel(1, 10, 10**15, name=name)])
    text = as_text(tl.noting(name))
    assert all(c.isprintable() for line in text.splitlines() for c in line)
    assert max(map(len, text.splitlines())) <= 100


def test_many_ranges_of_others_are_listed_by_time_and_counted():
    tl = trace([named(f"n{i:02}", i * 100, i * 100 + i + 1) for i in range(50)])
    text = as_text(tl)
    assert "the first 20 of 50" in text and "n49" in text and "n29" not in text


def test_tables_are_plain_columns_that_parquet_takes(tmp_path):
    for name, table in report(two_rounds()).items():
        path = tmp_path / f"{name}.parquet"
        table.to_parquet(path, index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(path), table)
