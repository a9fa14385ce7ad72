"""Small tables computed by hand: phases, gap, speed, loops and speed-ups."""

import math

import numpy as np
import pandas as pd
import pytest

from hspec_lab import store
from hspec_lab.breakdown import (
    covered,
    in_loop,
    mean_emitted_outside_loops,
    phase_table,
    prefill_table,
    source_share,
    speedups,
    summary,
    tokens_per_s,
)

NAN = math.nan


def table(name, rows):
    return pd.DataFrame(rows, columns=list(store.TABLES[name])).astype(store.TABLES[name])


# two prompts, three measured rounds of 100 + 200 + 100 us that emit 3 + 1 + 4 tokens
ROUNDS = table(
    "rounds",
    [
        [0, 0, True, 4, 4, 5, 10, 0.0, 9999.0],
        [0, 0, False, 4, 2, 3, 10, 20_000.0, 100.0],
        [0, 1, False, 4, 0, 1, 13, 20_100.0, 200.0],
        [1, 0, False, 2, 4, 4, 8, 40_000.0, 100.0],
    ],
)
SPANS = table(
    "spans",
    [
        [0, 0, True, "draft", "head", 8, 0, 10, 0.0, 9000.0, NAN],
        [0, -1, False, "prefill", "target", 10, 0, 0, 10_000.0, 1000.0, NAN],
        [0, -1, False, "prefill", "head", 10, 0, 0, 11_500.0, 500.0, NAN],
        [0, 0, False, "verify_target", "target", 5, 0, 10, 20_030.0, 60.0, 50.0],
        [0, 0, False, "draft", "head", 8, 0, 10, 20_000.0, 20.0, 2.0],
        [0, 0, False, "draft", "intermediate", 8, 0, 10, 20_020.0, 10.0, 2.0],
        [0, 1, False, "verify_target", "target", 5, 0, 13, 20_110.0, 190.0, 50.0],
        [1, -1, False, "prefill", "target", 8, 0, 0, 30_000.0, 4000.0, NAN],
        [1, 0, False, "draft", "head", 8, 0, 8, 40_000.0, 40.0, NAN],
        [1, 0, False, "accept", "target", 8, 0, 8, 40_040.0, 40.0, 1.0],
    ],
)


def output(token_ids, prompt=0, rounds=None, source="head"):
    rounds = rounds or [-1] + [0] * (len(token_ids) - 1)
    rows = [[prompt, rounds[i], i, token, str(token), source] for i, token in enumerate(token_ids)]
    return table("tokens", rows)


def test_phases_and_gap_add_up_to_the_rounds():
    # draft 20 + 10 + 40, verify_target 60 + 190, accept 40; 400 - 360 is the gap
    phases = phase_table(ROUNDS, SPANS)
    assert phases["phase"].tolist() == ["draft", "verify_target", "accept", "gap"]
    assert phases["total_us"].tolist() == [70.0, 250.0, 40.0, 40.0]
    assert phases["us_per_round"].tolist() == pytest.approx([70 / 3, 250 / 3, 40 / 3, 40 / 3])
    assert phases["us_per_emitted"].tolist() == [8.75, 31.25, 5.0, 5.0]
    assert phases["share"].tolist() == [0.175, 0.625, 0.1, 0.1]
    assert phases["total_us"].sum() == ROUNDS.query("not warmup")["duration_us"].sum()


def test_device_time_is_a_column_of_its_own_and_unknown_where_a_span_has_none():
    phases = phase_table(ROUNDS, SPANS).set_index("phase")["device_us"]
    assert phases["verify_target"] == 100.0
    assert phases[["draft", "gap"]].isna().all()


def test_phases_split_by_level_add_up_to_the_same():
    phases = phase_table(ROUNDS, SPANS, by_level=True)
    assert phases[["phase", "level", "total_us"]].values.tolist() == [
        ["draft", "head", 60.0],
        ["draft", "intermediate", 10.0],
        ["verify_target", "target", 250.0],
        ["accept", "target", 40.0],
        ["gap", "", 40.0],
    ]
    assert phases["share"].sum() == pytest.approx(1.0)


def test_covered_is_what_the_gap_leaves():
    assert covered(ROUNDS, SPANS) == pytest.approx(0.9)
    assert covered(ROUNDS, pd.concat([SPANS, SPANS])) == pytest.approx(1.8)


def test_prefill_stands_apart_by_level():
    assert prefill_table(SPANS).values.tolist() == [
        ["target", 5000.0, 2500.0, 18],
        ["head", 500.0, 500.0, 10],
    ]


def test_summary_of_a_run_is_computed_by_hand():
    tokens = pd.concat([output(range(5)), output(range(5), prompt=1)], ignore_index=True)
    numbers = summary(ROUNDS, SPANS, tokens)
    # first tokens at 12,000 - 10,000 and 34,000 - 30,000 us
    assert numbers["time_to_first_token_ms"] == 3.0
    assert numbers["tokens_per_s"] == 8 / 400e-6
    assert (numbers["n_rounds"], numbers["n_emitted"]) == (3, 8)
    assert numbers["mean_emitted"] == 8 / 3
    assert numbers["acceptance_rate"] == 6 / 10
    assert numbers["covered"] == pytest.approx(0.9)
    assert numbers["loop_share"] == 0.0
    assert numbers["mean_emitted_outside_loops"] == 4.0


def test_interval_lies_between_the_slowest_and_the_fastest_prompt():
    numbers = summary(ROUNDS, SPANS)
    slow, fast = 4 / 300e-6, 4 / 100e-6
    assert numbers["tokens_per_s_low"] == pytest.approx(slow)
    assert numbers["tokens_per_s_high"] == pytest.approx(fast)
    one = summary(ROUNDS.query("prompt == 0"), SPANS)
    assert math.isnan(one["tokens_per_s_low"])


def test_interval_covers_the_true_speed_about_as_often_as_it_says():
    # 40 prompts of 10 tokens at 1 us each, times gamma noise of mean 1
    draws, hits = np.random.default_rng(1), 0
    for _ in range(60):
        us = 10 * draws.gamma(5.0, 1 / 5.0, size=40)
        rows = [[p, 0, False, 9, 9, 10, 0, 0.0, us[p]] for p in range(40)]
        numbers = summary(table("rounds", rows), SPANS)
        hits += numbers["tokens_per_s_low"] < 1e6 < numbers["tokens_per_s_high"]
    assert 50 <= hits <= 60


def test_run_without_rounds_has_no_speed_and_raises_nothing():
    rounds, spans = ROUNDS.iloc[:0], SPANS.iloc[:0]
    numbers = summary(rounds, spans, output([]))
    assert numbers["n_rounds"] == 0
    assert all(math.isnan(numbers[name]) for name in ("tokens_per_s", "mean_emitted", "covered"))
    assert phase_table(rounds, spans)["phase"].tolist() == ["gap"]
    assert phase_table(rounds, spans, by_level=True)["level"].tolist() == [""]
    assert prefill_table(spans).empty
    assert source_share(output([])).empty


def test_what_rounds_emitted_is_not_made_up_where_a_trace_does_not_know_it():
    rounds = ROUNDS.assign(n_emitted=[5, -1, 1, 4], n_accepted=-1)
    table = phase_table(rounds, SPANS)
    assert table["us_per_emitted"].isna().all() and table["us_per_round"].notna().all()
    found = summary(rounds, SPANS)
    for name in ("n_emitted", "mean_emitted", "acceptance_rate", "tokens_per_s"):
        assert math.isnan(found[name]), name
    assert math.isnan(found["tokens_per_s_low"]) and found["n_rounds"] == 3


def test_rounds_without_spans_are_all_gap():
    phases = phase_table(ROUNDS, SPANS.iloc[:0])
    assert phases[["phase", "share"]].values.tolist() == [["gap", 1.0]]


def test_token_is_in_a_loop_when_the_sixteen_it_ends_already_stood_there():
    # 0..15 then again 0..15, then news: of 33 tokens only the 32nd ends a repeated 16-gram
    looping = in_loop(output([*range(16), *range(16), 99]))
    assert looping.tolist() == [False] * 31 + [True, False]


def test_repeated_token_loops_from_the_seventeenth_on():
    assert in_loop(output([5] * 20)).tolist() == [False] * 16 + [True] * 4


def test_outputs_do_not_share_their_loops():
    tokens = pd.concat([output(range(16)), output(range(16), prompt=1)], ignore_index=True)
    assert not in_loop(tokens).any()


def test_rows_may_come_in_any_order():
    tokens = output([5] * 18)
    shuffled = in_loop(tokens.sample(frac=1.0, random_state=0))
    assert shuffled.sort_index().tolist() == in_loop(tokens).tolist()


def test_rounds_that_touch_a_loop_do_not_count_outside():
    # prefill emits 1, rounds emit 5, 8 and 6; the third begins with the 15th of twenty fives
    tokens = output([5] * 20, rounds=[-1] + [0] * 5 + [1] * 8 + [2] * 6)
    assert mean_emitted_outside_loops(tokens) == 6.5
    only_loops = tokens.query("position >= 14").assign(round=0, token=[5] * 6)
    assert math.isnan(mean_emitted_outside_loops(pd.concat([output([5] * 17, rounds=[0] * 17)])))
    assert mean_emitted_outside_loops(only_loops) == 6.0


def test_source_share_says_who_produced_the_output():
    tokens = pd.concat([output([1, 2, 3]), output([4], prompt=1, source="target")])
    assert source_share(tokens).values.tolist() == [["head", 3, 0.75], ["target", 1, 0.25]]


def head(method="ar", threads=2, date="2026-01-01", format="fp32", **more):
    environment = {"device": "cpu", "cpu": "a", "threads": threads, "date": date}
    about = {"method": method, "format": format, "environment": environment, "kind": "measured"}
    return about | {"config_id": method, "config": {}, "prompts": ["a", "b"]} | more


def rounds_at(us):
    rows = [[p, r, False, 0, 0, 1, 0, 0.0, us] for p in range(2) for r in range(3)]
    return table("rounds", rows)


def test_speedup_is_taken_over_the_newest_plain_run_of_the_same_conditions():
    runs = [
        (head(date="2026-01-02"), rounds_at(300.0), SPANS),
        (head(date="2026-01-01"), rounds_at(900.0), SPANS),
        (head(threads=1), rounds_at(600.0), SPANS),
        (head("eagle2"), rounds_at(100.0), SPANS),
    ]
    compared = speedups(runs)
    assert compared["speedup"].tolist() == pytest.approx([1.0, 1 / 3, 1.0, 3.0])
    assert compared.loc[3, ["speedup_low", "speedup_high"]].tolist() == pytest.approx([3.0, 3.0])
    assert compared["tokens_per_s"].tolist()[3] == pytest.approx(1e4)
    assert compared["reason"].tolist() == [""] * 4


@pytest.mark.parametrize(
    "other",
    [
        {"threads": 1},
        {"format": "w8a8"},
        {"prompts": ["a", "c"]},
        {"kind": "replayed"},
        {"config": {"max_new_tokens": 7}},
        {"config": {"row_invariant": True}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_run_without_a_plain_run_of_its_conditions_has_a_reason_instead(other):
    runs = [
        (head(), rounds_at(300.0), SPANS),
        (head("eagle2", **other), rounds_at(100.0), SPANS),
    ]
    row = speedups(runs).iloc[1]
    assert math.isnan(row["speedup"])
    assert row["reason"].startswith("no ar run of")


def test_no_runs_compare_to_an_empty_table():
    assert speedups([]).empty
    assert tokens_per_s(rounds_at(500.0)) == 2000.0
