"""The device that a run ran on, with as many of its numbers as somebody measured or published."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from hspec_lab.device import Device, Number, load
from hspec_lab.store import SCHEMA_VERSION, read_head_file, store_root

# as CUDA names GPUs, and the files that speak of exactly these
_FILES = {
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA B200": "b200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
}
_SAME_MACHINE = ("device", "gpu", "cpu", "threads", "cpu_capability")


def machine(environment: dict, device: Device | str | Path | None = None) -> Device:
    """The device of a run, with as many of its numbers as are known; see `limits`.

    Raises:
        ValueError: as `limits`.
    """
    kind = "cpu" if environment.get("device", "cpu") == "cpu" else "gpu"
    if device is None:
        return _own(environment, kind)
    if not isinstance(device, Device):
        path = Path(device).expanduser() / "measure.json"
        device = _measured(environment, kind, path) if path.is_file() else load(device)
    if device.kind != kind:
        raise ValueError(f"the run is of a {kind}, {device.title} is a {device.kind}")
    return device


def _own(environment: dict, kind: str) -> Device:
    """What the run itself, its GPU's name and cost curves of its machine say."""
    known = _unknown(environment, kind)
    if environment.get("gpu") in _FILES:
        known = load(_FILES[environment["gpu"]])
    if rate := environment.get("read_gb_per_s"):
        return _with_bandwidth(known, rate, "measured: the run's own environment")
    shipped = Path(str(resources.files("hspec_profiles") / "costs"))
    found = []
    for path in sorted([*shipped.glob("*/measure.json"), *store_root().glob("*/measure.json")]):
        try:
            head = read_head_file(path, SCHEMA_VERSION, "cost curves")
            there = head["conditions"]
            same = all(there.get(name) == environment.get(name) for name in _SAME_MACHINE)
            if same and head["read_gb_per_s"] > 0:
                found.append((str(there.get("date", "")), path, head["read_gb_per_s"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # curves that nobody asked for need not be sound
    if not found:
        return known
    date, path, rate = max(found)
    return _with_bandwidth(known, rate, f"measured: {path.parent.name}/{path.name}, {date}")


def _measured(environment: dict, kind: str, path: Path) -> Device:
    """A device of which cost curves say how fast it reads."""
    head = read_head_file(path, SCHEMA_VERSION, "cost curves")
    conditions, rate = head.get("conditions"), head.get("read_gb_per_s")
    if not isinstance(rate, int | float) or not rate > 0 or not isinstance(conditions, dict):
        raise ValueError(f"{path}: needs conditions and read_gb_per_s above 0, got {rate!r}")
    unlike = [n for n in _SAME_MACHINE if conditions.get(n) != environment.get(n)]
    if unlike:
        told = ", ".join(f"{n} {conditions.get(n)}, not {environment.get(n)}" for n in unlike)
        raise ValueError(f"{path}: measured on {told}")
    known = _unknown(environment, kind)
    return _with_bandwidth(known, rate, f"measured: {path}, {conditions.get('date', '')}")


def _unknown(environment: dict, kind: str) -> Device:
    threads = f"{environment.get('cpu', 'a CPU')}, {environment.get('threads', '?')} threads"
    title = environment.get("gpu") or ("a GPU" if kind == "gpu" else threads)
    capability = str(environment.get("capability", ""))
    return Device("", title, kind, capability, {}, {}, Path("run.json"))


def _with_bandwidth(device: Device, gb_per_s: float, source: str) -> Device:
    return replace(device, numbers=device.numbers | {"bandwidth": Number(1e9 * gb_per_s, source)})
