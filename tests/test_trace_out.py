"""What Perfetto gets: slices that nest or are apart, arrows with two ends, exact times."""

from time import perf_counter_ns

import pytest
from perfetto_rules import assert_same, check, checked, slices_of
from synthetic_traces import a_round, module, named, phase, trace

from hspec_lab import timeline
from hspec_lab.timeline import of_run
from hspec_lab.trace import Recorder
from hspec_lab.trace_out.perfetto import events

HEAD = {"method": "hierspec", "format": "fp32", "config_id": "0123", "environment": {}}


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
    return of_run(HEAD, recorder.tables())


def ticking(step_ns=1717):
    times = iter(range(10**9, 10**12, step_ns))
    return lambda: next(times)


@pytest.fixture
def run():
    return recorded(ticking())


def test_recorded_run_passes_every_rule_and_reads_back(run):
    kinds, _, _ = checked(run)
    assert_same(kinds, run)


def test_a_run_on_the_real_clock_passes_every_rule():
    found = recorded(perf_counter_ns)
    assert_same(checked(found)[0], found)


def test_each_level_has_its_track_and_rounds_have_theirs(run):
    kinds, tracks, _ = checked(run)
    assert list(tracks.values()) == ["rounds", "target", "intermediate", "head"]
    process = [e["args"]["name"] for e in kinds["M"] if e["name"] == "process_name"]
    assert process == ["hspec_lab hierspec fp32 0123"]
    for event in kinds["X"]:
        assert tracks[event["tid"]] == event["cat"].split("/")[0].replace("round", "rounds")


def test_times_are_the_tables_own_in_us(run):
    kinds, _, _ = checked(run)
    # every reading of the clock is 1.717 us after the one before; the zero is the first
    first = kinds["X"][0]
    assert (first["name"], first["cat"]) == ("prefill", "target/prefill")
    assert first["ts"] == first["dur"] == pytest.approx(1.717, abs=1e-9)
    known = {"prompt": 0, "kv_len": 0, "warmup": True, "phase": "prefill", "n_tokens": 9}
    assert known.items() <= first["args"].items()
    assert "round" not in first["args"] and "device_us" not in first["args"]
    rounds = [event["name"] for event in kinds["X"] if event["cat"] == "round"]
    assert rounds == ["round 0", "round 1"] * 2


def test_arrows_follow_each_proposal_to_its_verification(run):
    _, _, arrows = checked(run)
    one_round = [("draft", "verify_intermediate")] * 2 + [("verify_intermediate", "verify_target")]
    assert [(giver["name"], taker["name"]) for giver, taker in arrows] == one_round * 4


@pytest.mark.parametrize(
    ("steps", "n_arrows"),
    [
        ([(0, "draft", "head"), (1, "verify_target", "target")], 0),
        ([(0, "verify_intermediate", "a"), (0, "verify_intermediate", "a")], 0),
        ([(0, "verify_intermediate", "a"), (0, "verify_intermediate", "b")], 1),
        ([(0, "draft", "head"), (0, "draft", "head"), (0, "verify_target", "target")], 1),
        ([(0, "verify_target", "target")], 0),
        ([(0, "draft", "head"), *[(0, "verify_target", "target")] * 2], 1),
    ],
    ids=[
        "another round",
        "same level again",
        "next level up",
        "drafting in steps",
        "no draft",
        "verified already",
    ],
)
def test_arrow_needs_a_proposal_of_this_round_from_below(steps, n_arrows):
    rows = [phase(name, level, i, i + 1, number) for i, (number, name, level) in enumerate(steps)]
    assert len(checked(trace(rows))[2]) == n_arrows


def test_an_arrow_is_bound_to_the_phase_though_a_module_begins_with_it():
    found = trace(
        [
            phase("draft", "head", 0, 40),
            module("attention", "draft", "head", 0, 40),
            phase("verify_target", "target", 40, 90),
            module("mlp", "verify_target", "target", 40, 90),
        ]
    )
    _, _, [(giver, taker)] = checked(found)
    assert (giver["name"], taker["name"]) == ("draft", "verify_target")


def test_arrows_stay_on_their_thread():
    found = trace(
        [
            phase("draft", "head", 0, 10, thread=1),
            phase("verify_target", "target", 20, 30, thread=2),
        ]
    )
    kinds, tracks, arrows = checked(found)
    assert not arrows
    assert list(tracks.values()) == ["target, thread 2", "head, thread 1"]


def test_modules_lie_in_their_phase_on_its_levels_track():
    found = trace(
        [
            a_round(0, 100),
            phase("verify_target", "target", 10, 90),
            module("attention", "verify_target", "target", 10, 50, layer=3),
            module("mlp", "verify_target", "target", 50, 90, layer=3),
        ]
    )
    kinds, tracks, _ = checked(found)
    where = [(event["name"], tracks[event["tid"]]) for event in kinds["X"]]
    levels = [(name, "target") for name in ("verify_target", "attention", "mlp")]
    assert where == [("round 0", "rounds"), *levels]
    assert_same(kinds, found)


def test_counters_show_tokens_accepted_emitted_and_stored(run):
    counters = checked(run)[0]["C"]
    shown = {
        name: [event["args"]["tokens"] for event in counters if event["name"] == name]
        for name in ("n_accepted", "n_emitted", "kv_len")
    }
    assert shown == {"n_accepted": [2] * 4, "n_emitted": [3] * 4, "kv_len": [9, 12, 9, 12]}


def test_counters_leave_out_what_nobody_knows():
    counters = checked(trace([a_round(0, 9, emitted=2)]))[0]["C"]
    assert [event["name"] for event in counters] == ["n_emitted"]


def test_device_time_is_an_argument_and_absent_where_unknown(run):
    ranges = run.ranges.copy()
    ranges.loc[1, "device_us"] = 0.5
    found = slices_of(checked(timeline.Timeline(ranges))[0], "ranges")
    assert [event["args"].get("device_us") for event in found[:3]] == [None, 0.5, None]


def test_levels_of_others_get_tracks_too():
    found = trace([phase("draft", "rounds", 0, 1), a_round(0, 2), phase("draft", "head", 1, 2)])
    assert list(checked(found)[1].values()) == ["rounds", "head", "rounds"]


def test_a_timeline_without_rows_is_a_trace_without_slices():
    kinds, tracks, arrows = checked(trace())
    assert not kinds["X"] and not tracks and not arrows


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda e: e[1] | {"dur": 0.006}, "cross"),
        (lambda e: e[1] | {"tid": 999}, "nameless"),
        (lambda e: {"ph": "s", "id": 1, **_PLACE}, "arrive nowhere"),
        (lambda e: {"ph": "f", "id": 1, "bp": "e", **_PLACE}, "no slice|nowhere"),
        (lambda e: {"ph": "C", "name": "kv_len", "args": {"tokens": 1}, **_PLACE}, "back in time"),
    ],
    ids=["crossing slices", "nameless track", "arrow to nowhere", "from nowhere", "counter"],
)
def test_the_checker_sees_what_is_wrong(broken, why):
    ranges = [a_round(1, 9, emitted=1), named("a", 1, 5), named("b", 5, 9)]
    found = list(events(trace(ranges)))
    late = {"ph": "C", "name": "kv_len", "args": {"tokens": 1}, **_PLACE, "ts": 0.005}
    slices = [event for event in found if event["ph"] == "X" and event["name"] != "round 0"]
    with pytest.raises(AssertionError, match=why):
        check([*found, late, broken(slices)])


_PLACE = {"pid": 1, "tid": 101, "ts": 0.003}
