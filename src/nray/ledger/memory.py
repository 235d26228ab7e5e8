"""A ledger that lives as long as its process: for scans without a state file, and for tests.

It keeps the laws of `ledger` but for durability. A simulator can have it crash and fail.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from nray.ledger.book import Book, Change, ErrorKey, Kept, Place, Sums, not_done
from nray.ledger.entries import (
    RECORD_BYTES,
    Cursor,
    CursorAt,
    Entry,
    Finished,
    Hits,
    NodeSeen,
    Row,
    SegmentAdded,
    SegmentsEnded,
    size,
    unpack_node,
)
from nray.ledger.intervals import IntervalSet
from nray.ledger.ledger import READ_BYTES_MAX


class _Store:
    """What would be on a disk."""

    def __init__(self) -> None:
        self.generation = 0
        self.segments_ended = False
        self.finished = False
        self.segments: dict[int, bytes] = {}
        self.done: dict[Place, IntervalSet] = {}
        self.nodes: dict[int, bytes] = {}
        self.cursors: dict[str, Cursor] = {}
        self.sums: dict[Kept, Sums] = {}
        self.errors: dict[ErrorKey, int] = {}
        #: Each row with the hits of all rows up to it; before them, so many were let go.
        self.rows: list[tuple[Row, int]] = []
        self.rows_gone = 0
        self.hits_gone = 0

    @property
    def last(self) -> int:
        return self.rows_gone + len(self.rows)

    def hits_until(self, seq: int) -> int:
        at = min(seq - self.rows_gone, len(self.rows))
        return self.rows[at - 1][1] if at > 0 else self.hits_gone if seq > 0 else 0

    def write(self, change: Change) -> None:
        hits = self.hits_until(self.last)
        for row in change.rows:
            hits += size(row) // RECORD_BYTES
            self.rows.append((row, hits))
        self.segments_ended |= change.segments_ended
        self.finished |= change.finished
        self.segments.update(change.segments)
        self.done.update(change.done)
        self.nodes.update(change.nodes)
        self.cursors.update(change.cursors)
        self.sums.update(change.sums)
        self.errors.update(change.errors)

    def let_go(self, seq: int) -> None:
        """Forget the rows up to this one."""
        if seq > self.rows_gone:
            self.hits_gone = self.hits_until(seq)
            del self.rows[: seq - self.rows_gone]
            self.rows_gone = seq

    def book(self) -> Book:
        book = Book(lambda pool, segment: self.done.get((pool, segment), IntervalSet()))
        book.last, book.hits = self.last, self.hits_until(self.last)
        book.segments_ended, book.finished = self.segments_ended, self.finished
        book.nodes, book.segments = set(self.nodes), set(self.segments)
        book.sums, book.errors = dict(self.sums), dict(self.errors)
        book.inherit((seq, row) for seq, (row, _) in enumerate(self.rows, self.rows_gone + 1))
        return book


class MemoryLedger:
    """A ledger in memory; see `ledger.Ledger` for what each method promises.

    Args:
        scan, settings, segments: as for `SqliteLedger.create`.
        ended: whether these are all segments.
        release: names of the sinks that follow the journal. Rows that all of them have passed
            are let go, so that a scan of any size stays in bounded memory; `open_hits` and
            `crash` are then not to be had. None: keep all.
    """

    durable = False

    def __init__(
        self,
        *,
        scan: str,
        settings: bytes = b"",
        segments: Sequence[tuple[int, bytes]] = (),
        ended: bool = False,
        release: Collection[str] | None = None,
    ) -> None:
        self.scan = scan
        self.settings = settings
        self._release = release
        self._lock = threading.Lock()
        self._faults: deque[BaseException] = deque()
        self._begin(_Store())
        self.commit([SegmentAdded(number, body) for number, body in segments])
        if ended:
            self.end_segments()

    def _begin(self, store: _Store) -> None:
        store.generation += 1
        self._store = store
        self._book = store.book()
        self._closed = False

    # ── for simulators ──────────────────────────────────────────────────────────────────────

    def crash(self) -> MemoryLedger:
        """The ledger as a new process would find it; this one is closed.

        It has a generation of its own, and none of the faults that were still to come.
        """
        if self._release is not None:
            raise ValueError("a ledger that lets rows go cannot be opened again")
        with self._lock:
            self._closed = True
            other = MemoryLedger(scan=self.scan, settings=self.settings)
            other._begin(self._store)
            return other

    def fail_next(self, *errors: BaseException) -> None:
        """Have the next commits raise these, one each, having changed nothing."""
        self._faults.extend(errors)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _opened(self) -> Iterator[_Store]:
        with self._lock:
            if self._closed:
                raise ValueError("the ledger is closed")
            yield self._store

    @property
    def generation(self) -> int:
        return self._store.generation

    @property
    def segments_ended(self) -> bool:
        return self._store.segments_ended

    @property
    def finished(self) -> bool:
        return self._store.finished

    @property
    def last(self) -> int:
        return self._store.last

    def segments(self) -> list[tuple[int, bytes]]:
        with self._opened() as store:
            return sorted(store.segments.items())

    def pools(self) -> list[int]:
        with self._opened() as store:
            return sorted({pool for pool, _ in store.sums})

    def done(self, pool: int, segment: int) -> IntervalSet:
        with self._opened() as store:
            return store.done.get((pool, segment), IntervalSet()).copy()

    def open_hits(self, pool: int, segment: int) -> Iterator[bytes]:
        if self._release is not None:
            raise ValueError("a ledger that lets rows go does not know which hits are open")
        with self._opened() as store:
            done = store.done.get((pool, segment), IntervalSet())
            pieces = [
                not_done(row.packed, done)
                for row, _ in store.rows
                if isinstance(row, Hits) and (row.pool, row.segment) == (pool, segment)
            ]
        return iter([piece for piece in pieces if piece])

    def tally(self, pool: int, discovery: bool = False) -> tuple[int, ...]:
        with self._opened() as store:
            return tuple(store.sums.get((pool, discovery), Sums()).counts)

    def errors(self, pool: int, discovery: bool = False) -> dict[str, int]:
        with self._opened() as store:
            of = (pool, discovery)
            return {reason: n for (*kept, reason), n in store.errors.items() if (*kept,) == of}

    def hits(self, pool: int, discovery: bool = False) -> int:
        with self._opened() as store:
            return store.sums.get((pool, discovery), Sums()).hits

    def hits_until(self, seq: int) -> int:
        with self._opened() as store:
            return store.hits_until(seq)

    def nodes(self) -> list[NodeSeen]:
        with self._opened() as store:
            return [unpack_node(packed) for _, packed in sorted(store.nodes.items())]

    def read(self, after: int, most: int) -> list[tuple[int, Row]]:
        found: list[tuple[int, Row]] = []
        room = READ_BYTES_MAX
        with self._opened() as store:
            start = max(0, after - store.rows_gone)
            for at in range(start, min(start + most, len(store.rows))):
                row = store.rows[at][0]
                room -= size(row)
                if found and room < 0:
                    break
                found.append((store.rows_gone + at + 1, row))
        return found

    def cursor(self, sink: str) -> Cursor | None:
        with self._opened() as store:
            return store.cursors.get(sink)

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    def commit(self, entries: Sequence[Entry]) -> int:
        with self._opened() as store:
            change = self._book.plan(entries)
            if self._faults:
                raise self._faults.popleft()
            store.write(change)
            self._book.apply(change)
            if self._release is not None:
                store.let_go(self._passed(self._release))
            return change.last

    def _passed(self, sinks: Collection[str]) -> int:
        """The row that all of these sinks have passed; without sinks, the last."""
        cursors = [self._store.cursors.get(sink, Cursor(0)).seq for sink in sinks]
        return min(cursors, default=self._store.last)

    def add_segment(self, number: int, body: bytes) -> None:
        self.commit([SegmentAdded(number, body)])

    def end_segments(self) -> None:
        self.commit([SegmentsEnded()])

    def set_cursor(self, sink: str, cursor: Cursor) -> None:
        self.commit([CursorAt(sink, cursor)])

    def finish(self) -> None:
        self.commit([Finished()])

    def close(self) -> None:
        with self._lock:
            self._closed = True
