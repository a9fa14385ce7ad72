"""FineQuant: as coarse a group per matrix as its ranges allow; no data.

A step is as wide as a group's range asks for.  Where large weights lie together, finer groups leave
the others narrow ranges of their own; where they lie anywhere, finer groups bring little and cost
a scale each.

    rule    Start with a whole row.  Go on to the next finer of 128, 64 and 32 inputs that divides
            the row while the mean of the groups' ranges falls to less than `ratio` of what it would
            fall to if weights were independent normal numbers, whose groups reach less far too the
            smaller they are.  Stop where it does not fall so far, and at the scheme's own group.
    range   largest minus smallest weight; of symmetric integers twice the largest magnitude.
    limits  What only the next but one would bring is not seen.  Heavy tails alone, in no pattern,
            can pass for a reason to go on.
    cost    a pass over the weights per group size, then one rounding.
    source  Kim et al. 2023, arXiv 2308.09723: halve while the range falls markedly.  The comparison
            with normal weights is ours; it makes the first step, from rows of any length to 128,
            as hard as the others.
"""

from dataclasses import replace
from statistics import NormalDist

from torch import Tensor

from hspec_lab.quant.forms import Form, rounded
from hspec_lab.quantize.calibration import Inputs
from hspec_lab.scheme import GROUPS, Scheme


def finequant(weight: Tensor, inputs: Inputs | None, scheme: Scheme, *, ratio: float = 0.9) -> Form:
    """Round a matrix to nearest, in groups as fine as its ranges call for.

    Integers only: with 16-bit rows, or of 4 bits with 8-bit rows, where a whole row has one level
    of scales and groups have two.

    Args:
        weight: fp32 [R, C].
        inputs: not read.
        scheme: of these weights; its group is the finest to be tried, 32 where it has none.
        ratio: how far ranges must fall, against normal weights; at 0 nothing goes on.

    Returns:
        a form whose scheme carries the group that was chosen, none for whole rows.

    Raises:
        ValueError: a grid whose groups are fixed.
    """
    if scheme.grid != "int" or (scheme.rows < 16 and (scheme.bits, scheme.rows) != (4, 8)):
        raise ValueError(
            f"finequant chooses groups and those of {scheme} are fixed: "
            "take integers with 16-bit rows, such as w4a16-g32, or w4a8"
        )
    return rounded(weight, replace(scheme, group=_chosen_group(weight, scheme, ratio)))


def _chosen_group(weight: Tensor, scheme: Scheme, ratio: float) -> int | None:
    C, finest = weight.shape[1], scheme.group or min(GROUPS)
    chosen, reach = None, _mean_reach(weight, C, scheme.zero)
    for group in sorted(GROUPS, reverse=True):
        if group < finest or group >= C or C % group:
            continue
        finer = _mean_reach(weight, group, scheme.zero)
        if finer >= ratio * reach:
            break
        chosen, reach = group, finer
    return chosen


def _mean_reach(weight: Tensor, group: int, zero: bool) -> float:
    """Mean range of groups, in what the range of as many normal weights would be."""
    groups = weight.reshape(len(weight), -1, group)
    if zero:
        return float((groups.amax(-1) - groups.amin(-1)).mean()) / (2 * _normal_maximum(group))
    # the largest of n magnitudes is about the largest of 2n normal numbers
    return float(groups.abs().amax(-1).mean()) / _normal_maximum(2 * group)


def _normal_maximum(n: int) -> float:
    """Expected largest of n standard normal numbers, after Blom 1958."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))
