"""The raw engine without a network: cookies, frames, the filter, the way back from an answer.

All that is compared with is written here anew, from the RFCs, in Python.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core_lab import ACK, KEY, RST, SYN, TCP, UDP, bucket, host, in_child, ip_packet
from lab.checksum import checksum
from nray import _core
from raw_lab import (
    COOKIE_KEY,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    NEXT_MAC,
    OWN_MAC,
    ROUTING,
    extended,
    icmp_error,
    source_port,
    tcp_answer,
    udp_answer,
)

FIRST, LAST = 61440, 65535

ports = st.integers(1, 65535)
addresses = {
    4: st.binary(min_size=4, max_size=4),
    6: st.binary(min_size=16, max_size=16),
}
pairs = st.sampled_from((4, 6)).flatmap(lambda v: st.tuples(addresses[v], addresses[v]))


# ── SipHash ─────────────────────────────────────────────────────────────────────────────────


def siphash(key: bytes, data: bytes) -> int:
    """SipHash-2-4 as its paper states it (Aumasson, Bernstein 2012, section 2)."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    ]

    def turn(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = v[0] + v[1] & mask
            v[1] = turn(v[1], 13) ^ v[0]
            v[0] = turn(v[0], 32)
            v[2] = v[2] + v[3] & mask
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = v[0] + v[3] & mask
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = v[2] + v[1] & mask
            v[1] = turn(v[1], 17) ^ v[2]
            v[2] = turn(v[2], 32)

    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 255])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_siphash_of_the_paper() -> None:
    # Appendix A: the key 00 … 0f, the message 00 … 0e.
    assert _core._siphash(COOKIE_KEY, bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(
    ("length", "value"),
    # The first, the ninth and the last of the reference implementation's vectors.
    [(0, 0x726FDB47DD0E0E31), (8, 0x93F5F5799A932462), (63, 0x958A324CEB064572)],
)
def test_siphash_of_the_reference_vectors(length: int, value: int) -> None:
    assert _core._siphash(COOKIE_KEY, bytes(range(length))) == value


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=80))
def test_siphash_is_that_of_the_paper(key: bytes, data: bytes) -> None:
    assert _core._siphash(key, data) == siphash(key, data)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_key_has_sixteen_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        _core._siphash(bytes(size), b"")


# ── frames ──────────────────────────────────────────────────────────────────────────────────


def cookie(source: bytes, target: bytes, sport: int, dport: int, protocol: int) -> int:
    text = target + source + struct.pack("<HHB", sport, dport, protocol)
    return siphash(COOKIE_KEY, text)


def frame(
    protocol: int, source: bytes, target: bytes, dport: int, payload: bytes = b"", mtu: int = 1500
) -> bytes:
    return _core._raw_frame(
        protocol, source, target, OWN_MAC, NEXT_MAC, mtu, dport, COOKIE_KEY, payload
    )


def pseudo(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    """RFC 9293, 3.1 and RFC 8200, 8.1."""
    if len(source) == 4:
        return source + target + struct.pack("!BBH", 0, protocol, len(body))
    return source + target + struct.pack("!IBBBB", len(body), 0, 0, 0, protocol)


def expected(
    protocol: int, source: bytes, target: bytes, sport: int, dport: int, payload: bytes, mtu: int
) -> bytes:
    """The frame of a probe, built field by field."""
    proof = cookie(source, target, sport, dport, protocol)
    headers = 40 if len(source) == 4 else 60
    if protocol == TCP:
        option = struct.pack("!BBH", 2, 4, mtu - headers)
        # fmt: off
        body = struct.pack(
            "!HHIIBBHHH", sport, dport, proof & 0xFFFFFFFF, 0, 6 << 4, SYN, 64240, 0, 0
        ) + option
        # fmt: on
        at = 16
    else:
        body = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
        at = 6
    total = checksum(pseudo(source, target, protocol, body) + body)
    if protocol == UDP and total == 0:
        total = 0xFFFF
    body = body[:at] + struct.pack("!H", total) + body[at + 2 :]
    if len(source) == 4:
        ident = struct.unpack("!H", struct.pack("<H", proof >> 32 & 0xFFFF))[0]
        # fmt: off
        ip = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ident, 0x4000, 64, protocol, 0,
            source, target,
        )
        # fmt: on
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        kind = 0x0800
    else:
        label = proof >> 32 & 0xFFFFF
        ip = struct.pack("!IHBB16s16s", 6 << 28 | label, len(body), protocol, 64, source, target)
        kind = 0x86DD
    return NEXT_MAC + OWN_MAC + struct.pack("!H", kind) + ip + body


@settings(max_examples=300)
@given(pairs, st.sampled_from((TCP, UDP)), ports, st.binary(max_size=1400), st.integers(576, 9000))
@example((b"\0" * 4, b"\0" * 4), TCP, 1, b"", 1500)
@example((b"\xff" * 16, b"\xff" * 16), UDP, 65535, b"\xff" * 1399, 1280)
def test_frames_are_those_of_the_rfcs(
    both: tuple[bytes, bytes], protocol: int, dport: int, payload: bytes, mtu: int
) -> None:
    source, target = both
    made = frame(protocol, source, target, dport, payload, mtu)
    sport = source_port(made, 4 if len(source) == 4 else 6)
    assert FIRST <= sport <= LAST
    assert made == expected(protocol, source, target, sport, dport, payload, mtu)


def test_no_udp_checksum_is_zero(version: int) -> None:
    """Zero would say that there is none (RFC 768): of 65,536 payloads one makes it."""
    source, target = OWN[version], FAR[version]
    at = 14 + (20 if version == 4 else 40) + 6
    first = frame(UDP, source, target, 53, b"\0\0")
    total = int.from_bytes(first[at : at + 2], "big")
    made = frame(UDP, source, target, 53, struct.pack("!H", total))
    assert made[at : at + 2] == b"\xff\xff"
    port = source_port(made, version)
    assert made == expected(UDP, source, target, port, 53, made[at + 2 :], 1500)


def test_source_ports_spread_over_the_shard(version: int) -> None:
    seen = set()
    for number in range(512):
        target = ip_address(host(version, number)).packed
        # fmt: off
        made = _core._raw_frame(
            TCP, OWN[version], target, OWN_MAC, NEXT_MAC, 1500, 80, COOKIE_KEY, b"", 62000, 8,
        )
        # fmt: on
        seen.add(source_port(made, version))
    assert seen == set(range(62000, 62008))


# ── answers ─────────────────────────────────────────────────────────────────────────────────


@given(pairs, ports, st.integers(0, 10))
def test_answers_to_a_syn_are_known(both: tuple[bytes, bytes], dport: int, options: int) -> None:
    probe = frame(TCP, *both, dport)
    about = (both[1], source_port(probe, 4 if len(both[0]) == 4 else 6), dport)
    for flags, ahead, what in [
        (SYN | ACK, 1, "syn-ack"),
        (RST | ACK, 1, "rst"),
        (RST, 1, "rst"),
        (RST | ACK, 0, "rst"),
    ]:
        got = _core._raw_answer(COOKIE_KEY, tcp_answer(probe, flags, ahead, options))
        assert got == (what, TCP, *about, 0, 0)
    for flags, ahead in [
        (SYN | ACK, 0),
        (SYN | ACK, 2),
        (RST, 2),
        (RST | ACK, -1),
        (ACK, 1),
        (SYN, 1),
        (0, 1),
    ]:
        assert _core._raw_answer(COOKIE_KEY, tcp_answer(probe, flags, ahead, options)) is None


@given(pairs, ports, st.sampled_from((TCP, UDP)), st.integers(0, 10), st.integers(0, 10))
def test_icmp_errors_are_known_by_what_they_quote(
    both: tuple[bytes, bytes], dport: int, protocol: int, options: int, inner: int
) -> None:
    version = 4 if len(both[0]) == 4 else 6
    if version == 6:
        inner = 0
    probe = frame(protocol, *both, dport, b"abc")
    about = ("icmp", protocol, both[1], source_port(probe, version), dport)
    for kind, code in {4: [(3, 13), (11, 0), (12, 1)], 6: [(1, 4), (3, 0), (4, 2)]}[version]:
        error = icmp_error(probe, kind, code, options, inner)
        assert _core._raw_answer(COOKIE_KEY, error) == (*about, kind, code)
        # the least that is quoted: the header and 8 bytes (RFC 792)
        head = 20 + 4 * inner if version == 4 else 40
        least = icmp_error(probe, kind, code, options, inner, cut=head + 8)
        assert _core._raw_answer(COOKIE_KEY, least) == (*about, kind, code)
        short = icmp_error(probe, kind, code, options, inner, cut=head + 7)
        assert _core._raw_answer(COOKIE_KEY, short) is None
        # a number that is not the cookie's: TCP's own, else identification or flow label
        at = {(TCP, 4): 38, (TCP, 6): 58, (UDP, 4): 18, (UDP, 6): 17}[protocol, version]
        forged = bytearray(probe)
        forged[at] ^= 1
        assert _core._raw_answer(COOKIE_KEY, icmp_error(bytes(forged), kind, code)) is None
    for kind in {4: (0, 5, 8), 6: (2, 128, 135)}[version]:
        assert _core._raw_answer(COOKIE_KEY, icmp_error(probe, kind, 0)) is None


@given(pairs, ports)
def test_another_key_another_target_another_port_are_no_answer(
    both: tuple[bytes, bytes], dport: int
) -> None:
    probe = frame(TCP, *both, dport)
    answer = bytearray(tcp_answer(probe, SYN | ACK))
    assert _core._raw_answer(bytes(16), bytes(answer)) is None
    head = 20 if len(both[0]) == 4 else 40
    for at in (head - 1, 12 if head == 20 else 8, head, head + 3, head + 11):
        changed = bytearray(answer)
        changed[at] ^= 0x40
        assert _core._raw_answer(COOKIE_KEY, bytes(changed)) is None


@settings(max_examples=500)
@given(st.binary(max_size=120))
@example(b"\x45" + bytes(19))
@example(b"\x4f" + bytes(30))
@example(b"\x60" + bytes(39))
def test_no_bytes_make_the_reader_stumble(data: bytes) -> None:
    assert _core._raw_answer(COOKIE_KEY, data) is None


@given(pairs, ports, st.data())
def test_a_packet_cut_off_is_no_answer_or_the_same(
    both: tuple[bytes, bytes], dport: int, data: st.DataObject
) -> None:
    probe = frame(TCP, *both, dport)
    whole = data.draw(st.sampled_from([tcp_answer(probe, SYN | ACK), icmp_error(probe, 3, 3)]))
    told = _core._raw_answer(COOKIE_KEY, whole)
    cut = _core._raw_answer(COOKIE_KEY, whole[: data.draw(st.integers(0, len(whole)))])
    assert cut in (None, told)


def test_later_fragments_are_no_answers() -> None:
    """Of IPv4; those of IPv6 are extension headers, see below."""
    probe = frame(TCP, bytes([198, 18, 0, 1]), bytes([198, 18, 0, 2]), 80)
    answer = bytearray(tcp_answer(probe, SYN | ACK))
    answer[7] = 1
    assert _core._raw_answer(COOKIE_KEY, bytes(answer)) is None


CHAINS = [
    (HOP_BY_HOP,),
    (DESTINATION,),
    (FRAGMENT,),
    (ROUTING,),
    (HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, DESTINATION),
]


@given(
    st.sampled_from(CHAINS),
    st.integers(0, 5),
    st.tuples(addresses[6], addresses[6]),
    ports,
)
def test_answers_are_read_behind_extension_headers(
    kinds: tuple[int, ...], words: int, both: tuple[bytes, bytes], dport: int
) -> None:
    syn, datagram = frame(TCP, *both, dport), frame(UDP, *both, dport, b"x")
    for packet in (
        tcp_answer(syn, SYN | ACK),
        tcp_answer(syn, RST | ACK),
        icmp_error(syn, 1, 1),
        udp_answer(datagram, b"answer"),
        icmp_error(datagram, 1, 4),
    ):
        plain = _core._raw_answer(COOKIE_KEY, packet)
        assert plain is not None
        longer = extended(packet, *kinds, words=words)
        assert _core._raw_answer(COOKIE_KEY, longer) == plain
        for cut in (41, 47, len(longer) - len(packet) + 40 - 1):
            assert _core._raw_answer(COOKIE_KEY, longer[:cut]) is None


def test_extension_headers_that_lead_nowhere_are_no_answers() -> None:
    probe = frame(TCP, OWN[6], FAR[6], 80)
    answer = tcp_answer(probe, SYN | ACK)
    later = bytearray(extended(answer, FRAGMENT))
    later[40 + 3] = 8
    assert _core._raw_answer(COOKIE_KEY, bytes(later)) is None
    assert _core._raw_answer(COOKIE_KEY, extended(answer, *[DESTINATION] * 8)) is not None
    assert _core._raw_answer(COOKIE_KEY, extended(answer, *[DESTINATION] * 9)) is None
    lies = bytearray(extended(answer, DESTINATION))
    lies[41] = 255
    assert _core._raw_answer(COOKIE_KEY, bytes(lies)) is None
    # 51, authentication, and 50, encryption, are no headers that an answer to us can have
    assert _core._raw_answer(COOKIE_KEY, extended(answer, DESTINATION, 51)) is None


def test_the_filter_passes_extension_headers() -> None:
    probe = frame(TCP, OWN[6], FAR[6], 80)
    answer = tcp_answer(probe, SYN | ACK)
    with Filtered(6, FIRST, LAST) as kernel:
        for kinds in CHAINS:
            assert kernel.passes(extended(answer, *kinds))
        for other in (50, 51, 59, 132):
            assert not kernel.passes(extended(answer, other))


# ── the filter ──────────────────────────────────────────────────────────────────────────────


class Filtered:
    """A pair of local datagram sockets, one with the filter: the kernel itself runs it."""

    def __init__(self, family: int, first: int, last: int) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.setblocking(False)
        program = _core._raw_filter(family, first, last)
        packed = b"".join(struct.pack("HBBI", *line) for line in program)
        self._kept = ctypes.create_string_buffer(packed)
        fprog = struct.pack("HL", len(program), ctypes.addressof(self._kept))
        self.far.setsockopt(socket.SOL_SOCKET, 26, fprog)  # SO_ATTACH_FILTER

    def passes(self, packet: bytes) -> bool:
        # A filter that passes fewer bytes than came cuts the datagram.
        self.near.send(packet)
        try:
            return self.far.recv(65536) == packet[:1600]
        except BlockingIOError:
            return False

    def __enter__(self) -> Filtered:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()


OWN = {4: bytes([198, 18, 0, 1]), 6: ip_address("2001:db8::1").packed}
FAR = {4: bytes([198, 18, 7, 9]), 6: ip_address("2001:db8:7::9").packed}


def test_the_filter_passes_answers_to_our_ports_alone(version: int) -> None:
    probes = {
        protocol: frame(protocol, OWN[version], FAR[version], 443, bytes(600) * (protocol == UDP))
        for protocol in (TCP, UDP)
    }
    kinds = {4: (3, 11, 12), 6: (1, 3, 4)}[version]
    others = {4: (5, 8, 13), 6: (2, 128, 135, 136)}[version]
    for protocol, probe in probes.items():
        sport = source_port(probe, version)
        for first, last, inside in [
            (sport, sport, True),
            (FIRST, LAST, True),
            (sport + 1, 65535, False),
            (1, sport - 1, False),
        ]:
            with Filtered(version, first, last) as kernel:
                for options in (0, 3, 10):
                    for kind in kinds:
                        assert kernel.passes(icmp_error(probe, kind, 1, options)) is inside
                        if version == 4:
                            assert kernel.passes(icmp_error(probe, kind, 1, 2, 7)) is inside
                    for kind in others:
                        assert not kernel.passes(icmp_error(probe, kind, 1, options))
                    if protocol == TCP:
                        for flags in (SYN | ACK, RST, RST | ACK, SYN | ACK | 0xC0):
                            answer = tcp_answer(probe, flags, 1, options)
                            assert kernel.passes(answer) is inside
                        for flags in (0, SYN, ACK, 0x10 | 0x08, 1):
                            assert not kernel.passes(tcp_answer(probe, flags, 1, options))
                datagram = struct.pack("!HHHH", 443, sport, 1008, 0) + bytes(1000)
                assert kernel.passes(ip_packet(FAR[version], OWN[version], UDP, datagram)) is inside
                assert not kernel.passes(ip_packet(FAR[version], OWN[version], 47, datagram))
                assert protocol == UDP or not kernel.passes(probe[14:])
                if version == 4:
                    fragment = bytearray(ip_packet(FAR[4], OWN[4], UDP, datagram))
                    fragment[7] = 1
                    assert not kernel.passes(bytes(fragment))


# ── the way back ────────────────────────────────────────────────────────────────────────────


@st.composite
def spaces(draw: st.DrawFn) -> _core.Space:
    ranges: dict[int, list[tuple[int, int]]] = {}
    for bits in (32, 128):
        edges = draw(st.lists(st.integers(0, 2**bits - 1), max_size=8, unique=True).map(sorted))
        pairs = zip(edges[::2], edges[1::2], strict=False)
        # of an IPv6 range a part that a space can hold
        ranges[bits] = [(low, min(high, low + 2**40)) for low, high in pairs]
    services = draw(
        st.lists(
            st.tuples(st.sampled_from((TCP, UDP)), ports), min_size=1, max_size=40, unique=True
        )
    )
    names = draw(st.integers(0, 3)) if any(ranges.values()) else draw(st.integers(1, 3))
    return _core.Space(ranges[32], ranges[128], names, services, KEY)


@given(spaces(), st.data())
def test_find_is_the_inverse_of_at(where: _core.Space, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, where.total - 1))
    family, address, protocol, port = where.at(position)
    if family == 0:
        return  # names are not looked into
    assert where.find(family, address, protocol, port) == position


@given(spaces(), st.data())
def test_find_finds_nothing_that_is_not_there(where: _core.Space, data: st.DataObject) -> None:
    family = data.draw(st.sampled_from((4, 6)))
    address = data.draw(st.integers(0, 2 ** (32 if family == 4 else 128) - 1))
    protocol, port = data.draw(st.sampled_from((TCP, UDP))), data.draw(ports)
    position = where.find(family, address, protocol, port)
    assert position is None or where.at(position) == (family, address, protocol, port)


def test_find_at_the_edges_of_ranges() -> None:
    ranges4, ranges6 = [(10, 12), (14, 14), (2**32 - 1, 2**32 - 1)], [(2**64 - 1, 2**64 + 1)]
    where = _core.Space(ranges4, ranges6, 2, [(TCP, 80), (UDP, 80), (TCP, 81)], KEY)
    inside = {(4, x) for first, last in ranges4 for x in range(first, last + 1)}
    inside |= {(6, x) for first, last in ranges6 for x in range(first, last + 1)}
    around = {(4, x) for x in (0, 9, 13, 15, 2**32 - 2)} | {(6, 2**64 - 2), (6, 2**64 + 2), (6, 10)}
    found = {
        where.find(family, address, protocol, port)
        for family, address in inside
        for protocol, port in [(TCP, 80), (UDP, 80), (TCP, 81)]
    }
    assert len(found) == 3 * len(inside)
    assert None not in found
    assert {where.find(*one, TCP, 80) for one in around} == {None}
    assert {where.find(4, 10, UDP, 81), where.find(4, 10, TCP, 82)} == {None}


@pytest.mark.parametrize(
    "wrong", [(5, 1, TCP, 80), (4, 1, 1, 80), (4, 1, TCP, 0), (4, 1, TCP, 65536)]
)
def test_find_refuses_what_is_no_probe(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError):
        _core.Space([(1, 2)], [], 0, [(TCP, 80)], KEY).find(*wrong)


# ── what is refused ─────────────────────────────────────────────────────────────────────────

LINK = (1, "lo", False, b"", 65536)
ETHERNET = (2, "eth", True, OWN_MAC, 1500)
LOOPBACK = (4, 0x7F000000, 0x7FFFFFFF, 0, bytes([127, 0, 0, 1]), b"")
LOOPBACK6 = (6, 1, 1, 0, bytes(15) + b"\1", b"")
GOOD: dict[str, object] = {"key": bytes(16), "links": [LINK, ETHERNET], "routes": [LOOPBACK]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": bytes(15)}, "16 bytes"),
        ({"tcp_timeout_s": 0}, "positive"),
        ({"udp_timeout_s": -1}, "positive"),
        ({"retries": -1}, "retries"),
        ({"retries": 101}, "retries"),
        ({"shards": 0}, "shard"),
        ({"shard": 1}, "shard"),
        ({"shards": 513}, "shard"),
        ({"states": ["ajar"]}, "not in"),
        ({"payload": bytes(1401)}, "1400"),
        ({"payloads": {0: b""}}, "no UDP port"),
        ({"links": [(0, "lo", False, b"", 65536)]}, "interface lo"),
        ({"links": [(1, "lo", False, OWN_MAC, 65536)]}, "interface lo"),
        ({"links": [(2, "eth", True, b"", 1500)]}, "interface eth"),
        ({"links": [(2, "eth", True, OWN_MAC, 40)]}, "interface eth"),
        *(
            case
            for route, bits, other in ((LOOPBACK, 32, bytes(16)), (LOOPBACK6, 128, bytes(4)))
            for case in [
                ({"routes": [(5, *route[1:])]}, "family"),
                ({"routes": [(*route[:3], 2, *route[4:])]}, "links"),
                ({"routes": [(*route[:3], -1, *route[4:])]}, "links"),
                ({"routes": [(route[0], 2, 1, *route[3:])]}, "sorted"),
                ({"routes": [route, route]}, "disjoint"),
                ({"routes": [(route[0], 1, 2**bits, *route[3:])]}, "sorted"),
                ({"routes": [(*route[:4], other, b"")]}, "source"),
                ({"routes": [(*route[:5], NEXT_MAC)]}, "Ethernet"),
                ({"routes": [(*route[:3], 1, route[4], b"12345")]}, "6 bytes"),
            ]
        ),
    ],
)
def test_arguments_out_of_bounds(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _core.RawEngine(bucket(), **(GOOD | options))  # type: ignore[arg-type]


def test_without_the_privilege_it_says_so() -> None:
    def unprivileged() -> str:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            _core.RawEngine(bucket(), **GOOD)  # type: ignore[arg-type]
        except PermissionError as error:
            return str(error)
        return "made"

    assert "raw socket" in in_child(unprivileged)[1]()


def test_the_order_of_a_scan_does_not_show_in_source_ports(version: int) -> None:
    """Ports follow from key, target and port: another key, other ports."""
    rng = random.Random(1)
    targets = [rng.randbytes(len(OWN[version])) for _ in range(64)]

    def chosen(key: bytes) -> list[int]:
        own = OWN[version]
        frames = [
            _core._raw_frame(TCP, own, target, OWN_MAC, NEXT_MAC, 1500, 80, key)
            for target in targets
        ]
        return [source_port(made, version) for made in frames]

    assert chosen(COOKIE_KEY) == chosen(COOKIE_KEY)
    assert chosen(COOKIE_KEY) != chosen(bytes(16))
