"""What one UDP probe is: its bytes, where they come from, and which answers are answers to it.

A payload asks and changes nothing: it logs in nowhere, writes nothing, and asks for the smallest
answer that its protocol gives to strangers, so that a scanner that is fed with forged source
addresses is no amplifier worth having.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

#: What a parser of hostile bytes may run into; to `Probe.answers` it means "no answer to this".
UNREADABLE = (ValueError, IndexError, struct.error)

Match = Callable[[bytes, bytes], bool]


class Identifiers:
    """The numbers by which answers are told apart, drawn from a scan's key.

    They differ from scan to scan and from protocol to protocol. Within a scan they are the same
    for every target: a payload is written once and sent often. The same key gives the same.

    Args:
        key: any whole number; a scan's seed.
        protocol: whose identifiers they are.
    """

    def __init__(self, key: int, protocol: str) -> None:
        self._stream = hashlib.shake_128(f"{key}/{protocol}".encode()).digest(256)

    def octets(self, count: int, at: int = 0) -> bytes:
        """``count`` bytes; those from ``at`` on, where a payload needs several."""
        return self._stream[at : at + count]

    def number(self, bits: int, at: int = 0) -> int:
        """A number of so many bits, never 0: some protocols keep that for "none"."""
        value = int.from_bytes(self.octets((bits + 7) // 8, at), "big") & ((1 << bits) - 1)
        return value or 1

    def text(self, digits: int) -> str:
        """So many hexadecimal digits."""
        return self._stream.hex()[:digits]


@dataclass(frozen=True, slots=True)
class Echoed:
    """Bytes of a payload that its answer repeats: the plainest kind of identifier.

    Attributes:
        sent: where they stand in the payload.
        got: where they stand in the answer.
        size: how many there are.
        least: the shortest answer of the protocol.
        head: what an answer begins with, each byte with the bits that count.
    """

    sent: int
    got: int
    size: int
    least: int = 0
    head: tuple[tuple[int, int, int], ...] = ()

    def __call__(self, payload: bytes, answer: bytes) -> bool:
        return (
            answer != payload
            and len(answer) >= max(self.least, self.got + self.size)
            and all(answer[at] & mask == value for at, mask, value in self.head)
            and answer[self.got : self.got + self.size]
            == payload[self.sent : self.sent + self.size]
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that a service is sure to understand.

    Attributes:
        ports: where the service listens.
        protocol: its name, for people.
        asks: what it is asked for, in a few words.
        source: the specification that the bytes were written from.
        build: makes them.
        match: whether an answer repeats the payload's identifier; None where it has none.
        layers: what tshark calls the protocol; empty where it does not know it.
        decode_as: tshark's dissector, where it must be told.
    """

    ports: tuple[int, ...]
    protocol: str
    asks: str
    source: str
    build: Callable[[Identifiers], bytes]
    match: Match | None = None
    layers: tuple[str, ...] = ()
    decode_as: str = ""

    def payload(self, key: int = 0) -> bytes:
        """The bytes to send in the scan of this key."""
        return self.build(Identifiers(key, self.protocol))

    def answers(self, payload: bytes, answer: bytes) -> bool | None:
        """Whether ``answer`` is one to ``payload``; None where the protocol cannot tell.

        Never raises, whatever the answer holds.
        """
        if self.match is None:
            return None
        try:
            return self.match(payload, answer)
        except UNREADABLE:
            return False
