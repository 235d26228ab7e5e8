"""The hub: takes events and brings each to every sink that wants it, at the sink's own pace.

Each sink has a bounded queue and a task that writes from it, in a thread, whatever has gathered:
one event at once when idle, large batches when busy. `Hub.publish` waits while a queue is full,
so a slow sink slows the scan; it never grows memory and nothing is ever dropped. At most
`channelsize` events of a sink are pending, those in the write under way included.

**Resources.** `open_hub` opens the sinks and closes all that it opened, however its block ends.

**A full disk** is waited for: the sink says so (`SinkError.retry`), and is tried again each second
until there is room, while its queue, and so the scan, stands still.

**Errors.** The first error of a sink ends the hub: its block is cancelled, every `publish` and
`flush` raises that error, the other sinks still get what is queued for them, and `open_hub`
raises the error in the end.

**Cancellation.** What `publish` has returned from is written even if the block is then cancelled
or raises: writes to files are shielded, which takes as long as writing at most `channelsize`
events. Only an *abandonable* sink (a terminal or pipe whose reader may have stopped reading)
is left as it is: at once on cancellation, after `STALLED_GRACE_S` on an error.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from trio.lowlevel import ParkingLot

from nray.events.filters import Predicate, compile_filter, compile_states
from nray.events.model import Event
from nray.events.sink import Sink, SinkError

log = logging.getLogger("nray.events")

# How often a full disk is tried again, seconds.
RETRY_S: Final = 1.0
# Events in one write: encoding so many takes a few ms, in which other threads wait for the GIL.
BATCH_EVENTS_MAX: Final = 4096
# After an error, how long a terminal may still take for its queue: a person's blink.
STALLED_GRACE_S: Final = 1.0
CHANNELSIZE_DEFAULT: Final = 1000

# Spelled out, because mypy (2.4) does not see keyword arguments after trio's ``*args``.
_in_thread: Callable[..., Awaitable[None]] = trio.to_thread.run_sync


@dataclass(frozen=True)
class SinkPort:
    """A sink, which events it wants, and how many may wait for it.

    Args:
        filter: as in the configuration (see `filters.compile_filter`); None: all.
        states: states of ports wanted besides open.
        channelsize: events pending at most, at least 1.
        where: where the filter stands (file and key), for error messages.

    Raises:
        FilterError: for a filter or a state that cannot mean anything.
    """

    sink: Sink
    filter: Mapping[Any, Any] | None = None
    states: Iterable[str] = ()
    channelsize: int = CHANNELSIZE_DEFAULT
    where: str = ""
    _matches: Predicate | None = field(init=False, repr=False)
    _shown: Predicate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.channelsize < 1:
            raise ValueError(f"channelsize must be at least 1, not {self.channelsize}")
        place = self.where or f"events.{self.sink.name.partition(' ')[0]}"
        # Frozen dataclasses are set up this way: what is compiled once never changes.
        set_ = object.__setattr__
        set_(self, "_matches", compile_filter(self.filter, f"{place}.filter"))
        set_(self, "_shown", compile_states(self.states, f"{place}.states"))

    def select(self, events: Sequence[Event]) -> list[Event]:
        """The events that this sink wants, in order: by state first, then by filter."""
        chosen = list(filter(self._shown, events))
        return list(filter(self._matches, chosen)) if self._matches else chosen


@dataclass(frozen=True)
class SinkStatistics:
    """How one sink stands. Counts are of events since the hub was opened.

    Attributes:
        skipped: not wanted by filter or states.
        accepted: taken into the queue; `written` of them are with the operating system.
        pending: accepted and not yet written, never more than `channelsize`.
        batches: writes so far.
        waiting: calls of `publish` that wait for room.
    """

    name: str
    skipped: int
    accepted: int
    written: int
    pending: int
    channelsize: int
    batches: int
    waiting: int


class _Queue:
    """What is pending for one sink. Synchronous: who waits, and for what, is the hub's matter."""

    def __init__(self, port: SinkPort) -> None:
        self.port = port
        self.queued: list[Event] = []
        self.skipped = self.accepted = self.written = self.batches = 0

    @property
    def pending(self) -> int:
        return self.accepted - self.written

    def offer(self, events: Sequence[Event], start: int = 0) -> int:
        """Take events from `start` on, as many as there is room for; how many were taken."""
        taken = min(self.port.channelsize - self.pending, len(events) - start)
        self.queued += events[start : start + taken]
        self.accepted += taken
        return taken

    def take(self) -> list[Event]:
        """The next batch to write, empty if there is none; it stays pending until `done`."""
        batch, self.queued = self.queued[:BATCH_EVENTS_MAX], self.queued[BATCH_EVENTS_MAX:]
        return batch

    def done(self, count: int) -> None:
        """A batch of `count` events is written."""
        self.written += count
        self.batches += 1


class _Lane(_Queue):
    """A queue with its waiting tasks: the writer for events, publishers for room, flushes."""

    def __init__(self, port: SinkPort) -> None:
        super().__init__(port)
        self.filled = trio.Event()  # set: something to write, or the end has come
        self.progress = ParkingLot()
        self.turn = trio.StrictFIFOLock()  # publishers that wait for room do so in their order
        # A limiter of its own: threads that resolve names must not keep results waiting.
        self.thread = trio.CapacityLimiter(1)

    async def call(self, method: Callable[..., None], *args: object) -> None:
        abandon = self.port.sink.abandonable
        await _in_thread(method, *args, abandon_on_cancel=abandon, limiter=self.thread)


class Hub:
    """Made by `open_hub`; good until its block ends."""

    def __init__(self, sinks: Iterable[SinkPort]) -> None:
        self._lanes = [_Lane(port) for port in sinks]
        self._failure: SinkError | None = None
        self._ending = False
        self._scope = trio.CancelScope()  # around the block of open_hub
        self._writers: trio.Nursery | None = None

    async def publish(self, events: Sequence[Event]) -> None:
        """Bring the events to every sink that wants them; waits while a queue is full.

        Always a checkpoint. When cancelled, each sink has got the events up to some point in
        their order, not the same one for every sink. Calls at the same time may mix their
        events; each call's own stay in order.

        Raises:
            SinkError: a sink has failed (now or before).
            trio.ClosedResourceError: the hub's block has ended.
        """
        await trio.lowlevel.checkpoint()
        self._check()
        slow: list[tuple[_Lane, list[Event], int]] = []
        for lane in self._lanes:  # first to all that have room, so that none waits for another
            chosen = lane.port.select(events)
            lane.skipped += len(events) - len(chosen)
            taken = 0 if lane.turn.locked() else self._offer(lane, chosen, 0)
            if taken < len(chosen):
                slow.append((lane, chosen, taken))
        for lane, chosen, taken in slow:
            await self._publish_slowly(lane, chosen, taken)

    async def flush(self) -> None:
        """Wait until all that was published before is with the operating system (not: synced).

        Cancelling it changes nothing. Raises as `publish` does.
        """
        await trio.lowlevel.checkpoint()
        self._check()
        goals = [(lane, lane.accepted) for lane in self._lanes]
        for lane, goal in goals:
            while lane.written < goal:
                await lane.progress.park()
                self._check()

    async def sync(self) -> None:
        """`flush`, and then bring all of it onto the disk. Raises as `publish` does."""
        await self.flush()
        for lane in self._lanes:
            try:
                await lane.call(lane.port.sink.sync)
            except SinkError as error:
                self._fail(error)
                raise

    def statistics(self) -> tuple[SinkStatistics, ...]:
        """How each sink stands, in the order in which they were given."""
        return tuple(
            SinkStatistics(
                name=lane.port.sink.name,
                skipped=lane.skipped,
                accepted=lane.accepted,
                written=lane.written,
                pending=lane.pending,
                channelsize=lane.port.channelsize,
                batches=lane.batches,
                waiting=lane.turn.statistics().tasks_waiting + lane.turn.locked(),
            )
            for lane in self._lanes
        )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ending:
            raise trio.ClosedResourceError("the hub's block has ended")

    def _offer(self, lane: _Lane, events: Sequence[Event], start: int) -> int:
        taken = lane.offer(events, start)
        if taken:
            lane.filled.set()
        return taken

    async def _publish_slowly(self, lane: _Lane, events: list[Event], start: int) -> None:
        async with lane.turn:
            while True:
                self._check()
                start += self._offer(lane, events, start)
                if start == len(events):
                    return
                await lane.progress.park()

    # ── the writers ─────────────────────────────────────────────────────────────────────────

    async def _write(self, lane: _Lane) -> None:
        """Write what comes until the end, then close. Owns the sink once it is opened."""
        sink = lane.port.sink
        with trio.CancelScope(shield=not sink.abandonable):
            try:
                try:
                    await self._write_until_end(lane)
                finally:
                    # Cancelled, this does nothing: a thread that was left behind may still
                    # be using the sink, and the process is about to end.
                    await lane.call(sink.close)
            except SinkError as error:
                self._fail(error)
            except Exception as error:  # a mistake in the sink: still say which sink it was
                failure = SinkError(f"{sink.name}: {error!r}")
                failure.__cause__ = error
                self._fail(failure)

    async def _write_until_end(self, lane: _Lane) -> None:
        sink = lane.port.sink
        while True:
            if batch := lane.take():
                await self._write_batch(lane, batch)
            elif self._ending:
                return
            else:
                lane.filled = trio.Event()
                with trio.move_on_after(sink.sync_due_s()):
                    await lane.filled.wait()
            if sink.sync_due_s() <= 0:
                await lane.call(sink.sync)

    async def _write_batch(self, lane: _Lane, batch: list[Event]) -> None:
        """Write a batch whole, however long a full disk takes; at the end of the hub no longer."""
        told = False
        while True:
            try:
                await lane.call(lane.port.sink.write, batch)
            except SinkError as error:
                lane.done(error.written_events)
                batch = batch[error.written_events :]
                if not error.retry or self._ending:
                    raise
                if not told:
                    told = True
                    log.warning("paused: %s; it goes on when there is room", error.message)
                lane.filled = trio.Event()
                with trio.move_on_after(RETRY_S):
                    await lane.filled.wait()
                continue
            if told:
                log.info("%s: there is room again", lane.port.sink.name)
            lane.done(len(batch))
            lane.progress.unpark_all()
            return

    def _fail(self, error: SinkError) -> None:
        """Note the first error, end the block, wake everybody who waits."""
        if self._failure is None:
            self._failure = error
        self._scope.cancel()
        self._end()
        self._limit_stalled()
        for lane in self._lanes:
            lane.progress.unpark_all()

    def _end(self) -> None:
        """Nothing more will be published: let the writers finish."""
        self._ending = True
        for lane in self._lanes:
            lane.filled.set()

    def _limit_stalled(self) -> None:
        """Give sinks that may hang for ever a little time; shielded writers take what they need."""
        if self._writers is not None:
            scope = self._writers.cancel_scope
            scope.deadline = min(scope.deadline, trio.current_time() + STALLED_GRACE_S)


@asynccontextmanager
async def open_hub(sinks: Iterable[SinkPort]) -> AsyncIterator[Hub]:
    """A hub over these sinks, opened in order; see the module for errors and cancellation.

    Leaving the block writes all that is queued, syncs, and closes every sink; it waits for a
    terminal or pipe that takes its time, unless the block was left by an exception.

    Raises:
        SinkStartError: a sink cannot be opened; those opened before it are closed.
        SinkError: a sink failed. It wins over what the block raised, cancellation included,
            except for Ctrl+C and SystemExit.
    """
    hub = Hub(sinks)
    await _open_all(hub._lanes)
    # Exceptions are kept until the sinks have all that they are owed, and raised outside of the
    # nursery, which would wrap them into a group.
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            hub._writers = nursery
            for lane in hub._lanes:
                nursery.start_soon(hub._write, lane, name=f"<sink {lane.port.sink.name}>")
            try:
                with hub._scope:
                    yield hub
            except BaseException as exc:
                error = exc
                hub._limit_stalled()
            hub._end()
    except BaseException as exc:
        if error is None or isinstance(error, trio.Cancelled):
            error = exc
    failure = hub._failure
    if failure is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        if isinstance(error, Exception) and error is not failure:
            failure.add_note(f"meanwhile, the block raised {error!r}")
        raise failure
    if error is not None:
        raise error


async def _open_all(lanes: Sequence[_Lane]) -> None:
    """Open every sink, or none. A named pipe opens when its reader comes; cancelling gives up."""
    opened: list[_Lane] = []
    try:
        for lane in lanes:
            await _in_thread(lane.port.sink.open, abandon_on_cancel=True, limiter=lane.thread)
            opened.append(lane)
    except BaseException:
        with trio.CancelScope(shield=True):
            for lane in opened:
                await lane.call(lane.port.sink.close)
        raise
