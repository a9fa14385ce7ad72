"""Goodput: walks are replay's and decoding's own rounds, and a controller is worth its while."""

from dataclasses import replace
from random import Random

import numpy as np
import pandas as pd
import pytest
from tiny import make_zoo
from traces import MIDDLE, random_trace

from hspec_lab.acceptance import replay
from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.control import Controller, levels_of
from hspec_lab.experiment import Session
from hspec_lab.goodput import Fixed, compare, learn, options_for, outcomes, simulate, summary
from hspec_lab.predict import predict
from hspec_lab.record import record
from hspec_lab.stages import StageCosts

N = np.arange(65)
COSTS = StageCosts(
    origin="measured",
    device="made up",
    target="zoo:target@fp32",
    target_us=np.where(N, 1900.0 + 50 * N, np.nan),
    plain_us=2200.0,
    context=300,
    head="zoo:target-eagle2",
    draft_us=np.where(N[:9], 300.0 + 450 * N[:9], np.nan),
    tree_us=np.where(N, 3.0 * N, np.nan),
    accept_us=np.where(N, 30.0 + N, np.nan),
    commit_us=50.0,
    gap_us=70.0,
)
BELOW = replace(
    COSTS,
    intermediate=MIDDLE,
    head="zoo:intermediate-eagle2",
    intermediate_us=np.where(N, 500.0 + 20 * N, np.nan),
    accept_intermediate_us=np.where(N, 20.0 + N, np.nan),
    commit_intermediate_us=40.0,
    gap_intermediate_us=60.0,
)
OF_KIND = {"eagle2": COSTS, "chain": BELOW, "refine": BELOW}


def tree(n, depth):
    return Eagle2(tree_size=n, depth=depth, top_k=3)


def options(kind):
    return {
        "eagle2": (None, tree(2, 1), tree(4, 3), tree(9, 4)),
        "chain": (None, *(Chain(MIDDLE, n) for n in (1, 3, 5))),
        "refine": (
            None,
            Refine(MIDDLE, tree(2, 1), 1, sampling="greedy"),
            Refine(MIDDLE, tree(9, 4), 5, sampling="greedy"),
            Refine(MIDDLE, tree(4, 2), 2, sampling="greedy", tree_size=5),
            Refine(MIDDLE, tree(4, 2), 4, sampling="greedy", tree_size=12),
        ),
    }[kind]


# ---- walks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", OF_KIND)
def test_a_fixed_option_walks_the_rounds_of_replay_at_the_time_of_prediction(kind, seed):
    trace = random_trace(seed, kind=kind, n_positions=[40, 1, 23], narrow=12)
    found = outcomes(trace, OF_KIND[kind], options(kind))
    for number, draft in enumerate(found.options):
        ours, theirs = simulate(found, Fixed(number)), replay(trace, draft)
        for mine, their in (("prompt",) * 2, ("n_kept", "n_accepted"), ("n_emitted",) * 2):
            assert ours[mine].tolist() == theirs[their].tolist()
        us_per_token = ours["us"].sum() / ours["n_emitted"].sum()
        predicted = predict(trace, draft, OF_KIND[kind]).us_per_token if draft else 2200.0
        assert us_per_token == pytest.approx(predicted)


class Scripted:
    """Chooses at random, the same again for each prompt."""

    def __init__(self, options, seed):
        self.options = options
        self.script = Random(seed).choices(range(len(options)), k=200)
        self.reset()

    def reset(self):
        self.n = 0

    def choose(self):
        return self.script[self.n]

    def observe(self, option, n_kept):
        self.n += 1


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def recorded(zoo, folder, kind):
    head = Eagle2(tree_size=99, depth=4, top_k=4)
    draft = {
        "eagle2": head,
        "chain": Chain(str(zoo / "middle"), 6),
        "refine": Refine(str(zoo / "middle"), head, at_least=6),
    }[kind]
    config = Config(
        target=str(zoo / "target"),
        draft=draft,
        prompts=("012345678", "ABCDE<=>?@", "Q"),
        max_new_tokens=40,
        threads=1,
    )
    return record(config, folder)


def some(draft):
    """A plain step and sizes up to those of a drafter."""
    heads = [Eagle2(n, depth, 4) for n, depth in ((2, 1), (12, 2), (16, 4))]
    if isinstance(draft, Eagle2):
        return None, *heads
    if isinstance(draft, Chain):
        return None, *(replace(draft, draft_len=n) for n in (1, 2, 6))
    chains = [replace(draft, draft=h, at_least=n) for h, n in zip(heads, (1, 6, 3), strict=True)]
    return None, *chains, replace(draft, draft=heads[1], at_least=4)


@pytest.mark.parametrize("kind", OF_KIND)
def test_another_option_each_round_walks_decodings_own_rounds(kind, zoo, tmp_path):
    trace = recorded(zoo, tmp_path / "trace", kind)
    models = {"target": trace.config.target, "head": None}
    if kind != "eagle2":
        models["intermediate"] = trace.draft.model
    found = outcomes(trace, replace(OF_KIND[kind], **models), some(trace.draft))
    built = trace.draft if kind != "eagle2" else replace(trace.draft, tree_size=16)
    for seed in range(3):
        policy = Scripted(found.options, seed)
        session = Session(replace(trace.config, draft=built), controller=policy)
        rounds = simulate(found, policy)
        for prompt, walked in rounds.groupby("prompt"):
            decoded = list(session.rounds_of(prompt))[1:]
            assert [item.n_accepted for item in decoded] == walked["n_kept"].tolist()
            assert [item.n_emitted for item in decoded] == walked["n_emitted"].tolist()
        if kind != "eagle2":
            assert catch_ups(session) == asked_catch_ups(rounds, found.options)


def catch_ups(session):
    """Rows of the passes with which the model below caught up, by prompt and round."""
    spans = session.tables()["spans"].query("level == 'intermediate' and round >= 0")
    spans = spans[spans["phase"].isin(["draft", "verify_intermediate"])]
    first = spans.groupby(["prompt", "round"], sort=True)["n_tokens"].first()
    # in a hierarchy a first pass over more rows may be a tree's: told apart by the round it is in
    return {key: n for key, n in first.items() if n > 1}


def asked_catch_ups(rounds, options):
    """The same, of a walk."""
    rounds = rounds.assign(round=rounds.groupby("prompt").cumcount())
    found = {}
    for visit in rounds.itertuples():
        option = options[visit.option]
        if option is None:
            continue
        if visit.behind > 1:
            found[visit.prompt, visit.round] = visit.behind
        elif isinstance(option, Refine) and not (visit.behind == 0 and option.at_least == 1):
            found[visit.prompt, visit.round] = option.draft.tree_size
    return found


def test_a_catch_up_behind_plain_steps_runs_as_many_rows():
    trace = random_trace(0, kind="chain", n_positions=30, agree=0.0)
    found = outcomes(trace, BELOW, (None, Chain(MIDDLE, 2)))

    class PlainPlainPlainDraft(Scripted):
        def choose(self):
            return int(self.n % 4 == 3)

    rounds = simulate(found, PlainPlainPlainDraft(found.options, 0), prompts=[0])
    # the prompt's guess is dropped with the first plain step, which leaves one token pending
    assert rounds["behind"].tolist()[:8] == [0, 1, 2, 3, 1, 2, 3, 4]
    curve = BELOW.intermediate_us
    assert rounds["us"][7] - rounds["us"][3] == pytest.approx(curve[4] - curve[3])


# ---- what a controller is worth ------------------------------------------------------------------


def joined(traces, order):
    """One trace of several with one prompt each, so that their kinds alternate."""
    head = dict(traces[0].head)
    for name in ("prompts", "prompt_tokens", "n_positions"):
        head[name] = [traces[i].head[name][0] for i in order]
    text, states = (
        pd.concat(
            [getattr(traces[i], name).assign(prompt=at) for at, i in enumerate(order)],
            ignore_index=True,
        )
        for name in ("text", "states")
    )
    return Trace("joined", head, text, states)


def texts(kind, difficulties, n_prompts, seed=0):
    """A trace whose prompts have these difficulties in turn."""
    traces = [
        random_trace(
            seed + i,
            kind=kind,
            n_prompts=1,
            n_positions=300,
            depth=6,
            at_least=8,
            hit=difficulties[i % len(difficulties)],
            agree=difficulties[i % len(difficulties)],
        )
        for i in range(n_prompts)
    ]
    return joined(traces, range(n_prompts))


def over_best_fixed(trace, kind, **settings):
    found = outcomes(trace, OF_KIND[kind])
    table = summary(compare(found, **settings), found)
    return table.set_index("policy")["over_best_fixed"]


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize("one_text", [False, True])
def test_where_texts_differ_it_is_three_percent_above_every_fixed_setting(kind, one_text):
    # hard, hard, easy, easy: so that both halves hold both
    trace = texts(kind, (0.25, 0.25, 0.97, 0.97), 16)
    assert over_best_fixed(trace, kind, one_text=one_text)["controller"] >= 1.03


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize("difficulty", [0.3, 0.7, 0.95])
def test_where_texts_do_not_differ_it_is_within_a_percent_of_the_best_setting(kind, difficulty):
    found = over_best_fixed(texts(kind, (difficulty,), 24), kind)
    assert found["controller"] >= 0.99


def test_bounds_that_know_the_future_are_faster_than_what_does_not():
    found = over_best_fixed(texts("refine", (0.3, 0.9), 6), "refine")
    assert found["each round"] >= found["each prompt"] >= found["fixed"].max() == 1
    assert found["each round"] >= found["controller"]


def test_the_bound_of_each_round_is_the_best_of_all_ways_through_a_text():
    trace = random_trace(3, kind="chain", n_prompts=1, n_positions=7)
    found = outcomes(trace, BELOW, (None, Chain(MIDDLE, 2), Chain(MIDDLE, 4)))
    # rows of a long catch-up cost nothing in the bound
    found = replace(found, row_us=np.zeros(0))
    best = min(simulate(found, Script(choices))["us"].sum() for choices in np.ndindex(*[3] * 6))
    table = compare(found, Controller(found.options, [[1, 2, 3]], [1, 2, 3], edges=[], start=0.5))
    assert table[table["policy"] == "each round"]["us"].item() == pytest.approx(best)


class Script(Fixed):
    """Chooses as told, round by round."""

    def __init__(self, choices):
        self.left = list(choices)

    def choose(self):
        return self.left.pop(0)


def test_a_controller_learns_small_sizes_for_hard_text_and_large_ones_for_easy_text():
    found = outcomes(texts("eagle2", (0.2, 0.97), 8), COSTS)
    controller = learn(found)
    chosen = []
    for acceptance in (0.1, 0.99):
        controller.acceptance = acceptance
        chosen.append(levels_of(found.options[controller.choose()]))
    assert chosen[0] <= 1 < 3 <= chosen[1]


def test_prompts_that_are_not_learned_from_have_no_say():
    found = outcomes(texts("eagle2", (0.2, 0.97), 8), COSTS)
    one, other = learn(found, [0, 1, 2, 3]), learn(found, [3, 2, 1, 0, 4])
    kept = found.kept.copy()
    kept[:, :, found.begin[4] :] = 0
    again = learn(replace(found, kept=kept), [0, 1, 2, 3])
    for acceptance in np.linspace(0, 1, 20):
        one.acceptance = again.acceptance = acceptance
        assert one.choose() == again.choose()
    assert one.start == again.start != other.start


def test_the_fastest_setting_of_a_summary_is_the_predicted_one():
    trace = texts("eagle2", (0.5, 0.9), 6)
    found = outcomes(trace, COSTS)
    table = summary(compare(found), found).query("policy == 'fixed'")
    assert len(table) == len(found.options)
    best = next(option for option in found.options if repr(option) == table["draft"].iloc[0])
    others = [predict(trace, option, COSTS).us_per_token for option in found.options if option]
    assert min(others) == predict(trace, best, COSTS).us_per_token
    assert table["us_per_token"].iloc[0] == pytest.approx(min(others))


def test_a_prompt_without_rounds_changes_nothing():
    trace = random_trace(1, n_positions=[30, 1, 25, 30])
    found = outcomes(trace, COSTS, options("eagle2"))
    with_it, without = (
        summary(compare(found, learn(found, [0]), order=order), found)
        for order in ([0, 1, 2, 3], [0, 2, 3])
    )
    numbers = ["us_per_token", "speedup", "over_best_fixed"]
    assert np.isfinite(with_it[numbers + ["low", "high"]]).all(axis=None)
    pd.testing.assert_frame_equal(with_it, without)
    with pytest.raises(ValueError, match="no round"):
        learn(found, [1])


# ---- what is refused -----------------------------------------------------------------------------


def test_options_stay_within_what_was_recorded_and_measured():
    short = replace(COSTS, target_us=COSTS.target_us[:9], draft_us=COSTS.draft_us[:4])
    found = options_for(random_trace(0, depth=6), short)
    assert found[0] is None and max(o.tree_size for o in found[1:]) == 8
    assert max(o.depth for o in found[1:]) == 3
    with pytest.raises(ValueError, match="not measured"):
        outcomes(random_trace(0, depth=6), short, (tree(8, 4),))


def test_a_controller_of_other_options_and_a_single_prompt_are_refused():
    found = outcomes(random_trace(0), COSTS, options("eagle2"))
    other = Controller([None], [[1.0]], [1.0], edges=[], start=0.5)
    with pytest.raises(ValueError, match="same"):
        compare(found, other)
    with pytest.raises(ValueError, match="two prompts"):
        compare(found, order=[0])
