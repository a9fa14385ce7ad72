"""Prediction: how often each stage of decoding runs, times what the stage costs; no torch.

    time per emitted token = sum over stages (runs x us) / tokens emitted

How often comes from a recorded text (`acceptance`), what it costs from a `stages.StageCosts`.  The
two may come from different formats, models or tokenizers only where `allow` names it, and what was
allowed stays among the warnings that every figure carries.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from hspec_lab.acceptance import Totals, check_covered, replay
from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Chain, Drafting
from hspec_lab.matching import as_recorded, caption, check_fits, cost_origin, origin_of
from hspec_lab.prediction import Prediction, bootstrap, widened
from hspec_lab.stage_times import (
    as_plain,
    check_measured,
    phase_us,
    stage_us,
    time_error,
    totals_by_prompt,
)
from hspec_lab.stages import StageCosts
from hspec_lab.terms import ROUND_PHASES


def predict(
    trace: Trace,
    draft: Drafting | None,
    costs: StageCosts,
    *,
    allow: Iterable[str] = (),
    max_new_tokens: int | None = None,
    prompts: Sequence[int] | None = None,
) -> Prediction:
    """Predict one setting.

    Args:
        trace: the recorded text and drafts.
        draft: sizes up to those recorded; its models may be named as in the trace or in `costs`.
        costs: the stages of the models that would run.
        allow: in what acceptance and stages may differ: "scheme", "model", "tokenizer", "top_k".
        max_new_tokens: cuts each output; None: as recorded.
        prompts: numbers of those that count; None: all.

    Raises:
        ValueError: they differ otherwise, a size was not recorded or not measured, or there is no
            round to speak of.
    """
    check_fits(trace, costs, draft, allow)
    recorded = as_recorded(trace, draft)
    check_covered(trace, recorded)
    rounds = replay(trace, recorded, max_new_tokens)
    if prompts is not None:
        rounds = rounds[rounds["prompt"].isin(list(prompts))]
    if rounds.empty:
        raise ValueError(
            f"{trace.name} has no round to replay on these prompts: record longer texts"
        )
    return predict_totals(trace, draft, costs, totals_by_prompt(rounds, recorded), allow=allow)


def predict_totals(
    trace: Trace,
    draft: Drafting | None,
    costs: StageCosts,
    totals: Totals,
    *,
    allow: Iterable[str] = (),
) -> Prediction:
    """Predict one setting whose rounds are counted already.

    Args:
        trace: where they were counted.
        totals: one entry per prompt, arrays [n_prompts].

    Raises:
        ValueError: as `predict`.
    """
    warnings = list(check_fits(trace, costs, draft, allow))
    if not costs.spread:
        warnings.append("intervals are of acceptance alone")
    if len(totals.n_rounds) < 2:
        warnings.append("a single prompt, so no interval")
    stages = stage_us(costs, totals)
    check_measured(costs, stages, totals)
    if draft is None:
        stages = as_plain(costs, stages, totals)
    return _prediction(trace, draft, costs, totals, stages, warnings)


def predict_grid(
    trace: Trace,
    costs: StageCosts,
    totals: Totals,
    *,
    allow: Iterable[str] = (),
    axes: Mapping[str, Sequence] | None = None,
) -> pd.DataFrame:
    """Predict many settings at once.

    Args:
        trace: where `totals` were counted.
        totals: arrays of any shape, from `acceptance_grid.grid`, say.
        axes: the names and values behind the axes of that shape, in their order; they become
            columns.

    Returns:
        one row a setting, the last axis fastest: tree_size and depth as counted (0 without a
        head) where no axis says what was asked for, mean_emitted, us_per_token, tokens_per_s,
        ar_steps, speedup, us per emitted token of each phase (`draft_us` ...), other axes, origin.
        NaN where a pass has more rows, or a draft more levels, than were measured; `attrs` hold
        the keyword arguments of a figure, whose note says how many those are.

    Raises:
        ValueError: as `predict`; the axes do not have the totals' shape.
    """
    warnings = list(check_fits(trace, costs, _drafter_of(totals, trace), allow))
    us, shape = phase_us(stage_us(costs, totals)), np.shape(totals.n_rounds)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_token = {f"{phase}_us": us[phase] / totals.n_emitted for phase in ROUND_PHASES}
        total = sum(by_token.values())
        numbers = {
            "tree_size": totals.tree_size,
            "depth": totals.depth,
            "mean_emitted": totals.mean_emitted,
            "us_per_token": total,
            "tokens_per_s": 1e6 / total,
            "ar_steps": total / costs.plain_us,
            "speedup": costs.plain_us / total,
        }
    columns = {n: np.broadcast_to(a, shape).ravel() for n, a in (numbers | by_token).items()}
    # an axis is what was asked for, so it stands for what was counted
    table = pd.DataFrame(columns | _axis_columns(axes or {}, shape))
    if n_beyond := int(table["us_per_token"].isna().sum()):
        warnings.append(f"{n_beyond} of {len(table)} settings lie beyond the measured curves")
    table.attrs = caption(trace.caption(), costs, warnings)
    return table.assign(origin=table.attrs["origin"])


def join_grids(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of `predict_grid` by what a figure calls their target, as one with a column `format`.

    Returns:
        all rows; `attrs` say every origin, and every part of their notes once.
    """
    said = [table.attrs for table in tables.values()]
    parts = [part for one in said for part in one["note"].split("; ")]
    table = pd.concat(
        [table.assign(format=name) for name, table in tables.items()], ignore_index=True
    )
    origins = dict.fromkeys(one["origin"] for one in said)
    table.attrs = {"origin": " / ".join(origins), "note": "; ".join(dict.fromkeys(parts))}
    return table


def _prediction(trace, draft, costs: StageCosts, totals: Totals, stages, warnings) -> Prediction:
    us = phase_us(stages)
    n_rounds, n_emitted = totals.n_rounds, totals.n_emitted
    by_prompt = sum(us.values())
    one = float(by_prompt.sum() / n_emitted.sum())
    emitted = bootstrap(n_emitted, n_rounds)
    drawn = bootstrap(by_prompt, n_emitted)
    error = time_error(costs, stages) / float(by_prompt.sum())
    low, high = map(float, widened(one, drawn, error))
    # a plain step does not differ from itself
    beside = np.hypot(error, costs.spread.get("plain_us", 0.0))
    fast, slow = (one, one) if draft is None else map(float, widened(one, drawn, beside))
    return Prediction(
        draft=draft,
        costs=costs,
        mean_emitted=float(n_emitted.sum() / n_rounds.sum()),
        mean_emitted_low=emitted[0],
        mean_emitted_high=emitted[1],
        phases=_phases(us, int(n_rounds.sum()), int(n_emitted.sum()), origin_of(costs)),
        us_per_token=one,
        us_per_token_low=low,
        us_per_token_high=high,
        speedup=costs.plain_us / one,
        speedup_low=costs.plain_us / slow,
        speedup_high=costs.plain_us / fast,
        acceptance_origin=trace.caption(),
        cost_origin=cost_origin(costs),
        warnings=tuple(warnings),
    )


def _phases(us: dict, n_rounds: int, n_emitted: int, origin: str) -> pd.DataFrame:
    shown = [phase for phase in ROUND_PHASES if us[phase].any()]
    total = np.array([us[phase].sum() for phase in shown])
    numbers = {"us_per_emitted": total / n_emitted, "us_per_round": total / n_rounds}
    return pd.DataFrame({"phase": shown} | numbers | {"share": total / total.sum()}).assign(
        origin=origin
    )


def _axis_columns(axes: Mapping[str, Sequence], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if not axes:
        return {}
    if tuple(map(len, axes.values())) != shape:
        found = {name: len(values) for name, values in axes.items()}
        raise ValueError(f"axes {found} do not have the totals' shape {shape}")
    grids = np.meshgrid(*axes.values(), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, grids, strict=True)}


def _drafter_of(totals: Totals, trace: Trace) -> Drafting | None:
    """The kind of drafter that was counted, so that no level is asked for that never runs."""
    if np.any(totals.depth):
        return trace.draft
    below = (totals.intermediate_steps, totals.intermediate_catch_ups)
    return Chain(trace.draft.model) if any(map(np.any, below)) else None
