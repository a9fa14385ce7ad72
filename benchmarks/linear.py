"""What a linear layer costs at T rows, per format: interleaved calls, cold weights.

    python benchmarks/linear.py [--shapes 2048x384,384x1024] [--rows 1,2,8,64] [--json PATH]

Every format takes its turn at every T, so a slow minute slows all of them; the weights of each
format rotate through more than the last-level cache, as a model's do. Printed are quartiles, which
a busy machine moves less than medians: compare ratios within a run, not microseconds across runs.
The ceiling is a streaming read by the same threads in the same run.
"""

import argparse
import json
import platform
import statistics
from datetime import date
from itertools import cycle
from time import perf_counter_ns

import torch

from hspec_lab.quant import CPU_FORMATS, make_linear

ROTATE_BYTES = 48 << 20
MAX_COPIES = 1000
MIN_SAMPLES = 4


def lower_quartile(samples_ns: list[int]) -> float:
    """First quartile in microseconds."""
    return statistics.quantiles(samples_ns, n=4)[0] / 1e3


def timed(function, *arguments) -> int:
    """Nanoseconds one call took."""
    start = perf_counter_ns()
    function(*arguments)
    return perf_counter_ns() - start


def read_ceiling(repeats: int = 20) -> float:
    """Bytes per second of summing 256 MB of fp32."""
    source = torch.ones(64 << 20)
    return source.nbytes / lower_quartile([timed(source.sum) for _ in range(repeats)]) * 1e6


def rotation(weight: torch.Tensor, format: str) -> list:
    """As many layers of one format as together exceed the cache."""
    first = make_linear(weight, format)
    n_copies = min(MAX_COPIES, ROTATE_BYTES // first.nbytes + 1)
    return [first, *(make_linear(weight, format) for _ in range(n_copies))]


def measure(R: int, C: int, rows: list[int], seconds: float) -> list[dict]:
    """One row of the table per format and T."""
    layers = {format: rotation(torch.randn(R, C), format) for format in CPU_FORMATS}
    samples = {(format, T): [] for format in CPU_FORMATS for T in rows}
    inputs = {T: torch.randn(T, C) for T in rows}
    for format, T in samples:
        # the first call at a new T may compile
        layers[format][0](inputs[T])
    # one endless rotation per format, shared by its T: every call meets a layer gone cold
    turns = {format: cycle(layers[format]) for format in CPU_FORMATS}
    until = perf_counter_ns() + int(seconds * 1e9)
    while perf_counter_ns() < until or len(samples[CPU_FORMATS[0], rows[0]]) < MIN_SAMPLES:
        for format in CPU_FORMATS:
            # the first call after another format's is up to 3x slower, whatever its T: not timed
            next(turns[format])(inputs[rows[0]])
            for T in rows:
                samples[format, T].append(timed(next(turns[format]), inputs[T]))
    return table(R, C, rows, samples, {f: layers[f][0].nbytes for f in CPU_FORMATS})


def table(R: int, C: int, rows: list[int], samples: dict, nbytes: dict) -> list[dict]:
    """Quartiles and the ratios a reader compares."""
    time_us = {key: lower_quartile(taken) for key, taken in samples.items()}
    return [
        {
            "R": R, "C": C, "format": format, "T": T, "time_us": time_us[format, T],
            "read_bytes_per_s": nbytes[format] / time_us[format, T] * 1e6,
            "ratio_to_first_T": time_us[format, T] / time_us[format, rows[0]],
            "ratio_to_fp32": time_us[format, T] / time_us["fp32", T],
            "n_samples": len(samples[format, T]),
        }
        for format, T in samples
    ]  # fmt: skip


def conditions() -> dict:
    """What a reader must know to use the numbers."""
    return {
        "date": date.today().isoformat(), "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
        "threads": torch.get_num_threads(), "rotate_bytes": ROTATE_BYTES,
        "read_ceiling_bytes_per_s": read_ceiling(),
    }  # fmt: skip


def show(results: list[dict]) -> None:
    """Print one line per format and T."""
    for r in results:
        print(
            f"{r['R']:>5}x{r['C']:<5} {r['format']:<11} T={r['T']:<3} {r['time_us']:>9.1f} us "
            f"{r['read_bytes_per_s'] / 1e9:>6.1f} GB/s  {r['ratio_to_first_T']:>5.2f} x first T  "
            f"{r['ratio_to_fp32']:>5.2f} x fp32"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="640x384,384x384,2048x384,384x1024,4096x384",
                        help="R x C, comma separated")  # fmt: skip
    parser.add_argument("--rows", default="1,2,4,8,16,32,64", help="T, comma separated")
    parser.add_argument("--seconds", type=float, default=10, help="per shape")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="PATH", help="also write conditions and rows here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [int(T) for T in options.rows.split(",")]
    found = conditions()
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    results = []
    for shape in options.shapes.split(","):
        R, C = (int(n) for n in shape.split("x"))
        measured = measure(R, C, rows, options.seconds)
        show(measured)
        results += measured
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"conditions": found, "rows": results}, file, indent=1)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
