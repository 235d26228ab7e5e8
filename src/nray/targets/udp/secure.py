"""Encrypted transports, asked for no more than a sign of life: QUIC and DTLS."""

from __future__ import annotations

import struct

from nray.targets.udp import Steps
from nray.targets.udp.probe import Identifiers, Probe, byte, own, same

# ── QUIC ────────────────────────────────────────────────────────────────────────────────────

#: RFC 9000, section 15: versions of this pattern are kept free, to make a server name its own.
RESERVED_VERSION = 0x1A2A3A4A
LONG_HEADER_INITIAL = 0xC0
#: RFC 9000, section 14.1: a server need not look at less.
INITIAL_BYTES = 1200
CONNECTION_ID_BYTES = 8
#: RFC 9000, section 16: a number of 14 bits.
TWO_BYTE_NUMBER = 0x4000


def _quic(ids: Identifiers) -> bytes:
    """A long header of a version that does not exist, padded as an Initial must be.

    RFC 8999: beyond the connection ids all is the version's own. It is laid out as version 1
    would: no token, a length, a packet number, zeros. The server answers with the versions that
    it has, keeps nothing, and sends less than it got.
    """
    ours, theirs = ids.octets(CONNECTION_ID_BYTES), ids.octets(CONNECTION_ID_BYTES, at=8)
    header = struct.pack("!BI", LONG_HEADER_INITIAL, RESERVED_VERSION)
    header += bytes([len(theirs)]) + theirs + bytes([len(ours)]) + ours
    no_token = b"\x00"
    left = INITIAL_BYTES - len(header) - len(no_token) - 2
    header += no_token + struct.pack("!H", TWO_BYTE_NUMBER | left)
    return header.ljust(INITIAL_BYTES, b"\x00")


def _same_connection(payload: bytes) -> Steps:
    """Version negotiation (RFC 8999, section 6): version 0, and the two ids change places."""
    size = CONNECTION_ID_BYTES
    first, second = 6, 6 + size + 1
    steps = byte(0, 0x80, 0x80) + tuple(step for at in range(1, 5) for step in byte(at, 255, 0))
    steps += byte(first - 1, 255, size) + byte(second - 1, 255, size)
    return steps + same(second, first, size) + same(first, second, size) + own(second, size)


# ── DTLS ────────────────────────────────────────────────────────────────────────────────────

HANDSHAKE, CLIENT_HELLO = 22, 1
DTLS_1_0, DTLS_1_2 = 0xFEFF, 0xFEFD
SUPPORTED_GROUPS, POINT_FORMATS, SIGNATURE_ALGORITHMS, EXTENDED_MASTER_SECRET = 10, 11, 13, 23
#: ECDHE with ECDSA and RSA by AES-GCM, what CoAP must have (RFC 7252, section 9.1.3), and what
#: old servers have.
CIPHER_SUITES = (0xC02B, 0xC02F, 0xC02C, 0xC030, 0xC0AE, 0xC0A8, 0xC00A, 0xC014, 0x002F)
GROUPS = (29, 23, 24)
SIGNATURES = (0x0403, 0x0804, 0x0401, 0x0503, 0x0501, 0x0201)


def _numbers(values: tuple[int, ...]) -> bytes:
    """A list of 16-bit numbers behind its length in bytes."""
    return struct.pack(f"!{1 + len(values)}H", 2 * len(values), *values)


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def dtls(ids: Identifiers) -> bytes:
    """A ClientHello (RFC 6347, section 4.2.2) without a cookie: servers answer with one, and
    keep no state."""
    no_session, no_cookie, no_compression = b"\x00", b"\x00", b"\x01\x00"
    extensions = (
        _extension(SUPPORTED_GROUPS, _numbers(GROUPS))
        + _extension(POINT_FORMATS, b"\x01\x00")
        + _extension(SIGNATURE_ALGORITHMS, _numbers(SIGNATURES))
        + _extension(EXTENDED_MASTER_SECRET, b"")
    )
    hello = struct.pack("!H", DTLS_1_2) + ids.octets(32) + no_session + no_cookie
    hello += _numbers(CIPHER_SUITES) + no_compression
    hello += struct.pack("!H", len(extensions)) + extensions
    length = len(hello).to_bytes(3, "big")
    message_seq, offset = bytes(2), bytes(3)
    message = bytes([CLIENT_HELLO]) + length + message_seq + offset + length + hello
    epoch_and_sequence = bytes(8)
    record = struct.pack("!BH", HANDSHAKE, DTLS_1_0) + epoch_and_sequence
    return record + struct.pack("!H", len(message)) + message


_HELLO = "to begin (ClientHello)"

PROBES = (
    Probe(
        (443,), "QUIC (HTTP/3)", "which versions it has, by asking for one that cannot be",
        "RFC 8999; RFC 9000, section 6", _quic, _same_connection, ("quic",),
    ),
    Probe(
        (853,), "QUIC (DNS)", "the same", "RFC 9250; RFC 9000, section 6", _quic,
        _same_connection, ("quic",), "quic",
    ),
    Probe(
        (3391,), "DTLS (RD Gateway)", _HELLO, "RFC 6347; [MS-TSGU]", dtls, None, ("dtls",), "dtls",
    ),
    Probe(
        (5349,), "DTLS (STUN, TURN)", _HELLO, "RFC 6347; RFC 7350", dtls, None, ("dtls",), "dtls",
    ),
    Probe((5684,), "DTLS (CoAP)", _HELLO, "RFC 6347; RFC 7252", dtls, None, ("dtls",), "dtls"),
    Probe((10161,), "DTLS (SNMP)", _HELLO, "RFC 6347; RFC 6353", dtls, None, ("dtls",), "dtls"),
)  # fmt: skip
