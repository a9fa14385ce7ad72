"""Figures of predictions, built from small tables by hand; what they hold is read back."""

import inspect

import numpy as np
import pandas as pd
import pytest
from prices import EAGLE
from traces import random_trace

from hspec_lab import figures
from hspec_lab import figures_predict as drawn
from hspec_lab.config import Eagle2
from hspec_lab.predict import predict

NOTE = "acceptance replayed from zoo-fp32; but: target: acceptance of a stands for b"
RUNS = pd.DataFrame(
    [
        ("eagle2", "fp32", 0.55, 0.50, 0.6, 0.50, 0.1),
        ("eagle2", "w8a8", 0.76, 0.70, 0.8, 0.80, -0.05),
        ("hierspec", "fp32", 0.40, 0.35, 0.45, 0.40, 0.0),
        ("chain", "fp32", 0.40, 0.35, 0.45, np.nan, np.nan),
    ],
    columns="method format ar_steps ar_steps_low ar_steps_high ar_steps_measured error".split(),
)
GRID = pd.DataFrame(
    [
        ("fp32", 8, 2, 1.6, 2.5),
        ("fp32", 4, 2, 1.4, 2.0),
        ("fp32", 8, 3, 1.8, 2.75),
        ("w8a8", 4, 2, 1.1, 2.0),
        ("w8a8", 8, 2, np.nan, 2.25),
    ],
    columns="format tree_size depth speedup mean_emitted".split(),
)
BEST = pd.DataFrame(
    [
        ("tree 8 <deep>", "eagle2", 1.8, 1.7, 1.9, True),
        ("chain 5", "chain", 1.2, 1.1, 1.3, False),
        ("ar", "ar", 1.0, np.nan, np.nan, True),
    ],
    columns="label method speedup low high fits".split(),
)
FOUND = predict(random_trace(0, top_k=1), Eagle2(4, 3, 1), EAGLE)
BARS = [("eagle2", FOUND), ("ar", predict(random_trace(0, top_k=1), None, EAGLE))]
EVERY = {
    "predicted_vs_measured": (drawn.predicted_vs_measured, RUNS, RUNS[:0]),
    "speedup_over_size": (drawn.speedup_over_size, GRID, GRID[:0]),
    "acceptance_map": (drawn.acceptance_map, GRID, GRID[:0]),
    "phase_bars": (drawn.phase_bars, BARS, []),
    "best_bars": (drawn.best_bars, BEST, BEST[:0]),
}
every_figure = pytest.mark.parametrize("draw,data,nothing", EVERY.values(), ids=EVERY)


def test_every_figure_function_is_looked_at_here():
    public = {
        name
        for name, value in vars(drawn).items()
        if inspect.isfunction(value) and value.__module__ == drawn.__name__ and name[0] != "_"
    }
    assert public == set(EVERY)


@every_figure
@pytest.mark.parametrize("how", ["measured", "calibrated", "roofline"])
def test_title_says_what_was_replayed_and_where_times_come_from(draw, data, nothing, how):
    title = draw(data, origin=f"acceptance replayed, stages {how}", note=NOTE).layout.title.text
    assert title.startswith("<b>") and f"(acceptance replayed, stages {how})" in title
    small = title.replace("</span><br><span style='font-size:12px'>", " ")
    assert "acceptance of a stands for b" in small
    assert "acceptance replayed" in draw(data).layout.title.text


@every_figure
def test_background_is_transparent_and_the_axis_of_numbers_is_named(draw, data, nothing):
    layout = draw(data).layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color == figures.INK and layout.xaxis.title.text


@every_figure
def test_nothing_to_show_is_said_not_raised(draw, data, nothing):
    texts = [note.text for note in draw(nothing).layout.annotations]
    assert "nothing predicted yet" in texts
    assert "nothing predicted yet" not in [note.text for note in draw(data).layout.annotations]


@every_figure
def test_a_figure_is_json_without_nan(draw, data, nothing):
    for figure in (draw(data), draw(nothing)):
        assert "NaN" not in figure.to_json()


def test_points_carry_intervals_and_runs_left_out_are_counted():
    figure = drawn.predicted_vs_measured(RUNS)
    points = {trace.name: trace for trace in figure.data}
    assert list(points) == ["eagle2 fp32", "eagle2 w8a8", "hierspec fp32"]
    assert (points["eagle2 w8a8"].x[0], points["eagle2 w8a8"].y[0]) == (0.80, 0.76)
    assert points["eagle2 fp32"].error_y.array[0] == pytest.approx(0.05)
    assert points["eagle2 fp32"].error_x.array is None
    assert points["eagle2 fp32"].marker.symbol != points["eagle2 w8a8"].marker.symbol
    title = figure.layout.title.text
    assert "median error 5%" in title and "1 of 4 runs cannot be compared" in title
    assert {shape.type for shape in figure.layout.shapes} == {"path", "line"}


def test_lines_take_the_fastest_depth_and_mark_the_best_size():
    figure = drawn.speedup_over_size(GRID, current={"tree_size": 5, "speedup": 1.5})
    line, best, *_ = figure.data
    assert (list(line.x), list(line.y)) == ([4, 8], [1.4, 1.8])
    assert (best.x[0], best.y[0], best.marker.line.width) == (8, 1.8, 2)
    assert line.name == "fp32: best 1.80× at tree 8, depth 3"
    assert list(line.customdata) == ["tree 4, depth 2", "tree 8, depth 3"]
    current = figure.data[-1]
    assert (current.name, current.x[0], current.y[0]) == ("current", 5, 1.5)
    styles = {(trace.line.color, trace.line.dash) for trace in figure.data if trace.mode == "lines"}
    assert len(styles) == 2


def test_the_map_holds_the_highest_value_of_each_place_and_marks_the_current_one():
    figure = drawn.acceptance_map(GRID, current={"tree_size": 8, "depth": 3})
    heat, ring = figure.data
    assert (list(heat.x), list(heat.y)) == ([4, 8], [2, 3])
    assert [list(row) for row in heat.z] == [[2.0, 2.5], [None, 2.75]]
    assert (ring.x[0], ring.y[0]) == (8, 3)


def test_phase_bars_add_up_to_the_prediction_and_take_its_words():
    figure = drawn.phase_bars(BARS)
    total = sum(trace.x[0] for trace in figure.data)
    assert total == pytest.approx(FOUND.us_per_token)
    title = figure.layout.title.text
    assert "(acceptance replayed, stages measured)" in title
    assert title.count("acceptance replayed from random 0") == 1


def test_candidates_say_what_does_not_fit_and_keep_their_order():
    (bars,) = drawn.best_bars(BEST).data
    assert list(bars.y) == ["tree 8 &lt;deep&gt;", "chain 5 (does not fit)", "ar"]
    assert bars.marker.opacity[1] < bars.marker.opacity[0] == 1
    assert bars.error_x.array[0] == pytest.approx(0.1) and bars.error_x.array[2] is None
    assert bars.marker.color[0] == figures.METHOD_COLOURS["eagle2"]
