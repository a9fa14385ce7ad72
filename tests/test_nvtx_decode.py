"""NVTX ranges of a real decode are what its recorder says; without a tool there are none."""

import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from nvtx_listener import listener_or_skip, ranges_of, run_heard

from hspec_lab.config import Chain, Config
from hspec_lab.experiment import Session
from hspec_lab.nvtx_ranges import EMITTED_PAYLOAD, NvtxRecorder, listening
from hspec_lab.terms import PHASES, category_of
from hspec_lab.trace import NO_RECORDER, Recorder

DECODE = """
import sys
from pathlib import Path
from hspec_lab.config import Config, Eagle2, Refine
from hspec_lab.experiment import Session

below = Eagle2(tree_size=8, depth=3, top_k=4)
draft = Refine("zoo:intermediate@w8a8", below, at_least=3, tree_size=6)
config = Config(target="zoo:target@w8a8", draft=draft, n_prompts=2, max_new_tokens=8, threads=1)
session = Session(config, modules=True)
session.warm_up()
for index in range(2):
    for _ in session.rounds_of(index):
        pass
for name, table in session.tables().items():
    table.to_json(Path(sys.argv[1]) / f"{name}.json", orient="records", double_precision=4)
(Path(sys.argv[1]) / "zero_ns").write_text(str(session.recorder.zero_ns))
"""


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    """What a decode under the tool let it hear, and the tables that it recorded itself."""
    folder = tmp_path_factory.mktemp("decode")
    listener = listener_or_skip(folder)
    calls = run_heard(DECODE, listener, folder, str(folder))
    tables = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("rounds", "spans", "modules")
    }
    return SimpleNamespace(calls=calls, zero_ns=int((folder / "zero_ns").read_text()), **tables)


KINDS = {"rounds": ("round",), "modules": ("attention", "mlp", "lm_head")}


def pairs_of(decode, table):
    """Each row of a table with the range that should be its own, in order of time."""
    ranges = ranges_of(decode.calls, "hspec_lab")
    if table == "spans":
        others = sum(KINDS.values(), ())
        found = [entry for entry in ranges if entry["message"] not in others]
    else:
        found = [entry for entry in ranges if entry["message"] in KINDS[table]]
    return list(zip(getattr(decode, table), found, strict=True))


def test_phases_are_the_recorded_spans_one_to_one_in_order(decode):
    pairs = pairs_of(decode, "spans")
    for row, entry in pairs:
        assert entry["message"] == row["phase"]
        assert entry["category"] == category_of(row["level"], row["phase"])
        for name in ("prompt", "round", "warmup", "n_tokens", "kv_len"):
            assert entry["payload"][name] == row[name]
        # how large a drafter's tree became is known behind the push; before it, how large at most
        asked = entry["payload"]["n_nodes"]
        assert asked >= row["n_nodes"] if row["phase"] == "draft" else asked == row["n_nodes"]
    assert {row["level"] for row, _ in pairs} == {"target", "intermediate", "head"}
    assert {row["phase"] for row, _ in pairs} == set(PHASES) - {"gap"}


def test_rounds_are_the_recorded_rounds_and_marks_their_counts(decode):
    for row, entry in pairs_of(decode, "rounds"):
        assert [entry["payload"][key] for key in ("prompt", "round", "warmup", "kv_len")] == [
            row[key] for key in ("prompt", "round", "warmup", "kv_len")
        ]
    marks = [call for call in decode.calls if call["call"] == "mark"]
    assert [mark["payload"] for mark in marks] == [
        {key: int(row[key]) for key in EMITTED_PAYLOAD} for row in decode.rounds
    ]


def test_modules_are_the_recorded_modules_in_their_phases_category(decode):
    for row, entry in pairs_of(decode, "modules"):
        assert entry["message"] == row["module"]
        assert entry["category"] == category_of(row["level"], row["phase"])
        for name in ("prompt", "round", "warmup", "layer", "n_tokens", "kv_len"):
            assert entry["payload"][name] == row[name]


@pytest.mark.parametrize("table", ["rounds", "spans", "modules"])
def test_what_is_recorded_lies_inside_its_range(table, decode):
    for row, entry in pairs_of(decode, table):
        start_ns = decode.zero_ns + row["start_us"] * 1e3
        # the tables hold us as floats: a nanosecond is lost
        assert entry["ns"] <= start_ns + 1
        assert start_ns + row["duration_us"] * 1e3 <= entry["end_ns"] + 1


class Unheard:
    """An `nvtx` package in a process to which no tool listens; counts what is asked of it."""

    def __init__(self):
        self.asked = Counter()
        self.domain = type("DummyDomain", (), {"__getattr__": lambda _, name: self.note(name)})()

    def get_domain(self, name):
        self.asked["get_domain"] += 1
        return self.domain

    def note(self, name):
        self.asked[name] += 1
        return lambda *args, **kwargs: None


@pytest.fixture
def unheard(monkeypatch):
    """The `nvtx` package, replaced by one that nobody listens to."""
    fake = Unheard()
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    return fake


CONFIG = Config(draft=Chain("zoo:intermediate@fp32", 2), n_prompts=1, max_new_tokens=4, threads=1)


def decoded(**options):
    session = Session(CONFIG, **options)
    for _ in session.rounds_of(0):
        pass
    return session


def test_without_a_tool_nothing_is_built_and_nothing_called(unheard):
    session = decoded()
    assert type(session.recorder) is Recorder and len(session.tables()["spans"])
    assert unheard.asked == {"get_domain": 1}


def test_without_a_recorder_and_a_tool_nothing_is_recorded(unheard):
    assert decoded(record=False).recorder is NO_RECORDER
    assert unheard.asked == {"get_domain": 1}


def test_ranges_that_nobody_wants_do_not_even_ask(unheard):
    assert type(decoded(nvtx=False).recorder) is Recorder
    assert not unheard.asked


def test_ranges_that_are_wanted_are_pushed_whoever_listens(unheard):
    session = decoded(nvtx=True)
    tables = session.tables()
    n_ranges = len(tables["rounds"]) + len(tables["spans"])
    assert isinstance(session.recorder, NvtxRecorder)
    assert unheard.asked["push_range"] == unheard.asked["pop_range"] == n_ranges
    assert unheard.asked["mark"] == len(tables["rounds"])
    # one object for each kind of range, the round's and the mark's among them, used again and again
    n_kinds = len(tables["spans"].drop_duplicates(["phase", "level"])) + 2
    assert unheard.asked["get_event_attributes"] == n_kinds < n_ranges


@pytest.mark.parametrize("warmup", [False, True])
def test_a_round_that_fails_leaves_no_range_open(unheard, monkeypatch, warmup):
    session = Session(CONFIG, nvtx=True)

    def failing(*_):
        raise ValueError("weights on fire")

    monkeypatch.setattr(session.verifier, "_commit", failing)
    with pytest.raises(ValueError, match="on fire"):
        list(session.rounds_of(0, warmup=warmup))
    assert unheard.asked["push_range"] == unheard.asked["pop_range"] > 1
    assert not session.recorder.in_round


def test_wanting_ranges_without_the_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert listening() is None
    with pytest.raises(ValueError, match="pip install nvtx"):
        listening(True)
