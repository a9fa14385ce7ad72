"""`hspec analyze`: what it prints and refuses, and a trace that lands in the run it belongs to."""

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic import write_synthetic_run

from hspec_lab import store, timeline, trace_out
from hspec_lab.capture import results
from hspec_lab.cli import main
from hspec_lab.config import Config, Eagle2, as_dict
from hspec_lab.trace_in import read_trace

COUNTS = list(results.COUNTS)
CONFIG = Config(prompts=("a", "b"), draft=Eagle2())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSPEC_STORE", "runs")
    return tmp_path


@pytest.fixture
def recorded(tmp_path_factory):
    """A run of invented numbers."""
    return write_synthetic_run(tmp_path_factory.mktemp("recorded"), CONFIG, 12)


def told(capsys, *words, code=0):
    assert main(list(map(str, words))) == code
    return capsys.readouterr()


@pytest.fixture
def trace(recorded, here):
    """An export of the run as somebody might bring it back."""
    path = here / "tr ace;.perfetto.json"
    return trace_out.write(timeline.of_run(*store.read_run(recorded)), "perfetto", path)


def test_a_trace_lands_in_the_run_folder_it_belongs_to(trace, recorded, capsys):
    before = sorted(path.name for path in recorded.iterdir())
    found = told(capsys, "analyze", trace, "--into", recorded)
    folder = recorded / "traces" / "tr-ace"
    assert str(folder) in found.err and (folder / "analysis.json").is_file()
    assert (folder / "analysis.txt").read_text().strip() == found.out.strip()
    assert len(read_trace(folder / "trace.tables").ranges) == len(read_trace(trace).ranges)
    assert sorted(path.name for path in recorded.iterdir()) == sorted([*before, "traces"])
    again = told(capsys, "analyze", trace, "--into", recorded, code=2)
    assert "--again replaces it" in again.err
    (folder / "old.txt").write_text("old")
    told(capsys, "analyze", trace, "--into", recorded, "--again")
    assert not (folder / "old.txt").exists() and (folder / "analysis.json").is_file()
    assert [path.name for path in (recorded / "traces").iterdir()] == ["tr-ace"]
    assert store.read_run(recorded)[0]["config"] == as_dict(CONFIG)


def test_nothing_is_written_through_a_link_out_of_the_run(
    trace, recorded, tmp_path_factory, capsys
):
    outside = tmp_path_factory.mktemp("outside")
    (recorded / "traces").symlink_to(outside)
    assert "leads out of" in told(capsys, "analyze", trace, "--into", recorded, code=2).err
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("..", "trace"),
        (".hidden.json.gz", "hidden"),
        ("a b\n$(x).sqlite", "a-b-x"),
        ("ü.json", "trace"),
        ("x" * 300, "x" * 80),
    ],
)
def test_names_of_other_people_become_safe_ones(name, safe):
    assert results.safe_name(Path(name)) == safe


def test_the_analysis_is_one_json_object_or_tables(trace, here, capsys):
    found = json.loads(told(capsys, "analyze", trace, "--json").out)
    assert {"schema", "about", "notes", "device", "tables"} <= set(found)
    told(capsys, "analyze", trace, "--out", "tables")
    phases = pd.read_csv(here / "tables" / "phases.csv")
    assert len(phases) == len(pd.read_parquet(here / "tables" / "phases.parquet")) > 0
    assert "exists already" in told(capsys, "analyze", trace, "--out", "tables", code=2).err
    told(capsys, "analyze", trace, "--to", "nsys-sqlite", "--out", "sql")
    assert len(read_trace(here / "sql" / "tr-ace.sqlite").ranges) == len(read_trace(trace).ranges)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "no such file or folder"),
        (["x.bin"], "x.bin"),
        (["x.bin", "--again"], "give --into RUN"),
        (["x.bin", "--into", "nowhere"], "run.json"),
    ],
)
def test_what_cannot_be_analyzed_is_told_in_one_line(words, line, here, capsys):
    (here / "x.bin").write_bytes(b"\x00\x01")
    found = told(capsys, "analyze", *words, code=2)
    assert found.out == "" and found.err.count("\n") == 1 and line in found.err


def test_counts_that_a_trace_lacks_come_from_the_run(recorded):
    head, tables = store.read_run(recorded)
    whole = timeline.of_run(head, tables)
    ranges = whole.ranges.copy()
    rounds = ranges["kind"] == "round"
    known = ranges.loc[rounds, COUNTS]
    ranges.loc[rounds, COUNTS] = timeline.UNKNOWN
    bare = timeline.Timeline(ranges)
    found = results.with_counts(bare, tables["rounds"])
    pd.testing.assert_frame_equal(found.ranges.loc[rounds, COUNTS], known)
    assert "taken from the run folder" in found.notes[0]
    # by order, where prompts are not known either
    ranges.loc[rounds, "prompt"] = timeline.UNKNOWN
    ordered = tables["rounds"].assign(start_us=range(len(tables["rounds"])))
    by_order = results.with_counts(timeline.Timeline(ranges), ordered)
    assert by_order.ranges.loc[rounds, "n_emitted"].sum() == known["n_emitted"].sum()


def test_the_newest_run_may_be_called_latest(here, capsys):
    refused = told(capsys, "analyze", "latest", code=2)
    assert "no such run in the store" in refused.err
    write_synthetic_run(here / "runs", CONFIG, 12)
    assert told(capsys, "analyze", "latest").out.startswith("trace     hspec_lab run")


def test_a_run_without_the_rounds_of_a_trace_gives_it_no_counts(recorded):
    head, tables = store.read_run(recorded)
    whole = timeline.of_run(head, tables)
    rounds = whole.ranges["kind"] == "round"
    ranges = whole.ranges.copy()
    ranges.loc[rounds, "n_emitted"] = timeline.UNKNOWN
    others = tables["rounds"].assign(prompt=tables["rounds"]["prompt"] + 100)
    found = results.with_counts(timeline.Timeline(ranges), others)
    assert (found.ranges.loc[rounds, "n_emitted"] == timeline.UNKNOWN).all()
    assert found.notes == ("emitted counts are not known: the run has none of these rounds",)


def test_counts_are_not_guessed_and_not_overwritten(recorded):
    head, tables = store.read_run(recorded)
    whole = timeline.of_run(head, tables)
    assert results.with_counts(whole, tables["rounds"].assign(n_emitted=99)) is whole
    rounds = whole.ranges["kind"] == "round"
    ranges = whole.ranges.copy()
    ranges.loc[rounds, ["prompt", "n_emitted"]] = timeline.UNKNOWN
    found = results.with_counts(timeline.Timeline(ranges), tables["rounds"].head(3))
    assert (found.ranges.loc[rounds, "n_emitted"] == timeline.UNKNOWN).all()
    assert "24 rounds, the run 3" in found.notes[0]
