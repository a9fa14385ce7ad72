"""Trees as figures: where nodes stand, what is written on them, what the text beside says."""

import time

import numpy as np
import pandas as pd
import pytest
from looked import CHAIN, TREE, big_tree, nodes_of

from hspec_lab import figures_tree
from hspec_lab.figures_tree import disagreement, shown, text_so_far, tree_figure


def trace(figure, name):
    return next(one for one in figure.data if one.name == name)


def at(figure, name):
    found = trace(figure, name)
    return dict(zip(found.text, zip(found.x, found.y, strict=True), strict=True))


def test_the_top_row_reads_as_what_was_emitted():
    figure = tree_figure(nodes_of(TREE))
    top = {}
    for name in ("pending token", "accepted", "the model's own"):
        top |= {text: x for text, (x, y) in at(figure, name).items() if y == 0}
    assert sorted(top, key=top.get) == ["root", "b", "d", "own"]


def test_a_node_stands_one_column_behind_its_parent_and_no_two_at_one_place():
    nodes = nodes_of(TREE)
    figure = tree_figure(nodes)
    places = [
        place
        for one in figure.data
        if one.mode == "markers+text"
        for place in zip(one.x, one.y, strict=True)
    ]
    assert len(places) == len(set(places)) == len(nodes) + 1
    assert sorted(x for x, _ in places) == sorted([*nodes["depth"], 3])


def test_leaves_are_evenly_spaced_below_the_top_row():
    figure = tree_figure(nodes_of(TREE), height=300)
    rows = sorted({y for one in figure.data if one.mode == "markers+text" for y in one.y})
    gaps = np.diff(rows[1:])
    assert len(rows) == 4 and np.allclose(gaps, gaps[0])


def test_every_edge_joins_a_node_to_its_parent():
    nodes = nodes_of(TREE)
    figure = tree_figure(nodes)
    path, rest = figure.data[:2]
    # five points an edge: across, down, across, and a gap; one edge leads to the model's own
    assert len(path.x) == 5 * 3 and len(rest.x) == 5 * 3
    assert path.line.width > rest.line.width and path.line.color == figures_tree.ACCENT
    assert all(rest.x[i + 3] - rest.x[i] == 1 for i in range(0, len(rest.x), 5))


def test_the_drafters_best_refused_token_is_marked_and_told_with_four_probabilities():
    nodes = nodes_of(TREE)
    figure = tree_figure(nodes)
    assert list(trace(figure, "refused").text) == ["e"]
    words = "target refuses “e” (head 0.60, target 0.20) and says “own” (head 0.10, target 0.70)"
    assert disagreement(nodes) == words
    assert "refuses “e”" in figure.layout.title.text.replace("</span><br>", " ")


def test_a_models_sequence_tells_the_models_probabilities_although_a_head_thought_of_it():
    assert disagreement(nodes_of(CHAIN)).startswith("target refuses “y” (intermediate 0.50")
    assert disagreement(nodes_of(CHAIN).iloc[:2]) == ""


def test_numbers_stand_below_tokens_drafter_first():
    numbers = tree_figure(nodes_of(TREE)).data[-1]
    assert "0.30 #2 → 0.80 #1" in numbers.text
    assert "below a token: its probability and #place, head" in (
        tree_figure(nodes_of(TREE)).layout.title.text
    )


def test_hovering_tells_everything():
    told = dict(
        zip(
            *(lambda one: (one.text, one.hovertext))(trace(tree_figure(nodes_of(TREE)), "refused")),
            strict=True,
        )
    )["e"]
    for words in ("thought of by head", "head: 0.60, place 1", "target: 0.20, place 2"):
        assert words in told


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (" the", "␣the"),
        ("\n        if", "↵␣×8if"),
        ("\t", "⇥"),
        ("x" * 50, "x" * 39 + "…"),
    ],
)
def test_white_space_is_visible_and_long_tokens_are_cut(piece, words):
    assert shown(piece) == words


def test_tokens_are_text_and_never_markup_or_formula():
    nodes = nodes_of(TREE)
    nodes.loc[4, "piece"], nodes.loc[3, "piece"] = "<b>&", "$x$"
    figure = tree_figure(nodes)
    texts = [text for one in figure.data if one.text is not None for text in one.text]
    assert "&lt;b&gt;&amp;" in texts and "&#36;x&#36;" in texts


def test_a_round_without_a_draft_is_its_own_token():
    figure = tree_figure(nodes_of(TREE).iloc[:1].assign(choice_piece="!"))
    assert list(trace(figure, "the model's own").text) == ["!"]
    assert "nothing drafted" in figure.layout.title.text and not figure.layout.annotations


def test_labels_never_lie_over_a_node_of_their_column():
    figure = tree_figure(big_tree(512))
    column = {}
    for one in figure.data:
        if one.mode == "markers+text":
            for x, y, text in zip(one.x, one.y, one.text, strict=True):
                column.setdefault(x, []).append((y, text, one.name))
    shown_labels = 0
    for places in column.values():
        places.sort()
        for (above, *_), (y, text, name) in zip(places, places[1:], strict=False):
            assert not text or y - above >= 19 or name == "refused"
            shown_labels += bool(text)
    assert shown_labels < 200


def test_as_many_traces_and_a_screen_of_height_whatever_the_tree():
    small, large = tree_figure(nodes_of(TREE)), tree_figure(big_tree(512))
    assert len(small.data) == len(large.data) <= 8
    assert large.layout.height < 900
    assert tree_figure(nodes_of(TREE), height=300).layout.height == (
        tree_figure(nodes_of(CHAIN), height=300).layout.height
    )


def test_512_nodes_are_placed_in_a_moment():
    nodes = big_tree(512)
    tree_figure(nodes)
    took = []
    for _ in range(5):
        start = time.process_time()
        tree_figure(nodes)
        took.append(time.process_time() - start)
    print(f"512 nodes: {1e3 * min(took):.0f} ms")
    assert min(took) < 0.1


TOKENS = pd.DataFrame(
    {
        "round": [-1, 0, 0, 1],
        "position": range(4),
        "piece": ["<a>", "b", "c", "d"],
        "source": ["target", "head", "target", "target"],
    }
)


def test_the_text_ends_with_the_round_whose_tokens_are_outlined():
    text = text_so_far("one\ntwo", TOKENS, 0)
    assert "&lt;a&gt;" in text and ">c</span>" in text and ">d</span>" not in text
    assert text.count("outline:1.5px solid") == 2 and "two</span>" in text


def test_a_draft_stands_dashed_behind_the_text_of_earlier_rounds():
    drafted = pd.DataFrame({"piece": ["x"], "source": ["head"]})
    text = text_so_far("", TOKENS, 1, drafted)
    assert text.count("outline:1.5px dashed") == 1 and ">d</span>" not in text
    assert "outline:1.5px solid" not in text
