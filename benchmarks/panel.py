"""What a move of the Explorer costs in the kernel: time until everything is sent, and memory.

    python benchmarks/panel.py [--moves 1000]

Drags the tree size over the recordings that ship (10,208 positions), paints every view after each
move as the panel does, and prints percentiles, the bytes sent and how the process has grown.  What
a browser needs on top is measured in a browser.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from hspec_lab import Explorer
from hspec_lab.widgets.pictures import VIEWS

_SENT = ["_py2js_update", "_py2js_addTraces", "_py2js_restyle", "_py2js_relayout"]


def main(n_moves: int) -> None:
    """Open a panel on an empty store, move, print."""
    start = time.perf_counter()
    panel = Explorer(tempfile.mkdtemp())
    opened_s = time.perf_counter() - start
    panel.wait()
    print(f"opened in {opened_s:.2f} s, all views filled after {time.perf_counter() - start:.2f} s")
    sent = _listen(panel)
    took_ms, before = [], _resident_mb()
    for number in range(n_moves):
        panel.controls.tree_size.value = 2 + number % 60
        began = time.perf_counter()
        panel._soon.flush()
        took_ms.append(1e3 * (time.perf_counter() - began))
    median, p95, most = np.percentile(took_ms, [50, 95, 100])
    print(f"{n_moves} moves: median {median:.1f} ms, 95 % {p95:.1f} ms, longest {most:.1f} ms")
    for view in VIEWS:
        print(f"  {view}: {sent.get(view, 0) / n_moves / 1e3:.1f} kB a move")
    print(f"memory grew by {_resident_mb() - before:.1f} MB to {_resident_mb():.0f} MB")
    panel.close()


def _listen(panel: Explorer) -> dict[str, int]:
    """Bytes sent to the figures, by view, counted from now on."""
    sent: dict[str, int] = {}

    def count(view: str, message) -> None:
        sent[view] = sent.get(view, 0) + len(str(message or ""))

    for view in VIEWS:
        figure = panel.views[view].figure
        figure.observe(lambda change, view=view: count(view, change["new"]), _SENT)
    return sent


def _resident_mb() -> float:
    """Memory of this process; on Linux, elsewhere NaN."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=1000)
    main(parser.parse_args().moves)
