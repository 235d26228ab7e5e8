"""What a ledger promises: the one interface that server, scheduler and sinks know.

A ledger holds one scan: its settings and segments, what is done (by pool and segment, as merged
intervals), the journal of hits and registrations, nodes, sums, and a cursor for each sink.

Laws, held by the tests for every implementation:

1. A `commit` is all or nothing, and durable when it returns. After a crash the ledger holds the
   commits up to some point in their order, every one that returned among them.
2. Journal rows are numbered 1, 2, 3 … without gaps, in the order in which they were committed.
3. What contradicts the ledger is refused with ValueError and changes nothing: a slice that is
   partly done already, hits of a slice that is done, a node or segment that is not known. These
   are mistakes in the program: a hit must not be written twice, least of all silently.

**Threads.** Any method may be called from any thread. Writes happen one at a time; reads go on
meanwhile and see what is committed.

**Several servers.** Nothing here supposes that one process alone writes; docs/ledger.md lists
what would differ for a database server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from nray.ledger.entries import Cursor as Cursor
from nray.ledger.entries import Entry as Entry
from nray.ledger.entries import NodeSeen, Row
from nray.ledger.errors import LedgerError as LedgerError
from nray.ledger.errors import LedgerFull as LedgerFull
from nray.ledger.errors import LedgerRefused as LedgerRefused
from nray.ledger.intervals import IntervalSet

#: A reader gets at most so many bytes of hits at a time, and at least one row: what it turns
#: them into (events) is some 30 times as large.
READ_BYTES_MAX = 1024 * 1024


class Account(Protocol):
    """A ledger as it can be read. All calls may raise `LedgerError` where a disk fails."""

    @property
    def scan(self) -> str:
        """The random id of the scan."""

    @property
    def settings(self) -> bytes:
        """What `create` was given: the effective configuration. Opaque here."""

    @property
    def generation(self) -> int:
        """How often the ledger was opened for writing, from 1; never the same twice.

        Leases numbered ``generation << 40 | n`` are unique over all restarts.
        """

    @property
    def segments_ended(self) -> bool:
        """Whether no more segments will come."""

    @property
    def finished(self) -> bool:
        """Whether the scan is over."""

    @property
    def last(self) -> int:
        """Number of the journal's last row; 0 for none."""

    def segments(self) -> list[tuple[int, bytes]]:
        """Number and packed form of each segment, by number."""

    def pools(self) -> list[int]:
        """The pools of which anything is written down, ascending."""

    def done(self, pool: int, segment: int) -> IntervalSet:
        """What is done; the caller's to change."""

    def open_hits(self, pool: int, segment: int) -> Iterator[bytes]:
        """Packed hits at positions that are not done, in pieces.

        These were reported by slices that had not ended; a scan that is resumed must not
        report them again. For the time before the first commit: later ones may or may not be
        among them.
        """

    def tally(self, pool: int, discovery: bool = False) -> tuple[int, ...]:
        """How the probes of ended slices ended: sums of `SliceDone.counts`."""

    def errors(self, pool: int, discovery: bool = False) -> dict[str, int]:
        """Why probes could not be sent: sums of `SliceDone.errors`."""

    def hits(self, pool: int, discovery: bool = False) -> int:
        """Hits in the journal."""

    def hits_until(self, seq: int) -> int:
        """Hits of all pools in the journal's rows up to ``seq``."""

    def nodes(self) -> list[NodeSeen]:
        """The nodes, by number."""

    def read(self, after: int, most: int) -> list[tuple[int, Row]]:
        """Rows of the journal, in order, numbered above ``after``.

        At most ``most``, and fewer where they hold more than `READ_BYTES_MAX`; none only if
        there are none.
        """

    def cursor(self, sink: str) -> Cursor | None:
        """How far a sink has come; None if it never said."""

    def close(self) -> None:
        """Let go. Harmless when repeated; any other call then raises ValueError."""


class Ledger(Account, Protocol):
    """A ledger as it can be written, by one holder at a time."""

    @property
    def durable(self) -> bool:
        """Whether `commit` waits for a disk (and so belongs into a thread)."""

    def commit(self, entries: Sequence[Entry]) -> int:
        """Write entries down, in order, in one transaction; durable when it returns.

        The cost is that of one fsync, however many entries there are: gather, then commit.

        Returns:
            the number of the journal's last row.

        Raises:
            LedgerFull: there is no room. Nothing is changed; try again when there is.
            LedgerError: the disk or the file failed. Nothing is changed.
            ValueError: an entry contradicts the ledger. Nothing is changed.
        """

    def add_segment(self, number: int, body: bytes) -> None:
        """Commit one `SegmentAdded`."""

    def end_segments(self) -> None:
        """Commit `SegmentsEnded`."""

    def set_cursor(self, sink: str, cursor: Cursor) -> None:
        """Commit one `CursorAt`; as an entry among others it would cost no fsync of its own."""

    def finish(self) -> None:
        """Commit `Finished`."""
