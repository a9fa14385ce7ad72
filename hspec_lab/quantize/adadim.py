"""AdaDim: groups along the inputs or along the outputs, whichever loses less.

Some input channels carry weights far larger than their neighbours'.  In groups along the inputs
every group has such a channel in it and takes its wide step from it.  Groups along the outputs lie
within one channel, so that large channels keep their steps to themselves; they lose where rows
differ more than channels do.

    cost    two roundings and, with calibration inputs, two products with the Hessian.
    error   the smaller of the two, relative and squared: of the product on the calibration text, or
            of the weights where there is none.
    source  Heo et al. 2023, arXiv 2309.15531
"""

import torch
from torch import Tensor

from hspec_lab.quant.forms import Form, PerInput, rounded
from hspec_lab.quantize.calibration import Inputs, output_error
from hspec_lab.scheme import Scheme


def adadim(weight: Tensor, inputs: Inputs | None, scheme: Scheme) -> Form:
    """Round a matrix to nearest along the dimension that suits it.

    Any grid whose rows have 16 bits: integer sums over inputs have no place for a scale per input.

    Args:
        weight: fp32 [R, C].
        inputs: of this matrix, or None; only the Hessian is read.
        scheme: of these weights; its group divides R and C, none stands for a whole row or column.

    Returns:
        a `Grouped`, or a `PerInput` where that loses less.

    Raises:
        ValueError: rows below 16 bits; a group that does not divide both; a Hessian that is not
            finite.
    """
    _check(weight, inputs, scheme)
    hessian = torch.eye(weight.shape[1], device=weight.device)
    if inputs is not None:
        hessian = inputs.hessian.to(weight.device)
    per_output = rounded(weight, scheme)
    per_input = PerInput(rounded(weight.T.contiguous(), scheme))
    forms = (per_output, per_input)
    errors = [output_error(weight, form.dequantized(), hessian) for form in forms]
    return per_input if errors[1] < errors[0] else per_output


def _check(weight: Tensor, inputs: Inputs | None, scheme: Scheme) -> None:
    R, C = weight.shape
    if scheme.rows != 16:
        raise ValueError(
            f"adadim may give every input a scale, which sums over {scheme.rows}-bit rows cannot "
            f"use: take a format with 16-bit rows, such as w4a16-g128, not {scheme}"
        )
    if not scheme.rounds or scheme.grid == "bitstack":
        raise ValueError(f"adadim: {scheme} has no groups: take one that has, such as w4a16-g128")
    if scheme.group and (R % scheme.group or C % scheme.group):
        raise ValueError(
            f"adadim needs groups that divide outputs and inputs: {scheme.group} against [{R}, {C}]"
        )
    if inputs is not None and not inputs.hessian.isfinite().all():
        raise ValueError("adadim: the Hessian is not finite: calibration inputs overflowed")
