"""Writing down: from reports to the ledger, and from the ledger to the outputs.

Two streams with one rule between them: an output is only ever given what the ledger holds. The
*clerk* gathers what reports bring and commits it in groups, so that thousands of small slices
cost few fsyncs. A *feeder* for each output follows the ledger's journal from where its cursor
stands; a slow output falls behind in the journal, not in memory, and when it has fallen too
far the clerk takes nothing more, which holds nodes and workers.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from nray.events.hub import Hub, SinkPort, open_hub
from nray.events.json_file import JsonFileSink
from nray.events.model import SCANTYPES, Event, EventMaker, environment_event
from nray.ledger.entries import (
    RECORD_BYTES,
    CursorAt,
    Entry,
    Finished,
    Hits,
    NodeSeen,
    Registration,
    Row,
    SegmentAdded,
    SegmentsEnded,
    SliceDone,
)
from nray.ledger.ledger import Cursor, Ledger, LedgerFull
from nray.server.scheduler import Taken
from nray.targets.findings import TARPIT, expand
from nray.targets.segment import Segment

log = logging.getLogger("nray.server")


#: Entries that wait for a commit, in bytes of hits. A commit of so much takes some 50 ms.
PENDING_BYTES_MAX = 8 * 1024 * 1024
PENDING_ENTRIES_MAX = 4096
#: Between the beginnings of two commits on a disk, seconds: thousands of small reports a second
#: cost two hundred commits. A worker that finds this often has leases enough to go on with.
COMMIT_EVERY_S = 0.005
#: So much is committed at once: then the commit is small beside the work that the hits are.
COMMIT_BYTES_ENOUGH = 128 * 1024
#: Rows of the journal that a feeder takes at a time.
ROWS_MOST = 256
#: Events of small rows that are handed on together; an output is given a quarter of its
#: `channelsize` at once, if that is less.
HANDED_ON_MOST = 1024
#: Events kept for outputs that are behind the first, so that they need not be made again.
CACHED_EVENTS_MAX = 65_536
#: How often a full disk is tried again, seconds.
RETRY_S = 1.0
#: How often an output's cursor is brought up to date at least, seconds; what was written since
#: is compared, not written again, when a scan is resumed.
CURSOR_EVERY_S = 5.0
#: The same for an output that cannot be compared (a terminal, a pipe): what was written since is
#: written again.
CURSOR_SOON_S = 0.25

# Spelled out, because mypy does not see keyword arguments after trio's ``*args``.
_in_thread: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync


class _Clerk:
    """Commits what is submitted, in order, in groups."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: list[Entry] = []
        self._then: list[Callable[[], None]] = []
        self._bytes = 0
        self._busy = False
        self._filled = trio.Event()
        self._gathered = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self.committed = trio.lowlevel.ParkingLot()
        self.hits = ledger.hits_until(ledger.last)

    @property
    def full(self) -> bool:
        return self._bytes >= PENDING_BYTES_MAX or len(self._pending) >= PENDING_ENTRIES_MAX

    @property
    def _plenty(self) -> bool:
        return self._bytes >= COMMIT_BYTES_ENOUGH or self.full

    @property
    def idle(self) -> bool:
        return not self._pending and not self._then and not self._busy

    def submit(self, entries: Sequence[Entry], then: Callable[[], None] | None) -> None:
        self._pending += entries
        self._bytes += sum(len(each.packed) for each in entries if isinstance(each, Hits))
        if then is not None:
            self._then.append(then)
        self._filled.set()
        if self._plenty:
            self._gathered.set()

    async def progress(self) -> None:
        await self._progress.park()

    async def run(self) -> None:
        due = trio.current_time()
        while True:
            if not self._pending and not self._then:
                self._filled = trio.Event()
                await self._filled.wait()
            if self._ledger.durable:
                await self._gather(due)
                due = trio.current_time() + COMMIT_EVERY_S
            entries, self._pending = self._pending, []
            then, self._then = self._then, []
            self._bytes = 0
            self._busy = True
            if entries:
                await self._commit(entries)
            self._busy = False
            self.hits += sum(
                len(each.packed) // RECORD_BYTES for each in entries if isinstance(each, Hits)
            )
            for call in then:
                call()
            self._progress.unpark_all()
            self.committed.unpark_all()

    async def _gather(self, due: float) -> None:
        """Let more come until a commit is due, unless there is much already."""
        if not self._plenty and trio.current_time() < due:
            self._gathered = trio.Event()
            with trio.move_on_at(due):
                await self._gathered.wait()

    async def _commit(self, entries: Sequence[Entry]) -> None:
        """Commit, however long a full disk takes."""
        told = False
        while True:
            try:
                if self._ledger.durable:
                    await _in_thread(self._ledger.commit, entries)
                else:
                    self._ledger.commit(entries)
            except LedgerFull as error:
                if not told:
                    told = True
                    log.warning("paused: %s; the scan goes on when there is room", error.message)
                await trio.sleep(RETRY_S)
                continue
            if told:
                log.info("there is room again; the scan goes on")
            return


class _Translator:
    """Journal rows into events, each once for all outputs that read it at about one time."""

    def __init__(
        self,
        ledger: Ledger,
        segments: Mapping[int, Segment],
        timeouts_ms: Mapping[str, int],
        scantypes: Mapping[str, str],
    ) -> None:
        self._scantypes = scantypes
        self._segments = dict(segments)
        self._timeouts_ms = timeouts_ms
        self._nodes = {node.node: node for node in ledger.nodes()}
        #: How many outputs read.
        self.readers = 0
        # By row: its events, and how many outputs will still ask for them.
        self._kept: OrderedDict[int, tuple[list[Event], int]] = OrderedDict()
        self._kept_events = 0
        self._newest = 0

    def know(self, node: NodeSeen) -> None:
        self._nodes[node.node] = node

    def know_segment(self, segment: Segment) -> None:
        self._segments[segment.id] = segment

    def events(self, seq: int, row: Row) -> list[Event]:
        kept = self._kept.pop(seq, None)
        if kept is not None:
            events, waiting = kept
            self._kept_events -= len(events) + 1
        else:  # the first to ask, or one so far behind that they were let go
            events = self._make(row)
            waiting = self.readers if seq > self._newest else 1
            self._newest = max(seq, self._newest)
        if waiting > 1:
            self._kept[seq] = events, waiting - 1
            self._kept_events += len(events) + 1
            while self._kept_events > CACHED_EVENTS_MAX:
                _, (old, _) = self._kept.popitem(last=False)
                self._kept_events -= len(old) + 1
        return events

    def _make(self, row: Row) -> list[Event]:
        node = self._nodes[row.node]
        if isinstance(row, Registration):
            if node.environment is None:
                return []
            return [
                environment_event(
                    node_id=node.node_id,
                    node_name=node.name,
                    timestamp_ms=row.ms,
                    environment=node.environment,
                    pool=node.pool,
                    identity=node.identity,
                )
            ]
        if row.discovery:
            return []  # that a host is there is no finding about a port
        segment = self._segments[row.segment]
        maker = EventMaker(
            node_id=node.node_id,
            node_name=node.name,
            timestamp_ms=row.ms,
            timeouts_ms=self._timeouts_ms,
            pool=row.pool,
            identity=node.identity,
            scantypes=self._scantypes,
        )
        return [
            maker.tarpit(each.target, each.address, each.protocol, each.ttl, each.rtt_ms)
            if each.reason == TARPIT
            else maker.event(
                each.target,
                each.address,
                each.port,
                each.protocol,
                each.state,
                each.reason,
                each.ttl,
                each.rtt_ms,
            )
            for each in expand(segment, row.packed)
        ]


class _Feeder:
    """Brings one output up to what the ledger holds, and keeps its cursor."""

    def __init__(
        self, ledger: Ledger, port: SinkPort, hub: Hub, translator: _Translator, clerk: _Clerk
    ) -> None:
        self._ledger = ledger
        self._port = port
        self._hub = hub
        self._translator = translator
        self._clerk = clerk
        cursor = ledger.cursor(port.sink.name)
        self._after = cursor.seq if cursor is not None else 0
        self._marked = self._after
        #: Hits that this output has been given, of those in the ledger.
        self.fed = ledger.hits_until(self._after)
        self.moved = trio.lowlevel.ParkingLot()
        follows = isinstance(port.sink, JsonFileSink)
        self._mark_every_s = CURSOR_EVERY_S if follows else CURSOR_SOON_S
        self._at_once = max(1, min(HANDED_ON_MOST, port.channelsize // 4))

    @property
    def caught_up(self) -> bool:
        return self._after >= self._ledger.last

    @property
    def lag(self) -> int:
        """Hits that are committed and not yet handed to the output."""
        return self._clerk.hits - self.fed

    async def run(self) -> None:
        marked_at = trio.current_time()
        while True:
            rows = await self._read(self._after)
            await self._hand_on(rows)
            if rows and not self._ledger.durable:
                # Nothing is gone on with from memory; what all outputs have may be let go.
                self._ledger.set_cursor(self._port.sink.name, Cursor(self._after))
                self._marked = self._after
            if trio.current_time() - marked_at >= self._mark_every_s:
                await self.mark()
                marked_at = trio.current_time()
            # What was committed while a thread read is not to be waited for.
            if not rows and self.caught_up:
                with trio.move_on_after(self._mark_every_s):
                    await self._clerk.committed.park()

    async def _hand_on(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Give rows to the output, many small ones at once."""
        events: list[Event] = []
        hits = 0
        for seq, row in rows:
            events += self._translator.events(seq, row)
            if isinstance(row, Hits):
                hits += len(row.packed) // RECORD_BYTES
            if len(events) >= self._at_once or seq == rows[-1][0]:
                await self._hub.publish(events)
                self._after = seq
                self.fed += hits
                self.moved.unpark_all()
                events, hits = [], 0

    async def _read(self, after: int) -> list[tuple[int, Row]]:
        if not self._ledger.durable:
            return self._ledger.read(after, ROWS_MOST)
        rows: list[tuple[int, Row]] = await _in_thread(self._ledger.read, after, ROWS_MOST)
        return rows

    async def mark(self) -> None:
        """Record how far the output is, once that is on the disk."""
        after = self._after
        if after == self._marked:
            return
        await self._hub.sync()
        self._marked = after
        # Among others, so that it costs no fsync of its own. Until it is durable the old cursor
        # is as good: what follows it in a file is compared, not written again.
        sink = self._port.sink
        self._clerk.submit([CursorAt(sink.name, Cursor(after, sink.position))], None)


class Books:
    """Made by `open_books`; good until its block ends."""

    def __init__(self, ledger: Ledger, clerk: _Clerk, translator: _Translator) -> None:
        self.ledger = ledger
        self._clerk = clerk
        self._translator = translator
        self._feeders: list[_Feeder] = []
        self._lag_max: list[int] = []
        self._over = False

    async def room(self) -> None:
        """Wait until more may be submitted. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._clerk.full:
            await self._clerk.progress()
        for feeder, most in zip(self._feeders, self._lag_max, strict=True):
            while feeder.lag > most:
                await feeder.moved.park()

    def submit(self, entries: Sequence[Entry], then: Callable[[], None] | None = None) -> None:
        """Have entries written down; ``then`` is called when they are durable.

        Submissions become durable in their order. Call `room` before: this never waits.
        """
        for each in entries:
            if isinstance(each, NodeSeen):
                self._translator.know(each)
        self._clerk.submit(entries, then)

    def append(self, segments: Sequence[Segment], *, ended: bool, then: Callable[[], None]) -> None:
        """Have segments written down that the scan's space gets, in one transaction.

        Args:
            ended: no more will come.
            then: called when that is durable; before, nothing of them may be leased.
        """
        entries: list[Entry] = [SegmentAdded(each.id, each.pack()) for each in segments]
        if ended:
            entries.append(SegmentsEnded())
        for each in segments:
            self._translator.know_segment(each)
        self.submit(entries, then)

    @property
    def idle(self) -> bool:
        """Whether all that was submitted is durable."""
        return self._clerk.idle

    async def settled(self) -> None:
        """Wait until all that was submitted is durable."""
        await trio.lowlevel.checkpoint()
        while not self._clerk.idle:
            await self._clerk.progress()

    async def written(self) -> None:
        """Wait until all that was submitted is durable and with every output."""
        await self.settled()
        for feeder in self._feeders:
            while not feeder.caught_up:
                await feeder.moved.park()

    def finish(self) -> None:
        """Have it written down, last of all, that the scan is over: nothing can be resumed then.

        It waits for room on a full disk, as everything else does.
        """
        self._over = True

    async def _end(self) -> None:
        await self.written()
        for feeder in self._feeders:
            await feeder.mark()
        await self.settled()
        if self._over:
            self._clerk.submit([Finished()], None)
            await self.settled()


def now_ms() -> int:
    """The clock of events: ms since 1970."""
    return time.time_ns() // 1_000_000


def entries_of(
    taken: Taken, counts: tuple[int, ...], errors: dict[str, int], node: int
) -> list[Entry]:
    """What is written down of a report that the scheduler has taken; ``counts`` are nine."""
    entries: list[Entry] = []
    pool, segment, start = taken.pool.number, taken.segment, taken.start
    if taken.fresh:
        entries.append(Hits(node, pool, segment, start, now_ms(), taken.fresh, taken.discovery))
    if taken.ended:
        entries.append(
            SliceDone(pool, segment, start, taken.size, counts, errors, taken.discovery)  # type: ignore[arg-type]
        )
    return entries


@asynccontextmanager
async def open_books(
    ledger: Ledger,
    ports: Sequence[SinkPort],
    segments: Mapping[int, Segment],
    timeouts_ms: Mapping[str, int],
    scantypes: Mapping[str, str] = SCANTYPES,
) -> AsyncIterator[Books]:
    """Books over a ledger and outputs; the ledger stays the caller's to close.

    Leaving the block waits until all is durable and with every output; leaving it by an
    exception leaves the outputs behind the ledger, from which a resumed scan goes on.

    Args:
        segments: of the scan, by number.
        timeouts_ms, scantypes: what events say of ``tcp`` and ``udp``.

    Raises:
        SinkStartError, SinkError: an output cannot be opened or written.
        LedgerError: the ledger cannot be written, for another reason than a full disk.
    """
    clerk = _Clerk(ledger)
    translator = _Translator(ledger, segments, timeouts_ms, scantypes)
    books = Books(ledger, clerk, translator)
    async with AsyncExitStack() as stack:
        for port in ports:
            hub = await stack.enter_async_context(open_hub([port]))
            books._feeders.append(_Feeder(ledger, port, hub, translator, clerk))
            books._lag_max.append(max(1, port.channelsize))
            translator.readers += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clerk.run)
            for feeder in books._feeders:
                nursery.start_soon(feeder.run)
            yield books
            await books._end()
            nursery.cancel_scope.cancel()
