"""Answers of a panel: a look into arrays must say what the library says the long way."""

import dataclasses

import pytest
from panel_answers import FORMATS, HERE, InventedAnswers

from hspec_lab.acceptance_folder import shipped_traces
from hspec_lab.config import Config, Eagle2, Refine
from hspec_lab.cost import stage_costs
from hspec_lab.predict import predict
from hspec_lab.stages_folder import shipped_stages
from hspec_lab.widgets.answers import Answers
from hspec_lab.widgets.choice import Choice, choice_of, from_query

CHOICE = Choice(HERE, tree_size=8, depth=3, top_k=3, length=4)


@pytest.fixture(scope="module")
def shipped():
    """One trace that ships, with the stages measured beside it."""
    traces = [t for t in shipped_traces() if t.name == "w4a16-hierspec-w4a16-k8"]
    return Answers(traces, shipped_stages())


@pytest.fixture(scope="module")
def answers():
    return InventedAnswers()


@pytest.mark.parametrize(("tree_size", "depth", "length"), [(24, 4, 6), (2, 1, 1), (64, 8, 12)])
def test_a_look_into_the_grid_is_the_prediction_of_the_library(shipped, tree_size, depth, length):
    trace = shipped.traces[0]
    draft = Refine(trace.draft.model, Eagle2(tree_size, depth, 8), length)
    costs = stage_costs(shipped_stages(), trace.config.target, draft)
    expected = predict(trace, draft, costs)
    choice = Choice(shipped.here, tree_size=tree_size, depth=depth, length=length)
    found = shipped.prediction(choice)
    for name in ("us_per_token", "us_per_token_low", "speedup", "speedup_high", "mean_emitted"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    row = shipped.table(choice).query(
        "tree_size == @tree_size and depth == @depth and at_least == @length"
    )
    assert row["us_per_token"].item() == pytest.approx(expected.us_per_token)
    assert found.warnings == expected.warnings


def test_a_top_k_that_was_not_recorded_is_named(shipped):
    warnings = " ".join(shipped.prediction(Choice(shipped.here, top_k=5)).warnings)
    assert "acceptance is of top-k 8, which stands for 5" in warnings
    assert "a draft's time is measured at top-k 8" in warnings


def test_a_format_without_a_trace_uses_the_nearest_and_says_so(shipped):
    choice = Choice("h200", target="w3a16-g128")
    warnings = " ".join(shipped.prediction(choice).warnings)
    assert "acceptance of zoo:target@w4a16-g128 stands for zoo:target@w3a16-g128" in warnings


def test_devices_share_what_was_walked(shipped):
    here, there = Choice(shipped.here), Choice("h200")
    shipped.prepare(here)
    assert shipped.source(here).walks is shipped.source(there).walks
    assert shipped.ready(there)
    assert shipped.prediction(here).mean_emitted == shipped.prediction(there).mean_emitted


@pytest.mark.parametrize("method", ["ar", "chain", "eagle2", "hierspec"])
@pytest.mark.parametrize("prompt", [None, 1])
def test_nothing_is_ready_before_it_is_prepared(method, prompt):
    answers = InventedAnswers()
    choice = dataclasses.replace(CHOICE, method=method, prompt=prompt)
    assert not answers.ready(choice)
    answers.prepare(choice)
    assert answers.ready(choice)


def test_one_text_is_that_text_alone(answers):
    parts = [answers.source(dataclasses.replace(CHOICE, prompt=n)) for n in range(3)]
    rounds = [source.totals(n)[0].n_rounds.astype(int) for n, source in enumerate(parts)]
    whole = answers.source(CHOICE).totals(None)
    assert sum(int(one.n_rounds[0, 0, 0]) for one in whole) == sum(r[0, 0, 0] for r in rounds)
    assert len(answers.texts()) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": 9}, "holds the texts 0..2, got 9"),
        ({"target": "w8a8"}, "has no times of w8a8"),
        ({"device": "abacus"}, "device is one of"),
    ],
)
def test_what_is_missing_is_one_line(answers, change, said):
    with pytest.raises(ValueError, match=said):
        answers.prediction(dataclasses.replace(CHOICE, **change))


def test_rows_of_a_chain_are_its_length_and_one(answers):
    choice = dataclasses.replace(CHOICE, method="chain", length=5)
    assert answers.source(choice).rows(choice) == pytest.approx(6, abs=0.3)


@pytest.mark.parametrize("format", FORMATS)
def test_sources_are_kept_up_to_a_number(format, monkeypatch):
    from hspec_lab.widgets import answers as module

    monkeypatch.setattr(module, "_MOST_SOURCES", 3)
    answers = InventedAnswers()
    for context in range(100, 110):
        answers.prediction(dataclasses.replace(CHOICE, target=format, context=context))
    assert len(answers._sources) == 3


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(draft=Eagle2(5, 2, 3, "folder-of-mine@w8a8")),
        Config(
            target="mine@w8a8",
            draft=Refine("small@w8a8", Eagle2(5, 2, 3), 3, sampling="greedy", tree_size=16),
        ),
        Config(target="zoo:target", draft=Refine("zoo:intermediate", Eagle2(), 3)),
    ],
    ids=["plain", "own head", "narrow", "formats left out"],
)
def test_a_choice_spells_its_config_back(config):
    assert choice_of(config).config(config) == config


def test_a_line_leaves_out_what_it_does_not_say():
    assert from_query("?depth=2", CHOICE) == dataclasses.replace(CHOICE, depth=2)
    assert from_query(CHOICE.query(), Choice()) == CHOICE
