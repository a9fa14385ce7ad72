"""Runs on disk: what is written is what is read, whole or not at all, and strangers are refused."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from hspec_lab import store
from hspec_lab.config import Config, as_dict, config_id
from hspec_lab.store import find, list_runs, new_folder, read_run, store_root, write_run

CONFIG = Config(prompts=("def f(",), max_new_tokens=5)
HEAD = {
    "kind": "measured",
    "config": as_dict(CONFIG),
    "config_id": config_id(CONFIG),
    "method": CONFIG.method,
    "format": CONFIG.format,
    "environment": {"device": "cpu", "threads": 2, "date": "2026-01-02T03:04:05Z"},
    "prompts": ["def f("],
    "outputs": ["x):\n"],
}


def tables(*counts):
    """Rounds of prompt 0 with the given (proposed, accepted, emitted), one span each."""
    rounds = [[0, i, False, *count, 10 + i, 100.0 * i, 90.0] for i, count in enumerate(counts)]
    spans = [
        [0, i, False, "draft", "head", 8, 8, 10 + i, 100.0 * i, 80.0, math.nan]
        for i in range(len(counts))
    ]
    tokens = [[0, -1, 0, 7, "x", "target"], [0, 0, 1, 8, "é\n", "head"]]
    return {
        name: pd.DataFrame(rows, columns=list(store.TABLES[name]))
        for name, rows in {"rounds": rounds, "spans": spans, "tokens": tokens}.items()
    }


GOOD = tables((4, 2, 3), (4, 4, 2))


def test_written_run_reads_back(tmp_path):
    write_run(tmp_path / "a", HEAD, GOOD)
    head, read = read_run(tmp_path / "a")
    assert head["config"] == as_dict(CONFIG)
    assert (head["schema"], head["audits"], head["summary"]) == (1, [], {})
    for name, table in GOOD.items():
        pd.testing.assert_frame_equal(read[name], table)


def test_empty_tables_read_back_with_their_types(tmp_path):
    empty = {name: pd.DataFrame(columns=list(columns)) for name, columns in store.TABLES.items()}
    write_run(tmp_path / "a", HEAD, empty)
    read = read_run(tmp_path / "a")[1]
    for name, table in GOOD.items():
        assert read[name].dtypes.to_dict() == table.dtypes.to_dict()


def test_numbers_json_does_not_have_become_plain_ones(tmp_path):
    summary = {"speedup": math.nan, "n": np.int64(3), "interval": (np.float64(1.5), math.inf)}
    write_run(tmp_path / "a", HEAD | {"summary": summary}, GOOD)
    read = read_run(tmp_path / "a")[0]["summary"]
    assert read == {"speedup": None, "n": 3, "interval": [1.5, None]}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("spans", lambda t: t.rename(columns={"start_us": "start"}), "start_us.*'start'"),
        ("rounds", lambda t: t.assign(extra=1), "got .*'extra'"),
        ("rounds", lambda t: t.assign(n_emitted=[3.5, 1.0]), "n_emitted must be int64, got float"),
        ("tokens", lambda t: t.assign(piece=[1, 2]), "piece must be str, got int64"),
    ],
    ids=["lost unit", "foreign column", "half a token", "piece is not text"],
)
def test_foreign_table_is_refused_and_leaves_nothing(tmp_path, name, change, message):
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "b", HEAD, GOOD | {name: change(GOOD[name])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([(4, 2, 2), (4, 1, 2)], "round 0 of prompt 0 has .* n_emitted 2"),
        ([(4, 2, 4)], "n_emitted must be n_accepted [+] 1"),
        ([(4, 5, 6)], "n_proposed 4, n_accepted 5"),
    ],
    ids=["cut in the middle", "more than accepted + 1", "more than proposed"],
)
def test_counts_that_contradict_each_other_are_refused(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "b", HEAD, tables(*counts))


def test_a_prompt_measured_twice_is_refused_and_warmed_up_twice_is_not(tmp_path):
    warmup = GOOD["rounds"].assign(warmup=True)
    write_run(tmp_path / "a", HEAD, GOOD | {"rounds": pd.concat([warmup, warmup, GOOD["rounds"]])})
    with pytest.raises(ValueError, match="round 0 of prompt 0 stands twice"):
        write_run(tmp_path / "b", HEAD, GOOD | {"rounds": pd.concat([GOOD["rounds"]] * 2)})


def test_last_round_of_each_prompt_may_be_cut(tmp_path):
    cut = pd.concat([GOOD["rounds"], GOOD["rounds"].assign(prompt=1)], ignore_index=True)
    write_run(tmp_path / "b", HEAD, GOOD | {"rounds": cut})


def test_head_and_tables_must_be_complete(tmp_path):
    lacking = {name: value for name, value in HEAD.items() if name != "environment"}
    with pytest.raises(ValueError, match="run.json needs environment"):
        write_run(tmp_path / "b", lacking, GOOD)
    with pytest.raises(ValueError, match="one output per prompt, got 1 prompts and 0 outputs"):
        write_run(tmp_path / "b", HEAD | {"outputs": []}, GOOD)
    with pytest.raises(ValueError, match="'tokens'.*got .*'spans'"):
        write_run(tmp_path / "b", HEAD, {n: GOOD[n] for n in ("rounds", "spans")})


def test_tables_of_modules_kernels_and_launches_come_along_where_they_are(tmp_path):
    module = [0, 0, False, "draft", "head", "mlp", 0, 8, 10, 1.0, 2.0]
    modules = pd.DataFrame([module], columns=list(store.MORE_TABLES["modules"]))
    write_run(tmp_path / "a", HEAD, GOOD | {"modules": modules})
    found = read_run(tmp_path / "a")[1]
    assert list(found) == ["rounds", "spans", "tokens", "modules"]
    pd.testing.assert_frame_equal(found["modules"], modules.astype(store.MORE_TABLES["modules"]))
    with pytest.raises(ValueError, match="may have .*'modules', 'kernels', 'launches'.*'speed'"):
        write_run(tmp_path / "b", HEAD, GOOD | {"speed": modules})
    with pytest.raises(ValueError, match="modules needs columns"):
        write_run(tmp_path / "b", HEAD, GOOD | {"modules": modules.drop(columns="layer")})


def test_runs_from_before_nodes_were_counted_are_read_as_unknown(tmp_path):
    run = write_run(tmp_path / "a", HEAD, GOOD)
    GOOD["spans"].drop(columns="n_nodes").to_parquet(run / "spans.parquet")
    spans = read_run(run)[1]["spans"]
    assert list(spans) == list(store.TABLES["spans"])
    assert (spans["n_nodes"] == -1).all()


def test_a_run_is_never_written_over_another(tmp_path):
    write_run(tmp_path / "a", HEAD, GOOD)
    with pytest.raises(ValueError, match="exists already"):
        write_run(tmp_path / "a", HEAD, GOOD)


def test_two_processes_that_write_in_the_same_second_both_keep_their_run(tmp_path, monkeypatch):
    names = iter([tmp_path / "a", tmp_path / "a", tmp_path / "a-2"])
    monkeypatch.setattr(store, "new_folder", lambda root, config_id: next(names))
    first = store.write_new_run(tmp_path, "a", HEAD, GOOD)
    second = store.write_new_run(tmp_path, "a", HEAD, GOOD)
    assert (first.name, second.name) == ("a", "a-2")
    names = iter([tmp_path / "b"])
    with pytest.raises(ValueError, match="may have"):
        store.write_new_run(tmp_path, "b", HEAD, {})


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, failure):
    def to_parquet(table, path, **_):
        path.write_bytes(b"PAR1 half of a")
        raise failure

    monkeypatch.setattr(pd.DataFrame, "to_parquet", to_parquet)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_run(tmp_path / "a", HEAD, GOOD)
    assert not list(tmp_path.iterdir())


def break_schema(run):
    head = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(head | {"schema": 99}))


def cut_file(name):
    def cut(run):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: len(data) // 2])

    return cut


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_schema, "run.json: schema 99, this code reads 1"),
        (lambda run: (run / "run.json").write_text("[1]"), "schema None"),
        (lambda run: (run / "run.json").write_text('{"schema": 1}'), "lacks kind, config"),
        (lambda run: (run / "run.json").unlink(), "run.json is missing"),
        (lambda run: (run / "spans.parquet").unlink(), "spans.parquet is missing"),
        (lambda run: (run / "tokens.parquet").write_bytes(b""), "tokens.parquet is damaged"),
        (cut_file("run.json"), "run.json is damaged or cut off"),
        (cut_file("rounds.parquet"), "rounds.parquet is damaged or cut off"),
        (
            lambda run: GOOD["spans"].to_parquet(run / "rounds.parquet"),
            "rounds.parquet needs columns .*n_proposed",
        ),
    ],
    ids=[
        "unknown schema",
        "not an object",
        "incomplete head",
        "no head",
        "no table",
        "empty table file",
        "half a head",
        "half a table",
        "another table",
    ],
)
def test_broken_run_is_refused_in_one_line_and_listed_with_it(tmp_path, harm, message):
    run = write_run(tmp_path / "0123-20260101T000000", HEAD, GOOD)
    harm(run)
    with pytest.raises(ValueError, match=message) as refusal:
        read_run(run)
    assert "\n" not in str(refusal.value)
    listed = list_runs(tmp_path)
    assert listed["run"].tolist() == [run.name]
    assert message.split()[0] in listed["problem"][0]
    assert "\n" not in listed["problem"][0]
    assert find(tmp_path, HEAD["config_id"]) is None


def test_runs_are_listed_newest_first(tmp_path):
    stamps = ["20260101T000000", "20260101T000000-2", "20260101T000000-10", "20260102T000000"]
    for stamp in stamps:
        write_run(tmp_path / f"{HEAD['config_id']}-{stamp}", HEAD, GOOD)
    listed = list_runs(tmp_path)
    assert [run.split("-", 1)[1] for run in listed["run"]] == stamps[::-1]
    assert listed.loc[0, ["method", "format", "device", "threads"]].tolist() == [
        "ar",
        "fp32",
        "cpu",
        2,
    ]
    assert listed["problem"].tolist() == [""] * 4


def test_store_that_is_not_there_has_no_runs(tmp_path):
    assert list_runs(tmp_path / "none").empty
    assert find(tmp_path / "none", "0123") is None


def test_find_gives_the_newest_run_of_the_environment(tmp_path):
    for stamp, threads in [("20260101T000000", 2), ("20260102T000000", 1)]:
        environment = HEAD["environment"] | {"threads": threads}
        write_run(tmp_path / f"run-{stamp}", HEAD | {"environment": environment}, GOOD)
    wanted = HEAD["config_id"]
    assert find(tmp_path, wanted).name == "run-20260102T000000"
    assert find(tmp_path, wanted, {"threads": 2}).name == "run-20260101T000000"
    assert find(tmp_path, wanted, {"threads": 4}) is None
    assert find(tmp_path, "another") is None


def test_names_are_unique_within_a_second(tmp_path):
    names = []
    for _ in range(3):
        folder = new_folder(tmp_path, "0123456789ab")
        folder.mkdir()
        names.append(folder.name)
    assert len(set(names)) == 3
    assert all(name.startswith("0123456789ab-2") for name in names)


def test_environment_variable_moves_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path))
    assert store_root() == tmp_path
    monkeypatch.delenv("HSPEC_STORE")
    assert str(store_root()) == "hspec_runs"
