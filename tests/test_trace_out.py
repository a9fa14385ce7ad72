"""What other viewers get: slices that do not overlap, arrows with two ends, finite times."""

import json
import math
from collections import defaultdict
from time import perf_counter_ns

import pandas as pd
import pytest

from hspec_lab import store
from hspec_lab.trace import Recorder
from hspec_lab.trace_out import to_chrome, write_perfetto

HEAD = {"method": "hierspec", "format": "fp32", "config_id": "0123", "environment": {}}


def check(trace):
    """Raise AssertionError where a viewer would show nonsense; return the events by kind."""
    kinds = defaultdict(list)
    for event in trace["traceEvents"]:
        kinds[event["ph"]].append(event)
        assert math.isfinite(event["ts"]) and event["ts"] >= 0
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
    tracks = defaultdict(list)
    for event in kinds["X"]:
        assert math.isfinite(event["dur"]) and event["dur"] >= 0
        tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        slices.sort()
        for (_, end), (start, _) in zip(slices, slices[1:], strict=False):
            # half a nanosecond: times are rounded to whole ones
            assert start >= end - 5e-4, f"slices overlap: one ends at {end}, one starts at {start}"
    named = {event["tid"] for event in kinds["M"] if event["name"] == "thread_name"}
    assert set(tracks) <= named
    check_flows(kinds["s"], kinds["f"], tracks)
    counters = defaultdict(list)
    for event in kinds["C"]:
        counters[event["name"]].append(event["ts"])
    assert all(times == sorted(times) for times in counters.values())
    json.dumps(trace, allow_nan=False)
    return kinds


def check_flows(starts, ends, tracks):
    assert [event["id"] for event in starts] == [event["id"] for event in ends]
    assert len({event["id"] for event in starts}) == len(starts)
    for start, end in zip(starts, ends, strict=True):
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert start["ts"] <= end["ts"]
        for event in (start, end):
            inside = [a <= event["ts"] <= b for a, b in tracks[event["tid"]]]
            assert any(inside), f"an arrow at {event['ts']} touches no slice"


def recorded(clock):
    """Two prompts, two HierSpec rounds each, a drafter in three steps."""
    recorder = Recorder(clock=clock)
    for prompt in range(2):
        recorder.start_prompt(prompt, warmup=prompt == 0)
        for level in ("target", "intermediate", "head"):
            with recorder.span("prefill", level, 9, 0):
                pass
        for step in range(2):
            recorder.begin_round(9 + 3 * step)
            for _ in range(2):
                with recorder.span("draft", "head", 8, 9):
                    pass
                with recorder.span("verify_intermediate", "intermediate", 24, 9):
                    pass
            with recorder.span("verify_target", "target", 7, 9):
                pass
            with recorder.span("accept", "target", 7, 9):
                pass
            recorder.end_round(6, 2, 3)
    return recorder.tables()


def ticking(step_ns=1717):
    times = iter(range(10**9, 10**12, step_ns))
    return lambda: next(times)


@pytest.fixture
def tables():
    return recorded(ticking())


def test_recorded_run_passes_every_rule(tables):
    check(to_chrome(tables["rounds"], tables["spans"], HEAD))


def test_a_run_on_the_real_clock_passes_every_rule():
    tables = recorded(perf_counter_ns)
    check(to_chrome(tables["rounds"], tables["spans"], HEAD))


def test_each_level_has_its_track_and_rounds_have_theirs(tables):
    kinds = check(to_chrome(tables["rounds"], tables["spans"], HEAD))
    names = {e["tid"]: e["args"]["name"] for e in kinds["M"] if e["name"] == "thread_name"}
    assert list(names.values()) == ["rounds", "target", "intermediate", "head"]
    process = [e["args"]["name"] for e in kinds["M"] if e["name"] == "process_name"]
    assert process == ["hspec_lab hierspec fp32 0123"]
    for event in kinds["X"]:
        assert names[event["tid"]] == event["cat"].split("/")[0].replace("round", "rounds")


def test_times_are_the_tables_own_in_us(tables):
    kinds = check(to_chrome(tables["rounds"], tables["spans"], HEAD))
    # every reading of the clock is 1.717 us after the one before; the zero is the first
    first = kinds["X"][len(tables["rounds"])]
    assert (first["name"], first["ts"], first["dur"]) == ("prefill", 1.717, 1.717)
    assert first["args"] == {
        "prompt": 0,
        "round": -1,
        "kv_len": 0,
        "warmup": True,
        "phase": "prefill",
        "n_tokens": 9,
    }
    assert len(kinds["X"]) == len(tables["rounds"]) + len(tables["spans"])


def test_arrows_follow_each_proposal_to_its_verification(tables):
    trace = to_chrome(tables["rounds"], tables["spans"], HEAD)
    kinds = check(trace)
    slices = [event for event in kinds["X"] if event["cat"] != "round"]

    def under(event):
        return next(
            s["name"]
            for s in slices
            if s["tid"] == event["tid"] and s["ts"] <= event["ts"] <= s["ts"] + s["dur"]
        )

    arrows = [(under(s), under(f)) for s, f in zip(kinds["s"], kinds["f"], strict=True)]
    one_round = [("draft", "verify_intermediate")] * 2 + [("verify_intermediate", "verify_target")]
    assert arrows == one_round * 4


def spans_of(*steps):
    """Back-to-back spans of 1 us: (round, phase, level)."""
    rows = [
        [0, number, False, phase, level, 1, 0, float(i), 1.0, math.nan]
        for i, (number, phase, level) in enumerate(steps)
    ]
    return pd.DataFrame(rows, columns=list(store.TABLES["spans"]))


@pytest.mark.parametrize(
    ("steps", "n_arrows"),
    [
        ([(0, "draft", "head"), (1, "verify_target", "target")], 0),
        ([(0, "verify_intermediate", "a"), (0, "verify_intermediate", "a")], 0),
        ([(0, "verify_intermediate", "a"), (0, "verify_intermediate", "b")], 1),
        ([(0, "draft", "head"), (0, "draft", "head"), (0, "verify_target", "target")], 1),
    ],
    ids=["another round", "the same level again", "the next level up", "drafting in steps"],
)
def test_arrow_needs_a_proposal_of_this_round_from_below(tables, steps, n_arrows):
    kinds = check(to_chrome(tables["rounds"].iloc[:0], spans_of(*steps), HEAD))
    assert len(kinds["s"]) == n_arrows


def test_round_without_a_draft_has_no_arrow(tables):
    spans = tables["spans"].query("phase == 'verify_target'")
    assert not check(to_chrome(tables["rounds"], spans, HEAD))["s"]


def test_counters_show_tokens_emitted_and_stored(tables):
    counters = check(to_chrome(tables["rounds"], tables["spans"], HEAD))["C"]
    assert [e["args"]["n_emitted"] for e in counters if e["name"] == "n_emitted"] == [3] * 4
    assert [e["args"]["kv_len"] for e in counters if e["name"] == "kv_len"] == [9, 12, 9, 12]


def test_device_time_is_an_argument_and_absent_where_unknown(tables):
    spans = tables["spans"].copy()
    spans.loc[1, "device_us"] = 0.5
    slices = check(to_chrome(tables["rounds"], spans, HEAD))["X"][len(tables["rounds"]) :]
    assert [s["args"].get("device_us") for s in slices[:3]] == [None, 0.5, None]


def test_levels_of_others_get_tracks_too(tables):
    spans = tables["spans"].replace({"level": {"head": "ngram"}})
    names = [
        e["args"]["name"]
        for e in check(to_chrome(tables["rounds"], spans, HEAD))["M"]
        if e["name"] == "thread_name"
    ]
    assert names == ["rounds", "target", "intermediate", "ngram"]


def test_the_checker_sees_an_overlap(tables):
    spans = tables["spans"].assign(duration_us=tables["spans"]["duration_us"] * 10)
    with pytest.raises(AssertionError, match="overlap"):
        check(to_chrome(tables["rounds"], spans, HEAD))


def test_file_is_written_from_tables_and_from_a_folder(tables, tmp_path):
    tokens = pd.DataFrame(columns=list(store.TABLES["tokens"]))
    about = {"kind": "measured", "config": {}, "prompts": [], "outputs": []}
    run = store.write_run(tmp_path / "run", HEAD | about, tables | {"tokens": tokens})
    one = write_perfetto(run, tmp_path / "new" / "one.json")
    two = write_perfetto((store.read_head(run), tables), tmp_path / "two.json")
    assert one.read_text() == two.read_text()
    assert json.loads(one.read_text())["otherData"]["method"] == "hierspec"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "run", "two.json"]
