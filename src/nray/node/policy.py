"""What this node will ever do, whatever its server says.

A policy holds what is allowed; workers are told what it refuses (`orders`), and their core asks
before every packet. Here, too, a server's settings are cut to what the policy bears.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec

from nray.targets import ranges
from nray.targets.ports import PORT_MAX, PROTOCOL_NAMES, TCP, UDP
from nray.targets.ranges import Range, Ranges
from nray.targets.segment import Segment
from nray.wire.messages import Settings
from nray.worker import protocol

#: (protocol, first port, last port)
Run = tuple[int, int, int]

_ALL4: Ranges = ((0, 2**32 - 1),)
_ALL6: Ranges = ((0, 2**128 - 1),)

#: Addresses of IPv6 that a router may turn into an IPv4 address, as (prefix, bits below the
#: embedded one): NAT64 (RFC 6052, 64:ff9b::/96) and 6to4 (RFC 3056, 2002::/16). Where an IPv4
#: address must never be reached, they must not be, either. (The mapped ones, ::ffff:0:0/96, are
#: IPv4 addresses to the core.)
_EMBEDDING = ((0x64FF9B << 96, 0), (0x2002 << 112, 80))

#: What Linux connects to where one asks for the unspecified address (connect(2) to INADDR_ANY).
_LOOPBACK4, _LOOPBACK6 = 0x7F000001, 1

#: Networks that the summary names; the server's log is to be read, not searched.
_NAMED_MAX = 4


@dataclass(frozen=True)
class Policy:
    """What may be scanned from here; see docs/policy.md.

    Attributes:
        networks4, networks6: the addresses that may be probed, ``never`` taken out already.
        ports: those that may be, (protocol, first, last).
        networks: the same for people, as it was written.
        ratelimit: probes a second at most, 0 for no cap.
        workers: probes in flight at most, 0 for no cap.
        names: whether names may be looked up.
        modules: application-layer modules that may run against open ports.
    """

    networks4: Ranges
    networks6: Ranges
    ports: tuple[Run, ...]
    networks: str = ""
    ratelimit: float = 0.0
    workers: int = 0
    names: bool = True
    modules: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        allowed4: Ranges,
        allowed6: Ranges,
        never4: Ranges,
        never6: Ranges,
        ports: Iterable[Run],
        *,
        ratelimit: float = 0.0,
        workers: int = 0,
        names: bool = True,
        modules: tuple[str, ...] = (),
    ) -> Policy:
        """A policy from what a user wrote; ``never`` wins."""
        networks4 = ranges.subtract(allowed4, never4)
        networks6 = ranges.subtract(allowed6, ranges.merge([*never6, *_embedded(never4)]))
        # An unspecified address reaches this machine: allowed only where that is.
        if not _holds(networks4, _LOOPBACK4):
            networks4 = ranges.subtract(networks4, ((0, 0),))
        if not _holds(networks6, _LOOPBACK6):
            networks6 = ranges.subtract(networks6, ((0, 0),))
        words = _listed([*_names(allowed4, 4), *_names(allowed6, 6)])
        if never4 or never6:
            words += f" without {_listed([*_names(never4, 4), *_names(never6, 6)])}"
        return cls(networks4, networks6, _runs(ports), words, ratelimit, workers, names, modules)

    @property
    def refused4(self) -> Ranges:
        """The IPv4 addresses that must not be probed."""
        return ranges.subtract(_ALL4, self.networks4)

    @property
    def refused6(self) -> Ranges:
        """The IPv6 addresses that must not be probed; mapped ones are asked for as IPv4."""
        return ranges.subtract(_ALL6, self.networks6)

    def order(self) -> protocol.Policy:
        """The policy as workers get it."""
        return protocol.Policy(
            protocol.range_bytes(list(self.refused4), 4),
            protocol.range_bytes(list(self.refused6), 16),
            list(self.ports),
        )

    def restrict(self, settings: Settings) -> Settings:
        """A server's settings, cut to what the policy bears."""
        return msgspec.structs.replace(
            settings,
            ratelimit=_lower(settings.ratelimit, self.ratelimit),
            workers=_lower(settings.workers, self.workers),
        )

    def refuses_whole(self, segment: Segment) -> bool:
        """Whether nothing of a segment may be scanned, as far as can be told without its slices.

        Excluded names that may not be looked up might be any address: exclusions win.
        """
        if not self.names and segment.excluded_names:
            return True
        if segment.names and self.names:
            return False
        return not (
            ranges.meet(segment.ranges4, self.networks4)
            or ranges.meet(segment.ranges6, self.networks6)
        )

    def networks_of(self, segment: Segment) -> tuple[Ranges, Ranges]:
        """What of a segment's networks, IPv4 and IPv6, may be probed; ports not looked at."""
        return (
            ranges.subtract(segment.ranges4, self.refused4),
            ranges.subtract(segment.ranges6, self.refused6),
        )

    def allows(self, address: bytes) -> bool:
        """Whether an address, of 4 or 16 bytes, may be probed; ports not looked at."""
        networks = self.networks4 if len(address) == 4 else self.networks6
        return _holds(networks, int.from_bytes(address, "big"))

    def words(self) -> str:
        """What it allows, in one line for the server's log."""
        parts = [f"{self.networks} only"]
        if self.ports != _ALL_PORTS:
            parts.append(_port_words(self.ports))
        if self.ratelimit:
            parts.append(f"{self.ratelimit:g} probes a second")
        if self.workers:
            parts.append(f"{self.workers} in flight")
        if not self.names:
            parts.append("no names")
        return "; ".join(parts)


def _lower(asked: float, cap: float) -> float:
    """The lower of two limits, where 0 is none."""
    return min(asked or cap, cap or asked)


def _holds(networks: Ranges, address: int) -> bool:
    return ranges.meet(networks, ((address, address),))


def _embedded(never4: Ranges) -> list[Range]:
    return [
        (prefix | first << below, prefix | ((last + 1) << below) - 1)
        for prefix, below in _EMBEDDING
        for first, last in never4
    ]


def _runs(ports: Iterable[Run]) -> tuple[Run, ...]:
    """The same ports, sorted, in as few runs as can be."""
    runs: list[Run] = []
    for kind, first, last in sorted(ports):
        if runs and runs[-1][0] == kind and first <= runs[-1][2] + 1:
            runs[-1] = (kind, runs[-1][1], max(last, runs[-1][2]))
        else:
            runs.append((kind, first, last))
    return tuple(runs)


_ALL_PORTS = ((TCP, 1, PORT_MAX), (UDP, 1, PORT_MAX))


def _listed(words: Sequence[str]) -> str:
    more = len(words) - _NAMED_MAX
    return ", ".join(words[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _names(networks: Ranges, family: int) -> list[str]:
    """Networks as people write them: as one with a prefix where they are one."""
    bits = 32 if family == 4 else 128
    found = []
    for first, last in networks:
        size = last - first + 1
        low, high = (ip_address(each.to_bytes(bits // 8, "big")) for each in (first, last))
        if size == 1:
            found.append(str(low))
        elif size & (size - 1) == 0 and first % size == 0:
            found.append(f"{low}/{bits - size.bit_length() + 1}")
        else:
            found.append(f"{low}-{high}")
    return found


def _port_words(ports: Sequence[Run]) -> str:
    words = []
    for kind in (TCP, UDP):
        runs = [(first, last) for each, first, last in ports if each == kind]
        if not runs:
            words.append(f"no {PROTOCOL_NAMES[kind]}")
        elif runs != [(1, PORT_MAX)]:
            shown = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:_NAMED_MAX])
            more = f" and {len(runs) - _NAMED_MAX} more" if len(runs) > _NAMED_MAX else ""
            words.append(f"{PROTOCOL_NAMES[kind]} {shown}{more}")
    return ", ".join(words)
