"""What a ledger keeps in mind to check and count new entries. No I/O; the same for every kind.

`Book.plan` turns entries into a `Change`: what to write, as absolute values, so that writing it
needs no reading. Only when that is durable does `Book.apply` take it over. A change that was never
applied never happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nray.ledger.entries import (
    COUNTS,
    HITS_BYTES_MAX,
    INTEGER_MAX,
    POOL_MAX,
    RECORD_BYTES,
    Cursor,
    CursorAt,
    Entry,
    Finished,
    Hits,
    NodeSeen,
    Registration,
    Row,
    SegmentAdded,
    SegmentsEnded,
    SliceDone,
    pack_node,
)
from nray.ledger.intervals import IntervalSet

#: Pool and segment.
Place = tuple[int, int]
#: Pool, and whether of discovery: what sums are kept of.
Kept = tuple[int, bool]
#: Pool, segment, first position.
SliceKey = tuple[int, int, int]

#: Done sets kept in mind; others are read again when they are asked for. Work goes on in a few
#: segments at a time, of which a stream of names may bring any number.
DONE_KEPT_MAX = 1024


@dataclass
class Sums:
    """Of one pool, discovery apart: nine counts (see `entries.COUNTS`), and hits."""

    counts: list[int] = field(default_factory=lambda: [0] * COUNTS)
    hits: int = 0

    def copy(self) -> Sums:
        return Sums(self.counts[:], self.hits)


#: Pool, whether of discovery, reason.
ErrorKey = tuple[int, bool, str]


@dataclass
class Change:
    """What one commit writes.

    Attributes:
        last, hits: number of the journal's last row, and hits in all rows, afterwards.
        mark: see `Book`.
        intervals: of done sets, by start: the last position, or None where that row goes away.
        sums, errors, cursors: new values of those that change.
        done, opened, closed: for `Book.apply` alone.
    """

    last: int
    hits: int
    mark: int = 0
    rows: list[Row] = field(default_factory=list)
    nodes: dict[int, bytes] = field(default_factory=dict)
    segments: dict[int, bytes] = field(default_factory=dict)
    segments_ended: bool = False
    finished: bool = False
    intervals: dict[Place, dict[int, int | None]] = field(default_factory=dict)
    sums: dict[Kept, Sums] = field(default_factory=dict)
    errors: dict[ErrorKey, int] = field(default_factory=dict)
    cursors: dict[str, Cursor] = field(default_factory=dict)
    done: dict[Place, IntervalSet] = field(default_factory=dict)
    opened: dict[SliceKey, int] = field(default_factory=dict)
    closed: set[SliceKey] = field(default_factory=set)


class Book:
    """The state that decides whether an entry may be written, and the sums it goes into.

    The *mark* says from which row of the journal on there may be hits of slices that are not
    done: a resumed scan reads from there. It is kept by remembering for each open slice the
    row of its first hits.

    Args:
        load_done: reads a done set that is not kept in mind.
    """

    def __init__(self, load_done: Callable[[int, int], IntervalSet]) -> None:
        self._load_done = load_done
        self.last = 0
        self.hits = 0
        self.segments_ended = False
        self.finished = False
        self.nodes: set[int] = set()
        self.segments: set[int] = set()
        self.sums: dict[Kept, Sums] = {}
        self.errors: dict[ErrorKey, int] = {}
        self._done: dict[Place, IntervalSet] = {}
        #: First row of hits of each open slice, ascending.
        self._open: dict[SliceKey, int] = {}
        #: Of those that were open when the ledger was opened: last position of their hits. What
        #: they covered may since have been cut into other slices, even one of the same start:
        #: they are open until all from their start to that position is done.
        self._inherited: dict[SliceKey, int] = {}
        self._handlers: Mapping[type, Callable[[Change, Any], None]] = {
            Hits: self._hits,
            SliceDone: self._slice_done,
            NodeSeen: self._node_seen,
            Registration: self._registration,
            SegmentAdded: self._segment_added,
            SegmentsEnded: self._segments_ended,
            CursorAt: self._cursor_at,
            Finished: self._finished,
        }

    def inherit(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Learn from the rows since the mark which slices are open."""
        for seq, row in rows:
            if not isinstance(row, Hits):
                continue
            place = (row.pool, row.segment)
            last = max(positions(row.packed))
            if self.done(place).covers(row.start, last + 1):
                continue
            key = (*place, row.start)
            self._open.setdefault(key, seq)
            self._inherited[key] = max(last, self._inherited.get(key, last))

    def done(self, place: Place) -> IntervalSet:
        """What is done. Not to be changed."""
        kept = self._done.get(place)
        if kept is None:
            kept = self._load_done(*place)
            self._keep(place, kept)
        return kept

    def may_be_open(self, place: Place) -> bool:
        """Whether there may be hits of slices that are not done."""
        return any(key[:2] == place for key in self._open)

    def _keep(self, place: Place, done: IntervalSet) -> None:
        self._done.pop(place, None)
        self._done[place] = done
        if len(self._done) > DONE_KEPT_MAX:
            del self._done[next(iter(self._done))]

    # ── plan and apply ──────────────────────────────────────────────────────────────────────

    def plan(self, entries: Sequence[Entry]) -> Change:
        """What to write for these entries; changes nothing. Raises ValueError (see `ledger`)."""
        change = Change(self.last, self.hits)
        for entry in entries:
            handler = self._handlers.get(type(entry))
            if handler is None:
                raise ValueError(f"no entry of a ledger: {type(entry).__name__}")
            handler(change, entry)
        change.mark = self._mark(change)
        return change

    def apply(self, change: Change) -> None:
        """A change is written: take it over."""
        self.last = change.last
        self.hits = change.hits
        self.segments_ended |= change.segments_ended
        self.finished |= change.finished
        self.nodes.update(change.nodes)
        self.segments.update(change.segments)
        self.sums.update(change.sums)
        self.errors.update(change.errors)
        for place, done in change.done.items():
            self._keep(place, done)
        for key in change.closed:
            self._open.pop(key, None)
            self._inherited.pop(key, None)
        self._open.update(change.opened)

    def _mark(self, change: Change) -> int:
        """The row from which on there may be hits that are not of a done slice."""
        for key, seq in self._open.items():
            if key in change.closed:
                continue
            last = self._inherited.get(key)
            if last is None or not self._planned_done(change, key[:2]).covers(key[2], last + 1):
                return seq
            change.closed.add(key)
        return next(iter(change.opened.values()), change.last + 1)

    def _planned_done(self, change: Change, place: Place) -> IntervalSet:
        planned = change.done.get(place)
        return self.done(place) if planned is None else planned

    # ── one method for each kind of entry ───────────────────────────────────────────────────

    def _hits(self, change: Change, entry: Hits) -> None:
        self._check_place(change, entry.pool, entry.segment)
        self._check_node(change, entry.node)
        if not entry.packed or len(entry.packed) % RECORD_BYTES:
            raise ValueError(f"{len(entry.packed)} bytes are no packed hits")
        if len(entry.packed) > HITS_BYTES_MAX:
            raise ValueError(f"{len(entry.packed)} bytes of hits at once")
        first = int.from_bytes(entry.packed[:8], "little")
        if not 0 <= entry.start <= first <= INTEGER_MAX:
            raise ValueError(f"a hit at {first} of a slice from {entry.start}")
        # A slice is wholly done or wholly open, so these two tell for all of its hits.
        done = self._planned_done(change, (entry.pool, entry.segment))
        if entry.start in done or first in done:
            raise ValueError(f"hits of slice {_words(entry)}, which is done")
        self._append(change, entry)
        count = len(entry.packed) // RECORD_BYTES
        change.hits += count
        self._sums(change, entry).hits += count
        key = (entry.pool, entry.segment, entry.start)
        if key not in self._open:
            change.opened.setdefault(key, change.last)

    def _slice_done(self, change: Change, entry: SliceDone) -> None:
        self._check_place(change, entry.pool, entry.segment)
        end = entry.start + entry.count
        if not 0 <= entry.start < end <= INTEGER_MAX + 1:
            raise ValueError(f"no slice: {entry.start}+{entry.count}")
        if len(entry.counts) != COUNTS or not all(_is_count(each) for each in entry.counts):
            raise ValueError(f"no counts: {entry.counts}")
        if not all(_is_count(each) for each in entry.errors.values()):
            raise ValueError(f"no counts: {entry.errors}")
        self._add_done(change, (entry.pool, entry.segment), entry.start, end)
        sums = self._sums(change, entry)
        sums.counts = [
            min(old + new, INTEGER_MAX) for old, new in zip(sums.counts, entry.counts, strict=True)
        ]
        for reason, count in entry.errors.items():
            _check_text(reason)
            name = (entry.pool, entry.discovery, reason)
            old = change.errors.get(name, self.errors.get(name, 0))
            change.errors[name] = min(old + count, INTEGER_MAX)
        key = (entry.pool, entry.segment, entry.start)
        if change.opened.pop(key, None) is None and key not in self._inherited:
            change.closed.add(key)

    def _add_done(self, change: Change, place: Place, start: int, end: int) -> None:
        done = change.done.get(place)
        if done is None:
            done = change.done[place] = self.done(place).copy()
        rows = change.intervals.setdefault(place, {})
        for old, old_end in done.touching(start, end):
            if old < end and start < old_end:
                raise ValueError(
                    f"slice {place[0]}/{place[1]}/{start}+{end - start} is done already"
                    f" from {max(start, old)} to {min(end, old_end) - 1}"
                )
            rows[old] = None
        done.add(start, end)
        ((merged, merged_end),) = done.touching(start, end)
        rows[merged] = merged_end - 1

    def _node_seen(self, change: Change, entry: NodeSeen) -> None:
        if not 1 <= entry.node <= INTEGER_MAX:
            raise ValueError(f"no number of a node: {entry.node}")
        change.nodes[entry.node] = pack_node(entry)

    def _registration(self, change: Change, entry: Registration) -> None:
        self._check_node(change, entry.node)
        self._append(change, entry)

    def _segment_added(self, change: Change, entry: SegmentAdded) -> None:
        if not 0 <= entry.number <= INTEGER_MAX:
            raise ValueError(f"no number of a segment: {entry.number}")
        if entry.number in self.segments or entry.number in change.segments:
            raise ValueError(f"segment {entry.number} is there already")
        if self.segments_ended or change.segments_ended:
            raise ValueError(f"segment {entry.number} after the last one")
        change.segments[entry.number] = entry.body

    def _segments_ended(self, change: Change, entry: SegmentsEnded) -> None:
        change.segments_ended = True

    def _cursor_at(self, change: Change, entry: CursorAt) -> None:
        cursor = entry.cursor
        _check_text(entry.sink)
        if not 0 <= cursor.seq <= change.last:
            raise ValueError(f"{entry.sink} at row {cursor.seq} of a journal of {change.last}")
        if not 0 <= cursor.position <= INTEGER_MAX:
            raise ValueError(f"{entry.sink} at byte {cursor.position}")
        change.cursors[entry.sink] = cursor

    def _finished(self, change: Change, entry: Finished) -> None:
        if not (self.segments_ended or change.segments_ended):
            raise ValueError("a scan cannot be finished while segments may come")
        change.finished = True

    # ── what they share ─────────────────────────────────────────────────────────────────────

    def _append(self, change: Change, row: Row) -> None:
        if not 0 <= row.ms <= INTEGER_MAX:
            raise ValueError(f"no time: {row.ms} ms")
        change.rows.append(row)
        change.last += 1

    def _sums(self, change: Change, entry: Hits | SliceDone) -> Sums:
        kept = (entry.pool, entry.discovery)
        sums = change.sums.get(kept)
        if sums is None:
            sums = change.sums[kept] = self.sums.get(kept, Sums()).copy()
        return sums

    def _check_place(self, change: Change, pool: int, segment: int) -> None:
        if self.finished or change.finished:
            raise ValueError("the scan is finished")
        if not 0 <= pool <= POOL_MAX:
            raise ValueError(f"no number of a pool: {pool}")
        if segment not in self.segments and segment not in change.segments:
            raise ValueError(f"segment {segment} is not known")

    def _check_node(self, change: Change, node: int) -> None:
        if node not in self.nodes and node not in change.nodes:
            raise ValueError(f"node {node} is not known")


def _is_count(value: int) -> bool:
    return 0 <= value <= INTEGER_MAX


def _check_text(text: str) -> None:
    """Raises UnicodeEncodeError, a ValueError, for what no database takes as text."""
    text.encode()


def _words(entry: Hits) -> str:
    return f"{entry.pool}/{entry.segment}/{entry.start}"


def positions(packed: bytes) -> memoryview[int]:
    """The positions of packed hits; no copy. For little-endian machines, as `nray._core` is."""
    return memoryview(packed).cast("Q")[:: RECORD_BYTES // 8]


def not_done(packed: bytes, done: IntervalSet) -> bytes:
    """Those of the hits whose position is not done."""
    places = positions(packed)
    first, last = min(places), max(places)
    if done.covers(first, last + 1):
        return b""
    return b"".join(
        packed[i * RECORD_BYTES : (i + 1) * RECORD_BYTES]
        for i, position in enumerate(places)
        if position not in done
    )
