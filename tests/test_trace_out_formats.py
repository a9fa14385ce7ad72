"""Exports to every format: whole or not at all, never over somebody else's, nothing lost."""

import json
import sqlite3
from time import perf_counter

import pandas as pd
import pytest
from exported import NAMES, rich, untrusted
from perfetto_rules import check
from synthetic_traces import trace

from hspec_lab import breakdown, trace_out
from hspec_lab.terms import EXPORTS
from hspec_lab.timeline import Timeline
from hspec_lab.trace_out import FORMATS, Format, default_name, speedscope, write


def inside(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_command_line_offers_what_is_written():
    assert tuple(FORMATS) == EXPORTS


@pytest.mark.parametrize("to", FORMATS)
class TestEveryFormat:
    def test_an_export_is_the_only_thing_written(self, to, tmp_path):
        path = tmp_path / "new" / "folder" / default_name("run-1", to)
        assert write(untrusted(), to, path) == path
        found = [name for name in inside(tmp_path) if not name.endswith(".parquet")]
        head = [f"new/folder/{path.name}/timeline.json"] if to == "parquet" else []
        assert found == ["new", "new/folder", f"new/folder/{path.name}", *head]

    def test_an_earlier_export_is_replaced(self, to, tmp_path):
        path = write(rich(), to, tmp_path / "same")
        first = _bytes(path)
        assert _bytes(write(trace(), to, path)) != first
        assert _bytes(write(rich(), to, str(path))) == first or to == "nsys-sqlite"
        assert [name for name in inside(tmp_path) if "/" not in name] == ["same"]

    @pytest.mark.parametrize("what", ["empty file", "other file", "folder", "dangling link"])
    def test_what_somebody_else_wrote_stays(self, to, what, tmp_path):
        path = tmp_path / "kept"
        if what == "folder":
            path.mkdir()
        elif what == "dangling link":
            path.symlink_to(tmp_path / "nowhere")
        else:
            path.write_text("" if what == "empty file" else '{"traceEvents": []}')
        with pytest.raises(ValueError, match=f"kept exists and is no {to} export of hspec_lab"):
            write(rich(), to, path)
        assert inside(tmp_path) == ["kept"]

    def test_another_format_of_ours_is_not_replaced(self, to, tmp_path):
        other = next(name for name in FORMATS if name != to)
        path = write(rich(), other, tmp_path / "kept")
        with pytest.raises(ValueError, match="choose another path"):
            write(rich(), to, path)

    def test_an_export_that_fails_leaves_the_earlier_one(self, to, tmp_path, monkeypatch):
        path = write(rich(), to, tmp_path / "kept")
        before = _bytes(path)

        def fails(timeline, path):
            FORMATS[to].write(timeline, path)
            raise OSError("disk full")

        broken = Format(fails, FORMATS[to].is_ours, "")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(trace_out, "FORMATS", {to: broken})
            write(trace(), to, path)
        assert _bytes(path) == before
        assert [name for name in inside(tmp_path) if "/" not in name] == ["kept"]

    def test_a_timeline_without_rows_can_be_written(self, to, tmp_path):
        assert FORMATS[to].is_ours(write(trace(), to, tmp_path / "empty"))

    def test_numbers_that_json_lacks_become_null(self, to, tmp_path):
        odd = Timeline(rich().ranges, about={"ratio": float("nan"), "limits": [float("inf")]})
        assert write(odd, to, tmp_path / "odd").exists()

    def test_a_thousand_rounds_take_less_than_two_seconds(self, to, tmp_path):
        long = rich(1000)
        began = perf_counter()
        write(long, to, tmp_path / "long")
        assert perf_counter() - began < 2


def _bytes(path):
    if path.is_file():
        return path.read_bytes()
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown export 'csv'; known: perfetto, nsys-sqlite"):
        write(rich(), "csv", tmp_path / "x")


def test_names_of_exports_say_the_run_and_the_format():
    names = [default_name("r1", to) for to in ("perfetto", "nsys-sqlite", "parquet", "speedscope")]
    assert names == ["r1.perfetto.json", "r1.sqlite", "r1.tables", "r1.speedscope.json"]


@pytest.mark.parametrize("name", ["../r1", "/r1", "a/b"])
def test_a_path_is_no_name_of_a_run(name):
    with pytest.raises(ValueError, match="a run's name is no path"):
        default_name(name, "perfetto")


def test_a_folder_with_somebodys_file_in_it_is_not_replaced(tmp_path):
    path = write(rich(), "parquet", tmp_path / "mine")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no parquet export"):
        write(rich(), "parquet", path)
    assert (path / "notes.txt").read_text() == "mine"


def test_a_link_to_an_export_folder_is_not_followed(tmp_path):
    real = write(rich(), "parquet", tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(ValueError, match="no parquet export"):
        write(rich(), "parquet", tmp_path / "link")


def test_a_database_with_a_view_of_that_name_is_nobodys_export(tmp_path):
    with sqlite3.connect(tmp_path / "x") as db:
        db.execute("CREATE VIEW META_DATA_EXPORT AS SELECT 'HSPEC_LAB_ABOUT' AS name")
    db.close()
    with pytest.raises(ValueError, match="no nsys-sqlite export"):
        write(rich(), "nsys-sqlite", tmp_path / "x")


def test_a_perfetto_file_is_strict_json_with_an_event_per_line(tmp_path):
    path = write(rich(), "perfetto", tmp_path / "x")
    found = json.loads(path.read_bytes(), parse_constant=pytest.fail)
    check(found["traceEvents"])
    assert found["otherData"] == {
        "hspec_lab": 1,
        "notes": ["one thing was left out"],
        "about": {"method": "chain", "of": [1, None]},
    }
    assert len(path.read_text().splitlines()) == len(found["traceEvents"]) + 2


def test_untrusted_names_are_data_in_perfetto_and_speedscope(tmp_path):
    perfetto = json.loads(write(untrusted(), "perfetto", tmp_path / "p").read_text())
    slices = [event["name"] for event in perfetto["traceEvents"] if event["ph"] == "X"]
    assert slices == NAMES * 2
    frames = speedscope.content(untrusted())["shared"]["frames"]
    assert frames == [{"name": name} for name in NAMES]


def test_parquet_holds_the_tables_and_those_of_runs(tmp_path):
    found = rich()
    folder = write(found, "parquet", tmp_path / "x")
    for name in ("ranges", "launches", "kernels"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / f"{name}.parquet"), getattr(found, name)
        )
    of_run = found.tables()
    tables = {
        name: pd.read_parquet(folder / f"{name}.parquet") for name in ("rounds", "spans", "modules")
    }
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, of_run[name])
    shown = breakdown.phase_table(tables["rounds"], tables["spans"], by_level=True)
    assert dict(zip(shown["phase"], shown["total_us"] * 1e3, strict=True)) == pytest.approx(
        {"draft": 114, "verify_target": 117, "accept": 39, "gap": 15}
    )
    head = json.loads((folder / "timeline.json").read_text())
    assert head == {"hspec_lab": 1, "notes": list(found.notes), "about": found.about}
