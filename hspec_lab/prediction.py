"""One prediction as a value, and its intervals; no torch."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hspec_lab.config import Drafting
from hspec_lab.matching import caption
from hspec_lab.stages import StageCosts

_NORMAL = 1.96  # standard errors that a 95 % interval reaches to either side
_DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Prediction:
    """What decoding would cost, and how sure that is.

    Every `_low` and `_high` are the ends of a 95 % interval: a bootstrap over the trace's prompts,
    and, where times are concerned, 1.96 standard errors of the stages' times, taken as independent
    of it and of each other; half widths add up in squares, in logarithms.  NaN where a trace has
    one prompt.

    Attributes:
        draft: the drafter, None for plain decoding.
        costs: the stages it was predicted with; their models are the ones it speaks of.
        mean_emitted: tokens a round emits.
        phases: phase, us_per_emitted, us_per_round, share, origin; phases that never run left out.
        us_per_token: us per emitted token, prefill not counted.
        ar_steps: the same in plain steps of the target.
        speedup: over plain decoding of the same target.
        acceptance_origin, cost_origin: where the two halves come from.
        warnings: what a figure made with this must say.
    """

    draft: Drafting | None
    costs: StageCosts
    mean_emitted: float
    mean_emitted_low: float
    mean_emitted_high: float
    phases: pd.DataFrame
    us_per_token: float
    us_per_token_low: float
    us_per_token_high: float
    speedup: float
    speedup_low: float
    speedup_high: float
    acceptance_origin: str
    cost_origin: str
    warnings: tuple[str, ...] = ()

    @property
    def ar_steps(self) -> float:
        return self.us_per_token / self.costs.plain_us

    @property
    def ar_steps_low(self) -> float:
        return 1 / self.speedup_high

    @property
    def ar_steps_high(self) -> float:
        return 1 / self.speedup_low

    @property
    def tokens_per_s(self) -> float:
        return 1e6 / self.us_per_token

    def caption(self) -> dict[str, str]:
        """Keyword arguments of every figure function: origin and note."""
        return caption(self.acceptance_origin, self.costs, self.warnings)

    def __repr__(self) -> str:
        return (
            f"Prediction({self.draft!r} on {self.costs.target}: {self.us_per_token:.0f} us a token "
            f"({self.us_per_token_low:.0f} to {self.us_per_token_high:.0f}), "
            f"{self.speedup:.2f}x ar; {self.caption()['note']})"
        )


def bootstrap(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """95 % interval over prompts of a ratio of sums; NaN for a single prompt."""
    if len(above) < 2:
        return float("nan"), float("nan")
    # seeded, so that the same setting says the same interval each time
    chosen = np.random.default_rng(0).integers(len(above), size=(_DRAWS, len(above)))
    ratios = above[chosen].sum(axis=1) / below[chosen].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def widened(value, drawn: tuple, error) -> tuple:
    """An interval with another, independent error added: half widths in squares, in logarithms.

    Args:
        value, drawn: a time, and the ends of its interval.
        error: relative standard error of the time besides.
    """
    low, high = drawn
    reach = _NORMAL * error
    return (
        value * np.exp(-np.hypot(np.log(value / low), reach)),
        value * np.exp(np.hypot(np.log(high / value), reach)),
    )
