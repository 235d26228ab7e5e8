"""A sink that calls a function for each event."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nray.events.model import Event


class CallSink:
    """Hands each event to ``take``, in a thread, one at a time."""

    name = "caller"
    abandonable = False
    position = 0  # what the caller does with an event is its own matter

    def __init__(self, take: Callable[[Event], object]) -> None:
        self._take = take

    def open(self) -> None:
        """Nothing to open."""

    def write(self, events: Sequence[Event]) -> None:
        """Hand the events over, in order."""
        for event in events:
            self._take(event)

    def sync_due_s(self) -> float:
        """Never: there is nothing to sync."""
        return math.inf

    def sync(self) -> None:
        """Nothing to sync."""

    def close(self) -> None:
        """Nothing to close."""
