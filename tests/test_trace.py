"""Spans: hand-set clocks give hand-computed tables, and misuse raises."""

import pytest

from hspec_lab import store
from hspec_lab.trace import (
    MODULES,
    NO_RECORDER,
    ROUNDS,
    SPANS,
    NullRecorder,
    Recorder,
    measure_span_cost,
)


class Clock:
    """Gives the listed times in turn."""

    def __init__(self, *times_ns):
        self.times_ns = list(times_ns)

    def __call__(self):
        return self.times_ns.pop(0)


class DeviceClock:
    """Marks are numbers; a microsecond lies between two of them."""

    def __init__(self):
        self.marks, self.read = 0, 0

    def mark(self):
        self.marks += 1
        return self.marks

    def elapsed_us(self, a, b):
        self.read += 1
        return float(b - a)


def one_round(recorder, prompt=0, warmup=False):
    recorder.start_prompt(prompt, warmup)
    with recorder.span("prefill", "target", 64, 0):
        pass
    recorder.begin_round(64)
    with recorder.span("draft", "head", 8, 64):
        pass
    with recorder.span("verify_target", "target", 24, 64, 24):
        pass
    recorder.end_round(23, 2, 3)


def test_tables_hold_what_the_clock_said_in_us_since_the_start():
    # made at 1000 ns; prefill 2000-5000; round 6000-12000 with 6500-8500 and 9000-11500
    times = (1000, 2000, 5000, 6000, 6500, 8500, 9000, 11500, 12000)
    recorder = Recorder(clock=Clock(*times))
    one_round(recorder)
    tables = recorder.tables()
    rounds = [[0, 0, False, 23, 2, 3, 64, 5.0, 6.0]]
    assert tables["rounds"].values.tolist() == rounds
    assert tables["spans"].drop(columns="device_us").values.tolist() == [
        [0, -1, False, "prefill", "target", 64, 0, 0, 1.0, 3.0],
        [0, 0, False, "draft", "head", 8, 0, 64, 5.5, 2.0],
        [0, 0, False, "verify_target", "target", 24, 24, 64, 8.0, 2.5],
    ]
    assert tables["spans"]["device_us"].isna().all()


def test_columns_are_those_the_store_accepts():
    # siblings may not import each other, so the words stand in both
    assert list(ROUNDS.items()) == list(store.TABLES["rounds"].items())
    assert list(SPANS.items()) == list(store.TABLES["spans"].items())
    assert list(MODULES.items()) == list(store.MORE_TABLES["modules"].items())


@pytest.mark.parametrize("make", [Recorder, NullRecorder])
def test_tables_without_rows_have_the_same_types(make):
    full = Recorder()
    one_round(full)
    for name, table in make().tables().items():
        assert table.empty
        assert table.dtypes.to_dict() == full.tables()[name].dtypes.to_dict()


def test_rounds_count_up_within_a_prompt_and_begin_again_with_the_next():
    recorder = Recorder()
    one_round(recorder, prompt=0, warmup=True)
    one_round(recorder, prompt=0)
    recorder.begin_round(67)
    recorder.end_round(0, 0, 1)
    rounds = recorder.tables()["rounds"]
    assert rounds[["prompt", "round", "warmup"]].values.tolist() == [
        [0, 0, True],
        [0, 0, False],
        [0, 1, False],
    ]


def test_device_marks_are_read_only_after_the_run():
    clock = DeviceClock()
    recorder = Recorder(device_clock=clock)
    one_round(recorder)
    assert (clock.marks, clock.read) == (6, 0)
    assert recorder.tables()["spans"]["device_us"].tolist() == [1.0, 1.0, 1.0]


def test_spans_of_a_round_lie_inside_it_and_do_not_overlap():
    recorder = Recorder()
    one_round(recorder)
    tables = recorder.tables()
    spans = tables["spans"].query("round == 0")
    ends = spans["start_us"] + spans["duration_us"]
    row = tables["rounds"].iloc[0]
    assert row["start_us"] <= spans["start_us"].min()
    assert ends.max() <= row["start_us"] + row["duration_us"] + 1e-9
    assert (spans["start_us"].iloc[1:].values >= ends.iloc[:-1].values - 1e-9).all()


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        pytest.param("draft", "accept", "'accept' inside phase 'draft'", id="nested"),
        pytest.param(None, "prefill", "'prefill' after the first round began", id="late"),
        pytest.param(None, "gap", "no phase 'gap' to record", id="gap is never recorded"),
        pytest.param(None, "drafting", "known: prefill, draft", id="not a phase"),
    ],
)
def test_misplaced_phase_raises(outer, inner, message):
    recorder = Recorder()
    recorder.start_prompt(0)
    recorder.begin_round(0)
    with pytest.raises(RuntimeError, match=message):
        if outer:
            with recorder.span(outer, "head", 1, 0):
                recorder.span(inner, "head", 1, 0)
        recorder.span(inner, "head", 1, 0)


def test_calls_out_of_order_raise():
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="before start_prompt"):
        recorder.span("prefill", "target", 1, 0)
    with pytest.raises(RuntimeError, match="begin_round needs a started prompt"):
        recorder.begin_round(0)
    recorder.start_prompt(0)
    with pytest.raises(RuntimeError, match="'draft' outside a round"):
        recorder.span("draft", "head", 1, 0)
    with pytest.raises(RuntimeError, match="end_round needs a round"):
        recorder.end_round(0, 0, 1)
    recorder.begin_round(0)
    with pytest.raises(RuntimeError, match="begin_round needs .* the round before it ended"):
        recorder.begin_round(0)
    with recorder.span("accept", "target", 1, 0), pytest.raises(RuntimeError, match="end_round"):
        recorder.end_round(0, 0, 1)
    recorder.end_round(0, 0, 1)
    with pytest.raises(RuntimeError, match="'prefill' after the first round began"):
        recorder.span("prefill", "target", 1, 0)
    recorder.begin_round(1)


def test_round_that_never_ended_leaves_nothing_behind():
    recorder = Recorder()
    one_round(recorder, prompt=0)
    recorder.begin_round(67)
    with pytest.raises(KeyboardInterrupt), recorder.span("draft", "head", 8, 67):
        raise KeyboardInterrupt
    with recorder.span("accept", "target", 8, 67):
        pass
    assert len(recorder.tables()["spans"]) == 3
    one_round(recorder, prompt=1)
    assert recorder.tables()["spans"]["prompt"].tolist() == [0, 0, 0, 1, 1, 1]
    assert recorder.tables()["rounds"]["prompt"].tolist() == [0, 1]


def test_span_that_raised_is_not_kept():
    recorder = Recorder()
    recorder.start_prompt(0)
    with pytest.raises(ZeroDivisionError), recorder.span("prefill", "target", 4, 0):
        raise ZeroDivisionError
    assert recorder.tables()["spans"].empty
    with recorder.span("prefill", "target", 4, 0):
        pass
    assert len(recorder.tables()["spans"]) == 1


def test_prompt_that_ends_with_its_prefill_keeps_it():
    recorder = Recorder()
    for prompt in (0, 1):
        recorder.start_prompt(prompt)
        with recorder.span("prefill", "target", 4, 0):
            pass
    assert recorder.tables()["spans"]["prompt"].tolist() == [0, 1]


def test_null_recorder_records_nothing_and_shares_one_span():
    one_round(NO_RECORDER)
    assert all(table.empty for table in NO_RECORDER.tables().values())
    assert NO_RECORDER.span("draft", "head", 8, 64) is NO_RECORDER.span("accept", "target", 1, 0)
    with pytest.raises(ZeroDivisionError), NO_RECORDER.span("draft", "head", 8, 64):
        raise ZeroDivisionError


def test_null_recorder_has_every_public_method_of_a_recorder():
    public = {name for name in dir(Recorder) if not name.startswith("_")}
    assert public == {name for name in dir(NullRecorder) if not name.startswith("_")}


def modules_in(recorder):
    """A round with a phase of two modules."""
    recorder.begin_round(64)
    with recorder.span("verify_target", "target", 24, 64, 24):
        with recorder.module("attention", 0, 24):
            pass
        with recorder.module("lm_head", -1, 24):
            pass


def test_modules_carry_their_phase_and_lie_inside_it():
    recorder = Recorder()
    recorder.start_prompt(3, warmup=True)
    modules_in(recorder)
    recorder.end_round(23, 2, 3)
    tables = recorder.tables()
    modules, span = tables["modules"], tables["spans"].iloc[0]
    assert modules.drop(columns=["start_us", "duration_us"]).values.tolist() == [
        [3, 0, True, "verify_target", "target", "attention", 0, 24, 64],
        [3, 0, True, "verify_target", "target", "lm_head", -1, 24, 64],
    ]
    ends = modules["start_us"] + modules["duration_us"]
    assert span["start_us"] <= modules["start_us"].min()
    assert ends.max() <= span["start_us"] + span["duration_us"] + 1e-9


def test_modules_of_a_round_that_never_ended_or_of_a_prompt_forgotten_are_dropped():
    recorder = Recorder()
    recorder.start_prompt(0)
    modules_in(recorder)
    assert "modules" not in recorder.tables()
    recorder.start_prompt(0)
    assert "modules" not in recorder.tables()
    modules_in(recorder)
    recorder.end_round(23, 2, 3)
    assert len(recorder.tables()["modules"]) == 2
    recorder.forget(0)
    assert "modules" not in recorder.tables()


def test_module_outside_a_phase_raises():
    recorder = Recorder()
    recorder.start_prompt(0)
    recorder.begin_round(0)
    with pytest.raises(RuntimeError, match="module 'mlp' outside a phase"):
        recorder.module("mlp", 0, 1)


def test_counts_known_only_inside_a_span_replace_those_it_began_with():
    recorder = Recorder()
    recorder.start_prompt(0)
    recorder.begin_round(0)
    with recorder.span("draft", "head", 2, 0, 9):
        recorder.count(n_nodes=7)
    with recorder.span("kv_commit", "target", 24, 0, 7):
        recorder.count(3)
    recorder.end_round(6, 2, 3)
    assert recorder.tables()["spans"][["n_tokens", "n_nodes"]].values.tolist() == [[2, 7], [3, 7]]


def test_span_costs_microseconds_at_most():
    # about 0.5 us on an idle core; the bound only catches a change of kind on a busy machine
    assert 0.0 < measure_span_cost(Recorder, n=2000) < 20.0
    assert measure_span_cost(NullRecorder, n=2000) < measure_span_cost(Recorder, n=2000)
