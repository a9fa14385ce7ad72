"""Part `curves`: what a whole model's pass costs, for n tokens behind a context, per scheme.

A pass is a verification, one CUDA graph: a tree of n tokens, the most likely token behind each.
All n of a curve take turns, and so does a kernel that only reads memory: `of_roofline` is the time
that reading the pass's bytes (weights once, the cache once) would take at that kernel's rate, over
the pass's own time.
"""

import torch

from hspec_lab.measure import curve_of_graphs
from hspec_lab.suite.part import Bench, Part, Row
from hspec_lab.suite.shapes import make_model

COLUMNS = {
    "model": "str",
    "scheme": "str",
    "row_invariant": "str",
    "context": "int64",
    "n": "int64",
    "time_us": "float64",
    "low_us": "float64",
    "high_us": "float64",
    "graph": "boolean",
    "repeats": "int64",
    "bytes": "int64",  # weights and cache, each once
    "read_gb_per_s": "float64",  # of the reading kernel, in the same turns
    "of_roofline": "float64",
    "note": "str",
}
CONTEXTS = (512, 4096, 16384)
ROWS = (1, 2, 4, 8, 10, 16, 24, 32, 48, 60, 64)
SCHEMES = {
    "llama-3-8b": ("w4a16-g128", "w16a16", "w8a8", "w8a16", "w4a8-g128", "fp8"),
    "llama-3-70b": ("w4a16-g128", "w8a8"),
}


def items(bench: Bench) -> list[Row]:
    if bench.tiny:
        return [_item("tiny", "w4a16-g128", "no", 40)]
    first = [_item(model, "w4a16-g128", "no", 512) for model in SCHEMES]
    # curves of one model and scheme follow each other, so that it is made once
    rest = [
        _item(model, scheme, "no", context)
        for model, schemes in SCHEMES.items()
        for scheme in schemes
        for context in CONTEXTS
    ]
    cost_of_invariance = [
        _item(model, "w4a16-g128", "yes", context) for model in SCHEMES for context in (512, 4096)
    ]
    return first + [item for item in (*rest, *cost_of_invariance) if item not in first]


def _item(model: str, scheme: str, row_invariant: str, context: int) -> Row:
    return {
        "model": model,
        "scheme": scheme,
        "row_invariant": row_invariant,
        "context": context,
    }


def measure(bench: Bench, item: Row) -> list[Row]:
    context, rows = item["context"], (1, 5) if bench.tiny else ROWS
    longest = max(CONTEXTS) + max(ROWS)
    invariant = item["row_invariant"] == "yes"
    model = _model(bench, item["model"], item["scheme"], longest, invariant)
    spreads, read = curve_of_graphs(model, context, rows, bench, beside=_reading(bench))
    rate = _read_bytes(bench) / read[0] / 1e3
    n_bytes = model.nbytes + context * kv_bytes(model)
    found = []
    for n, (median, low, high) in zip(rows, spreads, strict=True):
        times = {"time_us": median, "low_us": low, "high_us": high}
        facts = {"graph": bench.on_cuda, "repeats": bench.repeats, "bytes": n_bytes}
        bound = {"read_gb_per_s": rate, "of_roofline": n_bytes / 1e3 / rate / median}
        found.append(item | {"n": n} | times | facts | bound)
    return found


_kept: dict[tuple, object] = {}


def _model(*what):
    """The model of the last item, or another one, for which that one makes room."""
    if what not in _kept:
        _kept.clear()
        _kept[what] = make_model(*what)
    return _kept[what]


def kv_bytes(model) -> int:
    """Bytes of keys and values that a pass reads for every token stored."""
    cache = model.new_cache(1)
    return cache.nbytes // cache.capacity


def _read_bytes(bench: Bench) -> int:
    return 1 << 16 if bench.tiny else 1 << 30


def _reading(bench: Bench):
    from hspec_kernels.stream_read import stream_read

    words = torch.zeros(_read_bytes(bench) // 4, dtype=torch.int32, device=bench.device)
    return lambda: stream_read(words)


PART = Part(
    name="curves",
    answers="What does a pass over n tokens cost, per scheme and context, and what bounds it?",
    columns=COLUMNS,
    items=items,
    measure=measure,
    release=_kept.clear,
)
