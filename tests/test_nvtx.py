"""What our NVTX ranges say, as a tool hears them: a listener of our own in another process."""

from collections import Counter

import pytest
from nvtx_listener import listener_or_skip, ranges_of, run_heard

from hspec_lab.nvtx_ranges import EMITTED_PAYLOAD, RANGE_PAYLOAD, NvtxRecorder

PACKAGE = """
import threading
import numpy as np
import nvtx

domain = nvtx.get_domain("hspec_lab")
numbers = np.zeros((), dtype=[("prompt", "i8"), ("kv_len", "i4"), ("share", "f8")])
numbers[()] = (3, 64, 0.5)
event = domain.get_event_attributes(message="draft", category="head/draft", payload=numbers)
domain.push_range(event)
numbers["prompt"] = -1
domain.push_range(event)
domain.mark(message="emitted", category="round", payload=7)
domain.pop_range()
domain.pop_range()
nvtx.get_domain("other").push_range(message='quote " and \\n', payload=1.5)
nvtx.get_domain("other").pop_range()

def beside():
    domain.push_range(message="inner")
    domain.pop_range()

domain.push_range(message="outer", payload=[1, 2])
thread = threading.Thread(target=beside)
thread.start()
thread.join()
domain.pop_range()
"""

BY_HAND = """
from hspec_lab.nvtx_ranges import NvtxRecorder, listening

recorder = NvtxRecorder(listening())
recorder.start_prompt(5, warmup=True)
with recorder.span("prefill", "target", 64, 0):
    with recorder.module("attention", 2, 64):
        pass
recorder.begin_round(64)
try:
    with recorder.span("draft", "head", 8, 64, n_nodes=24):
        with recorder.module("mlp", 0, 8):
            raise KeyError
except KeyError:
    pass
with recorder.span("verify_target", "target", 24, 64, 24):
    pass
recorder.end_round(23, 2, 3)
recorder.begin_round(67)
with recorder.span("draft", "head", 8, 67):
    pass
recorder.forget(5)  # nobody ended that round
recorder.start_prompt(6)
recorder.begin_round(10)
recorder.start_prompt(7)  # nor this one
recorder.begin_round(20)
recorder.end_round(0, 0, 1)
"""


class _Domain:
    """Counts ranges that are open."""

    def __init__(self):
        self.n_open = 0

    def get_event_attributes(self, message, category, payload):
        return message

    def push_range(self, event):
        self.n_open += 1

    def pop_range(self):
        self.n_open -= 1


class _Broken:
    """A device's clock that fails where a span ends."""

    def __init__(self):
        self.n_marks = 0

    def mark(self):
        self.n_marks += 1
        if self.n_marks == 2:
            raise RuntimeError("device")


def test_a_device_that_fails_leaves_no_phase_open():
    domain = _Domain()
    recorder = NvtxRecorder(domain, _Broken())
    recorder.start_prompt(0)
    with pytest.raises(RuntimeError, match="device"), recorder.span("prefill", "target", 8, 0):
        pass
    assert domain.n_open == 0


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """The tool, built once."""
    return listener_or_skip(tmp_path_factory.mktemp("listener"))


@pytest.fixture(scope="module")
def package_calls(listener, tmp_path_factory):
    """What the `nvtx` package by itself lets a tool hear."""
    return run_heard(PACKAGE, listener, tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def by_hand(listener, tmp_path_factory):
    """What a recorder that is driven by hand lets a tool hear."""
    return run_heard(BY_HAND, listener, tmp_path_factory.mktemp("by_hand"))


def test_the_listener_pairs_pushes_and_pops_per_thread_and_domain(package_calls):
    found = ranges_of(package_calls, "hspec_lab")
    assert [(r["message"], r["depth"]) for r in found] == [
        ("draft", 0),
        ("draft", 1),
        ("outer", 0),
        ("inner", 0),
    ]
    outer, inner = found[2:]
    assert outer["thread"] != inner["thread"]
    assert outer["ns"] < inner["ns"] <= inner["end_ns"] < outer["end_ns"]
    (other,) = ranges_of(package_calls, "other")
    assert (other["message"], other["payload"]) == ('quote " and \n', 1.5)


def test_a_struct_is_read_at_each_push_from_the_memory_it_was_handed_once(package_calls):
    first, second, *_ = ranges_of(package_calls, "hspec_lab")
    assert first["payload"] == {"prompt": 3, "kv_len": 64, "share": 0.5}
    assert second["payload"] == {"prompt": -1, "kv_len": 64, "share": 0.5}
    (mark,) = [call for call in package_calls if call["call"] == "mark"]
    assert (mark["message"], mark["category"], mark["payload"]) == ("emitted", "round", 7)


def test_the_listener_refuses_ranges_without_an_end_and_ends_without_a_range(package_calls):
    pushes = [call for call in package_calls if call["call"] == "push"]
    with pytest.raises(ValueError, match="nothing popped: draft, draft, outer, inner"):
        ranges_of(pushes, "hspec_lab")
    with pytest.raises(ValueError, match="nothing pushed"):
        ranges_of([call for call in package_calls if call["call"] == "pop"], "hspec_lab")


def test_a_round_holds_its_phases_and_a_phase_its_modules(by_hand):
    found = [(r["depth"], r["message"], r["category"]) for r in ranges_of(by_hand, "hspec_lab")]
    assert found == [
        (0, "prefill", "target/prefill"),
        (1, "attention", "target/prefill"),
        (0, "round", "round"),
        (1, "draft", "head/draft"),
        (2, "mlp", "head/draft"),
        (1, "verify_target", "target/verify"),
        (0, "round", "round"),
        (1, "draft", "head/draft"),
        (0, "round", "round"),
        (0, "round", "round"),
    ]


def test_payloads_say_which_round_and_how_much_work(by_hand):
    found = [tuple(r["payload"].values()) for r in ranges_of(by_hand, "hspec_lab")]
    assert all(tuple(r["payload"]) == RANGE_PAYLOAD for r in ranges_of(by_hand, "hspec_lab"))
    assert found[:6] == [
        (5, -1, 1, 64, 0, 0, -1),
        (5, -1, 1, 64, 0, 0, 2),
        (5, 0, 1, 0, 0, 64, -1),
        (5, 0, 1, 8, 24, 64, -1),
        (5, 0, 1, 8, 0, 64, 0),
        (5, 0, 1, 24, 24, 64, -1),
    ]


def test_a_mark_inside_the_round_says_what_it_emitted(by_hand):
    marks = [call for call in by_hand if call["call"] == "mark"]
    assert [tuple(mark["payload"].items()) for mark in marks] == [
        tuple(zip(EMITTED_PAYLOAD, numbers, strict=True))
        for numbers in [(5, 0, 1, 23, 2, 3), (7, 0, 0, 0, 0, 1)]
    ]
    rounds = [r for r in ranges_of(by_hand, "hspec_lab") if r["message"] == "round"]
    # the second and third round were never ended: they have a range, but no mark
    for mark, whole in zip(marks, [rounds[0], rounds[3]], strict=True):
        assert (mark["message"], mark["category"]) == ("emitted", "round")
        assert whole["ns"] < mark["ns"] < whole["end_ns"]


def test_domain_strings_and_categories_are_registered_once(by_hand):
    assert {call["domain"] for call in by_hand} == {"hspec_lab"}
    for kind in ("domain", "register", "category"):
        times = Counter(call["name"] for call in by_hand if call["call"] == kind)
        assert times and set(times.values()) == {1}
    events = [call for call in by_hand if "payload" in call]
    assert all(event["registered"] for event in events)
    named = {call["name"] for call in by_hand if call["call"] == "category"}
    assert {event["category"] for event in events} == named
