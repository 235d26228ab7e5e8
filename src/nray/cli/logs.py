"""Words for people, on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable


class _Format(logging.Formatter):
    """``12:34:56 warning: …``; control characters escaped, for parts of it come from peers."""

    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record, "%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = record.getMessage()
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
        return f"{moment} {level}{text}"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines to standard error, after a call that makes room for them."""

    def __init__(self, before: Callable[[], None] | None) -> None:
        super().__init__(sys.stderr)
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        if self._before is not None:
            self._before()
        super().emit(record)


def start_logging(
    *, debug: bool = False, quiet: bool = False, before: Callable[[], None] | None = None
) -> None:
    """Send the log to standard error.

    Args:
        debug: more words than usual.
        quiet: only warnings and errors.
        before: called before each line: takes a progress line away.
    """
    handler = _Handler(before)
    handler.setFormatter(_Format())
    logger = logging.getLogger("nray")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
