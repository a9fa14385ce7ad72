"""What the stages of a round cost on one device: a value of arrays, whoever found them; no torch.

A prediction is `acceptance.Totals` (how often each stage runs) times this.  Measured stages come
from `cost`, those of devices one does not own from `roofline`.
"""

from dataclasses import dataclass, field

import numpy as np

ORIGINS = ("measured", "calibrated", "roofline")


@dataclass(frozen=True, eq=False)
class StageCosts:
    """us of each stage, for one target, one drafter below it, one device and one context.

    Curves are indexed by rows: entry n is the time for n rows, entry 0 is unused (NaN), and what
    lies behind the end was not measured.

    Attributes:
        origin: "measured"; "roofline", computed from a device's peaks; "calibrated", the roofline
            scaled by what was measured.
        device: as figures name it.
        target, intermediate: model references, `where@format`; intermediate None without one.
        head: the draft head's reference; None without one.
        top_k: children per node for which `draft_us` holds; 0 without a head.
        context: tokens stored.
        target_us, intermediate_us: float64 [N + 1], a forward pass over n rows with logits of all.
        draft_us: float64 [D + 1], a head's whole draft of depth d, what it ingests included.
        accept_us, accept_intermediate_us: float64 [N + 1], the verdict over n rows.
        commit_us, commit_intermediate_us: keeping the accepted rows.
        gap_us, gap_intermediate_us: what no stage covers, per round of that level.
        plain_us: a plain step of the target (ar), all of it, measured beside the rest: the unit in
            which times are compared.
        spread: relative standard error of each array's times, by attribute name.
        tokenizer: a hash of the tokenizer that all levels share; empty where nothing was decoded.
        tree_us: float64 [N + 1], what a draft of n kept nodes costs more than one of one;
            None: nothing.
        note: the conditions, as figures say them.
        warnings: what a figure made with this must say.
    """

    origin: str
    device: str
    target: str
    target_us: np.ndarray
    plain_us: float
    context: int
    intermediate: str | None = None
    head: str | None = None
    top_k: int = 0
    intermediate_us: np.ndarray = field(default_factory=lambda: np.full(1, np.nan))
    draft_us: np.ndarray = field(default_factory=lambda: np.full(1, np.nan))
    tree_us: np.ndarray | None = None
    accept_us: np.ndarray | None = None
    accept_intermediate_us: np.ndarray | None = None
    commit_us: float = 0.0
    commit_intermediate_us: float = 0.0
    gap_us: float = 0.0
    gap_intermediate_us: float = 0.0
    spread: dict[str, float] = field(default_factory=dict)
    tokenizer: str = ""
    note: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        if self.origin not in ORIGINS:
            raise ValueError(f"origin must be one of {', '.join(ORIGINS)}, got {self.origin!r}")
        if not self.plain_us > 0:
            raise ValueError(f"plain_us must be above 0, got {self.plain_us!r}")
