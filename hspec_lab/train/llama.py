"""A Llama that can be trained: the same mathematics as `model`, with gradients and no cache.

Parameters carry Hugging Face's names, so a state dict is a checkpoint.  `forward` hands out the
features an EAGLE head learns from (the output of the final norm) beside the logits.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers that fix a Llama's size; field names are those of `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 4096
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def hf_config(shape: Shape) -> dict:
    """`config.json` of a Llama checkpoint of this shape, untied, stored in bf16."""
    fields = asdict(shape)
    theta = fields.pop("rope_theta")
    return fields | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def rope_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, fp32 [length, head_dim], in Llama's half-split layout."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to `x` [..., T, D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        D, H, K = shape.head_dim, shape.num_attention_heads, shape.num_key_value_heads
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden_size, H * D, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, K * D, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, K * D, bias=False)
        self.o_proj = nn.Linear(H * D, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        D, groups = self.shape.head_dim, self.q_proj.out_features // self.k_proj.out_features
        q = rotate(self.q_proj(x).view(B, T, -1, D).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(B, T, -1, D).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(B, T, -1, D).transpose(1, 2)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class Mlp(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer; EAGLE's has no input norm."""

    def __init__(self, shape: Shape, input_norm: bool = True):
        super().__init__()
        if input_norm:
            self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Mlp(shape)
        self.input_norm = input_norm
        # a residual branch that starts at zero lets every layer begin as the identity
        nn.init.zeros_(self.self_attn.o_proj.weight)
        nn.init.zeros_(self.mlp.down_proj.weight)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.input_layernorm(x) if self.input_norm else x
        x = x + self.self_attn(normed, cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.4)


class TrainableLlama(nn.Module):
    """ids [B, T] -> features [B, T, hidden] and logits [B, T, V]."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        nn.init.zeros_(self.lm_head.weight)
        self.tables = rope_tables(shape, shape.max_position_embeddings)

    def features(self, ids: Tensor) -> Tensor:
        cos, sin = (table[: ids.shape[1]].to(ids.device) for table in self.tables)
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.features(ids))
