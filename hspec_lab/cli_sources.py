"""What predictions on the command line are made of: traces, and the stages they are priced with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from hspec_lab.acceptance_folder import Trace, read_trace, shipped_traces
from hspec_lab.config import Chain, Drafting, Refine, head_draft, method_of
from hspec_lab.device import Device, known, load
from hspec_lab.request import Prefill, prefills_of_rounds
from hspec_lab.roofline import (
    Calibration,
    Memory,
    calibrate,
    fits,
    head_bytes,
    memory_bytes,
    prefill_us,
    split_reference,
)
from hspec_lab.roofline import stage_costs as roofline_costs
from hspec_lab.scheme import parse
from hspec_lab.stages import StageCosts
from hspec_lab.stages_folder import read_stages, shipped_stages
from hspec_lab.store import read_cost
from hspec_lab.terminal import say


@dataclass(frozen=True, eq=False)
class Priced:
    """A trace and the stages it is priced with.

    Attributes:
        device: whose roofline the stages are; None: they were measured.
        fitted: what calibrated it.
        measured: conditions and table of measured stages.
    """

    trace: Trace
    costs: StageCosts
    device: Device | None = None
    fitted: Calibration | None = None
    measured: tuple | None = None

    def is_for(self, draft: Drafting | None) -> bool:
        """Whether these are the stages of such a drafter; a chain's are measured for themselves."""
        of_chain = not np.isfinite(self.costs.draft_us).any()
        beside = isinstance(self.trace.draft, Refine) and self.device is None
        return not beside or of_chain == isinstance(draft, Chain)

    def memory(self, draft: Drafting | None, tokens: int) -> dict[str, Memory]:
        """What each level of a configuration needs at a context, by name."""
        kind = "cpu" if self.device is None else self.device.kind
        return _memory(
            self.costs.target,
            self.costs.intermediate if isinstance(draft, Chain | Refine) else None,
            self.costs.head if head_draft(draft) is not None else None,
            max(self.costs.context, tokens),
            kind,
        )

    def fits(self, draft: Drafting | None) -> bool:
        """Whether a configuration fits its device's memory."""
        return fits(self.device, self.memory(draft, 0).values())

    def prefills(self, draft: Drafting | None) -> tuple[list[Prefill], list[Prefill]]:
        """Prefills of all levels, and of the target in plain decoding."""
        if self.device is None:
            table, target = self.measured[1], self.costs.target
            return tuple(
                prefills_of_rounds(table, target, method) for method in (method_of(draft), "ar")
            )
        names = {"target": self.costs.target}
        if isinstance(draft, Chain | Refine):
            names["intermediate"] = self.costs.intermediate
        families = self.fitted.families if self.fitted else None
        found = [
            Prefill(
                level,
                lambda n, model=model: prefill_us(*model, n, self.device, families),
                self.costs.origin,
            )
            for level, model in ((level, split_reference(name)) for level, name in names.items())
        ]
        return found, found[:1]


@cache
def _memory(
    target: str, intermediate: str | None, head: str | None, tokens: int, kind: str
) -> dict[str, Memory]:
    shapes = {"target": split_reference(target)}
    if intermediate is not None:
        shapes["intermediate"] = split_reference(intermediate)
    found = {level: memory_bytes(*shape, tokens, kind) for level, shape in shapes.items()}
    if head is not None:
        serves = shapes.get("intermediate", shapes["target"])[0]
        scheme = parse(head.rpartition("@")[2] if "@" in head else "fp32")
        found["head"] = head_bytes(serves, scheme, tokens, kind)
    return found


def add_sources(parser) -> None:
    """Options that say what predictions are made of."""
    add = parser.add_argument
    add("--trace", nargs="+", metavar="DIR", help="default: the greedy ones that ship with the zoo")
    add("--costs", type=Path, metavar="DIR",
        help="measured with `hspec measure --in-rounds`; default: those that ship")  # fmt: skip
    add("--device", nargs="+", metavar="NAME",
        help="instead: the roofline of devices (`hspec devices`, or a .toml), or all")  # fmt: skip
    add("--calibrate", type=Path, metavar="DIR",
        help="cost curves measured on that device: the roofline is fitted to them")  # fmt: skip
    add("--target", metavar="REF", help="what would run there, shape:llama-3-70b@w4a16-g128 say")
    add("--intermediate", metavar="REF", help="its intermediate model")
    add("--context", type=int, metavar="N", help="tokens stored; default: as measured, or 512")
    add("--allow", nargs="+", default=[], metavar="WHAT",
        choices=("scheme", "model", "tokenizer", "top_k"),
        help="where acceptance and costs may differ: scheme, model, tokenizer, top_k")  # fmt: skip


def priced(options) -> list[Priced]:
    """All traces that were asked for, each with its stages.

    Raises:
        ValueError: options contradict each other, or no trace has stages.
    """
    if options.device and options.costs:
        raise ValueError("--costs are measured here, --device computes others: give one of them")
    if not options.device and (options.calibrate or options.target or options.intermediate):
        raise ValueError("--calibrate, --target and --intermediate belong to --device")
    if options.context is not None and options.context < 0:
        raise ValueError(f"--context must be >= 0, got {options.context}")
    if options.trace:
        traces = [read_trace(folder) for folder in options.trace]
    else:
        traces = [trace for trace in shipped_traces() if trace.config.temperature == 0]
    return _on_devices(options, traces) if options.device else _as_measured(options, traces)


def _as_measured(options, traces: Sequence[Trace]) -> list[Priced]:
    from hspec_lab.cost import stage_costs

    measured = read_stages(options.costs) if options.costs else shipped_stages()
    found, left_out = [], []
    for trace in traces:
        for draft in _smallest(trace):
            try:
                costs = stage_costs(measured, trace.config.target, draft, options.context)
            except ValueError as error:
                left_out.append((f"{trace.name} ({method_of(draft)})", str(error)))
                continue
            found.append(Priced(trace, costs, measured=measured))
    if not found:
        raise ValueError(f"no trace has measured stages: {': '.join(left_out[0])}")
    if left_out:
        told = ", ".join(name for name, _ in left_out)
        say(f"note: left out, as no stages were measured for them: {told}")
    return found


def _smallest(trace: Trace) -> list[Drafting]:
    """A trace's drafter at its smallest: curves end by themselves; a hierarchy's chain, too."""
    draft, head = trace.draft, trace.eagle
    if head is not None:
        head = replace(head, tree_size=2, depth=1)
    if isinstance(draft, Chain):
        return [replace(draft, draft_len=1)]
    if isinstance(draft, Refine):
        return [replace(draft, draft=head, at_least=1), Chain(draft.model, 1)]
    return [head]


def _on_devices(options, traces: Sequence[Trace]) -> list[Priced]:
    names = known() if options.device == ["all"] else options.device
    if options.calibrate and len(names) != 1:
        raise ValueError("--calibrate fits one device's roofline: name that device alone")
    found, left_out = [], []
    for name in names:
        device, fitted = load(name), None
        if options.calibrate:
            fitted = _calibrated(device, options.calibrate)
        for trace in traces:
            below = None
            if isinstance(trace.draft, Chain | Refine):
                below = options.intermediate or trace.draft.model
            try:
                costs = roofline_costs(
                    device,
                    options.target or trace.config.target,
                    below,
                    top_k=trace.eagle.top_k if trace.eagle else 8,
                    context=512 if options.context is None else options.context,
                    calibration=fitted,
                )
            except ValueError as error:
                left_out.append(f"{trace.name} on {name}: {error}")
                continue
            found.append(Priced(trace, costs, device, fitted))
    if not found:
        raise ValueError(f"no stages: {left_out[0] if left_out else 'no trace'}")
    for told in left_out:
        say(f"note: left out {told}")
    return found


def _calibrated(device: Device, folder: Path) -> Calibration:
    head, table = read_cost(folder)
    where = head["conditions"]["device"]
    if (where == "cpu") != (device.kind == "cpu"):
        raise ValueError(f"{folder} was measured on {where}, it cannot calibrate {device.title}")
    say(f"note: {device.title} calibrated by curves of {', '.join(dict.fromkeys(table['device']))}")
    return calibrate(device, table)
