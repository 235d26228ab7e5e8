"""The smallest corpus that covers as much, as far as the greedy way finds it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Final

from . import desk
from .case import NODE, SERVER, Case
from .coverage import Coverage

#: Bytes of a file in the repository, of the two that there are.
FILE_BYTES_MAX: Final = 95_000


def smaller(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """For each end the chosen ones, those that add most for their size first."""
    coverage = Coverage()
    seen: list[tuple[Case, set[Any], int]] = []
    for case in {each.text(): each for each in cases}.values():
        with coverage.watching():
            words = set(desk.play(case).features)
        seen.append((case, coverage.take() | words, len(case.text()) + 1))
    chosen: dict[str, list[Case]] = {SERVER: [], NODE: []}
    sizes = dict.fromkeys(chosen, 0)
    covered: dict[str, set[Any]] = {SERVER: set(), NODE: set()}
    # What a case adds only shrinks: the first whose worth is still as it was is the best.
    heap = [(-len(what) / size, at) for at, (_, what, size) in enumerate(seen)]
    heapq.heapify(heap)
    while heap:
        worth, at = heapq.heappop(heap)
        case, what, size = seen[at]
        now = -len(what - covered[case.end]) / size
        if now != worth:
            if now:
                heapq.heappush(heap, (now, at))
        elif sizes[case.end] + size <= FILE_BYTES_MAX:
            sizes[case.end] += size
            covered[case.end] |= what
            chosen[case.end].append(case)
    return chosen
