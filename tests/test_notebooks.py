"""Notebooks stay thin and run: cells call the library, logic lives where it is tested."""

import ast
import os
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9][0-9]_*.py"))
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Try, ast.ListComp)
MAX_CELLS, MAX_CELL_LINES, MAX_BYTES = 12, 12, 300_000

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]


@every_notebook
def test_cells_hold_no_logic(path):
    assert len(code_cells(path)) <= MAX_CELLS
    for cell in code_cells(path):
        found = [type(n).__name__ for n in ast.walk(ast.parse(cell.source)) if isinstance(n, LOGIC)]
        assert not found, f"{path.name}: move {found} to hspec_lab/\n{cell.source}"
        assert len(cell.source.splitlines()) <= MAX_CELL_LINES, f"{path.name}:\n{cell.source}"


@every_notebook
def test_opens_with_title_question_and_closes_with_take_away(path):
    cells = jupytext.read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert cells[0].source.splitlines()[0].endswith("?")
    for word in ("**Question.**", "**Data.**", "**Words.**"):
        assert word in cells[0].source
    assert "## Take-away" in cells[-1].source


@every_notebook
def test_pair_says_the_same_and_opens_on_the_usual_kernel(path):
    saved = path.with_suffix(".ipynb")
    text, notebook = jupytext.read(path), jupytext.read(saved)
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ], f"run: jupytext --sync {path.name}"
    assert notebook.metadata.kernelspec.name == "python3"
    # the state of a live figure is all of plotly.js: execute with store_widget_state=False
    assert saved.stat().st_size <= MAX_BYTES


@pytest.mark.slow
@every_notebook
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    # a store of its own: nothing is answered from an earlier run, nothing is left behind
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path))
    monkeypatch.setenv("PLOTLY_RENDERER", os.environ.get("PLOTLY_RENDERER", "plotly_mimetype"))
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(jupytext.read(path), timeout=120, resources=resources)
    client.store_widget_state = False
    client.execute()
