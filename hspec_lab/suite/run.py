"""Run the suite, or what is left of it, within some minutes."""

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pandas as pd
import torch

from hspec_lab.experiment import Progress, conditions
from hspec_lab.quant.device import check_triton
from hspec_lab.suite import ceilings, curves, gaps, matmuls, right, rounds, sweep
from hspec_lab.suite import folder as on_disk
from hspec_lab.suite.device_facts import device_facts
from hspec_lab.suite.part import Bench, Part, Row, attempt

# in the order in which they are begun
PARTS: tuple[Part, ...] = (
    right.PART,
    ceilings.PART,
    matmuls.PART,
    rounds.PART,
    curves.PART,
    gaps.PART,
    sweep.PART,
)
WRITE_SECONDS = 10.0


def run_suite(
    folder: Path | str,
    *,
    device: str = "cuda",
    minutes: float = 8.0,
    parts: tuple[str, ...] | None = None,
    tiny: bool = False,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Measure what `folder` does not hold yet, until the minutes are over; at least one item.

    Every part that is not done gets an equal share of the time that is left, so that one run
    says something about everything.  A stopped run loses the item it was at.

    Args:
        folder: `suite.json` and one table a part.
        device: "cuda"; "cpu" only with `tiny`.
        parts: names of the parts to run; all of `PARTS` by default.
        tiny: sizes for the interpreter; the numbers mean nothing.
        progress: called with items done, items in all and a few words.

    Returns:
        part -> how many of its items are left.

    Raises:
        ValueError: no CUDA device, an unknown part, a folder measured under other conditions, or
            a device that stopped answering (what was measured before is stored).
    """
    begun, folder = monotonic(), Path(folder)
    chosen = _chosen(parts)
    if not minutes >= 0:
        raise ValueError(f"minutes must be 0 or more, got {minutes}")
    _check_device(device, tiny)
    bench = Bench(device=device, tiny=tiny, repeats=3 if tiny else Bench().repeats)
    found = conditions(device, torch.get_num_threads()) | device_facts(device) | {"tiny": tiny}
    head = on_disk.begin(folder, found)
    works = [_Work(part, bench, folder) for part in chosen]

    def tell(words: str) -> None:
        if progress:
            total = sum(len(work.items) for work in works)
            progress(total - sum(len(work.open) for work in works), total, words)

    try:
        _share(works, begun + 60 * minutes, tell)
    finally:
        counts = {work.part.name: work.counts for work in works}
        on_disk.write_head(folder, head | {"items": head.get("items", {}) | counts})
    tell("")
    return {work.part.name: len(work.open) for work in works}


def _chosen(names: tuple[str, ...] | None) -> list[Part]:
    known = [part.name for part in PARTS]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"no part {unknown[0]!r}; there are {', '.join(known)}")
    return [part for part in PARTS if names is None or part.name in names]


def _check_device(device: str, tiny: bool) -> None:
    if device not in ("cuda", "cpu") or (device == "cpu" and not tiny):
        raise ValueError(f"the GPU suite is measured on cuda, got {device!r}")
    check_triton()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"the GPU suite needs a CUDA device, and torch {torch.__version__} finds none"
        )
    if interpreted != (device == "cpu"):
        wanted = "must be 1" if device == "cpu" else "must not be set"
        raise ValueError(f"TRITON_INTERPRET {wanted} for kernels on {device}")


def _share(works: list["_Work"], end: float, tell: Callable[[str], None]) -> None:
    """Give every part that is not done an equal share of the time left, until it is over."""
    n_measured = 0
    while waiting := [work for work in works if work.open]:
        before = n_measured
        for i, work in enumerate(waiting):
            until = monotonic() + (end - monotonic()) / (len(waiting) - i)
            n_measured += work.run(until, n_measured == 0, tell)
        if n_measured == before:
            return


class _Work:
    """One part's table and what it still lacks."""

    def __init__(self, part: Part, bench: Bench, folder: Path):
        self.part, self.bench, self.folder = part, bench, folder
        self.items = part.items(bench)
        stored = on_disk.read_table(folder, part.name)
        if stored is not None and list(stored.columns) != list(part.columns):
            raise ValueError(
                f"{folder}: {part.name}.parquet has other columns than {list(part.columns)}: "
                "give another folder"
            )
        self.rows: list[Row] = [] if stored is None else stored.to_dict("records")
        keys = list(self.items[0]) if self.items else []
        done = {tuple(row[key] for key in keys) for row in self.rows}
        self.open = [item for item in self.items if tuple(item.values()) not in done]
        self.seconds: list[float] = []

    @property
    def counts(self) -> dict[str, int]:
        return {"done": len(self.items) - len(self.open), "all": len(self.items)}

    def run(self, until: float, at_least_one: bool, tell) -> int:
        """Measure items until the time is over; returns how many."""
        n, written = 0, monotonic()
        try:
            while self.open and ((at_least_one and n == 0) or self._fits(until)):
                tell(f"{self.part.name}: {' '.join(map(str, self.open[0].values()))}")
                self._measure(self.open[0])
                n += 1
                if monotonic() - written > WRITE_SECONDS:
                    self.write()
                    written = monotonic()
        finally:
            if n:
                self.write()
        self.part.release()
        if self.bench.on_cuda:
            torch.cuda.empty_cache()
        return n

    def _fits(self, until: float) -> bool:
        """Whether another item as long as the last few would end in time."""
        return monotonic() + max(self.seconds[-3:], default=0.0) < until

    def _measure(self, item: Row) -> None:
        begun = monotonic()
        rows, note = attempt(lambda: self.part.measure(self.bench, item))
        self.rows += map(self.part.filled, [item | {"note": note}] if note else rows)
        self.open.remove(item)
        self.seconds.append(monotonic() - begun)
        _, dead = attempt(self.bench.settle)
        if dead:
            # a broken context answers nothing any more, and whatever came next would fail too
            self.write()
            raise ValueError(
                f"the device stopped answering at {self.part.name} {list(item.values())} ({dead}); "
                "run it again, it goes on behind that"
            )

    def write(self) -> None:
        table = pd.DataFrame(self.rows, columns=list(self.part.columns))
        on_disk.write_table(self.folder, self.part.name, table.astype(self.part.columns))
