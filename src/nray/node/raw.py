"""What scanning with hand-made packets needs of this machine: the right to, ways out, neighbours.

Routes are read once, when a scan begins: what changes in them later is not followed, but that a
gateway moves to another MAC is (`RawNet.moved`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, summarize_address_range

import trio

from nray import UserError
from nray.node.kernel import read_neighbours, read_snapshot
from nray.node.neighbours import AGAIN_S, Key, Neighbours, PacketWire, Wire
from nray.node.netlink import Neighbour
from nray.node.routes import LinkRow, RouteRow, Routes, routes_of
from nray.targets import ranges
from nray.targets.ranges import Ranges
from nray.targets.segment import Segment

log = logging.getLogger("nray.node")

#: Gateways that are asked for, where all that the tables name may be needed. A machine has one or
#: two; one with a table of the whole internet some hundred.
GATEWAYS_MAX = 1024
#: linux/socket.h; Python's socket has no name for it.
_AF_XDP = 44
#: Networks that a sentence names.
_NAMED_MAX = 4


class NoRight(UserError):
    """This process may not send packets of its own making."""


class NoRoute(UserError):
    """None of the targets can be reached from here."""


#: What packets of its own are for, and what does without them.
_SYNS = ("scanning with SYNs", "scan by connecting instead (tcp method connect, without --syn)")
_PINGS = (
    "looking for hosts by ping or ARP",
    "look for them by connecting to ports that many have (discovery syn:80,443)",
)


def demand_right(*, hosts_alone: bool = False) -> None:
    """Raises NoRight unless this process may open packet sockets, with the way to get there.

    Args:
        hosts_alone: they are for discovery, not for ports.
    """
    what, instead = _PINGS if hosts_alone else _SYNS
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except (AttributeError, OSError) as error:
        if not isinstance(error, PermissionError):
            raise NoRight(f"{what} is not possible on this machine: {error}", instead) from error
        program = os.path.realpath(sys.executable)
        raise NoRight(
            f"{what} needs the right to raw sockets (CAP_NET_RAW), which this user does not have",
            f"run it as root; or give the right to this Python, and with it to every program"
            f" that anybody runs on it: sudo setcap cap_net_raw+ep {program}; or {instead}",
        ) from None


def demand_xdp() -> None:
    """Raises NoRight where this kernel has no AF_XDP, with what to do without."""
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as error:
        raise NoRight(
            f"sending by AF_XDP is not possible on this machine: {error.strerror}",
            "leave --xdp out: packets then leave by AF_PACKET, which every Linux has",
        ) from error


def net_for(
    segments: Sequence[Segment] | None = None, *, xdp: bool = False, hosts_alone: bool = False
) -> RawNet:
    """What is needed to scan segments from here; None where they are not known yet.

    Args:
        xdp: let frames leave by AF_XDP where devices have queues for it.
        hosts_alone: packets of its own are for discovery, not for ports.

    Raises:
        NoRight: this user may not, or the kernel cannot.
        NoRoute: none of the targets has a way.
        UserError: this machine does not tell its routes.
    """
    demand_right(hosts_alone=hosts_alone)
    if xdp:
        demand_xdp()
    routes = routes_of(read_snapshot())
    if segments is not None:
        routes = _for_segments(routes, segments)
    for note in routes.notes:
        log.warning("%s", note)
    return RawNet(routes, PacketWire(routes.links), read_neighbours(), xdp=xdp)


def _for_segments(routes: Routes, segments: Sequence[Segment]) -> Routes:
    named = any(segment.names for segment in segments)
    wanted4 = ranges.merge(each for segment in segments for each in segment.ranges4)
    wanted6 = ranges.merge(each for segment in segments for each in segment.ranges6)
    missing = (routes.missing(4, wanted4), routes.missing(6, wanted6))
    unrouted = (routes.unrouted(4, wanted4), routes.unrouted(6, wanted6))
    groups = tuple(map(ranges.subtract, missing, unrouted))
    why = []
    if any(unrouted):
        why.append(f"no route to {_listed(unrouted)}")
    if any(groups):
        why.append(f"no host has the address {_listed(groups)} (broadcast or multicast)")
    if why and not named and missing == (wanted4, wanted6):
        raise NoRoute(
            f"{', and '.join(why)}: there is nothing that could be scanned",
            "ip route get ADDRESS tells what the kernel makes of an address",
        )
    for each in why:
        log.warning("%s: probes to it count as errors", each)
    return routes if named else routes.narrowed(wanted4, wanted6)


def _listed(missing: Iterable[Ranges]) -> str:
    words: list[str] = []
    for width, part in zip((4, 16), missing, strict=True):
        for first, last in part:
            low, high = (ip_address(each.to_bytes(width, "big")) for each in (first, last))
            networks = [str(each) for each in summarize_address_range(low, high)]
            words.append(
                networks[0].removesuffix(f"/{8 * width}") if len(networks) == 1 else f"{low}-{high}"
            )
    more = len(words) - _NAMED_MAX
    return ", ".join(words[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


class RawNet:
    """The network as workers with hand-made packets need it, while a scan runs.

    A gateway is asked for once a target is known to lie behind it, never before: who scans this
    machine alone says nothing on its links. Until `want` was first called workers wait.

    Args:
        routes: the ways out.
        wire: frames of the local links.
        known: the kernel's table of neighbours.
        xdp: workers are to send by AF_XDP.
    """

    def __init__(
        self,
        routes: Routes,
        wire: Wire,
        known: Iterable[Neighbour],
        *,
        xdp: bool = False,
    ) -> None:
        self.routes = routes
        self.xdp = xdp
        self._wire = wire
        self._neighbours = Neighbours(routes.links, wire, known, self._tell)
        self._gateways: dict[Key, bytes | None] = {}
        self._in_use: dict[Key, bytes] = {}
        self._moved_at = -AGAIN_S
        self._fresh: list[tuple[int, bytes, bytes]] = []
        self._more = trio.Event()
        self._ready = trio.Event()
        self._told: list[tuple[int, bytes, bytes | None]] = []
        self.news = trio.Event()
        #: Set when workers were told (`rows`) what is true no more: a gateway has another MAC, or
        #: one more is needed.
        self.moved = trio.Event()
        links, _ = routes.rows({})
        self._order = [index for index, *_ in links]

    async def run(self) -> None:
        """Find gateways, and then whoever is asked for, until cancelled. To be run once."""
        with contextlib.closing(self._wire):
            await self._serve()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._neighbours.run)
            while True:
                await self._more.wait()
                self._more = trio.Event()
                fresh, self._fresh = self._fresh, []
                for link, address, source in fresh:
                    self._neighbours.ask(link, address, source, keep=True)
                found = await self._neighbours.settle(
                    [(link, address) for link, address, _ in fresh]
                )
                for link, address, _ in fresh:
                    if (link, address) not in found:
                        log.warning(
                            "gateway %s on %s does not answer: probes to what lies behind it count"
                            " as errors",
                            ip_address(address),
                            self.routes.links[link].name,
                        )
                if not self._fresh:
                    self._ready.set()

    def want(self, wanted4: Ranges, wanted6: Ranges) -> bool:
        """Find the gateways that these targets lie behind; there may be none of them.

        Returns whether workers, told before of the ways out, have to begin again for it.
        """
        return self._need(self.routes.narrowed(wanted4, wanted6).gateways())

    def want_hosts(self, addresses: Iterable[bytes]) -> bool:
        """The same for single addresses, as names have them."""
        return self._need(self.routes.gateways_to(addresses))

    def _need(self, ways: set[tuple[int, bytes, bytes]]) -> bool:
        """Have those gateways asked for that were not yet; whether workers begin again for it."""
        room = GATEWAYS_MAX - len(self._gateways)
        fresh = [each for each in sorted(ways) if each[:2] not in self._gateways][:room]
        for link, address, _ in fresh:
            self._gateways[link, address] = None
        self._fresh += fresh
        self._more.set()
        if not fresh or not self._ready.is_set():
            return False
        self._ready = trio.Event()
        self.moved.set()
        return True

    async def rows(self) -> tuple[list[LinkRow], list[RouteRow]]:
        """Links and routes for a worker, once gateways are known."""
        while not self._ready.is_set():
            await self._ready.wait()
        self._in_use = {key: mac for key, mac in self._gateways.items() if mac is not None}
        return self.routes.rows(self._in_use)

    def ask(self, wanted: Iterable[tuple[int, bytes]]) -> None:
        """Find out who has these: (index in the links of `rows`, address) each."""
        for index, address in wanted:
            family = 4 if len(address) == 4 else 6
            way = self.routes.find(family, int.from_bytes(address, "big"))
            if way is not None:
                self._neighbours.ask(self._order[index], address, way.source)

    def told(self) -> list[tuple[int, bytes, bytes | None]]:
        """What was found since the last call: (index in the links, address, MAC or None)."""
        self.news = trio.Event()
        told, self._told = self._told, []
        return told

    def _tell(self, link: int, address: bytes, mac: bytes | None) -> None:
        key = (link, address)
        if key in self._gateways:
            self._gateways[key] = mac
            if self._ready.is_set() and mac is not None and self._in_use.get(key) != mac:
                self._move(key)
        if link in self._order:
            self._told.append((self._order.index(link), address, mac))
            self.news.set()

    def _move(self, key: Key) -> None:
        """A gateway is another machine now, or answers at last. Where two claim one address this
        would go on for ever: not more often than gateways are asked."""
        now = trio.current_time()
        if now - self._moved_at < AGAIN_S:
            return
        self._moved_at = now
        link = self.routes.links[key[0]].name
        what = "has another MAC now" if key in self._in_use else "answers now"
        log.warning("gateway %s on %s %s", ip_address(key[1]), link, what)
        self.moved.set()
