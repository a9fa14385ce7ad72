"""One training loop for every model of the zoo: seeded, resumable, safetensors only.

What a step sees follows from its number alone, so a run that was stopped and resumed is the run
that was never stopped.  The learning rate is warm-up, plateau, linear decay to zero.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hspec_lab.train.muon import Muon, has_fast_bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast to train."""

    n_steps: int
    muon_lr: float = 0.02
    adam_lr: float = 0.006
    warmup_steps: int = 40
    decay_share: float = 0.5  # the last share of the steps decays linearly to zero
    save_every: int = 50
    evaluate_every: int = 200


def rate(plan: Plan, step: int) -> float:
    """Learning-rate factor 0..1 at a step."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    left = (plan.n_steps - step) / max(1.0, plan.decay_share * plan.n_steps)
    return warm * min(1.0, left)


def optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, the output layer and gains."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    outer = ("embed_tokens", "lm_head")
    hidden = [p for name, p in trained if p.ndim == 2 and not any(part in name for part in outer)]
    hidden_ids = {id(p) for p in hidden}
    rest = [p for _, p in trained if id(p) not in hidden_ids]
    both = [Muon(hidden, lr=plan.muon_lr)] if hidden else []
    if rest:
        adam = torch.optim.AdamW(
            rest, lr=plan.adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
        )
        both.append(adam)
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return both


def save_state(folder: Path, model: nn.Module, opts: list, step: int, seconds: float) -> None:
    """Write weights, optimizer state and progress; a crash leaves the previous ones whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, opt in enumerate(opts):
        for j, slots in opt.state_dict()["state"].items():
            for key, value in slots.items():
                tensors[f"opt.{i}.{j}.{key}"] = torch.as_tensor(value)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    progress = {"step": str(step), "seconds": str(seconds)}
    save_file(tensors, folder / "state.tmp", metadata=progress)
    os.replace(folder / "state.tmp", folder / "state.safetensors")
    (folder / "progress.json").write_text(json.dumps({"step": step, "seconds": seconds}) + "\n")


def load_state(folder: Path, model: nn.Module, opts: list) -> tuple[int, float]:
    """Continue from `save_state`'s files; (0, 0.0) when there are none."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for i, opt in enumerate(opts):
        whole = opt.state_dict()
        for name, value in tensors.items():
            if name.startswith(f"opt.{i}."):
                _, _, j, key = name.split(".", 3)
                whole["state"].setdefault(int(j), {})[key] = value
        opt.load_state_dict(whole)
    progress = json.loads((folder / "progress.json").read_text())
    return progress["step"], progress["seconds"]


def train(
    model: nn.Module,
    losses_at: Callable[[int], Iterable[Tensor]],
    plan: Plan,
    folder: Path,
    evaluate: Callable[[], dict] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run (or resume) a training run to its last step.

    Args:
        model: parameters with `requires_grad` are trained, in place.
        losses_at: step number -> scalar losses whose sum is the step's loss, one per micro-batch
            (smaller activations stay in cache); must depend on the number alone.
        folder: state and `log.jsonl` are kept here.
        evaluate: called every `evaluate_every` steps and at the end; its dict is logged.
        say: receives one line of progress now and then.

    Raises:
        ValueError: the loss became NaN or infinite.
    """
    opts, device = optimizers(model, plan), next(model.parameters()).device
    first, seconds = load_state(folder, model, opts)
    folder.mkdir(parents=True, exist_ok=True)
    if first:
        say(f"{folder.name}: resumed at step {first} of {plan.n_steps}")
    mean, began = None, time.perf_counter()
    for step in range(first, plan.n_steps):
        factor = rate(plan, step)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = factor * group["peak_lr"]
        value = 0.0
        losses = iter(losses_at(step))
        while True:
            with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
                loss = next(losses, None)
            if loss is None:
                break
            loss.backward()
            value += loss.item()
        if not math.isfinite(value):
            raise ValueError(f"{folder.name}: loss is {value} at step {step}; lower the rates")
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        mean = value if mean is None else 0.9 * mean + 0.1 * value
        done = step + 1
        spent = seconds + time.perf_counter() - began
        if done % 20 == 0 or done == plan.n_steps:
            say(f"{folder.name}: step {done}/{plan.n_steps} loss {mean:.3f} {spent:.0f} s")
        if done % plan.save_every == 0 or done == plan.n_steps:
            save_state(folder, model, opts, done, spent)
        if evaluate and (done % plan.evaluate_every == 0 or done == plan.n_steps):
            row = {"step": done, "seconds": round(spent), "loss": round(mean, 4)} | evaluate()
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            say(f"{folder.name}: {row}")
