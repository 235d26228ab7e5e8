"""Packed hits: the numbers that travel between peers, and what the engine writes into them."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from core_lab import (
    ACK,
    ALL_STATES,
    RST,
    SYN,
    TCP,
    UDP,
    Drive,
    Hit,
    Tun,
    bucket,
    host,
    inside,
    own,
    run,
    space,
    tcp,
    udp,
)
from lab.namespaces import Namespace
from nray import _core

#: The meaning of each number in a hit on the wire. Peers of one protocol version share it: lines
#: may be added at the end, none may move.
STATES = ("", "open", "closed", "filtered", "open|filtered", "error")
# fmt: off
REASONS = (
    "", "syn-ack", "conn-refused", "reset", "no-response", "udp-response",
    "net-unreach", "host-unreach", "proto-unreach", "port-unreach",
    "net-prohibited", "host-prohibited", "admin-prohibited", "dest-unreach",
    "time-exceeded", "param-problem", "no-route", "beyond-scope", "reject-route",
    "out-of-descriptors", "out-of-buffers", "out-of-local-ports", "no-route-from-here",
    "forbidden-here", "local-error", "connects-to-itself", "name-not-resolved",
)
# fmt: on

#: ICMP type and code to reason, by RFC 792 and RFC 1812 section 5.2.7.1 (written down anew).
ICMP4 = {
    (3, 0): "net-unreach",
    (3, 1): "host-unreach",
    (3, 2): "proto-unreach",
    (3, 3): "port-unreach",
    (3, 5): "dest-unreach",
    (3, 6): "net-unreach",
    (3, 7): "host-unreach",
    (3, 8): "dest-unreach",
    (3, 9): "net-prohibited",
    (3, 10): "host-prohibited",
    (3, 11): "net-unreach",
    (3, 12): "host-unreach",
    (3, 13): "admin-prohibited",
    (3, 14): "dest-unreach",
    (3, 15): "dest-unreach",
    (11, 0): "time-exceeded",
    (12, 0): "param-problem",
}


#: The same of ICMPv6 (RFC 4443).
ICMP6 = {
    (1, 0): "no-route",
    (1, 1): "admin-prohibited",
    (1, 2): "beyond-scope",
    (1, 3): "host-unreach",
    (1, 4): "port-unreach",
    (1, 5): "admin-prohibited",
    (1, 6): "reject-route",
    (1, 200): "dest-unreach",
    (3, 0): "time-exceeded",
    (4, 0): "param-problem",
}
ERRORS = {4: ICMP4, 6: ICMP6}


def test_numbers_keep_their_meaning() -> None:
    assert _core.STATES[: len(STATES)] == STATES
    assert _core.REASONS[: len(REASONS)] == REASONS


def test_a_hit_has_32_bytes_without_padding() -> None:
    assert struct.calcsize(_core.HIT_FORMAT) == _core.HIT_BYTES == 32


@pytest.fixture(scope="module")
def listener() -> socket.socket:
    """Listens on IPv4 and IPv6 loopback, on a port that is open for both protocols' families."""
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    yield sock
    sock.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_hit_is_what_the_space_says(listener: socket.socket, address: str) -> None:
    port = listener.getsockname()[1]
    where = space([address], tcp(1, port))
    engine = _core.Engine(bucket(), states=ALL_STATES)
    before = time.monotonic_ns()
    engine.add_slice(9, 0, where.total, where, None)
    packed = b""
    while engine.slices_open:
        engine.pump(1)
        packed += b"".join(part[1] for part in engine.take())
    took_us = (time.monotonic_ns() - before) // 1000
    hits = {where.at(hit.position)[3]: hit for hit in Hit.unpack_all(packed)}
    assert {port: (hit.address, hit.state, hit.reason) for port, hit in hits.items()} == {
        1: (address, "closed", "conn-refused"),
        port: (address, "open", "syn-ack"),
    }
    assert all(1 <= hit.rtt_us <= took_us for hit in hits.values())
    # The reader of hits at the other end agrees (and refuses what contradicts the space).
    decoded = where.decode(packed, _core.Exclusions([], []))
    assert {(row[0], row[2], row[4]) for row in decoded} == {
        (hit.position, address, hits_port) for hits_port, hit in hits.items()
    }
    assert all(row[3] == TCP for row in decoded)


def test_only_the_states_asked_for_become_hits(listener: socket.socket, version: int) -> None:
    port = listener.getsockname()[1]
    where = space([own(version)], tcp(1, 2, port))
    for states, wanted in (
        ((), {"open"}),
        (("closed",), {"open", "closed"}),
        (("error",), {"open"}),
    ):
        ended = run(_core.Engine(bucket(), states=states), where)
        assert {hit.state for hit in ended.hits} == wanted
        assert (ended.counts["open"], ended.counts["closed"]) == (1, 2)


@pytest.mark.parametrize("states", [("opened",), ("open", "Closed"), ("no such",)])
def test_an_unknown_state_is_refused(states: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        _core.Engine(bucket(), states=states)


@pytest.mark.lab
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_each_icmp_error_has_its_reason(alone: Namespace, protocol: int, version: int) -> None:
    """Also where it comes late, and where an error about something else comes first."""
    with inside(alone), Tun(alone) as tun:
        reasons = ERRORS[version]
        ports = {1000 + i: error for i, error in enumerate(reasons)}
        where = space([host(version, 1)], [(protocol, port) for port in ports])
        engine = _core.Engine(
            bucket(), states=ALL_STATES, tcp_timeout_s=5, udp_timeout_s=5, payload=b"hello"
        )
        drive = Drive(engine)
        engine.add_slice(1, 0, where.total, where, None)
        drive.until(lambda: engine.in_flight == where.total, step_s=0.001)
        for probe in tun.sent():
            tun.answer_icmp(probe, *ports[probe.dport])
        ended = drive.to_end()
    found = {where.at(at)[3]: state for at, state in ended.states.items()}
    assert found == {
        port: ("closed" if reasons[error] == "port-unreach" else "filtered", reasons[error])
        for port, error in ports.items()
    }


@pytest.mark.lab
@pytest.mark.parametrize(
    ("version", "error"),
    [
        *((4, error) for error in [(4, 0), (5, 1), (0, 0), (3, 200), (99, 3)]),
        # An unknown error of ICMPv6 ends a connection in the kernel (RFC 4443, 2.4): none is here.
        *((6, error) for error in [(2, 0), (129, 0), (137, 0), (255, 3)]),
    ],
)
def test_icmp_that_is_no_such_error_ends_nothing(
    alone: Namespace, version: int, error: tuple[int, int]
) -> None:
    with inside(alone), Tun(alone) as tun:
        where = space([host(version, 1)], tcp(80) + udp(80))
        engine = _core.Engine(bucket(), states=ALL_STATES, tcp_timeout_s=5, udp_timeout_s=5)
        drive = Drive(engine)
        engine.add_slice(1, 0, 2, where, None)
        drive.until(lambda: engine.in_flight == 2, step_s=0.001)
        probes = tun.sent()
        for probe in probes:
            tun.answer_icmp(probe, *error)
        drive.pump(0.02)
        for probe in probes:
            if probe.protocol == TCP:
                tun.answer_tcp(probe, RST | ACK)
            else:
                tun.answer_udp(probe, b"")
        ended = drive.to_end()
    assert sorted(hit.reason for hit in ended.hits) == ["conn-refused", "udp-response"]


@pytest.mark.lab
@pytest.mark.parametrize("wait_ms", [20, 60])
def test_the_round_trip_is_measured(alone: Namespace, wait_ms: int, version: int) -> None:
    with inside(alone), Tun(alone) as tun:
        where = space([host(version, 1)], tcp(80, 81) + udp(82))
        engine = _core.Engine(bucket(), states=ALL_STATES, tcp_timeout_s=5, udp_timeout_s=5)
        drive = Drive(engine)
        engine.add_slice(1, 0, 3, where, None)
        drive.until(lambda: engine.in_flight == 3, step_s=0.001)
        time.sleep(wait_ms / 1000)
        for probe in tun.sent():
            if probe.protocol == UDP:
                tun.answer_udp(probe, b"there")
            else:
                tun.answer_tcp(probe, SYN | ACK if probe.dport == 80 else RST | ACK)
        ended = drive.to_end()
    assert len(ended.hits) == 3
    for hit in ended.hits:
        assert wait_ms * 1000 <= hit.rtt_us <= wait_ms * 1000 + 100_000, hit


@pytest.mark.lab
def test_silence_has_no_round_trip(alone: Namespace, version: int) -> None:
    with inside(alone), Tun(alone):
        engine = _core.Engine(bucket(), states=ALL_STATES, tcp_timeout_s=0.05, udp_timeout_s=0.05)
        ended = run(engine, space([host(version, 1)], tcp(80) + udp(80)))
    assert sorted((hit.state, hit.rtt_us) for hit in ended.hits) == [
        ("filtered", 0),
        ("open|filtered", 0),
    ]
