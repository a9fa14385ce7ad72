"""The controller: what it chooses, and that the text stays the target's whatever is chosen."""

import random

import pytest
import torch
from test_accept import distribution_of
from test_decode import N_TOKENS, PROMPTS, SAMPLED, outputs, point_at
from tiny import make_head, make_model, make_zoo, spell
from tokenizers import Tokenizer

from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.control import Controller, check_option, largest, levels_of, resize
from hspec_lab.decode import decode
from hspec_lab.experiment import Session
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.pipeline import Models, build
from hspec_lab.text import TextStream

SMALL, LARGE = Eagle2(tree_size=4, depth=1), Eagle2(tree_size=32, depth=6)
# states: hard, middling, easy
GAIN = [[1.0, 1.1, 1.2], [1.0, 1.6, 2.0], [1.0, 2.0, 5.0]]


def controller(gain=GAIN, cost_us=(10.0, 13.0, 20.0), **settings):
    settings = {"edges": [0.3, 0.8], "start": 0.5, "decay": 0.8} | settings
    return Controller([None, SMALL, LARGE], gain, cost_us, **settings)


# ---- what is chosen ----------------------------------------------------------------------------


def test_it_goes_from_small_to_large_trees_as_drafts_are_kept_and_back():
    policy = controller()
    assert policy.choose() == 1
    for _ in range(5):
        policy.observe(2, 6)
    assert policy.choose() == 2
    for _ in range(3):
        policy.observe(2, 0)
    assert policy.choose() == 1
    for _ in range(20):
        policy.observe(1, 0)
    assert policy.choose() == 0


def test_the_option_with_most_tokens_per_time_wins_not_the_one_with_most_tokens():
    assert controller(cost_us=(10.0, 13.0, 40.0), start=0.9).choose() == 1
    assert controller(cost_us=(10.0, 13.0, 20.0), start=0.9).choose() == 2
    # the same, with costs that differ from state to state
    by_state = [[10.0, 13.0, 20.0]] * 2 + [[10.0, 13.0, 40.0]]
    assert controller(cost_us=by_state, start=0.9).choose() == 1


def test_a_tree_kept_whole_says_nothing_about_the_levels_below_it():
    kept, cut = controller(), controller()
    kept.observe(1, 1)
    cut.observe(2, 1)  # the same token kept, the next one lost
    assert kept.acceptance == pytest.approx(0.5 * 0.8 + 0.2)
    assert cut.acceptance == pytest.approx((0.5 * 0.8 + 0.2) * 0.8)


def test_plain_steps_are_broken_by_a_draft_now_and_then_ever_more_rarely_while_it_fails():
    policy, chosen = controller(start=0.0), []
    for _ in range(260):
        chosen.append(policy.choose())
        policy.observe(chosen[-1], 0)
    probes = [i for i, option in enumerate(chosen) if option]
    gaps = [b - a - 1 for a, b in zip(probes, probes[1:], strict=False)]
    assert probes[0] == 16 and gaps == [32, 64, 64, 64]


def test_a_probe_that_is_kept_is_followed_by_others_until_drafting_pays_again():
    policy, chosen = controller(start=0.0), []
    for _ in range(40):
        chosen.append(policy.choose())
        policy.observe(chosen[-1], levels_of(policy.options[chosen[-1]]))
    assert not any(chosen[:16]) and all(chosen[16:]) and policy.acceptance > 0.3


def test_each_prompt_begins_as_the_first_did():
    policy = controller()
    first = [policy.choose()]
    for _ in range(30):
        policy.observe(policy.choose(), 0)
    policy.reset()
    assert [policy.choose()] == first and policy.acceptance == policy.start


@pytest.mark.parametrize(
    "change, says",
    [
        ({"gain": GAIN[:2]}, "gain"),
        ({"cost_us": [1.0, 2.0]}, "cost_us"),
        ({"cost_us": [1.0, float("nan"), 2.0]}, "above 0"),
        ({"gain": [[0.0, 1.0, 1.0]] * 3}, "above 0"),
        ({"edges": [0.8, 0.3]}, "ascend"),
        ({"start": 1.5}, "start"),
        ({"decay": 1.0}, "decay"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        controller(**change)


@pytest.mark.parametrize(
    "option, built",
    [
        (Eagle2(8, 2, 4), None),
        (Eagle2(8, 2, 4), Eagle2(8, 2, 8)),
        (Eagle2(9, 2, 4), Eagle2(8, 2, 4)),
        (Eagle2(8, 3, 4), Eagle2(8, 2, 4)),
        (Eagle2(8, 2, 4), Chain("m", 4)),
        (Chain("m", 5), Chain("m", 4)),
        (Chain("n", 4), Chain("m", 4)),
        (Refine("m", Eagle2(), 7), Refine("m", Eagle2(), 6)),
        (Refine("m", Eagle2(25)), Refine("m", Eagle2(24))),
        (Refine("m", Eagle2(), tree_size=8), Refine("m", Eagle2())),
        (Refine("m", Eagle2()), Refine("m", Eagle2(), tree_size=8)),
        (Refine("m", Eagle2(), sampling="greedy"), Refine("m", Eagle2())),
    ],
)
def test_an_option_beyond_what_was_built_is_refused(option, built):
    with pytest.raises(ValueError, match="sizes alone"):
        check_option(option, built)
    check_option(None, built)
    check_option(built, built)


def test_what_is_built_is_the_largest_of_every_size():
    trees = Eagle2(8, 4, 3), Eagle2(32, 2, 3)
    assert largest([None, *trees]) == Eagle2(32, 4, 3)
    assert largest([Chain("m", 2), None, Chain("m", 7)]) == Chain("m", 7)
    narrow = [Refine("m", t, n, tree_size=n + 9) for t, n in zip(trees, (6, 2), strict=True)]
    assert largest(narrow) == Refine("m", Eagle2(32, 4, 3), 6, tree_size=15)
    assert largest([None]) is None
    for different in ([trees[0], Chain("m", 2)], [trees[0], Eagle2(8, 4, 4)]):
        with pytest.raises(ValueError, match="sizes alone"):
            largest(different)


# ---- while decoding ----------------------------------------------------------------------------


class Scripted:
    """Chooses at random, the same again for each prompt."""

    def __init__(self, options, seed=0):
        self.options, self.seen = options, []
        self.script = random.Random(seed).choices(range(len(options)), k=200)
        self.reset()

    def reset(self):
        self.n = 0

    def choose(self):
        return self.script[self.n]

    def observe(self, option, n_kept):
        assert option == self.choose()
        self.seen.append((option, n_kept))
        self.n += 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Target, a smaller model that often agrees with it, another one, and heads."""
    return make_zoo(tmp_path_factory.mktemp("tiny"))


def heads(*sizes):
    return [Eagle2(tree_size=n, depth=depth, top_k=4) for n, depth in sizes]


def options_of(root, name):
    """None and some sizes of a drafter, the largest of everything last."""
    middle, small = str(root / "middle"), str(root / "small")
    trees = heads((2, 1), (4, 3), (12, 2), (16, 4))
    drafts = {
        "chain": [Chain(middle, n) for n in (1, 2, 5)],
        "chain-of-the-target": [Chain(str(root / "target"), n) for n in (1, 3, 6)],
        "eagle2": trees,
        "hierspec": [Refine(middle, t, n) for t, n in zip(trees, (1, 3, 5, 6), strict=True)],
        "narrow-tree": [
            Refine(middle, t, n, tree_size=m)
            for t, n, m in zip(trees, (1, 3, 2, 6), (4, 4, 9, 16), strict=True)
        ],
        "three-levels": [
            Refine(middle, Refine(small, t, n), m)
            for t, n, m in zip(trees, (1, 2, 1, 3), (2, 1, 4, 5), strict=True)
        ],
    }
    return [None, *drafts[name]]


NAMES = ("chain", "chain-of-the-target", "eagle2", "hierspec", "narrow-tree", "three-levels")


@pytest.mark.parametrize("seed", [7, 11])
@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_the_plain_greedy_text_whatever_is_chosen(name, seed, tiny):
    models, options = Models(), options_of(tiny, name)
    settings = {"prompts": PROMPTS[:3], "max_new_tokens": 50, "threads": 1}
    settings["target"] = str(tiny / "target")
    plain, _ = outputs(Config(**settings), models)
    policy = Scripted(options, seed)
    session = Session(Config(draft=options[-1], **settings), models, controller=policy)
    for index in range(3):
        for _ in session.rounds_of(index):
            pass
    assert [session.output_ids(index) for index in range(3)] == plain
    assert {option for option, _ in policy.seen} == set(range(len(options)))
    rounds = [item for index in range(3) for item in session.rounds[index][1:]]
    for item, (option, n_kept) in zip(rounds, policy.seen, strict=True):
        if options[option] is None:
            assert (item.n_proposed, n_kept) == (0, 0)
        else:
            assert item.n_proposed >= levels_of(options[option])
        if name == "chain-of-the-target":  # a stale cache below would lose tokens
            assert n_kept == levels_of(options[option])


def test_a_head_proposes_after_any_choices_what_it_would_propose_from_a_fresh_start(tiny):
    models, options = Models(), options_of(tiny, "eagle2")
    config = Config(target=str(tiny / "target"), draft=options[-1], threads=1)
    decoding, fresh = (build(config, models, 40) for _ in range(2))
    policy = Scripted(options)
    with torch.inference_mode():
        decoding.start([3, 1, 4, 1])
        for _ in range(12):
            option = policy.choose()
            resize(decoding, options[option])
            step = decoding.round()
            policy.observe(option, len(step.tokens) - 1)
        resize(decoding, options[-1])
        fresh.start(decoding.tokens[:-1])
        assert fresh.tokens == decoding.tokens
        assert decoding.drafter.propose().tree == fresh.drafter.propose().tree


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Models over a vocabulary of three tokens."""
    root = tmp_path_factory.mktemp("three")
    sizes = {"vocab_size": 3, "num_hidden_layers": 1, "scale": 0.25}
    for seed, name in enumerate(("target", "middle", "small")):
        model = spell(make_model(root / name, seed=seed, **sizes))
        make_head(root / f"{name}-eagle2", model, seed=seed, scale=0.25)
    return root


SMALLER = {
    "chain": lambda root: Chain(str(root / "middle"), draft_len=1),
    "tree": lambda root: Eagle2(tree_size=2, depth=1, top_k=2),
    "hierarchy": lambda root: Refine(
        str(root / "middle"), Eagle2(tree_size=2, depth=1, top_k=2), at_least=1
    ),
}


class ByWhatWasKept:
    """Chooses by what the round before has kept, as a controller does."""

    def __init__(self, options):
        self.options = options

    def reset(self):
        self.last = 1

    def choose(self):
        return self.last

    def observe(self, option, n_kept):
        self.last = (option + n_kept + 1) % len(self.options)


@pytest.mark.parametrize("name", SMALLER)
def test_sampling_keeps_the_targets_distribution_whatever_is_chosen(name, three):
    options = [None, SMALLER[name](three), SAMPLED[name](three)]
    config = Config(
        target=str(three / "target"),
        draft=options[-1],
        temperature=0.8,
        max_new_tokens=N_TOKENS,
        threads=1,
    )
    verifier, policy = build(config, Models(), 2), ByWhatWasKept(options)
    tokenizer = Tokenizer.from_file(str(three / "target" / "tokenizer.json"))

    def run(choose):
        point_at(verifier, choose)
        stream = TextStream(tokenizer)
        rounds = decode(verifier, [0, 2], stream, max_new_tokens=N_TOKENS, controller=policy)
        return tuple(t for item in rounds for t in item.tokens)

    assert distribution_of(run) == pytest.approx(exact(three / "target"), abs=1e-5)


def exact(folder):
    """The target's own distribution over its next tokens."""
    model, found = Transformer(Checkpoint(folder), "fp32"), {}
    for tokens in torch.cartesian_prod(*[torch.arange(3)] * N_TOKENS).tolist():
        logits = model.logits(model.read([0, 2, *tokens], model.new_cache(8)))
        p = torch.softmax(logits / 0.8, dim=-1)[1 : N_TOKENS + 1]
        found[tuple(tokens)] = float(p.gather(1, torch.tensor(tokens)[:, None]).prod())
    return found


def test_a_session_refuses_options_beyond_its_config_and_writes_no_run_folder(tiny, tmp_path):
    options = options_of(tiny, "eagle2")
    settings = {"target": str(tiny / "target"), "prompts": PROMPTS[:1], "threads": 1}
    with pytest.raises(ValueError, match="sizes alone"):
        Session(Config(draft=options[1], **settings), controller=Scripted(options))
    session = Session(Config(draft=options[-1], **settings), controller=Scripted(options))
    for _ in session.rounds_of(0):
        pass
    with pytest.raises(ValueError, match="without a controller"):
        session.write(tmp_path)
