"""Differences with a known truth: intervals must cover it, and exclude 0 when there is one."""

import time

import numpy as np
import pandas as pd
import pytest

from hspec_lab import breakdown, store
from hspec_lab.analysis.difference import COLUMNS, _student, difference

N_PROMPTS, N_ROUNDS = 12, 20
# mean us of a round, and mean accepted tokens
DRAFT_US, VERIFY_US, GAP_US, ACCEPTED = 200.0, 500.0, 20.0, 2.0


def table(name, columns):
    rows = len(columns["duration_us"])
    unknown = {"warmup": False, "phase": "", "level": "", "device_us": np.nan}
    kinds = store.TABLES[name]
    found = {k: np.broadcast_to(columns.get(k, unknown.get(k, 0)), rows) for k in kinds}
    return pd.DataFrame(found).astype(kinds)


def a_pair(seed, verify_b=VERIFY_US, n_prompts=N_PROMPTS):
    """Two runs of the same prompts, each with a difficulty of its own that both runs share."""
    draw = np.random.default_rng(seed)
    hard = draw.normal(1.0, 0.2, n_prompts).clip(0.3)
    return [_run(draw, hard, verify_us) for verify_us in (VERIFY_US, verify_b)]


def _run(draw, hard, verify_us):
    prompt = np.repeat(np.arange(len(hard)), N_ROUNDS)
    number = np.tile(np.arange(N_ROUNDS), len(hard))
    accepted = draw.poisson(ACCEPTED / hard[prompt])
    us = {"draft": DRAFT_US, "verify_target": verify_us}
    level = {"draft": "head", "verify_target": "target"}
    keys = {"prompt": prompt, "round": number}
    parts, whole = [], np.full(len(prompt), GAP_US)
    for phase, mean in us.items():
        spent = mean * hard[prompt] * draw.normal(1.0, 0.15, len(prompt))
        about = {"phase": phase, "level": level[phase], "duration_us": spent}
        parts.append(table("spans", keys | about))
        whole = whole + spent
    counts = {"n_proposed": 99, "n_accepted": accepted, "n_emitted": accepted + 1}
    rounds = table("rounds", keys | counts | {"duration_us": whole})
    return rounds, pd.concat(parts, ignore_index=True)


def truth_of(verify_us):
    """us of verify_target per emitted token over endlessly many prompts."""
    hard = np.random.default_rng(99).normal(1.0, 0.2, 2_000_000).clip(0.3)
    return verify_us * hard.mean() / (ACCEPTED / hard + 1).mean()


def with_head(run, prompts, **environment):
    ran = {"device": "cpu", "cpu": "Invented 9000", "threads": 2} | environment
    head = {"prompts": prompts, "environment": ran}
    return head, {"rounds": run[0], "spans": run[1]}


def phase_of(found, phase):
    return found[found["phase"] == phase].iloc[0]


@pytest.mark.parametrize(("n_prompts", "least"), [(5, 0.88), (N_PROMPTS, 0.91)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(n_prompts, least):
    truth = truth_of(600.0) - truth_of(VERIFY_US)
    covered = 0
    for seed in range(250):
        found = phase_of(difference(*a_pair(seed, 600.0, n_prompts)), "verify_target")
        covered += found["difference_low"] <= truth <= found["difference_high"]
    # 250 tries spread by 1.4 points, and few prompts tell little of their own spread
    assert least <= covered / 250 <= 0.985


def test_a_phase_that_did_not_change_is_seldom_called_changed():
    wrong = [phase_of(difference(*a_pair(seed)), "draft")["changed"] for seed in range(150)]
    assert 0.005 <= np.mean(wrong) <= 0.11


def test_a_phase_that_changed_is_found_and_the_others_left_alone():
    found = difference(*a_pair(3, verify_b=2 * VERIFY_US)).set_index("phase")
    assert list(found.index) == ["draft", "verify_target", "gap", "total"]
    assert found.loc["verify_target", "changed"] and found.loc["total", "changed"]
    assert not found.loc["draft", "changed"]
    assert found.loc["verify_target", "ratio"] == pytest.approx(2, rel=0.1)


def test_pairing_makes_intervals_narrower_than_no_pairing():
    a, b = a_pair(5)
    apart = tuple(rows.assign(prompt=rows["prompt"] + 100) for rows in b)
    paired, unpaired = difference(a, b), difference(a, apart)
    assert paired["paired"].all() and not unpaired["paired"].any()
    width = [t["difference_high"] - t["difference_low"] for t in (paired, unpaired)]
    # what both prompts share cancels: the verdict's us, the larger part of a round
    assert width[0][1] < 0.8 * width[1][1]
    assert unpaired["difference"].equals(paired["difference"])


def test_only_prompts_that_both_have_count():
    a, b = a_pair(6)
    fewer = tuple(rows[rows["prompt"] < 7] for rows in b)
    found = difference(a, fewer)
    alone = difference(tuple(rows[rows["prompt"] < 7] for rows in a), fewer)
    pd.testing.assert_frame_equal(found, alone)
    assert (found["n_prompts_a"] == 7).all()


def test_prompts_are_the_same_where_their_texts_are():
    a, b = a_pair(7)
    texts = [f"prompt {n}" for n in range(N_PROMPTS)]
    turned = {n: N_PROMPTS - 1 - n for n in range(N_PROMPTS)}
    moved = tuple(rows.assign(prompt=rows["prompt"].map(turned)) for rows in b)
    found = difference(with_head(a, texts), with_head(moved, texts[::-1]))
    pd.testing.assert_frame_equal(found, difference(a, b))
    other = difference(with_head(a, texts), with_head(b, [f"other {n}" for n in range(N_PROMPTS)]))
    assert not other["paired"].any()


def test_a_text_that_stands_twice_is_two_prompts():
    a, b = a_pair(8)
    found = difference(with_head(a, ["same"] * N_PROMPTS), with_head(b, ["same"] * N_PROMPTS))
    assert (found["n_prompts_a"] == N_PROMPTS).all()


def test_runs_of_different_devices_are_compared_only_when_told():
    a, b = a_pair(9)
    texts = [str(n) for n in range(N_PROMPTS)]
    runs = with_head(a, texts), with_head(b, texts, threads=4)
    with pytest.raises(ValueError, match="differ in threads 2 and 4; across_devices=True"):
        difference(*runs)
    assert len(difference(*runs, across_devices=True)) == 4


def test_levels_add_up_to_their_phase():
    run = store.read_run("profiles/runs/zoo/hierspec"), store.read_run("profiles/runs/zoo/narrow")
    by_phase, by_level = difference(*run), difference(*run, by_level=True)
    assert list(by_level)[:2] == ["phase", "level"]
    sums = by_level.groupby("phase")["difference"].sum()
    assert np.allclose(by_phase.set_index("phase")["difference"], sums[by_phase["phase"]])


def test_recorded_runs_agree_with_their_breakdowns():
    runs = [store.read_run(f"profiles/runs/zoo/{name}") for name in ("chain", "eagle2")]
    begin = time.process_time()
    found = difference(*runs).set_index("phase")
    assert time.process_time() - begin < 0.3
    assert ["phase", *found] == list(COLUMNS)
    for column, (_, tables) in zip(("a", "b"), runs, strict=True):
        phases = breakdown.phase_table(tables["rounds"], tables["spans"]).set_index("phase")
        told = found.loc[phases.index, f"{column}_us_per_emitted"]
        assert np.allclose(told, phases["us_per_emitted"])
    parts = found.drop(index="total")["difference"]
    assert parts.sum() == pytest.approx(found.loc["total", "difference"])


def test_a_phase_that_only_one_run_has_has_no_ratio():
    a, b = a_pair(10)
    found = difference((a[0], a[1][a[1]["phase"] != "draft"]), b).set_index("phase")
    assert found.loc["draft", "a_us_per_emitted"] == 0 and np.isnan(found.loc["draft", "ratio"])
    assert found.loc["draft", "changed"]
    alone = difference((a[0], a[1][:0]), b).set_index("phase")
    assert alone.loc["gap", "a_us_per_emitted"] == alone.loc["total", "a_us_per_emitted"]


def test_a_single_prompt_has_no_interval_and_is_not_called_changed():
    found = difference(*a_pair(11, verify_b=5 * VERIFY_US, n_prompts=1))
    assert found["difference_low"].isna().all() and not found["changed"].any()
    assert found["difference"].notna().all()


def test_warmup_and_prefill_do_not_count():
    a, b = a_pair(12)
    more = pd.concat([a[1], a[1][:9].assign(round=-1), a[1][:9].assign(warmup=True)])
    pd.testing.assert_frame_equal(difference((a[0], more), b), difference(a, b))


def test_runs_without_tokens_are_refused():
    a, b = a_pair(13)
    for rounds in (a[0][:0], a[0].assign(n_emitted=-1), a[0].assign(warmup=True)):
        with pytest.raises(ValueError, match="needs measured rounds with emitted tokens"):
            difference((rounds, a[1]), b)


def test_students_quantiles_are_those_of_the_tables():
    tables = {4: 2.776, 9: 2.262, 28: 2.048}
    for freedom, quantile in tables.items():
        assert _student(freedom) == pytest.approx(quantile, abs=0.01)
