"""Measure cost curves: the time of one forward pass over n tokens, for every n.

All n of a curve take turns in a shuffled order, so that a noisy moment of a shared machine hits all
of them alike; what is stored is the median of the turns, its interval and the quartiles.  Beside
it stands the same time in units of the one-token pass of the same turns: times drift from run to
run, these ratios much less.  How passes are timed, and when `cold` is honest: `measure_passes`.

On a CUDA device a pass is one CUDA graph, timed by the device's clock on a cold cache; n stands for
itself there, not for the bucket it would be padded to.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hspec_lab.config import MAX_TREE_SIZE, split_model
from hspec_lab.experiment import Progress, conditions
from hspec_lab.formats import Format
from hspec_lab.measure_passes import (
    WARMUP_TURNS,
    curve_of_graphs,
    curve_of_turns,
    device_read_bandwidth,
    read_bandwidth,
)
from hspec_lab.model import Checkpoint, Transformer
from hspec_lab.model.fused import FusedTransformer
from hspec_lab.model.synthetic import SyntheticCheckpoint
from hspec_lab.pipeline import check_storable, folder_of
from hspec_lab.quantize import make_missing
from hspec_lab.store import (
    COSTS,
    COSTS_MORE,
    MOST_SPREAD,
    device_name,
    empty_costs,
    read_cost,
    whole_costs,
    write_cost,
)
from hspec_lab.suite.part import Bench

_CURVE = list(COSTS)[:4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        models: `where@format`; `shape:NAME@format` is a real shape with made-up weights.
        contexts: tokens stored before a pass.
        rows: the n of each curve; 1 is always among them.
        repeats: turns per n.
        cold: read other memory before every pass; on a CUDA device passes always are.
    """

    models: tuple[str, ...]
    contexts: tuple[int, ...] = (512,)
    rows: tuple[int, ...] = tuple(range(1, 129))
    repeats: int = 15
    cold: bool = False
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
        if type(self.cold) is not bool:
            raise ValueError(f"cold must be True or False, got {self.cold!r}")
        if not self.models:
            raise ValueError("nothing to measure: name at least one model or shape")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device cuda: torch {torch.__version__} finds no CUDA device; use cpu"
            )


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
        before = done - plan.repeats - WARMUP_TURNS
        words = f"{reference}, {context} tokens stored"
        if plan.device == "cpu":
            times = curve_of_turns(
                model,
                context,
                rows,
                repeats=plan.repeats,
                seed=plan.seed,
                cold=plan.cold,
                tell=lambda turn, at=before, words=words: _tell(progress, at + turn, total, words),
            )
            found = of_turns(*times) | {"graph": False, "cold": plan.cold}
        else:
            _tell(progress, before, total, words)
            bench = Bench(device=plan.device, repeats=plan.repeats, seed=plan.seed)
            spreads, _ = curve_of_graphs(model, context, rows, bench)
            names = ("time_us", "low_us", "high_us")
            found = dict(zip(names, np.transpose(spreads), strict=True)) | {"graph": True}
        added = _table(key, rows, found | {"repeats": plan.repeats})
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
    # graphs are timed on a cold cache whatever is asked for
    if plan.device == "cpu" and (table["cold"] != plan.cold).any():
        raise ValueError(
            f"{folder} holds curves measured with cold {not plan.cold}, now it is {plan.cold}: "
            "give another folder"
        )
    return head, table


def of_turns(times: np.ndarray, plain: np.ndarray) -> dict[str, np.ndarray]:
    """Medians with their intervals, from the turns of one curve.

    Args:
        times: us, [turns, n_rows].
        plain: us of the one-token passes of each turn, [turns, n].

    Returns:
        columns of a cost table.  An interval's ends are times themselves, those between which the
        median of a long run lies 95 times in 100 (order statistics; all of them below six turns).
    """
    plain = np.median(plain, axis=1, keepdims=True)
    ratios = np.sort(times / plain, axis=0)
    ordered, n_turns = np.sort(times, axis=0), len(times)
    median, low, high = np.quantile(times, [0.5, 0.25, 0.75], axis=0)
    end = max(0, int((n_turns - 1.96 * n_turns**0.5) // 2))
    drift = np.zeros_like(median)
    if n_turns > 1:
        first, second = times[: n_turns // 2], times[n_turns // 2 :]
        drift = np.abs(np.median(second, axis=0) - np.median(first, axis=0))
    return {
        "time_us": median,
        "low_us": low,
        "high_us": high,
        "median_low_us": ordered[end],
        "median_high_us": ordered[-1 - end],
        "plain_us": np.full_like(median, np.median(plain)),
        "ratio": np.median(ratios, axis=0),
        "ratio_low": ratios[end],
        "ratio_high": ratios[-1 - end],
        "unstable": np.maximum(high - low, drift) > MOST_SPREAD * median,
    }


def _table(key: list, rows: list[int], found: dict) -> pd.DataFrame:
    table = pd.DataFrame(dict(zip(_CURVE, key, strict=True)) | {"n": rows} | found)
    kinds = COSTS | COSTS_MORE
    return whole_costs(table)[list(kinds)].astype(kinds)


def _tell(progress: Progress | None, *what) -> None:
    if progress:
        progress(*what)
