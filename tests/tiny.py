"""Tiny random models for tests: real checkpoint folders, made in milliseconds."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": None,
}
FAMILIES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-wide-heads": {"head_dim": 16},
    "llama3-rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "linear-rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": 1,
        "sliding_window": None,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": True},
    "qwen2-tied": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
    },
}


def make_model(folder: Path, seed: int = 0, scale: float = 0.3, **fields) -> Path:
    """Write a random checkpoint with its tokenizer; `fields` override `BASE`."""
    config = BASE | fields
    generator = torch.Generator().manual_seed(seed)
    h, inner, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    D = config.get("head_dim") or h // config["num_attention_heads"]
    q_out, kv_out = config["num_attention_heads"] * D, config["num_key_value_heads"] * D

    def random(*shape):
        return torch.randn(*shape, generator=generator) * scale

    def gain(n):
        return 1 + 0.1 * torch.randn(n, generator=generator)

    tensors = {"model.embed_tokens.weight": random(V, h), "model.norm.weight": gain(h)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random(V, h)
    for i in range(config["num_hidden_layers"]):
        layer = layer_tensors(random, gain, h, inner, q_out, kv_out)
        if config["model_type"] == "qwen2":
            for name, out in (("q", q_out), ("k", kv_out), ("v", kv_out)):
                layer[f"self_attn.{name}_proj.bias"] = random(out)
        if config["model_type"] == "qwen3":
            layer |= {"self_attn.q_norm.weight": gain(D), "self_attn.k_norm.weight": gain(D)}
        tensors |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return _write(folder, config, tensors)


def make_head(folder: Path, model: Path, seed: int = 1, scale: float = 0.3) -> Path:
    """Write a random EAGLE-2 head for the model in folder `model`."""
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 1}
    generator = torch.Generator().manual_seed(seed)
    h, inner = config["hidden_size"], config["intermediate_size"]
    D = config.get("head_dim") or h // config["num_attention_heads"]

    def random(*shape):
        return torch.randn(*shape, generator=generator) * scale

    def gain(n):
        return 1 + 0.1 * torch.randn(n, generator=generator)

    sizes = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    layer = layer_tensors(random, gain, h, inner, *sizes)
    del layer["input_layernorm.weight"]
    tensors = {f"layers.0.{name}": tensor for name, tensor in layer.items()}
    return _write(folder, config, tensors | {"fc.weight": random(h, 2 * h)})


def make_zoo(root: Path) -> Path:
    """Target, two smaller models and heads; random, and alike enough to agree now and then."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 32}
    target = spell(make_model(root / "target", scale=0.05, **sizes))
    # the same seed and one layer less: the same embedding, so the same next token quite often
    middle = spell(make_model(root / "middle", scale=0.05, num_hidden_layers=1, **sizes))
    small = spell(make_model(root / "small", scale=0.05, seed=9, num_hidden_layers=1, **sizes))
    for model in (target, middle, small):
        make_head(root / f"{model.name}-eagle2", model, scale=0.1)
    return root


def spell(folder):
    """Let the tokenizer take one character for one token."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(path)
    return folder


def layer_tensors(random, gain, h: int, inner: int, q_out: int, kv_out: int) -> dict:
    """The tensors of one decoder layer."""
    return {
        "input_layernorm.weight": gain(h),
        "post_attention_layernorm.weight": gain(h),
        "self_attn.q_proj.weight": random(q_out, h),
        "self_attn.k_proj.weight": random(kv_out, h),
        "self_attn.v_proj.weight": random(kv_out, h),
        "self_attn.o_proj.weight": random(h, q_out),
        "mlp.gate_proj.weight": random(inner, h),
        "mlp.up_proj.weight": random(inner, h),
        "mlp.down_proj.weight": random(h, inner),
    }


def _write(folder: Path, config: dict, tensors: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {chr(ord("0") + i): i for i in range(config["vocab_size"])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="0")).save(str(folder / "tokenizer.json"))
    return folder
