"""The Explorer's controls and its measuring, without a browser; the child process for real."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest
import synthetic
from panel_answers import InventedAnswers
from synthetic import write_synthetic_run

from hspec_lab import Explorer
from hspec_lab.config import MENU, Chain, Config, Eagle2, Refine
from hspec_lab.terms import ROUND_PHASES

BASE = Config(
    target="zoo:target@w4a16-g128",
    draft=Refine("zoo:intermediate@w8a8", Eagle2(tree_size=24, depth=4, top_k=8), at_least=6),
    n_prompts=2,
    max_new_tokens=32,
)
AR = dataclasses.replace(BASE, draft=None)
NAMES = ("intermediate_format", "head_format", "tree_size", "depth", "top_k", "draft_len")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(root):
    """Makes Explorers over one store and closes them."""
    panels = []

    def make(**options):
        panels.append(Explorer(root, **{"config": BASE, "answers": InventedAnswers()} | options))
        assert panels[-1].wait(30)
        return panels[-1]

    yield make
    for panel in panels:
        panel.close()


def until(condition, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_controls_begin_at_the_config_and_spell_it_back(opened):
    assert opened().config == BASE


@pytest.mark.parametrize(
    ("method", "draft"),
    [
        ("ar", None),
        ("chain", Chain("zoo:intermediate@w8a8", 5)),
        ("eagle2", Eagle2(16, 3, 8)),
        ("hierspec", Refine("zoo:intermediate@w8a8", Eagle2(16, 3, 8), 5)),
    ],
)
def test_each_method_spells_its_own_drafter(opened, method, draft):
    panel = opened()
    panel.controls.method.value = method
    panel.controls.tree_size.value = 16
    panel.controls.depth.value = 3
    panel.controls.draft_len.value = 5
    assert panel.config == dataclasses.replace(BASE, draft=draft)


def test_formats_of_target_and_intermediate_are_chosen_apart(opened):
    panel = opened()
    panel.controls.target_format.value = "fp32"
    panel.controls.intermediate_format.value = "w4a16-g32"
    assert panel.config.target == "zoo:target@fp32"
    assert panel.config.draft.model == "zoo:intermediate@w4a16-g32"
    assert {value for _, value in panel.controls.target_format.options} >= set(MENU)


@pytest.mark.parametrize(
    ("method", "used"),
    [
        ("ar", set()),
        ("chain", {"intermediate_format", "draft_len"}),
        ("eagle2", {"head_format", "tree_size", "depth", "top_k"}),
        ("hierspec", set(NAMES)),
    ],
)
def test_controls_that_a_method_ignores_are_disabled(opened, method, used):
    controls = opened().controls
    controls.method.value = method
    assert {name for name in NAMES if not getattr(controls, name).disabled} == used
    assert not controls.target_format.disabled


def test_unknown_configuration_is_predicted_and_said_to_be_unmeasured(opened):
    panel = opened(measure=synthetic.quick_measure)
    assert "not measured yet: press Measure" in panel.status.value
    assert panel.table().empty
    assert list(panel.figure().data[0].y) == [
        "ar, w4a16-g128 · predicted",
        "hierspec, w4a16-g128 over w8a8 · predicted",
    ]


def test_without_a_function_the_button_is_off_and_says_why(opened):
    panel = opened()
    assert panel.measure_button.disabled
    assert "measure=run" in panel.measure_button.tooltip
    panel.measure()
    assert "measure=run" in panel.status.value


def test_moving_to_a_known_configuration_shows_it_beside_its_prediction(opened, root):
    for config in (AR, BASE):
        write_synthetic_run(root, config)
    panel = opened()
    panel.controls.tree_size.value = 8
    assert panel.wait(5)
    assert "not measured yet" in panel.status.value
    panel.controls.tree_size.value = 24
    assert panel.wait(5)
    assert "measured on cpu (Invented 9000), 2 threads" in panel.status.value
    shown = panel.breakdown_view.figure
    assert [trace.name for trace in shown.data[: len(ROUND_PHASES)]] == list(ROUND_PHASES)
    origins = [label.rpartition(" ")[2] for label in shown.data[0].y]
    assert origins == ["predicted", "measured"] * 2


def test_speedup_is_over_ar_of_the_same_format_and_marks_the_current_one(opened, root):
    narrow = dataclasses.replace(BASE, draft=Eagle2(8, 2, 4))
    for config in (AR, BASE, narrow):
        write_synthetic_run(root, config)
    table = opened().table().set_index("method")
    assert table.loc["ar", "speedup"] == 1
    ratio = table.loc["hierspec", "tokens_per_s"] / table.loc["ar", "tokens_per_s"]
    assert table.loc["hierspec", "speedup"] == pytest.approx(ratio)
    assert table["current"].to_dict() == {"ar": False, "hierspec": True, "eagle2": False}


def test_runs_under_other_conditions_are_not_compared(opened, root):
    write_synthetic_run(root, AR)
    write_synthetic_run(root, dataclasses.replace(BASE, max_new_tokens=64))
    assert list(opened().table()["method"]) == ["ar"]


def test_measuring_runs_ar_first_in_a_child_and_shows_both(opened):
    panel = opened(measure=synthetic.quick_measure)
    panel.measure()
    assert panel.busy and not panel.cancel_button.disabled
    assert panel.wait(60)
    assert "measured on cpu" in panel.status.value and "1 prompt" not in panel.status.value
    assert set(panel.table()["method"]) == {"ar", "hierspec"}
    first = panel.worker.pid
    panel.controls.method.value = "eagle2"
    panel.measure()
    assert panel.wait(60)
    assert len(panel.table()) == 3
    assert panel.worker.pid == first != os.getpid()


def test_a_function_that_takes_a_root_writes_into_this_store(opened, root, monkeypatch, tmp_path):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path / "elsewhere"))
    panel = opened(measure=synthetic.quick_measure)
    panel.controls.method.value = "ar"
    panel.measure()
    assert panel.wait(60)
    assert panel.known.find(AR).folder.parent == root


def test_cancel_ends_the_child_and_leaves_the_panel_usable(opened):
    panel = opened(measure=synthetic.endless_measure)
    panel.measure()
    until(lambda: "still at it" in panel.status.value)
    pid = panel.worker.pid
    panel.cancel_button.click()
    assert not panel.busy and "cancelled" in panel.status.value
    assert panel.cancel_button.disabled and panel.progress.layout.visibility == "hidden"
    until(lambda: not _runs(pid))


def test_latest_measurement_wins(opened):
    panel = opened(measure=synthetic.endless_measure)
    panel.measure()
    until(lambda: "still at it" in panel.status.value)
    pid = panel.worker.pid
    panel.controls.method.value = "ar"
    panel.measure()
    until(lambda: "measuring ar" in panel.status.value and "still at it" in panel.status.value)
    assert panel.worker.pid != pid
    until(lambda: not _runs(pid))


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (synthetic.failing_measure, "ValueError: no such folder: zoo"),
        (synthetic.dying_measure, "ended by itself (exit code 9)"),
    ],
    ids=["an error", "a death"],
)
def test_failure_comes_back_as_one_line(opened, measure, said):
    panel = opened(measure=measure)
    panel.measure()
    assert panel.wait(60)
    assert said in panel.status.value and "second line" not in panel.status.value
    assert not panel.measure_button.disabled


def test_a_function_that_no_other_process_can_import_is_refused(root):
    with pytest.raises(ValueError, match="another process"):
        Explorer(root, measure=lambda config, progress: None)


def test_closing_the_panel_ends_the_child(opened):
    panel = opened(measure=synthetic.endless_measure)
    panel.measure()
    until(lambda: "still at it" in panel.status.value)
    pid = panel.worker.pid
    panel.close()
    until(lambda: not _runs(pid))


def test_explorer_imports_no_torch():
    code = "import sys, hspec_lab; hspec_lab.Explorer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
