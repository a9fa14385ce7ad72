"""The form in which all traces meet: what lies around what, and a run that comes back whole."""

import pandas as pd
import pytest

from hspec_lab import breakdown
from hspec_lab.config import Chain, Config, Eagle2, Refine, as_dict, schemes
from hspec_lab.terms import LEVELS, PHASES, category_of, phase_of
from hspec_lab.timeline import KERNELS, LAUNCHES, RANGES, Timeline, nested, of_run, table
from hspec_lab.trace import Recorder


def ranges_of(*rows):
    """Ranges from (name, start, end), or with a thread behind."""
    rows = [(*row, 0)[:4] for row in rows]
    found = pd.DataFrame(rows, columns=["name", "start_ns", "end_ns", "thread"])
    return nested(table(RANGES, found, kind="range"))


def parents(ranges):
    names = dict(zip(ranges["range"], ranges["name"], strict=True)) | {-1: None}
    return {row.name: names[row.parent] for row in ranges[["name", "parent"]].itertuples(False)}


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        pytest.param([("a", 0, 9), ("b", 1, 5), ("c", 2, 3)], "a>b>c", id="nested"),
        pytest.param([("c", 2, 3), ("b", 1, 5), ("a", 0, 9)], "a>b>c", id="in any order"),
        pytest.param([("a", 0, 5), ("b", 5, 9)], "a b", id="touching ones are neighbours"),
        pytest.param([("a", 0, 9), ("b", 0, 4), ("c", 4, 9)], "a>b a>c", id="sharing the ends"),
        pytest.param([("a", 0, 6), ("b", 3, 9)], "a b", id="crossing ones are no parents"),
        pytest.param([("a", 0, 9), ("b", 1, 4), ("c", 2, 6)], "a>b a>c", id="behind a crossing"),
        pytest.param([("a", 0, 9, 1), ("b", 1, 5, 2)], "a b", id="another thread"),
        pytest.param([("a", 0, 5), ("b", 5, 5)], "a>b", id="empty, at an end"),
        pytest.param([("a", 0, 5), ("b", 0, 5)], "a>b", id="equal: the first lies around"),
    ],
)
def test_a_range_lies_in_the_innermost_one_that_holds_all_of_it(rows, found):
    expected = {row[0]: None for row in rows}
    for chain in found.split():
        names = chain.split(">")
        expected |= dict(zip(names[1:], names, strict=False))
    assert parents(ranges_of(*rows)) == expected


def test_of_equal_ranges_the_round_lies_around_the_phase_around_the_module():
    rows = [("module", "m"), ("phase", "p"), ("round", "r")]
    found = pd.DataFrame(rows, columns=["kind", "name"])
    ranges = nested(table(RANGES, found, start_ns=0, end_ns=5, thread=0))
    assert ranges["name"].tolist() == ["r", "p", "m"]
    assert ranges["parent"].tolist() == [-1, 0, 1]


def test_ten_thousand_ranges_that_never_close_do_not_take_quadratic_time():
    n = 10_000
    rows = pd.DataFrame({"name": "x", "start_ns": range(n), "end_ns": range(n, 2 * n)})
    ranges = nested(table(RANGES, rows, kind="range", thread=0))
    assert (ranges["parent"] == -1).all()


def test_tables_have_exactly_the_columns_and_types_they_should():
    for columns in (RANGES, LAUNCHES, KERNELS):
        empty, full = table(columns), table(columns, pd.DataFrame({"name": ["x"], "odd": [1]}))
        assert list(empty) == list(full) == list(columns)
        assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    row = table(RANGES, pd.DataFrame({"name": ["x", None], "n_tokens": [None, 7]})).iloc[0]
    assert (row["n_tokens"], row["level"], row["warmup"]) == (-1, "", False)


# the target is verified by verify_target alone, and that verifies nothing else
PAIRS = [
    (level, phase)
    for level in (*LEVELS, "intermediate2")
    for phase in PHASES
    if not phase.startswith("verify_") or (phase == "verify_target") == (level == "target")
]


@pytest.mark.parametrize(("level", "phase"), PAIRS)
def test_categories_name_level_and_phase_and_can_be_read_back(level, phase):
    assert phase_of(category_of(level, phase)) == (level, phase)


@pytest.mark.parametrize("category", ["", "round", "target/", "/verify", "target/else", "a/b/c"])
def test_other_categories_are_not_ours(category):
    assert phase_of(category) is None


def recorded():
    recorder = Recorder()
    for warmup in (True, False):
        recorder.start_prompt(0, warmup)
        with recorder.span("prefill", "target", 4, 0):
            pass
        for kv_len in (4, 7):
            recorder.begin_round(kv_len)
            with recorder.span("draft", "head", 2, kv_len, 6):
                pass
            with recorder.span("verify_target", "target", 6, kv_len, 6):
                with recorder.module("attention", 0, 6):
                    pass
                with recorder.module("lm_head", -1, 6):
                    pass
            recorder.end_round(5, 2, 3)
    return recorder.tables()


def test_a_run_becomes_a_timeline_and_back_without_loss():
    tables = recorded()
    head = {"config": as_dict(Config(target="zoo:target@w8a8", draft=Eagle2())), "method": "eagle2"}
    timeline = of_run(head, tables)
    back = timeline.tables()
    assert sorted(back) == ["modules", "rounds", "spans"]
    for name in back:
        pd.testing.assert_frame_equal(back[name], tables[name])
    for by_level in (False, True):
        ours = breakdown.phase_table(tables["rounds"], tables["spans"], by_level)
        theirs = breakdown.phase_table(back["rounds"], back["spans"], by_level)
        pd.testing.assert_frame_equal(ours, theirs)
    assert timeline.about["method"] == "eagle2"


def test_phases_lie_in_rounds_modules_in_phases_and_each_knows_its_scheme():
    head = {"config": as_dict(Config(target="zoo:target@w8a8", draft=Eagle2()))}
    ranges = of_run(head, recorded()).ranges
    kind = ranges["kind"].to_numpy()
    for row in ranges.itertuples():
        around = kind[row.parent] if row.parent >= 0 else None
        expected = {"module": "phase", "round": None}.get(row.kind, "round")
        assert around == (None if row.name == "prefill" else expected)
        assert row.scheme == {"target": "w8a8", "head": "fp32", "": ""}[row.level]


def test_notes_are_added_not_replaced():
    timeline = Timeline(table(RANGES), notes=("a",)).noting("b", "c")
    assert timeline.notes == ("a", "b", "c")


def test_schemes_name_the_format_of_every_level():
    deep = Refine("zoo:intermediate@w8a8", Refine("zoo:intermediate@fp32", Eagle2()))
    assert schemes(Config(target="zoo:target@w4a16-g128", draft=deep)) == {
        "target": "w4a16-g128",
        "intermediate": "w8a8",
        "intermediate2": "fp32",
        "head": "fp32",
    }
    assert schemes(Config(draft=Chain("zoo:intermediate@w8a8", 3)))["intermediate"] == "w8a8"
    named = Config(draft=Eagle2(head="zoo:target-eagle2@w8a8"))
    assert schemes(named)["head"] == "w8a8"
