"""The terminal sink: readable lines for a person, JSON lines for a program.

On a terminal each event is one line of at most 80 columns (more only for long names and IPv6
addresses); into a pipe or a file it is the JSON of `model`. Text that came from elsewhere is
never let through to a terminal as it is: control characters, which could move the cursor or
retitle the window, are written as escapes, in both formats.
"""

from __future__ import annotations

import errno
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET

from nray.events.model import (
    SCANTYPE_UDP,
    Environment,
    Event,
    PortScan,
    Result,
    Tarpit,
    encode_lines,
)
from nray.events.sink import PartialWrite, SinkClosed, SinkError, write_fully

COLUMNS_MAX: Final = 80
# Columns: target 15 (any IPv4 address) + 2, port 9 (65535/tcp) + 2, state and reason 26 (state 9,
# blank, admin-prohibited) + 1, time 9 (9999.9 ms) + 2, which leaves 14 for the node's name.
_TARGET: Final = 15
_PORT: Final = 9
_VERDICT: Final = 26
_RTT: Final = 9
_NODE: Final = 14
_EVERY_PORT: Final = "every port answers (tarpit or SYN proxy); findings withheld"

# Python's JSON-safe output still holds these two-byte characters raw: DEL, and the C1 controls,
# among them U+009B, which is "ESC [" to many terminals. In JSON they stand in strings only.
_JSON_CONTROLS: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]")

# The reader is gone: a pipe without a reader, a terminal that hung up.
_GONE: Final = (errno.EPIPE, errno.EIO, errno.ECONNRESET)


class TerminalSink:
    """Writes events to standard output.

    Args:
        format: ``text``, ``json``, or ``auto``: text if the descriptor is a terminal.
        fd: where to write; not closed by the sink, which does not own it.
    """

    name = "terminal"
    abandonable = True  # a pager that stops reading must not make Ctrl+C wait
    position = 0  # what was shown is gone: there is nothing to go on from

    def __init__(self, format: str = "auto", fd: int = 1) -> None:
        if format not in ("auto", "text", "json"):
            raise ValueError(f"unknown format {format!r}: auto, text or json")
        self.format = format
        self._fd = fd
        self._text = format == "text"

    def open(self) -> None:
        """Find out whether a person is reading."""
        if self.format == "auto":
            self._text = os.isatty(self._fd)

    def write(self, events: Sequence[Event]) -> None:
        """Write a line for each event. Raises `SinkClosed` if the reader has gone."""
        data = self._lines(events)
        try:
            write_fully(self._fd, data)
        except PartialWrite as partial:
            cause = partial.cause
            if cause.errno in _GONE:
                raise SinkClosed(f"terminal: the reader has gone ({cause.strerror})") from cause
            raise SinkError(
                f"terminal: writing to standard output failed: {cause.strerror}"
            ) from cause

    def sync_due_s(self) -> float:
        """Nothing is ever due: a terminal has no disk."""
        return math.inf

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: the descriptor belongs to the process."""

    def _lines(self, events: Sequence[Event]) -> bytes:
        if not self._text:
            return _JSON_CONTROLS.sub(_escaped_control, encode_lines(events))
        text = "".join([line(event) + "\n" for event in events])
        return text.encode("utf-8", "backslashreplace")


def _escaped_control(match: re.Match[bytes]) -> bytes:
    return b"\\u00%02x" % match[0][-1]  # the last byte of UTF-8 is the code point here


# ── text ────────────────────────────────────────────────────────────────────────────────────


def line(event: Event) -> str:
    """The event as one line for a person, without a line end."""
    result = event.result
    if isinstance(result, Result):
        if isinstance(result.portscan, PortScan):
            return _port_line(event, result, result.portscan)
        if isinstance(result.tarpit, Tarpit):
            return f"{_target(result):<{_TARGET}}  {_EVERY_PORT}"
        return _finding_line(result)
    if isinstance(event.environment, Environment):
        return _environment_line(event, event.environment)
    return cut(f"{event.timestamp}  {printable(event.scannername)}", COLUMNS_MAX)


def _port_line(event: Event, result: Result, scan: PortScan) -> str:
    protocol = "udp" if scan.scantype == SCANTYPE_UDP else "tcp"
    state = scan.state if scan.state is not UNSET else "open" if scan.open else "closed"
    reason = "" if scan.reason is UNSET else scan.reason
    verdict = cut(printable(f"{state:<9} {reason}"), _VERDICT)
    where = f"{_target(result):<{_TARGET}}  {f'{result.port}/{protocol}':<{_PORT}}"
    rtt = milliseconds(scan.rtt) if isinstance(scan.rtt, float) else ""
    node = cut(printable(event.nodeName or event.nodeID), _NODE)
    return f"{where}  {verdict:<{_VERDICT}} {rtt:>{_RTT}}  {node}".rstrip()


def _target(result: Result) -> str:
    """The target, and for a name also the address that answered."""
    target = printable(result.target)
    if result.address is UNSET or result.address == result.target:
        return target
    return f"{target} ({printable(str(result.address))})"


def _finding_line(result: Result) -> str:
    found = result.zgrabscan
    text = "" if found is UNSET else printable(msgspec.json.encode(found.jsonResult).decode())
    return cut(f"{_target(result):<{_TARGET}}  {result.port:<{_PORT}}  {text}", COLUMNS_MAX)


def _environment_line(event: Event, environment: Environment) -> str:
    name = printable(event.nodeName or event.nodeID)
    host = printable(environment.hostname) or "unknown host"
    about = f"{printable(environment.os) or 'unknown system'}, pid {environment.pid}"
    return cut(f"node {name} registered: {host}, {about}", COLUMNS_MAX)


def milliseconds(rtt: float) -> str:
    """A time in ms with the digits that a person can use: ``0.41 ms``, ``12.3 ms``, ``2500 ms``."""
    digits = 2 if rtt < 1 else 1 if rtt < 1000 else 0
    return f"{rtt:.{digits}f} ms"


def printable(text: str) -> str:
    r"""The text with everything that is not printable as an escape: ``\x1b``, ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def cut(text: str, columns: int) -> str:
    """The text in at most so many columns, its end replaced by ``…`` where it is longer.

    East Asian wide characters count as two columns.
    """
    if len(text) <= columns and text.isascii():
        return text
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]
    if sum(widths) <= columns:
        return text
    used = keep = 0
    for width in widths:
        if used + width > columns - 1:
            break
        used += width
        keep += 1
    return text[:keep] + "…"
