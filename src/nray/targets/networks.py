"""One target or exclusion as a user writes it: networks, addresses, ranges, names.

Read are IPv4 and IPv6 addresses (``[::1]`` too), networks (``192.168.178.1/28`` is the network
that holds that address), ranges from one address to another, nmap's octet ranges
(``10.0.0-3.1-20``, ``10.0.*.1``) and DNS names. An IPv4-mapped IPv6 address is the IPv4 address
that it reaches, so that nothing is counted twice and no exclusion can be walked around.

Whatever the text, reading it raises nothing but `TargetError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from socket import AF_INET, AF_INET6, inet_pton

from nray.targets import ranges
from nray.targets.errors import Notes
from nray.targets.files import Entry, from_values, place
from nray.targets.ranges import Range, Ranges

#: Characters of one target. A name has at most 253, an IPv6 range 83, an IDN somewhat more than
#: the name it stands for.
TEXT_MAX = 512

#: Ranges that one octet range may fall into: 10.0-255.0-255.1-20 is 65,536, which 0.5 MB hold.
#: Beyond that (0-255.0-255.0-255.1 is 16 million) it would cost gigabytes.
OCTET_RANGES_MAX = 1 << 16

#: ::ffff:0:0/96, the IPv4-mapped addresses (RFC 4291, section 2.5.5.2).
MAPPED = (0xFFFF << 32, (0xFFFF << 32) | 0xFFFFFFFF)

_LAST4 = 0xFFFFFFFF
_FORMS = "targets are 10.0.0.5, 10.0.0.0/24, 10.0.0.5-10.0.0.90, 10.0.0-3.1-20, 2001:db8::1, a name"
_LABEL = "(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.IGNORECASE | re.ASCII)
# What inet_aton, and so getaddrinfo, may take for an IPv4 address: 127.1, 0x7f000001 (as in the
# URL standard, "ends in a number").
_NUMBER_LAST = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE | re.ASCII)
_DIGITS = re.compile(r"[0-9.*-]+", re.ASCII)
_OCTET = re.compile(r"(0|[1-9][0-9]{0,2})?(-)?(0|[1-9][0-9]{0,2})?", re.ASCII)


@dataclass(frozen=True)
class Targets:
    """What was read: sets of addresses, and names in the order in which they were written.

    Attributes:
        ranges4, ranges6: as `ranges` has them; overlaps are gone.
        names: without final dot, IDNs in their ASCII form, each once whatever its case.
        warnings: what was skipped, one sentence each.
    """

    ranges4: Ranges = ()
    ranges6: Ranges = ()
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def hosts(self) -> int:
        """Addresses and names."""
        return ranges.count(self.ranges4) + ranges.count(self.ranges6) + len(self.names)


class _Unreadable(Exception):
    """Text that is no target: what it is instead, and a hint."""

    def __init__(self, what: str, hint: str = _FORMS) -> None:
        super().__init__(what)
        self.hint = hint


def parse_targets(
    values: str | Iterable[object], *, strict: bool = True, source: str = "targets"
) -> Targets:
    """Reads targets from a flag's or key's values. Raises TargetError; see `read_targets`."""
    return read_targets(from_values(values, source), Notes(strict=strict))


def read_targets(entries: Iterable[Entry], notes: Notes) -> Targets:
    """Reads entries, and notes what is no target.

    Raises:
        TargetError: ``notes`` are strict and an entry cannot be read, or a file cannot.
    """
    reader = _Reader()
    for text, source, line in entries:
        try:
            reader.add(text)
        except _Unreadable as wrong:
            notes.skip(place(source, line), f"{_shown(text)} {wrong}", wrong.hint)
    return Targets(
        ranges.merge(reader.ranges4),
        ranges.merge(reader.ranges6),
        tuple(reader.names.values()),
        notes.all(),
    )


def is_name(text: str) -> bool:
    """Whether text is a DNS name (RFC 1123, section 2.1; underscores are allowed, as DNS does).

    A name that ends in a number is none: resolvers take it for an IPv4 address.
    """
    return _NAME.fullmatch(text) is not None and _NUMBER_LAST.fullmatch(text) is None


class _Reader:
    """Sorts what entries stand for by kind."""

    def __init__(self) -> None:
        self.ranges4: list[Range] = []
        self.ranges6: list[Range] = []
        self.names: dict[str, str] = {}

    def add(self, text: str) -> None:
        """Adds one target. Raises _Unreadable."""
        number = _number(AF_INET, text)  # first, because long lists are lists of these
        if number is not None:
            self.ranges4.append((number, number))
        elif len(text) > TEXT_MAX:
            raise _Unreadable(f"is no target: longer than {TEXT_MAX} characters")
        elif "%" in text and ":" in text:
            raise _Unreadable("has a zone: not supported yet", "leave out % and what follows it")
        elif "/" in text:
            self._add_network(text)
        elif ":" in text:
            self._add6(text)
        elif _DIGITS.fullmatch(text):
            self._add4(text)
        else:
            self._add_name(text)

    def _add_network(self, text: str) -> None:
        address, _, prefix = text.partition("/")
        address = _unbracketed(address)
        family = AF_INET6 if ":" in address else AF_INET
        bits = 128 if family == AF_INET6 else 32
        number = _number(family, address)
        if number is None:
            raise _Unreadable("is no network", _hint_for_url(text))
        if not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and int(prefix) <= bits):
            raise _Unreadable("is no network", f"write the bits of its prefix, /0 to /{bits}")
        size = 1 << (bits - int(prefix))
        first = number & ~(size - 1)
        self._add_range(family, first, first + size - 1)

    def _add6(self, text: str) -> None:
        first, dash, last = text.partition("-")
        low = _number(AF_INET6, _unbracketed(first))
        high = _number(AF_INET6, _unbracketed(last)) if dash else low
        if low is None or high is None:
            raise _Unreadable("is no IPv6 address or range", _hint_for_url(text))
        if low > high:
            raise _Unreadable("runs backwards", "the lower address comes first")
        self._add_range(AF_INET6, low, high)

    def _add4(self, text: str) -> None:
        first, _, last = text.partition("-")
        low, high = _number(AF_INET, first), _number(AF_INET, last)
        if low is None or high is None:
            self._add_octets(text)
            return
        if low > high:
            raise _Unreadable("runs backwards", "the lower address comes first")
        self._add_range(AF_INET, low, high)

    def _add_octets(self, text: str) -> None:
        octets = [_octet(part) for part in text.split(".")]
        if len(octets) != 4:
            raise _Unreadable("is neither an address nor a name")
        # Trailing octets that are whole make one range: 10.1-2.*.* is two, not 131,072.
        whole = 1
        while len(octets) > 1 and octets[-1] == range(256):
            octets.pop()
            whole *= 256
        *fronts, last = octets
        count = 1
        for octet in fronts:
            count *= len(octet)
        if count > OCTET_RANGES_MAX:
            raise _Unreadable(
                f"falls into {count} ranges, more than {OCTET_RANGES_MAX}",
                "a network (10.0.0.0/8) or several targets may say it shorter",
            )
        for digits in product(*fronts):
            base = 0
            for digit in digits:
                base = base << 8 | digit
            base <<= 8
            self.ranges4.append(((base + last[0]) * whole, (base + last[-1] + 1) * whole - 1))

    def _add_name(self, text: str) -> None:
        name = text.removesuffix(".")
        if not name.isascii():
            try:
                name = name.encode("idna").decode("ascii")
            except UnicodeError:
                raise _Unreadable("is no name that IDNA can express") from None
        if not is_name(name):
            raise _Unreadable("is neither an address nor a name")
        self.names.setdefault(name.lower(), name)

    def _add_range(self, family: int, first: int, last: int) -> None:
        if family == AF_INET:
            self.ranges4.append((first, last))
            return
        low, high = MAPPED
        if last < low or first > high:
            self.ranges6.append((first, last))
            return
        self.ranges4.append((max(first, low) & _LAST4, min(last, high) & _LAST4))
        self.ranges6.extend(ranges.subtract([(first, last)], [MAPPED]))


def _number(family: int, text: str) -> int | None:
    """The number of an address; None if the text is none."""
    try:
        return int.from_bytes(inet_pton(family, text), "big")
    except (OSError, ValueError):  # ValueError: a NUL, a lone surrogate
        return None


def _octet(text: str) -> range:
    if text == "*":
        return range(256)
    match = _OCTET.fullmatch(text)
    if match is None or not text:
        raise _Unreadable("is neither an address nor a name")
    low, dash, high = match.groups()
    if not dash and high:  # the two numbers of the pattern met without a dash: four digits
        raise _Unreadable("has a part that is no number from 0 to 255")
    first = int(low or 0)
    last = int(high or 255) if dash else first
    if last > 255 or first > last:
        raise _Unreadable("has a part that is no number or range from 0 to 255")
    return range(first, last + 1)


def _unbracketed(text: str) -> str:
    return text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text


def _hint_for_url(text: str) -> str:
    """What to write for something that looks like a URL or host:port."""
    host = text.partition("://")[2] or text
    host = host.partition("/")[0].rpartition("@")[2]
    if host.count(":") == 1:
        host = host.partition(":")[0]
    if is_name(host) or _number(AF_INET, host) is not None:
        return f"a target is an address, a network or a name; here perhaps {host}"
    return _FORMS


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
