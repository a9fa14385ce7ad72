"""Training: what is learned is what ships, a stopped run resumes, heads roll out as used."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hspec_lab.model import Checkpoint, EagleHead, Transformer
from hspec_lab.train import generate
from hspec_lab.train.corpus import N_HELD_OUT, read_corpus, training_order
from hspec_lab.train.data import BOS_ID, WINDOW
from hspec_lab.train.distill import Micros, TrainableHead, top_cross_entropy
from hspec_lab.train.generate import OwnText, _drawn, continue_batch, loop_start, own_text
from hspec_lab.train.llama import Shape, TrainableLlama, hf_config
from hspec_lab.train.loop import Plan, rate, train
from hspec_lab.train.muon import orthogonalise

SHAPE = Shape(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=48,
    max_position_embeddings=64,
)


def shipped(folder, module):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(SHAPE)))
    save_file(
        {k: v.contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors"
    )
    return Checkpoint(folder)


@pytest.fixture
def pair():
    """A random model and head; the zero-initialised matrices are filled too."""
    torch.manual_seed(0)
    model, head = TrainableLlama(SHAPE), TrainableHead(SHAPE)
    for parameter in [*model.parameters(), *head.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    return model, head


def test_the_trained_mathematics_is_the_shipped_mathematics(pair, tmp_path):
    model, _ = pair
    ids = torch.randint(0, 48, (20,))
    ours = Transformer(shipped(tmp_path / "m", model), "fp32")
    with torch.inference_mode():
        logits = ours.logits(ours.read(ids.tolist(), ours.new_cache(20)))
        torch.testing.assert_close(logits, model(ids[None])[0], rtol=0, atol=1e-4)


def test_a_roll_out_guesses_what_the_shipped_head_guesses_in_a_tree(pair, tmp_path):
    model, head = pair
    ours = Transformer(shipped(tmp_path / "m", model), "fp32")
    drafter = EagleHead(shipped(tmp_path / "h", head), "fp32", ours)
    ids = torch.randint(0, 48, (1, 12))
    with torch.inference_mode():
        features = model.features(ids)
        guesses = head.roll_out(model.model.embed_tokens(ids)[:, 1:], features[:, :-1], 3)
        for row in (0, 4, 8):
            cache = drafter.new_cache(16)
            rows = drafter.geometry.path_rows(0, row + 1)
            told = drafter.forward(ids[0, 1 : row + 2], features[0, : row + 1], cache, rows)
            cache.commit(list(range(row + 1)))
            guess = told[-1:]
            for p in range(3):
                torch.testing.assert_close(guess[0], guesses[p][0, row + p], rtol=0, atol=1e-3)
                rows = drafter.geometry.path_rows(cache.kv_len, 1)
                token = ids[0, row + p + 2 : row + p + 3]
                if p < 2:
                    guess = drafter.forward(token, guess, cache, rows)
                    cache.commit([0])


def test_the_targets_own_text_carries_what_the_target_thinks_of_it(pair):
    model, _ = pair
    prefixes = torch.randint(0, 48, (3, 8))
    warm = torch.tensor([False, False, True])
    text = continue_batch(model, prefixes, 14, warm, torch.Generator().manual_seed(0)).rows(0, 3)
    with torch.no_grad():
        shares = torch.softmax(model(text.ids), dim=-1)
    assert torch.equal(text.ids[:, :8], prefixes)
    # the cache is bf16
    torch.testing.assert_close(shares.gather(-1, text.top_ids), text.top_shares, rtol=0, atol=0.05)
    assert torch.equal(text.ids[:2, 8:], text.top_ids[:2, 7:-1, 0])
    assert not torch.equal(text.ids[2, 8:], text.top_ids[2, 7:-1, 0])


def test_warm_rows_are_drawn_from_the_distribution(pair):
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(20_000, 4)
    drawn = _drawn(logits, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(found, torch.softmax(logits[0], dim=-1), rtol=0, atol=0.015)


def test_own_text_stopped_and_resumed_is_the_same_text(pair, tmp_path, monkeypatch):
    model, _ = pair
    monkeypatch.setattr(generate, "BATCH_TOKENS", 64)
    monkeypatch.setattr(generate, "ROWS", ((4, 12), (8, 32)))
    windows = SimpleNamespace(
        stream=torch.randint(0, 48, (3 * WINDOW,)), order=np.random.default_rng(0).permutation(2)
    )

    def written(folder, *goals):
        for goal in goals:
            batches = own_text(model, windows, goal, folder, 0, say=lambda line: None)
        return batches

    whole = written(tmp_path / "whole", 150)
    parts = written(tmp_path / "parts", 40, 150)
    assert len(whole) == len(parts) > 2
    for one, other in zip(whole, parts, strict=True):
        for name in OwnText.__slots__:
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert sum(int(batch.kept.sum()) for batch in whole) >= 150
    assert bool((whole[0].ids[:, 0] == BOS_ID).all())


def test_micro_batches_cover_all_own_text_once_a_pass():
    def rows(n, length):
        ids = torch.arange(n)[:, None].expand(n, length).to(torch.int16)
        top = ids[..., None].expand(n, length, 2)
        return OwnText(ids, top, top.half(), torch.full((n,), length))

    micros = Micros([rows(8, 512), rows(5, 1024)])
    assert len(micros.order) == 2 + 2  # four rows of 512, two of 1,024; the fifth has no partner
    seen = [(t.ids.shape[1], t.ids[:, 0].tolist()) for step in range(4) for t in micros.at(step)]
    assert sorted(seen[:4]) == [
        (512, [0, 1, 2, 3]),
        (512, [4, 5, 6, 7]),
        (1024, [0, 1]),
        (1024, [2, 3]),
    ]
    assert seen[4:8] == seen[:4]


def test_cross_entropy_against_the_top_tokens_is_the_whole_one_when_all_are_top():
    torch.manual_seed(0)
    logits, wanted = torch.randn(5, 12), torch.softmax(torch.randn(5, 12), dim=-1)
    shares, ids = wanted.topk(12, dim=-1)
    whole = -(wanted * torch.log_softmax(logits, dim=-1)).sum(-1)
    torch.testing.assert_close(top_cross_entropy(logits, ids, shares), whole, rtol=0, atol=1e-4)
    # with fewer, it is smallest where the model's top shares and their rest are the wanted ones
    shares, ids = wanted.topk(3, dim=-1)
    best = top_cross_entropy(wanted.log(), ids, shares)
    for _ in range(20):
        other = wanted.log() + 0.3 * torch.randn(5, 12)
        assert bool((top_cross_entropy(other, ids, shares) >= best - 1e-6).all())


def test_a_loop_starts_where_a_16_gram_returns():
    fresh = list(range(40))
    assert loop_start(fresh) == 40
    assert loop_start(fresh[:20] + fresh[:20]) == 35


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((2, 24, 64), (2, 64, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.4


def test_the_rate_warms_up_stays_and_decays_to_zero():
    plan = Plan(n_steps=100, warmup_steps=10, decay_share=0.5)
    assert rate(plan, 0) == pytest.approx(0.1)
    assert rate(plan, 30) == 1.0
    assert rate(plan, 75) == pytest.approx(0.5)
    assert rate(plan, 99) == pytest.approx(0.02)


def losses(model, n_steps):
    def losses_at(step):
        ids = torch.randint(0, 48, (2, 16), generator=torch.Generator().manual_seed(step))
        for row in ids.split(1):
            logits = model(row[:, :-1])
            yield torch.nn.functional.cross_entropy(logits[0], row[0, 1:]) / 2

    return losses_at


def trained(folder, stops):
    """A model trained for the last of `stops` steps, stopped and resumed at the others."""
    for stop in stops:
        torch.manual_seed(1)
        model = TrainableLlama(SHAPE)
        plan = Plan(n_steps=12, save_every=stop, warmup_steps=2)

        def until(step, model=model, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return losses(model, 12)(step)

        try:
            train(model, until, plan, folder, say=lambda line: None)
        except KeyboardInterrupt:
            pass
    return model


def test_a_stopped_and_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    whole = trained(tmp_path / "whole", [12])
    parts = trained(tmp_path / "parts", [5, 12])
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = TrainableLlama(SHAPE)
    with pytest.raises(ValueError, match="loss is nan at step 0"):
        train(
            model,
            lambda step: [model.lm_head.weight.sum() * torch.nan],
            Plan(n_steps=1),
            tmp_path / "bad",
            say=lambda line: None,
        )


@pytest.mark.slow
def test_held_out_modules_and_tests_named_after_them_are_never_trained_on():
    files = read_corpus()
    held_out = [file for file in files if file.part == "held_out"]
    assert len(held_out) == N_HELD_OUT
    shown = {file.name for file in training_order(files, seed=0)}
    assert not shown & {file.name for file in held_out}
    named_after = {"test_" + Path(file.name).stem.lstrip("_") + ".py" for file in held_out}
    assert not named_after & {Path(name).name for name in shown}
