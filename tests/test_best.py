"""The best configuration: what is searched, what it costs, what is advised."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from prices import EAGLE, HIERARCHY, flat, rising
from traces import MIDDLE, random_trace

from hspec_lab import best
from hspec_lab.config import Chain, Config, Eagle2, Refine, Static
from hspec_lab.predict import predict
from hspec_lab.space import COARSE, Space

TREES = random_trace(2, depth=4, top_k=3, n_positions=(60, 50, 40, 55), hit=0.8)
LEVELS = random_trace(3, kind="refine", depth=3, top_k=3, at_least=6, n_positions=60, agree=0.85)
CHAINS = random_trace(4, kind="chain", at_least=7, n_positions=50, agree=0.85)
EAGLE3, HIERARCHY3 = replace(EAGLE, top_k=3), replace(HIERARCHY, top_k=3)
SMALL = Space(tree_sizes=(2, 4, 9, 64), depths=(1, 3, 8), at_least=(1, 3, 9), draft_lens=(1, 5))
PAIRS = [(TREES, EAGLE3), (LEVELS, HIERARCHY3)]


@pytest.fixture(scope="module")
def table():
    return best.search(PAIRS, SMALL)


def test_every_setting_that_was_recorded_stands_in_the_table_once(table):
    dynamic = {(4, 3), (9, 3), (22, 3), (2, 1), (4, 1), (2, 3)}
    found = table[table["method"] == "eagle2"]
    assert set(zip(found["tree_size"], found["depth"], strict=True)) == dynamic
    found = table[table["method"] == "hierspec"]
    assert len(found) == len(dynamic) * 2 * 3  # minimum lengths 1 and 3; narrow trees of 0, 8, 16
    assert set(found["at_least"]) == {1, 3} and set(found["narrow"]) == {0, 8, 16}
    assert sorted(table.loc[table["method"] == "chain", "at_least"]) == [1, 5]
    assert (table["method"] == "ar").sum() == 1 and (table["method"] == "static").sum() > 3
    assert table["us_per_token"].is_monotonic_increasing and table.attrs["beyond"] == 0


def test_each_row_says_what_predicting_it_alone_says(table):
    n_seen = 0
    for trace, costs in PAIRS:
        for row in table[table["trace"] == trace.name].itertuples():
            if row.method == "static":
                continue
            alone = predict(trace, row.draft, costs)
            assert row.us_per_token == pytest.approx(alone.us_per_token)
            assert row.mean_emitted == pytest.approx(alone.mean_emitted)
            assert row.speedup == pytest.approx(alone.speedup)
            assert row.ar_steps == pytest.approx(alone.ar_steps)
            # two draws of prompts
            width = alone.us_per_token_high - alone.us_per_token_low
            assert row.low == pytest.approx(alone.us_per_token_low, abs=0.15 * width)
            assert row.high == pytest.approx(alone.us_per_token_high, abs=0.15 * width)
            assert row.speedup_low == pytest.approx(alone.speedup_low, rel=0.1)
            assert row.speedup_high == pytest.approx(alone.speedup_high, rel=0.1)
            n_seen += 1
    assert n_seen == 6 + 36 + 2


def test_static_trees_are_priced_by_their_size_and_depth():
    flat_trees = best.search([(TREES, EAGLE3)], Space(tree_sizes=(4,), depths=(1,)))
    dynamic, static = (flat_trees[flat_trees["method"] == m].iloc[0] for m in ("eagle2", "static"))
    # one level of four nodes: the three most probable tokens either way
    assert static["draft"] == Static((-1, 0, 0, 0), (-1, 0, 1, 2))
    assert static["us_per_token"] == pytest.approx(dynamic["us_per_token"])
    assert static["low"] == pytest.approx(dynamic["low"])
    assert "priced as EAGLE-2's" in static["warnings"] and not dynamic["warnings"]


def test_fewer_prompts_and_shorter_outputs_count_where_asked():
    found = best.search(PAIRS, SMALL, n_prompts=2, max_new_tokens=20)
    drafted = found[~found["method"].isin(["ar", "static"])]
    for trace, costs in PAIRS:
        for row in drafted[drafted["trace"] == trace.name].itertuples():
            alone = predict(trace, row.draft, costs, max_new_tokens=20, prompts=[0, 1])
            assert row.us_per_token == pytest.approx(alone.us_per_token)
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"holds 4 prompts, asked for {n}"):
            best.search(PAIRS, SMALL, n_prompts=n)


def test_a_chains_trace_answers_for_chains_alone():
    table = best.search([(CHAINS, HIERARCHY3)], Space(draft_lens=(2, 7, 8)))
    assert table["method"].tolist().count("chain") == 2 and len(table) == 3
    row = table[table["method"] == "chain"].iloc[0]
    alone = predict(CHAINS, row["draft"], HIERARCHY3)
    assert row["us_per_token"] == pytest.approx(alone.us_per_token)
    assert (row["intermediate_format"], row["head"]) == ("w4a16-g128", "")


def test_a_chains_own_stages_come_before_a_hierarchys():
    own = replace(HIERARCHY3, head=None, top_k=0, draft_us=flat(np.nan, 1), commit_us=50.0)
    table = best.search([*PAIRS, (LEVELS, own)], SMALL)
    assert len(table) == len(best.search(PAIRS, SMALL))
    for row in table[table["method"] == "chain"].itertuples():
        assert row.us_per_token == pytest.approx(predict(LEVELS, row.draft, own).us_per_token)


def test_rows_name_the_models_that_would_run():
    priced = replace(HIERARCHY3, intermediate="zoo:intermediate@w8a8", head="x/head@w8a8")
    space = Space(tree_sizes=(4,), depths=(2,), at_least=(3,), draft_lens=(), narrow=())
    with pytest.raises(ValueError, match="allow"):
        best.search([(LEVELS, priced)], space)
    table = best.search([(LEVELS, priced)], space, allow=("scheme", "model"))
    row = table[table["method"] == "hierspec"].iloc[0]
    tree = Eagle2(4, 2, 3, "x/head@w8a8")
    assert row["draft"] == replace(LEVELS.draft, model=priced.intermediate, draft=tree, at_least=3)
    assert (row["intermediate_format"], row["head_format"]) == ("w8a8", "w8a8")
    assert MIDDLE in row["warnings"] and "stands for" in row["warnings"]
    config = best.configs_of(table[table["method"] == "hierspec"], threads=1)[0]
    assert config == Config(target="zoo:target@fp32", draft=row["draft"], threads=1)


def test_times_of_two_measurements_compare_in_plain_steps():
    # the machine ran at half speed while the hierarchy was measured
    names = [name for name in vars(HIERARCHY3) if name.endswith("_us")]
    slow = {n: 2 * v for n in names if (v := getattr(HIERARCHY3, n)) is not None}
    table = best.search([(TREES, EAGLE3), (LEVELS, replace(HIERARCHY3, **slow))], SMALL)
    even = best.search(PAIRS, SMALL)
    for name in ("us_per_token", "low", "high", "ar_steps", "speedup"):
        assert table[name].to_numpy() == pytest.approx(even[name].to_numpy())
    assert (table["method"] == "ar").sum() == 1


def test_settings_beyond_a_curve_are_left_out_and_counted():
    short = replace(EAGLE3, target_us=flat(100, 8))
    table = best.search([(TREES, short)], SMALL)
    assert table["tree_size"].max() <= 8 and table.attrs["beyond"] >= 2
    none = replace(EAGLE3, target_us=flat(100, 1))
    table = best.search([(TREES, none)], SMALL, fits=lambda costs, draft: True)
    assert table["method"].tolist() == ["ar"]
    assert "no drafter" in best.best(table)["advice"].iloc[0]


# ---- advice ------------------------------------------------------------------------------------


def test_do_not_speculate_where_every_drafter_is_slower():
    steep = replace(EAGLE3, target_us=rising(0, 105), draft_us=300.0 * np.arange(9))
    found = best.best(best.search([(TREES, steep)], SMALL)).iloc[0]
    assert found["method"] == "ar" and found["us_per_token"] == 110 and found["gain"] < 1
    assert found["advice"].startswith("do not speculate: the best drafter is ")
    assert f"at {found['gain']:.2f}x" in found["advice"]


def test_a_gain_within_its_interval_is_called_uncertain():
    # priced so that the best drafter gains 2 %, with intervals of more
    table = best.search([(TREES, EAGLE3)], SMALL)
    fastest = table[table["method"] != "ar"].iloc[0]["us_per_token"]
    unsure = replace(EAGLE3, plain_us=1.02 * fastest)
    found = best.best(best.search([(TREES, unsure)], SMALL)).iloc[0]
    assert found["method"] != "ar" and found["gain"] == pytest.approx(1.02)
    assert found["gain_low"] < 1 < found["gain_high"]
    assert found["advice"].startswith("speculate, but plain decoding may be as fast: ")


def test_speculate_where_the_gain_is_sure():
    found = best.best(best.search([(TREES, EAGLE3)], SMALL)).iloc[0]
    assert found["gain_low"] > 1 and found["advice"].startswith("speculate: ")
    assert repr(found["draft"]) in found["advice"]


def test_all_devices_at_once_get_a_row_each():
    cheap = replace(EAGLE3, device="steep", target_us=rising(0, 105))
    found = best.best(best.search([*PAIRS, (TREES, cheap)], SMALL))
    assert found["device"].tolist() == ["invented", "steep"]
    assert found["tree_size"].iloc[1] <= found["tree_size"].iloc[0]


def test_the_best_scheme_of_the_target_is_found():
    fast = replace(EAGLE3, target="zoo:target@w8a8", target_us=flat(50), plain_us=60.0)
    table = best.search([(TREES, EAGLE3), (TREES, fast)], SMALL, allow="scheme")
    found = best.best(table).iloc[0]
    assert (found["target_format"], (table["method"] == "ar").sum()) == ("w8a8", 2)
    # against the faster of the two plain ones
    assert found["gain"] == pytest.approx(60 / found["us_per_token"])


def test_what_does_not_fit_is_marked_and_never_chosen():
    chosen = best.best(best.search(PAIRS, SMALL)).iloc[0]
    table = best.search(PAIRS, SMALL, fits=lambda costs, draft: draft != chosen["draft"])
    assert (~table["fits"]).sum() == 1
    assert best.best(table).iloc[0]["draft"] != chosen["draft"]
    assert chosen["draft"] not in list(best.shortlist(table, 8)["draft"])
    with pytest.raises(ValueError, match="no model fits invented"):
        best.best(best.search(PAIRS, SMALL, fits=lambda costs, draft: False))


def test_a_single_prompt_has_no_interval_and_says_so():
    alone = random_trace(2, depth=4, top_k=3, n_prompts=1)
    found = best.best(best.search([(alone, EAGLE3)], SMALL)).iloc[0]
    assert np.isnan(found["low"]) and "no interval" in found["advice"]


def test_the_text_says_advice_origin_and_every_row_of_the_shortlist():
    short = replace(EAGLE3, target_us=flat(100, 8), device="another")
    table = best.search([*PAIRS, (TREES, short)], SMALL)
    text = best.as_text(table, 5)
    for row in best.best(table).itertuples():
        assert f"{row.device}: {row.advice}" in text
    assert "stages measured" in text and f"{table.attrs['beyond']} settings lie beyond" in text
    here = best.shortlist(table[table["device"] == "invented"], 5)
    for row in here.itertuples():
        assert f"{row.method:9} {row.us_per_token:8.0f}  {row.speedup:.2f}x" in text
    assert "but: static trees are priced as EAGLE-2's" in text


# ---- the shortlist -----------------------------------------------------------------------------


def test_the_shortlist_has_ar_then_each_methods_best(table):
    found = best.shortlist(table, 5)
    assert found["method"].iloc[0] == "ar" and set(found["method"]) == set(table["method"])
    for method, rows in found.groupby("method"):
        assert rows.index[0] == table.index[table["method"] == method][0]
    drafted = found["us_per_token"].iloc[1:]
    assert drafted.is_monotonic_increasing


def test_the_shortlist_avoids_neighbours_while_there_are_others():
    table = best.search(PAIRS)
    found = best.shortlist(table, 10)
    assert len(found) == 10 == len(set(found["draft"]))
    drafted = [row for _, row in found.iloc[1:].iterrows()]
    for i, one in enumerate(drafted):
        for other in drafted[:i]:
            near = abs(one["depth"] - other["depth"]) <= 1
            near &= abs(one["at_least"] - other["at_least"]) <= 1
            for name in ("top_k", "tree_size", "narrow"):
                near &= max(one[name], other[name]) <= 1.5 * min(one[name], other[name])
            assert not (near and one["method"] == other["method"])


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_the_shortlist_is_as_long_as_asked_or_as_the_table(n, table):
    found = best.shortlist(table, n)
    assert len(found) == min(n, len(table)) and found["method"].iloc[0] == "ar"
    assert not found.index.duplicated().any()


def test_the_coarse_space_has_more_than_150_configurations_on_recorded_sizes():
    deep = random_trace(
        5, kind="refine", depth=6, top_k=4, at_least=12, n_positions=10, n_prompts=2
    )
    trees = random_trace(6, depth=6, top_k=4, n_positions=10, n_prompts=2)
    priced = [replace(costs, top_k=4, target_us=rising(1, 1, 99)) for costs in (EAGLE, HIERARCHY)]
    priced = [replace(costs, tree_us=None, accept_us=None) for costs in priced]
    table = best.search(zip((trees, deep), priced, strict=True), COARSE)
    assert 150 <= len(table) <= 250 and len(set(table["draft"])) == len(table)


# ---- bad input ---------------------------------------------------------------------------------


def test_nothing_to_search_is_refused():
    with pytest.raises(ValueError, match="no candidates"):
        best.search([])
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        best.shortlist(best.search(PAIRS, SMALL), 0)
    with pytest.raises(ValueError, match="record longer texts"):
        best.search([(random_trace(1, top_k=3, n_positions=1), EAGLE3)], SMALL)


def test_stages_without_the_intermediate_model_are_refused():
    with pytest.raises(ValueError, match="needs the intermediate model's times"):
        best.search([(LEVELS, EAGLE3)], SMALL)


def test_tables_survive_being_written(table, tmp_path):
    kept = table.assign(draft=table["draft"].map(repr), fits=table["fits"].astype(object))
    kept.to_parquet(tmp_path / "table.parquet")
    back = pd.read_parquet(tmp_path / "table.parquet")
    names = {"Chain": Chain, "Eagle2": Eagle2, "Refine": Refine, "Static": Static, "None": None}
    assert [eval(text, names) for text in back["draft"]] == list(table["draft"])
