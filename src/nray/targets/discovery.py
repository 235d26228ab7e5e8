"""Host discovery: how it is found out which hosts are there, and what follows.

A discovery segment is hosts times few probes; any answer says that a host is there. When it is
done in every pool, what it has found, times the ports that are wanted, becomes a segment of its
own, and where there is another stage, what was silent becomes one of that. Both depend on nothing
but the segment and what it found: a server that died in between makes the same again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import replace

from nray import _core
from nray.config.discovery import SYN, DiscoveryError, parse_discovery
from nray.targets import ranges
from nray.targets.errors import TargetError
from nray.targets.ports import ICMP, TCP
from nray.targets.ranges import Ranges
from nray.targets.segment import SEARCH_HOSTS, SEARCH_LINK, SEARCH_NEAR, Segment, Stage

#: Ranges of found hosts in one segment, by bytes of an address: 8 MiB packed, 4 MiB of IPv6, and so
#: well within a frame and what a node keeps. Where there are more, those with the smallest gaps
#: between them are joined, and the hosts in the gaps, which were silent, are scanned as well.
RANGES_MAX = {4: 2**20, 16: 2**17}

#: An echo request: it has no port.
ECHO = (ICMP, 0)
#: What `auto` asks those that do not answer to an echo request.
AUTO_PORTS = (80, 443)

_RECORD_BYTES = _core.HIT_BYTES
_OPEN = _core.STATES.index("open")


def stages_of(text: str) -> tuple[Stage, ...]:
    """What is sent, one stage after the other, each to those that were silent before.

    Raises:
        TargetError: it says not how to look.
    """
    try:
        word, ports = parse_discovery(text)
    except DiscoveryError as error:
        raise TargetError(
            f"discovery: {text[:60]!r} is no way to look for hosts", str(error)
        ) from None
    match word:
        case "ping":
            return (Stage(SEARCH_HOSTS, (ECHO,)),)
        case "arp":
            return (Stage(SEARCH_LINK, (ECHO,)),)
        case "auto":
            return (Stage(SEARCH_NEAR, (ECHO,)), _syn(AUTO_PORTS))
        case _:
            return (_syn(ports),) if word == SYN else ()


def _syn(ports: Iterable[int]) -> Stage:
    return Stage(SEARCH_HOSTS, tuple((TCP, port) for port in ports))


def sends_pings(text: str) -> bool:
    """Whether hosts are looked for by echo requests, ARP or neighbour discovery (`stages_of`)."""
    return any(ECHO in stage.ports for stage in stages_of(text))


def unfollowed(segments: Iterable[Segment]) -> list[Segment]:
    """The discovery segments that nothing follows yet: it may be that nothing will."""
    known = list(segments)
    followed = {each.after for each in known}
    return [each for each in known if each.search and each.id not in followed]


def searched_hosts(segments: Iterable[Segment]) -> tuple[int, int]:
    """How many hosts are looked for, and how many of them are scanned, as far as is known."""
    known = list(segments)
    looked_for = sum(each.hosts for each in known if each.search and each.after < 0)
    return looked_for, sum(each.hosts for each in known if not each.search and each.after >= 0)


class Found:
    """The hosts that one discovery segment has found, gathered from hits as they come."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._four = array("I")
        self._six: set[int] = set()
        self._names: set[int] = set()

    def add(self, packed: bytes) -> None:
        """Packed hits of the segment, of any pool; one that is not open says nothing."""
        states, families = set(packed[29::_RECORD_BYTES]), set(packed[31::_RECORD_BYTES])
        if not self._segment.names and states == {_OPEN} and families == {4}:
            # Words of a record: position (2), address in network order, …
            found = array("I", memoryview(packed).cast("I")[2 :: _RECORD_BYTES // 4].tolist())
            found.byteswap()
            self._four += found
            return
        for at in range(0, len(packed), _RECORD_BYTES):
            record = packed[at : at + _RECORD_BYTES]
            if record[29] == _OPEN:
                self._add(record)

    def _add(self, record: bytes) -> None:
        family, number, _, _ = self._segment.space.at(int.from_bytes(record[:8], "little"))
        if family == 4:
            self._four.append(number)
        elif family == 6:
            self._six.add(number)
        else:
            self._names.add(number)

    def hosts(self) -> tuple[Ranges, Ranges, tuple[str, ...]]:
        """IPv4, IPv6 and names, each once."""
        return (
            ranges.runs(sorted(set(self._four))),
            ranges.runs(sorted(self._six)),
            tuple(self._segment.names[number] for number in sorted(self._names)),
        )


def following(segment: Segment, found: Found, number: int) -> tuple[Segment, ...]:
    """The segments that follow a discovery segment which is done; two at most, or none.

    Args:
        number: of the first of them.
    """
    four, six, names = found.hosts()
    four = _few(four, segment.ranges4, RANGES_MAX[4])
    six = _few(six, segment.ranges6, RANGES_MAX[16])
    *further, wanted = segment.then
    parts: list[tuple[bytes, Stage, tuple[Stage, ...], Ranges, Ranges, tuple[str, ...]]] = [
        (b"found", wanted, (), four, six, names)
    ]
    if further:
        there = set(names)
        # fmt: off
        parts.append((
            b"silent", further[0], segment.then[1:],
            ranges.subtract(segment.ranges4, four), ranges.subtract(segment.ranges6, six),
            tuple(name for name in segment.names if name not in there),
        ))
        # fmt: on
    made: list[Segment] = []
    for which, stage, then, ranges4, ranges6, those in parts:
        if ranges4 or ranges6 or those:
            made.append(
                replace(
                    segment,
                    id=number + len(made),
                    ranges4=ranges4,
                    ranges6=ranges6,
                    names=those,
                    ports=stage.ports,
                    search=stage.search,
                    then=then,
                    after=segment.id,
                    key=hashlib.sha256(b"nray segment after 1\0" + which + segment.key).digest(),
                )
            )
    return tuple(made)


def _few(found: Ranges, within: Ranges, most: int) -> Ranges:
    """The same hosts in at most so many ranges (more where ``within`` has more), which may take
    some further hosts of ``within``."""
    if len(found) <= most:
        return found
    joined = ranges.joined(found, most)
    return ranges.subtract(joined, ranges.subtract(joined, within))
