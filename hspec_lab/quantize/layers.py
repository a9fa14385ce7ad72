"""One decoder layer at a time: its tensors, what flows into its units, what it passes on.

Calibration rows walk through the model layer by layer, so that no more than a few layers' weights
are ever in memory beside what is stored.
"""

import torch
from torch import Tensor

from hspec_lab.formats import Format
from hspec_lab.kv import KVCache
from hspec_lab.model.checkpoint import UNITS, Checkpoint, layer_tensors
from hspec_lab.model.layer import DecoderLayer
from hspec_lab.model.shape import ModelShape
from hspec_lab.model.transformer import Geometry
from hspec_lab.quant.forms import Form
from hspec_lab.quantize.calibration import Inputs, InputSums

_FP32 = Format.parse("fp32")
_PREFIX = "layer"


class LayerTensors:
    """Tensors of one layer, standing in for a checkpoint; units may be replaced by forms."""

    def __init__(self, shape: ModelShape, tensors: dict[str, Tensor], forms=None):
        self.shape, self.tensors = shape, dict(tensors)
        # computed with what the forms stand for, in fp32: nothing rounds rows while calibrating
        for unit, form in (forms or {}).items():
            sizes = [len(tensors[f"{name}.weight"]) for name in UNITS[unit]]
            parts = form.dequantized().split(sizes)
            names = [f"{name}.weight" for name in UNITS[unit]]
            self.tensors |= dict(zip(names, parts, strict=True))

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name.removeprefix(_PREFIX + ".")]

    def optional(self, name: str) -> Tensor | None:
        return self.tensors.get(name.removeprefix(_PREFIX + "."))

    def form(self, unit: str) -> None:
        """Every unit is plain."""


def read_layer(checkpoint: Checkpoint, index: int) -> dict[str, Tensor]:
    """A layer's tensors in fp32, named without their prefix; biases too, where there are any.

    Raises:
        ValueError: a number that is not finite.
    """
    prefix = f"model.layers.{index}"
    names = layer_tensors(checkpoint.shape, prefix)
    return {name.removeprefix(prefix + "."): read_finite(checkpoint, name) for name in names}


def read_finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor in fp32; ValueError when a number of it is not finite."""
    tensor = checkpoint.tensor(name).float()
    if n_bad := tensor.numel() - int(tensor.isfinite().sum()):
        raise ValueError(
            f"{checkpoint.folder}: {n_bad} of {tensor.numel()} in {name} are NaN or infinite"
        )
    return tensor


class _Tap:
    """A matrix product that is overheard."""

    def __init__(self, inner, sums: InputSums):
        self.inner, self.sums = inner, sums

    def __call__(self, x: Tensor) -> Tensor:
        self.sums.add(x)
        return self.inner(x)


class Walk:
    """Calibration rows on their way through the layers.

    Attributes:
        rows: fp32 [windows, length, hidden], the residual stream before the next layer.
    """

    def __init__(self, checkpoint: Checkpoint, embedding: Tensor, windows: list[list[int]]):
        self.shape = checkpoint.shape
        self.rows = embedding[torch.tensor(windows)].float()
        self._geometry = Geometry(checkpoint.shape, checkpoint.folder, False, "cpu")
        self._path = self._geometry.path_rows(0, self.rows.shape[1])

    def overhear(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Inputs], Tensor]:
        """What flows into each unit of a layer, and the largest keys it stores.

        Returns:
            inputs: by unit.
            keys: fp32 [kv_heads * head_dim], largest magnitudes, channels as in a checkpoint.
        """
        layer = self._layer(LayerTensors(self.shape, tensors))
        n_rows = self.rows.shape[0] * self.rows.shape[1]
        sums = {unit: InputSums(n_rows) for unit in UNITS}
        for unit in UNITS:
            setattr(layer, unit, _Tap(getattr(layer, unit), sums[unit]))
        K, D = self.shape.kv_heads, self.shape.head_dim
        loudest = torch.zeros(K, D)
        for _, cache in self._passes(layer):
            keys = cache.rows(0, 0, self.rows.shape[1])[:, :K]
            loudest = torch.maximum(loudest, keys.abs().amax(0))
        # rotated pairs lie side by side in the cache, half a head apart in a checkpoint
        keys = loudest.view(K, D // 2, 2).transpose(1, 2).reshape(-1)
        return {unit: found.result() for unit, found in sums.items()}, keys

    def advance(self, tensors: dict[str, Tensor], forms: dict[str, Form] | None = None) -> None:
        """Take the rows through a layer, as it is or with rounded units."""
        layer = self._layer(LayerTensors(self.shape, tensors, forms))
        self.rows = torch.stack([rows for rows, _ in self._passes(layer)])

    def _layer(self, tensors: LayerTensors) -> DecoderLayer:
        return DecoderLayer(tensors, _PREFIX, 0, _FP32, False, "cpu")

    def _passes(self, layer: DecoderLayer):
        shape, length = self.shape, self.rows.shape[1]
        sizes = shape.kv_heads, shape.head_dim, length
        cache = KVCache(1, *sizes, torch.float32, torch.device("cpu"))
        for rows in self.rows:
            yield layer.forward(rows, cache, self._path), cache
