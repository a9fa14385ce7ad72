"""What stages cost: from measured rounds or pass curves to `StageCosts`; no torch.

Times drift between runs on shared machines, so every time is taken in units of a plain step
measured beside it, and put back into us at the median of these.  What slows a whole machine down
cancels so; what others take of the memory's rate does not quite, as a plain step waits for memory
and wide passes multiply: those over 5..64 rows kept 0.2 to 0.6 of its drift (zoo at fp32, one
thread of a busy EPYC, 2026-11-21).  So compare with runs of a machine as busy as this one was.

    target_us, intermediate_us, accept_us   over rows: one estimate per n, then monotone in n
    draft_us + tree_us                      by depth, and so much for every node kept
    commit_us, gap_us                       a number a round; a hierarchy's gap also per inner round

Where rounds show that a stage grows with the tokens stored, it is taken at the context asked for.
Estimates are means of the middle half of what was measured: robust, and parts add up to the whole.
"""

from pathlib import Path

import pandas as pd

from hspec_lab.config import Chain, Drafting, Eagle2, Refine, head_draft, most_nodes, split_model
from hspec_lab.curve import corner as corner
from hspec_lab.curve import knee as knee
from hspec_lab.curve import plateaus as plateaus
from hspec_lab.stage_fits import StageFits, beyond
from hspec_lab.stage_fits import stage_costs_of_curves as stage_costs_of_curves
from hspec_lab.stages import StageCosts
from hspec_lab.stages_folder import GROUP, draft_of, read_stages, same_models
from hspec_lab.store import MOST_SPREAD, device_name, whole_costs

CURVE = ["device", "model", "scheme", "context"]
Measured = tuple[dict, pd.DataFrame]


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `ratio`, time over the one-token time of the same curve.

    Where a table has ratios, measured turn by turn, they stay.

    Raises:
        ValueError: a curve has no one-token pass.
    """
    one = table[table["n"] == 1].set_index(CURVE)["time_us"]
    curves = pd.MultiIndex.from_frame(table[CURVE])
    if missing := sorted(set(curves) - set(one.index)):
        raise ValueError(f"no one-token time for {', '.join(map(str, missing[0]))}; measure n = 1")
    if "ratio" in table:
        return table
    return table.assign(ratio=table["time_us"].to_numpy() / one.loc[curves].to_numpy())


def as_text(head: dict, table: pd.DataFrame, shown=(2, 4, 8, 16, 32, 64, 128)) -> str:
    """Lines for a terminal: one curve each, the one-token time, what it reads, how it grows.

    The knee is the last n within 1.5 one-token passes.
    """
    shown = [n for n in shown if n <= table["n"].max()]
    heads = [f"T({n})/T(1)" for n in shown]
    lines = [
        f"{'model':28} {'context':>7} {'T(1) us':>10} {'GB/s':>6} " + " ".join([*heads, "knee"])
    ]
    for (_, model, scheme, context), curve in relative(table).groupby(CURVE, sort=False):
        curve, name = curve.set_index("n"), f"{model}@{scheme}"
        time_us = curve["time_us"][1]
        rate = head["weight_bytes"][name] / time_us / 1e3
        ratios = [
            f"{curve['ratio'][n]:{len(head)}.2f}" if n in curve.index else " " * len(head)
            for n, head in zip(shown, heads, strict=True)
        ]
        ratios.append(f"{knee(curve['ratio']):4}")
        lines.append(f"{name:28} {context:7} {time_us:10.0f} {rate:6.1f} " + " ".join(ratios))
    if n_unstable := int(whole_costs(table)["unstable"].sum()):
        lines.append(
            f"{n_unstable} of {len(table)} times unstable: spread or drift above {MOST_SPREAD:.0%}"
        )
    ceiling = f"reading memory on this device: {head['read_gb_per_s']:.1f} GB/s"
    return "\n".join([*lines, f"{ceiling} (weights that fit a cache are read faster)"])


def stage_costs(
    measured: Path | str | Measured,
    target: str,
    draft: Drafting | None = None,
    context: int | None = None,
) -> StageCosts:
    """What the stages of rounds cost, from rounds measured with drafters of any size.

    Args:
        measured: a folder that `measure_rounds` wrote, or what `read_stages` gives.
        draft: its models and `top_k` say which rounds count, its sizes what must be covered; None:
            the target's passes alone, from all of its rounds.
        context: tokens stored; None: the median of the rounds.

    Raises:
        ValueError: no such rounds were measured, or not up to such sizes.
    """
    head, table = measured if isinstance(measured, tuple) else read_stages(measured)
    rows, largest = _rounds_of(table[table["phase"] != "prefill"], target, draft)
    # one entry per turn of a group, as all rows of it carry the same
    plain_us = float(rows.groupby([*GROUP, "turn"])["plain_us"].first().median())
    rows = rows.assign(us=rows["us"] / rows["plain_us"] * plain_us)
    context = int(rows["kv_len"].median()) if context is None else context
    costs = StageFits(rows, context)
    rows_above = most_rows(largest)
    costs.level("target_us", "verify_target", "target", rows_above)
    if draft is not None:
        costs.level("accept_us", "accept", "target", rows_above)
        costs.of_rounds()
    if isinstance(draft, Refine | Chain):
        phase = "draft" if isinstance(draft, Chain) else "verify_intermediate"
        below = most_rows(largest.draft) if isinstance(largest, Refine) else 2
        costs.level("intermediate_us", phase, "intermediate", below)
        costs.level("accept_intermediate_us", "accept", "intermediate", below)
    if (eagle := head_draft(largest)) is not None:
        costs.of_head(eagle)
    return StageCosts(
        origin="measured",
        device=device_name(head["conditions"]),
        target=target,
        plain_us=plain_us,
        context=context,
        **_names(target, draft),
        **costs.found,
        spread=costs.spread,
        tokenizer=head.get("tokenizers", {}).get(target, ""),
        note=_note(head, rows),
        warnings=_warnings(rows, context),
    )


def most_rows(draft: Drafting | None) -> int:
    """The most rows that a level verifies at once for a drafter with these sizes; 0 without."""
    if draft is None:
        return 0
    if isinstance(draft, Eagle2):
        return most_nodes(draft)
    if isinstance(draft, Chain):
        return draft.draft_len + 1
    return max(draft.at_least + _most_kept(draft.draft) + 1, draft.tree_size or 0)


def _most_kept(draft: Drafting) -> int:
    """The most of a drafter's tokens that one round keeps."""
    if isinstance(draft, Eagle2):
        return draft.depth
    return most_rows(draft) - 1


def _rounds_of(table: pd.DataFrame, target: str, draft: Drafting | None) -> tuple:
    """Rows of all groups with these models, and the largest drafter among them."""
    groups = table[GROUP].drop_duplicates().itertuples(index=False)
    known = [(group, draft_of(group.draft)) for group in groups]
    found = [
        (group, largest)
        for group, largest in known
        if split_model(group.target) == split_model(target)
        and (draft is None or same_models(largest, draft))
    ]
    if not found:
        measured = "; ".join(f"{group.target} with {largest!r}" for group, largest in known)
        raise ValueError(
            f"no rounds of {target} with {draft!r} were measured, there are: {measured or 'none'}"
        )
    covering = [largest for _, largest in found if draft is None or _covers(largest, draft)]
    if not covering:
        raise ValueError(
            f"stages of {target} were measured up to {found[0][1]!r}, got {draft!r}: ask for less "
            "or measure larger sizes"
        )
    keys = pd.MultiIndex.from_frame(table[GROUP])
    wanted = pd.MultiIndex.from_tuples([tuple(group) for group, _ in found])
    return table[keys.isin(wanted)], covering[0] if draft is not None else None


def _covers(largest: Drafting, draft: Drafting) -> bool:
    """Whether no size of `draft` is beyond the same one of `largest`; they differ in sizes only."""
    names = {Eagle2: ("tree_size", "depth"), Refine: ("at_least",)}.get(type(draft), ("draft_len",))
    if any(getattr(draft, name) > getattr(largest, name) for name in names):
        return False
    return not isinstance(draft, Refine) or _covers(largest.draft, draft.draft)


def _names(target: str, draft: Drafting | None) -> dict:
    """References of the levels below the target; an unnamed head lies beside its model."""
    if draft is None:
        return {}
    below = None if isinstance(draft, Eagle2) else draft.model
    if (eagle := head_draft(draft)) is None:
        return {"intermediate": below}
    serves = split_model(below or target)[0]
    head = eagle.head or f"{serves}-eagle2"
    return {"intermediate": below, "head": head, "top_k": eagle.top_k}


def _note(head: dict, rows: pd.DataFrame) -> str:
    is_round = (rows["phase"] == "round") & (rows["method"] != "ar")
    found = head["conditions"]
    return f"{is_round.sum()} rounds, torch {found['torch']}, {found['date'][:10]}"


def _warnings(rows: pd.DataFrame, context: int) -> tuple[str, ...]:
    found = beyond(context, rows["kv_len"].min(), rows["kv_len"].max())
    plain = rows[(rows["method"] == "ar") & (rows["phase"] == "round")]
    low, median, high = plain["us"].quantile([0.25, 0.5, 0.75])
    if (spread := (high - low) / median) > MOST_SPREAD:
        found.append(f"a noisy machine: quartiles of the plain step lie {spread:.0%} apart")
    return tuple(found)
