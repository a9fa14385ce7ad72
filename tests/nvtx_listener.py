"""Runs a Python program under an NVTX tool of our own and reads what the tool heard.

`nvtx_listener.c` is that tool: a shared object that NVTX loads because an environment variable
names it, as it would load Nsight Systems.  Only a C compiler is needed, no header and no GPU.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

SOURCE = Path(__file__).with_suffix(".c")
COMPILERS = ("cc", "gcc", "clang")


def build_listener(folder: Path) -> Path | None:
    """Compile the tool into `folder`; None where there is no C compiler or no Linux.

    Raises:
        RuntimeError: the compiler refuses the source.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or sys.platform != "linux":
        return None
    listener = folder / "nvtx_listener.so"
    command = [compiler, "-std=c11", "-O2", "-Wall", "-shared", "-fPIC", "-o", listener, SOURCE]
    done = subprocess.run([*map(str, command), "-lpthread"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{compiler} refused {SOURCE.name}: {done.stderr.strip()[-500:]}")
    return listener


def listener_or_skip(folder: Path) -> Path:
    """The tool, for a test.

    Raises:
        SkipTest: it or the `nvtx` package cannot be had here.
    """
    if find_spec("nvtx") is None:
        raise SkipTest("the nvtx package is not installed")
    listener = build_listener(folder)
    if listener is None:
        raise SkipTest("no C compiler on Linux to build an NVTX tool with")
    return listener


def environment(listener: Path | None, log: Path) -> dict[str, str]:
    """Environment variables of a process that the tool listens to; None: nobody listens."""
    inherited = {n: v for n, v in os.environ.items() if n != "NVTX_INJECTION64_PATH"}
    tool = {"NVTX_INJECTION64_PATH": str(listener), "HSPEC_NVTX_LOG": str(log)}
    return inherited | {"OMP_NUM_THREADS": "1"} | (tool if listener else {})


def run_heard(program: str, listener: Path, folder: Path, *arguments: str) -> list[dict]:
    """Run `python -c program *arguments` under the tool and return the calls that it heard.

    Raises:
        RuntimeError: the program failed.
    """
    log = folder / "heard.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(listener, log),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"the program under the listener failed: {done.stderr[-2000:]}")
    return calls_of(log)


def calls_of(log: Path) -> list[dict]:
    """The calls in a log, in order, categories by name and numbers in payloads as numbers."""
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    names = {(c["domain"], c["category"]): c["name"] for c in calls if c["call"] == "category"}
    for call in calls:
        if "payload" in call:
            call["category"] = names.get((call["domain"], call["category"]), call["category"])
            call["payload"] = _plain(call["payload"])
    return calls


def ranges_of(calls: list[dict], domain: str) -> list[dict]:
    """The pushed ranges of a domain in the order in which they began, with `depth` and `end_ns`.

    Raises:
        ValueError: a range was never popped, or something popped that was never pushed.
    """
    found, open_on = [], {}
    for call in calls:
        if call["domain"] != domain or call["call"] not in ("push", "pop"):
            continue
        stack = open_on.setdefault(call["thread"], [])
        if call["call"] == "push":
            found.append(call | {"depth": len(stack)})
            stack.append(found[-1])
        elif stack:
            stack.pop()["end_ns"] = call["ns"]
        else:
            raise ValueError(f"a pop at {call['ns']} ns that nothing pushed")
    left = [entry["message"] for stack in open_on.values() for entry in stack]
    if left:
        raise ValueError(f"ranges that nothing popped: {', '.join(left)}")
    return found


def _plain(payload):
    """Without the structs of one number in which NVTX for Python wraps each field of a struct."""
    if not isinstance(payload, dict):
        return payload
    return {name: _number(value) for name, value in payload.items()}


def _number(value):
    while isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value
