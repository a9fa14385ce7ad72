"""Figures of the study, built from small tables by hand; what they hold is read back."""

import json

import pandas as pd
import pytest
from test_figures import _contrast

from hspec_lab import figures
from hspec_lab import figures_bits as bits
from hspec_lab.config import FORMATS

NOTE = "cpu, 2 threads; 2026-01-02"
STRANGER = "w4a16-g128+gptq"
CURVES = pd.DataFrame(
    [("w8a8", 2, 1.5), ("w8a8", 1, 1.0), ("fp32", 1, 1.0), ("fp32", 2, 1.1)],
    columns=["format", "n", "ratio"],
)
DRAFTING = pd.DataFrame(
    [("fp32", 1, 0.25, 0.2, 0.3), ("fp32", 2, 0.5, 0.5, 0.6), ("w8a8", 2, 1.0, 0.9, 1.25)],
    columns=["format", "depth", "draft_ratio", "low", "high"],
)
CELLS = pd.DataFrame(
    [
        ("fp32", 2, 1, 1.5, 1.25, 1.2, 1.3, 1.25),
        ("fp32", 8, 1, 1.8, 1.10, 1.0, 1.2, 1.21),
        ("fp32", 8, 2, 2.0, 1.50, 1.4, 1.6, 1.20),
        (STRANGER, 8, 2, 1.9, 0.50, 0.4, 0.6, 0.60),
    ],
    columns="format tree_size depth mean_emitted speedup low high predicted".split(),
).assign(error=lambda cells: cells["predicted"] / cells["speedup"] - 1)
EVERY = {
    "cost_curves": (bits.cost_curves, CURVES),
    "drafting_bars": (bits.drafting_bars, DRAFTING),
    "emitted_map": (bits.emitted_map, CELLS),
    "speedup_over_size": (bits.speedup_over_size, CELLS),
    "predicted_against_measured": (bits.predicted_against_measured, CELLS),
}
every_figure = pytest.mark.parametrize("draw,table", EVERY.values(), ids=EVERY)


@every_figure
def test_title_says_what_how_it_was_found_and_under_which_conditions(draw, table):
    title = draw(table, origin="replayed from run 0123", note=NOTE).layout.title.text
    assert title.startswith("<b>") and "replayed from run 0123" in title and NOTE in title
    assert "measured)" in draw(table).layout.title.text


@every_figure
def test_background_is_transparent_and_axes_are_named(draw, table):
    layout = draw(table).layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color == figures.INK
    assert layout.xaxis.title.text and layout.yaxis.title.text


@every_figure
def test_an_empty_table_says_that_nothing_is_measured(draw, table):
    figure = draw(table[:0])
    assert "nothing measured yet" in figure.layout.annotations[-1].text


@every_figure
def test_a_front_end_is_never_given_a_nan(draw, table):
    sparse = table.assign(**{name: float("nan") for name in ("low", "high") if name in table})
    assert "NaN" not in draw(sparse).to_json()
    json.loads(draw(sparse).to_json())


def test_curves_stand_in_the_order_of_formats_and_by_n():
    figure = bits.cost_curves(CURVES)
    assert [trace.name for trace in figure.data] == ["fp32", "w8a8"]
    assert figure.data[1].x == (1, 2) and figure.data[1].y == (1.0, 1.5)
    assert figure.data[1].line.color == figures.FORMAT_COLOURS["w8a8"]
    assert len({trace.line.dash for trace in figure.data}) == 2


def test_drafting_bars_have_their_quartiles():
    fp32, w8a8 = bits.drafting_bars(DRAFTING).data
    assert fp32.x == ("1", "2") and fp32.y == (0.25, 0.5)
    assert w8a8.error_y.array == (0.25,) and w8a8.error_y.arrayminus == pytest.approx((0.1,))


def test_maps_share_one_scale_and_leave_empty_what_no_tree_fills():
    figure = bits.emitted_map(CELLS)
    fp32, stranger = figure.data
    assert (fp32.x, fp32.y) == (("2", "8"), ("1", "2"))
    assert [list(row) for row in fp32.z] == [[1.5, 1.8], [None, 2.0]]
    assert [list(row) for row in stranger.z] == [[1.9]]
    assert fp32.coloraxis == stranger.coloraxis == "coloraxis"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (1, 2.0)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["fp32", STRANGER]


def test_more_formats_than_columns_begin_another_row():
    many = pd.concat([CELLS[:1].assign(format=format) for format in FORMATS[:5]])
    figure = bits.emitted_map(many)
    assert figure.layout.xaxis5.title.text and not figure.layout.xaxis.title.text
    assert figure.layout.height > bits.emitted_map(many[:3]).layout.height


def test_speed_up_takes_the_fastest_depth_of_each_size_and_marks_the_optimum():
    figure = bits.speedup_over_size(CELLS)
    fp32, stranger = figure.data
    assert fp32.x == ("2", "8") and fp32.y == (1.25, 1.5) and fp32.customdata == (1, 2)
    assert fp32.marker.size == (7, 14) and fp32.name == "fp32: 1.50× at tree 8, depth 2"
    assert stranger.name.startswith(f"{STRANGER}: 0.50× at tree ")
    assert figure.layout.shapes[0].y0 == 1.0
    assert figure.layout.xaxis.categoryarray == ("2", "8")


def test_the_median_error_stands_in_the_title_and_equal_is_a_diagonal():
    figure = bits.predicted_against_measured(CELLS)
    # 0 %, 10 %, 20 % and 20 % off
    assert "median error 15%" in figure.layout.title.text
    assert "predicted and measured" in figure.layout.title.text
    line = figure.layout.shapes[0]
    assert (line.x0, line.x1) == (line.y0, line.y1)
    assert figure.data[0].x == (1.25, 1.1, 1.5) and figure.data[0].y == (1.25, 1.21, 1.2)


def test_cells_without_a_prediction_are_left_out_of_the_comparison():
    lost = CELLS.assign(predicted=[None, 1.21, 1.2, 0.6], error=[None, 0.1, -0.2, 0.2])
    figure = bits.predicted_against_measured(lost.astype({"predicted": float, "error": float}))
    assert figure.data[0].x == (1.1, 1.5) and "median error 20%" in figure.layout.title.text


def test_known_formats_keep_their_colour_and_strangers_get_one_that_stays():
    assert all(bits.format_colour(f) == c for f, c in figures.FORMAT_COLOURS.items())
    assert bits.format_colour(STRANGER) == "#B96A46"
    names = [f"{format}+{more}" for format in FORMATS for more in ("gptq", "awq", "quarot+gptq")]
    colours = {name: bits.format_colour(name) for name in names}
    assert len(set(colours.values())) > 0.8 * len(names)


@pytest.mark.parametrize("page", ["#ffffff", "#111111"], ids=["light theme", "dark theme"])
def test_colours_of_strangers_stand_out_on_both_themes(page):
    for number in range(200):
        colour = bits.format_colour(f"stranger-{number}")
        assert _contrast(colour, page) > 1.6, colour
