"""Lines that are not registered yet: how many there may be, and which one gives way.

Whoever connects is a stranger until its certificate has been judged. A stranger costs a socket
and a small task until it says its first word, and nothing that it says is read before a
handshake is its turn. Each stage on the way in has its own room:

    SILENT → WAITING (has said something, wants a handshake) → SHAKING → ADMITTED (verified, is
    to register) → registered, and no concern of this module any more

A room that is full takes a newcomer all the same, and its oldest line is closed for it: of the
newcomer's own address if that has its share, else of the address that has most. So a flood
pushes itself out, an honest node, which is through in a few round trips, is not there long
enough to become the oldest, and an address with one line keeps it while another has two. Who is
closed so may come again at once.
"""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final

import trio

from nray.server.complaints import Complaints
from nray.wire.errors import Reason


class Stage(IntEnum):
    """How far a line has come."""

    SILENT = 0
    WAITING = 1
    SHAKING = 2
    ADMITTED = 3


#: Lines in all, by stage. SHAKING ones hold what OpenSSL needs, some 60 KB; ADMITTED ones a frame
#: of at most 64 KiB; the others next to nothing. All rooms full take some 30 MB.
LINES_MAX: Final = {Stage.SILENT: 256, Stage.WAITING: 128, Stage.SHAKING: 128, Stage.ADMITTED: 256}

#: From one address at most this part of a room. Nodes behind one address are through fast enough.
ADDRESS_PART: Final = 2

#: A room takes at most this part of the descriptors that the process may have: all four together
#: leave half of them for nodes, the ledger and outputs.
DESCRIPTORS_PART: Final = 8

#: One machine or one customer can have so many leading bits of IPv6 to itself (RFC 6177).
IPV6_PREFIX_BITS: Final = 64


class Guest:
    """One line that is not registered. Made by `Lobby.enter`.

    Attributes:
        address: which limits are counted for, see `group_of`.
        peer: its address and port, for people.
        entered_at: on trio's clock.
        evicted: it was closed to make room.
    """

    def __init__(
        self, lobby: Lobby, address: str, peer: str, entered_at: float, cancel: Callable[[], None]
    ) -> None:
        self._lobby = lobby
        self.address = address
        self.peer = peer
        self.entered_at = entered_at
        self.stage = Stage.SILENT
        self.here = True
        self.evicted = False
        self.cancel = cancel

    @property
    def complaints(self) -> Complaints:
        return self._lobby.complaints

    def advance(self, stage: Stage) -> None:
        """It has come further: into another room, where another line may have to go for it."""
        if self.here:
            self._lobby.move(self, stage)

    def leave(self) -> None:
        """It has registered, or is closed. May be called again."""
        if self.here:
            self._lobby.remove(self)


class _Room:
    """The lines of one stage: by address, of each the oldest first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self.by_address: dict[str, dict[Guest, None]] = {}

    def add(self, guest: Guest) -> Guest | None:
        """Take a line in; who has to go for it, never the line itself."""
        own = self.by_address.setdefault(guest.address, {})
        own[guest] = None
        self.count += 1
        if len(own) > max(1, self.most // ADDRESS_PART):
            return next(iter(own))
        if self.count <= self.most:
            return None
        fullest = max(self.by_address.values(), key=len)
        oldest = next(iter(fullest))
        if oldest is guest:  # all addresses have one line: whichever has had its chance longest
            oldest = next(iter(next(iter(self.by_address.values()))))
        return oldest

    def remove(self, guest: Guest) -> None:
        own = self.by_address[guest.address]
        del own[guest]
        if not own:
            del self.by_address[guest.address]
        self.count -= 1


class Lobby:
    """All lines that are not registered.

    Args:
        complaints: told of lines that had to give way.
        descriptors: that the process may have; None asks the system.

    Attributes:
        most: lines that were there at one time.
    """

    def __init__(self, complaints: Complaints, descriptors: int | None = None) -> None:
        self.complaints = complaints
        if descriptors is None:
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if descriptors == resource.RLIM_INFINITY:
                descriptors = 2**31
        part = max(2, descriptors // DESCRIPTORS_PART)
        self._rooms = {stage: _Room(min(most, part)) for stage, most in LINES_MAX.items()}
        self.most = 0

    def __len__(self) -> int:
        return sum(room.count for room in self._rooms.values())

    def __iter__(self) -> Iterator[Guest]:
        for room in self._rooms.values():
            for own in room.by_address.values():
                yield from own

    def count(self, stage: Stage) -> int:
        """Lines of one stage."""
        return self._rooms[stage].count

    def enter(self, stream: trio.abc.Stream, cancel: Callable[[], None]) -> Guest:
        """A line was accepted; ``cancel`` is called if it has to give way."""
        guest = Guest(self, group_of(stream), peer_name(stream), trio.current_time(), cancel)
        self._add(guest)
        return guest

    def move(self, guest: Guest, stage: Stage) -> None:
        """See `Guest.advance`."""
        self._rooms[guest.stage].remove(guest)
        guest.stage = stage
        self._add(guest)

    def remove(self, guest: Guest) -> None:
        """See `Guest.leave`."""
        guest.here = False
        self._rooms[guest.stage].remove(guest)

    def shed(self) -> None:
        """There are no descriptors left: close the oldest line of the earliest stage."""
        for room in self._rooms.values():
            if room.count:
                fullest = max(room.by_address.values(), key=len)
                self._evict(next(iter(fullest)))
                return

    def coming(self, now: float, age_s: float) -> bool:
        """Whether some line that has said something is younger than ``age_s``; one that was
        admitted has twice the time."""
        return any(
            guest.stage is not Stage.SILENT
            and now - guest.entered_at < age_s * (1 + (guest.stage is Stage.ADMITTED))
            for guest in self
        )

    def _add(self, guest: Guest) -> None:
        victim = self._rooms[guest.stage].add(guest)
        if victim is not None:
            self._evict(victim)
        self.most = max(self.most, len(self))

    def _evict(self, guest: Guest) -> None:
        self.remove(guest)
        guest.evicted = True
        guest.cancel()
        self.complaints.say(
            f"lines closed to make room for others ({guest.stage.name.lower()})",
            "%s: closed to make room for others; it had not registered",
            guest.peer,
        )


class Doorman:
    """Lets a line in: plain TCP as it is. See `nray.server.tls` for the other way."""

    async def run(self) -> None:
        """What has to run while lines are let in."""

    async def admit(
        self, stream: trio.abc.Stream, guest: Guest
    ) -> tuple[trio.abc.Stream, str | None] | None:
        """The stream to talk on and the peer's verified identity; None if it was turned away.

        The caller closes what it gave in any case.
        """
        return stream, None

    def objection(self, stream: trio.abc.Stream) -> tuple[Reason, str] | None:
        """Why a peer that was let in has to go, with words for the log; None if it may stay."""
        return None

    async def changed(self) -> None:
        """Wait until what peers are judged by has changed."""
        await trio.sleep_forever()

    def briefly(self) -> list[str]:
        """What of our own ends soon, a clause each."""
        return []


def peer_name(stream: trio.abc.Stream) -> str:
    """Address and port of the other end, for people."""
    if not isinstance(stream, trio.SocketStream):
        return "a peer"
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "a peer that is gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def group_of(stream: trio.abc.Stream) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 one."""
    if not isinstance(stream, trio.SocketStream):
        return ""
    try:
        return group_of_address(stream.socket.getpeername()[0])
    except OSError:
        return ""


def group_of_address(text: str) -> str:
    """See `group_of`; an IPv4 address that a dual-stack socket wraps into IPv6 counts as itself."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX_BITS), strict=False))
