"""The paper beside ours: what was fitted, what was not, and the model by hand-computed cases."""

import copy
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from hspec_lab import figures, paper
from hspec_lab import figures_paper as draw
from hspec_lab.device import Device, Number
from hspec_lab.paper import comparison, hierarchy
from hspec_lab.paper.engine import Engine, Kernel, engine_of, mean_emitted
from hspec_lab.roofline import Shape

WHOLE = Kernel(weight_bytes=2.0, row_tile=16, operand="fp16", source="made up")
NUMBERS = paper.published()
CELLS = paper.cells()
BARS = [
    (column, scheme, kind)
    for column, told in NUMBERS["columns"].items()
    for scheme in told["bars"]
    for kind in ("quantization only", "gain of EAGLE-2")
]


def made_up(fitted: paper.Fitted, kernels: dict | None = None) -> Engine:
    """1 TB/s and 100 TFLOP/s; two layers of 64 inputs and outputs, 128 inner, 1000 tokens."""
    numbers = {"bandwidth": Number(1e12, "made up")}
    peaks = {"fp16": Number(1e14, "made up"), "int8": Number(2e14, "made up")}
    device = Device("made-up", "made up", "gpu", "8.0", numbers, peaks, Path("made-up.toml"))
    shape = Shape("tiny", 64, 128, 2, 4, 2, 16, 1000, 2048)
    return Engine(device, shape, fitted, kernels or {"FP16": WHOLE})


def with_bar(column: str, scheme: str, kind: str, factor: float) -> dict:
    """The published numbers with one bar changed."""
    numbers = {key: value for key, value in NUMBERS.items() if key != "columns"}
    numbers["columns"] = copy.deepcopy(NUMBERS["columns"])
    bar = numbers["columns"][column]["bars"][scheme]
    bar[0 if kind == "quantization only" else 2] *= factor
    return numbers


def role_of(column: str, scheme: str, kind: str) -> str:
    found = CELLS[(CELLS["column"] == column) & (CELLS["scheme"] == scheme)]
    return found.set_index("kind").loc[kind, "role"]


def test_fitting_again_finds_the_stored_parameters():
    np.testing.assert_allclose(astuple(paper.fit(NUMBERS)), astuple(paper.stored()), rtol=1e-5)


@pytest.mark.parametrize("column,scheme,kind", BARS, ids=["-".join(bar) for bar in BARS])
def test_a_changed_bar_moves_parameters_exactly_when_its_cell_is_called_fitted(
    column, scheme, kind
):
    changed = astuple(paper.fit(with_bar(column, scheme, kind, 1.1)))
    same = np.allclose(changed, astuple(paper.fit(NUMBERS)), rtol=1e-9)
    assert same == (role_of(column, scheme, kind) != "fitted")


def test_nothing_predicted_is_seen_by_the_fit():
    numbers = copy.deepcopy({key: NUMBERS[key] for key in NUMBERS if key != "kernels"})
    numbers["kernels"] = NUMBERS["kernels"]
    for scheme in numbers["columns"]["8B, RTX 3090"]["bars"]:
        numbers["columns"]["8B, RTX 3090"]["bars"][scheme] = [9.0, 9.0, 9.0]
    numbers["hierspec"] |= {"over_ar": 9.0, "over_eagle2": 9.0}
    numbers["verification"]["W8A8"] = 9.0
    for text in numbers["replications"]["chain"]["texts"].values():
        text["quantization"] = 9.0
    numbers["replications"]["frequent"]["gain"] = 9.0
    ours = paper.cells(paper.fit(numbers), numbers)["ours"]
    np.testing.assert_allclose(ours, paper.cells(paper.fit(NUMBERS))["ours"], rtol=1e-12)


def test_there_are_fewer_parameters_than_numbers_and_half_as_many_as_bars():
    counts = paper.parameters().drop_duplicates("fitted_on").set_index("fitted_on")
    bars = counts.loc["quantization only, 8B on the A100"]
    assert (bars["n_parameters"], bars["n_numbers"]) == (3, 6)
    assert counts["n_parameters"].sum() == len(astuple(paper.stored())) == 9
    assert counts["n_numbers"].sum() == 13
    assert bars["error"] < 0.03


def test_the_papers_cells_are_predicted_to_within_ten_percent_in_the_median():
    errors = paper.summary().set_index("kind")
    assert (errors["median_error"] <= 0.10).all()
    whole = errors.loc["all of the paper"]
    assert (whole["n_fitted"], whole["n_predicted"]) == (12, 51)
    assert whole["median_error"] == pytest.approx(0.056, abs=0.001)


def test_errors_count_predicted_cells_only():
    worse = CELLS.assign(error=CELLS["error"].where(CELLS["role"] == "predicted", 9.0))
    assert paper.summary(worse).equals(paper.summary())


def test_no_cell_is_off_by_a_quarter_without_its_reason():
    far = CELLS[CELLS["error"].abs() > paper.LARGE_ERROR]
    assert list(far["scheme"]) == ["W4A8-QoQ-g128"] and list(far["column"]) == ["70B, A100"]
    assert "instructions" in far["reason"].iloc[0]
    assert CELLS["reason"].str.len().min() > 10


def test_the_reason_of_the_large_error_helps_all_bars_of_its_format():
    whole = CELLS[CELLS["kind"] == "with EAGLE-2"].set_index(["column", "scheme"])
    for name, column in NUMBERS["columns"].items():
        ours = engine_of(NUMBERS, name, paper.stored())
        bar, told = comparison.unhidden(ours, column, "W4A8-QoQ-g128"), (name, "W4A8-QoQ-g128")
        assert abs(bar / whole.loc[told, "paper"] - 1) < 0.06
        assert abs(bar / whole.loc[told, "paper"] - 1) < abs(whole.loc[told, "error"])


def test_published_bars_are_the_product_of_their_factors():
    for column in NUMBERS["columns"].values():
        for alone, both, gain in column["bars"].values():
            assert both == pytest.approx(alone * gain, rel=0.015)


def test_every_table_of_numbers_names_its_source():
    tables = [*NUMBERS["columns"].values(), *NUMBERS["replications"].values()]
    tables += [NUMBERS[name] for name in ("hierspec", "verification", "anchor", "pair")]
    assert all(table["source"].strip() for table in tables)
    assert all(kernel.source.strip() for kernel in NUMBERS["kernels"].values())


def test_each_assumption_on_kernels_is_worth_something():
    table = paper.assumptions().set_index("assumed")
    as_it_is, others = table.iloc[0], table.iloc[1:]
    assert (others["median_error"] > as_it_is["median_error"] + 0.01).all()
    assert others.loc["no program waits for its reads", "fitted_error"] > 0.1


def test_a_product_reads_waits_or_multiplies():
    ours = made_up(replace(paper.stored(), memory_share=0.5, latency_us=2.0, multiply_share=0.25))
    kernel = Kernel(1.0, 32, "int8", "made up", column_tile=64, stream_bytes=4096)
    needs = ours.needs(kernel, 128, 1024, 33)
    assert needs == {
        # 131072 bytes at half of 1 TB/s
        "memory": pytest.approx(131072 / 0.5e6),
        # two programs, each with 4096 bytes under way for 2 us
        "waiting": pytest.approx(131072 / (2 * 4096) * 2.0),
        # 33 rows cost as many as 64, at a quarter of 200 TOP/s
        "multiplying": pytest.approx(2 * 64 * 131072 / 0.25 / 2e8),
    }
    split = replace(kernel, column_tile=0)
    assert "waiting" not in ours.needs(split, 128, 1024, 1)


def test_groups_make_reading_dearer_and_multiplying_not():
    ours = made_up(replace(paper.stored(), group_cost=1.5))
    kernel = Kernel(0.5, 16, "int8", "made up")
    plain, grouped = (
        ours.needs(replace(kernel, grouped=grouped), 64, 64, 1) for grouped in (False, True)
    )
    assert grouped["memory"] == pytest.approx(1.5 * plain["memory"])
    assert grouped["multiplying"] == plain["multiplying"]


def test_a_pass_is_the_sum_of_its_parts():
    fitted = replace(paper.stored(), memory_share=1.0, layer_us=3.0, row_us=0.5, multiply_share=1.0)
    ours = made_up(fitted)
    # qkv 128 x 64, o 64 x 64, gate and up 256 x 64, down 64 x 128; 2 bytes a weight
    weights = 2 * (128 * 64 + 64 * 64 + 256 * 64 + 64 * 128)
    cached = 2 * 600 * 2 * 2 * 16 * 2
    parts = ours.parts(WHOLE, 5)
    assert ours.layer_weights == weights
    assert parts["memory"] == pytest.approx((2 * (weights + 64_000) + cached) / 1e6)
    assert parts["layers"] == 2 * (3.0 + 4 * 0.5)
    assert ours.pass_us(WHOLE, 5) == pytest.approx(sum(parts.values()))


def test_a_draft_is_as_many_passes_as_levels_and_a_smaller_vocabulary_is_cheaper():
    ours = made_up(paper.stored())
    assert ours.draft_us(6) == pytest.approx(6 * ours.draft_us(1))
    saved = 2 * (1000 - 100) * 64 / (paper.stored().memory_share * 1e6)
    assert ours.draft_us(1) - ours.draft_us(1, 100) == pytest.approx(saved)


def test_levels_are_accepted_one_after_the_other():
    assert mean_emitted(0.5, 3) == 1 + 0.5 + 0.25 + 0.125
    assert mean_emitted(1.0, 6) == 7


def test_hierspec_with_certain_acceptance_drafts_as_far_as_it_can():
    fitted = replace(paper.stored(), accept_8b=1.0, agreement=1.0)
    ours, sizes = made_up(fitted), hierarchy.Sizes(30, 3, 6, 10)
    found = hierarchy.cycle(ours, ours, WHOLE, sizes)
    # one token is there, two trees of four tokens follow, and the target adds one
    assert (found.emitted, found.trees, found.whole) == (10, 2, 1)
    tree = ours.draft_us(3) + ours.pass_us(WHOLE, 30)
    assert found.us == pytest.approx(2 * tree + ours.pass_us(WHOLE, 2) + ours.pass_us(WHOLE, 10))


def test_hierspecs_means_are_those_of_rounds_played_out():
    fitted, sizes = paper.stored(), hierarchy.Sizes(30, 3, 6, 10)
    ours, random = made_up(fitted), np.random.default_rng(0)
    whole, seen = True, []
    for _ in range(20_000):
        length, trees = int(whole), 0
        while length < sizes.at_least:
            kept = np.argmin(np.append(random.random(3) < fitted.accept_8b, False))
            length, trees = length + kept + 1, trees + 1
        taken = np.argmin(np.append(random.random(length) < fitted.agreement, False))
        whole = taken == length
        seen.append((taken + 1, trees, whole))
    found = hierarchy.cycle(ours, ours, WHOLE, sizes)
    means = np.mean(seen, axis=0)
    np.testing.assert_allclose((found.emitted, found.trees, found.whole), means, rtol=0.03)


def test_take_away_gives_the_median_error_and_hierspecs_number():
    told = paper.take_away()
    assert "9 parameters fitted on 13" in told and "5.6%" in told and "for 2.78x" in told
    assert told in paper.as_text()


EVERY = (draw.bars_beside, draw.errors_by_cell, draw.headlines_beside)
every_figure = pytest.mark.parametrize("figure", EVERY, ids=lambda figure: figure.__name__)


@every_figure
def test_every_figure_says_fitted_predicted_and_how_it_was_found(figure):
    title = figure(CELLS, note=paper.note()).layout.title.text
    for word in ("roofline", "calibrated", "fitted", "predicted", "9 parameters"):
        assert word in title


@every_figure
def test_every_figure_is_transparent_and_takes_an_empty_table(figure):
    layout = figure(CELLS).layout
    assert layout.paper_bgcolor == "rgba(0,0,0,0)" and layout.font.color == figures.INK
    assert "nothing measured yet" in figure(CELLS[:0]).layout.annotations[-1].text
    assert "nothing measured yet" not in figure(CELLS).to_json()
    assert "NaN" not in figure(CELLS).to_json()


@every_figure
def test_every_legend_names_each_thing_once(figure):
    shown = [trace.name for trace in figure(CELLS).data if trace.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 3


def test_hatched_bars_are_the_fitted_ones_and_losses_are_told_apart():
    bars = [trace for trace in draw.bars_beside(CELLS).data if trace.type == "bar"]
    hatched = [trace for trace in bars if trace.marker.pattern.shape == "/"]
    assert all("fitted" in trace.name for trace in hatched)
    n_seen = CELLS[CELLS["kind"].isin((draw.ALONE, draw.BOTH)) & (CELLS["role"] != "predicted")]
    assert sum(len(trace.x) for trace in hatched) == len(n_seen)
    loses = [trace for trace in bars if "takes away" in trace.name]
    assert [trace.customdata[0][0] for trace in loses] == ["W4A16-g128"] and loses[0].y[0] < 0


def test_hollow_marks_are_the_fitted_ones():
    marks = draw.errors_by_cell(CELLS).data
    hollow = sum(len(trace.x) for trace in marks if trace.marker.symbol.endswith("-open"))
    bars = CELLS[CELLS["kind"].isin((draw.ALONE, draw.BOTH, draw.GAIN))]
    assert hollow == (bars["role"] == "fitted").sum() == 10
    ours = {trace.name: len(trace.x) for trace in draw.headlines_beside(CELLS).data}
    assert ours == {"published": 13, "ours, predicted": 11, "ours, fitted": 2}
