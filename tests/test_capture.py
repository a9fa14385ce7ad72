"""Capturing: commands and scripts for the profilers, processes with a limit, runs made aside."""

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from synthetic import write_synthetic_run

from hspec_lab.capture import landing
from hspec_lab.capture.nsight import Plan, write_down
from hspec_lab.capture.process import run_logged
from hspec_lab.capture.script import COMMAND, SCRIPT, program_text, put, shell_text
from hspec_lab.capture.settings import ncu_profile, nsys_export, nsys_profile, settings
from hspec_lab.config import Config, Eagle2, as_dict, from_dict
from hspec_lab.store import list_runs, read_run

SCRIPT_WORDS = ["python", "x.py"]
NASTY = (
    'a "quoted" \'text\' """three""" \'\'\'three\'\'\' {braces} \\ back \\" slash\n',
    '"',
    '\\"""',
    "naïve \u2028 \0 %s $(rm -rf /) `x`",
)


def test_nsys_is_asked_for_ranges_kernels_of_graphs_and_the_part_behind_the_warm_up():
    words = nsys_profile(SCRIPT_WORDS, Path("d/trace"), "cuda")
    assert words[:2] == ["nsys", "profile"] and words[-2:] == SCRIPT_WORDS
    options = dict(word.split("=", 1) for word in words[2:-2])
    assert options["--trace"] == "cuda,nvtx" and options["--output"] == "d/trace"
    assert options["--cuda-graph-trace"] == "node" and options["--sample"] == "none"
    assert options["--capture-range"] == "cudaProfilerApi"
    assert options["--capture-range-end"] == "stop"
    assert options["--force-overwrite"] == "true" and options["--stats"] == "false"


def test_nothing_would_ever_begin_a_capture_range_on_the_cpu_so_none_is_waited_for():
    words = " ".join(nsys_profile(SCRIPT_WORDS, Path("trace"), "cpu"))
    assert "capture-range" not in words and "graph" not in words and "nvtx" in words


def test_the_export_is_sqlite():
    words = nsys_export(Path("a.nsys-rep"), Path("a.sqlite"))
    assert words[:2] == ["nsys", "export"] and words[-1] == "a.nsys-rep"
    assert "--type=sqlite" in words and "--output=a.sqlite" in words


def test_ncu_takes_the_kernels_inside_push_pop_ranges_of_one_phase_of_our_domain():
    words = ncu_profile(SCRIPT_WORDS, Path("d/draft"), "draft")
    assert words[0] == "ncu" and words[-2:] == SCRIPT_WORDS
    assert "--nvtx" in words and "--nvtx-include=hspec_lab@draft/" in words
    assert "--profile-from-start=off" in words and "--graph-profiling=node" in words
    assert "--export=d/draft" in words
    assert {"--launch-skip=0", "--launch-count=40", "--replay-mode=kernel"} <= set(words)


@pytest.mark.parametrize("phase", ["gap", "dance", "draft/ --set=full"])
def test_ncu_needs_a_phase_that_has_ranges(phase):
    with pytest.raises(ValueError, match="no phase .* known: prefill, draft"):
        ncu_profile(SCRIPT_WORDS, Path("x"), phase)


def test_every_option_in_the_settings_says_why_above_it():
    for tool in ("nsys", "ncu"):
        root = Path(__file__).parents[1] / "profiles" / "nsight" / f"{tool}.toml"
        assert settings(tool)
        before = ""
        for line in root.read_text().splitlines():
            # one reason may stand for the options right below it
            assert not line or line[0] in "#[" or before, line
            before = line


@pytest.mark.parametrize("prompt", NASTY)
def test_the_script_holds_the_configuration_whatever_a_prompt_says(prompt):
    config = Config(prompts=(prompt, "b"), draft=Eagle2(tree_size=9), stop=(prompt,))
    text = program_text(config, n_rounds=5, modules=True)
    (call,) = [
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "CONFIG"
    ]
    (literal,) = call.args
    assert from_dict(json.loads(literal.value)) == config
    assert "n_rounds=5, modules=True" in text


def test_a_shell_script_runs_the_very_words_from_wherever_it_lies(tmp_path):
    folder = tmp_path / "a b"
    show = [
        sys.executable,
        "-c",
        "import sys; print(sys.argv[1:])",
        f"--out={folder}/x",
        "$(y) 'z'",
    ]
    put(folder, COMMAND, shell_text([show], folder, 'echo "$here"'))
    moved = folder.rename(tmp_path / "moved; away")
    told = subprocess.run(
        ["sh", str(moved / COMMAND)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = told.stdout.splitlines()
    assert ast.literal_eval(first) == [f"--out={moved}/x", "$(y) 'z'"] and second == str(moved)


def test_files_of_other_people_are_not_replaced_and_ours_are(tmp_path):
    plan = Plan(Config(prompts=("a",)))
    assert write_down(plan, tmp_path / "new") == write_down(plan, tmp_path / "new")
    (tmp_path / SCRIPT).write_text("print('mine')")
    with pytest.raises(ValueError, match="is not of hspec trace"):
        write_down(plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [SCRIPT]


def test_what_is_written_down_for_elsewhere_names_no_folder_of_this_machine(tmp_path):
    write_down(Plan(Config(prompts=("a",))), tmp_path)
    lines = (tmp_path / COMMAND).read_text()
    assert str(tmp_path) not in lines and sys.executable not in lines
    assert '"${PYTHON:-python3}" "$here"/traced_run.py "$here"/runs' in lines
    assert "nsys export" in lines and "hspec_lab analyze" in lines
    assert str(tmp_path) not in (tmp_path / SCRIPT).read_text()
    subprocess.run(["sh", "-n", str(tmp_path / COMMAND)], check=True)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"n_rounds": 0}, "--rounds must be >= 1, got 0"),
        ({"timeout_s": 0.0}, "--timeout must be above 0 seconds"),
        ({"phase": "draft"}, "ncu measures kernels of a GPU"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(asked, told):
    with pytest.raises(ValueError, match=told):
        Plan(Config(prompts=("a",)), **asked)


# ---- processes -------------------------------------------------------------------------------


def python(tmp_path, text, timeout_s=20.0):
    run_logged([sys.executable, "-c", text], tmp_path / "log.txt", timeout_s)
    return (tmp_path / "log.txt").read_text()


def test_a_process_says_everything_to_its_log(tmp_path):
    assert python(tmp_path, "import sys; print(1); sys.stderr.write('2')").split() == ["1", "2"]


def test_a_failure_is_told_by_the_line_that_speaks_of_an_error(tmp_path):
    text = "import sys; print('ValueError: no model'); print('Generated: x'); sys.exit(3)"
    with pytest.raises(ValueError, match=r"exit code 3: ValueError: no model$"):
        python(tmp_path, text)


def test_a_failure_before_is_not_told_again(tmp_path):
    (tmp_path / "log.txt").write_text("ValueError: of another command\n")
    with pytest.raises(ValueError, match=r"exit code 1: it said nothing$"):
        python(tmp_path, "raise SystemExit(1)")


def test_a_program_that_is_missing_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="nothing-here .*No such file"):
        run_logged([str(tmp_path / "nothing-here"), "x"], tmp_path / "log.txt", 5.0)


def family(tmp_path):
    """A program that starts another one, writes down which, and waits."""
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    return (
        f"import os, subprocess, sys, time\nos.chdir({str(tmp_path)!r})\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)"
    )


def ended(tmp_path):
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not running(pid):
            return True
        time.sleep(0.1)
    return False


def test_a_process_beyond_its_time_ends_with_all_that_it_started(tmp_path):
    with pytest.raises(ValueError, match="was ended after 3 s"):
        python(tmp_path, family(tmp_path), timeout_s=3.0)
    assert ended(tmp_path)


def test_an_interrupted_process_ends_with_all_that_it_started(tmp_path):
    interrupt = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        python(tmp_path, family(tmp_path), timeout_s=30.0)
    assert ended(tmp_path)


def running(pid):
    try:
        # a zombie that nobody waits for has ended
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- landing ---------------------------------------------------------------------------------


def test_a_run_made_aside_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with landing.aside(tmp_path) as folder:
            write_synthetic_run(folder, Config(prompts=("a",)), 3)
            assert not len(list_runs(tmp_path))
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with landing.aside(tmp_path) as folder:
        write_synthetic_run(folder, Config(prompts=("a",)), 3)
        run = landing.only_run(folder)
        landing.say_more(run, {"kernels": {"uncertainty_us": 1.0}})
        run = landing.land(run, tmp_path)
    assert list(tmp_path.iterdir()) == [run]
    head, tables = read_run(run)
    assert head["environment"]["kernels"] == {"uncertainty_us": 1.0} and len(tables["rounds"]) == 3
    assert head["environment"]["device"] and head["config"] == as_dict(Config(prompts=("a",)))


def test_a_program_that_left_no_run_is_told(tmp_path):
    with pytest.raises(ValueError, match="left 0 runs"):
        landing.only_run(tmp_path)


def test_words_for_the_shell_are_quoted():
    line = shell_text([["nsys", "a b", "$x"]], Path("/nowhere")).splitlines()[-1]
    assert shlex.split(line) == ["nsys", "a b", "$x"]
