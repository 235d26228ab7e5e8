"""One trial: a plan is carried out on a scan, and what is left of it is judged."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.certs import Credentials

from .crew import Crew
from .ground import Ground
from .judge import judge_events, judge_ledger, judge_lines
from .plan import FAR, NEAR, NODES, SERVER, WORKER_NEAR, Blow, Plan

LOOK_EVERY_S = 0.004
#: For a trial; the longest plan takes some eight seconds.
TIMEOUT_S = 120.0
#: How long nodes may take to end after their server.
FAREWELL_S = 3.0
#: Between the end of a node and that of the last process below it.
GONE_S = 30.0


@dataclass
class Verdict:
    """How a trial went.

    Attributes:
        faults: promises that were broken.
        landed: blows that struck while there was a scan to be struck.
        waiting: nodes that were still looking for a server that had ended.
    """

    plan: Plan
    faults: list[str] = field(default_factory=list)
    landed: int = 0
    waiting: list[str] = field(default_factory=list)
    seconds: float = 0.0
    said: str = ""


class _Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.count = 0

    def look(self) -> int:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return 0
        self._read += len(data)
        self.count += data.count(b"\n")
        return self.count


class Trial:
    """Carries a plan out; `run` once."""

    def __init__(
        self, plan: Plan, ground: Ground, directory: Path, credentials: Credentials
    ) -> None:
        self._plan = plan
        self._ground = ground
        self._crew = Crew(ground, directory, credentials)
        self._verdict = Verdict(plan)
        #: What is to be done later: when (monotonic), and what.
        self._agenda: list[tuple[float, Callable[[], object]]] = []
        #: A server that was killed is to be started again.
        self._server_due = False

    def run(self) -> Verdict:
        begun = time.monotonic()
        try:
            self._crew.start_server()
            for place in NODES:
                self._crew.start_node(place)
            self._carry_out(begun)
            self._farewell()
            self._judge()
        except AssertionError as error:
            self._verdict.faults.append(str(error))
        finally:
            self._ground.mend()
            self._verdict.said = self._crew.said()
            self._crew.close()
        self._verdict.seconds = time.monotonic() - begun
        return self._verdict

    # ── the scan ────────────────────────────────────────────────────────────────────────────

    def _carry_out(self, begun: float) -> None:
        lines = _Lines(self._crew.output)
        blows = list(self._plan.blows)
        due: float | None = None
        total = len(self._ground.truth)
        while self._server_due or self._crew.server.running:
            now = time.monotonic()
            assert now < begun + TIMEOUT_S, f"not done after {TIMEOUT_S:.0f} s"
            self._keep_agenda(now)
            if blows and due is None:
                if not blows[0].share:
                    due = begun + blows[0].later_s
                elif lines.look() >= blows[0].share * total:
                    due = now + blows[0].later_s
            if due is not None and now >= due:
                self._strike(blows.pop(0), now)
                due = None
            time.sleep(LOOK_EVERY_S)

    def _keep_agenda(self, now: float) -> None:
        for entry in sorted(self._agenda, key=lambda entry: entry[0]):
            if entry[0] <= now:
                self._agenda.remove(entry)
                entry[1]()

    def _later(self, when: float, what: Callable[[], object]) -> None:
        self._agenda.append((when, what))

    # ── blows ───────────────────────────────────────────────────────────────────────────────

    def _strike(self, blow: Blow, now: float) -> None:
        self._verdict.landed += 1
        end = now + blow.for_s
        match blow.kind:
            case "stop node" | "stop server":
                self._stop(blow, end)
            case "cut":
                self._trouble(FAR)
                self._ground.cut()
                self._later(end, self._ground.mend)
            case _:
                for victim in blow.victims:
                    self._kill(victim, blow, end)

    def _kill(self, victim: str, blow: Blow, end: float) -> None:
        crew = self._crew
        match victim:
            case "server":
                if not crew.server.running or self._server_due:
                    return
                crew.server.kill()
                for place in NODES:
                    self._trouble(place)
                self._server_due = True
                self._later(end, self._restart)
            case "near" | "far":
                node = crew.at[victim]
                if node.running and not node.killed:
                    node.kill()
                    other = crew.at[NEAR if victim == FAR else FAR]
                    if blow.replaced or other.killed:
                        self._later(end, lambda: self._replace(victim))
            case _:
                node = crew.at[NEAR if victim == WORKER_NEAR else FAR]
                node.kill_worker(self._plan.seed)

    def _restart(self) -> None:
        self._crew.start_server()
        self._server_due = False

    def _replace(self, place: str) -> None:
        self._crew.start_node(place).troubled = True

    def _stop(self, blow: Blow, end: float) -> None:
        (victim,) = blow.victims
        process = self._crew.server if victim == SERVER else self._crew.at[victim]
        if victim == SERVER:
            for place in NODES:
                self._trouble(place)
        process.troubled = True
        below = blow.workers_too and victim != SERVER
        process.signal(signal.SIGSTOP, below=below)
        self._later(end, lambda: process.signal(signal.SIGCONT, below=below))

    def _trouble(self, place: str) -> None:
        self._crew.at[place].troubled = True

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    def _farewell(self) -> None:
        """The server has ended: what is still held is let go, and nodes are waited for.

        A node that was away when the server ended looks for it until it is told otherwise; that
        is what it is made for. One that was never in trouble has been told.
        """
        for _, what in self._agenda:
            if what != self._restart:
                what()
        self._agenda.clear()
        deadline = time.monotonic() + FAREWELL_S
        nodes = [node for node in self._crew.nodes if not node.killed]
        while any(node.running for node in nodes) and time.monotonic() < deadline:
            if all(node.troubled for node in nodes if node.running):
                deadline = min(deadline, time.monotonic() + 0.5)
            time.sleep(LOOK_EVERY_S)
        for node in nodes:
            if not node.running:
                continue
            self._verdict.waiting.append(node.name)
            if not node.troubled:
                self._verdict.faults.append(f"{node.name} was not told of the end")
            node.signal(signal.SIGKILL)
            node.popen.wait()
            node.killed = True

    def _judge(self) -> None:
        crew, faults = self._crew, self._verdict.faults
        for each in [*crew.servers, *crew.nodes]:
            status = each.popen.returncode
            if not each.killed and status != 0:
                faults.append(f"{each.name}: exit {status}")
            if "Traceback" in each.said:
                faults.append(f"{each.name}: traceback")
        deadline = time.monotonic() + GONE_S
        while (left := self._ground.left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if left:
            faults.append(f"{len(left)} processes left: {left}")
        events, of_lines = judge_lines(crew.output.read_bytes())
        faults += of_lines
        faults += judge_events(events, self._ground.truth)
        faults += judge_ledger(crew.ledger, events)
