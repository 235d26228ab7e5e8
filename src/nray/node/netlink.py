"""rtnetlink's messages, as bytes and back: what the kernel knows of links, addresses and routes.

Sans-I/O; `kernel` has the sockets. Only what routing a probe needs is read: unknown attributes are
passed over, and a message that is cut short is a ValueError, never half of a route.

Sources: rtnetlink(7), netlink(7), linux/rtnetlink.h, linux/fib_rules.h, linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

GETLINK, GETADDR, GETROUTE, GETNEIGH, GETRULE = 18, 22, 26, 30, 34
_NEWLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH, _NEWRULE = 16, 20, 24, 28, 32
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBxxBI")  # family, dst, src, tos, table, action, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_HOP = struct.Struct("=HBBi")  # length, flags, weight, index

#: What fits into a dump of the kernel: it never sends more at once.
RECEIVE_BYTES = 1 << 18

IFF_LOOPBACK, IFF_NOARP = 0x8, 0x80
ARPHRD_ETHER = 1
IFA_F_SECONDARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
#: The same bit as "secondary", which IPv6 does not have.
IFA_F_TEMPORARY, IFA_F_OPTIMISTIC = 0x01, 0x04
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 1, 2, 3, 4, 5
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 6, 7, 8, 9
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x40, 0x80
FR_ACT_TO_TBL, FR_ACT_NOP = 1, 3
FR_ACT_BLACKHOLE, FR_ACT_UNREACHABLE, FR_ACT_PROHIBIT = 6, 7, 8
_RTNH_DEAD = 0x1
_RTM_CLONED = 0x200
_RULE_INVERT = 0x2


class NetlinkError(OSError):
    """The kernel refuses a request."""


class Interrupted(Exception):
    """What was dumped changed meanwhile: to be asked again."""


@dataclass(frozen=True)
class Link:
    """An interface. ``kind`` is an ARPHRD, ``flags`` are IFF; ``mac`` may have any length."""

    index: int
    name: str
    kind: int
    flags: int
    mac: bytes
    mtu: int


@dataclass(frozen=True)
class Address:
    """An address of this machine, in its network; ``flags`` are IFA_F."""

    link: int
    family: int
    address: bytes
    prefix: int
    scope: int
    flags: int


class Hop(NamedTuple):
    """Where a route leads: out of a link, to a gateway of either family, or (empty) to all."""

    link: int
    gateway: bytes


@dataclass(frozen=True)
class Route:
    """A route. ``hops`` are those that live; ``kind`` is an RTN, ``family`` 4 or 6.

    ``odd`` says why the route is not for plain packets from anywhere; empty as a rule.
    """

    family: int
    table: int
    kind: int
    scope: int
    first: int
    prefix: int
    metric: int
    preference: int
    source: bytes
    hops: tuple[Hop, ...]
    odd: str = ""


@dataclass(frozen=True)
class Rule:
    """A policy rule. ``odd`` names selectors that are not understood here."""

    family: int
    priority: int
    action: int
    table: int
    invert: bool
    to: tuple[int, int] | None  # first address, prefix
    has_source: bool
    mark: int
    mask: int
    incoming: str
    outgoing: str
    suppress_prefix: int  # -1: none
    odd: str = ""


@dataclass(frozen=True)
class Neighbour:
    """What the kernel knows of a neighbour; ``state`` is of NUD bits, ``mac`` may be empty."""

    link: int
    address: bytes
    mac: bytes
    state: int


Entry = Link | Address | Route | Rule | Neighbour

_BODIES = {
    GETLINK: _LINK.size,
    GETADDR: _ADDRESS.size,
    GETROUTE: _ROUTE.size,
    GETNEIGH: _NEIGHBOUR.size,
    GETRULE: _RULE.size,
}


def dump_request(kind: int, family: int, sequence: int) -> bytes:
    """Ask for all of a kind (``GETLINK`` …); ``family`` is 4, 6 or 0."""
    body = bytes([_AF[family]]).ljust(_BODIES[kind], b"\0")
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, sequence, 0) + body


def read(data: bytes, sequence: int) -> tuple[list[Entry], bool]:
    """What one datagram of a dump holds, and whether it is the last one.

    Raises:
        NetlinkError: the kernel refuses.
        Interrupted: the dump is of no use.
        ValueError: this is no netlink.
    """
    found: list[Entry] = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise ValueError("a netlink message is cut short")
        body = data[at + _HEADER.size : at + length]
        at += _aligned(length)
        if number != sequence:
            continue
        if flags & _DUMP_INTERRUPTED:
            raise Interrupted
        if kind == _DONE:
            return found, True
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", _whole(body, 4))
            if code:
                raise NetlinkError(-code, "the kernel refuses a netlink request")
            return found, True
        parse = _PARSERS.get(kind)
        entry = parse(body) if parse is not None else None
        if entry is not None:
            found.append(entry)
    return found, False


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute. Raises ValueError if one is cut short."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            raise ValueError("a netlink attribute is cut short")
        # The two upper bits say how the value is to be read, and it is known here.
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)


# ── one parser for each kind ────────────────────────────────────────────────────────────────

_AF = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
_FAMILY = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}
WIDTH = {4: 4, 6: 16}


def _link(body: bytes) -> Link | None:
    _, kind, index, flags, _ = _LINK.unpack_from(_whole(body, _LINK.size))
    told = dict(attributes(body[_LINK.size :]))
    name = told.get(3, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, name, kind, flags, told.get(1, b""), _number(told.get(4, b"")))


def _address(body: bytes) -> Address | None:
    af, prefix, flags, scope, index = _ADDRESS.unpack_from(_whole(body, _ADDRESS.size))
    family = _FAMILY.get(af)
    if family is None:
        return None
    told = dict(attributes(body[_ADDRESS.size :]))
    # IFA_LOCAL is this end's where IFA_ADDRESS is the other end of a point-to-point link.
    address = told.get(2) or told.get(1, b"")
    if 8 in told:
        flags = _number(told[8])
    return Address(index, family, _whole(address, WIDTH[family]), prefix, scope, flags)


def _route(body: bytes) -> Route | None:
    af, prefix, source_prefix, tos, table, _, scope, kind, flags = _ROUTE.unpack_from(
        _whole(body, _ROUTE.size)
    )
    family = _FAMILY.get(af)
    if family is None or flags & _RTM_CLONED:
        return None
    told = dict(attributes(body[_ROUTE.size :]))
    hops = tuple(_hops(told.get(9, b"")))
    if not hops and 4 in told and not flags & _RTNH_DEAD:
        hops = (Hop(_number(told[4]), _gateway(told)),)
    odd = ""
    if source_prefix:
        odd = "for certain sources only"
    elif tos:
        odd = "for certain types of service only"
    elif 21 in told or 22 in told:
        odd = "with encapsulation"
    return Route(
        family=family,
        table=_number(told[15]) if 15 in told else table,
        kind=kind,
        scope=scope,
        first=_first(told.get(1, b""), prefix, family),
        prefix=prefix,
        metric=_number(told.get(6, b"")),
        preference=_PREFERENCE.get(told.get(20, b"\0")[0], 1),
        source=told.get(7, b""),
        hops=hops,
        odd=odd,
    )


#: ICMPv6 router preference (RFC 4191, 2.1), the lower the better.
_PREFERENCE = {1: 0, 0: 1, 3: 2}


def _hops(data: bytes) -> Iterator[Hop]:
    at = 0
    while at + _HOP.size <= len(data):
        length, flags, _, index = _HOP.unpack_from(data, at)
        if length < _HOP.size or at + length > len(data):
            raise ValueError("a next hop is cut short")
        told = dict(attributes(data[at + _HOP.size : at + length]))
        if not flags & _RTNH_DEAD:
            yield Hop(index, _gateway(told))
        at += _aligned(length)


def _gateway(told: dict[int, bytes]) -> bytes:
    """The gateway of a route or a hop: of its own family, or (RTA_VIA) of another."""
    if 5 in told:
        return told[5]
    return told[18][2:] if 18 in told else b""


def _rule(body: bytes) -> Rule | None:
    af, to_prefix, source_prefix, tos, table, action, flags = _RULE.unpack_from(
        _whole(body, _RULE.size)
    )
    family = _FAMILY.get(af)
    if family is None:
        return None
    told = dict(attributes(body[_RULE.size :]))
    odd = [name for number, name in _ODD.items() if any(told.get(number, b""))]
    if tos:
        odd.append("tos")
    if action not in (FR_ACT_TO_TBL, FR_ACT_NOP, *_REFUSALS):
        odd.append("goto")
    mark = _number(told.get(10, b""))
    suppress = _number(told.get(14, b"\xff\xff\xff\xff"))
    return Rule(
        family=family,
        priority=_number(told.get(6, b"")),
        action=action,
        table=_number(told[15]) if 15 in told else table,
        invert=bool(flags & _RULE_INVERT),
        to=(_first(told.get(1, b""), to_prefix, family), to_prefix) if to_prefix else None,
        has_source=bool(source_prefix),
        mark=mark,
        mask=_number(told[16]) if 16 in told else (0xFFFFFFFF if mark else 0),
        incoming=told.get(3, b"").rstrip(b"\0").decode(errors="replace"),
        outgoing=told.get(17, b"").rstrip(b"\0").decode(errors="replace"),
        suppress_prefix=-1 if suppress == 0xFFFFFFFF else suppress,
        odd=", ".join(odd),
    )


_REFUSALS = (FR_ACT_BLACKHOLE, FR_ACT_UNREACHABLE, FR_ACT_PROHIBIT)
#: Selectors of rules that a table of addresses alone cannot follow (FRA_*).
_ODD = {
    12: "tunnel id",
    19: "l3mdev",
    20: "user id",
    22: "protocol",
    23: "source port",
    24: "destination port",
    25: "dscp",
}


def _neighbour(body: bytes) -> Neighbour | None:
    af, index, state, _, _ = _NEIGHBOUR.unpack_from(_whole(body, _NEIGHBOUR.size))
    if af not in _FAMILY:
        return None
    told = dict(attributes(body[_NEIGHBOUR.size :]))
    return Neighbour(index, told.get(1, b""), told.get(2, b""), state)


_PARSERS = {
    _NEWLINK: _link,
    _NEWADDR: _address,
    _NEWROUTE: _route,
    _NEWNEIGH: _neighbour,
    _NEWRULE: _rule,
}


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise ValueError("a netlink message is cut short")
    return data


def _first(data: bytes, prefix: int, family: int) -> int:
    """The first address of a prefix, whose bytes may be left out where they are zero."""
    bits = 8 * WIDTH[family]
    if prefix > bits:
        raise ValueError(f"a prefix of {prefix} bits for IPv{family}")
    number = int.from_bytes(data.ljust(WIDTH[family], b"\0")[: WIDTH[family]], "big")
    return number >> (bits - prefix) << (bits - prefix)
