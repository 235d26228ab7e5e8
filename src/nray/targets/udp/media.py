"""Telephony, and how calls find their way: SIP, MGCP, IAX2, STUN, RDP's UDP transport."""

from __future__ import annotations

import struct

from nray.targets.udp import Steps
from nray.targets.udp.discovery import lines
from nray.targets.udp.probe import (
    Echoed,
    Identifiers,
    Probe,
    bits,
    byte,
    find,
    least,
    same,
    text,
)

#: RFC 2606: a domain that nobody can have.
NOWHERE = "nray.invalid"

# ── SIP ─────────────────────────────────────────────────────────────────────────────────────

CALL_ID = b"call-id: "


def _sip(ids: Identifiers) -> bytes:
    """OPTIONS with no hops left: who gets it answers himself (RFC 3261, sections 11 and 16.3),
    to the address that it came from (`rport`, RFC 3581)."""
    tag = ids.text(16)
    return lines(
        f"OPTIONS sip:{NOWHERE} SIP/2.0",
        f"Via: SIP/2.0/UDP {NOWHERE};branch=z9hG4bK{tag};rport",
        "Max-Forwards: 0",
        f"To: <sip:{NOWHERE}>",
        f"From: <sip:nray@{NOWHERE}>;tag={tag[:8]}",
        f"Call-ID: {tag}@{NOWHERE}",
        "CSeq: 1 OPTIONS",
        f"Contact: <sip:nray@{NOWHERE}>",
        "Accept: application/sdp",
        "Content-Length: 0",
    )


def _same_call(payload: bytes) -> Steps:
    """The answer is a response, and has our Call-ID."""
    at = payload.lower().index(CALL_ID) + len(CALL_ID)
    return text(0, b"SIP/2.0 ") + find(at, payload.index(b"\r", at) - at)


# ── MGCP ────────────────────────────────────────────────────────────────────────────────────


def _mgcp(ids: Identifiers) -> bytes:
    """An audit of an endpoint that nobody has: an answer of one line."""
    transaction = 1 + ids.number(29)
    return f"AUEP {transaction} nray@{NOWHERE} MGCP 1.0\r\n".encode()


def _same_transaction(payload: bytes) -> Steps:
    """A return code of three digits, then the transaction's number (RFC 3435, section 3.2.2)."""
    size = len(payload.split()[1])
    steps = tuple(step for at in range(3) for step in byte(at, 0xF0, 0x30))
    # Behind the number is a space or a new line: in these bits no digit is like them.
    return steps + byte(3, 255, 0x20) + same(5, 4, size) + byte(4 + size, 0xD0, 0)


# ── IAX2 ────────────────────────────────────────────────────────────────────────────────────

FULL_FRAME, IAX_CONTROL, POKE = 0x8000, 6, 0x1E


def _iax2(ids: Identifiers) -> bytes:
    """POKE (RFC 5456, section 6.7.1): is anybody there?"""
    source, destination, timestamp, sent, received = ids.number(15), 0, 0, 0, 0
    return struct.pack(
        "!HHIBBBB", FULL_FRAME | source, destination, timestamp, sent, received, IAX_CONTROL, POKE
    )


def _same_caller(payload: bytes) -> Steps:
    """A full frame whose destination is our call number; the bit before it says "sent again"."""
    return least(12) + byte(0, 0x80, 0x80) + bits(0, 2, 0x7F) + same(1, 3, 1)


# ── STUN ────────────────────────────────────────────────────────────────────────────────────

BINDING_REQUEST, MAGIC_COOKIE = 0x0001, 0x2112A442
#: Class "success" or "error" (both have this bit), method "binding", our cookie and transaction.
_STUN_SAME = Echoed(4, 4, 16, least=20, head=((0, 0xFF, 0x01), (1, 0xEF, 0x01)), free=(12, 8))


def _stun(ids: Identifiers) -> bytes:
    no_attributes = 0
    return struct.pack("!HHI", BINDING_REQUEST, no_attributes, MAGIC_COOKIE) + ids.octets(12)


# ── RDP ─────────────────────────────────────────────────────────────────────────────────────

RDPUDP_SYN, RDPUDP_ACK = 0x0001, 0x0004
NOTHING_RECEIVED = 0xFFFFFFFF
RECEIVE_WINDOW = 64
#: [MS-RDPEUDP] 2.2.2.5: from 1132 to 1232. A SYN is padded to it, so that its answer, padded
#: too, is no larger.
RDP_MTU = 1132


def _rdpudp(ids: Identifiers) -> bytes:
    header = struct.pack("!IHH", NOTHING_RECEIVED, RECEIVE_WINDOW, RDPUDP_SYN)
    syn = struct.pack("!IHH", ids.number(32), RDP_MTU, RDP_MTU)
    return (header + syn).ljust(RDP_MTU, b"\x00")


PROBES = (
    Probe((5060,), "SIP", "its options, with no hop to go on", "RFC 3261; RFC 3581", _sip,
          _same_call, ("sip",)),
    Probe((2427, 2727), "MGCP", "to audit an endpoint that nobody has", "RFC 3435", _mgcp,
          _same_transaction, ("mgcp",)),
    Probe((4569,), "IAX2", "whether it is there (POKE)", "RFC 5456", _iax2, _same_caller,
          ("iax2",)),
    Probe((3478,), "STUN", "from where we are seen (Binding)", "RFC 8489", _stun, _STUN_SAME,
          ("stun",)),
    Probe((3389,), "RDP over UDP", "to begin (SYN)", "[MS-RDPEUDP] 2.2.2 and 3.1.5.1.1", _rdpudp,
          Echoed(8, 0, 4, least=16, head=((7, RDPUDP_SYN | RDPUDP_ACK, RDPUDP_SYN | RDPUDP_ACK),),
                 free=(8, 4)),
          ("rdpudp",)),
)  # fmt: skip
