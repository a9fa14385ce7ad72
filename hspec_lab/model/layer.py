"""One decoder layer over a static cache: attention, MLP, and the two ways to attend.

Queries and keys are rotated as complex numbers: the rows of their projections are reordered once,
at loading, so that a rotated pair lies side by side and RoPE is a single multiplication.

The usual way attends for all rows at once.  The row-invariant way attends row by row, each row
over its own path gathered into one contiguous block, so that the order in which numbers are added
never depends on what else is in the batch; it costs a gather and a small product per row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hspec_lab.formats import Format
from hspec_lab.kv import KVCache
from hspec_lab.model.checkpoint import UNITS, Checkpoint, layer_tensors
from hspec_lab.quant import make_linear
from hspec_lab.quant.forms import Form


@dataclass(frozen=True, slots=True)
class Rows:
    """What a forward pass knows about its T rows, shared by all layers.

    Attributes:
        start: cache row where the pass writes its first row.
        rotation: complex64 [T, 1, head_dim / 2].
        mask: fp32 [T, start + T], 0 or -inf; None when one row sees everything before it.
        causal: True when the rows are one path behind an empty cache (the mask is then implied).
        paths: row-invariant mode: for each row, int64 cache rows it sees, itself last; else None.
    """

    start: int
    rotation: Tensor
    mask: Tensor | None
    causal: bool
    paths: list[Tensor] | None

    def positions(self) -> Tensor:
        """int64 [T], places in the text: a row sees as many rows as lie before it, and itself."""
        device = self.rotation.device
        if self.paths is not None:
            return torch.tensor([len(path) - 1 for path in self.paths], device=device)
        if self.mask is not None:
            return (self.mask == 0).sum(dim=1) - 1
        return torch.arange(len(self.rotation), device=device) + self.start


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows [heads * head_dim, ...]: dims i and i + head_dim / 2 become neighbours."""
    heads = weight.shape[0] // head_dim
    split = weight.view(heads, 2, head_dim // 2, *weight.shape[1:])
    return split.transpose(1, 2).reshape(weight.shape)


def unit_weights(checkpoint, prefix: str, unit: str) -> tuple[Tensor | Form, Tensor | None]:
    """Weights and bias of a unit, as decoders here multiply them: queries and keys reordered.

    Returns:
        weight: fp32 [R, C], or the form in which a quantized folder holds it.
        bias: fp32 [R]; None where there is none.
    """
    D, biases, orders, start = checkpoint.shape.head_dim, [], [], 0
    form = checkpoint.form(f"{prefix}.{unit}")
    sizes = layer_tensors(checkpoint.shape, prefix)
    weights = []
    for name in UNITS[unit]:
        rotated = name.endswith(("q_proj", "k_proj"))
        order = torch.arange(sizes[f"{prefix}.{name}.weight"][0])
        order = interleave(order, D) if rotated else order
        orders.append(order + start)
        start += len(order)
        if form is None:
            weight = checkpoint.tensor(f"{prefix}.{name}.weight").float()
            weights.append(interleave(weight, D) if rotated else weight)
        bias = checkpoint.optional(f"{prefix}.{name}.bias")
        if bias is not None:
            biases.append(interleave(bias.float(), D) if rotated else bias.float())
    bias = torch.cat(biases) if biases else None
    if form is None:
        return torch.cat(weights), bias
    return (form.reordered(torch.cat(orders)) if unit == "qkv" else form), bias


class DecoderLayer:
    """Weights of one layer; `forward` reads and writes the cache rows of layer `index`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefix: str,
        index: int,
        format: Format,
        row_invariant: bool,
        device: str,
    ):
        shape = checkpoint.shape
        self.index, self.shape = index, shape
        self.groups = shape.heads // shape.kv_heads
        self.eps = shape.norm_eps
        D = shape.head_dim

        def norm(name: str) -> Tensor | None:
            weight = checkpoint.optional(f"{prefix}.{name}.weight")
            return None if weight is None else weight.float().to(device)

        def linear(unit: str):
            """One layer for projections that read the same rows; queries and keys reordered."""
            weight, bias = unit_weights(checkpoint, prefix, unit)
            bias = None if bias is None else bias.to(device)
            kept = {"reference": format.reference, "row_invariant": row_invariant}
            return make_linear(weight.to(device), format.scheme, bias=bias, **kept)

        self.qkv, self.o, self.gate_up, self.down = map(linear, UNITS)
        self.input_norm = norm("input_layernorm")
        self.post_norm = norm("post_attention_layernorm")
        self.q_norm, self.k_norm = norm("self_attn.q_norm"), norm("self_attn.k_norm")
        if self.q_norm is not None:
            self.q_norm, self.k_norm = interleave(self.q_norm, D), interleave(self.k_norm, D)
        self.inner = shape.inner

    @property
    def linears(self) -> tuple:
        """The four matrix products, in the order in which they run."""
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def nbytes(self) -> int:
        return sum(linear.nbytes for linear in self.linears)

    def forward(self, x: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """Add this layer's contribution to `x`, fp32 [T, hidden]."""
        return self.mlp(self.attention(x, cache, rows))

    def attention(self, x: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """`x` with what attention adds, its norm and projections included."""
        width = (self.shape.hidden,)
        normed = x if self.input_norm is None else F.rms_norm(x, width, self.input_norm, self.eps)
        return x + self.o(self._attend(self.qkv(normed), cache, rows))

    def mlp(self, x: Tensor) -> Tensor:
        """`x` with what the feed-forward part adds, its norm included."""
        width = (self.shape.hidden,)
        gate_up = self.gate_up(F.rms_norm(x, width, self.post_norm, self.eps))  # [T, 2 * inner]
        gate = F.silu(gate_up[:, : self.inner])
        return x + self.down(gate.mul_(gate_up[:, self.inner :]))

    def _attend(self, qkv: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """Rotate, append to the cache, attend; [T, heads * head_dim]."""
        T, H, K, D = qkv.shape[0], self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        qk, v = qkv[:, : (H + K) * D], qkv[:, (H + K) * D :]
        if self.q_norm is not None:
            q, k = qk[:, : H * D].view(T, H, D), qk[:, H * D :].view(T, K, D)
            q = F.rms_norm(q, (D,), self.q_norm, self.eps)
            k = F.rms_norm(k, (D,), self.k_norm, self.eps)
            qk = torch.cat([q, k], dim=1)
        pairs = torch.view_as_complex(qk.view(T, H + K, D // 2, 2))
        qk = torch.view_as_real(pairs * rows.rotation).view(T, H + K, D)
        stop = rows.start + T
        positions = rows.positions() if cache.meets_sinks else None
        cache.append(self.index, rows.start, qk[:, H:], v.view(T, K, D), positions)
        q = qk[:, :H].view(T, K, self.groups, D)
        if rows.paths is not None:
            return self._attend_row_by_row(q, cache, rows)
        # the query heads that share a key head ride along as a batch dimension: no copies
        q = q.permute(2, 1, 0, 3)  # [G, K, T, D]
        stored = cache.rows(self.index, 0, stop).transpose(0, 1)  # [2K, L, D]
        k = stored[:K].expand(self.groups, K, stop, D)
        v = stored[K:].expand(self.groups, K, stop, D)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=rows.mask, is_causal=rows.causal)
        return y.permute(2, 1, 0, 3).reshape(T, H * D)

    def _attend_row_by_row(self, q: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """The same sums in an order that no other row can change; q [T, K, G, D]."""
        K, D = self.shape.kv_heads, self.shape.head_dim
        out = torch.empty(q.shape[0], K, self.groups, D, dtype=q.dtype, device=q.device)
        stored = cache.storage[self.index]
        for row, path in enumerate(rows.paths):
            seen = stored.index_select(0, path).transpose(0, 1)  # [2K, L, D]
            scores = torch.bmm(q[row].contiguous() * D**-0.5, seen[:K].mT)  # [K, G, L]
            torch.bmm(torch.softmax(scores, dim=-1), seen[K:], out=out[row])
        return out.view(q.shape[0], -1)
