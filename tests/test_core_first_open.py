"""Hosts that are probed up to their first open port, by both engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from core_lab import Ended, space, tcp, udp
from hosts_lab import (
    BASE,
    CLOSED,
    IMPROBABLE,
    OPEN,
    PATIENT_S,
    SILENT,
    SILENT_S,
    Make,
    answering,
    hosts,
    ordinary,
    tarpit,
)
from lab.namespaces import Namespace
from nray import _core
from nray._core import SPARED, HostSet

pytestmark = pytest.mark.lab


@pytest.fixture
def network(alone: Namespace, kind: str, version: int) -> Iterator[Make]:
    with answering(alone, kind, version) as make:
        yield make


def packed(version: int, *last: int) -> bytes:
    """Hosts by the last number of their address, as a set of them has them."""
    found = (ip_address(f"{BASE[version]}{n}").packed.ljust(16, b"\0") for n in last)
    return b"".join(bytes([version]) + each for each in found)


def host_at(where: _core.Space, position: int) -> int:
    return where.at(position)[1] & 0xFF


def open_hosts(ended: Ended) -> list[int]:
    return [int(ip_address(hit.address)) & 0xFF for hit in ended.hits if hit.state == "open"]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_comes_after_an_open_port_is_left_out(
    network: Make, version: int, protocol: str
) -> None:
    """Of this host alone; in another slice once it is told that the finding is safe."""
    shown = HostSet()
    quick = protocol == "udp"  # nobody listens is said by silence
    net = network(SILENT_S if quick else PATIENT_S, shown=shown)
    other = ordinary(others=SILENT if quick else CLOSED)
    net.hosts = {1: ordinary(*range(1, 31)), 2: other}
    ports = (udp if quick else tcp)(*range(1, 31))
    where = space([f"{BASE[version]}1-{BASE[version]}2"], ports)
    first = net.scan(where, 0, 20)
    assert first.counts["open"] == len(open_hosts(first)) >= 1
    assert len(shown) == 0, "who has the hits says so, not the engine"
    other_slice = net.scan(where, 0, 20, lease=3)
    assert open_hosts(other_slice), "the other slice's report may have been lost"
    before = dict(net.asked)
    shown.add(packed(version, 1))
    second = net.scan(where, 20, 40, lease=2)
    mine = sum(host_at(where, n) == 1 for n in range(20, 60))
    assert 0 < mine < 40
    assert second.counts["skipped"] == mine
    assert second.errors == {SPARED: mine}
    assert second.counts["open|filtered" if quick else "closed"] == 40 - mine
    assert {who for who, _ in net.asked.keys() - before.keys()} == {2}


def test_within_a_slice_it_ends_soon(network: Make, version: int, kind: str) -> None:
    options: dict[str, Any] = {"window": 1} if kind == "connect" else {"rate": 500}
    net = network(shown=HostSet(), **options)
    net.hosts = {1: ordinary(*range(1, 2001))}
    where = hosts(version, 1, *range(1, 2001))
    ended = net.scan(where)
    # One at a time is one; a rate leaves some on their way, on a busy machine some more.
    most = 1 if kind == "connect" else 500
    assert 1 <= ended.counts["open"] == len(open_hosts(ended)) == sum(net.asked.values()) <= most
    assert ended.counts["skipped"] == ended.errors[SPARED] == 2000 - ended.counts["open"]


def test_what_others_have_found_is_left_out_whole(network: Make, version: int) -> None:
    shown = HostSet()
    shown.add(packed(version, 2, 3))
    net = network(shown=shown)
    net.hosts = dict.fromkeys((1, 2, 3), ordinary(7))
    where = hosts(version, 3, *range(1, 11))
    ended = net.scan(where)
    assert {who for who, _ in net.asked} == {1}
    assert set(open_hosts(ended)) == {1}
    assert ended.counts["skipped"] >= 20
    # What comes meanwhile counts as well: another process's finding.
    shown.add(packed(version, 1))
    again = net.scan(where, lease=2)
    assert again.counts["skipped"] == 30


def test_without_it_all_is_probed(network: Make, version: int) -> None:
    net = network()
    net.hosts = {1: ordinary(*range(1, 11))}
    where = hosts(version, 1, *range(1, 11))
    for lease in (1, 2):
        ended = net.scan(where, lease=lease)
        assert ended.counts["open"] == 10
        assert ended.errors == {}


def test_who_looks_for_hosts_finds_them_all(network: Make, version: int) -> None:
    """An answer in discovery is a host that is there, not an open port."""
    shown = HostSet()
    net = network(shown=shown)
    net.hosts = dict.fromkeys((1, 2), ordinary(1, 2))
    ends = [int(ip_address(f"{BASE[version]}{n}")) for n in (1, 2)]
    ranges = [(ends[0], ends[1])]
    search = _core.Space(
        ranges if version == 4 else [], ranges if version == 6 else [], 0, tcp(1, 2), bytes(32), 1
    )
    assert net.scan(search).counts["open"] == 4
    ports = net.scan(hosts(version, 2, 1, 9), lease=2)
    assert sorted(set(open_hosts(ports))) == [1, 2]


def test_an_exclusion_is_counted_as_one(network: Make, version: int) -> None:
    shown = HostSet()
    shown.add(packed(version, 1, 2))
    net = network(shown=shown)
    where = hosts(version, 2, 1, 2, 3)
    number = int(ip_address(f"{BASE[version]}1"))
    away = [(number, number)]
    excluded = _core.Exclusions(away if version == 4 else [], away if version == 6 else [])
    net.drive.engine.add_slice(1, 0, 6, where, excluded)
    ended = net.to_end()[1]
    assert (ended.counts["excluded"], ended.counts["skipped"]) == (3, 3)
    assert ended.errors == {SPARED: 3}
    assert not net.asked


def test_names_of_one_address_are_one_host(network: Make, version: int) -> None:
    shown = HostSet()
    net = network(shown=shown)
    net.hosts = {1: ordinary(7)}
    where = space([], tcp(7, 8), names=3)
    addresses = [ip_address(f"{BASE[version]}{n}").packed for n in (1, 2)]
    resolved = {0: [addresses[0]], 1: [addresses[0]], 2: addresses}
    net.drive.engine.add_names(1, 0, 6, where, None, resolved)
    first = net.to_end()[1]
    assert set(open_hosts(first)) == {1}
    asked = sum(net.asked.values())
    shown.add(packed(version, 1))
    net.drive.engine.add_names(2, 0, 6, where, None, resolved)
    second = net.to_end()[2]
    assert second.counts["skipped"] == second.errors[SPARED] == 6
    assert sum(net.asked.values()) == asked + 2  # of the third name's second address
    assert second.counts["closed"] == 2


def test_what_waits_for_a_cap_is_left_out(network: Make, version: int) -> None:
    net = network(shown=HostSet(), host_rate=4)
    net.hosts = {1: ordinary(*range(1, 41))}
    where = hosts(version, 1, *range(1, 41))
    begun = time.monotonic()
    ended = net.scan(where)
    assert sum(net.asked.values()) <= 1 + 4 * (time.monotonic() - begun) + 1
    assert ended.counts["open"] == sum(net.asked.values())
    assert ended.errors == {SPARED: 40 - ended.counts["open"]}
    # What waits for its turn is let go at once, not when its turn has come.
    assert ended.counts["open"] < 10


def test_a_tarpit_is_told_and_left(network: Make, version: int) -> None:
    shown = HostSet()
    net = network(shown=shown, tarpits=True)
    net.hosts = {1: tarpit, 2: ordinary(*range(1, 31))}
    where = hosts(version, 2, *range(1, 31))
    first = net.scan(where, 0, 30)
    reasons = {host: set[str]() for host in (1, 2)}
    for hit in first.hits:
        reasons[int(ip_address(hit.address)) & 0xFF].add(hit.reason)
    assert reasons == {1: {"tarpit"}, 2: {"syn-ack"}}
    asked = sum(net.asked.values())
    shown.add(packed(version, 1, 2))
    second = net.scan(where, 30, 30, lease=2)
    assert second.counts["skipped"] == second.errors[SPARED] == 30
    assert sum(net.asked.values()) == asked
    assert len(set(net.improbable(1))) == len(set(net.improbable(2))) == 3
    assert all(port in IMPROBABLE or port <= 30 for _, port in net.asked)


# ── what only one that makes its own packets does ───────────────────────────────────────────


@pytest.fixture
def own(alone: Namespace, version: int) -> Iterator[Make]:
    with answering(alone, "raw", version, ethernet=True) as make:
        yield make


def test_what_was_silent_is_not_asked_again_and_is_no_gap(own: Make, version: int) -> None:
    """It was probed, and nobody answered: that is what is told, and not that it was left out."""
    shown = HostSet()
    net = own(2 * SILENT_S, retries=3, shown=shown)
    net.hosts = {1: ordinary(9, others=SILENT), 2: ordinary(others=SILENT)}
    where = hosts(version, 2, *range(1, 9))
    later = hosts(version, 1, 9)
    net.drive.engine.add_slice(1, 0, 16, where, None)
    net.until_found(2, later)
    shown.add(packed(version, 1))
    ended = net.to_end()
    assert ended[2].counts["open"] == 1
    assert ended[1].counts["filtered"] == 16
    assert ended[1].errors == {}
    assert {reason for _, reason in ended[1].states.values()} == {"no-response"}
    for port in range(1, 9):
        assert net.asked[2, port] == 4
    assert sum(net.asked[1, port] for port in range(1, 9)) == 8


def test_a_udp_host_that_says_little_is_asked_no_more(own: Make, version: int) -> None:
    """One that sends a few ICMP errors, then is silent, has an open port: nobody waits for it."""
    told: list[int] = []

    def says(port: int, nth: int) -> str:
        if port == 100:
            return OPEN
        if len(told) < 6:
            told.append(port)
            return CLOSED
        return SILENT

    shown = HostSet()
    net = own(SILENT_S, states=("closed", "open|filtered"), shown=shown)
    net.hosts = {1: says}
    where = space([f"{BASE[version]}1"], udp(*range(1, 41)))
    opened = space([f"{BASE[version]}1"], udp(100))
    net.drive.engine.add_slice(1, 0, 40, where, None)
    begun = time.monotonic()
    net.until_found(2, opened)
    shown.add(packed(version, 1))
    ended = net.to_end()
    assert ended[2].counts["open"] == 1
    assert ended[1].counts["closed"] == 6
    assert ended[1].counts["open|filtered"] == 34
    assert set(net.asked.values()) == {1}, "none is asked a second time"
    assert time.monotonic() - begun < 30  # a limited host may be waited for for a minute
