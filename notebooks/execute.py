"""`make notebooks`: run notebooks from their paired text and save them with what they show.

    python notebooks/execute.py [NOTEBOOK ...]      those named by their beginning, `00 06`; or all

Saved are figures, tables and text.  Progress bars are dropped, and so is the state of live panels,
which is all of plotly.js: a panel comes to life when its cell is run.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
# their errors show where runs lie, which should be the folder that readers have
_IN_OWN_STORE = ("07",)


def main(wanted: list[str]) -> None:
    os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
    for text in sorted(HERE.glob("[0-9][0-9]_*.py")):
        if wanted and not text.name.startswith(tuple(wanted)):
            continue
        begun = time.monotonic()
        os.environ.pop("HSPEC_STORE", None)
        with tempfile.TemporaryDirectory() as store:
            if not text.name.startswith(_IN_OWN_STORE):
                os.environ["HSPEC_STORE"] = store
            notebook = executed(jupytext.read(text))
        nbformat.write(notebook, text.with_suffix(".ipynb"))
        print(f"{text.stem}: {time.monotonic() - begun:.0f} s")


def executed(notebook):
    """The notebook with its outputs, progress bars left out."""
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}})
    client.store_widget_state = False
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
    return notebook


def _is_bar(output) -> bool:
    shown = output.get("data", {}).get("text/plain", "") or output.get("text", "")
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {}) and "/s]" in shown


if __name__ == "__main__":
    main(sys.argv[1:])
