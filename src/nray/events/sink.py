"""What a sink is, the errors it may raise, and the one way in which sinks write to a descriptor.

A sink is synchronous and may block: `hub` calls it from a worker thread, one call at a time.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from typing import Protocol

from nray import UserError
from nray.events.model import Event

Write = Callable[[int, memoryview], int]


class Sink(Protocol):
    """Where events go. Calls come in the order open, (write | sync)…, close; never two at once.

    Attributes:
        name: what error messages call it, with its file: ``json-file nray-output.json``.
        abandonable: whether a write that hangs (a reader that stopped reading) may be left
            alone on cancellation. A sink that must not be left half written says False.
    """

    name: str
    abandonable: bool

    @property
    def position(self) -> int:
        """Where a later run could go on: bytes of whole lines that a crash can no longer take.

        May be read from any thread, before `open` and after `close` too. 0 for a sink that
        keeps nothing, or cannot go on where it stopped.
        """

    def open(self) -> None:
        """Make ready, or raise `SinkStartError`."""

    def write(self, events: Sequence[Event]) -> None:
        """Hand all events to the operating system, in order, or raise `SinkError`.

        After an error with `SinkError.retry` the sink is still good: the events from index
        `SinkError.written_events` on may be handed over again, once there is room.
        """

    def sync_due_s(self) -> float:
        """Seconds until `sync` should be called; 0 for now, infinity if there is nothing to do."""

    def sync(self) -> None:
        """Bring what was written onto the disk, which moves `position`, or raise `SinkError`."""

    def close(self) -> None:
        """Sync and let go. Harmless if never opened or already closed."""


class SinkStartError(UserError):
    """A sink cannot be opened as it is configured."""


class SinkError(UserError):
    """A sink failed while it was in use: the disk is full, say. Not a mistake in the usage.

    Attributes:
        retry: waiting may help (there was no room), and the sink can still be used.
        written_events: how many of the events given to the `write` that failed are written.
    """

    exit_status = 1

    def __init__(
        self, message: str, hint: str = "", *, retry: bool = False, written_events: int = 0
    ) -> None:
        super().__init__(message, hint)
        self.retry = retry
        self.written_events = written_events


class SinkClosed(SinkError):
    """Whoever read our output has gone (``nray scan … | head -1``): a clean end, no failure."""


class PartialWrite(Exception):
    """A write stopped in the middle. `written` bytes are out; `cause` says what stopped it."""

    def __init__(self, written: int, cause: OSError) -> None:
        super().__init__(f"{written} bytes written: {cause}")
        self.written = written
        self.cause = cause


def write_fully(fd: int, data: bytes | memoryview, write: Write = os.write) -> None:
    """All of `data` to the descriptor: one write() unless the system takes less at a time.

    Waits where the descriptor is non-blocking (a pipe whose other end made it so).
    Raises `PartialWrite` with what is out when the system refuses more.
    """
    view = memoryview(data)
    written = 0
    while written < len(view):
        try:
            taken = write(fd, view[written:])
        except BlockingIOError:
            select.select([], [fd], [])
            continue
        except OSError as error:
            raise PartialWrite(written, error) from error
        if taken <= 0:  # POSIX leaves it open; looping on it could never end
            raise PartialWrite(written, OSError(0, "the system wrote nothing"))
        written += taken
