"""From measured times to what `StageCosts` holds: curves over rows, numbers a round.

Means of the middle half are taken throughout: robust, and those of parts add up to the whole's.
"""

import numpy as np
import pandas as pd

from hspec_lab.config import Eagle2, split_model
from hspec_lab.curve import SURE, curve_of_times, isotonic, midmean, robust_fit
from hspec_lab.stages import StageCosts
from hspec_lab.stages_folder import GROUP
from hspec_lab.store import whole_costs


class StageFits:
    """Estimates arrays of `StageCosts` from rows of one target and drafter.

    Attributes:
        found: by the names of `StageCosts`.
        spread: relative standard errors, by the same names.
    """

    def __init__(self, rows: pd.DataFrame, context: int):
        self.rows, self.context = rows, context
        self.drafted = rows[rows["method"] != "ar"]
        self.found, self.spread = {}, {}

    def level(self, name: str, phase: str, level: str, longest: int) -> None:
        """A curve over rows, up to `longest` also where so many were possible but never came."""
        rows = self.rows[(self.rows["phase"] == phase) & (self.rows["level"] == level)]
        numbers = (rows[column].to_numpy() for column in ("n_tokens", "kv_len", "us"))
        self.found[name], self.spread[name] = curve_of_times(*numbers, self.context, longest)

    def of_rounds(self) -> None:
        """Committing, and what no span covers."""
        commits = self.drafted[self.drafted["phase"] == "kv_commit"]
        for level, us in commits.groupby("level")["us"]:
            name = "commit_us" if level == "target" else f"commit_{level}_us"
            self.found[name] = midmean(us.to_numpy())
        is_round = self.drafted["phase"] == "round"
        key = [*GROUP, "method", "round"]
        whole = self.drafted[is_round].set_index(key)["us"]
        spans = self.drafted[~is_round]
        gap = whole - spans.groupby(key)["us"].sum()
        is_inner = (spans["level"] == "intermediate") & (spans["phase"] == "accept")
        inner = is_inner.groupby([spans[name] for name in key]).sum().reindex(whole.index)
        gap = gap.reindex(whole.index).clip(lower=0.0)
        self.found["gap_us"] = midmean(gap.to_numpy())
        if inner.nunique() > 1:
            terms = np.stack([np.ones(len(gap)), inner.to_numpy(dtype=float)])
            outer, each = robust_fit(terms, gap.to_numpy() + 1e-3)[0]
            self.found |= {"gap_us": max(outer, 0.0), "gap_intermediate_us": max(each, 0.0)}

    def of_head(self, largest: Eagle2) -> None:
        """Drafting: one number per depth, and one for every node kept."""
        rows = self.drafted[(self.drafted["phase"] == "draft") & (self.drafted["level"] == "head")]
        counts = rows["depth"].value_counts().sort_index()
        depths = counts.index.to_numpy()
        terms = [(rows["depth"] == depth).to_numpy(dtype=float) for depth in depths]
        more = {
            "nodes": rows["tree_size"] - 1,
            "ingested": rows["n_tokens"] - rows["n_tokens"].mean(),
            "context": rows["kv_len"] - self.context,
        }
        more = {name: column.to_numpy(dtype=float) for name, column in more.items()}
        slopes, values, errors = _head_fit(np.stack(terms), more, rows["us"].to_numpy())
        times = np.interp(
            np.arange(1, largest.depth + 1), depths, isotonic(values, counts.to_numpy(dtype=float))
        )
        self.found["draft_us"] = np.append(np.nan, times)
        nodes = np.arange(largest.tree_size + 1) - 1.0
        self.found["tree_us"] = np.append(np.nan, slopes["nodes"] * nodes[1:])
        self.spread["draft_us"] = float(np.median(errors / values))


def _head_fit(terms: np.ndarray, more: dict[str, np.ndarray], us: np.ndarray) -> tuple:
    """Slopes of what a draft grows with, its time per depth without, and that one's error.

    A slope below 0, or not sure where it concerns the context, is none.
    """
    kept = {name: column for name, column in more.items() if np.ptp(column) > 0}
    while True:
        found, errors = robust_fit(np.concatenate([terms, *(c[None] for c in kept.values())]), us)
        slopes = dict(zip(kept, found[len(terms) :], strict=True))
        sure = dict(zip(kept, found[len(terms) :] / errors[len(terms) :], strict=True))
        wrong = [name for name in kept if sure[name] < (SURE if name == "context" else 0)]
        if not wrong:
            none = dict.fromkeys(more, 0.0)
            return none | slopes, found[: len(terms)], errors[: len(terms)]
        del kept[min(wrong, key=sure.get)]


def beyond(context: int, least: int, most: int) -> list[str]:
    """A warning where a context lies outside the measured ones."""
    if least <= context <= most:
        return []
    return [f"context {context} lies outside the measured {least}..{most}: times are extrapolated"]


def stage_costs_of_curves(
    costs: pd.DataFrame,
    target: str,
    intermediate: str | None = None,
    context: int = 512,
    device: str | None = None,
) -> StageCosts:
    """What passes cost, from cost curves alone; drafting and overhead are left out, and it says so.

    Args:
        costs: see `store.COSTS`.
        context: tokens stored; between and beyond measured contexts times are taken on a line.
        device: as the table calls it; None: its only one.

    Raises:
        ValueError: a model has no curve on the device, or several devices are there.
    """
    costs = whole_costs(costs)
    known = list(dict.fromkeys(costs["device"]))
    if device is None and len(known) != 1:
        raise ValueError(f"say which device, the curves are of {', '.join(known) or 'none'}")
    costs = costs[costs["device"] == (device or known[0])]
    found, warnings = {}, ["drafting, verdicts and overhead are left out: passes alone"]
    for name, model in (("target_us", target), ("intermediate_us", intermediate)):
        if model is None:
            continue
        rows = _curve_rows(costs, model)
        found[name] = _at_context(rows, "time_us", context)
        if name == "target_us":
            plain_us = float(_at_context(rows, "plain_us", context)[1])
        warnings += beyond(context, rows["context"].min(), rows["context"].max())
        if n_unstable := int(rows["unstable"].sum()):
            warnings.append(f"{n_unstable} of {len(rows)} times of {model} are unstable")
    return StageCosts(
        origin="measured",
        device=device or known[0],
        target=target,
        intermediate=intermediate,
        plain_us=plain_us,
        context=context,
        **found,
        note="cost curves",
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _curve_rows(costs: pd.DataFrame, model: str) -> pd.DataFrame:
    where, scheme = split_model(model)
    rows = costs[(costs["model"] == where) & (costs["scheme"] == scheme)]
    if rows.empty:
        known = sorted(set(costs["model"] + "@" + costs["scheme"]))
        raise ValueError(f"no cost curve of {model}, there are: {', '.join(known) or 'none'}")
    return rows


def _at_context(rows: pd.DataFrame, column: str, context: int) -> np.ndarray:
    """Times by n, entry 0 NaN, on the line through the two measured contexts around or nearest."""
    table = rows.pivot_table(index="context", columns="n", values=column).dropna(axis=1)
    known = table.index.to_numpy()
    times = table.to_numpy()[0]
    if len(known) > 1:
        i = int(np.clip(np.searchsorted(known, context), 1, len(known) - 1))
        low, high = table.to_numpy()[i - 1 : i + 1]
        times = low + (high - low) * (context - known[i - 1]) / (known[i] - known[i - 1])
    every = np.arange(1, table.columns.max() + 1)
    return np.append(np.nan, np.interp(every, table.columns.to_numpy(), times))
