"""Figures of cost curves and stages, from small tables by hand; what they hold is read back."""

import json

import numpy as np
import pandas as pd
import pytest

from hspec_lab import figures, store
from hspec_lab.figures_bits import format_colour
from hspec_lab.figures_cost import cost_curves, stage_curves
from hspec_lab.stages import StageCosts

NOTE = "cpu, 2 threads; 2026-01-02"
N = np.arange(1, 33)


def table(scheme="w8a8", model="m", context=512, tile=8, unstable=(), **more):
    us = 100 + 50.0 * ((N - 1) // tile)
    rows = {"device": "d", "model": model, "scheme": scheme, "context": context, "n": N}
    rows |= {"time_us": us, "low_us": us - 1, "high_us": us + 1, "graph": False, "repeats": 9}
    whole = store.whole_costs(pd.DataFrame(rows).astype(store.COSTS))
    return whole.assign(unstable=whole["n"].isin(unstable), **more)


def named(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def stages(**more):
    some = {"origin": "measured", "device": "d", "target": "t", "plain_us": 100.0, "context": 7}
    return StageCosts(**some | {"target_us": np.array([np.nan, 90, 95, 110])} | more)


def test_a_line_a_scheme_in_units_of_its_own_plain_step():
    both = pd.concat([table("w8a8"), table("fp32", tile=16)])
    figure = cost_curves(both, note=NOTE)
    lines = named(figure)
    assert list(lines) == ["fp32: knee at 32", "w8a8: knee at 16"]
    line = lines["w8a8: knee at 16"]
    assert list(line.x) == N.tolist() and list(line.y) == (1 + 0.5 * ((N - 1) // 8)).tolist()
    assert line.line.color == format_colour("w8a8") != lines["fp32: knee at 32"].line.color
    assert line.line.dash != lines["fp32: knee at 32"].line.dash


def test_what_tells_curves_apart_is_in_their_names():
    figure = cost_curves(pd.concat([table(), table(context=1024)]), knees=False)
    assert list(named(figure)) == ["w8a8, 512 stored", "w8a8, 1024 stored"]
    figure = cost_curves(pd.concat([table(), table(model="other")]), knees=False)
    assert list(named(figure)) == ["w8a8, m", "w8a8, other"]


def test_knee_plateaus_and_current_n_are_marked_and_can_be_left_out():
    figure = cost_curves(table(), current=24)
    (knee,) = [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    assert (list(knee.x), list(knee.y)) == ([16], [1.5])
    (flat,) = [trace for trace in figure.data if trace.line.width == 14]
    assert list(flat.x) == [1, 8, None, 9, 16, None, 17, 24, None, 25, 32, None]
    assert list(flat.y)[:5] == [1, 1, None, 1.5, 1.5]
    assert any(shape.x0 == shape.x1 == 24 for shape in figure.layout.shapes)
    assert any(note.text == "n = 24" for note in figure.layout.annotations)
    title = figure.layout.title.text
    assert "last n within 1.5 one-token passes" in title and "flat" in title
    bare = cost_curves(table(), knees=False, steps=False)
    assert {trace.marker.symbol for trace in bare.data} == {None, "circle-open"}
    assert not any(trace.line.width == 14 for trace in bare.data)
    assert "last n within" not in bare.layout.title.text and len(bare.layout.shapes) == 1


def test_the_interval_is_a_band_and_unstable_times_are_hollow():
    figure = cost_curves(table(unstable=(5, 7), ratio_low=0.5, ratio_high=9.0), knees=False)
    (band,) = [trace for trace in figure.data if trace.fill]
    assert list(band.y) == [9.0] * 32 + [0.5] * 32
    assert list(band.x) == N.tolist() + N.tolist()[::-1]
    (hollow,) = [trace for trace in figure.data if trace.marker.symbol == "circle-open"]
    assert list(hollow.x) == [5, 7] and list(hollow.y) == [1.0, 1.0]
    assert "unstable (2 of 32 times)" in figure.layout.title.text.replace("<br>", " ")


@pytest.mark.parametrize("cold,words", [(True, "cold cache"), (False, "warm cache")])
def test_the_caption_says_whether_caches_were_cold(cold, words):
    assert words in cost_curves(table(cold=cold), knees=False).layout.title.text


def test_stages_are_drawn_in_plain_steps_with_their_warnings():
    costs = stages(
        intermediate="i",
        head="h",
        top_k=4,
        intermediate_us=np.array([np.nan, 40, 50]),
        draft_us=np.array([np.nan, 20, 60]),
        warnings=("context 7 lies outside",),
        note="9 rounds",
    )
    figure = stage_curves(costs, note=NOTE)
    assert [list(trace.y) for trace in figure.data] == [[0.9, 0.95, 1.1], [0.4, 0.5], [0.2, 0.6]]
    assert [list(trace.x) for trace in figure.data] == [[1, 2, 3], [1, 2], [1, 2]]
    levels = ("target", "intermediate", "head")
    colours = [figures.LEVEL_COLOURS[level] for level in levels]
    assert [trace.line.color for trace in figure.data] == colours
    said = " ".join(figure.layout.title.text.split())
    for words in ("context 7 lies", "9 rounds", "a plain step is 100 µs", NOTE):
        assert words in said.replace("</span><br><span style='font-size:12px'>", " ")
    assert len(stage_curves(stages()).data) == 1


FIGURES = {
    "cost_curves": lambda origin: cost_curves(table(), origin=origin, note=NOTE),
    "stage_curves": lambda origin: stage_curves(stages(origin=origin), note=NOTE),
}


@pytest.mark.parametrize("origin", ["measured", "calibrated", "roofline"])
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_the_title_says_where_the_numbers_come_from(draw, origin):
    figure = draw(origin)
    assert f"({origin})" in figure.layout.title.text and NOTE in figure.layout.title.text
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert "NaN" not in json.dumps(json.loads(figure.to_json()))


def test_an_empty_table_says_that_nothing_is_measured():
    figure = cost_curves(store.empty_costs())
    assert "nothing measured yet" in figure.layout.annotations[-1].text
    assert "(measured)" in figure.layout.title.text


def test_a_curve_without_its_plain_step_is_one_line():
    with pytest.raises(ValueError, match="no one-token time"):
        cost_curves(table().query("n > 1"))
