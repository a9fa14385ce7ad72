"""The decoder on the project's own kernels: 16-bit rows, the cache's length in device memory.

The same questions as `Transformer` (`forward`, `logits`, `read`, `new_cache`), so that `verify`
and `draft` work over either.  A layer is eight launches and the pass between two rounds reads
nothing back: tree, depths and the cache's length lie on the device.  The residual stream is fp32.

Interpreted (TRITON_INTERPRET=1) it runs on a CPU, slowly, which is how it is tested without a GPU;
there rows are fp16, because the interpreter cannot compute in bf16.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hspec_lab.formats import Format
from hspec_lab.kv import DeviceCache
from hspec_lab.model.checkpoint import UNITS, Checkpoint, check_head, model_tensors
from hspec_lab.model.eagle import check_head_fits
from hspec_lab.model.layer import interleave, unit_weights
from hspec_lab.model.shape import ModelShape, rope_table, with_context
from hspec_lab.model.transformer import PREFILL_CHUNK, check_made
from hspec_lab.quant.device import check_triton, make_device_linear
from hspec_lab.quant.kv_bits import check_device_kv
from hspec_lab.sample import check_finite
from hspec_lab.tree import Tree, ancestor_bitsets, pack_bits


class FusedLayer:
    """Weights of one layer, and its launches.

    Args:
        cos, sin: fp32 [positions, head_dim / 2].
    """

    def __init__(
        self,
        checkpoint,
        prefix: str,
        format: Format,
        cos: Tensor,
        sin: Tensor,
        *,
        dtype: torch.dtype,
        row_invariant: bool,
    ):
        shape, D, device = checkpoint.shape, checkpoint.shape.head_dim, cos.device
        self.eps, self.cos, self.sin, self.row_invariant = shape.norm_eps, cos, sin, row_invariant

        def linear(unit: str):
            weight, bias = unit_weights(checkpoint, prefix, unit)
            bias = None if bias is None else bias.to(device)
            kept = {"bias": bias, "row_invariant": row_invariant}
            return make_device_linear(weight.to(device), format.scheme, dtype, **kept)

        def norm(name: str) -> Tensor | None:
            weight = checkpoint.optional(f"{prefix}.{name}.weight")
            return None if weight is None else weight.float().to(device)

        self.qkv, self.o, self.gate_up, self.down = map(linear, UNITS)
        self.input_norm, self.post_norm = norm("input_layernorm"), norm("post_attention_layernorm")
        self.q_norm = self.k_norm = None
        if shape.qk_norm:
            self.q_norm = interleave(norm("self_attn.q_norm"), D)
            self.k_norm = interleave(norm("self_attn.k_norm"), D)

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + self.o.nbytes + self.gate_up.nbytes + self.down.nbytes

    def forward(self, y, total, kv, kv_len, depths, ancestors, kv_scale=None) -> Tensor:
        """Attention and MLP of rows `y`; attention's share is added to `total`, the MLP's returned.

        Args:
            y: dtype [T, hidden], normed; total: fp32 [T, hidden], the residual stream.
            kv: [capacity, 2 * kv_heads, head_dim], this layer's cache; written behind kv_len.
            kv_len: int32 [1].
            depths, ancestors: as in `FusedTransformer.run`.
            kv_scale: fp16 [capacity, 2 * kv_heads], of an int8 `kv`; written likewise.
        """
        from hspec_kernels.rms_norm import rms_norm
        from hspec_kernels.rope_and_append import rope_and_append
        from hspec_kernels.silu_mul import silu_mul
        from hspec_kernels.tree_attention import tree_attention

        q = rope_and_append(
            self.qkv(y),
            self.cos,
            self.sin,
            depths,
            kv,
            kv_len,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            eps=self.eps,
            kv_scale=kv_scale,
            trusted=True,
        )
        # trees are checked where they are made, and `check_room` has looked at the cache
        how = {"kv_scale": kv_scale, "row_invariant": self.row_invariant, "trusted": True}
        y = tree_attention(q, kv, kv_len, ancestors, **how)
        y = self.o(y.flatten(1))
        _, y = rms_norm(y, self.post_norm, self.eps, residual=total, total=total)
        return self.down(silu_mul(self.gate_up(y)))


def rotations(shape: ModelShape, folder: Path, device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE, fp32 [positions, head_dim / 2]."""
    table = rope_table(shape, folder)[:, 0].to(device)
    return table.real.contiguous(), table.imag.contiguous()


class FusedTransformer:
    """A decoder-only language model on Triton kernels.

    Args:
        checkpoint: an opened Hugging Face folder, or a synthetic one.
        format: one of `quant.device.DEVICE_FORMATS`; the output layer keeps at least 8 bits.
        row_invariant: compute each row's numbers in an order that no other row changes.
        dtype: fp16 or bf16, of activations, and of the cache unless it has 8 bits.
        n_known: entries of the tokenizer; output rows behind them are padding and never chosen.

    Raises:
        ValueError: a format without a kernel, a head dimension no kernel takes, no triton.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        format: Format | str,
        *,
        row_invariant: bool = False,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        n_known: int | None = None,
    ):
        check_triton()
        from hspec_kernels.tree_attention import HEAD_DIMS

        shape = self.shape = checkpoint.shape
        if shape.head_dim not in HEAD_DIMS:
            raise ValueError(
                f"{checkpoint.folder}: head dimension {shape.head_dim} has no attention kernel; "
                f"those with one: {', '.join(map(str, HEAD_DIMS))}"
            )
        format = Format.parse(format) if isinstance(format, str) else format
        checkpoint.check(model_tensors(shape))
        check_made(checkpoint, format)
        self.format, self.scheme, self.dtype = str(format), format.scheme, dtype
        self.folder = checkpoint.folder
        self.device, self.row_invariant = torch.device(device), row_invariant
        self.n_known = n_known or shape.vocab
        self.embedding = checkpoint.tensor("model.embed_tokens.weight").to(dtype).to(device)
        turns = rotations(shape, checkpoint.folder, device)
        kept = {"dtype": dtype, "row_invariant": row_invariant}
        self.layers = [
            FusedLayer(checkpoint, f"model.layers.{i}", format, *turns, **kept)
            for i in range(shape.layers)
        ]
        self.norm = checkpoint.tensor("model.norm.weight").float().to(device)
        head = checkpoint.form("lm_head")
        if head is None:
            head = self.embedding if shape.tied else checkpoint.tensor("lm_head.weight")
            head = head.float()
        self.lm_head = make_device_linear(head.to(device), format.scheme.output, **kept)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decoding step reads (embeddings: one row, not counted)."""
        return sum(layer.nbytes for layer in self.layers) + self.lm_head.nbytes

    bytes_read = nbytes

    def new_cache(self, capacity: int) -> DeviceCache:
        shape, bits = self.shape, self.scheme.kv
        check_device_kv(bits)
        dtype = torch.int8 if bits == 8 else self.dtype
        return DeviceCache(
            shape.layers, shape.kv_heads, shape.head_dim, capacity, dtype, self.device
        )

    def forward(self, tokens: list[int], cache: DeviceCache, tree: Tree | None = None) -> Tensor:
        """Features of `tokens` behind what the cache holds; their rows are written, not committed.

        Args:
            tokens: T ids, one path unless `tree` is given (then `tree.tokens`).

        Returns:
            dtype [T, hidden], the output of the final norm.
        """
        cache.check_room(len(tokens))
        ids = torch.tensor(tokens, device=self.device)
        if tree is None or tree.is_chain:
            depths = torch.arange(len(tokens), dtype=torch.int32, device=self.device)
            return self.run(ids, depths, None, cache)
        ancestors = torch.from_numpy(ancestor_bitsets(tree).view(np.int64).copy())
        depths = torch.tensor(tree.depths, dtype=torch.int32, device=self.device)
        return self.run(ids, depths, ancestors.to(self.device), cache)

    def run(self, ids: Tensor, depths: Tensor, ancestors: Tensor | None, cache) -> Tensor:
        """The launches of one pass; nothing is read back.

        Args:
            ids: int32 or int64 [T].
            depths: int32 [T], levels behind what the cache holds.
            ancestors: int64 [T, ceil(T / 64)] bitsets; None for a path.
        """
        from hspec_kernels.rms_norm import rms_norm

        x, eps = self.embedding.index_select(0, ids), self.shape.norm_eps
        total = x.float()
        y = rms_norm(x, self.layers[0].input_norm, eps)
        norms = [*(layer.input_norm for layer in self.layers[1:]), self.norm]
        for (kv, kv_scale), layer, next_norm in zip(
            cache.by_layer(), self.layers, norms, strict=True
        ):
            y = layer.forward(y, total, kv, cache.kv_len_on_device, depths, ancestors, kv_scale)
            _, y = rms_norm(y, next_norm, eps, residual=total, total=total)
        return y

    def logits(self, features: Tensor) -> Tensor:
        """fp32 [T, n_known] from features [T, hidden]; ValueError when one is not finite."""
        features = features.to(self.dtype).contiguous()
        logits = self.lm_head(features)[:, : self.n_known].float()
        check_finite(logits, f"{self.folder.name}@{self.format}")
        return logits

    def read(self, tokens: list[int], cache: DeviceCache) -> Tensor:
        """Store a long path in chunks; features [T, hidden], committed."""
        features = []
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = tokens[start : start + PREFILL_CHUNK]
            features.append(self.forward(chunk, cache))
            cache.commit(list(range(len(chunk))))
        return torch.cat(features)


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows of a head's pass: of a path, or of one level of a tree (`seen` bool [T, before + T])."""

    depths: list[int]
    seen: Tensor | None
    hidden_before: int


class HeadGeometry:
    """What `draft.Eagle2Drafter` asks before a pass."""

    def path_rows(self, start: int, n: int) -> HeadRows:
        return HeadRows(list(range(n)), None, 0)

    def tree_rows(self, start: int, seen: Tensor, depths, hidden_before: int = 0) -> HeadRows:
        return HeadRows(list(depths), seen, hidden_before)


class FusedHead:
    """An EAGLE head on kernels, over a `FusedTransformer`; the questions of `EagleHead`.

    A level of a tree runs together with the levels above it, once more: kernels attend from the
    rows they have just written, and a few more rows cost no time where launches do.
    """

    geometry = HeadGeometry()

    def __init__(self, checkpoint: Checkpoint, format: Format | str, model: FusedTransformer):
        format = Format.parse(format) if isinstance(format, str) else format
        check_head_fits(checkpoint, model)
        check_head(checkpoint)
        self.shape, self.format, self.model = checkpoint.shape, str(format), model
        far = with_context(self.shape, model.shape.context)
        turns = rotations(far, checkpoint.folder, model.device)
        kept = {"dtype": model.dtype, "row_invariant": model.row_invariant}
        fc = checkpoint.tensor("fc.weight").float().to(model.device)
        bias = checkpoint.optional("fc.bias")
        bias = None if bias is None else bias.to(model.device)
        self.fc = make_device_linear(fc, format.scheme, bias=bias, **kept)
        self.layer = FusedLayer(checkpoint, "layers.0", format, *turns, **kept)
        out = checkpoint.optional("out.weight")
        if out is not None:
            out = make_device_linear(out.float().to(model.device), format.scheme, **kept)
        self.out = out
        self._above: list[tuple[Tensor, Tensor, HeadRows]] = []  # levels of the tree being grown

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one drafting pass reads, the shared output layer included."""
        own = self.fc.nbytes + self.layer.nbytes + (self.out.nbytes if self.out else 0)
        return own + self.model.lm_head.nbytes

    def new_cache(self, capacity: int) -> DeviceCache:
        shape, model = self.shape, self.model
        return DeviceCache(1, shape.kv_heads, shape.head_dim, capacity, model.dtype, model.device)

    def forward(self, tokens: Tensor, features: Tensor, cache: DeviceCache, rows: HeadRows):
        """Guess the features behind `tokens`; rows are written, not committed.

        Args:
            tokens: int64 [T], token i + 1 of row i.
            features: [T, hidden], feature i of row i (the model's, or a guess).

        Returns:
            dtype [T, hidden].
        """
        model = self.model
        if rows.hidden_before == 0:
            self._above = []
        self._above.append((tokens, features.to(model.dtype), rows))
        depths = [depth for _, _, level in self._above for depth in level.depths]
        guessed = self.run(
            torch.cat([tokens for tokens, _, _ in self._above]),
            torch.cat([features for _, features, _ in self._above]),
            torch.tensor(depths, dtype=torch.int32, device=model.device),
            self._ancestors(),
            cache,
        )
        return guessed[-len(tokens) :]

    def run(self, tokens: Tensor, features: Tensor, depths: Tensor, ancestors, cache) -> Tensor:
        """The launches of one pass; nothing is read back.

        Args:
            tokens: int32 or int64 [T].
            features: dtype [T, hidden].
            depths, ancestors: as in `FusedTransformer.run`.

        Returns:
            dtype [T, hidden].
        """
        from hspec_kernels.rms_norm import rms_norm

        model, layer = self.model, self.layer
        x = self.fc(torch.cat([model.embedding.index_select(0, tokens), features], dim=-1))
        total, normed = x.float(), x
        if layer.input_norm is not None:
            normed = rms_norm(x, layer.input_norm, self.shape.norm_eps)
        y = layer.forward(
            normed, total, cache.storage[0], cache.kv_len_on_device, depths, ancestors
        )
        guessed = (total + y).to(model.dtype)
        return guessed if self.out is None else self.out(guessed)

    def _ancestors(self) -> Tensor | None:
        """Bitsets of all rows of the tree so far; None for a path."""
        if self._above[0][2].seen is None:
            return None
        n = sum(len(level.depths) for _, _, level in self._above)
        seen = np.zeros((n, n), dtype=bool)
        start = 0
        for _, _, level in self._above:
            height, width = level.seen.shape
            seen[start : start + height, :width] = level.seen.numpy()
            start += height
        return torch.from_numpy(pack_bits(seen).view(np.int64)).to(self.model.device)
