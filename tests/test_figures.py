"""Figures are built from small tables by hand; what they hold is read back, nothing is drawn."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from hspec_lab import figures
from hspec_lab.config import FORMATS
from hspec_lab.terms import ALL_METHODS, LEVELS, PHASES, ROUND_PHASES

NOTE = "cpu, 2 threads; 2026-01-02"
BREAKDOWN = pd.DataFrame(
    [
        ("ar, fp32", "verify_target", 900.0),
        ("ar, fp32", "gap", 100.0),
        ("eagle2, fp32", "draft", 200.0),
        ("eagle2, fp32", "verify_target", 400.0),
    ],
    columns=["label", "phase", "us_per_emitted"],
)
SPEEDS = pd.DataFrame(
    [("w8a8", "eagle2", 1.5), ("fp32", "ar", 1.0), ("w8a8", "ar", 1.0), ("fp32", "eagle2", 1.25)],
    columns=["format", "method", "speedup"],
)
TOKENS = pd.DataFrame(
    [(0, 0, "def", "target"), (1, 1, " <f>\n", "head"), (1, 2, "    ", "intermediate")],
    columns=["round", "position", "piece", "source"],
)
EVERY = {
    "breakdown_bar": lambda **said: figures.breakdown_bar(BREAKDOWN, **said),
    "speedup_bars": lambda **said: figures.speedup_bars(SPEEDS, **said),
    "tokens_per_s_bars": lambda **said: figures.tokens_per_s_bars(
        SPEEDS.rename(columns={"speedup": "tokens_per_s"}), **said
    ),
    "emitted_per_round": lambda **said: figures.emitted_per_round(
        pd.DataFrame({"method": ["ar", "chain"], "n_emitted": [1, 3]}), **said
    ),
}
every_figure = pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)


@every_figure
def test_title_says_what_how_it_was_found_and_under_which_conditions(draw):
    title = draw(origin="replayed from run 0123", note=NOTE).layout.title.text
    assert title.startswith("<b>") and "replayed from run 0123" in title and NOTE in title
    assert "(measured)" in draw().layout.title.text


@every_figure
def test_background_is_transparent_and_axes_with_numbers_are_named(draw):
    layout = draw().layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color == figures.INK
    assert layout.xaxis.title.text or layout.yaxis.title.text


@pytest.mark.parametrize(
    "draw",
    [figures.breakdown_bar, figures.speedup_bars, figures.tokens_per_s_bars],
)
def test_an_empty_table_says_that_nothing_is_measured(draw):
    columns = ["label", "phase", "us_per_emitted", "format", "method", "speedup", "tokens_per_s"]
    figure = draw(pd.DataFrame(columns=columns))
    assert "nothing measured yet" in figure.layout.annotations[-1].text


def test_stacked_bars_hold_every_phase_in_its_order_and_colour():
    figure = figures.breakdown_bar(BREAKDOWN)
    assert tuple(trace.name for trace in figure.data) == ROUND_PHASES
    assert figure.layout.barmode == "stack"
    for trace in figure.data:
        assert trace.marker.color == figures.PHASE_COLOURS[trace.name]
        assert trace.y == ("ar, fp32", "eagle2, fp32")
    assert figure.data[ROUND_PHASES.index("verify_target")].x == (900.0, 400.0)
    totals = [note.text for note in figure.layout.annotations]
    assert totals == ["ar, fp32: <b>1000 µs</b>", "eagle2, fp32: <b>600 µs</b>"]


def test_long_times_are_drawn_in_milliseconds():
    slow = BREAKDOWN.assign(us_per_emitted=BREAKDOWN["us_per_emitted"] * 10)
    figure = figures.breakdown_bar(slow)
    assert figure.layout.xaxis.title.text == "ms per emitted token"
    assert figure.data[ROUND_PHASES.index("verify_target")].x == (9.0, 4.0)


def test_speedups_stand_by_method_in_the_colour_of_their_format_against_a_line_at_one():
    figure = figures.speedup_bars(SPEEDS)
    assert [trace.name for trace in figure.data] == ["fp32", "w8a8"]
    assert figure.layout.xaxis.categoryarray == ("ar", "eagle2")
    assert figure.data[1].y == (1.0, 1.5)
    assert figure.data[1].marker.color == figures.FORMAT_COLOURS["w8a8"]
    assert figure.layout.shapes[0].y0 == figure.layout.shapes[0].y1 == 1.0


def test_intervals_are_drawn_where_known_and_the_current_bar_is_outlined():
    table = SPEEDS.assign(low=SPEEDS["speedup"] - 0.1, high=SPEEDS["speedup"] + 0.2)
    table["current"] = (table["format"] == "w8a8") & (table["method"] == "eagle2")
    bars = figures.speedup_bars(table).data[1]
    assert bars.error_y.array == pytest.approx((0.2, 0.2))
    assert bars.error_y.arrayminus == pytest.approx((0.1, 0.1))
    assert bars.marker.line.width == (0, 3)


def test_bars_without_an_interval_hold_no_nan():
    table = SPEEDS.assign(low=float("nan"), high=float("nan"))
    assert figures.speedup_bars(table).data[1].error_y.array is None
    table.loc[0, ["low", "high"]] = 1.4, 1.6
    assert figures.speedup_bars(table).data[1].error_y.array[0] is None
    json.dumps(figures.speedup_bars(table).to_plotly_json(), allow_nan=False, default=list)


def test_distribution_of_emitted_tokens_sums_to_one_per_method():
    table = pd.DataFrame({"method": ["chain"] * 4 + ["ar"], "n_emitted": [1, 3, 3, 5, 1]})
    first, second = figures.emitted_per_round(table).data
    assert first.name == "ar (mean 1.00)" and second.name == "chain (mean 3.00)"
    assert second.x == (1, 3, 5) and second.y == (0.25, 0.5, 0.25)


def test_text_keeps_its_whitespace_and_is_escaped():
    drawn = figures.coloured_text(TOKENS, note=NOTE)
    assert " &lt;f&gt;\n</span>" in drawn and "<f>" not in drawn
    assert ">    </span>" in drawn and "white-space:pre-wrap" in drawn
    assert NOTE in drawn


def test_text_tells_the_level_round_and_position_of_each_token():
    drawn = figures.coloured_text(TOKENS)
    assert "title='head, round 1, position 1'" in drawn
    assert drawn.count("border-left:") == 2, "one bar per round"
    assert drawn.count(" 33%") == 3, "shares of three levels in the legend"


def test_every_phase_level_format_and_method_has_a_colour_of_its_own():
    for colours, names in [
        (figures.PHASE_COLOURS, PHASES),
        (figures.LEVEL_COLOURS, LEVELS),
        (figures.FORMAT_COLOURS, FORMATS),
        (figures.METHOD_COLOURS, ALL_METHODS),
    ]:
        assert set(colours) == set(names)
        assert len(set(colours.values())) == len(names)


@pytest.mark.parametrize("page", ["#ffffff", "#111111"], ids=["light theme", "dark theme"])
def test_ink_and_fills_stand_out_on_both_themes(page):
    assert _contrast(figures.INK, page) > 4.2
    for colour in [*figures.PHASE_COLOURS.values(), *figures.FORMAT_COLOURS.values()]:
        assert _contrast(colour, page) > 1.6, colour


def test_views_import_no_torch():
    code = "import sys, hspec_lab.report, hspec_lab.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _contrast(one: str, other: str) -> float:
    """WCAG contrast ratio."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
