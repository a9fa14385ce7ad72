"""What recording adds to a round: counted from the cost of a span, and measured end to end.

    python benchmarks/overhead.py [--turns 20] [--tokens 48] [--json FILE]

Counted: the cost of a round's own two marks, of a span and of a module, each the median of loops
with the bare loop taken off, times how many of them a round has, over the round's median time.  It
is counted for the host clock alone, with modules, with NVTX ranges that were asked for while no
tool listens, and with ranges that the listener of the tests writes to a file (in a process of its
own; left out without a C compiler).

Measured: in one turn each contestant decodes the same prompts, in shuffled order; the ratio of the
medians of seconds per token, with and without a recorder, and its 95 % bootstrap interval over
turns.  A counted share far below the interval's width cannot be seen end to end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from nvtx_listener import build_listener
from nvtx_listener import environment as heard_by

from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.experiment import Session, conditions
from hspec_lab.nvtx_ranges import NvtxRecorder, listening
from hspec_lab.pipeline import Models
from hspec_lab.trace import Recorder, measure_span_cost

FORMATS = ("fp32", "w4a16-g128")
MIDDLE = "zoo:intermediate@w4a16-g128"
DRAFTS = {
    "ar": None,
    "chain": Chain(MIDDLE, 4),
    "eagle2": Eagle2(tree_size=24, depth=4, top_k=8),
    "hierspec": Refine(MIDDLE, Eagle2(tree_size=6, depth=2, top_k=3), at_least=4),
}
CONTESTANTS = {"without": {"record": False}, "spans": {}, "modules": {"modules": True}}
KINDS = ("round", "span", "module")
N_PROMPTS, LOOPS, REPEATS, PICKS = 2, 5, 5000, 2000


def cost_us(work: Callable[[], None], n: int = REPEATS) -> float:
    """us of one call of `work`: median of `LOOPS` loops of `n`, a loop that does nothing off."""

    def nothing():
        pass

    def ns(call):
        start = perf_counter_ns()
        for _ in range(n):
            call()
        return perf_counter_ns() - start

    return median(ns(work) - ns(nothing) for _ in range(LOOPS)) / n / 1e3


def costs_of(recorder_factory: Callable[[], Recorder]) -> dict[str, float]:
    """us of a span, of a module and of a round's beginning and end."""
    recorder = recorder_factory()
    recorder.start_prompt(0)

    def empty_round():
        recorder.begin_round(64)
        recorder.end_round(4, 2, 3)

    def module():
        with recorder.module("attention", 0, 8):
            pass

    found = {"round": cost_us(empty_round)}
    recorder.begin_round(64)
    with recorder.span("verify_target", "target", 8, 64):
        found["module"] = cost_us(module)
    return found | {"span": measure_span_cost(recorder_factory, n=REPEATS)}


def nvtx_costs() -> dict[str, float]:
    """The same with NVTX ranges, whoever listens to this process."""
    domain = listening(True)
    return costs_of(lambda: NvtxRecorder(domain))


def heard_costs(folder: Path) -> dict[str, float] | None:
    """The same in a process that the listener listens to; None without a C compiler."""
    listener = build_listener(folder)
    if listener is None:
        return None
    done = subprocess.run(
        [sys.executable, __file__, "--only-nvtx-costs"],
        env=heard_by(listener, folder / "heard.jsonl"),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def all_costs() -> dict[str, dict[str, float]]:
    """us of each way of recording that this machine has."""
    costs = {"host clock": costs_of(Recorder)}
    if find_spec("nvtx") is not None:
        costs["nvtx, no tool"] = nvtx_costs()
        with tempfile.TemporaryDirectory() as folder:
            heard = heard_costs(Path(folder))
        costs |= {"nvtx, listener": heard} if heard else {}
    return costs


def interval(slow: np.ndarray, fast: np.ndarray) -> dict[str, float]:
    """Ratio of medians over paired turns and its 95 % bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(slow), size=(PICKS, len(slow)))
    ratios = np.median(slow[picks], axis=1) / np.median(fast[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    ratio = np.median(slow) / np.median(fast)
    return {"ratio": round(float(ratio), 4), "low": round(low, 4), "high": round(high, 4)}


def seconds_per_token(session: Session) -> float:
    """Of the prompts' rounds, each prompt's first left out, with the prefill before it."""
    ns, n_tokens = 0, 0
    for index in range(N_PROMPTS):
        stamps = []
        for item in session.rounds_of(index):
            stamps.append(perf_counter_ns())
            n_tokens += item.n_emitted if len(stamps) > 1 else 0
        ns += stamps[-1] - stamps[0]
    return ns / n_tokens / 1e9


def measured(config: Config, models: Models, turns: int) -> dict:
    """Counts of a round, and ratios to decoding without a recorder."""
    sessions = {
        name: Session(config, models, nvtx=False, **options)
        for name, options in CONTESTANTS.items()
    }
    order, times = np.random.default_rng(0), {name: [] for name in sessions}
    for session in sessions.values():
        session.warm_up()
    for _ in range(turns):
        for name in order.permutation(list(sessions)):
            times[name].append(seconds_per_token(sessions[name]))
    found = {name: np.array(values) for name, values in times.items()}
    ratios = {name: interval(found[name], found["without"]) for name in ("spans", "modules")}
    modules = counts(sessions["modules"])["modules"]
    return counts(sessions["spans"]) | {"modules": modules, "ratios": ratios}


def counts(session: Session) -> dict[str, float]:
    """How many spans and modules a round has, and its median time in us; warm-up left out."""
    tables = {n: t[~t["warmup"]] for n, t in session.recorder.tables().items()}
    n_rounds = len(tables["rounds"])
    found = {"round_us": float(tables["rounds"]["duration_us"].median())}
    for name in ("spans", "modules"):
        n = int((tables[name]["round"] >= 0).sum()) if name in tables else 0
        found[name] = round(n / n_rounds, 2)
    return found


def shares(costs: dict[str, dict[str, float]], found: dict) -> dict[str, float]:
    """The counted share of a round for each way of recording, by its name."""
    counted = {}
    for name, cost in costs.items():
        spans = cost["round"] + found["spans"] * cost["span"]
        counted[name] = spans / found["round_us"]
        counted[f"{name}, modules"] = (spans + found["modules"] * cost["module"]) / found[
            "round_us"
        ]
    return counted


def percent(ratio: dict[str, float]) -> str:
    """A ratio as what it adds: +0.4 % (-0.3..+1.2)."""
    added, low, high = (100 * (ratio[key] - 1) for key in ("ratio", "low", "high"))
    return f"{added:+.1f} % ({low:+.1f}..{high:+.1f})"


def report(turns: int = 20, tokens: int = 48, threads: int = 2) -> dict:
    """Count and measure, print both, and return them."""
    costs, models, rows = all_costs(), Models(), []
    for format, (method, draft) in product(FORMATS, DRAFTS.items()):
        config = Config(
            target=f"zoo:target@{format}",
            draft=draft,
            n_prompts=N_PROMPTS,
            max_new_tokens=tokens,
            threads=threads,
        )
        found = measured(config, models, turns)
        rows.append(
            {"format": format, "method": method} | found | {"counted": shares(costs, found)}
        )
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    show(rows, costs, turns)
    return {"costs_us": costs, "rows": rows, "turns": turns}


def show(rows: list[dict], costs: dict[str, dict[str, float]], turns: int) -> None:
    """Print what was counted and what was measured."""
    print(f"{'us of one':24}" + "".join(f"{kind:>10}" for kind in KINDS))
    for name, cost in costs.items():
        print(f"{name:24}" + "".join(f"{cost[kind]:10.3f}" for kind in KINDS))
    for row in rows:
        print(
            f"\n{row['format']} {row['method']}: a round of {row['round_us']:.0f} us has "
            f"{row['spans']} spans and {row['modules']} modules"
        )
        for name, share in row["counted"].items():
            print(f"  counted   {name:32}{share:8.3%}")
        for name, ratio in row["ratios"].items():
            print(f"  measured  {name:32}{percent(ratio)}, {turns} turns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-nvtx-costs", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_nvtx_costs:
        print(json.dumps(nvtx_costs()))
        return
    result = report(args.turns, args.tokens, args.threads)
    facts = conditions("cpu", args.threads)
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    if args.json:
        args.json.write_text(json.dumps(result | {"environment": facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
