"""Real runs side by side: what is measured, how it resumes, and what the rows say."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_decode import spell
from tiny import make_head, make_model

from hspec_lab import confirm, experiment
from hspec_lab.config import Chain, Config, Eagle2, Refine, Static, as_dict, config_id
from hspec_lab.confirm_folder import ROWS, read_rows, regret_of, speeds, write_rows

PROMPTS = ("012345678", "ABCDE<=>?@", "Q")
TREE = Eagle2(tree_size=6, depth=2, top_k=3)
LENGTHS = {"max_new_tokens": 12, "repeats": 2}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 32}
    target = spell(make_model(root / "target", scale=0.1, **sizes))
    middle = spell(make_model(root / "middle", scale=0.1, num_hidden_layers=1, **sizes))
    for model in (target, middle):
        make_head(root / f"{model.name}-eagle2", model, scale=0.1)
    return root


def config_of(zoo, draft=None, **fields):
    return Config(target=str(zoo / "target"), draft=draft, prompts=PROMPTS, threads=1, **fields)


def configs_of(zoo):
    middle = str(zoo / "middle")
    drafts = [None, TREE, Static((-1, 0, 0), (-1, 0, 1)), Chain(middle, 2), Refine(middle, TREE, 2)]
    return [config_of(zoo, draft) for draft in drafts]


# ---- running -----------------------------------------------------------------------------------


def test_every_method_runs_beside_plain_decoding(zoo, tmp_path):
    said = []
    found = confirm.confirm(
        configs_of(zoo), folder=tmp_path, progress=lambda *told: said.append(told), **LENGTHS
    )
    assert set(found["method"]) == {"ar", "eagle2", "static", "chain", "hierspec"}
    assert (found["n_prompts"] == 3).all() and (found["n_runs"] == 6).all()
    assert (found["same_text"] == 1).all() and (found["origin"] == "measured").all()
    plain = found[found["method"] == "ar"].iloc[0]
    assert plain["ar_steps"] == plain["speedup"] == plain["mean_emitted"] == 1
    drafted = found[found["method"] != "ar"]
    assert (drafted["mean_emitted"] > 1).any() and (drafted["us_per_token"] > 0).all()
    assert drafted["ar_steps"].to_numpy() == pytest.approx(1 / drafted["speedup"].to_numpy())
    assert said[-1][:2] == (30, 30)
    rows = read_rows(tmp_path)
    assert len(rows) == 30 and (rows["n_emitted"] == 11).all()
    assert rows.groupby(["prompt", "turn"])["unit_us"].nunique().eq(1).all()


def test_configs_of_several_targets_have_one_unit_and_their_own_plain_step(zoo):
    other = replace(config_of(zoo, TREE), target=str(zoo / "target") + "@w8a16")
    rows = confirm._measured([config_of(zoo, TREE), other], 1, None, None)
    same = rows.pivot(index="prompt", columns="config_id", values=["plain_us", "unit_us"])
    assert (same["unit_us"].nunique(axis=1) == 1).all()
    assert (same["plain_us"].nunique(axis=1) == 2).all()


def test_a_stopped_sweep_goes_on_where_it_was(zoo, tmp_path, monkeypatch):
    sweep = [config_of(zoo, replace(TREE, tree_size=n)) for n in range(2, 8)]
    monkeypatch.setattr(confirm, "_PLAIN_EVERY", 4)

    def stop(done, total, text):
        if done == 8:  # within the second prompt
            raise KeyboardInterrupt

    settings = {"max_new_tokens": 6}
    with pytest.raises(KeyboardInterrupt):
        confirm.exhaustive(sweep, tmp_path, progress=stop, **settings)
    first = read_rows(tmp_path)
    assert len(first) == 6 and set(first["prompt"]) == {0}
    said = []
    found = confirm.exhaustive(sweep, tmp_path, progress=lambda *t: said.append(t[0]), **settings)
    assert len(found) == 6 and said[0] == 7 and said[-1] == 18
    rows = read_rows(tmp_path)
    pd.testing.assert_frame_equal(rows.iloc[:6], first)
    assert (rows.groupby("config_id").size() == 3).all()

    def nothing(*_):
        raise AssertionError("all is measured")

    monkeypatch.setattr(confirm, "Session", nothing)
    again = confirm.exhaustive(sweep[:3], tmp_path, **settings)
    assert set(again["config_id"]) < set(found["config_id"])


def test_a_folder_of_other_conditions_plan_or_weights_is_refused(zoo, tmp_path, monkeypatch):
    sweep = [config_of(zoo, TREE)]
    confirm.exhaustive(sweep, tmp_path, max_new_tokens=4)
    with pytest.raises(ValueError, match="measured with max_new_tokens 4, now it is 5"):
        confirm.exhaustive(sweep, tmp_path, max_new_tokens=5)
    with pytest.raises(ValueError, match="measured with repeats 1, now it is 2"):
        confirm.exhaustive(sweep, tmp_path, max_new_tokens=4, repeats=2)
    with monkeypatch.context() as patch:
        patch.setattr(confirm, "fingerprint", lambda config: "another")
        with pytest.raises(ValueError, match="weights of .* now it is 'another'"):
            confirm.exhaustive(sweep, tmp_path, max_new_tokens=4)
    facts = experiment.conditions("cpu", 1) | {"cpu": "another"}
    monkeypatch.setattr(confirm, "conditions", lambda *_: facts)
    with pytest.raises(ValueError, match="measured with cpu .* now it is 'another'"):
        confirm.exhaustive(sweep, tmp_path, max_new_tokens=4)


def test_a_damaged_folder_is_refused(zoo, tmp_path):
    (tmp_path / "confirm.json").write_text("{")
    with pytest.raises(ValueError, match="confirm.json"):
        confirm.exhaustive([config_of(zoo)], tmp_path)
    (tmp_path / "confirm.parquet").write_text("no table")
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_rows(tmp_path)


def test_configs_that_do_not_compare_are_refused(zoo):
    with pytest.raises(ValueError, match="at most 10 configurations, got 11"):
        confirm.confirm([config_of(zoo, replace(TREE, tree_size=n)) for n in range(1, 12)])
    with pytest.raises(ValueError, match="at least one"):
        confirm.confirm([])
    with pytest.raises(ValueError, match="alone, got seed 0 and 1"):
        confirm.confirm([config_of(zoo), config_of(zoo, TREE, seed=1)])
    with pytest.raises(ValueError, match="repeats must be a whole number >= 1, got 0"):
        confirm.confirm([config_of(zoo)], repeats=0)


def test_a_text_that_ends_with_its_prefill_has_no_time(zoo):
    with pytest.raises(ValueError, match="give longer outputs"):
        confirm.confirm([config_of(zoo, TREE)], max_new_tokens=1)


def test_the_regret_of_a_pick_is_measured_beside_the_others(zoo, tmp_path):
    pick, *top = configs_of(zoo)[1:4]
    found, table = confirm.regret(pick, [pick, *top], folder=tmp_path, **LENGTHS)
    ids = {
        config_id(replace(c, n_prompts=16, max_new_tokens=LENGTHS["max_new_tokens"]))
        for c in (pick, *top)
    }
    assert set(table["config_id"]) == ids == {found["pick"], found["fastest"]} | ids
    assert found["regret"] >= 0 and found["low"] <= found["high"]
    assert found["fastest"] == table["config_id"].iloc[0]


# ---- what rows say -----------------------------------------------------------------------------


def invented(times, unit=100.0, plain=100.0):
    """Rows of configurations of these us per token, [turns, prompts] each."""
    rows = []
    for number, us in enumerate(times):
        config = Config(draft=Eagle2(tree_size=number + 2))
        for turn, prompts in enumerate(us):
            for prompt, one in enumerate(prompts):
                facts = (config_id(config), json.dumps(as_dict(config)), config.method)
                counts = (prompt, turn, 5, 20)
                rows.append((*facts, *counts, one, plain, unit, True))
    return pd.DataFrame(rows, columns=list(ROWS)).astype(ROWS)


def names_of(n):
    return [config_id(Config(draft=Eagle2(tree_size=size + 2))) for size in range(n)]


def test_ratios_are_medians_over_turns_and_means_over_prompts():
    # a hiccup in one turn of the first prompt does not count
    found = speeds(invented([[[40, 60], [40, 60], [900, 60]]], unit=100, plain=200)).iloc[0]
    assert found["ar_steps"] == pytest.approx(0.5)
    assert found["speedup"] == pytest.approx(4)
    assert (found["ar_steps_low"], found["ar_steps_high"]) == pytest.approx((0.4, 0.6))
    assert (found["speedup_low"], found["speedup_high"]) == pytest.approx((200 / 60, 200 / 40))
    assert found["mean_emitted"] == 4 and found["draft"] == Eagle2(tree_size=2)


def test_a_slow_machine_cancels():
    rows = invented([[[40, 60]], [[50, 70]]])
    slow = rows.assign(**{name: rows[name] * 3 for name in ("us_per_token", "plain_us", "unit_us")})
    one, other = speeds(rows), speeds(slow)
    assert one["ar_steps"].to_numpy() == pytest.approx(other["ar_steps"].to_numpy())
    assert list(one["config_id"]) == names_of(2)


def test_intervals_hold_the_true_mean_nineteen_times_out_of_twenty():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        found = speeds(invented([rng.normal(50, 5, size=(1, 25))])).iloc[0]
        held += found["ar_steps_low"] <= 0.5 <= found["ar_steps_high"]
    assert 180 <= held <= 199


def test_regret_is_the_time_lost_to_the_fastest():
    rows = invented([[[50, 50, 50]], [[52, 52, 52]], [[60, 61, 62]]])
    first, second, third = names_of(3)
    assert regret_of(rows, first)["regret"] == 0
    found = regret_of(rows, second)
    assert (found["regret"], found["low"], found["high"]) == pytest.approx((0.04, 0.04, 0.04))
    assert found["fastest"] == first
    found = regret_of(rows, third)
    assert found["low"] < found["regret"] < found["high"]
    assert found["regret"] == pytest.approx(0.22)


def test_regret_is_paired_by_prompt():
    # prompts differ much, the two configurations by 1 % on each
    us = np.array([[20, 80, 50, 140, 33]])
    found = regret_of(invented([us, 1.01 * us]), names_of(2)[1])
    assert (found["low"], found["high"]) == pytest.approx((0.01, 0.01))


def test_a_single_prompt_has_no_interval():
    rows = invented([[[40], [41]], [[50], [51]]])
    assert speeds(rows)["ar_steps_low"].isna().all()
    found = regret_of(rows, names_of(2)[1])
    assert np.isnan(found["low"]) and found["regret"] > 0


def test_rows_that_do_not_answer_are_refused(tmp_path):
    rows = invented([[[40, 50]], [[50, 60]]])
    with pytest.raises(ValueError, match="another was not measured"):
        regret_of(rows, "another")
    with pytest.raises(ValueError, match="different prompts"):
        regret_of(rows.iloc[:-1], names_of(1)[0])
    with pytest.raises(ValueError, match="has the columns"):
        write_rows(tmp_path, rows.drop(columns="turn"))
