"""What formats cost on this CPU: a plain step of the shipped target, and one large layer.

    python benchmarks/bits.py [--threads 2] [--repeats 60]

Formats take turns in shuffled order; ratios are of medians of paired turns.  The large layer is
read from memory every time: each format has copies of 100 to 200 MB that take turns.
"""

import argparse
import random
import time

import numpy as np
import torch

from hspec_lab.config import CPU_FORMATS
from hspec_lab.pipeline import Models
from hspec_lab.quant import make_linear

STEPS = (*CPU_FORMATS, "w6a16-g128", "w3a16-g128", "mxfp4", "w4a8-g128", "w4a4", "w4a16-g128-kv4")
LAYERS = (*CPU_FORMATS, "w8a16-g128", "w6a16-g128", "w3a16-g128", "w2a16-g32", "mxfp4", "w4a8-g128")
SIZE, COPIES = 4096, 3
CONTEXT = 256


def times_of(calls: dict, repeats: int) -> dict[str, np.ndarray]:
    """us of every turn, all taking turns in shuffled order."""
    order, times = random.Random(0), {name: [] for name in calls}
    for turn in range(repeats + 3):
        for name in order.sample(list(calls), len(calls)):
            begun = time.perf_counter_ns()
            calls[name]()
            if turn >= 3:
                times[name].append((time.perf_counter_ns() - begun) / 1e3)
    return {name: np.array(values) for name, values in times.items()}


def one_token_steps(threads: int, repeats: int, models: Models | None = None) -> dict:
    """us of a one-token pass of the shipped target in each format."""
    torch.set_num_threads(threads)
    models, calls = models or Models(), {}
    for format in STEPS:
        model = models.transformer(f"zoo:target@{format}", False, "cpu")
        cache = model.new_cache(CONTEXT + 1)
        cache.fill_noise(torch.Generator().manual_seed(0))
        cache.kv_len = CONTEXT
        calls[format] = lambda m=model, c=cache: m.logits(m.forward([7], c))
    with torch.inference_mode():
        return times_of(calls, repeats)


def large_layer(threads: int, repeats: int, rows: int) -> dict:
    """us of `rows` rows through a 4096 x 4096 layer in each format, read from memory."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator) * SIZE**-0.5
    x, calls = torch.randn(rows, SIZE, generator=generator), {}
    for format in LAYERS:
        copies = COPIES * max(1, round(32 / make_linear(weight, format).effective_bits / 2))
        layers = [make_linear(weight, format) for _ in range(copies)]
        turn = iter(range(1 << 40))
        calls[format] = lambda ls=layers, t=turn: ls[next(t) % len(ls)](x)
    with torch.inference_mode():
        return times_of(calls, repeats)


def over_fp32(times: dict[str, np.ndarray]) -> list[str]:
    """A line per format: its median and its share of fp32's time, turn by turn."""
    lines = []
    for name, us in times.items():
        low, middle, high = np.quantile(us / times["fp32"], [0.25, 0.5, 0.75])
        lines.append(
            f"  {name:16}{np.median(us):9.0f} us   {middle:5.2f} of fp32's ({low:.2f}..{high:.2f})"
        )
    return lines


def report(threads: int, repeats: int, models: Models | None = None) -> dict:
    """Print the tables; medians of the shares of fp32's time, by table and format."""
    tables = {
        f"one-token step of the zoo's target, {CONTEXT} tokens stored (w8a8 wanted <= 1.05)": (
            one_token_steps(threads, repeats, models)
        )
    }
    for rows in (1, 8):
        wanted = " (w4a16 wanted < 1)" if rows == 1 else ""
        name = f"a {SIZE} x {SIZE} layer, {rows} rows, from memory{wanted}"
        tables[name] = large_layer(threads, repeats, rows)
    for name, times in tables.items():
        print(f"{name}, {threads} threads", *over_fp32(times), "", sep="\n")
    return {
        name: {f: round(float(np.median(us / times["fp32"])), 3) for f, us in times.items()}
        for name, times in tables.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    report(args.threads, args.repeats)
