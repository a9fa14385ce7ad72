"""What a whole request needs beside its rounds: the first token, memory, a long enough answer.

A hierarchy reads the prompt with every model it has, so its first token comes later than plain
decoding's; speculation pays from the output length at which faster rounds have made up for that.
Needs no torch.

us = time_to_first_token(prefills_of_run(run.spans), 400)["us"].sum()
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from hspec_lab.config import split_model
from hspec_lab.roofline.memory import USABLE


@dataclass(frozen=True, eq=False)
class Prefill:
    """What reading a prompt costs one level.

    Attributes:
        level: target, intermediate, head.
        us: a function of the prompt's tokens.
        origin: measured, calibrated or roofline.
        tokens: the shortest and the longest prompt for which it is known; None: for all.
    """

    level: str
    us: Callable[[int], float]
    origin: str
    tokens: tuple[int, int] | None = None


class Level(Protocol):
    """Bytes of one level, as `roofline.Memory` has them."""

    weights: float
    embedding: float
    kv: float
    activations: float


def prefills_of_run(spans: pd.DataFrame) -> list[Prefill]:
    """The prefill of each level of a measured run: a line through its prompts' times.

    Args:
        spans: as recorded.

    Raises:
        ValueError: no prefill was recorded.
    """
    spans = spans[(spans["round"] < 0) & ~spans["warmup"].astype(bool)]
    if spans.empty:
        raise ValueError("the run recorded no prefill; measure one that is not all warm-up")
    found = []
    for level, rows in spans.groupby("level", sort=False):
        sums = rows.groupby("prompt")[["n_tokens", "duration_us"]].sum()
        tokens, us = sums["n_tokens"].to_numpy(float), sums["duration_us"].to_numpy(float)
        span = (int(tokens.min()), int(tokens.max()))
        found.append(Prefill(str(level), _line(tokens, us), "measured", span))
    return found


def prefills_of_rounds(stages: pd.DataFrame, target: str, method: str) -> list[Prefill]:
    """The same from rounds that were measured for their stages.

    Args:
        stages: see `stages_folder.STAGES`.
        method: "ar" for the target alone.

    Raises:
        ValueError: no prefill of it was measured.
    """
    rows = stages[stages["phase"] == "prefill"]
    same = np.array(
        [split_model(name) == split_model(target) for name in rows["target"]], dtype=bool
    )
    rows = rows[same & (rows["method"] == method)]
    # a prompt may have been read more than once, in another turn
    spans = rows.rename(columns={"us": "duration_us"}).assign(
        prompt=rows.groupby(["draft", "prompt", "turn"]).ngroup(), warmup=False
    )
    return prefills_of_run(spans)


def _line(tokens: np.ndarray, us: np.ndarray) -> Callable[[int], float]:
    """Least squares, never falling; in proportion where all prompts are equally long."""
    slope, base = np.polyfit(tokens, us, 1) if np.ptp(tokens) else (0.0, 0.0)
    if slope <= 0:
        slope, base = us.sum() / tokens.sum(), 0.0
    return lambda n: float(base + slope * n)


def time_to_first_token(prefills: Iterable[Prefill], prompt_tokens: int) -> pd.DataFrame:
    """What the first token waits for: all levels read the prompt, one after the other.

    Returns:
        level, us, share, origin, note: "extrapolated ..." where the prompt's length is outside
        what was measured.  The sum of `us` is the time to first token.

    Raises:
        ValueError: no level, or a prompt without a token.
    """
    prefills = list(prefills)
    if not prefills:
        raise ValueError("the time to first token needs the prefill of one level at least")
    if prompt_tokens < 1:
        raise ValueError(f"a prompt has at least one token, got {prompt_tokens!r}")
    rows = [
        (one.level, one.us(prompt_tokens), one.origin, _extrapolated(one, prompt_tokens))
        for one in prefills
    ]
    table = pd.DataFrame(rows, columns=["level", "us", "origin", "note"])
    table.insert(2, "share", table["us"] / table["us"].sum())
    return table


def _extrapolated(prefill: Prefill, n_tokens: int) -> str:
    if prefill.tokens is None or prefill.tokens[0] <= n_tokens <= prefill.tokens[1]:
        return ""
    return f"extrapolated from {prefill.tokens[0]} to {prefill.tokens[1]} tokens"


def memory(
    levels: Mapping[str, Level], capacity_bytes: float | None = None, usable: float = USABLE
) -> pd.DataFrame:
    """Bytes that each level needs, and whether all of them fit together.

    Args:
        levels: by name: target, intermediate, head; from `roofline.memory_bytes`, say.
        capacity_bytes: the device's memory; None: not known.
        usable: share of it that is left to the models.

    Returns:
        level, weights_bytes (embedding included), kv_bytes, activations_bytes, total_bytes, and
        `fits`: the same in every row, <NA> without a capacity.
    """
    rows = [
        (name, one.weights + one.embedding, one.kv, one.activations) for name, one in levels.items()
    ]
    names = ["weights_bytes", "kv_bytes", "activations_bytes"]
    table = pd.DataFrame(rows, columns=["level", *names])
    table["total_bytes"] = table[names].sum(axis=1)
    fits = None if capacity_bytes is None else table["total_bytes"].sum() <= usable * capacity_bytes
    return table.assign(fits=pd.array([fits] * len(table), dtype="boolean"))


def break_even(
    first_us: float, plain_first_us: float, us_per_token: float, plain_us_per_token: float
) -> float:
    """The output length from which speculation is not slower than plain decoding.

    Args:
        first_us, plain_first_us: time to first token with and without it.
        us_per_token, plain_us_per_token: time of every further token.

    Returns:
        tokens, the first one counted: a whole number; 0 where it pays from the start, inf where no
        length is long enough.

    Raises:
        ValueError: a time is negative or not a number.
    """
    times = (first_us, plain_first_us, us_per_token, plain_us_per_token)
    if not all(math.isfinite(us) and us >= 0 for us in times):
        raise ValueError(f"times must be finite and at least 0, got {times}")
    later, saved = first_us - plain_first_us, plain_us_per_token - us_per_token
    if saved <= 0:
        return 0.0 if later <= 0 and saved == 0 else math.inf
    return 0.0 if later <= 0 else float(1 + math.ceil(later / saved))
