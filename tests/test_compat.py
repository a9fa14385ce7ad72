"""A study read back: every factor from hand-made turns, and the equation from the factors."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from hspec_lab import compat, store
from hspec_lab.study_folder import CELLS, SCHEMA_VERSION, write_cells

HEAD = {
    "schema": SCHEMA_VERSION,
    "kind": "measured",
    "conditions": {"device": "cpu", "cpu": "C", "torch": "2.0", "date": "2026-01-02T03:04:05Z"},
    "plan": {"prompts": [], "n_prompts": 2, "max_new_tokens": 21},
}


def turn(scheme="fp32", size=4, depth=2, prompt=0, turn=0, emitted=20, rounds=10, us=2000, **more):
    """20 tokens in 10 rounds of 200 us; plain steps of 100 us."""
    row = {"device": "d", "model": "m", "scheme": scheme, "tree_size": size, "depth": depth}
    row |= {"top_k": 8, "prompt": prompt, "turn": turn, "n_rounds": rounds, "n_emitted": emitted}
    row |= {"rounds_us": us, "draft_us": 50.0, "verify_us": 130.0, "rest_us": 20.0}
    row |= {"plain_rounds": 20, "plain_us": 2000, "step_us": 100.0, "same_text": True}
    return row | more


def turns(*rows):
    return pd.DataFrame(list(rows))[list(CELLS)].astype(CELLS)


def curve(scheme, times, model="m"):
    rows = [("d", model, scheme, 8, n, us, us - 1, us + 2, False, 3) for n, us in times.items()]
    return pd.DataFrame(rows, columns=list(store.COSTS)).astype(store.COSTS)


def study(table, *curves, name="s"):
    return compat.Study(name, HEAD, table, pd.concat(curves, ignore_index=True))


def test_factors_of_a_cell_are_those_worked_out_by_hand():
    table = turns(
        turn(prompt=0, emitted=20, us=2000),  # 100 us a token, plain 100
        turn(prompt=1, emitted=30, us=1500, draft_us=60.0),  # 50 us a token
        turn(prompt=2, emitted=10, us=500, draft_us=90.0, step_us=120.0, same_text=False),  # 50
    )
    (row,) = study(table, curve("fp32", {1: 10, 4: 15})).cells().to_dict("records")
    assert row["mean_emitted"] == pytest.approx(60 / 30)
    assert row["draft_ratio"] == pytest.approx(0.6)  # of .5, .6, .75
    assert row["rest_ratio"] == pytest.approx(0.2)
    assert row["verify_ratio"] == 1.5
    assert row["speedup"] == 2.0 and (row["low"], row["high"]) == (1.5, 2.0)
    assert row["predicted"] == pytest.approx(2.0 / (0.6 + 1.5))
    assert row["error"] == pytest.approx(row["predicted"] / 2.0 - 1)
    assert (row["same_text"], row["n"]) == (pytest.approx(2 / 3), 3)


def test_an_output_without_a_round_does_not_count():
    nothing = turn(prompt=1, emitted=0, rounds=0, us=0.0, draft_us=float("nan"))
    one = study(turns(turn(), nothing), curve("fp32", {1: 10, 4: 15})).cells()
    assert one["n"].tolist() == [1] and one["speedup"].tolist() == [1.0]


def test_a_size_without_a_curve_is_not_predicted_and_not_dropped():
    cells = study(turns(turn(size=9)), curve("fp32", {1: 10, 4: 15})).cells()
    assert cells["speedup"].tolist() == [1.0] and cells["predicted"].isna().all()
    assert pd.isna(compat.median_error(cells))


def test_predictions_of_a_format_use_its_own_curve():
    table = turns(turn("fp32"), turn("w8a8"))
    curves = curve("fp32", {1: 10, 4: 15}), curve("w8a8", {1: 4, 4: 12})
    cells = study(table, *curves).cells().set_index("format")
    assert cells["verify_ratio"].to_dict() == {"fp32": 1.5, "w8a8": 3.0}
    assert cells["predicted"]["w8a8"] == pytest.approx(2.0 / 3.5)


def test_curves_are_in_units_of_the_one_token_pass_with_their_quartiles():
    curves = study(turns(turn()), curve("fp32", {1: 10, 4: 15})).curves()
    assert curves[["n", "ratio", "low", "high"]].to_numpy().tolist() == [
        [1, 1.0, 0.9, 1.2],
        [4, 1.5, 1.4, 1.7],
    ]


def test_drafting_cost_is_a_median_over_all_turns_of_a_depth():
    table = turns(
        turn(size=2, draft_us=40.0),
        turn(size=4, draft_us=60.0),
        turn(size=8, draft_us=90.0),
        turn(size=8, depth=3, draft_us=200.0),
    )
    found = study(table, curve("fp32", {1: 10})).drafting()
    assert found[["depth", "draft_ratio", "low", "high"]].to_numpy().tolist() == [
        [2, 0.6, 0.5, 0.75],
        [3, 2.0, 2.0, 2.0],
    ]


def test_the_best_cell_is_the_fastest_of_each_format():
    table = turns(
        turn(size=4, us=2000), turn(size=8, us=1000), turn("w8a8", size=4, us=4000), turn(size=16)
    )
    best = study(table, curve("fp32", {1: 1}), curve("w8a8", {1: 1})).best()
    assert best[["format", "tree_size", "speedup"]].to_numpy().tolist() == [
        ["fp32", 8, 2.0],
        ["w8a8", 4, 0.5],
    ]


def test_formats_carry_their_model_where_there_are_several():
    table = turns(turn(), turn(model="n"))
    cells = study(table, curve("fp32", {1: 1, 4: 2}), curve("fp32", {1: 1, 4: 3}, "n")).cells()
    assert cells["format"].tolist() == ["m@fp32", "n@fp32"]
    assert cells["verify_ratio"].tolist() == [2.0, 3.0]


def test_an_algorithm_behind_a_format_stays_in_its_name():
    name = "w4a16-g128+quarot+gptq"
    cells = study(turns(turn(name)), curve(name, {1: 10, 4: 40})).cells()
    assert cells["format"].tolist() == [name] and cells["verify_ratio"].tolist() == [4.0]


def test_the_take_away_holds_numbers_and_their_conditions():
    table = turns(turn(us=1000), turn("w8a8", us=4000))
    curves = curve("fp32", {1: 10, 4: 15}), curve("w8a8", {1: 4, 4: 12})
    said = study(table, *curves).take_away()
    assert "2.00x ar at fp32 (tree 4, depth 2; T(4) is 1.5 T(1))" in said
    assert "0.50x ar at w8a8" in said
    # 2 / 2 beside 2, and 2 / 3.5 beside 0.5
    assert "off by 32% (median)" in said
    assert "Measured on d, 2 prompts x 21 tokens, greedy, torch 2.0, 2026-01-02, study s" in said


def test_a_study_without_a_cell_says_so():
    empty = study(turns(turn())[:0], curve("fp32", {1: 10, 4: 15}))
    assert empty.cells().empty and empty.best().empty and empty.drafting().empty
    assert empty.take_away().startswith("Nothing measured yet")


def written(folder):
    write_cells_of(folder, turns(turn()))
    return folder


def write_cells_of(folder, table):
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(HEAD))
    write_cells(folder, table)
    head = {"kind": "measured", "conditions": {}, "weight_bytes": {}}
    store.write_cost(folder, head, curve("fp32", {1: 10, 4: 15}))


def test_a_folder_is_read_as_it_was_written(tmp_path):
    found = compat.open_study(written(tmp_path / "some"))
    assert found.name == "some" and "1 cells; d, 2 prompts" in repr(found)
    pd.testing.assert_frame_equal(found.turns, turns(turn()))
    assert found.caption()["origin"] == "measured"


@pytest.mark.parametrize(
    "lost,message",
    [("study.json", "holds no study"), ("cost.parquet", "cost.parquet is missing")],
)
def test_a_folder_that_lacks_a_file_is_one_line(lost, message, tmp_path):
    (written(tmp_path / "some") / lost).unlink()
    with pytest.raises(ValueError, match=message):
        compat.open_study(tmp_path / "some")


def test_an_unknown_name_is_looked_for_among_those_that_ship():
    with pytest.raises(ValueError, match="studies.no-such-study holds no study"):
        compat.open_study("no-such-study")


def test_a_foreign_column_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="a study has the columns"):
        write_cells(tmp_path, turns(turn()).assign(more=1))


def test_reading_a_study_needs_no_torch(tmp_path):
    code = (
        "import sys; from hspec_lab import compat, figures_bits as f;"
        f"s = compat.open_study({str(written(tmp_path / 'some'))!r});"
        "f.speedup_over_size(s.cells(), **s.caption()); print(s.take_away());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
