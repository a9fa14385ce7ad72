"""Our exports in the layout of `nsys`, read by a tool that is not ours.

    python benchmarks/crosscheck_nsys.py [--python PATH]

Exports a recorded run of the zoo with kernels that are made up (five per phase: no machine of the
tests has a GPU), lets nsys-ai read the file in an environment of its own, and compares its sums
with ours, nanosecond by nanosecond: host time of each range, time of each kernel, and time of
kernels by the path of ranges around their launches. Prints a Markdown table and fails when a
number differs. The environment is made in a temporary folder (one download, half a minute);
`--python` names an interpreter that has nsys-ai already. docs/nsight.md tells what was found.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import hspec_lab
from hspec_lab import store, timeline
from hspec_lab.timeline import KERNELS, LAUNCHES, UNKNOWN, Timeline
from hspec_lab.trace_in import read_trace
from hspec_lab.trace_out import write

READER = "nsys-ai==0.3.0"
RUN = Path(hspec_lab.__file__).parents[1] / "profiles" / "runs" / "zoo" / "hierspec"
NAMES = ("void lab::gemm<half, 4>(int)", "rms_norm", "Memcpy HtoD", "lab::attention", "Memset")
KINDS = ("kernel", "kernel", "memcpy", "kernel", "memset")
# runs in the reader's environment and prints its sums
SCRIPT = """
import json, sqlite3, sys
import nsys_ai.profile
from nsys_ai.nvtx_attribution import attribute_kernels_to_nvtx
profile = nsys_ai.profile.open(sys.argv[1], backend="sqlite")
ranges = {r["text"]: [r["count"], r["total_ns"]] for r in profile.aggregate_nvtx_ranges()}
kernels = {r["demangled"]: [r["count"], r["total_ns"]] for r in profile.aggregate_kernels(None)}
paths = {}
for row in attribute_kernels_to_nvtx(sqlite3.connect(sys.argv[1])):
    found = paths.setdefault(row["nvtx_path"], [0, 0])
    found[0] += 1
    found[1] += row["k_end"] - row["k_start"]
print(json.dumps({"ranges": ranges, "kernels": kernels, "paths": paths,
                  "missing": profile.schema.missing_required_columns()}))
"""


def with_kernels(run: Timeline) -> Timeline:
    """The same run with five kernels a phase, each launched inside it and run on one stream."""
    phases = run.ranges[run.ranges["kind"] == "phase"]
    n = len(NAMES)
    phases = phases.loc[phases.index.repeat(n)].reset_index(drop=True)
    which = np.tile(np.arange(n), len(phases) // n)
    length = phases["end_ns"] - phases["start_ns"]
    start = phases["start_ns"] + length * which // (n + 1)
    known = {"correlation": np.arange(1, len(phases) + 1)}
    called = {"start_ns": start, "end_ns": start + length // (3 * n + 3), "thread": 0}
    launches = pd.DataFrame(known | called).assign(name="cudaLaunchKernel")
    ran = {"start_ns": start + length // (2 * n + 2), "end_ns": start + length // (n + 1)}
    what = {"name": np.array(NAMES)[which], "kind": np.array(KINDS)[which], "device": 0}
    sizes = {"bytes": np.where(np.isin(which, (2, 4)), 4096, UNKNOWN), "stream": 7, "graph_node": 0}
    kernels = table_of(KERNELS, known | ran | what | sizes)
    return replace(run, launches=timeline.table(LAUNCHES, launches), kernels=kernels)


def table_of(columns: dict[str, str], values: dict) -> pd.DataFrame:
    rows = pd.DataFrame(values).sort_values("start_ns", kind="stable", ignore_index=True)
    return timeline.table(columns, rows)


def ours(run: Timeline) -> dict[str, dict[str, list[int]]]:
    """Count and nanoseconds of each range, of each kernel, and of kernels by path of ranges."""
    ranges, kernels = run.ranges, run.kernels[run.kernels["kind"] == "kernel"]
    paths = []
    for name, parent in zip(ranges["name"].tolist(), ranges["parent"].tolist(), strict=True):
        paths.append(f"{paths[parent]} > {name}" if parent >= 0 else name)
    # a launch was made inside a phase, and phases do not overlap
    leaves = ranges[ranges["kind"] == "phase"]
    launch = run.launches.set_index("correlation")["start_ns"]
    at = np.searchsorted(leaves["start_ns"], launch[kernels["correlation"]], side="right") - 1
    around = [paths[row] for row in leaves["range"].to_numpy()[at]]
    # the other tool counts no range that lasted no time
    lasting = ranges[ranges["end_ns"] > ranges["start_ns"]]
    return {
        "ranges": sums(lasting, lasting["name"]),
        "kernels": sums(kernels, kernels["name"]),
        "paths": sums(kernels, around),
    }


def sums(rows: pd.DataFrame, by) -> dict[str, list[int]]:
    lengths = (rows["end_ns"] - rows["start_ns"]).groupby(np.asarray(by, dtype=object))
    return {name: [len(part), int(part.sum())] for name, part in lengths}


def made_environment(folder: Path) -> Path:
    """A fresh environment with the reader; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", READER], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="an interpreter that has nsys-ai")
    asked = parser.parse_args()
    run = with_kernels(timeline.of_run(*store.read_run(RUN)))
    with tempfile.TemporaryDirectory() as folder:
        python = asked.python or made_environment(Path(folder) / "reader")
        path = write(run, "nsys-sqlite", Path(folder) / "run.sqlite")
        command = [python, "-c", SCRIPT, str(path)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        theirs = json.loads(said.stdout.splitlines()[-1])
        again = ours(read_trace(path))
    expected = ours(run)
    differing = 0
    print("| what | name | count | ours, ns | theirs, ns | read again, ns |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what, entries in expected.items():
        for name in sorted(entries.keys() | theirs[what].keys()):
            found = [of[what].get(name, [0, 0]) for of in (expected, theirs, again)]
            differing += not found[0] == found[1] == found[2]
            numbers = " | ".join(f"{ns:,}" for _, ns in found)
            print(f"| {what} | {name} | {found[0][0]:,} | {numbers} |")
    print(f"\ncolumns the reader misses: {theirs['missing'] or 'none'}; differing: {differing}")
    sys.exit(bool(differing or theirs["missing"]))


if __name__ == "__main__":
    main()
