"""Confirm predictions by real runs: configurations and plain decoding (ar) take turns.

All configurations of a group decode a prompt one after the other, in an order that is shuffled each
time, plain decoding of each target among them; then the next prompt, then the next turn.  What
slows the machine down for a while slows all of them, and ratios stand.

    confirm     a few configurations, one group
    exhaustive  a whole sweep, group by group, into a folder that goes on where it was stopped
    regret      the pick of a search and the best of a sweep, once more side by side

Rows and what they say are `confirm_folder`'s: no torch is needed to look at them again.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hspec_lab.config import Config, as_dict, config_id
from hspec_lab.confirm_folder import ROWS, begin, regret_of, speeds, write_rows
from hspec_lab.experiment import Progress, Session, conditions, prompts_of
from hspec_lab.pipeline import Models, check, fingerprint, levels
from hspec_lab.quantize import make_missing

MOST_CONFIRMED = 10
# configurations whose sessions are in memory together in a sweep
_GROUP = 8


def confirm(
    configs: Sequence[Config],
    *,
    n_prompts: int = 8,
    max_new_tokens: int = 96,
    repeats: int = 3,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure a few configurations side by side.

    Args:
        configs: at most `MOST_CONFIRMED`; alike but for target and drafter.  Plain decoding of the
            first one's target is the unit of time.
        n_prompts: of the shipped ones, where the configs bring none of their own.
        max_new_tokens: per prompt.
        repeats: turns; with three or more a single hiccup does not count.
        folder: keeps the rows, see `confirm_folder`; None: they are not kept.
        progress: called with runs done, runs in all and a few words.

    Returns:
        see `confirm_folder.speeds`.

    Raises:
        ValueError: too many configurations, or none; they differ in more than target and drafter;
            one of them cannot run; the folder holds something else.
    """
    if len(configs) > MOST_CONFIRMED:
        raise ValueError(
            f"confirm takes at most {MOST_CONFIRMED} configurations, got {len(configs)}: shorten "
            "the list, or sweep with exhaustive"
        )
    configs = _alike(configs, n_prompts, max_new_tokens)
    return speeds(_measured(configs, repeats, len(configs), folder, progress))


def exhaustive(
    configs: Sequence[Config],
    folder: Path,
    *,
    n_prompts: int = 4,
    max_new_tokens: int = 64,
    repeats: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure a whole sweep, what of it `folder` does not hold yet.

    Args:
        configs, n_prompts, max_new_tokens, repeats, progress: as for `confirm`, any number.
        folder: written anew after each group of configurations.

    Returns:
        see `confirm_folder.speeds`.

    Raises:
        ValueError: as `confirm`.
    """
    configs = _alike(configs, n_prompts, max_new_tokens)
    return speeds(_measured(configs, repeats, _GROUP, folder, progress))


def regret(
    pick: Config,
    top: Sequence[Config],
    *,
    n_prompts: int = 16,
    max_new_tokens: int = 96,
    repeats: int = 3,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict, pd.DataFrame]:
    """How much slower a pick is than the fastest of others, all measured again side by side.

    Args:
        pick: what a search chose.
        top: what a sweep found fastest; may hold the pick.
        n_prompts, max_new_tokens, repeats, folder, progress: as for `confirm`.

    Returns:
        see `confirm_folder.regret_of`; and the speeds it follows from.

    Raises:
        ValueError: as `confirm`.
    """
    configs = _alike([pick, *top], n_prompts, max_new_tokens)
    rows = _measured(configs, repeats, len(configs), folder, progress)
    return regret_of(rows, config_id(configs[0])), speeds(rows)


def _alike(configs: Sequence[Config], n_prompts: int, max_new_tokens: int) -> list[Config]:
    """The configs, each once, with these lengths; ValueError where they do not compare."""
    if not configs:
        raise ValueError("nothing to measure: give at least one configuration")
    configs = [replace(c, n_prompts=n_prompts, max_new_tokens=max_new_tokens) for c in configs]
    first = as_dict(replace(configs[0], draft=None))
    for config in configs[1:]:
        other = as_dict(replace(config, draft=None))
        for name in first.keys() - {"target"}:
            if first[name] != other[name]:
                raise ValueError(
                    f"configurations that are compared differ in target and drafter alone, got "
                    f"{name} {first[name]!r} and {other[name]!r}"
                )
    return list(dict.fromkeys(configs))


def _measured(
    configs: list[Config],
    repeats: int,
    group: int,
    folder: Path | None,
    progress: Progress | None,
) -> pd.DataFrame:
    """The rows of all configs, those that a folder holds among them."""
    if type(repeats) is not int or repeats < 1:
        raise ValueError(f"repeats must be a whole number >= 1, got {repeats!r}")
    say = progress or (lambda done, total, text: None)
    make_missing([model for config in configs for model in levels(config)], progress)
    for config in configs:
        check(config)
    rows = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in ROWS.items()})
    if folder is not None:
        rows = begin(Path(folder), *_conditions_of(configs, repeats))
    n_runs = len(prompts_of(configs[0])) * repeats
    counts, models = rows["config_id"].value_counts(), Models()
    todo = [config for config in configs if counts.get(config_id(config), 0) < n_runs]
    for start in range(0, len(todo), group):
        done = (len(configs) - len(todo) + start) * n_runs
        now, found = todo[start : start + group], []
        for row in _take_turns(now, configs[0].target, repeats, models):
            found.append(row)
            words = f"{row['method']} {row['config_id']}, turn {row['turn'] + 1}"
            say(done + len(found), len(configs) * n_runs, words)
        rows = pd.concat([rows, pd.DataFrame(found)[list(ROWS)].astype(ROWS)], ignore_index=True)
        if folder is not None:
            write_rows(Path(folder), rows)
    return rows[rows["config_id"].isin([config_id(config) for config in configs])]


def _conditions_of(configs: list[Config], repeats: int) -> tuple[dict, dict, dict]:
    """Conditions, plan and weights, as `confirm_folder.begin` takes them."""
    first = configs[0]
    same = as_dict(replace(first, draft=None))
    plan = same | {"repeats": repeats, "prompts": prompts_of(first)}
    weights = {config_id(config): fingerprint(config) for config in configs}
    return conditions(first.device, first.threads), plan, weights


def _take_turns(configs: list[Config], unit: str, repeats: int, models: Models) -> Iterator[dict]:
    """One row per config, prompt and turn."""
    base = replace(configs[0], draft=None)
    targets = dict.fromkeys([unit, *(config.target for config in configs)])
    plain = {target: replace(base, target=target) for target in targets}
    everything = dict.fromkeys([*plain.values(), *configs])
    sessions = {config: Session(config, models, record=False) for config in everything}
    for session in sessions.values():
        session.warm_up()
        # whole, since the first pass over each number of rows prepares what later ones reuse
        for _ in session.rounds_of(0, warmup=True):
            pass
    order = random.Random(0)
    for turn in range(repeats):
        for prompt in range(len(next(iter(sessions.values())).prompts)):
            shuffled = list(sessions)
            order.shuffle(shuffled)
            taken = {config: _timed(sessions[config], prompt) for config in shuffled}
            step = taken[plain[unit]]["us_per_token"]
            for config in configs:
                aside = plain[config.target]
                ids = [sessions[one].output_ids(prompt) for one in (config, aside)]
                yield (
                    _named(config)
                    | taken[config]
                    | {
                        "prompt": prompt,
                        "turn": turn,
                        "plain_us": taken[aside]["us_per_token"],
                        "unit_us": step,
                        "same_text": config.temperature > 0 or ids[0] == ids[1],
                    }
                )


def _named(config: Config) -> dict:
    text = json.dumps(as_dict(config), sort_keys=True)
    return {"config_id": config_id(config), "config": text, "method": config.method}


def _timed(session: Session, prompt: int) -> dict:
    """Decode a prompt; the clock runs from behind the prefill to the last token."""
    rounds = session.rounds_of(prompt)
    next(rounds)
    start = time.perf_counter_ns()
    emitted = [item.n_emitted for item in rounds]
    us, n_emitted = (time.perf_counter_ns() - start) / 1000, sum(emitted)
    return {
        "n_rounds": len(emitted),
        "n_emitted": n_emitted,
        "us_per_token": us / n_emitted if n_emitted else float("nan"),
    }
