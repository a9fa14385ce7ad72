"""What `nsys export` writes becomes a timeline: names, payloads, kernels, several versions."""

import json
import sqlite3
from contextlib import closing

import nsys_schema as nsys
import pytest
from nsys_schema import (
    MARK,
    NAMES,
    START_END,
    TID,
    WORDS,
    call,
    event,
    global_id,
    made,
    on_device,
    only,
    our_event,
    strings,
)

from hspec_lab.timeline import UNKNOWN
from hspec_lab.trace_in import nsys_sqlite as into

PAYLOAD = ("prompt", "round", "warmup", "n_tokens", "n_nodes", "kv_len", "layer")
RESULT = ("prompt", "round", "warmup", "n_proposed", "n_accepted", "n_emitted")


def captured(path, with_payloads=True, wrapped=None, **more):
    def struct(schema, *numbers):
        return nsys.struct_payload(schema, *numbers) if with_payloads else None

    schema = 2**32 + 9
    described = nsys.struct_schema(schema, *PAYLOAD, wrapped=wrapped)
    for table, found in nsys.struct_schema(schema + 1, *RESULT).items():
        described[table] += found
    events = [
        *WORDS,
        our_event(1000, 1100, 1, 1, struct(schema, 4, 0, 0, -1, -1, 30, -1)),
        our_event(1000, 1040, 2, 2, struct(schema, 4, 0, 0, 8, 24, 30, -1)),
        our_event(1040, 1095, 3, 3, struct(schema, 4, 0, 0, 7, 7, 30, -1)),
        our_event(1050, 1060, 4, 3, struct(schema, 4, 0, 0, 7, 7, 30, 11)),
        our_event(1099, None, 5, 1, struct(schema + 1, 4, 0, 0, 23, 2, 3), eventType=MARK),
        our_event(1200, 1300, 1, 1, struct(schema, 4, 1, 0, -1, -1, 33, -1)),
        our_event(1250, 1260, 6, None),
        our_event(1299, None, 5, 1, struct(schema + 1, 4, 1, 0, 20, 0, 1), eventType=MARK),
    ]
    tables = {"StringIds": NAMES, "NVTX_EVENTS": events} | (described if with_payloads else {})
    return made(path, **(tables | more))


@pytest.mark.parametrize("wrapped", [None, 2**32 + 30], ids=["plain", "as NVTX for Python"])
def test_structs_of_our_nvtx_are_read_by_their_schema(tmp_path, wrapped):
    found = into.read(captured(tmp_path / "a.sqlite", wrapped=wrapped))
    rounds = found.ranges[found.ranges["kind"] == "round"]
    assert rounds[["prompt", "round", "kv_len"]].values.tolist() == [[4, 0, 30], [4, 1, 33]]
    results = ["n_proposed", "n_accepted", "n_emitted"]
    assert rounds[results].values.tolist() == [[23, 2, 3], [20, 0, 1]]
    draft, attention = only(found, "draft"), only(found, "attention")
    assert (draft["kind"], draft["phase"], draft["level"]) == ("phase", "draft", "head")
    assert (draft["n_tokens"], draft["n_nodes"]) == (8, 24)
    assert (attention["kind"], attention["layer"]) == ("module", 11)
    assert (attention["phase"], attention["level"]) == ("verify_target", "target")
    assert only(found, "unknown to us")["kind"] == "range"
    # time begins with the trace, not with the capture
    assert rounds["start_ns"].tolist() == [0, 200]
    assert not [note for note in found.notes if "payload" in note]


@pytest.mark.parametrize(
    "written",
    [
        lambda fields: fields,
        lambda fields: {"hspec payload": fields},
        lambda fields: {name: {"int64": value} for name, value in fields.items()},
    ],
    ids=["plain", "under a schema's name", "numbers as structs"],
)
def test_payloads_as_json_count_as_well(tmp_path, written):
    said = json.dumps(written(dict(zip(PAYLOAD, (1, 2, 1, 3, 4, 5, -1), strict=True))))
    events = [*WORDS, our_event(0, 9, 2, 2, jsonText=said)]
    draft = only(into.read(made(tmp_path / "a", StringIds=NAMES, NVTX_EVENTS=events)), "draft")
    found = draft[["prompt", "round", "warmup", "n_tokens", "n_nodes", "kv_len"]].tolist()
    assert found == [1, 2, True, 3, 4, 5]


def test_without_payloads_rounds_are_numbered_in_order_of_time(tmp_path):
    found = into.read(captured(tmp_path / "a.sqlite", with_payloads=False))
    rounds = found.ranges[found.ranges["kind"] == "round"]
    assert rounds["round"].tolist() == [0, 1]
    assert (rounds[["prompt", "kv_len", "n_emitted"]] == UNKNOWN).all(axis=None)
    assert (
        only(found, "draft")["round"] == 0 and only(found, "attention")["phase"] == "verify_target"
    )
    assert sum("payload" in note for note in found.notes) == 1


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"short",
        nsys.struct_payload(9, 1, 2),  # another schema
        nsys.struct_payload(2**32 + 9, *range(7))[:-1],  # cut off
        "not hexadecimal",
        b"\xff" * 88,
    ],
    ids=["empty", "no header", "another schema", "cut off", "words", "noise"],
)
def test_a_payload_that_does_not_fit_its_schema_says_nothing(tmp_path, blob):
    events = [*WORDS, our_event(0, 9, 2, 2, blob)]
    schema = nsys.struct_schema(2**32 + 9, *PAYLOAD)
    path = made(tmp_path / "a", StringIds=NAMES, NVTX_EVENTS=events, **schema)
    found = into.read(path)
    assert only(found, "draft")["n_tokens"] == UNKNOWN
    assert any("payload" in note for note in found.notes)


def test_names_come_as_text_or_ids_or_ids_alone(tmp_path):
    events = [event(0, 9, "said"), event(1, 8, textId=2), event(2, 7, textId=99)]
    found = into.read(made(tmp_path / "a", StringIds=NAMES, NVTX_EVENTS=events))
    assert found.ranges["name"].tolist() == ["said", "draft", "string 99"]
    assert found.ranges["domain"].tolist() == ["", "", ""]
    assert any("not in StringIds" in note for note in found.notes)


def test_open_backward_and_start_end_ranges_are_noted(tmp_path):
    events = [
        event(0, 50, "whole"),
        event(10, None, "open"),
        event(30, 20, "backward"),
        event(40, 60, "crossing", START_END),
        event(5, None, "a mark", MARK),
    ]
    found = into.read(made(tmp_path / "a", NVTX_EVENTS=events))
    assert found.ranges["name"].tolist() == ["whole", "open", "crossing"]
    assert only(found, "open")["end_ns"] == 60
    said = " ".join(found.notes)
    assert "never closed" in said and "end before they begin" in said and "start/end" in said


def test_kernels_copies_and_fills_come_with_the_calls_that_started_them(tmp_path):
    path = made(
        tmp_path / "a",
        StringIds=strings("gemm", "cudaLaunchKernel_v7000", "cudaMalloc_v3020"),
        NVTX_EVENTS=[event(0, 90, "step")],
        CUPTI_ACTIVITY_KIND_RUNTIME=[call(10, 1, 2), call(20, 2, 3), call(30, 3, 2)],
        CUPTI_ACTIVITY_KIND_KERNEL=[on_device(15, 25, 1, graphNodeId=12)],
        CUPTI_ACTIVITY_KIND_MEMCPY=[
            {k: v for k, v in on_device(40, 44, 3, copyKind=2, bytes=64).items() if "Name" not in k}
        ],
        TARGET_INFO_GPU=[{"id": 0, "name": "some device"}],
    )
    found = into.read(path)
    assert found.launches["name"].tolist() == ["cudaLaunchKernel"] * 2
    assert found.launches["correlation"].tolist() == found.kernels["correlation"].tolist() == [1, 3]
    assert found.kernels["name"].tolist() == ["gemm", "[CUDA memcpy Device-to-Host]"]
    assert found.kernels["graph_node"].tolist() == [12, 0]
    assert found.kernels["bytes"].tolist() == [UNKNOWN, 64]
    assert set(found.ranges["thread"]) == set(found.launches["thread"]) == {5}
    assert found.about["devices"] == {"0": "some device"}
    assert any("started nothing" in note for note in found.notes)


def test_a_graph_traced_whole_is_one_kernel_and_the_note_says_what_to_ask_for(tmp_path):
    graph = {"start": 5, "end": 9, "correlationId": 1, "graphId": 3, "streamId": 7}
    found = into.read(made(tmp_path / "a", CUPTI_ACTIVITY_KIND_GRAPH_TRACE=[graph]))
    assert found.kernels[["name", "kind", "correlation"]].values.tolist() == [
        ["graph 3", "kernel", 1]
    ]
    assert any("--cuda-graph-trace=node" in note for note in found.notes)


def test_processes_with_the_same_numbers_stay_apart(tmp_path):
    one, two = global_id(77), global_id(78)
    path = made(
        tmp_path / "a",
        StringIds=strings("gemm", "cudaLaunchKernel"),
        NVTX_EVENTS=[event(0, 90, "a", tid=one | 5), event(0, 90, "b", tid=two | 5)],
        CUPTI_ACTIVITY_KIND_RUNTIME=[call(10, 1, 2, one | 5), call(20, 1, 2, two | 5)],
        CUPTI_ACTIVITY_KIND_KERNEL=[on_device(15, 25, 1), on_device(30, 35, 1, pid=two)],
    )
    found = into.read(path)
    assert found.launches["correlation"].tolist() == found.kernels["correlation"].tolist()
    assert found.launches["correlation"].nunique() == 2
    assert found.ranges["thread"].tolist() == [one | 5, two | 5]


def test_domains_of_two_processes_have_their_own_names(tmp_path):
    other = global_id(78, 5)
    events = [
        *WORDS,
        event(0, None, "torch", nsys.DOMAIN, tid=other, domainId=3),
        our_event(0, 9, 2, 2),
        event(0, 9, "theirs", tid=other, domainId=3),
    ]
    found = into.read(made(tmp_path / "a", StringIds=NAMES, NVTX_EVENTS=events))
    assert only(found, "draft")["domain"] == "hspec_lab"
    assert only(found, "theirs")["domain"] == "torch"


def test_an_older_layout_is_read_by_the_columns_it_has(tmp_path):
    lacking = (
        "domainId",
        "category",
        "textId",
        "jsonText",
        "jsonTextId",
        "binaryData",
        "eventType",
    )
    path = tmp_path / "a"
    with closing(sqlite3.connect(path)) as db, db:
        row = {"start": 3, "end": 9, "text": "step", "globalTid": TID}
        nsys.add(db, "NVTX_EVENTS", row, [f"NVTX_EVENTS.{name}" for name in lacking])
    found = into.read(path)
    assert found.ranges[["name", "start_ns", "end_ns"]].values.tolist() == [["step", 0, 6]]
    assert any("no schema version" in note for note in found.notes)
    assert sum(note.startswith("no table") for note in found.notes) == 2


def test_event_types_are_those_that_the_export_names(tmp_path):
    kinds = [{"id": 159, "name": "NvtxPushPopRange"}]
    events = [event(0, 9, "step", 159), event(0, 9, "other", 59)]
    found = into.read(made(tmp_path / "a", NVTX_EVENTS=events, ENUM_NSYS_EVENT_TYPE=kinds))
    assert found.ranges["name"].tolist() == ["step"]


@pytest.mark.parametrize("version", ["4.0.0", "words"])
def test_an_unknown_schema_is_read_with_a_note_if_it_can_be(tmp_path, version):
    found = into.read(made(tmp_path / "a", version, NVTX_EVENTS=[event(0, 9, "step")]))
    assert len(found.ranges) == 1 and any(version in note for note in found.notes)
