"""As much of BER (ITU-T X.690) as the probes of SNMP, LDAP and Kerberos need.

What is written is DER as well: lengths as short as they can be.
"""

from __future__ import annotations

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
ENUMERATED, BOOLEAN = 0x0A, 0x01
GENERALIZED_TIME, GENERAL_STRING, SEQUENCE = 0x18, 0x1B, 0x30

#: A length takes so many bytes at most: no datagram is longer.
LENGTH_BYTES_MAX = 4


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


class Reader:
    """Elements one after the other.

    Raises:
        ValueError: there is none, it is cut off, or it has another tag than was asked for.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError("an element is cut off")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def any(self) -> tuple[int, bytes]:
        """The next element's tag (of one byte) and contents."""
        tag, length = self._take(2)
        if length >= 0x80:
            size = length & 0x7F
            if not 0 < size <= LENGTH_BYTES_MAX:
                raise ValueError("a length of no use")
            length = int.from_bytes(self._take(size), "big")
        return tag, self._take(length)

    def next(self, tag: int) -> bytes:
        """The contents of the next element, which has that tag."""
        found, body = self.any()
        if found != tag:
            raise ValueError(f"an element of tag {found:#x}, not {tag:#x}")
        return body

    def inside(self, tag: int = SEQUENCE) -> Reader:
        """A reader of what the next element, of that tag, holds."""
        return Reader(self.next(tag))

    def integer(self) -> int:
        return int.from_bytes(self.next(INTEGER), "big", signed=True)
