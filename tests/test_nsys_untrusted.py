"""An SQLite file may be damaged or hostile: it is refused in a line, or read with limits."""

import sqlite3
from contextlib import closing
from pathlib import Path

import nsys_schema as nsys
import numpy as np
import pytest
from nsys_schema import NAMES, WORDS, event, made, only, our_event

from hspec_lab.trace_in import nsys_sqlite as into
from hspec_lab.trace_in import sqlite_file


def refused(path, match):
    with pytest.raises(ValueError, match=match) as error:
        into.read(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_exports_are_refused_in_a_line(tmp_path):
    refused(tmp_path / "absent", "cannot be read")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "not an SQLite file")
    with closing(sqlite3.connect(tmp_path / "other")) as db, db:
        db.execute("CREATE TABLE prices (id INTEGER)")
    refused(tmp_path / "other", "no export of nsys")


def test_a_damaged_file_is_refused_in_a_line(tmp_path):
    path = made(tmp_path / "a", NVTX_EVENTS=[event(i, i + 1, "step") for i in range(2000)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged")
    path.write_bytes(whole[:16] + bytes(len(whole) - 16))
    refused(path, "damaged")


def test_a_view_in_place_of_a_table_is_refused_before_it_runs(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a")) as db, db:
        db.execute(
            "CREATE VIEW NVTX_EVENTS AS "
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
            'SELECT x AS start, x AS "end", 59 AS eventType, 1 AS text FROM n'
        )
    refused(tmp_path / "a", "NVTX_EVENTS is a view")


def test_columns_that_compute_something_are_not_read(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a")) as db, db:
        db.execute(
            'CREATE TABLE NVTX_EVENTS (start INTEGER, "end" INTEGER, eventType INTEGER, '
            "text TEXT AS (hex(zeroblob(9))))"
        )
        db.execute("INSERT INTO NVTX_EVENTS VALUES (0, 9, 59)")
        assert db.execute("SELECT text FROM NVTX_EVENTS").fetchone() == ("00" * 9,)
    assert into.read(tmp_path / "a").ranges["name"].tolist() == [""]


def test_values_of_another_type_count_as_missing(tmp_path):
    events = [
        event(0, 9, b"\xff\xfe"),
        event(1, 8, "good", category="word", domainId=1.5),
        event("early", 8, "no start"),
        event(2, "late", "no end"),
        event(-(2**63), 2**63 - 1, "no clock"),
        event(3, 4, "x" * 100_000),
    ]
    found = into.read(made(tmp_path / "a", NVTX_EVENTS=events))
    assert [name[:4] for name in found.ranges["name"]] == ["", "good", "no e", "xxxx"]
    assert len(found.ranges["name"].iloc[3]) == sqlite_file.LONGEST
    assert "ranges without a time that a clock can show, left out: 2" in found.notes


@pytest.mark.parametrize(
    "said",
    [
        "[" * 5000,
        '{"prompt": 1' + "0" * 4999,
        '{"prompt": 1e999, "round": true, "kind": [], "level": {}, "phase": "gap", "device_us": 1}',
        '{"prompt": ' + "9" * 400 + ', "round": 0, "device_us": ' + "9" * 400 + "}",
        '{"prompt": 0, "round": 0, "kind": "phase", "phase": "accept", "level": "target"}',
        "[1, 2]",
    ],
)
def test_hostile_words_in_payloads_change_no_names(tmp_path, said):
    events = [*WORDS, our_event(0, 9, 2, 2, jsonText=said)]
    draft = only(into.read(made(tmp_path / "a", StringIds=NAMES, NVTX_EVENTS=events)), "draft")
    assert (draft["kind"], draft["phase"], draft["level"]) == ("phase", "draft", "head")
    assert abs(draft["prompt"]) <= 1 and np.isnan(draft["device_us"])


def test_reading_has_limits_of_rows_values_and_work(tmp_path, monkeypatch):
    path = made(tmp_path / "a", NVTX_EVENTS=[event(i, i + 1, f"n{i}") for i in range(9)])
    found = into.read(path, most_rows=4)
    assert len(found.ranges) == 4 and any("first 4" in note for note in found.notes)
    monkeypatch.setattr(sqlite_file, "_MOST_TEXT", 3)
    monkeypatch.setattr(sqlite_file, "_SHORT", 1)
    assert into.read(path).ranges["name"].str.len().tolist() == [2, 2, *[1] * 7]
    monkeypatch.setattr(sqlite_file, "_LARGEST", 30)
    refused(path, "damaged")
    monkeypatch.undo()
    monkeypatch.setattr(sqlite_file, "_STEPS", 10)
    monkeypatch.setattr(sqlite_file, "_MOST_STEPS", 3)
    refused(path, "takes too long")


def test_statements_other_than_plain_reads_are_not_authorized(tmp_path):
    path = made(tmp_path / "a", NVTX_EVENTS=[event(0, 9, "step")])
    with sqlite_file.opened(path) as tables:
        for statement in (
            "ATTACH 'b' AS b",
            "PRAGMA trusted_schema = ON",
            "DROP TABLE NVTX_EVENTS",
            "SELECT hex('b')",
        ):
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                tables._db.execute(statement)


def test_reading_writes_nothing_and_paths_are_no_addresses(tmp_path):
    folder = tmp_path / "50% of?mode=rwc#it"
    folder.mkdir()
    path = made(folder / "a b.sqlite", NVTX_EVENTS=[event(0, 9, "step")])
    Path(f"{path}-wal").write_bytes(b"changes")
    before = path.read_bytes(), sorted(folder.iterdir())
    assert any("-wal" in note for note in into.read(path).notes)
    assert (path.read_bytes(), sorted(folder.iterdir())) == before


def test_an_unknown_schema_without_what_is_needed_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a")) as db, db:
        db.execute("CREATE TABLE NVTX_EVENTS (startNs INTEGER, text TEXT)")
        nsys.add(db, "META_DATA_EXPORT", {"name": "EXPORT_SCHEMA_VERSION", "value": "5.1.0"})
    refused(tmp_path / "a", r"NVTX_EVENTS has no column end, start \(schema 5.1.0")
