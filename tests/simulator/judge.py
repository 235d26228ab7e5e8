"""The laws of a scan, and whether they were kept. Knows the truth; believes nobody.

It keeps its own account of all that it checks, from the entries of commits and the bytes of the
output, and uses nothing of what it judges but the formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from nray.ledger.entries import (
    Entry,
    Hits,
    NodeSeen,
    Registration,
    SegmentAdded,
    SegmentsEnded,
    SliceDone,
)
from nray.ledger.ledger import Ledger
from nray.server.scheduler import LEASE_BITS, Grant, Scheduler
from nray.targets.findings import SPARED
from nray.targets.segment import Segment
from nray.wire.messages import Report

from .scenario import Scenario
from .truth import KEY_BYTES, RECORD_BYTES

#: Reports that a node keeps at most (`nray.node.reports.UNACKNOWLEDGED_MAX`), and leases that it
#: holds for each of its processes: those a worker has asked for and those whose last answers it
#: waits for (here at most a few), one ahead, and all of these again for a worker that was lost.
KEPT_MAX: Final = 64
HELD_MAX_EACH: Final = 40
#: More than a run's journal ever has.
_ROWS_MOST: Final = 1_000_000

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

#: One event: node's id and name, timestamp, pool, and for a finding also target, address, port,
#: kind of scan and round trip (ms).
Line = tuple[Any, ...]


class _Account:
    """One pool's account of one segment."""

    def __init__(self, positions: int) -> None:
        self.done = bytearray(positions)
        self.seen: set[bytes] = set()


class Judge:
    """Judges one run.

    Args:
        fail: called with what was broken; only the first time counts.
    """

    def __init__(self, scenario: Scenario, fail: Callable[[str], None]) -> None:
        self._scenario = scenario
        self._truth = scenario.truth
        self.fail = fail
        self._accounts = {
            (pool, segment.id): _Account(segment.probes)
            for pool in range(scenario.pools)
            for segment in scenario.segments
        }
        self._left = sum(len(account.done) for account in self._accounts.values())
        #: By a discovery segment, the segments that follow it.
        self._after: dict[int, list[Segment]] = {
            segment.id: [] for segment in scenario.segments if segment.search
        }
        self._segments_ended = not self._after
        self._leases: dict[int, tuple[int, Grant]] = {}
        self._instances: Counter[str] = Counter()
        self._rows = 0
        #: Hosts told of, by pool, where one open port of each is told.
        self._told: dict[int, set[bytes]] = {pool: set() for pool in range(scenario.pools)}

    def _is_told(self, place: tuple[int, int], key: bytes) -> bool:
        """Whether a hit is in the journal, or what stands for it."""
        pool, segment = place
        if self._scenario.first_open and not self._truth.segments[segment].search:
            return key[8:] in self._told[pool]
        return key in self._accounts[place].seen

    @property
    def all_done(self) -> bool:
        """Whether the ledger holds the end of everything."""
        return not self._left and self._segments_ended

    # ── at every commit ─────────────────────────────────────────────────────────────────────

    def committed(self, entries: Sequence[Entry]) -> None:
        """These are in the ledger now."""
        for entry in entries:
            if isinstance(entry, Hits):
                self._rows += 1
                self._hits(entry)
            elif isinstance(entry, SliceDone):
                self._slice_done(entry)
            elif isinstance(entry, NodeSeen):
                self._instances[entry.instance] += 1
            elif isinstance(entry, Registration):
                self._rows += 1
            elif isinstance(entry, SegmentAdded):
                self._segment_added(Segment.unpack(entry.body))
            elif isinstance(entry, SegmentsEnded):
                self._end_of_segments()

    def _segment_added(self, segment: Segment) -> None:
        words = f"segment {segment.id} after {segment.after}"
        if self._segments_ended or (0, segment.id) in self._accounts:
            self.fail(f"{words}: there already, or after the end")
            return
        if segment.after not in self._after:
            self.fail(f"{words}, which is no discovery")
            return
        if not self._is_done(segment.after):
            self.fail(f"{words}, which is not done")
        parent = self._truth.segments[segment.after]
        found = self._truth.hosts_found(parent.id)
        wanted = found if not segment.search else _hosts(parent) - found
        stage = parent.then[0] if segment.search else parent.then[-1]
        names = {parent.names.index(name): name for name in segment.names}
        hosts = {each for each in _hosts(segment) if each[0]} | {(0, number) for number in names}
        if hosts != wanted or segment.ports != stage.ports:
            self.fail(f"{words} has hosts {hosts}, not {wanted}; ports {segment.ports}")
        if any(bool(each.search) == bool(segment.search) for each in self._after[parent.id]):
            self.fail(f"{words} follows it a second time")
        self._after[parent.id].append(segment)
        if segment.search:
            self._after[segment.id] = []
        self._truth.learn(segment)
        for pool in range(self._scenario.pools):
            self._accounts[pool, segment.id] = _Account(segment.probes)
            self._left += segment.probes

    def _is_done(self, number: int) -> bool:
        return all(all(self._accounts[p, number].done) for p in range(self._scenario.pools))

    def _end_of_segments(self) -> None:
        self._segments_ended = True
        for number, after in self._after.items():
            if not self._is_done(number):
                self.fail(f"the last segments, and discovery {number} is not done")
            parent = self._truth.segments[number]
            found = self._truth.hosts_found(number)
            expected = bool(found) + (len(parent.then) > 1 and found < _hosts(parent))
            if len(after) != expected:
                self.fail(f"{len(after)} segments follow discovery {number}, not {expected}")

    def _hits(self, entry: Hits) -> None:
        place = (entry.pool, entry.segment)
        account = self._accounts[place]
        truth = self._truth.hits[place]
        if entry.discovery != bool(self._truth.segments[entry.segment].search):
            self.fail(f"hits of {place} are entered as of discovery: {entry.discovery}")
        for at in range(0, len(entry.packed), RECORD_BYTES):
            key = entry.packed[at : at + KEY_BYTES]
            position = int.from_bytes(key[:8], "little")
            if key in account.seen:
                self.fail(f"hit at {place} {position} is in the journal twice")
            if key not in truth.get(position, ()):
                self.fail(f"hit at {place} {position} is in the journal and not true")
            if account.done[position]:
                self.fail(f"hit at {place} {position} was written after its slice's end")
            if self._scenario.first_open and not entry.discovery:
                if key[8:] in self._told[entry.pool]:
                    self.fail(f"hit at {place} {position} is of a host that was told of")
                self._told[entry.pool].add(key[8:])
            account.seen.add(key)

    def _slice_done(self, entry: SliceDone) -> None:
        place = (entry.pool, entry.segment)
        account = self._accounts[place]
        start, end = entry.start, entry.start + entry.count
        words = f"slice {place} {entry.start}+{entry.count}"
        if end > len(account.done):
            self.fail(f"{words} ends beyond its segment")
        if any(account.done[start:end]):
            self.fail(f"{words} is done twice, at least in part")
        account.done[start:end] = b"\1" * entry.count
        self._left -= entry.count
        keys = self._truth.within(place, start, entry.count)
        missing = [key for key in keys if not self._is_told(place, key)]
        if missing:
            self.fail(f"{words} is done, and {len(missing)} of its hits are not in the journal")
        spared = entry.counts[6] if self._scenario.first_open else 0
        if entry.counts[0] + spared != len(keys):
            self.fail(f"{words} counts {entry.counts[0]} open, not {len(keys)}")

    # ── at every lease ──────────────────────────────────────────────────────────────────────

    def granted(self, scheduler: Scheduler, pool: int, grants: Sequence[Grant]) -> None:
        """These leases were given."""
        for grant in grants:
            words = f"lease {grant.lease & 0xFFFF} of generation {grant.lease >> LEASE_BITS}"
            if grant.lease in self._leases:
                self.fail(f"{words} was given twice")
            self._leases[grant.lease] = (pool, grant)
            done = self._accounts[pool, grant.segment].done
            if any(done[grant.start : grant.start + grant.count]):
                self.fail(f"{words} is of what is done: {grant}")
        if grants:
            self._check_cover(scheduler)

    _generation = 0

    def generation(self, number: int) -> None:
        """A server process goes on with the ledger under this number."""
        if number <= self._generation:
            self.fail(f"generation {number} after {self._generation}")
        self._generation = number

    def _check_cover(self, scheduler: Scheduler) -> None:
        """Every position is in exactly one of not yet leased, open, done."""
        for pool in scheduler.pools:
            for number, progress in pool.segments.items():
                parts = [*progress.gaps, *progress.done]
                works = {
                    id(work): work
                    for at, work, _ in scheduler._by_lease.values()
                    if at is pool and work.segment == number
                }
                parts += [(work.start, work.start + work.count) for work in works.values()]
                parts.sort()
                at = 0
                for start, end in parts:
                    if start != at:
                        self.fail(f"pool {pool.number}, segment {number}: parts {parts}")
                        return
                    at = end
                if at != progress.total:
                    self.fail(f"pool {pool.number}, segment {number}: parts {parts}")

    # ── at the nodes ────────────────────────────────────────────────────────────────────────

    def acknowledged(self, report: Report, by_generation: int) -> None:
        """A node has heard that the server has this report, and forgets it."""
        if report.lease >> LEASE_BITS != by_generation or report.lease not in self._leases:
            return  # a lease of an earlier process: its slice was begun again, with all hits
        pool, grant = self._leases[report.lease]
        account = self._accounts[pool, grant.segment]
        done = all(account.done[grant.start : grant.start + grant.count])
        if done:
            return
        words = f"report {report.report} of {grant.start}+{grant.count}"
        if report.done:
            self.fail(f"{words} was acknowledged, and its slice is not done in the ledger")
        for at in range(0, len(report.hits), RECORD_BYTES):
            if not self._is_told((pool, grant.segment), report.hits[at : at + KEY_BYTES]):
                self.fail(f"{words} was acknowledged, and its hits are not in the ledger")
                return

    def stopped(self, name: str, done: bool, interrupted: bool) -> None:
        """A node was told that the scan is over."""
        if done and not self.all_done:
            self.fail(f"{name} was told that all is done; {self._left} positions are not")
        if not done and not interrupted:
            self.fail(f"{name} was sent away, and nobody had interrupted the scan")

    def holds(self, name: str, leases: int, reports: int, processes: int) -> None:
        """What a node has in hand."""
        if reports > KEPT_MAX:
            self.fail(f"{name} keeps {reports} reports")
        if leases > HELD_MAX_EACH * processes:
            self.fail(f"{name} holds {leases} leases")

    # ── at the end ──────────────────────────────────────────────────────────────────────────

    def written(self, ledger: Ledger, output: bytes, terminal: Sequence[Sequence[object]]) -> None:
        """A server has ended in order: what the ledger holds is with every output.

        Args:
            output: the json-file.
            terminal: the events of an output that keeps nothing, for each server process.
        """
        expected = self._lines(ledger)
        told = _read(output)
        if told != expected:
            self.fail(_difference(output, told, expected))
            return
        self._judge_terminal(expected, terminal)
        if self.all_done:
            self._judge_hits(told)

    def _lines(self, ledger: Ledger) -> list[Line]:
        """What an output must hold, line by line, made from the journal by other code."""
        rows = ledger.read(0, _ROWS_MOST)
        if [seq for seq, _ in rows] != list(range(1, self._rows + 1)):
            self.fail(f"the journal has rows {[seq for seq, _ in rows]}, not 1 to {self._rows}")
        nodes = {node.node: node for node in ledger.nodes()}
        lines: list[Line] = []
        for _, row in rows:
            node = nodes[row.node]
            who = (node.node_id, node.name, _timestamp(row.ms))
            if isinstance(row, Registration):
                lines.append((*who, node.pool))
                continue
            if self._truth.segments[row.segment].search:
                continue
            for at in range(0, len(row.packed), RECORD_BYTES):
                key = row.packed[at : at + KEY_BYTES]
                rtt_ms = int.from_bytes(row.packed[at + KEY_BYTES : at + KEY_BYTES + 4], "little")
                where = self._truth.words(row.segment, key)
                lines.append((*who, row.pool, *where, rtt_ms / 1000))
        return lines

    def _judge_terminal(self, expected: list[Line], terminal: Sequence[Sequence[object]]) -> None:
        """Each event at least once, and in one process's life at most once."""
        shown = [_read(b"".join(_encode(event) + b"\n" for event in each)) for each in terminal]
        if terminal and (lost := set(expected).difference(*shown)):
            self.fail(f"missing at the terminal: {sorted(lost, key=str)}")
        for each in shown:
            if len(set(each)) < len(each):
                self.fail("one server process has told the terminal an event twice")

    def _judge_hits(self, told: list[Line]) -> None:
        """The output against the truth, with nothing in between."""
        found = Counter(line[3:8] for line in told if len(line) > 4)
        twice = [where for where, count in found.items() if count > 1]
        if twice:
            self.fail(f"the output tells twice of {twice}")
        true = {
            (pool, *self._truth.words(segment, key))
            for (pool, segment), hits in self._truth.hits.items()
            if not self._truth.segments[segment].search
            for keys in hits.values()
            for key in keys
        }
        if self._scenario.first_open:
            hosts = Counter((pool, address) for pool, _, address, *_ in found)
            if more := [host for host, count in hosts.items() if count > 1]:
                self.fail(f"the output tells more than once of {more}")
            if missing := {(pool, address) for pool, _, address, *_ in true} - set(hosts):
                self.fail(f"hosts are missing: {missing}")
            true &= set(found)
        if set(found) != true:
            self.fail(f"missing: {true - set(found)}; too much: {set(found) - true}")
        nodes = [line[0] for line in told if len(line) == 4]
        if len(nodes) != len(set(nodes)) or len(nodes) != len(self._instances):
            self.fail(f"{len(self._instances)} nodes have come, the output tells of {nodes}")

    def ended(self, ledger: Ledger, exit_status: int) -> None:
        """The scan is over."""
        if not self.all_done:
            self.fail(f"the scan has ended, and {self._left} positions are not done")
        if exit_status:
            self.fail(f"exit status {exit_status} of a scan that covered everything")
        for (pool, segment), account in self._accounts.items():
            place = (pool, segment)
            if list(ledger.done(*place)) != [(0, len(account.done))]:
                self.fail(f"the ledger has done at {place}: {list(ledger.done(*place))}")
            if any(True for _ in ledger.open_hits(*place)):
                self.fail(f"the ledger has open hits at {place} in the end")
        for pool in range(self._scenario.pools):
            for discovery in (False, True):
                self._judge_sums(ledger, pool, discovery)
        twice = [instance for instance, count in self._instances.items() if count > 1]
        if twice:
            self.fail(f"nodes were entered twice: {twice}")

    def _judge_sums(self, ledger: Ledger, pool: int, discovery: bool) -> None:
        of = [each for each in self._truth.segments.values() if bool(each.search) == discovery]
        numbers = {segment.id for segment in of}
        hits = sum(
            len(keys)
            for (at, number), found in self._truth.hits.items()
            if at == pool and number in numbers
            for keys in found.values()
        )
        probes = sum(segment.probes for segment in of)
        tally, told = ledger.tally(pool, discovery), ledger.hits(pool, discovery)
        errors = dict(ledger.errors(pool, discovery))
        if self._scenario.first_open and not discovery:
            if told != len(self._told[pool]) or tally[0] + errors.pop(SPARED, 0) != hits:
                self.fail(f"pool {pool}: {told} hits, {tally} counted, {hits} true")
        elif told != hits or tally[0] != hits:
            self.fail(f"pool {pool}: {told} hits, {tally[0]} counted, {hits} true")
        if sum(tally[:7]) - tally[7] != probes:
            self.fail(f"pool {pool}: {tally} do not add up to {probes}")
        if errors:
            self.fail(f"pool {pool}: errors {errors}")


def _hosts(segment: Segment) -> set[tuple[int, int]]:
    """Every host: (family, address or number of the name)."""
    return {
        *((4, each) for first, last in segment.ranges4 for each in range(first, last + 1)),
        *((6, each) for first, last in segment.ranges6 for each in range(first, last + 1)),
        *((0, number) for number in range(len(segment.names))),
    }


def _timestamp(ms: int) -> str:
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def _read(output: bytes) -> list[Line]:
    """The lines of an output; one that is none is kept as it is."""
    lines: list[Line] = []
    for raw in output.splitlines(keepends=True):
        try:
            event = _decode(raw)
            if not raw.endswith(b"\n"):
                raise ValueError("torn")
            who = (event["nodeID"], event["nodeName"], event["timestamp"], event["pool"])
            if "environment" in event:
                lines.append(who)
                continue
            result = event["result"]
            scan = result["portscan"]
            where = (result["target"], result["address"], result["port"], scan["scantype"])
            lines.append((*who, *where, scan["rtt"]))
        except (ValueError, KeyError, TypeError):
            lines.append((raw,))
    return lines


def _difference(output: bytes, told: list[Line], expected: list[Line]) -> str:
    """Where the output is not as it should be, in words."""
    for number, (is_, should) in enumerate(zip(told, expected, strict=False), start=1):
        if is_ != should:
            return f"line {number} of the output is {is_}, not {should}"
    return f"the output has {len(told)} lines, not {len(expected)}"
