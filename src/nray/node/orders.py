"""What workers are told, made without a loop: so that work can begin before one runs."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nray.node.netlink import WIDTH
from nray.node.routes import LinkRow, RouteRow
from nray.targets.ports import ICMP
from nray.targets.ranges import merge
from nray.targets.segment import Segment
from nray.wire.messages import Settings
from nray.worker import protocol

#: The ways to probe TCP that a node knows, as it tells its server.
METHODS = ("connect", "syn")
#: What else a node says that it knows: segments by which hosts are looked for.
DISCOVERY = "discovery"
#: And: what `nray.wire.messages.Shown` tells.
FIRST_OPEN = "first-open"
#: A worker's socket takes so many bytes at once without a reader (Linux's default is 208 KiB);
#: what is larger waits for the loop.
PRIME_BYTES_MAX = 96 * 1024


class LeaseLike(Protocol):
    """A slice to be scanned."""

    @property
    def lease(self) -> int: ...
    @property
    def segment(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def count(self) -> int: ...


@dataclass
class Primed:
    """A worker that was asked for, and what it was already told.

    Attributes:
        socket: to the worker; a supervisor takes it over.
        configured: whether it was told how to scan.
        holds: leases that it was given.
        spaces: segments that it knows.
    """

    socket: socket.socket
    configured: bool = False
    holds: dict[int, LeaseLike] = field(default_factory=dict)
    spaces: set[int] = field(default_factory=set)


def configure(
    settings: Settings,
    index: int,
    processes: int,
    policy: protocol.Policy | None = None,
    raw: protocol.Raw | None = None,
) -> protocol.Configure:
    """What worker ``index`` of so many is told; it gets its share of the probes in flight."""
    window = 0
    if settings.workers:
        share, more = divmod(settings.workers, processes)
        window = max(1, share + (index < more))
    return protocol.Configure(
        window,
        settings.tcp_timeout_ms / 1000,
        settings.udp_timeout_ms / 1000,
        settings.states,
        settings.udp_payload,
        settings.udp_payloads,
        settings.udp_fast,
        settings.adaptive,
        policy,
        raw,
        settings.udp_checks,
        settings.udp_further,
        processes,
        settings.tarpits,
        settings.host_rate / processes,
        settings.network_rate / processes,
        settings.first_open,
    )


def raw(
    settings: Settings,
    index: int,
    processes: int,
    key: bytes,
    links: list[LinkRow],
    routes: Sequence[RouteRow],
    xdp: bool = False,
) -> protocol.Raw:
    """What worker ``index`` of so many needs to send packets of its own."""
    return protocol.Raw(
        key,
        index,
        processes,
        settings.retries,
        links,
        [_packed(route) for route in routes],
        xdp,
        finds_rate(settings),
    )


def _packed(route: RouteRow) -> tuple[int, bytes, bytes, int, bytes, bytes]:
    family, first, last, link, source, mac = route
    width = WIDTH[family]
    return family, first.to_bytes(width, "big"), last.to_bytes(width, "big"), link, source, mac


def space(segment: Segment, away: Sequence[bytes] = (), *, raw: bool = False) -> protocol.Space:
    """A segment's space as workers get it.

    Args:
        away: what excluded names resolve to here, 4 or 16 bytes each.
        raw: whether its slices go out as packets of our own.
    """
    excluded4, excluded6 = list(segment.excluded4), list(segment.excluded6)
    for address in away:
        number = int.from_bytes(address, "big")
        (excluded4 if len(address) == 4 else excluded6).append((number, number))
    return protocol.Space(
        segment.id,
        protocol.range_bytes(list(segment.ranges4), 4),
        protocol.range_bytes(list(segment.ranges6), 16),
        len(segment.names),
        list(segment.ports),
        segment.key,
        protocol.range_bytes(list(merge(excluded4)), 4),
        protocol.range_bytes(list(merge(excluded6)), 16),
        segment.search,
        raw,
    )


def needs_names(segment: Segment) -> bool:
    """Whether names must be looked up before a slice of the segment can be handed out."""
    return bool(segment.names or segment.excluded_names)


def is_raw(settings: Settings) -> bool:
    """Whether ports are probed by packets of our own making."""
    return settings.tcp_method == "syn"


def needs_raw(settings: Settings) -> bool:
    """Whether any packets are, those by which hosts are looked for among them."""
    return is_raw(settings) or settings.pings


def goes_raw(settings: Settings, segment: Segment) -> bool:
    """Whether the probes of a segment are."""
    return is_raw(settings) or any(kind == ICMP for kind, _ in segment.ports)


def finds_rate(settings: Settings) -> bool:
    """Whether ``ratelimit`` is but a cap, and the node finds the rate by itself."""
    return settings.ratelimit_auto and is_raw(settings)


def prime(
    workers: Sequence[Primed],
    settings: Settings,
    segments: dict[int, Segment],
    leases: Sequence[LeaseLike],
) -> None:
    """Tell new workers how to scan, and give them first leases, in turn; never blocks.

    The leases must need no names.
    """
    orders: list[list[protocol.ToWorker]] = []
    for index, worker in enumerate(workers):
        orders.append([configure(settings, index, len(workers))])
        worker.configured = True
    for number, lease in enumerate(leases):
        worker = workers[number % len(workers)]
        told = orders[number % len(workers)]
        if lease.segment not in worker.spaces:
            worker.spaces.add(lease.segment)
            told.append(space(segments[lease.segment]))
        told.append(protocol.Slice(lease.lease, lease.segment, lease.start, lease.count))
        worker.holds[lease.lease] = lease
    for worker, told in zip(workers, orders, strict=True):
        worker.socket.sendall(b"".join(map(protocol.pack, told)))


def may_prime(segments: Sequence[Segment]) -> bool:
    """Whether the segments are plain and small enough to be told before a loop runs."""
    ranges = sum(
        8 * (len(each.ranges4) + len(each.excluded4))
        + 32 * (len(each.ranges6) + len(each.excluded6))
        + 4 * len(each.ports)
        for each in segments
    )
    return ranges <= PRIME_BYTES_MAX // 2 and not any(map(needs_names, segments))
