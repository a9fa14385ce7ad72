"""Quantized folders on kernels: the numbers that an algorithm chose, not rounded once more."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
from small import distance, forms_of, logits, marks, settle, small

from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.model.eagle import check_head_fits
from hspec_lab.model.fused import FusedHead, FusedTransformer
from hspec_lab.model.layer import interleave
from hspec_lab.quantize import quantize

FORMATS = {
    "w4a16-g128+gptq": 0.02,
    "w4a16-g128+quarot+gptq": 0.02,
    "w8a16+gptq": 0.02,
    "w3a16-g128+gptq": 0.02,
    "w16a16+quarot": 0.02,
    # rows have 127 levels a side here, 64 there
    "w8a8+smooth": 0.1,
    "w4a8-g128+qoq": 0.1,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return {family: small(root / family, family, head=True) for family in ("llama", "qwen2-tied")}


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return settle(monkeypatch, tmp_path / "shelf")


def fused(folder: Path, format: str, device: str) -> FusedTransformer:
    return FusedTransformer(Checkpoint(folder), format, device=device, dtype=torch.float16)


@pytest.mark.parametrize("format", FORMATS)
def test_logits_and_weights_are_those_of_the_folder(models, shelf, device, format):
    folder = quantize(f"{models['llama']}@{format}")
    model = fused(folder, format, device)
    cpu = Transformer(Checkpoint(folder), f"{format}+reference")
    assert distance(logits(model, 24), logits(cpu, 24)) < FORMATS[format]
    held = forms_of(folder)
    order = torch.cat([interleave(torch.arange(192), 32), torch.arange(192, 256)])
    for index, layer in enumerate(model.layers):
        for unit in ("qkv", "o", "gate_up", "down"):
            wanted = held[f"model.layers.{index}.{unit}"].dequantized()
            wanted = wanted[order] if unit == "qkv" else wanted
            assert_same(getattr(layer, unit), wanted)
    assert_same(model.lm_head, held["lm_head"].dequantized())


def assert_same(linear, wanted: torch.Tensor) -> None:
    """Scales and zeros are in fp16 here and in bf16 there: equal but for the smallest of fp16."""
    assert (linear.dequantized().cpu() - wanted).abs().max() < 1e-7


def test_a_tied_model_with_biases_keeps_its_chosen_weights(models, shelf, device):
    format = "w4a16-g32+gptq"
    folder = quantize(f"{models['qwen2-tied']}@{format}")
    model, cpu = fused(folder, format, device), Transformer(Checkpoint(folder), format)
    assert distance(logits(model, 24), logits(cpu, 24)) < 0.05  # rows are bf16 there
    nearest = Transformer(Checkpoint(models["qwen2-tied"]), "w4a16-g32")
    assert distance(logits(nearest, 24), logits(cpu, 24)) > 0.05


def test_a_rotated_head_drafts_over_its_rotated_model(models, shelf, device):
    """Features it guesses are those of the unrotated pair, turned."""
    rotated = quantize(f"{models['llama']}@w16a16+quarot")
    guesses = []
    for folder, format in ((models["llama"], "w16a16"), (rotated, "w16a16+quarot")):
        model = fused(folder, format, device)
        head_folder = Checkpoint(folder.with_name(f"{folder.name}-eagle2"))
        check_head_fits(head_folder, model)
        head = FusedHead(head_folder, "w16a16", model)
        ids = list(range(3, 15))
        with torch.inference_mode():
            features = model.read(ids, model.new_cache(16))
            tokens = torch.tensor(ids[1:] + [7], device=device)
            rows = head.geometry.path_rows(0, len(ids))
            guessed = head.forward(tokens, features, head.new_cache(16), rows)
            guesses.append(model.logits(guessed).cpu())
    assert distance(guesses[1], guesses[0]) < 0.02


def test_another_format_of_a_folder_is_refused_on_kernels_too(models, shelf, device):
    folder = quantize(f"{models['llama']}@w8a8+smooth")
    with pytest.raises(ValueError, match=r"holds w8a8\+smooth, so it cannot be read as w8a8"):
        fused(folder, "w8a8", device)


@pytest.mark.parametrize(
    "format,kind",
    [("w4a16-g128+svdquant", "low-rank w4a16-g128"), ("w3a16-g32+lim", "w[24]a16-g32")],
)
def test_forms_without_a_kernel_are_refused_in_one_line(models, shelf, device, format, kind):
    folder = quantize(f"{models['llama']}@{format}")
    assert marks(folder)["format"] == format
    with pytest.raises(ValueError, match=f"of the form '{kind}' has no kernel|{kind} has no ker"):
        fused(folder, format, device)
