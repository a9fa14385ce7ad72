"""Plain decoding, a chain, EAGLE-2 and HierSpec side by side; no torch.

predicted   each method's best here, and on devices one does not own
measured    each method's best of the recorded sweeps, and predictions beside all of them
"""

import pandas as pd

from hspec_lab.contest.measured import STUDIES, beside_measured, measured_best
from hspec_lab.contest.predicted import best_of_methods, elsewhere, here, phases

__all__ = [
    "beside_measured",
    "best_of_methods",
    "elsewhere",
    "here",
    "measured_best",
    "phases",
    "take_away",
]


def take_away(measured: pd.DataFrame, far: pd.DataFrame) -> str:
    """One sentence with numbers and their condition, as Markdown.

    Args:
        measured: from `measured_best`.
        far: from `best_of_methods(elsewhere(...))`.
    """
    at = measured.set_index(["format", "method"])["speedup"]
    told = "; ".join(
        f"at {format} {at[format, 'hierspec']:.2f}, {at[format, 'eagle2']:.2f} and "
        f"{at[format, 'chain']:.2f}"
        for format in STUDIES
    )
    there = far[far["fits"].ne(False)].set_index(["device", "method"])["speedup"].unstack()
    gain = there["hierspec"] / there["eagle2"]
    return (
        "HierSpec, EAGLE-2 and a chain, each at its best, decode at these multiples of plain "
        f"decoding ({measured.attrs['note'].partition(', torch')[0]}, measured): {told}; so here a "
        f"**chain** wins at fp32 and nothing does at 4 bits, while rooflines of {len(there)} GPUs, "
        f"with the zoo's acceptance, put HierSpec on a 4-bit 70B model **{gain.min():.1f} to "
        f"{gain.max():.1f} times** ahead of EAGLE-2."
    )
