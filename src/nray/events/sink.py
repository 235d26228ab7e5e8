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

    def open(self) -> None:
        """Make ready, or raise `SinkStartError`."""

    def write(self, events: Sequence[Event]) -> None:
        """Hand all events to the operating system, in order, or raise `SinkError`."""

    def sync_due_s(self) -> float:
        """Seconds until `sync` should be called; 0 for now, infinity if there is nothing to do."""

    def sync(self) -> None:
        """Bring what was written onto the disk, or raise `SinkError`."""

    def close(self) -> None:
        """Sync and let go. Harmless if never opened or already closed."""


class SinkStartError(UserError):
    """A sink cannot be opened as it is configured."""


class SinkError(UserError):
    """A sink failed while it was in use: the disk is full, say. Not a mistake in the usage."""

    exit_status = 1


class SinkClosed(SinkError):
    """Whoever read our output has gone (``nray scan … | head -1``): a clean end, no failure."""


class PartialWrite(Exception):
    """A write stopped in the middle. `written` bytes are out; `cause` says what stopped it."""

    def __init__(self, written: int, cause: OSError) -> None:
        super().__init__(f"{written} bytes written: {cause}")
        self.written = written
        self.cause = cause


def write_fully(fd: int, data: bytes, write: Write = os.write) -> None:
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
