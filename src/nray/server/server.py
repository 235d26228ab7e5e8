"""The server: listens for nodes, leases them the scan, writes their findings down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import trio
from trio.lowlevel import ParkingLot

from nray import __version__
from nray.config.errors import printable
from nray.ledger.entries import Entry, NodeSeen, Registration
from nray.server.accept import accept_lines
from nray.server.books import Books, entries_of, now_ms
from nray.server.complaints import Complaints
from nray.server.discovery import Search
from nray.server.door import Doorman, Guest, Lobby, Stage
from nray.server.pace import Purse
from nray.server.refusals import attribute
from nray.server.restore import restore
from nray.server.scheduler import FaultyReport, Pool, Scheduler
from nray.server.sessions import NODES_MAX, Session, Sessions
from nray.server.summary import status_line
from nray.targets.findings import check
from nray.targets.segment import Segment
from nray.wire.channel import Channel, ChannelEnded
from nray.wire.errors import (
    EXPLANATIONS,
    TEXT_CHARS_MAX,
    LocalFault,
    PeerFault,
    Reason,
    clip,
)
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Heartbeat,
    Lease,
    NodeMessage,
    Pulse,
    Register,
    Registered,
    Report,
    ServerMessage,
    Settings,
    Shown,
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.rules import HIT_BYTES, SHOWN_MAX
from nray.wire.states import ServerEnd

log = logging.getLogger("nray.server")

#: For the registration of a node whose line is up.
REGISTER_S = 10.0
#: How long nodes may take to say Bye at the end.
FAREWELL_S = 10.0
#: How long after it was accepted a line that has not yet registered is waited for at the end: long
#: enough for an honest node, which is then told to stop and does not look for this server for
#: ever. Lines that are older, or have not said a word, are not waited for at all.
LATECOMER_S = 0.5
#: How long after its start a server that has gone on with a scan waits for nodes of the earlier
#: process, even if all is done: a little longer than they wait between two attempts.
RETURN_S = 6.0
HEARTBEAT_S = 5.0
#: Between two words to a node about hosts that need no more probes, seconds.
SHOWN_EVERY_S = 0.1
#: Between two looks at whether all have left, seconds; mostly one is told before.
LOOK_EVERY_S = 0.1

NodeChannel = Channel[ServerMessage, NodeMessage]

#: What a node is told that does not know how to, where it is no method.
_KEYS = {"discovery": "discovery looks for hosts first"}


@dataclass(frozen=True)
class ServerOptions:
    """How a server serves; times in seconds."""

    host: str
    ports: tuple[int, ...]
    settings: Settings
    pools: int = 1
    node_expiry_s: float = 30.0
    expiry_check_s: float = 10.0
    status_every_s: float = 15.0
    pool_by_preference: bool = True
    several_per_machine: bool = False
    slice_most: int = 0


class TurnedOut(PeerFault):
    """The peer did nothing wrong on this line, but may not stay. What the peer is told is the
    reason alone; ``detail`` is for the log."""


class Server:
    """One scan, served to nodes.

    Args:
        options: see `ServerOptions`.
        segments: what to scan.
        books: over the scan's ledger; where findings go, and where the scan goes on from.
        doorman: who may talk.
    """

    def __init__(
        self,
        options: ServerOptions,
        segments: Sequence[Segment],
        books: Books,
        doorman: Doorman | None = None,
    ) -> None:
        self._options = options
        self._segments = {segment.id: segment for segment in segments}
        self._packed = {segment.id: segment.pack() for segment in segments}
        self._books = books
        self._doorman = doorman or Doorman()
        self.scheduler = Scheduler(
            pools=options.pools,
            slice_most=options.slice_most,
            ratelimit=0.0 if options.settings.ratelimit_auto else options.settings.ratelimit,
            generation=books.ledger.generation,
            first_open=options.settings.first_open,
        )
        for segment in segments:
            self.scheduler.add_segment(segment, discovery=bool(segment.search))
        self._search = Search(segments, self.scheduler, books, self._added)
        restore(self.scheduler, books.ledger)
        self.done_before = sum(pool.done for pool in self.scheduler.pools)
        self._sessions = Sessions(
            self.scheduler,
            expiry_s=options.node_expiry_s,
            several_per_machine=options.several_per_machine,
            pool_by_preference=options.pool_by_preference,
            seen=books.ledger.nodes(),
            awaited=not books.ledger.finished,
            return_by=trio.current_time() + RETURN_S,
        )
        #: What a node must know.
        self._methods = [options.settings.tcp_method]
        if any(segment.search for segment in segments):
            self._methods.append("discovery")
        self._over = trio.Event()
        self._return_by = 0.0
        self._stop = Stop(True)
        self._complaints = Complaints()
        #: Lines that have not registered yet.
        self.lobby = Lobby(self._complaints)
        # Reports in the books that are not on the disk yet.
        self._not_durable = 0
        # Set when a line or a session has ended.
        self._left = trio.Event()
        self._heartbeat_s = min(HEARTBEAT_S, options.node_expiry_s / 3)
        self.first_lease_at: float | None = None
        self.interrupted = False
        self.paused = False

    def interrupt(self, why: str) -> None:
        """End early: nodes are told to stop, and `run` returns once they have."""
        if not self._over.is_set():
            self.interrupted = True
            self._stop = Stop(False, clip(why))
            self._over.set()

    @property
    def segments(self) -> list[Segment]:
        """All of the scan that are known so far."""
        return list(self._segments.values())

    def pause(self, on: bool) -> None:
        """Have all nodes hold new probes back, or go on. What is in flight ends as ever."""
        if on != self.paused:
            self.paused = on
            self._sessions.kick()

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve until the scan is done or interrupted, and all nodes were told.

        The listeners are closed at the end, however it comes.
        """
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(accept_lines, listener, self._serve, nursery, self.lobby)
            nursery.start_soon(self._doorman.run)
            nursery.start_soon(self._complaints.run)
            nursery.start_soon(self._expire)
            nursery.start_soon(self._tell_status)
            self._return_by = trio.current_time() + RETURN_S
            self._search.begin()
            if self.scheduler.finished:
                self._over.set()
            await self._over.wait()
            await self._dismiss()
            nursery.cancel_scope.cancel()

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    async def _dismiss(self) -> None:
        """Tell every node to stop, and wait until they have said Bye, for a while.

        A node whose line was lost just now is waited for too, and one that is just coming: who
        is not told looks for this server for ever.
        """
        self._sessions.kick()
        with trio.move_on_after(FAREWELL_S) as farewell:
            if not self.interrupted:
                with trio.move_on_at(self._return_by):
                    await self._until(lambda: not self._sessions.awaited)
            with trio.move_on_after(LATECOMER_S):
                await self._until(lambda: not len(self._sessions) and not self._coming())
            await self._until(lambda: not len(self._sessions))
        if farewell.cancelled_caught:
            log.warning("%d nodes did not say good-bye", len(self._sessions))

    async def _until(self, settled: Callable[[], bool]) -> None:
        while not settled():
            self._left = trio.Event()
            with trio.move_on_after(LOOK_EVERY_S):
                await self._left.wait()

    def _coming(self) -> bool:
        return self.lobby.coming(trio.current_time(), LATECOMER_S)

    async def _expire(self) -> None:
        every = min(self._options.expiry_check_s, 1.0)
        while True:
            await trio.sleep(every)
            for session in self._sessions.expired(trio.current_time()):
                count = self._sessions.left(session)
                log.warning(
                    "%s (%s) is gone; its %d slices go to others",
                    session.node.node_id,
                    session.name,
                    count,
                )
                if session.channel is not None:
                    await trio.aclose_forcefully(session.channel)
                self._left.set()
            # By time alone a slice may have become a straggler's, for whoever waits to take.
            self._sessions.kick()

    async def _tell_status(self) -> None:
        while True:
            await trio.sleep(self._options.status_every_s)
            line = status_line(self.scheduler, len(self._sessions.connected()))
            line = "; ".join([line, *self._doorman.briefly()])
            log.info("%s%s", "paused; " if self.paused else "", line)

    # ── one line ────────────────────────────────────────────────────────────────────────────

    async def _serve(self, stream: trio.abc.Stream) -> None:
        """A bad peer costs its own line alone."""
        with trio.CancelScope() as life:
            guest = self.lobby.enter(stream, life.cancel)
            try:
                admitted = await self._doorman.admit(stream, guest)
                if admitted is not None:
                    guest.advance(Stage.ADMITTED)
                    await self._converse(*admitted, guest)
            finally:
                guest.leave()
                self._left.set()
                await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.abc.Stream, identity: str | None, guest: Guest) -> None:
        """All that is said on a line whose peer may talk; closes it."""
        peer = guest.peer
        purse = Purse()
        channel: NodeChannel = Channel(stream, ServerEnd(), partial(_bear_with, purse))
        try:
            register = await self._greet(channel, guest, identity)
            if register is not None:
                session, back = await self._enter(channel, register, identity)
                guest.leave()
                await self._talk(channel, session, purse, peer, back=back)
        except TurnedOut as fault:
            self._complaints.say(
                "nodes turned out", "turned out a node at %s: %s", peer, fault.detail
            )
            await channel.refuse(fault.reason)
        except PeerFault as fault:
            self._complaints.say(
                "peers that broke the protocol", "%s broke the protocol: %s", peer, fault.detail
            )
            await channel.refuse(fault.reason, fault.detail)
        except (ChannelEnded, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("%s: %s", peer, error)
        except LocalFault:  # a mistake of ours costs one line, not the scan
            log.exception("mistake in talking to %s", peer)
        finally:
            if guest.evicted:  # others have its room already
                await trio.aclose_forcefully(channel)
            else:
                with trio.move_on_after(1.0, shield=True):
                    await channel.aclose()

    async def _greet(
        self, channel: NodeChannel, guest: Guest, identity: str | None
    ) -> Register | None:
        """What a node says of itself; None if it said nothing in time or was refused."""
        with trio.move_on_after(REGISTER_S):
            await channel.send(Welcome(PROTOCOL_VERSION, __version__))
            register = await channel.receive()
            assert isinstance(register, Register)
            if self._sessions.impostor(register, identity):
                self._complaints.say(
                    "nodes refused that said they were others",
                    "refused a node at %s: it says that it is one that is known by another"
                    " certificate; its own is of %s",
                    guest.peer,
                    identity or "nobody (it showed none)",
                )
                await channel.refuse(
                    Reason.NOT_ALLOWED, "it was registered before, with another certificate"
                )
                return None
            if self._sessions.full(register):
                self._complaints.say(
                    "nodes refused because there are too many", "too many nodes: %s", guest.peer
                )
                await channel.refuse(Reason.BUSY, f"{NODES_MAX} nodes are registered")
                return None
            method = next((each for each in self._methods if each not in register.methods), None)
            if method is not None:
                self._complaints.say(
                    "nodes refused that cannot scan as asked",
                    "refused a node that cannot scan by %s: %s at %s",
                    method,
                    register.name,
                    guest.peer,
                )
                await channel.refuse(
                    Reason.NOT_ALLOWED,
                    f"this scan's scannerconfig.{_KEYS.get(method, f'tcp.method is {method}')},"
                    f" which nray {register.node_version} on this node does not know",
                )
                return None
            twin = self._sessions.duplicate(register)
            if twin is None:
                return register
            self._complaints.say(
                "second nodes of one machine refused",
                "refused a second node of one machine: %s at %s",
                register.name,
                guest.peer,
            )
            await channel.refuse(
                Reason.DUPLICATE_MACHINE,
                f"{twin.name} ({twin.node.node_id}) is there already; "
                "allowMultipleNodesPerHost: true lets more in",
            )
            return None
        self._complaints.say(
            "peers that did not register in time",
            "%s did not register in time",
            guest.peer,
            level=logging.INFO,
        )
        return None

    async def _enter(
        self, channel: NodeChannel, register: Register, identity: str | None
    ) -> tuple[Session, bool]:
        """The node's session, from now on led over this line, and whether it was ever met.

        A new one goes into the books before anything is said to it: whatever becomes of the
        line, it is known from now on.
        """
        before = self._sessions.known(register.instance)
        replaced = before.channel if before is not None else None
        met = self._sessions.met(register.instance)
        session = self._sessions.enter(register, identity, trio.current_time())
        session.channel = channel
        if not met:
            self._announce(session, register)
        session.policy = register.policy
        session.spares = "first-open" in register.methods
        # Only now may others run: of several lines of one node the last one that came has it,
        # and has closed the one before.
        if replaced is not None:
            await trio.aclose_forcefully(replaced)
        return session, met

    async def _talk(
        self, channel: NodeChannel, session: Session, purse: Purse, peer: str, *, back: bool
    ) -> None:
        """All that is said once a node has registered; ``back``: again.

        Raises:
            PeerFault: the node broke the protocol, or reported what cannot be true.
            LocalFault: we said what may not be said; the line cannot go on.
        """
        gone = False
        end: PeerFault | LocalFault | None = None
        try:
            async with trio.open_nursery() as nursery:
                line = _Line(channel, purse)
                await self._let_in(channel, session, peer, back=back)
                nursery.start_soon(self._lease, channel, session)
                nursery.start_soon(self._acknowledge, line)
                nursery.start_soon(self._reassure, channel, session)
                nursery.start_soon(self._turn_out, channel)
                nursery.start_soon(self._tell_shown, channel, session)
                await self._listen(line, session)
                gone = True
                with trio.move_on_after(FAREWELL_S / 2):
                    while line.acknowledged < line.received:
                        await line.told.park()
                nursery.cancel_scope.cancel()
        except* (ChannelEnded, trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._over.is_set():
                log.warning("lost the line to %s (%s)", session.node.node_id, session.name)
        except* (PeerFault, LocalFault) as faults:  # raised below: here it would be in a group
            gone = True
            end = _first(faults)
        finally:
            if session.channel is channel:
                session.channel = None
                if gone or self._over.is_set():
                    self._sessions.left(session)
                    self._sessions.kick(session.node.pool)
                else:
                    self._sessions.lost(session, trio.current_time())
        if end is not None:
            raise end

    async def _let_in(
        self, channel: NodeChannel, session: Session, peer: str, *, back: bool
    ) -> None:
        await channel.send(
            Registered(
                node_id=session.node.node_id,
                pool=session.node.pool,
                server_time_ms=now_ms(),
                heartbeat_s=self._heartbeat_s,
                settings=self._options.settings,
                scan=self._books.ledger.scan,
            )
        )
        log.info(
            "%s (%s) %s from %s%s, pool %d, %d processes",
            session.node.node_id,
            session.name,
            "is back" if back else "registered",
            peer,
            f", certificate of {session.identity}" if session.identity else "",
            session.node.pool,
            session.node.processes,
        )
        if session.policy:
            log.info(
                "%s (%s) has a policy: %s; what it refuses is not covered",
                session.node.node_id,
                session.name,
                printable(session.policy, TEXT_CHARS_MAX),
            )

    async def _lease(self, channel: NodeChannel, session: Session) -> None:
        """Give the node what it wants, as it comes; at the end, Stop."""
        announced: set[int] = set()
        told_paused = False
        while not self._over.is_set():
            if session.channel is not channel:
                return  # it has come back on another line, whose task this is now
            session.kick = trio.Event()
            if told_paused != self.paused:
                told_paused = self.paused
                await channel.send(Pulse(told_paused))
            if told_paused:
                await session.kick.wait()
                continue
            for grant in self.scheduler.grant(session.node, trio.current_time()):
                if self.first_lease_at is None:
                    self.first_lease_at = time.monotonic()
                if grant.segment not in announced:
                    announced.add(grant.segment)
                    await channel.send(SegmentMessage(grant.segment, self._packed[grant.segment]))
                await channel.send(Lease(grant.lease, grant.segment, grant.start, grant.count))
            await session.kick.wait()
        await channel.send(self._stop)

    async def _tell_shown(self, channel: NodeChannel, session: Session) -> None:
        """Tell the node which hosts of its pool need no more probes, as it comes.

        Only what is on the disk: were we and the node that has found it gone, another would leave
        the host out, and nobody would know why.
        """
        pool = self.scheduler.pools[session.node.pool]
        told = 0
        while pool.shown is not None and session.spares:
            while told < pool.safe and session.channel is channel:
                end = min(pool.safe, told + SHOWN_MAX)
                await channel.send(Shown(pool.shown.packed(told, end)))
                told = end
            await trio.sleep(SHOWN_EVERY_S)

    async def _turn_out(self, channel: NodeChannel) -> None:
        """End the line when the doorman would no longer let its peer in.

        Raises:
            TurnedOut
        """
        while True:
            objection = self._doorman.objection(channel.stream)
            if objection is not None:
                raise TurnedOut(*objection)
            await self._doorman.changed()

    async def _reassure(self, channel: NodeChannel, session: Session) -> None:
        """A slow sink keeps us from listening: the node must not take that for our end."""
        while True:
            await trio.sleep(self._heartbeat_s)
            if session.busy:
                await channel.send(Pulse(self.paused))

    async def _acknowledge(self, line: _Line) -> None:
        """Tell the node what is durable of its reports, as it comes; one word for many."""
        while True:
            if line.durable == line.acknowledged:
                line.news = trio.Event()
                await line.news.wait()
            durable = line.durable
            await line.channel.send(Ack(durable))
            line.acknowledged = durable
            line.told.unpark_all()

    async def _listen(self, line: _Line, session: Session) -> None:
        """Take what the node says until it says Bye."""
        while True:
            message = await line.channel.receive()
            session.seen_at = trio.current_time()
            wait_s = 0.0
            match message:
                case Report():
                    wait_s = await self._take(line, session, message)
                case Ask(leases):
                    self.scheduler.want(session.node, leases)
                    session.kick.set()
                    wait_s = line.purse.word(trio.current_time())
                case Heartbeat(sent):
                    session.sent = sent
                    await line.channel.send(Pulse(self.paused))
                    wait_s = line.purse.word(trio.current_time())
                case Bye():
                    return
            if wait_s:
                await self._leave_waiting(session, wait_s)

    async def _leave_waiting(self, session: Session, wait_s: float) -> None:
        """Do not read a node that says much and brings nothing, for a moment."""
        self._complaints.say(
            "times that a node was slowed",
            "%s (%s) says much and brings nothing: it is read more slowly",
            session.node.node_id,
            session.name,
        )
        session.busy += 1
        try:
            await trio.sleep(wait_s)
        finally:
            session.busy -= 1
            session.seen_at = trio.current_time()

    async def _take(self, line: _Line, session: Session, report: Report) -> float:
        """A report into the books; it is acknowledged when it is durable. Returns for how long
        the node is not to be read, seconds.

        What waits is only the room for it: from the scheduler's word to the books nothing can
        come between.

        Raises:
            PeerFault: it cannot be true.
        """
        await self._room(session)
        entries: list[Entry] = []
        fresh, ended = 0, False
        taken = None
        try:
            segment = self.scheduler.place(report.lease, session.node)
            if segment is not None:
                check(self._segments[segment], report.hits)  # a lie is refused whole
                errors = attribute(report.errors, report.counts.refused, session.name)
                counts = msgspec.structs.astuple(report.counts)
                taken = self.scheduler.report(
                    report.lease,
                    report.hits,
                    done=report.done,
                    counts=counts,
                    errors=errors,
                    now=trio.current_time(),
                )
                if taken is not None:
                    entries = entries_of(taken, counts, errors, session.number)
                    fresh, ended = len(taken.fresh) // HIT_BYTES, taken.ended
        except (FaultyReport, ValueError) as error:
            raise PeerFault(Reason.PROTOCOL, str(error)) from error
        line.received = report.report
        self._not_durable += 1
        pool = self.scheduler.pools[session.node.pool]
        known = len(pool.shown) if pool.shown is not None else 0
        self._books.submit(entries, partial(self._durable, line, report.report, pool, known))
        if taken is not None:
            self._search.take(taken)
        hits = len(report.hits) // HIT_BYTES
        return line.purse.report(hits, fresh, ended, trio.current_time())

    async def _room(self, session: Session) -> None:
        """Wait for room in the books: a slow output, or a full disk, holds the scan."""
        session.busy += 1
        try:
            await self._books.room()
        finally:
            session.busy -= 1
            session.seen_at = trio.current_time()

    def _durable(self, line: _Line, report: int, pool: Pool, known: int) -> None:
        """On the disk: a report, and with it so many of the hosts that need no more probes."""
        line.durable = max(line.durable, report)
        pool.safe = max(pool.safe, known)
        line.news.set()
        self._not_durable -= 1
        self._end_if_done()

    def _added(self, segments: Sequence[Segment]) -> None:
        """The scan's space has grown, or will grow no more."""
        for segment in segments:
            self._segments[segment.id] = segment
            self._packed[segment.id] = segment.pack()
        self._end_if_done()
        self._sessions.kick()

    def _end_if_done(self) -> None:
        if self.scheduler.finished and not self._not_durable and not self._over.is_set():
            self._over.set()
            self._sessions.kick()

    def _announce(self, session: Session, register: Register) -> None:
        """A node that was never seen before goes into the books, and makes an event."""
        node = NodeSeen(
            session.number,
            session.node.node_id,
            session.name,
            session.node.pool,
            session.identity,
            session.instance,
            session.machine,
            register.environment,
            now_ms(),
        )
        self._books.submit([node, Registration(session.number, node.ms)])


class _Line:
    """One connection's reports: received, durable, acknowledged, by their numbers."""

    def __init__(self, channel: NodeChannel, purse: Purse) -> None:
        self.channel = channel
        self.purse = purse
        self.received = 0
        self.durable = 0
        self.acknowledged = 0
        #: Set when more is durable than acknowledged.
        self.news = trio.Event()
        self.told = ParkingLot()


async def _bear_with(purse: Purse, size: int) -> None:
    """After a read that completed no frame: the next one may have to wait."""
    wait_s = purse.read(size, trio.current_time())
    if wait_s:
        await trio.sleep(wait_s)


def _first(
    faults: BaseExceptionGroup[PeerFault | LocalFault],
) -> PeerFault | LocalFault:
    """The peer's fault, if there is one: it may have led to ours."""
    found = list(_leaves(faults))
    return next((each for each in found if isinstance(each, PeerFault)), found[0])


def _leaves(
    faults: BaseExceptionGroup[PeerFault | LocalFault],
) -> Iterator[PeerFault | LocalFault]:
    for each in faults.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def reason_for(rejected: str) -> Reason:
    """The refusal that a peer is told for a reason of `nray.pki`."""
    return {
        "malformed": Reason.MALFORMED_CERTIFICATE,
        "wrong-name": Reason.WRONG_USE,
    }.get(rejected) or Reason(rejected)


def explain(reason: Reason) -> str:
    """A sentence for the log."""
    return EXPLANATIONS[reason]
