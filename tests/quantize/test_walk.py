"""Calibration rows on their way through layers: what is overheard is what the model computes."""

import pytest
import torch
from rewrite import heard, load
from small import change, small, text

from hspec_lab.model import Checkpoint
from hspec_lab.quant.forms import rounded
from hspec_lab.quantize.fold import unit_weight
from hspec_lab.quantize.layers import LayerTensors, Walk, read_layer
from hspec_lab.quantize.text import Calibration
from hspec_lab.scheme import parse
from hspec_lab.text import load_tokenizer

UNITS = ("qkv", "o", "gate_up", "down")


def walk_of(checkpoint, n: int = 256) -> Walk:
    windows = Calibration((text(n),)).windows(load_tokenizer(checkpoint.folder), 64)
    return Walk(checkpoint, checkpoint.tensor("model.embed_tokens.weight"), windows)


@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen2", "qwen3", "llama3-rope"])
def test_rows_leave_the_layers_as_the_model_s_do(tmp_path, family):
    checkpoint = Checkpoint(small(tmp_path / "m", family))
    walk, model = walk_of(checkpoint), load(checkpoint.folder)
    for index in range(2):
        walk.advance(read_layer(checkpoint, index))
    ids = [ord(letter) - 48 for letter in text(256)]
    for place, rows in enumerate(walk.rows):
        window = ids[64 * place : 64 * place + 64]
        wanted = model.forward(window, model.new_cache(64))
        found = torch.nn.functional.rms_norm(rows, (128,), model.norm, model.shape.norm_eps)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert walk.rows.shape == (4, 64, 128)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_unit_is_overheard_with_the_rows_it_multiplies(tmp_path, family):
    checkpoint = Checkpoint(small(tmp_path / "m", family, max_position_embeddings=64))
    walk = walk_of(checkpoint)
    walk.advance(read_layer(checkpoint, 0))
    before = walk.rows.clone()
    inputs, _ = walk.overhear(read_layer(checkpoint, 1))
    assert torch.equal(walk.rows, before)  # listening is not walking
    model = load(checkpoint.folder)
    ids = [ord(letter) - 48 for letter in text(256)]
    for unit in UNITS:
        rows = []
        owner = model.layers[1]
        inner = getattr(owner, unit)
        setattr(owner, unit, lambda x, inner=inner, rows=rows: rows.append(x.clone()) or inner(x))
        for start in range(0, 256, 64):
            model.forward(ids[start : start + 64], model.new_cache(64))
        setattr(owner, unit, inner)
        x = torch.cat(rows)
        torch.testing.assert_close(inputs[unit].hessian, x.T @ x / 256, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(inputs[unit].absmax, x.abs().amax(0), rtol=1e-3, atol=1e-4)
        assert inputs[unit].n == 256 and len(inputs[unit].rows) == 256
    assert len(heard(model, 1, "o")) == 40


def test_the_loudest_keys_are_told_in_a_checkpoint_s_order(tmp_path):
    """Of channel 5 of the second key head; the pair that RoPE turns it with is 5 + 16."""

    def edit(tensors):
        tensors["model.layers.0.self_attn.k_proj.weight"][32 + 5] *= 1000

    checkpoint = Checkpoint(change(small(tmp_path / "m"), edit))
    _, keys = walk_of(checkpoint).overhear(read_layer(checkpoint, 0))
    assert keys.shape == (2 * 32,)
    assert set(keys.topk(2).indices.tolist()) == {32 + 5, 32 + 5 + 16}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rows_go_through_rounded_units_where_forms_are_given(tmp_path, family):
    checkpoint = Checkpoint(small(tmp_path / "m", family))
    tensors, scheme = read_layer(checkpoint, 0), parse("w2a16-g32")
    forms = {unit: rounded(unit_weight(tensors, unit), scheme) for unit in UNITS}
    plain, through = walk_of(checkpoint), walk_of(checkpoint)
    plain.advance(tensors)
    through.advance(tensors, forms)
    spelled = LayerTensors(checkpoint.shape, tensors, forms).tensors
    by_hand = walk_of(checkpoint)
    by_hand.advance(spelled)
    assert torch.equal(through.rows, by_hand.rows)
    assert (through.rows - plain.rows).abs().max() > 0.1
    assert torch.equal(unit_weight(spelled, "gate_up"), forms["gate_up"].dequantized())
    assert torch.equal(unit_weight(spelled, "qkv"), forms["qkv"].dequantized())


def test_a_layer_is_read_whole_in_fp32_with_its_biases(tmp_path):
    folder = small(tmp_path / "m", "qwen2")
    change(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    tensors = read_layer(Checkpoint(folder), 1)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32} and len(tensors) == 12
    assert "self_attn.q_proj.bias" in tensors and "input_layernorm.weight" in tensors
