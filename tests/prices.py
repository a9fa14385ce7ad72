"""Stage costs of invented, round numbers, to be multiplied by hand."""

from dataclasses import replace

import numpy as np
from traces import MIDDLE

from hspec_lab.stages import StageCosts


def flat(us: float, n: int = 64) -> np.ndarray:
    """The same time for 1..n rows."""
    return np.concatenate([[np.nan], np.full(n, float(us))])


def rising(base: float, slope: float, n: int = 64) -> np.ndarray:
    """base + slope * rows, for 1..n rows."""
    return np.concatenate([[np.nan], base + slope * np.arange(1.0, n + 1)])


# a plain step: 100 + 5 + 3 + 2
EAGLE = StageCosts(
    origin="measured",
    device="invented",
    target="zoo:target@fp32",
    target_us=flat(100),
    plain_us=110.0,
    context=20,
    head="zoo:target-eagle2@fp32",
    top_k=1,
    draft_us=10.0 * np.arange(9),
    tree_us=np.arange(65.0) / 5,
    accept_us=flat(5),
    commit_us=3.0,
    gap_us=2.0,
    spread={"target_us": 0.02, "draft_us": 0.1, "plain_us": 0.01},
)
HIERARCHY = replace(
    EAGLE,
    target_us=rising(100, 1),
    intermediate=MIDDLE,
    head="zoo:intermediate-eagle2@fp32",
    intermediate_us=rising(20, 1),
    accept_us=rising(4, 1),
    accept_intermediate_us=rising(2, 1),
    commit_intermediate_us=0.5,
    gap_intermediate_us=0.25,
)
