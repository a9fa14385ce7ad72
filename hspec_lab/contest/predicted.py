"""The best of every method by prediction: here, and on devices one does not own."""

from collections.abc import Sequence
from functools import lru_cache

import pandas as pd

from hspec_lab.acceptance import replay
from hspec_lab.acceptance_folder import Trace, shipped_traces
from hspec_lab.best import search
from hspec_lab.config import Chain, Refine, head_draft, split_model
from hspec_lab.cost import stage_costs
from hspec_lab.device import Device, load
from hspec_lab.predict import predict
from hspec_lab.prediction import Prediction
from hspec_lab.roofline import fits, head_bytes, memory_bytes, split_reference
from hspec_lab.roofline import stage_costs as roofline_costs
from hspec_lab.scheme import parse
from hspec_lab.space import Space
from hspec_lab.stages import StageCosts
from hspec_lab.stages_folder import shipped_stages
from hspec_lab.terms import METHODS

FORMATS_HERE = ("fp32", "w4a16-g128")
_TOP_K = 8
_ALLOWED = ("scheme", "model", "tokenizer")
# the methods as published: no static trees, no narrow ones
_SPACE = Space(static=False, narrow=())


def here(formats: Sequence[str] = FORMATS_HERE) -> pd.DataFrame:
    """Every setting of every method where stages were measured, see `best.search`."""
    pairs = [pair for format in formats for pair in pairs_of(format)]
    return search(pairs, _SPACE)


def elsewhere(
    devices: Sequence[str],
    target: str = "shape:llama-3-70b@w4a16-g128",
    intermediate: str = "shape:llama-3-8b@w4a16-g128",
) -> pd.DataFrame:
    """Every setting of every method on devices one does not own, by their rooflines.

    Acceptance is the zoo's, replayed in the target's format: it stands for the larger models'.
    """
    pairs = []
    for name in devices:
        for trace in _traces(split_model(target)[1]):
            below = intermediate if isinstance(trace.draft, Refine) else None
            made = {"head_scheme": "w16a16", "top_k": _TOP_K}
            pairs.append((trace, roofline_costs(load(name), target, below, **made)))
    by_title = {load(name).title: load(name) for name in devices}
    return search(
        pairs, _SPACE, allow=_ALLOWED, fits=lambda costs, _: _fits(by_title[costs.device], costs)
    )


def best_of_methods(table: pd.DataFrame) -> pd.DataFrame:
    """Each method's fastest setting, by device and target.

    Args:
        table: from `here` or `elsewhere`.

    Returns:
        device, format (of the target), method, setting (its sizes, in words), speedup with `low`
        and `high`, the ends of its 95 % interval, mean_emitted, us_per_token, fits, draft,
        target; `attrs` for a figure.
    """
    keys = ["device", "target", "method"]
    rows = table.loc[table.groupby(keys, sort=False)["us_per_token"].idxmin()]
    rows = rows.assign(
        format=[split_model(target)[1] for target in rows["target"]],
        setting=[setting_of(draft) for draft in rows["draft"]],
        low=rows["speedup_low"],
        high=rows["speedup_high"],
    )
    order = rows["method"].map(METHODS.index)
    rows = rows.assign(order=order).sort_values(["device", "format", "order"], kind="stable")
    shown = ["device", "format", "method", "setting", "speedup", "low", "high", "mean_emitted"]
    found = rows[[*shown, "us_per_token", "fits", "draft", "target"]].reset_index(drop=True)
    drafted = rows[rows["method"] != "ar"]
    found.attrs = {"origin": drafted["origin"].iloc[0], "note": _note(drafted)}
    return found


def _note(rows: pd.DataFrame) -> str:
    """Traces and warnings of rows, each once; models that others stand for in one sentence."""
    words = dict.fromkeys(word for told in rows["warnings"] for word in told.split("; ") if word)
    stands = [word.partition(" stands for ")[2] for word in words]
    others = dict.fromkeys(split_model(name)[0].removesuffix("-eagle2") for name in stands if name)
    said = [f"acceptance replayed from {', '.join(dict.fromkeys(rows['trace']))}"]
    if others:
        said.append(f"which stands for that of {', '.join(others)}")
    return "; ".join([*said, *(word for word in words if " stands for " not in word)])


def setting_of(draft) -> str:
    """A drafter's sizes in words."""
    if draft is None:
        return "plain"
    if isinstance(draft, Chain):
        return f"{draft.draft_len} tokens"
    tree = head_draft(draft)
    told = f"tree {tree.tree_size}, depth {tree.depth}"
    return f"{told}, at least {draft.at_least}" if isinstance(draft, Refine) else told


def phases(best: pd.DataFrame) -> list[tuple[str, Prediction]]:
    """The predictions behind rows of `best_of_methods(here())`, labelled, for bars by phase."""
    found = []
    for row in best.to_dict("records"):
        trace, costs = next(
            (trace, costs)
            for trace, costs in pairs_of(row["format"])
            if _is_of(trace, costs, row["draft"])
        )
        label = f"{row['method']} {row['format']}, {row['setting']}"
        found.append((label, predict(trace, row["draft"], costs)))
    return found


def _traces(format: str) -> list[Trace]:
    """The shipped greedy traces of a target format, at one top-k."""
    found = [
        trace
        for trace in shipped_traces()
        if trace.config.format == format
        and not trace.config.temperature
        and trace.eagle.top_k == _TOP_K
    ]
    if not found:
        raise ValueError(f"no trace of a target at {format} ships: `hspec record` makes one")
    return found


@lru_cache(maxsize=8)
def pairs_of(
    format: str, n_prompts: int | None = None, max_new_tokens: int | None = None
) -> tuple[tuple[Trace, StageCosts], ...]:
    """The traces of a format with their measured stages, a chain's own among them.

    Args:
        n_prompts, max_new_tokens: stages are taken at the context that these rounds have; None:
            at that of the rounds in which they were measured.
    """
    measured, pairs = shipped_stages(), []
    for trace in _traces(format):
        context = None
        if n_prompts is not None:
            rounds = replay(trace, None, max_new_tokens)
            context = int(rounds.loc[rounds["prompt"] < n_prompts, "kv_len"].mean())
        drafts = [trace.draft]
        if isinstance(trace.draft, Refine):
            drafts.append(Chain(trace.draft.model, trace.draft.at_least))
        target = trace.config.target
        pairs += [(trace, stage_costs(measured, target, draft, context)) for draft in drafts]
    return tuple(pairs)


def _is_of(trace: Trace, costs: StageCosts, draft) -> bool:
    """Whether a pair prices a drafter of this kind, a chain by its own stages."""
    if isinstance(draft, Chain):
        return costs.intermediate is not None and costs.head is None
    if isinstance(draft, Refine):
        return costs.intermediate is not None and costs.head is not None
    return costs.intermediate is None


def _fits(device: Device, costs: StageCosts) -> bool:
    """Whether all levels of a configuration fit a device's memory."""
    shape, scheme = split_reference(costs.target)
    found = [memory_bytes(shape, scheme, costs.context, device.kind)]
    if costs.intermediate:
        shape, scheme = split_reference(costs.intermediate)
        found.append(memory_bytes(shape, scheme, costs.context, device.kind))
    found.append(head_bytes(shape, parse("w16a16"), costs.context, device.kind))
    return fits(device, found)
