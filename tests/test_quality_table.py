"""One row a model: its numbers are those of the functions that measure them."""

import json

import pandas as pd
import pytest
import torch
from test_cli_bits import HELD_OUT, here, made  # noqa: F401

from hspec_lab import quality_table, zoo
from hspec_lab.pipeline import Models, folder_of
from hspec_lab.quality import Reference, measure_quality, text_ids
from hspec_lab.quality_table import COLUMNS, as_text, layers_text, measure_table
from hspec_lab.quantize import quantize
from hspec_lab.text import load_tokenizer

SMALL = {"n_windows": 2, "n_prompts": 1, "threads": 1}
MODELS = ["zoo:target@w4a16-g32+gptq", "zoo:target@w4a16-g32", "zoo:target@fp32"]


@pytest.fixture(autouse=True)
def settled(here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(quality_table, "_MAX_NEW_TOKENS", 8)
    return here


def test_a_row_says_what_the_model_is_and_what_it_lost(settled):
    told = []
    table = measure_table(MODELS, **SMALL, progress=lambda done, total, words: told.append(words))
    assert list(table.columns) == list(COLUMNS) and list(table["model"]) == MODELS
    assert list(table["scheme"]) == [name.partition("@")[2] for name in MODELS]
    assert list(table["bits"]) == [5, 5, 32]
    models, tokenizer = Models(), load_tokenizer(folder_of(MODELS[2]))
    plain = Reference(models.transformer(MODELS[2], False, "cpu"))
    # a model is never asked beyond its context
    window = min(512, plain.model.shape.context)
    windows = text_ids(tokenizer, HELD_OUT["evaluation"], window=window, n_windows=2)
    for row in table.itertuples():
        model = models.transformer(row.model, False, "cpu")
        found = measure_quality(model, plain, windows)
        assert row.perplexity == pytest.approx(found.perplexity)
        assert row.bits_per_byte == pytest.approx(found.bits_per_byte)
        assert (row.kl, row.agreement) == (pytest.approx(found.kl), found.agreement)
        assert row.megabytes == model.nbytes / 1e6
        assert min(row.chain, row.eagle2, row.hierspec) >= 1 and row.seconds > 0
    marks = json.loads((folder_of(MODELS[0]) / "config.json").read_text())["hspec"]
    assert table["seconds"][0] == marks["seconds"]
    # gptq costs nothing where it stands and is nearer than rounding
    assert 0 == table["kl"][2] < table["kl"][0] < table["kl"][1]
    assert told[0] == MODELS[0] and any("layer 2 of 2" in words for words in told)


def test_layers_have_their_errors_and_loud_channels_by_unit():
    shown = layers_text([MODELS[1], MODELS[2]])
    rounded, plain = shown.split("\n\n")
    assert rounded.startswith(MODELS[1]) and plain.startswith(MODELS[2])
    for unit in ("qkv", "o", "gate_up", "down"):
        assert f"loud {unit}" in rounded
    errors = [float(line.split()[1]) for line in rounded.splitlines()[3:]]
    assert len(errors) == 2 and min(errors) > 0
    assert all(float(line.split()[1]) == 0 for line in plain.splitlines()[3:])


def test_no_drafter_is_asked_where_no_prompt_is_wanted():
    table = measure_table(MODELS[1:2], n_windows=1, n_prompts=0, threads=1)
    assert table[["chain", "eagle2", "hierspec"]].isna().all(axis=None)
    assert not table[["perplexity", "kl"]].isna().any(axis=None)


def test_a_made_folder_is_compared_with_what_it_was_made_from():
    folder = quantize(MODELS[0])
    found = measure_table([f"{folder}@w4a16-g32+gptq"], n_windows=1, n_prompts=0, threads=1)
    wanted = measure_table(MODELS[:1], n_windows=1, n_prompts=0, threads=1)
    assert found["kl"][0] == wanted["kl"][0] > 0


def test_a_mistake_in_the_last_model_is_found_before_the_first_is_measured(settled):
    for last, message in (
        ("zoo:target@nf4+gptq", "no fast operator on cpu"),
        (f"{settled}/nowhere@fp32", "no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_table([MODELS[0], last], **SMALL)
    with pytest.raises(ValueError, match="no such folder"):
        measure_table(MODELS[:1], reference=f"{settled}/nowhere@fp32", **SMALL)
    assert not (settled / "shelf").exists()


def test_the_same_model_twice_is_measured_once(monkeypatch):
    measured = []

    def row(model, *_):
        measured.append(model)
        return dict.fromkeys(COLUMNS, 1.0) | {"model": model, "scheme": "x"}

    monkeypatch.setattr(quality_table, "_row", row)
    table = measure_table([MODELS[2], "zoo:target"], n_windows=1, n_prompts=0, threads=1)
    assert len(table) == 2 and measured == [MODELS[2]]


def test_an_interrupted_table_keeps_its_rows(settled, monkeypatch):
    row, out = quality_table._row, settled / "table.json"

    def stopped(model, *rest):
        if model == MODELS[2]:
            raise KeyboardInterrupt
        return row(model, *rest)

    monkeypatch.setattr(quality_table, "_row", stopped)
    kept = {"n_windows": 1, "n_prompts": 0, "threads": 1, "out": out}
    with pytest.raises(KeyboardInterrupt):
        measure_table(MODELS, **kept)
    assert [found["model"] for found in json.loads(out.read_text())["rows"]] == MODELS[:2]
    monkeypatch.setattr(quality_table, "_row", row)
    assert list(measure_table(MODELS, **kept)["model"]) == MODELS


def test_a_file_that_is_no_table_is_refused(settled):
    out = settled / "table.json"
    for content in ("[1]", "{", '{"how": 1}'):
        out.write_text(content)
        with pytest.raises(ValueError, match="table.json"):
            measure_table(MODELS[1:2], n_windows=1, n_prompts=0, threads=1, out=out)
        assert out.read_text() == content


def test_a_table_is_text_with_nothing_where_nothing_was_measured():
    row = dict.fromkeys(COLUMNS, float("nan")) | {"model": "m@fp32", "scheme": "fp32", "kl": 0.1}
    header, line = as_text(pd.DataFrame([row]).astype(COLUMNS)).splitlines()
    assert "scheme" not in header and line.split() == ["m@fp32", "0.1000"]
    assert zoo.held_out("evaluation") and torch.get_num_threads() >= 1
