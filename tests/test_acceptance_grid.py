"""The grid and the single point against `replay`, and that random traces keep a trace's rules."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from traces import random_trace

from hspec_lab import acceptance_lanes
from hspec_lab.acceptance import Totals, replay, totals_of
from hspec_lab.acceptance_folder import read_trace, write_trace
from hspec_lab.acceptance_grid import chain_grid, grid, point
from hspec_lab.config import Chain, Eagle2, Refine, most_nodes

SIZES = [1, 2, 3, 5, 8, 13, 70]
TEXTS = {
    "mixed": {"agree": 0.7},
    "always agrees": {"agree": 1.0},
    "never agrees": {"agree": 0.0},
    "drafts hold all": {"hit": 1.0, "agree": 0.9},
    "one token": {"n_positions": 1},
    "two tokens": {"n_positions": 2, "agree": 0.5},
    "ended early": {"n_positions": [1, 30, 2, 17], "agree": 0.6},
    "wide and flat": {"depth": 1, "top_k": 6},
    "narrow and deep": {"depth": 6, "top_k": 1},
    "one draft token": {"at_least": 1, "agree": 0.6},
}


def entry(totals: Totals, place) -> Totals:
    return Totals(**{field.name: getattr(totals, field.name)[place] for field in fields(Totals)})


def check_same(found: Totals, expected: Totals) -> None:
    for field in fields(Totals):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "target_rows":
            width = max(len(ours), len(theirs))
            ours, theirs = (np.pad(rows, (0, width - len(rows))) for rows in (ours, theirs))
        assert np.array_equal(ours, theirs), field.name


def replayed(trace, draft, cut=None) -> Totals:
    return totals_of(replay(trace, draft, cut), draft)


@pytest.mark.parametrize("cut", [None, 1, 7])
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_each_point_of_an_eagle_grid_is_its_replay(text, cut):
    trace = random_trace(1, kind="eagle2", **text)
    depths = list(range(trace.depth, 0, -1))
    found = grid(trace, tree_sizes=SIZES, depths=depths, max_new_tokens=cut)
    for place in np.ndindex(len(SIZES), len(depths)):
        draft = replace(trace.draft, tree_size=SIZES[place[0]], depth=depths[place[1]])
        expected = replayed(trace, draft, cut)
        check_same(entry(found, place), expected)
        check_same(point(trace, draft, cut), expected)


@pytest.mark.parametrize("cut", [None, 7])
@pytest.mark.parametrize("narrow", [None, 1, 6, 16])
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_each_point_of_a_hierarchys_grid_is_its_replay(text, narrow, cut):
    trace = random_trace(2, kind="refine", **text)
    depths, lengths = list(range(1, trace.depth + 1)), list(range(1, trace.draft.at_least + 1))
    found = grid(
        trace,
        tree_sizes=SIZES,
        depths=depths,
        at_least=lengths,
        narrow=narrow,
        max_new_tokens=cut,
    )
    places = list(np.ndindex(len(SIZES), len(depths), len(lengths)))
    chosen = np.random.default_rng(0).permutation(len(places))[:30]
    for size, depth, length in [places[i] for i in chosen]:
        head = replace(trace.eagle, tree_size=SIZES[size], depth=depths[depth])
        draft = replace(trace.draft, draft=head, at_least=lengths[length], tree_size=narrow)
        expected = replayed(trace, draft, cut)
        check_same(entry(found, (size, depth, length)), expected)
        check_same(point(trace, draft, cut), expected)


@pytest.mark.parametrize("cut", [None, 1, 7])
@pytest.mark.parametrize("kind", ["chain", "refine"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_each_point_of_a_chain_grid_is_its_replay(text, kind, cut):
    trace = random_trace(3, kind=kind, **text)
    most = trace.draft.at_least if kind == "refine" else trace.draft.draft_len
    lens = list(range(most, 0, -1))
    found = chain_grid(trace, draft_lens=lens, max_new_tokens=cut)
    for place, length in enumerate(lens):
        draft = Chain(trace.draft.model, length)
        expected = replayed(trace, draft, cut)
        check_same(entry(found, place), expected)
        check_same(point(trace, draft, cut), expected)


@pytest.mark.parametrize("kind", ["eagle2", "refine", "chain"])
def test_plain_decoding_is_its_replay(kind):
    trace = random_trace(4, kind=kind, n_positions=[1, 30, 12])
    for cut in (None, 5):
        check_same(point(trace, None, cut), replayed(trace, None, cut))


@pytest.mark.parametrize("seed", range(8))
def test_random_settings_on_random_traces_are_their_replay(seed):
    draw = np.random.default_rng(seed)
    trace = random_trace(
        seed,
        kind="refine",
        n_prompts=int(draw.integers(1, 5)),
        n_positions=int(draw.integers(3, 90)),
        depth=int(draw.integers(2, 7)),
        top_k=int(draw.integers(1, 5)),
        at_least=int(draw.integers(1, 10)),
        agree=float(draw.choice([0.4, 0.8])),
        hit=float(draw.choice([0.3, 0.6, 0.9])),
    )
    for _ in range(20):
        head = replace(
            trace.eagle,
            tree_size=int(draw.integers(1, 40)),
            depth=int(draw.integers(1, trace.depth + 1)),
        )
        length = int(draw.integers(1, trace.draft.at_least + 1))
        narrow = draw.choice([None, 4, 12])
        draft = replace(trace.draft, draft=head, at_least=length, tree_size=narrow)
        found = grid(
            trace,
            tree_sizes=[head.tree_size, 3],
            depths=[head.depth],
            at_least=[length],
            narrow=narrow,
        )
        check_same(entry(found, (0, 0, 0)), replayed(trace, draft))


def test_a_prompt_without_a_disagreement_between_others_counts_its_own():
    for seed in range(200):
        trace = random_trace(seed, kind="refine", n_prompts=3, n_positions=6, agree=0.93)
        n_off = trace.states[trace.states["branch"] == 1].groupby("prompt").size()
        if set(n_off.index) == {0, 2}:
            break
    else:
        pytest.fail("no seed makes such a trace")
    lengths = list(range(1, 6))
    found = grid(trace, tree_sizes=[4], depths=[3], at_least=lengths)
    for place, length in enumerate(lengths):
        draft = Refine(trace.draft.model, Eagle2(4, 3, 3), length, sampling="greedy")
        check_same(entry(found, (0, 0, place)), replayed(trace, draft))


def test_a_draft_kept_whole_is_followed_by_a_pass_over_two_rows():
    # nothing is drafted by the head and both models agree: of 21 tokens the first comes with the
    # prompt, and rounds of 3 + 1 emit the other 20; only the first has a token ahead for free
    trace = random_trace(5, kind="refine", n_prompts=1, n_positions=21, agree=1.0)
    found = grid(trace, tree_sizes=[1], depths=[1], at_least=[3])
    assert found.n_rounds.item() == 5
    assert found.target_rows[0, 0, 0].tolist() == [0, 0, 0, 0, 5]
    assert found.intermediate_catch_ups.item() == 4
    assert found.intermediate_trees.item() == 5 * 2
    assert found.mean_emitted.item() == 4


def test_walking_in_small_blocks_of_prompts_changes_nothing(monkeypatch):
    trace = random_trace(6, kind="refine", n_positions=[20, 1, 33, 8])
    asked = {"tree_sizes": SIZES, "depths": [1, 4], "at_least": [1, 2, 5]}
    at_once = grid(trace, **asked)
    monkeypatch.setattr(acceptance_lanes, "_LANES", 1)
    one_by_one = grid(trace, **asked)
    for field in fields(Totals):
        assert np.array_equal(getattr(at_once, field.name), getattr(one_by_one, field.name))


def test_sizes_beyond_all_nodes_are_the_largest_tree():
    trace = random_trace(7, kind="eagle2", depth=3, top_k=2)
    found = grid(trace, tree_sizes=[1000, 11, 1000], depths=[1, 3])
    assert found.tree_size.tolist() == [[3, 11]] * 3
    assert (found.n_rounds == found.n_rounds[0]).all()


def test_grids_come_in_the_order_asked_for():
    trace = random_trace(8, kind="refine")
    found = grid(trace, tree_sizes=[8, 2], depths=[4, 1, 4], at_least=[5, 2])
    assert found.n_rounds.shape == (2, 3, 2)
    assert found.tree_size[:, :, 0].tolist() == [[8, 4, 8], [2, 2, 2]]
    assert found.depth[0, :, 0].tolist() == [4, 1, 4]
    assert np.array_equal(found.n_rounds[:, 0], found.n_rounds[:, 2])
    assert (found.intermediate_trees[..., 0] > found.intermediate_trees[..., 1]).all()


REFUSED = {
    "no tree sizes": ("eagle2", {"tree_sizes": [], "depths": [1]}, "tree_sizes must be a list"),
    "no depths": ("eagle2", {"tree_sizes": [4], "depths": []}, "depths must be a list"),
    "no lengths": ("refine", {"tree_sizes": [4], "depths": [1]}, "at_least must be a list"),
    "half a node": ("eagle2", {"tree_sizes": [2.5], "depths": [1]}, "tree_sizes must be a list"),
    "no node": ("eagle2", {"tree_sizes": [0, 4], "depths": [1]}, "tree_size must be 1"),
    "too deep": ("eagle2", {"tree_sizes": [4], "depths": [1, 5]}, "depths beyond 4"),
    "too long": (
        "refine",
        {"tree_sizes": [4], "depths": [1], "at_least": [2, 6]},
        "at least 5 tokens were recorded",
    ),
    "a length for a head on the target": (
        "eagle2",
        {"tree_sizes": [4], "depths": [1], "at_least": [2]},
        "leave out at_least",
    ),
    "no tokens": (
        "eagle2",
        {"tree_sizes": [4], "depths": [1], "max_new_tokens": 0},
        "max_new_tokens must be >= 1",
    ),
    "a chain": ("chain", {"tree_sizes": [4], "depths": [1]}, "use chain_grid"),
}


@pytest.mark.parametrize(("kind", "asked", "said"), REFUSED.values(), ids=list(REFUSED))
def test_a_grid_says_what_it_cannot_answer(kind, asked, said):
    with pytest.raises(ValueError, match=said):
        grid(random_trace(9, kind=kind), **asked)


def test_a_chain_grid_says_what_it_cannot_answer():
    with pytest.raises(ValueError, match="without a model below"):
        chain_grid(random_trace(9, kind="eagle2"), draft_lens=[2])
    with pytest.raises(ValueError, match="at least 5 tokens were recorded"):
        chain_grid(random_trace(9, kind="chain"), draft_lens=[2, 6])


@pytest.mark.parametrize("kind", ["eagle2", "refine", "chain"])
def test_a_trace_without_positions_is_refused(kind):
    trace = random_trace(10, kind=kind)
    trace.head["n_positions"] = []
    with pytest.raises(ValueError, match="holds no positions"):
        point(trace, trace.draft)


@pytest.mark.parametrize("kind", ["eagle2", "refine", "chain"])
def test_a_random_trace_is_read_as_it_was_written(kind, tmp_path):
    trace = random_trace(11, kind=kind, narrow=16 if kind == "refine" else None)
    head = {name: value for name, value in trace.head.items() if name not in ("schema", "kind")}
    write_trace(tmp_path / "trace", head, trace.text, trace.states)
    found = read_trace(tmp_path / "trace")
    assert found.config == trace.config
    pd.testing.assert_frame_equal(found.text, trace.text)
    pd.testing.assert_frame_equal(found.states, trace.states)
    check_same(point(found, trace.draft), point(trace, trace.draft))


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_random_ranks_keep_the_rules_of_trees(top_k):
    trace = random_trace(12, kind="refine", depth=5, top_k=top_k, n_positions=200, hit=0.6)
    ranks = trace.ranks.astype(int)
    for d in range(1, 6):
        rank = ranks[:, d, 1 : d + 1]
        held = rank >= 0
        assert held.any()
        assert (rank < most_nodes(replace(trace.eagle, tree_size=1024, depth=d)) - 1).all()
        # behind a missing level all are missing, and a node comes after those it stands on
        assert (held[:, 1:] <= held[:, :-1]).all()
        assert (rank[:, 1:] > rank[:, :-1])[held[:, 1:]].all()
        # a deeper pool holds the same nodes, and more may come before them
        shallower = ranks[:, d - 1, 1:d]
        assert ((shallower >= 0) == held[:, :-1]).all()
        assert (rank[:, :-1] >= shallower).all()
