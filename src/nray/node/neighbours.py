"""Who has which address on the local link: ARP (RFC 826) and neighbour discovery (RFC 4861).

What the kernel knows for certain (an entry that is permanent, or was confirmed moments ago) is
taken from its table. For the rest this module asks by itself: making the kernel ask would need the
right to change its tables (CAP_NET_ADMIN), where a node keeps only that to raw sockets, and would
push everything else out of a table of 1,024 entries when a whole network is asked for. Nothing but
requests leaves, and the kernel, which hears the answers as well, renews what it has.

Gateways are asked again every `AGAIN_S`. Where an address moves to another MAC and its new owner
says so (as it does at a fail-over), that is heard.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple, Protocol

import trio

from nray.node import netlink
from nray.node.netlink import Link, Neighbour

log = logging.getLogger("nray.node")

#: A request that gets no answer is sent again so soon, seconds, and so often in all. The kernel's
#: own are three too, a second apart; whoever is to be scanned answers within this.
TRY_S = 0.5
TRIES_MAX = 3
#: Between two looks at whether a gateway is still who it was, seconds: as long as the kernel takes
#: an answer for good (base_reachable_time).
AGAIN_S = 30.0
#: Requests sent, or frames read, before others get their turn.
TURNS = 64

_ETHER = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IP6 = struct.Struct("!IHBB16s16s")
_ETH_ARP, _ETH_IP6 = 0x0806, 0x86DD
_BROADCAST = b"\xff" * 6
_ICMP6, _SOLICITATION, _ADVERTISEMENT = 58, 135, 136
#: Hop limit of neighbour discovery: what has passed a router is not believed (RFC 4861, 7.1).
_HOPS = 255

#: A neighbour: index of the link, packed address.
Key = tuple[int, bytes]


# ── frames ──────────────────────────────────────────────────────────────────────────────────


def request(mac: bytes, source: bytes, target: bytes) -> bytes:
    """The frame that asks for a target (4 or 16 bytes) from an address and MAC of ours."""
    if len(target) == 4:
        arp = _ARP.pack(1, 0x0800, 6, 4, 1, mac, source, bytes(6), target)
        return _ETHER.pack(_BROADCAST, mac, _ETH_ARP) + arp
    group = bytes.fromhex("ff0200000000000000000001ff") + target[-3:]
    # The body: reserved, target, option "source link-layer address".
    body = bytes(4) + target + bytes([1, 1]) + mac
    checksum = _checksum(source, group, bytes([_SOLICITATION, 0, 0, 0]) + body)
    message = struct.pack("!BBH", _SOLICITATION, 0, checksum) + body
    header = _IP6.pack(6 << 28, len(message), _ICMP6, _HOPS, source, group)
    return _ETHER.pack(b"\x33\x33" + group[-4:], mac, _ETH_IP6) + header + message


def answer(frame: bytes) -> tuple[bytes, bytes] | None:
    """(address, MAC) that a frame tells; None if it is no valid answer or announcement."""
    if len(frame) < _ETHER.size:
        return None
    _, sender, kind = _ETHER.unpack_from(frame)
    if kind == _ETH_ARP:
        return _arp_answer(frame[_ETHER.size :])
    if kind == _ETH_IP6:
        return _advertisement(frame[_ETHER.size :], sender)
    return None


def _arp_answer(data: bytes) -> tuple[bytes, bytes] | None:
    if len(data) < _ARP.size:
        return None
    hardware, kind, size, width, _, mac, address, _, _ = _ARP.unpack_from(data)
    if (hardware, kind, size, width) != (1, 0x0800, 6, 4) or mac[0] & 1 or not any(address):
        return None
    return address, mac


def _advertisement(data: bytes, sender: bytes) -> tuple[bytes, bytes] | None:
    if len(data) < _IP6.size + 24:
        return None
    _, length, following, hops, source, target = _IP6.unpack_from(data)
    message = data[_IP6.size : _IP6.size + length]
    if following != _ICMP6 or hops != _HOPS or len(message) != length or length < 24:
        return None
    if message[:2] != bytes([_ADVERTISEMENT, 0]) or _checksum(source, target, message):
        return None
    at = 24
    while at + 8 <= length:
        kind, eights = message[at], message[at + 1]
        if eights == 0:
            return None
        if kind == 2 and eights == 1:
            sender = message[at + 2 : at + 8]
        at += 8 * eights
    return None if sender[0] & 1 else (message[8:24], sender)


def _checksum(source: bytes, target: bytes, message: bytes) -> int:
    """Of an ICMPv6 message (RFC 4443, 2.3); over a whole valid one it is 0."""
    data = source + target + struct.pack("!II", len(message), _ICMP6) + message
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# ── asking ──────────────────────────────────────────────────────────────────────────────────


class Wire(Protocol):
    """Frames of the local links."""

    def send(self, link: int, frame: bytes) -> None:
        """Send at once, or (a queue is full) not at all."""

    async def receive(self) -> list[tuple[int, bytes]]:
        """Wait for frames: (link, frame) each."""

    def close(self) -> None:
        """No frames any more."""


@dataclass
class _Entry:
    source: bytes
    keep: bool
    mac: bytes | None = None
    asked: int = 0
    settled: bool = False


class _Due(NamedTuple):
    at: float
    key: Key


class Neighbours:
    """Finds the MACs of neighbours, and keeps them true.

    Args:
        links: those that may be asked on.
        wire: takes and gives their frames.
        known: the kernel's table.
        tell: called with (link, address, MAC) for each that was asked for, once it is known or
            (None) has not answered, and again when it changes. Must not block.
    """

    def __init__(
        self,
        links: Mapping[int, Link],
        wire: Wire,
        known: Iterable[Neighbour] = (),
        tell: Callable[[int, bytes, bytes | None], None] = lambda link, address, mac: None,
    ) -> None:
        self._links = links
        self._wire = wire
        self._certain = {
            (each.link, each.address): each.mac
            for each in known
            if len(each.mac) == 6
            and each.state & (netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE)
        }
        self._fixed = {
            (each.link, each.address) for each in known if each.state & netlink.NUD_PERMANENT
        }
        self._tell = tell
        self._entries: dict[Key, _Entry] = {}
        # Each holds what is due after a pause of its own, and so is in the order of time.
        self._tries: deque[_Due] = deque()
        self._again: deque[_Due] = deque()
        self._fresh: deque[Key] = deque()
        self._news = trio.Event()
        self._settled = trio.lowlevel.ParkingLot()

    def ask(self, link: int, address: bytes, source: bytes, *, keep: bool = False) -> None:
        """Find out who has an address; ``keep`` asks again and again. From ``source``, ours."""
        key = (link, address)
        entry = self._entries.get(key)
        if entry is not None:
            if entry.settled:
                self._tell(link, address, entry.mac)
            return
        entry = self._entries[key] = _Entry(source, keep)
        if key in self._certain:
            self._learn(key, entry, self._certain[key])
            return
        self._fresh.append(key)
        self._news.set()

    async def settle(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """Wait until each of these, asked for before, has answered or not; those that have."""
        wanted = list(keys)
        while not all(self._entries[key].settled for key in wanted):
            await self._settled.park()
        return {key: mac for key in wanted if (mac := self._entries[key].mac) is not None}

    async def run(self) -> None:
        """Ask and listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                self._news = trio.Event()
                busy = self._work(trio.current_time())
                next_at = min(
                    [each[0].at for each in (self._tries, self._again) if each] or [_NEVER]
                )
                with trio.move_on_at(trio.current_time() if busy else next_at):
                    await self._news.wait()

    def _work(self, now: float) -> bool:
        """Send what is due; true if there is more than one turn's worth."""
        for _ in range(TURNS):
            if self._fresh:
                self._try(self._fresh.popleft(), now)
            elif self._tries and self._tries[0].at <= now:
                self._try(self._tries.popleft().key, now)
            elif self._again and self._again[0].at <= now:
                key = self._again.popleft().key
                self._entries[key].asked = 0
                self._try(key, now)
                self._again.append(_Due(now + AGAIN_S, key))
            else:
                return False
        return True

    def _try(self, key: Key, now: float) -> None:
        entry = self._entries[key]
        if entry.asked < 0:
            return  # answered since
        if entry.asked == TRIES_MAX:
            self._give_up(key, entry)
            return
        entry.asked += 1
        link = self._links[key[0]]
        self._wire.send(key[0], request(link.mac, entry.source, key[1]))
        self._tries.append(_Due(now + TRY_S, key))

    def _give_up(self, key: Key, entry: _Entry) -> None:
        where = f"{ip_address(key[1])} on {self._links[key[0]].name}"
        if entry.mac is not None:
            # It may be busy. What it said last is the best there is.
            log.warning("%s does not answer any more; going on with the MAC it had", where)
            return
        entry.settled = True
        if entry.keep:
            self._later(key)
        self._tell(*key, None)
        self._settled.unpark_all()

    def _learn(self, key: Key, entry: _Entry, mac: bytes) -> None:
        first, changed = not entry.settled, mac != entry.mac
        entry.asked = -1
        entry.settled = True
        entry.mac = mac
        if first and entry.keep and key not in self._fixed:
            self._later(key)
        if first or changed:
            self._tell(*key, mac)
            self._settled.unpark_all()

    def _later(self, key: Key) -> None:
        self._again.append(_Due(trio.current_time() + AGAIN_S, key))
        self._news.set()

    async def _listen(self) -> None:
        while True:
            for link, frame in await self._wire.receive():
                told = answer(frame)
                if told is None:
                    continue
                key = (link, told[0])
                entry = self._entries.get(key)
                if entry is not None and key not in self._fixed:
                    self._learn(key, entry, told[1])


_NEVER = float("inf")


# ── the wire itself ─────────────────────────────────────────────────────────────────────────

_SO_ATTACH_FILTER = 26
#: Answers of a whole network that is asked at once: the kernel charges some 700 bytes each.
_RECEIVE_BUFFER_BYTES = 8 << 20
_FRAME_BYTES_MAX = 256
#: Classic BPF (linux/filter.h): pass ARP, and of IPv6 neighbour advertisements; drop the rest.
_FILTER = (
    (0x28, 0, 0, 12),  # half word: type of the frame
    (0x15, 5, 0, _ETH_ARP),
    (0x15, 0, 5, _ETH_IP6),
    (0x30, 0, 0, 14 + 6),  # byte: next header
    (0x15, 0, 3, _ICMP6),
    (0x30, 0, 0, 14 + 40),  # byte: ICMPv6 type
    (0x15, 0, 1, _ADVERTISEMENT),
    (0x06, 0, 0, _FRAME_BYTES_MAX),
    (0x06, 0, 0, 0),
)


class PacketWire:
    """Packet sockets on links, opened as they are needed.

    Needs CAP_NET_RAW. Where that is missing, or a link is gone, nobody ever answers.
    """

    def __init__(self, links: Mapping[int, Link]) -> None:
        self._links = links
        self._sockets: dict[int, list[socket.socket]] = {}
        self._opened = trio.Event()

    def send(self, link: int, frame: bytes) -> None:
        """See `Wire`."""
        try:
            if link not in self._sockets:
                self._open(link)
            arp, ip6 = self._sockets[link]
            (arp if frame[12:14] == b"\x08\x06" else ip6).send(frame)
        except (BlockingIOError, InterruptedError):
            pass  # it is asked again
        except OSError as error:
            log.debug("no request on %s: %s", self._links[link].name, error.strerror)

    async def receive(self) -> list[tuple[int, bytes]]:
        """See `Wire`."""
        while True:
            found = self._read()
            if found:
                await trio.lowlevel.checkpoint()
                return found
            self._opened = trio.Event()
            async with trio.open_nursery() as nursery:
                for sockets in self._sockets.values():
                    for sock in sockets:
                        nursery.start_soon(_wake, sock, nursery.cancel_scope)
                await self._opened.wait()
                nursery.cancel_scope.cancel()

    def close(self) -> None:
        """See `Wire`."""
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()
        self._sockets.clear()

    def _open(self, link: int) -> None:
        sockets: list[socket.socket] = []
        try:
            for protocol in (_ETH_ARP, _ETH_IP6):
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
                sockets.append(sock)
                _attach_filter(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
                sock.bind((self._links[link].name, protocol))
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        self._sockets[link] = sockets
        self._opened.set()

    def _read(self) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for link, sockets in self._sockets.items():
            for sock in sockets:
                try:
                    for _ in range(TURNS):
                        found.append((link, sock.recv(_FRAME_BYTES_MAX)))
                except OSError:
                    continue  # nothing there, or the link is down
        return found


async def _wake(sock: socket.socket, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(sock)
    scope.cancel()


def _attach_filter(sock: socket.socket) -> None:
    import ctypes

    program = b"".join(struct.pack("=HBBI", *line) for line in _FILTER)
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HP", len(_FILTER), ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
