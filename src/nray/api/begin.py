"""The first moments of a local scan: workers get their first slices before a loop runs.

Importing what runs the loop and the sinks takes as long as scanning some ten thousand ports of
a near host. Nothing here imports it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nray.api.workers import ask_for_workers
from nray.node import orders
from nray.node.orders import Primed
from nray.server.restore import restore
from nray.server.scheduler import Grant, Node, Scheduler
from nray.targets.plan import Plan
from nray.wire.messages import Settings
from nray.worker.forkserver import ForkServer

if TYPE_CHECKING:
    from nray.ledger.ledger import Ledger

#: What a worker does in the 0.1 s until the loop runs, at some 10 us a probe, is two of these.
SLICE_FIRST = 4096
#: So many probes a worker are given out in advance. A scan that is no larger is given out whole: it
#: need not wait for the loop to begin its last slice.
PRIMED_MOST = 2 * SLICE_FIRST
#: And so many slices in all: some 50 bytes each, which must fit the workers' sockets unread.
LEASES_MOST = 256
NODE_ID = "local"


@dataclass
class Begun:
    """A scan that has begun: what was leased, and to which workers."""

    plan: Plan
    settings: Settings
    scheduler: Scheduler
    node: Node
    primed: list[Primed]
    begun_at: float
    done_before: int


def begin(
    plan: Plan,
    settings: Settings,
    fork_server: ForkServer,
    processes: int,
    ledger: Ledger | None = None,
) -> Begun:
    """Start workers and give them something to do at once.

    Args:
        ledger: of a scan that goes on, or that keeps its state; None: it keeps none.

    Raises:
        NoWorkers: they cannot be started.
    """
    primed = ask_for_workers(fork_server, processes)
    scheduler = Scheduler(
        ratelimit=0.0 if settings.ratelimit_auto else settings.ratelimit,
        slice_first=SLICE_FIRST,
        generation=ledger.generation if ledger else 0,
        first_open=settings.first_open,
    )
    for segment in plan.segments:
        scheduler.add_segment(segment, discovery=bool(segment.search))
    if ledger is not None:
        restore(scheduler, ledger)
    node = scheduler.join(NODE_ID, 0, processes)
    done_before = sum(pool.done for pool in scheduler.pools)
    begun = Begun(plan, settings, scheduler, node, primed, time.monotonic(), done_before)
    fork_server.set_rate(settings.ratelimit)
    if settings.first_open:
        fork_server.shown()  # before workers are told of it
    if orders.may_prime(plan.segments) and not orders.needs_raw(settings):
        leases = _first_leases(begun, PRIMED_MOST * processes)
        orders.prime(primed, settings, {each.id: each for each in plan.segments}, leases)
    return begun


def _first_leases(begun: Begun, probes: int) -> list[Grant]:
    leases: list[Grant] = []
    while sum(lease.count for lease in leases) < probes and len(leases) < LEASES_MOST:
        begun.scheduler.want(begun.node, 1)
        granted = begun.scheduler.grant(begun.node, begun.begun_at)
        if not granted:
            break
        leases += granted
    begun.node.wanted = 0
    return leases
