"""What verifying n tokens costs, as tables: measured here, modelled elsewhere; no torch.

The *width* of a scheme on a device is the last n whose pass takes at most 1.5 times as long as a
pass over one token: as many tokens as a drafter may hand over before the target makes it pay.

curves = open_curves("zoo")
curves.summary(), attained(curves), widths(("h100", "rtx-4090"), "shape:llama-3-8b", FORMATS_SHOWN)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from hspec_lab.cost import relative
from hspec_lab.curve import knee, plateaus
from hspec_lab.device import Device, known, load
from hspec_lab.roofline import calibrate, families_for, pass_table, pass_us, split_reference
from hspec_lab.store import read_cost

FACTOR = 1.5
FORMATS_SHOWN = ("w16a16", "w8a8", "w4a16-g128", "w4a8-g128")
MAX_WIDTH = 512
_CURVE = ["model", "scheme"]


@dataclass(frozen=True, eq=False)
class Curves:
    """Measured cost curves of one folder.

    Attributes:
        name: what the folder is called.
        head: what `measure.json` says.
        table: see `store.COSTS`, with `ratio`, time over the one-token time.
    """

    name: str
    head: dict
    table: pd.DataFrame

    @property
    def is_cold(self) -> bool:
        return bool(self.table["cold"].all())

    @cached_property
    def device(self) -> Device:
        """What ships of the device where this was measured; ValueError where nothing does."""
        cpu = str(self.head["conditions"].get("cpu"))
        kind = cpu.split()[-1].lower()
        name = next((name for name in known() if kind in name), None)
        if name is None:
            raise ValueError(f"no device file of {cpu!r} ships, there are {', '.join(known())}")
        return load(name)

    def caption(self) -> dict[str, str]:
        """Keyword arguments of a figure: origin and note."""
        found = self.head["conditions"]
        context = ", ".join(map(str, sorted(set(self.table["context"]))))
        said = [self.table["device"].iloc[0], f"{context} tokens stored"]
        said += [f"torch {found['torch']}", found["date"][:10]]
        return {"origin": self.head["kind"], "note": ", ".join(said)}

    def summary(self) -> pd.DataFrame:
        """One row a curve: t1_us, weight_mb, gb_per_s at n = 1, T(16) and T(64), width, flat.

        `flat` are stretches over which time hardly grows, first and last n.
        """
        rows = [self._row(*key, curve) for key, curve in self.table.groupby(_CURVE, sort=False)]
        return pd.DataFrame(rows)

    def _row(self, model: str, scheme: str, curve: pd.DataFrame) -> dict:
        ratio = curve.set_index("n")["ratio"]
        t1_us = float(curve.loc[curve["n"] == 1, "time_us"].iloc[0])
        n_bytes = self.head["weight_bytes"][f"{model}@{scheme}"]
        flat = ", ".join(f"{first} to {last}" for first, last in plateaus(ratio))
        numbers = {"t1_us": t1_us, "weight_mb": n_bytes / 1e6, "gb_per_s": n_bytes / t1_us / 1e3}
        grows = {f"T({n}) / T(1)": float(ratio[n]) for n in (16, 64) if n in ratio.index}
        cache = "cold" if self.is_cold else "warm"
        named = {"model": model, "scheme": scheme, "cache": cache}
        return named | numbers | grows | {"width": knee(ratio, FACTOR), "flat": flat or "nowhere"}


def summaries(*curves: Curves) -> pd.DataFrame:
    """The rows of several `Curves.summary`, those of one model and scheme next to each other."""
    table = pd.concat([one.summary() for one in curves], ignore_index=True)
    models = list(dict.fromkeys(zip(table["model"], table["scheme"], strict=True)))
    order = [models.index(key) for key in zip(table["model"], table["scheme"], strict=True)]
    return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def open_curves(folder: Path | str) -> Curves:
    """Read measured curves.

    Args:
        folder: where; or the name of one that ships with the package: zoo, zoo-cold.

    Raises:
        ValueError: there is none, or a file of it is missing, damaged or of another schema.
    """
    where = Path(folder)
    if where.name == str(folder) and not where.exists():
        where = Path(str(resources.files("hspec_profiles") / "costs" / str(folder)))
    head, table = read_cost(where)
    return Curves(where.name, head, relative(table))


def attained(curves: Curves, rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)) -> pd.DataFrame:
    """What measured passes reached, against the roof of the device they ran on.

    Args:
        rows: n of each curve that become points.

    Returns:
        one row a point: model, scheme, n, intensity (operations a byte), rate (operations a
        second), operand, roof (what device and intensity allow at best), share (rate over roof).
        Operations and bytes are counted from the model's shape; `attrs` as `Curves.caption`.
    """
    device, parts = curves.device, []
    families = families_for(device)
    for (model, scheme), curve in curves.table.groupby(_CURVE, sort=False):
        shape, parsed = split_reference(f"{model}@{scheme}")
        times = curve.set_index("n")["time_us"]
        found = [n for n in rows if n in times.index]
        counted = pass_table(shape, parsed, found, int(curve["context"].iloc[0]), device)
        sums = counted.groupby("n")[["bytes", "flops"]].sum()
        operand = families.of(parsed, device.kind).operand
        intensity = sums["flops"] / sums["bytes"]
        part = pd.DataFrame(
            {"n": found, "intensity": intensity, "rate": sums["flops"] / times[found] * 1e6}
        ).assign(model=model, scheme=scheme, operand=operand)
        part["roof"] = np.minimum(device.peak(operand), device.bytes_per_s * part["intensity"])
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table["share"] = table["rate"] / table["roof"]
    table.attrs = curves.caption()
    return table


def left_by_roofline(curves: Curves) -> pd.DataFrame:
    """How far the roofline, fitted to curves, stays off them.

    Returns:
        one row a curve: name, n_passes, median and worst absolute relative error; `attrs` with
        the note that says what was fitted.
    """
    found = calibrate(curves.device, curves.table)
    errors = found.errors.assign(error=found.errors["error"].abs())
    by_curve = errors.groupby("name", sort=False)["error"].agg(["size", "median", "max"])
    table = by_curve.rename(columns={"size": "n_passes", "max": "worst"}).reset_index()
    table.attrs = {"note": found.note}
    return table


def modelled(
    device: str, model: str, formats: Sequence[str] = FORMATS_SHOWN, *, context: int = 512
) -> pd.DataFrame:
    """Curves of a device by its roofline, n = 1..128, in the form of measured ones.

    Formats for which the device has no peak are left out; `attrs["note"]` says which.
    """
    found, rows, parts = load(device), np.arange(1, 129), []
    for format in formats:
        shape, scheme = split_reference(f"{model}@{format}")
        try:
            us = pass_us(shape, scheme, rows, context, found)
        except ValueError:
            continue
        parts.append(pd.DataFrame({"scheme": format, "n": rows, "time_us": us}))
    if not parts:
        raise ValueError(f"{found.title} has no peak for any of {', '.join(formats)}")
    table = pd.concat(parts, ignore_index=True)
    named = {"device": found.title, "model": model, "context": context}
    for place, (name, value) in enumerate(named.items()):
        table.insert(min(place, 2), name, value)
    note = f"{found.title}, {model}, {context} tokens stored, {families_for(found).note}"
    missing = [format for format in formats if format not in set(table["scheme"])]
    table.attrs = {"origin": "roofline", "note": note}
    if missing:
        table.attrs["note"] += f"; no peak for {', '.join(missing)}"
    return table


def widths(
    devices: Sequence[str],
    model: str,
    formats: Sequence[str] = FORMATS_SHOWN,
    *,
    context: int = 512,
) -> pd.DataFrame:
    """The width of each scheme on each device by its roofline, looked for up to 512 tokens.

    Returns:
        device (title), format, t1_us, width, bound_by (what most of the time of the pass one token
        wider waits for); rows without a peak left out.  `attrs` for a figure.
    """
    rows, found = np.arange(1, MAX_WIDTH + 1), []
    for name in devices:
        device = load(name)
        for format in formats:
            shape, scheme = split_reference(f"{model}@{format}")
            try:
                us = pass_us(shape, scheme, rows, context, device)
            except ValueError:
                continue
            width = int(rows[us <= FACTOR * us[0]].max())
            beyond = pass_table(shape, scheme, [min(width + 1, MAX_WIDTH)], context, device)
            bound = beyond.groupby("bound_by")["us"].sum().idxmax()
            numbers = {"t1_us": us[0], "width": width, "bound_by": bound}
            found.append({"device": device.title, "format": format} | numbers)
    table = pd.DataFrame(found)
    note = f"{model}, {context} tokens stored, {families_for(load(devices[0])).note}"
    table.attrs = {"origin": "roofline", "note": note}
    return table


def take_away(curves: Curves, table: pd.DataFrame) -> str:
    """One sentence with numbers and their condition, as Markdown.

    Args:
        curves: with a target at fp32 and at 4 bits.
        table: from `widths`.
    """
    here = curves.summary().set_index(_CURVE)["width"]
    cells = table.pivot(index="device", columns="format", values="width")
    narrow, wide = (cells[format].dropna().astype(int) for format in ("w4a16-g128", "w16a16"))
    return (
        f"Within {FACTOR:g} one-token passes the 4-bit target verifies **"
        f"{here['zoo:target', 'w4a16-g128']} tokens** and the fp32 one "
        f"**{here['zoo:target', 'fp32']}** (measured on {curves.caption()['note']}); by the "
        f"roofline of {len(cells)} GPUs a 4-bit model of 8 billion parameters verifies "
        f"{narrow.min()} to {narrow.max()} and a 16-bit one {wide.min()} to {wide.max()}, so a "
        f"tree of 60 nodes is too large for 4 bits on {(narrow < 60).sum()} of them and for 16 "
        f"bits on {(wide < 60).sum()}."
    )
