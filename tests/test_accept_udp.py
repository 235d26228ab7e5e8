"""Issue 14: UDP scans against a truth drawn from a seed, hosts that limit their ICMP, and nmap."""

from __future__ import annotations

import ipaddress
import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.namespaces import require
from lab.network import Lab
from lab.nmap import udp_states
from lab.nray import scan, states
from lab.truth import CLOSED, OPEN, SILENT, Truth, draw_hosts, draw_ports, rejected

pytestmark = pytest.mark.lab

SHOW = ("--show", "closed,filtered,open|filtered")
#: How often the target's kernel tells a peer of an error: once in so many ms, after a burst of six.
#: Often; and as Linux does by itself.
OFTEN_MS, USUAL_MS = 30, 1000


def flags(method: str) -> list[str]:
    return ["--syn"] if method == "syn" else []


@pytest.mark.parametrize(
    ("every_ms", "closed"),
    [
        pytest.param(OFTEN_MS, 20, id="often"),
        pytest.param(USUAL_MS, 11, id="usual", marks=pytest.mark.slow),
    ],
)
def test_what_a_limit_on_icmp_hid_is_found_closed(lab: Lab, every_ms: int, closed: int) -> None:
    """Closed ports, of which the target tells six at once: four times, side by side."""
    require("nft")
    ports = range(2000, 2000 + closed + 4)
    truth, hosts = Truth(), []
    for number, (version, method) in enumerate(itertools.product((4, 6), ("connect", "syn")), 1):
        # Addresses that nothing else here has to do with: what one has been told is not forgotten.
        host = f"{ {4: '198.18.65.', 6: '2001:db8:1::65:'}[version] }{every_ms % 100 + number}"
        hosts.append((host, method))
        # A port that one listens on is open at all: the same are drawn for each.
        truth.fates |= draw_ports(every_ms, host, {OPEN: 3, SILENT: 1}, ports, "udp").fates
    lab.keep_to(truth)
    lab.limit_icmp_to_peers(every_ms)

    def once(host: str, method: str) -> dict[tuple[str, int], tuple[str, str]]:
        # fmt: off
        done = scan(
            lab.scanner, *flags(method), "-t", host, "-p", f"U:{ports[0]}-{ports[-1]}",
            "--rate", "2000", "--timeout", "300ms", "--processes", "1", *SHOW,
        ).expect(0)
        # fmt: on
        return states(done.events)

    try:
        for host, _ in hosts:
            lab.fresh_peer(host)
        with ThreadPoolExecutor(len(hosts)) as side_by_side:
            found = list(side_by_side.map(once, *zip(*hosts, strict=True)))
    finally:
        lab.limit_icmp(False)
        lab.keep_to(Truth())
    for (host, method), told in zip(hosts, found, strict=True):
        wanted = {(host, port): ("closed", "port-unreach") for port in ports}
        mine = {probe[1:]: fate for probe, fate in truth.fates.items() if probe[1] == host}
        ends = {OPEN: ("open", "udp-response"), SILENT: ("open|filtered", "no-response")}
        wanted |= {pair: ends[fate] for pair, fate in mine.items()}
        assert told == wanted, (host, method)


NETWORK = {4: "198.18.7.32/27", 6: "2001:db8:1::7:20/123"}


def test_states_and_reasons_are_nmap_s(lab: Lab, version: int) -> None:
    """128 pairs of host and port of either version, and each error that its ICMP has."""
    require("nft", "nmap")
    # Above the ports that both have questions for: what answers here only sends all of it back.
    ports = random.Random(200 + version).sample(range(50_000, 65536), 4)
    kinds = rejected(version)
    (unreachable,) = (fate for fate in kinds if fate.name == "port_unreach")
    shares = {OPEN: 0.2, SILENT: 0.2} | dict.fromkeys(kinds, 0.4 / len(kinds))
    truth = Truth()
    for number, port in enumerate(ports):
        seed = 100 * version + number
        truth.fates |= draw_hosts(seed, NETWORK[version], port, shares, "udp").fates
    # What is closed to a datagram says so by ICMP.
    truth.fates |= dict.fromkeys(truth.having(CLOSED), unreachable)
    lab.keep_to(truth)
    hosts = [str(address) for address in ipaddress.ip_network(NETWORK[version])]
    if version == 6:
        # Linux sends ICMPv6 errors from an address that is only routed here (AnyIP) in the name of
        # another; nmap takes a port that somebody else calls unreachable for filtered.
        batch = "".join(f"address add {host}/128 dev lo nodad\n" for host in hosts)
        lab.target.call(["ip", "-batch", "-"], batch)
    told = udp_states(lab.scanner, hosts, ports)
    assert len(told) == 128
    wanted = {probe[1:] for probe in truth.having(OPEN)}
    assert {pair for pair, state in told.items() if state == ("open", "udp-response")} == wanted
    words = ["-t", NETWORK[version], "-p", "U:" + ",".join(map(str, ports)), "--rate", "2000"]
    for method in ("connect", "syn"):
        done = scan(lab.scanner, *flags(method), *words, "--timeout", "500ms", *SHOW).expect(0)
        found = states(done.events)
        assert set(found) == set(told)
        differ = {pair: (found[pair], told[pair]) for pair in told if found[pair] != told[pair]}
        assert differ == {}, method
