"""Answers over invented recordings and prices, so that a panel's tests take milliseconds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import prices
from traces import random_trace

from hspec_lab.config import Chain, Config, Eagle2, Refine, head_draft, split_model
from hspec_lab.store import empty_costs
from hspec_lab.widgets.answers import Answers

HERE = "Invented 9000, 2 threads"
CONDITIONS = {"cpu": "Invented 9000", "threads": 2, "device": "cpu", "date": "2026-01-02T03:04:05Z"}
FORMATS = ("w4a16-g128", "fp32")
SIZES = {"depth": 4, "top_k": 3, "n_prompts": 3, "n_positions": 40}
# what fewer bits make of a pass
_FASTER = {"fp32": 1.0, "w4a16-g128": 0.5}


class InventedAnswers(Answers):
    """Two target formats; times of `prices`, halved at 4 bits; anything else was not measured."""

    def __init__(self, base: Config | None = None, curves: bool = True):
        stages = {"conditions": CONDITIONS}, empty_costs()
        found = [_trace(kind, format) for kind in ("eagle2", "refine") for format in FORMATS]
        super().__init__(found, stages, _curves() if curves else None, base)
        self.costs.of = self._priced

    def _priced(self, device, target, draft, context):
        if device not in self.devices:
            raise ValueError(f"device is one of {', '.join(self.devices)}; got {device!r}")
        if target not in _FASTER:
            raise ValueError(f"{device} has no times of {target}: press Measure")
        costs = prices.HIERARCHY if not isinstance(draft, Eagle2) else prices.EAGLE
        where = split_model(self.base.target)[0]
        slower = (1.0 if device == self.here else 3.0) * (1 + (context or 20) / 1000)
        found = replace(
            costs,
            device=device,
            target=f"{where}@{target}",
            target_us=costs.target_us * _FASTER[target] * slower,
            plain_us=costs.plain_us * _FASTER[target] * slower,
            context=context or 20,
        )
        below = draft.model if isinstance(draft, Chain | Refine) else None
        tree = head_draft(draft)
        head = None if tree is None else tree.head or found.head
        found = replace(found, intermediate=below, head=head, top_k=tree.top_k if tree else 0)
        return found, []


def _trace(kind: str, format: str):
    trace = random_trace(7, kind=kind, at_least=6, **SIZES)
    trace.head["config"]["target"] = f"zoo:target@{format}"
    return replace(trace, name=f"{format}-{kind}")


def _curves():
    """A flat stretch of 4 tokens, then a rise, for each format."""
    n = np.arange(1, 33)
    ratio = np.maximum(1.0, n / 4)
    rows = [
        pd.DataFrame({"scheme": format, "n": n, "ratio": ratio, "time_us": us * ratio})
        for format, us in (("fp32", 100.0), ("w4a16-g128", 50.0))
    ]
    table = pd.concat(rows, ignore_index=True)
    return {"conditions": CONDITIONS}, table.assign(device=HERE, model="zoo:target", context=20)
