"""Train the target: next-token prediction on the corpus."""

from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from hspec_lab.train.corpus import SourceFile
from hspec_lab.train.data import WINDOW, Windows, bits_per_byte
from hspec_lab.train.llama import Shape, TrainableLlama
from hspec_lab.train.loop import Plan, train

TARGET = Shape(
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
)
WINDOWS_PER_STEP = 6
MICRO_TOKENS = 2048
LATE_SHARE = 0.5  # the last share of the steps, while the rate decays, sees mostly library text
LATE_LIBRARY_WINDOWS = 4
LONG_SHARE = 0.25  # the last share of the steps sees whole windows, the rest half ones (cheaper)


def train_target(
    files: list[SourceFile], tokenizer: Tokenizer, plan: Plan, folder: Path, seed: int, device: str
) -> TrainableLlama:
    """Train the target on `files`; resumes from `folder`."""
    windows = Windows(files, tokenizer, seed)
    library = Windows([file for file in files if file.part == "library"], tokenizer, seed + 1)
    held_out = [file for file in files if file.part == "held_out"]
    model = TrainableLlama(TARGET).to(device)

    def losses_at(step: int):
        long = step >= (1 - LONG_SHARE) * plan.n_steps
        length = WINDOW if long else WINDOW // 2
        late = LATE_LIBRARY_WINDOWS if step >= (1 - LATE_SHARE) * plan.n_steps else 0
        parts = [windows.batch(step, WINDOWS_PER_STEP - late, length)]
        parts += [library.batch(step, late, length)] if late else []
        inputs, labels = (torch.cat(side) for side in zip(*parts, strict=True))
        rows = MICRO_TOKENS // length
        for x, y in zip(inputs.split(rows), labels.split(rows), strict=True):
            logits = model(x.to(device)).flatten(0, 1)
            loss = F.cross_entropy(logits, y.to(device).flatten(), reduction="sum")
            yield loss / inputs.numel()

    def evaluate():
        return {"bits_per_byte": round(bits_per_byte(model, held_out[:4], tokenizer), 4)}

    train(model, losses_at, plan, folder, evaluate)
    return model
