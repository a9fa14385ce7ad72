"""What a controller is worth: its rounds replayed beside those of every fixed setting; no torch.

outcomes(trace, costs)   what a round of each option does at each place of a text
learn(found)             -> control.Controller, from some prompts
simulate(found, policy)  the rounds that decoding with a controller, or any policy, has
compare(found)           a controller, every fixed setting and two bounds that know the future
summary(table, found)    the same in one row each, over the best fixed setting

A controller is judged on prompts that it has not learned from.

    source  Liu et al. 2024 (SmartSpec), arXiv 2406.14066: tokens per time as what to compare
"""

from hspec_lab.goodput.compare import compare, summary
from hspec_lab.goodput.outcomes import Outcomes, options_for, outcomes
from hspec_lab.goodput.policies import Fixed, Visit, learn, simulate, walk

__all__ = [
    "Fixed",
    "Outcomes",
    "Visit",
    "compare",
    "learn",
    "options_for",
    "outcomes",
    "simulate",
    "summary",
    "walk",
]
