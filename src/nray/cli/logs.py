"""Words for people, on standard error."""

from __future__ import annotations

import logging
import sys


class _Format(logging.Formatter):
    """``12:34:56 warning: …``; control characters escaped, for parts of it come from peers."""

    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record, "%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = record.getMessage()
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
        return f"{moment} {level}{text}"


def start_logging(*, debug: bool = False, quiet: bool = False) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    logger = logging.getLogger("nray")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
