"""Text of the target's own, with what the target thought at every token: the distillation data.

A small model is asked to agree with the target on text the target writes, so such text is what it
learns from: continuations of training prefixes, two thirds greedy, one third drawn at temperature
0.8.  The target's most probable tokens are written down as they are made, so a step of
distillation costs the small model alone.  Text goes on `LOOP_KEPT` tokens into a loop (a 16-gram
that stands in the output already) and counts for nothing after that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hspec_lab.train.data import BOS_ID, WINDOW, Windows
from hspec_lab.train.llama import TrainableLlama, rotate
from hspec_lab.train.muon import has_fast_bf16

BATCH_TOKENS = 128 * 1024
# (prefix, whole row): short contexts are what is mostly decoded, long ones must not be strange
ROWS = ((128, 384), (128, 384), (640, 1024))
TOP = 32  # probabilities kept per token; the rest is known as one sum
LOOP_GRAM, LOOP_KEPT = 16, 32
TEMPERATURE = 0.8
PASS_OFFSET = 352  # a second pass over the windows begins its prefixes elsewhere


@dataclass(frozen=True, slots=True)
class OwnText:
    """Rows of one length.

    `ids` int64 [n, T]; `top_ids` int64 and `top_shares` fp32 [n, T, TOP] are the target's most
    probable next tokens behind each; `kept` int64 [n] is how many tokens of a row count.
    """

    ids: Tensor
    top_ids: Tensor
    top_shares: Tensor
    kept: Tensor

    def rows(self, start: int, stop: int) -> "OwnText":
        """Some rows, widened from how they are stored."""
        return OwnText(
            self.ids[start:stop].long(),
            self.top_ids[start:stop].long(),
            self.top_shares[start:stop].float(),
            self.kept[start:stop],
        )


@torch.no_grad()
def continue_batch(
    model: TrainableLlama, prefixes: Tensor, length: int, warm: Tensor, generator
) -> OwnText:
    """Continue int64 [B, T] to `length` tokens; rows where bool [B] `warm` are drawn, not greedy.

    Returns:
        all rows, as they are stored: ids and `top_ids` in int16, `top_shares` in fp16.
    """
    shape, (B, T), device = model.shape, prefixes.shape, prefixes.device
    K, D = shape.num_key_value_heads, shape.head_dim
    # [layer, keys or values, B, kv head, position, D]
    cache = torch.zeros(
        shape.num_hidden_layers, 2, B, K, length, D, dtype=torch.bfloat16, device=device
    )
    tables = [table.to(device) for table in model.tables]
    ids = torch.zeros(B, length, dtype=torch.int64, device=device)
    ids[:, :T] = prefixes
    top_ids = torch.zeros(B, length, TOP, dtype=torch.int16, device=device)
    top_shares = torch.zeros(B, length, TOP, dtype=torch.float16, device=device)
    start, stop = 0, T
    while start < length:
        x = model.model.embed_tokens(ids[:, start:stop])
        cos, sin = (table[start:stop] for table in tables)
        for layer, (keys, values) in zip(model.model.layers, cache, strict=True):
            x = _attend(layer, x, cos, sin, keys, values, start)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        x = model.model.norm(x)
        for i in range(start, stop):  # a slice at a time: logits of all rows would not fit a cache
            logits = model.lm_head(x[:, i - start]).float()
            shares, tokens = torch.softmax(logits, dim=-1).topk(TOP, dim=-1)
            top_ids[:, i], top_shares[:, i] = tokens.to(torch.int16), shares.half()
        if stop < length:
            ids[:, stop] = torch.where(warm, _drawn(logits / TEMPERATURE, generator), tokens[:, 0])
        start, stop = stop, min(stop + 1, length)
    kept = [min(length, T + loop_start(row[T:]) + LOOP_KEPT) for row in ids.tolist()]
    return OwnText(ids.to(torch.int16), top_ids, top_shares, torch.tensor(kept))


def _drawn(logits: Tensor, generator) -> Tensor:
    """One token per row of `logits` [B, V], by inverting the distribution function."""
    below = torch.softmax(logits, dim=-1).cumsum(dim=-1)
    where = torch.rand(len(logits), 1, generator=generator, device=logits.device) * below[:, -1:]
    return torch.searchsorted(below, where)[:, 0].clamp(max=logits.shape[-1] - 1)


def _attend(layer, x: Tensor, cos, sin, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """The attention branch of `layer` on `x` [B, n, hidden], writing [B, K, length, D] caches."""
    attention, normed = layer.self_attn, layer.input_layernorm(x)
    (B, n, _), (_, K, _, D) = x.shape, keys.shape
    q, k, v = (
        project(normed).view(B, n, -1, D).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q = rotate(q.float(), cos, sin).to(keys.dtype)
    keys[:, :, start : start + n] = rotate(k.float(), cos, sin)
    values[:, :, start : start + n] = v
    k, v = keys[:, :, : start + n], values[:, :, : start + n]
    if n == 1:  # the query heads that share a key head are rows of one product
        y = F.scaled_dot_product_attention(q.view(B, K, -1, D), k, v).view(B, 1, -1)
    else:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = y.transpose(1, 2).reshape(B, n, -1)
    return x + attention.o_proj(y.to(x.dtype))


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
    model: TrainableLlama, windows: Windows, n_tokens: int, folder: Path, seed: int, say=print
) -> list[OwnText]:
    """At least `n_tokens` tokens that count, as batches of equally long rows.

    Every batch is a file of `folder`, so that a stopped run goes on where it was.
    """
    device = next(model.parameters()).device
    folder.mkdir(parents=True, exist_ok=True)
    batches, done, picked = [], 0, 0
    for number, (prefix, length) in _endless(ROWS):
        if done >= n_tokens:
            return batches
        n_rows, path = BATCH_TOKENS // length, folder / f"{number:05d}.safetensors"
        if path.exists():
            batch = OwnText(**load_file(path))
        else:
            generator = torch.Generator(device).manual_seed(seed * 100_003 + number)
            prefixes = _prefixes(windows, picked, n_rows, prefix).to(device)
            warm = (torch.arange(n_rows) % 3 == 2).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
                batch = continue_batch(model, prefixes, length, warm, generator)
            fields = {name: getattr(batch, name).cpu() for name in OwnText.__slots__}
            batch = OwnText(**fields)
            save_file(fields, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            say(f"own text: {done + int(batch.kept.sum())} of {n_tokens} tokens")
        batches.append(batch)
        done += int(batch.kept.sum())
        picked += n_rows
    raise AssertionError("unreachable")


def _endless(rows) -> Iterator[tuple[int, tuple[int, int]]]:
    number = 0
    while True:
        yield number, rows[number % len(rows)]
        number += 1


def _prefixes(windows: Windows, first: int, n_rows: int, length: int) -> Tensor:
    """int64 [n_rows, length]: begin-of-text and training text."""
    picks = np.arange(first, first + n_rows)
    again, picks = np.divmod(picks, len(windows.order))
    starts = windows.order[picks] * WINDOW + again * PASS_OFFSET
    starts = np.minimum(starts, len(windows.stream) - length)
    rows = torch.stack([windows.stream[s : s + length] for s in starts.tolist()])
    rows[:, 0] = BOS_ID
    return rows
