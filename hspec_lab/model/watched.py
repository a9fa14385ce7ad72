"""The same model, its layers' parts timed: attention, mlp, lm_head.

A watched model shares every weight with the one it was made from, which itself is left as it is:
who does not ask for modules does not pay for them.  The embedding, the final norm and, of a draft
head, the matrix that joins token and feature lie outside of the three; what a phase's modules do
not add up to is that, and Python.
"""

from copy import copy

from torch import Tensor

from hspec_lab.kv import KVCache
from hspec_lab.model.eagle import EagleHead
from hspec_lab.model.layer import DecoderLayer, Rows
from hspec_lab.model.transformer import Transformer


def watched(model: Transformer, recorder) -> Transformer:
    """A model that tells `recorder` about its modules."""
    seen = copy(model)
    seen.layers = [_Layer(layer, recorder) for layer in model.layers]
    seen.lm_head = _Output(model.lm_head, recorder)
    return seen


def watched_head(head: EagleHead, model: Transformer, recorder) -> EagleHead:
    """A draft head that tells `recorder` about its layer; `model` is its watched model."""
    seen = copy(head)
    seen.model, seen.layer = model, _Layer(head.layer, recorder)
    return seen


class _Watched:
    """Everything that is not timed is the watched thing's own."""

    def __init__(self, inner, recorder):
        self._inner, self._recorder = inner, recorder

    def __getattr__(self, name: str):
        # copies and pickles ask before there is anything inside
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)


class _Layer(_Watched):
    """A `DecoderLayer`."""

    def forward(self, x: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        layer: DecoderLayer = self._inner
        recorder, n = self._recorder, len(x)
        with recorder.module("attention", layer.index, n):
            x = layer.attention(x, cache, rows)
        with recorder.module("mlp", layer.index, n):
            return layer.mlp(x)


class _Output(_Watched):
    """The output layer."""

    def __call__(self, features: Tensor) -> Tensor:
        with self._recorder.module("lm_head", -1, len(features)):
            return self._inner(features)
