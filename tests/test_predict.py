"""Prediction: stages that are multiplied by hand, sums that agree, what is refused, intervals."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from prices import EAGLE, HIERARCHY, flat
from traces import MIDDLE, random_trace

from hspec_lab.acceptance import Totals, replay
from hspec_lab.acceptance_grid import chain_grid, grid, point
from hspec_lab.config import Chain, Eagle2, Refine
from hspec_lab.predict import join_grids, predict, predict_grid
from hspec_lab.stages import StageCosts

# as many tokens behind the prefill's as whole rounds emit, so that none is cut
PERFECT = random_trace(0, n_positions=21, depth=4, top_k=1, hit=1.0)
HOPELESS = random_trace(0, n_positions=21, depth=4, top_k=1, hit=1e-9)
PATH = Eagle2(tree_size=5, depth=4, top_k=1)


def test_perfect_acceptance_costs_what_one_round_costs_over_depth_plus_one():
    found = predict(PERFECT, PATH, EAGLE)
    # draft 40 + 5 / 5, pass 100, accept 5, commit 3, gap 2
    assert found.mean_emitted == 5
    assert found.us_per_token == pytest.approx(151 / 5)
    assert found.speedup == pytest.approx(110 * 5 / 151)
    assert found.ar_steps == pytest.approx(151 / 550)
    assert found.tokens_per_s == pytest.approx(5e6 / 151)
    table = found.phases.set_index("phase")
    rounds = {"draft": 41, "verify_target": 100, "accept": 5, "kv_commit": 3, "gap": 2}
    assert table["us_per_round"].to_dict() == pytest.approx(rounds)
    assert table["us_per_emitted"].sum() == pytest.approx(found.us_per_token)
    assert table["share"].sum() == pytest.approx(1)


def test_drafts_that_are_never_right_make_decoding_slower_than_plain():
    found = predict(HOPELESS, PATH, EAGLE)
    assert found.mean_emitted == 1
    assert found.us_per_token == pytest.approx(151)
    assert found.speedup == pytest.approx(110 / 151)


def test_plain_decoding_is_its_own_unit():
    found = predict(PERFECT, None, EAGLE)
    assert (found.us_per_token, found.speedup, found.mean_emitted) == (110, 1, 1)
    assert list(found.phases["phase"]) == ["verify_target", "accept", "kv_commit", "gap"]
    # measured whole, whatever its stages add up to
    found = predict(PERFECT, None, replace(EAGLE, plain_us=220.0))
    assert (found.us_per_token, found.speedup) == (pytest.approx(220), pytest.approx(1))
    assert found.phases["us_per_round"].tolist() == pytest.approx([200, 10, 6, 4])
    assert found.us_per_token_high == pytest.approx(220 * np.exp(0.0196))
    assert found.speedup_low == found.speedup_high == found.speedup


def test_a_hierarchys_inner_rounds_add_up_stage_by_stage():
    trace = random_trace(
        0, kind="refine", n_positions=11, depth=2, top_k=1, at_least=3, agree=1.0, hit=1.0
    )
    draft = replace(trace.draft, draft=Eagle2(tree_size=3, depth=2, top_k=1))
    found = predict(trace, draft, HIERARCHY)
    # two rounds a prompt of four tokens each: one is there, a tree of three rows gives three more;
    # the second round begins with a catch-up over two rows
    rounds = {
        "draft": 2 * (20 + 3 / 5),
        "verify_intermediate": 2 * 23 + 22,
        "verify_target": 2 * 105,
        "accept": 2 * 9 + 2 * 5 + 3,
        "kv_commit": 2 * 3 + 3 * 0.5,
        "gap": 2 * 2 + 3 * 0.25,
    }
    table = found.phases.set_index("phase")["us_per_emitted"]
    assert (10 * table).to_dict() == pytest.approx(rounds)
    assert found.mean_emitted == 5


def test_the_passes_of_a_chain_count_as_drafting():
    trace = random_trace(0, kind="chain", n_positions=9, at_least=3, agree=1.0)
    found = predict(trace, trace.draft, HIERARCHY)
    table = found.phases.set_index("phase")["us_per_emitted"]
    # two rounds a prompt of four tokens: two steps each, then a catch-up in the second
    assert 8 * table["draft"] == pytest.approx(4 * 21 + 22)
    assert "verify_intermediate" not in table.index
    assert 8 * table["accept"] == pytest.approx(2 * 8 + 5 * 3)


@pytest.mark.parametrize("seed", range(3))
def test_one_setting_and_a_grid_say_the_same(seed):
    eagle = random_trace(seed, top_k=3)
    costs = replace(EAGLE, top_k=3, target_us=HIERARCHY.target_us)
    axes = {"tree_size": [2, 5, 9], "depth": [1, 3]}
    table = predict_grid(eagle, costs, grid(eagle, tree_sizes=[2, 5, 9], depths=[1, 3]), axes=axes)
    assert len(table) == 6
    for row in table.itertuples():
        one = predict(eagle, Eagle2(row.tree_size, row.depth, 3), costs)
        assert row.us_per_token == pytest.approx(one.us_per_token)
        assert (row.speedup, row.mean_emitted) == pytest.approx((one.speedup, one.mean_emitted))
        for phase in one.phases.itertuples():
            assert getattr(row, f"{phase.phase}_us") == pytest.approx(phase.us_per_emitted)


def test_a_hierarchys_grid_says_what_each_setting_says():
    trace, costs = random_trace(1, kind="refine", at_least=5), replace(HIERARCHY, top_k=3)
    axes = {"tree_size": [4, 9], "depth": [2, 3], "at_least": [1, 4]}
    totals = grid(trace, tree_sizes=[4, 9], depths=[2, 3], at_least=[1, 4])
    for row in predict_grid(trace, costs, totals, axes=axes).itertuples():
        head = Eagle2(row.tree_size, row.depth, 3)
        draft = replace(trace.draft, draft=head, at_least=row.at_least)
        assert row.us_per_token == pytest.approx(predict(trace, draft, costs).us_per_token)
    lens = chain_grid(trace, draft_lens=[1, 5])
    # a chain asks for no head, whatever the trace has
    costs = replace(costs, head="zoo:other-eagle2@fp32", top_k=8)
    chains = predict_grid(trace, costs, lens, axes={"draft_len": [1, 5]})
    for row in chains.itertuples():
        one = predict(trace, Chain(MIDDLE, row.draft_len), costs)
        assert row.us_per_token == pytest.approx(one.us_per_token)


def test_totals_without_axes_are_predicted_in_their_own_shape():
    totals = point(PERFECT, PATH)
    table = predict_grid(PERFECT, EAGLE, totals)
    assert (len(table), table["us_per_token"][0]) == (1, pytest.approx(151 / 5))
    assert (table["tree_size"][0], table["depth"][0]) == (5, 4)
    with pytest.raises(ValueError, match="do not have the totals' shape"):
        predict_grid(PERFECT, EAGLE, totals, axes={"tree_size": [5]})


def test_settings_beyond_the_curves_are_nan_and_counted():
    trace, costs = random_trace(0, top_k=3), replace(EAGLE, top_k=3, target_us=flat(100, 6))
    totals = grid(trace, tree_sizes=[4, 6, 7, 9], depths=[1, 3])
    table = predict_grid(trace, costs, totals)
    # a draft of depth 1 has four nodes at most, of depth 3 as many as were asked for
    assert list(table["us_per_token"].isna()) == [False] * 5 + [True, False, True]
    assert "2 of 8 settings lie beyond the measured curves" in table.attrs["note"]
    assert set(table["origin"]) == {"acceptance replayed, stages measured"}


def test_grids_of_several_schemes_join_with_all_that_was_said_of_them():
    trace, totals = (
        random_trace(0, top_k=1),
        grid(random_trace(0, top_k=1), tree_sizes=[2], depths=[1]),
    )
    other = replace(EAGLE, target="zoo:target@w8a8", origin="roofline", note="peaks of a datasheet")
    tables = {
        "fp32": predict_grid(trace, EAGLE, totals),
        "w8a8": predict_grid(trace, other, totals, allow=["scheme"]),
    }
    table = join_grids(tables)
    assert list(table["format"]) == ["fp32", "w8a8"]
    for words in ("stages measured", "stages roofline"):
        assert words in table.attrs["origin"]
    for words in ("acceptance of zoo:target@fp32 stands for zoo:target@w8a8", "datasheet"):
        assert table.attrs["note"].count(words) == 1


def test_intervals_of_a_constant_trace_are_those_of_the_stages_alone():
    found = predict(PERFECT, PATH, EAGLE)
    error = np.hypot(100 * 0.02, 40 * 0.1) / 151
    assert found.us_per_token_high == pytest.approx(151 / 5 * np.exp(1.96 * error))
    assert found.us_per_token_low == pytest.approx(151 / 5 * np.exp(-1.96 * error))
    assert found.mean_emitted_low == found.mean_emitted_high == 5
    slow = np.exp(1.96 * np.hypot(error, 0.01))
    assert found.speedup_low == pytest.approx(found.speedup / slow)
    assert found.ar_steps_high == pytest.approx(found.ar_steps * slow)
    assert found.speedup_low < found.speedup < found.speedup_high


def test_intervals_hold_the_long_run_mean_about_as_often_as_they_say():
    head, exact = Eagle2(9, 3, 3), replace(EAGLE, top_k=3, spread={"target_us": 0.0})
    rounds = replay(random_trace(1, n_prompts=600, top_k=3, depth=3, hit=0.6), head)
    truth = rounds["n_emitted"].sum() / len(rounds)
    hits = []
    for seed in range(100, 160):
        trace = random_trace(seed, n_prompts=16, top_k=3, depth=3, hit=0.6)
        found = predict(trace, head, exact)
        us = found.us_per_token * found.mean_emitted / truth
        assert found.us_per_token_low < found.us_per_token < found.us_per_token_high
        hits.append(
            (
                found.mean_emitted_low <= truth <= found.mean_emitted_high,
                found.us_per_token_low <= us <= found.us_per_token_high,
            )
        )
    shares = np.mean(hits, axis=0)
    assert (shares >= 0.85).all() and (shares < 1).any()


def test_a_single_prompt_has_no_interval_and_says_so():
    found = predict(PERFECT, PATH, EAGLE, prompts=[1])
    assert np.isnan([found.us_per_token_low, found.speedup_high]).all()
    assert found.us_per_token == pytest.approx(151 / 5)
    assert "a single prompt" in found.caption()["note"]


def test_outputs_can_be_cut_short():
    # 3 tokens behind the prefill's: one round a prompt, cut
    assert predict(PERFECT, PATH, EAGLE, max_new_tokens=4).mean_emitted == 3


REFUSED = {
    "another scheme": ({"target": "zoo:target@w8a8"}, "scheme", "acceptance of zoo:target@fp32"),
    "another model": (
        {"target": "shape:llama-3-8b@fp32", "head": "shape:llama-3-8b-eagle2@fp32"},
        "model",
        "stands for shape:llama-3-8b@fp32",
    ),
    "a head in another scheme": (
        {"head": "zoo:target-eagle2@w8a8"},
        "scheme",
        "stands for zoo:target-eagle2@w8a8",
    ),
    "another top_k": ({"top_k": 4}, "top_k", "acceptance of top_k 1 stands for top_k 4"),
}


@pytest.mark.parametrize("changes,name,words", REFUSED.values(), ids=REFUSED)
def test_what_does_not_belong_together_is_refused_or_allowed_by_name(changes, name, words):
    costs = replace(EAGLE, **changes)
    with pytest.raises(ValueError, match=rf"allow=\('{name}',\)"):
        predict(PERFECT, PATH, costs)
    with pytest.raises(ValueError, match=rf"allow=\('{name}',\)"):
        predict_grid(PERFECT, costs, point(PERFECT, PATH))
    found = predict(PERFECT, PATH, costs, allow=[name])
    assert found.us_per_token == pytest.approx(151 / 5)
    assert words in found.caption()["note"]


@dataclass(frozen=True, eq=False)
class WithTokenizer(StageCosts):
    tokenizer: str = ""


def test_another_tokenizer_is_refused_where_both_are_known():
    fields = {name: getattr(EAGLE, name) for name in EAGLE.__dataclass_fields__}
    predict(PERFECT, PATH, WithTokenizer(**(fields | {"tokenizer": "0" * 12})))
    other = WithTokenizer(**(fields | {"tokenizer": "1" * 12}))
    with pytest.raises(ValueError, match="tokenizer"):
        predict(PERFECT, PATH, other)
    assert predict(PERFECT, PATH, other, allow="tokenizer").warnings


WRONG = {
    "a name that allow does not know": (PATH, EAGLE, {"allow": ["device"]}, "allow knows scheme"),
    "a depth that was not recorded": (
        replace(PATH, depth=5),
        EAGLE,
        {},
        "depths beyond 4 were not recorded",
    ),
    "passes longer than the curve": (
        PATH,
        replace(EAGLE, target_us=flat(100, 4)),
        {},
        "passes of up to 5 rows, but target_us is known for 1 to 4",
    ),
    "a draft deeper than was measured": (
        PATH,
        replace(EAGLE, draft_us=EAGLE.draft_us[:4]),
        {},
        "a draft of depth 4, but draft_us is known for 0 to 3",
    ),
    "stages without a draft": (
        PATH,
        replace(EAGLE, draft_us=np.full(1, np.nan), head=None, top_k=0),
        {},
        "draft_us is known for nothing",
    ),
    "stages of a hierarchy": (PATH, HIERARCHY, {}, "drafts for the target"),
    "stages without the model between": (
        Refine(MIDDLE, PATH),
        EAGLE,
        {},
        "needs the intermediate model's times",
    ),
    "no such prompt": (PATH, EAGLE, {"prompts": [7]}, "no round to replay"),
}


@pytest.mark.parametrize("draft,costs,options,words", WRONG.values(), ids=WRONG)
def test_what_cannot_be_predicted_is_one_clear_line(draft, costs, options, words):
    with pytest.raises(ValueError, match=words) as error:
        predict(PERFECT, draft, costs, **options)
    assert "\n" not in str(error.value)


def test_an_empty_trace_and_texts_of_one_token_are_refused():
    for counts in ([0, 0], [1, 1]):
        trace = random_trace(0, n_prompts=2, n_positions=4, top_k=1)
        trace.head["n_positions"] = counts
        with pytest.raises(ValueError, match="holds no positions|no round to replay"):
            predict(trace, PATH, EAGLE)


def test_models_may_be_named_as_recorded_or_as_priced_but_not_otherwise():
    trace = random_trace(0, kind="refine", top_k=1)
    other = MIDDLE.replace("w4a16-g128", "w8a8")
    costs = replace(HIERARCHY, intermediate=other)
    draft = replace(trace.draft, draft=replace(trace.eagle, tree_size=4))
    ours = predict(trace, draft, costs, allow=["scheme"])
    theirs = predict(trace, replace(draft, model=other), costs, allow=["scheme"])
    assert ours.us_per_token == theirs.us_per_token
    with pytest.raises(ValueError, match="asked for zoo:intermediate@fp32"):
        predict(trace, replace(draft, model="zoo:intermediate@fp32"), costs, allow=["scheme"])


def test_a_context_that_the_text_never_has_is_said():
    # prompts of 7 to 9 tokens and 21 behind them
    assert not predict(PERFECT, PATH, EAGLE).warnings
    for context in (6, 31):
        found = predict(PERFECT, PATH, replace(EAGLE, context=context))
        assert f"stages at {context} tokens" in found.caption()["note"]


@pytest.mark.parametrize("origin", ["measured", "calibrated", "roofline"])
def test_a_prediction_says_where_each_half_comes_from(origin):
    costs = replace(EAGLE, origin=origin, note="by hand", warnings=("extrapolated",), spread={})
    found = predict(PERFECT, PATH, costs)
    caption = found.caption()
    assert caption["origin"] == f"acceptance replayed, stages {origin}"
    for words in ("random 0", f"stages {origin} on invented", "by hand", "extrapolated"):
        assert words in caption["note"]
    assert "intervals are of acceptance alone" in caption["note"]
    assert set(found.phases["origin"]) == {caption["origin"]}


def test_passes_of_several_widths_are_priced_each_by_its_own():
    none = np.asarray(0)
    totals = Totals(
        n_rounds=np.asarray(3),
        n_emitted=np.asarray(6),
        target_rows=np.array([0, 0, 1, 0, 2]),
        intermediate_rows=none,
        intermediate_trees=none,
        intermediate_steps=none,
        intermediate_catch_ups=none,
        drafts=none,
        depth=none,
        tree_size=none,
    )
    table = predict_grid(PERFECT, HIERARCHY, totals)
    assert table["verify_target_us"][0] == pytest.approx((102 + 2 * 104) / 6)
    assert isinstance(table, pd.DataFrame) and table["mean_emitted"][0] == 2
