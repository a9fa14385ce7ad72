"""Scales folded into what comes before a unit leave the logits alone and tame its inputs."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from rewrite import (
    ALL,
    assert_same_logits,
    heard,
    layer_of,
    load,
    logits,
    make,
    read,
    with_layers,
    write,
)

from hspec_lab.model import Checkpoint
from hspec_lab.quantize.calibration import InputSums
from hspec_lab.quantize.fold import (
    UNITS,
    fold_scale,
    shareable_o,
    smooth_attention,
    smooth_layer,
    smooth_scale,
    unit_weight,
)

INPUT_NORM, Q_PROJ = "input_layernorm.weight", "self_attn.q_proj.weight"


def random_scale(n: int, seed: int) -> torch.Tensor:
    """Positive numbers over two orders of magnitude."""
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed))).exp()


@pytest.fixture
def tiny(tmp_path):
    """One layer of a model whose query heads share key heads, and its shape."""
    folder = make(tmp_path / "tiny", "llama")
    return layer_of(read(folder), 0), Checkpoint(folder).shape


@pytest.mark.parametrize("family", ALL)
def test_random_scales_on_every_unit_leave_the_logits_alone(family, tmp_path):
    def change(tensors, shape, layer):
        for i, unit in enumerate(UNITS):
            s = random_scale(unit_weight(tensors, unit).shape[1], 4 * layer + i)
            s = shareable_o(s, shape) if unit == "o" else s
            tensors = fold_scale(tensors, shape, unit, s)
        return tensors

    folder = make(tmp_path / "m", family)
    assert_same_logits(with_layers(folder, tmp_path / "folded", change), folder)


@pytest.mark.parametrize("unit", UNITS)
def test_a_folded_units_inputs_are_divided_by_the_scale(unit, tmp_path):
    folder = make(tmp_path / "m", "llama-biased")
    shape = Checkpoint(folder).shape
    s = random_scale(unit_weight(layer_of(read(folder), 0), unit).shape[1], 7)
    s = shareable_o(s, shape) if unit == "o" else s

    def change(tensors, shape, layer):
        return fold_scale(tensors, shape, unit, s) if layer == 0 else tensors

    folded = with_layers(folder, tmp_path / "folded", change)
    found, wanted = (heard(load(where), 0, unit) for where in (folded, folder))
    torch.testing.assert_close(found, wanted / s, rtol=1e-4, atol=1e-5)


def test_folding_leaves_the_tensors_it_was_given(tiny):
    tensors, shape = tiny
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    fold_scale(tensors, shape, "qkv", torch.full((32,), 2.0))
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_scales_that_cannot_be_folded_are_refused(tiny):
    tensors, shape = tiny
    with pytest.raises(ValueError, match="2 query heads read each value head.*shareable_o"):
        fold_scale(tensors, shape, "o", random_scale(32, 0))
    with pytest.raises(ValueError, match=r"qkv: scales must be 32 positive.*\[32\] in 0\.\.0"):
        fold_scale(tensors, shape, "qkv", torch.zeros(32))
    with pytest.raises(ValueError, match=r"down: scales must be 64 positive.*\[32\]"):
        fold_scale(tensors, shape, "down", torch.ones(32))
    with pytest.raises(ValueError, match="'up' is no unit"):
        fold_scale(tensors, shape, "up", torch.ones(32))


def test_query_heads_of_a_value_head_share_the_geometric_mean(tiny):
    _, shape = tiny  # 4 query heads, 2 value heads, 8 channels
    s = torch.ones(4, 8)
    s[0], s[1], s[2, 3] = 2, 8, 9
    wanted = torch.ones(4, 8)
    wanted[:2], wanted[2:, 3] = 4, 3
    torch.testing.assert_close(shareable_o(s.flatten(), shape), wanted.flatten())


def test_smoothing_shares_the_range_as_published():
    x, w = torch.tensor([16.0, 4, 0, 3]), torch.tensor([1.0, 4, 2, 0])
    assert smooth_scale(x, w).tolist() == [4, 1, 1, 1]
    assert smooth_scale(x, w, 1.0).tolist() == [16, 4, 1, 1]
    assert smooth_scale(x, w, 0.0).tolist() == [1, 0.25, 1, 1]
    with pytest.raises(ValueError, match="alpha must be in 0..1, got 2"):
        smooth_scale(x, w, 2)


def inputs_of(folder: Path) -> list[dict]:
    """What flows into each unit, by layer."""
    found, model = [], load(folder)
    for layer in range(len(model.layers)):
        found.append({})
        for unit in UNITS:
            rows = heard(model, layer, unit)
            sums = InputSums(len(rows))
            sums.add(rows)
            found[-1][unit] = sums.result()
    return found


def test_smoothing_tames_loud_inputs_and_leaves_the_logits_alone(tmp_path):
    folder = make(tmp_path / "m", "llama")
    tensors = read(folder)
    for name in tensors:
        if name.endswith("layernorm.weight"):
            tensors[name][3] *= 100
            tensors[name][9] *= 30
    loud = write(tmp_path / "loud", folder, tensors)
    inputs, scales = inputs_of(loud), []

    def change(tensors, shape, layer):
        tensors, found = smooth_layer(tensors, shape, inputs[layer], units=tuple(UNITS))
        scales.append(found)
        return tensors

    smooth = with_layers(loud, tmp_path / "smooth", change)
    assert_same_logits(smooth, loud)
    smoothed = inputs_of(smooth)
    for before, after, scale in zip(inputs, smoothed, scales, strict=True):
        for unit in ("qkv", "gate_up"):
            assert after[unit].absmax.max() < 0.5 * before[unit].absmax.max()
        for unit in UNITS:
            wanted = before[unit].scaled(scale[unit]).absmax
            torch.testing.assert_close(after[unit].absmax, wanted, rtol=1e-3, atol=1e-4)


def test_as_published_only_units_behind_a_norm_are_smoothed(tmp_path):
    folder = make(tmp_path / "m", "llama")
    shape, inputs = Checkpoint(folder).shape, inputs_of(folder)[0]
    _, scales = smooth_layer(layer_of(read(folder), 0), shape, inputs)
    assert list(scales) == ["qkv", "gate_up"]


def keys(folder: Path) -> torch.Tensor:
    """fp32 [kv_heads * D], the largest keys that the first layer caches, in checkpoint order."""
    model = load(folder)
    K, D = model.shape.kv_heads, model.shape.head_dim
    cache = model.new_cache(40)
    with torch.inference_mode():
        model.read(list(range(40)), cache)
    stored = cache.rows(0, 0, 40)[:, :K].abs().amax(0)  # [K, D], rotated pairs side by side
    return stored.view(K, D // 2, 2).transpose(1, 2).flatten()


@pytest.mark.parametrize("family", ALL)
def test_smooth_attention_tames_keys_and_leaves_the_logits_alone(family, tmp_path):
    folder = make(tmp_path / "m", family)
    tensors, shape = read(folder), Checkpoint(folder).shape
    half = shape.head_dim // 2
    # a loud channel in every head
    loud = torch.ones(shape.head_dim)
    loud[[2, half + 2]] = 30
    for name in tensors:
        if "k_norm" in name or ("k_proj" in name and not shape.qk_norm):
            rows = loud.repeat(len(tensors[name]) // shape.head_dim)
            tensors[name] = tensors[name] * rows.view(-1, *[1] * (tensors[name].ndim - 1))
        if "q_norm" in name or ("q_proj" in name and not shape.qk_norm):
            tensors[name] = tensors[name] / 30
    before = write(tmp_path / "loud", folder, tensors)
    absmax = keys(before)

    def change(tensors, shape, layer):
        return smooth_attention(tensors, shape, absmax)

    smooth = with_layers(before, tmp_path / "smooth", change)
    assert_same_logits(smooth, before)
    after = keys(smooth)
    assert after.max() < 0.5 * absmax.max()
    by_pair = [one.view(-1, 2, half).amax(1) for one in (absmax, after)]
    if not shape.qk_norm:
        # alpha = 0.5: a pair's largest becomes its square root
        torch.testing.assert_close(by_pair[1], by_pair[0].sqrt(), rtol=1e-3, atol=0)


def test_keys_that_are_always_zero_keep_their_scale(tiny):
    tensors, shape = tiny
    smooth = smooth_attention(tensors, shape, torch.zeros(16))
    assert all(torch.equal(smooth[name], tensors[name]) for name in tensors)


def test_a_scale_forgotten_on_one_side_changes_the_logits(tmp_path):
    """The tests above could not pass by accident: what they compare does react."""
    folder = make(tmp_path / "m", "llama")

    def change(tensors, shape, layer):
        folded = fold_scale(tensors, shape, "qkv", random_scale(32, 0))
        return folded | {INPUT_NORM: tensors[INPUT_NORM]}

    half = with_layers(folder, tmp_path / "half", change)
    difference = (logits(half) - logits(folder)).abs().max()
    assert difference > 1e-2 * logits(folder).abs().max()
