"""Time of each stage and phase: how often it runs times what it costs once; no torch.

    us of a stage = runs x StageCosts entry

The stages of an inner round (the intermediate model's) add up like those of a round.  A chain's
passes are drafting; everywhere else the intermediate model's passes are verifying.
"""

import numpy as np
import pandas as pd

from hspec_lab.acceptance import Totals
from hspec_lab.config import Drafting, head_draft, most_nodes
from hspec_lab.stages import StageCosts
from hspec_lab.terms import ROUND_PHASES


def stage_us(costs: StageCosts, totals: Totals) -> list[tuple[str, str, np.ndarray]]:
    """What each stage takes over all rounds: (name in `StageCosts`, phase, us [...])."""
    trees, rows = totals.intermediate_trees, totals.intermediate_rows
    steps, catch_ups = totals.intermediate_steps, totals.intermediate_catch_ups
    inner, zero = trees + steps + catch_ups, np.zeros(np.shape(totals.n_rounds))

    def passes(curve):
        return _runs(trees, curve, rows) + _runs(steps, curve, 1) + _runs(catch_ups, curve, 2)

    def verdicts(curve):
        return _runs(trees, curve, rows) + _runs(steps + catch_ups, curve, 1)

    is_chain = np.broadcast_to(totals.depth == 0, zero.shape)
    inner_us = passes(costs.intermediate_us)
    found = [
        ("draft_us", "draft", _runs(totals.drafts, costs.draft_us, totals.depth)),
        ("tree_us", "draft", _runs(totals.drafts, costs.tree_us, totals.tree_size)),
        ("intermediate_us", "draft", np.where(is_chain, inner_us, 0.0)),
        ("intermediate_us", "verify_intermediate", np.where(is_chain, 0.0, inner_us)),
        ("target_us", "verify_target", _row_sums(totals.target_rows, costs.target_us)),
        ("accept_us", "accept", _row_sums(totals.target_rows, costs.accept_us)),
        ("accept_intermediate_us", "accept", verdicts(costs.accept_intermediate_us)),
        ("commit_us", "kv_commit", totals.n_rounds * costs.commit_us),
        ("commit_intermediate_us", "kv_commit", inner * costs.commit_intermediate_us),
        ("gap_us", "gap", totals.n_rounds * costs.gap_us),
        ("gap_intermediate_us", "gap", inner * costs.gap_intermediate_us),
    ]
    return [(name, phase, zero + us) for name, phase, us in found]


def phase_us(stages: list[tuple[str, str, np.ndarray]]) -> dict[str, np.ndarray]:
    """us of each phase, in the order in which figures stack them."""
    return {
        wanted: sum(us for _, phase, us in stages if phase == wanted) for wanted in ROUND_PHASES
    }


def totals_by_prompt(rounds: pd.DataFrame, draft: Drafting | None) -> Totals:
    """`acceptance.totals_of` for every prompt by itself; arrays of shape [n_prompts]."""
    numbers, prompt = np.unique(rounds["prompt"].to_numpy(), return_inverse=True)
    head, n_prompts = head_draft(draft), len(numbers)

    def total(name):
        return np.bincount(prompt, rounds[name], n_prompts).astype(np.int64)

    width = int(rounds["n_proposed"].max()) + 2
    by_rows = np.bincount(prompt * width + rounds["n_proposed"] + 1, minlength=n_prompts * width)
    n_rounds, n_trees = np.bincount(prompt, minlength=n_prompts), total("intermediate_trees")
    on_target = head is not None and head is draft
    n_nodes = most_nodes(head) if head else 0
    return Totals(
        n_rounds=n_rounds,
        n_emitted=total("n_emitted"),
        target_rows=by_rows.reshape(n_prompts, width),
        intermediate_rows=np.asarray(0 if on_target else n_nodes),
        intermediate_trees=n_trees,
        intermediate_steps=total("intermediate_steps"),
        intermediate_catch_ups=total("intermediate_catch_ups"),
        drafts=n_rounds if on_target else n_trees,
        depth=np.asarray(head.depth if head else 0),
        tree_size=np.asarray(n_nodes),
    )


def time_error(costs: StageCosts, stages: list) -> float:
    """Standard error of the sum of all stages, from those of their times."""
    by_name: dict[str, float] = {}
    for name, _, us in stages:
        by_name[name] = by_name.get(name, 0.0) + float(us.sum())
    return float(np.linalg.norm([us * costs.spread.get(name, 0.0) for name, us in by_name.items()]))


def as_plain(costs: StageCosts, stages: list, totals: Totals) -> list:
    """Stages of plain decoding such that its rounds take `plain_us`, which was measured whole."""
    total = sum(float(us.sum()) for _, _, us in stages)
    scale = costs.plain_us * float(totals.n_rounds.sum()) / total
    return [("plain_us", phase, us * scale) for _, phase, us in stages]


def check_measured(costs: StageCosts, stages: list, totals: Totals) -> None:
    """ValueError that names the first stage whose curve ends too early."""
    for name, phase, us in stages:
        if np.isnan(us).any():
            curve = getattr(costs, name)
            asked = {
                "draft_us": f"a draft of depth {totals.depth}",
                "tree_us": f"a draft of {totals.tree_size} nodes",
                "intermediate_us": f"trees of {totals.intermediate_rows} rows",
                "accept_intermediate_us": f"trees of {totals.intermediate_rows} rows",
            }.get(name, f"passes of up to {totals.target_rows.shape[-1] - 1} rows")
            raise ValueError(
                f"{phase} on {costs.device}: {asked}, but {name} is known for "
                f"{_known(curve)}; ask for less or measure more"
            )


def _known(curve: np.ndarray) -> str:
    known = np.flatnonzero(np.isfinite(curve))
    return f"{known[0]} to {known[-1]}" if len(known) else "nothing"


def _runs(count, curve: np.ndarray | None, rows) -> np.ndarray:
    """`count` runs of a stage over so many rows; NaN where the curve ends before, 0 without one."""
    count, rows = np.broadcast_arrays(count, rows)
    if curve is None:
        return np.zeros(count.shape)
    known = rows < len(curve)
    us = np.where(known, curve[np.where(known, rows, 0)], np.nan)
    return np.where(count > 0, count * us, 0.0)


def _row_sums(n_passes: np.ndarray, curve: np.ndarray | None) -> np.ndarray:
    """Passes by rows, [..., W], over a curve."""
    if curve is None:
        return np.zeros(n_passes.shape[:-1])
    width = n_passes.shape[-1]
    us = np.full(width, np.nan)
    us[: len(curve)] = curve[:width]
    known = np.isfinite(us)
    beyond = (n_passes[..., ~known] > 0).any(axis=-1)
    return np.where(beyond, np.nan, n_passes[..., known] @ us[known])
