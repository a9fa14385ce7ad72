"""Two runs side by side, phase by phase, with intervals that say which differences are real.

Every number is a ratio of sums over prompts: microseconds over emitted tokens.  Prompts are drawn
anew, a prompt's rounds always together, because they resemble each other; where both runs decoded
the same prompts, the same ones are drawn of both, so that their difficulty cancels.

error   drawing n prompts anew spreads too little by sqrt((n - 1) / n), and knows nothing of the
        tails of few; the quantiles are taken further out for both.  Of 400 simulated pairs the
        intervals cover the truth in 94 % with 12 prompts and in 92 % with 5, not further out in
        92 % and 86 %
source  Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 4.3, expanded
        percentile intervals
"""

from statistics import NormalDist

import numpy as np
import pandas as pd

from hspec_lab.breakdown import CONDITIONS
from hspec_lab.terms import ROUND_PHASES

COLUMNS = (
    *("phase", "a_us_per_emitted", "b_us_per_emitted"),
    *("difference", "difference_low", "difference_high"),
    *("ratio", "ratio_low", "ratio_high"),
    *("changed", "paired", "n_prompts_a", "n_prompts_b"),
)
_WHERE = CONDITIONS[1:]
_DRAWS = 2000


def difference(a, b, by_level: bool = False, across_devices: bool = False) -> pd.DataFrame:
    """Compare two runs: what each phase costs per emitted token, and whether that changed.

    Args:
        a, b: (head, tables) as `store.read_run` returns them, or (rounds, spans).  With two heads,
            prompts are the same where their texts are; else where their numbers are.
        by_level: one row per phase and level instead of one per phase.
        across_devices: allow runs of different devices, processors or threads.

    Returns:
        `COLUMNS`, with `level` behind `phase` when asked for; the last rows are `gap` and `total`.
        Times are us per emitted token; `difference` is b - a and `ratio` b / a (NaN where a spent
        nothing), each with a 95 % bootstrap interval, NaN where a run has a single prompt.
        `changed`: the interval of the difference excludes 0.  `paired`: both decoded these
        `n_prompts`, others of theirs are left out; False: no prompt in common, so all of both
        count and the prompts' own differences are part of the result.

    Raises:
        ValueError: a run without measured rounds or tokens, or runs of different devices.
    """
    by_text = isinstance(a[0], dict) and isinstance(b[0], dict)
    if by_text and not across_devices:
        _check_where(a[0], b[0])
    sums_a, emitted_a = _per_prompt(a, by_level, by_text)
    sums_b, emitted_b = _per_prompt(b, by_level, by_text)
    common = [prompt for prompt in emitted_a.index if prompt in emitted_b.index]
    if paired := bool(common):
        sums_a, emitted_a, sums_b, emitted_b = (
            table.loc[common] for table in (sums_a, emitted_a, sums_b, emitted_b)
        )
    columns = _ordered(sums_a.columns.union(sums_b.columns))
    sides = [
        (sums.reindex(columns=columns, fill_value=0.0).to_numpy(), emitted.to_numpy(float))
        for sums, emitted in ((sums_a, emitted_a), (sums_b, emitted_b))
    ]
    table = pd.DataFrame(_compared(*sides, paired))
    table.insert(0, "phase", [phase for phase, _ in columns])
    if by_level:
        table.insert(1, "level", [level for _, level in columns])
    return table.assign(paired=paired, n_prompts_a=len(emitted_a), n_prompts_b=len(emitted_b))


def _check_where(*heads: dict) -> None:
    ran = [[head.get("environment", {}).get(name) for name in _WHERE] for head in heads]
    unlike = [f"{n} {x} and {y}" for n, x, y in zip(_WHERE, *ran, strict=True) if x != y]
    if unlike:
        raise ValueError(
            f"the runs differ in {', '.join(unlike)}; across_devices=True compares them anyway"
        )


def _per_prompt(run, by_level: bool, by_text: bool) -> tuple[pd.DataFrame, pd.Series]:
    """us by prompt and by (phase, level), gap and total included; emitted tokens by prompt."""
    head, tables = run if isinstance(run[0], dict) else (None, run)
    found = tables if head is None else (tables["rounds"], tables["spans"])
    rounds, spans = (rows[~rows["warmup"].astype(bool)] for rows in found)
    emitted = rounds.groupby("prompt")["n_emitted"].sum()
    if not len(rounds) or rounds["n_emitted"].min() < 0 or not emitted.sum():
        raise ValueError("a difference needs measured rounds with emitted tokens, a run has none")
    spans = spans[(spans["round"] >= 0) & spans["prompt"].isin(emitted.index)]
    level = spans["level"] if by_level else pd.Series("", index=spans.index)
    spent = spans["duration_us"].groupby([spans["prompt"], spans["phase"], level]).sum()
    sums = spent.unstack([1, 2]).reindex(emitted.index).fillna(0.0)
    total = rounds.groupby("prompt")["duration_us"].sum()
    sums[("gap", "")] = total - sums.sum(axis=1)
    sums[("total", "")] = total
    if by_text:
        names = _names(head["prompts"])
        sums.index = emitted.index = pd.Index(
            [names[n] for n in emitted.index], tupleize_cols=False
        )
    return sums, emitted


def _names(texts: list[str]) -> list[tuple[str, int]]:
    """What prompts are known by; a text that stands twice is two prompts."""
    seen: dict[str, int] = {}
    names = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        names.append((text, seen[text]))
    return names


def _ordered(columns: pd.Index) -> list[tuple[str, str]]:
    order = {phase: place for place, phase in enumerate((*ROUND_PHASES[:-1], "", "gap", "total"))}
    return sorted(columns, key=lambda key: (order.get(key[0], order[""]), key))


def _compared(a: tuple, b: tuple, paired: bool) -> dict[str, np.ndarray]:
    """The columns from `a_us_per_emitted` to `changed`.

    Args:
        a, b: us [n prompts, phases] and emitted tokens [n prompts] of each run.
    """
    found_a, found_b = (us.sum(axis=0) / emitted.sum() for us, emitted in (a, b))
    few = min(len(a[1]), len(b[1]))
    drawn_a = _drawn(*a, seed=0)
    drawn_b = _drawn(*b, seed=0 if paired else 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(found_a > 0, found_b / found_a, np.nan)
        ratios = np.where(drawn_a > 0, drawn_b / drawn_a, np.nan)
    low, high = _interval(drawn_b - drawn_a, few)
    ratio_low, ratio_high = _interval(ratios, few)
    return {
        "a_us_per_emitted": found_a,
        "b_us_per_emitted": found_b,
        "difference": found_b - found_a,
        "difference_low": low,
        "difference_high": high,
        "ratio": ratio,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "changed": (low > 0) | (high < 0),
    }


def _drawn(us: np.ndarray, emitted: np.ndarray, seed: int) -> np.ndarray:
    """us per emitted token [draws, phases] of prompts drawn anew; the same draws each time."""
    n = len(emitted)
    picks = np.random.default_rng(seed).integers(n, size=(_DRAWS, n))
    counts = np.zeros((_DRAWS, n))
    np.add.at(counts, (np.arange(_DRAWS)[:, None], picks), 1.0)
    # prompts that emitted nothing by themselves may be all that was drawn
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts @ us) / (counts @ emitted)[:, None]


def _interval(drawn: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Both ends [phases] of a 95 % interval from draws of n prompts; NaN of one."""
    if n < 2:
        nothing = np.full(drawn.shape[1], np.nan)
        return nothing, nothing.copy()
    tail = NormalDist().cdf(-np.sqrt(n / (n - 1)) * _student(n - 1))
    return tuple(np.quantile(drawn, [tail, 1 - tail], axis=0))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal one."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
