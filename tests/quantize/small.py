"""Models of a few hundred kB that spell their text, and a shelf of their own to quantize onto."""

import json
import random
import sys
from functools import partial
from pathlib import Path

import torch
from rewrite import make
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_decode import spell
from tiny import make_head

from hspec_lab import zoo
from hspec_lab.model import Checkpoint
from hspec_lab.pipeline import Models
from hspec_lab.quantize import driver
from hspec_lab.quantize.folder import LayerFiles

# groups of 32, 64 and 128 divide every matrix
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
UNITS = [f"model.layers.{i}.{unit}" for i in (0, 1) for unit in ("qkv", "o", "gate_up", "down")]


def text(n: int, seed: int = 0) -> str:
    """So many tokens of a small model's vocabulary."""
    letters = random.Random(seed)
    return "".join(chr(48 + letters.randrange(64)) for _ in range(n))


def settle(monkeypatch, shelf: Path, generations: int = 2) -> Path:
    """Quantize onto a shelf of its own, with 16 short windows and a short search."""
    monkeypatch.setenv("HSPEC_MODELS", str(shelf))
    monkeypatch.setattr(zoo, "held_out", lambda part: [text(1024)])
    search = partial(driver.widths_by_evolution, generations=generations)
    monkeypatch.setattr(driver, "widths_by_evolution", search)
    return shelf


def small(folder: Path, family: str = "llama", head: bool = False, **fields) -> Path:
    """A model that takes one letter for one token; its head lies beside it."""
    made = spell(make(folder, family, **(SIZES | {"scale": 0.1} | fields)))
    if head:
        make_head(folder.with_name(folder.name + "-eagle2"), made, scale=0.1)
    return made


def change(folder: Path, edit) -> Path:
    """Rewrite a model's tensors, handed to `edit` by name."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def marks(folder: Path) -> dict:
    """What a quantized folder says of itself."""
    return json.loads((folder / "config.json").read_text())["hspec"]


def logits(model, n: int = 40) -> torch.Tensor:
    """Logits behind `n` seeded tokens; of a loaded model or a reference."""
    if isinstance(model, str):
        model = Models().transformer(model, False, "cpu")
    ids = torch.randint(0, model.shape.vocab, (n,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return model.logits(model.read(ids.tolist(), model.new_cache(n))).float().cpu()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square difference, relative."""
    return float(((found - wanted).square().mean() / wanted.square().mean()).sqrt())


def listen(monkeypatch) -> dict:
    """Forms as they are handed to be written, by unit."""
    written, put = {}, LayerFiles.put

    def heard(self, name, tensors, forms, *more, **options):
        written.update(forms)
        return put(self, name, tensors, forms, *more, **options)

    monkeypatch.setattr(LayerFiles, "put", heard)
    return written


def forms_of(folder: Path) -> dict:
    """Every form that a quantized folder holds."""
    checkpoint = Checkpoint(folder)
    return {unit: checkpoint.form(unit) for unit in marks(folder)["forms"]}
