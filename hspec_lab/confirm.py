"""Confirm predictions by real runs: configurations and plain decoding (ar) take turns.

All configurations decode a prompt one after the other, in an order that is shuffled each time, with
plain decoding of each target before and behind every few of them; then the next prompt, then the
next turn.  What slows the machine down for a while slows all of them, ratios stand, and the turns
of one configuration lie far apart.

    confirm     a few configurations
    exhaustive  a whole sweep, into a folder that goes on where it was stopped
    regret      the pick of a search and the best of a sweep, once more side by side

Rows and what they say are `confirm_folder`'s: no torch is needed to look at them again.
"""

import itertools
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
# configurations that run between two plain decodings
_PLAIN_EVERY = 8
_RUN = ["config_id", "prompt", "turn"]


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
    return speeds(_measured(configs, repeats, folder, progress))


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
        folder: written anew after each prompt of each turn.

    Returns:
        see `confirm_folder.speeds`.

    Raises:
        ValueError: as `confirm`.
    """
    configs = _alike(configs, n_prompts, max_new_tokens)
    return speeds(_measured(configs, repeats, folder, progress))


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
    rows = _measured(configs, repeats, folder, progress)
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
    configs: list[Config], repeats: int, folder: Path | None, progress: Progress | None
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
    names = {config_id(config): config for config in configs}
    n_prompts, known = len(prompts_of(configs[0])), set(map(tuple, rows[_RUN].to_numpy()))
    runs, sessions = _Runs(configs), None
    for turn, prompt in itertools.product(range(repeats), range(n_prompts)):
        todo = [c for name, c in names.items() if (name, prompt, turn) not in known]
        if not todo:
            continue
        sessions = sessions or runs.load()
        found = []
        for row in runs.of(todo, turn, prompt):
            found.append(row)
            done = len(configs) * (turn * n_prompts + prompt) + len(found)
            words = f"{row['method']} {row['config_id']}, turn {turn + 1}"
            say(done, len(configs) * n_prompts * repeats, words)
        rows = pd.concat([rows, pd.DataFrame(found)[list(ROWS)].astype(ROWS)], ignore_index=True)
        if folder is not None:
            write_rows(Path(folder), rows)
    return rows[rows["config_id"].isin(names)]


def _conditions_of(configs: list[Config], repeats: int) -> tuple[dict, dict, dict]:
    """Conditions, plan and weights, as `confirm_folder.begin` takes them."""
    first = configs[0]
    same = as_dict(replace(first, draft=None))
    plan = same | {"repeats": repeats, "prompts": prompts_of(first)}
    weights = {config_id(config): fingerprint(config) for config in configs}
    return conditions(first.device, first.threads), plan, weights


class _Runs:
    """All configurations of a comparison and plain decoding of their targets, in memory together.

    The first config's target is the one whose plain decoding is the unit.
    """

    def __init__(self, configs: list[Config]):
        self.configs, base = configs, replace(configs[0], draft=None)
        targets = dict.fromkeys(config.target for config in configs)
        self.plain = {target: replace(base, target=target) for target in targets}
        self.unit = self.plain[configs[0].target]
        self.sessions: dict[Config, Session] = {}

    def load(self) -> dict[Config, Session]:
        """Make every session ready; models are shared."""
        models = Models()
        for config in dict.fromkeys([*self.plain.values(), *self.configs]):
            session = self.sessions[config] = Session(config, models, record=False)
            session.warm_up()
            # whole, since the first pass over each number of rows prepares what later ones reuse
            for _ in session.rounds_of(0, warmup=True):
                pass
        return self.sessions

    def of(self, configs: list[Config], turn: int, prompt: int) -> Iterator[dict]:
        """One row per config, in shuffled order; plain decoding before and behind every few."""
        order = random.Random(f"{turn} {prompt}").sample(configs, len(configs))
        before = self._plainly(prompt)
        for start in range(0, len(order), _PLAIN_EVERY):
            some = order[start : start + _PLAIN_EVERY]
            drafted = [config for config in some if config.draft is not None]
            taken = {config: _timed(self.sessions[config], prompt) for config in drafted}
            behind = self._plainly(prompt)
            for config in set(some) - set(drafted):
                us = {"us_per_token": _mean(before[config], behind[config])}
                taken[config] = behind[config] | us
            for config in some:
                aside = self.plain[config.target]
                ids = [self.sessions[one].output_ids(prompt) for one in (config, aside)]
                yield (
                    _named(config)
                    | taken[config]
                    | {
                        "prompt": prompt,
                        "turn": turn,
                        "plain_us": _mean(before[aside], behind[aside]),
                        "unit_us": _mean(before[self.unit], behind[self.unit]),
                        "same_text": config.temperature > 0 or ids[0] == ids[1],
                    }
                )
            before = behind

    def _plainly(self, prompt: int) -> dict[Config, dict]:
        return {config: _timed(self.sessions[config], prompt) for config in self.plain.values()}


def _mean(one: dict, other: dict) -> float:
    return (one["us_per_token"] + other["us_per_token"]) / 2


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
