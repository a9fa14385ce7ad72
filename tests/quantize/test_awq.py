"""Scales and clipping found on one text make errors smaller on another."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from rewrite import assert_same_logits, layer_of, make, read, with_layers

from hspec_lab.model import Checkpoint
from hspec_lab.quant.forms import Plain, rounded
from hspec_lab.quantize.awq import awq, awq_clip, awq_layer, awq_scale
from hspec_lab.quantize.calibration import InputSums, output_error
from hspec_lab.quantize.fold import UNITS, unit_weight
from hspec_lab.scheme import parse

R, C = 48, 128
GRIDS = [
    "w4a16-g32", "w4a16-g128", "w4a16", "w4a16-g32-sym", "w3a16-g64", "w2a16-g64", "w8a8",
    "w4a8-g128", "w4a8", "mxfp4", "nf4", "fp8a16",
]  # fmt: skip


def inputs_of(rows):
    sums = InputSums(len(rows))
    sums.add(rows)
    return sums.result()


def problem(seed: int, C: int = C):
    """Weights, and two texts' inputs: correlated channels, a few of them loud."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    loudness = torch.ones(C)
    loudness[torch.randperm(C, generator=generator)[:4]] = 20
    mix = normal(C // 2, C) / (C // 2) ** 0.5
    texts = [(normal(n, C // 2) @ mix + 0.5 * normal(n, C)) * loudness for n in (1024, 512)]
    return normal(R, C), *map(inputs_of, texts)


@pytest.mark.parametrize("seed", range(10))
def test_scale_and_clip_beat_rounding_to_nearest_on_another_text(seed):
    scheme = parse("w4a16-g32")
    weight, seen, unseen = problem(seed)
    s = awq_scale(weight, seen, scheme)
    ours = awq(weight * s, seen.scaled(s), scheme).dequantized() / s
    scaled = rounded(weight * s, scheme).dequantized() / s
    nearest = rounded(weight, scheme).dequantized()
    errors = [output_error(weight, other, unseen.hessian) for other in (ours, scaled, nearest)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("name", GRIDS)
def test_no_grid_does_worse_than_rounding_to_nearest_on_the_text_it_saw(name):
    scheme = parse(name)
    weight, seen, _ = problem(3)
    nearest = rounded(weight, scheme).dequantized()
    least = output_error(weight, nearest, seen.hessian)
    s = awq_scale(weight, seen, scheme)
    scaled = rounded(weight * s, scheme).dequantized() / s
    assert output_error(weight, scaled, seen.hessian) <= least
    clipped = awq(weight, seen, scheme)
    assert clipped.shape == (R, C)
    assert clipped.kind == rounded(weight, scheme).kind
    lost = [((w - weight) @ seen.hessian * (w - weight)).sum(1)
            for w in (clipped.dequantized(), nearest)]  # fmt: skip
    assert (lost[0] <= lost[1] * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", [n for n in GRIDS if not n.startswith(("w8", "fp8"))])
def test_clipping_alone_makes_the_error_smaller(name):
    scheme = parse(name)
    weight, seen, _ = problem(4)
    nearest = rounded(weight, scheme).dequantized()
    clipped = awq(weight, seen, scheme).dequantized()
    errors = [output_error(weight, other, seen.hessian) for other in (clipped, nearest)]
    assert errors[0] < 0.99 * errors[1]


def test_a_group_alone_is_clipped_to_the_best_range_of_those_tried():
    """One group of one row, against the grid written out."""
    scheme = parse("w2a16-g32")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 32, generator=generator)
    seen = inputs_of(torch.randn(200, 32, generator=generator))
    errors = []
    for shrink in (1, 0.75, 0.5):
        # 4 levels over the shrunken range, as `Integers` has them
        spare = (weight.max() - weight.min()) * (1 - shrink) / 2
        low, high = weight.min() + spare, weight.max() - spare
        scale = ((high - low) / 3).bfloat16()
        zero = (low + 2 * scale.float()).bfloat16()
        codes = ((weight - zero.float()) / scale.float()).round().add(2).clamp(0, 3)
        other = (codes - 2) * scale.float() + zero.float()
        errors.append(output_error(weight, other, seen.hessian))
    found = awq_clip(weight, seen, scheme, least=0.5, n_shrinks=3).dequantized()
    assert output_error(weight, found, seen.hessian) == pytest.approx(min(errors), rel=1e-5)
    assert min(errors) < errors[0]


def test_groups_that_share_no_inputs_are_clipped_as_if_alone():
    scheme = parse("w3a16-g32")
    weight, seen, _ = problem(6)
    alone = torch.arange(C) // 32
    seen.hessian.mul_(alone[:, None] == alone)
    whole = awq(weight, seen, scheme).dequantized()
    for start in range(0, C, 32):
        part = slice(start, start + 32)
        own = replace(seen, hessian=seen.hessian[part, part])
        torch.testing.assert_close(whole[:, part], awq(weight[:, part], own, scheme).dequantized())


def test_without_inputs_the_weights_own_error_is_made_smaller():
    scheme = parse("w3a16-g64")
    weight, *_ = problem(5)
    errors = [(form.dequantized() - weight).square().view(R, 2, 64).sum(-1)
              for form in (awq(weight, None, scheme), rounded(weight, scheme))]  # fmt: skip
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() < 0.95 * errors[1].sum()


def test_what_is_not_rounded_is_not_clipped():
    weight, seen, _ = problem(0)
    form = awq(weight, seen, parse("w16a16"))
    assert isinstance(form, Plain)
    assert torch.equal(form.weight, rounded(weight, parse("w16a16")).weight)


def test_the_scale_is_a_centred_power_of_the_means():
    weight, seen, _ = problem(1)
    s = awq_scale(weight, seen, parse("w4a16-g32"))
    assert float(s.amax() * s.amin()) == pytest.approx(1, rel=1e-4)
    # log s is a line over log mean|x|, its slope one of 20 exponents
    x, y = seen.mean_abs.log(), s.log()
    slope = (y.amax() - y.amin()) / (x.amax() - x.amin())
    torch.testing.assert_close(y - y.mean(), slope * (x - x.mean()), rtol=0, atol=1e-4)
    assert 0 < float(slope) < 1
    assert float(slope * 20) == pytest.approx(round(float(slope * 20)), abs=1e-3)


def test_channels_that_are_silent_get_a_finite_scale():
    weight, seen, _ = problem(2)
    seen.mean_abs[7] = 0
    seen.hessian[7] = seen.hessian[:, 7] = 0
    s = awq_scale(weight, seen, parse("w4a16-g32"))
    assert torch.isfinite(s).all() and (s > 0).all()
    # it is among the quietest, and the others still get scales of their own
    assert s[7] == s.amin() and 1.1 < s.amax() / s.amin() < 1e4
    seen.mean_abs.zero_()
    assert (awq_scale(weight, seen, parse("w4a16-g32")) == 1).all()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "llama-biased"])
def test_scaling_a_whole_model_leaves_its_logits_alone(family, tmp_path):
    folder = make(tmp_path / "m", family)
    scheme, found = parse("w4a16-g32"), []
    widths = [unit_weight(layer_of(read(folder), 0), unit).shape[1] for unit in UNITS]
    seen = {unit: problem(i, C)[1] for i, (unit, C) in enumerate(zip(UNITS, widths, strict=True))}

    def change(tensors, shape, layer):
        tensors, scales = awq_layer(tensors, shape, seen, scheme)
        found.append(scales)
        return tensors

    assert_same_logits(with_layers(folder, tmp_path / "scaled", change), folder)
    assert all(set(scales) == set(UNITS) for scales in found)
    assert all((s.amax() / s.amin() > 1.1).item() for s in found[0].values())


def test_a_layers_scales_make_its_units_errors_smaller(tmp_path):
    folder = make(tmp_path / "m", "llama", hidden_size=64, intermediate_size=128)
    tensors, shape = layer_of(read(folder), 0), Checkpoint(folder).shape
    seen = {unit: problem(i, unit_weight(tensors, unit).shape[1])[1]
            for i, unit in enumerate(UNITS)}  # fmt: skip
    scheme = parse("w3a16-g32")
    changed, scales = awq_layer(tensors, shape, seen, scheme)
    for unit in UNITS:
        before, after = unit_weight(tensors, unit), unit_weight(changed, unit)
        errors = [
            output_error(before, rounded(before, scheme).dequantized(), seen[unit].hessian),
            output_error(
                after, rounded(after, scheme).dequantized(), seen[unit].scaled(scales[unit]).hessian
            ),
        ]
        assert errors[1] < errors[0]
