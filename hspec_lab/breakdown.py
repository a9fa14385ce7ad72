"""Where the time of a run went, how fast it was and how much of that a loop made.

Pure functions from recorded tables to small ones.  Rows marked `warmup` never count.  Everything
per token speaks of tokens that decoding rounds emitted: the first token of an output comes from
the prefill, which is reported by itself and is no part of a round.
"""

import numpy as np
import pandas as pd

from hspec_lab.terms import ROUND_PHASES

LOOP_GRAM = 16
# what two runs must share for one to be the yardstick of the other
CONDITIONS = ("format", "device", "gpu", "cpu", "threads")
_SAME_WORK = ("max_new_tokens", "row_invariant")


def phase_table(rounds: pd.DataFrame, spans: pd.DataFrame, by_level: bool = False) -> pd.DataFrame:
    """Return what each phase of the rounds cost, in the order in which figures stack them.

    `gap` is the wall time of the rounds that no span covers; with it the shares add up to 1.
    It is negative where spans claim more than the rounds they lie in, see `covered`.

    Args:
        rounds, spans: recorded tables.
        by_level: one row per phase and level instead of one per phase.

    Returns:
        phase, level (with `by_level`), total_us, us_per_round, us_per_emitted, share of the
        rounds' wall time, device_us (total on the device's clock; NaN where a span has none).
    """
    rounds, spans = _measured(rounds), _measured(spans)
    spans = spans[spans["round"] >= 0]
    keys = ["phase", "level"] if by_level else ["phase"]
    grouped = spans.groupby(keys, sort=False)
    table = grouped["duration_us"].sum().rename("total_us").reset_index()
    table["device_us"] = grouped["device_us"].apply(lambda us: us.sum(skipna=False)).to_numpy()
    wall_us = rounds["duration_us"].sum()
    gap = {"phase": "gap", "level": "", "total_us": wall_us - table["total_us"].sum()}
    gap = pd.DataFrame([gap | {"device_us": np.nan}])[list(table.columns)]
    table = pd.concat([table, gap], ignore_index=True) if len(table) else gap
    order = {phase: position for position, phase in enumerate(ROUND_PHASES)}
    table = table.sort_values("phase", key=lambda phase: phase.map(order), kind="stable")
    table["us_per_round"] = table["total_us"] / (len(rounds) or np.nan)
    table["us_per_emitted"] = table["total_us"] / (_known(rounds["n_emitted"]) or np.nan)
    table["share"] = table["total_us"] / (wall_us or np.nan)
    columns = [*keys, "total_us", "us_per_round", "us_per_emitted", "share", "device_us"]
    return table[columns].reset_index(drop=True)


def covered(rounds: pd.DataFrame, spans: pd.DataFrame) -> float:
    """Return the share of the rounds' wall time that spans account for; NaN without rounds.

    Below 0.95 a breakdown says too little; above 1 its spans overlap.
    """
    rounds, spans = _measured(rounds), _measured(spans)
    spent = spans.loc[spans["round"] >= 0, "duration_us"].sum()
    return float(spent / (rounds["duration_us"].sum() or np.nan))


def prefill_table(spans: pd.DataFrame) -> pd.DataFrame:
    """Return the prefill by level: level, total_us, us_per_prompt (median), n_tokens (total)."""
    prefill = _measured(spans).query("round < 0")
    by_prompt = prefill.groupby(["level", "prompt"], sort=False)[["duration_us", "n_tokens"]].sum()
    return (
        by_prompt.groupby("level", sort=False)
        .agg(
            total_us=("duration_us", "sum"),
            us_per_prompt=("duration_us", "median"),
            n_tokens=("n_tokens", "sum"),
        )
        .reset_index()
    )


def summary(
    rounds: pd.DataFrame, spans: pd.DataFrame, tokens: pd.DataFrame | None = None
) -> dict[str, float]:
    """Return a run in a dozen numbers; NaN where a run is too short, or does not know, to say.

    n_rounds, n_emitted            rounds, and the tokens they emitted
    mean_emitted                   n_emitted per round, cut rounds included
    acceptance_rate                sum of accepted over sum of proposed tokens
    tokens_per_s                   n_emitted over the wall time of the rounds; neither the token
                                   that the prefill emits nor its time counts
    tokens_per_s_low, _high        95 % bootstrap interval over prompts; NaN for a single one
    time_to_first_token_ms         median over prompts: from the start of the first prefill span
                                   to the end of the last, all levels
    covered                        share of the rounds' wall time inside spans
    loop_share                     with `tokens`: share of output tokens in a loop (`in_loop`)
    mean_emitted_outside_loops     with `tokens`: see the function of that name
    """
    rounds = _measured(rounds)
    low, high = _interval(*_per_prompt(rounds))
    n_emitted = _known(rounds["n_emitted"])
    numbers = {
        "n_rounds": len(rounds),
        "n_emitted": n_emitted if np.isnan(n_emitted) else int(n_emitted),
        "mean_emitted": n_emitted / (len(rounds) or np.nan),
        "acceptance_rate": _known(rounds["n_accepted"]) / (_known(rounds["n_proposed"]) or np.nan),
        "tokens_per_s": tokens_per_s(rounds),
        "tokens_per_s_low": low,
        "tokens_per_s_high": high,
        "time_to_first_token_ms": _time_to_first_token_ms(spans),
        "covered": covered(rounds, spans),
    }
    if tokens is not None:
        numbers["loop_share"] = in_loop(tokens).mean() if len(tokens) else np.nan
        numbers["mean_emitted_outside_loops"] = mean_emitted_outside_loops(tokens)
    return {name: n if isinstance(n, int) else float(n) for name, n in numbers.items()}


def tokens_per_s(rounds: pd.DataFrame) -> float:
    """Return decoding speed: tokens emitted by rounds over the wall time of those rounds."""
    rounds = _measured(rounds)
    return float(1e6 * _known(rounds["n_emitted"]) / (rounds["duration_us"].sum() or np.nan))


def in_loop(tokens: pd.DataFrame, gram: int = LOOP_GRAM) -> pd.Series:
    """Say of each output token whether the `gram` tokens it ends already stood in that output."""
    looping = pd.Series(False, index=tokens.index)
    for _, output in tokens.sort_values("position").groupby("prompt", sort=False):
        ids, seen = output["token"].tolist(), set()
        for end in range(gram, len(ids) + 1):
            words = tuple(ids[end - gram : end])
            looping.loc[output.index[end - 1]] = words in seen
            seen.add(words)
    return looping


def mean_emitted_outside_loops(tokens: pd.DataFrame) -> float:
    """Return tokens per round over the rounds that emitted no token in a loop; NaN if none did.

    A long round has more chances to touch a loop, so this leans to the low side, never the high.
    """
    decoded = tokens.assign(looping=in_loop(tokens)).query("round >= 0")
    by_round = decoded.groupby(["prompt", "round"])["looping"].agg(["size", "any"])
    return float(by_round.loc[~by_round["any"].astype(bool), "size"].mean())


def source_share(tokens: pd.DataFrame) -> pd.DataFrame:
    """Return who produced the output: source, n_tokens, share."""
    counts = tokens["source"].value_counts(sort=False)
    return pd.DataFrame(
        {
            "source": counts.index,
            "n_tokens": counts.to_numpy(),
            "share": counts.to_numpy() / max(len(tokens), 1),
        }
    )


def speedups(runs: list[tuple[dict, pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Compare each run with plain decoding under the same conditions.

    The yardstick is the newest ar run of the same format, device, processor and threads, on the
    same prompts, with the same limit of new tokens and the same row mode.

    Args:
        runs: (head, rounds, spans) of each.

    Returns:
        config_id, method, format, device, threads, tokens_per_s, speedup, its 95 % bootstrap
        interval over prompts, and the reason where there is no speedup.
    """
    rows = []
    for head, rounds, _ in runs:
        plain = [run for run in runs if run[0]["method"] == "ar" and _same(run[0], head)]
        plain.sort(key=lambda run: str(run[0]["environment"].get("date", "")))
        if plain:
            numbers = [*_speedup(rounds, plain[-1][1]), ""]
        else:
            numbers = [np.nan, np.nan, np.nan, _reason(head)]
        about = [head["config_id"], head["method"], *_conditions(head)]
        rows.append([*about, tokens_per_s(rounds), *numbers])
    names = ["config_id", "method", *CONDITIONS, "tokens_per_s"]
    results = ["speedup", "speedup_low", "speedup_high", "reason"]
    return pd.DataFrame(rows, columns=[*names, *results]).drop(columns=["gpu", "cpu"])


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["warmup"].astype(bool)]


def _known(counts: pd.Series) -> float:
    """Their sum; NaN where a trace does not know one of them, which is -1 then."""
    return float(counts.sum()) if (counts >= 0).all() else np.nan


def _per_prompt(rounds: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Emitted tokens, NaN where not known, and microseconds of each prompt, in their order."""
    by_prompt = rounds.groupby("prompt")
    emitted = by_prompt["n_emitted"].sum().where(by_prompt["n_emitted"].min() >= 0)
    return emitted.to_numpy(float), by_prompt["duration_us"].sum().to_numpy(float)


def _resampled(n_prompts: int) -> np.ndarray:
    # seeded, so that the same run says the same interval each time
    return np.random.default_rng(0).integers(n_prompts, size=(2000, n_prompts))


def _interval(emitted: np.ndarray, us: np.ndarray) -> tuple[float, float]:
    if len(emitted) < 2:
        return np.nan, np.nan
    picks = _resampled(len(emitted))
    speeds = 1e6 * emitted[picks].sum(axis=1) / us[picks].sum(axis=1)
    return tuple(np.quantile(speeds, [0.025, 0.975]))


def _speedup(rounds: pd.DataFrame, plain: pd.DataFrame) -> tuple[float, float, float]:
    ratio = tokens_per_s(rounds) / tokens_per_s(plain)
    emitted, us = _per_prompt(_measured(rounds))
    plain_emitted, plain_us = _per_prompt(_measured(plain))
    if len(emitted) != len(plain_emitted) or len(emitted) < 2:
        return ratio, np.nan, np.nan
    picks = _resampled(len(emitted))  # the same prompts of both, so their difficulty cancels
    ours = emitted[picks].sum(axis=1) / us[picks].sum(axis=1)
    theirs = plain_emitted[picks].sum(axis=1) / plain_us[picks].sum(axis=1)
    return ratio, *np.quantile(ours / theirs, [0.025, 0.975])


def _conditions(head: dict) -> list:
    return [head["format"], *(head["environment"].get(name) for name in CONDITIONS[1:])]


def _same(a: dict, b: dict) -> bool:
    def work(head):
        asked = [head["config"].get(name) for name in _SAME_WORK]
        return [*_conditions(head), head["prompts"], head["kind"], *asked]

    return work(a) == work(b)


def _reason(head: dict) -> str:
    threads = head["environment"].get("threads")
    where = f"{head['environment'].get('device')} with {threads} threads"
    return f"no ar run of {head['format']} on {where}, same prompts, length and row mode"


def _time_to_first_token_ms(spans: pd.DataFrame) -> float:
    prefill = _measured(spans).query("round < 0")
    prefill = prefill.assign(end_us=prefill["start_us"] + prefill["duration_us"])
    prompts = prefill.groupby("prompt").agg(start=("start_us", "min"), end=("end_us", "max"))
    return float((prompts["end"] - prompts["start"]).median() / 1e3)
