"""From hosts that were found to segments that are scanned: appended once, whatever dies when.

A discovery segment that is done in every pool is followed by others (`nray.targets.discovery`).
That happens when all its reports are durable, in one transaction with the word that no more
segments come, if none do. A server that died before finds the segment done and not followed when
it goes on, reads from the ledger what was found, and appends the very same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from nray.ledger.entries import Hits
from nray.ledger.ledger import Ledger
from nray.server.books import Books
from nray.server.scheduler import Scheduler, Taken
from nray.server.summary import plural
from nray.targets.discovery import Found, following, unfollowed
from nray.targets.segment import Segment

log = logging.getLogger("nray.server")

#: Rows of the journal read at a time, when a scan goes on.
ROWS_MOST = 256


class Search:
    """Follows the discovery segments of a scan, until there are none left.

    Args:
        segments: those that the ledger holds; the scheduler has them already.
        books: where what follows is written down.
        added: called with segments that the scheduler has from now on, and at the end with none.
    """

    def __init__(
        self,
        segments: Iterable[Segment],
        scheduler: Scheduler,
        books: Books,
        added: Callable[[Sequence[Segment]], None],
    ) -> None:
        known = {each.id: each for each in segments}
        self._scheduler = scheduler
        self._books = books
        self._added = added
        self._next = max(known, default=-1) + 1
        waiting = unfollowed(known.values())
        if waiting and books.ledger.segments_ended:
            waiting = []  # they have found nothing
        self._segments = {each.id: each for each in waiting}
        self._found = {each.id: Found(each) for each in waiting}
        if not waiting:
            scheduler.end_segments()

    def begin(self) -> None:
        """Go on where an earlier process stood. Once, before anything is leased."""
        if self._found:
            self._recall(self._books.ledger)
        for number in list(self._found):
            self._look(number)

    def take(self, taken: Taken) -> None:
        """A report was taken, and what it has brought is in the books."""
        if not taken.discovery:
            return
        if taken.fresh:
            self._found[taken.segment].add(taken.fresh)
        if taken.ended:
            self._look(taken.segment)

    def _recall(self, ledger: Ledger) -> None:
        after = 0
        while rows := ledger.read(after, ROWS_MOST):
            for _, row in rows:
                if isinstance(row, Hits) and row.segment in self._found:
                    self._found[row.segment].add(row.packed)
            after = rows[-1][0]

    def _look(self, number: int) -> None:
        if self._scheduler.whole(number):
            # Called when all that was submitted so far is durable.
            self._books.submit([], partial(self._follow, number))

    def _follow(self, number: int) -> None:
        made = following(self._segments.pop(number), self._found.pop(number), self._next)
        self._next += len(made)
        for each in made:
            if each.search:
                self._segments[each.id] = each
                self._found[each.id] = Found(each)
        ended = not self._found
        self._books.append(made, ended=ended, then=partial(self._appended, made, ended))

    def _appended(self, made: Sequence[Segment], ended: bool) -> None:
        for each in made:
            log.info(
                "%s: %s, %s",
                "still looking for" if each.search else "found",
                plural(each.hosts, "host"),
                plural(each.probes, "probe"),
            )
            self._scheduler.add_segment(each, discovery=bool(each.search))
        if ended:
            self._scheduler.end_segments()
        self._added(made)
