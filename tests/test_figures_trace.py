"""Figures of traces: what a view draws, what it joins, and that nothing gets lost on the way."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hspec_lab import figures_trace as drawn
from hspec_lab.figures import PHASE_COLOURS
from hspec_lab.figures_trace.lanes import in_view
from hspec_lab.timeline import KERNELS, LAUNCHES, RANGES, Timeline, nested, table

NAMES = {"round": "round", "phase": "", "module": "attention", "range": "theirs"}


def ranges(*rows, **filled):
    """Ranges from (kind, level, phase, start_us, end_us)."""
    made = pd.DataFrame(rows, columns=["kind", "level", "phase", "start_ns", "end_ns"])
    made["name"] = made["kind"].map(NAMES).where(made["kind"] != "phase", made["phase"])
    made[["start_ns", "end_ns"]] = (made[["start_ns", "end_ns"]] * 1000).astype("int64")
    return nested(table(RANGES, made, thread=0, **filled))


ROUND = Timeline(
    ranges(
        ("round", "", "", 0, 1000),
        ("phase", "head", "draft", 10, 300),
        ("phase", "target", "verify_target", 310, 900),
        ("module", "target", "verify_target", 320, 500),
        ("phase", "target", "accept", 910, 990),
        **{"prompt": 2, "round": 7, "n_tokens": 24, "n_nodes": 24, "kv_len": 512},
        scheme="w4a16-g128",
    )
)


def many(n, seed=0):
    """A round of `n` phases, most of them far too narrow for a picture of all of it."""
    draw = np.random.default_rng(seed)
    edges = np.cumsum(draw.exponential(5.0, 2 * n) * draw.choice([1, 1, 40], 2 * n))
    phases = draw.choice(["draft", "accept", "verify_target"], n)
    rows = [("phase", "target", *row) for row in zip(phases, edges[::2], edges[1::2], strict=True)]
    return Timeline(ranges(("round", "", "", 0, edges[-1]), *rows))


def bars(figure):
    """Every bar: trace, lane, from, to (ms), words."""
    return [
        (trace.name, lane, base, base + length, words)
        for trace in figure.data
        for lane, base, length, words in zip(
            trace.y, trace.base, trace.x, trace.hovertext, strict=True
        )
        if length is not None
    ]


def test_lanes_are_rounds_levels_with_modules_launches_and_streams():
    times = {"start_ns": [0, 5000], "end_ns": [4000, 9000]}
    launches = table(LAUNCHES, pd.DataFrame(times), thread=1, name="cudaLaunchKernel")
    kernels = table(KERNELS, pd.DataFrame(times), stream=[7, 13], device=0, name="gemm")
    figure = drawn.timeline(replace(ROUND, launches=launches, kernels=kernels))
    assert figure.layout.yaxis.ticktext == (
        *("rounds", "target", "modules", "head", "launches", "stream 7", "stream 13"),
    )


def test_spans_have_the_colours_of_their_phases():
    figure = drawn.timeline(ROUND)
    colours = {trace.name: trace.marker.color for trace in figure.data}
    assert colours["draft"] == PHASE_COLOURS["draft"]
    assert colours["verify_target"] == PHASE_COLOURS["verify_target"]
    # a module has that of the phase around it
    assert [bar[0] for bar in bars(figure) if "attention" in bar[4]] == ["verify_target"]


def test_attributed_kernels_have_the_colour_of_their_phase_and_others_a_plain_one():
    times = {"start_ns": [0, 5000], "end_ns": [4000, 9000], "name": ["gemm", "copy"]}
    kernels = table(KERNELS, pd.DataFrame(times), stream=7, device=0)
    kernels = kernels.assign(phase=["draft", ""], level=["head", ""])
    found = {
        bar[4].split("</b>")[0]: bar[0]
        for bar in bars(drawn.timeline(replace(ROUND, kernels=kernels)))
    }
    assert found["<b>gemm"] == "draft" and found["<b>copy"] == "kernel"


def test_hovering_tells_level_scheme_sizes_and_time():
    (words,) = (bar[4] for bar in bars(drawn.timeline(ROUND)) if bar[0] == "draft")
    for part in ("head w4a16-g128", "24 tokens in, 24 nodes, context 512", "290 µs", "round 7"):
        assert part in words


def test_names_stand_on_bars_that_have_room_and_are_not_cut_by_the_views_edge():
    def named(view):
        return {text for trace in drawn.timeline(ROUND, view).data for text in trace.text if text}

    assert named(None) == {"round 7", "draft", "verify_target", "accept", "attention"}
    assert named((0, 100_000)) == set()
    # half of the draft lies outside
    assert named((150, 1000)) == {"round 7", "verify_target", "accept", "attention"}


def test_a_span_of_unknown_sizes_does_not_show_minus_ones():
    plain = Timeline(ranges(("phase", "head", "draft", 0, 5)))
    (bar,) = bars(drawn.timeline(plain))
    assert "-1" not in bar[4]


def test_device_time_stands_beside_the_hosts():
    timed = Timeline(ranges(("phase", "head", "draft", 0, 5), device_us=3.25))
    assert "5 µs on the host, 3.25 µs on the device" in bars(drawn.timeline(timed))[0][4]


def test_names_of_a_trace_are_shown_and_never_marked_up():
    hostile = ranges(("range", "", "", 0, 5)).assign(name="<a href='javascript:x'>go</a>")
    figure = drawn.timeline(Timeline(hostile, about={"method": "<b>x"}))
    assert "<a" not in figure.to_json() and "<b>x" not in figure.layout.title.text


@pytest.mark.parametrize("pixel_us", [0.5, 20, 1000, 1e6], ids="{:g} us a pixel".format)
def test_joining_keeps_count_and_covered_time(pixel_us):
    busy = many(3000)
    ready = drawn.lanes(busy)
    found = in_view(ready, (0, ready.end_ns), 1e3 * pixel_us, 10**6)
    took = (busy.ranges["end_ns"] - busy.ranges["start_ns"]).sum()
    assert found["n"].sum() == len(busy.ranges)
    assert found["covered_ns"].sum() == took
    assert (found["covered_ns"] <= found["end_ns"] - found["start_ns"]).all()


def test_spans_of_a_pixel_and_more_stand_for_themselves():
    busy = many(3000)
    ready = drawn.lanes(busy)
    found = in_view(ready, (0, ready.end_ns), 50_000, 10**6)
    lengths = busy.ranges["end_ns"] - busy.ranges["start_ns"]
    wide = found[(found["n"] == 1) & (found["covered_ns"] >= 50_000)]
    assert sorted(wide["covered_ns"]) == sorted(lengths[lengths >= 50_000])
    assert (found["n"] > 1).any()
    # and no block reaches over one of them
    for _, lane in found.groupby("lane"):
        assert (lane["start_ns"].to_numpy()[1:] >= lane["end_ns"].to_numpy()[:-1]).all()


def test_a_block_has_the_colour_with_most_time_and_says_how_much_it_covers():
    rows = [("phase", "target", "accept", at / 2, at / 2 + 0.1) for at in range(16)]
    rows += [("phase", "target", "draft", at + 0.1, at + 0.5) for at in range(8)]
    figure = drawn.timeline(Timeline(ranges(*rows)), view=(0, 20_000))
    ((colour, _, start, end, words),) = bars(figure)
    assert colour == "draft" and "<b>24 spans</b>" in words
    assert "4.8 µs covered of 7.6 µs" in words
    # a pixel is 17 us here, and what is there at all is to be seen
    assert end - start == pytest.approx(20 / 1200)


def test_a_view_draws_what_lies_in_it_and_nothing_else():
    busy = many(3000)
    ready = drawn.lanes(busy)
    start, end = 2e3, 5e3
    found = in_view(ready, (1e3 * start, 1e3 * end), 1.0, 10**6)
    inside = (busy.ranges["end_ns"] >= 1e3 * start) & (busy.ranges["start_ns"] <= 1e3 * end)
    assert sorted(found["row"]) == sorted(np.flatnonzero(inside))


def test_whoever_drags_finds_more_on_either_side():
    figure = drawn.timeline(many(3000), (100e3, 120e3), beyond=0.5)
    assert figure.layout.xaxis.range == (100.0, 120.0)
    phases = [bar for bar in bars(figure) if bar[1] == 1]
    assert 90.0 <= max(bar[3] for bar in phases if bar[3] < 95.0)
    assert 130.0 >= min(bar[2] for bar in phases if bar[2] > 125.0)


@pytest.mark.parametrize("view", [None, (0.0, 3e5), (2e3, 5e3)], ids=["all", "much", "little"])
def test_work_is_bounded_however_many_spans_there_are(view):
    figure = drawn.timeline(many(25_000), view, most=500)
    assert figure.layout.meta["n_bars"] == len(bars(figure)) <= 500
    assert len(figure.data) == 4  # one trace a colour, not one a span


def test_the_first_picture_of_50_000_spans_is_small():
    figure = drawn.timeline(many(50_000))
    assert figure.layout.meta["n_spans"] == 50_001
    assert figure.layout.meta["n_bars"] <= 2000
    assert len(figure.to_json()) < 1_000_000


def test_every_view_has_the_same_traces_so_that_a_legend_stays():
    busy = many(3000)
    names = [[trace.name for trace in drawn.timeline(busy, view).data] for view in (None, (0, 1))]
    assert names[0] == names[1]


def test_ranges_of_others_lie_below_what_is_around_them():
    foreign = ranges(
        ("range", "", "", 0, 100),
        ("range", "", "", 10, 50),
        ("range", "", "", 20, 30),
        ("range", "", "", 60, 120),  # crosses the first
    ).assign(domain="")
    found = {(round(1e3 * bar[2]), bar[1]) for bar in bars(drawn.timeline(Timeline(foreign)))}
    assert found == {(0, 0), (10, 1), (20, 2), (60, 1)}


def test_overlap_beyond_the_deepest_lane_is_counted_in_the_note():
    deep = ranges(*[("range", "", "", at, 1000 - at) for at in range(25)])
    figure = drawn.timeline(Timeline(deep))
    assert figure.layout.meta["n_spans"] == 10
    assert "15 spans have no lane" in figure.layout.title.text


def test_many_threads_are_counted_where_they_find_no_lane():
    rows = [("range", "", "", 0, 9)] * 50
    crowd = nested(ranges(*rows).assign(thread=range(50)))
    figure = drawn.timeline(Timeline(crowd))
    assert len(figure.layout.yaxis.ticktext) == 40
    assert "10 spans have no lane" in figure.layout.title.text


def test_caption_says_what_was_measured_where_and_when():
    about = {"kind": "measured", "method": "chain", "format": "fp32"}
    about["environment"] = {"device": "cpu", "cpu": "Invented 9000", "date": "2026-01-02T03:04:05Z"}
    told = drawn.caption(replace(ROUND, about=about))
    assert told == {
        "origin": "measured",
        "note": "chain fp32; cpu, Invented 9000; 2026-01-02 03:04 UTC",
    }
    assert drawn.caption(Timeline(ROUND.ranges, about={"environment": 3}))["origin"] == "imported"


DIFFERENCE = pd.DataFrame(
    [
        ("draft", 400.0, 300.0, -100.0, -130.0, -70.0, True),
        ("verify_target", 200.0, 210.0, 10.0, -5.0, 25.0, False),
        ("total", 600.0, 510.0, -90.0, np.nan, np.nan, False),
    ],
    columns="phase a_us_per_emitted b_us_per_emitted difference difference_low difference_high"
    " changed".split(),
)
SLOW = pd.DataFrame(
    [
        (19, 22, 9000.0, "draft took longer <than> usual: noise", 8000.0, 900.0, 100.0),
        (1, 3, 4500.0, "rejected early", 3000.0, 1500.0, -2.0),
    ],
    columns="prompt round duration_us why draft verify_target gap".split(),
)
BY_KERNEL = pd.DataFrame(
    [
        ("void gemm<float, 128>", 10, 900.0, 0.9, 90.0, "verify_target"),
        ("softmax", 20, 60.0, 0.06, 3.0, "draft, verify_target"),
        ("copy", 2, 40.0, 0.04, 20.0, ""),
    ],
    columns="name n total_us share median_us phases".split(),
)
PATH = pd.DataFrame(
    [
        (0, 0, True, "draft", "head", "host", 999.0),
        (0, 1, False, "draft", "head", "host", 30.0),
        (0, 1, False, "verify_target", "target", "device", 100.0),
        (0, 2, False, "verify_target", "target", "device", 200.0),
        (0, 2, False, "gap", "", "gap", 10.0),
    ],
    columns="prompt round warmup phase level where us".split(),
)
LIMITS = pd.DataFrame(
    [
        ("verify_target", "target", 1.0, np.nan, 7.6e6, 1200.0, 160.0, 80.0, 160.0, 0.13, ""),
        ("accept", "target", np.nan, 3.0, np.nan, 20.0, np.nan, np.nan, np.nan, np.nan, "no pass"),
    ],
    columns="phase level passes_per_round launches_per_round bytes_per_round measured_us memory_us"
    " compute_us limit_us share reason".split(),
)
EVERY = {
    "timeline": (drawn.timeline, ROUND, Timeline(table(RANGES))),
    "phase_difference": (drawn.phase_difference, DIFFERENCE, DIFFERENCE[:0]),
    "slowest_rounds": (drawn.slowest_rounds, SLOW, SLOW[:0]),
    "kernels_by_time": (drawn.kernels_by_time, BY_KERNEL, BY_KERNEL[:0]),
    "critical_path": (drawn.critical_path, PATH, PATH[:0]),
    "limits": (drawn.limits, LIMITS, LIMITS[:0]),
}
every_figure = pytest.mark.parametrize("draw,data,nothing", EVERY.values(), ids=EVERY)


def test_every_figure_is_looked_at_here():
    returned = {
        name
        for name in drawn.__all__
        if inspect.isfunction(getattr(drawn, name))
        and str(inspect.signature(getattr(drawn, name)).return_annotation).endswith("Figure'>")
    }
    assert returned == set(EVERY)


@every_figure
def test_titles_say_origin_and_note(draw, data, nothing):
    title = draw(data, origin="measured", note="cpu, 2 threads").layout.title.text
    assert "(measured)" in title and "cpu, 2 threads" in title


@every_figure
def test_without_rows_a_figure_says_so(draw, data, nothing):
    figure = draw(nothing)
    assert "nothing measured yet" in [one.text for one in figure.layout.annotations]
    assert not any(len(trace.x) for trace in figure.data)


@every_figure
def test_axes_are_labelled_and_json_knows_no_nan(draw, data, nothing):
    figure = draw(data)
    assert figure.layout.xaxis.title.text
    assert "NaN" not in figure.to_json()


def test_a_difference_that_may_be_nothing_is_pale():
    figure = drawn.phase_difference(DIFFERENCE, names=("fp32", "w4a16-g128"))
    assert figure.data[0].marker.opacity == (1.0, 0.35, 0.35)
    assert figure.data[0].error_x.array[:2] == (30.0, 15.0)
    assert figure.data[0].error_x.array[2] is None
    assert "w4a16-g128 against fp32" in figure.layout.title.text
    assert "draft: 400 µs → 300 µs (×0.75)" in [one.text for one in figure.layout.annotations]


def test_slowest_rounds_are_stacked_by_phase_and_say_why():
    figure = drawn.slowest_rounds(SLOW)
    assert [trace.name for trace in figure.data] == ["draft", "verify_target", "gap"]
    assert figure.data[0].x == (8.0, 3.0) and figure.data[2].x == (0.1, 0.0)
    texts = [one.text for one in figure.layout.annotations]
    assert texts[1] == "prompt 1, round 3: 4.5 ms; rejected early"
    assert "&lt;than&gt;" in texts[0]


def test_kernels_beyond_the_first_become_one_bar():
    figure = drawn.kernels_by_time(BY_KERNEL, n=1)
    assert figure.data[0].x == (0.9, 0.1)
    assert figure.data[0].marker.color[0] == PHASE_COLOURS["verify_target"]
    both = drawn.kernels_by_time(BY_KERNEL).data[0]
    assert both.marker.color[1] == PHASE_COLOURS["draft"]
    assert [one.text for one in figure.layout.annotations][1] == "2 more: 10%, 22 times"


def test_work_that_no_phase_launched_is_named_and_a_trace_without_rounds_is_one():
    rows = PATH[2:3].assign(phase="", level="", round=-1)
    figure = drawn.critical_path(rows)
    assert [trace.name for trace in figure.data] == ["no phase"]
    assert figure.layout.xaxis.title.text == "µs of the trace"


def test_critical_path_averages_over_measured_rounds():
    figure = drawn.critical_path(PATH)
    found = {trace.name: trace.x for trace in figure.data}
    assert found == {
        "draft": (0.0, 15.0, 0.0),
        "verify_target": (150.0, 0.0, 0.0),
        "gap": (0, 0, 5),
    }


def test_limits_mark_memory_and_arithmetic_where_they_are_known():
    figure = drawn.limits(LIMITS)
    assert [trace.x for trace in figure.data] == [(1200.0, 20.0), (160.0,), (80.0,)]
    texts = [one.text for one in figure.layout.annotations]
    assert texts[0] == "verify_target (target): 1.2 ms, at least 160 µs (13%)"
    assert texts[1].endswith("no limit known")


@pytest.mark.parametrize(
    ("us", "words"), [(0.25, "0.25 µs"), (999.0, "999 µs"), (1500.0, "1.5 ms"), (2e6, "2 s")]
)
def test_times_have_three_digits_and_a_unit(us, words):
    assert drawn.time(us) == words
