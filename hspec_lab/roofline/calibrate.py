"""Fits what a device's kernels reach to what was measured on it.

    fitted      launch_us and, where there is one, mask_us of the device; bandwidth_share and
                peak_share of every family seen
    objective   log(roofline / measured), Huber's loss, and each number's distance from what is
                assumed without measuring, a factor of e weighing as one standard deviation

Where curves cannot tell two numbers apart, as reading and launching of one model alone, the latter
keeps them near their assumed ratio; predictions for other sizes of model then lean on it.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from hspec_lab.config import split_model
from hspec_lab.device import Device
from hspec_lab.roofline.calibration import Calibration, Observed
from hspec_lab.roofline.family import Families, families_for, family_key
from hspec_lab.roofline.head import draft_us
from hspec_lab.roofline.shape import split_reference
from hspec_lab.roofline.work import Work, launches_us, works
from hspec_lab.scheme import parse
from hspec_lab.stages import StageCosts

_PRIOR = 1.0  # standard deviation of a fitted number's logarithm
_HUBER = 1.345
_SMALLEST_NOISE = 0.005
_STEPS = 60


def calibrate(
    device: Device,
    measured: "pd.DataFrame | StageCosts | Iterable[StageCosts]",
    families: Families | None = None,
) -> Calibration:
    """Fit shares and launches to measured curves.

    Args:
        measured: a table of `store.COSTS`, or what stages cost; those also give verdict, commit,
            gap and what a head's pass costs beside its products.
        families: what is assumed to begin with; None: `families_for(device)`.

    Raises:
        ValueError: nothing measured, several devices in one table, costs that were not measured,
            or a scheme or peak that the device has no kernel or number for.
    """
    families = families or families_for(device)
    stages = [measured] if isinstance(measured, StageCosts) else []
    if isinstance(measured, pd.DataFrame):
        curves = _of_table(measured)
    else:
        stages = stages or list(measured)
        curves = [curve for costs in stages for curve in _of_stages(costs)]
    if not curves:
        raise ValueError("nothing measured: no curve to calibrate by")
    found = _Fit(device, curves, families).run()
    rest = _rest(device, stages, found.families)
    families = replace(found.families, **rest, note=found.note)
    return replace(found, families=families, stages=bool(stages))


def _of_table(table: pd.DataFrame) -> list[Observed]:
    devices = sorted(set(table["device"]))
    if len(devices) > 1:
        raise ValueError(f"one device is calibrated at a time, the table has {', '.join(devices)}")
    curves = []
    for (where, format, context), curve in table.groupby(
        ["model", "scheme", "context"], sort=False
    ):
        shape, scheme = split_reference(f"{where}@{format}")
        rows, us = curve["n"].to_numpy(), curve["time_us"].to_numpy(float)
        name = f"{shape.name}@{format}"
        curves.append(Observed(name, shape, scheme, int(context), rows, us))
    return curves


def _of_stages(costs: StageCosts) -> list[Observed]:
    if costs.origin != "measured":
        raise ValueError(f"calibrate by measured costs, these are {costs.origin}: {costs.note}")
    curves = []
    for reference, times in (
        (costs.target, costs.target_us),
        (costs.intermediate, costs.intermediate_us),
    ):
        if reference is not None:
            rows = np.flatnonzero(np.isfinite(times) & (times > 0))
            shape, scheme = split_reference(reference)
            name = f"{shape.name}@{split_model(reference)[1]}"
            curves.append(Observed(name, shape, scheme, costs.context, rows, times[rows]))
    return [curve for curve in curves if len(curve.rows)]


def _rest(device: Device, stages: list[StageCosts], families: Families) -> dict[str, float]:
    """What measured stages say beside passes, medians over them; nothing without any."""
    found: dict[str, list[float]] = {"accept_us": [], "commit_us": [], "gap_us": [], "head_us": []}
    for costs in stages:
        if costs.accept_us is not None:
            found["accept_us"].append(float(np.nanmedian(costs.accept_us)))
        found["commit_us"].append(costs.commit_us)
        found["gap_us"].append(costs.gap_us)
        found["head_us"] += _head_rest(device, costs, families)
    return {name: max(0.0, float(np.median(values))) for name, values in found.items() if values}


def _head_rest(device: Device, costs: StageCosts, families: Families) -> list[float]:
    """us by which each of a head's measured passes exceeds the roofline's, one value a depth."""
    depths = np.flatnonzero(np.isfinite(costs.draft_us) & (costs.draft_us > 0))
    if costs.head is None or not len(depths):
        return []
    shape, scheme = split_reference(costs.intermediate or costs.target)
    head = parse(costs.head.rpartition("@")[2])
    model = draft_us(
        shape, head, scheme.output, depths[-1], costs.top_k, costs.context, device, families
    )
    return ((costs.draft_us[depths] - model[depths]) / depths).tolist()


class _Fit:
    """Gauss-Newton over logarithms of launch_us and of each family's shares."""

    def __init__(self, device: Device, curves: list[Observed], families: Families):
        self.device, self.curves, self.families = device, curves, families
        self.works = [
            works(c.shape, c.scheme, c.rows, c.context, device.kind, families) for c in curves
        ]
        self.ceilings = [[w.ceilings_us(device) for w in found[:-1]] for found in self.works]
        keys = {
            family_key(part, device.kind) for c in curves for part in (c.scheme, c.scheme.output)
        }
        self.keys = sorted(keys)
        self.log_us = np.log(np.concatenate([c.us for c in curves]))
        self.names = ["launch_us"] + ["mask_us"] * bool(families.mask_us)
        self.n_shared = len(self.names)
        for key in self.keys:
            self.names += [f"{key}.bandwidth_share", f"{key}.peak_share"]

    def run(self) -> Calibration:
        x = np.zeros(len(self.names))
        for _ in range(_STEPS):
            step = self._step(x)
            x = x + np.clip(step, -0.5, 0.5)
            if np.abs(step).max() < 1e-6:
                break
        return self._calibration(x)

    def _step(self, x: np.ndarray) -> np.ndarray:
        base, h = self._residuals(x), 1e-5
        jacobian = np.stack(
            [(self._residuals(x + h * unit) - base) / h for unit in np.eye(len(x))], axis=1
        )
        noise = max(_SMALLEST_NOISE, 1.4826 * float(np.median(np.abs(base - np.median(base)))))
        weight = np.minimum(1.0, _HUBER * noise / np.maximum(np.abs(base), 1e-12)) / noise**2
        normal = jacobian.T @ (weight[:, None] * jacobian) + np.eye(len(x)) / _PRIOR**2
        return -np.linalg.solve(normal, jacobian.T @ (weight * base) + x / _PRIOR**2)

    def _residuals(self, x: np.ndarray) -> np.ndarray:
        """log(roofline / measured) of all measurements, x being logarithms of factors."""
        return np.log(self._times(np.exp(x))) - self.log_us

    def _times(self, factor: np.ndarray) -> np.ndarray:
        """us of all measurements, with launches and shares times these factors."""
        times = []
        shared = self._shared(factor)
        for curve, found, ceilings in zip(self.curves, self.works, self.ceilings, strict=True):
            us = launches_us(found[-1], curve.shape.layers, curve.rows, shared)
            for work, parts in zip(found[:-1], ceilings, strict=True):
                us = us + _sum(work, parts / self._shares(work, factor)[:, None])
            times.append(us)
        return np.concatenate(times)

    def _shared(self, factor: np.ndarray) -> Families:
        names = self.names[: self.n_shared]
        values = {
            name: float(getattr(self.families, name) * by)
            for name, by in zip(names, factor, strict=False)
        }
        return replace(self.families, **values)

    def _shares(self, work: Work, factor: np.ndarray) -> np.ndarray:
        """By what a work's reading, multiplying and unpacking are divided, [3]."""
        for i, key in enumerate(self.keys):
            if work.family is self.families.products[key]:
                bandwidth, peak = factor[self.n_shared + 2 * i :][:2]
                return np.array([bandwidth, peak, peak])
        return np.ones(3)

    def _calibration(self, x: np.ndarray) -> Calibration:
        factor = np.exp(x)
        families, n = self._shared(factor), self.n_shared
        fitted = {
            name: (getattr(self.families, name), getattr(families, name)) for name in self.names[:n]
        }
        for name, by in zip(self.names[n:], factor[n:], strict=True):
            key, _, share = name.partition(".")
            assumed = getattr(self.families.products[key], share)
            fitted[name] = (assumed, float(assumed * by))
            families = families.changed(key, **{share: float(assumed * by)})
        contexts = [c.context for c in self.curves]
        return Calibration(
            device=self.device.name,
            kind=self.device.kind,
            families=families,
            fitted=fitted,
            errors=self._errors(factor),
            contexts=(min(contexts), max(contexts)),
            rows=int(max(c.rows.max() for c in self.curves)),
            measured=tuple(dict.fromkeys(c.name for c in self.curves)),
            used=tuple(self.keys),
        )

    def _errors(self, factor: np.ndarray) -> pd.DataFrame:
        times, us = self._times(factor), np.exp(self.log_us)
        sizes = [len(c.rows) for c in self.curves]
        columns = {
            "name": np.repeat([c.name for c in self.curves], sizes),
            "context": np.repeat([c.context for c in self.curves], sizes),
            "n": np.concatenate([c.rows for c in self.curves]),
            "measured_us": us,
            "roofline_us": times,
            "error": times / us - 1,
        }
        return pd.DataFrame(columns)


def _sum(work: Work, ceilings: np.ndarray) -> np.ndarray:
    longest = ceilings.max(axis=0)
    return longest + (1 - work.family.overlap) * (ceilings.sum(axis=0) - longest)
