"""The server: listens for nodes, leases them the scan, writes their findings down."""

from __future__ import annotations

import errno
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from nray import UserError, __version__
from nray.server.recorder import Recorder, Source, now_ms
from nray.server.scheduler import FaultyReport, Scheduler
from nray.server.sessions import Session, Sessions
from nray.server.summary import status_line
from nray.targets.findings import expand
from nray.targets.segment import Segment
from nray.wire.channel import Channel, ChannelEnded
from nray.wire.errors import EXPLANATIONS, PeerFault, Reason
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
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.states import ServerEnd

log = logging.getLogger("nray.server")

#: For the registration of a node whose line is up.
REGISTER_S = 10.0
#: How long nodes may take to say Bye at the end.
FAREWELL_S = 10.0
HEARTBEAT_S = 5.0
#: Lines under way that have not registered yet: what half-open peers can hold at most.
GUESTS_MAX = 256

NodeChannel = Channel[ServerMessage, NodeMessage]


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


class Doorman:
    """Lets a line in: plain TCP as it is. See `nray.server.tls` for the other way."""

    async def admit(self, stream: trio.abc.Stream) -> tuple[trio.abc.Stream, str | None] | None:
        """The stream to talk on and the peer's verified identity; None if it was turned away."""
        return stream, None


class Server:
    """One scan, served to nodes.

    Args:
        options: see `ServerOptions`.
        segments: what to scan.
        recorder: where findings go.
        doorman: who may talk.
    """

    def __init__(
        self,
        options: ServerOptions,
        segments: Sequence[Segment],
        recorder: Recorder,
        doorman: Doorman | None = None,
    ) -> None:
        self._options = options
        self._segments = {segment.id: segment for segment in segments}
        self._packed = {segment.id: segment.pack() for segment in segments}
        self._recorder = recorder
        self._doorman = doorman or Doorman()
        self._scan = secrets.token_hex(8)
        self.scheduler = Scheduler(
            pools=options.pools,
            slice_most=options.slice_most,
            ratelimit=options.settings.ratelimit,
        )
        for segment in segments:
            self.scheduler.add_segment(segment)
        self.scheduler.end_segments()
        self._sessions = Sessions(
            self.scheduler,
            expiry_s=options.node_expiry_s,
            several_per_machine=options.several_per_machine,
            pool_by_preference=options.pool_by_preference,
        )
        self._over = trio.Event()
        self._stop = Stop(True)
        self._guests = 0
        self._nobody = trio.Event()
        self.first_lease_at: float | None = None
        self.interrupted = False

    def interrupt(self, why: str) -> None:
        """End early: nodes are told to stop, and `run` returns once they have."""
        if not self._over.is_set():
            self.interrupted = True
            self._stop = Stop(False, why)
            self._over.set()

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve until the scan is done or interrupted, and all nodes were told.

        The listeners are closed at the end, however it comes.
        """
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(trio.serve_listeners, self._serve, [listener])
            nursery.start_soon(self._expire)
            nursery.start_soon(self._tell_status)
            if self.scheduler.finished:
                self._over.set()
            await self._over.wait()
            await self._dismiss()
            nursery.cancel_scope.cancel()

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    async def _dismiss(self) -> None:
        """Tell every node to stop, and wait until they have said Bye, for a while."""
        for session in self._sessions.connected():
            session.kick.set()
        with trio.move_on_after(FAREWELL_S) as farewell:
            while self._sessions.connected():
                self._nobody = trio.Event()
                await self._nobody.wait()
        if farewell.cancelled_caught:
            log.warning("%d nodes did not say good-bye", len(self._sessions.connected()))

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
                self._sessions.kick(session.node.pool)

    async def _tell_status(self) -> None:
        while True:
            await trio.sleep(self._options.status_every_s)
            log.info("%s", status_line(self.scheduler, len(self._sessions.connected())))

    # ── one line ────────────────────────────────────────────────────────────────────────────

    async def _serve(self, stream: trio.SocketStream) -> None:
        """A bad peer costs its own line alone."""
        if self._guests >= GUESTS_MAX:
            await trio.aclose_forcefully(stream)
            return
        self._guests += 1
        guest = True
        try:
            peer = _peer_name(stream)
            admitted = await self._doorman.admit(stream)
            if admitted is None:
                return
            secured, identity = admitted
            channel: NodeChannel = Channel(secured, ServerEnd())
            try:
                session = await self._greet(channel, identity, peer)
                self._guests -= 1
                guest = False
                if session is not None:
                    await self._talk(channel, session)
            except PeerFault as fault:
                log.warning("%s broke the protocol: %s", peer, fault.detail)
                await channel.refuse(fault.reason, fault.detail)
            except (ChannelEnded, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                log.debug("%s: %s", peer, error)
            finally:
                with trio.move_on_after(1.0, shield=True):
                    await channel.aclose()
        finally:
            if guest:
                self._guests -= 1

    async def _greet(self, channel: NodeChannel, identity: str | None, peer: str) -> Session | None:
        with trio.move_on_after(REGISTER_S):
            await channel.send(Welcome(PROTOCOL_VERSION, __version__))
            register = await channel.receive()
            assert isinstance(register, Register)
            return await self._register(channel, register, identity, peer)
        log.debug("%s did not register in time", peer)
        return None

    async def _register(
        self, channel: NodeChannel, register: Register, identity: str | None, peer: str
    ) -> Session | None:
        twin = self._sessions.duplicate(register)
        if twin is not None:
            log.warning("refused a second node of one machine: %s at %s", register.name, peer)
            await channel.refuse(
                Reason.DUPLICATE_MACHINE,
                f"{twin.name} ({twin.node.node_id}) is there already; "
                "allowMultipleNodesPerHost: true lets more in",
            )
            return None
        before = self._sessions.known(register.instance)
        if before is not None and before.channel is not None:
            await trio.aclose_forcefully(before.channel)
        session = self._sessions.enter(register, identity, trio.current_time())
        session.channel = channel
        await channel.send(
            Registered(
                node_id=session.node.node_id,
                pool=session.node.pool,
                server_time_ms=now_ms(),
                heartbeat_s=min(HEARTBEAT_S, self._options.node_expiry_s / 3),
                settings=self._options.settings,
                scan=self._scan,
            )
        )
        who = f"{session.node.node_id} ({session.name})"
        proven = f", certificate of {identity}" if identity else ""
        log.info(
            "%s %s from %s%s, pool %d, %d processes",
            who,
            "is back" if before else "registered",
            peer,
            proven,
            session.node.pool,
            session.node.processes,
        )
        if before is None:
            await self._recorder.registration(_source(session), register.environment)
        return session

    async def _talk(self, channel: NodeChannel, session: Session) -> None:
        gone = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lease, channel, session)
                await self._listen(channel, session)
                gone = True
                nursery.cancel_scope.cancel()
        except* (ChannelEnded, trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._over.is_set():
                log.warning("lost the line to %s (%s)", session.node.node_id, session.name)
        except* PeerFault as faults:
            gone = True
            raise _first(faults) from None
        finally:
            if session.channel is channel:
                if gone or self._over.is_set():
                    self._sessions.left(session)
                    session.channel = None
                    self._sessions.kick(session.node.pool)
                else:
                    self._sessions.lost(session, trio.current_time())
            self._nobody.set()

    async def _lease(self, channel: NodeChannel, session: Session) -> None:
        """Give the node what it wants, as it comes; at the end, Stop."""
        while not self._over.is_set():
            session.kick = trio.Event()
            for grant in self.scheduler.grant(session.node, trio.current_time()):
                if self.first_lease_at is None:
                    self.first_lease_at = time.monotonic()
                if grant.segment not in session.announced:
                    session.announced.add(grant.segment)
                    await channel.send(SegmentMessage(grant.segment, self._packed[grant.segment]))
                await channel.send(Lease(grant.lease, grant.segment, grant.start, grant.count))
            await session.kick.wait()
        await channel.send(self._stop)

    async def _listen(self, channel: NodeChannel, session: Session) -> None:
        """Take what the node says until it says Bye."""
        while True:
            message = await channel.receive()
            session.seen_at = trio.current_time()
            match message:
                case Report():
                    await self._take(session, message)
                    await channel.send(Ack(message.report))
                case Ask(leases):
                    self.scheduler.want(session.node, leases)
                    session.kick.set()
                case Heartbeat(sent):
                    session.sent = sent
                    await channel.send(Pulse())
                case Bye():
                    return

    async def _take(self, session: Session, report: Report) -> None:
        """A report into the books and to the sinks; returns when both have it.

        Raises:
            PeerFault: it cannot be true.
        """
        try:
            segment = self.scheduler.place(report.lease, session.node)
            if segment is None:
                return  # its slice was ended by another
            findings = expand(self._segments[segment], report.hits)
            taken = self.scheduler.report(
                report.lease,
                report.hits,
                done=report.done,
                counts=_counts(report),
                errors=report.errors,
                now=trio.current_time(),
            )
        except (FaultyReport, ValueError) as error:
            raise PeerFault(Reason.PROTOCOL, str(error)) from error
        if taken is None:
            return
        _, _, fresh = taken
        if len(fresh) != len(report.hits):
            findings = expand(self._segments[segment], fresh)
        if findings:
            await self._recorder.findings(_source(session), findings)
        if report.done and self.scheduler.finished:
            await self._recorder.flush()
            self._over.set()
            self._sessions.kick()


def _counts(report: Report) -> tuple[int, ...]:
    counts = report.counts
    return (
        counts.open,
        counts.closed,
        counts.filtered,
        counts.open_filtered,
        counts.error,
        counts.excluded,
        counts.skipped,
        counts.addresses,
    )


def _source(session: Session) -> Source:
    return Source(session.node.node_id, session.name, session.node.pool, session.identity)


def _first(faults: BaseExceptionGroup[PeerFault]) -> PeerFault:
    for each in faults.exceptions:
        if isinstance(each, PeerFault):
            return each
        return _first(each)
    raise AssertionError("an exception group is never empty")


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "a peer that is gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_listeners(host: str, ports: Sequence[int]) -> list[trio.SocketListener]:
    """Listeners on all ports, or none.

    Raises:
        UserError: a port cannot be listened on.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for port in ports:
            listeners += await trio.open_tcp_listeners(port, host=host or None)
    except OSError as error:
        for listener in listeners:
            await listener.aclose()
        raise _cannot_listen(host, port, error) from error
    return listeners


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    where = f"port {port} of {host or 'all addresses'}"
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"{where} is taken by another program",
            f"choose another one with listen:, or see who has it: ss -ltnp 'sport = :{port}'",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(
            f"{where}: this machine has no such address",
            "host: is the address to listen on; 0.0.0.0 is all of IPv4, :: all there is",
        )
    if error.errno == errno.EACCES:
        return UserError(f"{where} may not be listened on", "ports below 1024 need privileges")
    return UserError(f"{where} cannot be listened on: {error.strerror or error}")


def reason_for(rejected: str) -> Reason:
    """The refusal that a peer is told for a reason of `nray.pki`."""
    return {
        "malformed": Reason.MALFORMED_CERTIFICATE,
        "wrong-name": Reason.WRONG_USE,
    }.get(rejected) or Reason(rejected)


def explain(reason: Reason) -> str:
    """A sentence for the log."""
    return EXPLANATIONS[reason]
