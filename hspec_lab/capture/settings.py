"""The commands of Nsight Systems and Nsight Compute for one script, from `profiles/nsight`.

Commands are lists of words and never go through a shell.
"""

import re
import tomllib
from importlib import resources
from pathlib import Path

from hspec_lab.terms import PHASES

# `gap` is what remains: no range of that name is pushed
PHASES_WITH_KERNELS = PHASES[:-1]
_NAME = re.compile(r"[a-z][a-z0-9-]*")
INSTALL = {
    "nsys": (
        "nsys is not on PATH: install NVIDIA Nsight Systems (package nsight-systems-cli of "
        "NVIDIA's CUDA repository, or developer.nvidia.com/nsight-systems)"
    ),
    "ncu": (
        "ncu is not on PATH: install NVIDIA Nsight Compute (package nsight-compute of "
        "NVIDIA's CUDA repository, or developer.nvidia.com/nsight-compute)"
    ),
}


def nsys_profile(script: list[str], report: Path, device: str, tool: str = "nsys") -> list[str]:
    """Return the command that runs a script under `nsys profile`.

    Args:
        script: the words that run it.
        report: where the trace goes, without its suffix `.nsys-rep`.
        device: cpu, cuda, cuda:1, ...: where the script decodes.
        tool: nsys, or where it is.
    """
    told = settings("nsys")
    where = "profile-cpu" if device == "cpu" else "profile-cuda"
    options = _options(told["profile"] | told[where])
    return [tool, "profile", *options, f"--output={report}", *script]


def nsys_export(report: Path, sqlite: Path, tool: str = "nsys") -> list[str]:
    """Return the command that turns a `.nsys-rep` into SQLite."""
    return [
        tool,
        "export",
        *_options(settings("nsys")["export"]),
        f"--output={sqlite}",
        str(report),
    ]


def ncu_profile(script: list[str], report: Path, phase: str, tool: str = "ncu") -> list[str]:
    """Return the command that measures the kernels of one phase of a script.

    Args:
        script: the words that run it.
        report: where the result goes, without its suffix `.ncu-rep`.
        phase: one of `PHASES_WITH_KERNELS`.
        tool: ncu, or where it is.

    Raises:
        ValueError: no such phase.
    """
    if phase not in PHASES_WITH_KERNELS:
        known = ", ".join(PHASES_WITH_KERNELS)
        raise ValueError(f"no phase {phase!r} with kernels of its own; known: {known}")
    options = [word.replace("{phase}", phase) for word in _options(settings("ncu")["profile"])]
    return [tool, *options, f"--export={report}", *script]


def settings(tool: str) -> dict[str, dict]:
    """What `profiles/nsight/<tool>.toml` says: tables of options.

    Raises:
        ValueError: the file is missing or damaged; names it.
    """
    path = Path(str(resources.files("hspec_profiles") / "nsight" / f"{tool}.toml"))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as TOML ({error})") from None


def _options(table: dict) -> list[str]:
    words = []
    for name, value in table.items():
        if not _NAME.fullmatch(name) or not isinstance(value, str | int):
            raise ValueError(
                f"an option is a name with a text, a number or true: {name} = {value!r}"
            )
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words.append(f"--{name}={value}")
    return words
