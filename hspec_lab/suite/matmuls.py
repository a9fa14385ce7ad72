"""Part `matmuls`: what one row, and what many rows cost, per scheme and projection of real models.

All that multiply the same rows with the same layer take turns, and so does a kernel that only reads
the bytes of the 4-bit layer: `of_read` is a contender's bytes a second over that kernel's, within
the same turns.
"""

from functools import lru_cache, partial
from importlib import resources
from pathlib import Path

import torch

from hspec_lab.suite.clock import time_interleaved
from hspec_lab.suite.contenders import CONTENDERS
from hspec_lab.suite.part import Bench, Part, Row, attempt
from hspec_lab.suite.summary import WANTED_ROWS, WANTED_SIZES

COLUMNS = {
    "shape": "str",
    "R": "int64",
    "C": "int64",
    "rows": "int64",
    "contender": "str",
    "time_us": "float64",
    "low_us": "float64",
    "high_us": "float64",
    "bytes": "int64",  # weights, scales, zeros, x and y, each once
    "gb_per_s": "float64",
    "of_read": "float64",
    "note": "str",
}
MODELS = ("llama-3-8b", "llama-3-70b")
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


def layers(models: tuple[str, ...] = MODELS) -> dict[tuple[int, int], str]:
    """(R, C) -> a name, of the layers that a model's fused projections are."""
    from hspec_lab.model.shape import read_shape

    found = {}
    for model in models:
        shape = read_shape(Path(str(resources.files("hspec_profiles") / "shapes" / model)))
        heads = shape.heads * shape.head_dim
        sizes = {
            "qkv": (heads + 2 * shape.kv_heads * shape.head_dim, shape.hidden),
            "o": (shape.hidden, heads),
            "gate_up": (2 * shape.inner, shape.hidden),
            "down": (shape.hidden, shape.inner),
        }
        for name, size in sizes.items():
            found.setdefault(size, f"{model} {name}")
    return {size: found.get(size, "x".join(map(str, size))) for size in (*WANTED_SIZES, *found)}


def items(bench: Bench) -> list[Row]:
    if bench.tiny:
        named, rows, first = {(32, 128): "tiny wide", (64, 128): "tiny"}, (1, 5), ()
    else:
        named, rows = layers(), ROWS
        first = [(size, n) for size in WANTED_SIZES for n in WANTED_ROWS]
    rest = [(size, n) for size in named for n in rows if (size, n) not in first]
    return [
        {"shape": named[size], "R": size[0], "C": size[1], "rows": n} for size, n in (*first, *rest)
    ]


@lru_cache(maxsize=1)
def _made(bench: Bench, R: int, C: int) -> dict[str, tuple]:
    """Name -> (contender, why there is none); kept, because all row counts of a layer share it."""
    return {name: attempt(partial(make, bench, R, C)) for name, make in CONTENDERS.items()}


def measure(bench: Bench, item: Row) -> list[Row]:
    R, C, T = item["R"], item["C"], item["rows"]
    x = torch.randn(T, C, device=bench.device).to(bench.dtype)
    calls, notes, nbytes = {}, {}, {}
    for name, (made, why_not) in _made(bench, R, C).items():
        call, note = (None, why_not) if why_not else attempt(partial(_ready, made, x, bench))
        if note:
            notes[name] = note
        else:
            calls[name] = call
            nbytes[name] = made.nbytes + (0 if made.reads_only else 2 * T * (R + C))
    times = time_interleaved(calls, bench)
    rates = {name: nbytes[name] / times[name][0] / 1e3 for name in calls}
    ceiling = rates.get("read_only", float("nan"))
    rows = [item | {"contender": name, "note": note} for name, note in notes.items()]
    for name, (median, low, high) in times.items():
        measured = {"time_us": median, "low_us": low, "high_us": high, "bytes": nbytes[name]}
        measured |= {"gb_per_s": rates[name], "of_read": rates[name] / ceiling}
        rows.append(item | {"contender": name} | measured)
    return rows


def _ready(made, x: torch.Tensor, bench: Bench):
    """The call to be timed, tried once: what fails should fail here."""
    call = partial(made.multiply, made.prepare(x))
    call()
    bench.settle()
    return call


PART = Part(
    name="matmuls",
    answers="How near to reading is a product with one row, and how many rows are free?",
    columns=COLUMNS,
    items=items,
    measure=measure,
    release=_made.cache_clear,
)
