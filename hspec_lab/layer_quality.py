"""Where a quantized model loses precision: loud channels, and the error of each layer.

Both look at a `Transformer` from outside while it reads text; models on kernels, whose units are
fused, have no inputs to look at.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from hspec_lab.model import Transformer
from hspec_lab.quality import Window

UNITS = ("qkv", "o", "gate_up", "down")
OUTLIER_FACTOR = 6.0


@torch.inference_mode()
def outlier_share(
    model: Transformer, windows: Sequence[Window], factor: float = OUTLIER_FACTOR
) -> pd.DataFrame:
    """Share of loud input channels of every unit.

    A channel is loud when its largest magnitude over all windows exceeds `factor` times that of
    the unit's median channel.

    Returns:
        layer, unit (qkv, o, gate_up, down), share (0..1), loudest (the largest channel over the
        median one).
    """
    absmax: dict[tuple[int, str], Tensor] = {}

    def listen(layer: int, unit: str, x: Tensor) -> None:
        largest = x.abs().amax(dim=0)
        known = absmax.get((layer, unit))
        absmax[layer, unit] = largest if known is None else torch.maximum(known, largest)

    with _tapped(model, listen):
        for window in windows:
            model.read(list(window.ids), model.new_cache(len(window.ids)))
    rows = []
    for (layer, unit), largest in sorted(absmax.items(), key=lambda item: _place(*item[0])):
        median = float(largest.median())
        share = float((largest > factor * median).float().mean())
        loudest = float(largest.max()) / median if median else math.inf
        rows.append((layer, unit, share, loudest))
    return pd.DataFrame(rows, columns=["layer", "unit", "share", "loudest"])


def _place(layer: int, unit: str) -> tuple[int, int]:
    return layer, UNITS.index(unit)


@contextmanager
def _tapped(model: Transformer, listen: Callable[[int, str, Tensor], None]) -> Iterator[None]:
    """Tell `listen` (layer, unit, input rows) whenever a unit multiplies."""
    units = [(layer, unit, getattr(layer, unit)) for layer in model.layers for unit in UNITS]

    def tap(layer, unit: str, linear):
        def heard(x: Tensor) -> Tensor:
            listen(layer.index, unit, x)
            return linear(x)

        return heard

    try:
        for layer, unit, linear in units:
            setattr(layer, unit, tap(layer, unit, linear))
        yield
    finally:
        for layer, unit, linear in units:
            setattr(layer, unit, linear)


@torch.inference_mode()
def layer_errors(
    model: Transformer, reference: Transformer, windows: Sequence[Window]
) -> pd.DataFrame:
    """How wrong each layer's output is, by itself and on top of the layers before it.

    Both models must keep their residual stream in the same basis: a model with rotated weights
    has no comparable stream, though its logits are.

    Returns:
        layer; own: |f'(x) - f(x)|^2 / |f(x) - x|^2, both layers reading the reference's stream x;
        accumulated: |x' - x|^2 / |x|^2 of the streams behind the layer, each model its own.

    Raises:
        ValueError: different numbers of layers or widths.
    """
    if (model.shape.layers, model.shape.hidden) != (reference.shape.layers, reference.shape.hidden):
        told = [f"{m.shape.layers} layers of {m.shape.hidden}" for m in (model, reference)]
        raise ValueError(f"models to compare must have the same layers, got {' and '.join(told)}")
    sums = torch.zeros(len(model.layers), 4, dtype=torch.float64)
    for window in windows:
        sums += _window_errors(model, reference, list(window.ids))
    own, contribution, apart, stream = sums.unbind(dim=1)
    errors = {"own": (own / contribution).tolist(), "accumulated": (apart / stream).tolist()}
    return pd.DataFrame({"layer": range(len(model.layers))} | errors)


def _window_errors(model: Transformer, reference: Transformer, ids: list[int]) -> Tensor:
    """Per layer the four squares of `layer_errors`, fp64 [layers, 4]."""
    tokens = torch.tensor(ids, device=model.device)
    x, ours = reference.embedding[tokens], model.embedding[tokens]
    caches = [owner.new_cache(len(ids)) for owner in (reference, model, model)]
    rows = [owner.geometry.path_rows(0, len(ids)) for owner in (reference, model)]
    found = []
    for layer, theirs in zip(model.layers, reference.layers, strict=True):
        right = theirs.forward(x, caches[0], rows[0])
        alone = layer.forward(x, caches[1], rows[1])
        ours = layer.forward(ours, caches[2], rows[1])
        pairs = ((alone, right), (right, x), (ours, right), (right, torch.zeros(())))
        found.append([float((one - other).double().square().sum()) for one, other in pairs])
        x = right
    return torch.tensor(found, dtype=torch.float64)
