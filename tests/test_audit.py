"""Audits: ties are rounding, everything else is a bug."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model

from hspec_lab.audit import audit
from hspec_lab.model import Checkpoint, Transformer

PROMPT = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Every token has a twin, 24 ids higher, with exactly its logit."""
    folder = make_model(tmp_path_factory.mktemp("audit") / "twins")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][24:] = tensors["lm_head.weight"][:24]
    save_file(tensors, folder / "model.safetensors")
    return Transformer(Checkpoint(folder), "fp32")


@pytest.fixture(scope="module")
def plain(model):
    cache, ids = model.new_cache(40), []
    with torch.inference_mode():
        features = model.read(PROMPT, cache)
        while len(ids) < 12:
            # of two twins the lower id
            ids.append(int(model.logits(features[-1:])[0, :24].argmax()))
            features = model.read(ids[-1:], cache)
    return ids


def test_equal_outputs_need_no_audit(model, plain):
    assert audit(model, PROMPT, plain, list(plain)) is None


def test_a_tie_is_rounding(model, plain):
    drafted = [*plain[:5], plain[5] + 24, 7, 7]  # what follows does not matter, nor its length
    found = audit(model, PROMPT, plain, drafted, prompt=3)
    assert (found["prompt"], found["position"], found["verdict"]) == (3, 5, "rounding")
    assert (found["plain_token"], found["drafted_token"]) == (plain[5], plain[5] + 24)
    assert found["gap"] <= 1e-4 and found["behind"] <= 1e-4
    assert 0 <= found["noise"] < 1e-3


@pytest.mark.parametrize("position", [0, 5, 11])
def test_a_token_that_is_no_tie_is_a_bug_although_the_top_two_tie(model, plain, position):
    wrong = (plain[position] + 1) % 24
    drafted = [*plain[:position], wrong, *plain[position + 1 :]]
    found = audit(model, PROMPT, plain, drafted)
    assert (found["position"], found["verdict"]) == (position, "bug")
    assert found["gap"] <= 1e-4 <= 4 * found["noise"] + 1e-4 < found["behind"]


@pytest.mark.parametrize("n", [0, 7])
def test_an_output_that_only_ends_earlier_is_a_bug(model, plain, n):
    for one, other in ((plain, plain[:n]), (plain[:n], plain)):
        found = audit(model, PROMPT, one, other)
        assert (found["position"], found["verdict"], found["gap"]) == (n, "bug", None)
