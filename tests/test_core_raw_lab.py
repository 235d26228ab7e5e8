"""The raw engine on a network of which the test is the far end: it sees each packet, and answers
what it likes, when it likes. Over Ethernet frames and raw IP sockets, IPv4 and IPv6 alike.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

import core_lab
from core_lab import (
    ACK,
    ALL_STATES,
    COUNTED,
    RST,
    SYN,
    UDP,
    Drive,
    Ended,
    bucket,
    exclusions,
    host,
    inside,
    run,
    space,
    tcp,
    udp,
)
from lab.namespaces import Namespace, require
from nray import _core
from raw_lab import (
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    NEXT_MAC,
    ROUTING,
    FarEnd,
    extended,
    icmp_error,
    source_port,
    taken_apart,
    target_of,
    tcp_answer,
    udp_answer,
)

pytestmark = pytest.mark.lab

#: A range of addresses.
several = core_lab.hosts
BASE = {4: "198.18.0.", 6: "2001:db8:1::"}


@pytest.fixture(params=["tap", "tun"])
def far(alone: Namespace, request: pytest.FixtureRequest) -> Iterator[FarEnd]:
    with inside(alone), FarEnd(alone, request.param == "tap") as made:
        yield made


@pytest.fixture
def tap(alone: Namespace) -> Iterator[FarEnd]:
    with inside(alone), FarEnd(alone, True) as made:
        yield made


def hosts(version: int, last: int, *ports: int) -> _core.Space:
    """Addresses 1 to ``last`` (below 10) of the network, and these TCP ports."""
    return space([f"{BASE[version]}1-{BASE[version]}{last}"], tcp(*ports))


def check(ended: Ended, count: int) -> None:
    """The law: counts add up, each position has one hit at most, and both agree."""
    assert ended.done == 1
    assert sum(ended.counts[name] for name in COUNTED if name != "more") == count
    told = Counter(hit.state for hit in ended.hits)
    assert told == Counter({name: ended.counts[name] for name in ALL_STATES if ended.counts[name]})
    assert sum(ended.errors.values()) == ended.counts["error"]
    assert len(ended.states) == len(ended.hits)


def told(where: _core.Space, ended: Ended) -> dict[tuple[str, int], tuple[str, str]]:
    return {(hit.address, where.at(hit.position)[3]): (hit.state, hit.reason) for hit in ended.hits}


ERRORS = {
    4: {
        (3, 0): "net-unreach",
        (3, 1): "host-unreach",
        (3, 2): "proto-unreach",
        (3, 3): "port-unreach",
        (3, 9): "net-prohibited",
        (3, 10): "host-prohibited",
        (3, 13): "admin-prohibited",
        (11, 0): "time-exceeded",
        (12, 0): "param-problem",
    },
    6: {
        (1, 0): "no-route",
        (1, 1): "admin-prohibited",
        (1, 3): "host-unreach",
        (1, 4): "port-unreach",
        (1, 5): "admin-prohibited",
        (1, 6): "reject-route",
        (3, 0): "time-exceeded",
        (4, 0): "param-problem",
    },
}


def test_states_and_reasons(far: FarEnd, version: int) -> None:
    where = hosts(version, 2, *range(1, 13))
    engine = far.engine()
    drive = Drive(engine)
    probes = far.start(drive, where)
    assert len({target_of(probe) for probe in probes}) == where.total
    first, last = engine.source_ports
    assert all(first <= source_port(probe, version) <= last for probe in probes)
    if far.ethernet:
        assert {probe[:6] for probe in probes} == {NEXT_MAC}
    wanted = {}
    kinds = list(ERRORS[version].items())
    for probe in probes:
        address, port = target_of(probe)
        wanted[address, port] = ("filtered", "no-response")
        if port == 1:
            far.put(tcp_answer(probe, SYN | ACK))
            wanted[address, port] = ("open", "syn-ack")
        elif port == 2:
            far.put(tcp_answer(probe, RST | ACK))
            wanted[address, port] = ("closed", "reset")
        elif port - 3 < len(kinds):
            (kind, code), reason = kinds[port - 3]
            far.put(icmp_error(probe, kind, code))
            wanted[address, port] = ("filtered", reason)
    ended = drive.to_end()
    check(ended, where.total)
    assert told(where, ended) == wanted
    assert engine.sent == where.total
    assert (engine.drops, engine.duplicates, engine.in_flight) == (0, 0, 0)


def test_ttl_and_time_of_an_answer(far: FarEnd, version: int) -> None:
    where = hosts(version, 1, 80)
    drive = Drive(far.engine())
    (probe,) = far.start(drive, where)
    far.put(tcp_answer(probe, SYN | ACK))
    packed = b""
    while drive.engine.slices_open:
        drive.engine.pump(0.1)
        packed += b"".join(hits for _, hits, *_ in drive.engine.take())
    _, _, rtt_us, ttl, *_ = struct.unpack(_core.HIT_FORMAT, packed)
    assert ttl == 55
    assert 0 < rtt_us < 5_000_000


def test_answers_behind_extension_headers_count(far: FarEnd) -> None:
    where = hosts(6, 3, 80)
    drive = Drive(far.engine(tcp_timeout_s=10))
    chains = [(HOP_BY_HOP,), (DESTINATION, FRAGMENT), (HOP_BY_HOP, ROUTING, DESTINATION)]
    for probe, kinds in zip(far.start(drive, where), chains, strict=True):
        far.put(extended(tcp_answer(probe, SYN | ACK), *kinds))
    assert set(told(where, drive.to_end(5)).values()) == {("open", "syn-ack")}


def test_forged_answers_count_for_nothing(far: FarEnd, version: int) -> None:
    where = hosts(version, 1, 80, 81)
    drive = Drive(far.engine())
    for probe in far.start(drive, where):
        far.put(tcp_answer(probe, SYN | ACK, ahead=2))
        far.put(tcp_answer(probe, RST | ACK, ahead=-5))
        forged = bytearray(probe)
        forged[14 + (20 if version == 4 else 40) + 5] ^= 1
        far.put(icmp_error(bytes(forged), 3 if version == 4 else 1, 1))
        # an answer of a port that was not asked, with the number of one that was
        forged = bytearray(tcp_answer(probe, SYN | ACK))
        forged[(20 if version == 4 else 40) + 1] ^= 0x80
        far.put(bytes(forged))
    ended = drive.to_end()
    assert set(told(where, ended).values()) == {("filtered", "no-response")}


def test_the_first_answer_counts_and_others_are_dropped(far: FarEnd, version: int) -> None:
    where = hosts(version, 2, 80)
    engine = far.engine(tcp_timeout_s=0.2)
    drive = Drive(engine)
    first, second = far.start(drive, where)
    far.put(tcp_answer(first, SYN | ACK))
    far.put(tcp_answer(first, RST | ACK))
    far.put(tcp_answer(first, SYN | ACK))
    far.put(tcp_answer(second, RST))
    far.put(tcp_answer(second, SYN | ACK))
    drive.until(lambda: bool(drive.leases.get(1) and drive.leases[1].done))
    assert told(where, drive.leases[1]) == {
        target_of(first): ("open", "syn-ack"),
        target_of(second): ("closed", "reset"),
    }
    assert engine.sent == 2


def test_answers_after_the_end_are_nobodys(far: FarEnd, version: int) -> None:
    where = hosts(version, 1, 80)
    engine = far.engine(tcp_timeout_s=0.01)
    drive = Drive(engine)
    (probe,) = far.start(drive, where)
    drive.to_end()
    far.put(tcp_answer(probe, SYN | ACK))
    drive.pump(0.02)
    assert told(where, drive.leases[1]) == {target_of(probe): ("filtered", "no-response")}


# ── UDP ─────────────────────────────────────────────────────────────────────────────────────


def datagrams(version: int, last: int, *ports: int) -> _core.Space:
    return space([f"{BASE[version]}1-{BASE[version]}{last}"], udp(*ports))


def payload_of(probe: bytes, version: int) -> bytes:
    return probe[14 + (20 if version == 4 else 40) + 8 :]


def test_states_and_reasons_of_datagrams(far: FarEnd, version: int) -> None:
    where = datagrams(version, 1, *range(1, 13))
    engine = far.engine(udp_timeout_s=0.1, payload=b"all", payloads={2: b"two", 3: b""})
    drive = Drive(engine)
    probes = far.start(drive, where)
    wanted = {}
    kinds = list(ERRORS[version].items())
    for probe in probes:
        address, port = target_of(probe)
        assert payload_of(probe, version) == {2: b"two", 3: b""}.get(port, b"all")
        wanted[address, port] = ("open|filtered", "no-response")
        if port == 1:
            far.put(udp_answer(probe, b""))
        elif port == 2:
            far.put(udp_answer(probe, bytes(1000)))
        elif port - 3 < len(kinds):
            (kind, code), reason = kinds[port - 3]
            far.put(icmp_error(probe, kind, code))
            state = "closed" if reason == "port-unreach" else "filtered"
            wanted[address, port] = (state, reason)
        if port < 3:
            wanted[address, port] = ("open", "udp-response")
    ended = drive.to_end()
    check(ended, where.total)
    assert told(where, ended) == wanted


#: The first two bytes are the identifier; an answer has the highest bit of the third set.
CHECK = [(_core.STEP_BYTE, 2, 0x80, 0x80), (_core.STEP_SAME, 0, 0, 2), (_core.STEP_OWN, 0, 2, 0)]


def test_a_datagram_without_the_identifier_of_its_target_is_not_believed(
    far: FarEnd, version: int
) -> None:
    where = datagrams(version, 6, 53)
    engine = far.engine(
        udp_timeout_s=0.05, retries=1, payloads={53: b"id\x00question"}, checks={53: CHECK}
    )
    drive = Drive(engine)
    probes = {target_of(probe)[0][-1]: probe for probe in far.start(drive, where)}
    asked = {last: payload_of(probe, version) for last, probe in probes.items()}
    assert {sent[2:] for sent in asked.values()} == {b"\x00question"}
    # six different ones, once in some 4,000 keys: this key is no such
    assert len({sent[:2] for sent in asked.values()}) == 6
    far.put(udp_answer(probes["1"], asked["1"][:2] + b"\x80answer"))
    far.put(udp_answer(probes["2"], asked["1"][:2] + b"\x80answer"))
    far.put(udp_answer(probes["3"], asked["3"]))  # a mirror
    far.put(udp_answer(probes["4"], b""))
    far.put(udp_answer(probes["5"], b"id\x80answer"))  # the scan's, known to who is asked
    again = {target_of(probe)[0][-1]: probe for probe in far.gather(drive, 5)}
    assert set(again) == set("23456")
    assert payload_of(again["5"], version) == asked["5"]
    far.put(udp_answer(again["5"], asked["5"][:2] + b"\x80answer"))
    ended = drive.to_end()
    check(ended, where.total)
    found = {address[-1]: state for (address, _), state in told(where, ended).items()}
    odd = ("open|filtered", "unexpected-response")
    assert found == {
        "1": ("open", "udp-response"),
        "2": odd,
        "3": odd,
        "4": odd,
        "5": ("open", "udp-response"),
        "6": ("open|filtered", "no-response"),
    }


def test_what_pads_a_frame_is_none_of_the_answer(far: FarEnd, version: int) -> None:
    where = datagrams(version, 1, 7)
    checks = {7: [(_core.STEP_WHOLE, 0, 0, 0)]}
    drive = Drive(far.engine(udp_timeout_s=5, payloads={7: b"x"}, checks=checks))
    (probe,) = far.start(drive, where)
    far.put(udp_answer(probe, b"x") + bytes(20))
    assert told(where, drive.to_end(3)) == {target_of(probe): ("open", "udp-response")}


def test_each_pass_asks_the_next_question_and_an_answer_to_any_will_do(
    far: FarEnd, version: int
) -> None:
    where = datagrams(version, 3, 161)
    engine = far.engine(
        udp_timeout_s=0.05,
        retries=3,
        payloads={161: b"three"},
        checks={161: CHECK},
        further={161: [(b"1 first", CHECK), (b"2 second", CHECK[:2])]},
    )
    drive = Drive(engine)
    passes = [far.start(drive, where)]
    passes += [far.gather(drive, 3) for _ in range(3)]
    asked = [{payload_of(probe, version)[2:] for probe in each} for each in passes]
    assert asked == [{b"ree"}, {b"first"}, {b"second"}, {b"ree"}]
    assert {payload_of(probe, version) for probe in passes[2]} == {b"2 second"}
    one, two, three = sorted(passes[3], key=target_of)
    own = payload_of(one, version)[:2]
    far.put(udp_answer(one, own + b"\x80"))
    far.put(udp_answer(two, b"2 \x80"))
    far.put(udp_answer(three, b"1 \x80"))
    ended = drive.to_end()
    assert [told(where, ended)[target_of(each)] for each in (one, two, three)] == [
        ("open", "udp-response"),
        ("open", "udp-response"),
        ("open|filtered", "unexpected-response"),
    ]


def test_forged_datagrams_and_errors_count_for_nothing(far: FarEnd, version: int) -> None:
    where = datagrams(version, 2, 53, 123)
    engine = far.engine(udp_timeout_s=0.1)
    drive = Drive(engine)
    first, last = engine.source_ports
    for probe in far.start(drive, where):
        # to a port of ours, but not the one that this target was probed from
        forged = bytearray(udp_answer(probe, b"x"))
        at = 20 if version == 4 else 40
        other = source_port(probe, version) + 1
        forged[at + 2 : at + 4] = struct.pack("!H", other if other <= last else first)
        far.put(bytes(forged))
        forged = bytearray(probe)
        forged[14 + (4 if version == 4 else 3)] ^= 1  # identification, flow label
        far.put(icmp_error(bytes(forged), 3 if version == 4 else 1, 3 if version == 4 else 4))
    ended = drive.to_end()
    assert set(told(where, ended).values()) == {("open|filtered", "no-response")}


def test_ports_without_an_own_payload_are_left_out_if_asked(far: FarEnd, version: int) -> None:
    where = datagrams(version, 2, 53, 1000)
    drive = Drive(far.engine(udp_timeout_s=0.02, udp_fast=True, payloads={53: b"q"}))
    drive.engine.add_slice(1, 0, where.total, where, None)
    ended = drive.to_end()
    check(ended, 4)
    assert ended.counts["skipped"] == 2
    assert {target_of(probe)[1] for probe in far.probes()} == {53}


def test_both_protocols_in_one_slice(far: FarEnd, version: int) -> None:
    """The longer of the timeouts holds, and each protocol keeps its states."""
    where = space([f"{BASE[version]}1"], [*tcp(53, 80), *udp(53, 80)])
    drive = Drive(far.engine(tcp_timeout_s=0.01, udp_timeout_s=0.3))
    probes = far.start(drive, where)
    drive.pump(0.1)
    assert not drive.leases.get(1, Ended()).done
    for probe in probes:
        if target_of(probe)[1] == 53:
            is_udp = probe[14 + (9 if version == 4 else 6)] == UDP
            far.put(udp_answer(probe, b"x") if is_udp else tcp_answer(probe, SYN | ACK))
    ended = drive.to_end()
    check(ended, 4)
    assert {(where.at(hit.position)[2:], hit.state, hit.reason) for hit in ended.hits} == {
        ((6, 53), "open", "syn-ack"),
        ((6, 80), "filtered", "no-response"),
        ((17, 53), "open", "udp-response"),
        ((17, 80), "open|filtered", "no-response"),
    }


def unreachable(probe: bytes, version: int) -> bytes:
    return icmp_error(probe, *((3, 3) if version == 4 else (1, 4)))


def test_silent_ports_of_a_host_that_told_of_others_are_asked_slowly(
    far: FarEnd, version: int
) -> None:
    where = datagrams(version, 2, 50, 51, 52, 53)
    engine = far.engine(udp_timeout_s=0.1, payload=b"x")
    drive = Drive(engine)
    probes = {target_of(probe): probe for probe in far.start(drive, where)}
    one, _ = sorted({address for address, _ in probes})
    far.put(unreachable(probes[one, 50], version))
    # Each packet to the first host is one more about the port that it told of, until it has
    # answered enough of them; then its silent ones come. The second never said anything.
    asked: list[tuple[str, int]] = []
    while len([port for _, port in asked if port != 50]) < 3:
        for probe in far.gather(drive, 1):
            asked.append(target_of(probe))
            if asked[-1][1] != 53:
                far.put(unreachable(probe, version))
    assert {address for address, _ in asked} == {one}
    trials = [port for _, port in asked].index(next(port for _, port in asked if port != 50))
    assert 19 <= trials <= 20
    ended = drive.to_end()
    check(ended, where.total)
    closed, silent = ("closed", "port-unreach"), ("open|filtered", "no-response")
    assert told(where, ended) == dict.fromkeys(probes, silent) | {
        (one, 50): closed,
        (one, 51): closed,
        (one, 52): closed,
    }
    assert engine.duplicates == 0


#: Longer than what is due in a moment may be waited for on any machine.
LONG_S = 30.0


def test_a_pump_that_may_last_long_asks_at_once_what_is_silent(tap: FarEnd, version: int) -> None:
    engine = tap.engine(udp_timeout_s=0.02, payload=b"x")
    drive = Drive(engine)
    where = datagrams(version, 1, 50, 51)
    for probe in tap.start(drive, where):
        if target_of(probe)[1] == 50:
            tap.put(unreachable(probe, version))
    while engine.slices_open:
        began = time.monotonic()
        drive.pump(LONG_S)
        assert time.monotonic() - began < LONG_S
    assert {target_of(probe)[1] for probe in tap.probes()} == {50, 51}
    check(drive.leases[1], 2)


def test_a_slice_whose_last_ports_answer_late_does_not_wait_for_its_turns(
    far: FarEnd, version: int
) -> None:
    where = datagrams(version, 1, *range(50, 90))
    drive = Drive(far.engine(udp_timeout_s=0.02, payload=b"x"))
    probes = far.start(drive, where)
    far.put(unreachable(probes[0], version))
    far.gather(drive, 3)  # trials, to which it says nothing
    for probe in probes[1:]:
        far.put(unreachable(probe, version))
    ended = drive.to_end(5)
    check(ended, 40)
    assert ended.counts["closed"] == 40
    # and the next slice finds nothing left of it
    more = datagrams(version, 1, 91)
    drive.engine.add_slice(2, 0, more.total, more, None)
    assert {target_of(probe)[1] for probe in far.gather(drive, 1)} == {91}


# ── passes ──────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_silent_is_sent_again(far: FarEnd, version: int) -> None:
    """The second pass begins after the first has ended, and asks those that did not answer."""
    where = hosts(version, 4, 80, 81)
    engine = far.engine(retries=2, tcp_timeout_s=0.05)
    drive = Drive(engine)
    first = far.start(drive, where)
    assert far.probes(0.1) == [], "a second probe while the slice rests"
    answered = {target_of(probe) for probe in first[:3]}
    for probe in first[:3]:
        far.put(tcp_answer(probe, SYN | ACK))
    second = far.gather(drive, 5)
    assert {target_of(probe) for probe in second} == {target_of(p) for p in first} - answered
    # as a retransmission has it: same ports, same number
    assert {probe[14:] for probe in second} <= {probe[14:] for probe in first}
    far.put(tcp_answer(second[0], RST | ACK))
    far.put(icmp_error(second[1], *((3, 13) if version == 4 else (1, 1))))
    third = far.gather(drive, 3)
    assert [target_of(probe) for probe in third] == [target_of(probe) for probe in second[2:]]
    far.put(tcp_answer(third[2], SYN | ACK))
    ended = drive.to_end()
    check(ended, where.total)
    states = Counter(told(where, ended).values())
    assert states == {
        ("open", "syn-ack"): 4,
        ("closed", "reset"): 1,
        ("filtered", "admin-prohibited"): 1,
        ("filtered", "no-response"): 2,
    }
    assert engine.sent == 8 + 5 + 3
    # a time is told only where it is known which probe was answered
    timed = {hit.position for hit in ended.hits if hit.rtt_us}
    assert {where.at(position)[1:] for position in timed} == {
        (int(ip_address(address)), 6, port) for address, port in answered
    }


def test_a_slice_that_rests_does_not_hold_others_back(far: FarEnd, version: int) -> None:
    one, two = hosts(version, 3, 80), hosts(version, 3, 443)
    drive = Drive(far.engine(retries=1, tcp_timeout_s=0.05))
    drive.engine.add_slice(1, 0, one.total, one, None)
    drive.engine.add_slice(2, 0, two.total, two, None)
    assert [target_of(probe)[1] for probe in far.gather(drive, 6)] == [80] * 3 + [443] * 3
    again = [target_of(probe)[1] for probe in far.gather(drive, 6)]
    assert Counter(again) == {80: 3, 443: 3}
    drive.to_end()
    assert drive.leases[1].counts["filtered"] == drive.leases[2].counts["filtered"] == 3


def test_a_slice_ends_as_soon_as_all_have_answered(far: FarEnd, version: int) -> None:
    where = hosts(version, 9, 80)
    engine = far.engine(retries=5, tcp_timeout_s=1000)
    drive = Drive(engine)
    for probe in far.start(drive, where):
        far.put(tcp_answer(probe, RST | ACK))
    assert drive.to_end(5).counts["closed"] == 9


def test_silence_is_counted_unasked_and_told_if_asked(far: FarEnd, version: int) -> None:
    where = hosts(version, 9, *range(1, 300))
    quiet = run(far.engine(states=(), tcp_timeout_s=0.02), where)
    assert quiet.hits == []
    assert quiet.counts["filtered"] == where.total
    ended = run(far.engine(tcp_timeout_s=0.02), where)
    check(ended, where.total)
    assert {hit.state for hit in ended.hits} == {"filtered"}


def test_more_silent_ones_than_there_is_room_for_hits(far: FarEnd, version: int) -> None:
    where = space([several(version, 0, 255)], tcp(*range(1, 101)))
    engine = far.engine(tcp_timeout_s=0.02)
    ended = run(engine, where)
    check(ended, where.total)
    assert set(ended.states) == set(range(where.total))


def test_a_process_that_was_stopped_finds_answers_not_deadlines(far: FarEnd, version: int) -> None:
    """What came in while nobody pumped counts, though its time is long over."""
    where = hosts(version, 5, 80)
    drive = Drive(far.engine(tcp_timeout_s=0.05))
    for probe in far.start(drive, where):
        far.put(tcp_answer(probe, RST | ACK))
    time.sleep(0.2)
    assert drive.to_end().counts["closed"] == 5


def test_two_slices_of_one_space_and_slices_of_two(far: FarEnd, version: int) -> None:
    """An answer finds its slice by its position, in whichever space that is."""
    one = space([f"{BASE[version]}1-{BASE[version]}9"], tcp(80, 81))
    two = space([f"{BASE[version]}5-{BASE[version]}7"], tcp(81))
    drive = Drive(far.engine())
    drive.engine.add_slice(1, 0, 7, one, None)
    drive.engine.add_slice(2, 7, 11, one, None)
    drive.engine.add_slice(3, 0, 3, two, None)
    for probe in far.gather(drive, 21):
        far.put(tcp_answer(probe, SYN | ACK if target_of(probe)[1] == 81 else RST | ACK))
    drive.to_end()
    for lease, where, first, count in [(1, one, 0, 7), (2, one, 7, 11), (3, two, 0, 3)]:
        assert set(drive.leases[lease].states) == set(range(first, first + count))
        for position, (state, _) in drive.leases[lease].states.items():
            assert state == ("open" if where.at(position)[3] == 81 else "closed")


# ── what must not be sent ───────────────────────────────────────────────────────────────────


def test_nothing_goes_to_what_is_excluded_or_refused(far: FarEnd, version: int) -> None:
    where = hosts(version, 9, 80, 81, 443)
    excluded = exclusions(several(version, 2, 3))
    policy = _core.Policy(exclusions(several(version, 8, 9)), [(6, 1, 400)])
    engine = far.engine(retries=2, tcp_timeout_s=0.02, policy=policy)
    drive = Drive(engine)
    engine.add_slice(1, 0, where.total, where, excluded)
    ended = drive.to_end()
    sent = Counter(target_of(probe) for probe in far.probes())
    allowed = {f"{BASE[version]}{k}" for k in (1, 4, 5, 6, 7)}
    assert set(sent) == {(address, port) for address in allowed for port in (80, 81)}
    assert set(sent.values()) == {3}
    check(ended, where.total)
    assert (ended.counts["excluded"], ended.counts["refused"]) == (6, 11)
    assert ended.counts["filtered"] == 10
    assert engine.sent == 30


def test_a_slice_of_nothing_but_exclusions_ends(far: FarEnd, version: int) -> None:
    where = hosts(version, 9, 80)
    everything = _core.Exclusions([(0, 2**32 - 1)], [(0, 2**128 - 1)])
    ended = run(far.engine(retries=3, tcp_timeout_s=100), where, everything)
    assert ended.counts["excluded"] == 9
    assert far.probes() == []


# ── what this machine cannot do ─────────────────────────────────────────────────────────────


def test_without_a_route_it_is_an_error(far: FarEnd, version: int) -> None:
    own = {4: "198.18.0.1", 6: "2001:db8:1::1"}[version]
    where = space([own, "198.19.0.77", "2001:db8:2::1"], tcp(80, 81))
    ended = run(far.engine(retries=1, tcp_timeout_s=0.02), where)
    check(ended, 6)
    assert ended.errors == {"no-route-from-here": 4}
    assert {target_of(probe)[0] for probe in far.probes()} == {own}


def test_an_interface_that_is_down_is_no_silence(
    tap: FarEnd, alone: Namespace, version: int
) -> None:
    where = hosts(version, 2, 80)
    engine = tap.engine()
    alone.ip("link", "set", tap.name, "down")
    ended = run(engine, where)
    assert ended.errors == {"no-route-from-here": 2}
    assert ended.counts["filtered"] == 0
    assert engine.sent == 0


def test_an_interface_that_comes_up_again_costs_nothing(
    tap: FarEnd, alone: Namespace, version: int
) -> None:
    where = hosts(version, 2, 80)
    drive = Drive(tap.engine(tcp_timeout_s=0.05))
    alone.ip("link", "set", tap.name, "down")
    drive.engine.add_slice(1, 0, where.total, where, None)
    for _ in range(3):
        drive.pump(0.02)
    alone.ip("link", "set", tap.name, "up")
    for probe in tap.gather(drive, 2):
        tap.put(tcp_answer(probe, RST | ACK))
    assert drive.to_end().counts["closed"] == 2


def test_a_firewall_of_this_machine_is_an_error_not_silence(alone: Namespace, version: int) -> None:
    require("nft")
    with inside(alone), FarEnd(alone, False) as tun:
        alone.call(
            ["nft", "-f", "-"],
            "table inet t {\nchain o {\ntype filter hook output priority 0;\n"
            "tcp dport 81 drop\n}\n}\n",
        )
        where = hosts(version, 3, 80, 81)
        ended = run(tun.engine(tcp_timeout_s=0.05), where)
        assert ended.errors == {"forbidden-here": 3}
        assert {target_of(probe)[1] for probe in tun.probes()} == {80}


# ── neighbours ──────────────────────────────────────────────────────────────────────────────


def macs(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 1, number])


def test_neighbours_are_asked_for_once_and_waited_for(tap: FarEnd, version: int) -> None:
    where = hosts(version, 3, 80, 81)
    engine = tap.engine(direct=True, tcp_timeout_s=0.05)
    drive = Drive(engine)
    engine.add_slice(1, 0, where.total, where, None)
    drive.until(lambda: engine.sent == 0 and drive.pumps > 3, step_s=0.01)
    wanted = engine.neighbours_wanted()
    assert sorted(wanted) == [(0, ip_address(f"{BASE[version]}{k}").packed) for k in (1, 2, 3)]
    assert engine.neighbours_wanted() == []
    assert tap.probes() == []
    engine.set_neighbour(0, wanted[0][1], macs(1))
    probes = tap.gather(drive, 2)
    assert {probe[:6] for probe in probes} == {macs(1)}
    assert {taken_apart(probe)[1] for probe in probes} == {wanted[0][1]}
    engine.set_neighbour(0, wanted[1][1], None)
    engine.set_neighbour(0, wanted[2][1], macs(3))
    assert {probe[:6] for probe in tap.gather(drive, 2)} == {macs(3)}
    ended = drive.to_end()
    check(ended, 6)
    silent = str(ip_address(wanted[1][1]))
    for (address, _), state in told(where, ended).items():
        reason = "host-unreach" if address == silent else "no-response"
        assert state == ("filtered", reason)
    # what is known stays known, for the next slice too
    engine.set_neighbour(0, wanted[1][1], macs(2))
    engine.add_slice(2, 0, where.total, where, None)
    assert len(tap.gather(drive, 6)) == 6
    assert engine.neighbours_wanted() == []


def test_a_neighbour_nobody_answers_for_is_given_up(tap: FarEnd, version: int) -> None:
    ended = run(tap.engine(direct=True), hosts(version, 1, 80, 81))
    assert ended.counts["filtered"] == 2
    assert {hit.reason for hit in ended.hits} == {"host-unreach"}


def test_more_neighbours_than_the_table_holds(tap: FarEnd, version: int) -> None:
    """10,000 of 8,192: those that nobody waits for make room."""
    where = space([several(version, 0, 9999)], tcp(80))
    engine = tap.engine(direct=True, tcp_timeout_s=0.02, states=())
    drive = Drive(engine)
    engine.add_slice(1, 0, where.total, where, None)
    asked = 0
    while engine.slices_open:
        drive.pump(0.05)
        for link, address in engine.neighbours_wanted():
            asked += 1
            engine.set_neighbour(link, address, macs(address[-1]))
        for probe in tap.probes():
            assert probe[:6] == macs(taken_apart(probe)[1][-1])
    assert asked == where.total
    assert engine.sent == where.total
    assert drive.leases[1].counts["filtered"] == where.total


@pytest.mark.parametrize(
    ("link", "address", "mac"),
    [
        (1, bytes(4), bytes(6)),
        (-1, bytes(4), bytes(6)),
        (1, bytes(16), bytes(6)),
        (0, bytes(5), bytes(6)),
        (0, bytes(15), bytes(6)),
        (0, bytes(4), b""),
        (0, bytes(16), b""),
    ],
)
def test_no_neighbour(tap: FarEnd, link: int, address: bytes, mac: bytes) -> None:
    with pytest.raises(ValueError):
        tap.engine().set_neighbour(link, address, mac)


# ── names ───────────────────────────────────────────────────────────────────────────────────


def test_names_share_addresses_and_have_several(far: FarEnd) -> None:
    where = space([], tcp(80, 81), names=4)
    one, two = ip_address("198.18.0.1").packed, ip_address("2001:db8:1::2").packed
    engine = far.engine()
    drive = Drive(engine)
    addresses = {0: [one, two], 1: [one], 2: [], 3: [two]}
    engine.add_names(1, 0, where.total, where, None, addresses)
    for probe in far.gather(drive, 8):
        port = target_of(probe)[1]
        far.put(tcp_answer(probe, SYN | ACK if port == 80 else RST | ACK))
    ended = drive.to_end()
    found = Counter()
    for hit in ended.hits:
        _, name, _, port = where.at(hit.position)
        found[name, hit.address, port, hit.state] += 1
    assert found == {
        (name, str(ip_address(address)), port, state): 1
        for name, packed in addresses.items()
        for address in packed
        for port, state in ((80, "open"), (81, "closed"))
    }
    assert ended.counts["open"] == ended.counts["closed"] == 4
    assert ended.errors == {"name-not-resolved": 2}
    assert ended.counts["more"] == 2


def test_thousands_of_names_at_one_address(tap: FarEnd, version: int) -> None:
    where = space([], tcp(80), names=9000)
    one = ip_address(host(version, 1)).packed
    engine = tap.engine(tcp_timeout_s=5)
    drive = Drive(engine)
    engine.add_names(1, 0, 9000, where, None, {k: [one] for k in range(9000)})
    (probe, *_) = tap.gather(drive, 1)
    tap.put(tcp_answer(probe, SYN | ACK))
    ended = drive.to_end()
    check(ended, 9000)
    assert ended.counts["open"] == 9000


def test_a_name_that_the_policy_did_not_let_resolve_is_refused(far: FarEnd) -> None:
    where = space([], tcp(80), names=1)
    policy = _core.Policy(_core.Exclusions([], []), [(6, 1, 65535)])
    engine = far.engine(policy=policy)
    engine.add_names(1, 0, 1, where, None, {0: [b""]})
    assert Drive(engine).to_end().counts["refused"] == 1


# ── the worker's side ───────────────────────────────────────────────────────────────────────


def test_the_control_descriptor_ends_a_pump(far: FarEnd) -> None:
    near, other = socket.socketpair()
    with near, other:
        engine = far.engine(control_fd=near.fileno())
        engine.pump(0)
        other.send(b"x")
        assert engine.pump(60)
        near.recv(1)
        assert not engine.pump(0.001)


def test_paused_it_sends_nothing_and_hears_all(far: FarEnd, version: int) -> None:
    where = hosts(version, 3, 80)
    engine = far.engine(tcp_timeout_s=60)
    drive = Drive(engine)
    probes = far.start(drive, where)
    engine.paused = True
    more = hosts(version, 3, 81)
    engine.add_slice(2, 0, more.total, more, None)
    for probe in probes:
        far.put(tcp_answer(probe, RST | ACK))
    drive.until(lambda: drive.leases.get(1, Ended()).done == 1)
    drive.pump(0.05)
    assert far.probes() == []
    assert engine.pending == 1
    engine.paused = False
    assert len(far.gather(drive, 3)) == 3


def test_a_slice_more_is_asked_for_when_a_first_pass_is_over(far: FarEnd, version: int) -> None:
    """`pump` comes back while the slice still waits for its answers."""
    where = hosts(version, 3, 80)
    engine = far.engine(tcp_timeout_s=60)
    engine.pump(0)
    for lease in (1, 2):
        engine.add_slice(lease, 0, where.total, where, None)
    assert engine.pending == 2
    engine.pump(60)
    assert engine.pending < 2
    assert engine.slices_open == 2
    assert engine.in_flight >= 3


def test_slices_out_of_bounds(far: FarEnd, version: int) -> None:
    where = hosts(version, 3, 80)
    engine = far.engine()
    for start, count in [(0, 0), (0, 4), (3, 1), (2**64 - 1, 2)]:
        with pytest.raises(ValueError):
            engine.add_slice(1, start, count, where, None)
    huge = space([several(version, 0, 32767)], tcp(*range(1, 20000)))
    with pytest.raises(ValueError, match="at most"):
        engine.add_slice(1, 0, 2**28 + 1, huge, None)
    with pytest.raises(ValueError, match="add_names"):
        engine.add_slice(1, 0, 1, space([], tcp(80), names=1), None)
    assert engine.slices_open == 0
    for lease in range(1024):
        engine.add_slice(lease, 0, 1, where, None)
    with pytest.raises(RuntimeError):
        engine.add_slice(2000, 0, 1, where, None)


def test_every_packet_takes_a_turn_of_the_rate(far: FarEnd, version: int) -> None:
    """Also one that is sent again; what is passed over takes none."""
    where = hosts(version, 9, 80)
    rate = bucket(0.001)
    engine = far.engine(retries=1, tcp_timeout_s=0.01, shared=rate)
    drive = Drive(engine)
    engine.add_slice(1, 0, where.total, where, exclusions(several(version, 1, 8)))
    (probe,) = far.gather(drive, 1)
    assert target_of(probe) == (host(version, 9), 80)
    for _ in range(8):
        drive.pump(0.1)
    assert far.probes() == [], "the second pass has begun, and its packet has no turn yet"
    rate.set_rate(0)
    assert len(far.gather(drive, 1)) == 1
    assert drive.to_end().counts["excluded"] == 8
    assert engine.sent == 2


# ── sharing ─────────────────────────────────────────────────────────────────────────────────


def test_shards_hear_their_own_answers_alone(far: FarEnd, version: int) -> None:
    where = hosts(version, 9, 80)
    engines = [far.engine(shard=k, shards=2, tcp_timeout_s=0.1) for k in range(2)]
    ranges = [engine.source_ports for engine in engines]
    assert ranges[0][1] + 1 == ranges[1][0]
    drives = [Drive(engine) for engine in engines]
    drives[1].engine.add_slice(1, 0, where.total, where, None)
    for probe in far.start(drives[0], where):
        far.put(tcp_answer(probe, SYN | ACK))
    assert drives[0].to_end().counts["open"] == 9
    far.probes()
    assert drives[1].to_end().counts["filtered"] == 9


def test_a_worker_that_takes_a_slice_over_hears_its_answers(far: FarEnd, version: int) -> None:
    """Same key, same shard: the answers to a dead worker's probes carry the same cookies."""
    where = hosts(version, 2, 80)
    dead = Drive(far.engine())
    probes = far.start(dead, where)
    del dead
    drive = Drive(far.engine(rate=0.001, tcp_timeout_s=0.1))
    drive.engine.add_slice(2, 0, where.total, where, None)
    drive.pump(0.01)
    for probe in probes:
        far.put(tcp_answer(probe, RST | ACK))
    assert drive.to_end().counts["closed"] == 2
    assert drive.engine.sent <= 1
