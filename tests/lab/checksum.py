"""The Internet checksum (RFC 1071), apart from nray's own."""

from __future__ import annotations

import struct


def checksum(data: bytes) -> int:
    """Of 16-bit words, the last filled up with a zero."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
