"""Whatever is wrong is said in one line, and before anything long begins."""

import json

import pytest
import torch
from small import SIZES, change, forms_of, settle, small, text

from hspec_lab.config import Config
from hspec_lab.experiment import Session
from hspec_lab.quantize import Calibration, driver, quantize
from hspec_lab.quantize.calibration import Inputs, InputSums


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small(tmp_path_factory.mktemp("refusals") / "m")


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return settle(monkeypatch, tmp_path / "shelf")


def refused(reference, message, *args, **options):
    """The one line with which something is refused."""
    with pytest.raises(ValueError, match=message) as caught:
        quantize(reference, *args, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "format,message",
    [
        ("fp32", "fp32 rounds to nearest when a model is loaded: nothing to make"),
        ("w4a16-g32", "nothing to make"),
        ("w16-g128", "16-bit weights are not rounded: leave out -g128"),
        ("w4a16-g32+gtpq", "unknown algorithm 'gtpq'.*known: .*gptq"),
        ("w4a16-g32+gptq+hqq", "one rounding at most, got gptq and hqq"),
        ("w2a16-g32+lim", "an average of 2 bits leaves nothing to choose; take 3, 4 or 6"),
        ("w8a16-g32+evopress", "an average of 8 bits leaves nothing to choose"),
        ("bitstack-0.01mb", "a budget of 0.01 MB: these 8 stacks take from 0.0.* MB"),
        ("bitstack-9mb", "a budget of 9 MB: .* to 0.* MB \\(all blocks\\)"),
        ("bitstack-0.3mb+awqscale", "a stack has not: leave out .awqscale"),
    ],
)
def test_a_format_is_refused_before_anything_is_read(model, shelf, monkeypatch, format, message):
    monkeypatch.setattr(driver, "Walk", None)
    monkeypatch.setattr(driver, "load_tokenizer", None)
    refused(f"{model}@{format}", message)
    assert not shelf.exists()


def test_groups_that_do_not_divide_are_told_with_both_sizes(tmp_path, shelf):
    odd = small(tmp_path / "odd", intermediate_size=192)
    refused(f"{odd}@w4a16-g128+gptq", "192 input features are not a multiple of 128")
    narrow = small(tmp_path / "narrow", num_key_value_heads=1, head_dim=16)
    line = refused(f"{narrow}@w4a16-g64+adadim", "groups of 64 along the outputs")
    assert "qkv has 96 outputs" in line and not shelf.exists()


def test_a_text_shorter_than_a_sequence_is_refused(model, shelf):
    refused(
        f"{model}@w4a16-g32+gptq", "has 63 tokens, one sequence needs 64", Calibration(("0" * 63,))
    )
    assert not shelf.exists()
    quantize(f"{model}@w4a16-g32+gptq", Calibration(("0" * 64,)))


def test_a_quantized_folder_is_no_source(model, shelf):
    folder = quantize(f"{model}@w4a16-g32+hqq")
    for format in ("w4a16-g32+hqq", "w3a16-g32+gptq", "fp32+quarot"):
        refused(f"{folder}@{format}", r"quantized already \(w4a16-g32\+hqq\).*name the folder")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
    ],
)
@pytest.mark.parametrize("format", ["w4a16-g32+gptq", "w4a16-g32+hqq", "fp32+quarot"])
def test_a_number_that_is_none_is_told_with_its_tensor(tmp_path, shelf, name, format):
    broken = small(tmp_path / "broken")
    change(
        broken, lambda tensors: tensors[name].flatten()[3:5].copy_(torch.tensor([torch.nan] * 2))
    )
    refused(f"{broken}@{format}", f"2 of .* in {name} are NaN or infinite")


@pytest.mark.parametrize("format", ["w4a16-g32+gptq", "w8a8+smooth", "bitstack-0.3mb"])
def test_rows_that_overflow_are_told_with_their_layer(tmp_path, shelf, format):
    broken = small(tmp_path / "broken")

    def edit(tensors):
        tensors["model.layers.1.input_layernorm.weight"] *= 1e30

    change(broken, edit)
    refused(f"{broken}@{format}", "model.layers.1.qkv: calibration rows overflow")


def test_a_singular_hessian_asks_for_more_damping_and_works_with_it(model, shelf, monkeypatch):
    result = InputSums.result

    def indefinite(self):
        seen = result(self)
        loss = 0.1 * seen.hessian.diagonal().mean() * torch.eye(len(seen.hessian))
        return Inputs(seen.hessian - loss, seen.absmax, seen.mean_abs, seen.rows, seen.n)

    monkeypatch.setattr(InputSums, "result", indefinite)
    name = f"{model}@w4a16-g32+gptq"
    line = refused(name, "model.layers.0.qkv: the Hessian is not positive definite")
    assert "raise_damping" in line and "damping 0.01" in line
    assert len(forms_of(quantize(name, raise_damping=True))) == 9


def test_a_unit_that_does_nothing_loses_nothing(tmp_path, shelf):
    """Pruned layers have matrices of zeros."""
    pruned = small(tmp_path / "pruned")
    change(pruned, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].zero_())
    for format in ("w4a16-g32+gptq", "w4a16-g32+awq", "bitstack-0.3mb"):
        folder = quantize(f"{pruned}@{format}")
        errors = json.loads((folder / "config.json").read_text())["hspec"]["output_errors"]
        assert errors["model.layers.1.down"] == 0 and all(e >= 0 for e in errors.values())


def test_a_missing_folder_a_missing_text_and_windows_of_nothing_are_refused(model, shelf, tmp_path):
    refused(f"{tmp_path}/nowhere@w4a16-g32+gptq", "no such folder")
    with pytest.raises(ValueError, match="nowhere.txt: cannot be read as text"):
        Calibration.of_files([tmp_path / "nowhere.txt"])
    for options in ({"sequences": 0}, {"length": -1}, {"length": 2.5}):
        with pytest.raises(ValueError, match="must be a whole number >= 1, got"):
            Calibration(**options)


def test_a_config_that_cannot_run_makes_nothing(model, shelf, tmp_path):
    """A level without an operator, or a mistake in another level, is found first."""
    nf4 = Config(target=f"{model}@nf4+gptq", prompts=("0",), threads=1)
    with pytest.raises(ValueError, match=r"no fast operator on cpu.*nf4\+gptq\+reference"):
        Session(nf4)
    narrow = small(
        tmp_path / "narrow", hidden_size=96, num_attention_heads=3, num_key_value_heads=1
    )
    shape = Config(target=f"{narrow}@w4a16-g32+gptq", prompts=("0",), threads=1)
    change(narrow, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ValueError, match="model.norm.weight is missing"):
        Session(shape)
    assert not shelf.exists() and SIZES["vocab_size"] == len(set(text(4096)))
