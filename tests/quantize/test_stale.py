"""Nothing that changed is answered by what was there before; nothing foreign is loaded."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import change, marks, settle, small

from hspec_lab.config import Config, Eagle2, check_format
from hspec_lab.experiment import Session
from hspec_lab.measure import open_model
from hspec_lab.model import Checkpoint
from hspec_lab.pipeline import head_of
from hspec_lab.quant.forms import from_file, rounded
from hspec_lab.quantize import make_missing, quantize
from hspec_lab.scheme import parse

TREE = Eagle2(tree_size=6, depth=2, top_k=3)


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return settle(monkeypatch, tmp_path / "shelf")


def test_models_whose_files_look_alike_have_folders_of_their_own(tmp_path, shelf):
    one, other = small(tmp_path / "1" / "m"), small(tmp_path / "2" / "m", seed=5)
    for folder in (one, other):
        os.utime(folder / "model.safetensors", ns=(0, 10**18))
    assert quantize(f"{one}@w4a16-g32+hqq") != quantize(f"{other}@w4a16-g32+hqq")


def test_another_config_is_another_model(tmp_path, shelf):
    model = small(tmp_path / "m")
    before, folder = Checkpoint(model).fingerprint(), quantize(f"{model}@w4a16-g32+hqq")
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))
    assert Checkpoint(model).fingerprint() != before
    assert quantize(f"{model}@w4a16-g32+hqq") != folder


def test_a_head_that_was_trained_on_is_rotated_again_before_it_is_used(tmp_path, shelf):
    model = small(tmp_path / "m", head=True)
    config = Config(
        target=f"{model}@w4a16-g32+quarot", draft=TREE, prompts=("0123",), max_new_tokens=4
    )
    Session(config, record=False)
    rotated = head_of(TREE, config.target)[0]
    first = load_file(rotated / "model.safetensors")["fc.weight"]
    change(model.with_name("m-eagle2"), lambda tensors: tensors["fc.weight"].mul_(2))
    Session(config, record=False)
    assert torch.equal(load_file(rotated / "model.safetensors")["fc.weight"], 2 * first)


def test_a_head_that_came_later_is_rotated_too(tmp_path, shelf):
    model = small(tmp_path / "m")
    name = f"{model}@w4a16-g32+quarot"
    made = quantize(name)
    small(tmp_path / "n", head=True)
    shutil.copytree(tmp_path / "n-eagle2", tmp_path / "m-eagle2")
    make_missing([name])
    assert marks(made.with_name(made.name + "-eagle2"))["basis"] == marks(made)["basis"]


@pytest.mark.parametrize("format", ["w4a16-g128+gptq", "w3a16-g128+evopress", "bitstack-6mb"])
def test_made_up_weights_have_no_algorithm(format):
    with pytest.raises(ValueError, match="made-up weights are rounded to nearest"):
        open_model(f"shape:llama-3.2-1b@{format}", 8)


@pytest.mark.parametrize(
    "name, device, message",
    [
        ("w4a16-g128+adadim", "cpu", "adadim's groups along outputs"),
        ("w4a16-g128+svdquant", "cuda", "no fast operator on cuda .svdquant."),
        ("w4a16-g128+lim+gptq", "cuda", "no fast operator on cuda .lim."),
    ],
)
def test_forms_that_nothing_multiplies_are_refused_before_they_are_made(name, device, message):
    with pytest.raises(ValueError, match=message):
        check_format(name, device)
    assert check_format("w4a16-g128+gptq", device) and check_format(f"{name}+reference", "cpu")


@pytest.mark.parametrize("name", ["w4a16-g32", "w8a8", "w4a8-g128", "mxfp4"])
def test_damaged_forms_are_told_apart_from_whole_ones(name):
    whole = rounded(torch.randn(16, 256), parse(name))
    assert torch.equal(
        from_file(name, whole.tensors(), (16, 256)).dequantized(), whole.dequantized()
    )
    for key, tensor in whole.tensors().items():
        for wrong in (whole.tensors() | {key: tensor[:-1]}, _without(whole.tensors(), key)):
            with pytest.raises(ValueError, match="a form"):
                from_file(name, wrong, (16, 256))
    with pytest.raises(ValueError, match="zeros|scales of rows|scales|codes"):
        from_file(
            "w4a16-g32-sym" if name == "w4a16-g32" else "w6a16-g32", whole.tensors(), (16, 256)
        )


def _without(tensors: dict, key: str) -> dict:
    return {name: tensor for name, tensor in tensors.items() if name != key}


def test_a_named_head_in_another_basis_is_refused_before_anything_is_made(tmp_path, shelf):
    model = small(tmp_path / "m", head=True)
    named = Eagle2(tree_size=6, depth=2, top_k=3, head=f"{tmp_path / 'm-eagle2'}@fp32")
    config = Config(target=f"{model}@w4a16-g32+quarot", draft=named, prompts=("0",))
    with pytest.raises(ValueError, match="this head is not rotated, but"):
        Session(config)
    assert not shelf.exists()


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_made(tmp_path, shelf):
    config = Config(
        target=f"{small(tmp_path / 'm')}@w4a16-g32+gptq", prompts=("0" * 40,), max_new_tokens=40
    )
    with pytest.raises(ValueError, match="exceed the context"):
        Session(config)
    assert not shelf.exists()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, shelf, monkeypatch):
    def full(tensors, path, **options):
        save_file(tensors, path, **options)
        from safetensors import SafetensorError

        raise SafetensorError("No space left on device")

    monkeypatch.setattr("hspec_lab.quantize.folder.save_file", full)
    with pytest.raises(OSError, match="cannot be written .No space left"):
        quantize(f"{small(tmp_path / 'm')}@w4a16-g32+hqq")
