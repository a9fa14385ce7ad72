"""What may be multiplied with what: a recorded text, the stages of a device, a drafter; no torch.

Acceptance of one model says nothing sure about another, and a draft's time holds for one `top_k`.
So the two must speak of the same levels, or be allowed to differ by name; what was allowed becomes
a warning that every figure carries.
"""

from collections.abc import Iterable
from dataclasses import replace

from hspec_lab.acceptance_folder import Trace
from hspec_lab.config import Chain, Drafting, Eagle2, Refine, head_draft, split_model
from hspec_lab.stages import StageCosts

MAY_DIFFER = ("scheme", "model", "tokenizer", "top_k")
# a head that nobody named lies beside its model, in the format of its files
_BESIDE = "-eagle2"
_AS_SHIPPED = ("fp32", "w16a16")


def models_of(target: str, draft: Drafting | None) -> dict[str, str]:
    """The model references of a drafter's levels: target, intermediate, head."""
    found, serves = {"target": target}, target
    while isinstance(draft, Chain | Refine):
        found.setdefault("intermediate", draft.model)
        serves, draft = draft.model, draft.draft if isinstance(draft, Refine) else None
    if draft is not None:
        found["head"] = draft.head or split_model(serves)[0] + _BESIDE
    return found


def as_recorded(trace: Trace, draft: Drafting | None) -> Drafting | None:
    """A drafter with its own sizes and the trace's models, where the two are of one kind."""
    recorded = trace.draft
    if isinstance(draft, Eagle2) and trace.eagle is not None:
        return replace(draft, head=trace.eagle.head)
    if isinstance(draft, Refine) and isinstance(recorded, Refine):
        return replace(draft, model=recorded.model, draft=as_recorded(trace, draft.draft))
    if isinstance(draft, Chain) and isinstance(recorded, Chain | Refine):
        return replace(draft, model=recorded.model)
    return draft


def check_fits(
    trace: Trace, costs: StageCosts, draft: Drafting | None, allow: Iterable[str] = ()
) -> tuple[str, ...]:
    """Check that acceptance and stages speak of the same levels.

    Args:
        draft: its models are named as in the trace or as in `costs`.
        allow: what may differ, see `MAY_DIFFER`.

    Returns:
        warnings: those of the stages, and what was allowed to differ.

    Raises:
        ValueError: they differ, or `costs` lack a level.
    """
    allow = frozenset([allow] if isinstance(allow, str) else allow)
    if unknown := sorted(allow - set(MAY_DIFFER)):
        raise ValueError(f"allow knows {', '.join(MAY_DIFFER)}, got {', '.join(unknown)}")
    _check_levels(costs, draft)
    theirs = models_of(trace.config.target, trace.draft)
    asked = models_of(theirs["target"], draft)
    warnings = list(costs.warnings)
    for level in asked:
        priced = getattr(costs, level)
        if priced is None:
            continue
        _check_asked(level, asked[level], theirs.get(level, asked[level]), priced)
        for name in _differing(theirs.get(level, asked[level]), priced):
            warnings.append(_allowed(name, level, theirs[level], priced, allow))
    head = head_draft(draft)
    if head is not None and costs.top_k and head.top_k != costs.top_k:
        of = (f"top_k {head.top_k}", f"top_k {costs.top_k}")
        warnings.append(_allowed("top_k", "head", *of, allow))
    ours = (trace.head.get("tokenizer", ""), getattr(costs, "tokenizer", ""))
    if all(ours) and ours[0] != ours[1]:
        warnings.append(_allowed("tokenizer", "target", *ours, allow))
    return tuple(dict.fromkeys([*warnings, *_far_context(trace, costs)]))


def same_model(one: str, other: str) -> bool:
    """Whether two references name the same model in the same format."""
    return not _differing(one, other)


def origin_of(costs: StageCosts) -> str:
    """What a title says of a prediction's two halves."""
    return f"acceptance replayed, stages {costs.origin}"


def caption(acceptance: str, costs: StageCosts, warnings: Iterable[str] = ()) -> dict[str, str]:
    """Keyword arguments of a figure: origin and note.

    Args:
        acceptance: where it comes from, `Trace.caption()`.
    """
    told = [acceptance, cost_origin(costs)]
    if warnings := list(warnings):
        told.append(f"but: {'; '.join(warnings)}")
    return {"origin": origin_of(costs), "note": "; ".join(told)}


def cost_origin(costs: StageCosts) -> str:
    """Where the stages' times come from."""
    note = f", {costs.note}" if costs.note else ""
    models = " over ".join(filter(None, (costs.target, costs.intermediate)))
    return f"stages {costs.origin} on {costs.device} ({models}, context {costs.context}{note})"


def _check_levels(costs: StageCosts, draft: Drafting | None) -> None:
    if isinstance(draft, Chain | Refine) and costs.intermediate is None:
        raise ValueError(
            f"{draft!r} needs the intermediate model's times, the stages of {costs.target} on "
            f"{costs.device} have none: measure {draft.model} beside it"
        )
    if draft is not None and draft is head_draft(draft) and costs.intermediate is not None:
        raise ValueError(
            f"{draft!r} drafts for the target, these stages are of a head of "
            f"{costs.intermediate}: give those of {costs.target} and its own head"
        )


def _check_asked(level: str, asked: str, theirs: str, priced: str) -> None:
    if _differing(asked, theirs) and _differing(asked, priced):
        raise ValueError(
            f"{level}: asked for {asked}, but acceptance was recorded with {theirs} and the "
            f"stages are those of {priced}"
        )


def _differing(theirs: str, priced: str) -> list[str]:
    (where, format), (there, priced_format) = _parts(theirs), _parts(priced)
    found = ["model"] if where != there else []
    unnamed = _AS_SHIPPED if format is None or priced_format is None else ()
    same = format == priced_format or {format, priced_format} <= {None, *unnamed}
    return found if same else [*found, "scheme"]


def _parts(reference: str) -> tuple[str, str | None]:
    if reference.endswith(_BESIDE):
        return reference, None
    return split_model(reference)


def _allowed(name: str, level: str, theirs: str, priced: str, allow: frozenset) -> str:
    """The warning for something that differs; ValueError where it may not."""
    if name not in allow:
        raise ValueError(
            f"{level}: acceptance was recorded with {theirs}, the stages are those of {priced}; "
            f"take matching ones, or allow=({name!r},), which stays on the figure"
        )
    return f"{level}: acceptance of {theirs} stands for {priced}"


def _far_context(trace: Trace, costs: StageCosts) -> list[str]:
    """Says so where the stages' context is none that the recorded text passes through."""
    lengths = trace.head["prompt_tokens"]
    if not lengths:
        return []
    first = min(lengths)
    last = max(n + m for n, m in zip(lengths, trace.head["n_positions"], strict=True))
    if first <= costs.context <= last:
        return []
    return [
        f"stages at {costs.context} tokens of context, acceptance recorded at {first} to {last}"
    ]
