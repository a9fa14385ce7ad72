"""What every figure owes its reader, whichever module draws it; a new figure needs a fixture."""

import importlib
import itertools
import math
import pkgutil
import re

import numpy as np
import pytest
from colour_vision import channels
from figure_fixtures import FIXTURES, HOSTILE, drawn, figure_functions

import hspec_lab
from hspec_lab import figures
from hspec_lab.figures_bits import format_colour

NOTE = "cpu, 2 threads; 2026-01-02"
ORIGINS = "measured|replayed|predicted|roofline|looked at|fitted|compiled|imported"
UNITS = re.compile(
    r"µs|ms\b|\bs\b|FLOP/s|GB|byte|×|%|token|share|pass|step|round|tree|depth|speed-up|T\(|"
    r"operation|register|over the paper|\brow"
)
MOST_LETTERS, LEAST_PX = 60, 11
every_figure = pytest.mark.parametrize("name", sorted(FIXTURES))


def test_every_figure_function_has_a_fixture_here():
    found = set(figure_functions())
    missing, gone = sorted(found - set(FIXTURES)), sorted(set(FIXTURES) - found)
    assert not missing, f"figures without a fixture in tests/figure_fixtures.py: {missing}"
    assert not gone, f"fixtures without a figure: {gone}"


@every_figure
def test_the_title_says_what_is_shown_where_it_is_from_and_under_which_conditions(name):
    title = drawn(name, note=NOTE).layout.title.text
    first, *lines = title.split("<br>")
    what, _, origin = first.partition("</b> (")
    problems = []
    if not (what.startswith("<b>") and len(what) > len("<b>") + 10):
        problems.append(f"too short: {what}")
    if not re.search(ORIGINS, origin):
        problems.append(f"no origin: {first}")
    if NOTE not in re.sub("</?span[^>]*>", "", " ".join(lines)):
        problems.append(f"no conditions: {lines}")
    assert not problems, f"{name}: {problems}"


@every_figure
def test_axes_with_numbers_are_titled_with_a_unit_or_what_they_count(name):
    figure = drawn(name)
    problems = []
    for axis in [*figure.select_xaxes(), *figure.select_yaxes()]:
        if axis.visible is False or axis.showticklabels is False or not _has_numbers(figure, axis):
            continue
        words = f"{axis.title.text or ''} {axis.ticksuffix or ''} {axis.tickformat or ''}"
        if not UNITS.search(words):
            problems.append(f"{axis.plotly_name}: {words!r}")
    assert not problems, f"{name}: {problems}"


def _has_numbers(figure, axis) -> bool:
    """Whether an axis shows numbers of its own, not names."""
    if axis.ticktext or axis.type == "category":
        return False
    side = axis.plotly_name[0]
    own = axis.plotly_name.replace("axis", "")
    values = [
        value
        for trace in figure.data
        if (getattr(trace, f"{side}axis", None) or side) == own
        for value in _flat(trace[side])
    ]
    return any(isinstance(value, int | float | np.number) for value in values)


@every_figure
def test_a_front_end_is_given_no_nan(name):
    problems = [path for path, value in _leaves(drawn(name).to_dict()) if _is_nan(value)]
    assert not problems, f"{name}: {problems}"


@every_figure
def test_colours_are_those_of_the_palettes(name):
    allowed = {channels(colour) for colour in _palettes()} | {
        channels(format_colour("w4a16-g128+gptq"))
    }
    problems = []
    for path, value in _leaves(drawn(name).to_dict()):
        if not isinstance(value, str) or "color" not in path or "colorscale" in path:
            continue
        found = re.fullmatch(r"#[0-9a-fA-F]{6}|rgba?\(([\d.]+),\s*([\d.]+),\s*([\d.]+).*\)", value)
        if found is None:
            continue
        rgb = channels(value)
        if len(set(rgb)) > 1 and rgb not in allowed:
            problems.append(f"{path}: {value}")
    assert not problems, f"{name}: {problems}"


def _palettes() -> set[str]:
    """Every colour that is a constant of a module of figures."""
    found = set()
    for _, module, _ in pkgutil.walk_packages(hspec_lab.__path__, "hspec_lab."):
        if not module.removeprefix("hspec_lab.").startswith("figures"):
            continue
        for name, value in vars(importlib.import_module(module)).items():
            if name.strip("_").isupper():
                found |= {one for one in _strings(value) if re.fullmatch(r"#[0-9a-fA-F]{6}", one)}
    return found


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, tuple | list):
        yield from itertools.chain.from_iterable(map(_strings, value))


@every_figure
def test_names_in_the_legend_are_short_enough_to_be_read(name):
    problems = [
        trace.name
        for trace in drawn(name).data
        if trace.showlegend is not False and len(trace.name or "") > MOST_LETTERS
    ]
    assert not problems, f"{name}: {problems}"


@every_figure
def test_letters_are_large_enough(name):
    problems = []
    for path, value in _leaves(drawn(name, note=NOTE).to_dict()):
        if re.search(r"font\.size(\.\d+)?$", path) and value < LEAST_PX:
            problems.append(f"{path}: {value}")
        sizes = re.findall(r"font-size:\s*([\d.]+)px", value) if isinstance(value, str) else []
        problems += [f"{path}: {size}" for size in sizes if float(size) < LEAST_PX]
    assert not problems, f"{name}: {problems}"


@every_figure
def test_the_background_is_the_pages(name):
    layout = drawn(name).layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color == figures.INK


@every_figure
def test_hovering_tells_numbers_with_sensible_digits(name):
    problems = []
    for trace in drawn(name).data:
        for place in re.findall(r"%\{([a-z]+(?:\[\d+\])?)\}", trace.hovertemplate or ""):
            if any(_is_long(value) for value in _told(trace, place)):
                problems.append(f"{trace.name}: %{{{place}}} has no format")
        for words in map(str, _flat(trace.hovertext)):
            if re.search(r"\bnan\b|\d\.\d{4,}", words):
                problems.append(words)
        if trace.hovertemplate is None and trace.hoverinfo not in ("skip", "none", "text"):
            problems.append(f"{trace.name}: hovering shows plotly's own words")
    assert not problems, f"{name}: {problems}"


def _told(trace, place: str):
    name, _, column = place.partition("[")
    values = getattr(trace, name, None)
    if column:
        return [row[int(column.rstrip("]"))] for row in values]
    return _flat(values)


def _is_long(value) -> bool:
    return isinstance(value, float | np.floating) and len(f"{value:.12g}") > 5


@every_figure
def test_text_stays_text(name):
    figure = drawn(name, hostile=True, note=HOSTILE)
    found = [path for path, value in _leaves(figure.to_dict()) if HOSTILE in str(value)]
    assert not found, f"{name}: {found}"


def _leaves(value, path: str = ""):
    """Every (path, value) of nested dicts and sequences."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple | np.ndarray):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, value


def _flat(values):
    return [] if values is None else [value for _, value in _leaves(values)]


def _is_nan(value) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)
