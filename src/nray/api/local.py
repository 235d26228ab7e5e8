"""The server's scheduler and the node's supervisor, joined by memory where the wire would be.

No second scanner is written for it: what is leased, scanned, taken and written is the same code
as between machines.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from nray.api.begin import NODE_ID, Begun
from nray.api.interrupts import EXIT_INTERRUPTED
from nray.events.hub import SinkPort
from nray.events.model import SCANTYPES, SCANTYPES_SYN
from nray.ledger.entries import NodeSeen
from nray.ledger.ledger import Ledger
from nray.node.orders import is_raw
from nray.node.raw import RawNet
from nray.node.supervisor import Outcome, Supervisor
from nray.server.books import Books, entries_of, now_ms, open_books
from nray.server.discovery import Search
from nray.server.scheduler import Tally
from nray.server.summary import exit_status, standing, status_line, summary_lines, totals
from nray.targets.segment import Segment
from nray.worker.forkserver import ForkServer

log = logging.getLogger("nray.scan")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ScanResult:
    """How a scan ended.

    Attributes:
        exit_status: 0 complete, 3 not everything could be covered, 130 interrupted.
        tally: how the probes ended.
        probes: how many were done, of ``total`` that are known; without those of discovery.
        seconds: from the first lease to the last finding.
        summary: the same for people.
    """

    exit_status: int
    tally: Tally
    probes: int
    total: int
    seconds: float
    summary: list[str] = field(default_factory=list)


class _Office:
    """The scheduler, as the supervisor sees it."""

    def __init__(self, begun: Begun, books: Books, node: NodeSeen) -> None:
        self.segments = list(begun.plan.segments)
        self._supervisor: Supervisor | None = None
        self._search = Search(self.segments, begun.scheduler, books, self._added)
        self._scheduler = begun.scheduler
        self._node = begun.node
        self._books = books
        self._seen = node
        self._kick = trio.Event()
        self.finished = trio.Event()
        # Of those with an open port, so many were told to the workers.
        self._spared = 0
        books.submit([node])

    def serve(self, supervisor: Supervisor) -> None:
        """Whom it is the office of, before that runs."""
        self._supervisor = supervisor
        for segment in self.segments:
            supervisor.add_segment(segment)
        self._spare()  # what an earlier run has found
        self._search.begin()
        self._finish_if_done()

    def _added(self, segments: Sequence[Segment]) -> None:
        """The scan's space has grown, or will grow no more."""
        assert self._supervisor is not None
        for segment in segments:
            self.segments.append(segment)
            self._supervisor.add_segment(segment)
        self._finish_if_done()
        self._kick.set()

    def _finish_if_done(self) -> None:
        if self._scheduler.finished:
            self.finished.set()

    def _spare(self) -> None:
        """Let the workers know of which hosts an open port was found: what was reported is lost
        with this process alone, and so is what it knows."""
        shown = self._scheduler.pools[0].shown
        if shown is not None and len(shown) > self._spared:
            assert self._supervisor is not None
            self._supervisor.spare(shown.packed(self._spared, len(shown)))
            self._spared = len(shown)

    def want(self, leases: int) -> None:
        self._scheduler.want(self._node, leases)
        self._kick.set()

    async def found(self, outcome: Outcome) -> None:
        await self._books.room()
        taken = self._scheduler.report(
            outcome.lease,
            outcome.hits,
            done=outcome.done,
            counts=outcome.counts,
            errors=outcome.errors,
            now=time.monotonic(),
        )
        assert taken is not None, "one node, so a slice is open until it has ended it"
        self._spare()
        self._books.submit(entries_of(taken, outcome.counts, outcome.errors, self._seen.node))
        self._search.take(taken)
        self._finish_if_done()

    async def lease_to(self, supervisor: Supervisor) -> None:
        """Give the supervisor what it wants, as it comes."""
        while True:
            self._kick = trio.Event()
            for grant in self._scheduler.grant(self._node, time.monotonic()):
                supervisor.give(grant)
            await self._kick.wait()


async def scan_here(
    begun: Begun,
    sinks: Sequence[SinkPort],
    fork_server: ForkServer,
    ledger: Ledger,
    *,
    node_name: str,
    progress: Progress | None = None,
    progress_every_s: float = 0.5,
    raw: RawNet | None = None,
) -> ScanResult:
    """Go on with a scan that has begun, to its end.

    Cancelled, it leaves what was found in the ledger. SIGINT and SIGTERM end it in order: what
    was found until then is with the outputs.

    Args:
        ledger: of the scan; stays the caller's to close.
        progress: gets a status line now and then.
        raw: what workers need whose packets are of their own making; None for others.

    Raises:
        SinkError, SinkStartError: a sink cannot be opened or written.
        LedgerError: the ledger cannot be written.
    """
    scheduler, settings, plan = begun.scheduler, begun.settings, begun.plan
    interrupted = False
    segments = {segment.id: segment for segment in plan.segments}
    timeouts_ms = {"tcp": settings.tcp_timeout_ms, "udp": settings.udp_timeout_ms}
    scantypes = SCANTYPES_SYN if is_raw(settings) else SCANTYPES
    async with open_books(ledger, sinks, segments, timeouts_ms, scantypes) as books:
        office = _Office(begun, books, _here(node_name, ledger.nodes()))
        supervisor = Supervisor(
            fork_server, settings, len(begun.primed), office, primed=begun.primed, raw=raw
        )
        office.serve(supervisor)

        async def watch_signals() -> None:
            nonlocal interrupted
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    interrupted = True
                    office.finished.set()
                    return

        async def tell() -> None:
            while progress is not None:
                await trio.sleep(progress_every_s)
                progress(status_line(scheduler, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_signals)
            nursery.start_soon(supervisor.run)
            nursery.start_soon(office.lease_to, supervisor)
            nursery.start_soon(tell)
            await office.finished.wait()
            nursery.cancel_scope.cancel()
        seconds = time.monotonic() - begun.begun_at
        if scheduler.finished:
            books.finish()
    probes, total = standing(scheduler)
    return ScanResult(
        exit_status=EXIT_INTERRUPTED if interrupted else exit_status(scheduler),
        tally=totals(scheduler),
        probes=probes,
        total=total,
        seconds=seconds,
        summary=summary_lines(scheduler, seconds, begun.done_before, office.segments),
    )


def _here(name: str, seen: Sequence[NodeSeen]) -> NodeSeen:
    """This process, as events tell of it.

    A scan may go on under another name, of another machine say. What was found before keeps the
    name of then: an output that is behind is given the very same events again.
    """
    for node in seen:
        if node.name == name:
            return node
    return NodeSeen(len(seen) + 1, NODE_ID, name, 0, None, "", "", None, now_ms())
