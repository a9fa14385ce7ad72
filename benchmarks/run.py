"""`make bench`: the speeds this project promises, measured on this machine; all kernels compiled.

Everything that is compared takes turns within one run, prompt by prompt and repeat by repeat, so
that the noise of a shared machine falls on both sides; what is printed is the median of paired
ratios with its range from the 25th to the 75th percentile.

    python benchmarks/run.py [--repeats 5] [--prompts 4] [--tokens 96] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from bits import report as report_bits
from browser import report as report_browser
from overhead import report as report_overhead
from traces import report as report_traces

from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.experiment import Session, environment
from hspec_lab.peer import Peer
from hspec_lab.pipeline import Models, locate

FORMATS = ("fp32", "w8a8", "w4a16-g128")
MIDDLE = "zoo:intermediate@w4a16-g128"
DRAFTS = {
    "ar": None,
    "chain 4": Chain(MIDDLE, 4),
    "chain 3": Chain(MIDDLE, 3),
    "eagle2 8/2": Eagle2(tree_size=8, depth=2, top_k=4),
    "eagle2 24/4": Eagle2(tree_size=24, depth=4, top_k=8),
    "hierspec 6/2": Refine(MIDDLE, Eagle2(tree_size=6, depth=2, top_k=3), at_least=4),
}


def our_seconds(session: Session, index: int) -> float:
    """Seconds per token behind the first one of a prompt's output."""
    stamps, n = [], 0
    for item in session.rounds_of(index):
        stamps.append(time.perf_counter())
        n += item.n_emitted
    return (stamps[-1] - stamps[0]) / (n - 1)


def interleaved(
    contestants: dict[str, Callable[[int], float]], n_prompts: int, repeats: int
) -> dict[str, np.ndarray]:
    """Seconds per token of each contestant, [repeats * n_prompts], all taking turns."""
    times = {name: [] for name in contestants}
    rng = np.random.default_rng(0)
    for decode in contestants.values():
        decode(0)  # pays for memory and for operators that tune themselves
    for _, index in product(range(repeats), range(n_prompts)):
        for name in rng.permutation(list(contestants)):
            times[name].append(contestants[name](index))
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return {name: np.array(values) for name, values in times.items()}


def ratio(slow: np.ndarray, fast: np.ndarray) -> dict:
    """How many times faster `fast` is: median of paired ratios and their quartiles."""
    low, middle, high = np.quantile(slow / fast, [0.25, 0.5, 0.75])
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def peers(models: Models, n_prompts: int, tokens: int) -> dict[str, Callable[[int], float]]:
    """transformers' plain and assisted generation of the fp32 target."""
    target, middle = locate("zoo:target"), locate("zoo:intermediate")
    prompts = Session(Config(n_prompts=n_prompts), models, record=False).prompt_ids

    def timed(peer: Peer):
        def decode(index: int) -> float:
            _, n, seconds = peer.measure_prompt(prompts[index], tokens)
            return seconds / n

        return decode

    return {
        "transformers generate": timed(Peer(target)),
        "transformers assisted": timed(Peer(target, middle)),
    }


def speeds(args, models: Models) -> tuple[list[dict], dict]:
    """One row per format and method, and the claims."""
    contestants = {}
    for format, (name, draft) in product(FORMATS, DRAFTS.items()):
        config = Config(
            target=f"zoo:target@{format}",
            draft=draft,
            n_prompts=args.prompts,
            max_new_tokens=args.tokens,
            threads=args.threads,
        )
        session = Session(config, models, record=False)
        contestants[f"{format} {name}"] = lambda index, s=session: our_seconds(s, index)
    contestants |= peers(models, args.prompts, args.tokens)
    times = interleaved(contestants, args.prompts, args.repeats)
    rows = []
    for name, seconds in times.items():
        format = name.split()[0]
        plain = times.get(f"{format} ar", times["transformers generate"])
        tokens_per_s = round(float(1 / np.median(seconds)), 1)
        rows.append({"name": name, "tokens_per_s": tokens_per_s} | ratio(plain, seconds))
    spoken = {name: t for name, t in times.items() if name.startswith("fp32") and "ar" not in name}
    best = min(spoken, key=lambda name: np.median(spoken[name]))
    claims = {
        "fp32 ar over transformers generate (wanted 1.5)": ratio(
            times["transformers generate"], times["fp32 ar"]
        ),
        f"fp32 {best[5:]} over transformers assisted (wanted 1.5)": ratio(
            times["transformers assisted"], times[best]
        ),
    }
    for format in FORMATS:
        drafted = [n for n in times if n.startswith(f"{format} ") and not n.endswith(" ar")]
        best = min(drafted, key=lambda name: np.median(times[name]))
        claims[f"{best} over ar (1.3 wanted for one format)"] = ratio(
            times[f"{format} ar"], times[best]
        )
    return rows, claims


def every_configuration() -> dict:
    """Compile every visible configuration of every kernel for three GPU generations."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "hspec_kernels.compiled", "--all", "--json"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    made = [json.loads(line) for line in done.stdout.splitlines()]
    if not made:
        raise RuntimeError(f"no kernel was compiled: {done.stderr.strip()[-300:]}")
    broken = [
        f"{row['operation']} {row['case']} sm_{row['target']}: {', '.join(row['broken'])}"
        for row in made
        if row["broken"]
    ]
    return {"compiled": len(made), "broken": broken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    models = Models()
    rows, claims = speeds(args, models)
    print(f"{'':24} {'tokens/s':>9} {'over plain':>11}  q1..q3")
    for row in rows:
        print(
            f"{row['name']:24} {row['tokens_per_s']:9.1f} {row['median']:10.2f}x"
            f"  {row['q1']:.2f}..{row['q3']:.2f}"
        )
    print()
    for name, found in claims.items():
        print(f"{name}: {found['median']:.2f}x ({found['q1']:.2f}..{found['q3']:.2f})")
    print("\nrecording, wanted < 2 % of a round")
    recording = report_overhead(4 * args.repeats, args.tokens // 2, args.threads)
    print("\ntraces, wanted: 200 MB read in < 20 s and < 1.5 GB, each export in < 2 s")
    traces = report_traces(args.repeats)
    print()
    browser = report_browser()
    bits = report_bits(args.threads, 12 * args.repeats, models)
    kernels = every_configuration()
    print(
        f"kernels: {kernels['compiled']} configurations compiled, {len(kernels['broken'])} beyond "
        "their budgets"
    )
    for line in kernels["broken"]:
        print(f"  {line}")
    conditions = environment(Config(threads=args.threads))
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    if args.json:
        result = {"rows": rows, "claims": claims, "recording": recording}
        result |= {"traces": traces, "browser": browser, "bits": bits, "kernels": kernels}
        result["environment"] = conditions
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
