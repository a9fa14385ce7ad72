"""Stored runs whose rounds and times follow from a trace and stages, so every error is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from prices import EAGLE, HIERARCHY
from traces import MIDDLE, random_trace

from hspec_lab.acceptance import replay, totals_of
from hspec_lab.against import accuracy, against_runs
from hspec_lab.config import Chain, Config, Eagle2, as_dict, config_id
from hspec_lab.stage_times import phase_us, stage_us

DEVICE = "Invented 9000, 2 threads"
TRACE = random_trace(3, top_k=1, n_positions=30)
STAGES = replace(EAGLE, device=DEVICE, target_us=HIERARCHY.target_us, plain_us=111.0)
HEAD = Eagle2(tree_size=4, depth=3, top_k=1)


def _run(config: Config, /, *, trace=TRACE, costs=STAGES, slower: float = 1.0, **head) -> tuple:
    """A run that did what a trace says, at the stages' times."""
    rounds = replay(trace, config.draft, config.max_new_tokens)
    n_rounds = len(rounds)
    totals = totals_of(rounds, config.draft)
    us = {
        phase: float(sum_us) / n_rounds * slower
        for phase, sum_us in phase_us(stage_us(costs, totals)).items()
    }
    rounds = rounds.assign(warmup=False, start_us=0.0, duration_us=sum(us.values()))
    spans = pd.concat(
        rounds[["prompt", "round", "warmup", "kv_len"]].assign(
            phase=phase, level="target", n_tokens=1, start_us=0.0, duration_us=one, device_us=np.nan
        )
        for phase, one in us.items()
        if one and phase != "gap"
    )
    told = {
        "kind": "measured",
        "config": as_dict(config),
        "config_id": config_id(config),
        "method": config.method,
        "format": config.format,
        "environment": {"device": "cpu", "cpu": "Invented 9000", "threads": 2, "date": "2026"},
        "prompts": list(trace.head["prompts"]),
    }
    return told | head, rounds, spans


PLAIN = Config(n_prompts=3, max_new_tokens=30)
EAGLE2 = replace(PLAIN, draft=HEAD)


def test_runs_that_took_what_stages_say_are_predicted_without_error():
    table = against_runs([_run(EAGLE2), _run(PLAIN)], [TRACE], [STAGES])
    assert list(table["problem"]) == list(table["yardstick"]) == ["", ""]
    for name in ("error", "us_error", "emitted_error"):
        assert list(table[name]) == pytest.approx([0, 0])
    for phase in ("draft", "verify_target", "accept", "kv_commit", "gap"):
        predicted, measured = table[f"{phase}_us"][0], table[f"{phase}_us_measured"][0]
        assert predicted == pytest.approx(measured) and predicted > 0
    assert table["ar_steps"][1] == table["ar_steps_measured"][1] == pytest.approx(1)
    assert accuracy(table) == pytest.approx({"n": 2, "median": 0, "p95": 0, "emitted_median": 0})


def test_a_machine_that_became_slower_is_off_in_us_but_not_in_plain_steps():
    runs = [_run(EAGLE2, slower=2.0), _run(PLAIN, slower=2.0)]
    table = against_runs(runs, [TRACE], [STAGES])
    assert list(table["us_error"]) == pytest.approx([-0.5, -0.5])
    assert list(table["error"]) == pytest.approx([0, 0])
    # and one that drafts twice as slowly as it should is off in both
    table = against_runs([_run(EAGLE2, slower=2.0), _run(PLAIN)], [TRACE], [STAGES])
    assert table["error"][0] == pytest.approx(-0.5)
    assert accuracy(table)["median"] == pytest.approx(0.25)


def test_a_prediction_covers_the_runs_own_prompts_and_length():
    run = _run(replace(EAGLE2, max_new_tokens=9))
    rounds = run[1][run[1]["prompt"] == 1]
    head = run[0] | {"prompts": ["prompt 1"]}
    table = against_runs([(head, rounds, run[2][run[2]["prompt"] == 1])], [TRACE], [STAGES])
    assert table["emitted_error"][0] == pytest.approx(0)
    stranger = run[0] | {"prompts": ["prompt 1", "another"]}
    table = against_runs([(stranger, *run[1:])], [TRACE], [STAGES])
    assert "1 of 2 prompts were not recorded" in table["warnings"][0]
    assert "not recorded" in table.attrs["note"]


def test_the_nearest_scheme_stands_in_and_says_so():
    other = replace(EAGLE2, target="zoo:target@w8a8")
    stages = replace(STAGES, target="zoo:target@w8a8")
    table = against_runs([_run(other)], [TRACE], [STAGES, stages])
    assert table["trace"][0] == TRACE.name and table["problem"][0] == ""
    assert "acceptance of zoo:target@fp32 stands for zoo:target@w8a8" in table["warnings"][0]
    own = random_trace(4, top_k=1, n_positions=30)
    own.head["config"]["target"] = "zoo:target@w8a8"
    table = against_runs([_run(other)], [TRACE, own], [STAGES, stages])
    assert (table["trace"][0], table["warnings"][0]) == (own.name, "")


def test_a_hierarchy_and_its_chain_are_predicted_from_one_trace():
    trace = random_trace(5, kind="refine", top_k=1, n_positions=30)
    costs = replace(HIERARCHY, device=DEVICE)
    drafts = {"hierspec": replace(trace.draft, at_least=4), "chain": Chain(MIDDLE, 3)}
    for method, draft in drafts.items():
        run = _run(replace(PLAIN, draft=draft), trace=trace, costs=costs)
        table = against_runs([run], [TRACE, trace], [STAGES, costs])
        assert (table["method"][0], table["problem"][0]) == (method, "")
        assert table["us_error"][0] == pytest.approx(0)
        assert np.isnan(table["error"][0]) and table["yardstick"][0].startswith("no ar run")


PROBLEMS = {
    "another device": (
        {"environment": {"device": "cpu", "cpu": "Other", "threads": 2}},
        "Other, 2",
    ),
    "row-invariant passes": (
        {"config": as_dict(replace(EAGLE2, row_invariant=True))},
        "row-invariant",
    ),
    "a depth that no trace holds": (
        {"config": as_dict(replace(EAGLE2, draft=replace(HEAD, depth=9)))},
        "depths beyond 4 were not recorded",
    ),
    "another temperature": (
        {"config": as_dict(replace(EAGLE2, temperature=1.0))},
        "at temperature 1 among 1",
    ),
    "a drafter that nobody knows": (
        {"config": as_dict(EAGLE2) | {"draft": {"kind": "Oracle"}}},
        "unknown drafter 'Oracle'",
    ),
}


@pytest.mark.parametrize("head,words", PROBLEMS.values(), ids=PROBLEMS)
def test_a_run_that_cannot_be_predicted_is_listed_with_its_reason(head, words):
    table = against_runs([_run(EAGLE2, **head), _run(EAGLE2)], [TRACE], [STAGES])
    assert len(table) == 2 and words in table["problem"][0]
    assert np.isnan(table["us_per_token"][0]) and table["us_per_token_measured"][0] > 0
    assert table["problem"][1] == ""
    assert "1 of them without a prediction" in table.attrs["note"]


def test_no_runs_no_traces_and_no_stages_give_tables_not_errors():
    assert against_runs([], [TRACE], [STAGES]).empty
    assert np.isnan(accuracy(against_runs([], [], []))["median"])
    for traces, costs, words in (([], [STAGES], "no trace of"), ([TRACE], [], "no stages of")):
        assert words in against_runs([_run(EAGLE2)], traces, costs)["problem"][0]
