"""What becomes of events: kernels, launches and ranges; odd and hostile ones are named."""

import json
from time import process_time

import pytest
from chrome_events import ROUND, VERIFY, call, kernel, saved, slice_of, trace

from hspec_lab.trace_in import chrome, collected, rows

EVENTS = [slice_of(f"range {n}", n * 10, 5) for n in range(20)]
GRAPH = [
    kernel("gemm", "100.001", "10.5", 5, **{"graph id": 3, "graph node id": 8589934593}),
    call("cudaGraphLaunch", "90.000", "4.25", 5),
    kernel("Memcpy HtoD", 80, 2, 4, cat="gpu_memcpy", bytes=4096),
    call("cudaMemcpyAsync", 70, 3, 4),
    call("cudaEventQuery", 71, 1, 6),
    call("cuLaunchKernelEx", 95, 1, 7, cat="cuda_driver"),
    slice_of("aten::mm", 60, 50, "cpu_op"),
    slice_of("mine", 60, 50),
    {"ph": "s", "id": 5, "pid": 1, "tid": 7, "ts": 90, "cat": "ac2g", "name": "ac2g"},
]


def digits(events):
    """JSON in which strings of digits stand as numbers, as torch writes them."""
    text = json.dumps({"schemaVersion": 1, "traceEvents": events})
    for event in events:
        for value in (event.get("ts"), event.get("dur")):
            text = text.replace(f'"{value}"', str(value))
    return text


def test_kernels_launches_and_annotations_of_torch_profiler(tmp_path):
    found = chrome.read(saved(tmp_path / "t.json", digits(GRAPH)))
    assert found.kernels.to_dict("records") == [
        {
            "name": "Memcpy HtoD",
            "kind": "memcpy",
            "device": 0,
            "stream": 13,
            "correlation": 4,
            "graph_node": 0,
            "bytes": 4096,
            "start_ns": 20_000,
            "end_ns": 22_000,
        },
        {
            "name": "gemm",
            "kind": "kernel",
            "device": 0,
            "stream": 13,
            "correlation": 5,
            "graph_node": 8589934593,
            "bytes": -1,
            "start_ns": 40_001,
            "end_ns": 50_501,
        },
    ]
    assert found.launches[["name", "thread", "correlation"]].values.tolist() == [
        ["cudaMemcpyAsync", 7, 4],
        ["cudaGraphLaunch", 7, 5],
        ["cuLaunchKernelEx", 7, 7],
    ]
    assert found.launches["end_ns"].tolist() == [13_000, 34_250, 36_000]
    assert found.ranges[["name", "kind", "domain", "thread"]].values.tolist() == [
        ["mine", "range", "", 7]
    ]
    assert found.about["left_out"] == {"calls that start nothing": 1, "cpu_op": 1, "ph s": 1}
    assert (found.about["source"], found.notes) == ("torch.profiler", ())


def test_a_call_of_any_name_is_a_launch_if_a_kernel_says_so(tmp_path):
    events = [call("cuNew", 1, 1, 5), call("cuQuery", 2, 1, 6), call("cuWait", 3, 1, 0)]
    events += [kernel("a", 4, 1, 5), kernel("b", 5, 1, 0), kernel("c", 6, 1, None)]
    found = chrome.read(trace(tmp_path / "t", [*events, call("cuLaunchHostFunc", 7, 1, 8)]))
    assert found.launches["name"].tolist() == ["cuNew"]
    assert found.kernels["correlation"].tolist() == [5, 0, -1]
    assert found.about["left_out"] == {"calls that start nothing": 3}


def test_annotations_with_our_names_become_rounds_phases_and_modules(tmp_path):
    events = [
        slice_of("hspec_lab:target/prefill", 0, 5),
        slice_of(ROUND, 10, 10),
        slice_of("hspec_lab:head/draft", 10, 4),
        slice_of("their own", 14, 6),
        slice_of(VERIFY, 14, 6),
        slice_of("hspec_lab:attention", 15, 2),
        slice_of("hspec_lab:target/verify/mlp", 17, 1),
        slice_of(ROUND, 30, 10),
        slice_of("hspec_lab:intermediate/verify", 30, 4),
        slice_of("hspec_lab:no such thing", 35, 1),
    ]
    found = chrome.read(trace(tmp_path / "t", events))
    columns = ["kind", "name", "category", "level", "phase", "round"]
    assert found.ranges[columns].values.tolist() == [
        ["phase", "prefill", "target/prefill", "target", "prefill", -1],
        ["round", "round", "round", "", "", 0],
        ["phase", "draft", "head/draft", "head", "draft", 0],
        ["range", "their own", "user_annotation", "", "", -1],
        ["phase", "verify_target", "target/verify", "target", "verify_target", 0],
        ["module", "attention", "target/verify", "target", "verify_target", 0],
        ["module", "mlp", "target/verify", "target", "verify_target", 0],
        ["round", "round", "round", "", "", 1],
        ["phase", "verify_intermediate", "intermediate/verify", "intermediate"]
        + ["verify_intermediate", 1],
        ["range", "hspec_lab:no such thing", "user_annotation", "", "", -1],
    ]
    assert (found.ranges["domain"] == "hspec_lab").tolist() == [True] * 3 + [False] + [True] * 5 + [
        False
    ]
    assert any("2 rounds are numbered by time" in note for note in found.notes)
    assert {name: len(rows) for name, rows in found.tables().items()} == {
        "rounds": 2,
        "spans": 4,
        "modules": 2,
    }


def test_beginnings_and_ends_pair_up_on_their_thread(tmp_path):
    def edge(ph, ts, tid, name="a"):
        return {"ph": ph, "ts": ts, "pid": "main", "tid": tid, "name": name, "cat": "c"}

    events = [
        edge("B", 0, "x"),
        edge("B", 1, "y", "other"),
        edge("B", 2, "x", "inner"),
        edge("E", 3, "x", "whatever"),
        edge("E", 4, "x"),
        edge("E", 5, "x"),
        edge("B", 9, "x", "late"),
        edge("E", 8, "x"),
        edge("B", 10, "x", "open"),
        slice_of("last", 20, 5, "c", ["no", "thread"]),
    ]
    found = chrome.read(trace(tmp_path / "t", events))
    assert found.ranges[["name", "thread", "start_ns", "end_ns"]].values.tolist() == [
        ["a", 0, 0, 4000],
        ["other", 1, 1000, 25_000],
        ["inner", 0, 2000, 3000],
        ["open", 0, 10_000, 25_000],
        ["last", -1, 20_000, 25_000],
    ]
    assert [note.split(":")[0] for note in found.notes] == [
        "1 ends of ranges that never began",
        "1 events end before they begin",
        "2 ranges never end",
        "no kernels",
    ]


def test_events_whose_times_cannot_be_are_left_out(tmp_path):
    times = [
        (1, 2),
        (5, -1),
        ("soon", 1),
        (None, 1),
        (1e300, 1),
        (float("nan"), 1),
        (2, float("inf")),
    ]
    found = chrome.read(trace(tmp_path / "t", [slice_of("a", *pair) for pair in times]))
    assert found.ranges["end_ns"].tolist() == [2000]
    assert set(found.notes[:2]) == {
        "1 events end before they begin: left out",
        "5 events without a usable time: left out",
    }


def test_another_tools_trace_gives_its_ranges_and_says_that_no_kernels_are_there(tmp_path):
    events = [slice_of("parse", 1, 2, "frontend"), {"ph": "C", "ts": 1, "args": {"x": 1}}, {"a": 1}]
    found = chrome.read(saved(tmp_path / "t", json.dumps(events)))
    assert found.ranges[["name", "category", "kind"]].values.tolist() == [
        ["parse", "frontend", "range"]
    ]
    assert found.notes == ("no kernels: the trace shows no work of a device",)
    assert found.about == {"source": "Chrome trace", "left_out": {"ph C": 1}}


def test_threads_of_one_number_in_two_processes_stay_apart(tmp_path):
    events = [
        slice_of("a", 1, 2) | {"pid": pid, "tid": tid} for pid, tid in ((1, 7), (2, 7), (2, "x"))
    ]
    found = chrome.read(trace(tmp_path / "t", events))
    assert found.ranges["thread"].nunique() == 3


def test_names_in_the_place_of_numbers_of_threads_cost_no_search(tmp_path):
    taken = [slice_of("a", 1, 2) | {"pid": 1, "tid": tid} for tid in range(20_000, 40_000)]
    named = [slice_of("a", 1, 2) | {"pid": 1, "tid": f"t{tid}"} for tid in range(20_000)]
    path = trace(tmp_path / "t", [*taken, *named])
    begun = process_time()
    assert chrome.read(path).ranges["thread"].nunique() == 40_000
    # a search from the start for each takes half a minute
    assert process_time() - begun < 5


def test_arguments_of_any_type_break_nothing(tmp_path):
    odd = [None, True, [], {}, "x", 1.5, 1 << 70, "\ud800"]
    events = [kernel("k", 1, 2, 3) | {"args": value, "name": value} for value in odd]
    events += [kernel(value, 1, 2, value, stream=value, bytes=value) for value in odd]
    events += [slice_of("a", 1, 2, value, value) | {"pid": value} for value in odd]
    events += [{"ph": value, "ts": value, "tid": value, "cat": value} for value in odd]
    events += [slice_of("a", 1, 2, table=value, start_ns=value) for value in odd]
    found = chrome.read(trace(tmp_path / "t", events, otherData=3, deviceProperties=[4]))
    assert "?" in found.kernels["name"].tolist()
    assert (len(found.kernels), len(found.ranges)) == (16, 16)


def test_no_more_events_are_kept_than_asked(tmp_path):
    found = chrome.read(trace(tmp_path / "t", EVENTS), most_events=10)
    assert len(found.ranges) == 10
    assert found.notes[0] == "10 events are kept: what follows them is left out"


def test_long_names_are_cut_and_too_many_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_WORDS", 5000)
    events = [slice_of(f"{n}" + "x" * 4990, n, 1) for n in range(4)]
    found = chrome.read(trace(tmp_path / "t", events))
    assert found.ranges["name"].str.len().tolist()[:2] == [4096, 4096]
    assert found.ranges["name"].tolist()[2:] == ["(one of too many names)"] * 2
    assert "very long names are cut" in found.notes


def test_a_long_name_in_every_row_is_cut_to_what_a_table_may_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_REPEATED", 200)
    found = chrome.read(trace(tmp_path / "t", [slice_of("x" * 30, n, 1) for n in range(20)]))
    assert set(found.ranges["name"]) == {"x" * 10}
    assert "very long names are cut" in found.notes


def test_devices_are_named_where_the_trace_names_them(tmp_path):
    devices = [{"id": 0, "name": "NVIDIA H100"}, {"id": 1}, 3]
    found = chrome.read(trace(tmp_path / "t", [], deviceProperties=devices, schemaVersion=1))
    assert found.about["devices"] == ["NVIDIA H100"] and found.about["schema"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "b": 2}', "JSON with a, b; a trace has a list traceEvents"),
        ('{"a\\nb": 1}', r"JSON with 'a\\nb'; a trace"),
        ("{}", "JSON of another kind"),
        ("[1, 2, 3]", "a JSON list without one readable event"),
        ('{"traceEvents": {"a": 1}}', "JSON with traceEvents"),
        ('{"schemaVersion": 1, "trace', "JSON with schemaVersion"),
    ],
)
def test_json_that_is_no_trace_is_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(ValueError, match=says) as caught:
        chrome.read(saved(tmp_path / "t", text))
    assert "\n" not in str(caught.value)


def test_an_empty_list_of_events_is_an_empty_trace(tmp_path):
    found = chrome.read(saved(tmp_path / "t", '{"traceEvents": []}'))
    assert (len(found.ranges), len(found.launches), len(found.kernels)) == (0, 0, 0)


def test_operators_are_counted_and_not_kept():
    seen = collected.Collected()
    for number in range(1000):
        seen.add(slice_of(f"aten::{number}", number, 1, "cpu_op"))
    assert (seen.n_events, seen.n_kept) == (1000, 0)


def test_reads_what_this_torch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function(ROUND), record_function(VERIFY):
            torch.ones(4, 4) @ torch.ones(4, 4)
    profiler.export_chrome_trace(str(tmp_path / "real.json.gz"))
    found = chrome.read(tmp_path / "real.json.gz")
    assert found.ranges["name"].tolist() == ["round", "verify_target"]
    assert found.ranges["parent"].tolist() == [-1, 0]
    assert found.about["source"] == "torch.profiler" and found.about["left_out"]["cpu_op"] > 0
