"""Which line a row is drawn on: streams, threads, levels, and lanes where rows cross."""

from time import perf_counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto_rules import assert_same, checked, slices_of
from synthetic_traces import a_round, kernel, launch, module, named, phase, trace

from hspec_lab.timeline import UNKNOWN
from hspec_lab.trace_out.tracks import lanes


def test_each_stream_has_its_track_and_overlaps_a_lane_of_their_own():
    found = trace(
        [named("step", 0, 90)],
        [launch(1, at=5), launch(2, at=10)],
        [
            kernel(2, 40, 60, "late"),
            kernel(1, 20, 50, "early"),
            kernel(1, 25, 30, "inside"),
            kernel(1, 50, 58, "right after"),
            kernel(UNKNOWN, 50, 55, "other", stream=9),
            kernel(2, 60, 70, "far", device=1),
        ],
    )
    kinds, tracks, _ = checked(found)
    assert list(tracks.values()) == [
        "thread 1", "launches", "stream 7", "stream 7 (2)", "stream 9", "stream 7",
    ]  # fmt: skip
    where = {event["name"]: tracks[event["tid"]] for event in slices_of(kinds, "kernels")}
    assert where["early"] == where["right after"] == "stream 7"
    assert where["late"] == where["inside"] == "stream 7 (2)"
    named_ = [e["args"]["name"] for e in kinds["M"] if e["name"] == "process_name"]
    assert named_ == ["hspec_lab", "device 0", "device 1"]
    assert_same(kinds, found)


def test_a_launch_points_at_the_first_kernel_of_its_correlation():
    found = trace(
        [],
        [launch(1, at=5), launch(2, at=50), launch(3, at=60), launch(UNKNOWN, at=70)],
        [
            kernel(1, 30, 40, "second", node=2),
            kernel(1, 20, 30, "first", node=1),
            kernel(2, 45, 50, "earlier than its launch"),
            kernel(UNKNOWN, 80, 85, "nobody's"),
        ],
    )
    _, _, [(giver, taker)] = checked(found)
    assert (giver["args"]["correlation"], taker["name"]) == (1, "first")


def test_ranges_of_others_that_cross_go_to_lanes_of_their_thread():
    found = trace(
        [
            named("a", 0, 10),
            named("b", 5, 15),
            named("in b", 6, 14),
            named("later", 15, 20),
            named("elsewhere", 3, 12, thread=2**60),
        ]
    )
    kinds, tracks, _ = checked(found)
    where = {event["name"]: tracks[event["tid"]] for event in kinds["X"]}
    assert where == {
        "a": "thread 1",
        "b": "thread 1 (2)",
        "in b": "thread 1 (2)",
        "later": "thread 1",
        "elsewhere": f"thread {2**60}",
    }
    assert_same(kinds, found)


def test_ranges_of_others_stay_together_around_a_phase_of_ours():
    found = trace(
        [named("step", 0, 90), phase("draft", "head", 10, 50), named("in draft", 20, 30)],
    )
    kinds, tracks, _ = checked(found)
    where = {event["name"]: tracks[event["tid"]] for event in kinds["X"]}
    assert where == {"step": "thread 1", "draft": "head", "in draft": "thread 1"}


@st.composite
def timelines(draw):
    """Anything a damaged trace may hold: crossing, empty and equal rows on several threads."""
    when = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda t: (t[0], sum(t)))
    thread = st.integers(1, 2)
    make = st.sampled_from(
        [
            lambda at, on: named("x", *at, thread=on),
            lambda at, on: a_round(*at, thread=on),
            lambda at, on: phase("draft", "head", *at, thread=on),
            lambda at, on: phase("verify_target", "target", *at, thread=on),
            lambda at, on: module("mlp", "draft", "head", *at, thread=on),
        ]
    )
    ranges = draw(st.lists(st.builds(lambda how, *a: how(*a), make, when, thread), max_size=25))
    calls = st.builds(lambda at, c: launch(c, *at), when, st.integers(-1, 3))
    runs = st.builds(
        lambda at, c, s: kernel(c, *at, stream=s), when, st.integers(-1, 3), st.integers(7, 8)
    )
    return trace(ranges, draw(st.lists(calls, max_size=8)), draw(st.lists(runs, max_size=12)))


@settings(max_examples=60, deadline=None)
@given(timelines())
def test_whatever_a_trace_holds_passes_every_rule_and_reads_back(found):
    assert_same(checked(found)[0], found)


def test_times_survive_a_reader_that_cuts_off():
    draw = np.random.default_rng(0)
    starts = (2 ** draw.uniform(0, 50, 2000)).astype("int64").tolist()
    lengths = (2 ** draw.uniform(0, 40, 2000)).astype("int64").tolist()
    rows = zip(starts, lengths, strict=True)
    found = trace([named("x", start, start + length) for start, length in rows])
    assert_same(checked(found)[0], found)


def test_rows_that_all_cross_take_no_longer_than_their_number():
    n = 20_000
    start, end = list(range(n)), list(range(n, 2 * n))
    began = perf_counter()
    found = lanes(range(n), start, end, [UNKNOWN] * n)
    assert len(found) == n
    # a search through all lanes would take 2e8 steps
    assert perf_counter() - began < 2
