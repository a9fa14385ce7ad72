"""What flows into a matrix product while a model reads calibration text.

Algorithms ask for sums over rows, not for the rows: the Hessian of a linear layer's squared error
is the same for all of its outputs, H = E[x x^T], and with it the error of any other weights W' on
this text is known without running anything:

    E |W x - W' x|^2 = tr((W - W') H (W - W')^T)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Inputs:
    """Statistics of the rows that one unit multiplies.

    Attributes:
        hessian: fp32 [C, C], the mean of x x^T over rows.
        absmax: fp32 [C], the largest magnitude of each channel.
        mean_abs: fp32 [C].
        rows: fp32 [n <= SAMPLE_ROWS, C], a sample spread evenly over the text.
        n: rows seen.
    """

    hessian: Tensor
    absmax: Tensor
    mean_abs: Tensor
    rows: Tensor
    n: int

    def scaled(self, s: Tensor) -> "Inputs":
        """The same rows divided by s, fp32 [C]."""
        return Inputs(
            self.hessian / torch.outer(s, s),
            self.absmax / s,
            self.mean_abs / s,
            self.rows / s,
            self.n,
        )


class InputSums:
    """Gathers `Inputs` a block of rows at a time."""

    def __init__(self, n_rows: int):
        """Args: n_rows: how many will come, so that the sample can be spread over them."""
        self._every = max(1, n_rows // SAMPLE_ROWS)
        self._n, self._hessian, self._absmax, self._abs_sum = 0, 0.0, 0.0, 0.0
        self._rows: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Count rows, fp32 [n, C]."""
        self._hessian = self._hessian + rows.T @ rows
        magnitude = rows.abs()
        self._absmax = torch.maximum(torch.as_tensor(self._absmax), magnitude.amax(0))
        self._abs_sum = self._abs_sum + magnitude.sum(0)
        self._rows.append(rows[-self._n % self._every :: self._every].clone())
        self._n += len(rows)

    def result(self) -> Inputs:
        n = self._n
        rows = torch.cat(self._rows)[:SAMPLE_ROWS]
        return Inputs(self._hessian / n, self._absmax, self._abs_sum / n, rows, n)


def output_error(weight: Tensor, other: Tensor, hessian: Tensor) -> float:
    """Squared error of a product with other weights, relative to the product's own square.

    Args:
        weight, other: fp32 [R, C].
        hessian: fp32 [C, C], of the rows that come in.
    """
    difference = weight - other
    lost = float(((difference @ hessian) * difference).sum())
    whole = float(((weight @ hessian) * weight).sum())
    # a product that is always zero can lose nothing, and anything is too much
    return lost / whole if whole else float("inf") if lost else 0.0
