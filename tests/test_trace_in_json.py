"""JSON traces, sound and damaged: what is sound comes, exactly; what is not is named."""

import gzip
import json
import random
import tracemalloc

import pytest
from chrome_events import saved, slice_of

from hspec_lab.trace_in import chrome
from hspec_lab.trace_in.json_events import MOST_BROKEN, Events, nanoseconds
from hspec_lab.trace_in.json_text import text_pieces


def pieces(whole, size):
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def read_text(text, size=1 << 20, **kwargs):
    """Events and the reader of a text that comes in pieces of `size`."""
    reader = Events(iter(pieces(text, size)), [], **kwargs)
    return list(reader), reader


WHOLE = (
    '{"schemaVersion": 12345, "deviceProperties": [{"name": "A \\"B\\" ü"}],\n "traceEvents": [\n'
    '{"ph": "X", "ts": 1.5, "name": "a\\u00fc]}", "args": {"grid": [1, 2], "x": -Infinity}},\n'
    '{"ph": "M", "id": 123456, "args": {"name": "python"}},'
    '{"ph": "E", "ts": 17}\n],\n "traceName": "x", "baseTimeNanoseconds": 17}'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_text_says_the_same_in_pieces_of_any_size(size):
    events, reader = read_text(WHOLE, size)
    expected = json.loads(WHOLE, parse_float=str)
    assert events == expected["traceEvents"]
    assert reader.head == {
        key: expected[key] for key in ("schemaVersion", "deviceProperties", "baseTimeNanoseconds")
    }
    assert reader.notes == []


@pytest.mark.parametrize("size", [5, 10_000])
def test_cut_off_anywhere_it_says_what_stood_before_and_that_it_is_cut(size):
    whole = json.loads(WHOLE, parse_float=str)["traceEvents"]
    for at in range(WHOLE.index("[\n") + 2, len(WHOLE)):
        events, reader = read_text(WHOLE[:at], size)
        assert events == whole[: len(events)]
        assert len(events) == sum(at >= WHOLE.index(end) + len(end) for end in ENDS)
        assert len(reader.notes) == 1


ENDS = ("-Infinity}}", '"python"}}', '"ts": 17}')


def test_a_list_alone_is_a_trace_and_its_bracket_may_be_missing():
    for end in ("]", ",]", "", ",\n"):
        events, reader = read_text('[{"ph": "X"}, {"ph": "E"}' + end)
        assert (events, reader.notes) == ([{"ph": "X"}, {"ph": "E"}], [])


@pytest.mark.parametrize("garbage", ["null", "]]", "\x00\x00", '{"ph" "X"}', '{"ph": "X', "12 }"])
def test_garbage_between_events_costs_no_event_that_follows(garbage):
    text = (
        '{"traceEvents": [{"ph": "1"}, %s, {"ph": "2", "args": {"name": 1}}, {"ph": "3"}], "a": 1}'
    )
    events, reader = read_text(text % garbage, 9)
    found = [event["ph"] for event in events]
    assert found == (["1", "2", "3"] if not garbage.startswith("]") else ["1"])
    assert len(reader.notes) == 1


def test_a_broken_entry_before_the_events_does_not_hide_them():
    text = '{"schemaVersion": 1, "pg": {rank: 0}, "x": 1, "traceEvents" : [{"ph": "X"}]}'
    events, reader = read_text(text, 11)
    assert events == [{"ph": "X"}]
    assert reader.notes == ["something before the events cannot be read: left out"]


def test_events_nested_too_deep_or_with_endless_numbers_are_left_out():
    deep = '{"args": ' * 100_000 + "1" + "}" * 100_000
    number = '{"ph": "X", "ts": ' + "9" * 5000 + "}"
    events, reader = read_text('[{"ph": "1"}, ' + deep + ", " + number + ', {"ph": "2"}]')
    assert [event for event in events if "ph" in event] == [{"ph": "1"}, {"ph": "2"}]
    assert "no JSON" in reader.notes[0]


def test_an_event_that_does_not_fit_is_left_out_and_the_window_stays_small():
    long = '{"ph": "X", "name": "' + "x" * 5000 + '"}'
    events, reader = read_text('[{"ph": "1"}, ' + long + ', {"ph": "2"}]', 100, most_chars=1000)
    assert events == [{"ph": "1"}, {"ph": "2"}]
    assert "1 events or entries longer than 1000 characters: left out" in reader.notes


def test_reading_gives_up_where_almost_nothing_is_json():
    events, reader = read_text("[" + '{"ph": x}, ' * (MOST_BROKEN + 5) + '{"ph": "X"}]')
    assert events == []
    assert "the rest of the events is left out" in reader.notes[0]


@pytest.mark.parametrize(
    ("us", "ns"),
    [
        (12, 12_000),
        ("12.345", 12_345),
        ("1767225600123456.789", 1_767_225_600_123_456_789),
        ("4424056236402.01", 4_424_056_236_402_010),
        ("0.0004", 0),
        ("-3.25", -3250),
        ("1e3", 1_000_000),
        ("1e999999999", None),
        ("-1e-999999999", 0),
        ("9" * 30, None),
        ("1" * 5000 + ".5", None),
        ("soon", None),
        (float("nan"), None),
        (True, None),
        (None, None),
        ([], None),
        (1 << 70, None),
    ],
)
def test_microseconds_become_whole_nanoseconds_exactly(us, ns):
    assert nanoseconds(us) == ns


# names that compress badly: the gzipped text is taken in several bites
_RANDOM = random.Random(0)
EVENTS = [slice_of(f"{_RANDOM.getrandbits(800):x}", n * 10, 5) for n in range(2000)]


def test_gzip_members_follow_each_other(tmp_path):
    text = json.dumps({"traceEvents": EVENTS}).encode()
    members = b"".join(gzip.compress(part) for part in pieces(text, 10_000))
    found = chrome.read(saved(tmp_path / "t", members + b"\0\0"))
    assert len(found.ranges) == len(EVENTS)
    assert not any("gzip" in note for note in found.notes)


@pytest.mark.parametrize("damage", ["cut", "checksum", "tail", "middle"])
def test_damaged_gzip_gives_what_comes_out_of_it(tmp_path, damage):
    data = bytearray(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode()))
    at = {"cut": len(data) // 2, "checksum": len(data) - 6, "middle": len(data) // 2}.get(damage)
    if damage == "cut":
        del data[at:]
    elif damage == "tail":
        data += b"more than nothing"
    else:
        data[at : at + 4] = bytes(255 - byte for byte in data[at : at + 4])
    found = chrome.read(saved(tmp_path / "t", bytes(data)))
    n = len(found.ranges)
    assert n == len(EVENTS) if damage in ("checksum", "tail") else 200 < n <= len(EVENTS)
    if damage == "middle":
        # it may end the list of events before the gzip data end; one note is that of no kernels
        assert len(found.notes) > 1
    else:
        assert sum("gzip" in note for note in found.notes) == 1


def test_a_gzip_bomb_is_read_in_a_bounded_window(tmp_path):
    path = tmp_path / "bomb"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'[{"ph": "X", "ts": 0, "dur": 1, "name": "only"},')
        for _ in range(16):
            file.write(b" " * (1 << 22))
    tracemalloc.start()
    found = chrome.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.ranges["name"].tolist() == ["only"]
    assert path.stat().st_size < 1 << 20 and peak < 40 << 20


def test_bytes_that_are_no_utf8_are_replaced_and_counted(tmp_path):
    text = json.dumps([slice_of("ab", 1, 2)]).encode().replace(b"ab", b"a\xff")
    found = chrome.read(saved(tmp_path / "t", b"\xef\xbb\xbf" + text))
    assert found.ranges["name"].tolist() == ["a\ufffd"]
    assert "1 characters are no UTF-8" in found.notes[0]
    assert "".join(text_pieces(saved(tmp_path / "u", "üß".encode()), [], chunk=1)) == "üß"
