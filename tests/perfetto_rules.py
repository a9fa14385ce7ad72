"""What ui.perfetto.dev does with a trace, step by step; AssertionError where it would complain.

source: Perfetto's importer of JSON traces: times are cut off to whole ns, events sorted by time
(equal ones stay as they come), slices kept as one stack per `tid`, names of threads kept by `tid`
alone, and arrows bound to the slice that began last on their track.
"""

import json
import math
from collections import defaultdict

import pandas as pd

from hspec_lab import timeline
from hspec_lab.timeline import KERNELS, LAUNCHES, RANGES
from hspec_lab.trace_out.perfetto import events


def check(found):
    """Hold a list of trace events against the rules.

    Returns:
        The events by their `ph`, the names of the tracks by `tid`, and for each arrow the slices
        at both its ends.
    """
    json.dumps(found, allow_nan=False)
    kinds = defaultdict(list)
    for event in found:
        kinds[event["ph"]].append(event)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert math.isfinite(event["ts"]) and event["ts"] >= 0
        assert math.isfinite(event.get("dur", 0)) and event.get("dur", 0) >= 0
    tracks = check_names(kinds)
    arrows = check_slices([event for event in found if event["ph"] in ("X", "s", "f")])
    counters = defaultdict(list)
    for event in kinds["C"]:
        counters[event["pid"], event["name"]].append(event["ts"])
        assert all(math.isfinite(value) for value in event["args"].values())
    assert all(times == sorted(times) for times in counters.values()), "counters go back in time"
    return kinds, tracks, arrows


def check_names(kinds):
    tracks, owners = {}, {}
    for event in kinds["M"]:
        if event["name"] == "thread_name":
            assert event["tid"] not in tracks, "two tracks with one tid"
            tracks[event["tid"]] = event["args"]["name"]
        assert owners.setdefault(event["tid"], event["pid"]) == event["pid"]
    assert not set(tracks) & set(owners.values()), "a pid makes its tid the main thread"
    for event in kinds["X"]:
        assert event["tid"] in tracks, "a nameless track"
        assert owners[event["tid"]] == event["pid"], "a track of two processes"
    return tracks


def check_slices(found):
    """Stack every track's slices, and find the slices at both ends of each arrow."""
    stacks, begun, arrows = defaultdict(list), {}, {}
    for event in sorted(found, key=lambda event: ns(event["ts"])):
        stack = stacks[event["tid"]]
        if event["ph"] == "X":
            while stack and end_ns(stack[-1]) <= ns(event["ts"]):
                stack.pop()
            assert not stack or end_ns(event) <= end_ns(stack[-1]), f"slices cross: {event}"
            stack.append(event)
        elif event["ph"] == "s":
            assert stack and event["id"] not in begun, f"an arrow from no slice: {event}"
            begun[event["id"]] = event, stack[-1]
        else:
            assert stack and event["bp"] == "e", f"an arrow to no slice: {event}"
            assert event["id"] in begun, f"an arrow from nowhere: {event}"
            start, giver = begun.pop(event["id"])
            assert (start["name"], start["cat"]) == (event["name"], event["cat"])
            assert event["id"] not in arrows, "two arrows with one id"
            arrows[event["id"]] = giver, stack[-1]
    assert not begun, f"arrows that arrive nowhere: {begun}"
    return list(arrows.values())


def ns(us):
    """As Perfetto has it: cut off, not rounded."""
    return int(us * 1000.0)


def end_ns(event):
    return ns(event["ts"]) + ns(event["dur"])


def checked(found):
    """Hold the events of a timeline against the rules; returns what `check` does."""
    return check(list(events(found)))


def slices_of(kinds, table):
    """The slices that are rows of a table."""
    return [event for event in kinds["X"] if event["args"]["table"] == table]


def read_back(kinds, table, columns):
    """The table that the slices' arguments say."""
    rows = pd.DataFrame([event["args"] for event in slices_of(kinds, table)])
    return timeline.table(columns, rows, graph_node=0)


def assert_same(kinds, found):
    """The slices say the same timeline, with times exact to the ns."""
    ranges = timeline.nested(read_back(kinds, "ranges", RANGES))
    pd.testing.assert_frame_equal(ranges, found.ranges)
    pd.testing.assert_frame_equal(read_back(kinds, "launches", LAUNCHES), found.launches)
    pd.testing.assert_frame_equal(read_back(kinds, "kernels", KERNELS), found.kernels)
    for event in kinds["X"]:
        args = event["args"]
        # exact for a reader that cuts off, and for one that rounds
        for us, ns in (
            (event["ts"], args["start_ns"]),
            (event["dur"], args["end_ns"] - args["start_ns"]),
        ):
            assert int(us * 1000.0) == round(us * 1000) == ns
