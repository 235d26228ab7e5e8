"""The small services of old, and time: a question is hardly more than a knock."""

from __future__ import annotations

import struct

from nray.targets.udp import Steps
from nray.targets.udp.probe import WHOLE, Echoed, Identifiers, Probe, own

#: Whatever the datagram holds, these answer; "the data in it is ignored".
KNOCK = b"nray"

READ_REQUEST = 1
#: No server has it: the answer is an error of a few bytes and no file.
NO_FILE = b"nray-no-such-file"

LEAP_UNKNOWN, NTP_VERSION, NTP_CLIENT = 3, 4, 3
NTP_BYTES, NTP_TRANSMIT, NTP_ORIGIN = 48, 40, 24

_NTP_SERVER = ((0, 0x07, 4),)


def _echo(ids: Identifiers) -> bytes:
    return KNOCK + ids.octets(8)


def _same(payload: bytes) -> Steps:
    return WHOLE + own(len(KNOCK), 8)


def _knock(ids: Identifiers) -> bytes:
    return KNOCK


def _read_request(ids: Identifiers) -> bytes:
    return struct.pack("!H", READ_REQUEST) + NO_FILE + b"\x00octet\x00"


def _ntp(ids: Identifiers) -> bytes:
    """A client's request. Its transmit timestamp comes back as the answer's origin timestamp, so
    it need not be a time, and better is none: nobody learns this machine's clock (RFC 9109)."""
    first = LEAP_UNKNOWN << 6 | NTP_VERSION << 3 | NTP_CLIENT
    return bytes([first]).ljust(NTP_TRANSMIT, b"\x00") + ids.octets(8)


_ANY = "anything: it answers to every datagram"

PROBES = (
    Probe((7,), "Echo", "its own bytes back", "RFC 862", _echo, _same, ("echo",)),
    Probe((13,), "Daytime", _ANY, "RFC 867", _knock, None, ("daytime",)),
    Probe((17,), "Quote of the day", _ANY, "RFC 865", _knock),
    Probe((19,), "Character generator", _ANY, "RFC 864", _knock, None, ("chargen",)),
    Probe((37,), "Time", _ANY, "RFC 868", _knock, None, ("time",)),
    Probe(
        (69,), "TFTP", "a file that nobody has; most servers answer from another port, unseen",
        "RFC 1350", _read_request, None, ("tftp",),
    ),
    Probe(
        (123,), "NTP", "the time, as a client of version 4", "RFC 5905", _ntp,
        Echoed(NTP_TRANSMIT, NTP_ORIGIN, 8, least=NTP_BYTES, head=_NTP_SERVER,
               free=(NTP_TRANSMIT, 8)), ("ntp",),
    ),
)  # fmt: skip
