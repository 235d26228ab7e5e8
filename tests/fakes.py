"""Stand-ins for what is slow, far away or dangerous: workers, lines, sinks, offices.

All of them live in one trio loop on a mock clock, so a test decides what happens when. What
they speak is the real thing: `nray.worker.protocol` to the supervisor, `nray.wire` to server and
node.
"""

from __future__ import annotations

import inspect
import itertools
import math
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from unittest import mock

import pytest
import trio
import trio.testing

from nray import __version__, _core
from nray.api.collect import CallSink
from nray.events import hub as hub_module
from nray.events.hub import SinkPort, open_hub
from nray.events.model import Event
from nray.ledger.entries import Entry, Hits, SliceDone
from nray.ledger.memory import MemoryLedger
from nray.node.client import Node, NodeOptions
from nray.node.supervisor import Outcome
from nray.server import books as books_module
from nray.server.books import Books, open_books
from nray.server.door import Doorman
from nray.server.scheduler import Tally
from nray.server.server import Server, ServerOptions
from nray.targets.discovery import unfollowed
from nray.targets.findings import HostSet
from nray.targets.plan import plan
from nray.targets.segment import Segment
from nray.wire.channel import Channel
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Counts,
    Environment,
    Lease,
    NodeMessage,
    Register,
    Registered,
    Report,
    ServerMessage,
    Settings,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.states import NodeEnd
from nray.worker import protocol

OPEN = _core.STATES.index("open")
SYN_ACK = _core.REASONS.index("syn-ack")
STATES_SHOWN = ("closed", "filtered", "open|filtered", "error")


async def inline(method, *args, abandon_on_cancel=False, limiter=None):
    """Stands in for `trio.to_thread.run_sync`: no clock runs on while a thread works.

    A method that gives something to await takes its time, as it would in a thread.
    """
    await trio.lowlevel.checkpoint()
    async with limiter or nullcontext():
        result = method(*args)
        return await result if inspect.isawaitable(result) else result


def run_in_trio(main: Callable[..., Awaitable[None]], *args: object) -> None:
    """Run on an autojump clock: a wait for ever fails after an hour of it. Outputs and ledgers
    are called without threads."""

    async def bounded() -> None:
        with trio.fail_after(3600):
            await main(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "_in_thread", inline)
        patch.setattr(books_module, "_in_thread", inline)
        trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def in_trio(test):
    """Make a test of a coroutine function; see `run_in_trio`."""

    @wraps(test)
    def run(*args, **kwargs):
        async def main():
            await test(*args, **kwargs)

        run_in_trio(main)

    return run


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


# ── what is scanned ─────────────────────────────────────────────────────────────────────────


def segment_of(
    targets: str | Sequence[str] = "198.18.0.0/24",
    ports: str = "1-10",
    exclude: Sequence[str] = (),
) -> Segment:
    """One segment in a known order."""
    return plan(targets, tcp=ports, seed=1, exclude=exclude).segments[0]


def hit(segment: Segment, position: int, address: bytes = b"", state: int = OPEN) -> bytes:
    """A packed hit at a position; ``address`` is needed where a name stands there."""
    family, number, _, _ = segment.space.at(position)
    if family:
        address = number.to_bytes(4 if family == 4 else 16, "big")
    else:
        family = {0: 0, 4: 4, 16: 6}[len(address)]
    record = position.to_bytes(8, "little") + address.ljust(16, b"\0")
    return record + (1000).to_bytes(4, "little") + bytes([0, state, SYN_ACK, family])


def counts_of(count: int, opened: int = 0) -> tuple[int, ...]:
    """Nine counts for a slice of so many probes: all closed but some open."""
    return (opened, count - opened, 0, 0, 0, 0, 0, 0, 0)


# ── outputs and ledgers ─────────────────────────────────────────────────────────────────────


class FakeHub:
    """Keeps what is published; can be told to stand still."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.flushes = 0
        self.waiting = 0
        self._taken = False
        self._gate = trio.Event()
        self._gate.set()

    def stand_still(self) -> None:
        """From now on publishing waits."""
        self._gate = trio.Event()

    def go_on(self) -> None:
        self._gate.set()

    async def publish(self, events: Sequence[Event]) -> None:
        await trio.lowlevel.checkpoint()
        if events:
            self.waiting += 1
            try:
                await self._gate.wait()
            finally:
                self.waiting -= 1
        self.events += events

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1

    async def sync(self) -> None:
        await self.flush()

    @asynccontextmanager
    async def opened(self, ports: Sequence[SinkPort]) -> AsyncIterator[object]:
        """In place of `open_hub`: for the first that asks; others get what they asked for."""
        if self._taken:
            async with open_hub(ports) as hub:
                yield hub
            return
        self._taken = True
        yield self

    @property
    def found(self) -> list[tuple[str, int]]:
        """(address, port) of each finding, in order."""
        return found_in(self.events)

    @property
    def registrations(self) -> list[str]:
        """Names of nodes, in the order of their events."""
        return [event.nodeName for event in self.events if event.environment]


def found_in(events: Sequence[Event]) -> list[tuple[str, int]]:
    """(address, port) of each finding, in order."""
    return [(event.result.address, event.result.port) for event in events if event.result]


class FakeSink:
    """An output that keeps what it gets, for a real hub; to be used with `in_trio` alone.

    Args:
        each_s: what a write takes for each event, seconds.
    """

    abandonable = True  # a test that ends while it stands still is not to wait for it
    position = 0

    def __init__(self, name: str = "fake", each_s: float = 0.0) -> None:
        self.name = name
        self.each_s = each_s
        self.events: list[Event] = []
        self.syncs = 0
        self._gate = trio.Event()
        self._gate.set()

    def stand_still(self) -> None:
        """From now on writing waits."""
        self._gate = trio.Event()

    def go_on(self) -> None:
        self._gate.set()

    def open(self) -> None:
        pass

    async def write(self, events: Sequence[Event]) -> None:
        await self._gate.wait()
        if self.each_s:
            await trio.sleep(self.each_s * len(events))
        self.events += events

    def sync_due_s(self) -> float:
        return math.inf

    def sync(self) -> None:
        self.syncs += 1

    def close(self) -> None:
        pass


class Killed(Exception):
    """Raised by a commit: there is no process any more that could write it."""


class FakeLedger(MemoryLedger):
    """A ledger in memory that passes for one on a disk, for use with `in_trio` alone.

    It can be slow, stand still, be full, and be found again after a crash.

    Attributes:
        takes_s: what a commit takes, seconds.
        trouble: raised by each commit until it is None again; `tries` counts them all.
        commits: what was committed, one list each.
    """

    durable = True

    def __init__(self, segments: Sequence[Segment] = ()) -> None:
        self._prepare()
        packed = [(segment.id, segment.pack()) for segment in segments]
        super().__init__(scan="scan", segments=packed, ended=True)
        self.commits.clear()
        self.tries = 0

    def _prepare(self) -> None:
        self.takes_s = 0.0
        self.trouble: Exception | None = None
        self.tries = 0
        self.commits: list[list[Entry]] = []
        self._gate = trio.Event()
        self._gate.set()

    def stand_still(self) -> None:
        """From now on commits wait."""
        self._gate = trio.Event()

    def go_on(self) -> None:
        self._gate.set()

    def commit(self, entries: Sequence[Entry]) -> int | Awaitable[int]:
        if self._gate.is_set() and not self.takes_s:
            return self._commit(entries)
        return self._commit_slowly(entries)

    async def _commit_slowly(self, entries: Sequence[Entry]) -> int:
        await self._gate.wait()
        with trio.CancelScope(shield=True):  # as a thread, which nobody can stop
            await trio.sleep(self.takes_s)
        return self._commit(entries)

    def _commit(self, entries: Sequence[Entry]) -> int:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble
        last = super().commit(entries)
        self.commits.append(list(entries))
        return last

    def reopened(self) -> FakeLedger:
        """As a new process finds it, its generation one higher."""
        crashed = self.crash()
        crashed.__class__ = FakeLedger
        assert isinstance(crashed, FakeLedger)
        crashed._prepare()
        return crashed

    @property
    def hit_keys(self) -> list[tuple[int, int, bytes]]:
        """Pool, segment, and position with address, of each hit in the journal, in order."""
        return [
            (row.pool, row.segment, row.packed[at : at + 24])
            for _, row in self.read(0, 10**9)
            if isinstance(row, Hits)
            for at in range(0, len(row.packed), 32)
        ]

    @property
    def ended(self) -> list[SliceDone]:
        """The slices that were ended since it was opened, in order."""
        return [each for entries in self.commits for each in entries if isinstance(each, SliceDone)]


# ── lines ───────────────────────────────────────────────────────────────────────────────────


class _NoSocket:
    def getpeername(self) -> tuple[str, int]:
        raise OSError("in memory")


class Line(trio.abc.HalfCloseableStream):
    """One end of a line in memory."""

    socket = _NoSocket()

    def __init__(self, out: trio.testing.MemorySendStream, back: trio.testing.MemoryReceiveStream):
        self._out, self._back = out, back

    async def send_all(self, data: bytes) -> None:
        await self._out.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._out.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._back.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._out.aclose()

    async def aclose(self) -> None:
        self.cut()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """Both directions end at once, as when the process at this end is killed."""
        self._out.close()
        self._back.close()


def line_pair() -> tuple[Line, Line]:
    one, other = trio.testing.memory_stream_pair()
    return Line(one.send_stream, one.receive_stream), Line(other.send_stream, other.receive_stream)


class MemoryListener(trio.abc.Listener):
    """What a server listens on, and where nodes dial."""

    def __init__(self) -> None:
        self._lines, self._accepted = trio.open_memory_channel[Line](100)
        self.dialled = 0
        #: The server's ends, in the order of dialling.
        self.ends: list[Line] = []

    async def accept(self) -> Line:
        return await self._accepted.receive()

    async def aclose(self) -> None:
        self._accepted.close()
        await trio.lowlevel.checkpoint()

    async def dial(self) -> Line:
        """A new line. Raises ConnectionRefusedError where nobody listens any more."""
        ours, theirs = line_pair()
        self.dialled += 1
        try:
            await self._lines.send(theirs)
        except trio.BrokenResourceError:
            raise ConnectionRefusedError(111, "Connection refused") from None
        self.ends.append(theirs)
        return ours


# ── a server with fake sinks, and peers that follow a script ────────────────────────────────


@dataclass
class Served:
    """A server that runs, and what it has brought."""

    server: Server
    hub: FakeHub
    listener: MemoryListener
    segments: list[Segment]
    ledger: MemoryLedger
    #: Cancelled, it is as if the server's process had died.
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    #: The nodes are dismissed.
    over: trio.Event = field(default_factory=trio.Event)
    #: And the outputs have everything.
    finished: trio.Event = field(default_factory=trio.Event)
    #: It is no more, for whatever reason.
    gone: trio.Event = field(default_factory=trio.Event)

    async def kill(self, *, in_commit: bool = False) -> None:
        """As if its process had died; ``in_commit``: what is being committed is lost, too."""
        for end in self.listener.ends:
            end.cut()
        if in_commit:
            self.ledger.trouble = Killed()
        self.life.cancel()
        await self.gone.wait()

    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def done(self) -> int:
        return sum(pool.done for pool in self.server.scheduler.pools)

    async def peer(self, name: str = "", *, register: bool = True, **changes: object) -> Peer:
        """A line to the server; registered, if not told otherwise."""
        number = next(self.numbers)
        peer = Peer(Channel(await self.listener.dial(), NodeEnd()))
        if register:
            await peer.register(
                **{
                    "name": name or f"peer{number}",
                    "instance": f"instance-{number}",
                    "machine_id": f"machine-{number}",
                    **changes,
                }
            )
        return peer


def registration(**changes: object) -> Register:
    """What a node says of itself."""
    known = {
        "protocol": PROTOCOL_VERSION,
        "node_version": __version__,
        "machine_id": "machine",
        "instance": "instance",
        "name": "peer",
        "preferred_pool": -1,
        "processes": 1,
        "environment": Environment(hostname="here"),
    }
    return Register(**{**known, **changes})


class Peer:
    """A node's end of a line, moved by hand. Acks and Pulses are kept apart from the rest."""

    def __init__(self, channel: Channel[NodeMessage, ServerMessage]) -> None:
        self.channel = channel
        self.segments: dict[int, Segment] = {}
        self.next_report = 1

    async def register(self, **changes: object) -> Registered:
        welcome = await self.channel.receive()
        assert isinstance(welcome, Welcome), welcome
        await self.channel.send(registration(**changes))
        answer = await self.channel.receive()
        assert isinstance(answer, Registered), answer
        self.registered = answer
        return answer

    async def hear(self, *kinds: type) -> ServerMessage:
        """The next message of these kinds (of any, if none is named); segments are kept."""
        while True:
            message = await self.channel.receive()
            if isinstance(message, SegmentMessage):
                self.segments[message.segment] = Segment.unpack(message.body)
            if not kinds or isinstance(message, kinds):
                return message

    async def leases(self, count: int) -> list[Lease]:
        return [await self.hear(Lease) for _ in range(count)]

    async def report(self, lease: Lease, hits: bytes = b"", /, **changes: object) -> int:
        """Report a lease as done, all closed but the hits, unless told otherwise."""
        number = self.next_report
        self.next_report += 1
        opened = len(hits) // 32
        report = Report(number, lease.lease, hits, True, Counts(*counts_of(lease.count, opened)))
        changed = {name: changes.get(name, getattr(report, name)) for name in _REPORT_FIELDS}
        if not changed["done"]:
            changed["counts"] = changes.get("counts", Counts())
        await self.channel.send(Report(**changed))
        return number

    def cut(self) -> None:
        self.channel._stream.cut()


_REPORT_FIELDS = ("report", "lease", "hits", "done", "counts", "errors")


def options(**changes: object) -> ServerOptions:
    known = {"host": "", "ports": (), "settings": Settings(), "several_per_machine": True}
    return ServerOptions(**{**known, **changes})


@asynccontextmanager
async def books_over(
    hub: FakeHub,
    ledger: MemoryLedger,
    segments: Sequence[Segment],
    channelsize: int = 10_000,
    ports: Sequence[SinkPort] = (),
) -> AsyncIterator[Books]:
    """Books with an output, the hub, which takes every state; and real hubs for more ports."""
    port = SinkPort(CallSink(lambda event: None), states=STATES_SHOWN, channelsize=channelsize)
    by_number = {segment.id: segment for segment in segments}
    with mock.patch("nray.server.books.open_hub", hub.opened):
        opening = open_books(ledger, [port, *ports], by_number, {"tcp": 1000, "udp": 1000})
        books = await opening.__aenter__()
    try:
        yield books
    except BaseException:
        if not await opening.__aexit__(*sys.exc_info()):
            raise
    else:
        await opening.__aexit__(None, None, None)


def ledger_of(segments: Sequence[Segment]) -> MemoryLedger:
    packed = [(segment.id, segment.pack()) for segment in segments]
    return MemoryLedger(scan="scan", segments=packed, ended=not unfollowed(segments))


async def serve(
    nursery: trio.Nursery,
    segments: Sequence[Segment] | None = None,
    doorman: Doorman | None = None,
    ledger: MemoryLedger | None = None,
    channelsize: int = 10_000,
    listener: MemoryListener | None = None,
    ports: Sequence[SinkPort] = (),
    **changes: object,
) -> Served:
    """Start a server in a nursery.

    Args:
        ledger: to begin or go on with.
        channelsize: of its fake output, the hub.
        listener: of a server that has died, where nodes still dial.
        ports: outputs besides the hub.
    """
    made = list(segments) if segments is not None else [segment_of()]
    hub = FakeHub()
    kept = ledger or ledger_of(made)

    async def run(task_status: trio.TaskStatus[Served]) -> None:
        life = trio.CancelScope()
        gone = trio.Event()
        try:
            with life:
                async with books_over(hub, kept, made, channelsize, ports) as books:
                    server = Server(options(**changes), made, books, doorman)
                    line = listener or MemoryListener()
                    served = Served(server, hub, line, made, kept, life, gone=gone)
                    task_status.started(served)
                    await server.run([served.listener])
                    served.over.set()
                served.finished.set()
        except* Killed:
            pass
        finally:
            gone.set()

    served = await nursery.start(run)
    await trio.testing.wait_all_tasks_blocked()
    return served


# ── workers ─────────────────────────────────────────────────────────────────────────────────


class FakeForkServer:
    """Hands out sockets; at their other ends run `FakeWorker`s, as tasks of a nursery.

    Args:
        behave: what a worker does with a slice, see `FakeWorker`.
    """

    def __init__(self, nursery: trio.Nursery, behave: Behaviour) -> None:
        self._nursery = nursery
        self._behave = behave
        self.workers: list[FakeWorker] = []
        self.rate: float | None = None
        self.hosts = HostSet()
        self.spawned = 0
        self.gone = False

    def spawn(self) -> socket.socket:
        if self.gone:
            raise BrokenPipeError(32, "Broken pipe")
        ours, theirs = socket.socketpair()
        self.spawned += 1
        worker = FakeWorker(self.spawned, theirs, self._behave)
        self.workers.append(worker)
        self._nursery.start_soon(worker.run)
        return ours

    def set_rate(self, per_second: float) -> None:
        self.rate = per_second

    def bucket(self) -> None:
        """There is none: whoever finds a rate has to be replaced, too."""

    def shown(self) -> HostSet:
        return self.hosts

    def ended(self) -> dict[int, str]:
        return {}

    def close(self) -> None:
        pass

    @property
    def alive(self) -> list[FakeWorker]:
        return [worker for worker in self.workers if not worker.dead]


class Dies(Exception):
    """Raised by a behaviour: this worker is no more."""


class FakeWorker:
    """The other end of a worker's socket.

    ``behave(worker, slice)`` is awaited for each slice and says with `found` what it finds; it
    may raise `Dies`. A worker works on one slice after the other, as the real one starts them.
    """

    def __init__(self, pid: int, sock: socket.socket, behave: Behaviour) -> None:
        self.pid = pid
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._behave = behave
        self._unpacker = protocol.Unpacker(at_worker=True)
        self.heard: list[protocol.ToWorker] = []
        self.spaces: dict[int, protocol.Space] = {}
        self.sent = 0
        self.dead = False

    async def run(self) -> None:
        work, waiting = trio.open_memory_channel[protocol.Slice](1000)
        try:
            await self._say(protocol.Started(self.pid))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work, waiting)
                await self._listen(work)
                nursery.cancel_scope.cancel()
        except* (Dies, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.dead = True
            await trio.aclose_forcefully(self._stream)

    def die(self) -> None:
        """At once, whatever it does."""
        self.dead = True
        self._stream.socket.close()

    async def _listen(self, work: trio.MemorySendChannel[protocol.Slice]) -> None:
        while data := await self._stream.receive_some(1 << 16):
            for message in self._unpacker.feed(data):
                self.heard.append(message)
                match message:
                    case protocol.Space():
                        self.spaces[message.segment] = message
                    case protocol.Slice():
                        assert message.segment in self.spaces, "a slice before its space"
                        await work.send(message)

    async def _work(self, waiting: trio.MemoryReceiveChannel[protocol.Slice]) -> None:
        async for work in waiting:
            await self._behave(self, work)
            await self._say(protocol.Want(1))

    async def _say(self, message: protocol.FromWorker) -> None:
        await self._stream.send_all(protocol.pack(message))

    async def found(
        self,
        work: protocol.Slice,
        hits: bytes = b"",
        *,
        done: bool = True,
        counts: tuple[int, ...] | None = None,
        errors: dict[str, int] | None = None,
    ) -> None:
        """Tell part of a slice; with ``done`` (and counts, all closed if not given) its end."""
        self.sent += work.count if done else 0
        ended = counts if counts is not None else counts_of(work.count, len(hits) // 32)
        await self._say(
            protocol.Found(work.lease, hits, done, ended if done else (), errors or {}, self.sent)
        )


Behaviour = Callable[[FakeWorker, protocol.Slice], Awaitable[None]]


def finds(segments: Sequence[Segment], opened: dict[int, set[int]], each_s: float = 0.0):
    """A behaviour: find what is open in a slice, at so many seconds a slice."""
    known = {segment.id: segment for segment in segments}

    async def behave(worker: FakeWorker, work: protocol.Slice) -> None:
        await trio.sleep(each_s)
        inside = range(work.start, work.start + work.count)
        found = sorted(position for position in opened[work.segment] if position in inside)
        hits = b"".join(hit(known[work.segment], position) for position in found)
        await worker.found(work, hits)

    return behave


# ── an office, for a supervisor by itself ───────────────────────────────────────────────────


@dataclass(frozen=True)
class Given:
    """A lease."""

    lease: int
    segment: int
    start: int
    count: int


class FakeOffice:
    """Gives leases out of a list as they are wanted, and keeps what comes back."""

    def __init__(self, leases: Sequence[Given]) -> None:
        self.waiting = list(leases)
        self.outcomes: list[Outcome] = []
        self.wanted = 0
        self.give: Callable[[Given], None] = lambda lease: None
        self._gate = trio.Event()
        self._gate.set()

    def want(self, leases: int) -> None:
        self.wanted += leases
        self.serve()

    def serve(self) -> None:
        """Give what is wanted and there."""
        while self.wanted and self.waiting:
            self.wanted -= 1
            self.give(self.waiting.pop(0))

    def stand_still(self) -> None:
        self._gate = trio.Event()

    def go_on(self) -> None:
        self._gate.set()

    async def found(self, outcome: Outcome) -> None:
        await self._gate.wait()
        await trio.lowlevel.checkpoint()
        self.outcomes.append(outcome)

    @property
    def done(self) -> list[int]:
        """Leases reported as done, in order: each must be there once."""
        return [outcome.lease for outcome in self.outcomes if outcome.done]

    @property
    def tally(self) -> Tally:
        total = Tally()
        for outcome in self.outcomes:
            if outcome.done:
                total.add(outcome.counts)
        return total


# ── a whole node in memory ──────────────────────────────────────────────────────────────────


class MemoryNode(Node):
    """A node that dials a `MemoryListener`."""

    def __init__(
        self,
        listener: MemoryListener,
        fork_server: FakeForkServer,
        name: str = "node",
        **changes: object,
    ) -> None:
        known = {"host": "memory", "port": 1, "name": name, "processes": 2}
        super().__init__(NodeOptions(**{**known, **changes}), fork_server, None)  # type: ignore[arg-type]
        self._listener = listener
        self.lines: list[Line] = []
        self.ended = False

    async def _connect_once(self) -> trio.abc.Stream:
        line = await self._listener.dial()
        self.lines.append(line)
        return line

    async def run(self) -> None:
        await super().run()
        self.ended = True
