"""Is the prediction true, and does the best configuration win?  On the shipped models, measured.

    python benchmarks/predicted.py [--target zoo:target@fp32] [--costs DIR] [--out DIR]

1. Every setting of a coarse space (more than 150) is predicted: acceptance replayed, stages as
   measured earlier in rounds whose sizes were drawn at random.
2. All of them run, each prompt taking turns with plain decoding: predicted against measured, in
   plain steps (ar) of the same turn.
3. `hspec best` searches the whole space, confirms a shortlist by real runs, and its pick is run
   again beside the sweep's five fastest: the regret.

The folder is resumed; quiet machines only.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab.acceptance import replay
from hspec_lab.acceptance_folder import shipped_traces
from hspec_lab.best import configs_of, search, shortlist
from hspec_lab.config import Chain, Refine, config_id
from hspec_lab.confirm import confirm, exhaustive, regret
from hspec_lab.confirm_folder import read_rows
from hspec_lab.cost import stage_costs
from hspec_lab.space import COARSE
from hspec_lab.stages_folder import read_stages, shipped_stages
from hspec_lab.terminal import bar

N_PROMPTS, MAX_NEW_TOKENS = 4, 96


def pairs_of(target: str, measured) -> list[tuple]:
    """Shipped traces of a target with their measured stages, at the sweep's own context."""
    pairs = []
    for trace in shipped_traces():
        if trace.config.target != target or trace.config.temperature or trace.eagle.top_k != 8:
            continue
        rounds = replay(trace, None, MAX_NEW_TOKENS)
        context = int(rounds.loc[rounds["prompt"] < N_PROMPTS, "kv_len"].mean())
        drafts = [trace.draft]
        if isinstance(trace.draft, Refine):
            # a chain's rounds are measured for themselves
            drafts.append(Chain(trace.draft.model, trace.draft.at_least))
        pairs += [(trace, stage_costs(measured, target, draft, context)) for draft in drafts]
    return pairs


def in_steps(rows: pd.DataFrame) -> pd.Series:
    """Measured time per token in plain steps, by config: all tokens of all prompts together."""
    rows = rows.assign(steps=rows["us_per_token"] / rows["unit_us"])
    by_prompt = rows.groupby(["config_id", "prompt"]).agg(
        steps=("steps", "median"), n_emitted=("n_emitted", "first")
    )
    us = (by_prompt["steps"] * by_prompt["n_emitted"]).groupby("config_id").sum()
    return us / by_prompt["n_emitted"].groupby("config_id").sum()


def beside(table: pd.DataFrame, configs: list, rows: pd.DataFrame) -> pd.DataFrame:
    """Predicted and measured time per token, in plain steps; drafters alone."""
    table = table.assign(config_id=[config_id(config) for config in configs])
    table["measured"] = table["config_id"].map(in_steps(rows))
    table["error"] = table["ar_steps"] / table["measured"] - 1
    return table[table["method"] != "ar"].dropna(subset=["measured"])


def errors_text(found: pd.DataFrame) -> str:
    """Lines: all, and by method."""
    lines = []
    for name, rows in [("all", found), *found.groupby("method", sort=False)]:
        off = rows["error"].abs()
        lines.append(
            f"{name:10} {len(rows):4} settings: median error {off.median():.1%}, 95th percentile "
            f"{off.quantile(0.95):.1%}, worst {off.max():.1%}, signed {rows['error'].median():+.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="zoo:target@fp32")
    parser.add_argument("--costs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("hspec_predicted"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measured = read_stages(options.costs) if options.costs else shipped_stages()
    pairs = pairs_of(options.target, measured)
    sizes = {"n_prompts": N_PROMPTS, "max_new_tokens": MAX_NEW_TOKENS}
    some = {"threads": options.threads, **sizes}
    coarse = search(pairs, COARSE, **sizes)
    configs = configs_of(coarse, **some)
    with bar("run") as progress:
        exhaustive(
            configs, options.out / "sweep", **sizes, repeats=options.repeats, progress=progress
        )
    rows = read_rows(options.out / "sweep")
    found = beside(coarse, configs, rows)
    print(f"{options.target}: predicted against measured time per token, in ar steps")
    print(errors_text(found))
    found.drop(columns="draft").to_parquet(options.out / "predicted.parquet", index=False)

    top = in_steps(rows).sort_values().index[:5]
    by_id = {config_id(config): config for config in configs}
    table = search(pairs, **sizes)
    short = shortlist(table, 6)
    with bar("run") as progress:
        tried = confirm(
            configs_of(short[short["method"] != "ar"], **some),
            **sizes,
            repeats=options.repeats,
            folder=options.out / "confirm",
            progress=progress,
        )
    picks = {config_id(config): config for config in configs_of(short, **some)}
    pick = picks[tried["config_id"].iloc[0]]
    if tried["ar_steps"].iloc[0] >= 1:  # do not speculate
        pick = next(config for config in picks.values() if config.draft is None)
    print(f"\nsearched {len(table)} settings, ran {len(tried)}; the pick: {pick.draft or 'ar'!r}")
    with bar("run") as progress:
        lost, speeds = regret(
            pick,
            [by_id[name] for name in top],
            n_prompts=12,
            max_new_tokens=MAX_NEW_TOKENS,
            repeats=options.repeats,
            folder=options.out / "regret",
            progress=progress,
        )
    shown = ["method", "draft", "ar_steps", "ar_steps_low", "ar_steps_high", "speedup"]
    with pd.option_context("display.max_colwidth", 120, "display.width", 220):
        print(speeds[shown].round(3).to_string(index=False))
    print(
        f"regret {lost['regret']:.1%} ({lost['low']:.1%} to {lost['high']:.1%}) against the best "
        f"of {len(configs)} settings"
    )
    assert np.isfinite(lost["regret"])


if __name__ == "__main__":
    main()
