"""What speedscope gets: balanced events in order of time, and all of the time."""

import json

import pandas as pd
import pytest
from exported import rich
from synthetic_traces import kernel, named, trace

from hspec_lab.trace_out import speedscope, write

# the required keys and types of speedscope's published file-format-schema.json (1.25.0); it has no
# `additionalProperties`, so that further keys are allowed
SPEEDSCOPE = {
    "file": {"$schema": str, "shared": dict, "profiles": list},
    "profile": {
        "type": str, "name": str, "unit": str, "startValue": int, "endValue": int, "events": list,
    },
    "event": {"type": str, "frame": int, "at": int},
}  # fmt: skip


def assert_has(kind, found):
    for name, needed in SPEEDSCOPE[kind].items():
        assert type(found[name]) is needed, f"{kind}.{name}: {found[name]!r}"


def spent(content):
    """Hold a file against what speedscope asks; return the time under each frame, by profile."""
    assert_has("file", content)
    assert content["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [frame["name"] for frame in content["shared"]["frames"]]
    assert 0 <= content["activeProfileIndex"] < len(content["profiles"])
    totals = {}
    for profile in content["profiles"]:
        assert_has("profile", profile)
        assert (profile["type"], profile["unit"]) == ("evented", "nanoseconds")
        now, stack = profile["startValue"], []
        for event in profile["events"]:
            assert_has("event", event)
            assert event["at"] >= now, "events go back in time"
            now = event["at"]
            if event["type"] == "O":
                stack.append((event["frame"], now))
                continue
            frame, since = stack.pop()
            assert (event["type"], frame) == ("C", event["frame"]), "the inner one closes first"
            key = profile["name"], names[frame]
            totals[key] = totals.get(key, 0) + now - since
        assert not stack and now <= profile["endValue"]
    return totals


def test_speedscope_shows_the_time_of_every_name():
    found = rich()
    totals = spent(speedscope.content(found))
    phases = {f"{name} ({level})": 0 for name, level in _phases(found)}
    for name, level, us in zip(*_durations(found), strict=True):
        phases[f"{name} ({level})"] += us
    shown = {name: n for (profile, name), n in totals.items() if profile == "thread 1"}
    assert shown == phases | {"round": 3 * 95, "attention": 3 * 17}
    assert totals["thread 5", "outer"] == 300
    assert totals["device 0, stream 7", "gemm"] == 60
    assert totals["device 0, stream 13", "copy"] == 45


def _phases(found):
    ours = found.ranges[found.ranges["kind"] == "phase"]
    return zip(ours["name"], ours["level"], strict=True)


def _durations(found):
    ours = found.ranges[found.ranges["kind"] == "phase"]
    return ours["name"], ours["level"], (ours["end_ns"] - ours["start_ns"]).tolist()


@pytest.mark.parametrize(
    "found",
    [
        trace(),
        trace([named("a", 0, 9), named("b", 5, 12), named("c", 5, 5), named("d", 12, 12)]),
        trace([], [], [kernel(1, 0, 9), kernel(1, 3, 9), kernel(1, 9, 15)]),
    ],
    ids=["no rows", "crossing and empty ranges", "kernels that overlap or follow at once"],
)
def test_speedscope_gets_balanced_events(found):
    totals = spent(speedscope.content(found))
    lengths = [
        int((table["end_ns"] - table["start_ns"]).sum())
        for table in (found.ranges, found.launches, found.kernels)
    ]
    assert sum(totals.values()) == sum(lengths)


def test_speedscope_file_holds_the_tables_exactly(tmp_path):
    found = rich()
    content = json.loads(write(found, "speedscope", tmp_path / "x").read_text())
    ours = content["hspec_lab"]
    assert (ours["hspec_lab"], tuple(ours["notes"])) == (1, found.notes)
    assert ours["about"] == found.about
    for name in ("ranges", "launches", "kernels"):
        table = getattr(found, name)
        pd.testing.assert_frame_equal(pd.DataFrame(ours[name]).astype(table.dtypes), table)
