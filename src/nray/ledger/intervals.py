"""Which positions of a segment are done, as merged intervals.

A scan of any size takes memory by the number of gaps, not of probes: a /0 that is done in order
is one pair.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """A set of non-negative integers held as sorted, disjoint, merged ``[start, end)`` pairs."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> IntervalSet:
        """A set of ``[start, end)`` pairs in any order, which may overlap."""
        made = cls()
        for start, end in pairs:
            made.add(start, end)
        return made

    def copy(self) -> IntervalSet:
        """A set of its own with the same numbers."""
        made = IntervalSet()
        made._starts, made._ends, made._total = self._starts[:], self._ends[:], self._total
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"

    def __contains__(self, number: int) -> bool:
        i = bisect_right(self._starts, number) - 1
        return i >= 0 and number < self._ends[i]

    def __len__(self) -> int:
        """How many intervals there are (not how many numbers: see `total`)."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    @property
    def total(self) -> int:
        """How many numbers are in the set."""
        return self._total

    def add(self, start: int, end: int) -> int:
        """Put ``[start, end)`` in; returns how many numbers of it were new.

        Raises:
            ValueError: the interval is empty or negative.
        """
        if not 0 <= start < end:
            raise ValueError(f"[{start}, {end}) is no interval")
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        before = sum(self._ends[i] - self._starts[i] for i in range(first, last))
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        new = end - start - before
        self._total += new
        return new

    def touching(self, start: int, end: int) -> list[tuple[int, int]]:
        """The pairs that overlap ``[start, end)`` or end or begin where it does the other."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        return list(zip(self._starts[first:last], self._ends[first:last], strict=True))

    def covers(self, start: int, end: int) -> bool:
        """Whether all of ``[start, end)`` is in the set."""
        i = bisect_right(self._starts, start) - 1
        return i >= 0 and end <= self._ends[i]

    def gaps(self, end: int) -> Iterator[tuple[int, int]]:
        """The ``[start, end)`` pairs below ``end`` that are not in the set."""
        at = 0
        for first, last in self:
            if first >= end:
                break
            if at < first:
                yield at, first
            at = last
        if at < end:
            yield at, end
