"""The controller against the best fixed setting and plain decoding, by the clock of the wall.

It learns on every other prompt of a shipped trace and decodes those between them, all contestants
taking turns, prompt by prompt and repeat by repeat.  What is printed is the ratio over all text
(each prompt's median over the repeats, added up), and the median of paired ratios with its range
from the 25th to the 75th percentile, beside what replay and stored cost said.  A controller gains
on some prompts and not on others, so the first is the one to compare with.

    python benchmarks/control.py --stages FOLDER [--trace NAME [--chain]] [--repeats 5]

FOLDER holds stages that were measured on this machine, quiet, with as many threads (`hspec
measure`).  The best fixed setting is that of all prompts by replay, those it is judged on included.
"""

import argparse
import json
import timeit
from dataclasses import replace
from pathlib import Path

import numpy as np
from run import interleaved, our_seconds, ratio

from hspec_lab.acceptance_folder import Trace, read_trace, shipped_traces
from hspec_lab.config import Chain, Config
from hspec_lab.control import largest
from hspec_lab.cost import stage_costs
from hspec_lab.experiment import Session, environment, prompts_of
from hspec_lab.goodput import Outcomes, compare, learn, outcomes, simulate, summary
from hspec_lab.pipeline import Models


def named(name: str) -> Trace:
    """A shipped trace, or one in a folder."""
    if Path(name).is_dir():
        return read_trace(name)
    shipped = {trace.name: trace for trace in shipped_traces()}
    if name not in shipped:
        raise SystemExit(f"no trace {name!r}; shipped: {', '.join(shipped)}")
    return shipped[name]


def best_fixed(found: Outcomes):
    """The fixed setting that is fastest over all prompts, and the whole comparison."""
    table = summary(compare(found), found)
    text = table[table["policy"] == "fixed"]["draft"].iloc[0]
    return next(option for option in found.options if repr(option) == text), table


def predicted(found: Outcomes, controller, fixed, prompts: list[int]) -> float:
    """How many times faster than the fixed setting the controller is on some prompts, by replay."""
    rounds = simulate(found, controller, prompts)
    table = compare(found, controller, order=prompts)
    alone = table[(table["policy"] == "fixed") & (table["draft"] == repr(fixed))]
    return alone["us"].sum() / rounds["us"].sum()


def sessions(args, trace: Trace, found: Outcomes, controller, fixed) -> dict[str, Session]:
    """The contestants, on the prompts that were not learned from."""
    models, prompts = Models(), prompts_of(trace.config)
    config = Config(
        target=trace.config.target,
        prompts=tuple(prompts[1::2][: args.prompts]),
        max_new_tokens=args.tokens,
        threads=args.threads,
    )
    of = {"controller": largest(found.options), "fixed": fixed, "ar": None}
    return {
        name: Session(
            replace(config, draft=draft),
            models,
            record=False,
            controller=controller if name == "controller" else None,
        )
        for name, draft in of.items()
    }


def in_all(slow: np.ndarray, fast: np.ndarray, repeats: int) -> dict:
    """How many times faster `fast` is over all prompts."""
    sums = [np.median(times.reshape(repeats, -1), axis=0).sum() for times in (slow, fast)]
    return {"in all": round(float(sums[0] / sums[1]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=Path, required=True)
    parser.add_argument("--trace", default="fp32-eagle2-k8")
    parser.add_argument(
        "--chain", action="store_true", help="of a hierarchy's trace: its small model by itself"
    )
    parser.add_argument("--allow", nargs="*", default=[], help="scheme, model, tokenizer, top_k")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=14)
    parser.add_argument("--tokens", type=int, default=352)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    trace = named(args.trace)
    draft, options = trace.draft, None
    if args.chain:
        options = [None, *(Chain(draft.model, n) for n in range(1, draft.at_least + 1))]
        draft = options[-1]
    costs = stage_costs(args.stages, trace.config.target, draft)
    found = outcomes(trace, costs, options, allow=args.allow)
    fixed, table = best_fixed(found)
    controller = learn(found, list(found.prompts)[::2])
    judged = list(found.prompts)[1::2][: args.prompts]
    said = table.groupby("policy", sort=False).head(1)
    print(f"{found.note}\n{found.origin}, {len(found.options)} settings, over all prompts:")
    for row in said.itertuples():
        print(
            f"  {row.policy:12} {row.speedup:.2f}x ar, {row.over_best_fixed:.3f}x the best fixed "
            f"setting ({row.low:.3f}..{row.high:.3f}) {row.draft}"
        )
    contestants = sessions(args, trace, found, controller, fixed)
    times = interleaved(
        {name: lambda i, s=s: our_seconds(s, i) for name, s in contestants.items()},
        len(judged),
        args.repeats,
    )
    choice_s = timeit.timeit(lambda: controller.observe(controller.choose(), 2), number=10_000)
    result = {
        f"{one} over {other}": in_all(times[other], times[one], args.repeats)
        | ratio(times[other], times[one])
        for one, other in (("controller", "fixed"), ("controller", "ar"), ("fixed", "ar"))
    }
    for name, value in result.items():
        print(
            f"{name}: {value['in all']:.3f}x in all, by prompt {value['median']:.3f}x "
            f"({value['q1']:.3f}..{value['q3']:.3f})"
        )
    expected = predicted(found, controller, fixed, judged)
    print(f"controller over fixed by replay, these prompts in full: {expected:.3f}x")
    choice_us = choice_s / 10_000 * 1e6
    print(f"a choice takes {choice_us:.2f} us")
    conditions = environment(Config(target=trace.config.target, threads=args.threads))
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    if args.json:
        said = {"by replay": said.to_dict("records"), "these prompts by replay": expected}
        whole = {"clock": result, "us per choice": choice_us} | said | {"environment": conditions}
        args.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
