"""Colours keep apart for everybody: palettes pair by pair, lines and marks also by a second cue."""

import itertools

import pytest
from colour_vision import VISIONS, apart
from figure_fixtures import FIXTURES, drawn

from hspec_lab import figures

LEAST_APART = 10  # CIE76: seen at a glance; 2.3 is just noticeable side by side


def test_black_and_white_are_a_hundred_apart_and_red_and_green_nearer_for_some():
    for vision in VISIONS:
        assert apart("#000000", "#ffffff", vision) == pytest.approx(100, abs=0.1)
        assert apart("#0072B2", "#0072B2", vision) == 0
    red_green = {vision: apart("#CC3311", "#228833", vision) for vision in VISIONS}
    assert red_green["deuteranopia"] < red_green["usual"] / 2 < red_green["tritanopia"]


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_lines_and_marks_keep_apart_for_every_kind_of_vision(name):
    """By colour as everybody sees it, or by dash, marker or filling."""
    shown = [t for t in drawn(name).data if t.type == "scatter" and t.name and t.mode != "text"]
    problems = []
    for one, other in itertools.combinations([t for t in shown if t.showlegend is not False], 2):
        if _cue(one) != _cue(other) or _colour(one) is None or _colour(other) is None:
            continue
        near = min(apart(_colour(one), _colour(other), vision) for vision in VISIONS)
        if one.name != other.name and near < LEAST_APART:
            problems.append(f"{one.name} and {other.name}: {near:.1f}")
    assert not problems


def _cue(trace) -> tuple:
    return trace.mode, trace.line.dash or "solid", str(trace.marker.symbol), str(trace.marker.size)


def _colour(trace) -> str | None:
    colour = trace.line.color or trace.marker.color
    return colour if isinstance(colour, str) and colour.startswith("#") else None


PALETTES = {
    "phases": figures.PHASE_COLOURS,
    "levels": figures.LEVEL_COLOURS,
    "formats": figures.FORMAT_COLOURS,
    "methods": figures.METHOD_COLOURS,
}
PAIRS = [
    pytest.param(palette, one, other, id=f"{palette}: {one} and {other}")
    for palette, colours in PALETTES.items()
    for one, other in itertools.combinations(colours, 2)
]


@pytest.mark.parametrize("palette,one,other", PAIRS)
def test_colours_of_a_palette_keep_apart_for_every_kind_of_vision(palette, one, other):
    """Bars of any two may touch, and have no second cue."""
    colours = PALETTES[palette]
    found = {vision: apart(colours[one], colours[other], vision) for vision in VISIONS}
    near = {vision: round(value, 1) for vision, value in found.items() if value < LEAST_APART}
    assert not near
