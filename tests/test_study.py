"""The compatibility study on tiny models: what a cell holds, going on, refusing, taking turns."""

import json

import pandas as pd
import pytest
from test_decode import spell
from tiny import make_head, make_model

from hspec_lab import store
from hspec_lab.config import CPU_FORMATS
from hspec_lab.experiment import Session
from hspec_lab.study import Plan, run_compat
from hspec_lab.study_folder import CELL, CELLS, read_cells, read_head

SIZES = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 32}
N_NEW = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    target = spell(make_model(root / "target", scale=0.1, **SIZES))
    make_head(root / "target-eagle2", target, scale=0.1)
    return target


def plan(model, *formats, **changes):
    small = {"tree_sizes": (2, 4), "depths": (1, 2), "top_k": 2, "prompts": ("0123", "LL")}
    small |= {"max_new_tokens": N_NEW, "context": 8, "curve_repeats": 1, "threads": 1}
    models = tuple(f"{model}@{format}" for format in formats or ("fp32",))
    return Plan(models=models, **small | changes)


def stop_after(n_cells):
    def progress(done, total, text):
        if "tree" in text and done == n_cells:
            raise KeyboardInterrupt

    return progress


def test_every_cell_has_a_row_per_prompt_and_turn(model, tmp_path):
    cells = run_compat(plan(model, "fp32", "w4a16-g32", repeats=2), tmp_path / "out")
    assert list(cells.columns) == list(CELLS)
    pd.testing.assert_frame_equal(cells, read_cells(tmp_path / "out"))
    # depth 1 has a root and two children to choose from: no tree of four
    settings = [(2, 1), (2, 2), (4, 2)]
    assert cells.groupby(["scheme", "tree_size", "depth"], sort=False).size().to_dict() == {
        (scheme, *setting): 4 for scheme in ("fp32", "w4a16-g32") for setting in settings
    }
    assert cells[["prompt", "turn"]].drop_duplicates().to_numpy().tolist() == [
        [0, 0],
        [1, 0],
        [0, 1],
        [1, 1],
    ]
    assert set(cells["model"]) == {str(model)} and set(cells["top_k"]) == {2}


def test_a_row_counts_tokens_and_time_of_both_decodings(model, tmp_path):
    cells = run_compat(plan(model), tmp_path / "out")
    # the first token comes from the prefill
    assert (cells["n_emitted"] == N_NEW - 1).all() and (cells["plain_rounds"] == N_NEW - 1).all()
    assert cells["n_rounds"].between(2, N_NEW - 1).all()
    assert cells["same_text"].all()
    parts = cells[["draft_us", "verify_us", "rest_us"]]
    assert (parts > 0).all(axis=None)
    slower = cells["rounds_us"] / cells["n_rounds"]
    assert (cells["draft_us"] < slower * 3).all() and (cells["step_us"] > 0).all()
    assert (cells["rounds_us"] > cells["verify_us"]).all()
    assert (cells["plain_us"] > 2 * cells["step_us"]).all()


def test_time_of_a_device_counts_by_its_own_clock():
    from hspec_lab.study import _recorded

    spans = [
        (0, 0, False, "draft", 7.0, float("nan")),
        (0, 0, False, "verify_target", 1.0, 90.0),
        (0, 1, False, "verify_target", 2.0, 80.0),
        (0, 0, True, "draft", 500.0, 500.0),
        (1, 0, False, "draft", 500.0, 500.0),
        (0, -1, False, "prefill", 500.0, 500.0),
    ]
    names = ["prompt", "round", "warmup", "phase", "duration_us", "device_us"]
    rounds = pd.DataFrame({"prompt": [0, 0, 1], "round": [0, 1, 0], "warmup": False})

    class Recorder:
        def tables(self):
            return {"rounds": rounds, "spans": pd.DataFrame(spans, columns=names)}

    session = type("Session", (), {"recorder": Recorder()})
    found, phases = _recorded(session, 0)
    assert list(found.index) == [0, 1]
    assert phases["verify_target"].tolist() == [90.0, 80.0]
    assert phases["draft"].dropna().tolist() == [7.0]


def test_cost_curves_reach_the_largest_tree_at_every_n(model, tmp_path):
    run_compat(plan(model, "fp32", "w8a8"), tmp_path / "out")
    head, costs = store.read_cost(tmp_path / "out")
    assert costs.groupby("scheme")["n"].apply(list).to_dict() == {
        "fp32": [1, 2, 3, 4],
        "w8a8": [1, 2, 3, 4],
    }
    assert set(costs["device"]) == set(read_cells(tmp_path / "out")["device"])


def test_a_stopped_study_goes_on_and_keeps_what_it_has(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_compat(plan(model), tmp_path / "out", stop_after(2))
    first = read_cells(tmp_path / "out")
    assert first[["tree_size", "depth"]].drop_duplicates().to_numpy().tolist() == [[2, 1], [2, 2]]
    told = []
    whole = run_compat(plan(model), tmp_path / "out", lambda *said: told.append(said))
    pd.testing.assert_frame_equal(whole[: len(first)], first)
    assert [said for said in told if "tree" in said[2]] == [
        (0, 1, f"{model}@fp32, tree 4, depth 2")
    ]
    assert not whole.duplicated([*CELL, "prompt", "turn"]).any()
    head = read_head(tmp_path / "out")
    assert head["kind"] == "measured" and len(head["sessions"]) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells.parquet",
        "cost.parquet",
        "measure.json",
        "study.json",
    ]


def test_a_finished_study_decodes_nothing_and_may_grow(model, tmp_path):
    small = run_compat(plan(model, depths=(1,)), tmp_path / "out")
    again = run_compat(plan(model, depths=(1,)), tmp_path / "out")
    pd.testing.assert_frame_equal(small, again)
    grown = run_compat(plan(model, depths=(2,)), tmp_path / "out")
    assert set(grown["depth"]) == {1, 2}
    pd.testing.assert_frame_equal(grown[: len(small)], small)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"threads": 2}, "measured with threads 1, now it is 2: give another folder"),
        ({"max_new_tokens": 7}, "measured with max_new_tokens 6, now it is 7: give another"),
        ({"prompts": ("0",)}, "measured with prompts"),
        ({"tree_sizes": (2, 5)}, "cost curves up to 4 tokens, trees have 5"),
    ],
)
def test_cells_of_other_conditions_are_not_mixed(changes, message, model, tmp_path):
    run_compat(plan(model, depths=(2,), tree_sizes=(2, 4)), tmp_path / "out")
    before = read_cells(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        run_compat(plan(model, **changes), tmp_path / "out")
    pd.testing.assert_frame_equal(read_cells(tmp_path / "out"), before)


def test_weights_written_again_are_other_conditions(tmp_path):
    target = spell(make_model(tmp_path / "target", scale=0.1, **SIZES))
    make_head(tmp_path / "target-eagle2", target, scale=0.1)
    run_compat(plan(target, depths=(1,)), tmp_path / "out")
    make_head(tmp_path / "target-eagle2", target, seed=5, scale=0.1)
    with pytest.raises(ValueError, match="measured with weights of"):
        run_compat(plan(target, depths=(1,)), tmp_path / "out")


def test_plain_decoding_and_the_cell_take_turns_and_alternate_who_is_first(
    model, tmp_path, monkeypatch
):
    decoded, rounds_of = [], Session.rounds_of

    def heard(self, index, warmup=False, max_new_tokens=None):
        if not warmup:
            decoded.append((self.config.method, index))
        return rounds_of(self, index, warmup, max_new_tokens)

    monkeypatch.setattr(Session, "rounds_of", heard)
    run_compat(plan(model, tree_sizes=(2,), depths=(1,), repeats=2), tmp_path / "out")
    first = [("ar", 0), ("eagle2", 0), ("eagle2", 1), ("ar", 1)]
    second = [("eagle2", 0), ("ar", 0), ("ar", 1), ("eagle2", 1)]
    assert decoded == first + second


def test_the_default_plan_is_the_zoo_in_every_format_of_the_cpu():
    plan = Plan()
    assert plan.models == tuple(f"zoo:target@{format}" for format in CPU_FORMATS)
    # at depth 1 the root has eight children; deeper trees fill every size
    assert [cell for cell in plan.cells if cell[1] == 1] == [(2, 1), (4, 1), (8, 1)]
    assert len(plan.cells) == 3 + 4 * 8


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"models": "zoo:target"}, "models must be a tuple of str, got 'zoo:target'"),
        ({"models": ("zoo:target@w5",)}, "w5"),
        ({"tree_sizes": (1, 4)}, r"tree_sizes must be numbers >= 2, got \[1, 4\]"),
        ({"tree_sizes": ()}, r"tree_sizes must be numbers >= 2, got \[\]"),
        ({"tree_sizes": (4.0,)}, r"tree_sizes must be a tuple of int, got \(4.0,\)"),
        ({"depths": (0,)}, "depth must be 1..64, got 0"),
        ({"depths": ()}, "fill none of the tree_sizes"),
        ({"depths": (1,), "tree_sizes": (16,)}, "fill none of the tree_sizes"),
        ({"top_k": 0}, "top_k must be 1..256, got 0"),
        ({"repeats": 0}, "repeats must be a whole number >= 1, got 0"),
        ({"curve_repeats": 0}, "repeats must be a whole number >= 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"context": -1}, "contexts must be whole numbers"),
        ({"device": "gpu"}, "device must be cpu or cuda, got 'gpu'"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        Plan(**fields)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_found_before_anything_is_measured(model, tmp_path):
    for changes, message in (
        ({"prompts": ("0" * 300,)}, "exceed the context"),
        ({"context": 300}, "has 256 positions"),
        ({"head": str(tmp_path)}, str(tmp_path)),
    ):
        with pytest.raises(ValueError, match=message):
            run_compat(plan(model, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["study.json", "cells.parquet"])
def test_a_damaged_folder_is_one_line(name, model, tmp_path):
    run_compat(plan(model, tree_sizes=(2,), depths=(1,)), tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=f"{name} is damaged or cut off"):
        run_compat(plan(model), tmp_path / "out")


def test_a_folder_of_another_schema_is_refused(model, tmp_path):
    run_compat(plan(model, tree_sizes=(2,), depths=(1,)), tmp_path / "out")
    path = tmp_path / "out" / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 9}))
    with pytest.raises(ValueError, match="schema 9, this code reads 1"):
        run_compat(plan(model), tmp_path / "out")
