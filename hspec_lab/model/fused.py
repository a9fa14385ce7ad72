"""The decoder on the project's own kernels: 16-bit rows, the cache's length in device memory.

The same questions as `Transformer` (`forward`, `logits`, `read`, `new_cache`), so that `verify`
and `draft` work over either.  A layer is eight launches and the pass between two rounds reads
nothing back: tree, depths and the cache's length lie on the device.  The residual stream is fp32.

Interpreted (TRITON_INTERPRET=1) it runs on a CPU, slowly, which is how it is tested without a GPU;
there rows are fp16, because the interpreter cannot compute in bf16.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hspec_lab.kv import KVCache
from hspec_lab.model.checkpoint import Checkpoint, model_tensors
from hspec_lab.model.layer import interleave
from hspec_lab.model.shape import rope_table
from hspec_lab.model.transformer import HEAD_FORMAT, PREFILL_CHUNK
from hspec_lab.quant.device import check_triton, make_device_linear
from hspec_lab.sample import check_finite
from hspec_lab.tree import Tree, ancestor_bitsets


class DeviceCache(KVCache):
    """A cache whose length also lies on the device, where kernels read it."""

    __slots__ = ("kv_len_on_device",)

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int, dtype, device):
        super().__init__(layers, kv_heads, head_dim, capacity, dtype, device)
        self.kv_len_on_device = torch.zeros(1, dtype=torch.int32, device=device)

    def commit(self, path: list[int]) -> None:
        from hspec_kernels.kv_commit import kv_commit

        n = len(path)
        if path[-1] == n - 1:  # increasing, so it is 0..n-1 and nothing moves
            self.kv_len_on_device += n
        else:
            offsets = torch.tensor(path, dtype=torch.int32, device=self.storage.device)
            count = torch.full_like(self.kv_len_on_device, n)
            kv_commit(self.storage, offsets, count, self.kv_len_on_device)
        self.kv_len += n

    def truncate(self, kv_len: int) -> None:
        super().truncate(kv_len)
        self.kv_len_on_device.fill_(self.kv_len)


class FusedLayer:
    """Weights of one layer."""

    def __init__(self, checkpoint, prefix: str, format: str, dtype, row_invariant: bool, device):
        shape, D = checkpoint.shape, checkpoint.shape.head_dim

        def linear(*names: str):
            """One layer for projections that read the same rows; queries and keys reordered."""
            weights, biases = [], []
            for name in names:
                rotated = name.endswith(("q_proj", "k_proj"))
                weight = checkpoint.tensor(f"{prefix}.{name}.weight").float()
                bias = checkpoint.optional(f"{prefix}.{name}.bias")
                weights.append(interleave(weight, D) if rotated else weight)
                if bias is not None:
                    biases.append(interleave(bias.float(), D) if rotated else bias.float())
            weight = torch.cat(weights).to(device)
            bias = torch.cat(biases).to(device) if biases else None
            return make_device_linear(weight, format, dtype, bias=bias, row_invariant=row_invariant)

        def norm(name: str) -> Tensor | None:
            weight = checkpoint.optional(f"{prefix}.{name}.weight")
            return None if weight is None else weight.float().to(device)

        self.qkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.o = linear("self_attn.o_proj")
        self.gate_up = linear("mlp.gate_proj", "mlp.up_proj")
        self.down = linear("mlp.down_proj")
        self.input_norm, self.post_norm = norm("input_layernorm"), norm("post_attention_layernorm")
        self.q_norm = self.k_norm = None
        if shape.qk_norm:
            self.q_norm = interleave(norm("self_attn.q_norm"), D)
            self.k_norm = interleave(norm("self_attn.k_norm"), D)

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + self.o.nbytes + self.gate_up.nbytes + self.down.nbytes


class FusedTransformer:
    """A decoder-only language model on Triton kernels.

    Args:
        checkpoint: an opened Hugging Face folder, or a synthetic one.
        format: one of `quant.device.DEVICE_FORMATS`; the output layer keeps at least 8 bits.
        row_invariant: compute each row's numbers in an order that no other row changes.
        dtype: fp16 or bf16, of activations and cache.
        n_known: entries of the tokenizer; output rows behind them are padding and never chosen.

    Raises:
        ValueError: a format without a kernel, a head dimension no kernel takes, no triton.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        format: str,
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
        checkpoint.check(model_tensors(shape))
        self.format, self.folder, self.dtype = format, checkpoint.folder, dtype
        self.device, self.row_invariant = torch.device(device), row_invariant
        self.n_known = n_known or shape.vocab
        rotations = rope_table(shape, checkpoint.folder)[:, 0].to(device)
        self.cos, self.sin = rotations.real.contiguous(), rotations.imag.contiguous()
        self.embedding = checkpoint.tensor("model.embed_tokens.weight").to(dtype).to(device)
        self.layers = [
            FusedLayer(checkpoint, f"model.layers.{i}", format, dtype, row_invariant, device)
            for i in range(shape.layers)
        ]
        self.norm = checkpoint.tensor("model.norm.weight").float().to(device)
        head = self.embedding if shape.tied else checkpoint.tensor("lm_head.weight")
        self.lm_head = make_device_linear(
            head.float().to(device),
            HEAD_FORMAT.get(format, format),
            dtype,
            row_invariant=row_invariant,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decoding step reads (embeddings: one row, not counted)."""
        return sum(layer.nbytes for layer in self.layers) + self.lm_head.nbytes

    def new_cache(self, capacity: int) -> DeviceCache:
        shape = self.shape
        return DeviceCache(
            shape.layers, shape.kv_heads, shape.head_dim, capacity, self.dtype, self.device
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
            ids: int64 [T].
            depths: int32 [T], levels behind what the cache holds.
            ancestors: int64 [T, ceil(T / 64)] bitsets; None for a path.
        """
        from hspec_kernels.rms_norm import rms_norm
        from hspec_kernels.rope_and_append import rope_and_append
        from hspec_kernels.silu_mul import silu_mul
        from hspec_kernels.tree_attention import tree_attention

        x, eps, kv_len = self.embedding[ids], self.shape.norm_eps, cache.kv_len_on_device
        total = x.float()
        y = rms_norm(x, self.layers[0].input_norm, eps)
        norms = [*(layer.input_norm for layer in self.layers), self.norm]
        for i, (layer, (_, next_norm)) in enumerate(zip(self.layers, pairwise(norms), strict=True)):
            kv = cache.storage[i]
            q = rope_and_append(
                layer.qkv(y),
                self.cos,
                self.sin,
                depths,
                kv,
                kv_len,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                eps=eps,
            )
            y = tree_attention(q, kv, kv_len, ancestors, row_invariant=self.row_invariant)
            _, y = rms_norm(
                layer.o(y.flatten(1)), layer.post_norm, eps, residual=total, total=total
            )
            y = layer.down(silu_mul(layer.gate_up(y)))
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
