"""Issue 14: UDP scans against a truth drawn from a seed, hosts that limit their ICMP, and nmap."""

from __future__ import annotations

import ipaddress
import random

import pytest

from lab.namespaces import require
from lab.network import Lab
from lab.nmap import udp_states
from lab.nray import scan, states
from lab.truth import CLOSED, OPEN, SILENT, Truth, draw_hosts, draw_ports, rejected

pytestmark = pytest.mark.lab

HOST = {4: "198.18.64.9", 6: "2001:db8:1::9:9"}
SHOW = ("--show", "closed,filtered,open|filtered")
#: How often the target's kernel tells a peer of an error: once in so many ms, after a burst of six.
#: Linux by itself does so once a second, and then this takes 20 s and more.
OFTEN_MS = 30


def flags(method: str) -> list[str]:
    return ["--syn"] if method == "syn" else []


@pytest.mark.parametrize(("version", "method"), [(4, "connect"), (6, "syn")])
def test_what_a_limit_on_icmp_hid_is_found_closed(lab: Lab, version: int, method: str) -> None:
    """20 closed ports, of which the target tells six at once."""
    require("nft")
    host = HOST[version]
    truth = draw_ports(200 + version, host, {OPEN: 3, SILENT: 2}, range(2000, 2025), "udp")
    lab.keep_to(truth)
    lab.limit_icmp(True, OFTEN_MS)
    try:
        # fmt: off
        done = scan(
            lab.scanner, *flags(method), "-t", host, "-p", "U:2000-2024", "--rate", "2000",
            "--timeout", "300ms", "--processes", "1", *SHOW,
        ).expect(0)
        # fmt: on
    finally:
        lab.limit_icmp(False)
        lab.keep_to(Truth())
    wanted = {(host, port): ("closed", "port-unreach") for port in range(2000, 2025)}
    wanted |= dict.fromkeys(truth.open_pairs("udp"), ("open", "udp-response"))
    wanted |= {probe[1:]: ("open|filtered", "no-response") for probe in truth.having(SILENT)}
    assert states(done.events) == wanted


NETWORK = {4: "198.18.7.32/27", 6: "2001:db8:1::7:20/123"}


@pytest.mark.parametrize("version", [4, 6])
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
