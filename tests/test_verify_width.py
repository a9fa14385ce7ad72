"""Verify width: measured curves read right, rooflines by hand, figures that say their origin."""

import pandas as pd
import pytest

from hspec_lab import figures_width, verify_width
from hspec_lab.device import load

GPUS = ("rtx-4090", "h100")


@pytest.fixture(scope="module")
def warm():
    return verify_width.open_curves("zoo")


@pytest.fixture(scope="module")
def cold():
    return verify_width.open_curves("zoo-cold")


def test_a_summary_has_the_curve_s_own_numbers(warm):
    row = warm.summary().set_index(["model", "scheme"]).loc["zoo:target", "fp32"]
    curve = warm.table[(warm.table["model"] == "zoo:target") & (warm.table["scheme"] == "fp32")]
    curve = curve.set_index("n")
    assert row["t1_us"] == curve["time_us"][1]
    assert row["T(16) / T(1)"] == curve["ratio"][16]
    assert row["gb_per_s"] == pytest.approx(37748736 / curve["time_us"][1] / 1e3)
    assert row["cache"] == "warm"


def test_summaries_put_one_model_s_rows_together(warm, cold):
    table = verify_width.summaries(warm, cold)
    assert len(table) == len(warm.summary()) + len(cold.summary())
    keys = list(zip(table["model"], table["scheme"], strict=True))
    assert sum(one != other for one, other in zip(keys, keys[1:], strict=False)) == (
        len(set(keys)) - 1
    )


def test_no_cold_pass_reaches_beyond_the_roof(cold):
    table = verify_width.attained(cold)
    assert (table["share"] > 0).all() and (table["share"] < 1).all()
    first = table[table["n"] == 1].iloc[0]
    assert first["roof"] == pytest.approx(43.6e9 * first["intensity"])
    assert table.attrs["origin"] == "measured"


def test_a_fitted_roofline_leaves_a_few_percent(warm):
    table = verify_width.left_by_roofline(warm)
    assert len(table) == 4 and (table["n_passes"] == 128).all()
    assert table["median"].max() < 0.05
    assert "numbers fitted" in table.attrs["note"]


def test_a_width_is_the_last_pass_within_one_and_a_half():
    table = verify_width.widths(GPUS, "shape:llama-3-8b", ("w4a16-g128",))
    for row in table.to_dict("records"):
        name = next(name for name in GPUS if load(name).title == row["device"])
        curve = verify_width.modelled(name, "shape:llama-3-8b", ("w4a16-g128",))
        curve = curve.set_index("n")["time_us"]
        assert curve[row["width"]] <= 1.5 * row["t1_us"] < curve[row["width"] + 1]


def test_formats_without_a_peak_are_left_out_and_named():
    table = verify_width.modelled("a100-80gb", "shape:llama-3-8b", ("w16a16", "fp8"))
    assert set(table["scheme"]) == {"w16a16"}
    assert table.attrs["note"].endswith("no peak for fp8") and table.attrs["origin"] == "roofline"
    with pytest.raises(ValueError, match="has no peak for any of fp8"):
        verify_width.modelled("a100-80gb", "shape:llama-3-8b", ("fp8",))


def test_an_unknown_folder_of_curves_is_refused():
    with pytest.raises(ValueError, match="measure.json"):
        verify_width.open_curves("no-such-curves")


def test_figures_hold_their_tables(cold):
    table = verify_width.attained(cold)
    figure = figures_width.device_roofline(table, cold.device, **table.attrs)
    points = sum(len(trace.x) for trace in figure.data if "markers" in trace.mode)
    assert points == len(table)
    assert "(measured)" in figure.layout.title.text and figure.layout.xaxis.title.text
    widths = verify_width.widths(GPUS, "shape:llama-3-8b")
    bars = figures_width.width_bars(widths, **widths.attrs)
    assert sum(len(bar.x) for bar in bars.data) == len(widths)
    assert "(roofline)" in bars.layout.title.text


def test_empty_tables_draw_an_empty_figure(cold):
    nothing = verify_width.attained(cold).iloc[:0]
    assert figures_width.device_roofline(nothing, cold.device).layout.annotations
    columns = ["device", "format", "width", "bound_by"]
    assert figures_width.width_bars(pd.DataFrame(columns=columns)).layout.annotations


def test_the_take_away_repeats_the_tables(warm):
    widths = verify_width.widths(GPUS, "shape:llama-3-8b")
    told = verify_width.take_away(warm, widths)
    here = warm.summary().set_index(["model", "scheme"])["width"]
    assert f"**{here['zoo:target', 'w4a16-g128']} tokens**" in told
    assert "2 GPUs" in told and "measured on AMD EPYC" in told
