"""What devices can do at best: `profiles/devices/*.toml`, each number with its unit and source.

Peaks are dense, without sparsity, and of a GPU's matrix units where it has them; 16-bit ones add up
in fp32.  What the file does not say is not known, and asking for it is an error that names it.
"""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

OPERANDS = ("fp32", "fp16", "fp8", "int8", "int4", "fp4")
KINDS = ("gpu", "cpu")
# threads of a warp, and warps of which each multiprocessor issues an instruction a cycle
_LANES = 4 * 32
_UNITS = {
    "bandwidth": {"GB/s": 1e9, "TB/s": 1e12},
    "memory": {"GB": 1e9, "GiB": 2.0**30},
    "cache": {"MB": 1e6, "MiB": 2.0**20},
    "processors": {"multiprocessors": 1.0, "threads": 1.0},
    "clock": {"MHz": 1e6, "GHz": 1e9},
    "power": {"W": 1.0},
}
_RATES = {"GFLOP/s": 1e9, "TFLOP/s": 1e12, "TOP/s": 1e12, "GOP/s": 1e9}


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a device, in bytes, operations, hertz or watts (a second), and its source."""

    value: float
    source: str


@dataclass(frozen=True, eq=False)
class Device:
    """One device.

    Attributes:
        name: its file's name.
        title: as figures name it.
        kind: gpu or cpu.
        architecture: 8.0, 9.0, ... of a GPU: the kernels' code differs; empty elsewhere.
        numbers: bandwidth (bytes/s), memory, cache (bytes), processors, clock (1/s), power (W).
        peaks: operations a second by operand, a multiplication and an addition being two.
        path: where all this was read.
    """

    name: str
    title: str
    kind: str
    architecture: str
    numbers: dict[str, Number]
    peaks: dict[str, Number]
    path: Path

    def peak(self, operand: str) -> float:
        """Operations a second with operands of a type; ValueError where the file has none."""
        if operand not in self.peaks:
            raise ValueError(
                f"{self.path}: no peaks.{operand}, which is needed; "
                f"it has {', '.join(self.peaks) or 'no peaks'}"
            )
        return self.peaks[operand].value

    def number(self, key: str) -> float:
        """One of `numbers`; ValueError where the file has none."""
        if key not in self.numbers:
            raise ValueError(f"{self.path}: no {key}, which is needed")
        return self.numbers[key].value

    @property
    def bytes_per_s(self) -> float:
        """Of its memory, reading."""
        return self.number("bandwidth")

    @property
    def memory_bytes(self) -> float:
        return self.number("memory")

    @property
    def issued_per_s(self) -> float:
        """Instructions a second over all threads of a GPU."""
        if self.kind != "gpu":
            raise ValueError(f"{self.path}: only of a GPU is it known how many instructions issue")
        return self.number("processors") * _LANES * self.number("clock")


def known() -> list[str]:
    """Names of the devices that ship."""
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def load(name: str | Path) -> Device:
    """A device that ships, by name, or one's own by the path of its TOML file.

    Raises:
        ValueError: no such device, or a file that is not a device's; says what would be right.
    """
    shipped = _shipped() / f"{name}.toml"
    path = shipped if shipped.is_file() else Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"no device {str(name)!r}; known: {', '.join(known())}, or a TOML file")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as TOML ({error})") from None
    return _checked(found, path)


def _shipped() -> Path:
    return Path(str(resources.files("hspec_profiles") / "devices"))


def _checked(found: dict, path: Path) -> Device:
    """The device that a file's tables say; ValueError at the first that is not right."""
    title, kind = found.pop("title", None), found.pop("kind", None)
    architecture, peaks = found.pop("architecture", ""), found.pop("peaks", {})
    if not isinstance(title, str) or not title:
        raise ValueError(f"{path}: title must be a device's name, got {title!r}")
    if kind not in KINDS:
        raise ValueError(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "gpu" and not str(architecture).replace(".", "").isdigit():
        raise ValueError(f"{path}: architecture must be like '9.0', got {architecture!r}")
    if not isinstance(peaks, dict):
        raise ValueError(f"{path}: peaks must be tables such as [peaks.fp16], got {peaks!r}")
    numbers = {key: _number(path, key, key, _UNITS, entry) for key, entry in found.items()}
    rates = dict.fromkeys(OPERANDS, _RATES)
    by_type = {key: _number(path, f"peaks.{key}", key, rates, at) for key, at in peaks.items()}
    return Device(path.stem, title, kind, str(architecture), numbers, by_type, path)


def _number(path: Path, where: str, key: str, units: dict, entry) -> Number:
    """One table `value, unit, source`, in base units."""
    if key not in units:
        raise ValueError(f"{path}: unknown {where}; known: {', '.join(units)}")
    if not isinstance(entry, dict) or not {"value", "unit", "source"} <= set(entry):
        raise ValueError(f"{path}: {where} must be a table with value, unit and source")
    value, unit, source = entry["value"], entry["unit"], entry["source"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise ValueError(f"{path}: {where}.value must be a number above 0, got {value!r}")
    if unit not in units[key]:
        raise ValueError(f"{path}: {where}.unit must be {' or '.join(units[key])}, got {unit!r}")
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{path}: {where}.source must say where the number is from")
    return Number(float(value) * units[key][unit], source)
