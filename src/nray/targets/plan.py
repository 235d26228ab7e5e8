"""From what a user wrote to what will be probed: segments, exact totals, refusals.

Networks make one segment, names another: slices of networks need no look-ups, and a name in the
list should not slow them down. Totals are exact: overlapping targets count once, exclusions are
subtracted, a name is one host.
"""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from nray.targets import ranges, reserved
from nray.targets.discovery import stages_of
from nray.targets.errors import Notes, TargetError
from nray.targets.files import Entry, from_file, from_values
from nray.targets.networks import Targets, read_targets
from nray.targets.ports import TCP, UDP, Ports, Service, parse_ports
from nray.targets.ranges import Ranges
from nray.targets.segment import PROBES_MAX, SEARCH_NONE, Segment, Stage, segment_key

#: Bits of a seed that is drawn, not given: short enough to be typed again, and a signed 64-bit
#: number in every file format.
SEED_BITS = 63


@dataclass(frozen=True)
class Plan:
    """What a scan will probe.

    Attributes:
        segments: the parts of the space, in the order of their numbers.
        warnings: what was skipped or left out, one sentence each.
        hosts: addresses and names to be probed.
        ports: ports probed on each host, TCP and UDP together.
        probes: hosts times ports; with host discovery only of hosts that are found.
        excluded: addresses and names among the targets that exclusions took out, each once.
        seed: decides the order; the same seed and targets give the same order.
        searches: probes of host discovery at most: if all but the last stage find nothing.
    """

    segments: tuple[Segment, ...]
    warnings: tuple[str, ...]
    hosts: int
    ports: int
    probes: int
    excluded: int
    seed: int
    searches: int = 0


def plan(
    targets: str | Iterable[object] = (),
    *,
    tcp: str | int | Iterable[str | int] = (),
    udp: str | int | Iterable[str | int] = (),
    target_files: Iterable[str] = (),
    exclude: str | Iterable[object] = (),
    exclude_files: Iterable[str] = (),
    seed: int | None = None,
    strict: bool = True,
    permission: bool = False,
    include_reserved: bool = False,
    listing: bool = False,
    udp_only: Container[int] | None = None,
    discovery: str = "none",
    stdin: BinaryIO | None = None,
) -> Plan:
    """Reads targets, ports and exclusions into a plan.

    Args:
        targets, target_files: what to scan (`networks`), and files of it; ``-`` is standard input.
        tcp, udp: port expressions (`ports`); a ``U:`` among the TCP ones makes UDP ports.
        exclude, exclude_files: what never to scan. Unlike a target, an exclusion that cannot be
            read is an error even if not strict: leaving it out would scan what must not be.
        seed: decides the order; drawn at random if None.
        strict: unreadable targets and ports are errors (command line), not warnings (files).
        permission: the user says that an Internet-sized scan is allowed.
        include_reserved: leave reserved addresses in an Internet-sized scan.
        listing: nothing will be sent, so no permission is needed.
        udp_only: UDP ports that may be probed (those with a known payload); None: all.
        discovery: how hosts are looked for first (`nray.config.discovery`).
        stdin: read in place of standard input.

    Raises:
        TargetError: something is unreadable, or there is nothing to scan, too much to be
            counted, or an Internet without permission.
    """
    notes = Notes(strict=strict)
    stages = stages_of(discovery)
    written = read_targets(_entries(targets, target_files, "target", stdin), notes)
    away = read_targets(_entries(exclude, exclude_files, "exclusion", stdin), Notes(strict=True))
    services, port_warnings = _services(tcp, udp, strict=strict)
    if udp_only is not None:
        services = tuple(each for each in services if each[0] != UDP or each[1] in udp_only)
    wide = reserved.is_wide(written.ranges4, written.ranges6)
    given = away
    if wide and not include_reserved:
        away = _with_reserved(away)
    left = _subtract(written, away)

    hosts = left.hosts
    reserved_hosts = _subtract(written, given).hosts - hosts if wide else 0

    _refuse_nothing(written, left, given, services)
    probes = hosts * len(services)
    searches = hosts * sum(len(stage.ports) for stage in stages)
    if max(probes, searches) > PROBES_MAX:
        _refuse_uncountable(hosts, max(probes, searches) // hosts)
    if wide and not (permission or listing or _holds(given)):
        _refuse_internet(written)
    warnings = (*written.warnings, *port_warnings)
    if reserved_hosts:
        warnings += (f"{reserved_hosts} reserved addresses (RFC 6890) are left out",)
    if seed is None:
        seed = secrets.randbits(SEED_BITS)
    segments = _segments(left, away, (*stages, Stage(SEARCH_NONE, services)), seed)
    return Plan(
        segments=segments,
        warnings=warnings,
        hosts=hosts,
        ports=len(services),
        probes=probes,
        excluded=written.hosts - hosts,
        seed=seed,
        searches=searches,
    )


def _segments(
    left: Targets, away: Targets, stages: tuple[Stage, ...], seed: int
) -> tuple[Segment, ...]:
    """What is left of the targets, as segments numbered from 0, each for the first stage."""
    parts: list[tuple[Ranges, Ranges, tuple[str, ...]]] = []
    if left.ranges4 or left.ranges6:
        parts.append((left.ranges4, left.ranges6, ()))
    if left.names:
        parts.append(((), (), left.names))
    return tuple(
        Segment(
            id=number,
            ranges4=ranges4,
            ranges6=ranges6,
            names=names,
            ports=stages[0].ports,
            search=stages[0].search,
            then=stages[1:],
            key=segment_key(seed, number),
            excluded4=away.ranges4,
            excluded6=away.ranges6,
            excluded_names=tuple(name.lower() for name in away.names),
        )
        for number, (ranges4, ranges6, names) in enumerate(parts)
    )


def _entries(
    values: str | Iterable[object], files: Iterable[str], kind: str, stdin: BinaryIO | None
) -> Iterator[Entry]:
    yield from from_values(values, f"{kind}s", stdin)
    for path in files:
        yield from from_file(path, f"{kind} file", stdin)


def _services(
    tcp: str | int | Iterable[str | int], udp: str | int | Iterable[str | int], *, strict: bool
) -> tuple[tuple[Service, ...], tuple[str, ...]]:
    """All ports in the order of a segment, and warnings."""
    read: list[Ports] = [
        parse_ports(tcp, TCP, strict=strict, source="TCP ports"),
        parse_ports(udp, UDP, strict=strict, source="UDP ports"),
    ]
    services = {service for ports in read for service in ports.services}
    return tuple(sorted(services)), tuple(text for ports in read for text in ports.warnings)


def _with_reserved(away: Targets) -> Targets:
    return Targets(
        ranges.merge([*away.ranges4, *reserved.reserved4()]),
        ranges.merge([*away.ranges6, *reserved.reserved6()]),
        away.names,
    )


def _subtract(targets: Targets, away: Targets) -> Targets:
    unwanted = {name.lower() for name in away.names}
    return Targets(
        ranges.subtract(targets.ranges4, away.ranges4),
        ranges.subtract(targets.ranges6, away.ranges6),
        tuple(name for name in targets.names if name.lower() not in unwanted),
    )


def _holds(targets: Targets) -> bool:
    return bool(targets.ranges4 or targets.ranges6 or targets.names)


def _refuse_nothing(
    written: Targets,
    left: Targets,
    given: Targets,
    services: tuple[Service, ...],
) -> None:
    """Raises TargetError if there is nothing to scan, with the likely cause."""
    if _holds(left) and services:
        return
    if not _holds(written):
        if written.warnings:
            raise TargetError("nothing to scan: no target could be read", written.warnings[0])
        raise TargetError("nothing to scan: no targets", "name networks, addresses or names")
    if not services:
        raise TargetError("nothing to scan: no ports", "name some, such as 22,80 or top100")
    if not _holds(_subtract(written, given)):
        raise TargetError(
            f"nothing to scan: exclusions cover all {written.hosts} hosts",
            "look for a network among the exclusions that holds the targets",
        )
    raise TargetError(
        f"nothing to scan: all {written.hosts} hosts are excluded or reserved addresses",
        "include the reserved addresses if they are meant (--include-reserved, "
        "includeReserved: true)",
    )


def _refuse_uncountable(hosts: int, ports: int) -> None:
    most = PROBES_MAX // ports
    prefix = 128 - (most.bit_length() - 1)
    raise TargetError(
        f"{hosts} hosts times {ports} ports are {hosts * ports} probes, more than 2^63 = "
        f"{PROBES_MAX}",
        f"with {ports} ports {most} hosts would fit, an IPv6 /{prefix} for instance",
    )


def _refuse_internet(written: Targets) -> None:
    raise TargetError(
        f"{written.hosts} hosts are a scan of the Internet (more than a /8 of IPv4 or a /32 of "
        "IPv6)",
        "give exclusions (--exclude-file, blacklistFile:), or say that you may scan it "
        "(--i-have-permission, iHavePermission: true)",
    )
