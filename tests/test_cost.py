"""What stages cost: knees and plateaus of known curves, fits of known rounds, curves alone."""

import numpy as np
import pandas as pd
import pytest

from hspec_lab import store
from hspec_lab.config import Chain, Eagle2, Refine
from hspec_lab.cost import (
    corner,
    knee,
    most_rows,
    plateaus,
    relative,
    stage_costs,
    stage_costs_of_curves,
)
from hspec_lab.curve import curve_of_times, isotonic, midmean, robust_fit
from hspec_lab.stages_folder import STAGES, draft_of, draft_text, same_models

N = np.arange(1, 129)
CONDITIONS = {"cpu": "c", "threads": 2, "torch": "9", "date": "2026-01-02T03:04"}
EAGLE = Eagle2(tree_size=32, depth=5, top_k=4)
HIERSPEC = Refine("small", EAGLE, at_least=6)
PLAIN = 1000.0


def noisy(times, noise, seed=0):
    draw = np.random.default_rng(seed)
    return pd.Series(times * np.exp(noise * draw.standard_normal(len(times))), N)


# ---- curves ----------------------------------------------------------------------------------


def test_the_nearest_rising_sequence_pools_what_falls():
    fit = isotonic(np.array([1.0, 3.0, 2.0, 2.0, 5.0, 4.0]), np.array([1.0, 2.0, 1, 1, 3, 1]))
    np.testing.assert_allclose(fit, [1, 2.5, 2.5, 2.5, 4.75, 4.75])


@pytest.mark.parametrize("noise", [0, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_tiles_of_sixteen_rows_are_found_as_plateaus(noise, seed):
    curve = noisy(1 + 0.5 * ((N - 1) // 16), noise, seed)
    assert plateaus(curve) == [(first, first + 15) for first in range(1, 129, 16)]
    assert knee(curve, factor=1.25) == 16 and knee(curve, factor=1.75) == 32


@pytest.mark.parametrize("noise", [0, 0.02])
@pytest.mark.parametrize("seed", range(5))
def test_a_roofline_is_flat_up_to_its_corner(noise, seed):
    curve = noisy(np.maximum(1, 1 + 0.02 * (N - 40)), noise, seed)
    assert abs(corner(curve) - 40) <= 3
    ((first, last),) = plateaus(curve)
    assert first == 1 and abs(last - 40) <= 8
    assert abs(knee(curve, 1.5) - 65) <= 4


@pytest.mark.parametrize("seed", range(5))
def test_a_straight_or_bending_down_curve_has_no_corner_and_no_plateau(seed):
    for times in (1 + 0.05 * N, 1 + N**0.7):
        curve = noisy(times, 0.01, seed)
        assert corner(curve) is None and plateaus(curve) == []


def test_one_wild_time_moves_nothing():
    steps = pd.Series(1 + 0.5 * ((N - 1) // 16), N)
    wild = steps.copy()
    wild[[5, 40, 41, 90]] *= [9, 0.2, 4, 3]
    assert plateaus(wild) == plateaus(steps) and knee(wild) == knee(steps)
    line = pd.Series(np.maximum(1, 1 + 0.02 * (N - 40)), N)
    wild = line.copy()
    wild[[20, 70]] *= 5
    assert corner(wild) == corner(line) == 40


def test_a_constant_curve_is_one_plateau_without_knee_or_corner_before_its_end():
    curve = pd.Series(7.0, N)
    assert plateaus(curve) == [(1, 128)] and knee(curve) == 128 and corner(curve) is None


def test_short_curves_have_no_shape():
    assert plateaus(pd.Series([1.0, 1.0], [1, 2])) == []
    assert corner(pd.Series([1.0, 1.0, 9.0], [1, 2, 3])) is None
    assert knee(pd.Series([1.0, 1.4, 9.0], [1, 2, 3])) == 2
    with pytest.raises(ValueError, match="the curve begins with 2"):
        knee(pd.Series([1.0], [2]))


def test_the_middle_half_is_averaged():
    assert midmean(np.array([900.0, 1, 2, 3, 4, 5, -900, 3])) == 3.0
    assert midmean(np.array([5.0])) == 5.0


def test_a_fit_stays_where_it_is_when_a_fifth_is_far_off():
    draw = np.random.default_rng(1)
    x = draw.uniform(0, 10, 2000)
    y = (3 + 2 * x) * np.exp(0.02 * draw.standard_normal(2000))
    y[::5] *= draw.uniform(2, 9, 400)
    found, errors = robust_fit(np.stack([np.ones_like(x), x]), y)
    np.testing.assert_allclose(found, [3, 2], rtol=0.01)
    assert (np.abs(found - [3, 2]) < 5 * errors).all() and (errors < 0.02).all()


@pytest.mark.parametrize("by_row", [False, True])
def test_a_curve_is_taken_at_the_context_that_is_asked_for(by_row):
    draw = np.random.default_rng(2)
    n, kv_len = draw.integers(1, 17, 4000), draw.integers(100, 500, 4000)
    slope = 0.05 * (n if by_row else 4)
    times = (100 + 5 * n + slope * kv_len) * np.exp(0.02 * draw.standard_normal(4000))
    every = np.arange(1, 17)
    for context in (100, 1000):
        found, error = curve_of_times(n, kv_len, times, context)
        wanted = 100 + 5 * every + 0.05 * (every if by_row else 4) * context
        assert np.isnan(found[0]) and error < 0.01
        np.testing.assert_allclose(found[1:], wanted, rtol=0.03)


def test_a_curve_that_does_not_depend_on_the_context_is_not_extrapolated():
    draw = np.random.default_rng(3)
    n, kv_len = draw.integers(1, 9, 500), draw.integers(100, 500, 500)
    times = 100 * np.exp(0.1 * draw.standard_normal(500))
    near, far = (curve_of_times(n, kv_len, times, context)[0] for context in (300, 100_000))
    np.testing.assert_array_equal(near, far)


def test_what_was_hardly_measured_lies_between_its_neighbours_or_on_their_line():
    n = np.repeat([1, 2, 4, 5, 7, 8], [9, 9, 9, 9, 1, 1])
    times = np.where(n < 7, 10.0 * n, 1000.0)
    found, _ = curve_of_times(n, np.full(len(n), 50), times, 50)
    np.testing.assert_allclose(found[1:], [10, 20, 30, 40, 50, 60, 70, 80])
    found, _ = curve_of_times(np.array([3, 4]), np.array([5, 5]), np.array([8.0, 9.0]), 5)
    np.testing.assert_allclose(found[1:], [8, 8, 8, 9])
    found, _ = curve_of_times(np.array([3, 4]), np.array([5, 5]), np.array([8.0, 9.0]), 5, 6)
    assert len(found) == 7 and found[5] >= 9


# ---- rounds ----------------------------------------------------------------------------------


def true_us(phase, level, n, kv_len, size=0, depth=0):
    """Times of a made-up machine whose plain step takes `PLAIN`."""
    if phase == "draft" and level == "head":
        return 100 + 150 * depth + 2 * (size - 1) + 5 * n
    if phase.startswith("verify") or phase == "draft":
        weight = 0.9 * PLAIN if level == "target" else 0.3 * PLAIN
        return weight + 20 * (n - 1) + 0.1 * n * (kv_len - 300)
    return {"accept": 20 + n, "kv_commit": 30}[phase]


class Machine:
    """Makes rows of measured rounds: a drift, noise, and now and then something else runs."""

    def __init__(self, draft, noise=0.05, n_turns=150, seed=0):
        self.draw, self.noise, self.draft = np.random.default_rng(seed), noise, draft
        self.rows, self.n_turns = [], n_turns

    def table(self):
        drift = 1.0
        for turn in range(self.n_turns):
            drift *= np.exp(0.05 * self.draw.standard_normal())
            for i in range(13):
                self.turn, self.drift, self.kv_len = turn, drift, self.draw.integers(200, 400)
                self.round(turn * 13 + i, is_plain=i < 5)
        return pd.DataFrame(self.rows)[list(STAGES)].astype(STAGES)

    def round(self, number, is_plain):
        self.about = {"tree_size": 0, "depth": 0, "top_k": 4, "at_least": 0, "n_emitted": 1}
        method = "ar" if is_plain else "drafted"
        self.about |= {"method": method, "round": number, "prompt": 0, "turn": self.turn}
        self.us = 0.0
        self.span("gap", "target", 1, 40.0)
        rows = 1
        if not is_plain:
            rows = self.drafted()
        self.verified("verify_target", "target", rows)
        self.row("round", "target", rows, self.us)

    def drafted(self):
        if isinstance(self.draft, Chain):
            length = int(self.draw.integers(1, self.draft.draft_len + 1))
            self.about["at_least"] = length
            for i in range(length):
                self.verified("draft", "intermediate", 2 if i == 0 else 1)
            return length + 1
        head = self.draft if isinstance(self.draft, Eagle2) else self.draft.draft
        size = int(self.draw.integers(2, head.tree_size + 1))
        depth = int(self.draw.integers(1, head.depth + 1))
        size = min(size, 1 + 4 + (depth - 1) * 16)
        self.about |= {"tree_size": size, "depth": depth}
        if isinstance(self.draft, Eagle2):
            self.head(size, depth)
            return size
        inner = int(self.draw.integers(1, 4))
        self.verified("verify_intermediate", "intermediate", 2)
        self.span("gap", "intermediate", 1, 15.0)
        for _ in range(inner):
            self.head(size, depth)
            self.verified("verify_intermediate", "intermediate", size)
            self.span("gap", "intermediate", 1, 15.0)
        return 2 * inner + 2

    def head(self, size, depth):
        n = int(self.draw.integers(2, 5))
        self.span("draft", "head", n, true_us("draft", "head", n, self.kv_len, size, depth))

    def verified(self, phase, level, n):
        self.span(phase, level, n, true_us(phase, level, n, self.kv_len))
        rest = 1 if n == 2 and level == "intermediate" else n
        self.span("accept", level, rest, true_us("accept", level, rest, 0))
        self.span("kv_commit", level, 1, true_us("kv_commit", level, 1, 0))

    def span(self, phase, level, n, us):
        us *= self.drift * np.exp(self.noise * self.draw.standard_normal())
        if self.draw.random() < 0.03 and self.noise:
            us *= self.draw.uniform(2, 8)
        self.us += us
        if phase != "gap":
            self.row(phase, level, n, us)

    def row(self, phase, level, n, us):
        told = {"target": "big@fp32", "draft": draft_text(self.draft), "phase": phase}
        told |= {"level": level, "n_tokens": n, "kv_len": self.kv_len, "us": us}
        self.rows.append(told | {"plain_us": PLAIN * self.drift} | self.about)


@pytest.fixture(scope="module")
def measured():
    """What a machine that drifts and stutters shows of all three kinds of rounds."""
    drafts = (EAGLE, HIERSPEC, Chain("small", 6))
    tables = [Machine(draft, seed=i).table() for i, draft in enumerate(drafts)]
    return {"conditions": CONDITIONS}, pd.concat(tables, ignore_index=True)


def unit(costs, us):
    """True times in the unit of the run."""
    return np.asarray(us) * costs.plain_us / PLAIN


def test_stages_of_a_head_on_the_target_are_found_through_drift_and_noise(measured):
    costs = stage_costs(measured, "big", EAGLE, 300)
    assert (costs.origin, costs.device, costs.target) == ("measured", "c, 2 threads", "big")
    assert (costs.intermediate, costs.head, costs.top_k) == (None, "big-eagle2", 4)
    assert costs.context == 300 and costs.intermediate_us.tolist()[1:] == []
    n = np.arange(1, 33)
    wanted = unit(costs, true_us("verify_target", "target", n, 300))
    np.testing.assert_allclose(costs.target_us[1:], wanted, rtol=0.04)
    np.testing.assert_allclose(costs.accept_us[1:], unit(costs, 20 + n), rtol=0.06)
    drafts = [costs.draft_us[depth] + costs.tree_us[size] for depth, size in ((1, 5), (5, 32))]
    wanted = [true_us("draft", "head", 3, 300, size, depth) for depth, size in ((1, 5), (5, 32))]
    np.testing.assert_allclose(drafts, unit(costs, wanted), rtol=0.03)
    assert np.isnan(costs.draft_us[0]) and len(costs.draft_us) == 6 and len(costs.tree_us) == 33
    assert costs.commit_us == pytest.approx(unit(costs, 30), rel=0.03)
    assert costs.gap_us == pytest.approx(unit(costs, 40), rel=0.05)
    assert costs.gap_intermediate_us == 0 and costs.commit_intermediate_us == 0
    assert all(0 < spread < 0.05 for spread in costs.spread.values())
    assert {"target_us", "accept_us", "draft_us"} <= set(costs.spread)


def test_stages_of_a_hierarchy_are_told_apart_by_level(measured):
    costs = stage_costs(measured, "big@fp32", Refine("small@fp32", EAGLE, at_least=3), 300)
    assert (costs.intermediate, costs.head) == ("small@fp32", "small-eagle2")
    n = np.arange(2, 33)
    wanted = unit(costs, true_us("verify_intermediate", "intermediate", n, 300))
    np.testing.assert_allclose(costs.intermediate_us[2:], wanted, rtol=0.05)
    assert costs.accept_intermediate_us[1] == pytest.approx(unit(costs, 21), rel=0.05)
    assert costs.commit_intermediate_us == pytest.approx(unit(costs, 30), rel=0.03)
    # a gap of 40 a round, 15 more for each of 2 to 4 inner ones
    assert costs.gap_us == pytest.approx(unit(costs, 40), rel=0.15)
    assert costs.gap_intermediate_us == pytest.approx(unit(costs, 15), rel=0.15)


def test_a_chain_has_one_and_two_rows_of_the_small_model_and_no_head(measured):
    costs = stage_costs(measured, "big", Chain("small", 4), 300)
    assert (costs.intermediate, costs.head, costs.top_k) == ("small", None, 0)
    wanted = unit(costs, true_us("draft", "intermediate", np.array([1, 2]), 300))
    np.testing.assert_allclose(costs.intermediate_us[1:], wanted, rtol=0.03)
    assert len(costs.draft_us) == 1 and costs.tree_us is None


def test_without_a_drafter_all_rounds_of_the_target_tell_its_passes(measured):
    costs = stage_costs(measured, "big", None, 300)
    assert len(costs.target_us) == 33 and costs.draft_us.tolist()[1:] == []
    wanted = unit(costs, true_us("verify_target", "target", np.arange(1, 33), 300))
    np.testing.assert_allclose(costs.target_us[1:], wanted, rtol=0.04)


def test_a_context_that_was_not_measured_is_extrapolated_and_says_so(measured):
    costs = stage_costs(measured, "big", EAGLE, 600)
    assert "context 600 lies outside the measured 200..399" in costs.warnings[0]
    wanted = unit(costs, true_us("verify_target", "target", 32, 600))
    assert costs.target_us[32] == pytest.approx(wanted, rel=0.05)
    assert not stage_costs(measured, "big", EAGLE, 300).warnings


def test_a_noisy_machine_is_flagged(measured):
    table = Machine(EAGLE, noise=0.4, n_turns=20).table()
    (warning,) = stage_costs((measured[0], table), "big", EAGLE, 300).warnings
    assert warning.startswith("a noisy machine: quartiles of the plain step lie")


@pytest.mark.parametrize(
    "target,draft,message",
    [
        ("other", EAGLE, "no rounds of other with Eagle2.* were measured, there are: big@fp32"),
        ("big", Eagle2(4, 2, top_k=8), "no rounds of big with"),
        ("big", Chain("other", 2), "no rounds of big with"),
        ("big@w8a8", EAGLE, "no rounds of big@w8a8"),
        ("big", Eagle2(33, 2, 4), "stages of big were measured up to Eagle2.tree_size=32"),
        ("big", Eagle2(8, 6, 4), "measured up to .* ask for less or measure larger sizes"),
        ("big", Refine("small", EAGLE, at_least=7), "measured up to Refine"),
        ("big", Refine("small", Eagle2(33, 2, 4), at_least=1), "measured up to Refine"),
        ("big", Chain("small", 7), "measured up to Chain"),
    ],
)
def test_what_was_not_measured_is_one_line(target, draft, message, measured):
    with pytest.raises(ValueError, match=message) as error:
        stage_costs(measured, target, draft)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("draft", [EAGLE, HIERSPEC, Chain("a@w8a8", 3)])
def test_a_drafter_survives_its_text(draft):
    assert draft_of(draft_text(draft)) == draft and "\n" not in draft_text(draft)


def test_sizes_alone_do_not_make_another_drafter():
    assert same_models(HIERSPEC, Refine("small@fp32", Eagle2(2, 1, 4), at_least=1))
    assert not same_models(EAGLE, Eagle2(32, 5, top_k=5)) and not same_models(EAGLE, HIERSPEC)
    assert not same_models(HIERSPEC, Refine("small", EAGLE, at_least=6, tree_size=16))


@pytest.mark.parametrize(
    "draft,rows",
    [
        (None, 0),
        (Eagle2(24, 4, 8), 24),
        (Eagle2(24, 1, 8), 9),
        (Chain("m", 6), 7),
        # five tokens are there, the last tree adds its depth and one more; and the root
        (Refine("m", Eagle2(24, 4, 8), at_least=6), 11),
        (Refine("m", Eagle2(24, 4, 8), at_least=6, tree_size=16), 16),
        (Refine("m", Chain("s", 3), at_least=2), 6),
    ],
)
def test_curves_go_on_to_the_most_rows_that_a_round_can_have(draft, rows):
    assert most_rows(draft) == rows


def test_rows_that_never_came_lie_on_the_line(measured):
    head, table = measured
    costs = stage_costs(measured, "big", HIERSPEC, 300)
    assert table.loc[table["draft"] == draft_text(HIERSPEC), "n_tokens"].max() == 32
    assert len(costs.target_us) == len(costs.accept_us) == most_rows(HIERSPEC) + 1 == 13
    # no more than 8 rows were verified
    wanted = unit(costs, true_us("verify_target", "target", 12, 300))
    assert costs.target_us[12] == pytest.approx(wanted, rel=0.05)


# ---- curves alone ----------------------------------------------------------------------------


def old_table(model="m", scheme="fp32", context=512, times=None, repeats=16):
    times = times or {1: 100.0, 2: 110.0, 4: 150.0}
    rows = [
        ("d", model, scheme, context, n, us, us - 2, us + 2, False, repeats)
        for n, us in times.items()
    ]
    return pd.DataFrame(rows, columns=list(store.COSTS)).astype(store.COSTS)


def test_curves_alone_give_passes_and_say_what_is_left_out():
    table = pd.concat([old_table(), old_table("s", times={1: 100.0, 3: 300.0})])
    costs = stage_costs_of_curves(table, "m", "s@fp32", 512)
    np.testing.assert_allclose(costs.target_us[1:], [100, 110, 130, 150])
    np.testing.assert_allclose(costs.intermediate_us[1:], [100, 200, 300])
    assert costs.plain_us == 100 and costs.origin == "measured" and costs.gap_us == 0
    assert costs.warnings == ("drafting, verdicts and overhead are left out: passes alone",)


def test_contexts_in_between_lie_on_the_line_and_those_beyond_are_flagged():
    table = pd.concat([old_table(), old_table(context=1024, times={1: 200.0, 2: 220.0, 4: 300.0})])
    between = stage_costs_of_curves(table, "m", context=768)
    np.testing.assert_allclose(between.target_us[[1, 4]], [150, 225])
    beyond = stage_costs_of_curves(table, "m", context=2048)
    np.testing.assert_allclose(beyond.target_us[[1, 4]], [400, 600])
    assert any("context 2048 lies outside the measured 512..1024" in w for w in beyond.warnings)
    assert len(between.warnings) == 1


def test_curves_of_a_model_or_device_that_is_not_there_are_one_line():
    with pytest.raises(ValueError, match="no cost curve of m@w8a8, there are: m@fp32"):
        stage_costs_of_curves(old_table(), "m@w8a8")
    two = pd.concat([old_table(), old_table().assign(device="e")])
    with pytest.raises(ValueError, match="say which device, the curves are of d, e"):
        stage_costs_of_curves(two, "m")
    assert stage_costs_of_curves(two, "m", device="e").device == "e"


def test_an_old_table_is_read_with_what_follows_from_it(tmp_path):
    old = pd.concat([old_table(), old_table(scheme="w8a8", times={2: 50.0})], ignore_index=True)
    wide = old.copy()
    wide.loc[1, "high_us"] = 140.0
    store.write_cost(tmp_path, {"kind": "measured"}, wide)
    _, table = store.read_cost(tmp_path)
    assert list(table.columns) == [*store.COSTS, *store.COSTS_MORE]
    assert table["plain_us"].tolist()[:3] == [100] * 3 and np.isnan(table["plain_us"][3])
    assert table["ratio"].tolist()[:3] == [1.0, 1.1, 1.5]
    # 1.82 x 4 us / sqrt(16)
    assert table["median_low_us"][2] == pytest.approx(150 - 1.82)
    assert table["ratio_high"][2] == pytest.approx(1.5182)
    assert table["unstable"].tolist() == [False, True, False, False] and not table["cold"].any()


def test_a_foreign_column_is_refused_on_writing_and_reading(tmp_path):
    table = old_table()
    with pytest.raises(ValueError, match="a cost table has the columns"):
        store.write_cost(tmp_path, {}, table.assign(more=1))
    store.write_cost(tmp_path, {}, table)
    table.drop(columns="graph").to_parquet(tmp_path / "cost.parquet")
    with pytest.raises(ValueError, match="a cost table has the columns"):
        store.read_cost(tmp_path)


def test_ratios_measured_turn_by_turn_are_kept():
    table = store.whole_costs(old_table())
    table["ratio"] = [1.01, 1.2, 1.6]
    assert relative(table)["ratio"].tolist() == [1.01, 1.2, 1.6]
    with pytest.raises(ValueError, match="no one-token time for d, m, fp32, 512"):
        relative(table[table["n"] > 1])
