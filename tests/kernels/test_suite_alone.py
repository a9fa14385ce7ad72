"""The suite on a bare machine: torch, triton, transformers, numpy, pandas, pyarrow, and no more."""

import os
import subprocess
import sys

import pytest
import torch

REFUSED = (
    "IPython",
    "anywidget",
    "ipykernel",
    "ipywidgets",
    "jupyterlab",
    "nvtx",
    "plotly",
    "rich",
)
REFUSING = f"""
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refusing())
"""
MEASURE = """
from hspec_lab.suite import as_text, run_suite

left = run_suite(sys.argv[1], device="cpu", tiny=True, parts=("ceilings", "rounds"), minutes=0)
assert left["rounds"] == 2, left
print(as_text(sys.argv[1]))
"""
COMMAND = """
from hspec_lab import cli

sys.exit(cli.main(["measure", "--suite", "gpu", "--out", sys.argv[1]]))
"""


def run(code: str, folder, interpreted: str = "1") -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": interpreted}
    command = [sys.executable, "-c", REFUSING + code, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_it_measures_without_anything_of_jupyter_or_plotly(tmp_path):
    done = run(MEASURE, tmp_path / "suite")
    assert done.returncode == 0, done.stderr
    assert "GPU suite on cpu" in done.stdout


def test_the_command_says_what_it_lacks_in_one_line(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run(COMMAND, tmp_path / "suite", interpreted="0")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the GPU suite needs a CUDA device" in done.stderr
    assert not (tmp_path / "suite").exists()
