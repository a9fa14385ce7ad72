"""An EAGLE head: one decoder layer that guesses the next feature from the last one.

Row i joins the embedding of token i + 1 with the model's feature i, maps them to one vector,
and runs a decoder layer without input norm; its output, read by the model's own output layer,
guesses token i + 2.

A rotated model has features in another basis, x' = x Q without the final norm's gain.  The head's
first matrix reads them, its decoder layer keeps its own basis, and `out.weight` [hidden, hidden]
takes the guess back to the model's: `hspec_lab.quantize.rotate` makes both.

    source  Li et al. 2024, EAGLE-2, arXiv 2406.16858
"""

import torch
from torch import Tensor

from hspec_lab.formats import Format
from hspec_lab.kv import KVCache
from hspec_lab.model.checkpoint import Checkpoint, basis_of, check_head
from hspec_lab.model.layer import DecoderLayer, Rows
from hspec_lab.model.shape import with_context
from hspec_lab.model.transformer import Geometry, Transformer
from hspec_lab.quant import make_linear


def check_head_fits(head: Checkpoint, model: Checkpoint) -> None:
    """ValueError when a head was made for a model of other sizes or in another basis.

    Args:
        model: anything with the model's `folder` and `shape`.
    """
    shape, theirs, over = head.shape, model.shape, model.folder.name
    if (shape.hidden, shape.vocab) != (theirs.hidden, theirs.vocab):
        raise ValueError(
            f"{head.folder}: a head for hidden size {shape.hidden} and vocabulary {shape.vocab}, "
            f"but {over} has {theirs.hidden} and {theirs.vocab}"
        )
    ours, needed = basis_of(head.folder), basis_of(model.folder)
    if ours == needed:
        return
    if needed is None:
        differs = f"this head is rotated (basis {ours}), but {over} is not"
    elif ours is None:
        differs = f"this head is not rotated, but {over} is (basis {needed})"
    else:
        differs = f"this head is rotated to basis {ours}, but {over} to {needed}"
    raise ValueError(f"{head.folder}: {differs}; make the head with `hspec quantize`")


class EagleHead:
    """A draft head over `model`, whose embedding and output layer it shares."""

    def __init__(self, checkpoint: Checkpoint, format: Format | str, model: Transformer):
        format = Format.parse(format) if isinstance(format, str) else format
        shape, theirs = checkpoint.shape, model.shape
        check_head_fits(checkpoint, model)
        check_head(checkpoint)
        self.shape, self.format, self.model = shape, str(format), model
        # a head follows its model to any position, whatever length it was trained on
        far = with_context(shape, theirs.context)
        self.geometry = Geometry(far, checkpoint.folder, False, model.device)
        fc = checkpoint.tensor("fc.weight").float()
        bias = checkpoint.optional("fc.bias")
        bias = None if bias is None else bias.float().to(model.device)
        self.fc = self._linear(fc, format, bias)
        self.layer = DecoderLayer(checkpoint, "layers.0", 0, format, False, model.device)
        out = checkpoint.optional("out.weight")
        self.out = None if out is None else self._linear(out.float(), format)

    def _linear(self, weight: Tensor, format: Format, bias: Tensor | None = None):
        weight = weight.to(self.model.device)
        return make_linear(weight, format.scheme, bias=bias, reference=format.reference)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one drafting pass reads, the shared output layer included."""
        own = self.fc.nbytes + self.layer.nbytes + (self.out.nbytes if self.out else 0)
        return own + self.model.lm_head.nbytes

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
        guessed = self.layer.forward(self.fc(joined), cache, rows)
        return guessed if self.out is None else self.out(guessed)
