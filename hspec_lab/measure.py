"""Measure cost curves: the time of one forward pass over n tokens, for every n.

All n of a curve take turns in a shuffled order, so that a noisy moment of a shared machine hits all
of them alike; what is stored is the median and the quartiles of the turns.  A pass is what
verification runs: a token tree behind `context` stored tokens, and the logits of every row.

On a CUDA device a pass is one CUDA graph, timed by the device's clock on a cold cache; n stands for
itself there, not for the bucket it would be padded to.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hspec_lab.config import MAX_TREE_SIZE, split_model
from hspec_lab.experiment import Progress, conditions
from hspec_lab.formats import Format
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.model.fused import FusedTransformer
from hspec_lab.model.synthetic import SyntheticCheckpoint
from hspec_lab.pipeline import check_storable, folder_of
from hspec_lab.quantize import make_missing
from hspec_lab.runtime.memory import Memory, State
from hspec_lab.store import COSTS, empty_costs, read_cost, write_cost
from hspec_lab.suite.clock import time_interleaved
from hspec_lab.suite.part import Bench
from hspec_lab.tree import Tree, ancestor_bitsets, from_parents

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
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device cuda: torch {torch.__version__} finds no CUDA device; use cpu"
            )


def bushy(n: int) -> Tree:
    """A tree of n nodes, two children each, so that masks are real ones."""
    return from_parents([0] * n, [-1, *((node - 1) // 2 for node in range(1, n))])


def open_model(reference: str, context: int, device: str = "cpu", kernels: bool = False):
    """The checkpoint behind a model or shape reference, and its format.

    Raises:
        ValueError: no such model or shape, a format it cannot take, or a context beyond its own.
    """
    where, format = split_model(reference)
    if where.startswith("shape:"):
        if Format.parse(format).is_made:
            raise ValueError(
                f"{reference}: made-up weights are rounded to nearest, no algorithm looks at them: "
                f"take {Format.parse(format).scheme} alone"
            )
        checkpoint = SyntheticCheckpoint(where.removeprefix("shape:"), context, device)
    else:
        checkpoint = Checkpoint(folder_of(reference))
    if not kernels or device != "cpu":  # interpreted, nothing is fast
        check_storable(checkpoint.shape, format, device)
    if context > checkpoint.shape.context:
        raise ValueError(
            f"{reference} has {checkpoint.shape.context} positions; context and rows need {context}"
        )
    return checkpoint, format


def load(
    reference: str,
    context: int,
    device: str,
    *,
    row_invariant: bool = False,
    kernels: bool | None = None,
    dtype: torch.dtype = torch.bfloat16,
):
    """The model behind a reference.

    Args:
        kernels: a `FusedTransformer` of `dtype`; None: on CUDA, a `Transformer` elsewhere.
    """
    kernels = device != "cpu" if kernels is None else kernels
    checkpoint, format = open_model(reference, context, device, kernels)
    kept = {"row_invariant": row_invariant, "device": device}
    if kernels:
        return FusedTransformer(checkpoint, format, dtype=dtype, **kept)
    return Transformer(checkpoint, format, **kept)


def device_name(conditions: dict) -> str:
    """What a cost table calls the device."""
    if conditions.get("gpu"):
        return conditions["gpu"]
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
    make_missing(plan.models, progress)
    longest = max(plan.contexts) + max(plan.rows)
    for reference in plan.models:
        open_model(reference, longest, plan.device)
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
            model, loaded = load(reference, longest, plan.device), reference
            head["weight_bytes"][f"{where}@{format}"] = model.bytes_read
        if plan.device == "cpu":
            times = _curve(model, context, rows, plan, progress, done, total, reference)
            spreads = np.quantile(times / 1e3, [0.5, 0.25, 0.75], axis=0).T
        else:
            _tell(progress, done - plan.repeats, total, f"{reference}, {context} tokens stored")
            bench = Bench(device=plan.device, repeats=plan.repeats, seed=plan.seed)
            spreads, _ = curve_of_graphs(model, context, rows, bench)
        on_graphs = plan.device != "cpu"
        added = _table(key, rows, spreads, plan.repeats, on_graphs)
        table = pd.concat([table, added], ignore_index=True)
        write_cost(folder, head, table)
    return table


def _begun(plan: Plan, folder: Path) -> tuple[dict, pd.DataFrame]:
    found = conditions(plan.device, plan.threads)
    if not (folder / "measure.json").exists():
        head = {"kind": "measured", "conditions": found, "weight_bytes": {}}
        rate = read_bandwidth if plan.device == "cpu" else device_read_bandwidth
        return head | {"read_gb_per_s": rate(plan.threads)}, empty_costs()
    head, table = read_cost(folder)
    for name in ("device", "gpu", "cpu", "threads", "torch"):
        if head["conditions"].get(name) != found.get(name):
            raise ValueError(
                f"{folder} holds curves measured with {name} {head['conditions'].get(name)!r}, "
                f"now it is {found.get(name)!r}: give another folder"
            )
    return head, table


@torch.inference_mode()
def _curve(model, context: int, rows, plan: Plan, progress, done: int, total: int, words: str):
    """ns of every turn, int64 [repeats, len(rows)]."""
    shape = model.shape
    cache = model.new_cache(context + rows[-1])
    generator = torch.Generator().manual_seed(plan.seed)
    cache.fill_noise(generator)
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


@torch.inference_mode()
def curve_of_graphs(model, context: int, rows: Sequence[int], bench: Bench, beside=None):
    """Time verifications of each n, each one graph.

    Args:
        model: a `FusedTransformer`.
        bench: how often; off CUDA the launches run one by one.
        beside: something else to call in the same turns.

    Returns:
        (median, lower quartile, upper quartile) us of every n, and of `beside`.
    """
    memory = Memory(context + max(rows) + 1, model.device)
    state = State(model, memory)
    generator = torch.Generator(device=model.device).manual_seed(bench.seed)
    state.cache.fill_noise(generator)
    state.stand_at(context)
    stages = {str(n): memory.stage(partial(_verify, state, *_tree(n, model.device))) for n in rows}
    calls = stages if beside is None else stages | {"beside": beside}
    times = time_interleaved(calls, bench)
    return [times[str(n)] for n in rows], times.get("beside")


def _tree(n: int, device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens int32 [n], depths int32 [n] and ancestors int64 [n, W] of a bushy tree."""
    tree = bushy(n)
    seen = torch.from_numpy(ancestor_bitsets(tree).view(np.int64).copy())
    tokens, depths = (torch.tensor(x, dtype=torch.int32) for x in (tree.tokens, tree.depths))
    return tokens.to(device), depths.to(device), seen.to(device)


def _verify(state: State, tokens: Tensor, depths: Tensor, ancestors: Tensor) -> None:
    """Launches: what a level does with a tree, but for the verdict."""
    state.best(state.model.run(tokens, depths, ancestors, state.cache))


def device_read_bandwidth(threads: int, n_bytes: int = 1 << 30) -> float:
    """GB/s at which a kernel reads device memory once; `threads` does not matter."""
    from hspec_kernels.stream_read import stream_read

    words = torch.zeros(n_bytes // 4, dtype=torch.int32, device="cuda")
    median, _, _ = time_interleaved({"read": lambda: stream_read(words)}, Bench())["read"]
    return n_bytes / median / 1e3


def _table(key: Sequence, rows: list[int], spreads, repeats: int, graph: bool) -> pd.DataFrame:
    median, low, high = np.transpose(spreads)
    curve = dict(zip(_CURVE, key, strict=True))
    return pd.DataFrame(
        curve
        | {"n": rows, "time_us": median, "low_us": low, "high_us": high}
        | {"graph": graph, "repeats": repeats}
    )[list(COSTS)]


def _tell(progress: Progress | None, *what) -> None:
    if progress:
        progress(*what)
