"""What there is to be found: the space of a scan, and the hits in it, pool by pool."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from nray import _core
from nray.targets.ports import TCP, UDP
from nray.targets.segment import SEARCH_HOSTS, SEARCH_NONE, Segment, Stage, segment_key

RECORD_BYTES: Final = 32
#: Position and address.
KEY_BYTES: Final = 24
_OPEN: Final = _core.STATES.index("open")
_SYN_ACK: Final = _core.REASONS.index("syn-ack")

#: Networks of the benchmark range (RFC 2544) and the documentation range (RFC 3849).
_NET4: Final = int(IPv4Address("198.18.0.0"))
_NET6: Final = int(IPv6Address("2001:db8::"))

#: Share of the hosts that a stage of discovery finds.
FOUND: Final = 0.3

#: Pool and segment.
Place = tuple[int, int]


def make_segment(number: int, kind: str, hosts: int, ports: int, seed: int) -> Segment:
    """A segment of its own addresses; ``kind`` is ``4``, ``6`` or ``names``."""
    tcp = [(TCP, 20 + port) for port in range(ports - ports // 4)]
    services = (*tcp, *((UDP, 50 + port) for port in range(ports // 4)))
    base4, base6 = _NET4 + number * 4096, _NET6 + (number << 64) + 1
    names = tuple(f"h{number}x{each}.sim.test" for each in range(hosts))
    return Segment(
        number,
        ((base4, base4 + hosts - 1),) if kind == "4" else (),
        ((base6, base6 + hosts - 1),) if kind == "6" else (),
        names if kind == "names" else (),
        services,
        segment_key(seed, number),
    )


def searched(segment: Segment, stages: int) -> Segment:
    """A segment whose hosts are looked for first, by so many stages of one TCP port each."""
    looks = [Stage(SEARCH_HOSTS, ((TCP, 1 + number),)) for number in range(stages)]
    return replace(
        segment,
        search=SEARCH_HOSTS,
        ports=looks[0].ports,
        then=(*looks[1:], Stage(SEARCH_NONE, segment.ports)),
    )


def addresses_of(name: str) -> list[bytes]:
    """What a name of a segment resolves to: one to three addresses, the same for everybody."""
    network, host = (int(each) for each in name[1:].partition(".")[0].split("x"))
    base = _NET4 + 0x10000 + network * 4096 + host * 4
    count = (1, 1, 2, 1, 3, 2)[host % 6]
    four = [(base + each).to_bytes(4, "big") for each in range(min(count, 2))]
    six = [(_NET6 + (base << 32)).to_bytes(16, "big")] if count == 3 else []
    return four + six


class Truth:
    """The hits of a scan, by pool and segment.

    Attributes:
        hits: by place and position, the keys (position and address) of what is open there.
    """

    def __init__(self, segments: Sequence[Segment], pools: int, share: float, seed: int) -> None:
        self.segments = {segment.id: segment for segment in segments}
        self.hits: dict[Place, dict[int, list[bytes]]] = {}
        self._pools, self._share, self._seed = pools, share, seed
        draw = random.Random(seed)
        for segment in segments:
            for pool in range(pools):  # each vantage point sees something else
                self.hits[pool, segment.id] = self._draw(
                    segment, FOUND if segment.search else share, draw
                )

    def learn(self, segment: Segment) -> None:
        """A segment that follows discovery: what there is in it depends on it alone."""
        self.segments[segment.id] = segment
        share = FOUND if segment.search else self._share
        for pool in range(self._pools):
            draw = random.Random(f"{self._seed} {pool} {segment.key.hex()}")
            self.hits[pool, segment.id] = self._draw(segment, share, draw)

    def hosts_found(self, number: int) -> set[tuple[int, int]]:
        """What a discovery segment finds: (family, address or number of the name), of all pools."""
        at = self.segments[number].space.at
        return {
            at(position)[:2] for pool in range(self._pools) for position in self.hits[pool, number]
        }

    def _draw(
        self, segment: Segment, share: float, draw: random.Random
    ) -> Mapping[int, list[bytes]]:
        wanted = max(1, round(segment.probes * share))
        found: dict[int, list[bytes]] = {}
        for position in sorted(draw.sample(range(segment.probes), wanted)):
            family, number, _, _ = segment.space.at(position)
            if family:
                addresses = [number.to_bytes(4 if family == 4 else 16, "big")]
            else:
                addresses = [
                    each for each in addresses_of(segment.names[number]) if draw.random() < 0.8
                ]
            start = position.to_bytes(8, "little")
            if addresses:
                found[position] = [start + each.ljust(16, b"\0") for each in addresses]
        return found

    def within(self, place: Place, start: int, count: int) -> list[bytes]:
        """Keys of the hits in a slice, by position."""
        hits = self.hits[place]
        return [key for at in range(start, start + count) if at in hits for key in hits[at]]

    def words(self, segment: int, key: bytes) -> tuple[str, str, int, str]:
        """Target, address, port and kind of scan of a hit, as events tell them."""
        made = self.segments[segment]
        family, number, protocol, port = made.space.at(int.from_bytes(key[:8], "little"))
        raw = key[8:12] if key[12:24] == bytes(12) else key[8:24]
        address = str(ip_address(raw))
        target = made.names[number] if family == 0 else address
        return target, address, port, {TCP: "tcpconnect", UDP: "udp"}[protocol]

    def record(self, segment: int, key: bytes, rtt_us: int) -> bytes:
        """A packed hit, as a worker sends it."""
        if self.segments[segment].names:
            family = 4 if key[12:24] == bytes(12) else 6
        else:
            family = 4 if self.segments[segment].ranges4 else 6
        return key + rtt_us.to_bytes(4, "little") + bytes([0, _OPEN, _SYN_ACK, family])

    def extra(self, segment: int, start: int, count: int) -> int:
        """Addresses beyond the first that names in a slice have."""
        made = self.segments[segment]
        if not made.names:
            return 0
        names = (made.names[made.space.at(at)[1]] for at in range(start, start + count))
        return sum(len(addresses_of(name)) - 1 for name in names)
