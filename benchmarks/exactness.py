"""Replay against decoding, round for round: 200 random settings on every shipped prompt.

    python benchmarks/exactness.py [--settings 200] [--tokens 32] [--target zoo:target@fp32]

Settings are drawn over all methods; they are decoded in the row-invariant mode in which the shipped
traces were recorded.  `make test` does the same for every prompt and method, and for 200 settings
on two prompts each.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from compared_rounds import SMALLEST_GAP, differing_rounds

from hspec_lab.acceptance_folder import shipped_traces
from hspec_lab.config import Chain, Eagle2, Refine
from hspec_lab.pipeline import Models
from hspec_lab.terminal import bar


def any_draft(draw: random.Random, hierarchy):
    """A random setting, and whether the hierarchy's trace answers for it."""
    head = Eagle2(draw.randint(1, 64), draw.randint(1, 8), 8)
    below, length = hierarchy.draft.model, draw.randint(1, 12)
    return draw.choice([
        (False, None),
        (False, head),
        (True, Chain(below, length)),
        (True, Refine(below, head, length)),
        (True, Refine(below, head, length, tree_size=draw.randint(2, 24))),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--target", default="zoo:target@fp32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    traces = [
        trace
        for trace in shipped_traces()
        if trace.config.target == options.target
        and trace.config.temperature == 0
        and trace.eagle.top_k == 8
    ]
    single = next(trace for trace in traces if isinstance(trace.draft, Eagle2))
    hierarchy = next(trace for trace in traces if isinstance(trace.draft, Refine))
    draw, models, n_rounds, gaps = random.Random(options.seed), Models(), 0, []
    with bar("setting") as progress:
        for number in range(options.settings):
            progress(number, options.settings, f"{n_rounds} rounds, {len(gaps)} differ")
            is_below, draft = any_draft(draw, hierarchy)
            trace = hierarchy if is_below else single
            n, found = differing_rounds(trace, draft, models, max_new_tokens=options.tokens)
            n_rounds, gaps = n_rounds + n, gaps + found
            for gap in found:
                print(f"{draft!r} differs, deciding gap {gap:.1e}", flush=True)
    told = ", ".join(f"{gap:.1e}" for gap in gaps) or "none"
    print(
        f"{options.target}: {options.settings} settings, {n_rounds} rounds compared, {len(gaps)} "
        f"prompts with a round that differs (deciding gaps: {told})"
    )
    sys.exit(any(gap >= SMALLEST_GAP for gap in gaps) or len(gaps) > 1 + n_rounds // 10_000)


if __name__ == "__main__":
    main()
