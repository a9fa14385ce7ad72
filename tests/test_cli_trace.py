"""`hspec trace`, with programs in the place of nsys and ncu, and without."""

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from synthetic import write_synthetic_run
from test_decode import spell
from tiny import make_head, make_model

from hspec_lab import store, zoo
from hspec_lab.capture.record import TRACED
from hspec_lab.capture.script import SCRIPT
from hspec_lab.cli import main
from hspec_lab.config import Config, Eagle2
from hspec_lab.trace_in import read_trace

# runs the program and keeps where its runs went; exports that run in nsys' layout
NSYS = """\
import os, shutil, subprocess, sys
from pathlib import Path
from hspec_lab import store, timeline, trace_out
options = dict(word[2:].split("=", 1) for word in sys.argv[2:] if word.startswith("--"))
words = [word for word in sys.argv[2:] if not word.startswith("--")]
mode = os.environ.get("FAKE_NSYS", "")
print("nsys says", *sys.argv[1:])
if sys.argv[1] == "profile":
    if mode == "fails":
        sys.exit("RuntimeError: no driver")
    if mode:
        shutil.copytree(mode, Path(words[-1]) / Path(mode).name)
    elif code := subprocess.call(words):
        sys.exit(code)
    Path(options["output"] + ".nsys-rep").write_text(words[-1])
else:
    (run,) = Path(Path(words[-1]).read_text()).iterdir()
    trace = timeline.of_run(*store.read_run(run))
    trace_out.write(trace, "nsys-sqlite", options["output"])
"""
NCU = """\
import os, sys
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
if os.environ.get("FAKE_NCU") == "forbidden":
    sys.exit("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
if os.environ.get("FAKE_NCU") != "nothing":
    Path(options["export"] + ".ncu-rep").write_text(" ".join(sys.argv[1:]))
"""
ASK = ["--prompt", "0123", "--threads", "1"]
CUDA = ["--prompt", "0123", "--device", "cuda", "--target", "zoo:target@w4a16-g128"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 32}
    target = spell(make_model(root / "target", scale=0.05, **sizes))
    make_head(root / "target-eagle2", target, scale=0.1)
    return root / "target"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, and no profiler on PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSPEC_STORE", "runs")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def tools(here, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("bin")
    for name, text in (("nsys", NSYS), ("ncu", NCU)):
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def recorded(tmp_path_factory):
    """A run of invented numbers."""
    config = Config(prompts=("a", "b"), draft=Eagle2())
    return write_synthetic_run(tmp_path_factory.mktemp("recorded"), config, 12)


def told(capsys, *words, code=0):
    assert main(list(map(str, words))) == code
    return capsys.readouterr()


def small(model, *more):
    sizes = ["--max-new-tokens", "12", "--tree-size", "6", "--depth", "2", "--top-k", "3"]
    return ["trace", *ASK, "--target", model, "--method", "eagle2", *sizes, *more]


# ---- recording here --------------------------------------------------------------------------


def test_a_configuration_is_recorded_shown_and_exported_at_once(model, here, capsys):
    found = told(capsys, *small(model, "--modules", "--to", "speedscope", "--out", "ex"))
    assert "verify_target" in found.out and "Slowest rounds" in found.out
    assert "prompt 0 round" in found.out and max(map(len, found.out.splitlines())) <= 100
    runs = store.list_runs("runs")
    assert len(runs) == 1 and runs["kind"][0] == "measured"
    tables = store.read_run(here / "runs" / runs["run"][0])[1]
    assert set(tables["modules"]["module"]) == {"attention", "mlp", "lm_head"}
    assert f"{runs['run'][0]}.speedscope.json" in {path.name for path in (here / "ex").iterdir()}
    # the same again, from the folder of the run
    told(capsys, "trace", here / "runs" / runs["run"][0])
    assert store.list_runs("runs")["config_id"].nunique() == 1


def test_so_many_rounds_are_the_first_ones_of_the_first_prompt(model, here, capsys):
    told(capsys, *small(model, "--prompt", "4567"))
    (whole,) = store.list_runs("runs")["run"]
    whole = store.read_run(here / "runs" / whole)[1]["rounds"]
    told(capsys, *small(model, "--prompt", "4567", "--rounds", "2", "--store", "few"))
    (few,) = store.list_runs("few")["run"]
    head, tables = store.read_run(here / "few" / few)
    counts = ["prompt", "round", "n_proposed", "n_accepted", "n_emitted", "kv_len"]
    first = whole[~whole["warmup"] & (whole["prompt"] == 0)][counts].head(2)
    assert len(first) == 2
    found = tables["rounds"]
    found = found[~found["warmup"]][counts]
    pd.testing.assert_frame_equal(found.reset_index(drop=True), first.reset_index(drop=True))
    assert head["prompts"] == ["0123"] and head["config"]["max_new_tokens"] < 12


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([*ASK, "--kernels"], "kernels are what a CUDA device runs"),
        ([*ASK, "--nsys", "--kernels"], "one tool at a time: --nsys and --kernels"),
        ([*ASK, "--nsys", "--ncu", "draft"], "one tool at a time"),
        ([*ASK, "--only-write"], "--nsys or --ncu: give one of them"),
        ([*ASK, "--rounds", "0"], "--rounds must be >= 1, got 0"),
        ([*ASK, "--nsys", "--timeout", "-1"], "--timeout must be above 0"),
        ([*ASK, "--ncu", "draft"], "ncu measures kernels of a GPU"),
        ([*ASK, "--ncu", "gap"], "invalid choice: 'gap'"),
        ([*CUDA, "--nsys", "--modules"], "modules are timed on the cpu"),
        (["nowhere.json"], "nowhere.json: No such file"),
        (["c.json", "--config", "c.json"], "CONFIG or --config, not both"),
    ],
)
def test_what_cannot_be_traced_is_told_in_one_line_and_leaves_nothing(words, line, here, capsys):
    found = told(capsys, "trace", *words, code=2)
    assert found.out == "" and found.err.count("\n") == 1 and line in found.err
    assert list(here.iterdir()) == []


def test_without_a_prompt_the_shipped_ones_are_traced(here, capsys):
    words = ["--target", "zoo:target@w8a8", "--method", "ar", "--threads", "1", "--rounds", "3"]
    assert main(["trace", *words]) == 0
    assert "rounds" in capsys.readouterr().out
    (run,) = (here / "runs").iterdir()
    head, tables = store.read_run(run)
    assert head["prompts"][0] == zoo.prompts()[0]
    assert len(tables["rounds"].query("not warmup")) == 3


# ---- Nsight ----------------------------------------------------------------------------------


def test_without_nsys_the_script_and_the_command_are_written_down(here, capsys):
    found = told(capsys, "trace", *CUDA, "--nsys", "--rounds", "7")
    assert "install NVIDIA Nsight Systems" in found.err and "--into RUN" in found.err
    (folder,) = here.iterdir()
    assert folder.name.startswith("hspec_trace-")
    assert found.out == f"sh {folder.name}/command.sh\n"
    lines = (folder / "command.sh").read_text()
    assert "--cuda-graph-trace=node" in lines and "--capture-range=cudaProfilerApi" in lines
    assert "n_rounds=7" in (folder / SCRIPT).read_text()


def test_without_ncu_the_command_for_one_phase_is_written_down(here, capsys):
    found = told(capsys, "trace", *CUDA, "--ncu", "verify_target", "--out", "there")
    assert "install NVIDIA Nsight Compute" in found.err
    lines = (here / "there" / "command.sh").read_text()
    assert "--nvtx-include=hspec_lab@verify_target/" in lines
    assert '"$here"/traced_run.py -' in lines


def test_with_nsys_it_can_be_left_at_writing_down(tools, here, capsys):
    found = told(capsys, "trace", *ASK, "--nsys", "--only-write")
    assert "not on PATH" not in found.err and found.out.startswith("sh hspec_trace-")
    assert not (here / "runs").exists()


def test_the_run_its_trace_and_the_analysis_become_one_run_folder(
    tools, here, recorded, capsys, monkeypatch
):
    monkeypatch.setenv("FAKE_NSYS", str(recorded))
    found = told(capsys, "trace", *ASK, "--nsys", "--to", "parquet", "--out", "ex")
    assert "verify_target" in found.out
    assert sorted(path.name for path in here.iterdir()) == ["ex", "runs"]
    (folder,) = (here / "runs").iterdir()
    nsys = folder / "nsys"
    names = {path.name for path in nsys.iterdir()}
    assert {"trace.sqlite", "trace.nsys-rep", "log.txt", SCRIPT, "analysis.json"} <= names
    assert {"phases.parquet", "kernels.parquet"} <= names
    analysis = json.loads((nsys / "analysis.json").read_text())
    phases = pd.DataFrame(analysis["tables"]["phases"])
    assert set(phases["phase"]) >= {"draft", "verify_target", "accept"}
    assert "nsys says profile" in (nsys / "log.txt").read_text()
    assert store.read_run(folder)[0]["config_id"] == folder.name.split("-")[0]
    # and it can be read again: the run's own spans, or the trace
    found = told(capsys, "analyze", folder)
    assert f"hspec analyze {nsys / 'trace.sqlite'}" in found.err
    assert "verify_target" in told(capsys, "analyze", nsys / "trace.sqlite").out


def test_a_capture_that_fails_leaves_its_log_and_no_run(tools, here, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_NSYS", "fails")
    found = told(capsys, "trace", *ASK, "--nsys", "--out", "there", code=2)
    assert "nsys profile failed with exit code 1: RuntimeError: no driver" in found.err
    assert found.err.count("\n") == 1 and found.err.rstrip().endswith("there")
    assert {path.name for path in (here / "there").iterdir()} == {"command.sh", SCRIPT, "log.txt"}
    assert list((here / "runs").iterdir()) == []


@pytest.mark.slow
def test_the_script_decodes_the_configuration_in_a_process_of_its_own(tools, model, here, capsys):
    told(capsys, *small(model, "--nsys", "--rounds", "3"))
    (folder,) = (here / "runs").iterdir()
    head, tables = store.read_run(folder)
    assert head["kind"] == TRACED and head["config"]["target"] == str(model)
    rounds = tables["rounds"]
    assert rounds["warmup"].any() and 1 <= (~rounds["warmup"]).sum() <= 3
    assert len(read_trace(folder / "nsys" / "trace.sqlite").ranges)


def test_ncu_leaves_a_report_of_one_phase(tools, here, capsys):
    found = told(capsys, "trace", *CUDA, "--ncu", "draft", "--out", "there")
    report = Path(found.out.strip())
    assert report == here / "there" / "draft.ncu-rep"
    assert "--nvtx-include=hspec_lab@draft/" in report.read_text()


@pytest.mark.parametrize(
    ("mode", "line"),
    [("forbidden", "may not read the GPU's counters"), ("nothing", "no kernel in")],
)
def test_what_ncu_lacks_is_told(mode, line, tools, here, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_NCU", mode)
    found = told(capsys, "trace", *CUDA, "--ncu", "draft", "--out", "there", code=2)
    assert line in found.err and found.err.count("\n") == 1 and "log.txt" in found.err
