"""Checkpoint folders read, changed layer by layer and written again; every family with biases."""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import FAMILIES, make_model

from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.model.checkpoint import model_tensors

ALL = {**FAMILIES, "llama-biased": {"attention_bias": True, "mlp_bias": True}}


def make(folder: Path, family: str, seed: int = 0, **fields) -> Path:
    """A tiny model of any family; biases that `make_model` leaves out are added."""
    fields = ALL[family] | fields
    make_model(folder, seed=seed, **fields)
    if "mlp_bias" in fields:
        generator, tensors = torch.Generator().manual_seed(seed), read(folder)
        for name, size in model_tensors(Checkpoint(folder).shape).items():
            if name not in tensors:
                tensors[name] = torch.randn(size, generator=generator) * 0.3
        save_file(tensors, folder / "model.safetensors")
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, fp32."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: t.float() for file in files for name, t in load_file(file).items()}


def layer_of(tensors: dict, index: int) -> dict[str, torch.Tensor]:
    """One layer's tensors without their prefix."""
    prefix = f"model.layers.{index}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def write(into: Path, like: Path, tensors: dict, **fields) -> Path:
    """A folder with other tensors, the config of `like` and its tokenizer."""
    into.mkdir(parents=True)
    config = json.loads((like / "config.json").read_text()) | fields
    (into / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, into / "model.safetensors")
    shutil.copy(like / "tokenizer.json", into)
    return into


def with_layers(folder: Path, into: Path, change) -> Path:
    """The same model with every layer's tensors replaced by change(tensors, shape, index)."""
    tensors, shape = read(folder), Checkpoint(folder).shape
    for i in range(shape.layers):
        layer = change(layer_of(tensors, i), shape, i)
        tensors |= {f"model.layers.{i}.{name}": t for name, t in layer.items()}
    return write(into, folder, tensors)


def load(folder: Path) -> Transformer:
    return Transformer(Checkpoint(folder), "fp32")


def features(model: Transformer, n: int = 40) -> torch.Tensor:
    """Features of n seeded tokens."""
    ids = torch.randint(0, model.shape.vocab, (n,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.read(ids.tolist(), model.new_cache(n))


def logits(folder: Path) -> torch.Tensor:
    model = load(folder)
    return model.logits(features(model))


def assert_same_logits(found: Path, wanted: Path) -> None:
    """fp32 logits differ by at most 1e-4 of their scale."""
    found, wanted = logits(found), logits(wanted)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def heard(model: Transformer, layer: int, unit: str) -> torch.Tensor:
    """The rows that flow into one unit (`qkv`, `o`, `gate_up`, `down`) while text is read."""
    owner, rows = model.layers[layer], []
    inner = getattr(owner, unit)

    def listen(x):
        rows.append(x.clone())
        return inner(x)

    setattr(owner, unit, listen)
    features(model)
    setattr(owner, unit, inner)
    return torch.cat(rows)
