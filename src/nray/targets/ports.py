"""Port expressions: ``22``, ``8000-8100``, ``top25``, ``all``, ``U:53,T:80``.

The forms are those of the first nray (ports either way round, ``top25``, ``Top100``,
``top-100``, ``all``) and those of nmap's ``-p`` that mean the same to everybody: comma lists,
``-`` for all, ``-1024`` and ``60000-`` with an end left open, ``T:`` and ``U:``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nray.targets.errors import Notes
from nray.targets.toplists import TOP_MAX, top_tcp, top_udp

#: IP protocol numbers (IANA), as the core has them.
ICMP = 1
TCP = 6
UDP = 17

#: Names of protocols as they are printed.
PROTOCOL_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

PORT_MAX = 65535

Service = tuple[int, int]

_HINT = "ports are 22, 8000-8100, top25, all (1-65535), U:53,T:80"
_TOP = re.compile(r"top-?([0-9]{1,9})", re.IGNORECASE | re.ASCII)
_ONE = re.compile(r"[0-9]{1,9}", re.ASCII)
_RANGE = re.compile(r"([0-9]{0,9})\s*-\s*([0-9]{0,9})", re.ASCII)
_PREFIXES = {"T": TCP, "U": UDP}


@dataclass(frozen=True)
class Ports:
    """Ports in the order in which they were first named, each once.

    Attributes:
        services: (protocol, port) pairs.
        warnings: what was skipped or cut, one sentence each.
    """

    services: tuple[Service, ...]
    warnings: tuple[str, ...] = ()


def parse_ports(
    expressions: str | int | Iterable[str | int],
    default_protocol: int = TCP,
    *,
    strict: bool = True,
    source: str = "ports",
) -> Ports:
    """Reads port expressions.

    Args:
        expressions: one or several. A ``T:`` or ``U:`` holds until the next within its string.
        default_protocol: `TCP` or `UDP`, for what has no prefix before it.
        strict: raise for what cannot be read; else skip it with a warning.
        source: the key or flag they come from, for messages.

    Raises:
        TargetError: strict, and something cannot be read.
    """
    notes = Notes(strict=strict)
    if isinstance(expressions, str | int):
        expressions = [expressions]
    found: dict[Service, None] = {}
    for expression in expressions:
        for protocol, ports in _parse_one(expression, default_protocol, source, notes):
            found.update(dict.fromkeys((protocol, port) for port in ports))
    return Ports(tuple(found), notes.all())


def _parse_one(
    expression: object, protocol: int, source: str, notes: Notes
) -> Iterator[tuple[int, Iterable[int]]]:
    # True is an int to Python, and `yes` is True to YAML
    if isinstance(expression, bool) or not isinstance(expression, str | int):
        notes.skip(source, f"no port: {_shown(expression)}", _HINT)
        return
    if isinstance(expression, int) and not 1 <= expression <= PORT_MAX:
        # as text, -1 would be the range that ends at 1
        notes.skip(source, f"no port: {expression}", _HINT)
        return
    pieces = [piece.strip() for piece in str(expression).split(",")]
    if not any(pieces):
        notes.skip(source, "an empty port expression", _HINT)
        return
    for piece in filter(None, pieces):
        prefix, colon, rest = piece.partition(":")
        if colon:
            wanted = _PREFIXES.get(prefix.strip().upper())
            if wanted is None:
                notes.skip(source, f"no port: {_shown(piece)}", "prefixes are T: and U:")
                continue
            protocol = wanted
            rest = rest.strip()
        ports = _numbers(rest if colon else piece, protocol, source, notes)
        if ports is not None:
            yield protocol, ports


def _numbers(piece: str, protocol: int, source: str, notes: Notes) -> Iterable[int] | None:
    """The ports that one piece of a list stands for; None if it was skipped."""
    if piece.lower() == "all":
        return range(1, PORT_MAX + 1)
    if top := _TOP.fullmatch(piece):
        return _most_frequent(int(top[1]), protocol, source, notes)
    if _ONE.fullmatch(piece):
        first = last = int(piece)
    elif match := _RANGE.fullmatch(piece):
        first, last = int(match[1] or 1), int(match[2] or PORT_MAX)
    else:
        notes.skip(source, f"no port: {_shown(piece)}", _HINT)
        return None
    if first > last:
        first, last = last, first
    if not 1 <= first <= last <= PORT_MAX:
        notes.skip(source, f"no port: {_shown(piece)}", "ports are numbers from 1 to 65535")
        return None
    return range(first, last + 1)


def _most_frequent(count: int, protocol: int, source: str, notes: Notes) -> list[int] | None:
    if count == 0:
        notes.skip(source, "no ports in top0", _HINT)
        return None
    if count > TOP_MAX:
        notes.add(source, f"the list of most frequent ports ends at {TOP_MAX}, not {count}")
    return top_tcp(count) if protocol == TCP else top_udp(count)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
