"""Mistakes planted on purpose: the simulator is only worth something if it finds them.

Each is one wrong step that a tired programmer might take in the real code, put in place of the
right one while a run lasts. ``PLANTED=name`` in the environment of `python -m tests.simulator` or
`make simulate` does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import trio

from nray.events import hub, json_file
from nray.ledger.entries import CursorAt
from nray.ledger.ledger import Cursor
from nray.node import reports, supervisor
from nray.server import books, discovery, scheduler, server, sessions

from .replaced import Replacement


def _ack_before_commit() -> Iterable[Replacement]:
    """Reports are acknowledged when they are submitted, not when they are durable."""

    def submit(self: Any, entries: Any, then: Callable[[], None] | None) -> None:
        original(self, entries, None)
        if then is not None:
            then()

    original = books._Clerk.submit
    yield books._Clerk, "submit", submit


def _stop_before_commit() -> Iterable[Replacement]:
    """The scan is taken for over when the last report has come in, not when it is durable."""

    def take(self: Any, line: Any, session: Any, report: Any) -> Any:
        async def taken() -> None:
            await original(self, line, session, report)
            if self.scheduler.finished and not self._over.is_set():
                self._over.set()
                self._sessions.kick()

        return taken()

    original = server.Server._take
    yield server.Server, "_take", take


def _forget_reported() -> Iterable[Replacement]:
    """A resumed scan does not know which hits of open slices were reported."""

    def restore(made: Any, pool: int, segment: int, done: Any, reported: Any = ()) -> None:
        original(made, pool, segment, done, ())

    original = scheduler.Scheduler.restore
    yield scheduler.Scheduler, "restore", restore


def _reuse_leases() -> Iterable[Replacement]:
    """Each server process numbers its leases from 1 again: no fencing over restarts."""

    def init(self: Any, **known: Any) -> None:
        original(self, **{**known, "generation": 0})

    original = scheduler.Scheduler.__init__
    yield scheduler.Scheduler, "__init__", init


def _send_once() -> Iterable[Replacement]:
    """A node does not send again what was not acknowledged when its line broke."""
    yield reports.ReportBook, "reconnected", lambda self: None


def _forget_on_send() -> Iterable[Replacement]:
    """A node forgets a report when it was sent."""

    def unsent(self: Any) -> Any:
        waiting = original(self)
        self._kept.clear()
        return waiting

    original = reports.ReportBook.unsent
    yield reports.ReportBook, "unsent", unsent


def _keep_lost_leases() -> Iterable[Replacement]:
    """Leases that were lost on the way to a node that has come back stay with it."""
    yield scheduler.Scheduler, "keep_only", lambda self, node, leases: 0


def _leave_gaps() -> Iterable[Replacement]:
    """The slices of a node that is gone are not given to others."""

    def leave(self: Any, node: Any) -> int:
        self.pools[node.pool].nodes.discard(node)
        return 0

    yield scheduler.Scheduler, "leave", leave


def _end_with_worker() -> Iterable[Replacement]:
    """What a dead worker had in hand is forgotten."""

    async def bury(self: Any, hand: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._changed.set()

    yield supervisor.Supervisor, "_bury", bury


def _all_hits_new() -> Iterable[Replacement]:
    """Hits that come a second time for an open slice are taken again."""
    yield scheduler._Slice, "new_hits", lambda self, hits: hits


def _cursor_ahead() -> Iterable[Replacement]:
    """The output's cursor is what was handed over, not what is on the disk."""

    async def mark(self: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self._after != self._marked:
            self._marked = self._after
            sink = self._port.sink
            end = getattr(sink, "_end", 0)
            self._clerk.submit([CursorAt(sink.name, Cursor(self._after, end))], None)

    yield books._Feeder, "mark", mark


def _write_again() -> Iterable[Replacement]:
    """A continued file gets everything behind the cursor again, whatever stands in it."""
    yield json_file.JsonFileSink, "_standing", lambda self, fd, data: 0


def _leave_torn() -> Iterable[Replacement]:
    """A line that was torn by a full disk stays."""

    def cut(self: Any, fd: int) -> None:
        self._torn = 0

    yield json_file.JsonFileSink, "_cut", cut


def _skip_when_full() -> Iterable[Replacement]:
    """What a full disk did not take is dropped."""

    async def write(self: Any, lane: Any, batch: Any) -> None:
        try:
            await lane.call(lane.port.sink.write, batch)
        except hub.SinkError:
            pass
        lane.done(len(batch))
        lane.progress.unpark_all()

    yield hub.Hub, "_write_batch", write


def _drop_when_full() -> Iterable[Replacement]:
    """Entries for which the ledger has no room are dropped."""

    async def commit(self: Any, entries: Any) -> None:
        try:
            await books._in_thread(self._ledger.commit, entries)
        except books.LedgerFull:
            pass

    yield books._Clerk, "_commit", commit


def _new_pool() -> Iterable[Replacement]:
    """A node that comes back after the server was started again is taken for a new one."""
    original = sessions.Sessions.__init__

    @wraps(original)
    def init(self: Any, made: Any, **known: Any) -> None:
        original(self, made, **{**known, "seen": ()})

    yield sessions.Sessions, "__init__", init


def _never_expire() -> Iterable[Replacement]:
    """Silent nodes are waited for, for ever."""
    yield sessions.Sessions, "expired", lambda self, now: []


def _same_lease() -> Iterable[Replacement]:
    """A slice that goes to another node keeps its lease number."""

    def grant(self: Any, node: Any, now: float) -> Any:
        granted = original(self, node, now)
        for at, each in enumerate(granted):
            _, work, _ = self._by_lease[each.lease]
            first = work.leases[0]
            if first != each.lease:
                granted[at] = scheduler.Grant(first, each.segment, each.start, each.count)
        return granted

    original = scheduler.Scheduler.grant
    yield scheduler.Scheduler, "grant", grant


def _no_resync() -> Iterable[Replacement]:
    """A node that comes back does not ask again for what it had asked on the old line."""
    yield supervisor.Supervisor, "ask_again", lambda self: None


def _forget_found() -> Iterable[Replacement]:
    """A resumed scan does not know what discovery has found before."""
    yield discovery.Search, "_recall", lambda self, ledger: None


def _follow_again() -> Iterable[Replacement]:
    """What follows discovery is appended again by a scan that goes on."""
    yield discovery, "unfollowed", lambda segments: [each for each in segments if each.search]


def _follow_one_pool() -> Iterable[Replacement]:
    """What one pool has found is scanned, whatever the others are still looking for."""

    def whole(self: Any, segment: int) -> bool:
        accounts = [pool.segments[segment] for pool in self.pools]
        return any(each.done.total == each.total for each in accounts)

    yield scheduler.Scheduler, "whole", whole


def _forget_shown() -> Iterable[Replacement]:
    """A resumed scan does not know of which hosts an open port was told."""
    yield scheduler.Scheduler, "restore_told", lambda self, pool, hits: None


def _spare_before_commit() -> Iterable[Replacement]:
    """Other nodes leave a host out when its open port is reported, not when it is on the disk."""

    def told_once(self: Any, hits: bytes) -> bytes:
        fresh = original(self, hits)
        self.safe = len(self.shown) if self.shown is not None else 0
        return fresh

    original = scheduler.Pool.told_once
    yield scheduler.Pool, "told_once", told_once


def _no_rest() -> Iterable[Replacement]:
    """A full disk is tried again without a pause."""
    yield books, "RETRY_S", 0.0


#: By name.
PLANTS: dict[str, Callable[[], Iterable[Replacement]]] = {
    name.replace("_", "-"): plant
    for name, plant in {
        "ack_before_commit": _ack_before_commit,
        "stop_before_commit": _stop_before_commit,
        "forget_reported": _forget_reported,
        "reuse_leases": _reuse_leases,
        "same_lease": _same_lease,
        "send_once": _send_once,
        "forget_on_send": _forget_on_send,
        "keep_lost_leases": _keep_lost_leases,
        "leave_gaps": _leave_gaps,
        "end_with_worker": _end_with_worker,
        "all_hits_new": _all_hits_new,
        "cursor_ahead": _cursor_ahead,
        "write_again": _write_again,
        "leave_torn": _leave_torn,
        "skip_when_full": _skip_when_full,
        "drop_when_full": _drop_when_full,
        "new_pool": _new_pool,
        "never_expire": _never_expire,
        "no_resync": _no_resync,
        "forget_found": _forget_found,
        "follow_again": _follow_again,
        "follow_one_pool": _follow_one_pool,
        "forget_shown": _forget_shown,
        "spare_before_commit": _spare_before_commit,
        "no_rest": _no_rest,
    }.items()
}
