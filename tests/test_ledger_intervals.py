"""Intervals against a plain set of numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.ledger.intervals import IntervalSet

END = 40
PAIRS = st.tuples(st.integers(0, END - 1), st.integers(1, 12)).map(
    lambda pair: (pair[0], min(END, pair[0] + pair[1]))
)


def built(pairs):
    made, model = IntervalSet(), set()
    for start, end in pairs:
        new = set(range(start, end)) - model
        assert made.add(start, end) == len(new)
        model |= new
    return made, model


@given(st.lists(PAIRS, max_size=30))
def test_it_is_the_set_of_all_numbers_put_in(pairs):
    made, model = built(pairs)
    assert {number for start, end in made for number in range(start, end)} == model
    assert made.total == len(model)


@given(st.lists(PAIRS, max_size=30))
def test_intervals_are_sorted_disjoint_and_never_touch(pairs):
    made, _ = built(pairs)
    kept = list(made)
    assert len(kept) == len(made)
    assert all(start < end for start, end in kept)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(kept))


@given(st.lists(PAIRS, max_size=30), PAIRS)
def test_covers(pairs, asked):
    made, model = built(pairs)
    assert made.covers(*asked) == set(range(*asked)).issubset(model)


@given(st.lists(PAIRS, max_size=30), st.integers(0, END + 5))
def test_gaps_are_what_is_missing(pairs, end):
    made, model = built(pairs)
    gaps = list(made.gaps(end))
    assert all(start < stop for start, stop in gaps)
    missing = {number for start, stop in gaps for number in range(start, stop)}
    assert missing == set(range(end)) - model


@given(st.permutations([(n, n + 1) for n in range(12)]))
def test_in_any_order_the_whole_is_one_interval(pairs):
    made, _ = built(pairs)
    assert list(made) == [(0, 12)]


def test_a_scan_in_order_is_one_pair_whatever_its_size():
    made = IntervalSet()
    for start in range(0, 2**62, 2**58):
        made.add(start, start + 2**58)
    assert list(made) == [(0, 2**62)]
    assert made.total == 2**62


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, 3), (-3, -1)])
def test_what_is_no_interval_is_refused_and_changes_nothing(start, end):
    made = IntervalSet()
    made.add(0, 4)
    with pytest.raises(ValueError, match="is no interval"):
        made.add(start, end)
    assert list(made) == [(0, 4)]
    assert made.total == 4


def test_empty():
    made = IntervalSet()
    assert (len(made), made.total, list(made.gaps(3))) == (0, 0, [(0, 3)])
    assert not made.covers(0, 1)
    assert list(made.gaps(0)) == []
