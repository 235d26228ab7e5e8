"""A node's life: find the server, register, scan what it leases, come back after a lost line.

Work goes on while the line is down: workers finish what they have, findings are kept (a bounded
number, then workers wait), and what was not acknowledged is sent again on the next connection.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from nray import UserError, __version__
from nray.node import machine
from nray.node.bounds import Segments, check_settings, heartbeat
from nray.node.orders import DISCOVERY, FIRST_OPEN, METHODS, Primed, is_raw, needs_raw
from nray.node.policy import Policy
from nray.node.raw import RawNet, net_for
from nray.node.reports import ReportBook
from nray.node.supervisor import Outcome, Supervisor
from nray.wire.channel import Channel, ChannelEnded
from nray.wire.errors import EXPLANATIONS, PeerFault, Reason, clip
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Heartbeat,
    Lease,
    NodeMessage,
    Pulse,
    Refused,
    Register,
    Registered,
    ServerMessage,
    Shown,
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.rules import HELD_MAX, NAME_CHARS_MAX
from nray.wire.states import NodeEnd, State
from nray.worker.forkserver import ForkServer

log = logging.getLogger("nray.node")

#: Pauses between attempts to reach the server, seconds: the first, and the longest. The first
#: is kept for a while, so that a node started with its server joins it at once.
RETRY_FIRST_S = 0.1
RETRY_FIRST_TIMES = 30
RETRY_LAST_S = 5.0
CONNECT_S = 10.0
#: Pause of a node that stays after a scan, seconds: the server that has just ended may still
#: listen, and would only say so again.
REST_S = 1.0
#: For the first frame and the answer to the registration.
GREETING_S = 20.0
#: How long the server may take to acknowledge the last reports at the end.
FAREWELL_S = 10.0
#: Heartbeats without an answer before the line is taken for dead.
BEATS_MISSED_MAX = 4


class ServerRefuses(UserError):
    """The server does not want this node, or this node not the server."""

    exit_status = 1


class Stopped(Exception):
    """The server said Stop."""

    def __init__(self, done: bool, detail: str) -> None:
        super().__init__(detail)
        self.done = done
        self.detail = detail


#: How listening to a server may end, besides with its Stop.
_LINE_ENDS = (ChannelEnded, trio.BrokenResourceError, PeerFault, ServerRefuses)

Secure = Callable[[trio.abc.Stream, str], Awaitable[trio.abc.Stream]]


@dataclass(frozen=True)
class NodeOptions:
    """How a node presents itself.

    Attributes:
        host, port: of the server.
        name: at most 32 characters.
        preferred_pool: -1 for none.
        processes: worker processes.
        stay: wait for the next scan instead of ending with this one.
        policy: what this node will ever do, whatever the server says; None: all it is told.
        xdp: send packets of its own making by AF_XDP, in scans that have such.
    """

    host: str
    port: int
    name: str
    preferred_pool: int = -1
    processes: int = 1
    stay: bool = False
    policy: Policy | None = None
    xdp: bool = False

    @property
    def where(self) -> str:
        """The server's address for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Scan:
    """What a node holds of one scan, over any number of connections."""

    def __init__(
        self,
        scan: str,
        fork_server: ForkServer,
        welcome: Registered,
        processes: int,
        primed: list[Primed],
        policy: Policy | None,
        raw: RawNet | None,
    ) -> None:
        self.scan = scan
        self.book = ReportBook()
        self.wanted = 0
        self.segments = Segments(welcome.settings)
        self.stopping = False
        self.news = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self.supervisor = Supervisor(
            fork_server,
            welcome.settings,
            processes,
            self,
            ahead=processes,
            primed=primed,
            policy=policy,
            raw=raw,
        )

    def want(self, leases: int) -> None:
        self.wanted += leases
        self.news.set()

    async def found(self, outcome: Outcome) -> None:
        while self.book.full:
            await self._room.park()
        self.book.add(outcome)
        self.news.set()

    def acknowledged(self, report: int) -> None:
        self.book.acknowledge(report)
        self._room.unpark_all()

    @property
    def leases(self) -> tuple[int, ...]:
        """What is told when the node registers again. Those beyond what a message may hold go to
        others, and our reports of them are late ones."""
        return tuple(sorted(self.supervisor.leases | self.book.leases_done)[:HELD_MAX])


class Node:
    """One node.

    Args:
        options: see `NodeOptions`.
        fork_server: started early by the caller, closed by it in the end.
        secure: makes a connection secure (TLS and the check of the server); None: plain TCP.
        primed: workers that were already asked for.
    """

    def __init__(
        self,
        options: NodeOptions,
        fork_server: ForkServer,
        secure: Secure | None,
        primed: list[Primed] | None = None,
    ) -> None:
        self._options = options
        self._fork_server = fork_server
        self._secure = secure
        self._primed = primed or []
        self._instance = secrets.token_hex(16)
        self._machine = machine.machine_id()
        self._environment = machine.environment()
        self._scan: _Scan | None = None
        self._supervision: trio.CancelScope | None = None
        self._said_absent = False

    async def run(self) -> None:
        """Serve until the server says that the scan is over (with ``stay``: for ever).

        Raises:
            ServerRefuses: the server refused this node, or failed the check of its certificate.
            UserError: whatever else its user can mend. Either may come in a group.
        """
        async with trio.open_nursery() as nursery:
            await self._serve_scans(nursery)
            nursery.cancel_scope.cancel()

    async def _serve_scans(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                await self._one_connection(nursery)
            except Stopped as end:
                self._forget_scan()
                if not self._options.stay:
                    log.info("%s", "scan done" if end.done else f"stopped: {end.detail}")
                    return
                log.info("scan over; waiting for the next one")
                await trio.sleep(REST_S)

    def _forget_scan(self) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
        self._scan = None
        self._supervision = None

    # ── connecting ──────────────────────────────────────────────────────────────────────────

    async def _one_connection(self, nursery: trio.Nursery) -> None:
        stream = await self._connect()
        channel: Channel[NodeMessage, ServerMessage] = Channel(stream, NodeEnd())
        try:
            await self._talk(channel, nursery)
        except (ChannelEnded, trio.BrokenResourceError) as error:
            self._tell_lost(error)
            await trio.sleep(RETRY_FIRST_S)
        except PeerFault as fault:
            raise ServerRefuses(
                f"{self._options.where} does not talk as a nray server does: {fault.detail}",
                "is another program listening there, or a server of another version?",
            ) from fault
        finally:
            with trio.move_on_after(1.0, shield=True):
                await channel.aclose()

    def _tell_lost(self, error: Exception) -> None:
        if isinstance(error, ChannelEnded) and error.state is State.NEW and self._secure is None:
            log.warning(
                "%s closed the line before it said a word; does it want TLS (--use-tls)?",
                self._options.where,
            )
        else:
            log.warning("lost the server at %s (%s); coming back", self._options.where, error)

    async def _connect(self) -> trio.abc.Stream:
        attempt = 0
        while True:
            try:
                return await self._connect_once()
            except OSError as error:
                reason = _words(error)
            except trio.TooSlowError:
                reason = f"no answer within {CONNECT_S:g} s"
            except trio.BrokenResourceError as error:
                reason = str(error) or "the connection was cut"
            if not self._said_absent:
                self._said_absent = True
                log.warning(
                    "no server at %s yet (%s); trying again until there is one",
                    self._options.where,
                    reason,
                )
            attempt += 1
            doubled = RETRY_FIRST_S * 2.0 ** min(max(0, attempt - RETRY_FIRST_TIMES), 10)
            await trio.sleep(min(doubled, RETRY_LAST_S))

    async def _connect_once(self) -> trio.abc.Stream:
        with trio.fail_after(CONNECT_S):
            try:
                stream: trio.abc.Stream = await trio.open_tcp_stream(
                    self._options.host, self._options.port
                )
            except UnicodeError as error:  # from the name's encoding (IDNA)
                raise UserError(f"{self._options.host!r} is no host name: {error}") from error
        if self._secure is None:
            return stream
        return await self._secure(stream, self._options.host)

    # ── talking ─────────────────────────────────────────────────────────────────────────────

    async def _talk(
        self, channel: Channel[NodeMessage, ServerMessage], nursery: trio.Nursery
    ) -> None:
        with trio.move_on_after(GREETING_S) as greeting:
            try:
                registered = await self._register(channel)
            except trio.BrokenResourceError as error:
                # A server that misses our certificate says so by an alert, and TLS 1.3 lets us
                # hear of it at our first read.
                cause = error.__cause__
                if getattr(cause, "reason", ""):
                    raise ServerRefuses(f"the server refuses this node: {cause}") from error
                raise
        if greeting.cancelled_caught:
            raise trio.BrokenResourceError(f"no greeting within {GREETING_S:g} s")
        try:
            scan = self._enter(registered, nursery)
        except UserError as error:
            with trio.move_on_after(FAREWELL_S):
                await channel.send(Bye(clip(error.message)))
            raise
        self._said_absent = True
        heartbeat_s = heartbeat(registered.heartbeat_s)
        end: Stop | Exception
        async with trio.open_nursery() as talk:
            talk.start_soon(_until_broken, self._send, channel, scan, heartbeat_s)
            try:
                end = await self._listen(channel, scan, heartbeat_s)
                # Not cancelled where the line is good: half a frame would make it useless.
                scan.stopping = True
                scan.news.set()
                talk.cancel_scope.deadline = trio.current_time() + FAREWELL_S
            except _LINE_ENDS as error:  # raised outside: a nursery would wrap it
                end = error
                talk.cancel_scope.cancel()
        if isinstance(end, Exception):
            raise end
        await self._say_bye(channel, scan)
        raise Stopped(end.done, end.detail)

    async def _register(self, channel: Channel[NodeMessage, ServerMessage]) -> Registered:
        first = await channel.receive()
        if isinstance(first, Refused):
            raise _refusal(first)
        assert isinstance(first, Welcome)
        await channel.send(
            Register(
                protocol=PROTOCOL_VERSION,
                node_version=__version__,
                machine_id=self._machine,
                instance=self._instance,
                name=clip(self._options.name, NAME_CHARS_MAX),
                preferred_pool=self._options.preferred_pool,
                processes=self._options.processes,
                environment=self._environment,
                leases=self._scan.leases if self._scan else (),
                policy=clip(self._options.policy.words()) if self._options.policy else "",
                methods=(*METHODS, DISCOVERY, FIRST_OPEN),
            )
        )
        answer = await channel.receive()
        if isinstance(answer, Refused):
            raise _refusal(answer)
        assert isinstance(answer, Registered)
        check_settings(answer.settings)
        return answer

    def _enter(self, registered: Registered, nursery: trio.Nursery) -> _Scan:
        """The scan that the server leads: a new one, or what we have of it."""
        if self._scan is not None and self._scan.scan == registered.scan:
            self._scan.book.reconnected()
            self._scan.wanted = 0
            self._scan.supervisor.ask_again()
            log.info("back at %s as %s", self._options.where, registered.node_id)
            return self._scan
        self._forget_scan()
        if registered.settings.first_open:
            self._fork_server.shown().renew()  # there may be hosts of the scan before
        raw = None
        if needs_raw(registered.settings):
            raw = net_for(xdp=self._options.xdp, hosts_alone=not is_raw(registered.settings))
        scan = _Scan(
            registered.scan,
            self._fork_server,
            registered,
            self._options.processes,
            self._primed,
            self._options.policy,
            raw,
        )
        self._primed = []
        self._scan = scan
        self._supervision = trio.CancelScope()
        nursery.start_soon(self._supervise, scan, self._supervision)
        log.info(
            "registered at %s as %s, pool %d",
            self._options.where,
            registered.node_id,
            registered.pool,
        )
        return scan

    async def _supervise(self, scan: _Scan, scope: trio.CancelScope) -> None:
        with scope:
            await scan.supervisor.run()

    async def _listen(
        self, channel: Channel[NodeMessage, ServerMessage], scan: _Scan, heartbeat_s: float
    ) -> Stop:
        """Do what the server says, until it says Stop."""
        while True:
            with trio.move_on_after(BEATS_MISSED_MAX * heartbeat_s) as silence:
                message = await channel.receive()
            if silence.cancelled_caught:
                raise trio.BrokenResourceError("the server is silent")
            match message:
                case Lease():
                    scan.segments.check(message)
                    scan.supervisor.give(message)
                case SegmentMessage(number, body):
                    if number not in scan.segments:
                        scan.supervisor.add_segment(scan.segments.add(number, body))
                case Ack(report):
                    scan.acknowledged(report)
                case Pulse(pause):
                    scan.supervisor.pause(pause)
                case Shown(hosts):
                    scan.supervisor.spare(hosts)
                case Stop():
                    return message
                case Refused():
                    raise _refusal(message)

    async def _send(
        self, channel: Channel[NodeMessage, ServerMessage], scan: _Scan, heartbeat_s: float
    ) -> None:
        """All that goes out on a line after its registration, until the server says Stop."""
        beat_at = trio.current_time() + heartbeat_s
        while not scan.stopping:
            scan.news = trio.Event()
            if scan.wanted:
                wanted, scan.wanted = scan.wanted, 0
                await channel.send(Ask(wanted))
            for report in scan.book.unsent():
                await channel.send(report)
            if trio.current_time() >= beat_at:
                await channel.send(Heartbeat(scan.supervisor.sent))
                beat_at = trio.current_time() + heartbeat_s
            with trio.move_on_at(beat_at):
                await scan.news.wait()

    async def _say_bye(self, channel: Channel[NodeMessage, ServerMessage], scan: _Scan) -> None:
        """Send what is left, and wait until the server has it."""
        if self._supervision is not None:
            self._supervision.cancel()
        with trio.move_on_after(FAREWELL_S):
            try:
                for report in scan.book.unsent():
                    await channel.send(report)
                await channel.send(Bye())
                while True:
                    message = await channel.receive()
                    if isinstance(message, Ack):
                        scan.acknowledged(message.report)
            except (ChannelEnded, trio.BrokenResourceError):
                pass  # gone, and the server had said Stop: there is nothing to come back for


async def _until_broken(task: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run a task that sends. A broken line is told by the one that receives: there may be a
    reason to be read."""
    try:
        await task(*arguments)
    except (ChannelEnded, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def _refusal(message: Refused) -> ServerRefuses:
    try:
        words = EXPLANATIONS[Reason(message.reason)]
    except ValueError:
        words = message.reason
    detail = f" ({message.detail})" if message.detail else ""
    hint = "trying again later may help" if message.retry else ""
    return ServerRefuses(f"the server refuses this node: {words}{detail}", hint)


def _words(error: OSError) -> str:
    """Trio wraps what happened to each address that a name has; the first says enough."""
    inner: BaseException | None = error.__cause__
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    if isinstance(inner, OSError) and inner.errno:
        error = inner
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
