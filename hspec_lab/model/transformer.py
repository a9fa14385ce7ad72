"""The decoder: token ids and a cache in, features and logits out.

`forward` computes features (the output of the final norm) for a path or a tree of tokens and
writes their keys and values *behind* the rows that count; `KVCache.commit` decides which stay.
Activations are fp32; weights are stored as the format says.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hspec_lab.formats import Format
from hspec_lab.kv import KVCache
from hspec_lab.model.checkpoint import Checkpoint, model_tensors
from hspec_lab.model.layer import DecoderLayer, Rows
from hspec_lab.model.shape import ModelShape, rope_table
from hspec_lab.quant import check_shape, make_linear
from hspec_lab.quant.embedding import Embedding
from hspec_lab.quant.kv_bits import rounding_of
from hspec_lab.sample import check_finite
from hspec_lab.tree import Tree, visible

PREFILL_CHUNK = 512


def check_format(shape: ModelShape, format: Format, check=None) -> None:
    """ValueError when a model of this shape cannot be stored in `format`.

    Args:
        check: (R, C, scheme) -> None, of the device's linear layers; the CPU's by default.
    """
    check = check or partial(check_shape, reference=format.reference)
    D, h, inner = shape.head_dim, shape.hidden, shape.inner
    for R, C in (
        ((shape.heads + 2 * shape.kv_heads) * D, h),
        (h, shape.heads * D),
        (2 * inner, h),
        (h, inner),
    ):
        check(R, C, format.scheme)
    check(shape.vocab, h, format.scheme.output)


def check_made(checkpoint: Checkpoint, format: Format) -> None:
    """ValueError when a folder of rounded weights is asked for in another format than its own."""
    held, asked = checkpoint.format, str(replace(format, reference=False))
    if held is not None and held != asked:
        raise ValueError(f"{checkpoint.folder}: holds {held}, so it cannot be read as {asked}")


class Geometry:
    """Positions and masks of forward passes, shared by models and draft heads."""

    def __init__(self, shape: ModelShape, folder: Path, row_invariant: bool, device: str):
        self.device = torch.device(device)
        self.row_invariant = row_invariant
        self.rotations = rope_table(shape, folder).to(device)

    def path_rows(self, start: int, n: int) -> Rows:
        """Rows of one path: row i sees everything stored and rows 0..i."""
        mask = None
        if n > 1 and start > 0 and not self.row_invariant:
            mask = torch.full((n, n), -torch.inf, device=self.device).triu_(1)
            mask = F.pad(mask, (start, 0))
        paths = [torch.arange(start + i + 1) for i in range(n)] if self.row_invariant else None
        rotation = self.rotations[start : start + n]
        return Rows(start, rotation, mask, causal=start == 0 and n > 1, paths=paths)

    def tree_rows(
        self, start: int, seen: Tensor, depths: list[int], hidden_before: int = 0
    ) -> Rows:
        """Rows of a tree: row j sees everything stored and the columns of `seen[j]`.

        Args:
            start: tokens stored, all of which every row sees.
            seen: bool [T, hidden_before + T], the last column block being the rows themselves.
            depths: T positions behind `start`.
            hidden_before: rows of earlier passes over the same tree, between the stored ones and
                these; a row sees of them what `seen` says.
        """
        first = start + hidden_before
        rotation = self.rotations[torch.tensor(depths) + start]
        if self.row_invariant:
            stored = torch.arange(start)
            paths = [torch.cat([stored, row.nonzero().flatten() + start]) for row in seen]
            return Rows(first, rotation, None, causal=False, paths=paths)
        mask = torch.zeros(len(depths), first + len(depths))
        mask[:, start:].masked_fill_(~seen, -torch.inf)
        return Rows(first, rotation, mask.to(self.device), causal=False, paths=None)


class Transformer:
    """A decoder-only language model in one storage format.

    Args:
        checkpoint: an opened Hugging Face folder.
        format: how weights, cache and rows are rounded, see `scheme`; or its name.
        row_invariant: compute each row's numbers in an order that no other row changes.
        n_known: entries of the tokenizer; output rows behind them are padding and never chosen.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        format: Format | str,
        *,
        row_invariant: bool = False,
        device: str = "cpu",
        n_known: int | None = None,
    ):
        shape = self.shape = checkpoint.shape
        format = Format.parse(format) if isinstance(format, str) else format
        checkpoint.check(model_tensors(shape))
        check_made(checkpoint, format)
        self.n_known = n_known or shape.vocab
        self.format, self.scheme, self.folder = str(format), format.scheme, checkpoint.folder
        self.device = torch.device(device)
        self.geometry = Geometry(shape, checkpoint.folder, row_invariant, device)
        embedding = checkpoint.tensor("model.embed_tokens.weight").float().to(device)
        self.embedding = Embedding.of(embedding, format.scheme.embedding)
        self.layers = [
            DecoderLayer(checkpoint, f"model.layers.{i}", i, format, row_invariant, device)
            for i in range(shape.layers)
        ]
        self.norm = checkpoint.tensor("model.norm.weight").float().to(device)
        head = checkpoint.form("lm_head")
        if head is None:
            head = embedding if shape.tied else checkpoint.tensor("lm_head.weight").float()
        kept = {"reference": format.reference, "row_invariant": row_invariant}
        self.lm_head = make_linear(head.to(device), format.scheme.output, **kept)

    @property
    def linears(self) -> list:
        """Every matrix product of a step, in the order in which they run."""
        return [*(linear for layer in self.layers for linear in layer.linears), self.lm_head]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as stored (embeddings: one row is read a step, not counted)."""
        return sum(linear.nbytes for linear in self.linears)

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that one decoding step reads here."""
        return sum(linear.bytes_read for linear in self.linears)

    def new_cache(self, capacity: int) -> KVCache:
        shape = self.shape
        sizes = shape.layers, shape.kv_heads, shape.head_dim, capacity
        rounding = rounding_of(self.scheme, shape.head_dim)
        return KVCache(*sizes, torch.float32, self.device, rounding)

    def forward(self, tokens: list[int], cache: KVCache, tree: Tree | None = None) -> Tensor:
        """Features of `tokens` behind what the cache holds; their rows are written, not committed.

        Args:
            tokens: T ids, one path unless `tree` is given (then `tree.tokens`).

        Returns:
            fp32 [T, hidden], the output of the final norm.
        """
        cache.check_room(len(tokens))
        if tree is None or tree.is_chain:
            rows = self.geometry.path_rows(cache.kv_len, len(tokens))
        else:
            seen = torch.from_numpy(visible(tree))
            rows = self.geometry.tree_rows(cache.kv_len, seen, tree.depths)
        x = self.embedding[torch.tensor(tokens, device=self.device)]
        for layer in self.layers:
            x = layer.forward(x, cache, rows)
        return F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.norm_eps)

    def logits(self, features: Tensor) -> Tensor:
        """fp32 [T, n_known] from features [T, hidden]; ValueError when one is not finite."""
        logits = self.lm_head(features)[:, : self.n_known]
        check_finite(logits, f"{self.folder.name}@{self.format}")
        return logits

    def read(self, tokens: list[int], cache: KVCache) -> Tensor:
        """Store a long path in chunks; features fp32 [T, hidden], committed."""
        features = []
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = tokens[start : start + PREFILL_CHUNK]
            features.append(self.forward(chunk, cache))
            cache.commit(list(range(len(chunk))))
        return torch.cat(features)
