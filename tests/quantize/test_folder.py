"""Files of forms: written whole or not at all, named whole or not at all, read back bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open
from small import small

from hspec_lab.model import Checkpoint
from hspec_lab.quant.forms import rounded
from hspec_lab.quantize.adadim import adadim
from hspec_lab.quantize.bitstack import stack_of
from hspec_lab.quantize.folder import LayerFiles, Unfinished
from hspec_lab.quantize.svdquant import svdquant
from hspec_lab.scheme import parse


def forms() -> dict:
    """One of every kind, by name."""
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    names = ("fp32", "w16a16", "w3a16-g32", "w6a16", "w4a8-g128", "mxfp4", "nf4", "fp8a16")
    found = {f"unit.{name}": rounded(weight, parse(name)) for name in names}
    loud = weight * torch.where(torch.arange(128) % 9 == 0, 50.0, 1.0)
    found["unit.per-input"] = adadim(loud, None, parse("w4a16-g32"))
    assert found["unit.per-input"].kind.startswith("per-input")
    found["unit.low-rank"] = svdquant(weight, None, parse("w4a16-g32"), rank=4)
    return found | {"unit.stack": stack_of(weight, None, blocks=3, rank=4)}


def test_every_kind_of_form_is_read_as_it_was_written(tmp_path):
    written, bias = forms(), torch.randn(5)
    LayerFiles(tmp_path).put("layer", {"some.bias": bias}, written)
    tensors, found = LayerFiles(tmp_path).get("layer")
    assert tensors.keys() == {"some.bias"} and torch.equal(tensors["some.bias"], bias)
    assert found.keys() == written.keys()
    for unit, form in written.items():
        assert type(found[unit]) is type(form) and found[unit].kind == form.kind
        assert found[unit].nbytes == form.nbytes
        assert torch.equal(found[unit].dequantized(), form.dequantized())


def test_the_same_content_has_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        LayerFiles(tmp_path).put(name, {"a.bias": torch.ones(3)}, forms())
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1] and len(list(tmp_path.iterdir())) == 2


def test_transposes_and_slices_can_be_written(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    LayerFiles(tmp_path).put("layer", {"t": whole.T, "s": whole[:, :2].clone()[::2]}, {})
    tensors, _ = LayerFiles(tmp_path).get("layer")
    assert torch.equal(tensors["t"], whole.T) and torch.equal(tensors["s"], whole[::2, :2])


def test_a_stopped_write_leaves_what_was_there(tmp_path, monkeypatch):
    files = LayerFiles(tmp_path)
    files.put("layer", {"a": torch.ones(3)}, {})

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    for name in ("layer", "next"):
        with pytest.raises(KeyboardInterrupt):
            files.put(name, {"a": torch.zeros(3)}, {})
    assert torch.equal(files.get("layer")[0]["a"], torch.ones(3)) and not files.has("next")


@pytest.fixture
def half(tmp_path):
    """An unfinished folder with two files, and the source it is made of."""
    source = small(tmp_path / "m")
    (source / "generation_config.json").write_text('{"eos_token_id": 7}')
    found = Unfinished(tmp_path / "shelf" / "m-made")
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    form = rounded(weight, parse("w4a16-g32"))
    found.put("layer-00000", {"a.bias": torch.ones(3)}, {"a.qkv": form}, {"a.qkv": 0.25})
    found.put("ends", {"e": torch.zeros(2)}, {"lm_head": form})
    return found, source


def test_a_finished_folder_says_what_it_holds_and_where(half):
    unfinished, source = half
    assert not unfinished.final.exists()
    folder = unfinished.finish(source, {"format": "w4a16-g32+gptq"})
    assert folder == unfinished.final and not unfinished.path.exists()
    hspec = json.loads((folder / "config.json").read_text())["hspec"]
    known = {"kind": "w4a16-g32", "shape": [64, 32]}
    assert hspec["forms"] == {"a.qkv": known, "lm_head": known}
    assert hspec["output_errors"] == {"a.qkv": 0.25} and hspec["format"] == "w4a16-g32+gptq"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        with safe_open(folder / file, framework="pt") as opened:
            assert name in opened.keys()
    assert {"a.bias", "e", "a.qkv/codes", "lm_head/scale"} <= index.keys()
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert Checkpoint(folder).shape.eos_ids == (7,)


def test_untying_is_said_in_the_config(half):
    unfinished, source = half
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    folder = unfinished.finish(source, {"untied": True})
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and "untied" not in config["hspec"]


def test_notes_are_for_a_run_that_goes_on_alone(half):
    unfinished, source = half
    assert unfinished.noted("search") is None
    unfinished.note("search", {"x": [1, 2.5]})
    unfinished.note("search", {"x": [3]})
    again = Unfinished(unfinished.final)
    assert again.noted("search") == {"x": [3]}
    assert {path.suffix for path in again.finish(source, {}).iterdir()} == {".json", ".safetensors"}
    assert not [p for p in unfinished.final.iterdir() if p.name.startswith("note")]


def test_a_folder_that_somebody_else_finished_stays(half):
    unfinished, source = half
    unfinished.final.mkdir()
    (unfinished.final / "theirs").write_text("x")
    assert unfinished.finish(source, {}) == unfinished.final
    assert [path.name for path in unfinished.final.iterdir()] == ["theirs"]
    assert not unfinished.path.exists()
