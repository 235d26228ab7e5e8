"""Echo requests of the raw engine: their bytes, what answers them, whom they must not go to."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_lab import (
    ALL_STATES,
    ICMP,
    KEY,
    TCP,
    Drive,
    bucket,
    inside,
    run,
    space,
)
from lab.checksum import checksum
from lab.namespaces import Namespace
from nray import _core
from raw_lab import (
    COOKIE_KEY,
    ECHO,
    NEXT_MAC,
    OWN_MAC,
    FarEnd,
    echo_answer,
    icmp_error,
    taken_apart,
)
from test_core_raw import FAR, OWN, Filtered, cookie, pairs, pseudo

PING = [(1, 0)]
BASE = {4: "198.18.0.", 6: "2001:db8:1::"}
lab = pytest.mark.lab


def frame(source: bytes, target: bytes) -> bytes:
    return _core._raw_frame(1, source, target, OWN_MAC, NEXT_MAC, 1500, 0, COOKIE_KEY)


@given(pairs)
def test_requests_are_those_of_the_rfcs(both: tuple[bytes, bytes]) -> None:
    source, target = both
    version = 4 if len(source) == 4 else 6
    made = frame(source, target)
    body = made[34:] if version == 4 else made[54:]
    kind, code, _, ident, number = struct.unpack_from("!BBHHH", body)
    proof = cookie(source, target, ident, 0, 1)
    assert (kind, code, number) == (ECHO[version][0], 0, proof & 0xFFFF)
    assert 61440 <= ident <= 65535
    assert body[8:] == struct.pack("<Q", proof)
    # A sum over all, the checksum with it, is zero when it is right (RFC 1071).
    head = b"" if version == 4 else pseudo(source, target, 58, body)
    assert checksum(head + body) == 0
    if version == 4:
        assert checksum(made[14:34]) == 0
        assert made[23] == 1
        assert struct.unpack_from("!H", made, 16)[0] == 36
    else:
        assert made[20] == 58
        assert struct.unpack_from("!H", made, 18)[0] == 16


@given(pairs)
def test_replies_and_errors_are_known(both: tuple[bytes, bytes]) -> None:
    version = 4 if len(both[0]) == 4 else 6
    probe = frame(*both)
    ident = struct.unpack_from("!H", probe, (34 if version == 4 else 54) + 4)[0]
    about = (1, both[1], ident, 0)
    answer = echo_answer(probe)
    assert _core._raw_answer(COOKIE_KEY, answer) == ("echo-reply", *about, ECHO[version][1], 0)
    assert _core._raw_answer(COOKIE_KEY, answer[:-1]) is None
    assert _core._raw_answer(bytes(16), answer) is None
    for at in (len(answer) - 1, len(answer) - 9):  # data, number
        forged = bytearray(answer)
        forged[at] ^= 1
        assert _core._raw_answer(COOKIE_KEY, bytes(forged)) is None
    assert _core._raw_answer(COOKIE_KEY, probe[14:]) is None
    kind = 3 if version == 4 else 1
    error = icmp_error(probe, kind, 1)
    assert _core._raw_answer(COOKIE_KEY, error) == ("icmp", *about, kind, 1)
    head = 20 if version == 4 else 40
    cut = icmp_error(probe, kind, 1, cut=head + 8)
    assert _core._raw_answer(COOKIE_KEY, cut) == ("icmp", *about, kind, 1)
    forged = bytearray(probe)
    forged[14 + head + 7] ^= 1
    assert _core._raw_answer(COOKIE_KEY, icmp_error(bytes(forged), kind, 1)) is None
    assert _core._raw_answer(COOKIE_KEY, icmp_error(answer_as_probe(probe), kind, 1)) is None


def answer_as_probe(probe: bytes) -> bytes:
    """The frame with a reply's type: an error that quotes it is about nobody's request."""
    version = probe[14] >> 4
    at = 34 if version == 4 else 54
    return probe[:at] + bytes([ECHO[version][1]]) + probe[at + 1 :]


def test_the_filter_passes_replies_to_our_identifiers_alone(version: int) -> None:
    probe = frame(OWN[version], FAR[version])
    ident = struct.unpack_from("!H", probe, (34 if version == 4 else 54) + 4)[0]
    kind = 3 if version == 4 else 1
    for first, last, passed in [
        (ident, ident, True),
        (ident + 1, 65535, False),
        (1, ident - 1, False),
    ]:
        with Filtered(version, first, last) as kernel:
            assert kernel.passes(echo_answer(probe)) is passed
            assert kernel.passes(icmp_error(probe, kind, 1)) is passed
            if version == 4:
                assert kernel.passes(icmp_error(probe, kind, 1, 3, 5)) is passed
            assert not kernel.passes(probe[14:])


# ── space, policy, engines ──────────────────────────────────────────────────────────────────


@given(st.integers(0, 299))
def test_a_space_of_pings(position: int) -> None:
    where = _core.Space([(10, 109)], [(2**100, 2**100 + 49)], 0, [(1, 0), (TCP, 80)], KEY)
    family, address, protocol, port = where.at(position)
    assert (protocol, port) in ((1, 0), (TCP, 80))
    assert where.find(family, address, protocol, port) == position


def test_a_listing_of_pings() -> None:
    where = _core.Space([(1, 1)], [(2, 2)], 0, [(1, 0), (TCP, 65535)], KEY)
    lines = sorted(where.listing(0, 4).decode().splitlines())
    assert lines == ["0.0.0.1 0/icmp", "0.0.0.1 65535/tcp", "::2 0/icmp", "::2 65535/tcp"]


@pytest.mark.parametrize("service", [(1, 1), (1, -1), (6, 0), (17, 0), (58, 0)])
def test_no_such_service(service: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no such port"):
        _core.Space([(1, 2)], [], 0, [service], KEY)


def test_a_policy_asks_for_the_address_alone(version: int) -> None:
    policy = _core.Policy(_core.Exclusions([(5, 9)], [(5, 9)]), [(TCP, 1, 5)])
    assert not policy.refuses(version, 4, 1, 0)
    assert policy.refuses(version, 5, 1, 0)
    with pytest.raises(ValueError):
        policy.refuses(version, 4, 1, 1)


def test_the_connect_engine_sends_none() -> None:
    where = _core.Space([(1, 2)], [], 0, [(TCP, 80), (1, 0)], KEY)
    engine = _core.Engine(bucket())
    with pytest.raises(ValueError, match="raw engine"):
        engine.add_slice(1, 0, 4, where, None)
    names = _core.Space([], [], 1, PING, KEY)
    with pytest.raises(ValueError, match="raw engine"):
        engine.add_names(1, 0, 1, names, None, {0: [bytes(4)]})
    assert engine.slices_open == 0


@pytest.fixture(params=["tap", "tun"])
def far(alone: Namespace, request: pytest.FixtureRequest) -> Iterator[FarEnd]:
    with inside(alone), FarEnd(alone, request.param == "tap") as made:
        yield made


@lab
def test_states_and_reasons_of_pings(far: FarEnd, version: int) -> None:
    """Hosts 1 to 6: two answer, one by an error, one with the wrong data; the rest are silent."""
    where = space([f"{BASE[version]}1-{BASE[version]}7"], PING)
    number = int(ip_address(f"{BASE[version]}7"))
    excluded = [(number, number)]
    exclusions = _core.Exclusions(
        excluded if version == 4 else [], excluded if version == 6 else []
    )
    engine = far.engine(retries=1)
    drive = Drive(engine)
    engine.add_slice(1, 0, where.total, where, exclusions)
    probes = {ip_address(taken_apart(p)[1]): p for p in far.gather(drive, 6)}
    by_last = {int(address) & 15: probe for address, probe in probes.items()}
    far.put(echo_answer(by_last[1]))
    far.put(icmp_error(by_last[3], 3 if version == 4 else 1, 1 if version == 4 else 3))
    forged = bytearray(echo_answer(by_last[4]))
    forged[-1] ^= 1
    far.put(bytes(forged))
    again = far.gather(drive, 4)
    assert {int.from_bytes(taken_apart(p)[1], "big") & 15 for p in again} == {2, 4, 5, 6}
    far.put(echo_answer(by_last[2]))
    ended = drive.to_end()
    told = {int(ip_address(hit.address)) & 15: (hit.state, hit.reason) for hit in ended.hits}
    silent = ("filtered", "no-response")
    assert told == {
        1: ("open", "echo-reply"),
        2: ("open", "echo-reply"),
        3: ("filtered", "host-unreach"),
        4: silent,
        5: silent,
        6: silent,
    }
    assert ended.counts["excluded"] == 1
    assert engine.sent == 10


@lab
def test_the_kernel_answers(alone: Namespace) -> None:
    """This machine itself, over lo: a foreign implementation judges the checksums."""
    routes: list[Any] = [
        (4, 0x7F000000, 0x7FFFFFFF, 0, bytes([127, 0, 0, 1]), b""),
        (6, 1, 1, 0, ip_address("::1").packed, b""),
    ]
    where = space(["127.0.0.1-127.0.0.9", "::1"], PING)
    with inside(alone):
        engine = _core.RawEngine(
            bucket(),
            key=COOKIE_KEY,
            links=[(1, "lo", False, b"", 65536)],
            routes=routes,
            states=ALL_STATES,
            retries=0,
        )
        ended = run(engine, where)
    assert ended.counts["open"] == 10
    assert {hit.reason for hit in ended.hits} == {"echo-reply"}
    assert ICMP == {4: 1, 6: 58}
