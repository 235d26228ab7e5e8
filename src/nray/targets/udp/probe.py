"""What one UDP probe is: its bytes, where they come from, and which answers are answers to it.

A payload asks and changes nothing: it logs in nowhere, writes nothing, and asks for the smallest
answer that its protocol gives to strangers, so that a scanner that is fed with forged source
addresses is no amplifier worth having.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nray import _core
from nray.targets.udp import Steps

#: For a payload, what an answer to it shows. Engines compare by it: see `nray._core.STEP_LEAST`.
Match = Callable[[bytes], Steps]


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


def least(size: int) -> Steps:
    """The answer has at least so many bytes."""
    return ((_core.STEP_LEAST, size, 0, 0),)


def byte(at: int, mask: int, value: int) -> Steps:
    """One of its bytes has this value, in the bits that count."""
    return ((_core.STEP_BYTE, at, mask, value),)


def text(at: int, value: bytes) -> Steps:
    """These bytes stand in it from there on."""
    return tuple((_core.STEP_BYTE, at + k, 255, each) for k, each in enumerate(value))


def same(sent: int, got: int, size: int) -> Steps:
    """It repeats so many bytes of the payload."""
    return ((_core.STEP_SAME, sent, got, size),)


def bits(sent: int, got: int, mask: int) -> Steps:
    """It repeats the bits of a byte of the payload."""
    return ((_core.STEP_BITS, sent, got, mask),)


def find(sent: int, size: int) -> Steps:
    """So many bytes of the payload stand anywhere in it."""
    return ((_core.STEP_FIND, sent, size, 0),)


def own(sent: int, size: int) -> Steps:
    """So many bytes of the payload, eight at most, may be anything: each target gets its own."""
    return ((_core.STEP_OWN, sent, size, 0),)


def either(alternatives: Iterable[Steps]) -> Steps:
    """One of these holds."""
    first, *more = alternatives
    return first + tuple(step for each in more for step in (_ELSE, *each))


_ELSE = (_core.STEP_ELSE, 0, 0, 0)
#: The answer is the payload itself; without this it is none.
WHOLE: Steps = ((_core.STEP_WHOLE, 0, 0, 0),)


@dataclass(frozen=True, slots=True)
class Echoed:
    """Bytes of a payload that its answer repeats: the plainest kind of identifier.

    Attributes:
        sent: where they stand in the payload.
        got: where they stand in the answer.
        size: how many there are.
        least: the shortest answer of the protocol.
        head: what an answer begins with, each byte with the bits that count.
        free: where and how many bytes of the payload are the identifier, if any will do.
    """

    sent: int
    got: int
    size: int
    least: int = 0
    head: tuple[tuple[int, int, int], ...] = ()
    free: tuple[int, int] | None = None

    def __call__(self, payload: bytes) -> Steps:
        steps = least(max(self.least, self.got + self.size))
        for at, mask, value in self.head:
            steps += byte(at, mask, value)
        steps += same(self.sent, self.got, self.size)
        return steps if self.free is None else steps + own(*self.free)


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that a service is sure to understand.

    Attributes:
        ports: where the service listens.
        protocol: its name, for people.
        asks: what it is asked for, in a few words.
        source: the specification that the bytes were written from.
        build: makes them.
        match: what an answer to a payload shows of its identifier; None where it has none.
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

    def steps(self, payload: bytes) -> Steps:
        """What an answer to ``payload`` shows; nothing where the protocol cannot tell."""
        return () if self.match is None else self.match(payload)

    def answers(self, payload: bytes, answer: bytes) -> bool | None:
        """Whether ``answer`` is one to ``payload``; None where the protocol cannot tell.

        Never raises, whatever the answer holds.
        """
        return _core.answers(payload, self.steps(payload), answer)
