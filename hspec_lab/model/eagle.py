"""An EAGLE head: one decoder layer that guesses the next feature from the last one.

Row i joins the embedding of token i + 1 with the model's feature i, maps them to one vector,
and runs a decoder layer without input norm; its output, read by the model's own output layer,
guesses token i + 2.

    source  Li et al. 2024, EAGLE-2, arXiv 2406.16858
"""

from pathlib import Path

import torch
from torch import Tensor

from hspec_lab.kv import KVCache
from hspec_lab.model.checkpoint import Checkpoint, head_tensors
from hspec_lab.model.layer import DecoderLayer, Rows
from hspec_lab.model.shape import ModelShape, with_context
from hspec_lab.model.transformer import Geometry, Transformer
from hspec_lab.quant import make_linear


def check_head_fits(head: Checkpoint, model: Checkpoint) -> None:
    """ValueError when a head was made for a model of other sizes."""
    _check_sizes(head.folder, head.shape, model.folder, model.shape)


def _check_sizes(folder: Path, shape: ModelShape, over: Path, theirs: ModelShape) -> None:
    if (shape.hidden, shape.vocab) != (theirs.hidden, theirs.vocab):
        raise ValueError(
            f"{folder}: a head for hidden size {shape.hidden} and vocabulary {shape.vocab}, "
            f"but {over.name} has {theirs.hidden} and {theirs.vocab}"
        )


class EagleHead:
    """A draft head over `model`, whose embedding and output layer it shares."""

    def __init__(self, checkpoint: Checkpoint, format: str, model: Transformer):
        shape, theirs = checkpoint.shape, model.shape
        _check_sizes(checkpoint.folder, shape, model.folder, theirs)
        checkpoint.check(head_tensors(shape))
        self.shape, self.format, self.model = shape, format, model
        # a head follows its model to any position, whatever length it was trained on
        far = with_context(shape, theirs.context)
        self.geometry = Geometry(far, checkpoint.folder, False, model.device)
        fc = checkpoint.tensor("fc.weight").float()
        bias = checkpoint.optional("fc.bias")
        bias = None if bias is None else bias.float().to(model.device)
        self.fc = make_linear(fc.to(model.device), format, bias=bias)
        self.layer = DecoderLayer(checkpoint, "layers.0", 0, format, False, model.device)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one drafting pass reads, the shared output layer included."""
        return self.fc.nbytes + self.layer.nbytes + self.model.lm_head.nbytes

    def new_cache(self, capacity: int) -> KVCache:
        shape = self.shape
        return KVCache(
            1, shape.kv_heads, shape.head_dim, capacity, torch.float32, self.model.device
        )

    def forward(self, tokens: Tensor, features: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """Guess the features behind `tokens`; rows are written, not committed.

        Args:
            tokens: int64 [T], token i + 1 of row i.
            features: fp32 [T, hidden], feature i of row i (the model's, or a guess).

        Returns:
            fp32 [T, hidden].
        """
        joined = torch.cat([self.model.embedding[tokens], features], dim=-1)
        return self.layer.forward(self.fc(joined), cache, rows)
