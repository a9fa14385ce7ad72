"""What a file is, its content says; and what we wrote, we read back."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from hspec_lab import trace_out
from hspec_lab.breakdown import phase_table
from hspec_lab.store import read_run, write_run
from hspec_lab.timeline import (
    DOMAIN,
    KERNELS,
    LAUNCHES,
    RANGES,
    Timeline,
    nested,
    of_run,
    table,
)
from hspec_lab.trace_in import read_trace, speedscope

ZOO = Path(__file__).parents[1] / "profiles" / "runs" / "zoo"
PARTS = ("ranges", "launches", "kernels")


def everything():
    """A timeline with every column in use: two threads, somebody's ranges, a graph's kernels."""
    at = {"prompt": 0, "round": 3, "domain": DOMAIN, "thread": 7, "warmup": True}
    counts = {"n_proposed": 4, "n_accepted": 0, "n_emitted": 1, "kv_len": 9}
    of_phase = {"level": "target", "phase": "verify_target", "category": "target/verify"}
    rows = [
        at | counts | {"kind": "round", "name": "round", "category": "round", "end_ns": 9000},
        at
        | of_phase
        | {"kind": "phase", "name": "verify_target", "end_ns": 9000, "device_us": 1.1},
        at | of_phase | {"kind": "module", "name": "mlp", "layer": 0, "end_ns": 1717},
        {"kind": "range", "name": 'a "b"\n\\ü', "category": "c", "domain": "d", "thread": 8},
    ]
    for row in rows:
        row |= {"start_ns": 17, "n_nodes": 5} if row["kind"] != "range" else {"start_ns": 3}
    rows[3]["end_ns"] = 40_000
    calls = [("cudaGraphLaunch", 7, 5, 20, 60), ("cuLaunchKernel", 8, 6, 30, 31)]
    runs = [
        ("gemm<int, 3>", "kernel", 0, 13, 5, 8589934593, -1, 100, 2101),
        ("gemm<int, 3>", "kernel", 0, 13, 5, 8589934594, -1, 2101, 2102),
        ("Memset (Device)", "memset", 1, 7, -1, 0, 64, 50, 50),
    ]
    runs.sort(key=lambda run: run[-2])
    return Timeline(
        nested(table(RANGES, pd.DataFrame(rows))),
        table(LAUNCHES, pd.DataFrame(calls, columns=list(LAUNCHES))),
        table(KERNELS, pd.DataFrame(runs, columns=list(KERNELS))),
        ("something was left out",),
        {"source": "test", "environment": {"device": "cpu", "clock": 2.5, "none": None}},
    )


@pytest.fixture(scope="module")
def recorded():
    """The first prompts of a recorded run, as a run folder holds them."""
    head, tables = read_run(ZOO / "narrow")
    few = {name: rows[rows["prompt"] < 3] for name, rows in tables.items()}
    return head, {name: rows.reset_index(drop=True) for name, rows in few.items()}


def same(a, b):
    for part in PARTS:
        pd.testing.assert_frame_equal(getattr(a, part), getattr(b, part), check_exact=True)
    assert (a.notes, a.about) == (b.notes, b.about)


@pytest.mark.parametrize("to", trace_out.FORMATS)
def test_every_export_reads_back_as_the_same_timeline(tmp_path, to):
    path = trace_out.write(everything(), to, tmp_path / "file without a telling name")
    same(read_trace(path), everything())


@pytest.mark.parametrize("to", trace_out.FORMATS)
def test_every_export_of_nothing_reads_back_as_nothing(tmp_path, to):
    empty = Timeline(table(RANGES))
    same(read_trace(trace_out.write(empty, to, tmp_path / "empty")), empty)


@pytest.mark.parametrize("to", trace_out.FORMATS)
@pytest.mark.parametrize("by_level", [False, True])
def test_a_run_has_the_same_phase_table_behind_every_export(tmp_path, recorded, to, by_level):
    _, tables = recorded
    found = read_trace(trace_out.write(of_run(*recorded), to, tmp_path / "run")).tables()
    expected = phase_table(tables["rounds"], tables["spans"], by_level)
    assert len(expected) > 2
    pd.testing.assert_frame_equal(
        phase_table(found["rounds"], found["spans"], by_level), expected, rtol=1e-9
    )


@pytest.mark.parametrize("to", ["perfetto", "speedscope"])
def test_json_exports_may_be_gzipped(tmp_path, to):
    path = trace_out.write(everything(), to, tmp_path / "plain")
    (tmp_path / "zipped").write_bytes(gzip.compress(path.read_bytes()))
    same(read_trace(tmp_path / "zipped"), everything())


def test_a_run_folder_is_a_trace(tmp_path, recorded):
    head, tables = recorded
    same(read_trace(write_run(tmp_path / "run", head, tables)), of_run(head, tables))


def test_the_origin_of_our_export_may_follow_its_events(tmp_path):
    path = trace_out.write(everything(), "perfetto", tmp_path / "trace")
    found = json.loads(path.read_text())
    path.write_text(json.dumps({name: found[name] for name in ("traceEvents", "otherData")}))
    same(read_trace(path), everything())
    path.write_text(json.dumps({"traceEvents": found["traceEvents"]}))
    without = read_trace(path)
    pd.testing.assert_frame_equal(without.ranges, everything().ranges)
    assert "its origin and notes are missing" in without.notes[0]


def test_a_cut_off_export_for_perfetto_keeps_the_rows_before(tmp_path, recorded):
    whole = of_run(*recorded)
    path = trace_out.write(whole, "perfetto", tmp_path / "trace")
    path.write_bytes(path.read_bytes()[:-20_000])
    found = read_trace(path)
    assert 0 < len(found.ranges) <= len(whole.ranges)
    assert any("cut off" in note for note in found.notes)


@pytest.mark.parametrize("to", ["perfetto", "speedscope", "parquet"])
@pytest.mark.parametrize("version", [2, "1", None, True])
def test_exports_of_another_version_are_refused(tmp_path, to, version):
    path = trace_out.write(everything(), to, tmp_path / "trace")
    file = path / "timeline.json" if to == "parquet" else path
    found = json.loads(file.read_text())
    (found["otherData"] if to == "perfetto" else found)["hspec_lab"] = (
        found["hspec_lab"] | {"hspec_lab": version} if to == "speedscope" else version
    )
    file.write_text(json.dumps(found))
    refused(path, "an export of version .*, this code reads 1")


def refused(path, says):
    with pytest.raises(ValueError, match=says) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b"", "is empty"),
        ("a.sqlite", b"\x00\x01\x02\x03", "begins with .*; read are"),
        ("a.nsys-rep", b"\x7fREPORT", "first nsys export --type sqlite a.nsys-rep"),
        ("a.parquet", b"PAR1....", "name its folder"),
        ("a.json", gzip.compress(b"words"), "begins with b'words'"),
        ("a.json", b"\x1f\x8b", "is damaged gzip"),
        ("a.json", b'{"a": 1}', "JSON with a; a trace has a list traceEvents"),
    ],
)
def test_files_that_are_no_traces_are_refused_in_a_line(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, says)


def test_a_missing_file_and_a_folder_of_something_else_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, r"neither a run \(run.json\) nor an export")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-50], "damaged or cut off"),
        (lambda text: text.replace('"hspec_lab":{', '"other":{'), "another tool's speedscope"),
        (lambda text: text.replace('"kv_len":[', '"kv_len":[1,'), "columns of its .* differ"),
        (lambda text: text.replace('"kv_len":[', '"kv_len":["x"],"layer":['), "differ|damaged"),
    ],
)
def test_damaged_speedscope_files_are_refused(tmp_path, change, says):
    path = trace_out.write(everything(), "speedscope", tmp_path / "trace")
    path.write_text(change(path.read_text()))
    refused(path, says)


def test_a_speedscope_file_is_held_whole_and_so_its_size_is_limited(tmp_path, monkeypatch):
    path = trace_out.write(everything(), "speedscope", tmp_path / "trace")
    monkeypatch.setattr(speedscope, "MOST_CHARS", 100)
    refused(path, "more than 100 characters")


def test_a_folder_of_tables_needs_its_ranges_only(tmp_path):
    path = trace_out.write(everything(), "parquet", tmp_path / "tables")
    (path / "kernels.parquet").unlink()
    found = read_trace(path)
    assert len(found.kernels) == 0 and len(found.launches) == 2
    assert found.notes[-1] == "kernels.parquet is missing: no kernels"
    whole = (path / "ranges.parquet").read_bytes()
    (path / "ranges.parquet").write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged or cut off")
    (path / "ranges.parquet").unlink()
    refused(path, "ranges.parquet is missing")


def test_tables_with_foreign_columns_types_or_times_are_refused_or_noted(tmp_path):
    path = trace_out.write(everything(), "parquet", tmp_path / "tables")
    rows = everything().launches
    for start, end in ((10**9, 60), (-(1 << 63), 60), (20, (1 << 63) - 1)):
        wrong = rows.assign(start_ns=[start, 30], end_ns=[end, 31])
        wrong.to_parquet(path / "launches.parquet")
        found = read_trace(path)
        assert found.launches["name"].tolist() == ["cuLaunchKernel"]
        assert found.notes[-1] == "1 of the launches have times that cannot be: left out"
    rows.assign(start_ns=["x", "y"]).to_parquet(path / "launches.parquet")
    refused(path, "start_ns holds large_string, not int64")
    rows[["name"]].to_parquet(path / "launches.parquet")
    refused(path, "lacks the columns")


@pytest.mark.parametrize("parent", [99, -5])
def test_what_a_file_says_about_parents_is_worked_out_again(tmp_path, parent):
    path = trace_out.write(everything(), "parquet", tmp_path / "tables")
    everything().ranges.assign(parent=parent, range=7).to_parquet(path / "ranges.parquet")
    same(read_trace(path), everything())
