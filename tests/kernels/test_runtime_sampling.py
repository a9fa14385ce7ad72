"""Sampling rounds on the device: the host's rounds, when both take the same numbers alike."""

import pytest
import torch
from conftest import DEVICE
from test_runtime import Pair, steps

from hspec_lab import verify
from hspec_lab.accept import accept
from hspec_lab.config import Chain, Config, Refine
from hspec_lab.pipeline import Models, build, randomness
from hspec_lab.runtime import Dice
from hspec_lab.runtime.rule import Greedy, Sampling
from hspec_lab.runtime.stage import bucket_of
from hspec_lab.sample import SeededChoose
from hspec_lab.verify import Verifier

TEMPERATURE = 0.8
METHODS = ["ar", "chain", "eagle2", "hierspec", "greedy inside", "deeper", "narrow"]
SLOW = {"hierspec", "greedy inside", "deeper", "narrow"}


class HostDice:
    """A host's `choose` that takes numbers as the kernels do: one for each padded node.

    Node c's decides about node c, the root's draws the last token.
    """

    def __init__(self, seed: int):
        self.dice = Dice(seed, "cpu")
        self.untried: list[int] = []

    def deal(self, tree) -> None:
        """Numbers for a verdict on a tree, which then asks in the order in which it walks."""
        n = bucket_of(len(tree))
        self.dice.provide(n)
        self.u, self.parents = self.dice.take(n).tolist(), tree.parents
        self._stand_at(0)

    def __call__(self, probabilities: torch.Tensor) -> int:
        p = probabilities.double().cpu()
        if not self.untried:
            return int((p.cumsum(0) > self.u[0] * p.sum()).int().argmax())
        child = self.untried.pop(0)
        if self.u[child] >= p[0]:
            return 1
        self._stand_at(child)
        return 0

    def _stand_at(self, node: int) -> None:
        self.untried = [child for child, parent in enumerate(self.parents) if parent == node]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("models"), DEVICE)


@pytest.fixture
def dealt(monkeypatch):
    """Every verdict of the host's loop begins with numbers dealt for its tree."""

    def dealing(proposal, logits, temperature, choose, sampling=True):
        if sampling:
            choose.deal(proposal.tree)
        return accept(proposal, logits, temperature, choose, sampling)

    monkeypatch.setattr(verify, "accept", dealing)


def check_rounds(pair: Pair, method: str) -> list:
    """Both decoders' rounds are the same; returns them."""
    found = pair.on_device(method, temperature=TEMPERATURE, dice=Dice(5, DEVICE))
    wanted = pair.by_host(method, TEMPERATURE, HostDice(5))
    ours, theirs = steps(found, 4), steps(wanted, 4)
    for step, like in zip(ours, theirs, strict=True):
        assert step.tokens == like.tokens and step.sources == like.sources
        assert step.n_proposed == like.n_proposed
    assert found.tokens == wanted.tokens and found.cache.kv_len == wanted.cache.kv_len
    return ours


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in METHODS]
)
def test_rounds_are_those_of_a_host_that_takes_the_same_numbers(pair, dealt, method):
    drafted = [step for step in check_rounds(pair, method) if step.n_proposed]
    accepted = sum(len(step.tokens) - 1 for step in drafted)
    proposed = sum(step.n_proposed for step in drafted)
    if method == "deeper":  # its middle level is the target itself
        assert accepted == proposed > 0
    else:
        assert method == "ar" or 0 < accepted < proposed


def test_rows_behind_the_vocabulary_are_never_drawn(pair, dealt, monkeypatch):
    for model in pair.models:
        monkeypatch.setattr(model, "n_known", 5)
    assert all(token < 5 for step in check_rounds(pair, "chain") for token in step.tokens)


def config_of(pair: Pair, draft=None, **fields) -> Config:
    target, small = (f"{model.folder}@w8a16" for model in pair.models[:2])
    if draft == "chain":
        draft = Chain(small, draft_len=2)
    elif draft is not None:
        draft = Refine(small, Chain(target, draft_len=2), sampling=draft)
    rest = {"temperature": TEMPERATURE, "max_new_tokens": 8, "device": DEVICE} | fields
    return Config(target=target, draft=draft, **rest)


def models() -> Models:
    return Models(kernels=True, dtype=torch.float16)


def test_a_seed_and_a_prompt_decide_about_the_text(pair):
    loaded = models()

    def texts(seed: int, prompts: list[int]) -> list[list[int]]:
        config = config_of(pair, "chain", seed=seed)
        dice = randomness(config, loaded)
        decoder, found = build(config, loaded, 8, choose=dice), []
        for prompt in prompts:
            dice.begin(prompt)
            found.append([token for step in steps(decoder, 3) for token in step.tokens])
        return found

    one, other, again = texts(0, [0, 1, 0])
    assert one == again != other
    assert texts(0, [1]) == [other]
    assert texts(1, [0]) != [one]


def test_only_levels_asked_to_be_greedy_are(pair):
    loaded = models()
    for sampling, rule in (("sample", Sampling), ("greedy", Greedy)):
        target = build(config_of(pair, sampling), loaded, 8)
        middle = target.drafter.level
        rules = [type(level.rule) for level in (target, middle, middle.drafter)]
        assert rules == [Sampling, rule, Sampling]
        assert (target.drafter.p_draft is None) == (rule is Greedy)
    greedy = build(config_of(pair, "sample", temperature=0), loaded, 8)
    assert isinstance(greedy.rule, Greedy) and isinstance(greedy.drafter.level.rule, Greedy)


def test_a_function_that_draws_keeps_rounds_on_the_host(pair):
    decoder = build(config_of(pair), models(), 8, choose=SeededChoose(0))
    assert isinstance(decoder, Verifier)


def test_a_block_of_numbers_is_followed_by_the_next():
    dice, whole = Dice(3, DEVICE, size=8), Dice(3, DEVICE, size=24)
    whole.provide(24)
    numbers = whole.take(24)
    assert ((numbers >= 0) & (numbers < 1)).all() and len(numbers.unique()) == 24
    taken = []
    for n in (5, 2, 3, 8):  # one is left behind 5 and 2, too few for 3
        dice.provide(n)
        taken += dice.take(n).tolist()
        assert dice.left == 8 - int(dice.cursor)
    numbers = numbers.tolist()
    assert taken == numbers[:7] + numbers[8:11] + numbers[16:24]
    dice.begin(0)
    dice.provide(2)
    assert dice.take(2).tolist() == numbers[:2]


def test_a_stage_that_takes_too_many_numbers_is_refused():
    with pytest.raises(ValueError, match="takes at most 8 numbers at once, got 9"):
        Dice(0, DEVICE, size=8).provide(9)


def test_a_temperature_needs_dice(pair):
    with pytest.raises(ValueError, match="temperature 0.8 needs a memory with dice, got none"):
        pair.on_device("ar", temperature=TEMPERATURE)
