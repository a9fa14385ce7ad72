"""The page of one run shows all that the run can show, and says why it cannot show the rest."""

import re
from dataclasses import replace

import hspec_profiles
import numpy as np
import pandas as pd
import pytest
from synthetic import write_synthetic_run, write_synthetic_store

from hspec_lab import store, table, trace_out
from hspec_lab.config import Config, as_dict, config_id
from hspec_lab.lab import Run, open_store
from hspec_lab.report import comparable, figures_of
from hspec_lab.timeline import KERNELS, Timeline
from hspec_lab.timeline import table as typed

HEADINGS = [
    "Where the time of a token goes",
    "Speed-up over plain decoding",
    "Tokens per round",
    "Round by round",
    "The slowest rounds",
    "How near the device's limits",
    "What a round waits for",
    "Against plain decoding, phase by phase",
    "Predicted and measured",
    "Kernels",
    "What happened when",
    "Which model produced each token",
]
TIMED = ("rounds", "spans")
WORK = {"name": ["gemm", "copy"], "kind": ["kernel", "memcpy"], "device": 0, "stream": 7}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return write_synthetic_store(tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture
def run(shelf):
    return of(shelf, "hierspec", "w4a16-g128")


@pytest.fixture
def parts(run):
    return figures_of(run, list(run.store))


def of(shelf, method, format="fp32"):
    return next(
        run
        for run in open_store(shelf)
        if (run.head["method"], run.head["format"]) == (method, format)
    )


def page_of(run, path):
    written = table.write_page(path, table.rows_of([*run.store])[:1], [run], run.environment)
    return written.read_text(encoding="utf-8")


def of_ours(page):
    """The page without plotly.js itself."""
    return re.sub(r"<script>/\*\*.*?</script>", "", page, count=1, flags=re.S)


def as_chain(tmp_path, **head):
    """The shipped chain run, copied to where others can be laid beside it."""
    shipped = f"{hspec_profiles.__path__[0]}/runs/zoo/chain"
    found, tables = store.read_run(shipped)
    return Run(store.write_run(tmp_path / "0-20260101T000000", found | head, tables))


def test_every_section_is_there_in_its_order_and_drawn_or_explained(parts):
    assert list(parts) == HEADINGS
    missing = {name: part for name, part in parts.items() if "Not drawn" in str(part)}
    assert set(missing) == {"How near the device's limits", "Predicted and measured", "Kernels"}
    assert "no bandwidth known" in missing["How near the device's limits"]
    assert "Invented 9000" in missing["Predicted and measured"]
    assert "hspec trace --kernels" in missing["Kernels"]


def test_the_page_loads_nothing_from_anywhere(run, tmp_path):
    page = page_of(run, tmp_path / "page.html")
    ours = of_ours(page)
    assert len(page) - len(ours) > 3_000_000, "plotly.js lies in it"
    assert not re.search(r"https?://", ours)
    assert not re.search(r"(src|href)\s*=|@import|url\(", ours)
    assert page.count("* plotly.js v") == 1


def test_the_page_names_the_run_and_the_code_that_makes_it(run, tmp_path):
    page = of_ours(page_of(run, tmp_path / "page.html"))
    assert "hierspec w4a16-g128; 4 prompts" in page
    assert "from hspec_lab import Config, Eagle2, Refine, run" in page
    assert "config = Config(target=&#x27;zoo:target@w4a16-g128&#x27;" in page


def test_what_a_model_or_a_user_wrote_never_becomes_part_of_the_page(tmp_path):
    folder = write_synthetic_run(tmp_path / "runs", Config(n_prompts=1))
    head, tables = store.read_run(folder)
    evil = "</pre></script><script>alert(1)</script>"
    tables["tokens"]["piece"] = evil
    spans = tables["spans"]
    tables["spans"] = spans.assign(level=spans["level"].where(spans["phase"] == "prefill", evil))
    again = store.write_run(
        tmp_path / "evil", head | {"prompts": [evil], "outputs": [evil]}, tables
    )
    ours = of_ours(page_of(Run(again), tmp_path / "page.html"))
    assert "&lt;script&gt;alert(1)" in ours
    assert "<script>alert" not in ours and "</pre></script>" not in ours


def test_levels_add_up_to_the_whole(run, parts):
    figure = parts["Where the time of a token goes"]
    told = pd.DataFrame(
        [(t.name, y, x) for t in figure.data for y, x in zip(t.y, t.x, strict=True)],
        columns=["phase", "label", "ms"],
    )
    whole = told[told["label"] == run.label].set_index("phase")["ms"]
    levels = told[told["label"] != run.label].groupby("phase")["ms"].sum()
    phases = [phase for phase in whole.index if phase != "gap"]
    assert set(told["label"]) == {
        run.label,
        *(f"of it, {n}" for n in ("head", "intermediate", "target")),
    }
    np.testing.assert_allclose(levels[phases], whole[phases])


def test_speed_up_stands_beside_what_else_was_decoded_there(run, parts):
    figure = parts["Speed-up over plain decoding"]
    own = next(trace for trace in figure.data if trace.name == "w4a16-g128")
    assert [trace.name for trace in figure.data] == ["fp32", "w4a16-g128"]
    assert [width > 0 for width in own.marker.line.width] == [x == "hierspec" for x in own.x]
    rows = table.rows_of([*run.store])
    row = next(row for row in rows if row["run"] == run.name)
    assert own.y[own.x.index("hierspec")] == pytest.approx(row["speedup"])


def test_a_run_alone_says_what_it_is_to_be_compared_with(run):
    alone = figures_of(run, [])
    for heading in ("Speed-up over plain decoding", "Against plain decoding, phase by phase"):
        assert "Not drawn" in alone[heading]
    assert "--method ar" in alone["Speed-up over plain decoding"]


@pytest.mark.parametrize("left", ["no rounds", "nothing", "warm-up"])
def test_a_run_without_measured_rounds_is_a_page_that_says_so(tmp_path, left):
    folder = write_synthetic_run(tmp_path, Config(n_prompts=1))
    head, tables = store.read_run(folder)
    cut = {
        "no rounds": lambda rows: rows[rows["round"] < 0],
        "nothing": lambda rows: rows[:0],
        "warm-up": lambda rows: rows.assign(**{"warmup": True} if "warmup" in rows else {}),
    }[left]
    again = store.write_run(
        tmp_path / "cut", head, {name: cut(rows) for name, rows in tables.items()}
    )
    page = page_of(Run(again), tmp_path / "page.html")
    assert page.count("the run has no measured rounds that emitted tokens") == 3
    assert "Traceback" not in page


def test_plain_decoding_is_compared_with_nothing(shelf):
    plain = of(shelf, "ar")
    told = figures_of(plain, list(plain.store))["Against plain decoding, phase by phase"]
    assert "this run is plain decoding" in told


def test_runs_of_other_machines_prompts_or_broken_tables_are_not_compared(run, tmp_path):
    other = Run(write_synthetic_run(tmp_path, replace(run.config, n_prompts=3)))
    slower = Run(write_synthetic_run(tmp_path, run.config))
    slower.head["environment"] = slower.head["environment"] | {"threads": 7}
    broken = Run(write_synthetic_run(tmp_path, replace(run.config, seed=1)))
    (broken.folder / "rounds.parquet").write_bytes(b"PAR1")
    alike = Run(write_synthetic_run(tmp_path, replace(run.config, seed=2)))
    assert comparable(run, [other, slower, broken, alike, run]) == [alike, run]


def test_the_timeline_is_of_the_first_prompt_alone_and_begins_with_it(run, tmp_path):
    head, tables = store.read_run(run.folder)
    late = {name: tables[name].assign(start_us=tables[name]["start_us"] + 5e6) for name in TIMED}
    figure = figures_of(Run(store.write_run(tmp_path / "late", head, tables | late)))[
        "What happened when"
    ]
    n_spans = (run.spans["prompt"] == 0).sum() + (run.rounds["prompt"] == 0).sum()
    assert figure.layout.meta["n_spans"] == n_spans
    assert figure.layout.xaxis.title.text == "ms since prompt 0 began"
    assert figure.layout.xaxis.range[0] == min(min(trace.base) for trace in figure.data) == 0


def test_kernels_come_from_the_run_or_from_a_trace_in_its_folder(tmp_path):
    folder = write_synthetic_run(tmp_path, Config(n_prompts=2))
    times = {"start_ns": [9_100_000, 9_300_000], "end_ns": [9_200_000, 9_310_000]}
    kernels = typed(KERNELS, pd.DataFrame(WORK | times), graph_node=0, bytes=-1)
    head, tables = store.read_run(folder)
    recorded = Timeline(Run(folder).timeline().ranges, kernels=kernels)
    own = store.write_run(
        tmp_path / "own", head, tables | {"kernels": recorded.tables()["kernels"]}
    )
    traced = folder / "traces" / "nsys"
    traced.mkdir(parents=True)
    trace_out.write(recorded, "parquet", traced / "trace.tables")
    for one, origin in ((own, "(measured)"), (folder, "(measured under a tool)")):
        figure = figures_of(Run(one))["Kernels"]
        assert origin in figure.layout.title.text
        assert figure.data[0].x == (0.1, 0.01), "ms of the kernel and of the copy"


def test_texts_beyond_the_first_are_folded_and_many_are_counted(tmp_path):
    run = Run(write_synthetic_run(tmp_path, Config(n_prompts=14), n_rounds=2))
    told = figures_of(run)["Which model produced each token"]
    assert told.count("<details") == 12 and told.count("<details open>") == 1
    assert "2 more outputs" in told


def test_a_prediction_stands_beside_what_was_measured(tmp_path):
    run = as_chain(tmp_path)
    figure = figures_of(run)["Predicted and measured"]
    measured, predicted = (sum(trace.x[row] for trace in figure.data) for row in (0, 1))
    assert measured == pytest.approx(1e6 / run.tokens_per_s, rel=1e-3)
    assert 0.2 * measured < predicted < 5 * measured
    assert "no ar run lies beside this one" in figure.layout.title.text.replace("<br>", " ")


def test_a_prediction_beside_an_ar_run_is_in_its_plain_steps(tmp_path):
    run = as_chain(tmp_path)
    head, tables = store.read_run(run.folder)
    config = replace(run.config, draft=None)
    told = {"config": as_dict(config), "config_id": config_id(config), "method": "ar"}
    rounds = tables["rounds"].assign(n_emitted=1, n_accepted=0, duration_us=5000.0)
    tables["spans"] = tables["spans"][tables["spans"]["phase"] == "verify_target"]
    plain = Run(store.write_run(tmp_path / "plain", head | told, tables | {"rounds": rounds}))
    figure = figures_of(run, [plain])["Predicted and measured"]
    label = next(n.text for n in figure.layout.annotations if "predicted" in n.text)
    total, speedup = re.search(r"<b>([\d.]+) ms", label)[1], re.search(r"([\d.]+)× ar", label)[1]
    assert float(total) * float(speedup) == pytest.approx(5.0, rel=0.02)
    assert "plain steps of 5 ms" in figure.layout.title.text
