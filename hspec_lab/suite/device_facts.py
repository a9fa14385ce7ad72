"""What stands beside every number: which GPU, its clocks and its limits, as found."""

import subprocess

import torch

_ASKED = {
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "max_sm_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}


def device_facts(device: str) -> dict:
    """Triton's version and, of a CUDA device: name, memory, capability, driver, clocks.

    `gpu` is None on other devices; `clocks` is empty where nvidia-smi does not answer.
    """
    import triton

    facts = {"triton": triton.__version__, "gpu": None}
    if device == "cpu":
        return facts
    found = torch.cuda.get_device_properties(torch.device(device))
    return facts | {
        "gpu": found.name,
        "memory_bytes": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "cuda": torch.version.cuda,
        "clocks": _clocks(str(getattr(found, "uuid", ""))),
    }


def _clocks(uuid: str) -> dict[str, str]:
    """What nvidia-smi says of one device, in its own words."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED.values())}"]
    command += ["--format=csv,noheader,nounits"]
    if uuid:
        command.append(f"--id=GPU-{uuid.removeprefix('GPU-')}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.strip().splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if done.returncode or len(values) != len(_ASKED):
        return {}
    return dict(zip(_ASKED, values, strict=True))
