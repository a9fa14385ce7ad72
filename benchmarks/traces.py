"""Traces in and out: a large torch.profiler file imported, a run of 1,000 rounds exported.

The file is invented in the layout of torch.profiler: an operator for every other kernel, a launch
and two arrows for each, an annotated round for every fifty.  Reading happens in a fresh process,
whose largest memory is what the system says; `json.loads` of the same text stands beside it.

    python benchmarks/traces.py [--megabytes 200] [--repeats 3]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hspec_lab import store, timeline, trace_out

RUN = Path(__file__).parents[1] / "profiles" / "runs" / "zoo" / "hierspec"
_FIRST = """{
  "schemaVersion": 1,
  "deviceProperties": [],
  "displayTimeUnit": "ms",
  "baseTimeNanoseconds": 1790857026000000000,
  "traceEvents": ["""
_LAST = (
    '\n  {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 0}\n  ],'
)
_LAST += '"traceName": "trace.json" }\n'
_EVENT = """
  {{
    "ph": "X", "cat": "{}", "name": "{}", "pid": {}, "tid": {},
    "ts": {}.{:03}, "dur": {}.217,
    "args": {{
      {}
    }}
  }},"""
_ARROW = """
  {{
    "ph": "{}", "id": {}, "pid": {}, "tid": {}, "ts": {}.{:03},
    "cat": "ac2g", "name": "ac2g"{}
  }},"""
_OF_KERNEL = """"External id": {0},
      "queued": 0, "device": 0, "context": 1,
      "stream": 7, "correlation": {0},
      "registers per thread": 230,
      "shared memory": 98304,
      "blocks per SM": 0.477273,
      "warps per SM": 1.909091,
      "grid": [14, 9, 1],
      "block": [128, 1, 1],
      "est. achieved occupancy %": 6, "graph id": 0, "graph node id": 0"""
_GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_{}_s16816gemm_bf16_64x64_32x6_tn_align8>(Params)"
# one reader per process: its seconds, its largest memory in bytes, and what it read
_READERS = {
    "read_trace": "from hspec_lab.trace_in import read_trace\nread = read_trace",
    "json.loads": "import json\ndef read(path):\n    with open(path) as file:\n"
    "        return json.loads(file.read())",
}
_TIMED = """
import json, resource, sys, time
{}
start = time.perf_counter()
found = read(sys.argv[1])
seconds = time.perf_counter() - start
count = len(found.kernels) if hasattr(found, "kernels") else len(found["traceEvents"])
largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({{"seconds": seconds, "bytes": largest, "count": count}}))
"""


def events() -> Iterator[str]:
    """An endless trace, a kernel at a time."""
    number, ns = 0, 4_424_056_236_402_014
    while True:
        number, ns = number + 1, ns + 3777
        at = divmod(ns, 1000)
        ids = f'"External id": {number}'
        if number % 50 == 1:
            yield _EVENT.format("user_annotation", "hspec_lab:round", 42, 42, *at, 180, ids)
        if number % 2:
            more = (
                f'{ids}, "Record function id": 0, "Sequence number": {number}, "Ev Idx": {number}'
            )
            yield _EVENT.format("cpu_op", f"aten::op{number % 40}", 42, 42, *at, 2, more)
        called = f'{ids}, "cbid": 211, "correlation": {number}'
        yield _EVENT.format("cuda_runtime", "cudaLaunchKernel", 42, 42, *at, 2, called)
        yield _ARROW.format("s", number, 42, 42, *at, "")
        name = _GEMM.format(number % 60)
        yield _EVENT.format("kernel", name, 0, 7, *at, 3, _OF_KERNEL.format(number))
        yield _ARROW.format("f", number, 0, 7, *at, ', "bp": "e"')


def write_trace(path: Path, n_bytes: int) -> None:
    """Write a trace of so many bytes, roughly."""
    size = 0
    with path.open("w", encoding="ascii") as file:
        file.write(_FIRST)
        for event in events():
            size += file.write(event)
            if size > n_bytes:
                break
        file.write(_LAST)


def timed_reading(reader: str, path: Path) -> dict:
    """Seconds, largest memory and count of one reader in a process of its own."""
    program = _TIMED.format(_READERS[reader])
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def imports(n_bytes: int, repeats: int) -> dict[str, dict]:
    """Medians per reader; they take turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        write_trace(path, n_bytes)
        turns = [{name: timed_reading(name, path) for name in _READERS} for _ in range(repeats)]
    return {
        name: {key: float(np.median([turn[name][key] for turn in turns])) for key in turns[0][name]}
        for name in _READERS
    }


def exports(n_rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds per format, of the first rounds of a recorded run."""
    whole = timeline.of_run(*store.read_run(RUN))
    last = whole.ranges.query("kind == 'round'")["end_ns"].nsmallest(n_rounds).iloc[-1]
    few = timeline.Timeline(timeline.nested(whole.ranges[whole.ranges["end_ns"] <= last]))
    seconds = {to: [] for to in trace_out.FORMATS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            for to, times in seconds.items():
                start = time.perf_counter()
                trace_out.write(few, to, Path(folder) / f"{turn}-{trace_out.default_name('r', to)}")
                times.append(time.perf_counter() - start)
    return {to: float(np.median(times)) for to, times in seconds.items()}


def report(repeats: int = 3, megabytes: int = 200, n_rounds: int = 1000) -> dict:
    """Print both tables; the numbers behind them."""
    read = imports(megabytes * 1_000_000, repeats)
    wrote = exports(n_rounds, repeats)
    print(f"a torch.profiler trace of {megabytes} MB (wanted for 200: < 20 s, < 1.5 GB)")
    for name, found in read.items():
        print(f"  {name:14}{found['seconds']:7.2f} s{found['bytes'] / 1e9:8.2f} GB")
    print(f"a run of {n_rounds} rounds exported (wanted < 2 s)")
    for name, seconds in wrote.items():
        print(f"  {name:14}{seconds:7.2f} s")
    return {"imports": read, "exports": wrote}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    args = parser.parse_args()
    report(args.repeats, args.megabytes)
