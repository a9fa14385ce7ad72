"""What `config.json` says about a model, checked and in one place."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SUPPORTED = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# positions behind the context that a draft tree may look at before it is cut
ROPE_SLACK = 128
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that fix a decoder's computation."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int  # tokens: the trained positions, or the sliding window where that is shorter
    norm_eps: float
    tied: bool
    eos_ids: tuple[int, ...]
    rope: dict


def read_shape(folder: Path) -> ModelShape:
    """Read and check `config.json`.

    Raises:
        ValueError: no such file, not JSON, or an architecture or RoPE variant not supported here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; a Hugging Face model folder has one")
    try:
        fields = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    names = fields.get("architectures") or ["none named"]
    if names[0] not in SUPPORTED:
        raise ValueError(
            f"{folder}: architecture {names[0]} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    if "quantization_config" in fields:
        method = fields["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"{folder}: the weights are quantized already ({method}); "
            "give the 16-bit checkpoint and a format such as @w4a16-g128"
        )
    needed = ("num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size")
    if missing := [name for name in needed if not isinstance(fields.get(name), int)]:
        raise ValueError(f"{path}: {', '.join(missing)} must be a whole number and is not there")
    rope = _rope(folder, fields)
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    eos = fields.get("eos_token_id")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = json.loads(generation.read_text()).get("eos_token_id", eos)
    context = fields.get("max_position_embeddings", 2048)
    slides = fields.get("use_sliding_window", names[0] == "MistralForCausalLM")
    if slides and fields.get("sliding_window"):
        context = min(context, fields["sliding_window"])
    return ModelShape(
        architecture=names[0],
        hidden=hidden,
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or hidden // heads,
        vocab=fields["vocab_size"],
        context=context,
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        tied=fields.get("tie_word_embeddings", False),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        rope=rope,
    )


def _rope(folder: Path, fields: dict) -> dict:
    """RoPE parameters in one form, whichever of the two spellings a config uses."""
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in STATIC_ROPE:
        raise ValueError(
            f"{folder}: RoPE variant {kind!r} is not supported; supported: {', '.join(STATIC_ROPE)}"
        )
    theta = scaling.get("rope_theta") or fields.get("rope_theta") or 10_000.0
    return scaling | {"rope_type": kind, "rope_theta": float(theta)}


def rope_table(shape: ModelShape, folder: Path | None) -> Tensor:
    """Unit complex numbers, complex64 [positions, 1, head_dim / 2]; scaled variants included.

    Args:
        folder: where `config.json` lies; transformers reads it for scaled variants.
    """
    if shape.rope["rope_type"] == "default":
        exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        frequencies, factor = 1.0 / shape.rope["rope_theta"] ** exponent, 1.0
    else:
        # the scaled variants follow transformers' own code, the reference for all of them
        from transformers import AutoConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = AutoConfig.from_pretrained(folder)
        frequencies, factor = ROPE_INIT_FUNCTIONS[shape.rope["rope_type"]](config, "cpu")
    positions = torch.arange(shape.context + ROPE_SLACK, dtype=torch.float32)
    angles = torch.outer(positions, frequencies.float())
    return torch.polar(torch.full_like(angles, factor), angles).unsqueeze(1)
