"""Worker processes that find what the truth says, in virtual time.

They speak `nray.worker.protocol` with the real supervisor and behave as `nray.worker.main` does:
slices one after the other, ends that come a little after their last probes, hits as they come.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from nray.targets.findings import SPARED, HostSet
from nray.worker import protocol

from .truth import RECORD_BYTES

if TYPE_CHECKING:
    from .world import Machine, World

#: Counts of a slice, by position in the tuple.
_OPEN, _CLOSED, _SKIPPED, _ADDRESSES, _COUNTS = 0, 1, 6, 7, 9
#: A worker that works says so at least this often, seconds (`nray.worker.main.PUMP_S`).
_PUMP_S: Final = 5.0
#: At most so many parts of a slice's hits are told before its end.
_PARTS: Final = 2


class WorkerStream(trio.abc.Stream):
    """The node's end of the socket pair."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting: deque[bytes] = deque()
        self._over = False
        self._closed = False
        self._reader: trio.lowlevel.Task | None = None

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        if self._over:
            raise trio.BrokenResourceError
        self._worker.hear(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while not self._waiting:
            if self._closed:
                raise trio.ClosedResourceError
            if self._over:
                return b""
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def aclose(self) -> None:
        self._closed = True
        self._worker.die()
        await trio.lowlevel.checkpoint()

    def put(self, data: bytes) -> None:
        """What the worker says."""
        self._waiting.append(data)
        self._wake()

    def end(self) -> None:
        """The worker is gone; what it has said can still be read."""
        self._over = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)


class Worker:
    """One worker process."""

    def __init__(self, world: World, machine: Machine, pid: int) -> None:
        self.pid = pid
        self.dead = False
        self.stream = WorkerStream(self)
        self._world = world
        self._machine = machine
        self._unpacker = protocol.Unpacker(at_worker=True)
        self._spaces: set[int] = set()
        self._queue: deque[protocol.Slice] = deque()
        self._busy = False
        self._paused = False
        self._sent = 0
        self._open = 0  # slices without an end
        self._wanted = protocol.SLICES_AHEAD
        self._say(protocol.Started(pid))

    def die(self) -> None:
        """At once; what it had in hand is lost."""
        if not self.dead:
            self.dead = True
            self.stream.end()

    def _say(self, message: protocol.FromWorker) -> None:
        if not self.dead:
            self.stream.put(protocol.pack(message))

    def hear(self, data: bytes) -> None:
        """What the node says."""
        for message in self._unpacker.feed(data):
            match message:
                case protocol.Space(segment):
                    self._spaces.add(segment)
                case protocol.Slice():
                    if message.segment not in self._spaces:
                        self._world.fail(f"a worker got {message} before its space")
                    self._wanted = max(0, self._wanted - 1)
                    self._queue.append(message)
                    self._open += 1
                    if self._open == 1:
                        self._world.agenda.after(_PUMP_S, self._live)
                case protocol.Pause(on):
                    self._paused = on
        self._go_on()

    def _go_on(self) -> None:
        """Begin the next slice, if there is one and nothing holds it; ask for more."""
        if self.dead:
            return
        if not self._busy and not self._paused and self._queue:
            self._busy = True
            self._begin(self._queue.popleft())
        more = protocol.SLICES_AHEAD - len(self._queue) - self._busy - self._wanted
        if more > 0:
            self._wanted += more
            self._say(protocol.Want(more))

    def _begin(self, work: protocol.Slice) -> None:
        draw = self._world.draw
        agenda = self._world.agenda
        takes_s = work.count / self._machine.plan.rate
        place = (self._machine.pool, work.segment)
        keys = self._world.truth.within(place, work.start, work.count)
        draw.shuffle(keys)
        hits = [
            self._world.truth.record(work.segment, key, draw.randrange(1, 9999)) for key in keys
        ]
        spared = len(hits)
        hits = self._not_spared(work, hits)
        spared -= len(hits)
        found = len(hits)
        now = trio.current_time()
        if hits and draw.random() < 0.6:  # some come before the end
            for _ in range(draw.randint(1, _PARTS)):
                count = draw.randint(0, len(hits))
                part, hits = hits[:count], hits[count:]
                if part:
                    at = now + takes_s * draw.random()
                    agenda.at(at, self._found, work, part, False, found, spared)
        agenda.at(now + takes_s, self._sent_all, work)
        at = now + takes_s + self._world.scenario.tail_s
        agenda.at(at, self._found, work, hits, True, found, spared)

    def _not_spared(self, work: protocol.Slice, hits: list[bytes]) -> list[bytes]:
        """What it finds where hosts with a known open port are left out: some of what is open
        beside the first port of a host was asked for before that had answered."""
        if not self._world.scenario.first_open or self._world.truth.segments[work.segment].search:
            return hits
        shown = self._machine.workers.shown()
        own = set()
        found = []
        for hit in hits:
            host = hit[RECORD_BYTES - 1 :] + hit[8:24]
            if host in own or shown.has(host):
                continue
            if self._world.draw.random() < 0.8:
                own.add(host)
            found.append(hit)
        return found

    def _live(self) -> None:
        """Say so, as long as there is work in hand."""
        if not self.dead and self._open:
            self._say(protocol.Alive(self._sent))
            self._world.agenda.after(_PUMP_S, self._live)

    def _sent_all(self, work: protocol.Slice) -> None:
        """The last probe of a slice is out; its answers may still come."""
        self._busy = False
        self._sent += work.count
        self._go_on()

    def _found(
        self, work: protocol.Slice, hits: list[bytes], done: bool, found: int, spared: int
    ) -> None:
        counts: tuple[int, ...] = ()
        if done:
            self._open -= 1
            more = self._world.truth.extra(work.segment, work.start, work.count)
            made = [0] * _COUNTS
            made[_OPEN], made[_CLOSED] = found, work.count + more - found - spared
            made[_SKIPPED] = spared
            made[_ADDRESSES] = more
            counts = tuple(made)
        why = {SPARED: spared} if done and spared else {}
        self._say(protocol.Found(work.lease, b"".join(hits), done, counts, why, self._sent))


class WorkerSocket:
    """What the fork server hands out in place of a socket."""

    def __init__(self, worker: Worker) -> None:
        self.stream = worker.stream

    def close(self) -> None:
        self.stream._worker.die()


class Workers:
    """A machine's fork server."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine
        self._endings: dict[int, str] = {}
        self.alive: list[Worker] = []
        self._shown: HostSet | None = None

    def shown(self) -> HostSet:
        if self._shown is None:
            self._shown = HostSet()
        return self._shown

    def spawn(self) -> WorkerSocket:
        self._world.pids += 1
        worker = Worker(self._world, self._machine, self._world.pids)
        self.alive.append(worker)
        return WorkerSocket(worker)

    def kill(self, draw: random.Random) -> None:
        """SIGKILL one of them."""
        self.alive = [each for each in self.alive if not each.dead]
        if self.alive:
            worker = draw.choice(self.alive)
            self._endings[worker.pid] = "killed by SIGKILL"
            worker.die()

    def kill_pid(self, pid: int) -> None:
        for worker in self.alive:
            if worker.pid == pid:
                self._endings[pid] = "killed by SIGKILL"
                worker.die()

    def set_rate(self, per_second: float) -> None:
        pass

    def ended(self) -> dict[int, str]:
        endings, self._endings = self._endings, {}
        return endings

    def close(self) -> None:
        for worker in self.alive:
            worker.die()
