"""Train the zoo from nothing: tokenizer, target, intermediate model, two heads; then export.

Every stage resumes where it was stopped and is skipped when it is done.  `work` holds the training
state; the shipped folders are only written by `export`, when everything is there.
"""

import hashlib
import json
import platform
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from hspec_lab.train.corpus import SourceFile, read_corpus
from hspec_lab.train.data import WINDOW, Windows, bits_per_byte
from hspec_lab.train.distill import (
    INTERMEDIATE,
    LENGTH,
    Mixed,
    TrainableHead,
    train_head,
    train_intermediate,
)
from hspec_lab.train.export import export_model, export_text, export_tokenizer
from hspec_lab.train.generate import OwnText, continue_batch, loop_start, own_text
from hspec_lab.train.llama import TrainableLlama
from hspec_lab.train.loop import Plan, load_state
from hspec_lab.train.pretrain import TARGET, WINDOWS_PER_STEP, train_target
from hspec_lab.train.tokenizer import save_tokenizer, train_tokenizer

SEED = 0
TOKENS_PER_STEP = WINDOWS_PER_STEP * WINDOW
CHECK_PREFIX = 128  # tokens of held-out text that the target continues, for the training log
OWN_SHARE = 0.5  # of a head's training text


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Steps of each stage, `TOKENS_PER_STEP` tokens each."""

    target: int = 1600
    intermediate: int = 6000
    target_head: int = 500
    intermediate_head: int = 500
    own_tokens: int = 3_500_000


def train_zoo(work: Path, budget: Budget, device: str = "cpu", say=print) -> None:
    """Run all stages that are not done yet.

    Args:
        work: training state; may be stopped at any time and called again.
    """
    torch.manual_seed(SEED)
    files = read_corpus()
    tokenizer = _tokenizer(work / "tokenizer", files)
    target = train_target(
        files, tokenizer, Plan(n_steps=budget.target), work / "target", SEED, device
    )
    target.requires_grad_(False)
    windows = Windows(files, tokenizer, SEED)
    own = own_text(target, windows, budget.own_tokens, work / "own", SEED, say)
    data = Mixed(windows, own, OWN_SHARE)
    check = _Check(target, files, tokenizer, device)
    torch.manual_seed(SEED + 1)
    plan = Plan(n_steps=budget.intermediate, decay_share=0.6)
    middle = train_intermediate(own, plan, work / "intermediate", check.agreement, device)
    middle.requires_grad_(False)
    for name, model, steps in (
        ("target-eagle2", target, budget.target_head),
        ("intermediate-eagle2", middle, budget.intermediate_head),
    ):
        torch.manual_seed(SEED + 2)
        plan = Plan(n_steps=steps, decay_share=0.7)
        train_head(model, data, plan, work / name, check.guesses(model), device)


def _tokenizer(folder: Path, files: list[SourceFile]) -> Tokenizer:
    if not (folder / "tokenizer.json").exists():
        trained = train_tokenizer([file.text for file in files if file.part == "library"])
        save_tokenizer(trained, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


class _Check:
    """Quick numbers on held-out text, for the training log."""

    def __init__(self, target: TrainableLlama, files: list[SourceFile], tokenizer, device: str):
        held_out = [file for file in files if file.part == "held_out"]
        ids = [
            t for f in held_out[4:8] for t in tokenizer.encode(f.text, add_special_tokens=False).ids
        ]
        self.ids = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH).to(device)
        self.target = target

    @cached_property
    def own(self) -> OwnText:
        """Greedy continuations of held-out text, outside loops."""
        cold = torch.zeros(len(self.ids), dtype=torch.bool, device=self.ids.device)
        text = continue_batch(self.target, self.ids[:, :CHECK_PREFIX], 2 * CHECK_PREFIX, cold, None)
        text = text.rows(0, len(self.ids))
        written = [CHECK_PREFIX + loop_start(row[CHECK_PREFIX:]) for row in text.ids.tolist()]
        return replace(text, kept=torch.tensor(written))

    @torch.no_grad()
    def agreement(self, model: TrainableLlama) -> dict:
        pairs = ((self.target(ids).argmax(-1), model(ids).argmax(-1)) for ids in self.ids.split(4))
        shares = [(one == other).float().mean() for one, other in pairs]
        own, at = self.own, torch.arange(2 * CHECK_PREFIX)
        written = (at >= CHECK_PREFIX) & (at < self.own.kept[:, None])
        guessed = torch.cat([model(ids).argmax(-1) for ids in own.ids.to(self.ids.device).split(4)])
        same = guessed.cpu() == own.top_ids[..., 0].cpu()
        return {
            "same_argmax": round(float(sum(shares) / len(shares)), 4),
            "same_argmax_own": round(float(same[written].float().mean()), 4),
        }

    def guesses(self, model: TrainableLlama):
        @torch.no_grad()
        def evaluate(head: TrainableHead) -> dict:
            right, n = [0.0, 0.0, 0.0], 0
            for ids in self.ids.split(4):
                features = model.features(ids)
                wanted = model.lm_head(features).argmax(-1)[:, 1:]
                embedded = model.model.embed_tokens(ids)[:, 1:]
                for p, guess in enumerate(head.roll_out(embedded, features[:, :-1], 3)):
                    same = model.lm_head(guess[:, p:]).argmax(-1) == wanted[:, p:]
                    right[p] += float(same.float().mean())
                n += 1
            return {f"same_argmax_{p + 1}": round(share / n, 4) for p, share in enumerate(right)}

        return evaluate


def export_zoo(work: Path, root: Path, device: str = "cpu") -> dict:
    """Write the shipped folders from training state; returns what the model card needs.

    Raises:
        ValueError: a stage has not been trained yet.
    """
    files = read_corpus()
    tokenizer = _tokenizer(work / "tokenizer", files)
    training = "".join(file.text for file in files if file.part != "held_out")
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokens_per_step": TOKENS_PER_STEP,
        "corpus_sha256": hashlib.sha256(training.encode()).hexdigest(),
        "own_tokens": sum(
            int(load_file(path)["kept"].sum()) for path in (work / "own").glob("*.safetensors")
        ),
        "stages": {},
    }
    made = {
        "target": (TrainableLlama(TARGET), TARGET),
        "intermediate": (TrainableLlama(INTERMEDIATE), INTERMEDIATE),
        "target-eagle2": (TrainableHead(TARGET), TARGET),
        "intermediate-eagle2": (TrainableHead(INTERMEDIATE), INTERMEDIATE),
    }
    for name, (model, shape) in made.items():
        step, seconds = load_state(work / name, model, [])
        if step == 0:
            raise ValueError(f"{work / name}: nothing trained yet; run `hspec zoo train` first")
        one_layer = shape if isinstance(model, TrainableLlama) else model.shape
        export_model(model, one_layer, root / name)
        export_tokenizer(tokenizer, root / name)
        n_parameters = sum(p.numel() for p in model.parameters())
        facts["stages"][name] = {"steps": step, "seconds": seconds, "parameters": n_parameters}
    export_text(files, root / "text")
    held_out = [file for file in files if file.part == "held_out"]
    for name in ("target", "intermediate"):
        rounded = made[name][0].to(torch.bfloat16).float().to(device)  # as it ships
        facts["stages"][name]["bits_per_byte"] = bits_per_byte(rounded, held_out, tokenizer)
    facts["log"] = {name: _last_row(work / name / "log.jsonl") for name in made}
    return facts


def _last_row(path: Path) -> dict:
    return json.loads(path.read_text().splitlines()[-1]) if path.exists() else {}
