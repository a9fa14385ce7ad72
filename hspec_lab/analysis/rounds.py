"""What each round cost, which were the slowest, and why.

A round's time is explained by a straight line per phase and level, fitted to the run's own rounds:

    us = usual + a * context + b * passes + c * tokens a pass + d * tree (drafts) + noise

with the usual and coefficients of 0 or more, because no phase gets faster by more work, and with
rounds far off the line weighing little (Huber), so that a hiccup does not bend it.  What a round
took more than the average for the tokens it emitted then splits, without remainder, into what each
cause adds.

limits  a size that is unusual in one round only explains all of that round: no other round tells
        what such a size should cost.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hspec_lab.terms import ROUND_PHASES

ROUND_COLUMNS = (
    *("prompt", "round", "kv_len", "n_proposed", "n_accepted", "n_emitted"),
    *("duration_us", "us_per_emitted"),
)
CAUSES = ("rejection", "context", "tokens", "passes", "noise")
ORDERS = ("over_us", "duration_us")
# below so many rounds a line is no yardstick
MIN_ROUNDS = 8
# causes that add less than this share of the largest one go unnamed
_WORTH_NAMING = 0.3
_HUBER, _MAD = 1.345, 1.4826


@dataclass(frozen=True, slots=True)
class _Part:
    """What one cause adds in one phase, us [N] of each round, and the size it goes by."""

    cause: str
    where: str
    us: np.ndarray
    size: np.ndarray | None = None


def per_round(rounds: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """Return one row per measured round: its counts, its time, and that time by phase.

    Args:
        rounds, spans: recorded tables; spans of rounds that are not there do not count.

    Returns:
        `ROUND_COLUMNS`, then one column of us per phase that occurs, all levels together, and
        `gap`.  In whole nanoseconds, phases and gap add up to `duration_us`.  `us_per_emitted` is
        NaN where nobody knows how many tokens were emitted.

    Raises:
        ValueError: a round stands twice.
    """
    rounds, spans, row = _matched(rounds, spans)
    found = set(spans["phase"]) - {"gap"}
    phases = [phase for phase in ROUND_PHASES if phase in found]
    phases += sorted(found - set(phases))
    spent = {phase: _summed(spans, row, len(rounds), spans["phase"] == phase) for phase in phases}
    gap = _ns(rounds["duration_us"]) - sum(spent.values())
    emitted = rounds["n_emitted"].where(rounds["n_emitted"] > 0)
    table = rounds.assign(us_per_emitted=rounds["duration_us"] / emitted)[list(ROUND_COLUMNS)]
    return table.assign(**{phase: ns / 1e3 for phase, ns in spent.items()}, gap=gap / 1e3)


def slowest(
    rounds: pd.DataFrame, spans: pd.DataFrame, n: int = 10, by: str = "over_us"
) -> pd.DataFrame:
    """Return the slowest rounds, the worst first, and a sentence on each.

    Args:
        rounds, spans: recorded tables.
        n: so many rounds.
        by: what slow means.  over_us: for the tokens that it emitted, at the run's average time
            per token, as long as all rounds know how many; duration_us: whatever it emitted.

    Returns:
        columns of `per_round`; over_us, what the round took beyond the average; rejection_us,
        context_us, tokens_us, passes_us and noise_us, which add up to it; and `why`.

    Raises:
        ValueError: an unknown `by`, n below 1, or a round that stands twice.
    """
    if by not in ORDERS or n < 1:
        raise ValueError(f"slowest needs by in {', '.join(ORDERS)} and n >= 1, got {by!r}, {n!r}")
    table = per_round(rounds, spans)
    parts = _parts(table, *_matched(rounds, spans)[1:], rejections=by == "over_us")
    sums = {f"{cause}_us": _total(parts, cause, len(table)) for cause in CAUSES}
    table = table.assign(over_us=sum(sums.values()), **sums)
    worst = np.argsort(-table[by].to_numpy(), kind="stable")[:n]
    why = [_why(table, parts, at) for at in worst]
    return table.iloc[worst].assign(why=why).reset_index(drop=True)


def _matched(rounds: pd.DataFrame, spans: pd.DataFrame) -> tuple:
    """Measured rounds, the spans in them, and the row of each span's round."""
    rounds = rounds[~rounds["warmup"].astype(bool)].reset_index(drop=True)
    spans = spans[~spans["warmup"].astype(bool)]
    keys = pd.MultiIndex.from_frame(rounds[["prompt", "round"]])
    if (twice := keys.duplicated()).any():
        prompt, number = keys[twice.argmax()]
        raise ValueError(f"round {number} of prompt {prompt} stands twice; each is measured once")
    row = keys.get_indexer(pd.MultiIndex.from_frame(spans[["prompt", "round"]]))
    return rounds, spans[row >= 0], row[row >= 0]


def _ns(us: pd.Series) -> np.ndarray:
    return np.rint(us.to_numpy(float) * 1e3).astype(np.int64)


def _summed(spans: pd.DataFrame, row: np.ndarray, n: int, these: pd.Series) -> np.ndarray:
    """Whole nanoseconds of some spans, by round."""
    found, these = np.zeros(n, dtype=np.int64), these.to_numpy()
    np.add.at(found, row[these], _ns(spans["duration_us"])[these])
    return found


def _parts(
    table: pd.DataFrame, spans: pd.DataFrame, row: np.ndarray, rejections: bool
) -> list[_Part]:
    """What adds up to a round's time beyond the average, cause by cause and phase by phase."""
    if not len(table):
        return []
    parts = _of_group("gap", table["gap"].to_numpy(), {})
    for (phase, level), group in spans.groupby(["phase", "level"], sort=False).indices.items():
        rows = row[group]
        us = np.bincount(rows, spans["duration_us"].to_numpy()[group], len(table))
        tokens = spans["n_tokens"].to_numpy()[group]
        parts += _of_group(f"{phase} ({level})", us, _sizes(table, phase, rows, tokens))
    emitted = table["n_emitted"].to_numpy(float)
    if rejections and emitted.min() > 0:
        us_per_emitted = table["duration_us"].sum() / emitted.sum()
        parts.append(_Part("rejection", "", us_per_emitted * (emitted.mean() - emitted)))
    return parts


def _sizes(table: pd.DataFrame, phase: str, rows: np.ndarray, tokens: np.ndarray) -> dict:
    """What a phase's time goes by: [N] of each round, what enters the line and what is told."""
    n = len(table)
    passes = np.bincount(rows, minlength=n).astype(float)
    sizes = {"passes": (passes, passes)}
    if (context := table["kv_len"].to_numpy(float)).min() >= 0:
        sizes["context"] = (context, context)
    if len(tokens) and tokens.min() >= 0:
        summed = np.bincount(rows, tokens, n)
        # beyond the usual of a pass, so that a pass more is not counted twice
        beyond = summed - passes * tokens.mean()
        sizes["tokens"] = (beyond, summed / np.maximum(passes, 1))
    if phase == "draft" and (proposed := table["n_proposed"].to_numpy(float)).min() >= 0:
        sizes["tree"] = (proposed, proposed)
    return sizes


def _of_group(where: str, us: np.ndarray, sizes: dict) -> list[_Part]:
    """A phase's time beyond its average: what each size explains, and noise, the rest."""
    found, rest = [], us - us.mean()
    if sizes and len(us) >= MIN_ROUNDS:
        features = np.column_stack([entering for entering, _ in sizes.values()])
        added = (features - features.mean(axis=0)) * _coefficients(features, us)
        rest = rest - added.sum(axis=1)
        for (name, (_, told)), part in zip(sizes.items(), added.T, strict=True):
            cause = "tokens" if name == "tree" else name
            place = f"the {where} proposal" if name == "tree" else where
            found.append(_Part(cause, place, part, told))
    return [*found, _Part("noise", where, rest)]


def _coefficients(features: np.ndarray, us: np.ndarray) -> np.ndarray:
    """us per unit of each feature [N, F], none below 0; 0 for what does not vary."""
    scale = np.abs(features).max(axis=0)
    # the usual is no less than 0 either, or a machine that slows down looks like steep context
    columns = np.column_stack([np.ones(len(us)), features / np.where(scale > 0, scale, 1)])
    line, kept = np.zeros(columns.shape[1]), np.append(True, np.ptp(features, axis=0) > 1e-9)
    while kept.any():
        fitted = _robust(columns[:, kept], us)
        if fitted.min() >= 0:
            line[kept] = fitted
            break
        kept[np.flatnonzero(kept)[fitted.argmin()]] = False
    return line[1:] / np.where(scale > 0, scale, 1)


def _robust(columns: np.ndarray, us: np.ndarray) -> np.ndarray:
    """What each column weighs, by Huber's weights."""
    root = np.ones(len(us))
    for _ in range(20):
        line = np.linalg.lstsq(columns * root[:, None], us * root, rcond=None)[0]
        off = np.abs(us - columns @ line)
        near = _HUBER * _MAD * np.median(off)
        if near <= 1e-9:
            break
        root = np.sqrt(near / np.maximum(off, near))
    return line


def _total(parts: list[_Part], cause: str, n: int) -> np.ndarray:
    return sum((part.us for part in parts if part.cause == cause), np.zeros(n))


def _why(table: pd.DataFrame, parts: list[_Part], at: int) -> str:
    """One sentence on a round: its largest cause, and others that come near."""
    if len(table) < MIN_ROUNDS:
        return f"{len(table)} rounds are too few to say what is usual, {MIN_ROUNDS} are needed"
    row = table.iloc[at]
    adds = row[[f"{cause}_us" for cause in CAUSES]].astype(float).sort_values(ascending=False)
    if row["over_us"] <= 0:
        return "no slower than the average round of this run"
    named = adds[adds >= max(_WORTH_NAMING * adds.iloc[0], 0.0)]
    told = [
        f"{_told(table, parts, name[:-3], at)} ({us / 1e3:+.2f} ms)" for name, us in named.items()
    ]
    return "; ".join(told)


def _told(table: pd.DataFrame, parts: list[_Part], cause: str, at: int) -> str:
    """A cause in words, with the round's size and the average."""
    part = max((p for p in parts if p.cause == cause), key=lambda p: p.us[at])
    if cause == "rejection":
        return _told_rejection(table, at)
    if cause == "noise":
        return f"{part.where} took longer than its size explains: noise"
    size, usual = f"{part.size[at]:.4g}", f"{part.size.mean():.1f} on average"
    if cause == "context":
        return f"longer context: {size} tokens stored, {usual}"
    if cause == "passes":
        return f"more passes: {size} of {part.where}, {usual}"
    what = "larger tree" if part.where.startswith(("verify", "the ")) else "more tokens"
    return f"{what}: {size} tokens in {part.where}, {usual}"


def _told_rejection(table: pd.DataFrame, at: int) -> str:
    names = ("n_proposed", "n_accepted", "n_emitted")
    proposed, accepted, emitted = (table[name].iloc[at] for name in names)
    told = f"{emitted} emitted, {table['n_emitted'].mean():.1f} on average"
    if emitted <= accepted:
        return f"cut short, its text ends there: {told}"
    if accepted < proposed:
        return f"rejected early: {accepted} of {proposed} accepted, {told}"
    return f"a short proposal: {proposed} tokens, all accepted, {told}"
