"""Both ends without a loop: decoder, state machine, and what an end makes of what it took.

What the real ends do with a message between two waits is done here at once. After a message was
refused the talk goes on, where a real end would close: a refused message changes nothing, that is
one of the laws, so that one talk can try many bad frames in one state.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import msgspec

from nray import _core
from nray.node import bounds, client, orders
from nray.node.supervisor import RAW_KEY_BYTES
from nray.server import scheduler as scheduling
from nray.server import server as serving
from nray.server.books import entries_of
from nray.server.discovery import Search
from nray.server.sessions import Session, Sessions
from nray.targets import findings
from nray.targets.ports import ICMP, UDP
from nray.targets.segment import SEARCH_LINK, SEARCH_NEAR, SEARCH_NONE, Segment
from nray.wire.errors import PeerFault, Reason
from nray.wire.framing import HEADER_BYTES, FrameReader, encode_frame
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Counts,
    Environment,
    Heartbeat,
    Lease,
    Message,
    Pulse,
    Refused,
    Register,
    Registered,
    Report,
    Settings,
    Shown,
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.rules import HOST_BYTES, SHOWN_MAX
from nray.wire.states import End, NodeEnd, ServerEnd, State
from nray.worker import protocol
from nray.worker.main import Worker

from .case import SERVER, Case, Moved
from .laws import Breach, Talk, check_fault, feature
from .worlds import SLICE, worlds

#: Bytes that an end reads at a time.
CHUNK: Final = 64 * 1024
#: Of a ledger that was never opened before, as the recorded ones: leases are numbered by it.
GENERATION: Final = 1
#: Slices that a node asks for at its registration, and again when it has nothing more to come.
ASK: Final = 12
#: Lines of a listing that are made of a lease.
LISTED: Final = 16
#: Slices that an engine is given; a worker asks for no more before some have ended.
QUEUED_MAX: Final = 500

#: Bytes of the largest frame that may be waited for, by state.
NODE_BYTES: Final = {
    state: 65_536 if state in (State.NEW, State.WELCOMED, State.REGISTERING) else 1_048_576
    for state in State
}
SERVER_BYTES: Final = {state: 65_536 if state is State.NEW else 16_777_216 for state in State}


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        frames: that were heard.
        refusals: (line, frame, reason) of each that was refused.
        features: (what was seen for the first time in this case, at which line and frame).
        endings: for each line the reason of its first refusal, or None.
    """

    frames: int = 0
    changed: int = 0
    refusals: list[tuple[int, int, str]] = field(default_factory=list)
    features: dict[Any, tuple[int, int]] = field(default_factory=dict)
    endings: list[str | None] = field(default_factory=list)


def play(case: Case, known: frozenset[bytes] = frozenset(), *, strict: bool = False) -> Outcome:
    """Let the end of a case hear it.

    Args:
        known: frames that were recorded; others count as changed.
        strict: end a talk at its first refusal, as real ends do.

    Raises:
        Breach: a law was broken.
        Exception: whatever comes out that should not.
    """
    outcome = Outcome()
    desk = ServerDesk(case) if case.end == SERVER else NodeDesk()
    for number, line in enumerate(case.lines):
        talk = desk.line()
        talk.strict = strict
        ending: str | None = None
        for at, frame in enumerate(line):
            if talk.over:
                break
            outcome.frames += 1
            outcome.changed += isinstance(frame, Moved) or frame not in known
            for fault in talk.hear(frame):
                check_fault(fault)
                ending = ending or fault.reason.value
                outcome.refusals.append((number, at, fault.reason.value))
                seen = feature(talk.end.state.value, fault.reason.value, fault.detail)
                outcome.features.setdefault(seen, (number, at))
                if strict:
                    talk.over = True
            step = ("talk", talk.log.letters[-3:], talk.end.state.value)
            outcome.features.setdefault(step, (number, at))
        talk.hang_up(ending)
        outcome.endings.append(ending)
    return outcome


class Line:
    """One connection of an end under attack."""

    def __init__(self, end: End[Any, Any], take: Callable[[Line, Any], None]) -> None:
        self.end = end
        self.log = Talk()
        self.over = False
        #: It ends where a real end would: here, at a goodbye, whatever came with it.
        self.strict = False
        #: It has said Bye: nothing more is made of what it says.
        self.left = False
        self.session: Session | None = None
        self.announced: set[int] = set()
        self._take = take
        self._reader = FrameReader()

    def say(self, message: Message) -> None:
        """A message of our own; one that may not be said is a mistake of ours."""
        encode_frame(message)
        self.end.send(message)
        self.log.passes(message)

    def hear(self, data: bytes) -> list[PeerFault]:
        """Take bytes as they come, and say what was wrong with them."""
        faults = []
        for at in range(0, len(data), CHUNK):
            if self.over:
                break
            self._reader.limit = self.end.receive_limit
            self._reader.feed(data[at : at + CHUNK])
            while not self.over:
                before = _snapshot(self.end)
                try:
                    message = self._next()
                    if message is None:
                        break
                except _Lost as lost:  # where a frame ends is not known any more
                    self.over = True
                    faults.append(lost.fault)
                except PeerFault as fault:
                    if _snapshot(self.end) != before:
                        raise Breach(f"a refused message changed the end: {fault}") from fault
                    faults.append(fault)
                else:
                    self.log.passes(message, heard=True)
                    try:
                        self._take(self, message)
                    except PeerFault as fault:  # it was in order, but cannot be true
                        self.over = True
                        faults.append(fault)
                    self.over |= self.strict and self.left
            if not self.over:
                self._look()
        return faults

    def _look(self) -> None:
        """At what is held of a frame that is not here in full; limits as docs/protocol.md."""
        head = bytes(self._reader._buffer[:HEADER_BYTES])
        if len(head) < HEADER_BYTES:
            return
        announced = int.from_bytes(head, "big")
        most = (NODE_BYTES if isinstance(self.end, ServerEnd) else SERVER_BYTES)[self.end.state]
        if announced > most or self._reader.pending > HEADER_BYTES + most:
            raise Breach(f"a frame of {announced} bytes is waited for, more than {most}")

    def _next(self) -> Any:
        self._reader.limit = self.end.receive_limit
        try:
            body = self._reader.next()
        except PeerFault as fault:
            raise _Lost(fault) from fault
        if body is None:
            return None
        message = self.end.decode(body)
        self.end.receive(message)
        return message

    def hang_up(self, ending: str | None) -> None:
        """The line is over; ``ending`` is why it was refused."""


class _Lost(Exception):
    def __init__(self, fault: PeerFault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _snapshot(end: End[Any, Any]) -> tuple[Any, ...]:
    return end.state, end.credit, end.reported, end.acked, len(end._segments)


# ── a server ────────────────────────────────────────────────────────────────────────────────


class _ServerLine(Line):
    def __init__(self, desk: ServerDesk) -> None:
        super().__init__(ServerEnd(), desk.take)
        self._desk = desk

    def hang_up(self, ending: str | None) -> None:
        self._desk.hang_up(self, ending)


class _Books:
    """Books in which everything is durable at once."""

    def __init__(self) -> None:
        self.ledger = self
        self.segments_ended = False

    def read(self, after: int, most: int) -> list[Any]:
        return []

    def submit(self, entries: Sequence[Any], then: Callable[[], None] | None = None) -> None:
        if then is not None:
            then()

    def append(self, made: Sequence[Segment], *, ended: bool, then: Callable[[], None]) -> None:
        then()


class ServerDesk:
    """What `nray.server.server.Server` does with what it is told."""

    def __init__(self, case: Case) -> None:
        self._world = world = worlds()[case.world]
        self._segments = {segment.id: segment for segment in world.segments}
        self._scheduler = scheduling.Scheduler(
            pools=world.pools,
            slice_most=SLICE,
            generation=GENERATION,
            first_open=world.settings.first_open,
        )
        for segment in world.segments:
            self._scheduler.add_segment(segment, discovery=bool(segment.search))
        books: Any = _Books()
        self._search = Search(world.segments, self._scheduler, books, self._added)
        self._search.begin()
        self._lines: list[Line] = []
        self._granted: dict[int, int] = {}
        self._sessions = Sessions(
            self._scheduler,
            expiry_s=30.0,
            several_per_machine=not case.alone,
            pool_by_preference=True,
        )

    def line(self) -> Line:
        """A new connection."""
        line = _ServerLine(self)
        self._lines.append(line)
        line.say(Welcome(PROTOCOL_VERSION, "0"))
        return line

    def _added(self, segments: Sequence[Segment]) -> None:
        """More to be scanned, which nodes that wait get at once."""
        for segment in segments:
            self._segments[segment.id] = segment
        for line in self._lines:
            if line.session is not None and not line.left:
                self._lease(line)

    def take(self, line: Line, message: Any) -> None:
        """A message that was in order."""
        if line.left:
            return
        match message:
            case Register():
                self._register(line, message)
            case Ask(leases):
                assert line.session is not None
                self._scheduler.want(line.session.node, leases)
                self._lease(line)
            case Report():
                self._report(line, message)
            case Heartbeat():
                line.say(Pulse(False))
            case Bye():
                line.left = True

    def _register(self, line: Line, message: Register) -> None:
        needed = {self._world.settings.tcp_method}
        if self._world.searched:
            needed.add("discovery")
        if not needed <= set(message.methods):
            raise PeerFault(Reason.NOT_ALLOWED, "it cannot scan as asked")
        if self._sessions.duplicate(message) is not None:
            raise PeerFault(Reason.DUPLICATE_MACHINE, "there is one already")
        session = self._sessions.enter(message, None, 0.0)
        session.channel = line  # type: ignore[assignment]
        session.policy = message.policy
        session.spares = "first-open" in message.methods
        line.session = session
        line.say(
            Registered(
                session.node.node_id, session.node.pool, 0, 5.0, self._world.settings, "scan"
            )
        )

    def _lease(self, line: Line) -> None:
        assert line.session is not None
        for grant in self._scheduler.grant(line.session.node, 0.0):
            if grant.segment not in line.announced:
                line.announced.add(grant.segment)
                line.say(SegmentMessage(grant.segment, self._segments[grant.segment].pack()))
            self._granted[grant.lease] = grant.count
            line.say(Lease(grant.lease, grant.segment, grant.start, grant.count))

    def _report(self, line: Line, report: Report) -> None:
        session = line.session
        assert session is not None
        found = None
        try:
            segment = self._scheduler.place(report.lease, session.node)
            if segment is not None:
                findings.check(self._segments[segment], report.hits)
                errors = serving.attribute(report.errors, report.counts.refused, session.name)
                counts = msgspec.structs.astuple(report.counts)
                taken = self._scheduler.report(
                    report.lease, report.hits, done=report.done, counts=counts, errors=errors
                )
                if taken is not None:
                    entries_of(taken, counts, errors, session.number)
                    found = taken
        except (scheduling.FaultyReport, ValueError) as error:
            raise PeerFault(Reason.PROTOCOL, str(error)) from error
        if segment is not None:
            # What was taken can be written down: a hit that cannot would end the server later.
            findings.expand(self._segments[segment], report.hits)
            *states, addresses, refused = msgspec.structs.astuple(report.counts)
            if report.done and sum(states) + refused != self._granted[report.lease] + addresses:
                raise Breach(f"{report.counts} of {self._granted[report.lease]} probes were taken")
        line.say(Ack(report.report))
        if found is not None:
            self._search.take(found)
        self._spare(line)

    def _spare(self, line: Line) -> None:
        """All is durable at once, so hosts with an open port are told at once."""
        assert line.session is not None
        pool = self._scheduler.pools[line.session.node.pool]
        if pool.shown is None or not line.session.spares:
            return
        known = len(pool.shown)
        if known > pool.safe:
            line.say(Shown(pool.shown.packed(pool.safe, min(known, pool.safe + SHOWN_MAX))))
        pool.safe = known

    def hang_up(self, line: Line, ending: str | None) -> None:
        """A line is over."""
        self._lines.remove(line)
        if ending is not None and line.end.state is not State.CLOSED:
            line.say(Refused(ending, "for what was said"))
        session = line.session
        if session is None:
            return
        if ending is not None or line.left:
            self._sessions.left(session)
            if self._sessions.known(session.instance) is session:
                raise Breach("a session stays behind its node")
        else:
            self._sessions.lost(session, 0.0)


# ── a node ──────────────────────────────────────────────────────────────────────────────────


class NodeDesk:
    """What `nray.node.client.Node`, its supervisor and a worker do with what they are told."""

    def __init__(self) -> None:
        self._report = 1
        self._led: str | None = None
        self._begin(Settings())

    def _begin(self, settings: Settings) -> None:
        """Forget what there was of another scan."""
        self._settings = settings
        self._segments = bounds.Segments(settings)
        self._made: dict[int, Segment] = {}
        self._worker = _Hired()
        self._queued = 0
        self._shown = _core.HostSet()

    def line(self) -> Line:
        """A new connection."""
        return Line(NodeEnd(), self.take)

    def take(self, line: Line, message: Any) -> None:
        """A message that was in order."""
        match message:
            case Welcome():
                line.say(
                    Register(PROTOCOL_VERSION, "0", "m", "i", "n", -1, 1, Environment(hostname="h"))
                )
            case Registered():
                client.check_settings(message.settings)
                if message.scan != self._led:
                    self._led = message.scan
                    self._begin(message.settings)
                    self._worker.hear(_configure(message))
                line.say(Ask(ASK))
            case SegmentMessage(number, body):
                if number not in self._segments:
                    segment = self._made[number] = self._segments.add(number, body)
                    _check_stages(segment)
                    raw = orders.goes_raw(self._settings, segment)
                    self._worker.hear(orders.space(segment, raw=raw))
                    space, _ = self._worker.space(number)
                    if space.total != segment.probes:
                        raise Breach(f"{space.total} probes; the segment has {segment.probes}")
            case Shown(hosts):
                self._shown.add(hosts)
                if not all(map(self._shown.has, _each(hosts))):
                    raise Breach("a host that was told is not known")
            case Lease():
                self._segments.check(message)
                if line.end.state in (State.ACTIVE, State.DRAINING):
                    self._scan(line, message)
            case Stop():
                if line.end.state is State.DRAINING:
                    line.say(Bye())
            case Refused():
                error = client._refusal(message)
                if not str(error):
                    raise Breach("a refusal without words")
                line.over = True

    def _scan(self, line: Line, lease: Lease) -> None:
        """Find something at the first position of a slice, and say so."""
        segment = self._made[lease.segment]
        space, exclusions = self._worker.space(lease.segment)
        self._queue(segment, lease)
        for position in (lease.start, lease.start + lease.count - 1):
            if space.position(space.index(position)) != position:
                raise Breach(f"position {position} is not where its index is")
            space.at(position)
        space.listing(lease.start, min(lease.count, LISTED), segment.names)
        family, address, _, _ = space.at(lease.start)
        packed = b""
        if family and exclusions.covers(family, address):
            raise Breach("an excluded address is to be probed")
        if family:
            packed = address.to_bytes(4 if family == 4 else 16, "big")
        hit = lease.start.to_bytes(8, "little") + packed.ljust(16, b"\0") + bytes(4)
        hits = hit + bytes([0, 1, 1, family])
        if len(space.decode(hits, exclusions)) != 1:
            raise Breach("a hit of our own is none")
        counts = Counts(open=1, closed=lease.count - 1)
        line.say(Report(self._report, lease.lease, hits))
        line.say(Report(self._report + 1, lease.lease, done=True, counts=counts))
        self._report += 2
        if line.end.credit == 0:
            line.say(Ask(ASK))

    def _queue(self, segment: Segment, lease: Lease) -> None:
        """Give a slice to an engine that is never run."""
        if self._queued == QUEUED_MAX:
            return
        self._queued += 1
        count, found = lease.count, None
        if segment.names:
            count = min(count, LISTED)
            where = map(segment.space.at, range(lease.start, lease.start + count))
            found = {index: [bytes(4)] for family, index, _, _ in where if family == 0}
        self._worker.hear(protocol.Slice(lease.lease, lease.segment, lease.start, count, found))


def _each(hosts: bytes) -> list[bytes]:
    return [hosts[at : at + HOST_BYTES] for at in range(0, len(hosts), HOST_BYTES)]


def _check_stages(segment: Segment) -> None:
    """What is done with hosts makes sense, whoever asks for it."""
    stages = [(segment.search, segment.ports), *segment.then]
    for search, ports in stages:
        kinds = {kind for kind, _ in ports}
        if not kinds or (ICMP if search == SEARCH_NONE else UDP) in kinds:
            raise Breach(f"a search {search} by {sorted(kinds)}")
        if search in (SEARCH_NEAR, SEARCH_LINK) and kinds != {ICMP}:
            raise Breach(f"the local link is searched by {sorted(kinds)}")
    if [search == SEARCH_NONE for search, _ in stages].index(True) != len(stages) - 1:
        raise Breach("a search that leads to nothing")
    if not -1 <= segment.after < segment.id or len(stages) > 4:
        raise Breach(f"segment {segment.id} after {segment.after}, {len(stages)} stages")


class _Hired(Worker):
    """A worker that takes what it is told, through its socket's code, and never sends a probe."""

    def __init__(self) -> None:
        super().__init__(_control(), _bucket())

    def hear(self, message: protocol.ToWorker) -> None:
        for each in self._unpacker.feed(protocol.pack(message)):
            self._handle(each)  # type: ignore[arg-type]

    def space(self, segment: int) -> tuple[_core.Space, _core.Exclusions]:
        space, exclusions, _ = self._spaces[segment]
        return space, exclusions


def _configure(message: Registered) -> protocol.Configure:
    """What the workers are told, with packets of their own where these are needed: but as there is
    no way out, without a socket."""
    beat = client.heartbeat(message.heartbeat_s)
    if not 0.02 <= beat <= 86_400:
        raise Breach(f"a heartbeat each {beat} s")
    settings = message.settings
    raw = None
    if orders.needs_raw(settings):
        raw = orders.raw(settings, 0, 2, bytes(RAW_KEY_BYTES), [], [])
    told = orders.configure(settings, 0, 2, raw=raw)
    if not 0 <= told.window < 2**31:
        raise Breach(f"a window of {told.window}")
    if not (0 < told.tcp_timeout_s < 2**31 and 0 < told.udp_timeout_s < 2**31):
        raise Breach(f"timeouts of {told.tcp_timeout_s} and {told.udp_timeout_s} s")
    if any(state not in _core.STATES[1:] for state in told.states):
        raise Breach(f"states {told.states}")
    if any(len(each) > 1400 for each in (told.payload, *told.payloads.values())):
        raise Breach("a payload larger than a packet")
    further = [payload for each in told.further.values() for payload, _ in each]
    if any(len(each) > 1400 for each in further) or any(len(e) > 7 for e in told.further.values()):
        raise Breach("further payloads larger than a packet, or too many")
    if not all(math.isfinite(each) and each >= 0 for each in (told.host_rate, told.network_rate)):
        raise Breach(f"caps of {told.host_rate} and {told.network_rate}")
    if raw is not None and not 0 <= raw.retries <= 10:
        raise Breach(f"{raw.retries} retries")
    return told


@cache
def _control() -> socket.socket:
    """The node's end of it hears nothing, for nothing is said."""
    ours, theirs = socket.socketpair()
    _kept.append(ours)
    return theirs


_kept: list[socket.socket] = []


@cache
def _bucket() -> _core.Bucket:
    """One for all: its engines are never run, so that nothing is ever sent."""
    descriptor = os.memfd_create("fuzz")
    os.ftruncate(descriptor, _core.Bucket.BYTES)
    return _core.Bucket(descriptor)
