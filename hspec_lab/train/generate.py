"""Text of the target's own, for distilling: continuations of training prefixes, many at a time.

A small model is asked to agree with the target on text the target writes, so part of what it
learns from is such text.  Half of the continuations are greedy, half drawn at temperature 0.8;
what follows the first loop (a 16-gram that stands in the output already) is cut off.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hspec_lab.train.data import WINDOW, Windows
from hspec_lab.train.llama import TrainableLlama, rotate
from hspec_lab.train.muon import has_fast_bf16

PREFIX, NEW = 256, 256
LOOP_GRAM = 16
TEMPERATURE = 0.8


@torch.no_grad()
def continue_batch(model: TrainableLlama, prefixes: Tensor, n_new: int, warm: Tensor, generator):
    """Continue int64 [B, T] by `n_new` tokens; rows where bool [B] `warm` are drawn, not greedy."""
    shape, B, T = model.shape, *prefixes.shape
    K, D = shape.num_key_value_heads, shape.head_dim
    groups = shape.num_attention_heads // K
    cache = torch.zeros(
        shape.num_hidden_layers, 2, B, K, T + n_new, D, dtype=torch.bfloat16, device=prefixes.device
    )
    tables = [table.to(prefixes.device) for table in model.tables]
    ids, out, start = prefixes, [], 0
    for _ in range(n_new):
        length = ids.shape[1]
        cos, sin = (table[start : start + length] for table in tables)
        x = model.model.embed_tokens(ids)
        for i, layer in enumerate(model.model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                project(normed).view(B, length, -1, D).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q = rotate(q.float(), cos, sin).to(cache.dtype)
            cache[i, 0, :, :, start : start + length] = rotate(k.float(), cos, sin)
            cache[i, 1, :, :, start : start + length] = v
            k, v = cache[i, :, :, :, : start + length].repeat_interleave(groups, dim=2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
            x = x + attention.o_proj(y.transpose(1, 2).reshape(B, length, -1).to(x.dtype))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits = model.lm_head(model.model.norm(x[:, -1])).float()
        drawn = torch.multinomial(
            torch.softmax(logits / TEMPERATURE, dim=-1), 1, generator=generator
        )[:, 0]
        ids = torch.where(warm, drawn, logits.argmax(dim=-1))[:, None]
        out.append(ids)
        start += length
    return torch.cat(out, dim=1)


def loop_start(ids: list[int]) -> int:
    """Index of the first token in a loop; the length when there is none."""
    seen = set()
    for end in range(LOOP_GRAM, len(ids) + 1):
        gram = tuple(ids[end - LOOP_GRAM : end])
        if gram in seen:
            return end - 1
        seen.add(gram)
    return len(ids)


def own_text(
    model: TrainableLlama, windows: Windows, n_tokens: int, path: Path, seed: int, say=print
) -> Tensor:
    """About `n_tokens` tokens of prefixes with the target's continuations, int64 [n].

    Written to `path` batch by batch, so that a stopped run goes on where it was.
    """
    device = next(model.parameters()).device
    stream = load_file(path)["stream"] if path.exists() else torch.zeros(0, dtype=torch.int64)
    batch_size = 64
    batch = int(stream[-1]) if len(stream) else 0  # the last entry counts the batches done
    parts = [stream[:-1]]
    done = len(stream)
    while done < n_tokens:
        generator = torch.Generator(device).manual_seed(seed * 100_003 + batch)
        picks = [(batch * batch_size + i) % len(windows.order) for i in range(batch_size)]
        starts = [int(windows.order[i]) * WINDOW for i in picks]
        prefixes = torch.stack([windows.stream[s : s + PREFIX] for s in starts]).to(device)
        warm = (torch.arange(batch_size) % 2 == 1).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            new = continue_batch(model, prefixes, NEW, warm, generator)
        for prefix, row in zip(prefixes.tolist(), new.tolist(), strict=True):
            ids = prefix + row[: loop_start(row)]
            parts.append(torch.from_numpy(np.array(ids)))
            done += len(ids)
        batch += 1
        whole = torch.cat([*parts, torch.tensor([batch])])
        temporary = path.with_suffix(".tmp")
        save_file({"stream": whole}, temporary)
        temporary.replace(path)
        say(f"own text: {done} of {n_tokens} tokens")
    return torch.cat(parts)
