"""Transforms through the whole driver: nothing rounded, the logits and drafts stay as they were."""

import pytest
import torch
from small import change, listen, logits, marks, settle, small

from hspec_lab import pipeline
from hspec_lab.config import Config, Eagle2
from hspec_lab.experiment import Session
from hspec_lab.pipeline import check, head_of
from hspec_lab.quantize import quantize
from hspec_lab.quantize.driver import rotate

FAMILIES = ["llama", "llama-tied", "llama-biased", "qwen2", "qwen2-tied", "qwen3"]
TREE = Eagle2(tree_size=6, depth=2, top_k=3)


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return settle(monkeypatch, tmp_path / "shelf")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transform", ["quarot", "smooth", "smoothattn", "awqscale"])
def test_a_transform_of_unrounded_weights_keeps_the_logits(tmp_path, shelf, family, transform):
    model = small(tmp_path / "m", family)
    wanted = logits(f"{model}@fp32")
    quantize(f"{model}@fp32+{transform}")
    found = logits(f"{model}@fp32+{transform}")
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", ["llama-biased", "qwen3"])
def test_all_transforms_together_keep_the_logits(tmp_path, shelf, family):
    model = small(tmp_path / "m", family)
    wanted, name = logits(f"{model}@fp32"), f"{model}@fp32+quarot+smooth+smoothattn"
    quantize(name)
    assert (logits(name) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("transform", ["quarot", "smooth", "smoothattn"])
def test_a_transform_changes_the_weights(tmp_path, shelf, monkeypatch, transform):
    """That the logits stay would hold of doing nothing, too."""
    model, written = small(tmp_path / "m"), listen(monkeypatch)
    quantize(f"{model}@fp32+{transform}")
    transformed = {unit: form.weight for unit, form in written.items()}
    quantize(f"{model}@fp32+awqscale")  # nothing is rounded, so no scale is better than none
    changed = [u for u, form in written.items() if not torch.equal(form.weight, transformed[u])]
    layers = {
        "quarot": {"qkv", "o", "gate_up", "down"},
        "smooth": {"qkv", "gate_up"},
        "smoothattn": {"qkv"},
    }
    assert {unit.rpartition(".")[2] for unit in changed} - {"lm_head"} == layers[transform]


def text_of(target: str, draft: Eagle2 | None) -> tuple[list[int], list[int]]:
    """Tokens, and how many a round."""
    config = Config(target=target, draft=draft, prompts=("0123",), max_new_tokens=24, threads=1)
    rounds = list(Session(config, record=False).rounds_of(0))
    tokens = [token for item in rounds for token in item.tokens]
    return tokens, [item.n_emitted for item in rounds]


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_rotated_head_lies_beside_its_model_and_drafts_the_same(tmp_path, shelf, family):
    model = small(tmp_path / "m", family, head=True)
    folder = quantize(f"{model}@fp32+quarot")
    head = folder.with_name(f"{folder.name}-eagle2")
    assert head.is_dir() and marks(head)["basis"] == marks(folder)["basis"]
    assert head_of(TREE, f"{model}@fp32+quarot") == (head, "fp32")
    tokens, rounds = text_of(f"{model}@fp32", TREE)
    assert text_of(f"{model}@fp32+quarot", TREE) == (tokens, rounds)
    assert text_of(f"{model}@fp32+quarot", None)[0] == tokens


def test_a_model_that_is_not_rotated_uses_its_source_s_head(tmp_path, shelf):
    model = small(tmp_path / "m", head=True)
    folder = quantize(f"{model}@w4a16-g32+hqq")
    assert head_of(TREE, f"{model}@w4a16-g32+hqq")[0] == tmp_path / "m-eagle2"
    assert not folder.with_name(f"{folder.name}-eagle2").exists()
    assert len(text_of(f"{folder}@w4a16-g32+hqq", TREE)[0]) == 24


def test_a_head_in_another_basis_is_refused_before_weights_are_read(tmp_path, shelf, monkeypatch):
    model = small(tmp_path / "m", head=True)
    rotated = f"{model}@fp32+quarot"
    folder = quantize(rotated)
    monkeypatch.setattr(pipeline, "Transformer", None)
    for target, head in (
        (rotated, f"{tmp_path / 'm-eagle2'}@fp32"),
        (f"{model}@fp32", f"{folder}-eagle2@fp32"),
    ):
        config = Config(target=target, draft=Eagle2(head=head), prompts=("0",), threads=1)
        with pytest.raises(ValueError, match="rotated.*`hspec quantize"):
            check(config)


def test_a_head_that_was_named_is_rotated_in_place_of_the_one_beside(tmp_path, shelf):
    model, other = small(tmp_path / "m", head=True), small(tmp_path / "n", head=True, seed=3)
    folder = quantize(f"{model}@fp32+quarot")
    beside = folder.with_name(f"{folder.name}-eagle2")
    assert marks(beside)["source"] == str(tmp_path / "m-eagle2")
    quantize(f"{model}@fp32+quarot", head=other.with_name("n-eagle2"))
    assert marks(beside)["source"] == str(tmp_path / "n-eagle2")
    # and again when that head is trained on
    before = (beside / "model.safetensors").read_bytes()
    change(other.with_name("n-eagle2"), lambda tensors: tensors["fc.weight"].mul_(2))
    quantize(f"{model}@fp32+quarot", head=other.with_name("n-eagle2"))
    assert (beside / "model.safetensors").read_bytes() != before


def test_a_head_that_cannot_be_rotated_is_refused_before_the_model_is(tmp_path, shelf):
    model, wide = small(tmp_path / "m"), small(tmp_path / "w", head=True, hidden_size=256)
    for name, message in (
        (wide.with_name("w-eagle2"), "a head for hidden size 256"),
        (tmp_path / "nowhere", "no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(f"{model}@fp32+quarot", head=name)
    with pytest.raises(ValueError, match="w8a8.smooth rotates nothing"):
        quantize(f"{model}@w8a8+smooth", head=wide.with_name("w-eagle2"))
    assert not shelf.exists()


def test_gains_of_zero_are_found_before_the_model_is_made(tmp_path, shelf):
    model = small(tmp_path / "m", head=True)
    change(model, lambda tensors: tensors["model.norm.weight"][:3].zero_())
    with pytest.raises(ValueError, match="3 gains of zero"):
        quantize(f"{model}@fp32+quarot")
    assert not shelf.exists()


def test_a_basis_depends_on_the_model_s_gains(tmp_path, shelf):
    one, other = small(tmp_path / "m"), small(tmp_path / "n", seed=3)
    bases = {marks(quantize(f"{m}@fp32+quarot"))["basis"] for m in (one, other)}
    assert len(bases) == 2 and rotate.orthogonal(128).shape == (128, 128)
