"""Sets of addresses against Python's own sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray.targets import ranges
from nray.targets.ranges import Range, Ranges

pairs = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda t: (t[0], t[0] + t[1])), max_size=9
)
merged = pairs.map(ranges.merge)


def members(given: list[Range] | Ranges) -> set[int]:
    return {number for first, last in given for number in range(first, last + 1)}


def canonical(given: Ranges) -> bool:
    return all(first <= last for first, last in given) and all(
        one[1] + 1 < other[0] for one, other in pairwise(given)
    )


@given(pairs)
def test_merge(given: list[Range]) -> None:
    result = ranges.merge(given)
    assert members(result) == members(given)
    assert canonical(result)
    assert ranges.count(result) == len(members(given))


@given(merged, merged)
def test_subtract(given: Ranges, away: Ranges) -> None:
    result = ranges.subtract(given, away)
    assert members(result) == members(given) - members(away)
    assert canonical(result)
    assert not ranges.meet(result, away)


@given(merged, merged)
def test_meet(given: Ranges, others: Ranges) -> None:
    assert ranges.meet(given, others) == bool(members(given) & members(others))


@given(merged)
def test_packed_and_back(given: Ranges) -> None:
    assert ranges.unpack4(ranges.pack4(given)) == given
    high = tuple((first << 100 | 7, last << 100 | 9) for first, last in given)
    assert ranges.unpack6(ranges.pack6(high)) == high
    assert len(ranges.pack4(given)) == 8 * len(given)
    assert len(ranges.pack6(high)) == 32 * len(high)


@pytest.mark.parametrize("given", [[(2, 1)], [(1, 3), (3, 4)], [(5, 6), (1, 2)]])
def test_what_is_no_set_is_refused(given: list[Range]) -> None:
    with pytest.raises(ValueError, match="sorted"):
        ranges.unpack4(ranges.pack4(given))
    with pytest.raises(ValueError, match="sorted"):
        ranges.unpack6(ranges.pack6(given))


@pytest.mark.parametrize("length", [1, 4, 7, 9, 12, 31])
def test_packed_ranges_of_a_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match="bytes each"):
        ranges.unpack4(bytes(length))
    with pytest.raises(ValueError, match="bytes each"):
        ranges.unpack6(bytes(length + 8))
