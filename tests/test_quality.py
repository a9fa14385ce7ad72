"""Quality numbers against hand-made distributions, and layer errors where the damage was done."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_decode import spell
from tiny import make_head, make_model

from hspec_lab import quality, zoo
from hspec_lab.config import Chain, Config, Eagle2
from hspec_lab.layer_quality import UNITS, layer_errors, outlier_share
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.quality import (
    Reference,
    Window,
    fixed_drafts,
    mean_emitted,
    measure_quality,
    text_ids,
)
from hspec_lab.text import load_tokenizer

LN2 = math.log(2)


class Table:
    """A model that says, behind token i, row i of a table of probabilities."""

    def __init__(self, rows):
        self.table = torch.tensor(rows).log()
        self.n_known, self.n_read = len(rows), 0

    def new_cache(self, capacity):
        return capacity

    def read(self, ids, cache):
        assert cache == len(ids)
        self.n_read += 1
        return torch.tensor(ids)

    def logits(self, features):
        return self.table[features]


CERTAIN = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]]
FLAT = [[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("quality")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 32}
    for name, seed in (("target", 0), ("other", 3)):
        make_head(root / f"{name}-eagle2", spell(make_model(root / name, seed, 0.1, **sizes)))
    return root


def model(root, format="fp32"):
    return Transformer(Checkpoint(root / "target"), format)


def windows(*lengths):
    generator = torch.Generator().manual_seed(0)
    ids = (torch.randint(0, 32, (n,), generator=generator).tolist() for n in lengths)
    return [Window(tuple(some), 3 * (len(some) - 1)) for some in ids]


def test_numbers_are_those_worked_out_by_hand():
    # predicted: 1 behind 0 (p 1/2, reference 1/4), 2 behind 1 (1/4 and 1/4)
    found = measure_quality(Table(FLAT), Table(CERTAIN), [Window((0, 1, 2), 4)])
    assert found.n_tokens == 2 and found.agreement == 0.5
    assert found.perplexity == pytest.approx(2 ** (3 / 2))
    assert found.bits_per_byte == pytest.approx(3 / 4)
    kl_behind_0 = 0.5 * math.log(2) + 0.25 * math.log(0.5) + 0.0
    assert found.kl == pytest.approx(kl_behind_0 / 2)


def test_the_reference_comes_first_in_the_divergence_and_may_know_impossible_tokens():
    found = measure_quality(Table(FLAT), Table(CERTAIN), [Window((2, 2), 1)])
    assert found.kl == pytest.approx(0.5 * LN2)  # 0 * log 0 + 1/2 log 2 + 1/2 log 1
    back = measure_quality(Table(CERTAIN), Table(FLAT), [Window((2, 2), 1)])
    assert back.kl == math.inf


def test_windows_count_by_their_tokens_and_not_one_by_one():
    short, long = Window((0, 1), 1), Window((2, 2, 2, 2), 3)
    one, other = (measure_quality(Table(FLAT), Table(CERTAIN), [w]) for w in (short, long))
    both = measure_quality(Table(FLAT), Table(CERTAIN), [short, long])
    assert both.kl == pytest.approx((one.kl + 3 * other.kl) / 4)
    assert both.n_tokens == 4


def test_a_model_is_its_own_equal_and_a_rounded_one_is_not(root):
    some, exact = windows(200, 7), model(root)
    same = measure_quality(exact, exact, some)
    assert (same.kl, same.agreement, same.n_tokens) == (0.0, 1.0, 205)
    rounded = measure_quality(model(root, "w4a16-g32"), exact, some)
    assert 1e-4 < rounded.kl < 1 and rounded.agreement < 1
    # all rows at once, by another way
    nats = [
        F.cross_entropy(
            exact.logits(exact.forward(list(w.ids), exact.new_cache(len(w.ids))))[:-1],
            torch.tensor(w.ids[1:]),
            reduction="sum",
        )
        for w in some
    ]
    assert same.perplexity == pytest.approx(math.exp(sum(nats) / 205), rel=1e-4)
    assert same.bits_per_byte == pytest.approx(float(sum(nats)) / LN2 / (3 * 205), rel=1e-4)


def test_the_reference_is_asked_once_while_it_fits_and_says_the_same_where_it_does_not():
    some = [Window((0, 1, 2), 2), Window((2, 1), 1)]
    kept = Reference(Table(CERTAIN))
    small = Reference(Table(CERTAIN), max_bytes=4 * 3 * 1)  # one row of three tokens
    for _ in range(3):
        expected = measure_quality(Table(FLAT), Table(CERTAIN), some)
        assert measure_quality(Table(FLAT), kept, some) == expected
        assert measure_quality(Table(FLAT), small, some) == expected
    assert (kept.model.n_read, small.model.n_read) == (2, 1 + 3)


def test_windows_tile_each_text_and_count_the_bytes_they_predict():
    tokenizer = load_tokenizer(zoo.folder("target"))
    texts = ["def größe(x):\n    return x  # naïve\n" * 3, "import os\n"]
    found = text_ids(tokenizer, texts, window=16)
    whole = [tokenizer.encode(text).ids for text in texts]
    assert found[0].ids == tuple(whole[0][:16]) and found[1].ids == tuple(whole[1])
    tiled = [token for window in (found[0], *found[2:]) for token in window.ids]
    assert tiled == whole[0][: len(tiled)] and len(tiled) >= len(whole[0]) - 1
    # BOS stands for no text, so a first window predicts all of its own
    assert found[1].n_bytes == len(texts[1])
    for window in found:
        predicted = tokenizer.decode(list(window.ids[1:]))
        if "\ufffd" not in predicted:
            assert window.n_bytes == len(predicted.encode())
    assert text_ids(tokenizer, texts, window=16, n_windows=2) == found[:2]


def test_the_zoos_held_out_text_is_what_is_read_when_nothing_is_said():
    tokenizer = load_tokenizer(zoo.folder("target"))
    found = text_ids(tokenizer, n_windows=16)
    assert len({window.ids for window in found}) == 16
    assert all(len(window.ids) == 512 for window in found)


@pytest.mark.parametrize(
    "ask,message",
    [
        (lambda t: text_ids(t, ["a"], window=1), "window must be a whole number >= 2, got 1"),
        (lambda t: text_ids(t, [""]), "no text to predict"),
        (lambda t: measure_quality(Table(FLAT), Table(FLAT), []), "no windows to measure on"),
        (
            lambda t: measure_quality(Table(FLAT), Table([[1.0]]), [Window((0, 0), 1)]),
            "the model knows 3 tokens, its reference 1",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(ask, message):
    with pytest.raises(ValueError, match=message) as error:
        ask(load_tokenizer(zoo.folder("target")))
    assert "\n" not in str(error.value)


def test_mean_emitted_is_full_when_the_drafter_is_the_target_itself(root):
    target = str(root / "target")
    config = Config(target=target, prompts=("0123", "LL"), max_new_tokens=11, threads=1)
    # every round emits 4 accepted tokens and a bonus: 1 + 5 + 5
    drafts = {"itself": Chain(target, draft_len=4), "none": Eagle2(1, 1, 1)}
    assert mean_emitted(config, drafts=drafts) == {"itself": 5.0, "none": 1.0}


def test_mean_emitted_tries_the_three_kinds_of_drafters_greedily(root, monkeypatch):
    heats, session = [], quality.Session

    def heard(config, *more, **named):
        heats.append(config.temperature)
        return session(config, *more, **named)

    monkeypatch.setattr(quality, "Session", heard)
    intermediate = str(root / "other")
    config = Config(
        target=str(root / "target"), prompts=("0123",), max_new_tokens=8, threads=1, temperature=0.7
    )
    found = mean_emitted(config, intermediate)
    assert list(found) == list(fixed_drafts(intermediate)) == ["chain", "eagle2", "hierspec"]
    assert all(1 <= emitted <= 7 for emitted in found.values())
    assert heats == [0.0] * 3


def test_loud_channels_are_found_where_they_are(root):
    loud = model(root)
    layer = loud.layers[1]
    layer.input_norm = layer.input_norm.clone()
    layer.input_norm[[3, 9]] *= 1000
    found = outlier_share(loud, windows(20, 30)).set_index(["layer", "unit"])
    assert list(found.index) == [(number, unit) for number in (0, 1) for unit in UNITS]
    assert found["share"][1, "qkv"] == pytest.approx(2 / 64)
    assert found["loudest"][1, "qkv"] > 100 > found["loudest"][0, "qkv"]
    assert (found["share"].drop((1, "qkv")) < 2 / 64).all()


def test_a_model_that_was_listened_to_is_as_before(root):
    heard, some = model(root), windows(5)
    units = [getattr(layer, unit) for layer in heard.layers for unit in UNITS]
    outlier_share(heard, some)
    broken = SimpleNamespace(ids=("no token",))
    with pytest.raises((TypeError, ValueError)):
        outlier_share(heard, [broken])
    now = [getattr(layer, unit) for layer in heard.layers for unit in UNITS]
    assert all(one is other for one, other in zip(units, now, strict=True))


def test_an_error_is_told_of_the_layer_that_makes_it_and_of_the_stream_behind_it(root):
    exact, damaged = model(root), model(root)
    damaged.layers[1].post_norm = damaged.layers[1].post_norm * 1.5
    same = layer_errors(exact, exact, windows(12))
    assert same["own"].tolist() == same["accumulated"].tolist() == [0.0, 0.0]
    found = layer_errors(damaged, exact, windows(12, 9))
    assert found["own"][0] == found["accumulated"][0] == 0
    assert found["own"][1] > 1e-3 and found["accumulated"][1] > 1e-4


def test_a_layer_is_not_blamed_for_the_stream_it_gets(root):
    exact, damaged = model(root), model(root)
    damaged.layers[0].post_norm = damaged.layers[0].post_norm * 1.5
    found = layer_errors(damaged, exact, windows(12))
    assert found["own"][0] > 1e-3 and found["own"][1] == 0
    assert found["accumulated"][1] > 1e-4


def test_a_layer_that_adds_twice_as_much_is_wrong_by_all_of_it(root):
    exact, twice = model(root), model(root)
    layer = exact.layers[0]
    alike = SimpleNamespace(forward=lambda x, *more: 2 * layer.forward(x, *more) - x)
    twice.layers[0] = alike
    assert layer_errors(twice, exact, windows(12))["own"][0] == pytest.approx(1.0, rel=1e-4)


def test_models_of_other_sizes_have_no_layers_to_compare(root, tmp_path):
    small = Transformer(Checkpoint(make_model(tmp_path / "small", num_hidden_layers=1)), "fp32")
    with pytest.raises(ValueError, match="2 layers of 64 and 1 layers of 32|1 layers of 32 and"):
        layer_errors(small, model(root), windows(4))
