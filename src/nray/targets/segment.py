"""A segment: networks and names times ports, in an order of its own.

It is the unit that server, node and ledger pass around. Packed, it is a few bytes for a network
of any size, and 8 (IPv6: 32) for each range that exclusions cut it into.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import msgspec

from nray import _core
from nray.targets import ranges
from nray.targets.networks import MAPPED, is_name
from nray.targets.ports import ICMP, PORT_MAX, TCP, UDP, Service
from nray.targets.ranges import Ranges

#: Version of the packed form; a ledger may be older than the program that reads it.
PACKED_VERSION = 1
#: Of segments of host discovery and those that follow one: the packed form and what it lacks.
PACKED_VERSION_MORE = 2
#: What the longer form begins with: an array of five.
_MORE_BEGINS = b"\x95"

#: Bytes of a segment's key.
KEY_BYTES = 32

#: Segments of one scan. Streams of names append them; a number of 32 bits outlasts them.
SEGMENT_MAX = 2**32 - 1

#: Probes of one segment, and of one scan: positions stay within a signed 64-bit number.
PROBES_MAX = 2**63

#: What a segment is for, as `_core.Space` has it: the ports themselves; hosts, by whatever answers;
#: hosts, those on the local link by ARP or neighbour discovery; these alone.
SEARCH_NONE, SEARCH_HOSTS, SEARCH_NEAR, SEARCH_LINK = range(4)

#: Stages that one discovery can have: ``auto`` has two, then comes the scan.
STAGES_MAX = 4


class Stage(NamedTuple):
    """What is done with some hosts: what for (``SEARCH_…``), and the probes."""

    search: int
    ports: tuple[Service, ...]


@dataclass(frozen=True)
class Segment:
    """One part of a scan's space; exclusions are already taken out of ranges and names.

    Attributes:
        id: its number within the scan, from 0.
        ranges4, ranges6: the addresses, sorted, disjoint, inclusive.
        names: to be resolved where they are scanned; hosts that follow the addresses.
        ports: (protocol, port), TCP before UDP, ascending; (1, 0) is an echo request.
        key: decides the order of the probes.
        excluded4, excluded6: never to be probed: what names resolve to is held against them.
        excluded_names: the same for whatever these names resolve to; in lower case.
        search: ``SEARCH_…``; but for ``SEARCH_NONE`` this is a discovery segment.
        then: of a discovery segment: the stages that follow it, the scan itself last.
        after: the discovery segment that this one follows; -1 for none.
    """

    id: int
    ranges4: Ranges
    ranges6: Ranges
    names: tuple[str, ...]
    ports: tuple[Service, ...]
    key: bytes
    excluded4: Ranges = ()
    excluded6: Ranges = ()
    excluded_names: tuple[str, ...] = ()
    search: int = SEARCH_NONE
    then: tuple[Stage, ...] = ()
    after: int = -1

    @property
    def wanted(self) -> tuple[Service, ...]:
        """The ports that are scanned in the end: its own, or of a discovery segment the last."""
        return self.then[-1].ports if self.then else self.ports

    @property
    def hosts(self) -> int:
        """Addresses and names; a name is one host, whatever it resolves to."""
        return ranges.count(self.ranges4) + ranges.count(self.ranges6) + len(self.names)

    @property
    def probes(self) -> int:
        """Hosts times ports: the positions of its space."""
        return self.hosts * len(self.ports)

    @cached_property
    def space(self) -> _core.Space:
        """Positions to probes and back, built when first asked for."""
        return _core.Space(
            self.ranges4, self.ranges6, len(self.names), self.ports, self.key, self.search
        )

    @cached_property
    def exclusions(self) -> _core.Exclusions:
        """What must never be probed, by address."""
        return _core.Exclusions(self.excluded4, self.excluded6)

    def listing(self, start: int, count: int) -> bytes:
        """``host port/proto`` lines of a slice, in scan order."""
        return self.space.listing(start, count, self.names)

    def pack(self) -> bytes:
        """The segment as bytes, for wire and ledger."""
        plain = self._pack_plain()
        if not self.search and self.after < 0:
            return plain
        more = _PackedMore(
            PACKED_VERSION_MORE,
            plain,
            self.search,
            [_pack_stage(each) for each in self._stages()] if self.search else [],
            self.after,
        )
        return msgspec.msgpack.encode(more)

    def _pack_plain(self) -> bytes:
        return msgspec.msgpack.encode(
            _Packed(
                version=PACKED_VERSION,
                id=self.id,
                key=self.key,
                ranges4=ranges.pack4(self.ranges4),
                ranges6=ranges.pack6(self.ranges6),
                names=list(self.names),
                tcp=b"" if self.search else _pack_ports(self.ports, TCP),
                udp=b"" if self.search else _pack_ports(self.ports, UDP),
                excluded4=ranges.pack4(self.excluded4),
                excluded6=ranges.pack6(self.excluded6),
                excluded_names=list(self.excluded_names),
            )
        )

    @classmethod
    def unpack(cls, packed: bytes) -> Segment:
        """A segment from bytes that a peer may have made up.

        Raises:
            ValueError: they are no segment that `pack` can have written.
        """
        more = None
        try:
            if packed[:1] == _MORE_BEGINS:
                more = _MORE_DECODER.decode(packed)
                if more.version != PACKED_VERSION_MORE:
                    raise ValueError(f"segment of version {more.version}")
            raw = _DECODER.decode(more.plain if more else packed)
        except msgspec.MsgspecError as error:
            raise ValueError(f"no segment: {error}") from None
        except (RecursionError, UnicodeError) as error:
            raise ValueError(f"no segment: {type(error).__name__}") from None
        segment = cls(
            id=raw.id,
            ranges4=ranges.unpack4(raw.ranges4),
            ranges6=ranges.unpack6(raw.ranges6),
            names=tuple(raw.names),
            ports=(
                *_unpack_ports(raw.tcp, TCP),
                *_unpack_ports(raw.udp, UDP),
            ),
            key=raw.key,
            excluded4=ranges.unpack4(raw.excluded4),
            excluded6=ranges.unpack6(raw.excluded6),
            excluded_names=tuple(raw.excluded_names),
        )
        if more is not None:
            segment = segment._with_more(more)
        segment._check(raw.version)
        return segment

    def _with_more(self, more: _PackedMore) -> Segment:
        stages = tuple(_unpack_stage(each) for each in more.stages)
        if not more.search:
            if stages or more.after < 0:
                raise ValueError("a segment like any other, in the wrong dress")
            return replace(self, after=more.after)
        if not stages or stages[0].search != more.search or self.ports:
            raise ValueError("ports of a search in the wrong place")
        return replace(
            self, ports=stages[0].ports, search=more.search, then=stages[1:], after=more.after
        )

    def _stages(self) -> tuple[Stage, ...]:
        return (Stage(self.search, self.ports), *self.then)

    def _check(self, version: int) -> None:
        """Raises ValueError where parts that are well-formed each do not fit together."""
        if version != PACKED_VERSION:
            raise ValueError(f"segment of version {version}, this nray reads {PACKED_VERSION}")
        if not 0 <= self.id <= SEGMENT_MAX:
            raise ValueError(f"segment number {self.id} out of bounds")
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"key of {len(self.key)} bytes, not {KEY_BYTES}")
        if not 1 <= self.probes <= PROBES_MAX:
            raise ValueError(f"segment of {self.probes} probes")
        self._check_search()
        _check_names(self.names)
        _check_names(self.excluded_names)
        if any(name != name.lower() for name in self.excluded_names):
            raise ValueError("excluded name not in lower case")
        if not {name.lower() for name in self.names}.isdisjoint(self.excluded_names):
            raise ValueError("name both to be scanned and excluded")
        if ranges.meet(self.ranges6, [MAPPED]) or ranges.meet(self.excluded6, [MAPPED]):
            raise ValueError("IPv4-mapped address among IPv6 ranges")
        if ranges.meet(self.ranges4, self.excluded4) or ranges.meet(self.ranges6, self.excluded6):
            raise ValueError("address both to be scanned and excluded")

    def _check_search(self) -> None:
        if not -1 <= self.after < self.id:
            raise ValueError(f"segment {self.id} after {self.after}")
        stages = self._stages()
        if len(stages) > STAGES_MAX:
            raise ValueError(f"{len(stages)} stages")
        if stages[-1].search != SEARCH_NONE or not all(each.search for each in stages[:-1]):
            raise ValueError("the last stage, and it alone, is the scan itself")
        for search, ports in stages:
            kinds = {kind for kind, _ in ports}
            if not ports:
                raise ValueError("a stage without a port")
            if (UDP if search else ICMP) in kinds:
                raise ValueError("hosts are looked for by TCP and echo requests, these for no else")
            if search in (SEARCH_NEAR, SEARCH_LINK) and kinds != {ICMP}:
                raise ValueError("the local link is searched by echo requests at most")


def segment_key(seed: int, segment: int) -> bytes:
    """The key of a segment: the same for the same seed on every machine and in every version.

    SHA-256 keeps the orders of a scan's segments apart, and tells nothing of the seed.
    """
    return hashlib.sha256(f"nray segment key 1\0{seed}\0{segment}".encode()).digest()


class _PackedStage(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    search: int
    echo: bool
    tcp: bytes
    udp: bytes


class _Packed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    id: int
    key: bytes
    ranges4: bytes
    ranges6: bytes
    names: list[str]
    tcp: bytes
    udp: bytes
    excluded4: bytes
    excluded6: bytes
    excluded_names: list[str]


class _PackedMore(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    plain: bytes
    search: int
    stages: list[_PackedStage]
    after: int


_DECODER = msgspec.msgpack.Decoder(_Packed)
_MORE_DECODER = msgspec.msgpack.Decoder(_PackedMore)


def _pack_stage(stage: Stage) -> _PackedStage:
    tcp, udp = (_pack_ports(stage.ports, kind) for kind in (TCP, UDP))
    return _PackedStage(stage.search, (ICMP, 0) in stage.ports, tcp, udp)


def _unpack_stage(packed: _PackedStage) -> Stage:
    if not SEARCH_NONE <= packed.search <= SEARCH_LINK:
        raise ValueError(f"no such search: {packed.search}")
    ports = (*_unpack_ports(packed.tcp, TCP), *_unpack_ports(packed.udp, UDP))
    return Stage(packed.search, ((ICMP, 0), *ports) if packed.echo else ports)


def _pack_ports(ports: Sequence[Service], protocol: int) -> bytes:
    return b"".join([port.to_bytes(2, "big") for kind, port in ports if kind == protocol])


def _unpack_ports(packed: bytes, protocol: int) -> tuple[Service, ...]:
    if len(packed) % 2:
        raise ValueError("ports are 2 bytes each")
    if len(packed) > 2 * PORT_MAX:
        raise ValueError("more ports than there are")
    numbers = [int.from_bytes(packed[at : at + 2], "big") for at in range(0, len(packed), 2)]
    if any(later <= port for port, later in zip([0, *numbers], numbers, strict=False)):
        raise ValueError("ports are not ascending from 1")
    return tuple((protocol, port) for port in numbers)


def _check_names(names: Sequence[str]) -> None:
    if len({name.lower() for name in names}) != len(names):
        raise ValueError("a name twice")
    for name in names:
        if not is_name(name):
            raise ValueError(f"no name: {name[:60]!r}")
