"""Bits of each unit when a model's average is given: by a layer's scores, or by evolution."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.model.checkpoint import UNITS
from hspec_lab.quant import make_linear
from hspec_lab.quant.forms import rounded
from hspec_lab.quantize.allocate import allocate_by_score, lim_scores, zd_scores
from hspec_lab.quantize.evopress import EvoResult, evopress
from hspec_lab.quantize.fold import unit_weight
from hspec_lab.quantize.layers import Walk, read_layer
from hspec_lab.scheme import Scheme

LEVELS = (2, 3, 4, 6, 8)
_LAYER = "model.layers.{}.{}"


def near_levels(bits: int) -> tuple[int, ...]:
    """Widths that units may have when the average is `bits`: up to two steps around it.

    Raises:
        ValueError: nothing is below, so that nothing could be above; or nothing is above.
    """
    if bits not in LEVELS[1:-1]:
        raise ValueError(f"an average of {bits} bits leaves nothing to choose; take 3, 4 or 6")
    place = LEVELS.index(bits)
    return LEVELS[max(0, place - 2) : place + 3]


def widths_by_score(name: str, scheme: Scheme, checkpoint: Checkpoint, walk: Walk, tell):
    """Bits of each unit by its layer's importance: lim or zd.

    Args:
        walk: calibration rows before the first layer; they are taken through all layers.
        tell: called with layers done.

    Returns:
        bits by unit, `model.layers.0.qkv` ...
    """
    scores, sizes = [], []
    for index in range(checkpoint.shape.layers):
        tensors = read_layer(checkpoint, index)
        weights = [unit_weight(tensors, unit) for unit in UNITS]
        sizes.append(sum(weight.numel() for weight in weights))
        if name == "zd":
            scores.append(-zd_scores(weights))
        else:
            before = walk.rows.flatten(0, 1)
            walk.advance(tensors)
            scores += lim_scores([before], [walk.rows.flatten(0, 1)])
        tell(index + 1)
    levels = near_levels(scheme.bits)
    place = levels.index(scheme.bits)
    # the widths next to the average, on either side
    pair = levels[place + 1], levels[place - 1]
    bits = allocate_by_score(scores, sizes, target_bits=scheme.bits, bits=pair)
    return {_LAYER.format(i, unit): width for i, width in enumerate(bits) for unit in UNITS}


class Mixed:
    """A model whose units can be given other widths one by one, each rounded to nearest.

    The fp32 weights of one assignment are in memory, and all widths of all units in packed form.
    """

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, levels, windows):
        self.model = Transformer(checkpoint, "fp32")
        self.windows = windows
        self._linears, self._forms, self._now = {}, {}, {}
        for index, layer in enumerate(self.model.layers):
            for unit in UNITS:
                name, weight = _LAYER.format(index, unit), getattr(layer, unit).dequantized()
                self._linears[name] = layer, unit
                self._forms[name] = {b: rounded(weight, replace(scheme, bits=b)) for b in levels}
        self.sizes = {n: forms[levels[0]].shape for n, forms in self._forms.items()}
        with torch.inference_mode():
            self._wanted = [self._log_probs(window) for window in windows]

    def set(self, assignment: dict[str, int]) -> None:
        """Give every unit the width that is asked for."""
        for name, bits in assignment.items():
            if self._now.get(name) == bits:
                continue
            layer, unit = self._linears[name]
            bias = getattr(getattr(layer, unit), "bias", None)
            weight = self._forms[name][bits].dequantized()
            setattr(layer, unit, make_linear(weight, "fp32", bias=bias))
            self._now[name] = bits

    @torch.inference_mode()
    def loss(self, assignment: dict[str, int], n_tokens: int) -> float:
        """Mean divergence from the unrounded model, nats a token, over the first tokens."""
        self.set(assignment)
        total, n = 0.0, 0
        for window, wanted in zip(self.windows, self._wanted, strict=True):
            if n >= n_tokens:
                break
            found = self._log_probs(window)
            total += float((wanted.exp() * (wanted - found)).sum())
            n += len(window)
        return total / n

    def _log_probs(self, window: list[int]) -> Tensor:
        model = self.model
        features = model.forward(window, model.new_cache(len(window)))
        return torch.log_softmax(model.logits(features), dim=-1)


def widths_by_evolution(
    scheme: Scheme,
    checkpoint: Checkpoint,
    windows: list[list[int]],
    *,
    start: EvoResult | None = None,
    progress: Callable[[EvoResult], None] | None = None,
    generations: int = 40,
) -> EvoResult:
    """Bits of each unit by EvoPress.

    Args:
        windows: calibration tokens; 8 windows decide, fewer tell the worst apart.
        start: a result to go on from.
    """
    levels = near_levels(scheme.bits)
    mixed = Mixed(checkpoint, scheme, levels, windows[:8])
    length = len(windows[0])
    units = list(mixed.sizes)
    return evopress(
        units,
        [rows * columns for rows, columns in mixed.sizes.values()],
        levels,
        scheme.bits,
        mixed.loss,
        generations=generations,
        offspring=16,
        survivors=(4, 2, 1),
        tokens=tuple(min(n, len(windows)) * length for n in (1, 2, 8)),
        progress=progress,
        start=start,
    )
