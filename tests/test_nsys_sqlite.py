"""A timeline as SQLite in the layout of `nsys export`: the documented tables, and nothing lost."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from time import perf_counter

import nsys_schema as nsys
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nsys_schema import MARK, START_END
from synthetic_traces import a_round, kernel, launch, module, named, phase, trace

from hspec_lab import breakdown, store, timeline
from hspec_lab.timeline import UNKNOWN
from hspec_lab.trace_in import nsys_sqlite as into
from hspec_lab.trace_in import read_trace
from hspec_lab.trace_out import nsys_sqlite as out

RUN = Path(store.__file__).parents[1] / "profiles" / "runs" / "zoo" / "hierspec"
RESULT = ("prompt", "round", "warmup", "n_proposed", "n_accepted", "n_emitted")


def small():
    """Two rounds with modules, kernels of all kinds, somebody's crossing ranges and two threads."""
    ours = [
        phase("prefill", "target", 5, 9, number=-1) | {"n_tokens": 7, "kv_len": 0},
        a_round(10, 50, emitted=3) | {"n_proposed": 4, "n_accepted": 2, "kv_len": 9},
        phase("draft", "head", 10, 20) | {"n_nodes": 5, "device_us": 0.1 + 0.2, "scheme": "fp32"},
        phase("verify_target", "target", 20, 48) | {"n_tokens": 5},
        module("attention", "verify_target", "target", 21, 30, layer=2),
        a_round(60, 90, number=1, warmup=True),
        phase("accept", "target", 60, 61, number=1, warmup=True),
    ]
    others = [
        named("step", 0, 100) | {"domain": "torch", "category": "theirs"},
        named("late", 80, 120),
        named("elsewhere", 0, 7, thread=2**40),
    ]
    launches = [launch(1, at=22), launch(2, at=24, name="cuGraphLaunch"), launch(3, at=70)]
    kernels = [
        kernel(1, 25, 30, "void ns::gemm<half, 2>(int)"),
        kernel(2, 31, 32, node=4),
        kernel(2, 32, 40, node=5, stream=8),
        kernel(3, 72, 75, "Memcpy HtoD (Pageable -> Device)", kind="memcpy") | {"bytes": 4096},
        kernel(UNKNOWN, 76, 77, "Memset (Device)", kind="memset", device=1) | {"bytes": 0},
    ]
    about = {"source": "a test", "environment": {"gpu": "none"}}
    return trace([*ours, *others], launches, kernels, about=about, notes=("said before",))


def same(a, b):
    for name in ("ranges", "launches", "kernels"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name))
    assert (a.notes, a.about) == (b.notes, b.about)


def rows(path, sql):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def test_every_table_has_the_documented_columns_in_their_order(tmp_path):
    path = out.write(small(), tmp_path / "a.sqlite")
    tables = {name for (name,) in rows(path, "SELECT name FROM sqlite_master")}
    assert tables - {"HSPEC_LAB_NAMES"} <= set(nsys.TABLES)
    assert {"NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_KERNEL", "TARGET_INFO_GPU"} <= tables
    for table in tables & set(nsys.TABLES):
        info = rows(path, f'SELECT name, type, "notnull" FROM pragma_table_info("{table}")')
        assert [(n, kind, bool(sure)) for n, kind, sure in info] == nsys.columns(table), table


def test_an_export_read_again_is_the_same_timeline(tmp_path):
    found = small()
    same(read_trace(out.write(found, tmp_path / "without an ending")), found)


NUMBER = st.integers(-1, 2**40)
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TIMES = st.tuples(st.integers(0, 2**50), st.integers(0, 2**30))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TIMES, NUMBER, NUMBER, WORD, st.booleans()), max_size=9))
def test_whatever_ranges_hold_comes_back(tmp_path_factory, drawn):
    ranges = []
    for (start, length), prompt, emitted, word, warmup in drawn:
        ranges.append(a_round(start, start + length, prompt, prompt, warmup, emitted))
        ranges.append(named(word, start, start + length // 2, thread=prompt) | {"domain": word})
        ranges[-1]["category"] = word[::-1]
        if word == timeline.DOMAIN:
            ranges.pop()
    found = trace(ranges, about={"source": "drawn"})
    path = tmp_path_factory.mktemp("drawn") / "a.sqlite"
    same(into.read(out.write(found, path)), found)


@pytest.fixture(scope="module")
def recorded():
    return timeline.of_run(*store.read_run(RUN))


@pytest.mark.parametrize("by_level", [False, True])
def test_a_recorded_run_keeps_its_phase_tables(recorded, tmp_path, by_level):
    back = into.read(out.write(recorded, tmp_path / "run.sqlite"))
    tables = [t.tables() for t in (recorded, back)]
    one, other = (breakdown.phase_table(t["rounds"], t["spans"], by_level) for t in tables)
    pd.testing.assert_frame_equal(one, other)
    assert len(one) > 4 and not back.notes


def test_a_thousand_rounds_are_written_within_two_seconds(recorded, tmp_path):
    n_rounds = (recorded.ranges["kind"] == "round").sum()
    start = perf_counter()
    out.write(recorded, tmp_path / "run.sqlite")
    assert (perf_counter() - start) / n_rounds * 1000 < 2


def test_ranges_have_registered_names_domains_and_categories(tmp_path):
    path = out.write(small(), tmp_path / "a.sqlite")
    named_by = """SELECT s.value, d.text, c.text, n.eventType, n.text, n.globalTid
        FROM NVTX_EVENTS n JOIN StringIds s ON s.id = n.textId
        LEFT JOIN NVTX_EVENTS d ON d.eventType = 75 AND d.domainId = n.domainId
        LEFT JOIN NVTX_EVENTS c
            ON c.eventType = 33 AND c.domainId = n.domainId AND c.category = n.category"""
    found = {row[0]: row[1:] for row in rows(path, named_by)}
    assert found["verify_target"][:4] == ("hspec_lab", "target/verify", 59, None)
    assert found["step"][:4] == ("torch", "theirs", 59, None)
    # it begins within step and ends after it, which no push and pop can do
    assert found["late"][2] == START_END
    tid = found["verify_target"][4]
    assert (tid & 0xFFFFFF, tid >> 24 & 0xFFFFFF, tid >> 48 & 0xFF, tid >> 56) == (1, 1, 83, 72)


def test_a_round_ends_in_a_mark_with_its_result(tmp_path):
    path = out.write(small(), tmp_path / "a.sqlite")
    sql = f"SELECT start, jsonText FROM NVTX_EVENTS WHERE eventType = {MARK} ORDER BY start"
    found = [(start, json.loads(text)) for start, text in rows(path, sql)]
    assert [start for start, _ in found] == [50, 90]
    assert found[0][1] == dict(zip(RESULT, (0, 0, 0, 4, 2, 3), strict=True))


def test_kernels_lead_to_their_launches_and_have_two_names(tmp_path):
    path = out.write(small(), tmp_path / "a.sqlite")
    joined = """SELECT r.start, short.value, long.value, graphNodeId,
            globalPid = globalTid >> 24 << 24
        FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN CUPTI_ACTIVITY_KIND_RUNTIME r USING (correlationId)
        JOIN StringIds short ON short.id = shortName
        JOIN StringIds long ON long.id = demangledName ORDER BY k.start"""
    found = rows(path, joined)
    assert found[0] == (22, "gemm", "void ns::gemm<half, 2>(int)", None, 1)
    assert [row[3] for row in found] == [None, 4, 5]
    assert rows(path, "SELECT copyKind, bytes FROM CUPTI_ACTIVITY_KIND_MEMCPY") == [(1, 4096)]


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = out.write(small(), tmp_path / "a.sqlite")
    before = path.read_bytes()
    monkeypatch.setattr(out, "_payloads", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out.write(small(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
