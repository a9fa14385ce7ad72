"""How near each phase came to what the device allows: launches, bytes and time, side by side.

Measured are the time and the launches.  From the roofline are bytes and operations, which follow
from the sizes of the models and of every recorded pass, and the limits, which are the device's
bandwidth and peaks as they are: no share lost, no tiles filled up, nothing for launches.  A pass
cannot be faster than its modules one after another, each at whatever takes it longer.

limits  weights count as read once a pass, though a cache that holds a small model saves that; rows
        of activations do not count; logits count for every row of a pass.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab.analysis.machine import machine
from hspec_lab.analysis.passes import passes_of
from hspec_lab.device import Device
from hspec_lab.roofline.work import Work
from hspec_lab.terms import ROUND_PHASES

MEASURED = ("launches_per_round", "measured_us")
ROOFLINE = (
    *("weight_bytes", "kv_bytes", "bytes_per_round", "flops_per_round"),
    *("memory_us", "compute_us", "limit_us"),
)
COLUMNS = (
    *("phase", "level", "kind", "passes_per_round", *MEASURED, "clock", *ROOFLINE, "share"),
    *("device", "source", "reason"),
)


def limits(
    head: dict,
    spans: pd.DataFrame,
    launches: pd.DataFrame | None = None,
    device: Device | str | Path | None = None,
) -> pd.DataFrame:
    """Set what every phase took against the least that the device needs for its passes.

    Args:
        head: of a run: its config names the models, its environment the machine.
        spans: recorded table.
        launches: recorded table, on the same clock; None: `launches_per_round` is NaN.
        device: one with its numbers, the name or TOML file of one, or a folder of measured cost
            curves.  None: the machine's own bandwidth, where the environment says it or curves
            that ship or lie in the store were measured under the same conditions, and a shipped
            file's numbers where the GPU's name is known.

    Returns:
        `COLUMNS`, one row per phase and level in the rounds' order; bytes, operations and us are
        per round.  `kind` is "measured and roofline", or "measured" where a phase runs no pass;
        `MEASURED` and `ROOFLINE` say which column is which, passes are counted.  `clock`: device
        where every span has its marks, else host.  `share` is limit_us / measured_us, above 1
        only where a cache helps.  What is not known is NaN, and `reason` says why.

    Raises:
        ValueError: no such device, one of another kind than the run's, or a folder that is none.
    """
    spans = spans[~spans["warmup"].astype(bool) & (spans["round"] >= 0)].reset_index(drop=True)
    ran_on = machine(head.get("environment", {}), device)
    n_rounds = len(spans[["prompt", "round"]].drop_duplicates())
    launched = np.full(len(spans), np.nan) if launches is None else _launched(spans, launches)
    order = {phase: place for place, phase in enumerate(ROUND_PHASES)}
    groups = spans.groupby(["phase", "level"], sort=False).indices.items()
    found = []
    for (phase, level), rows in sorted(groups, key=lambda item: order.get(item[0][0], len(order))):
        group = spans.iloc[rows]
        known = _bounds(head.get("config"), phase, level, group, ran_on)
        known["launches_per_round"] = launched[rows].sum()
        known |= _measured_us(group)
        if known["limit_us"] > known["measured_us"]:
            cached = "faster than its memory: what it reads lies in a cache"
            known["reason"] = "; ".join(filter(None, (known["reason"], cached)))
        per_round = {name: us / n_rounds for name, us in known.items() if not isinstance(us, str)}
        found.append({"phase": phase, "level": level} | known | per_round)
    bandwidth = ran_on.numbers.get("bandwidth")
    about = {"device": ran_on.title, "source": bandwidth.source if bandwidth else ""}
    table = pd.DataFrame(found, columns=[n for n in COLUMNS if n not in (*about, "share")])
    table = table.assign(**about, share=table["limit_us"] / table["measured_us"])
    return table[list(COLUMNS)]


def _measured_us(group: pd.DataFrame) -> dict:
    on_device = bool(group["device_us"].notna().all())
    column = "device_us" if on_device else "duration_us"
    return {"measured_us": group[column].sum(), "clock": "device" if on_device else "host"}


def _launched(spans: pd.DataFrame, launches: pd.DataFrame) -> np.ndarray:
    """How many calls of the host began inside each span; phases do not nest."""
    order = spans["start_us"].to_numpy().argsort(kind="stable")
    starts = spans["start_us"].to_numpy()[order]
    ends = starts + spans["duration_us"].to_numpy()[order]
    at = launches["start_us"].to_numpy()
    place = np.searchsorted(starts, at, side="right") - 1
    inside = (place >= 0) & (at < ends[place]) if len(starts) else np.zeros(len(at), dtype=bool)
    return np.bincount(order[place[inside]], minlength=len(spans)).astype(float)


def _bounds(config: dict | None, phase: str, level: str, group: pd.DataFrame, on: Device) -> dict:
    """Passes, bytes, operations and limits of all spans of a phase at a level, and the reason."""
    known = dict.fromkeys(("passes_per_round", *ROOFLINE), np.nan)
    if phase not in ("draft", "verify_intermediate", "verify_target"):
        return known | {"kind": "measured", "reason": f"{phase} runs no pass of a model"}
    known |= {"kind": "measured and roofline"}
    try:
        batches = list(passes_of(config, level, phase, group, on))
    except ValueError as error:
        return known | {"reason": f"bytes are not known: {error}"}
    known |= _added(batches, on)
    return known | {"reason": _missing(batches, on)}


def _missing(batches: list[tuple[int, list[Work]]], on: Device) -> str:
    """What of the device is not known, and what the limit is then."""
    reasons = []
    if "bandwidth" not in on.numbers:
        reasons.append(f"no bandwidth known of {on.title}: name a device or measured cost curves")
    operands = {work.family.operand for _, found in batches for work in found if work.flops.any()}
    if missing := sorted(operands - on.peaks.keys()):
        reasons.append(f"no {' and '.join(missing)} peak known of {on.title}")
    if len(reasons) == 1:
        reasons.append(f"the limit is of {'reading' if missing else 'multiplying'} alone")
    return "; ".join(reasons)


def _added(batches: list[tuple[int, list[Work]]], on: Device) -> dict:
    """The numbers of `ROOFLINE`, summed over passes and modules."""
    sums = dict.fromkeys(("passes_per_round", *ROOFLINE), 0.0)
    rate = on.numbers["bandwidth"].value if "bandwidth" in on.numbers else np.nan
    for n_passes, found in batches:
        sums["passes_per_round"] += n_passes
        for work in found:
            peak = (
                on.peaks[work.family.operand].value if work.family.operand in on.peaks else np.nan
            )
            read_us, compute_us = 1e6 * work.n_bytes / rate, 1e6 * work.flops / peak
            part = "kv_bytes" if work.module == "attention" else "weight_bytes"
            sums[part] += work.n_bytes.sum()
            sums["flops_per_round"] += work.flops.sum()
            sums["memory_us"] += read_us.sum()
            # an embedding multiplies nothing, whatever the peak
            sums["compute_us"] += compute_us.sum() if work.flops.any() else 0.0
            sums["limit_us"] += np.fmax(read_us, compute_us).sum()
    sums["bytes_per_round"] = sums["weight_bytes"] + sums["kv_bytes"]
    return sums
