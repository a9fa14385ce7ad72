"""Part `sweep`: every visible tile shape of `w4a16_matmul`, beside the one that `choose` takes.

Configurations are chosen by a plain function of the shapes.  This says what its choice costs on a
device, and what it should say there.  It compiles a few dozen kernels, so it comes last.
"""

from dataclasses import asdict
from functools import partial

import torch

from hspec_lab.suite.clock import time_interleaved
from hspec_lab.suite.contenders import GROUP, w4a16_weights
from hspec_lab.suite.part import Bench, Part, Row, attempt
from hspec_lab.suite.summary import WANTED_SIZES

_CONFIG = ("block_r", "block_t", "splits", "num_warps", "num_stages")
COLUMNS = {
    "R": "int64",
    "C": "int64",
    "rows": "int64",
    **dict.fromkeys(_CONFIG, "int64"),
    "chosen": "boolean",
    "time_us": "float64",
    "low_us": "float64",
    "high_us": "float64",
    "note": "str",
}
ROWS = (1, 16, 32, 64)


def items(bench: Bench) -> list[Row]:
    sizes, rows = (((64, 256),), (3,)) if bench.tiny else (WANTED_SIZES, ROWS)
    return [{"R": R, "C": C, "rows": n} for n in rows for R, C in sizes]


def measure(bench: Bench, item: Row) -> list[Row]:
    from hspec_kernels.w4a16_matmul import CONFIGS, choose, w4a16_matmul

    R, C, T = item["R"], item["C"], item["rows"]
    weights = w4a16_weights(bench, R, C)
    x = torch.randn(T, C, device=bench.device).to(bench.dtype)
    chosen = choose(T, R, C)
    wanted = {chosen, *(config for config in CONFIGS if config.block_t < 2 * max(16, T))}
    if bench.tiny:
        wanted = {chosen, CONFIGS[-1]}
    calls, rows = {}, []
    for config in sorted(wanted, key=str):
        call = partial(w4a16_matmul, x, *weights, GROUP, config=config)
        _, note = attempt(lambda call=call: (call(), bench.settle()))
        if note:
            rows.append(item | asdict(config) | {"chosen": config == chosen, "note": note})
        else:
            calls[config] = call
    for config, (median, low, high) in time_interleaved(calls, bench).items():
        times = {"time_us": median, "low_us": low, "high_us": high}
        rows.append(item | asdict(config) | {"chosen": config == chosen} | times)
    return rows


PART = Part(
    name="sweep",
    answers="Which tile shapes are the fastest here, and what do the chosen ones lose?",
    columns=COLUMNS,
    items=items,
    measure=measure,
)
