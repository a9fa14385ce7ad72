"""The timeline panel without a browser: pressed, slid, zoomed; what it draws and how often."""

import builtins
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from synthetic import write_synthetic_run

from hspec_lab import store
from hspec_lab.config import Chain, Config
from hspec_lab.timeline import KERNELS, LAUNCHES, RANGES, Timeline, of_run, table
from hspec_lab.widgets import timeline as widget
from hspec_lab.widgets.timeline import TimelineView

CONFIG = Config(target="zoo:target@fp32", draft=Chain("zoo:intermediate@fp32", 4), n_prompts=1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return of_run(*store.read_run(write_synthetic_run(tmp_path_factory.mktemp("runs"), CONFIG)))


@pytest.fixture
def opened(recorded):
    """Makes panels that count how often they draw, and closes them."""
    panels = []

    def make(shown=recorded):
        panel = TimelineView(shown)
        panel.drawn, draw = [], panel.figure
        panel.figure = lambda: panel.drawn.append(panel.view) or draw()
        panels.append(panel)
        return panel

    yield make
    for panel in panels:
        panel.wait()
        panel.close()


def settled(panel):
    """Wait until nothing is drawn any more."""
    assert panel.wait()
    time.sleep(3 * widget.DEBOUNCE_S)
    assert panel.wait()


def zoom(panel, start_ms, end_ms):
    """What a front end sends after somebody has zoomed."""
    edges = {"xaxis.range[0]": start_ms, "xaxis.range[1]": end_ms}
    panel.picture.figure._js2py_relayout = {"relayout_data": edges, "source_view_id": "one"}


def round_of(panel, at):
    row = panel.rounds.iloc[at]
    return row["start_ns"] / 1e3, row["end_ns"] / 1e3


def test_it_begins_with_all_of_the_recording(opened, recorded):
    panel = opened()
    assert panel.view == (0.0, recorded.ranges["end_ns"].max() / 1e3)
    assert f"{len(recorded.ranges)} spans drawn as" in panel.status.value


def test_a_run_is_asked_for_its_timeline(opened, recorded):
    panel = opened(SimpleNamespace(timeline=lambda: recorded))
    assert panel.timeline is recorded


def test_buttons_go_from_round_to_round_and_stop_at_the_ends(opened):
    panel = opened()
    last = len(panel.rounds) - 1
    for name, at in (("this round", 0), ("previous round", 0), ("next round", 1)):
        panel.buttons[name].click()
        settled(panel)
        start, end = round_of(panel, at)
        assert panel.view[0] < start < end < panel.view[1] < start + 1.2 * (end - start), name
        assert panel.slider.value == at
    panel.slider.value = last
    panel.buttons["next round"].click()
    settled(panel)
    assert panel.slider.value == last
    panel.buttons["whole run"].click()
    settled(panel)
    assert panel.view == panel._whole


def test_the_slider_moves_the_picture(opened):
    panel = opened()
    panel.slider.value = 5
    settled(panel)
    start, end = round_of(panel, 5)
    shown = panel.picture.figure.layout.xaxis.range
    assert shown[0] < start / 1e3 < end / 1e3 < shown[1]


def test_zooming_redraws_once_and_leaves_the_axis_to_the_hand_that_holds_it(opened):
    panel = opened()
    before = len(panel.picture.figure.data)
    zoom(panel, 10.0, 20.0)
    settled(panel)
    assert panel.drawn == [(10_000.0, 20_000.0)]
    figure = panel.picture.figure
    assert figure.layout.xaxis.range == (10.0, 20.0) and len(figure.data) == before
    # beyond the view there is only what dragging needs
    ends = [base + x for t in figure.data for base, x in zip(t.base, t.x, strict=True) if x]
    assert min(ends) >= 5.0


def test_of_many_wishes_the_last_is_drawn(opened):
    panel = opened()
    for end_ms in range(20, 60):
        zoom(panel, 10.0, float(end_ms))
    settled(panel)
    assert panel.view == (10_000.0, 59_000.0)
    assert len(panel.drawn) <= 3


def test_what_the_panel_draws_itself_does_not_make_it_draw_again(opened):
    panel = opened()
    show = panel.picture.show

    def and_tell(figure):
        show(figure)
        # some versions of plotly report a range that came from here as if somebody had zoomed
        panel.picture.figure.layout.xaxis.range = (1.0, 9.5)

    panel.picture.show = and_tell
    panel.show(1000, 9000)
    settled(panel)
    assert panel.drawn == [(1000.0, 9000.0)]


def test_the_slider_begins_behind_the_warm_up(opened, recorded):
    ranges = recorded.ranges.assign(warmup=recorded.ranges["round"] == 0)
    panel = opened(Timeline(ranges))
    assert panel.slider.label == "1 of prompt 0"
    assert panel.slider.options[0][0] == "warm-up, 0 of prompt 0"


def test_a_round_is_found_by_its_number(opened):
    panel = opened()
    panel.show_round(prompt=0, round=7)
    start, end = round_of(panel, panel.slider.value)
    assert panel.slider.label == "7 of prompt 0" and panel.view[0] < start < end < panel.view[1]
    with pytest.raises(ValueError, match="no round 99 of prompt 0"):
        panel.show_round(prompt=0, round=99)


def test_a_view_that_ends_before_it_starts_is_refused(opened):
    with pytest.raises(ValueError, match="starts before it ends, got 5 to 5"):
        opened().show(5, 5)


def test_slow_rounds_are_listed_with_a_reason_and_lead_there(opened):
    panel = opened()
    (_, none), (words, at), *_ = panel.slowest.options
    assert panel.slowest.value == none == -1 and ": " in words
    panel.slowest.value = at
    settled(panel)
    assert panel.slider.value == at and panel.slider.label.split()[0] in words


def test_the_table_holds_what_is_in_view(opened, recorded):
    panel = opened()
    assert len(panel.table()) == len(recorded.ranges)
    panel.show_round(prompt=0, round=3)
    rows = panel.table()
    assert 0 < len(rows) < 30
    assert (rows["start_us"] <= panel.view[1]).all()
    assert (rows["start_us"] + rows["duration_us"] >= panel.view[0]).all()


def test_every_format_is_written_and_its_size_told(opened, tmp_path):
    files = opened().export(tmp_path)
    assert set(files["format"]) == {"perfetto", "nsys-sqlite", "parquet", "speedscope"}
    assert (files["bytes"] > 1000).all()
    assert sorted(Path(path).parent for path in files["path"]) == [tmp_path] * 4


def test_the_page_is_whole_and_offline(opened, tmp_path):
    path = opened().to_html(tmp_path / "view.html")
    text = path.read_text(encoding="utf-8")
    assert "What happened when" in text and "in view" in text
    assert "<script src=" not in text and "cdn.plot.ly/plotly" not in text[:2000]


def test_kernels_get_the_phase_that_launched_them(opened, recorded, tmp_path):
    phase = recorded.ranges[recorded.ranges["kind"] == "phase"].iloc[1]
    at = pd.DataFrame({"start_ns": [phase["start_ns"] + 10], "end_ns": [phase["start_ns"] + 900]})
    timeline = Timeline(
        recorded.ranges,
        table(LAUNCHES, at, thread=phase["thread"], correlation=1, name="cudaLaunchKernel"),
        table(KERNELS, at, name="gemm", device=0, stream=7, correlation=1, kind="kernel"),
    )
    panel = opened(timeline)
    panel.show(phase["start_ns"] / 1e3 - 1, phase["end_ns"] / 1e3 + 1)
    (trace,) = (t for t in panel.figure().data if any("gemm" in words for words in t.hovertext))
    assert trace.name == phase["phase"]
    # and what is exported is what came in
    assert panel.timeline is timeline and len(panel.export(tmp_path)) == 4


@pytest.mark.parametrize("empty", [True, False], ids=["nothing", "ranges of others"])
def test_a_trace_without_rounds_can_be_looked_at(opened, empty):
    rows = pd.DataFrame({"start_ns": [0, 2000], "end_ns": [1000, 5000]})
    ranges = table(RANGES, rows[: 0 if empty else 2], kind="range", name="step", thread=1)
    panel = opened(Timeline(ranges, notes=("no <kernels>",)))
    assert panel.slider.disabled and panel.slowest.disabled
    assert panel.buttons["next round"].disabled and not panel.buttons["whole run"].disabled
    assert "no &lt;kernels&gt;" in panel.status.value
    panel.show(0, 3)
    assert len(panel.table()) == (0 if empty else 2)


def test_without_anywidget_the_picture_is_still_and_says_how_to_get_a_live_one(opened, monkeypatch):
    def refuse(name, *rest, **more):
        if name == "anywidget":
            raise ImportError(name)
        return original(name, *rest, **more)

    def no_live(figure):
        raise ImportError("FigureWidget needs anywidget")

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(widget, "LiveView", no_live)
    panel = opened()
    assert not panel.picture.live and "pip install" in panel.status.value
    before = panel.picture.value
    assert before.count("<rect") == panel.picture.figure.layout.meta["n_bars"]
    panel.show_round(prompt=0, round=3)
    assert panel.picture.value != before and "<script" not in panel.picture.value
    assert "<title>" in panel.picture.value


def test_it_opens_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "from hspec_lab.widgets.timeline import TimelineView\n"
        "from hspec_lab.timeline import Timeline, RANGES, table\n"
        "TimelineView(Timeline(table(RANGES)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
