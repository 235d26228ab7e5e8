"""What is to happen when: calls at moments of the virtual clock, in their order."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import trio


class Agenda:
    """One task runs the calls; equal moments go in the order in which they were entered.

    Workers, lines and faults are calls here instead of tasks of their own: it is what makes a
    seed take milliseconds.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self._scope: trio.CancelScope | None = None

    def at(self, due_s: float, call: Callable[..., object], *args: object) -> None:
        """Have a call made at a moment; one that has passed is as good as now."""
        self._count += 1
        heappush(self._calls, (due_s, self._count, call, args))
        if self._scope is not None and due_s < self._scope.deadline:
            self._scope.deadline = due_s

    def after(self, delay_s: float, call: Callable[..., object], *args: object) -> None:
        """Have a call made in so many seconds."""
        self.at(trio.current_time() + delay_s, call, *args)

    async def run(self) -> None:
        """Make the calls, for ever."""
        while True:
            while self._calls and self._calls[0][0] <= trio.current_time():
                _, _, call, args = heappop(self._calls)
                call(*args)
            due_s = self._calls[0][0] if self._calls else math.inf
            with trio.CancelScope(deadline=due_s) as self._scope:
                await trio.sleep_forever()
            self._scope = None
