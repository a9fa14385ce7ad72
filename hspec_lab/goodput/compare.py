"""A controller beside every fixed setting, and beside what hindsight would choose; no torch."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from hspec_lab.control import Controller
from hspec_lab.goodput.outcomes import BEHIND, Outcomes
from hspec_lab.goodput.policies import Fixed, learn, walk

_DRAWS = 2000


def compare(
    found: Outcomes,
    controller: Controller | None = None,
    *,
    order: Sequence[int] | None = None,
    one_text: bool = False,
) -> pd.DataFrame:
    """Time of a controller, of every fixed setting and of two bounds, prompt by prompt.

    Args:
        controller: of the same options; None: learned on every other prompt and walked on those
            between them, then the other way round, so that none is walked that was learned on.
        order, one_text: prompts and how they follow each other, see `policies.walk`.

    Returns:
        policy ("controller", "fixed" or "each round": the best option of every round, known only
        afterwards), draft (its repr, "" where it changes), prompt, n_emitted, us.

    Raises:
        ValueError: the controller has other options, or there are too few prompts to learn from.
    """
    order = list(found.prompts if order is None else order)
    rows = [*_controlled(found, controller, order, one_text)]
    for option, draft in enumerate(found.options):
        rows += _by_prompt("fixed", repr(draft), walk(found, Fixed(option), order))
    us = _with_hindsight(found)
    n_emitted = found.end - found.begin
    rows += [("each round", "", prompt, int(n_emitted[prompt]), us[prompt]) for prompt in order]
    return pd.DataFrame(rows, columns=["policy", "draft", "prompt", "n_emitted", "us"])


def summary(table: pd.DataFrame, found: Outcomes) -> pd.DataFrame:
    """Each policy of a comparison in one row, the fastest first.

    Args:
        table: from `compare(found)`.

    Returns:
        policy ("each prompt" besides: the best fixed setting of each, known only afterwards),
        draft, us_per_token, speedup (over plain decoding), over_best_fixed, and the ends of its
        95 % bootstrap interval over prompts, origin; the best fixed setting is that of all
        prompts.  `attrs` hold the keyword arguments of a figure.
    """
    times = table.pivot_table(index=["policy", "draft"], columns="prompt", values="us", sort=False)
    n_emitted = table.groupby("prompt")["n_emitted"].first()
    # a prompt whose text ended with its first token has no rounds
    times = times[[prompt for prompt in table["prompt"].unique() if n_emitted[prompt]]]
    fixed = times.loc[["fixed"]]
    times.loc[("each prompt", ""), :] = fixed.min()
    best = fixed.loc[fixed.sum(axis=1).idxmin()].to_numpy()
    n_emitted, total = n_emitted.sum(), times.sum(axis=1)
    drawn = np.random.default_rng(0).integers(len(best), size=(_DRAWS, len(best)))
    ratios = best[drawn].sum(axis=1) / times.to_numpy()[:, drawn].sum(axis=2)
    low, high = np.quantile(ratios, [0.025, 0.975], axis=1) if len(best) > 1 else (np.nan, np.nan)
    rows = pd.DataFrame(
        {
            "us_per_token": total / n_emitted,
            "speedup": found.plain_us * n_emitted / total,
            "over_best_fixed": best.sum() / total,
            "low": low,
            "high": high,
            "origin": found.origin,
        }
    )
    rows.attrs = {"origin": found.origin, "note": found.note}
    return rows.sort_values("us_per_token", kind="stable").reset_index()


def _controlled(found: Outcomes, controller: Controller | None, order: list[int], one_text: bool):
    if controller is not None:
        if controller.options != found.options:
            raise ValueError(
                f"the controller chooses among {len(controller.options)} options, these outcomes "
                f"are of {len(found.options)}: both must have the same, in the same order"
            )
        return _by_prompt("controller", "", walk(found, controller, order, one_text))
    halves = order[::2], order[1::2]
    if not halves[1]:
        raise ValueError("learning and judging need two prompts at least, got one")
    return [
        row
        for learned, walked in (halves, halves[::-1])
        for row in _by_prompt(
            "controller", "", walk(found, learn(found, learned), walked, one_text)
        )
    ]


def _by_prompt(policy: str, draft: str, rounds: Iterable) -> list[tuple]:
    sums: dict[int, list] = {}
    for visit in rounds:
        of = sums.setdefault(visit.prompt, [0, 0.0])
        of[0] += visit.n_emitted
        of[1] += visit.us
    return [(policy, draft, prompt, n, us) for prompt, (n, us) in sums.items()]


def _with_hindsight(found: Outcomes) -> np.ndarray:
    """us of each prompt if every round chose best, float64 [n_prompts]: shortest paths."""
    totals = []
    plain = np.array([draft is None for draft in found.options])
    for begin, end in zip(found.begin, found.end, strict=True):
        # what is left to do, by place and by how far the model below is behind
        left = np.zeros((end - begin + 1, 3))
        for place in range(end - 1, begin - 1, -1):
            there = np.minimum(place + 1 + found.kept[:, :, place], end) - begin
            whole = found.whole[:, :, place]
            after = np.where(plain[:, None], np.minimum(np.arange(3) + 1, BEHIND), 1 + whole)
            left[place - begin] = (found.us[:, :, place] + left[there, after]).min(axis=0)
        totals.append(left[0, 0])
    return np.array(totals)
