"""Time to first token, memory and the length from which speculation pays, by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hspec_lab.request import Prefill, break_even, memory, prefills_of_run, time_to_first_token
from hspec_lab.roofline import Memory

LEVELS = {
    "target": Memory(weights=600.0, embedding=100.0, kv=50.0, activations=10.0),
    "head": Memory(weights=30.0, embedding=0.0, kv=5.0, activations=5.0),
}


def _spans(rows):
    columns = ["prompt", "round", "warmup", "level", "n_tokens", "duration_us"]
    return pd.DataFrame(rows, columns=columns)


def test_every_level_reads_the_prompt():
    prefills = [
        Prefill("target", lambda n: 10.0 * n, "roofline"),
        Prefill("intermediate", lambda n: 5.0 * n, "measured", (10, 100)),
        Prefill("head", lambda n: 100.0, "calibrated", (10, 20)),
    ]
    table = time_to_first_token(prefills, 40)
    assert table["us"].sum() == 400 + 200 + 100
    assert list(table["share"]) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert list(table["origin"]) == ["roofline", "measured", "calibrated"]
    assert list(table["note"]) == ["", "", "extrapolated from 10 to 20 tokens"]


def test_a_runs_prefill_is_a_line_through_its_prompts():
    # 50 us and 3 us a token on the target, in two chunks; in proportion where lengths are equal
    spans = _spans(
        [
            (0, -1, True, "target", 10, 9999.0),
            (0, -1, False, "target", 10, 40.0),
            (0, -1, False, "target", 10, 70.0),
            (1, -1, False, "target", 40, 170.0),
            (0, -1, False, "head", 20, 60.0),
            (1, -1, False, "head", 20, 80.0),
            (0, 0, False, "target", 1, 7777.0),
        ]
    )
    table = time_to_first_token(prefills_of_run(spans), 30).set_index("level")
    assert table.loc["target", "us"] == pytest.approx(140)
    assert table.loc["head", "us"] == pytest.approx(3.5 * 30)
    assert table.loc["target", "note"] == ""
    assert "extrapolated from 20 to 20" in table.loc["head", "note"]


def test_noise_that_falls_with_length_is_not_believed():
    spans = _spans([(0, -1, False, "target", 10, 120.0), (1, -1, False, "target", 20, 90.0)])
    us = prefills_of_run(spans)[0].us
    assert us(10) == pytest.approx(70) and us(1000) == pytest.approx(7000)


def test_a_run_without_prefill_and_an_empty_prompt_are_refused():
    with pytest.raises(ValueError, match="recorded no prefill"):
        prefills_of_run(_spans([(0, 0, False, "target", 1, 5.0)]))
    with pytest.raises(ValueError, match="at least one token, got 0"):
        time_to_first_token([Prefill("target", float, "roofline")], 0)
    with pytest.raises(ValueError, match="one level at least"):
        time_to_first_token([], 5)


def test_memory_adds_up_by_level_and_says_what_does_not_fit():
    table = memory(LEVELS, capacity_bytes=1000.0, usable=0.8)
    assert list(table["weights_bytes"]) == [700, 30]
    assert list(table["total_bytes"]) == [760, 40]
    assert list(table["fits"]) == [True, True]
    assert not memory(LEVELS, capacity_bytes=999.0, usable=0.8)["fits"].any()
    assert memory(LEVELS)["fits"].isna().all()
    assert memory({}, 10.0).empty


EVEN = {
    "pays from the start": ((10, 10, 1, 2), 0),
    "earlier and faster": ((9, 10, 1, 2), 0),
    "later by ten tokens' gain": ((20, 10, 1, 2), 11),
    "rounded up to whole tokens": ((20.5, 10, 1, 2), 12),
    "equal in all": ((10, 10, 2, 2), 0),
    "later and no faster": ((11, 10, 2, 2), math.inf),
    "slower": ((10, 10, 3, 2), math.inf),
    "earlier but slower": ((5, 10, 3, 2), math.inf),
}


@pytest.mark.parametrize("times,tokens", EVEN.values(), ids=EVEN)
def test_break_even_is_the_first_length_that_is_not_slower(times, tokens):
    assert break_even(*times) == tokens
    lengths = np.arange(1, 200)
    first, plain_first, us, plain_us = times
    pays = first + (lengths - 1) * us <= plain_first + (lengths - 1) * plain_us
    if math.isfinite(tokens):
        assert list(pays) == list(lengths >= tokens)
    else:
        assert not pays[-1]


def test_break_even_refuses_what_is_no_time():
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and at least 0"):
            break_even(wrong, 1.0, 1.0, 1.0)
