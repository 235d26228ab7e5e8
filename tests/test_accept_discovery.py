"""Host discovery, whole: which hosts are scanned, and what those cost that are not there."""

from __future__ import annotations

import ipaddress
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.certs import Credentials
from lab.cluster import Cluster
from lab.namespaces import Namespace, require
from lab.network import INTERFACE, Lab
from lab.nray import environment, nray, open_pairs, portscans, run, scan
from lab.truth import OPEN, Truth

pytestmark = pytest.mark.lab

#: 1,024 addresses each.
NETWORK = {4: "198.18.32.0/22", 6: "2001:db8:1::2000/118"}
#: Hosts that answer to pings and to TCP, and those that answer to TCP alone.
ECHO, MUTE = 40, 30
DOWN = 1024 - ECHO - MUTE
PORTS = "1000-1009"
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Hosts:
    """A network of which some hosts are there, and what nftables count of the others."""

    target: Namespace
    version: int
    echo: frozenset[str]
    mute: frozenset[str]

    @property
    def up(self) -> frozenset[str]:
        return self.echo | self.mute

    def counted(self) -> dict[str, int]:
        """Packets to hosts that are not there: ``ping``, ``asked`` (TCP 80 and 443), ``ports``."""
        listed = json.loads(self.target.call(["nft", "-j", "list", "counters"]))["nftables"]
        counters = [each["counter"] for each in listed if "counter" in each]
        return {each["name"]: each["packets"] for each in counters if each["table"] == "hosts"}


def rules(version: int, network: str, echo: frozenset[str], mute: frozenset[str]) -> str:
    ip, kind = ("ip", "ipv4_addr") if version == 4 else ("ip6", "ipv6_addr")
    icmp, request = ("icmp", "echo-request") if version == 4 else ("icmpv6", "echo-request")
    return f"""
        table inet hosts {{
          counter ping {{ }}
          counter asked {{ }}
          counter ports {{ }}
          set echo {{ type {kind}; elements = {{ {", ".join(sorted(echo))} }} }}
          set up {{ type {kind}; elements = {{ {", ".join(sorted(echo | mute))} }} }}
          chain come {{
            type filter hook prerouting priority -400; policy accept;
            {ip} daddr != {network} accept
            {ip} daddr @echo accept
            {ip} daddr @up {icmp} type {request} drop
            {ip} daddr @up accept
            {icmp} type {request} counter name ping
            tcp dport {{ 80, 443 }} counter name asked
            tcp dport != {{ 80, 443 }} counter name ports
            udp dport 0-65535 counter name ports
            drop
          }}
        }}"""


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def hosts(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    require("nft")
    version = request.param
    every = list(map(str, ipaddress.ip_network(NETWORK[version])))
    drawn = random.Random(version).sample(every, ECHO + MUTE)
    made = Hosts(lab.target, version, frozenset(drawn[:ECHO]), frozenset(drawn[ECHO:]))
    # One port is open everywhere, where there is a host.
    lab.keep_to(Truth({("tcp", drawn[0], 1001): OPEN}))
    lab.target.call(["nft", "flush", "ruleset"])
    lab.target.call(["nft", "-f", "-"], rules(version, NETWORK[version], made.echo, made.mute))
    yield made
    lab.keep_to(Truth())


def targets_of(events: list[dict[str, object]]) -> set[str]:
    return {part["target"] for part in portscans(events)}


WORDS = ("-p", PORTS, "--rate", "20000", "--timeout", "300ms", "--show", "closed")


def test_auto_asks_by_echo_then_by_syns_and_scans_what_is_there(lab: Lab, hosts: Hosts) -> None:
    where = NETWORK[hosts.version]
    done = scan(lab.scanner, "-t", where, "--syn", "--discovery", "auto", *WORDS).expect(0)
    assert len(portscans(done.events)) == 10 * len(hosts.up)
    assert targets_of(done.events) == hosts.up
    assert sorted(open_pairs(done.events)) == sorted((host, 1001) for host in hosts.up)
    # Each once, and once more because it was silent; of no port that was asked for.
    assert hosts.counted() == {"ping": 2 * DOWN, "asked": 2 * 2 * DOWN, "ports": 0}
    assert "700 probes and 2,992 of discovery" in done.stderr
    assert "1,024 hosts looked for, 70 up" in done.stderr


@pytest.mark.parametrize(
    ("mode", "hosts"),
    [("ping", 4), ("ping", 6), ("auto", 4), ("auto", 6)],
    indirect=["hosts"],
    ids=["ping-v4", "ping-v6", "auto-v4", "auto-v6"],
)
def test_pings_go_with_scans_by_connecting_too(lab: Lab, hosts: Hosts, mode: str) -> None:
    where = NETWORK[hosts.version]
    words = [*WORDS, "--retries", "0"]
    done = scan(lab.scanner, "-t", where, "--discovery", mode, *words).expect(0)
    up = hosts.echo if mode == "ping" else hosts.up
    assert targets_of(done.events) == up
    assert len(portscans(done.events)) == 10 * len(up)
    assert {part["scantype"] for part in portscans(done.events)} == {"tcpconnect"}
    counted = hosts.counted()
    assert (counted["ping"], counted["ports"]) == (DOWN, 0)
    # The kernel sends a SYN again after a second, should this machine be as slow as that.
    assert (mode == "ping") == (counted["asked"] == 0)
    assert mode == "ping" or 2 * DOWN <= counted["asked"] < 3 * DOWN


@pytest.mark.parametrize(
    ("syn", "hosts"),
    [(True, 4), (True, 6), (False, 4), (False, 6)],
    indirect=["hosts"],
    ids=["syn-v4", "syn-v6", "connect-v4", "connect-v6"],
)
def test_syns_find_those_that_refuse(lab: Lab, hosts: Hosts, syn: bool) -> None:
    where = NETWORK[hosts.version]
    more = ("--syn", "--retries", "0") if syn else ()
    done = scan(lab.scanner, "-t", where, "--discovery", "syn:80,443", *more, *WORDS).expect(0)
    assert targets_of(done.events) == hosts.up
    counted = hosts.counted()
    assert (counted["ping"], counted["ports"]) == (0, 0)
    # The kernel sends a SYN again after a second, should this machine be as slow as that.
    assert counted["asked"] == 2 * DOWN or (not syn and 2 * DOWN < counted["asked"] < 3 * DOWN)


def test_nobody_there_is_a_scan_of_nothing(lab: Lab, version: int) -> None:
    require("nft")
    lab.keep_to(Truth())
    elsewhere, few = {
        4: ("198.18.40.1", "198.18.32.0/28"),
        6: ("2001:db8:1::4001", "2001:db8:1::2000/124"),
    }[version]
    there = rules(version, NETWORK[version], frozenset([elsewhere]), frozenset())
    lab.target.call(["nft", "-f", "-"], there)
    try:
        words = ["-t", few, "-p", "1-1000", "--syn", "--timeout", "100ms"]
        words += ["--retries", "0"]
        done = scan(lab.scanner, *words, "--discovery", "auto").expect(0)
    finally:
        lab.keep_to(Truth())
    assert done.events == []
    assert "0 probes and 48 of discovery" in done.stderr
    assert "16 hosts looked for, 0 up" in done.stderr


#: On the link itself: the scanner, and those of the target that are there.
OWN = {4: "198.19.128.1", 6: "2001:db8:9::1"}
NEAR = {4: ("198.19.128.7", "198.19.128.40"), 6: ("2001:db8:9::7", "2001:db8:9::28")}
PINGS = """
    table inet link {
      counter pings { }
      chain come {
        type filter hook prerouting priority -400; policy accept;
        icmp type echo-request counter name pings
        icmpv6 type echo-request counter name pings
      }
    }"""


def address(lab: Lab, what: str) -> None:
    """Give both ends their addresses on the link, or take them away."""
    for version, more in ((4, ("24",)), (6, ("64", "nodad"))):
        for namespace, mine in ((lab.scanner, (OWN[version],)), (lab.target, NEAR[version])):
            # The first one of a network takes the others with it: the last one goes first.
            for each in mine if what == "add" else reversed(mine):
                flags = more[1:] if what == "add" else ()
                namespace.ip("address", what, f"{each}/{more[0]}", "dev", INTERFACE, *flags)


def test_neighbours_are_found_by_arp_and_nd_alone(lab: Lab) -> None:
    """Of 48 on the local link each, two answer and one is the scanner; no host is pinged."""
    require("nft")
    lab.keep_to(Truth())
    lab.target.call(["nft", "-f", "-"], PINGS)
    address(lab, "add")
    try:
        where = "198.19.128.1-198.19.128.48,2001:db8:9::1-2001:db8:9::30"
        words = ["-p", "1000", "--show", "closed", "--timeout", "200ms", "--rate", "2000"]
        done = scan(lab.scanner, "-t", where, "--discovery", "auto", "--syn", *words)
        text = lab.target.call(["nft", "list", "counters"])
    finally:
        address(lab, "del")
        lab.keep_to(Truth())
    done.expect(0)
    assert targets_of(done.events) == {*NEAR[4], *NEAR[6], *OWN.values()}
    assert "96 hosts looked for, 6 up" in done.stderr
    assert "packets 0 bytes 0" in text


def test_arp_says_of_hosts_beyond_the_link_that_they_are_not_covered(
    lab: Lab, version: int
) -> None:
    far = {4: "198.18.0.0/28", 6: "2001:db8:1::/124"}[version]
    done = scan(lab.scanner, "-t", far, "-p", "80", "--discovery", "arp").expect(3)
    assert done.events == []
    assert "16 × not on a local link, where alone ARP reaches" in done.stderr


def test_by_a_server_and_nodes_in_two_pools(
    lab: Lab, hosts: Hosts, tmp_path: Path, credentials: Credentials
) -> None:
    cluster = Cluster(lab.scanner, tmp_path, credentials)
    cluster.start_server(
        {"targets": [NETWORK[hosts.version]], "tcpports": [PORTS], "udpports": []},
        {
            "discovery": "auto",
            "tcp": {"method": "syn", "retries": 0, "timeout": "300ms"},
            "ratelimit": 20000,
        },
        {"pools": 2},
    )
    cluster.start_node("one")
    cluster.start_node("two")
    cluster.expect_end()
    found = open_pairs(cluster.events())
    assert sorted(found) == sorted(2 * [(host, 1001) for host in hosts.up])
    assert hosts.counted() == {"ping": 2 * DOWN, "asked": 4 * DOWN, "ports": 0}
    assert "1,024 hosts looked for, 70 up" in cluster.said("server")


def test_killed_amid_discovery_and_gone_on_with(lab: Lab, hosts: Hosts, tmp_path: Path) -> None:
    state, out = tmp_path / "scan.state", tmp_path / "out.json"
    words = ["-t", NETWORK[hosts.version], "-p", PORTS, "--rate", "2500", "--timeout", "200ms"]
    words += ["--retries", "0"]
    # fmt: off
    command = nray(
        "scan", "--syn", "--discovery", "auto", *words, "--state", str(state), "-o", str(out)
    )
    # fmt: on
    process = lab.scanner.popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while hosts.counted()["ping"] < DOWN // 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    done = run(lab.scanner, nray("scan", "--resume", str(state))).expect(0)
    found = [json.loads(line)["result"] for line in out.read_text().splitlines()]
    assert sorted((each["target"], each["port"]) for each in found) == sorted(
        (host, 1001) for host in hosts.up
    )
    assert "1,024 hosts looked for, 70 up" in done.stderr
    assert hosts.counted()["ports"] == 0
    said = run(lab.scanner, nray("status", str(state))).expect(0).stdout
    assert "pool 0: 700 of 700 probes done" in said
    assert "pool 0: 2992 of 2992 probes of discovery done" in said


def test_without_the_right_one_sentence_and_status_2(lab: Lab, tmp_path: Path) -> None:
    require("setpriv")
    # fmt: off
    command = [
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--",
        *nray("scan", "-t", "127.0.0.1", "-p", "80", "--discovery", "arp",
              "--state", str(tmp_path / "state")),
    ]
    # fmt: on
    done = run(lab.scanner, command).expect(2)
    assert "looking for hosts by ping or ARP needs the right to raw sockets" in done.stderr
    assert "discovery syn:80,443" in done.stderr
    assert not (tmp_path / "state").exists()
