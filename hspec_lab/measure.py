"""Measure cost curves: the time of one forward pass over n tokens, for every n.

All n of a curve take turns in a shuffled order, so that a noisy moment of a shared machine hits all
of them alike; what is stored is the median and the quartiles of the turns.  A pass is what
verification runs: a token tree behind `context` stored tokens, and the logits of every row.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hspec_lab.config import MAX_TREE_SIZE, split_model
from hspec_lab.experiment import Progress, conditions
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.model.synthetic import SyntheticCheckpoint
from hspec_lab.model.transformer import check_format
from hspec_lab.pipeline import locate
from hspec_lab.store import COSTS, empty_costs, read_cost, write_cost
from hspec_lab.tree import Tree, from_parents

WARMUP_TURNS = 2
_CURVE = list(COSTS)[:4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        models: `where@format`; `shape:NAME@format` is a real shape with made-up weights.
        contexts: tokens stored before a pass.
        rows: the n of each curve; 1 is always among them.
        repeats: turns per n.
    """

    models: tuple[str, ...]
    contexts: tuple[int, ...] = (512,)
    rows: tuple[int, ...] = tuple(range(1, 65))
    repeats: int = 15
    threads: int = 2
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self):
        limits = {"contexts": (0, 1 << 20), "rows": (1, MAX_TREE_SIZE)}
        for name, (low, high) in limits.items():
            values = getattr(self, name)
            if not values or not all(type(n) is int and low <= n <= high for n in values):
                raise ValueError(f"{name} must be whole numbers {low}..{high}, got {list(values)}")
        for name in ("repeats", "threads"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {getattr(self, name)!r}")
        if not self.models:
            raise ValueError("nothing to measure: name at least one model or shape")
        if self.device != "cpu":
            raise ValueError(f"cost curves are measured on cpu so far, got {self.device!r}")


def bushy(n: int) -> Tree:
    """A tree of n nodes, two children each, so that masks are real ones."""
    return from_parents([0] * n, [-1, *((node - 1) // 2 for node in range(1, n))])


def open_model(reference: str, context: int):
    """The checkpoint behind a model or shape reference, and its format.

    Raises:
        ValueError: no such model or shape, a format it cannot take, or a context beyond its own.
    """
    where, format = split_model(reference)
    if where.startswith("shape:"):
        checkpoint = SyntheticCheckpoint(where.removeprefix("shape:"), context)
    else:
        checkpoint = Checkpoint(locate(where))
    check_format(checkpoint.shape, format)
    if context > checkpoint.shape.context:
        raise ValueError(
            f"{reference} has {checkpoint.shape.context} positions; context and rows need {context}"
        )
    return checkpoint, format


def device_name(conditions: dict) -> str:
    """What a cost table calls the device."""
    return f"{conditions['cpu']}, {conditions['threads']} threads"


def read_bandwidth(threads: int, n_bytes: int = 1 << 28, repeats: int = 9) -> float:
    """GB/s of reading memory once, summing as it comes: the ceiling of a one-token pass."""
    torch.set_num_threads(threads)
    block, times = torch.ones(n_bytes // 4), []
    for _ in range(repeats):
        begun = time.perf_counter_ns()
        block.sum()
        times.append(time.perf_counter_ns() - begun)
    return n_bytes / float(np.median(times))


def measure_costs(plan: Plan, folder: Path, progress: Progress | None = None) -> pd.DataFrame:
    """Measure every curve of a plan that `folder` does not hold yet.

    The folder is written anew after each curve, so a stopped run goes on where it was.

    Args:
        progress: called with turns done, turns in all and a few words.

    Returns:
        everything `folder` holds now, see `store.COSTS`.

    Raises:
        ValueError: something about the plan is wrong, or the folder holds curves that were
            measured under other conditions.
    """
    longest = max(plan.contexts) + max(plan.rows)
    for reference in plan.models:
        open_model(reference, longest)
    torch.set_num_threads(plan.threads)
    head, table = _begun(plan, folder)
    rows = sorted({1, *plan.rows})
    curves = [(model, context) for model in plan.models for context in plan.contexts]
    total, done = len(curves) * (plan.repeats + WARMUP_TURNS), 0
    model, loaded = None, None
    for reference, context in curves:
        done += plan.repeats + WARMUP_TURNS
        where, format = split_model(reference)
        key = [device_name(head["conditions"]), where, format, context]
        if (table[_CURVE] == key).all(axis=1).any():
            continue
        if loaded != reference:
            model = None  # frees the last one before the next is made
            _tell(progress, done - plan.repeats - WARMUP_TURNS, total, f"loading {reference}")
            model, loaded = Transformer(*open_model(reference, longest)), reference
            head["weight_bytes"][f"{where}@{format}"] = model.nbytes
        times = _curve(model, context, rows, plan, progress, done, total, reference)
        table = pd.concat([table, _table(key, rows, times)], ignore_index=True)
        write_cost(folder, head, table)
    return table


def _begun(plan: Plan, folder: Path) -> tuple[dict, pd.DataFrame]:
    found = conditions(plan.device, plan.threads)
    if not (folder / "measure.json").exists():
        head = {"kind": "measured", "conditions": found, "weight_bytes": {}}
        return head | {"read_gb_per_s": read_bandwidth(plan.threads)}, empty_costs()
    head, table = read_cost(folder)
    for name in ("device", "cpu", "threads", "torch"):
        if head["conditions"].get(name) != found[name]:
            raise ValueError(
                f"{folder} holds curves measured with {name} {head['conditions'].get(name)!r}, "
                f"now it is {found[name]!r}: give another folder"
            )
    return head, table


@torch.inference_mode()
def _curve(model, context: int, rows, plan: Plan, progress, done: int, total: int, words: str):
    """ns of every turn, int64 [repeats, len(rows)]."""
    shape = model.shape
    cache = model.new_cache(context + rows[-1])
    generator = torch.Generator().manual_seed(plan.seed)
    cache.storage.normal_(generator=generator)
    cache.kv_len = context
    trees = [bushy(n) for n in rows]
    tokens = torch.randint(0, shape.vocab, (rows[-1],), generator=generator).tolist()
    order, times = random.Random(plan.seed), np.zeros((plan.repeats, len(rows)), dtype=np.int64)
    turns = plan.repeats + WARMUP_TURNS
    for turn in range(turns):
        _tell(progress, done - turns + turn, total, f"{words}, {context} tokens stored")
        for i in order.sample(range(len(rows)), len(rows)):
            begun = time.perf_counter_ns()
            model.logits(model.forward(tokens[: rows[i]], cache, trees[i]))
            times[max(0, turn - WARMUP_TURNS), i] = time.perf_counter_ns() - begun
    return times


def _table(key: Sequence, rows: list[int], times: np.ndarray) -> pd.DataFrame:
    low, median, high = np.quantile(times / 1e3, [0.25, 0.5, 0.75], axis=0)
    curve = dict(zip(_CURVE, key, strict=True))
    return pd.DataFrame(
        curve
        | {"n": rows, "time_us": median, "low_us": low, "high_us": high}
        | {"graph": False, "repeats": len(times)}
    )[list(COSTS)]


def _tell(progress: Progress | None, *what) -> None:
    if progress:
        progress(*what)
