"""As much of BER (ITU-T X.690) as the probes of SNMP, LDAP and Kerberos need.

What is written is DER as well: lengths as short as they can be.
"""

from __future__ import annotations

from nray.targets.udp import Steps
from nray.targets.udp.probe import byte, find, own

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
ENUMERATED, BOOLEAN = 0x0A, 0x01
GENERALIZED_TIME, GENERAL_STRING, SEQUENCE = 0x18, 0x1B, 0x30


def tlv(tag: int, *parts: bytes) -> bytes:
    """An element: tag, length and what the parts hold together."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def context(number: int, *parts: bytes) -> bytes:
    """An explicitly tagged, so constructed, element of the context."""
    return tlv(0xA0 | number, *parts)


def application(number: int, *parts: bytes) -> bytes:
    """A constructed element of the application."""
    return tlv(0x60 | number, *parts)


def sequence(*parts: bytes) -> bytes:
    return tlv(SEQUENCE, *parts)


def integer(value: int, tag: int = INTEGER) -> bytes:
    """A whole number, not negative."""
    return tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(data: bytes) -> bytes:
    return tlv(OCTET_STRING, data)


def oid(dotted: str) -> bytes:
    """An object identifier, its numbers below 128."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    return tlv(OID, bytes([40 * first + second, *rest]))


def repeats(payload: bytes, at: int) -> Steps:
    """An answer is a SEQUENCE, and has the INTEGER in it that stands there in the payload.

    Where it stands in the answer hangs on how long lengths are written. Of a number of four bytes
    the last two may be anything: it stays as short as it can be, and not negative.
    """
    if payload[at] != INTEGER:
        raise ValueError(f"no number at byte {at}")
    size = payload[at + 1]
    steps = byte(0, 255, SEQUENCE) + find(at, 2 + size)
    return steps + own(at + size, 2) if size >= 4 else steps
