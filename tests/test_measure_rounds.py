"""Stages measured in real rounds of tiny models: what rows say, going on, refusing."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from test_decode import spell
from tiny import make_head, make_model

from hspec_lab.config import Chain, Config, Eagle2, Refine, Static
from hspec_lab.cost import stage_costs
from hspec_lab.experiment import Session
from hspec_lab.measure_rounds import DRAFTED_A_TURN, PLAIN_A_TURN, RoundsPlan, measure_rounds
from hspec_lab.stages_folder import STAGES, draft_of, read_stages

SIZES = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 32}
TREE = Eagle2(tree_size=6, depth=3, top_k=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rounds")
    for seed, name in enumerate(("target", "small")):
        model = spell(make_model(root / name, seed=seed, scale=0.1, **SIZES))
        make_head(root / f"{name}-eagle2", model, scale=0.1)
    return root


@pytest.fixture(scope="module", autouse=True)
def seconds_are_turns():
    """A clock that ticks once a turn, so that as many are measured on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        ticks = itertools.count()
        patch.setattr("hspec_lab.measure_rounds.monotonic", lambda: next(ticks))
        yield


def plan(root, *drafts, **changes):
    some = {"prompts": ("0123", "LL", "A"), "max_new_tokens": 9, "threads": 1, "seconds": 2}
    return RoundsPlan(targets=(str(root / "target"),), drafts=drafts, **some | changes)


def kinds(root):
    small = str(root / "small")
    return TREE, Refine(small, TREE, at_least=4), Chain(small, draft_len=5)


@pytest.fixture(scope="module")
def table(root, tmp_path_factory):
    return measure_rounds(
        plan(root, *kinds(root), seconds=12), tmp_path_factory.mktemp("out") / "all"
    )


def whole(table):
    return table[table["phase"] == "round"]


def test_plain_and_drafted_rounds_take_turns(table):
    assert list(table.columns) == list(STAGES)
    for _, group in whole(table).groupby("draft"):
        counts = group.groupby(["turn", group["method"] == "ar"]).size().unstack()
        assert (counts[False].dropna() == DRAFTED_A_TURN).all()
        assert (counts[True] == PLAIN_A_TURN).all() and len(counts) >= 3
        # a last burst of plain rounds stands behind the last drafted ones
        assert counts[False].isna().tolist() == [False] * (len(counts) - 1) + [True]


def test_every_round_is_there_with_its_spans_which_fit_into_it(table):
    spans = table[~table["phase"].isin(["round", "prefill"])]
    key = ["draft", "method", "round"]
    rounds = whole(table).set_index(key)["us"]
    assert rounds.index.is_unique
    covered = spans.groupby(key)["us"].sum()
    assert set(covered.index) == set(rounds.index)
    assert (covered <= rounds[covered.index]).all()
    for _, group in whole(table).groupby(["draft", "method"]):
        assert sorted(group["round"]) == list(range(len(group)))


def test_prefills_are_kept_beside_the_rounds_of_every_level(table):
    read = table[table["phase"] == "prefill"]
    assert (read["round"] == -1).all() and (read["us"] > 0).all() and (read["n_emitted"] == 0).all()
    levels = read.groupby("method")["level"].agg(set)
    assert levels["ar"] == {"target"} and levels["eagle2"] == {"target", "head"}
    assert levels["hierspec"] == {"target", "intermediate", "head"}


def test_sizes_are_drawn_from_all_there_are_and_told_as_they_were(table):
    for text, group in whole(table[table["method"] != "ar"]).groupby("draft"):
        draft = draft_of(text)
        head = draft.draft if isinstance(draft, Refine) else draft
        if isinstance(head, Eagle2):
            assert set(group["depth"]) == {1, 2, 3} and set(group["top_k"]) == {2}
            # two children below the root at depth 1, so no more than three nodes
            assert set(group.loc[group["depth"] == 1, "tree_size"]) == {2, 3}
            assert set(group.loc[group["depth"] == 3, "tree_size"]) == {2, 3, 4, 5, 6}
        if isinstance(draft, Eagle2):
            assert (group["n_tokens"] == group["tree_size"]).all()
        else:
            most = {Refine: 4, Chain: 5}[type(draft)]
            assert set(group["at_least"]) == set(range(1, most + 1))
            assert (group["n_tokens"] > group["at_least"]).all()
    plain = table[(table["method"] == "ar") & (table["phase"] != "prefill")]
    assert (plain[["tree_size", "depth", "at_least"]] == 0).all(axis=None)
    assert (plain["n_emitted"] == 1).all() and (plain["n_tokens"] == 1).all()


def test_the_unit_is_the_median_of_the_plain_rounds_around_but_for_each_first(table):
    group = table[table["draft"] == table["draft"].iloc[0]]
    plain = whole(group[group["method"] == "ar"]).sort_values("round")
    bursts = plain["us"].to_numpy().reshape(-1, PLAIN_A_TURN)[:, 1:]
    assert (group.loc[group["turn"] == 0, "plain_us"] == np.median(bursts[:2])).all()
    last = group["turn"].max()
    assert (group.loc[group["turn"] == last, "plain_us"] == np.median(bursts[-1:])).all()


def test_stages_can_be_fitted_to_what_was_measured(table, root):
    head = {"conditions": {"cpu": "c", "threads": 1, "torch": "9", "date": "2026-01-02"}}
    for draft in kinds(root):
        costs = stage_costs((head, table), str(root / "target"), draft)
        known = costs.target_us[1:]
        assert (known > 0).all() and (np.diff(known) >= 0).all() and costs.plain_us > 0
        assert costs.commit_us > 0 and costs.gap_us > 0
        assert (costs.intermediate is None) == isinstance(draft, Eagle2)
    assert len(stage_costs((head, table), str(root / "target"), TREE).target_us) == 7


def test_sizes_drawn_anew_do_not_change_the_text(root):
    """What the drawing relies on: drafters take new sizes between two rounds."""
    import random

    from hspec_lab.measure_rounds import _Rounds

    config = plan(root, TREE).config(str(root / "target"), None)
    plain = Session(config)
    for _ in plain.rounds_of(0):
        pass
    for draft in kinds(root):
        rounds = _Rounds(Session(plan(root, draft).config(str(root / "target"), draft)))
        draw = random.Random(3)
        while 0 not in rounds.session.rounds or rounds.prompt == 0:
            rounds.one(0, draw)
        assert rounds.session.output_ids(0) == plain.output_ids(0)


def test_what_is_there_is_not_measured_again(root, tmp_path):
    def stopped(done, total, text):
        if "hierspec" in text:
            raise KeyboardInterrupt

    tree, refine, _ = kinds(root)
    both = plan(root, tree, refine)
    with pytest.raises(KeyboardInterrupt):
        measure_rounds(both, tmp_path / "out", stopped)
    head, first = read_stages(tmp_path / "out")
    assert set(first["draft"].map(draft_of)) == {tree} and len(head["sessions"]) == 1
    told = []
    table = measure_rounds(both, tmp_path / "out", lambda *said: told.append(said[2]))
    assert set(table["draft"].map(draft_of)) == {tree, refine}
    assert not any("eagle2" in words for words in told)
    pd.testing.assert_frame_equal(table[: len(first)], first)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "stages.json",
        "stages.parquet",
    ]
    assert len(read_stages(tmp_path / "out")[0]["weights"]) == 2


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"threads": 2}, "measured with threads 1, now it is 2: give another folder"),
        ({"max_new_tokens": 8}, "measured with max_new_tokens 9, now it is 8: give another"),
        ({"prompts": ("0",)}, "measured with prompts"),
    ],
)
def test_rows_of_other_conditions_are_not_mixed(changes, message, root, tmp_path):
    measure_rounds(plan(root, TREE), tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        measure_rounds(plan(root, TREE, **changes), tmp_path / "out")


def test_weights_written_again_are_other_conditions(tmp_path):
    target = spell(make_model(tmp_path / "target", scale=0.1, **SIZES))
    make_head(tmp_path / "target-eagle2", target, scale=0.1)
    measure_rounds(plan(tmp_path, TREE), tmp_path / "out")
    make_head(tmp_path / "target-eagle2", target, seed=5, scale=0.1)
    with pytest.raises(ValueError, match="measured with weights of"):
        measure_rounds(plan(tmp_path, TREE), tmp_path / "out")


@pytest.mark.parametrize(
    "drafts,changes,message",
    [
        ((), {}, "name at least one target and one drafter"),
        ((TREE,), {"device": "cuda"}, r"a graph is captured for every size; take curves \(hspec"),
        ((TREE,), {"seconds": 0}, "seconds must be above 0, got 0"),
        ((TREE,), {"max_new_tokens": 1}, "max_new_tokens must be >= 2, got 1"),
        ((Eagle2(1, 1, 1),), {}, "a drafted tree has at least 2 nodes"),
        ((Static((-1, 0), (-1, 0)),), {}, "stages are measured for Eagle2, Chain and Refine"),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_line(drafts, changes, message, root):
    with pytest.raises(ValueError, match=message) as error:
        plan(root, *drafts, **changes)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_found_before_anything_is_measured(root, tmp_path):
    for drafts, changes, message in (
        ((TREE,), {"prompts": ("0" * 300,)}, "exceed the context"),
        ((Chain(str(tmp_path / "gone"), 3),), {}, "gone"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_rounds(plan(root, *drafts, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["stages.json", "stages.parquet"])
def test_a_damaged_folder_is_one_line(name, root, tmp_path):
    measure_rounds(plan(root, TREE), tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=f"{name} is damaged or cut off"):
        read_stages(tmp_path / "out")


def test_folders_of_another_schema_or_with_other_columns_are_refused(root, tmp_path):
    measure_rounds(plan(root, TREE), tmp_path / "out")
    _, table = read_stages(tmp_path / "out")
    table.assign(more=1).to_parquet(tmp_path / "out" / "stages.parquet")
    with pytest.raises(ValueError, match="stages.parquet has the columns"):
        read_stages(tmp_path / "out")
    path = tmp_path / "out" / "stages.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 9}))
    with pytest.raises(ValueError, match="schema 9, this code reads 1"):
        read_stages(tmp_path / "out")


def test_outputs_without_a_round_are_told(tmp_path):
    target = spell(make_model(tmp_path / "target", scale=0.1, **SIZES))
    make_head(tmp_path / "target-eagle2", target, scale=0.1)
    one = Session(Config(target=str(target), prompts=("0",), max_new_tokens=1, threads=1))
    ((first,),) = [item.tokens for item in one.rounds_of(0)]
    config = json.loads((target / "config.json").read_text()) | {"eos_token_id": first}
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no prompt has a round"):
        measure_rounds(plan(tmp_path, TREE, prompts=("0",)), tmp_path / "out")
