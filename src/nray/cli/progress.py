"""The progress line of ``nray scan``: on a terminal only, and never mixed up with results.

Results are written by a thread of their sink, the line by the main one. Both go through one lock;
the main thread never waits for it, as a terminal may be stopped (Ctrl+S) for any time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ERASE = "\r\x1b[K"


def fitting(line: str, columns: int) -> str:
    """As much of a line as fits, whole parts of it: they end before ``", "`` or ``"; "``."""
    if len(line) <= columns:
        return line
    end = max(line.rfind(mark, 0, columns + len(mark)) for mark in (", ", "; "))
    return line[: end if end > 0 else columns]


class Progress:
    """One line on standard error, written over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown = False

    def __call__(self, line: str) -> None:
        """Show a line in place of the last one; not at all while results are being written."""
        if self._lock.acquire(blocking=False):
            try:
                width = os.get_terminal_size(2).columns or 80
                self._write(f"{_ERASE}{fitting(line, width - 1)}")
                self._shown = True
            finally:
                self._lock.release()

    def clear(self) -> None:
        """Take the line away."""
        if self._lock.acquire(blocking=False):
            try:
                self._erase()
            finally:
                self._lock.release()

    @contextmanager
    def away(self) -> Iterator[None]:
        """The line is away for as long as this lasts."""
        with self._lock:
            self._erase()
            yield

    def _erase(self) -> None:
        if self._shown:
            self._write(_ERASE)
            self._shown = False

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
