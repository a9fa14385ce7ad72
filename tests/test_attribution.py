"""Every rule of attribution on a trace small enough to know the answer."""

import numpy as np
import pytest
from synthetic_traces import a_round, kernel, launch, module, named, phase, trace

from hspec_lab import timeline
from hspec_lab.analysis.attribution import attribute, innermost, notes_on, owners

ROUND = [
    a_round(0, 100, number=3, prompt=2),
    phase("draft", "head", 0, 40, number=3, prompt=2),
    phase("verify_target", "target", 40, 90, number=3, prompt=2),
]


def placed(ranges, launches, kernels):
    """(phase, how) of each kernel."""
    found = attribute(trace(ranges, launches, kernels))
    return list(zip(found["phase"], found["how"], strict=True))


def test_a_kernel_belongs_to_the_phase_that_launched_it_not_to_the_one_it_runs_in():
    found = attribute(trace(ROUND, [launch(1, at=10)], [kernel(1, 50, 60)]))
    row = found.iloc[0]
    assert (row["phase"], row["level"], row["how"]) == ("draft", "head", "correlation")
    assert (row["prompt"], row["round"], row["launch_ns"]) == (2, 3, 10)
    assert not row["warmup"]


def test_a_range_may_close_before_its_kernels_start():
    late = kernel(1, 500, 600)
    assert placed(ROUND, [launch(1, at=10)], [late]) == [("draft", "correlation")]


def test_a_range_may_close_before_its_kernels_end():
    assert placed(ROUND, [launch(1, at=30)], [kernel(1, 35, 70)]) == [("draft", "correlation")]


def test_the_innermost_range_is_found_and_names_the_phase_above_it():
    ranges = [
        *ROUND,
        module("attention", "draft", "head", 5, 20),
        named("somebody's", 8, 15),
    ]
    tl = trace(ranges, [launch(1, at=10)], [kernel(1, 50, 60)])
    row = attribute(tl).iloc[0]
    assert tl.ranges["name"][row["range"]] == "somebody's"
    assert (row["phase"], row["level"], row["round"]) == ("draft", "head", 3)


def test_what_follows_an_inner_range_belongs_to_the_outer_one():
    ranges = [*ROUND, module("attention", "draft", "head", 5, 20), named("deep", 6, 7)]
    tl = trace(ranges, [launch(1, at=25)], [kernel(1, 50, 60)])
    assert tl.ranges["name"][attribute(tl)["range"][0]] == "draft"


def test_only_the_start_of_the_launching_call_counts():
    call = launch(1, at=39, end=80)
    assert placed(ROUND, [call], [kernel(1, 85, 88)]) == [("draft", "correlation")]


def test_a_call_at_the_border_of_two_phases_belongs_to_the_one_that_begins():
    assert placed(ROUND, [launch(1, at=40)], [kernel(1, 50, 60)])[0][0] == "verify_target"


def test_a_range_on_another_thread_does_not_count():
    ranges = [*ROUND, named("elsewhere", 10, 12, thread=9)]
    tl = trace(ranges, [launch(1, at=11), launch(2, at=11, thread=9)], [kernel(2, 50, 60)])
    found = attribute(tl)
    assert tl.ranges["name"][found["range"][0]] == "elsewhere"
    assert (found["phase"][0], found["round"][0]) == ("", -1)


def test_two_streams_at_once_keep_their_own_launches():
    launches = [launch(1, at=10), launch(2, at=50)]
    kernels = [kernel(1, 55, 80, stream=7), kernel(2, 55, 80, stream=8)]
    phases = [found[0] for found in placed(ROUND, launches, kernels)]
    assert phases == ["draft", "verify_target"]


def test_all_kernels_of_a_graph_follow_its_one_launch():
    kernels = [kernel(5, 50 + 10 * i, 58 + 10 * i, node=i + 1) for i in range(3)]
    found = placed(ROUND, [launch(5, at=12, name="cudaGraphLaunch")], kernels)
    assert found == [("draft", "correlation")] * 3


def test_a_launch_outside_every_range_belongs_to_nothing():
    found = attribute(trace(ROUND, [launch(1, at=200)], [kernel(1, 201, 210)]))
    row = found.iloc[0]
    assert (row["phase"], row["how"], row["range"], row["launch_ns"]) == ("", "none", -1, 200)


def test_a_launch_in_a_round_but_in_no_phase_belongs_to_the_round():
    row = attribute(trace(ROUND, [launch(1, at=95)], [kernel(1, 96, 99)])).iloc[0]
    assert (row["phase"], row["round"], row["how"]) == ("", 3, "correlation")


def test_without_a_launch_the_clock_decides_and_a_note_says_how_often():
    tl = trace(ROUND, [launch(1, at=10)], [kernel(1, 50, 60), kernel(77, 50, 60)])
    found = attribute(tl)
    assert found["phase"].tolist() == ["draft", "verify_target"]
    assert found["how"].tolist() == ["correlation", "time"]
    assert found["launch_ns"].tolist() == [10, -1]
    assert notes_on(found) == ("1 of 2 kernels and copies have no launch; placed by time",)


def test_the_clock_decides_nothing_where_two_threads_have_ranges():
    ranges = [*ROUND, named("elsewhere", 0, 100, thread=9)]
    found = attribute(trace(ranges, [], [kernel(77, 50, 60)]))
    assert found["how"].tolist() == ["none"]
    assert notes_on(found) == ("1 of 1 kernels and copies (0 us) are in no range",)


def test_of_launches_that_share_a_correlation_the_nearest_earlier_one_counts():
    launches = [launch(1, at=10), launch(1, at=50), launch(1, at=300)]
    found = placed(ROUND, launches, [kernel(1, 60, 70), kernel(1, 45, 49)])
    assert [name for name, _ in found] == ["verify_target", "draft"]


def test_a_kernel_that_seems_to_start_before_its_launch_still_follows_it():
    launches = [launch(1, at=50), launch(1, at=300)]
    assert placed(ROUND, launches, [kernel(1, 30, 35)]) == [("verify_target", "correlation")]


def test_an_unknown_correlation_matches_no_unknown_launch():
    unknown = timeline.UNKNOWN
    found = placed(ROUND, [launch(unknown, at=10)], [kernel(unknown, 50, 60)])
    assert found == [("verify_target", "time")]


def test_a_trace_of_others_takes_the_innermost_name_for_a_phase():
    ranges = [named("step", 0, 100), named("attention", 10, 50)]
    launches = [launch(1, at=5), launch(2, at=20)]
    found = attribute(trace(ranges, launches, [kernel(1, 6, 9), kernel(2, 60, 90)]))
    assert found["phase"].tolist() == ["step", "attention"]
    assert found["level"].tolist() == ["", ""] and found["round"].tolist() == [-1, -1]


def test_warm_up_comes_from_the_round_and_prefill_keeps_its_prompt():
    ranges = [
        phase("prefill", "target", 0, 10, number=-1, prompt=4),
        a_round(20, 40, warmup=True, prompt=4),
        phase("draft", "head", 20, 30, number=-1, prompt=-1),
    ]
    launches = [launch(1, at=5), launch(2, at=25)]
    found = attribute(trace(ranges, launches, [kernel(1, 6, 9), kernel(2, 26, 28)]))
    assert found["warmup"].tolist() == [False, True]
    assert found["prompt"].tolist() == [4, 4] and found["round"].tolist() == [-1, 0]


@pytest.mark.parametrize("empty", ["ranges", "launches", "kernels"])
def test_an_absent_table_leaves_the_columns_as_they_are(empty):
    parts = {"ranges": ROUND, "launches": [launch(1, at=10)], "kernels": [kernel(1, 50, 60)]}
    full, found = attribute(trace(**parts)), attribute(trace(**(parts | {empty: []})))
    assert list(found.columns) == list(full.columns)
    assert found.dtypes.tolist() == full.dtypes.tolist()


def test_innermost_agrees_with_looking_at_every_range():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 300, 400)
    length = rng.integers(0, 120, 400)
    thread = rng.integers(0, 3, 400)
    keys = zip(start, start + length, thread, strict=True)
    ranges = trace([named("x", int(s), int(e), int(t)) for s, e, t in keys]).ranges
    threads, times = rng.integers(0, 4, 3000), rng.integers(-5, 450, 3000)
    found = innermost(ranges, threads, times)
    for row, thread, time in zip(found, threads, times, strict=True):
        around = (ranges["thread"] == thread) & (ranges["start_ns"] <= time)
        around &= ranges["end_ns"] > time
        assert row == (ranges.index[around].max() if around.any() else -1)


def test_a_thousand_nested_ranges_lead_to_the_phase_around_them_all():
    inner = [named(f"n{i}", 1 + i, 5000 - i) for i in range(1000)]
    ranges = trace([phase("draft", "head", 0, 6000), *inner]).ranges
    assert set(owners(ranges)["phase"][:-1]) == {"draft"}
    assert innermost(ranges, np.array([1]), np.array([5500])).tolist() == [0]
