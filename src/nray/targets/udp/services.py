"""Databases, caches, routers and what else of a network's inside may stand open."""

from __future__ import annotations

import struct

from nray.targets.udp.probe import Echoed, Identifiers, Probe

# ── routing ─────────────────────────────────────────────────────────────────────────────────

RIP_REQUEST, RIP_VERSION, FAMILY_IPV4 = 1, 2, 2
RIPNG_VERSION = 1
#: A route to a network for documentation (RFC 5737, RFC 3849): one entry back, "unreachable",
#: where the whole table could be asked for.
NETWORK4, MASK4 = bytes([203, 0, 113, 0]), bytes([255, 255, 255, 0])
NETWORK6, PREFIX6 = bytes.fromhex("20010db8").ljust(16, b"\x00"), 32


def _rip(ids: Identifiers) -> bytes:
    header = struct.pack("!BBH", RIP_REQUEST, RIP_VERSION, 0)
    tag, next_hop, metric = ids.number(16), bytes(4), 1
    entry = struct.pack("!HH4s4s4sI", FAMILY_IPV4, tag, NETWORK4, MASK4, next_hop, metric)
    return header + entry


def _ripng(ids: Identifiers) -> bytes:
    header = struct.pack("!BBH", RIP_REQUEST, RIPNG_VERSION, 0)
    tag, metric = ids.number(16), 1
    return header + struct.pack("!16sHBB", NETWORK6, tag, PREFIX6, metric)


# ── GTP ─────────────────────────────────────────────────────────────────────────────────────

ECHO_REQUEST, ECHO_RESPONSE, RECOVERY = 1, 2, 3


def _gtp2(ids: Identifiers) -> bytes:
    """Version 2, without a tunnel; the restart counter must be there (TS 29.274, 7.1.1)."""
    version_2 = 0x40
    recovery = struct.pack("!BHBB", RECOVERY, 1, 0, 0)
    sequence = ids.number(24).to_bytes(3, "big") + b"\x00"
    return (
        struct.pack("!BBH", version_2, ECHO_REQUEST, len(sequence + recovery)) + sequence + recovery
    )


def _gtp1(ids: Identifiers) -> bytes:
    """Version 1 with a sequence number (TS 29.281, section 5.1)."""
    version_1, gtp, with_sequence = 0x20, 0x10, 0x02
    no_tunnel, no_pdu, no_extension = 0, 0, 0
    optional = struct.pack("!HBB", ids.number(16), no_pdu, no_extension)
    flags = version_1 | gtp | with_sequence
    return struct.pack("!BBHI", flags, ECHO_REQUEST, len(optional), no_tunnel) + optional


# ── CoAP, memcached, ICP, Rx ────────────────────────────────────────────────────────────────


def _coap(ids: Identifiers) -> bytes:
    """A ping: an empty message that wants to be confirmed is reset (RFC 7252, section 4.3)."""
    version_1, confirmable, no_token, empty = 0x40, 0x00, 0, 0
    return struct.pack("!BBH", version_1 | confirmable | no_token, empty, ids.number(16))


def _memcached(ids: Identifiers) -> bytes:
    """A frame of its own (memcached's protocol.txt, "UDP protocol"), and the smallest question."""
    number, datagrams, reserved = 0, 1, 0
    return struct.pack("!4H", ids.number(16), number, datagrams, reserved) + b"version\r\n"


ICP_QUERY, ICP_VERSION = 1, 2
ICP_URL = b"http://nray.invalid/\x00"


def _icp(ids: Identifiers) -> bytes:
    """Whether a cache has a page that cannot be; a cache does not fetch what it is asked for."""
    no_options, no_data, no_address = 0, 0, 0
    header_bytes, requester = 20, bytes(4)
    length = header_bytes + len(requester) + len(ICP_URL)
    header = struct.pack(
        "!BBHIIII", ICP_QUERY, ICP_VERSION, length, ids.number(32), no_options, no_data, no_address
    )
    return header + requester + ICP_URL


RX_VERSION, RX_CLIENT_INITIATED = 13, 1
#: Room for the answer's text, as the protocol's own clients leave it.
RX_ROOM = 65


def _rx(ids: Identifiers) -> bytes:
    """Which version of Rx it runs."""
    epoch, connection, call = ids.number(31), ids.number(30, at=4) & ~3, 0
    sequence, serial, status, security, checksum, service = 0, 0, 0, 0, 0, 0
    header = struct.pack(
        "!5I4BHH", epoch, connection, call, sequence, serial, RX_VERSION, RX_CLIENT_INITIATED,
        status, security, checksum, service,
    )  # fmt: skip
    return header + bytes(RX_ROOM)


# ── without a (full) specification ──────────────────────────────────────────────────────────

INSTANCES_OF_THIS_HOST = 0x03


def _mssql(ids: Identifiers) -> bytes:
    return bytes([INSTANCES_OF_THIS_HOST])


def _citrix(ids: Identifiers) -> bytes:
    """A request for the master browser, its length (of 30 bytes) in front, little-endian."""
    length, request = 30, bytes.fromhex("0130 02fd a8e3")
    return (struct.pack("<H", length) + request).ljust(length, b"\x00")


def _sentinel(ids: Identifiers) -> bytes:
    """A command and five bytes of nothing: the smallest request that is answered."""
    return bytes([0x7A]).ljust(6, b"\x00")


NCP_CREATE, NCP_REPLY = 0x1111, 0x3333


def _ncp(ids: Identifiers) -> bytes:
    """A service connection is asked for: number 0xffff, none yet, by task 1. The server drops
    it when nobody goes on with it. Nobody is logged in."""
    sequence, connection_low, task, connection_high, function = 0, 0xFF, 1, 0xFF, 0
    return struct.pack(
        "!H5B", NCP_CREATE, sequence, connection_low, task, connection_high, function
    )


_UNPUBLISHED = "none published; the request has long been known"

PROBES = (
    Probe((520,), "RIP version 2", "one route, to 203.0.113.0/24", "RFC 2453, section 3.9.1", _rip,
          Echoed(4, 4, 8, least=24, head=((0, 255, 2),), free=(6, 2)), ("rip",)),
    Probe((521,), "RIPng", "one route, to 2001:db8::/32", "RFC 2080, section 2.4.1", _ripng,
          Echoed(4, 4, 18, least=24, head=((0, 255, 2),), free=(20, 2)), ("ripng",)),
    Probe((2123,), "GTP control plane", "whether it is there (Echo)", "3GPP TS 29.274, section 7.1",
          _gtp2, Echoed(4, 4, 3, least=8, head=((1, 255, ECHO_RESPONSE),), free=(4, 3)),
          ("gtpv2",)),
    Probe((2152,), "GTP user plane", "whether it is there (Echo)", "3GPP TS 29.281, section 7.2",
          _gtp1, Echoed(8, 8, 2, least=12, head=((1, 255, ECHO_RESPONSE),), free=(8, 2)), ("gtp",)),
    Probe((5683,), "CoAP", "whether it is there (ping)", "RFC 7252, section 4.3", _coap,
          Echoed(2, 2, 2, least=4, head=((0, 0xE0, 0x60),), free=(2, 2)), ("coap",)),
    Probe((11211,), "memcached", "its version", "memcached, protocol.txt", _memcached,
          Echoed(0, 0, 2, least=8, free=(0, 2)), ("memcache",)),
    Probe((3130,), "ICP", "whether a page is cached", "RFC 2186", _icp,
          Echoed(4, 4, 4, least=20, free=(4, 4)), ("icp",)),
    Probe((7000, 7001, 7003), "AFS (Rx)", "its version", "Zeldovich, Rx protocol specification",
          _rx, Echoed(0, 0, 12, least=28, head=((20, 255, RX_VERSION), (21, 1, 0))), ("rx",)),
    Probe((524,), "NetWare NCP", "for a service connection", "Novell, NCP over IP", _ncp,
          Echoed(2, 2, 1, least=8, head=((0, 255, 0x33), (1, 255, 0x33))), ("ncp",)),
    Probe((1434,), "SQL Server browser", "which instances there are", "[MS-SQLR] 2.2.2", _mssql),
    Probe((1604,), "Citrix ICA browser", "for the master browser", _UNPUBLISHED, _citrix),
    Probe((5093,), "Sentinel licence manager", "for an answer", _UNPUBLISHED, _sentinel),
)  # fmt: skip
