"""Hosts on which every port answers, as both engines see them: told once, and nobody else is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

import core_lab
from core_lab import ACK, RST, SYN, TCP, Ended, bucket, space, tcp
from hosts_lab import (
    BASE,
    CLOSED,
    FORBIDDEN,
    IMPROBABLE,
    OPEN,
    SILENT,
    SILENT_S,
    Host,
    Make,
    answering,
    hosts,
    ordinary,
    tarpit,
)
from lab.namespaces import Namespace
from nray import _core
from raw_lab import target_of, tcp_answer

pytestmark = pytest.mark.lab


@pytest.fixture
def network(alone: Namespace, kind: str, version: int) -> Iterator[Make]:
    with answering(alone, kind, version, tarpits=True) as make:
        yield make


def told(where: _core.Space, ended: Ended) -> dict[tuple[int, int], str]:
    """Open ports that were told, by host and port; each position once."""
    assert ended.done == 1
    assert len(ended.states) == len(ended.hits)
    found = {}
    for hit in ended.hits:
        if hit.state == "open" and hit.reason != "tarpit":
            assert hit.reason == "syn-ack"
            found[int(ip_address(hit.address)) & 0xFF, where.at(hit.position)[3]] = hit.reason
    return found


def tarpits(where: _core.Space, ended: Ended) -> list[int]:
    """The hosts that were told of."""
    found = [hit for hit in ended.hits if hit.reason == "tarpit"]
    assert {hit.state for hit in found} <= {"open"}
    for hit in found:  # the position is one of this host
        assert str(ip_address(where.at(hit.position)[1])) == hit.address
    return sorted(int(ip_address(hit.address)) & 0xFF for hit in found)


def test_one_among_others(network: Make, version: int) -> None:
    net = network()
    net.hosts = {1: ordinary(2, 3, 5), 2: tarpit, 4: ordinary(*range(1, 11))}
    where = hosts(version, 5, *range(1, 21))
    ended = net.scan(where)
    wanted = {(1, port) for port in (2, 3, 5)} | {(4, port) for port in range(1, 11)}
    assert set(told(where, ended)) == wanted
    assert tarpits(where, ended) == [2]
    assert ended.counts["open"] == 13 + 20
    assert ended.counts["closed"] == 100 - 33
    assert ended.errors == {_core.WITHHELD: 20}
    assert all(hit.rtt_us for hit in ended.hits if hit.state == "open")
    for host in (1, 2, 4):
        assert len(set(net.improbable(host))) == 3, host
    for host in (3, 5):  # nothing open, so nobody wants to know
        assert net.improbable(host) == []


def test_many_open_ports_make_no_tarpit(network: Make, version: int) -> None:
    net = network()
    net.hosts = {1: ordinary(*range(1, 31)), 2: ordinary(*range(1, 41))}
    where = hosts(version, 2, *range(1, 101))
    ended = net.scan(where)
    assert len(told(where, ended)) == 70
    assert tarpits(where, ended) == []
    assert ended.errors == {}
    assert len(net.improbable(1)) == 3


@pytest.mark.parametrize("others", [SILENT, FORBIDDEN])
def test_a_filter_before_all_else_is_waited_for_and_loses_nothing(
    network: Make, version: int, others: str
) -> None:
    net = network(SILENT_S)
    net.hosts = {1: ordinary(*range(1, 17), others=others)}
    where = hosts(version, 1, *range(1, 17))
    ended = net.scan(where)
    assert len(told(where, ended)) == 16
    assert tarpits(where, ended) == []
    assert ended.counts["open"] == 16
    assert ended.errors == {}
    assert set(net.asked.values()) == {1}


def sometimes(*answering: int) -> Host:
    """Of the improbable ports, in the order in which they are asked, only some answer."""
    seen: list[int] = []

    def says(port: int, nth: int) -> str:
        if port not in IMPROBABLE:
            return OPEN
        if port not in seen:
            seen.append(port)
        return OPEN if seen.index(port) in answering else SILENT

    return says


def test_two_answers_of_three_are_enough_and_one_is_not(network: Make, version: int) -> None:
    net = network(SILENT_S)
    net.hosts = {1: sometimes(0, 2), 2: sometimes(1)}
    where = hosts(version, 2, *range(1, 21))
    ended = net.scan(where)
    assert tarpits(where, ended) == [1]
    assert set(told(where, ended)) == {(2, port) for port in range(1, 21)}
    assert ended.errors == {_core.WITHHELD: 20}


def test_one_refusal_is_enough(network: Make, version: int) -> None:
    refused: list[int] = []

    def says(port: int, nth: int) -> str:
        if port in IMPROBABLE and not refused:
            refused.append(port)
        return CLOSED if port in refused else OPEN

    net = network()
    net.hosts = {1: says}
    where = hosts(version, 1, *range(1, 21))
    ended = net.scan(where)
    assert len(refused) == 1
    assert len(told(where, ended)) == 20
    assert tarpits(where, ended) == []


def test_who_shows_more_and_more_is_asked_again(network: Make, version: int) -> None:
    net = network()
    answers = {"improbable": CLOSED}
    net.hosts = {1: lambda port, _: answers["improbable"] if port in IMPROBABLE else OPEN}
    where = hosts(version, 1, *range(1, 101))
    first = net.scan(where, 0, 20)
    assert len(told(where, first)) == 20
    answers["improbable"] = OPEN
    second = net.scan(where, 20, 80, lease=2)
    # The 32nd is held back, and so are all that follow.
    assert len(told(where, second)) == 11
    assert tarpits(where, second) == [1]
    assert second.counts["open"] == 80
    assert second.errors == {_core.WITHHELD: 69}
    asked = Counter(net.improbable(1))
    assert set(asked.values()) == {2}
    assert len(asked) == 3


def test_each_slice_that_withholds_says_so_once(network: Make, version: int) -> None:
    net = network()
    net.hosts = {1: tarpit, 2: tarpit}
    where = hosts(version, 2, *range(1, 31))
    for lease in range(6):
        net.drive.engine.add_slice(lease, lease * 10, 10, where, None)
    for lease, ended in net.to_end().items():
        assert told(where, ended) == {}
        seen = {
            int(ip_address(where.at(at)[1])) & 0xFF for at in range(lease * 10, lease * 10 + 10)
        }
        assert tarpits(where, ended) == sorted(seen)
        assert ended.errors == {_core.WITHHELD: 10}
    assert len(net.improbable(1)) == len(net.improbable(2)) == 3


@pytest.mark.parametrize("ports", [15, 16])
def test_few_ports_are_told_as_they_are(network: Make, version: int, ports: int) -> None:
    net = network()
    net.hosts = {1: tarpit}
    where = hosts(version, 1, *range(1, ports + 1))
    ended = net.scan(where)
    judged = ports == 16
    assert len(told(where, ended)) == (0 if judged else 15)
    assert len(net.improbable(1)) == (3 if judged else 0)


def test_only_when_asked_for(network: Make, version: int) -> None:
    net = network(tarpits=False)
    net.hosts = {1: tarpit}
    where = hosts(version, 1, *range(1, 21))
    assert len(told(where, net.scan(where))) == 20
    assert net.improbable(1) == []


def test_a_policy_s_ports_hold_for_these_probes_too(network: Make, version: int) -> None:
    nobody = _core.Exclusions([], [])
    net = network(policy=_core.Policy(nobody, [(TCP, 1, 20000)]))
    net.hosts = {1: tarpit}
    where = hosts(version, 1, *range(1, 21))
    assert len(told(where, net.scan(where))) == 20
    assert net.improbable(1) == []


def test_a_scan_of_all_ports_that_may_be_asked(network: Make, version: int) -> None:
    """The ports that judge a host are the scan's own, too; each ends once."""
    allowed = range(IMPROBABLE[0] + 500, IMPROBABLE[0] + 564)
    policy = _core.Policy(_core.Exclusions([], []), [(TCP, allowed[0], allowed[-1])])
    net = network(policy=policy)
    net.hosts = {1: ordinary(*allowed[:9]), 2: tarpit}
    where = hosts(version, 2, *allowed)
    ended = net.scan(where)
    assert tarpits(where, ended) == [2]
    assert ended.errors == {_core.WITHHELD: 64}
    assert ended.counts["open"] == 73
    assert ended.counts["closed"] == 55
    # One of the three may have been among the nine that are open: two refusals say it all.
    assert {port for _, port in told(where, ended)} == set(allowed[:9])


def test_names_of_one_address(network: Make, version: int) -> None:
    net = network()
    net.hosts = {1: tarpit, 2: ordinary(7)}
    where = space([], tcp(*range(1, 17)), names=3)
    packed = [ip_address(f"{BASE[version]}{n}").packed for n in (1, 2)]
    addresses = {0: [packed[0]], 1: [packed[0]], 2: packed}
    net.drive.engine.add_names(1, 0, 48, where, None, addresses)
    ended = net.to_end()[1]
    told_of = [hit for hit in ended.hits if hit.state == "open"]
    assert sorted(hit.reason for hit in told_of) == ["syn-ack", "tarpit"]
    assert ended.counts["open"] == 48 + 1
    assert ended.errors == {_core.WITHHELD: 48}


# ── what only one that makes its own packets does ───────────────────────────────────────────


@pytest.fixture
def own(alone: Namespace, version: int) -> Iterator[Make]:
    with answering(alone, "raw", version, ethernet=True, tarpits=True) as make:
        yield make


def test_what_is_silent_is_asked_once_more_with_retries(own: Make, version: int) -> None:
    """A host whose answers to first packets were lost, and one that filters all else."""
    net = own(2 * SILENT_S, retries=2)
    net.hosts = {
        1: lambda port, nth: OPEN if port not in IMPROBABLE or nth else SILENT,
        2: ordinary(*range(1, 17), others=SILENT),
    }
    where = hosts(version, 2, *range(1, 17))
    ended = net.scan(where)
    assert tarpits(where, ended) == [1]
    assert set(told(where, ended)) == {(2, port) for port in range(1, 17)}
    assert len(net.improbable(1)) == len(net.improbable(2)) == 6
    assert set(net.asked.values()) == {1, 2}


def test_a_late_answer_in_the_last_pass_is_judged_too(own: Make, version: int) -> None:
    """The slice has ended but for what is held back: it waits, and ends when that is settled."""
    net = own(SILENT_S)
    net.hosts = {1: ordinary(3, others=SILENT)}
    where = hosts(version, 1, *range(1, 17))
    begun = time.monotonic()
    ended = net.scan(where)
    assert time.monotonic() - begun >= SILENT_S
    assert set(told(where, ended)) == {(1, 3)}
    assert ended.counts["filtered"] == 15


def test_the_rate_holds_for_these_probes_too(own: Make, version: int) -> None:
    shared = bucket(200)
    net = own(shared=shared)
    net.hosts = dict.fromkeys(range(1, 5), tarpit)
    where = hosts(version, 4, *range(1, 17))
    begun = time.monotonic()
    net.scan(where)
    sent = sum(net.asked.values())
    assert sent == 64 + 12 == net.drive.engine.sent
    assert time.monotonic() - begun >= (sent - 3) / 200


def test_no_room_to_judge_is_no_loss(own: Make, version: int) -> None:
    """More hosts than are judged at once: what is beyond goes out as it is."""
    net = own()
    where = space([core_lab.hosts(version, 0, 65535)], tcp(*range(1, 17)))
    count, at_once = 9500, 8192
    net.drive.engine.add_slice(1, 0, count, where, None)
    probes = net.far.gather(net.drive, count, 30.0)
    hosts = {target_of(probe)[0] for probe in probes}
    assert len(hosts) > at_once
    asks: list[bytes] = []
    for at in range(0, count, 500):
        for probe in probes[at : at + 500]:
            net.far.put(tcp_answer(probe, SYN | ACK))
        net.drive.pump(0.001)
        asks += net.far.probes()
    asks += net.far.gather(net.drive, 3 * at_once - len(asks), 30.0)
    assert len(asks) == 3 * at_once
    shown = {hit.address for hit in net.drive.leases[1].hits}
    assert len(shown) == len(hosts) - at_once
    for at in range(0, len(asks), 1500):
        for ask in asks[at : at + 1500 : 3]:
            net.far.put(tcp_answer(ask, RST | ACK))
        net.drive.pump(0.001)
    ended = net.drive.to_end(30.0)
    assert len(ended.states) == ended.counts["open"] == count
    assert ended.errors == {}
    assert net.drive.engine.sent == count + 3 * at_once
