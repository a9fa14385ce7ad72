"""Stage costs of a device one does not own: what `predict` multiplies with how often stages run."""

from typing import TYPE_CHECKING

import numpy as np

from hspec_lab.config import MAX_TREE_SIZE, split_model
from hspec_lab.device import Device
from hspec_lab.roofline.family import Families, families_for
from hspec_lab.roofline.head import draft_us
from hspec_lab.roofline.shape import Shape, split_reference
from hspec_lab.roofline.work import pass_us
from hspec_lab.scheme import Scheme, parse
from hspec_lab.stages import StageCosts

if TYPE_CHECKING:
    from hspec_lab.roofline.calibration import Calibration

MAX_ROWS = 128
MAX_DEPTH = 12


def stage_costs(
    device: Device,
    target: str,
    intermediate: str | None = None,
    *,
    head_scheme: str | None = None,
    top_k: int = 8,
    context: int = 512,
    rows: int = MAX_ROWS,
    depth: int = MAX_DEPTH,
    families: Families | None = None,
    calibration: "Calibration | None" = None,
) -> StageCosts:
    """What the stages of a round cost on a device, by the roofline.

    Args:
        target, intermediate: `where@format`; where is `zoo:name`, `shape:name` or a folder.
        head_scheme: of the draft head of the intermediate model, or of the target without one;
            None: as in its files, 16 bits on a GPU and fp32 on a CPU.
        rows, depth: the most that curves and drafts go to.
        families: what is assumed of the kernels; None: `families_for(device)`.
        calibration: fitted families instead, and what they were fitted to.

    Returns:
        costs: `origin` roofline, or calibrated with a `note` that says by what.

    Raises:
        ValueError: an unknown model or kernel family, a device without the peak that is needed, a
            calibration of another device, or numbers out of range.
    """
    families = _chosen(device, families, calibration)
    if not 1 <= rows <= MAX_TREE_SIZE:
        raise ValueError(f"rows must be 1..{MAX_TREE_SIZE}, got {rows!r}")
    found = {"target": split_reference(target)}
    if intermediate is not None:
        found["intermediate"] = split_reference(intermediate)
    curves = {
        f"{level}_us": _curve(*model, rows, context, device, families)
        for level, model in found.items()
    }
    head = parse(head_scheme or ("fp32" if device.kind == "cpu" else "w16a16"))
    shape, scheme = list(found.values())[-1]
    drafts = draft_us(shape, head, scheme.output, depth, top_k, context, device, families)
    verdict = _flat(rows, families.accept_us)
    beside = families.accept_us + families.commit_us + families.gap_us
    inner = {} if intermediate is None else _inner(families, verdict)
    return StageCosts(
        origin="roofline" if calibration is None else "calibrated",
        device=device.title,
        target=target,
        intermediate=intermediate,
        head=f"{split_model(intermediate or target)[0]}-eagle2@{head}",
        top_k=top_k,
        context=context,
        draft_us=drafts,
        plain_us=float(curves["target_us"][1] + beside),
        accept_us=verdict,
        commit_us=families.commit_us,
        gap_us=families.gap_us,
        spread={} if calibration is None else calibration.spread((*curves, "draft_us")),
        note=families.note,
        warnings=_warnings(found, context, calibration, families),
        **curves,
        **inner,
    )


def _chosen(
    device: Device, families: Families | None, calibration: "Calibration | None"
) -> Families:
    if calibration is None:
        return families or families_for(device)
    if families is not None:
        raise ValueError("give families or a calibration, which has its own, not both")
    calibration.check(device)
    return calibration.families


def _inner(families: Families, verdict: np.ndarray) -> dict:
    """What a round of the intermediate model costs beside its passes."""
    return {
        "accept_intermediate_us": verdict,
        "commit_intermediate_us": families.commit_us,
        "gap_intermediate_us": families.gap_us,
    }


def _flat(n: int, us: float) -> np.ndarray:
    """The same for 1..n; nothing for 0."""
    return np.concatenate([[np.nan], np.full(n, us)])


def _curve(
    shape: Shape, scheme: Scheme, rows: int, context: int, device: Device, families: Families
) -> np.ndarray:
    times = pass_us(shape, scheme, np.arange(1, rows + 1), context, device, families)
    return np.concatenate([[np.nan], times])


def _warnings(found: dict, context: int, calibration, families: Families) -> tuple[str, ...]:
    told = [
        f"{shape.name} was trained for {shape.positions} positions, this is at {context}"
        for shape, _ in found.values()
        if context > shape.positions
    ]
    if calibration is None:
        return (*told, f"roofline: {families.note}")
    return (*told, *calibration.warnings(found, context))
