"""One run: a server that comes back, machines with nodes, faults, and the end."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio
import trio.testing

from nray.events.hub import SinkPort
from nray.events.json_file import JsonFileSink, json_file_name
from nray.events.model import Event
from nray.ledger.entries import Entry, Hits, SliceDone
from nray.ledger.errors import LedgerFull
from nray.ledger.memory import MemoryLedger
from nray.node.client import Node, NodeOptions, ServerRefuses, _Scan
from nray.server.books import open_books
from nray.server.scheduler import Grant, Scheduler
from nray.server.scheduler import Node as ScheduledNode
from nray.server.server import Server, ServerOptions
from nray.server.summary import exit_status
from nray.targets.segment import Segment
from nray.wire.errors import EXPLANATIONS, Reason
from nray.wire.messages import Settings, Stop

from .agenda import Agenda
from .disk import Disk, ProcessDead
from .judge import Judge
from .lines import EOF, SILENT, Line, Listener, line_pair
from .replaced import replaced, replacements
from .scenario import Fault, NodePlan, Scenario
from .workers import Workers

OUTPUT: Final = "/out.json"
EPOCH_MS: Final = 1_700_000_000_000
#: A node that nothing has happened to for so long before the end must be told of it.
UNTROUBLED_S: Final = 4.0
#: From the end of the scan on, for nodes to hear of it.
LEAVE_S: Final = 30.0
#: By when a node has noticed that its line is dead: its patience with a greeting, which is longer
#: than that with heartbeats.
NOTICE_S: Final = 20.0
#: What may leave nodes on a line that is dead without a word.
_BREAKS_LINES: Final = ("cut", "cut-all", "kill-server", "kill-node")
#: What a link that is down does to whoever dials (the node's own patience is 10 s).
DIAL_S: Final = 10.0


class Breach(AssertionError):
    """A law was broken; the message says which, and the seed."""


class _Process:
    """What can be frozen and killed: a server process, or a machine's node."""

    def __init__(self) -> None:
        self.dead = False
        self.frozen = False
        self._thawed = trio.Event()
        self._deferred: list[Callable[[], object]] = []

    async def awake(self) -> None:
        while self.frozen:
            await self._thawed.wait()

    def when_awake(self, call: Callable[[], object]) -> None:
        if self.frozen:
            self._deferred.append(call)
        else:
            call()

    def freeze(self) -> None:
        if not self.frozen:
            self.frozen = True
            self._thawed = trio.Event()

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._thawed.set()
            calls, self._deferred = self._deferred, []
            for call in calls:
                call()


class SlowLedger(MemoryLedger):
    """A memory ledger that is on a disk: commits take time, and there may be no room."""

    durable = True

    def __init__(self, world: World, **known: Any) -> None:
        self._world = world
        self.process: ServerProcess | None = None
        super().__init__(**known)

    def commit(self, entries: Sequence[Entry]) -> int:
        if self.process is None:
            return super().commit(entries)
        self._world.strike("commit")
        if self.process.dead:
            raise ProcessDead
        if self._world.disk.full:
            raise LedgerFull("the disk is full")
        last = super().commit(entries)
        self._world.tell("commit", last, _short(entries))
        self._world.judge.committed(entries)
        self._world.strike("committed")
        return last

    def crash(self) -> SlowLedger:
        self._closed = True
        other = SlowLedger(self._world, scan=self.scan, settings=self.settings)
        other._begin(self._store)
        return other


def _short(entries: Sequence[Entry]) -> list[tuple[Any, ...]]:
    """Entries for the trace."""
    told: list[tuple[Any, ...]] = []
    for each in entries:
        if isinstance(each, Hits):
            told.append(("hits", each.pool, each.segment, each.start, len(each.packed) // 32))
        elif isinstance(each, SliceDone):
            told.append(("done", each.pool, each.segment, each.start, each.count))
        else:
            told.append((type(each).__name__,))
    return told


class Terminal:
    """An output that keeps nothing and can be slow, as a pipe's reader is."""

    name = "terminal"
    abandonable = True
    position = 0

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.events: list[Event] = []

    def open(self) -> None:
        pass

    def write(self, events: Sequence[Event]) -> None:
        self.events += events

    def sync_due_s(self) -> float:
        return float("inf")

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class ServerProcess(_Process):
    """One server process, from its start to its end, whichever."""

    def __init__(self, world: World, ledger: SlowLedger) -> None:
        super().__init__()
        self.world = world
        self.ledger = ledger
        self.scope = trio.CancelScope()
        self.died = trio.Event()
        self.listener = Listener()
        self.lines: list[Line] = []
        self.server: Server | None = None
        self.down_s = 0.0

    @property
    def generation(self) -> int:
        return self.ledger.generation

    async def run(self) -> bool:
        """Serve; returns whether it ended by itself."""
        scenario, world = self.world.scenario, self.world
        self.ledger.process = self
        try:
            with self.scope:
                made = scenario.segments
                if self.generation > 1:
                    made = [Segment.unpack(body) for _, body in self.ledger.segments()]
                segments = {segment.id: segment for segment in made}
                timeouts = {"tcp": 1000, "udp": 1000}
                ports = self._ports()
                async with open_books(self.ledger, ports, segments, timeouts) as books:
                    self.server = Server(self._options(), made, books)
                    await self.server.run([self.listener])  # type: ignore[list-item]
                    await books.written()
                    if self.server.scheduler.finished:
                        books.finish()
                return True
        except Exception as error:
            if not self.dead:
                world.fail(f"the server failed: {_leaves(error)}", error)
        return False

    def _options(self) -> ServerOptions:
        scenario = self.world.scenario
        return ServerOptions(
            host="",
            ports=(),
            settings=Settings(first_open=scenario.first_open),
            pools=scenario.pools,
            node_expiry_s=scenario.expiry_s,
            expiry_check_s=1.0,
            several_per_machine=scenario.several_per_machine,
            slice_most=scenario.slice_most,
        )

    def _ports(self) -> list[SinkPort]:
        scenario, world = self.world.scenario, self.world
        resume_at = None
        if self.generation > 1:
            cursor = self.ledger.cursor(json_file_name(OUTPUT))
            resume_at = cursor.position if cursor is not None else 0
        sink = JsonFileSink(
            OUTPUT,
            synctimer_s=scenario.sync_every_s,
            resume_at=resume_at,
            clock=trio.current_time,
            write=world.disk.write,
        )
        sink.process = self  # type: ignore[attr-defined]
        ports = [SinkPort(sink, channelsize=scenario.channelsize)]
        if scenario.terminal:
            terminal = Terminal(self)
            world.terminals.append(terminal.events)
            ports.append(SinkPort(terminal, channelsize=scenario.channelsize))
        return ports

    def kill(self, keep: float, how: str) -> None:
        """At once: nothing that it still does has any effect."""
        self.dead = True
        self.thaw()
        self.died.set()
        self.scope.cancel()
        self.ledger._closed = True
        self.listener.open = False
        for line in self.lines:
            line.kill(keep, how)
        self.world.disk.process_died()


class SimNode(Node):
    """The real node, on lines of ours."""

    def __init__(self, machine: Machine, number: int) -> None:
        plan = machine.plan
        options = NodeOptions(
            "server", 1, plan.name, plan.preferred, plan.processes, stay=plan.stay
        )
        super().__init__(options, machine.workers, None)  # type: ignore[arg-type]
        self._machine_at = machine
        self._instance = f"{plan.name}-{number}"
        self._machine = f"machine-{plan.name}"
        self.stop: Stop | None = None

    async def _connect_once(self) -> trio.abc.Stream:
        return await self._machine_at.dial()

    def _enter(self, registered: Any, nursery: trio.Nursery) -> Any:
        self._machine_at.pool = registered.pool
        scan = super()._enter(registered, nursery)
        scan.machine = self._machine_at
        return scan

    async def _listen(self, channel: Any, scan: Any, heartbeat_s: float) -> Stop:
        stop = await super()._listen(channel, scan, heartbeat_s)
        self._machine_at.told_to_stop(stop)
        self.stop = stop
        return stop


class Machine(_Process):
    """A machine with a node on it, which is started again when it was killed."""

    def __init__(self, world: World, plan: NodePlan) -> None:
        super().__init__()
        self.world = world
        self.plan = plan
        self.pool = 0
        self.line: Line | None = None
        self.by_generation = 0
        self.down_until = 0.0
        self.restart_s = 0.0
        #: Until when something may keep it from hearing that the scan is over.
        self.troubled_at = -math.inf
        #: Its line may have fallen silent at some time.
        self.on_dead_line = False
        self.workers = Workers(world, self)
        self.scope = trio.CancelScope()
        self.killed = False
        self.node: SimNode | None = None
        #: It was told that the scan is done.
        self.released = False

    async def live(self) -> None:
        """Run nodes, one after the other, until one is told that all is done."""
        starts = 0
        while True:
            starts += 1
            self.killed = False
            self.workers = Workers(self.world, self)
            self.node = SimNode(self, starts)
            await self._run(self.node)
            self.workers.close()
            if self.released and not self.killed:
                return
            await trio.sleep(max(self.restart_s, 0.1))

    async def _run(self, node: SimNode) -> None:
        self.restart_s = 0.5
        try:
            with trio.CancelScope() as self.scope:
                await node.run()
        except Exception as error:
            if self.killed:
                return
            leaves = _leaves(error)
            twin = EXPLANATIONS[Reason.DUPLICATE_MACHINE]
            if all(isinstance(each, ServerRefuses) and twin in str(each) for each in leaves):
                self.world.tell("duplicate", self.plan.name)
                return
            self.world.fail(f"node {self.plan.name} failed: {leaves}", error)
        else:
            if not self.killed and node.stop is None:
                self.world.fail(f"node {self.plan.name} ended without having been told to")

    def told_to_stop(self, stop: Stop) -> None:
        if self.killed:
            return
        self.world.tell("stop", self.plan.name, stop.done)
        self.world.judge.stopped(self.plan.name, stop.done, self.world.interrupted)
        self.released = stop.done
        self.world.strike("stop", machine=self)

    async def dial(self) -> Line:
        await trio.lowlevel.checkpoint()
        await self.awake()
        if trio.current_time() < self.down_until:
            await trio.sleep(min(DIAL_S, self.down_until - trio.current_time()))
            raise TimeoutError(110, "Connection timed out")
        process = self.world.process
        if process is None or not process.listener.open:
            raise ConnectionRefusedError(111, "Connection refused")
        self.line = self.world.new_line(self, process)
        self.by_generation = process.generation
        return self.line

    # ── what happens to it ──────────────────────────────────────────────────────────────────

    def kill(self, fault: Fault) -> None:
        self.killed = True
        self.restart_s = fault.seconds
        if self.line is not None:
            self.line.kill(fault.keep_out, fault.how)
        self.workers.close()
        self.thaw()
        self.scope.cancel()

    def stall(self, until_s: float) -> None:
        """The link is down until then; what was on the way comes late."""
        self.down_until = max(self.down_until, until_s)
        if self.line is not None:
            self.line.out.stall(until_s)
            self.line.back.stall(until_s)

    def cut(self, fault: Fault) -> None:
        if self.line is not None:
            self.line.cut(fault.keep_out, fault.keep_back, fault.how)


class World:
    """Everything of one run.

    Args:
        tell: print each step.
    """

    def __init__(self, scenario: Scenario, tell: bool = False) -> None:
        self.scenario = scenario
        self.draw = random.Random(~scenario.seed)
        self.truth = scenario.truth
        self.judge = Judge(scenario, self.fail)
        self.agenda = Agenda()
        self.disk = Disk(self.draw, self.fail, self.strike)
        self.process: ServerProcess | None = None
        self.machines: list[Machine] = []
        self.terminals: list[list[Event]] = []
        self.interrupted = False
        self.pids = 0
        self.breach: str | None = None
        self.cause: BaseException | None = None
        self.finished_at: float | None = None
        #: Moment of the last step.
        self.now_s = 0.0
        self._tell = tell
        self._trace = hashlib.blake2b(digest_size=16)
        self._lines = 0
        self._slow_until = 0.0
        self._passed: Counter[str] = Counter()
        self._faults: dict[tuple[str, int], list[Fault]] = {}
        for fault in scenario.faults:
            if fault.point != "time":
                self._faults.setdefault((fault.point, int(fault.nth)), []).append(fault)
        self._root = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._clock = trio.testing.MockClock(autojump_threshold=0)

    # ── what the rest tells it ──────────────────────────────────────────────────────────────

    def fail(self, what: str, cause: BaseException | None = None) -> None:
        """A law was broken: the run ends here."""
        self.tell("BREACH", what)
        if self.breach is None:
            self.breach, self.cause = what, cause
            self._root.cancel()

    def tell(self, *what: object) -> None:
        """A step, for the trace."""
        self.now_s = trio.current_time()
        text = f"{self.now_s:.6f} {what}"
        self._trace.update(text.encode())
        if self._tell:
            print(text, file=sys.stderr)

    @property
    def trace(self) -> str:
        """Two runs with the same value have taken the same steps."""
        return self._trace.hexdigest()

    def now_ms(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000)

    async def in_thread(
        self,
        call: Callable[..., Any],
        *args: object,
        abandon_on_cancel: bool = False,
        limiter: object = None,
    ) -> Any:
        """In place of `trio.to_thread.run_sync`: takes virtual time, before and after the call."""
        # What is called is a method of the ledger or of a sink of that process.
        process: ServerProcess = call.__self__.process  # type: ignore[attr-defined]
        takes_s = self._takes_s(call, args)
        with trio.CancelScope(shield=not abandon_on_cancel):
            before_s = takes_s * self.draw.random()
            await self._pass(process, before_s)
            if process.dead:
                raise ProcessDead
            result = call(*args)
            await self._pass(process, takes_s - before_s)
        return result

    async def _pass(self, process: ServerProcess, seconds: float) -> None:
        if process.frozen:
            await process.awake()
        if seconds > 0 and not process.dead:
            with trio.move_on_after(seconds):
                await process.died.wait()
        else:
            await trio.lowlevel.checkpoint()

    def _takes_s(self, call: Any, args: tuple[Any, ...]) -> float:
        scenario = self.scenario
        name = call.__name__
        if name == "commit":
            return scenario.commit_s
        if name == "read":
            return scenario.read_s
        if name == "sync":
            return scenario.write_s
        if name != "write":
            return 0.0
        takes_s = scenario.write_s
        if isinstance(call.__self__, Terminal):
            takes_s = scenario.terminal_event_s * len(args[0])
        return takes_s + max(0.0, self._slow_until - trio.current_time())

    def kill_pid(self, pid: int) -> None:
        for machine in self.machines:
            machine.workers.kill_pid(pid)

    # ── where the judge looks on ────────────────────────────────────────────────────────────

    @property
    def scheduler_class(self) -> type[Scheduler]:
        world = self

        class Watched(Scheduler):
            def grant(self, node: ScheduledNode, now: float) -> list[Grant]:
                grants = super().grant(node, now)
                world.judge.granted(self, node.pool, grants)
                for _ in grants:
                    world.strike("lease")
                return grants

        return Watched

    @property
    def scan_class(self) -> type[_Scan]:
        world = self

        class Watched(_Scan):
            machine: Machine

            def want(self, leases: int) -> None:
                super().want(leases)
                if hasattr(self, "supervisor") and hasattr(self, "machine"):
                    plan = self.machine.plan
                    kept = len(self.book._kept)
                    held = len(self.supervisor.leases)
                    world.judge.holds(plan.name, held, kept, plan.processes)

            def acknowledged(self, report: int) -> None:
                for each in self.book._kept:
                    if each.report <= report:
                        world.judge.acknowledged(each, self.machine.by_generation)
                super().acknowledged(report)

        return Watched

    # ── lines ───────────────────────────────────────────────────────────────────────────────

    def new_line(self, machine: Machine, process: ServerProcess) -> Line:
        self._lines += 1
        name = f"{machine.plan.name}.{self._lines}"
        ours, theirs = line_pair(self.agenda, self.scenario.line, machine, process, name)
        ours.on_send = lambda line, data: self._sent(line, data, "to-server", machine)
        theirs.on_send = lambda line, data: self._sent(line, data, "to-node", machine)
        process.lines.append(theirs)
        process.listener.connect(theirs)
        self.tell("line", name)
        return ours

    def _sent(self, line: Line, data: bytes, point: str, machine: Machine) -> None:
        self.tell("sent", line.name, len(data), hash_of(data))
        self.strike(point, machine=machine)

    # ── faults ──────────────────────────────────────────────────────────────────────────────

    def strike(self, point: str, machine: Machine | None = None) -> None:
        """A point is passed at which a fault may strike."""
        self._passed[point] += 1
        faults = self._faults.get((point, self._passed[point]), ())
        for fault in faults:
            if trio.current_time() < self.scenario.calm_s:
                self.inflict(fault, machine)

    def inflict(self, fault: Fault, machine: Machine | None = None) -> None:
        """Have a fault happen now, to the machine of the moment or the one that it names."""
        process = self.process
        machine = machine or self.machines[fault.node]
        until_s = min(trio.current_time() + fault.seconds, self.scenario.calm_s)
        self.tell("FAULT", fault.words, machine.plan.name)
        for after_s, each in fault.then:
            self.agenda.after(after_s, self._inflict_later, each)
        self._trouble(fault, machine)
        match fault.kind:
            case "kill-server" | "power-cut":
                if process is not None and not process.dead:
                    process.down_s = fault.seconds
                    cut = fault.kind == "power-cut"
                    process.kill(fault.keep_out, SILENT if cut else fault.how)
                    if cut:
                        self.disk.power_cut()
            case "freeze-server":
                if process is not None and not process.dead:
                    process.freeze()
                    self.agenda.at(until_s, process.thaw)
            case "interrupt":
                if process is not None and process.server is not None:
                    process.down_s = fault.seconds
                    process.server.interrupt("interrupted")
                    self.interrupted = True
            case "pause":
                if process is not None and process.server is not None:
                    process.server.pause(True)
                    self.agenda.at(until_s, process.server.pause, False)
            case "kill-node":
                if not machine.killed:
                    machine.kill(fault)
            case "freeze-node":
                machine.freeze()
                self.agenda.at(until_s, machine.thaw)
            case "kill-worker":
                machine.workers.kill(self.draw)
            case "cut":
                machine.cut(fault)
            case "cut-all":
                for each in self.machines:
                    each.cut(fault)
            case "stall":
                machine.stall(until_s)
            case "disk-full":
                self.disk.full = True
                self.agenda.at(until_s, setattr, self.disk, "full", False)
            case "slow-sink":
                self._slow_until = max(self._slow_until, until_s)
            case "clock-jump":
                self._clock.jump(fault.seconds)

    def _inflict_later(self, fault: Fault) -> None:
        if trio.current_time() < self.scenario.calm_s:
            self.inflict(fault)

    def _trouble(self, fault: Fault, machine: Machine) -> None:
        """Whom a fault may keep from hearing the end, and until when."""
        silent = fault.kind == "power-cut" or (fault.how == SILENT and fault.kind in _BREAKS_LINES)
        if fault.kind == "kill-server" and not silent:
            return  # the next one waits for its nodes
        alone = fault.kind in ("kill-node", "freeze-node", "cut", "stall", "kill-worker")
        for each in [machine] if alone else self.machines:
            each.on_dead_line |= silent
            lasts_s = fault.seconds
            # Who may be on a dead line notices that so long after the last word that came late.
            # An interrupted scan's node leaves in peace first; a jump of the clock is never heard.
            if each.on_dead_line or fault.kind in ("interrupt", "clock-jump"):
                lasts_s += NOTICE_S
            each.troubled_at = max(each.troubled_at, trio.current_time() + lasts_s)

    # ── the run ─────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Run it.

        Raises:
            Breach: a law was broken, or it was not done in time.
        """
        with replaced(replacements(self)), _listening(self):
            try:
                trio.run(self._main, clock=self._clock)
            except Exception as error:
                if self.breach is None:
                    self.breach, self.cause = f"the run failed: {_leaves(error)}", error
        if self.breach is not None:
            raise Breach(f"seed {self.scenario.seed}: {self.breach}") from self.cause

    def end_soon(self) -> None:
        """It takes too long by the clock on the wall. May be called by a signal's handler."""
        if self._token is not None:
            words = f"goes round in a circle at {self.now_s:.6f} s"
            self._token.run_sync_soon(self.fail, words, idempotent=True)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._root:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.agenda.run)
                for fault in self.scenario.faults:
                    if fault.point == "time":
                        self.agenda.at(fault.nth, self.inflict, fault)
                self.machines = [Machine(self, plan) for plan in self.scenario.nodes]
                for machine in self.machines:
                    nursery.start_soon(self._live, machine)
                with trio.move_on_at(self.scenario.limit_s):
                    await self._serve()
                if self.finished_at is None:
                    self.fail(self._stuck())
                await self._await_leaving()
                nursery.cancel_scope.cancel()

    async def _serve(self) -> None:
        """Server processes, one after the other, until one has ended with everything done."""
        packed = [(segment.id, segment.pack()) for segment in self.scenario.segments]
        ended = not any(segment.search for segment in self.scenario.segments)
        ledger = SlowLedger(self, scan="scan", segments=packed, ended=ended)
        while True:
            process = self.process = self.disk.process = ServerProcess(self, ledger)
            self.judge.generation(ledger.generation)
            self.tell("server", ledger.generation)
            ended = await process.run()
            assert process.server is not None or process.dead or self.breach
            if self.breach:
                await trio.sleep_forever()
            if ended and not process.dead:
                self._judge_end(process)
                if process.server is not None and process.server.scheduler.finished:
                    self.finished_at = trio.current_time()
                    return
            process.listener.open = False
            for line in process.lines:
                line.kill(1.0, EOF)
            await trio.sleep(process.down_s)
            ledger = ledger.crash()

    def _judge_end(self, process: ServerProcess) -> None:
        """A server has ended in order."""
        assert process.server is not None
        self.tell("ended", process.generation)
        output = bytes(self.disk.files[OUTPUT].data) if OUTPUT in self.disk.files else b""
        self.judge.written(process.ledger, output, self.terminals)
        if process.server.scheduler.finished:
            self.judge.ended(process.ledger, exit_status(process.server.scheduler))
        process.ledger.close()

    async def _live(self, machine: Machine) -> None:
        await machine.live()
        machine.released = True

    async def _await_leaving(self) -> None:
        """Nodes that nothing kept from hearing of the end have to end."""
        end = self.finished_at or 0.0
        owed = [each for each in self.machines if each.troubled_at < end - UNTROUBLED_S]
        with trio.move_on_after(LEAVE_S):
            while not all(each.released for each in owed):
                await trio.sleep(0.5)
        for each in owed:
            if not each.released:
                self.fail(f"node {each.plan.name} was never told that the scan is over")

    def _stuck(self) -> str:
        process = self.process
        words = f"not done after {self.scenario.limit_s:.0f} s"
        if process is not None and process.server is not None:
            pools = process.server.scheduler.pools
            words += f": {[(pool.done, pool.total, len(pool.nodes)) for pool in pools]} are"
        return words


def hash_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=4).hexdigest()


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


class _Ear(logging.Handler):
    """Hears what the program complains of: some of it must never be said."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        self._world.tell(record.name, words)
        dead = self._world.process is not None and self._world.process.dead
        if record.levelno >= logging.ERROR or "broke the protocol" in words:
            if record.name == "nray.server" and dead:
                return
            error = record.exc_info[1] if record.exc_info else None
            self._world.fail(f"{record.name} says: {words}", error)


class _listening:
    """The program's log goes to the run alone while it lasts."""

    def __init__(self, world: World) -> None:
        self._ear = _Ear(world)
        self._log = logging.getLogger("nray")

    def __enter__(self) -> None:
        self._before = (self._log.level, self._log.propagate)
        self._log.setLevel(logging.INFO if self._ear._world._tell else logging.WARNING)
        self._ear.setLevel(self._log.level)
        self._log.propagate = False
        self._log.addHandler(self._ear)

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self._ear)
        self._log.level, self._log.propagate = self._before
        self._log.setLevel(self._before[0])
