"""Real runs of configurations: their folder on disk, and what they say; no torch.

<folder>/confirm.json     schema, kind, conditions, plan, fingerprints of weights
         confirm.parquet  one row per configuration, prompt and turn, see `ROWS`

Every row carries what plain decoding (ar) took on the same prompt just before and just behind, so a
machine that slows down slows both.  Times compare as ratios to it: of each prompt the median over
turns, then the mean over prompts, with an interval from drawing the prompts anew.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException

from hspec_lab.config import from_dict
from hspec_lab.store import read_head_file, replace_file
from hspec_lab.study_folder import SAME_CONDITIONS, check_same

SCHEMA_VERSION = 1
ROWS = {
    "config_id": "str",
    "config": "str",  # JSON of `config.as_dict`
    "method": "str",
    "prompt": "int64",
    "turn": "int64",
    "n_rounds": "int64",
    "n_emitted": "int64",  # by these rounds; the first token comes from the prefill
    "us_per_token": "float64",  # wall time of these rounds; NaN where the prefill ended the text
    "plain_us": "float64",  # the same of plain decoding of the same target
    "unit_us": "float64",  # of plain decoding of the first target: the ar step of a comparison
    "same_text": "bool",  # as plain decoding of the same target; true where texts are drawn
}
_DRAWS = 2000


def begin(folder: Path, found: dict, plan: dict, weights: dict[str, str]) -> pd.DataFrame:
    """Make a folder ready for measuring.

    Args:
        found: the conditions now.
        plan: what must be the same for rows to compare: prompts, lengths, turns.
        weights: a fingerprint per config id.

    Returns:
        the rows that `folder` holds already.

    Raises:
        ValueError: the folder is damaged, or was measured under other conditions, with another
            plan or with other weights.
    """
    plan, head = json.loads(json.dumps(plan)), {"conditions": found, "weights": {}}
    rows = _no_rows()
    if (folder / "confirm.json").exists():
        head = read_head_file(folder / "confirm.json", SCHEMA_VERSION, "record of real runs")
        for name in SAME_CONDITIONS:
            check_same(folder, name, head["conditions"].get(name), found.get(name))
        for name, value in plan.items():
            check_same(folder, name, head["plan"].get(name), value)
        for name in sorted(set(head["weights"]) & set(weights)):
            check_same(folder, f"weights of {name}", head["weights"][name], weights[name])
        rows = read_rows(folder)
    head |= {"schema": SCHEMA_VERSION, "kind": "measured", "plan": plan}
    head["weights"] = head["weights"] | weights
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head, indent=1, allow_nan=False) + "\n"
    replace_file(folder / "confirm.json", lambda path: path.write_text(text, encoding="utf-8"))
    return rows


def write_rows(folder: Path, rows: pd.DataFrame) -> None:
    """Replace the table, whole or not at all; ValueError when a column is missing or foreign."""
    _check_columns("a record of real runs", rows)
    rows = rows.astype(ROWS)
    replace_file(folder / "confirm.parquet", lambda path: rows.to_parquet(path, index=False))


def read_rows(folder: Path | str) -> pd.DataFrame:
    """The table, empty where nothing is finished; ValueError where it is damaged."""
    path = Path(folder) / "confirm.parquet"
    if not path.exists():
        return _no_rows()
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None
    _check_columns(str(path), rows)
    return rows


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in ROWS.items()})


def _check_columns(where: str, rows: pd.DataFrame) -> None:
    if list(rows.columns) != list(ROWS):
        raise ValueError(f"{where} has the columns {list(ROWS)}, got {list(rows.columns)}")


def speeds(rows: pd.DataFrame) -> pd.DataFrame:
    """What each configuration's runs say, the fastest first.

    Args:
        rows: see `ROWS`, measured under one plan.

    Returns:
        one row a configuration: config_id, method, target, draft (the value), n_prompts, n_runs,
        us_per_token (median), ar_steps (time per token in plain steps of the first target) and
        speedup (over plain decoding of its own target), both with the ends `_low`, `_high` of a
        95 % interval over prompts (NaN for a single one), mean_emitted, same_text (the share of
        runs whose text is the plain one), origin.

    Raises:
        ValueError: no run emitted anything.
    """
    found = []
    for name, runs in _usable(rows).groupby("config_id", sort=False):
        config = from_dict(json.loads(runs["config"].iloc[0]))
        steps = _by_prompt(runs["us_per_token"] / runs["unit_us"], runs)
        own = _by_prompt(runs["us_per_token"] / runs["plain_us"], runs)
        low, high = np.quantile(_means(steps), [0.025, 0.975])
        slow, fast = np.quantile(1 / _means(own), [0.025, 0.975])
        found.append(
            {
                "config_id": name,
                "method": config.method,
                "target": config.target,
                "draft": config.draft,
                "n_prompts": len(steps),
                "n_runs": len(runs),
                "us_per_token": runs["us_per_token"].median(),
                "ar_steps": steps.mean(),
                "ar_steps_low": low,
                "ar_steps_high": high,
                "speedup": 1 / own.mean(),
                "speedup_low": slow,
                "speedup_high": fast,
                "mean_emitted": runs["n_emitted"].sum() / runs["n_rounds"].sum(),
                "same_text": runs["same_text"].mean(),
                "origin": "measured",
            }
        )
    return pd.DataFrame(found).sort_values("ar_steps", kind="stable", ignore_index=True)


def verdict(table: pd.DataFrame) -> str:
    """What `speeds` of the first target's drafters mean, in words."""
    first = table.iloc[0]
    if first["ar_steps"] >= 1 or first["draft"] is None:
        return "measured: do not speculate, nothing was faster than ar"
    told = f"{1 / first['ar_steps']:.2f}x ar ({1 / first['ar_steps_high']:.2f} to "
    told += f"{1 / first['ar_steps_low']:.2f})"
    return f"measured: {first['draft']!r} on {first['target']} decodes at {told}"


def regret_of(rows: pd.DataFrame, pick: str) -> dict:
    """How much slower a configuration is than the fastest of all measured beside it.

    Which one is the fastest is decided on the same runs, and again in every draw, so where several
    are equally fast the regret of any of them comes out above 0.

    Args:
        rows: see `ROWS`; every configuration ran on the same prompts.
        pick: a config id among them.

    Returns:
        regret (0.03: three hundredths more time per token), `low` and `high`, the ends of its 95 %
        interval over prompts (NaN for a single one); pick and fastest, config ids.

    Raises:
        ValueError: `pick` was not measured, or the prompts differ.
    """
    rows = _usable(rows)
    steps = {
        name: _by_prompt(runs["us_per_token"] / runs["unit_us"], runs)
        for name, runs in rows.groupby("config_id", sort=False)
    }
    if pick not in steps:
        raise ValueError(f"{pick} was not measured; measured: {', '.join(steps)}")
    prompts = {name: tuple(found.index) for name, found in steps.items()}
    if len(set(prompts.values())) > 1:
        raise ValueError("configurations were measured on different prompts: measure the rest")
    means = {name: found.mean() for name, found in steps.items()}
    drawn = {name: _means(found) for name, found in steps.items()}
    losses = drawn[pick] / np.min(list(drawn.values()), axis=0) - 1
    low, high = np.quantile(losses, [0.025, 0.975])
    fastest = min(means, key=means.get)
    regret = float(means[pick] / means[fastest] - 1)
    return {
        "regret": regret,
        "low": float(low),
        "high": float(high),
        "pick": pick,
        "fastest": fastest,
    }


def _usable(rows: pd.DataFrame) -> pd.DataFrame:
    found = rows[rows["us_per_token"].notna() & rows["unit_us"].notna() & rows["plain_us"].notna()]
    if found.empty:
        raise ValueError("no run emitted a token behind its prefill: give longer outputs")
    return found


def _by_prompt(ratios: pd.Series, runs: pd.DataFrame) -> pd.Series:
    """The median over turns, by prompt."""
    return ratios.groupby(runs["prompt"]).median()


def _means(by_prompt: pd.Series) -> np.ndarray:
    """Means over prompts drawn anew, the same prompts for every configuration; NaN for one."""
    n_prompts = len(by_prompt)
    if n_prompts < 2:
        return np.full(_DRAWS, np.nan)
    chosen = np.random.default_rng(0).integers(n_prompts, size=(_DRAWS, n_prompts))
    return by_prompt.to_numpy()[chosen].mean(axis=1)
