"""The best of every method by the clock, and predictions beside it: the recorded sweeps.

In a sweep every setting takes turns with plain decoding, and times are in steps of the latter.
"""

import json
from importlib import resources
from pathlib import Path

import pandas as pd

from hspec_lab.best import configs_of, search
from hspec_lab.config import config_id
from hspec_lab.confirm_folder import read_rows, speeds
from hspec_lab.contest.predicted import pairs_of, setting_of
from hspec_lab.space import COARSE
from hspec_lab.store import read_head_file
from hspec_lab.terms import METHODS

STUDIES = {"fp32": "predicted-zoo", "w4a16-g128": "predicted-zoo-w4a16"}


def measured_best() -> pd.DataFrame:
    """Each method's fastest setting of the recorded sweeps.

    Returns:
        format, method, setting, speedup with `low` and `high`, mean_emitted, n_settings (of this
        method, among which it is the fastest); `attrs` for a figure.
    """
    parts = []
    for format, study in STUDIES.items():
        table = speeds(read_rows(_sweep(study)))
        table = table[table["method"].isin(METHODS)]
        n_settings = table.groupby("method")["speedup"].transform("size")
        table = table.assign(format=format, n_settings=n_settings)
        parts.append(table.sort_values("ar_steps").drop_duplicates("method"))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.assign(
        setting=[setting_of(draft) for draft in rows["draft"]],
        low=rows["speedup_low"],
        high=rows["speedup_high"],
        order=rows["method"].map(METHODS.index),
    ).sort_values(["format", "order"], kind="stable", ignore_index=True)
    shown = ["format", "method", "setting", "speedup", "low", "high", "mean_emitted", "n_settings"]
    found = rows[shown]
    found.attrs = {"origin": "measured", "note": _note_of_sweeps()}
    return found


def beside_measured() -> pd.DataFrame:
    """Every setting of the recorded sweeps, predicted for the same prompts.

    Returns:
        method, format, setting, ar_steps, ar_steps_measured, error (predicted over measured,
        less 1); `attrs` for a figure.
    """
    parts = []
    for format, study in STUDIES.items():
        rows = read_rows(_sweep(study))
        ran = json.loads(rows["config"].iloc[0])
        sizes = {"n_prompts": rows["prompt"].nunique(), "max_new_tokens": ran["max_new_tokens"]}
        table = search(pairs_of(format, **sizes), COARSE, **sizes)
        configs = configs_of(table, threads=ran["threads"], **sizes)
        table["config_id"] = [config_id(config) for config in configs]
        table["ar_steps_measured"] = table["config_id"].map(_in_steps(rows))
        parts.append(table.assign(format=format))
    found = pd.concat(parts, ignore_index=True).dropna(subset=["ar_steps_measured"])
    found = found[found["method"] != "ar"]
    found["setting"] = [str(draft) for draft in found["draft"]]
    found["error"] = found["ar_steps"] / found["ar_steps_measured"] - 1
    shown = ["method", "format", "setting", "ar_steps", "ar_steps_measured", "error"]
    origin = found["origin"].iloc[0]
    found = found[shown].reset_index(drop=True)
    found.attrs = {"origin": origin, "note": f"{len(found)} settings; {_note_of_sweeps()}"}
    return found


def _sweep(study: str) -> Path:
    return Path(str(resources.files("hspec_profiles") / "studies" / study / "sweep"))


def _in_steps(rows: pd.DataFrame) -> pd.Series:
    """Measured time per token in plain steps, by config: all tokens of all prompts together."""
    rows = rows.assign(steps=rows["us_per_token"] / rows["unit_us"])
    by_prompt = rows.groupby(["config_id", "prompt"]).agg(
        steps=("steps", "median"), n_emitted=("n_emitted", "first")
    )
    us = (by_prompt["steps"] * by_prompt["n_emitted"]).groupby("config_id").sum()
    return us / by_prompt["n_emitted"].groupby("config_id").sum()


def _note_of_sweeps() -> str:
    """Device, prompts, versions and days of the sweeps."""
    heads = [
        read_head_file(_sweep(study) / "confirm.json", 1, "record of real runs")
        for study in STUDIES.values()
    ]
    found, rows = heads[0]["conditions"], read_rows(_sweep(next(iter(STUDIES.values()))))
    n_tokens = json.loads(rows["config"].iloc[0])["max_new_tokens"]
    days = ", ".join(dict.fromkeys(head["conditions"]["date"][:10] for head in heads))
    return (
        f"{found['cpu']}, {found['threads']} threads, {rows['prompt'].nunique()} prompts x "
        f"{n_tokens} tokens, torch {found['torch']}, {days}, studies {', '.join(STUDIES.values())}"
    )
