"""Methods side by side: the best really is the best, and the recorded sweeps say what they say."""

import pandas as pd
import pytest

from hspec_lab import contest, figures_contest
from hspec_lab.config import Chain, Eagle2, Refine
from hspec_lab.contest.predicted import setting_of
from hspec_lab.terms import METHODS

# thousands of settings are priced, several times
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def priced():
    return contest.here()


def test_the_best_of_a_method_is_its_fastest_setting(priced):
    best = contest.best_of_methods(priced)
    assert list(best["method"]) == [*METHODS, *METHODS]
    for row in best.to_dict("records"):
        same = (priced["method"] == row["method"]) & (priced["target"] == row["target"])
        assert row["us_per_token"] == priced.loc[same, "us_per_token"].min()
    assert (best["low"] <= best["speedup"]).all() and (best["speedup"] <= best["high"]).all()
    assert best.attrs["origin"] == "acceptance replayed, stages measured"


def test_phases_add_up_to_the_predicted_time(priced):
    best = contest.best_of_methods(priced)
    drafted = best[(best["method"] != "ar") & (best["format"] == "fp32")]
    for (label, found), row in zip(
        contest.phases(drafted), drafted.to_dict("records"), strict=True
    ):
        assert label.startswith(row["method"])
        assert found.phases["us_per_emitted"].sum() == pytest.approx(found.us_per_token)
        assert found.speedup == pytest.approx(row["speedup"])


def test_the_sweeps_best_is_what_was_measured():
    table = contest.measured_best().set_index(["format", "method"])
    assert table.loc[("fp32", "ar"), "speedup"] == 1
    assert table.loc[("fp32", "chain"), "speedup"] > table.loc[("fp32", "hierspec"), "speedup"] > 1
    assert (table.loc["w4a16-g128"].drop("ar")["speedup"] < 1).all()
    assert table.loc[("fp32", "hierspec"), "n_settings"] == 144
    assert table["low"].le(table["speedup"]).all()


def test_every_setting_of_the_sweeps_has_its_prediction():
    table = contest.beside_measured()
    assert len(table) == 2 * 186 and set(table["format"]) == set(contest.STUDIES)
    error = table["ar_steps"] / table["ar_steps_measured"] - 1
    assert table["error"].equals(error) and error.abs().median() < 0.1
    assert "4 prompts x 96 tokens" in table.attrs["note"]


def test_a_device_too_small_for_the_models_is_told():
    table = contest.best_of_methods(contest.elsewhere(("rtx-4090", "h200")))
    assert len(table) == 8
    fits = table.groupby("device")["fits"].agg(["all", "any"])
    assert not fits.loc["NVIDIA GeForce RTX 4090", "any"]
    assert fits.loc["NVIDIA H200 141GB SXM", "all"]
    assert "stands for that of shape:llama-3-70b, shape:llama-3-8b" in table.attrs["note"]
    figure = figures_contest.methods_by_device(table, **table.attrs)
    places = {place for trace in figure.data for place in trace.y}
    assert "NVIDIA GeForce RTX 4090 (does not fit)" in places
    assert [trace.name for trace in figure.data] == ["chain", "eagle2", "hierspec"]
    told = contest.take_away(contest.measured_best(), table)
    assert "rooflines of 1 GPUs" in told and "1.18, 1.01 and 1.50" in told


def test_settings_in_words():
    tree = Eagle2(8, 2, 4)
    assert setting_of(None) == "plain"
    assert setting_of(Chain("zoo:intermediate@fp32", 3)) == "3 tokens"
    assert setting_of(tree) == "tree 8, depth 2"
    words = "tree 8, depth 2, at least 5"
    assert setting_of(Refine("zoo:intermediate@fp32", tree, at_least=5)) == words


def test_a_format_without_traces_is_refused():
    with pytest.raises(ValueError, match="no trace of a target at w3a16-g128 ships"):
        contest.here(("w3a16-g128",))


def test_a_table_without_intervals_or_fits_is_drawn():
    rows = {"device": ["a"], "method": ["chain"], "setting": ["3 tokens"], "speedup": [1.2]}
    figure = figures_contest.methods_by_device(pd.DataFrame(rows))
    assert list(figure.data[0].text) == ["1.20×"] and not figure.data[0].error_x.array
