"""A calibration: what was measured, what was fitted to it, and what that does not cover."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hspec_lab.device import Device
from hspec_lab.roofline.family import Families, family_key
from hspec_lab.roofline.shape import Shape
from hspec_lab.scheme import Scheme


@dataclass(frozen=True, eq=False)
class Observed:
    """One measured curve: us [N] of passes over `rows` [N] behind `context` tokens."""

    name: str
    shape: Shape
    scheme: Scheme
    context: int
    rows: np.ndarray
    us: np.ndarray


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was fitted, and to what.

    Attributes:
        device, kind: the name of the device's file, and what it is.
        families: with what was fitted in place of what was assumed.
        fitted: name -> (assumed, fitted), of every number that was fitted.
        errors: name, context, n, measured_us, roofline_us, error (a fraction, of measured).
        contexts: the smallest and the largest measured.
        rows: the most that were measured.
        measured: names of the models.
        used: keys of the families that were seen.
        stages: whether whole rounds were measured, not passes alone.
    """

    device: str
    kind: str
    families: Families
    fitted: dict[str, tuple[float, float]]
    errors: pd.DataFrame
    contexts: tuple[int, int]
    rows: int
    measured: tuple[str, ...]
    used: tuple[str, ...]
    stages: bool = False

    @property
    def n_measurements(self) -> int:
        return len(self.errors)

    @property
    def median_error(self) -> float:
        """Median of the absolute errors that are left, as a fraction."""
        return float(self.errors["error"].abs().median())

    @property
    def note(self) -> str:
        """What a figure says of it."""
        models = ", ".join(self.measured)
        return (
            f"roofline calibrated on {self.device} by {models}: {len(self.fitted)} numbers fitted "
            f"to {self.n_measurements} measurements, median error left {self.median_error:.1%}"
        )

    def check(self, device: Device) -> None:
        """ValueError unless it is of this device."""
        if device.name != self.device:
            raise ValueError(f"the calibration is of {self.device}, the device is {device.name}")

    def spread(self, names: Iterable[str]) -> dict[str, float]:
        """Relative errors by `StageCosts` attribute: the median that is left, for all alike."""
        return dict.fromkeys(names, self.median_error)

    def warnings(self, found: dict[str, tuple[Shape, Scheme]], context: int) -> tuple[str, ...]:
        """What lies outside of what was measured: contexts, families, models."""
        told, (low, high) = [], self.contexts
        if not self.stages:
            told.append("passes alone were measured: choosing, verdict, commit and gap are assumed")
        if not low <= context <= high:
            measured = f"{low}" if low == high else f"{low} to {high}"
            told.append(f"context {context} is extrapolated, measured at {measured}")
        for level, (shape, scheme) in found.items():
            for key in {family_key(part, self.kind): None for part in (scheme, scheme.output)}:
                if key not in self.used:
                    told.append(f"{level}: no {key} kernel was measured, its shares are assumed")
            if not any(name.rpartition("@")[0] == shape.name for name in self.measured):
                told.append(self._of_other_size(f"{level}: {shape.name}", scheme))
        return tuple(told)

    def _of_other_size(self, model: str, scheme: Scheme) -> str:
        told = f"{model} was not measured, extrapolated from other sizes"
        share = self.families.of(scheme, self.kind).bandwidth_share
        if share > 1:
            told += f"; the measured weights came from a cache, at {share:.1f} of the bandwidth"
        return told
