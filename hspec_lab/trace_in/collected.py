"""What is kept of a Chrome trace, event by event, and the timeline it makes.

source: libkineto's output_json.cpp and CuptiActivity.cpp for categories and names of arguments.
"""

import re
from collections import Counter

import numpy as np
import pandas as pd

from hspec_lab.timeline import KERNELS, LAUNCHES, RANGES, UNKNOWN, Timeline, table
from hspec_lab.trace_in.json_events import nanoseconds
from hspec_lab.trace_in.ranges import COLUMNS, from_zero, named
from hspec_lab.trace_in.rows import Rows, Words, whole

# by category; capitals: the first versions of Kineto
_KERNELS = {
    "kernel": "kernel",
    "gpu_memcpy": "memcpy",
    "gpu_memset": "memset",
    "Kernel": "kernel",
    "Memcpy": "memcpy",
    "Memset": "memset",
}
_CALLS = {"cuda_runtime", "cuda_driver", "Runtime", "xpu_runtime", "privateuse1_runtime"}
_NOT_NEEDED = {
    "Operator",
    "Trace",
    "ac2g",
    "async_cpu_to_gpu",
    "collective_comm",
    "cpu_instant_event",
    "cpu_op",
    "cuda_event",
    "cuda_sync",
    "external_correlation",
    "fwdbwd",
    "gpu_user_annotation",
    "overhead",
    "python_function",
}
# calls that start work on a device even where the trace does not show that work
_STARTS = re.compile(r"Launch(?!HostFunc)|Mem(cpy|set)")
_NO_CALL = "calls that start nothing"
_FOUND = ("name", "category", "thread", "start_ns", "end_ns")
_MOST_TID = 100


class Collected:
    """Takes events and keeps the few numbers of each that a timeline needs.

    Attributes:
        n_events: events so far, of whatever phase.
        n_kept: those that are kept.
        ours: rows of our own export, by table.
    """

    def __init__(self):
        """Nothing yet."""
        self._words = Words()
        self._kernels = Rows(KERNELS, self._words)
        self._calls = Rows(LAUNCHES, self._words)
        self._ranges = Rows({name: RANGES[name] for name in _FOUND}, self._words)
        self._ours = {name: Rows(kinds, self._words) for name, kinds in COLUMNS.items()}
        self._threads: dict[tuple, int] = {}
        # threads' numbers, and where to look for one more
        self._taken, self._free = set(), 0
        # by thread: name, category and start of what began and did not end
        self._open: dict[int, list[tuple[int, int, int]]] = {}
        self._left_out, self._faults = Counter(), Counter()
        self.n_events = self.n_kept = 0

    def add(self, event: dict) -> None:
        """Take an event of `json_events.Events`."""
        phase = event.get("ph")
        if phase == "X":
            self.n_events += 1
            self._slice(event)
        elif phase == "B" or phase == "E":
            self.n_events += 1
            self._edge(event, phase)
        elif type(phase) is str:
            self.n_events += 1
            self._left_out[f"ph {phase[:1]}"] += 1

    def ours(self) -> dict[str, pd.DataFrame] | None:
        """The tables of our own export, if this is one."""
        found = any(len(rows) for rows in self._ours.values())
        return {name: rows.frame() for name, rows in self._ours.items()} if found else None

    def timeline(self, about: dict, notes: list[str]) -> Timeline:
        """Make the timeline; only once.

        Args:
            about: where the trace comes from.
            notes: of reading it.
        """
        self._close()
        found = (self._ranges, self._calls, self._kernels)
        ranges, calls, kernels = from_zero(*(rows.frame() for rows in found))
        calls = self._starting(calls, kernels)
        more = [f"{n} {fault}" for fault, n in self._faults.items()]
        if self._words.cut:
            more.append("very long names are cut")
        if not len(kernels):
            more.append("no kernels: the trace shows no work of a device")
        ranges = named(ranges, more)
        by_time = {"by": ["start_ns", "end_ns"], "kind": "stable", "ignore_index": True}
        return Timeline(
            ranges,
            table(LAUNCHES, calls.sort_values(**by_time)),
            table(KERNELS, kernels.sort_values(**by_time)),
            (*notes, *more),
            about | {"left_out": dict(sorted(self._left_out.items()))},
        )

    def _slice(self, event: dict) -> None:
        category = event.get("cat")
        if type(category) is not str:
            category = ""
        if category in _NOT_NEEDED:
            self._left_out[category] += 1
            return
        start, length = nanoseconds(event.get("ts")), nanoseconds(event.get("dur"))
        if start is None or length is None:
            self._faults["events without a usable time: left out"] += 1
            return
        args = event.get("args")
        if type(args) is not dict:
            args = {}
        if "start_ns" in args and type(args.get("table")) is str and args["table"] in self._ours:
            self._keep_ours(args)
        elif length < 0:
            self._faults["events end before they begin: left out"] += 1
        elif category in _KERNELS:
            self._keep_kernel(event, args, _KERNELS[category], start, start + length)
        elif category in _CALLS:
            self.n_kept += 1
            correlation = whole(args.get("correlation"))
            name = self._words.number(event.get("name"))
            self._calls.add(name, self._thread(event), correlation, start, start + length)
        else:
            self._keep_range(event.get("name"), category, self._thread(event), start, length)

    def _keep_range(self, name, category, thread: int, start: int, length: int) -> None:
        self.n_kept += 1
        words = self._words.number(name), self._words.number(category)
        self._ranges.add(*words, thread, start, start + length)

    def _keep_kernel(self, event: dict, args: dict, kind: str, start: int, end: int) -> None:
        self.n_kept += 1
        self._kernels.add(
            self._words.number(event.get("name")),
            self._words.number(kind),
            whole(args.get("device", args.get("inDevice", event.get("pid")))),
            whole(args.get("stream", event.get("tid"))),
            whole(args.get("correlation")),
            whole(args.get("graph node id"), 0),
            UNKNOWN if kind == "kernel" else whole(args.get("bytes")),
            start,
            end,
        )

    def _keep_ours(self, args: dict) -> None:
        """A slice of our own export: its row, unknown entries not said."""
        self.n_kept += 1
        values = []
        for name, kind in COLUMNS[args["table"]].items():
            value = args.get(name)
            if kind == "str":
                values.append(self._words.number(value))
            elif kind == "bool":
                values.append(int(value is True))
            elif kind == "float64":
                values.append(_number(value))
            else:
                values.append(whole(value, 0 if name == "graph_node" else UNKNOWN))
        self._ours[args["table"]].add(*values)

    def _edge(self, event: dict, phase: str) -> None:
        """The beginning or the end of a range; they pair up per thread, last in first out."""
        at, thread = nanoseconds(event.get("ts")), self._thread(event)
        if at is None:
            self._faults["events without a usable time: left out"] += 1
        elif phase == "B":
            self.n_kept += 1
            words = event.get("name"), event.get("cat")
            begun = (*(self._words.number(word) for word in words), at)
            self._open.setdefault(thread, []).append(begun)
        elif not self._open.get(thread):
            self._faults["ends of ranges that never began: left out"] += 1
        else:
            self._end(thread, at)

    def _end(self, thread: int, at: int) -> None:
        name, category, start = self._open[thread].pop()
        if at < start:
            self._faults["events end before they begin: left out"] += 1
        else:
            self._ranges.add(name, category, thread, start, at)

    def _close(self) -> None:
        """End what never ended at the last time that the trace knows."""
        starts = [begun[2] for stack in self._open.values() for begun in stack]
        ends = (rows.largest("end_ns") for rows in (self._ranges, self._calls, self._kernels))
        last = max([*starts, *(end for end in ends if end is not None)], default=0)
        for thread, stack in self._open.items():
            while stack:
                self._end(thread, last)
        if starts:
            self._faults["ranges never end: closed at the last time of the trace"] = len(starts)

    def _thread(self, event: dict) -> int:
        """A number for a thread: its own if that is one and free."""
        process, thread = event.get("pid"), event.get("tid")
        if type(thread) is str:
            thread = thread[:_MOST_TID]
        if type(process) is str:
            process = process[:_MOST_TID]
        try:
            return self._threads[process, thread]
        except TypeError:
            return UNKNOWN
        except KeyError:
            number = whole(thread)
            if number < 0 or number in self._taken:
                while self._free in self._taken:
                    self._free += 1
                number = self._free
            self._taken.add(number)
            self._threads[process, thread] = number
            return number

    def _starting(self, calls: pd.DataFrame, kernels: pd.DataFrame) -> pd.DataFrame:
        """Without calls that start no work: queries, waits, events."""
        starting = {name for name in calls["name"].unique() if _STARTS.search(name)}
        started = np.isin(calls["correlation"], kernels["correlation"])
        kept = calls["name"].isin(starting) | (started & (calls["correlation"] > 0))
        if dropped := int((~kept).sum()):
            self._left_out[_NO_CALL] = dropped
        return calls[kept]


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
