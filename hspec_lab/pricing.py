"""Time per token of many settings at once, with intervals over prompts; no torch.

`predict.predict` does this for one setting with all its phases; here thousands stand side by side.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from hspec_lab.acceptance import Totals
from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import (
    Chain,
    Drafting,
    Eagle2,
    Refine,
    Static,
    method_of,
    split_model,
)
from hspec_lab.matching import models_of, origin_of, same_model
from hspec_lab.space import Kind
from hspec_lab.stage_times import stage_us
from hspec_lab.stages import StageCosts

_DRAWS, _NORMAL = 1000, 1.96
# what `predict.stage_us` tells apart
_STAGES = (
    "target_us",
    "intermediate_us",
    "draft_us",
    "tree_us",
    "accept_us",
    "accept_intermediate_us",
    "commit_us",
    "commit_intermediate_us",
    "gap_us",
    "gap_intermediate_us",
)


def rows_of(trace: Trace, costs: StageCosts, kind: Kind) -> tuple[pd.DataFrame, int]:
    """Price settings.

    Returns:
        one row a setting, see `best.search`; and how many lie beyond a measured curve.

    Raises:
        ValueError: no output has a token behind its prefill's.
    """
    sums = [_sums(costs, totals) for totals in kind.totals]
    sums = np.stack(sums, -1).swapaxes(0, 1) if kind.by_setting else np.stack(sums)
    if not sums[:, 1].any():
        raise ValueError(f"{trace.name} has no round to replay: record longer texts")
    # sizes beyond the pool of nodes come more than once
    first = {}
    for number, draft in enumerate(kind.drafts):
        first.setdefault(draft, number)
    known = [number for number in first.values() if np.isfinite(sums[..., number]).all()]
    drafts = [kind.drafts[number] for number in known]
    return _rows(trace, costs, drafts, sums[..., known]), len(first) - len(known)


def _sums(costs: StageCosts, totals: Totals) -> np.ndarray:
    """Rounds, tokens, then the us of each of `_STAGES`, over all rounds: [2 + stages, N]."""
    found = dict.fromkeys(_STAGES, 0.0)
    for name, _, us in stage_us(costs, totals):
        found[name] = found[name] + us.ravel()
    return np.stack([np.ravel(totals.n_rounds), np.ravel(totals.n_emitted), *found.values()])


def _rows(trace: Trace, costs: StageCosts, drafts: list, sums: np.ndarray) -> pd.DataFrame:
    """One row a setting from the sums of its prompts, [P, 2 + stages, N]."""
    n_rounds, n_emitted, *parts = sums.sum(axis=0)
    us = sums[:, 2:].sum(axis=1)
    one = us.sum(axis=0) / n_emitted
    spread = [costs.spread.get(name, 0.0) for name in _STAGES]
    # errors of one stage add up over prompts, those of different stages in squares
    error = np.linalg.norm(np.array(parts) * np.array(spread)[:, None], axis=0) / n_emitted
    low, high = _drawn(us, sums[:, 1])
    reach, plain = _NORMAL * error, _NORMAL * one * costs.spread.get("plain_us", 0.0)
    numbers = {
        "us_per_token": one,
        "low": one - np.hypot(one - low, reach),
        "high": one + np.hypot(high - one, reach),
        "ar_steps": one / costs.plain_us,
        "speedup": _over(costs, one),
        "speedup_low": _over(costs, one + np.linalg.norm([high - one, reach, plain], axis=0)),
        "speedup_high": _over(costs, one - np.linalg.norm([one - low, reach, plain], axis=0)),
        "mean_emitted": n_emitted / n_rounds,
    }
    return pd.DataFrame(_named(costs, drafts)).assign(
        origin=origin_of(costs), trace=trace.name, **numbers
    )


def _over(costs: StageCosts, us: np.ndarray) -> np.ndarray:
    """Plain steps that fit into so many us; endless where an interval reaches 0."""
    return np.divide(costs.plain_us, us, out=np.full_like(us, np.inf), where=~(us <= 0))


def _drawn(us: np.ndarray, n_emitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of us a token, prompts [P, N] drawn anew; NaN for a single one."""
    some = n_emitted.any(axis=1)
    us, n_emitted, n_prompts = us[some], n_emitted[some], int(some.sum())
    if n_prompts < 2:
        return np.full((2, us.shape[1]), np.nan)
    chosen = np.random.default_rng(0).multinomial(
        n_prompts, np.full(n_prompts, 1 / n_prompts), size=_DRAWS
    )
    low, high = np.quantile((chosen @ us) / (chosen @ n_emitted), [0.025, 0.975], axis=0)
    return low, high


def _named(costs: StageCosts, drafts: list[Drafting | None]) -> list[dict]:
    """What settings of one kind are, their models named as they would run."""
    if not drafts:
        return []
    # a kind has the same models throughout
    if _as_priced(drafts[0], costs) != drafts[0]:
        drafts = [_as_priced(draft, costs) for draft in drafts]
    models = models_of(costs.target, drafts[0])
    found = {"device": costs.device, "method": method_of(drafts[0])}
    for level in ("target", "intermediate", "head"):
        found[level] = models.get(level, "")
        found[f"{level}_format"] = split_model(found[level])[1] if found[level] else ""
    return [found | _sizes(draft) | {"draft": draft} for draft in drafts]


def _sizes(draft: Drafting | None) -> dict[str, int]:
    """Sizes of a setting; 0 for what it has not."""
    tree = draft.draft if isinstance(draft, Refine) else draft
    return {
        **{name: getattr(tree, name, 0) for name in ("top_k", "tree_size", "depth")},
        "at_least": getattr(draft, "at_least", getattr(draft, "draft_len", 0)),
        "narrow": (draft.tree_size or 0) if isinstance(draft, Refine) else 0,
    }


def _as_priced(draft: Drafting | None, costs: StageCosts) -> Drafting | None:
    """A drafter with the models of the stages, where the trace's differ."""
    if isinstance(draft, Chain | Refine) and not same_model(draft.model, costs.intermediate):
        draft = replace(draft, model=costs.intermediate)
    if isinstance(draft, Refine):
        serves = replace(costs, target=draft.model)
        return replace(draft, draft=_as_priced(draft.draft, serves))
    if isinstance(draft, Eagle2 | Static) and costs.head is not None:
        head = models_of(costs.target, draft)["head"]
        return draft if same_model(head, costs.head) else replace(draft, head=costs.head)
    return draft


def plain_row(costs: StageCosts) -> pd.DataFrame:
    """Plain decoding as it was measured beside the stages, gap included."""
    reach = _NORMAL * costs.spread.get("plain_us", 0.0)
    us, one = costs.plain_us, {"ar_steps": 1.0, "speedup": 1.0, "mean_emitted": 1.0}
    numbers = {"us_per_token": us, "low": us * (1 - reach), "high": us * (1 + reach)}
    ends = {"speedup_low": 1.0, "speedup_high": 1.0, "warnings": "; ".join(costs.warnings)}
    row = _named(costs, [None])[0] | numbers | one | ends
    return pd.DataFrame([row | {"origin": f"stages {costs.origin}", "trace": ""}])
