"""The raw engine against whole networks whose truth is drawn from a seed: the sets must be equal.

Scanner and target are two namespaces joined by a veth pair; what leaves is judged by tshark, too.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from core_lab import ALL_STATES, TCP, Drive, Hit, bucket, inside, run, space, tcp, udp
from lab.namespaces import require
from lab.network import (
    INTERFACE,
    SCANNER4,
    SCANNER6,
    TARGET4,
    TARGET6,
    TARGETS4,
    TARGETS6,
    Lab,
)
from lab.truth import ADMIN, CLOSED, FATES, OPEN, SILENT, Truth, draw_hosts, draw_ports
from nray import _core
from raw_lab import COOKIE_KEY

pytestmark = pytest.mark.lab

SCANNER_MAC, TARGET_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def ways() -> dict[str, Any]:
    """Links and routes of the scanner's namespace: gateway for the targets, itself over lo."""
    links = [
        (socket.if_nametoindex("lo"), "lo", False, b"", 65536),
        (socket.if_nametoindex(INTERFACE), INTERFACE, True, SCANNER_MAC, 1500),
    ]
    routes = []
    for text, link, own, mac in [
        ("127.0.0.0/8", 0, "127.0.0.1", b""),
        (TARGETS4, 1, SCANNER4, TARGET_MAC),
        (SCANNER4, 0, SCANNER4, b""),
        (TARGET4, 1, SCANNER4, b""),
        ("::1", 0, "::1", b""),
        (TARGETS6, 1, SCANNER6, TARGET_MAC),
        (TARGET6, 1, SCANNER6, b""),
    ]:
        network = ip_network(text)
        ends = int(network.network_address), int(network.broadcast_address)
        routes.append((network.version, *ends, link, ip_address(own).packed, mac))
    return {"links": links, "routes": routes}


def engine(**options: Any) -> _core.RawEngine:
    rate = options.pop("rate", 0)
    given = {"key": COOKIE_KEY, "states": ALL_STATES, "tcp_timeout_s": 0.5, "retries": 1}
    return _core.RawEngine(bucket(rate), **(given | ways() | options))


def found(where: _core.Space, hits: list[Hit]) -> dict[tuple[str, str, int], tuple[str, str]]:
    states = {}
    for hit in hits:
        _, _, protocol, port = where.at(hit.position)
        states["tcp" if protocol == TCP else "udp", hit.address, port] = (hit.state, hit.reason)
    assert len(states) == len(hits), "a probe was reported twice"
    return states


def judge(truth: Truth, states: dict[tuple[str, str, int], tuple[str, str]]) -> list[str]:
    """Every probe that does not end as it must; those without an entry are closed."""
    faults = []
    for probe, (state, reason) in states.items():
        fate = truth.fates.get(probe, CLOSED)
        if state != fate.state and not (fate.reasons == {"port-unreach"} and state == "filtered"):
            faults.append(f"{probe}: {state}, not {fate.state}")
        elif reason not in fate.reasons:
            faults.append(f"{probe}: {reason}, not {set(fate.reasons)}")
    return faults


NETWORKS = {4: "198.18.4.0/24", 6: "2001:db8:1::4:0/120"}


def test_each_fate_is_told(lab: Lab, version: int) -> None:
    """Every way to answer, each ICMP code among them, over hosts and over ports."""
    if not lab.icmp_unlimited:
        pytest.skip("this kernel does not let a namespace lift its ICMP limits")
    fates = [fate for fate in FATES if (fate.rule4 if version == 4 else fate.rule6)]
    network = ip_network(NETWORKS[version])
    truth = draw_hosts(5, str(network), 80, dict.fromkeys(fates, 0.9 / len(fates)))
    host = str(network[7])
    more = draw_ports(6, host, dict.fromkeys(fates, 5), range(1000, 2000))
    truth.fates.update(more.fates)
    lab.keep_to(truth)
    hosts = space([f"{network[0]}-{network[255]}"], tcp(80))
    ports = space([host], tcp(*range(1000, 2000)))
    with inside(lab.scanner):
        drive = Drive(engine())
        drive.engine.add_slice(1, 0, hosts.total, hosts, None)
        drive.engine.add_slice(2, 0, ports.total, ports, None)
        drive.to_end()
        assert drive.engine.drops == 0
    for where, lease in ((hosts, 1), (ports, 2)):
        states = found(where, drive.leases[lease].hits)
        assert len(states) == where.total
        assert judge(truth, states) == []


def test_each_fate_is_told_over_udp(lab: Lab, version: int) -> None:
    if not lab.icmp_unlimited:
        pytest.skip("this kernel does not let a namespace lift its ICMP limits")
    host = str(ip_network(NETWORKS[version])[9])
    fates = [fate for fate in FATES if fate not in (OPEN, CLOSED)]
    fates = [fate for fate in fates if (fate.rule4 if version == 4 else fate.rule6)]
    truth = draw_ports(8, host, dict.fromkeys(fates, 6), range(1000, 1200), "udp")
    truth.fates.update(draw_ports(9, host, {OPEN: 7}, range(2000, 2050), "udp").fates)
    lab.keep_to(truth, "echo")
    where = space([host], udp(*range(1000, 1200), *range(2000, 2050)))
    with inside(lab.scanner):
        ended = run(engine(udp_timeout_s=0.5), where)
    states = found(where, ended.hits)
    assert len(states) == where.total
    for probe, state in states.items():
        fate = truth.fates.get(probe)
        if fate is None:
            assert state == ("closed", "port-unreach")
        elif fate is OPEN:
            assert state == ("open", "udp-response")
        elif fate is SILENT:
            assert state == ("open|filtered", "no-response")
        else:
            (reason,) = fate.reasons
            assert state == ("closed" if reason == "port-unreach" else "filtered", reason)


def test_a_whole_network_at_a_fixed_rate(lab: Lab, version: int) -> None:
    """4,096 hosts × 2 ports in four slices, a shared rate: all open ones, and no other."""
    first = ip_address("198.18.16.0" if version == 4 else "2001:db8:1::16:0")
    network = f"{first}/{20 if version == 4 else 116}"
    truth = draw_hosts(7, network, 80, {OPEN: 0.2, SILENT: 0.4})
    lab.keep_to(truth)
    where = space([f"{first}-{first + 4095}"], tcp(80, 81))
    with inside(lab.scanner):
        drive = Drive(engine(rate=100_000, states=()))
        for k in range(4):
            drive.engine.add_slice(k, k * 2048, 2048, where, None)
        drive.to_end()
        assert drive.engine.drops == 0
    hits = [hit for ended in drive.leases.values() for hit in ended.hits]
    assert {probe[1:] for probe in found(where, hits)} == truth.open_pairs()
    silent = sum(ended.counts["filtered"] for ended in drive.leases.values())
    assert silent == len(truth.having(SILENT))
    assert all(hit.rtt_us for hit in hits)


def test_this_machine_over_lo(lab: Lab) -> None:
    """127.0.0.0/8, ::1 and own addresses go by raw IP sockets; the kernel answers itself."""
    with inside(lab.scanner), contextlib.ExitStack() as stack:
        for family, address in ((socket.AF_INET, "127.3.3.3"), (socket.AF_INET6, "::")):
            listener = socket.socket(family, socket.SOCK_STREAM)
            stack.enter_context(listener)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((address, 7000 if family == socket.AF_INET else 7001))
            listener.listen(100)
        # own source ports among the ports: our SYNs are no answers
        ports = tcp(7000, 7001, *range(61440, 61540))
        where = space(["127.0.0.1", "127.3.3.3", SCANNER4, "::1"], ports)
        ended = run(engine(retries=0), where)
        opened = {
            (hit.address, where.at(hit.position)[3]) for hit in ended.hits if hit.state == "open"
        }
        everywhere = {(address, 7001) for address in ("127.0.0.1", "127.3.3.3", SCANNER4, "::1")}
        assert opened == everywhere | {("127.3.3.3", 7000)}
        assert ended.counts["closed"] == where.total - 5


@pytest.mark.parametrize("target", [TARGET4, TARGET6])
def test_a_neighbour_on_the_link(lab: Lab, target: str) -> None:
    lab.keep_to(Truth())
    where = space([target], tcp(80, 81))
    with inside(lab.scanner):
        drive = Drive(engine())
        drive.engine.add_slice(1, 0, 2, where, None)
        drive.pump(0.05)
        ((link, address),) = drive.engine.neighbours_wanted()
        drive.engine.set_neighbour(link, address, TARGET_MAC)
        assert drive.to_end().counts["closed"] == 2


def test_what_leaves_is_well_formed(lab: Lab, tmp_path: Path) -> None:
    """tshark finds no wrong checksum and no malformed frame, in any kind of probe."""
    require("tshark", "tcpdump")
    lab.keep_to(draw_ports(3, "198.18.0.9", {SILENT: 20, ADMIN: 5}, range(1, 60)))
    path = tmp_path / "out.pcap"
    where = space(
        ["198.18.0.1-198.18.0.9", "2001:db8:1::1-2001:db8:1::9"],
        tcp(*range(1, 60)) + udp(40000, 40001),
    )
    # fmt: off
    capture = lab.scanner.popen(
        ["tcpdump", "-i", INTERFACE, "-U", "-s", "256", "-B", "16384", "-w", str(path), "-Q", "out",
         "portrange 61440-65535 and not icmp"],
        stderr=subprocess.PIPE, text=True,
    )
    # fmt: on
    assert capture.stderr is not None
    assert "listening" in capture.stderr.readline()
    with inside(lab.scanner):
        payloads = {40001: bytes(range(33))}
        drive = Drive(engine(rate=10_000, tcp_timeout_s=0.1, udp_timeout_s=0.1, payloads=payloads))
        drive.engine.add_slice(1, 0, where.total, where, None)
        drive.to_end()
    sent = drive.engine.sent
    program = shutil.which("tshark")
    assert program is not None

    def shown(what: str) -> int:
        # fmt: off
        done = subprocess.run(
            [program, "-n", "-r", str(path), "-o", "ip.check_checksum:TRUE",
             "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-Y", what],
            capture_output=True, text=True, check=True, timeout=180,
        )
        # fmt: on
        return len(done.stdout.splitlines())

    probes = "(tcp.flags == 2 || udp)"
    deadline = time.monotonic() + 60
    while shown(probes) < sent and time.monotonic() < deadline:
        time.sleep(0.1)
    capture.send_signal(signal.SIGINT)
    capture.wait(60)
    assert shown(probes) == sent > where.total
    for good in ("tcp.checksum.status == 1", "udp.checksum.status == 1"):
        assert shown(f"{probes} && {good}") > 0
    assert shown("ip.checksum.status == 0 || tcp.checksum.status == 0") == 0
    assert shown("udp.checksum.status == 0 || _ws.malformed || _ws.expert.severity == error") == 0
    assert shown("ip && !(ip.checksum.status == 1)") == 0
    assert shown(f"{probes} && udp && !(udp.checksum.status == 1)") == 0
