"""Hosts that are looked for: any answer is one, and on the local link its address resolution."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from core_lab import ACK, ALL_STATES, KEY, SYN, TCP, Drive, bucket, inside, own, run
from lab.namespaces import Namespace
from nray import _core
from raw_lab import COOKIE_KEY, OWN_MAC, FarEnd, echo_answer, taken_apart, tcp_answer

HOSTS, NEAR, LINK = 1, 2, 3
RST = 4
PING = [(1, 0)]
lab = pytest.mark.lab
BASE = {4: int(ip_address("198.18.0.0")), 6: int(ip_address("2001:db8:1::"))}
RESPONSE = {4: "arp-response", 6: "nd-response"}


def space(version: int, last: int, ports: list[tuple[int, int]], search: int) -> _core.Space:
    some = [(BASE[version] + 1, BASE[version] + last)]
    four, six = (some, []) if version == 4 else ([], some)
    return _core.Space(four, six, 0, ports, KEY, search)


def told(ended: object) -> dict[int, tuple[str, str]]:
    found = {}
    for hit in ended.hits:  # type: ignore[attr-defined]
        found[int(ip_address(hit.address)) & 255] = (hit.state, hit.reason)
    return found


def test_who_refuses_a_connection_is_there(version: int) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.create_server((own(version), 0), family=family) as listener:
        port = listener.getsockname()[1]
        shut = port - 1
        some = [(number := int(ip_address(own(version))), number)]
        four, six = (some, []) if version == 4 else ([], some)
        where = _core.Space(four, six, 0, [(TCP, shut), (TCP, port)], KEY, HOSTS)
        ended = run(_core.Engine(bucket(), states=ALL_STATES), where)
    assert {(hit.state, hit.reason) for hit in ended.hits} == {
        ("open", "syn-ack"),
        ("open", "conn-refused"),
    }
    assert ended.counts["open"] == 2


@pytest.mark.parametrize("search", [-1, 4])
def test_there_is_no_other_search(search: int) -> None:
    with pytest.raises(ValueError, match="no such search"):
        space(4, 1, PING, search)


@pytest.fixture
def tap(alone: Namespace) -> Iterator[FarEnd]:
    with inside(alone), FarEnd(alone, True) as made:
        yield made


@lab
def test_any_answer_to_a_syn_is_a_host_and_silence_no_hit(tap: FarEnd, version: int) -> None:
    engine = tap.engine(states=ALL_STATES)
    drive = Drive(engine)
    probes = tap.start(drive, space(version, 3, [(TCP, 80)], HOSTS))
    by_last = {taken_apart(probe)[1][-1]: probe for probe in probes}
    tap.put(tcp_answer(by_last[1], SYN | ACK))
    tap.put(tcp_answer(by_last[2], RST | ACK))
    ended = drive.to_end()
    assert told(ended) == {1: ("open", "syn-ack"), 2: ("open", "reset")}
    assert (ended.counts["open"], ended.counts["filtered"]) == (2, 1)


@lab
@pytest.mark.parametrize("search", [NEAR, LINK])
def test_on_the_link_a_neighbour_is_a_host_and_no_packet_is_sent(
    tap: FarEnd, version: int, search: int
) -> None:
    engine = tap.engine(direct=True, states=ALL_STATES)
    drive = Drive(engine)
    where = space(version, 4, PING, search)
    engine.add_slice(1, 0, where.total, where, None)
    wanted: list[tuple[int, bytes]] = []
    drive.until(lambda: bool(wanted.extend(engine.neighbours_wanted()) or len(wanted) == 4))
    for link, address in wanted:
        engine.set_neighbour(link, address, OWN_MAC if address[-1] < 3 else None)
    ended = drive.to_end()
    response = ("open", RESPONSE[version])
    assert told(ended) == {1: response, 2: response}
    assert (ended.counts["open"], ended.counts["filtered"]) == (2, 2)
    assert engine.sent == 0
    assert tap.probes() == []


@lab
def test_beyond_the_link_one_mode_asks_by_echo_and_the_other_says_that_it_cannot(
    tap: FarEnd, version: int
) -> None:
    engine = tap.engine(states=ALL_STATES)
    drive = Drive(engine)
    probes = tap.start(drive, space(version, 2, PING, NEAR))
    (first,) = (probe for probe in probes if taken_apart(probe)[1][-1] == 1)
    tap.put(echo_answer(first))
    assert told(drive.to_end()) == {1: ("open", "echo-reply")}

    where = space(version, 2, PING, LINK)
    engine.add_slice(2, 0, where.total, where, None)
    ended = drive.to_end()
    assert ended.errors == {"not-on-link": 2}
    assert ended.counts["error"] == 2
    assert not ended.hits
    assert engine.sent == 2


@lab
def test_own_addresses_are_there(alone: Namespace, version: int) -> None:
    first = int(ip_address(own(version)))
    some = [(first, first + 2)]
    four, six = (some, []) if version == 4 else ([], some)
    route = (version, first, first + 2, 0, ip_address(own(version)).packed, b"")
    with inside(alone):
        engine = _core.RawEngine(
            bucket(),
            key=COOKIE_KEY,
            links=[(1, "lo", False, b"", 65536)],
            routes=[route],
            states=ALL_STATES,
        )
        ended = run(engine, _core.Space(four, six, 0, PING, KEY, LINK))
    assert {hit.reason for hit in ended.hits} == {"localhost-response"}
    assert ended.counts["open"] == 3
    assert engine.sent == 0


@lab
def test_asking_neighbours_takes_turns_of_the_rate(tap: FarEnd, version: int) -> None:
    """The second of two hosts has its turn in a minute."""
    engine = tap.engine(direct=True, rate=1 / 60)
    where = space(version, 2, PING, LINK)
    engine.add_slice(1, 0, where.total, where, None)
    wanted: list[tuple[int, bytes]] = []
    for _ in range(20):
        engine.pump(0.002)
        wanted += engine.neighbours_wanted()
    assert len(wanted) == 1
