"""What is committed was measured: the study behind notebook 01, the table of the page on bits."""

import importlib.util
import json
from pathlib import Path

import pytest

from hspec_lab.compat import open_study

ROOT = Path(__file__).parents[1]
FORMATS = ("fp32", "w8a8", "w8a16", "w4a16-g128", "w4a16-g32", "w4a16-g128+quarot+gptq")


@pytest.fixture(scope="module")
def study():
    return open_study("compat-zoo")


def test_the_study_has_every_n_of_every_curve(study):
    curves = study.curves()
    for format in FORMATS:
        assert sorted(curves[curves["format"] == format]["n"]) == list(range(1, 65))


def test_the_study_has_every_cell_of_its_grid(study):
    cells, plan = study.cells(), study.head["plan"]
    wanted = {
        (format, n, d)
        for format in FORMATS
        for n in plan["tree_sizes"]
        for d in plan["depths"]
        if n <= 1 + plan["top_k"] + (d - 1) * plan["top_k"] ** 2
    }
    found = set(zip(cells["format"], cells["tree_size"], cells["depth"], strict=True))
    assert found == wanted
    numbers = cells[["mean_emitted", "draft_ratio", "verify_ratio", "speedup", "predicted"]]
    assert numbers.notna().all(axis=None) and (numbers > 0).all(axis=None)


def test_the_study_says_where_and_when_it_was_measured(study):
    found = study.head["conditions"]
    assert study.head["kind"] == "measured"
    assert all(found[name] for name in ("cpu", "threads", "torch", "date", "commit"))


def test_notebook_01_shows_the_committed_study(study):
    saved = json.loads((ROOT / "notebooks/01_quantization_meets_speculation.ipynb").read_text())
    outputs = [o for cell in saved["cells"] for o in cell.get("outputs", ())]
    shown = json.dumps(outputs)
    assert json.dumps(study.take_away())[1:-1] in shown
    figures = [o for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) == 5


def test_the_page_on_bits_holds_the_stored_table():
    path = ROOT / "benchmarks" / "quality.py"
    spec = importlib.util.spec_from_file_location("quality_page", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    stored = json.loads(page.OUT.read_text())
    assert stored["kind"] == "measured" and stored["conditions"]["date"]
    text = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    assert f"{page.BEGIN}\n{page.page_table(stored)}\n{page.END}" in text
