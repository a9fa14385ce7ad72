"""Interval arithmetic against a grid on which every whole nanosecond is looked at by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hspec_lab.analysis import intervals as iv

# backward and empty intervals included
MOST = 24
pairs = st.tuples(st.integers(-MOST, MOST), st.integers(-MOST, MOST))
sets = st.lists(pairs, max_size=8).map(lambda rows: np.array(rows, np.int64).reshape(-1, 2))


def depth(intervals):
    """How many run in each cell [t, t + 1)."""
    cells = np.arange(-MOST, MOST)
    return (
        sum(((start <= cells) & (cells < end)).astype(int) for start, end in intervals) + 0 * cells
    )


def assert_normal(intervals):
    assert intervals.dtype == np.int64 and intervals.shape[1] == 2
    assert (intervals[:, 0] < intervals[:, 1]).all()
    assert (intervals[1:, 0] > intervals[:-1, 1]).all()


def assert_runs(found, cells):
    assert_normal(found)
    assert ((depth(found) == 1) == cells).all()


@given(sets)
def test_a_union_runs_where_any_does(a):
    assert_runs(iv.union(a), depth(a) >= 1)


@given(sets, st.integers(1, 4))
def test_an_overlap_runs_where_enough_do(a, least):
    assert_runs(iv.overlap(a, least), depth(a) >= least)


@given(sets, sets)
def test_an_intersection_runs_where_both_do(a, b):
    assert_runs(iv.intersection(a, b), (depth(a) >= 1) & (depth(b) >= 1))


@given(sets, sets)
def test_a_difference_runs_where_only_the_first_does(a, b):
    assert_runs(iv.difference(a, b), (depth(a) >= 1) & (depth(b) == 0))


@given(sets)
def test_a_total_counts_each_moment_once(a):
    assert iv.total(a) == (depth(a) >= 1).sum()


@given(sets, sets)
def test_windows_are_covered_as_far_as_something_runs(a, windows):
    expected = [((depth(a) >= 1) & (depth([window]) >= 1)).sum() for window in windows]
    assert iv.covered(a, windows).tolist() == expected


@given(sets, sets)
def test_parts_add_up(a, b):
    assert iv.total(iv.intersection(a, b)) + iv.total(iv.difference(a, b)) == iv.total(a)


def test_touching_intervals_become_one_and_share_nothing():
    assert iv.union(np.array([[5, 9], [0, 5]])).tolist() == [[0, 9]]
    assert iv.overlap(np.array([[5, 9], [0, 5]])).tolist() == []


def test_times_as_large_as_clocks_have_are_exact():
    start = 2**62
    assert iv.total(iv.of([start, start + 1], [start + 2, start + 3])) == 3


def test_an_overlap_of_none_is_refused():
    with pytest.raises(ValueError, match="least must be 1 or more, got 0"):
        iv.overlap(np.zeros((0, 2)), 0)
