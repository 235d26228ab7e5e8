"""Issue 14: a host on which every port answers is told once, and no other host suffers for it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.certs import Credentials
from lab.cluster import Cluster
from lab.judge import judge_set
from lab.namespaces import require
from lab.network import TARPIT, Lab, tarpit
from lab.nray import open_pairs, portscans, scan
from lab.truth import OPEN, SILENT, Truth, draw_ports

pytestmark = pytest.mark.lab

#: One host that is half open, and one that is open on few ports and silent on all others.
HOSTS = {
    4: ("198.18.64.9", "198.18.64.10"),
    6: ("2001:db8:1::9:9", "2001:db8:1::9:a"),
}
SYN = ("--syn", "--rate", "5000", "--timeout", "1s")
#: A connection costs the tarpit, a slow program, thrice as much: fewer, and slower.
CONNECT = ("--rate", "1000", "--timeout", "1s")


@pytest.fixture(scope="module")
def tarpits(lab: Lab) -> Iterator[Lab]:
    """One network beside the usual ones that answers every SYN."""
    require("nft")
    if not lab.scanner.ip("route", "show", TARPIT[4]):
        tarpit(lab)
    yield lab
    lab.keep_to(Truth())


def drawn(lab: Lab, version: int, ports: range) -> Truth:
    half, shy = HOSTS[version]
    truth = draw_ports(180 + version, half, {OPEN: 40}, ports)
    shy_truth = draw_ports(182 + version, shy, {OPEN: 10, SILENT: len(ports) - 10}, ports)
    truth = Truth({**truth.fates, **shy_truth.fates})
    lab.keep_to(truth)
    return truth


def told_of(events: list[dict[str, Any]]) -> list[str]:
    """The hosts that were told of, each event once."""
    found = []
    for event in events:
        result = event.get("result", {})
        if "tarpit" in result:
            assert "port" not in result
            assert "portscan" not in result
            found.append(result["address"])
    return found


@pytest.mark.parametrize(
    ("version", "words", "last"),
    [(4, SYN, 1000), (6, SYN, 1000), (4, CONNECT, 300), (6, CONNECT, 300)],
    ids=["syn-4", "syn-6", "connect-4", "connect-6"],
)
def test_one_of_three_hosts(tarpits: Lab, version: int, words: tuple[str, ...], last: int) -> None:
    truth = drawn(tarpits, version, range(1, last + 1))
    target = str(ipaddress.ip_network(TARPIT[version])[9])
    targets = ",".join([*HOSTS[version], target])
    done = scan(tarpits.scanner, "-t", targets, "-p", f"1-{last}", *words).expect(0)
    assert told_of(done.events) == [target]
    assert judge_set(open_pairs(done.events), truth.open_pairs()) == []
    assert f"50 open, {last:,} open on tarpits, " in done.stderr
    assert "1 host answers on every port" in done.stderr
    assert f": {last:,} findings withheld" in done.stderr
    assert done.probes == 3 * last


@pytest.mark.parametrize(("words", "last"), [(SYN, 1000), (CONNECT, 300)], ids=["syn", "connect"])
def test_all_of_it_for_who_wants_it(
    tarpits: Lab, version: int, words: tuple[str, ...], last: int
) -> None:
    target = str(ipaddress.ip_network(TARPIT[version])[11])
    done = scan(tarpits.scanner, "-t", target, "-p", f"1-{last}", "--keep-tarpits", *words)
    assert told_of(done.expect(0).events) == []
    wanted = {(target, port) for port in range(1, last + 1)}
    assert judge_set(open_pairs(done.events), wanted) == []
    assert "tarpit" not in done.stderr


def test_two_nodes_and_a_configuration(
    tarpits: Lab, version: int, tmp_path: Path, credentials: Credentials
) -> None:
    """Workers of both meet each host: it is told once all the same."""
    truth = drawn(tarpits, version, range(1, 501))
    network = ipaddress.ip_network(TARPIT[version])
    hosts = [str(network[n]) for n in range(1, 9)]
    cluster = Cluster(tarpits.scanner, tmp_path, credentials)
    cluster.start_server(
        {"targets": [*hosts, *HOSTS[version]], "tcpports": ["1-500"], "udpports": []},
        {"tcp": {"method": "syn", "retries": 1, "timeout": "1s"}, "ratelimit": 5000},
    )
    for name in ("one", "two"):
        cluster.start_node(name)
    cluster.expect_end()
    events = cluster.events()
    assert sorted(told_of(events)) == sorted(hosts)
    assert judge_set(open_pairs(events), truth.open_pairs()) == []
    assert {part["scantype"] for part in portscans(events)} == {"tcpsyn"}
    assert "50 open, 4,000 open on tarpits" in cluster.said("server")
