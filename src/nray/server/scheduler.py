"""Who scans what: pools, slices, leases. No clock, no I/O, no randomness of its own.

A *slice* is a run of positions of one segment in one pool. It is open from the first time that
it is leased until a report ends it. A *lease* gives an open slice to a node under a number that is
never given twice. When a node is lost its slices go to others under new numbers; the old
numbers stay good for as long as the slice is open, so a late report is taken or dropped, and is
never an error. When nothing is left to lease, slices that have been open for long are leased a
second time, and the first end that is reported wins.

Each slice tells of the hosts that answer on every port (`core/tarpits.pxi`); a pool hands each
such host on once. Where hosts are probed up to their first open port, a pool hands one open port
on of each.

Hits are taken as they come, before their slice ends. A slice that is run again finds many of
them again, so each open slice remembers what was reported, and hands on only what is new.

Laws, held by the tests: every position of every segment is in exactly one of not yet leased,
open, done, for each pool; a hit is handed on once for each pool.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from nray.ledger.intervals import IntervalSet
from nray.targets.findings import SPARED, TARPIT_NUMBER, WITHHELD, HostSet

#: The first slices of a node, before it is known how fast it is.
SLICE_FIRST = 512
#: Smaller slices than this cost more in messages than they save in waiting at the end.
SLICE_LEAST = 64
#: A slice holds at most so much work of the worker that gets it: what is lost with a node, and
#: what has to be waited for at the end, is bounded by it.
SLICE_SECONDS = 15.0
#: Names are resolved slice by slice, and a slice's positions are then walked one by one.
SLICE_NAMES_MOST = 4096
#: Of what is left, a node gets at most a quarter of its share at once.
SHARE = 4
#: What a node says of its processes is believed so far: a false figure would cut everybody's
#: slices to the least. As many as ``nray node --processes`` takes.
PROCESSES_MOST = 1024
#: A slice is leased a second time when it has been open for so many times what the node that
#: asks would need for it, and at least so many seconds.
STRAGGLER_FACTOR = 2.0
STRAGGLER_S = 2.0
#: Lease numbers of one server process: another one's begin 2^40 higher (fencing over restarts).
LEASE_BITS = 40

RECORD_BYTES = 32
#: Position and address: what makes a hit the same hit.
_KEY_BYTES = 24
_REASON_AT = 30
#: The place of this count among those of a slice.
_SKIPPED = 6
#: Hosts on which every port answers that a pool remembers to have told of: some 100 MB. Of more
#: than that, each slice tells.
TARPITS_MAX = 1_000_000


class FaultyReport(Exception):
    """A report that cannot be true: its node is not to be trusted with this scan."""


class SegmentLike(Protocol):
    """What the scheduler needs to know of a segment."""

    @property
    def id(self) -> int: ...
    @property
    def probes(self) -> int: ...
    @property
    def names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as it is given out."""

    lease: int
    segment: int
    start: int
    count: int


@dataclass(slots=True)
class Tally:
    """How the probes of ended slices ended; `addresses` are those of names beyond the first,
    `refused` those that policies of nodes kept from being sent."""

    open: int = 0
    closed: int = 0
    filtered: int = 0
    open_filtered: int = 0
    error: int = 0
    excluded: int = 0
    skipped: int = 0
    addresses: int = 0
    refused: int = 0

    def add(self, counts: tuple[int, ...]) -> None:
        """Add nine counts in the order of the fields."""
        for name, count in zip(self.__slots__, counts, strict=True):
            setattr(self, name, getattr(self, name) + count)


@dataclass(slots=True, eq=False)
class _Slice:
    segment: int
    start: int
    count: int
    leases: list[int] = field(default_factory=list)
    #: The nodes that have it now, each with its lease and since when.
    holders: dict[Node, tuple[int, float]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def new_hits(self, hits: bytes) -> bytes:
        """Those of the hits that were not reported before; remembers them.

        Not only a second lease brings hits again: a node whose worker died begins a slice
        again under the lease that it has.
        """
        keys = _keys(hits)
        fresh = set(keys) - self.seen
        self.seen |= fresh
        if len(fresh) == len(keys):
            return hits
        parts = []
        for i, key in enumerate(keys):
            if key in fresh:
                fresh.discard(key)
                parts.append(hits[i * RECORD_BYTES : (i + 1) * RECORD_BYTES])
        return b"".join(parts)


def _keys(hits: bytes) -> list[bytes]:
    return [hits[i : i + _KEY_BYTES] for i in range(0, len(hits), RECORD_BYTES)]


@dataclass(slots=True, eq=False)
class Node:
    """A node as the scheduler sees it."""

    node_id: str
    pool: int
    processes: int
    wanted: int = 0
    holds: set[_Slice] = field(default_factory=set)
    #: Probes a second of one lease, smoothed; 0 until the first lease has ended.
    rate: float = 0.0
    #: The largest slice that it has ended.
    largest: int = 0
    #: Whether that was discovery, which says little of how fast it is at ports.
    at_discovery: bool = False

    def learn(self, count: int, took_s: float, discovery: bool) -> None:
        """It has ended a slice of so many probes, so many seconds after it got it."""
        if discovery != self.at_discovery:
            self.at_discovery, self.rate, self.largest = discovery, 0.0, 0
        rate = count / max(took_s, 1e-6)
        self.rate = rate if not self.rate else (self.rate + rate) / 2
        self.largest = max(self.largest, count)


class Taken(NamedTuple):
    """What a report has brought.

    Attributes:
        fresh: those of its hits that are new, packed.
        start, size: of its slice.
        ended: whether it has ended the slice.
        discovery: whether it is of a discovery segment.
    """

    pool: Pool
    segment: int
    fresh: bytes
    start: int
    size: int
    ended: bool
    discovery: bool = False


@dataclass(slots=True)
class _Progress:
    """One pool's account of one segment."""

    total: int
    names: bool
    discovery: bool = False
    #: ``[start, end)`` pairs that were never leased, ascending.
    gaps: deque[tuple[int, int]] = field(default_factory=deque)
    #: Hits that an earlier server process took of slices that it saw no end of: their keys,
    #: sorted, which is by position.
    reported: list[tuple[int, bytes]] = field(default_factory=list)
    returned: deque[_Slice] = field(default_factory=deque)
    done: IntervalSet = field(default_factory=IntervalSet)

    @property
    def left(self) -> int:
        """Positions that are not leased now and not done."""
        return self.never_leased + sum(each.count for each in self.returned)

    @property
    def never_leased(self) -> int:
        """Positions that nobody has had yet."""
        return sum(end - start for start, end in self.gaps)

    def cut(self, count: int) -> tuple[int, int]:
        """Start and count of the next slice, of at most ``count`` positions."""
        start, end = self.gaps.popleft()
        if end - start > count:
            self.gaps.appendleft((start + count, end))
            return start, count
        return start, end - start

    def reported_in(self, start: int, count: int) -> set[bytes]:
        """Keys of hits within a slice that were reported before this process began."""
        if not self.reported:
            return set()
        first = bisect_left(self.reported, (start, b""))
        last = bisect_left(self.reported, (start + count, b""))
        return {key for _, key in self.reported[first:last]}


@dataclass(slots=True)
class Sums:
    """How probes of ended slices ended, why some could not be sent, and hits."""

    tally: Tally = field(default_factory=Tally)
    errors: dict[str, int] = field(default_factory=dict)
    hits: int = 0


@dataclass(slots=True)
class Pool:
    """One vantage point: its own account of every segment, its sums, those of discovery apart."""

    number: int
    segments: dict[int, _Progress] = field(default_factory=dict)
    nodes: set[Node] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    errors: dict[str, int] = field(default_factory=dict)
    hits: int = 0
    discovery: Sums = field(default_factory=Sums)

    def sums(self, discovery: bool) -> Pool | Sums:
        """Those of discovery, or those of the scan itself."""
        return self.discovery if discovery else self

    def standing(self, discovery: bool) -> tuple[int, int]:
        """Probes done, of how many known so far; of discovery, or of the scan itself."""
        of = [each for each in self.segments.values() if each.discovery == discovery]
        return sum(each.done.total for each in of), sum(each.total for each in of)

    #: Hosts on which every port answers, by address and family.
    tarpits: set[bytes] = field(default_factory=set)

    @property
    def withheld(self) -> int:
        """Open ports of such hosts that were counted and not told."""
        return self.errors.get(WITHHELD, 0)

    #: Hosts of which an open port is known, and how many of them are on the disk with it. None
    #: where each of a host's open ports is told.
    shown: HostSet | None = None
    safe: int = 0

    @property
    def spared(self) -> int:
        """Probes that were left out because an open port of their host was known."""
        return self.errors.get(SPARED, 0)

    def told_once(self, hits: bytes) -> bytes:
        """The hits without those that tell once more of what is told once of each host."""
        hits = self._tarpits_told_once(hits)
        return hits if self.shown is None else self.shown.fresh(hits)

    def _tarpits_told_once(self, hits: bytes) -> bytes:
        if TARPIT_NUMBER not in hits[_REASON_AT::RECORD_BYTES]:
            return hits
        parts = []
        for i in range(0, len(hits), RECORD_BYTES):
            record = hits[i : i + RECORD_BYTES]
            if record[_REASON_AT] == TARPIT_NUMBER:
                host = record[8:_KEY_BYTES] + record[-1:]
                if host in self.tarpits:
                    continue
                if len(self.tarpits) < TARPITS_MAX:
                    self.tarpits.add(host)
            parts.append(record)
        return b"".join(parts)

    @property
    def total(self) -> int:
        return sum(each.total for each in self.segments.values())

    @property
    def done(self) -> int:
        return sum(each.done.total for each in self.segments.values())

    @property
    def left(self) -> int:
        return sum(each.left for each in self.segments.values())


class Scheduler:
    """Leases the slices of a scan to nodes, pool by pool.

    Args:
        pools: how many pools; each scans everything.
        slice_most: a cap on slices, 0 for none (the ``max…PerBatch`` keys).
        ratelimit: probes that a node may start each second, 0 for no limit; keeps the first
            slices of a slow scan short.
        slice_first: size of the first slices of a node.
        generation: of this server process on this scan; leases of different ones differ.
        first_open: whether hosts are probed up to their first open port.
    """

    def __init__(
        self,
        *,
        pools: int = 1,
        slice_most: int = 0,
        ratelimit: float = 0.0,
        slice_first: int = SLICE_FIRST,
        generation: int = 0,
        first_open: bool = False,
    ) -> None:
        self.pools = [
            Pool(number, shown=HostSet() if first_open else None) for number in range(pools)
        ]
        self._slice_most = slice_most
        self._ratelimit = ratelimit
        self._slice_first = slice_first
        self._next_lease = (generation << LEASE_BITS) + 1
        # The name of whom it was given to stands with it, for a node that comes back is a new
        # `Node` of the old name.
        self._by_lease: dict[int, tuple[Pool, _Slice, str]] = {}
        self._open_segments = True

    # ── segments ────────────────────────────────────────────────────────────────────────────

    def add_segment(self, segment: SegmentLike, *, discovery: bool = False) -> None:
        """Append a segment to every pool's work."""
        for pool in self.pools:
            pool.segments[segment.id] = _Progress(
                segment.probes, bool(segment.names), discovery, deque([(0, segment.probes)])
            )

    def whole(self, segment: int) -> bool:
        """Whether a segment is done in every pool."""
        accounts = [pool.segments[segment] for pool in self.pools]
        return all(each.done.total == each.total for each in accounts)

    def restore(
        self, pool: int, segment: int, done: IntervalSet, reported: Iterable[bytes] = ()
    ) -> None:
        """Go on where an earlier process stood; before anything is leased.

        Args:
            done: what was ended.
            reported: packed hits of what was not ended, in pieces.
        """
        progress = self.pools[pool].segments[segment]
        progress.done = done
        progress.gaps = deque(done.gaps(progress.total))
        progress.reported = sorted(
            (int.from_bytes(key[:8], "little"), key) for piece in reported for key in _keys(piece)
        )

    def restore_sums(
        self,
        pool: int,
        tally: tuple[int, ...],
        errors: dict[str, int],
        hits: int,
        *,
        discovery: bool = False,
    ) -> None:
        """The sums of an earlier process."""
        sums = self.pools[pool].sums(discovery)
        sums.tally.add(tally)
        sums.errors.update(errors)
        sums.hits = hits

    def restore_told(self, pool: int, hits: bytes) -> None:
        """Hits that an earlier process wrote down: what is told once of a host was told."""
        of = self.pools[pool]
        of.told_once(hits)
        of.safe = len(of.shown) if of.shown is not None else 0

    def end_segments(self) -> None:
        """No more segments will come: the scan is over when those there are done."""
        self._open_segments = False

    @property
    def finished(self) -> bool:
        """Whether all is done, in every pool."""
        return not self._open_segments and all(pool.done == pool.total for pool in self.pools)

    # ── nodes ───────────────────────────────────────────────────────────────────────────────

    def choose_pool(self, preferred: int = -1, coming: Sequence[int] = ()) -> int:
        """The preferred pool if there is such, else the first of those with fewest nodes.

        Args:
            coming: pools of nodes that are not there yet, one each.
        """
        if 0 <= preferred < len(self.pools):
            return preferred

        def nodes(pool: Pool) -> tuple[int, int]:
            return len(pool.nodes) + coming.count(pool.number), pool.number

        return min(self.pools, key=nodes).number

    def join(self, node_id: str, pool: int, processes: int) -> Node:
        """A node comes in."""
        node = Node(node_id, pool, min(max(1, processes), PROCESSES_MOST))
        self.pools[pool].nodes.add(node)
        return node

    def leave(self, node: Node) -> int:
        """A node is gone: its slices go to others. Returns how many.

        Reports under its leases are still taken as long as the slice is open.
        """
        pool = self.pools[node.pool]
        pool.nodes.discard(node)
        count = len(node.holds)
        for each in sorted(node.holds, key=lambda each: (each.segment, each.start)):
            self._give_back(each, node)
        node.holds.clear()
        node.wanted = 0
        return count

    def keep_only(self, node: Node, leases: set[int]) -> int:
        """A node has come back and holds only these leases: the rest was lost on the way.

        Returns how many slices go to others.
        """
        lost = [each for each in node.holds if each.holders[node][0] not in leases]
        for each in sorted(lost, key=lambda each: (each.segment, each.start)):
            node.holds.discard(each)
            self._give_back(each, node)
        return len(lost)

    def _give_back(self, work: _Slice, node: Node) -> None:
        del work.holders[node]
        if not work.holders:
            self.pools[node.pool].segments[work.segment].returned.append(work)

    # ── leases ──────────────────────────────────────────────────────────────────────────────

    def want(self, node: Node, leases: int) -> None:
        """The node is ready for so many slices more."""
        node.wanted += leases

    def grant(self, node: Node, now: float) -> list[Grant]:
        """As many leases as the node wants and there are; seconds of any steady clock."""
        granted = []
        while node.wanted > 0:
            work = self._next_slice(node) or self._straggler(node, now)
            if work is None:
                break
            node.wanted -= 1
            lease = self._next_lease
            self._next_lease += 1
            work.leases.append(lease)
            work.holders[node] = (lease, now)
            node.holds.add(work)
            self._by_lease[lease] = (self.pools[node.pool], work, node.node_id)
            granted.append(Grant(lease, work.segment, work.start, work.count))
        return granted

    def _next_slice(self, node: Node) -> _Slice | None:
        pool = self.pools[node.pool]
        for number, progress in pool.segments.items():
            if progress.returned:
                return progress.returned.popleft()
            if progress.gaps:
                start, count = progress.cut(self._size(node, pool, progress))
                return _Slice(number, start, count, seen=progress.reported_in(start, count))
        return None

    def _straggler(self, node: Node, now: float) -> _Slice | None:
        """The slice that another node has had for longest, if it is slow at it."""
        best: _Slice | None = None
        best_age = 0.0
        for other in self.pools[node.pool].nodes:
            for work in other.holds:
                if node in work.holders or len(work.holders) > 1:
                    continue
                age = now - work.holders[other][1]
                expected = work.count / node.rate if node.rate else SLICE_SECONDS
                if age >= max(STRAGGLER_S, STRAGGLER_FACTOR * expected) and age > best_age:
                    best, best_age = work, age
        return best

    def _size(self, node: Node, pool: Pool, progress: _Progress) -> int:
        """Guided self-scheduling (Polychronopoulos & Kuck 1987), started small and capped."""
        left = progress.never_leased
        processes = sum(each.processes for each in pool.nodes)
        share = left // max(SHARE * len(pool.nodes), 2 * processes)
        rate = node.rate if node.at_discovery == progress.discovery else 0.0
        work = min(2 * node.largest, int(rate * SLICE_SECONDS)) if rate > 0 else self._slice_first
        if self._ratelimit:
            # With a fixed rate the time of a slice is known before it was measured.
            each = self._ratelimit / node.processes
            work = min(work, max(1, int(each * (SLICE_SECONDS if rate else 1.0))))
            least = min(SLICE_LEAST, max(1, int(each)))
        else:
            least = SLICE_LEAST
        size = max(least, min(share, work))
        if progress.names:
            size = min(size, SLICE_NAMES_MOST)
        if self._slice_most:
            size = min(size, self._slice_most)
        return min(size, left)

    # ── reports ─────────────────────────────────────────────────────────────────────────────

    def report(
        self,
        lease: int,
        hits: bytes,
        *,
        done: bool = False,
        counts: tuple[int, ...] = (),
        errors: dict[str, int] | None = None,
        now: float = 0.0,
    ) -> Taken | None:
        """Take a report.

        Args:
            counts: nine counts in the order of `Tally`, with ``done``.

        Returns:
            what is new; None if the slice is not open any more (or never was): then the report
            is to be forgotten.

        Raises:
            FaultyReport: a hit lies outside of its slice, or the counts do not add up.
        """
        found = self._by_lease.get(lease)
        if found is None:
            return None
        pool, work, _ = found
        _check_hits(work, hits)
        progress = pool.segments[work.segment]
        if done:
            _check_counts(work, counts, names=progress.names)
            if not 0 <= (errors or {}).get(WITHHELD, 0) <= counts[0]:
                raise FaultyReport("more open ports are withheld than there are")
            if not 0 <= (errors or {}).get(SPARED, 0) <= counts[_SKIPPED]:
                raise FaultyReport("more probes are spared than are skipped")
        fresh = work.new_hits(hits)
        if not progress.discovery:
            fresh = pool.told_once(fresh)
        pool.sums(progress.discovery).hits += len(fresh) // RECORD_BYTES
        if done:
            for node, (held, since) in work.holders.items():
                if held == lease:  # not for a late report: who has the slice now did not do it
                    node.learn(work.count, now - since, progress.discovery)
            self._close(pool, work, counts, errors or {})
        return Taken(pool, work.segment, fresh, work.start, work.count, done, progress.discovery)

    def _close(
        self, pool: Pool, work: _Slice, counts: tuple[int, ...], errors: dict[str, int]
    ) -> None:
        for lease in work.leases:
            del self._by_lease[lease]
        progress = pool.segments[work.segment]
        if not work.holders:
            progress.returned.remove(work)
        for node in work.holders:
            node.holds.discard(work)
        progress.done.add(work.start, work.start + work.count)
        sums = pool.sums(progress.discovery)
        sums.tally.add(counts)
        for reason, count in errors.items():
            sums.errors[reason] = sums.errors.get(reason, 0) + count

    def place(self, lease: int, node: Node) -> int | None:
        """The segment of an open slice's lease; None if it is not open.

        Raises:
            FaultyReport: the lease was never this node's.
        """
        found = self._by_lease.get(lease)
        if found is None:
            if not 0 < lease < self._next_lease:
                raise FaultyReport(f"lease {lease} was never given")
            return None
        if found[2] != node.node_id:
            raise FaultyReport(f"lease {lease} was never given to this node")
        return found[1].segment


def _check_hits(work: _Slice, hits: bytes) -> None:
    if len(hits) % RECORD_BYTES:
        raise FaultyReport("hits are no whole records")
    if not hits:
        return
    # Little-endian, as is every machine that we build for.
    positions = memoryview(hits).cast("Q")[:: RECORD_BYTES // 8]
    for position in (min(positions), max(positions)):
        if not work.start <= position < work.start + work.count:
            raise FaultyReport(
                f"a hit at {position} is outside of the slice {work.start}+{work.count}"
            )


def _check_counts(work: _Slice, counts: tuple[int, ...], *, names: bool) -> None:
    if len(counts) != len(Tally.__slots__) or min(counts) < 0:
        raise FaultyReport("counts are nine numbers from 0")
    *states, addresses, refused = counts
    states.append(refused)
    if addresses and not names:
        raise FaultyReport(f"{addresses} further addresses where there are no names")
    if sum(states) != work.count + addresses:
        raise FaultyReport(f"{sum(states)} probes reported for a slice of {work.count}")
