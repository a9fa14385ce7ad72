"""What `config.json` says about a model, checked and in one place."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# positions behind the context that a draft tree may look at before it is cut
ROPE_SLACK = 128
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
# transformers' own default where a Mistral config does not say
MISTRAL_WINDOW = 4096


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that fix a decoder's computation."""

    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int  # tokens: the trained positions, or the sliding window where that is shorter
    norm_eps: float
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    eos_ids: tuple[int, ...]
    rope: dict

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "Qwen3ForCausalLM"


def read_object(path: Path) -> dict:
    """A JSON object from a file; ValueError names the file when it is anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, holds a {type(found).__name__}")
    return found


class _Fields:
    """Entries of a config, each checked when it is asked for."""

    def __init__(self, path: Path):
        self.path, self.values = path, read_object(path)

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.path}: {name} must be a whole number >= 1, got {value!r}")
        return value

    def mapping(self, name: str) -> dict:
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: {name} must be an object, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.path}: {name} must be a number, got {value!r}")
        return float(value)

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def ids(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        value = self.values.get(name)
        if value is None:
            return default
        value = value if isinstance(value, list) else [value]
        if not all(type(one) is int for one in value):
            raise ValueError(f"{self.path}: {name} must be token ids, got {value!r}")
        return tuple(value)


def read_shape(folder: Path) -> ModelShape:
    """Read and check `config.json`.

    Raises:
        ValueError: no such file, not JSON, an entry that is missing or of the wrong kind, or an
            architecture, activation or RoPE variant not supported here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; a Hugging Face model folder has one")
    fields = _Fields(path)
    architecture = (fields.values.get("architectures") or ["none named"])[0]
    if architecture not in SUPPORTED:
        raise ValueError(
            f"{folder}: architecture {architecture} is not supported; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    if quantized := fields.mapping("quantization_config"):
        raise ValueError(
            f"{folder}: the weights are quantized already ({quantized.get('quant_method')}); "
            "give the 16-bit checkpoint and a format such as @w4a16-g128"
        )
    if (activation := fields.values.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ValueError(f"{folder}: hidden_act {activation!r} is not supported; supported: silu")
    heads, hidden = fields.whole("num_attention_heads"), fields.whole("hidden_size")
    eos = fields.ids("eos_token_id")
    if (folder / "generation_config.json").is_file():
        eos = _Fields(folder / "generation_config.json").ids("eos_token_id", eos)
    attention_bias = fields.flag("attention_bias")
    return ModelShape(
        architecture=architecture,
        hidden=hidden,
        inner=fields.whole("intermediate_size"),
        layers=fields.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=fields.whole("head_dim", hidden // heads),
        vocab=fields.whole("vocab_size"),
        context=_context(fields, architecture),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
        o_bias=attention_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=fields.flag("mlp_bias"),
        eos_ids=eos,
        rope=_rope(fields),
    )


def _context(fields: _Fields, architecture: str) -> int:
    """Positions a model may use; attention is never windowed here, so a window ends the context."""
    context = fields.whole("max_position_embeddings", 2048)
    if architecture == "MistralForCausalLM":
        window = fields.values.get("sliding_window", MISTRAL_WINDOW)
    else:
        window = fields.flag("use_sliding_window") and fields.values.get("sliding_window")
    return min(context, window) if window else context


def _rope(fields: _Fields) -> dict:
    """RoPE parameters in one form, whichever of the two spellings a config uses."""
    scaling = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in STATIC_ROPE:
        raise ValueError(
            f"{fields.path.parent}: RoPE variant {kind!r} is not supported; "
            f"supported: {', '.join(STATIC_ROPE)}"
        )
    if kind != "default" and "factor" not in scaling:
        raise ValueError(f"{fields.path}: RoPE variant {kind!r} needs a factor")
    theta = scaling.get("rope_theta") or fields.number("rope_theta", 10_000.0)
    return scaling | {"rope_type": kind, "rope_theta": float(theta)}


def with_context(shape: ModelShape, context: int) -> ModelShape:
    """The same shape for at least `context` positions."""
    return replace(shape, context=max(shape.context, context))


def rope_table(shape: ModelShape, folder: Path) -> Tensor:
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
