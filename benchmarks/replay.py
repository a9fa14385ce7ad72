"""How long replay takes: a whole grid of settings, and one of them; no model is run.

    python benchmarks/replay.py [TRACE FOLDER] [--repeats 5]

Without a folder a random trace of 29 prompts x 352 positions is made, see `tests/traces.py`.  Times
are of the CPU, the best of the repeats: what else a shared machine does only adds.  Beside the
grid's time stands what bounds it, its reads and writes by place: one per lane and step, and
`ROUND_PLACES` per lane and round, each at what a gather costs here.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hspec_lab.acceptance import Totals, replay, totals_of
from hspec_lab.acceptance_folder import Trace, read_trace
from hspec_lab.acceptance_grid import chain_grid, grid, point
from hspec_lab.config import Chain, Drafting, Eagle2, Refine

SIZES = range(1, 65)
# entries that the end of a round reads or writes, see `acceptance_lanes`
ROUND_PLACES = 15


def random_one() -> Trace:
    """A hierarchy's trace of 10,208 positions, its drafts about as good as a good head's."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from traces import random_trace

    asked = {"n_prompts": 29, "n_positions": 352, "depth": 8, "top_k": 8, "at_least": 12}
    return random_trace(0, kind="refine", agree=0.88, hit=0.9, **asked)


def best_of(repeats: int, call: Callable) -> tuple[float, object]:
    """CPU seconds of the fastest call, and what it gave."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        found = call()
        times.append(time.process_time() - begun)
    return min(times), found


def gather_seconds(n: int = 1 << 13) -> float:
    """Of one entry among `n`, neighbours a few states apart, from a table as large as a block's."""
    table = np.zeros(1 << 19, dtype=np.int32)
    lanes = np.arange(n) * (len(table) // n) + np.random.default_rng(0).integers(0, 64, n)
    return best_of(5, lambda: [table.take(lanes) for _ in range(100)])[0] / n / 100


def whole_grid(trace: Trace) -> Totals:
    """Every setting that the trace answers for, tree sizes up to 64."""
    if isinstance(trace.draft, Chain):
        return chain_grid(trace, draft_lens=range(1, trace.draft.draft_len + 1))
    asked = {"tree_sizes": SIZES, "depths": range(1, trace.depth + 1)}
    if isinstance(trace.draft, Refine):
        asked["at_least"] = range(1, trace.draft.at_least + 1)
    return grid(trace, **asked)


def middling(trace: Trace) -> Drafting:
    """A setting as one would choose it."""
    draft = trace.draft
    if isinstance(draft, Chain):
        return replace(draft, draft_len=-(-draft.draft_len // 2))
    head: Eagle2 = replace(trace.eagle, tree_size=24, depth=-(-trace.depth // 2))
    if isinstance(draft, Eagle2):
        return head
    return replace(draft, draft=head, at_least=-(-draft.at_least // 2), tree_size=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    trace = read_trace(args.folder) if args.folder else random_one()
    print(f"{trace.name}: {trace.n_counted} positions, {len(trace.states)} states, {trace.draft!r}")
    first, _ = best_of(1, lambda: whole_grid(trace))
    seconds, found = best_of(args.repeats, lambda: whole_grid(trace))
    steps = int((found.intermediate_steps + found.drafts).sum())
    n_rounds = int(found.n_rounds.sum())
    bound = (steps + ROUND_PLACES * n_rounds) * gather_seconds()
    print(
        f"grid of {found.n_rounds.size} settings: {seconds:.3f} s (wanted < 2; the first "
        f"{first:.3f} s), {steps:,} steps and {n_rounds:,} rounds, bound {bound:.3f} s"
    )
    draft = middling(trace)
    mine, _ = best_of(10 * args.repeats, lambda: point(trace, draft))
    theirs, _ = best_of(10 * args.repeats, lambda: totals_of(replay(trace, draft), draft))
    print(f"{draft!r}: {mine * 1e3:.2f} ms (wanted < 5), through its rounds {theirs * 1e3:.2f} ms")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory: {most:.0f} MB at most (wanted < 500)")


if __name__ == "__main__":
    main()
