"""Bits by layer or unit within an average, by scores of layers and by search."""

from functools import partial

import pytest
import torch
from small import UNITS, change, logits, small, text

from hspec_lab.model import Checkpoint
from hspec_lab.quant.forms import rounded
from hspec_lab.quantize import widths
from hspec_lab.quantize.layers import Walk
from hspec_lab.quantize.text import Calibration
from hspec_lab.quantize.widths import Mixed, near_levels, widths_by_evolution, widths_by_score
from hspec_lab.scheme import parse
from hspec_lab.text import load_tokenizer

SCHEME = parse("w3a16-g32")


@pytest.fixture
def model(tmp_path):
    """Four layers; the third changes its rows most."""

    def edit(tensors):
        for i in (0, 1, 3):
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                tensors[f"model.layers.{i}.{name}.weight"] *= 0.05

    return Checkpoint(change(small(tmp_path / "m", num_hidden_layers=4), edit))


def windows_of(checkpoint) -> list[list[int]]:
    tokenizer = load_tokenizer(checkpoint.folder)
    return Calibration((text(256),)).windows(tokenizer, checkpoint.shape.context)


def walk_of(checkpoint) -> Walk:
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    return Walk(checkpoint, embedding, windows_of(checkpoint))


def average(checkpoint, found: dict[str, int]) -> float:
    mixed = Mixed(checkpoint, SCHEME, (2, 3), windows_of(checkpoint)[:1])
    sizes = {name: R * C for name, (R, C) in mixed.sizes.items()}
    return sum(sizes[name] * bits for name, bits in found.items()) / sum(sizes.values())


@pytest.mark.parametrize(
    "bits,levels", [(3, (2, 3, 4, 6)), (4, (2, 3, 4, 6, 8)), (6, (3, 4, 6, 8))]
)
def test_levels_lie_on_both_sides_of_the_average(bits, levels):
    assert near_levels(bits) == levels


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_an_average_with_nothing_on_one_side_is_refused(bits):
    with pytest.raises(ValueError, match=f"an average of {bits} bits leaves nothing to choose"):
        near_levels(bits)


@pytest.mark.parametrize("name", ["lim", "zd"])
def test_half_of_the_layers_have_the_higher_width(model, name):
    told = []
    found = widths_by_score(name, SCHEME, model, walk_of(model), told.append)
    assert told == [1, 2, 3, 4] and len(found) == 4 * 4
    layers = [{found[f"model.layers.{i}.{unit}"] for unit in UNIT_NAMES} for i in range(4)]
    assert sorted(bits for layer in layers for bits in layer) == [2, 2, 4, 4]
    assert average(model, found) == 3


UNIT_NAMES = [name.rpartition(".")[2] for name in UNITS[:4]]


def test_lim_keeps_the_layer_that_turns_its_rows_most(model):
    found = widths_by_score("lim", SCHEME, model, walk_of(model), lambda n: None)
    assert found["model.layers.2.down"] == 4


def test_zd_keeps_layers_with_few_weights_far_out(tmp_path):
    def edit(tensors):
        for name, tensor in tensors.items():
            if "layers.1" in name and "proj" in name:  # nothing is far from the mean
                tensor.copy_(tensor.sign())
                tensor.flatten()[::7] *= 40

    checkpoint = Checkpoint(change(small(tmp_path / "m"), edit))
    found = widths_by_score("zd", SCHEME, checkpoint, walk_of(checkpoint), lambda n: None)
    assert (found["model.layers.0.o"], found["model.layers.1.o"]) == (2, 4)


def test_a_mixed_model_computes_with_the_widths_it_is_given(model):
    levels, windows = (2, 3, 8), windows_of(model)
    mixed = Mixed(model, SCHEME, levels, windows)
    assignment = {name: levels[i % 3] for i, name in enumerate(mixed.sizes)}
    mixed.set(assignment)
    for index, layer in enumerate(mixed.model.layers):
        plain = Mixed(model, SCHEME, levels, windows[:1]).model.layers[index]
        for unit in UNIT_NAMES:
            bits = assignment[f"model.layers.{index}.{unit}"]
            scheme = parse(f"w{bits}a16-g32-zp" if bits == 8 else f"w{bits}a16-g32")
            wanted = rounded(getattr(plain, unit).dequantized(), scheme).dequantized()
            assert torch.equal(getattr(layer, unit).dequantized(), wanted)


@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen2"])
def test_a_loss_is_the_divergence_from_the_unrounded_model(tmp_path, family):
    checkpoint = Checkpoint(small(tmp_path / "m", family))
    windows = windows_of(checkpoint)
    mixed = Mixed(checkpoint, SCHEME, (2, 3, 8), windows)
    losses = [mixed.loss(dict.fromkeys(mixed.sizes, bits), 128) for bits in (2, 3, 8)]
    assert losses[0] > losses[1] > 10 * losses[2] > 0
    # by hand, over the first two windows of 64
    uniform, total = dict.fromkeys(mixed.sizes, 3), 0.0
    mixed.set(uniform)
    unrounded = Mixed(checkpoint, SCHEME, (2,), windows[:1]).model
    for window in windows[:2]:
        p, q = (
            torch.log_softmax(m.logits(m.read(window, m.new_cache(64))), -1).double()
            for m in (unrounded, mixed.model)
        )
        total += float((p.exp() * (p - q)).sum())
    assert mixed.loss(uniform, 128) == pytest.approx(total / 128, rel=1e-3)
    assert torch.equal(logits(unrounded), logits(f"{checkpoint.folder}@fp32"))


def test_evolution_loses_less_than_one_width_for_all_and_stays_within_it(model):
    windows = windows_of(model)
    found = widths_by_evolution(SCHEME, model, windows, generations=4)
    uniform = Mixed(model, SCHEME, (3,), windows)
    tokens = min(8, len(windows)) * len(windows[0])
    assert found.fitness < uniform.loss(dict.fromkeys(uniform.sizes, 3), tokens)
    assert average(model, found.assignment) <= 3 and len(found.history) == 5
    assert set(found.assignment.values()) <= {2, 3, 4, 6}


def test_evolution_goes_on_from_a_result_as_if_it_had_never_stopped(model):
    search = partial(widths_by_evolution, SCHEME, model, windows_of(model))
    seen = []
    whole = search(generations=3, progress=seen.append)
    assert seen[-1] == whole and search(generations=3, start=seen[1]) == whole
    assert widths.LEVELS == (2, 3, 4, 6, 8)
