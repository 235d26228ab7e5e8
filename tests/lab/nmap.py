"""What nmap says of the same ports, to compare with."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

from .namespaces import Namespace


def syn_states(
    namespace: Namespace, hosts: Iterable[str], ports: Iterable[int]
) -> dict[tuple[str, int], tuple[str, str]]:
    """(host, port) to (state, reason) by ``nmap -sS``; at most 25 ports, or it leaves some out."""
    return _states(namespace, "-sS", hosts, ports)


def udp_states(
    namespace: Namespace, hosts: Iterable[str], ports: Iterable[int]
) -> dict[tuple[str, int], tuple[str, str]]:
    """The same by ``nmap -sU``."""
    return _states(namespace, "-sU", hosts, ports)


def _states(
    namespace: Namespace, kind: str, hosts: Iterable[str], ports: Iterable[int]
) -> dict[tuple[str, int], tuple[str, str]]:
    chosen = sorted(ports)
    assert len(chosen) <= 25
    hosts = list(hosts)
    # fmt: off
    command = [
        "nmap", *(["-6"] if ":" in hosts[0] else []), kind, "-Pn", "-n", "--reason",
        "--max-retries", "2", "--initial-rtt-timeout", "150ms", "--max-rtt-timeout", "300ms",
        "-p", ",".join(map(str, chosen)), "-oX", "-", "-iL", "-",
    ]
    # fmt: on
    tree = ElementTree.fromstring(namespace.call(command, "\n".join(hosts)))
    found = {}
    for host in tree.iter("host"):
        address = next(each for each in host.iter("address")).attrib["addr"]
        for port in host.iter("port"):
            state = next(port.iter("state"))
            found[address, int(port.attrib["portid"])] = (
                state.attrib["state"],
                state.attrib["reason"],
            )
    return found
