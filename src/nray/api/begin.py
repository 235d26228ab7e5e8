"""The first moments of a local scan: workers get their first slices before a loop runs.

Importing what runs the loop and the sinks takes as long as scanning some ten thousand ports of
a near host. Nothing here imports it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from nray.api.workers import ask_for_workers
from nray.node import orders
from nray.node.orders import Primed
from nray.server.scheduler import Node, Scheduler
from nray.targets.plan import Plan
from nray.wire.messages import Settings
from nray.worker.forkserver import ForkServer
from nray.worker.protocol import SLICES_AHEAD

#: What a worker does in the 0.1 s until the loop runs, at some 10 us a probe, is two of these.
SLICE_FIRST = 4096
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


def begin(plan: Plan, settings: Settings, fork_server: ForkServer, processes: int) -> Begun:
    """Start workers and give them something to do at once.

    Raises:
        NoWorkers: they cannot be started.
    """
    primed = ask_for_workers(fork_server, processes)
    scheduler = Scheduler(ratelimit=settings.ratelimit, slice_first=SLICE_FIRST)
    for segment in plan.segments:
        scheduler.add_segment(segment)
    scheduler.end_segments()
    node = scheduler.join(NODE_ID, 0, processes)
    begun = Begun(plan, settings, scheduler, node, primed, time.monotonic())
    fork_server.set_rate(settings.ratelimit)
    if orders.may_prime(plan.segments):
        scheduler.want(node, SLICES_AHEAD * processes)
        leases = scheduler.grant(node, begun.begun_at)
        node.wanted = 0
        orders.prime(primed, settings, {each.id: each for each in plan.segments}, leases)
    return begun
