"""Static trees: the value, the drafter that fills them, their replay and the best one."""

import itertools
import json

import numpy as np
import pytest
import torch
from test_accept import distribution_of
from test_decode import point_at, spell
from tiny import make_head, make_model
from tokenizers import Tokenizer
from traces import random_trace

from hspec_lab.acceptance import replay, totals_of
from hspec_lab.acceptance_folder import MAX_CHILD
from hspec_lab.config import Config, Eagle2, Refine, Static, as_dict, config_id, from_dict
from hspec_lab.decode import decode
from hspec_lab.draft.eagle2 import stable_top_k
from hspec_lab.experiment import Session
from hspec_lab.pipeline import Models, build
from hspec_lab.record import record
from hspec_lab.static_trees import (
    best_trees,
    expected_kept,
    kept_by,
    place_counts,
    propose,
    rates_of,
    replay_static,
)
from hspec_lab.text import TextStream

PROMPTS = ("012345678", "ABCDE<=>?@", "Q", "LLLLLLLL")
# not in the order of levels, and with places left out
ODD = Static((-1, 0, 1, 0, 2, 2, 3, 4, 3), (-1, 0, 2, 1, 0, 3, 0, 1, 5))
TREES = {
    "root-only": Static((-1,), (-1,)),
    "chain": Static((-1, 0, 1, 2), (-1, 0, 0, 0)),
    "odd": ODD,
    "crossed": Static((-1, 0, 0, 2, 1, 3, 4, 5, 6, 3), (-1, 1, 0, 0, 1, 0, 0, 2, 0, 1)),
    "wide": Static((-1, *[0] * 6, *[1] * 5, *[7] * 4), (-1, *range(6), *range(5), *range(4))),
}


# ---- the value -------------------------------------------------------------------------------


def test_a_static_tree_is_a_config_like_any_other():
    config = Config(draft=Refine("zoo:intermediate", ODD, at_least=3))
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == config
    assert eval(repr(config)) == config
    assert Config(draft=ODD).method == "static" and config.method == "hierspec"
    assert config_id(Config(draft=ODD)) != config_id(Config(draft=TREES["chain"]))


def test_size_depth_and_top_k_follow_from_the_nodes():
    assert (ODD.tree_size, ODD.depth, ODD.top_k) == (9, 4, 6)
    assert (TREES["root-only"].depth, TREES["root-only"].top_k) == (0, 1)


@pytest.mark.parametrize(
    "parents, places, problem",
    [
        ((), (), "begin with -1"),
        ((-1, 0), (-1,), "equally long"),
        ((0, 0), (-1, 0), "begin with -1"),
        ((-1, 2, 1), (-1, 0, 0), "node 1 must come after its parent, got 2"),
        ((-1, -1), (-1, 0), "node 1 must come after its parent, got -1"),
        ((-1, 0, 0), (-1, 1, 1), "node 2 is place 1 of node 0 once more"),
        ((-1, 0), (-1, 256), "place 0..255, got 256"),
        ((-1, 0), (-1, True), "places must be a tuple of int"),
        ((-1, 0.0), (-1, 0), "parents must be a tuple of int"),
        (tuple(range(-1, 65)), (-1, *[0] * 65), "depth must be 0..64, got 65"),
    ],
)
def test_what_is_no_tree_is_refused(parents, places, problem):
    with pytest.raises(ValueError, match=problem):
        Static(parents, places)


def test_a_device_refuses_static_trees_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for draft in (ODD, Refine("zoo:intermediate", ODD)):
        with pytest.raises(ValueError, match=r"Static: kernels \(cuda\) grow dynamic trees only"):
            Session(Config(draft=draft, device="cuda"))


# ---- the drafter -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Random models alike enough to agree now and then."""
    root = tmp_path_factory.mktemp("zoo")
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 32}
    target = spell(make_model(root / "target", scale=0.05, **sizes))
    middle = spell(make_model(root / "middle", scale=0.05, num_hidden_layers=1, **sizes))
    for model in (target, middle):
        make_head(root / f"{model.name}-eagle2", model, scale=0.1)
    return root


def settings(root):
    return {"target": str(root / "target"), "prompts": PROMPTS, "max_new_tokens": 50, "threads": 1}


def session_of(config, models):
    session = Session(config, models)
    for index in range(len(session.prompts)):
        for _ in session.rounds_of(index):
            pass
    return session


@pytest.mark.parametrize("row_invariant", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_the_text_is_the_plain_greedy_one(name, row_invariant, zoo):
    models, given = Models(), settings(zoo) | {"row_invariant": row_invariant}
    plain = session_of(Config(**given), models)
    for draft in (TREES[name], Refine(str(zoo / "middle"), TREES[name], at_least=3)):
        drafted = session_of(Config(draft=draft, **given), models)
        for index in range(len(PROMPTS)):
            assert drafted.output_ids(index) == plain.output_ids(index)


def obvious(drafter, draft):
    """A tree's tokens, each node's path run from the stored rows on, row by row."""
    head, base, tokens = drafter.head, drafter.cache.kv_len, [drafter._last]
    for node in range(1, len(draft.parents)):
        path = []
        while node > 0:
            path.insert(0, node)
            node = draft.parents[node]
        guessed = drafter._root
        for step, above in enumerate(path[:-1]):
            seen = torch.ones(1, step + 1, dtype=torch.bool)
            rows = head.geometry.tree_rows(base, seen, [step], hidden_before=step)
            guessed = head.forward(torch.tensor([tokens[above]]), guessed, drafter.cache, rows)
        log_p = torch.log_softmax(head.model.lm_head(guessed), dim=-1)
        place = draft.places[path[-1]]
        tokens.append(int(stable_top_k(log_p, place + 1)[1][0, place]))
    return tokens


@pytest.mark.parametrize("name", TREES)
def test_each_node_holds_the_token_at_its_place_behind_its_path(name, zoo):
    draft = TREES[name]
    verifier = build(Config(draft=draft, **settings(zoo)), Models(), 4)
    with torch.inference_mode():
        verifier.start([3, 1, 4, 1])
        for _ in range(4):
            tree = verifier.drafter.propose().tree
            assert (tuple(tree.parents), tuple(tree.depths)) == (draft.parents, draft.depths)
            assert tree.tokens == obvious(verifier.drafter, draft)
            verifier.round()


def test_a_place_beyond_the_vocabulary_is_refused(zoo):
    draft = Static((-1, 0), (-1, 32))
    with pytest.raises(ValueError, match="place 32 of a vocabulary of 32"):
        build(Config(draft=draft, **settings(zoo)), Models(), 4)


def test_sampling_keeps_the_targets_distribution(tmp_path):
    sizes = {"vocab_size": 3, "num_hidden_layers": 1}
    target = spell(make_model(tmp_path / "target", scale=0.25, **sizes))
    make_head(tmp_path / "target-eagle2", target, seed=2, scale=0.25)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))

    def law(draft):
        config = Config(
            target=str(target), draft=draft, temperature=0.8, max_new_tokens=3, threads=1
        )
        verifier = build(config, Models(), 2)

        def run(choose):
            point_at(verifier, choose)
            rounds = decode(verifier, [0, 2], TextStream(tokenizer), max_new_tokens=3)
            return tuple(t for item in rounds for t in item.tokens)

        return distribution_of(run)

    drafted = law(Static((-1, 0, 0, 2, 2, 1), (-1, 2, 0, 1, 0, 0)))
    assert drafted == pytest.approx(law(None), abs=1e-5) and len(drafted) == 27


# ---- measured acceptance -----------------------------------------------------------------------


def with_children(*rows):
    """A trace whose states say that the text's tokens stand at these places."""
    trace = random_trace(0, n_prompts=1, n_positions=len(rows) - 2, depth=3)
    assert len(trace.states) == len(rows)
    trace.states[["child_1", "child_2", "child_3"]] = np.array(rows, dtype=np.int16)
    return trace


def test_places_are_counted_where_all_above_are_known():
    trace = with_children((0, 0, 1), (0, 2, -1), (1, -1, -1), (-1, -1, -1), *[(0, 0, 0)] * 3)
    counts = place_counts(trace)
    assert counts.shape == (3, MAX_CHILD + 1)
    assert counts[:, :3].tolist() == [[5, 1, 0], [4, 0, 1], [3, 1, 0]]
    assert counts[:, -1].tolist() == [1, 1, 1]
    assert rates_of(counts)[1, :3] == pytest.approx([4 / 6, 0, 1 / 6])
    twice = place_counts(trace, np.array([2, 2, 0]))
    assert twice[:, :3].tolist() == [[1, 2, 0], [1, 0, 0], [0, 1, 0]]


def test_a_chain_has_no_places_to_count():
    with pytest.raises(ValueError, match="without a draft head"):
        place_counts(random_trace(0, kind="chain"))


def test_a_level_that_is_never_reached_has_rate_nought():
    assert not rates_of(place_counts(with_children(*[(0, -1, -1)] * 8)))[2].any()


# ---- the best tree -----------------------------------------------------------------------------


def every_tree(n, depth, places):
    """All trees of n nodes, as sets of paths."""
    found = {frozenset([()])}
    for _ in range(n - 1):
        found = {
            tree | {(*path, place)}
            for tree in found
            for path in tree
            for place in range(places)
            if len(path) < depth and (*path, place) not in tree
        }
    return found


def up_to(n, depth, places):
    return itertools.chain(*(every_tree(size, depth, places) for size in range(1, n + 1)))


def value(tree, rates):
    return sum(np.prod([rates[i, place] for i, place in enumerate(path)]) for path in tree if path)


def paths_of(draft):
    found = [()]
    for parent, place in zip(draft.parents[1:], draft.places[1:], strict=True):
        found.append((*found[parent], place))
    return found


@pytest.mark.parametrize("depth, places", [(1, 7), (2, 3), (3, 2), (4, 2)])
def test_no_tree_of_up_to_seven_nodes_beats_the_optimiser(depth, places):
    for seed in range(4):
        # places in no order, some never right
        rates = np.random.default_rng(seed).dirichlet(np.ones(places + 1), size=depth)[:, :-1]
        rates[rates < 0.05] = 0
        trees = best_trees(rates, 7)
        for n, draft in enumerate(trees, 1):
            most = max(value(tree, rates) for tree in up_to(n, depth, places))
            assert value(paths_of(draft), rates) == pytest.approx(most, abs=1e-12)
            assert expected_kept(rates, draft) == pytest.approx(most, abs=1e-12)
            assert draft.tree_size <= n and draft.depth <= depth


def test_large_trees_hold_the_most_probable_paths():
    rates = np.random.default_rng(3).dirichlet([8, 2, 1, 0.5, 4], size=4)[:, :-1]
    paths = [p for d in range(1, 5) for p in itertools.product(range(4), repeat=d)]
    likely = sorted((value([path], rates) for path in paths), reverse=True)
    for n, draft in enumerate(best_trees(rates, 60), 1):
        assert draft.tree_size == n
        assert expected_kept(rates, draft) == pytest.approx(sum(likely[: n - 1]))


def test_a_node_that_is_never_right_is_left_out():
    rates = np.array([[0.5, 0.0, 0.3], [0.0, 0.0, 0.0]])
    assert best_trees(rates, 9)[-1] == Static((-1, 0, 0), (-1, 0, 2))


def test_proposals_are_distinct_and_carry_the_traces_head():
    trace = random_trace(1, depth=3, n_positions=200)
    trees = propose(trace, [1, 2, 8, 16], [1, 3])
    assert len(set(trees)) == len(trees) > 4 and {tree.head for tree in trees} == {None}
    assert max(tree.depth for tree in trees) == 3
    for sizes, depths in (([], [1]), ([0], [1]), ([2], [0]), ([2], [])):
        with pytest.raises(ValueError, match="must be >= 1"):
            propose(trace, sizes, depths)
    with pytest.raises(ValueError, match="recorded to depth 3, got 4"):
        propose(trace, [2], [4])


# ---- replay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", TREES.values(), ids=list(TREES))
@pytest.mark.parametrize("limit", [None, 17, 1])
def test_replay_walks_round_by_round(draft, limit):
    trace = random_trace(7, depth=4, top_k=3, n_positions=(40, 5, 33))
    paths, counts = set(paths_of(draft)), replay_static(trace, draft, limit)
    children = trace.states[["child_1", "child_2", "child_3", "child_4"]].to_numpy().tolist()
    first = 0
    for prompt, n in enumerate(trace.head["n_positions"]):
        at, left, rounds = first, min(n, limit or n) - 1, 0
        while left > 0:
            kept = 0
            while kept < 4 and tuple(children[at][: kept + 1]) in paths:
                kept += 1
            emitted = min(kept + 1, left)
            at, left, rounds = at + emitted, left - emitted, rounds + 1
        first += int((trace.states["prompt"] == prompt).sum())
        assert counts.n_rounds[prompt] == counts.drafts[prompt] == rounds
        assert counts.n_emitted[prompt] == max(min(n, limit or n) - 1, 0)
        assert counts.target_rows[prompt, draft.tree_size] == rounds
    assert counts.target_rows.sum() == counts.n_rounds.sum()


def test_one_level_of_a_dynamic_tree_is_a_static_one():
    trace = random_trace(5, depth=3, top_k=4, n_positions=90)
    for n in range(1, 6):
        dynamic = Eagle2(n, 1, 4)
        wanted = totals_of(replay(trace, dynamic), dynamic)
        found = replay_static(trace, Static((-1, *[0] * (n - 1)), (-1, *range(n - 1))))
        assert found.n_rounds.sum() == wanted.n_rounds
        assert found.n_emitted.sum() == wanted.n_emitted


def test_replay_gives_the_rounds_of_decoding(zoo, tmp_path):
    given = settings(zoo) | {"row_invariant": True}
    models, eagle = Models(), Eagle2(tree_size=12, depth=4, top_k=4)
    trace = record(Config(draft=eagle, **given), tmp_path / "trace")
    trees = [*TREES.values(), best_trees(rates_of(place_counts(trace)), 12)[-1]]
    for draft in trees:
        session = session_of(Config(draft=draft, **given), models)
        found = replay_static(trace, draft)
        for index in range(len(PROMPTS)):
            assert found.n_rounds[index] == len(session.rounds[index]) - 1
    kept = kept_by(trace, trees[-1])
    assert 0 < kept.mean() < 4


@pytest.mark.parametrize(
    "trace, draft, problem",
    [
        (random_trace(0, kind="refine"), ODD, "a head of the target alone"),
        (random_trace(0, depth=3), ODD, "has depth 4"),
        (random_trace(0), Static((-1, 0), (-1, 40)), "and place 40"),
        (random_trace(0), Static((-1, 0), (-1, 0), "x/head"), "asks for the head 'x/head'"),
    ],
)
def test_what_was_not_recorded_is_refused(trace, draft, problem):
    with pytest.raises(ValueError, match=problem):
        replay_static(trace, draft)
