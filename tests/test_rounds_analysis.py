"""Rounds with planted truths: each must be found, and named for what it is."""

import time

import numpy as np
import pandas as pd
import pytest

from hspec_lab import breakdown, store
from hspec_lab.analysis.rounds import CAUSES, ROUND_COLUMNS, _coefficients, per_round, slowest

N_PROMPTS, N_ROUNDS = 4, 60
US = {"draft": "head", "verify_intermediate": "intermediate", "verify_target": "target"}


def a_run(plant=None, seed=0, n_rounds=N_ROUNDS, noise_us=4.0):
    """A hierarchy whose phases cost us by sizes that a test can plant.

    Args:
        plant: (prompt, round) -> sizes other than usual: kv_len, nodes, passes, accepted, hiccup
            (us that verify_target takes more).
    """
    draw, rounds, spans, now = np.random.default_rng(seed), [], [], 0.0
    for prompt in range(N_PROMPTS):
        kv_len = 100 + 20 * prompt
        for number in range(n_rounds):
            accepted = int(draw.integers(2, 6))
            sizes = {"kv_len": kv_len, "nodes": 8, "passes": 2, "accepted": accepted, "hiccup": 0}
            sizes |= (plant or {}).get((prompt, number), {})
            begin, now = now, now + 7.0
            costs = [("draft", 3, 300.0), ("verify_intermediate", 30, 400.0)] * sizes["passes"]
            target_us = 500.0 + 12 * sizes["nodes"] + 0.5 * sizes["kv_len"] + sizes["hiccup"]
            for phase, n_tokens, us in [*costs, ("verify_target", sizes["nodes"], target_us)]:
                us = round(us + abs(draw.normal(0, noise_us)), 3)
                row = [prompt, number, False, phase, US[phase], n_tokens, n_tokens]
                spans.append([*row, sizes["kv_len"], now, us, np.nan])
                now += us
            counts = [sizes["nodes"] - 1, sizes["accepted"], sizes["accepted"] + 1]
            rounds.append([prompt, number, False, *counts, sizes["kv_len"], begin, now - begin])
            kv_len += counts[-1]
    found = {"rounds": rounds, "spans": spans}
    return tuple(
        pd.DataFrame(found[name], columns=list(store.TABLES[name])).astype(store.TABLES[name])
        for name in found
    )


def why_of(table, place):
    row = table[(table["prompt"] == place[0]) & (table["round"] == place[1])]
    assert len(row) == 1, f"{place} is not among the slowest"
    return row["why"].iloc[0]


PLACE = (2, 30)


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ({"kv_len": 4000}, "longer context: 4000 tokens stored"),
        ({"nodes": 200}, "larger tree: 200 tokens in verify_target (target)"),
        ({"passes": 5}, "more passes: 5 of "),
        ({"accepted": 0}, "rejected early: 0 of 7 accepted, 1 emitted"),
        ({"hiccup": 9000}, "verify_target (target) took longer than its size explains: noise"),
    ],
    ids=["context", "tree", "passes", "rejection", "hiccup"],
)
def test_a_slow_round_is_named_for_what_was_planted(planted, told):
    found = slowest(*a_run({PLACE: planted}), n=3)
    assert tuple(found.loc[0, ["prompt", "round"]]) == PLACE
    assert found["why"][0].startswith(told)


def test_five_slow_rounds_in_one_run_are_each_named():
    planted = {
        (0, 40): {"kv_len": 6000},
        (1, 20): {"nodes": 200},
        (2, 30): {"passes": 6},
        (3, 10): {"accepted": 0},
        (3, 50): {"hiccup": 9000},
    }
    found = slowest(*a_run(planted), n=5)
    starts = ("longer context", "larger tree", "more passes", "rejected early", "verify_target")
    for place, start in zip(planted, starts, strict=True):
        assert why_of(found, place).startswith(start)


def test_the_share_of_a_planted_cause_is_what_was_planted():
    rounds, spans = a_run({PLACE: {"hiccup": 9000}}, noise_us=0.0)
    found = slowest(rounds, spans, n=1).iloc[0]
    # its own average carries the hiccup, too
    assert found["noise_us"] == pytest.approx(9000 * (1 - 1 / len(rounds)), rel=1e-3)
    assert abs(found["context_us"]) < 100 and found["passes_us"] == 0


def test_a_hiccup_in_one_round_does_not_bend_what_context_costs():
    plain = slowest(*a_run(), n=240)
    struck = slowest(*a_run({(3, 59): {"hiccup": 50_000}}), n=240)
    by_round = [table.set_index(["prompt", "round"])["context_us"] for table in (plain, struck)]
    rest = by_round[0].index.drop((3, 59))
    assert (by_round[0][rest] - by_round[1][rest]).abs().max() < 5.0


def test_a_phase_never_gets_faster_by_more_context():
    rounds, spans = a_run()
    sooner = 4.0 * spans["kv_len"].where(spans["phase"] == "verify_target", 0)
    spans["duration_us"] += 4.0 * spans["kv_len"].max() - sooner
    found = slowest(rounds, spans, n=len(rounds))
    longest = found["kv_len"].idxmax()
    assert found["context_us"][longest] >= 0
    assert not found["why"].str.contains("longer context").any()


def test_a_machine_that_slows_down_is_not_called_a_longer_context():
    us = np.array([40.0] * 8 + [500.0] * 3)
    kv_len = np.arange(6, 17, dtype=float)
    (per_token,) = _coefficients(kv_len[:, None], us)
    # the best line of all says that no context takes less than no time
    steepest, at_none = np.polyfit(kv_len, us, 1)
    assert at_none < 0 and 0 <= per_token < steepest / 2
    (per_token,) = _coefficients(kv_len[:, None], 30 + 5 * kv_len)
    assert per_token == pytest.approx(5)


def test_causes_add_up_to_the_time_beyond_the_average():
    rounds, spans = a_run({PLACE: {"nodes": 64, "accepted": 1}})
    found = slowest(rounds, spans, n=len(rounds))
    causes = found[[f"{cause}_us" for cause in CAUSES]].sum(axis=1)
    us_per_emitted = rounds["duration_us"].sum() / rounds["n_emitted"].sum()
    over = found["duration_us"] - us_per_emitted * found["n_emitted"]
    assert np.allclose(causes, over) and np.allclose(found["over_us"], over)


def test_by_duration_a_rejection_is_no_reason():
    found = slowest(*a_run({PLACE: {"accepted": 0, "nodes": 64}}), n=1, by="duration_us")
    assert tuple(found.loc[0, ["prompt", "round"]]) == PLACE
    assert found["rejection_us"][0] == 0 and found["why"][0].startswith("larger tree")


def test_a_larger_tree_is_found_in_the_draft_that_proposed_it():
    rounds, spans = a_run()
    drafts = (spans["phase"] == "draft").to_numpy()
    at = ((spans["prompt"] == 1) & (spans["round"] == 5)).to_numpy()
    rounds.loc[(rounds["prompt"] == 1) & (rounds["round"] == 5), "n_proposed"] = 70
    spans.loc[drafts & at, "duration_us"] += 4000.0
    rounds.loc[(rounds["prompt"] == 1) & (rounds["round"] == 5), "duration_us"] += 8000.0
    why = slowest(rounds, spans, n=1)["why"][0]
    assert why.startswith("larger tree: 70 tokens in the draft (head) proposal, 7.3 on average")


def test_a_round_that_its_text_cut_short_is_not_called_rejected():
    rounds, spans = a_run()
    last = (rounds["prompt"] == 3) & (rounds["round"] == N_ROUNDS - 1)
    rounds.loc[last, ["n_accepted", "n_emitted"]] = [1, 1]
    assert why_of(slowest(rounds, spans, n=20), (3, N_ROUNDS - 1)).startswith("cut short")


def test_few_rounds_are_not_judged():
    rounds, spans = a_run(n_rounds=1)
    assert slowest(rounds, spans)["why"].str.startswith("4 rounds are too few").all()


def test_rounds_that_emitted_nobody_knows_what_are_judged_by_duration():
    rounds, spans = a_run({PLACE: {"nodes": 64}})
    rounds[["n_proposed", "n_accepted", "n_emitted"]] = -1
    found = slowest(rounds, spans, n=1)
    assert found["why"][0].startswith("larger tree") and found["us_per_emitted"].isna().all()


def test_phases_and_gap_are_the_rounds_duration_to_the_nanosecond():
    rounds, spans = a_run()
    found = per_round(rounds, spans)
    parts = found.drop(columns=list(ROUND_COLUMNS))
    assert list(parts) == ["draft", "verify_intermediate", "verify_target", "gap"]
    whole = np.rint(found["duration_us"] * 1e3).astype(int)
    assert (np.rint(parts * 1e3).astype(int).sum(axis=1) == whole).all()


@pytest.mark.parametrize("name", ["narrow", "chain", "hierspec", "eagle2"])
def test_recorded_rounds_agree_with_the_breakdown_of_their_run(name):
    tables = store.read_run(f"profiles/runs/zoo/{name}")[1]
    begin = time.process_time()
    found = per_round(tables["rounds"], tables["spans"])
    worst = slowest(tables["rounds"], tables["spans"])
    assert time.process_time() - begin < 0.6
    phases = breakdown.phase_table(tables["rounds"], tables["spans"]).set_index("phase")
    for phase, total_us in phases["total_us"].items():
        assert found[phase].sum() == pytest.approx(total_us, rel=1e-6)
    assert (worst["over_us"].diff().dropna() <= 0).all() and worst["why"].str.len().min() > 20


def test_warmup_prefill_and_spans_of_lost_rounds_do_not_count():
    rounds, spans = a_run()
    usual = per_round(rounds, spans)
    more = spans.iloc[:3].assign(round=[-1, 0, 999], warmup=[False, True, False])
    more_rounds = pd.concat([rounds, rounds.iloc[:1].assign(warmup=True)], ignore_index=True)
    found = per_round(more_rounds, pd.concat([spans, more], ignore_index=True))
    pd.testing.assert_frame_equal(found, usual)


def test_no_rounds_give_no_rows():
    rounds, spans = a_run()
    nothing = slowest(rounds[:0], spans[:0])
    assert len(nothing) == 0 and {"why", "over_us", "gap"} <= set(nothing)


def test_what_cannot_be_answered_is_refused():
    rounds, spans = a_run()
    with pytest.raises(ValueError, match="over_us, duration_us and n >= 1, got 'speed', 10"):
        slowest(rounds, spans, by="speed")
    with pytest.raises(ValueError, match="round 0 of prompt 0 stands twice"):
        per_round(pd.concat([rounds, rounds[:1]]), spans)
