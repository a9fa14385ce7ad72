"""Token windows: what a training step sees, and bits per byte on the held-out modules."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from hspec_lab.train.corpus import SourceFile, training_order

BOS_ID = 0
WINDOW = 1024


class Windows:
    """A pass over the training text as windows of `WINDOW` tokens in a seeded order."""

    def __init__(self, files: list[SourceFile], tokenizer: Tokenizer, seed: int):
        texts = {file.name: file.text for file in training_order(files, seed)}
        coded = tokenizer.encode_batch(list(texts.values()), add_special_tokens=False)
        ids = dict(zip(texts, (code.ids for code in coded), strict=True))
        stream = [t for file in training_order(files, seed) for t in [BOS_ID, *ids[file.name]]]
        n_windows = (len(stream) - 1) // WINDOW
        self.stream = torch.from_numpy(np.array(stream, dtype=np.int64))
        self.order = np.random.default_rng(seed).permutation(n_windows)

    @property
    def n_tokens(self) -> int:
        return len(self.order) * WINDOW

    def batch(self, step: int, n_windows: int, length: int = WINDOW) -> tuple[Tensor, Tensor]:
        """Inputs and next tokens of one step, int64 [n_windows * WINDOW / length, length]."""
        at = [(step * n_windows + i) % len(self.order) for i in range(n_windows)]
        starts = [int(self.order[i]) * WINDOW for i in at]
        rows = torch.stack([self.stream[s : s + WINDOW + 1] for s in starts])
        inputs, labels = rows[:, :-1], rows[:, 1:]
        return inputs.reshape(-1, length), labels.reshape(-1, length)


@torch.no_grad()
def bits_per_byte(model, files: list[SourceFile], tokenizer: Tokenizer) -> float:
    """Bits the model needs per byte of `files`, context up to `WINDOW`, at least half of it."""
    device = next(model.parameters()).device
    nats, n_bytes, stride = 0.0, 0, WINDOW // 2
    for file in files:
        ids = [BOS_ID, *tokenizer.encode(file.text, add_special_tokens=False).ids]
        n_bytes += len(file.text.encode())
        counted = 0  # labels already scored
        for start in range(0, max(1, len(ids) - 1 - stride), stride):
            window = torch.tensor(ids[start : start + WINDOW + 1], device=device)
            logits = model(window[None, :-1])[0]
            first = counted - start
            nats += F.cross_entropy(logits[first:], window[1 + first :], reduction="sum").item()
            counted = start + len(window) - 1
        assert counted == len(ids) - 1
    return nats / n_bytes / math.log(2)
