"""What the Explorer's views show for every control: numbers of figures against the library's."""

import asyncio
import dataclasses
import resource

import numpy as np
import pytest
import synthetic
from panel_answers import FORMATS, HERE, InventedAnswers
from synthetic import write_synthetic_run

from hspec_lab import Explorer
from hspec_lab.config import Chain, Config, Eagle2, Refine
from hspec_lab.terms import ROUND_PHASES
from hspec_lab.widgets import jobs, views
from hspec_lab.widgets.pictures import VIEWS

SMALL = "zoo:intermediate@w4a16-g128"
BASE = Config(
    target="zoo:target@w4a16-g128", draft=Refine(SMALL, Eagle2(8, 3, 3), at_least=4), n_prompts=2
)
AR = dataclasses.replace(BASE, draft=None)
ALL = [AR] + [
    dataclasses.replace(BASE, draft=draft) for draft in (Chain(SMALL, 4), Eagle2(8, 3, 3), None)
]


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


def drawn(panel, view):
    """The live figure as plain data, without what differs each time it is made."""
    return _plain(panel.views[view].figure)


def _plain(figure):
    found = figure.to_plotly_json()
    for trace in found["data"]:
        trace.pop("uid", None)
    return found


MOVES = {
    "tree_size": 5,
    "depth": 2,
    "top_k": 2,
    "draft_len": 2,
    "method": "eagle2",
    "target_format": "fp32",
    "intermediate_format": "fp32",
    "head_format": "w8a8",
    "device": "h200",
    "context": 512,
    "text": 1,
}


@pytest.mark.parametrize("control", MOVES)
def test_every_live_view_follows_every_control_as_if_drawn_anew(opened, control):
    panel = opened()
    panel.controls.tree_size.value = 6
    assert panel.wait(30)
    before = {view: drawn(panel, view) for view in VIEWS}
    getattr(panel.controls, control).value = MOVES[control]
    assert panel.wait(30)
    for view in VIEWS:
        assert drawn(panel, view) == _plain(panel.figure(view)), view
    if control != "head_format":  # a head's format has no price of its own in these tests
        assert any(drawn(panel, view) != before[view] for view in VIEWS)


def test_bars_are_the_prediction_of_each_phase(opened):
    panel = opened()
    found = panel.knowledge.answers.prediction(panel.choice)
    us = found.phases.set_index("phase")["us_per_emitted"]
    shown = panel.figure("breakdown").data
    for trace in shown[: len(ROUND_PHASES)]:
        assert trace.x[-1] == pytest.approx(us.get(trace.name, 0.0))
    whiskers = shown[len(ROUND_PHASES)]
    assert whiskers.x[-1] == pytest.approx(found.us_per_token)
    assert whiskers.error_x.array[-1] == pytest.approx(found.us_per_token_high - found.us_per_token)


def test_speedup_has_a_line_a_format_its_best_and_the_present_setting(opened):
    panel = opened()
    figure = panel.figure("speedup")
    answers, choice = panel.knowledge.answers, panel.choice
    for format in FORMATS:
        table = answers.table(dataclasses.replace(choice, target=format))
        line = next(t for t in figure.data if (t.name or "").startswith(f"{format}: best"))
        best = table.groupby("tree_size")["speedup"].max()
        np.testing.assert_allclose(line.y, best)
        assert f"best {best.max():.2f}×" in line.name
    (x,), (y,) = figure.data[-1].x, figure.data[-1].y
    assert figure.data[-1].name == "current"
    assert (x, y) == (8, pytest.approx(answers.prediction(choice).speedup))


def test_speedup_of_a_chain_runs_over_its_length(opened):
    panel = opened()
    panel.controls.method.value = "chain"
    figure = panel.figure("speedup")
    assert "draft length" in figure.layout.title.text
    assert figure.layout.xaxis.title.text == "draft length, tokens"
    assert figure.data[-1].x == (4,)
    assert not any("tree" in (trace.name or "") for trace in figure.data)


def test_cost_marks_the_knee_and_the_rows_of_a_round(opened):
    panel = opened()
    figure = panel.figure("cost")
    assert any("w4a16-g128: knee at 6" in (trace.name or "") for trace in figure.data)
    assert "flat" in figure.layout.title.text
    rows = round(panel.knowledge.answers.source(panel.choice).rows(panel.choice))
    assert figure.layout.annotations[0].text == f"n = {rows}"
    assert figure.data[-1].x == (rows,)
    panel.controls.method.value = "ar"
    assert panel.figure("cost").data[-1].x == (1,)


def test_map_shows_the_emitted_tokens_at_the_minimum_length_chosen(opened):
    panel = opened()
    table = panel.knowledge.answers.table(panel.choice)
    figure = panel.figure("acceptance")
    for length in (4, 2):
        panel.controls.draft_len.value = length
        figure = panel.figure("acceptance")
        here = table[(table["tree_size"] == 8) & (table["at_least"] == length)]
        expected = here.set_index("depth")["mean_emitted"]
        assert figure.data[0].z[2][7] == pytest.approx(expected[3], abs=1e-4)
    assert (figure.data[1].x, figure.data[1].y) == ((8,), (3,))


@pytest.mark.parametrize(("method", "after"), [("eagle2", "eagle2"), ("ar", "hierspec")])
def test_a_click_on_the_map_sets_the_sliders(opened, method, after):
    panel = opened()
    panel.controls.method.value = method
    assert panel.wait(30)
    panel.views["acceptance"]._tell(type("Points", (), {"xs": [5], "ys": [2]}))
    assert panel.wait(30)
    choice = panel.choice
    assert (choice.method, choice.tree_size, choice.depth) == (after, 5, 2)
    assert panel.views["acceptance"].figure.data[1].x == (5,)


def test_scatter_compares_every_stored_run_and_rings_the_present_one(opened, root):
    for config in (*ALL, BASE):
        write_synthetic_run(root, config)
    panel = opened()
    table = panel.table("scatter")
    compared = table.dropna(subset=["ar_steps", "ar_steps_measured"])
    assert len(table) == 5 and {"eagle2", "hierspec"} <= set(compared["method"])
    figure = panel.figure("scatter")
    mine = compared[compared["method"] == "hierspec"].iloc[0]
    assert figure.data[-1].x == (pytest.approx(mine["ar_steps_measured"]),)
    assert figure.data[-1].y == (pytest.approx(mine["ar_steps"]),)


def test_measured_and_predicted_bars_say_which_they_are(opened, root):
    write_synthetic_run(root, BASE)
    table = opened().table("breakdown")
    for label, rows in table.groupby("label"):
        assert set(rows["origin"]) == {label.rpartition("· ")[2]}
    assert set(table["origin"]) == {"predicted", "measured"}


def test_on_another_device_no_run_of_this_one_stands_beside(opened, root):
    write_synthetic_run(root, BASE)
    panel = opened()
    panel.controls.device.value = "h200"
    assert set(panel.table("breakdown")["origin"]) == {"predicted"}


def test_measure_comes_back_to_the_device_that_measures(opened):
    panel = opened(measure=synthetic.quick_measure)
    panel.controls.device.value = "h200"
    panel.measure()
    assert panel.wait(60)
    assert panel.choice.device == HERE
    assert "measured" in set(panel.table("breakdown")["origin"])


def test_pins_stay_for_comparison_until_they_are_dropped(opened):
    panel = opened()
    before = panel.table("breakdown").query("origin == 'predicted'")["us_per_emitted"].iloc[-6:]
    panel.actions.pin.click()
    panel.actions.pin.click()
    panel.controls.tree_size.value = 3
    assert panel.wait(30)
    labels = [label for label in panel.breakdown_view.figure.data[0].y if label.startswith("pin")]
    assert len(labels) == 1 and "tree 8, depth 3, top-k 3, length 4" in labels[0]
    kept = panel.table("breakdown").query("label == @labels[0]")["us_per_emitted"]
    np.testing.assert_allclose(kept, before)
    panel.actions.unpin.click()
    assert panel.wait(30)
    assert not any("pin" in label for label in panel.breakdown_view.figure.data[0].y)


def test_find_best_moves_the_controls_and_says_why(opened):
    panel = opened()
    panel.actions.find_best.click()
    assert panel.wait(60)
    answers = panel.knowledge.answers
    assert "speculate" in panel.status.value
    fastest = answers.prediction(panel.choice).us_per_token
    for format in FORMATS:
        table = answers.table(dataclasses.replace(panel.choice, target=format))
        assert fastest <= table["us_per_token"].min() * 1.0001


@pytest.mark.parametrize("config", [*ALL, BASE, Config()], ids=lambda config: config.method)
def test_code_makes_the_very_config(opened, config):
    code = opened(config=config).code()
    made = {}
    exec(code.replace("result = run(config)", ""), made)
    assert made["config"] == config


def test_copy_shows_the_code_of_what_is_chosen_now(opened):
    panel = opened()
    panel.controls.depth.value = 2
    assert panel.wait(30)
    panel.actions.copy.copied = True
    panel.actions.copy.clicks += 1
    assert "clipboard" in panel.status.value
    assert panel.actions.text.layout.display == ""
    assert "depth=2" in panel.actions.copy.code == panel.actions.text.value == panel.code()


def test_state_goes_out_and_comes_back(opened):
    panel, other = opened(), opened()
    for control, value in MOVES.items():
        getattr(panel.controls, control).value = value
    other.state = panel.state
    assert other.choice == panel.choice
    assert other.wait(30) and other.state_text.value == panel.state
    other.state_text.value = "tree_size=3&method=hierspec"
    assert other.choice.tree_size == 3 and other.choice.context is None


def test_export_writes_the_measured_run_and_the_page(opened, root, tmp_path):
    write_synthetic_run(root, BASE)
    panel = opened()
    assert panel.export("perfetto", tmp_path / "run.json").stat().st_size > 1000
    text = panel.export("page", tmp_path / "page.html").read_text()
    assert text.count('class="plotly-graph-div"') == len(VIEWS)
    assert '<script src="' not in text
    assert "acceptance replayed from w4a16-g128-refine" in text


def test_without_anywidget_the_figures_are_pictures(opened, root, monkeypatch):
    def missing(*_):
        raise ImportError("Please install anywidget to use the FigureWidget class")

    write_synthetic_run(root, BASE)
    monkeypatch.setattr(views.go, "FigureWidget", missing)
    panel = opened()
    assert "pip install" in panel.status.value
    assert "verify_target" in panel.breakdown_view.value
    assert "<polyline" in panel.speedup_view.value and "current" in panel.speedup_view.value
    assert "<rect" in panel.views["acceptance"].value
    before = panel.speedup_view.value
    panel.controls.tree_size.value = 3
    assert panel.wait(5)
    assert panel.speedup_view.value != before


def test_a_drag_sends_marks_and_bars_and_not_the_grid(opened, monkeypatch):
    panel = opened()
    sent = {}
    for view in VIEWS:
        figure = panel.views[view].figure
        figure.observe(
            lambda change, view=view: sent.setdefault(view, []).append(str(change["new"] or "")),
            ["_py2js_update", "_py2js_addTraces", "_py2js_restyle", "_py2js_relayout"],
        )
    panel.controls.tree_size.value = 5
    assert panel.wait(30)
    size = {view: sum(map(len, messages)) for view, messages in sent.items()}
    assert set(size) >= {"breakdown", "speedup", "acceptance"} and "scatter" not in size
    assert size["speedup"] < 800 and size["acceptance"] < 800 and size["breakdown"] < 6000


def test_moves_that_come_together_are_painted_once(opened, monkeypatch):
    panel = opened()
    painted = []
    monkeypatch.setattr(jobs, "PAUSE_S", 5.0)
    monkeypatch.setattr(panel, "_paint_all", lambda scene: painted.append(scene.choice.tree_size))
    for size in range(2, 9):
        panel.controls.tree_size.value = size
    assert panel.wait(30)
    assert painted == [8]


def test_on_an_event_loop_a_move_is_painted_without_waiting_for_it(root):
    async def drag():
        panel = Explorer(root, config=BASE, answers=InventedAnswers())
        while not panel.knowledge.background.idle or panel._soon.pending:
            await asyncio.sleep(0.01)
        painted = []
        panel._paint_all = lambda scene: painted.append(scene.choice.tree_size)
        for size in range(2, 9):
            panel.controls.tree_size.value = size
        assert painted == []
        await asyncio.sleep(0.5)
        panel.close()
        return painted

    assert asyncio.run(drag()) == [8]


def test_moving_many_times_keeps_memory_level(opened):
    panel = opened()
    for number in range(120):
        panel.controls.tree_size.value = 2 + number % 7
        assert panel.wait(5)
        if number == 20:
            before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000 / 10
