"""Packed hits read on the server, from nodes that err or lie."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray._core import REASONS, STATES
from nray.targets.findings import Finding, check, expand
from nray.targets.plan import plan

HIT = struct.Struct("<Q16sIBBBB")
NETWORKS, NAMES = plan(
    "10.0.0.0/28,2001:db8::/125,A.example", tcp="22,80", udp="53", exclude="192.0.2.1,::5", seed=1
).segments
#: All kinds of hosts in one segment, which is allowed.
SEGMENT = replace(NETWORKS, names=NAMES.names)
OPEN, SYN_ACK = STATES.index("open"), REASONS.index("syn-ack")


def hit(
    position: int,
    address: bytes | None = None,
    family: int | None = None,
    *,
    rtt: int = 1500,
    ttl: int = 64,
    state: int = OPEN,
    reason: int = SYN_ACK,
) -> bytes:
    """A record; where nothing else is said, with the address that stands at the position."""
    here, number, _, _ = SEGMENT.space.at(position)
    if address is None:
        address = number.to_bytes({4: 4, 6: 16, 0: 1}[here], "big")
    return HIT.pack(position, address, rtt, ttl, state, reason, here if family is None else family)


def place_of(host: str) -> int:
    """A position at which a host is probed."""
    lines = SEGMENT.listing(0, SEGMENT.probes).decode().splitlines()
    return next(at for at, line in enumerate(lines) if line.split()[0] == host)


NAME = place_of("A.example")


def test_a_finding_for_every_position() -> None:
    lines = SEGMENT.listing(0, SEGMENT.probes).decode().splitlines()
    family = {at: 4 if line.startswith("A.") else None for at, line in enumerate(lines)}
    packed = b"".join(hit(at, family=family[at]) for at in range(SEGMENT.probes))
    findings = expand(SEGMENT, packed)
    assert [f"{f.target} {f.port}/{f.protocol}" for f in findings] == lines
    assert [f.position for f in findings] == list(range(SEGMENT.probes))
    assert all(f.address == f.target for f in findings if not f.target.startswith("A."))


def test_all_fields() -> None:
    position = place_of("10.0.0.7")
    (finding,) = expand(SEGMENT, hit(position, rtt=1234, ttl=63))
    _, _, protocol, port = SEGMENT.space.at(position)
    assert finding == Finding(
        position=position,
        target="10.0.0.7",
        address="10.0.0.7",
        port=port,
        protocol="tcp" if protocol == 6 else "udp",
        state="open",
        reason="syn-ack",
        ttl=63,
        rtt_ms=1.234,
    )


def test_a_name_keeps_its_name_and_tells_the_address() -> None:
    four, six = (ipaddress.ip_address(text).packed for text in ("198.18.0.1", "2001:db8:1::1"))
    found = expand(SEGMENT, hit(NAME, four, 4) + hit(NAME, six, 6))
    assert [(f.target, f.address) for f in found] == [
        ("A.example", "198.18.0.1"),
        ("A.example", "2001:db8:1::1"),
    ]


def test_a_name_that_did_not_resolve() -> None:
    error = STATES.index("error")
    (found,) = expand(SEGMENT, hit(NAME, b"", 0, state=error, rtt=0, ttl=0))
    assert (found.target, found.address, found.state) == ("A.example", "", "error")


def test_nothing_is_nothing() -> None:
    assert expand(SEGMENT, b"") == []


FOUR = place_of("10.0.0.7")
SIX = place_of("2001:db8::2")
LIES = {
    "beyond the space": HIT.pack(SEGMENT.probes, bytes(16), 0, 0, 1, 1, 4),
    "far beyond": HIT.pack(2**64 - 1, bytes(16), 0, 0, 1, 1, 4),
    "another address": hit(FOUR, bytes([10, 0, 0, 8])),
    "another address behind the first": hit(FOUR, bytes([10, 0, 0, 7, 1])),
    "another family": hit(FOUR, bytes([10, 0, 0, 7]), 6),
    "no family": hit(FOUR, bytes([10, 0, 0, 7]), 0),
    "another IPv6 address": hit(SIX, bytes(16)),
    "IPv6 called IPv4": hit(SIX, family=4),
    "a name of no family": hit(NAME, bytes([9, 9, 9, 9]), 0),
    "a name of family 5": hit(NAME, bytes([9, 9, 9, 9]), 5),
    "a name with a long IPv4 address": hit(NAME, bytes([9, 9, 9, 9, 0, 1]), 4),
    "a name at an excluded address": hit(NAME, bytes([192, 0, 2, 1]), 4),
    "a name at an excluded IPv6 address": hit(NAME, bytes(15) + b"\5", 6),
    "a name at an excluded mapped address": hit(
        NAME, bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1]), 6
    ),
    "no state": hit(FOUR, state=0),
    "an unknown state": hit(FOUR, state=len(STATES)),
    "an unknown reason": hit(FOUR, reason=len(REASONS)),
    "a byte short": hit(FOUR)[:-1],
    "a byte long": hit(FOUR) + b"\0",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_node_is_caught(lie: str) -> None:
    with pytest.raises(ValueError):
        expand(SEGMENT, hit(FOUR) + LIES[lie])


def test_any_changed_byte_is_a_finding_or_a_value_error() -> None:
    for at in range(32):
        for value in range(256):
            record = bytearray(hit(FOUR))
            record[at] = value
            try:
                (found,) = expand(SEGMENT, bytes(record))
            except ValueError:
                continue
            # no other address passes; another position only if it may have this address, as
            # another port of the host has, or a name, which may resolve to anything
            assert not 8 <= at < 24 or bytes(record) == hit(FOUR)
            assert found.address == "10.0.0.7"
            assert found.target == "10.0.0.7" or (at < 8 and found.target == "A.example")


@given(st.binary(max_size=100))
def test_garbage_is_findings_or_a_value_error(packed: bytes) -> None:
    try:
        expand(SEGMENT, packed)
    except ValueError:
        pass


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**16))
def test_checking_refuses_what_expanding_refuses(state: int, reason: int, at: int) -> None:
    good = hit(at % SEGMENT.probes, family=None) if at % SEGMENT.probes != NAME else hit(0)
    packed = good[:29] + bytes([state, reason]) + good[31:]
    try:
        expand(SEGMENT, packed)
    except ValueError:
        with pytest.raises(ValueError):
            check(SEGMENT, packed)
    else:
        check(SEGMENT, packed)


@given(st.binary(max_size=100))
def test_checking_garbage_is_as_expanding_it(packed: bytes) -> None:
    try:
        expand(SEGMENT, packed)
    except ValueError:
        with pytest.raises(ValueError):
            check(SEGMENT, packed)
    else:
        check(SEGMENT, packed)
