"""What the target answers to each probe, drawn from a seed, and how nray must report it.

A `Fate` joins three things: what nftables is told, the state and the reasons that nray may give.
Probes without an entry are closed, as they are on any machine without a listener.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: ("tcp" or "udp", address, port)
Probe = tuple[str, str, int]


@dataclass(frozen=True)
class Fate:
    """One way to answer.

    A connect scan sees what the kernel makes of an answer, a SYN scan what is on the wire; where
    that is not the same, `seen_by` says how.

    Attributes:
        name: unique, letters and underscores; names the nft chain.
        state: nray's state for it over TCP (DESIGN.md, contract 2).
        reasons: nray may give any of these (nmap's words; a connect scan cannot always tell more).
        rule4: the nft statement for IPv4; empty where there is no such thing.
        rule6: the same for IPv6.
    """

    name: str
    state: str
    reasons: frozenset[str]
    rule4: str
    rule6: str

    def seen_by(self, method: str) -> tuple[str, frozenset[str]]:
        """State and possible reasons in a ``connect`` or ``syn`` scan (as `nmap -sS` has them)."""
        if method == "syn" and self is CLOSED:
            return "closed", frozenset({"reset"})
        if method == "syn" and self.name == "port_unreach":
            return "filtered", self.reasons
        return self.state, self.reasons


def _rejected(name: str, reason: str, code4: str, code6: str, state: str = "filtered") -> Fate:
    rule4 = f"reject with icmp type {code4}" if code4 else ""
    rule6 = f"reject with icmpv6 type {code6}" if code6 else ""
    return Fate(name, state, frozenset({reason}), rule4, rule6)


_REFUSED = frozenset({"conn-refused", "reset"})
OPEN = Fate("open", "open", frozenset({"syn-ack"}), "accept", "accept")
SILENT = Fate("silent", "filtered", frozenset({"no-response"}), "drop", "drop")
CLOSED = Fate(
    "closed",
    "closed",
    _REFUSED,
    "meta l4proto tcp reject with tcp reset",
    "meta l4proto tcp reject with tcp reset",
)
ADMIN = _rejected("admin", "admin-prohibited", "admin-prohibited", "admin-prohibited")
#: Each ICMP code that nftables can send; numbers: RFC 792 and 1812, RFC 4443.
REJECTED: tuple[Fate, ...] = (
    ADMIN,
    _rejected("net_unreach", "net-unreach", "net-unreachable", ""),
    _rejected("host_unreach", "host-unreach", "host-unreachable", ""),
    _rejected("proto_unreach", "proto-unreach", "prot-unreachable", ""),
    _rejected("net_prohibited", "net-prohibited", "net-prohibited", ""),
    _rejected("host_prohibited", "host-prohibited", "host-prohibited", ""),
    _rejected("no_route", "no-route", "", "no-route"),
    _rejected("addr_unreach", "host-unreach", "", "addr-unreachable"),
    _rejected("port_unreach", "port-unreach", "port-unreachable", "port-unreachable", "closed"),
)
#: So many SYNs a second are answered; the rest is dropped. Not to be drawn with others: whether
#: one is found open depends on how fast it is asked.
LIMITED_PER_S = 200
_LIMITED = f"limit rate over {LIMITED_PER_S}/second burst 5 packets drop\n    accept"
LIMITED = Fate("limited", "open", frozenset({"syn-ack"}), _LIMITED, _LIMITED)
FATES: tuple[Fate, ...] = (OPEN, SILENT, CLOSED, *REJECTED)


def rejected(version: int) -> list[Fate]:
    """The ICMP rejections that IP of this version knows."""
    return [fate for fate in REJECTED if (fate.rule4 if version == 4 else fate.rule6)]


@dataclass
class Truth:
    """Fates by probe; whatever is not in it is closed."""

    fates: dict[Probe, Fate] = field(default_factory=dict)

    def having(self, *wanted: Fate) -> set[Probe]:
        """All probes with one of these fates."""
        return {probe for probe, fate in self.fates.items() if fate in wanted}

    def open_pairs(self, protocol: str = "tcp") -> set[tuple[str, int]]:
        """(address, port) of what is open."""
        return {probe[1:] for probe in self.having(OPEN) if probe[0] == protocol}

    def listening(self) -> set[tuple[str, int]]:
        """(protocol, port) of every listener needed."""
        return {(protocol, port) for protocol, _, port in self.having(OPEN, LIMITED)}


def draw_ports(
    seed: int,
    address: str,
    counts: Mapping[Fate, int],
    ports: Iterable[int] = range(1, 65536),
    protocol: str = "tcp",
) -> Truth:
    """A host of which so many ports, drawn at random, have each of these fates."""
    chosen = iter(random.Random(seed).sample(list(ports), sum(counts.values())))
    truth = Truth()
    for fate, count in counts.items():
        truth.fates.update({(protocol, address, next(chosen)): fate for _ in range(count)})
    return truth


def draw_hosts(
    seed: int, network: str, port: int, shares: Mapping[Fate, float], protocol: str = "tcp"
) -> Truth:
    """A network of which each address has one of these fates on one port.

    The shares are kept exactly (rounded down); what is left over is closed.
    """
    addresses = [str(address) for address in ipaddress.ip_network(network)]
    random.Random(seed).shuffle(addresses)
    truth = Truth()
    begin = 0
    for fate, share in shares.items():
        end = begin + int(len(addresses) * share)
        truth.fates.update({(protocol, address, port): fate for address in addresses[begin:end]})
        begin = end
    truth.fates.update({(protocol, address, port): CLOSED for address in addresses[begin:]})
    return truth


def draw_space(
    seed: int, network: str, ports: Iterable[int], shares: Mapping[Fate, float]
) -> Truth:
    """`draw_hosts` for each of some ports, each drawn anew."""
    truth = Truth()
    for number, port in enumerate(ports):
        truth.fates.update(draw_hosts(seed * 1000 + number, network, port, shares).fates)
    return truth


def nftables(truth: Truth, loss: float = 0.0) -> str:
    """The ruleset that makes a target, with listeners on `Truth.listening`, keep to the truth.

    One verdict map for each IP version decides; a listening port of an address that is not in it is
    reset, and all else is left to the kernel, which resets too (or answers UDP with ICMP).

    Args:
        loss: share of packets that is lost, of those that come and of those that go.
    """
    chains = []
    elements: dict[int, list[str]] = {4: [], 6: []}
    for fate in (*FATES, LIMITED):
        for version, rule in ((4, fate.rule4), (6, fate.rule6)):
            if rule:
                chains.append(f"  chain {fate.name}{version} {{\n    {rule}\n  }}")
    for (protocol, address, port), fate in truth.fates.items():
        version = ipaddress.ip_address(address).version
        if not (fate.rule4 if version == 4 else fate.rule6):
            raise ValueError(f"IPv{version} has no {fate.name}")
        elements[version].append(f"{address} . {protocol} . {port} : goto {fate.name}{version}")
    ports = sorted({port for protocol, port in truth.listening() if protocol == "tcp"})
    lines = ["table inet lab {"]
    for version in (4, 6):
        lines.append(f"  map fate{version} {{")
        lines.append(f"    type ipv{version}_addr . inet_proto . inet_service : verdict")
        if elements[version]:
            lines.append(f"    elements = {{ {', '.join(elements[version])} }}")
        lines.append("  }")
    lines.append("  set listening {\n    type inet_service")
    if ports:
        lines.append(f"    elements = {{ {', '.join(map(str, ports))} }}")
    lines.append("  }")
    lines.extend(chains)
    lines += [
        "  chain input {",
        "    type filter hook input priority 0; policy accept;",
        '    iifname "lo" accept',
        "    ip daddr . meta l4proto . th dport vmap @fate4",
        "    ip6 daddr . meta l4proto . th dport vmap @fate6",
        "    tcp dport @listening reject with tcp reset",
        "  }",
    ]
    if loss:
        for hook in ("prerouting", "postrouting"):
            lines += [
                f"  chain lose_{hook} {{",
                f"    type filter hook {hook} priority -310; policy accept;",
                f'    {"i" if hook == "prerouting" else "o"}ifname "lo" accept',
                f"    numgen random mod 100000 < {round(loss * 100_000)} drop",
                "  }",
            ]
    lines.append("}")
    return "\n".join(lines) + "\n"
