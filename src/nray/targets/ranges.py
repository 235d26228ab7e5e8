"""Arithmetic on sets of addresses: sorted, disjoint, inclusive (first, last) pairs of numbers.

All functions but `merge` take and give sets in that form, and go over each once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter

Range = tuple[int, int]
Ranges = tuple[Range, ...]


def merge(ranges: Iterable[Range]) -> Ranges:
    """The set of all addresses in ``ranges``, which may overlap and come in any order."""
    merged: list[Range] = []
    ordered = sorted(ranges, key=itemgetter(0))  # a third of the time that whole pairs take
    if not ordered:
        return ()
    low, high = ordered[0]
    for first, last in ordered:
        if first > high + 1:
            merged.append((low, high))
            low, high = first, last
        elif last > high:
            high = last
    merged.append((low, high))
    return tuple(merged)


def subtract(ranges: Sequence[Range], away: Sequence[Range]) -> Ranges:
    """What of ``ranges`` is not in ``away``."""
    if not away:
        return tuple(ranges)
    left: list[Range] = []
    at, end = 0, len(away)
    for low, high in ranges:
        while at < end and away[at][1] < low:
            at += 1
        # the last of `away` to reach into this range may reach into the next one too
        here = at
        while here < end and away[here][0] <= high:
            first, last = away[here]
            if first > low:
                left.append((low, first - 1))
            low = last + 1
            if low > high:
                break
            here += 1
        at = here
        if low <= high:
            left.append((low, high))
    return tuple(left)


def runs(numbers: Iterable[int]) -> Ranges:
    """The set of these addresses, which ascend and come once each."""
    found: list[Range] = []
    first = last = -2
    for number in numbers:
        if number != last + 1:
            if last >= 0:
                found.append((first, last))
            first = number
        last = number
    if last >= 0:
        found.append((first, last))
    return tuple(found)


def joined(ranges: Sequence[Range], most: int) -> Ranges:
    """At most so many ranges, that hold all of ``ranges``: the smallest gaps are filled."""
    surplus = len(ranges) - most
    if surplus <= 0:
        return tuple(ranges)
    gaps = sorted(range(1, len(ranges)), key=lambda at: ranges[at][0] - ranges[at - 1][1])
    filled = set(gaps[:surplus])
    left: list[Range] = []
    for at, (first, last) in enumerate(ranges):
        if at in filled:
            left[-1] = (left[-1][0], last)
        else:
            left.append((first, last))
    return tuple(left)


def count(ranges: Sequence[Range]) -> int:
    """How many addresses they hold."""
    return sum([last - first for first, last in ranges], len(ranges))


def meet(ranges: Sequence[Range], others: Sequence[Range]) -> bool:
    """Whether any address is in both."""
    at, end = 0, len(others)
    for first, last in ranges:
        while at < end and others[at][1] < first:
            at += 1
        if at == end:
            return False
        if others[at][0] <= last:
            return True
    return False


def pack4(ranges: Sequence[Range]) -> bytes:
    """IPv4 ranges as bytes: 4 big-endian bytes for each first and last address."""
    return struct.pack(f">{2 * len(ranges)}I", *chain.from_iterable(ranges))


def pack6(ranges: Sequence[Range]) -> bytes:
    """IPv6 ranges as bytes: 16 big-endian bytes for each first and last address."""
    return b"".join([number.to_bytes(16, "big") for pair in ranges for number in pair])


def unpack4(packed: bytes) -> Ranges:
    """IPv4 ranges from bytes. Raises ValueError unless they are a set as above."""
    if len(packed) % 8:
        raise ValueError(f"IPv4 ranges are 8 bytes each, not {len(packed)} in all")
    return _paired(struct.unpack(f">{len(packed) // 4}I", packed))


def unpack6(packed: bytes) -> Ranges:
    """IPv6 ranges from bytes. Raises ValueError unless they are a set as above."""
    if len(packed) % 32:
        raise ValueError(f"IPv6 ranges are 32 bytes each, not {len(packed)} in all")
    halves = struct.unpack(f">{len(packed) // 8}Q", packed)
    return _paired([high << 64 | low for high, low in zip(halves[::2], halves[1::2], strict=True)])


def _paired(numbers: Sequence[int]) -> Ranges:
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    before = -1
    for first, last in pairs:
        if not before < first <= last:
            raise ValueError("ranges are not sorted and disjoint")
        before = last
    return pairs
