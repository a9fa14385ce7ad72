"""What the Explorer does with bad input: it says what is missing and keeps its last figure."""

import dataclasses
import re
import subprocess
import sys
import time

import pytest
import synthetic
from panel_answers import InventedAnswers
from synthetic import write_synthetic_run

from hspec_lab import Explorer
from hspec_lab.config import Config, Eagle2, Refine, Static
from hspec_lab.widgets import knowledge
from hspec_lab.widgets.choice import Choice
from hspec_lab.widgets.jobs import Background

BASE = Config(
    target="zoo:target@w4a16-g128",
    draft=Refine("zoo:intermediate@w4a16-g128", Eagle2(8, 3, 3), at_least=4),
    n_prompts=2,
)
AR = dataclasses.replace(BASE, draft=None)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPEC_STORE", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(root):
    panels = []

    def make(**options):
        panels.append(Explorer(root, **{"config": BASE, "answers": InventedAnswers()} | options))
        assert panels[-1].wait(30)
        return panels[-1]

    yield make
    for panel in panels:
        panel.close()


def words(figure):
    """What stands above a figure, without its line breaks."""
    return " ".join(re.sub("<[^>]*>", " ", figure.layout.title.text).split())


def test_an_empty_store_begins_at_hierspec_and_predicts(opened):
    panel = opened(config=None)
    assert panel.config.method == "hierspec" and panel.choice.tree_size == Choice().tree_size
    assert "predicted on" in panel.status.value
    assert panel.table().empty and panel.table("scatter").empty


def test_a_store_that_does_not_exist_is_an_empty_one(root):
    panel = Explorer(root / "nowhere", answers=InventedAnswers())
    assert panel.wait(30)
    assert "predicted on" in panel.status.value
    panel.close()


def test_a_store_with_one_run_begins_at_that_run(opened, root):
    write_synthetic_run(root, BASE)
    panel = opened(config=None)
    assert panel.config == BASE
    assert "tokens/s, measured on" in panel.status.value


def test_a_run_that_no_control_spells_is_not_where_a_panel_begins(opened, root):
    write_synthetic_run(root, AR)
    odd = dataclasses.replace(BASE, draft=Refine(BASE.draft.model, BASE.draft, 3))
    write_synthetic_run(root, odd)
    assert opened(config=None).config == AR


def test_a_drafter_that_no_control_spells_is_refused(root):
    with pytest.raises(ValueError, match="Explorer shows"):
        Explorer(root, config=dataclasses.replace(BASE, draft=Static((-1, 0), (-1, 0))))


def test_a_damaged_run_is_passed_over(opened, root):
    folder = write_synthetic_run(root, BASE)
    (folder / "spans.parquet").write_bytes(b"cut")
    assert "not measured yet" in opened().status.value


def test_a_run_damaged_while_the_panel_is_open_is_left_out_and_named(opened, root):
    folder = write_synthetic_run(root, BASE)
    panel = opened(config=AR)
    for name in ("rounds", "spans"):
        (folder / f"{name}.parquet").write_bytes(b"cut")
    panel.known._runs[folder].__dict__.pop("tables", None)
    panel.choice = dataclasses.replace(panel.choice, method="hierspec", tree_size=8, depth=3)
    panel.choice = dataclasses.replace(panel.choice, top_k=3, length=4)
    assert panel.wait(30)
    assert "a run is left out, press Measure" in panel.status.value
    assert [label.rpartition(" ")[2] for label in panel.breakdown_view.figure.data[0].y] == [
        "predicted",
        "predicted",
    ]


def test_a_format_without_times_is_said_and_the_last_figures_stay(opened):
    panel = opened(measure=synthetic.quick_measure)
    before = panel.breakdown_view.figure.to_plotly_json()["data"]
    panel.controls.target_format.value = "w8a8"
    assert panel.wait(30)
    assert "has no times of w8a8: press Measure" in panel.status.value
    assert "the figures are of the earlier setting" in panel.status.value
    assert panel.breakdown_view.figure.to_plotly_json()["data"] == before
    with pytest.raises(ValueError, match="press Measure"):
        panel.figure("speedup")
    panel.controls.target_format.value = "fp32"
    assert panel.wait(30)
    assert "earlier" not in panel.status.value


def test_a_device_without_a_curve_of_the_format_says_so_in_the_figure(opened):
    panel = opened()
    panel.knowledge.answers.formats = lambda choice: ["w4a16-g128"]
    panel.knowledge.answers.costs.curves[1]["scheme"] = "fp32"
    assert "no curve of w4a16-g128, only of fp32" in words(panel.figure("cost"))


def test_sliders_beyond_what_was_recorded_say_what_stands_for_them(opened):
    panel = opened()
    panel.controls.tree_size.value = 60
    panel.controls.depth.value = 9
    assert panel.wait(30)
    said = words(panel.figure("breakdown"))
    assert "31, which stands for 60" in said and "4, which stands for 9" in said
    assert panel.figure("speedup").data[-1].x == (31,)
    assert panel.views["acceptance"].figure.data[1].y == (4,)


def test_two_panels_on_one_store_see_each_others_runs(opened):
    one, other = opened(measure=synthetic.quick_measure), opened()
    one.measure()
    assert one.wait(60)
    time.sleep(0.01)
    other.controls.tree_size.value = 5
    assert other.wait(30)
    other.controls.tree_size.value = 8
    assert other.wait(30)
    assert "measured on" in other.status.value


def test_find_best_that_fails_is_one_line(opened, monkeypatch):
    panel = opened()
    panel.knowledge.answers.traces = []
    panel.actions.find_best.click()
    assert panel.wait(30)
    assert "nothing found: no candidates" in panel.status.value


def test_export_of_what_is_not_measured_says_what_to_press(opened):
    panel = opened()
    panel.actions.export.click()
    assert "is not measured: press Measure, then Export" in panel.status.value
    with pytest.raises(ValueError, match="press Measure"):
        panel.export("perfetto")


def test_an_unknown_view_is_refused(opened):
    with pytest.raises(ValueError, match="breakdown, speedup, cost, acceptance, scatter; got 'x'"):
        opened().figure("x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tree=5", "a state has device"),
        ("tree_size=many", "tree_size is a whole number"),
        ("depth=0", "depth is a whole number"),
        ("method=magic", "method is one of ar"),
        ("target=w7a7", "w7a7"),
        ("device=abacus", "device is one of Invented"),
    ],
)
def test_a_state_that_no_control_spells_is_one_line_and_moves_nothing(opened, text, said):
    panel = opened()
    before = panel.choice
    with pytest.raises(ValueError, match=said):
        panel.state = text
    panel.state_text.value = text
    assert said in panel.status.value.replace("&#x27;", "'")
    assert panel.choice == before


def test_recordings_that_cannot_be_read_leave_what_is_measured(root, monkeypatch):
    def broken(base):
        raise ValueError("stages.parquet is damaged or cut off")

    monkeypatch.setattr(knowledge, "shipped", broken)
    write_synthetic_run(root, BASE)
    panel = Explorer(root, config=BASE)
    assert panel.wait(30)
    assert "no predictions: stages.parquet is damaged" in panel.status.value
    assert list(panel.figure().data[0].y) == ["hierspec, w4a16-g128 over w4a16-g128 · measured"]
    with pytest.raises(ValueError, match="no predictions"):
        panel.figure("speedup")
    panel.close()


def test_an_error_in_one_view_leaves_the_others(opened, monkeypatch):
    panel = opened()
    answers = panel.knowledge.answers

    def broken(choice):
        raise KeyError("ratio")

    monkeypatch.setattr(answers, "passes", broken)
    panel.controls.tree_size.value = 5
    assert panel.wait(30)
    assert "cost is of an earlier setting: KeyError" in panel.status.value
    assert panel.views["speedup"].figure.data[-1].x == (5,)


def test_measuring_while_another_panel_measures_leaves_both(opened, root):
    write_synthetic_run(root, AR)
    one, other = opened(measure=synthetic.quick_measure), opened(measure=synthetic.quick_measure)
    other.controls.tree_size.value = 5
    one.measure()
    other.measure()
    assert one.wait(60) and other.wait(60)
    assert one.known.find(one.config) and other.known.find(other.config)


def test_the_child_ends_with_its_kernel(root):
    code = (
        "import sys, time; sys.path.insert(0, 'tests'); import synthetic, os\n"
        "from panel_answers import InventedAnswers\n"
        "from hspec_lab import Explorer, Config\n"
        f"panel = Explorer({str(root)!r}, synthetic.endless_measure, Config(), InventedAnswers())\n"
        "panel.measure()\n"
        "while 'still at it' not in panel.status.value: time.sleep(0.02)\n"
        "print(panel.worker.pid, flush=True); os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(200):
        if not _runs(pid):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its kernel")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False


def test_why_a_measurement_failed_stays_until_something_else_is_chosen(opened):
    panel = opened(measure=synthetic.plain_measure)
    panel.measure()
    assert panel.wait(60)
    # its plain decoding was measured just before, and is painted just after
    panel._paint()
    assert panel.wait(30)
    assert "not measured: ValueError: the head is on fire" in panel.status.value
    panel.controls.tree_size.value += 1
    assert panel.wait(30)
    assert "on fire" not in panel.status.value and "not measured yet" in panel.status.value


def test_views_that_have_shown_nothing_say_why_when_there_is_no_answer(opened):
    class Silent(InventedAnswers):
        def prepare(self, choice):
            raise ValueError("no trace of anything")

    panel = opened(answers=Silent())
    for name in ("speedup", "cost", "acceptance", "scatter"):
        assert "no trace of anything" in words(panel.views[name].figure)
        assert "being read" not in words(panel.views[name].figure)


def test_tables_that_are_handed_out_are_copies(opened):
    panel = opened()
    for view in ("acceptance", "speedup", "cost"):
        first = panel.table(view)
        number = first.select_dtypes("number").columns[0]
        before = first[number].tolist()
        first[number] = -1
        assert panel.table(view)[number].tolist() == before


def test_a_state_that_no_configuration_can_hold_moves_nothing(opened):
    panel = opened()
    before, most = panel.state, panel.controls.tree_size.max
    with pytest.raises(ValueError, match="tree_size"):
        panel.state = "tree_size=70000"
    assert (panel.state, panel.controls.tree_size.max) == (before, most)


def test_a_job_that_raises_does_not_keep_others_from_being_done():
    done, told = [], []
    background = Background(lambda: told.append(1))
    background.want({"bad": lambda: 1 / 0, "good": lambda: done.append(1)})
    end = time.monotonic() + 20
    while not background.idle and time.monotonic() < end:
        time.sleep(0.01)
    assert done == [1] and len(told) == 2
    background.want({"again": lambda: done.append(2)})
    while len(done) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert done == [1, 2]


def test_folders_that_cannot_be_read_are_counted_and_told(opened, root):
    folder = write_synthetic_run(root, AR)
    (folder / "spans.parquet").write_bytes(b"cut off")
    panel = opened()
    assert "1 run folder cannot be read, see below" in panel.status.value
    assert "spans.parquet is damaged" in panel.footer.value
