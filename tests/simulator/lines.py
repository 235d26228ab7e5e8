"""Lines in memory that are slow, stall, break off anywhere, or just fall silent.

As TCP has it: bytes arrive in order or not at all, whatever was under way when a line breaks
arrives up to some byte, and the two ends may learn of it at different times, or never.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from .agenda import Agenda

EOF: Final = "eof"
RESET: Final = "reset"
#: Nothing arrives any more, and nobody is told.
SILENT: Final = "silent"


class Owner(Protocol):
    """The process at one end of a line."""

    @property
    def frozen(self) -> bool:
        """Whether it is stopped (SIGSTOP): it neither reads nor writes, and closes nothing."""

    async def awake(self) -> None:
        """Wait until it is not frozen."""

    def when_awake(self, call: object) -> None:
        """Make a call then, or now."""


@dataclass(frozen=True)
class Quality:
    """How good a line is.

    Attributes:
        latency_s: from one end to the other.
        window_bytes: what may be under way before the sender has to wait.
        piece_bytes: the most that a reader gets at a time; 0 for no such limit.
    """

    latency_s: float = 0.0
    window_bytes: int = 65536
    piece_bytes: int = 0


class Pipe:
    """One direction of a line."""

    def __init__(self, agenda: Agenda, quality: Quality) -> None:
        self._agenda = agenda
        self.quality = quality
        self.size = 0
        #: How the direction ends for its reader: None, `EOF`, `RESET` or `SILENT`.
        self.end: str | None = None
        self._end_due = 0.0
        #: When the sender is told that nobody reads; None for never.
        self._refused_at: float | None = None
        self._flight: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0
        self._stalled_until = 0.0
        self._reader: trio.lowlevel.Task | None = None
        self._writer: trio.lowlevel.Task | None = None

    # ── the sender's end ────────────────────────────────────────────────────────────────────

    @property
    def full(self) -> bool:
        return self.size >= self.quality.window_bytes and self.end is None

    @property
    def refused(self) -> bool:
        return self._refused_at is not None and trio.current_time() >= self._refused_at

    def put(self, data: bytes) -> None:
        if self.end is not None:
            return
        now = trio.current_time()
        due = self._last_due = max(now + self.quality.latency_s, self._last_due)
        self._flight.append((due, data))
        self.size += len(data)
        self._look(due)

    def finish(self, how: str) -> None:
        """The sender has closed; what is under way arrives first."""
        if self.end is None:
            self.end = how
            self._end_due = max(trio.current_time() + self.quality.latency_s, self._last_due)
            self._look(self._end_due)

    # ── the reader's end ────────────────────────────────────────────────────────────────────

    def take(self) -> bytes | None:
        """What has arrived, b"" at the end, None if there is nothing yet.

        Raises:
            trio.BrokenResourceError: the line was reset.
        """
        now = trio.current_time()
        if now < self._stalled_until:
            return None
        if self._flight:
            due, data = self._flight[0]
            if due > now:
                return None
            self._flight.popleft()
            most = self.quality.piece_bytes
            if most and len(data) > most:
                self._flight.appendleft((due, data[most:]))
                data = data[:most]
            self.size -= len(data)
            self._wake_writer()
            return data
        if self.end in (None, SILENT) or self._end_due > now:
            return None
        if self.end == RESET:
            raise trio.BrokenResourceError("reset")
        return b""

    def abandon(self) -> None:
        """The reader has closed: what is under way is lost, and the sender will learn of it."""
        self._flight.clear()
        self.size = 0
        self.end = self.end or EOF
        self._refuse_soon()

    # ── what happens to it ──────────────────────────────────────────────────────────────────

    def cut(self, keep: float, how: str) -> None:
        """Break it off: of the bytes under way, this share of them still arrives."""
        if self.end is not None:
            return
        left = int(self.size * keep + 0.5)
        kept: deque[tuple[float, bytes]] = deque()
        for due, data in self._flight:
            if left > 0:
                kept.append((due, data[:left]))
                left -= len(data)
        self._flight = kept
        self.size = sum(len(data) for _, data in kept)
        if how == SILENT:
            self.end = SILENT
        else:
            self.finish(how)
            self._refuse_soon()
        self._wake_writer()

    def stall(self, until_s: float) -> None:
        """Nothing arrives until then."""
        self._stalled_until = max(self._stalled_until, until_s)
        self._agenda.at(until_s, self.wake_reader)

    def _refuse_soon(self) -> None:
        self._refused_at = trio.current_time() + self.quality.latency_s
        self._wake_writer()

    # ── waiting ─────────────────────────────────────────────────────────────────────────────

    async def readable(self) -> None:
        """Wait until there may be something to take."""
        if self._reader is not None:
            raise trio.BusyResourceError("another task receives")
        self._reader = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def writable(self) -> None:
        """Wait until there may be room."""
        assert self._writer is None, "a channel sends one message at a time"
        self._writer = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _look(self, due_s: float) -> None:
        if due_s <= trio.current_time():
            self.wake_reader()
        else:
            self._agenda.at(due_s, self.wake_reader)

    def wake_reader(self) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)

    def _wake_writer(self) -> None:
        if self._writer is not None:
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)

    wake_writer = _wake_writer


class Line(trio.abc.HalfCloseableStream):
    """One end of a line.

    Attributes:
        other: the end at the other side.
        on_send: called with what goes out, after it has gone.
    """

    other: Line

    def __init__(self, out: Pipe, back: Pipe, owner: Owner, name: str) -> None:
        self.out, self.back = out, back
        self.owner = owner
        self.name = name
        self.closed = False
        self.on_send = lambda line, data: None

    async def send_all(self, data: bytes) -> None:
        await self.wait_send_all_might_not_block()
        self.out.put(bytes(data))
        self.on_send(self, data)

    async def wait_send_all_might_not_block(self) -> None:
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if self.owner.frozen:
                await self.owner.awake()
                continue
            if self.out.refused:
                raise trio.BrokenResourceError("nobody reads")
            if not self.out.full:
                return
            await self.out.writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if self.owner.frozen:
                await self.owner.awake()
                continue
            data = self.back.take()
            if data is not None:
                return data
            await self.back.readable()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.owner.when_awake(lambda: self.out.finish(EOF))

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As a process does; a kernel that holds unread bytes then resets the line."""
        if not self.closed:
            self.closed = True
            self.back.wake_reader()
            self.out.wake_writer()
            self.owner.when_awake(self._let_go)

    def _let_go(self) -> None:
        self.out.finish(RESET if self.back.size else EOF)
        if self.back.size:
            self.out._refuse_soon()
        self.back.abandon()

    def kill(self, keep: float, how: str) -> None:
        """The process at this end is no more; of what it had sent, some still arrives."""
        if self.closed and self.out.end is not None:
            return
        self.closed = True
        self.out.cut(keep, how)
        if how == SILENT:  # its machine is gone: nobody is left to say so
            self.back.cut(0.0, SILENT)
        else:
            self.back.abandon()
        self.back.wake_reader()
        self.out.wake_writer()

    def cut(self, keep_out: float, keep_back: float, how: str) -> None:
        """Something on the way breaks it, for both ends."""
        self.out.cut(keep_out, how)
        self.back.cut(keep_back, how)


def line_pair(
    agenda: Agenda, quality: Quality, here: Owner, there: Owner, name: str
) -> tuple[Line, Line]:
    """Both ends of a new line."""
    to, fro = Pipe(agenda, quality), Pipe(agenda, quality)
    one, other = Line(to, fro, here, f"{name}>"), Line(fro, to, there, f"{name}<")
    one.other, other.other = other, one
    return one, other


class Listener(trio.abc.Listener[Line]):
    """Where a server process is dialled."""

    def __init__(self) -> None:
        self._lines, self._accepted = trio.open_memory_channel[Line](1000)
        self.open = True

    async def accept(self) -> Line:
        return await self._accepted.receive()

    async def aclose(self) -> None:
        self.open = False
        self._accepted.close()
        await trio.lowlevel.checkpoint()

    def connect(self, line: Line) -> None:
        """The server's end of a new line: in the kernel's queue until it is accepted."""
        self._lines.send_nowait(line)
