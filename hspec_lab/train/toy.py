"""A checkpoint folder of one's own, made while one reads: a toy to try things on.

It has what a downloaded one has: `config.json`, `model.safetensors`, `tokenizer.json`, in Hugging
Face's layout.  Weights are trained for some seconds on text that ships with the package, so that a
target and a smaller model agree now and then; what it writes is no use to anybody.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hspec_lab import zoo
from hspec_lab.store import store_root
from hspec_lab.train.export import export_model, export_tokenizer
from hspec_lab.train.llama import Shape, TrainableLlama
from hspec_lab.train.tokenizer import BOS, EOS, PATTERN

VOCAB, CONTEXT = 512, 1024
_LENGTH, _BATCH, _RATE = 128, 6, 3e-3


def fresh_folder(name: str = "toy") -> Path:
    """An empty folder below the store; what an earlier call put there is deleted."""
    folder = store_root() / f".{name}"  # a dot, or it would be listed among the runs
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def make_checkpoint(
    folder: Path | str,
    *,
    hidden: int = 128,
    layers: int = 2,
    n_steps: int = 120,
    tokenizer: Path | str | None = None,
    vocab: int = VOCAB,
    seed: int = 0,
) -> Path:
    """Train a small Llama and write it; a folder that holds one already is left alone.

    Args:
        hidden: width, a multiple of 64.
        n_steps: of 768 tokens; 0 leaves random weights.
        tokenizer: the folder whose tokenizer is taken over; None: one is trained, as large as
            `vocab`.  Models that decode together must share one.

    Returns:
        the folder.

    Raises:
        ValueError: a width that no head divides, or a tokenizer's folder without one.
    """
    folder = Path(folder)
    if hidden % 64 or hidden < 64:
        raise ValueError(f"hidden must be a multiple of 64, got {hidden!r}")
    if (folder / "config.json").is_file():
        return folder
    made = _taken(Path(tokenizer)) if tokenizer else train_small_tokenizer(vocab)
    shape = Shape(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        vocab_size=made.get_vocab_size(),
        max_position_embeddings=CONTEXT,
    )
    torch.manual_seed(seed)
    model = TrainableLlama(shape)
    if n_steps:
        _train(model, made, n_steps, seed)
    export_model(model, shape, folder)
    export_tokenizer(made, folder)
    return folder


def train_small_tokenizer(vocab: int = VOCAB) -> Tokenizer:
    """A byte-level BPE of `vocab` entries, trained on the text that ships."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(zoo.held_out("calibration"), trainer)
    return tokenizer


def _taken(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no tokenizer.json to take over")
    return Tokenizer.from_file(str(path))


def _train(model: TrainableLlama, tokenizer: Tokenizer, n_steps: int, seed: int) -> None:
    """Next-token prediction; what a step sees follows from its number alone."""
    bos = tokenizer.token_to_id(BOS)
    coded = tokenizer.encode_batch(zoo.held_out("calibration"), add_special_tokens=False)
    stream = torch.tensor([token for one in coded for token in (bos, *one.ids)])
    n_windows = (len(stream) - 1) // _LENGTH
    order = torch.randperm(n_windows, generator=torch.Generator().manual_seed(seed)).tolist()

    # one thread: products this small wait for each other longer than they compute
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95))
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 3 * (n_steps - step) / n_steps)
        picks = [order[(step * _BATCH + i) % n_windows] * _LENGTH for i in range(_BATCH)]
        rows = torch.stack([stream[start : start + _LENGTH + 1] for start in picks])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)


def prompts(n: int = 4, lines: int = 6) -> tuple[str, ...]:
    """The first lines of the shipped prompts: short, as a small vocabulary makes long ones."""
    return tuple("".join(text.splitlines(keepends=True)[:lines]) for text in zoo.prompts()[:n])


def files_of(*folders: Path | str) -> pd.DataFrame:
    """What lies in checkpoint folders: folder, file, bytes."""
    rows = [
        {"folder": Path(folder).name, "file": path.name, "bytes": path.stat().st_size}
        for folder in folders
        for path in sorted(Path(folder).iterdir())
        if path.is_file()
    ]
    return pd.DataFrame(rows)


def refusal(call: Callable, *args, **options) -> str:
    """The one line with which something refuses; says so where it does not.

    Args:
        call: what is tried, with its arguments.
    """
    try:
        call(*args, **options)
    except ValueError as error:
        return f"ValueError: {error}"
    return "nothing was refused"


def silent(done: int, total: int, text: str) -> None:
    """Progress that nobody is told of."""
