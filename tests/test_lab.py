"""A run folder, opened: its numbers, its pictures and what leaves it."""

import json
import sys
import types

import pandas as pd
import pytest

import hspec_lab
from hspec_lab import Config, Eagle2, open_store, store
from hspec_lab.breakdown import phase_table, summary
from hspec_lab.config import as_dict, config_id
from hspec_lab.lab import Run, Store
from hspec_lab.trace import Recorder

AR = Config(prompts=("<a>", "b"))
EAGLE = Config(prompts=("<a>", "b"), draft=Eagle2(tree_size=5, depth=2, top_k=2))


def recorded(n_accepted):
    """Two prompts of three rounds; a clock that ticks once a microsecond."""
    times = iter(range(0, 10**9, 1000))
    recorder, tokens = Recorder(clock=lambda: next(times)), []
    for prompt in range(2):
        recorder.start_prompt(prompt)
        with recorder.span("prefill", "target", 4, 0):
            tokens.append([prompt, -1, 0, 9, "9 ", "target"])
        for step in range(3):
            recorder.begin_round(4)
            with recorder.span("verify_target", "target", 5, 4):
                pass
            recorder.end_round(4, n_accepted, n_accepted + 1)
            for _ in range(n_accepted + 1):
                position = len(tokens) - tokens.index([prompt, -1, 0, 9, "9 ", "target"])
                tokens.append([prompt, step, position, position, f"{position} ", "head"])
    return recorder.tables() | {
        "tokens": pd.DataFrame(tokens, columns=list(store.TABLES["tokens"]))
    }


def write(root, config, n_accepted, date="2026-01-02T03:04:05Z"):
    tables = recorded(n_accepted)
    pieces = tables["tokens"].groupby("prompt")["piece"]
    head = {
        "kind": "measured",
        "config": as_dict(config),
        "config_id": config_id(config),
        "method": config.method,
        "format": config.format,
        "environment": {"device": "cpu", "cpu": "a <chip>", "threads": 2, "date": date},
        "prompts": list(config.prompts),
        "outputs": ["".join(texts) for _, texts in pieces],
    }
    return store.write_run(store.new_folder(root, head["config_id"]), head, tables)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, AR, 0)
    write(tmp_path, EAGLE, 2)
    return tmp_path


@pytest.fixture
def run(root):
    return open_store(root).latest(EAGLE)


@pytest.fixture
def figures(monkeypatch):
    """Stand in for the drawing module: hands back what it was given."""
    fake = types.ModuleType("hspec_lab.figures")
    fake.breakdown_bar = lambda table, **caption: (table, caption)
    fake.coloured_text = lambda tokens, **caption: "|".join(tokens["piece"])
    monkeypatch.setitem(sys.modules, "hspec_lab.figures", fake)
    monkeypatch.setattr(hspec_lab, "figures", fake, raising=False)


def test_run_opens_with_what_was_asked_for(run):
    assert run.config == EAGLE
    assert (run.prompts, run.environment["threads"]) == (["<a>", "b"], 2)
    assert run.texts == ["9 1 2 3 4 5 6 7 8 9 "] * 2
    assert run.mismatches == 0


def test_numbers_are_those_of_breakdown(run):
    expected = summary(run.rounds, run.spans, run.tokens)
    assert run.summary() == pytest.approx(expected, nan_ok=True)
    # rounds take four ticks less one, three microseconds, and emit three tokens
    assert run.tokens_per_s == pytest.approx(1e6)
    assert run.mean_emitted == run.summary()["mean_emitted_outside_loops"] == 3.0
    table = run.breakdown().drop(columns="label")
    pd.testing.assert_frame_equal(table, phase_table(run.rounds, run.spans))
    assert run.breakdown(by_level=True)["level"].tolist() == ["target", ""]


def test_figures_are_given_the_tables_they_need(run, figures):
    table, caption = run.figure()
    assert caption["origin"] == "measured"
    assert caption["note"] == f"cpu (a <chip>), 2 threads, 2026-01-02T03:04:05Z, {run.name}"
    assert {"phase", "us_per_emitted", "label"} <= set(table.columns)
    assert set(table["label"]) == {"eagle2 fp32"}
    assert run.text_html(1) == "|".join(f"{i} " for i in (9, *range(1, 10)))
    with pytest.raises(ValueError, match="prompt must be 0..1, got 2"):
        run.text_html(2)


def test_exports_go_to_the_working_directory_unless_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run.export("perfetto")
    assert path.name == f"{run.name}.perfetto.json"
    assert json.loads((tmp_path / path).read_text())["traceEvents"]
    folder = run.export("parquet", tmp_path / "tables")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "spans.parquet"), run.spans)
    assert run.export("speedscope").name == f"{run.name}.speedscope.json"
    known = "perfetto, nsys-sqlite, parquet, speedscope"
    with pytest.raises(ValueError, match=f"unknown export 'svg'; known: {known}"):
        run.export("svg")


def test_run_shows_its_conditions_and_escapes_them(run):
    for fact in ("method: eagle2", "format: fp32", "a <chip>", "2 threads", "2026-01-02"):
        assert fact in repr(run)
    page = run._repr_html_()
    assert "a &lt;chip&gt;" in page and "<chip>" not in page
    assert "emitted per round" in page


def test_store_gives_runs_and_the_latest_of_a_config(root, monkeypatch):
    opened = open_store(root)
    assert len(opened) == 2
    assert {run.config.method for run in opened} == {"ar", "eagle2"}
    assert opened.latest(AR).config == AR
    assert opened.latest(AR, {"threads": 9}) is None
    assert opened.latest(Config(seed=5)) is None
    monkeypatch.setenv("HSPEC_STORE", str(root))
    assert open_store().root == root
    assert opened.latest(AR).store.root == root


def test_store_compares_runs_with_plain_decoding(root):
    compared = open_store(root).compare().set_index("method")
    assert compared.loc["eagle2", "speedup"] == pytest.approx(3.0)
    assert compared.loc["ar", "speedup"] == 1.0
    assert compared.loc["eagle2", "run"] == open_store(root).latest(EAGLE).name


def test_store_lists_a_broken_run_and_passes_over_it(root):
    broken = open_store(root).latest(EAGLE).folder
    (broken / "spans.parquet").write_bytes(b"PAR1")
    opened = open_store(root)
    assert (len(opened.runs()), len(opened), len(opened.compare())) == (2, 1, 1)
    assert opened.latest(EAGLE) is None
    with pytest.raises(ValueError, match="spans.parquet is damaged"):
        Run(broken).spans  # noqa: B018


def test_empty_store_compares_to_an_empty_table(tmp_path):
    assert Store(tmp_path).compare().empty
    assert "0 runs" in repr(Store(tmp_path / "none"))
    assert "<p>" in Store(tmp_path)._repr_html_()


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run.json is missing"):
        Run(tmp_path)
