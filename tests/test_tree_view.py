"""The tree panel without a browser: slid, switched, played; what it shows and how fast."""

import json
import subprocess
import sys
import time
from threading import Thread

import plotly.graph_objects as go
import pytest
from looked import CHAIN, TREE, big_tree, nodes_of, trees_of

from hspec_lab.widgets import tree as widget
from hspec_lab.widgets.tree import TreeView


def rounds(n=4, steps=2):
    """A decode of n rounds: trees before the intermediate model, its sequence before the target."""
    parts = [nodes_of(TREE[:1], round=-1)]
    for at in range(n):
        # a round has one step more than the next
        for step in range(max(1, steps - at)):
            parts.append(nodes_of(TREE, "intermediate", at, step))
        parts.append(nodes_of(CHAIN, "target", at))
    return trees_of(*parts)


@pytest.fixture
def opened():
    """Makes panels that note what they draw, and closes them."""
    panels = []

    def make(trees=None):
        panel = TreeView(trees if trees is not None else rounds())
        panel.drawn, draw = [], panel.figure
        panel.figure = lambda: panel.drawn.append(panel.proposal) or draw()
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


def title(panel):
    return panel.picture.figure.layout.title.text


def test_it_begins_with_the_target_of_the_first_round(opened):
    panel = opened()
    assert panel.proposal == (0, 0, "target", 0)
    assert "Round 0, target: 1 of 2 drafted tokens kept" in title(panel)
    assert panel.here.value == "0 of 3"


def test_the_slider_goes_from_round_to_round_and_the_prefill_is_one(opened):
    panel = opened()
    panel.slider.value = 3
    settled(panel)
    assert panel.proposal == (0, 2, "target", 0) and "Round 2, target" in title(panel)
    panel.slider.value = 0
    settled(panel)
    assert panel.here.value == "prefill" and "nothing drafted" in title(panel)


def test_buttons_offer_the_steps_of_the_round(opened):
    panel = opened()
    assert [name for name, _ in panel.which.options] == [
        "intermediate 1",
        "intermediate 2",
        "target",
    ]
    panel.which.value = ("intermediate", 1)
    settled(panel)
    assert "Round 0, intermediate, step 2: 2 of 5" in title(panel)
    assert panel.table()["level"].unique().tolist() == ["intermediate"]


def test_a_level_stays_chosen_where_a_round_has_fewer_steps(opened):
    panel = opened()
    panel.which.value = ("intermediate", 1)
    panel.slider.value = 3
    settled(panel)
    assert panel.proposal == (0, 2, "intermediate", 0) and "Round 2, intermediate" in title(panel)


def test_playing_moves_the_slider_and_the_slider_what_is_played(opened):
    panel = opened()
    panel.play.value = 2
    settled(panel)
    assert panel.slider.value == 2 and "Round 1, target" in title(panel)
    panel.slider.value = 4
    assert panel.play.value == 4


def test_the_text_grows_with_the_rounds_and_a_draft_stands_dashed_behind_it(opened):
    panel = opened()
    panel.show(round=1)
    text = panel.text.value
    assert (
        text.count("round 1'") == 2 and "round 2'" not in text and "dashed currentColor" not in text
    )
    panel.show(round=1, level="intermediate", step=0)
    text = panel.text.value
    # b, d and the model's own token
    assert text.count("dashed currentColor") == 3 and "round 1'" not in text
    assert "begin" in text


def test_drafts_of_earlier_steps_stand_before_later_ones(opened):
    panel = opened()
    panel.show(round=0, level="intermediate", step=1)
    assert panel.text.value.count("dashed currentColor") == 6


def test_a_refusal_is_told_in_words(opened):
    panel = opened()
    assert "target refuses “y” (intermediate 0.50, target 0.30)" in title(panel)


def test_a_proposal_that_is_not_there_is_refused(opened):
    with pytest.raises(ValueError, match="no step 7 of intermediate in round 0 of prompt 0"):
        opened().show(round=0, level="intermediate", step=7)


def test_nothing_to_look_at_is_said():
    with pytest.raises(ValueError, match="call look"):
        TreeView(trees_of(nodes_of(TREE).iloc[:0]))


def test_of_many_moves_the_last_is_drawn_and_the_kernel_does_not_wait(opened):
    panel = opened(rounds(40))
    start = time.perf_counter()
    for at in range(1, 41):
        panel.slider.value = at
    moved = time.perf_counter() - start
    settled(panel)
    assert panel.drawn[-1] == panel.proposal == (0, 39, "target", 0)
    assert len(panel.drawn) < 20, f"40 moves in {moved:.2f} s drew {len(panel.drawn)} times"


def test_moves_from_another_thread_never_mix_two_rounds(opened):
    panel = opened(rounds(6, steps=6))

    def move():
        for turn in range(30):
            panel.slider.value = 1 + turn % 6
            panel.which.value = panel.which.options[0][1]

    mover = Thread(target=move)
    mover.start()
    while mover.is_alive():
        panel._draw()
    mover.join()
    settled(panel)
    assert panel.drawn[-1] == panel.proposal


def test_traces_change_in_place(opened):
    panel = opened()
    before = [one.uid for one in panel.picture.figure.data]
    panel.slider.value = 3
    settled(panel)
    panel.which.value = ("intermediate", 0)
    settled(panel)
    assert [one.uid for one in panel.picture.figure.data] == before


@pytest.mark.parametrize("level", ["target", "intermediate"])
def test_what_is_shown_in_place_is_what_a_new_figure_would_be(opened, level):
    panel = opened()
    for at in (2, 0, 1):
        panel.show(round=at, level=level)
        shown = panel.picture.figure.to_dict()
        for one in shown["data"]:
            one.pop("uid")
        assert json.loads(go.Figure(shown).to_json()) == json.loads(panel.figure().to_json())


def test_a_level_keeps_its_height_whatever_the_round(opened):
    panel = opened(trees_of(nodes_of(TREE), nodes_of(CHAIN, round=1), big_tree(80, round=2)))
    heights = set()
    for at in range(3):
        panel.show(round=at)
        heights.add(panel.picture.figure.layout.height)
    assert len(heights) == 1


def test_512_nodes_are_drawn_in_a_moment(opened):
    panel = opened(trees_of(big_tree(512), big_tree(511, round=1)))
    took = []
    for at in (1, 0, 1, 0, 1):
        panel.slider.value = at
        settled(panel)
        start = time.process_time()
        panel._draw()
        took.append(time.process_time() - start)
    print(f"512 nodes drawn in {1e3 * min(took):.0f} ms of kernel time")
    assert min(took) < 0.1


def test_the_page_is_whole_and_offline(opened, tmp_path):
    path = opened().to_html(tmp_path / "tree.html")
    text = path.read_text(encoding="utf-8")
    assert "Round 0, target" in text and "The text, by who produced it" in text
    assert text.count('class="plotly-graph-div"') == 1 and '<script src="' not in text


def test_without_anywidget_the_tree_is_a_picture_and_says_how_to_get_a_live_one(
    opened, monkeypatch
):
    def missing(figure):
        raise ImportError("FigureWidget needs anywidget")

    monkeypatch.setattr(widget, "_LiveTree", missing)
    panel = opened()
    assert not panel.picture.live and "pip install" in panel.status.value
    before = panel.picture.value
    # three nodes and the model's own
    assert before.count("<circle") == 4 and before.count("<path") == 2
    assert "<script" not in before and "nan" not in before and "<title>" in before
    panel.show(round=0, level="intermediate", step=0)
    assert panel.picture.value != before and panel.picture.value.count("<circle") == 7


def test_it_opens_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import hspec_lab.widgets.tree, hspec_lab.trees_folder"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
