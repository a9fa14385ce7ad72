"""The shipped models: small, loadable by transformers unchanged, and as good as the card says."""

import json

import pytest
import torch
from tokenizers import Tokenizer

from hspec_lab import zoo
from hspec_lab.card import _held_out, compressed_bits_per_byte, evaluate_zoo
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.text import load_tokenizer
from hspec_lab.train.corpus import SourceFile
from hspec_lab.train.data import bits_per_byte


def test_weights_are_small_enough_to_ship():
    files = list(zoo.ROOT.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert max(path.stat().st_size for path in files) <= 16e6
    text = sum(path.stat().st_size for path in (zoo.ROOT / "text").iterdir())
    assert text <= 1e6


@pytest.mark.parametrize("name, low, high", [("target", 10e6, 15e6), ("intermediate", 2e6, 4e6)])
def test_models_have_the_promised_size_and_are_stored_in_bf16(name, low, high):
    checkpoint = Checkpoint(zoo.folder(name))
    tensors = [checkpoint.tensor(key) for key in checkpoint._files]
    assert low <= sum(tensor.numel() for tensor in tensors) <= high
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["target", "intermediate"])
def test_transformers_loads_models_and_tokenizer_unchanged(name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(zoo.folder(name), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder(name))
    prompt = zoo.prompts()[0]
    ids = tokenizer(prompt)["input_ids"]
    assert ids == load_tokenizer(zoo.folder(name)).encode(prompt).ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt
    model = Transformer(Checkpoint(zoo.folder(name)), "fp32")
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
        logits = model.logits(model.read(ids, model.new_cache(len(ids))))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


def test_all_levels_share_one_tokenizer():
    tokenizers = [load_tokenizer(zoo.folder(name)).to_str() for name in zoo.NAMES]
    assert len(set(tokenizers)) == 1


def test_prompts_come_from_the_held_out_modules_and_fit_the_context():
    texts, tokenizer = _held_out(), load_tokenizer(zoo.folder("target"))
    prompts = zoo.prompts()
    assert len(prompts) >= 16
    assert all(any(prompt in text for text in texts.values()) for prompt in prompts)
    assert max(len(tokenizer.encode(prompt)) for prompt in prompts) + 128 <= 1024


def test_the_licence_of_the_text_stands_beside_it():
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (zoo.ROOT / "text" / "LICENSE").read_text()


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(ValueError, match="no 'tagret'; it has target, intermediate"):
        zoo.folder("tagret")


class _AsTrained(torch.nn.Module):
    """The shipped model in the clothes that `bits_per_byte` expects."""

    def __init__(self):
        super().__init__()
        self.shipped = Transformer(Checkpoint(zoo.folder("target")), "fp32")
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        cache = self.shipped.new_cache(ids.shape[1])
        return self.shipped.logits(self.shipped.read(ids[0].tolist(), cache))[None]


@pytest.mark.slow
def test_the_target_compresses_held_out_text_better_than_xz():
    files = [SourceFile(name, "held_out", text) for name, text in _held_out().items()]
    tokenizer = Tokenizer.from_file(str(zoo.folder("target") / "tokenizer.json"))
    bits = bits_per_byte(_AsTrained(), files, tokenizer)
    assert bits < 1.5
    assert bits < compressed_bits_per_byte()


@pytest.mark.slow
def test_drafting_is_as_good_as_the_card_says():
    said = json.loads((zoo.ROOT / "measured.json").read_text())
    # rounding differs between processors, and one different token changes what follows it
    assert evaluate_zoo(len(zoo.prompts())) == pytest.approx(said, rel=0.03)


def test_the_card_states_what_a_reader_needs():
    card = (zoo.ROOT / "MODEL_CARD.md").read_text()
    for word in ("bits per byte", "loops", "xz -9e", "sha256", "hspec zoo train", "tokens seen"):
        assert word in card
    for name in json.loads((zoo.ROOT / "text" / "held_out.json").read_text()):
        assert name in card
