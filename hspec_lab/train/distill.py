"""Train the intermediate model and the draft heads from the target.

The intermediate model learns the target's next-token distribution (cross-entropy against it, which
is the KL divergence up to a constant) on text the target wrote, from the probabilities the target
left behind as it wrote; tokens outside its most probable ones are one event.

A head learns as in EAGLE: regress the model's next feature, and match its next-token distribution.
At inference a head reads true features for the text and its own guesses below the root, so it is
rolled out in training too: in pass p a row's input feature is the guess of pass p - 1, it sees true
rows up to p - 1 positions back, and behind them the rows of earlier passes, as in a real tree.

    source  Li et al. 2024 (EAGLE), arXiv 2401.15077; Zhang et al. 2024 (HASS), arXiv 2408.15766
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hspec_lab.train.data import WINDOW, Windows
from hspec_lab.train.generate import OwnText
from hspec_lab.train.llama import Layer, Shape, TrainableLlama, rope_tables, rotate
from hspec_lab.train.loop import Plan, train

INTERMEDIATE = Shape(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
WINDOWS_PER_STEP = 6
LENGTH = 512
MICRO_TOKENS = 2048
MICRO_ROWS = MICRO_TOKENS // LENGTH
PASSES = 3
PASS_WEIGHTS = (1.0, 0.7, 0.5)
REGRESSION_WEIGHT = 0.5


class Micros:
    """The target's own text as micro-batches in a seeded order, the same pass over and over."""

    def __init__(self, own: list[OwnText], seed: int = 0):
        self.own = own
        self.places = [
            (batch, start, start + rows)
            for batch in own
            for rows in [MICRO_TOKENS // batch.ids.shape[1]]
            for start in range(0, len(batch.ids) - rows + 1, rows)
        ]
        self.order = torch.randperm(
            len(self.places), generator=torch.Generator().manual_seed(seed)
        ).tolist()

    def at(self, step: int) -> list[OwnText]:
        """What step `step` learns from: about as many tokens as `Mixed.batch` has."""
        n = WINDOWS_PER_STEP * WINDOW // MICRO_TOKENS
        picks = (self.order[(step * n + i) % len(self.order)] for i in range(n))
        return [batch.rows(*where) for batch, *where in (self.places[pick] for pick in picks)]


class Mixed:
    """Batches of corpus windows and of the target's own text, in turn."""

    def __init__(self, windows: Windows, own: list[OwnText], own_share: float):
        self.windows = windows
        counted = [
            row[:n].long()
            for batch in own
            for row, n in zip(batch.ids, batch.kept.tolist(), strict=True)
        ]
        stream = torch.cat(counted)
        n = len(stream) // LENGTH
        self.own = stream[: n * LENGTH].view(n, LENGTH)
        self.own_rows = round(own_share * WINDOWS_PER_STEP * WINDOW / LENGTH)
        order = torch.Generator().manual_seed(0)
        self.order = torch.randperm(n, generator=order)

    def batch(self, step: int) -> Tensor:
        """int64 [rows, LENGTH]."""
        rows, _ = self.windows.batch(step, WINDOWS_PER_STEP, LENGTH)
        at = (torch.arange(self.own_rows) + step * self.own_rows) % len(self.order)
        return torch.cat([rows[: len(rows) - self.own_rows], self.own[self.order[at]]])


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy of `logits` [N, V] against probabilities `wanted` [N, V]."""
    return -(wanted * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def top_cross_entropy(logits: Tensor, top_ids: Tensor, top_shares: Tensor) -> Tensor:
    """Cross-entropy per row, all tokens but the top ones taken as one event; fp32 [N].

    Args:
        logits: [N, V].
        top_ids, top_shares: [N, K], the wanted distribution's most probable tokens.
    """
    found = torch.log_softmax(logits.float(), dim=-1).gather(-1, top_ids)
    rest = (1 - top_shares.sum(dim=-1)).clamp(min=0)
    found_rest = torch.log((1 - found.exp().sum(dim=-1)).clamp(min=1e-6))
    return -(top_shares * found).sum(dim=-1) - rest * found_rest


def train_intermediate(
    own: list[OwnText], plan: Plan, folder: Path, evaluate, device: str
) -> TrainableLlama:
    """Distil the intermediate model from what the target wrote; resumes from `folder`."""
    model, micros = TrainableLlama(INTERMEDIATE).to(device), Micros(own)

    def losses_at(step: int):
        chunks = micros.at(step)
        n_counted = sum(int(chunk.kept.sum()) for chunk in chunks)
        for chunk in chunks:
            counted = torch.arange(chunk.ids.shape[1]) < chunk.kept[:, None]
            logits = model(chunk.ids.to(device))[counted.to(device)]
            top = (field[counted].to(device) for field in (chunk.top_ids, chunk.top_shares))
            yield top_cross_entropy(logits, *top).sum() / n_counted

    train(model, losses_at, plan, folder, lambda: evaluate(model))
    return model


class TrainableHead(nn.Module):
    """An EAGLE head with gradients; its parameters carry the names a checkpoint uses."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = replace(shape, num_hidden_layers=1)
        self.fc = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.layers = nn.ModuleList([Layer(shape, input_norm=False)])
        self.tables = rope_tables(shape, shape.max_position_embeddings)

    def roll_out(self, embedded: Tensor, features: Tensor, passes: int) -> list[Tensor]:
        """Guesses of each pass.

        Args:
            embedded: [B, T, hidden], embedding of token i + 1 in row i.
            features: [B, T, hidden], the model's feature of token i in row i.

        Returns:
            per pass [B, T, hidden]: row i guesses feature i + 1; the feature it read was guessed
            p times over.
        """
        layer, D = self.layers[0], self.shape.head_dim
        attention, (B, T, _) = layer.self_attn, features.shape
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        cos, sin = (table[:T].to(features.device) for table in self.tables)
        before = torch.ones(T, T, dtype=torch.bool, device=features.device).tril()
        keys, values, guesses = [], [], []
        for _ in range(passes):
            x = self.fc(torch.cat([embedded, features], dim=-1))
            q, k, v = (
                project(x).view(B, T, -1, D).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(groups, dim=1)
            keys.append(k)
            values.append(v.repeat_interleave(groups, dim=1))
            y = _attend_behind(q, keys, values, before)
            x = x + attention.o_proj(y.transpose(1, 2).reshape(B, T, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            guesses.append(x)
            # the next pass reads this one's guesses, one position on; row 0 has none to read
            features = torch.cat([features[:, :1].to(x.dtype), x[:, :-1]], dim=1)
        return guesses


def _attend_behind(q: Tensor, keys: list[Tensor], values: list[Tensor], before: Tensor) -> Tensor:
    """Attention of pass p: true rows up to p positions back, later passes for the last p."""
    p = len(keys) - 1
    if p == 0:
        return F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=True)
    scale, T = q.shape[-1] ** -0.5, q.shape[2]
    scores = (q @ keys[0].mT).float() * scale
    scores = scores.masked_fill(~before.tril(-p), -torch.inf)
    # row i sees itself through pass p, row i - 1 through pass p - 1, and so on
    own, own_values = [], []
    for back in range(p):
        k, v = keys[p - back], values[p - back]
        k, v = (F.pad(t, (0, 0, back, 0))[:, :, :T] for t in (k, v))
        score = (q * k).sum(dim=-1, dtype=torch.float32) * scale
        if back:
            score = score.masked_fill(torch.arange(T, device=q.device) < back, -torch.inf)
        own.append(score[..., None])
        own_values.append(v)
    weights = torch.softmax(torch.cat([scores, *own], dim=-1), dim=-1).to(q.dtype)
    y = weights[..., :T] @ values[0]
    for i, v in enumerate(own_values):
        y = y + weights[..., T + i : T + i + 1] * v
    return y


def train_head(
    model: TrainableLlama, data: Mixed, plan: Plan, folder: Path, evaluate, device: str
) -> TrainableHead:
    """Train the head of `model`, whose embedding and output layer stay as they are."""
    head = TrainableHead(model.shape).to(device)
    model.requires_grad_(False)

    def losses_at(step: int):
        chunks = data.batch(step).split(MICRO_ROWS)
        for ids in chunks:
            ids = ids.to(device)
            with torch.no_grad():
                features = model.features(ids)
                wanted = torch.softmax(model.lm_head(features).float(), dim=-1)[:, 1:]
                embedded = model.model.embed_tokens(ids)[:, 1:]
            guesses = head.roll_out(embedded, features[:, :-1], PASSES)
            total = 0.0
            for p, (guess, weight) in enumerate(zip(guesses, PASS_WEIGHTS, strict=True)):
                regression = F.smooth_l1_loss(guess[:, p:].float(), features[:, 1 + p :].float())
                logits = model.lm_head(guess[:, p:])
                tokens = soft_cross_entropy(logits.flatten(0, 1), wanted[:, p:].flatten(0, 1))
                total = total + weight * (tokens + REGRESSION_WEIGHT * regression)
            yield total / len(chunks)

    train(head, losses_at, plan, folder, lambda: evaluate(head))
    return head
