"""Hits a second from packed reports to durable ledger and json-file, on one core (issue 12, 4).

.venv/bin/python bench/ingest.py [--hits 400000] [--sizes 1,16] [--profile] [--directory DIR]

What a server does with a report, the wire left out: the scheduler takes it (the lease is looked up,
every hit is held against its slice and against what was reported before), the clerk commits it
with others, a feeder reads it back from the ledger's journal, makes events of it, and the
json-file writes them. Each node's reports wait for room as they do in the server. Time ends when
all is committed and in the file, and both are synced.

Beside it stands the bare cost: the bytes that ledger and file ended up with, written to two
files in as many pieces as there were commits, each piece with its fsync. All of it happens in one
process on one core, threads included.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import struct
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from common import keep, spread, table
from nray.events.hub import SinkPort
from nray.events.json_file import JsonFileSink
from nray.events.model import Environment
from nray.ledger.entries import Entry, NodeSeen
from nray.ledger.sqlite import SqliteLedger
from nray.server.books import Books, entries_of, now_ms, open_books
from nray.server.scheduler import Grant, Node, Scheduler
from nray.targets.findings import check
from nray.targets.plan import plan
from nray.targets.segment import Segment

#: Hits of one report: a sparse network, and one where everything answers.
SIZES = (1, 16, 256, 4096)
NODES = 4
#: Reports of one slice; the last one ends it.
REPORTS_A_SLICE = 16
#: What a node sends without an acknowledgement (`nray.node.reports`).
UNACKNOWLEDGED = 64
ROUNDS = 3
SEED = 1
RECORD = struct.Struct("<Q16sIBBBB")
TIMEOUTS_MS = {"tcp": 2500, "udp": 2500}


@dataclass
class Figure:
    """One run; ``cpu_s`` is of this process. ``commits`` are the ledger's."""

    hits: int
    wall_s: float
    cpu_s: float
    commits: int
    ledger_bytes: int
    json_bytes: int

    @property
    def rate(self) -> float:
        return self.hits / self.wall_s


class Counted(SqliteLedger):
    """Counts its commits, and the bytes that it wrote: log, checkpoints left out."""

    commits = 0

    def commit(self, entries: list[Entry]) -> int:  # type: ignore[override]
        self.commits += 1
        return super().commit(entries)


def target_of(hits: int) -> tuple[Segment, str]:
    """A segment with at least so many probes, and its network. Nothing is ever sent there."""
    bits = max(4, (hits - 1).bit_length())
    network = f"10.0.0.0/{32 - bits}"
    (segment,) = plan([network], tcp=["443"], seed=SEED).segments
    return segment, network


def packed_space(segment: Segment) -> bytes:
    """A hit for every position of a segment of IPv4 addresses: all are open."""
    kept = _packed.get(segment)
    if kept is None:
        records = []
        for at, line in enumerate(segment.listing(0, segment.probes).splitlines()):
            address = bytes(map(int, line.partition(b" ")[0].split(b".")))
            records.append(RECORD.pack(at, address, 500 + at % 1000, 64, 1, 1, 4))
        kept = _packed[segment] = b"".join(records)
    return kept


_packed: dict[Segment, bytes] = {}


class Peer:
    """One node, and the server's task for it."""

    def __init__(
        self, number: int, node: Node, scheduler: Scheduler, books: Books, segment: Segment
    ) -> None:
        self.number = number
        self.node = node
        self.scheduler = scheduler
        self.books = books
        self.segment = segment
        self.sent = self.durable = 0
        self.news = trio.Event()

    def acknowledged(self) -> None:
        self.durable += 1
        self.news.set()

    async def report(self, work: list[Grant], space: bytes, size: int) -> None:
        """Report leases one after another, as all open, in pieces of ``size`` hits."""
        for grant in work:
            end = grant.start + grant.count
            for start in range(grant.start, end, size):
                while self.sent - self.durable >= UNACKNOWLEDGED:
                    self.news = trio.Event()
                    await self.news.wait()
                stop = min(start + size, end)
                await self.take(grant, space[32 * start : 32 * stop], stop == end)

    async def take(self, grant: Grant, packed: bytes, done: bool) -> None:
        """What the server does with a report."""
        await self.books.room()
        assert self.scheduler.place(grant.lease, self.node) == self.segment.id
        check(self.segment, packed)
        counts = (grant.count, 0, 0, 0, 0, 0, 0, 0) if done else ()
        taken = self.scheduler.report(
            grant.lease, packed, done=done, counts=counts, now=trio.current_time()
        )
        assert taken is not None
        self.sent += 1
        self.books.submit(entries_of(taken, counts, {}, self.number), self.acknowledged)


def leased(scheduler: Scheduler, peers: list[Peer]) -> list[list[Grant]]:
    """Lease the whole space to the peers in turn; who got what."""
    work: list[list[Grant]] = [[] for _ in peers]
    while scheduler.pools[0].left:
        for peer, own in zip(peers, work, strict=True):
            scheduler.want(peer.node, 1)
            own += scheduler.grant(peer.node, 0.0)
            peer.node.wanted = 0
    return work


def run(directory: Path, size: int, hits: int, profile: cProfile.Profile | None) -> Figure:
    """So many hits in reports of ``size``, through to both files."""
    segment, _ = target_of(hits)
    packed = packed_space(segment)
    scheduler = Scheduler(slice_most=size * REPORTS_A_SLICE, slice_first=size * REPORTS_A_SLICE)
    scheduler.add_segment(segment)
    scheduler.end_segments()
    path, output = directory / "bench.nray", directory / "bench.json"
    ledger = Counted.create(path, scan="bench", settings=b"", segments=[(segment.id, b"")])
    port = SinkPort(JsonFileSink(str(output), overwrite_existing=True), channelsize=10_000)

    async def main() -> tuple[float, float]:
        async with open_books(ledger, [port], {segment.id: segment}, TIMEOUTS_MS) as books:
            peers = []
            for number in range(1, NODES + 1):
                node = scheduler.join(f"node-{number}", 0, 1)
                books.submit([seen(number, node)])
                peers.append(Peer(number, node, scheduler, books, segment))
            work = leased(scheduler, peers)
            await books.settled()
            ledger.commits = 0
            began = time.perf_counter(), time.process_time()
            if profile is not None:
                profile.enable()
            async with trio.open_nursery() as nursery:
                for peer, own in zip(peers, work, strict=True):
                    nursery.start_soon(peer.report, own, packed, size)
            await books.written()
        return began

    wall, cpu = trio.run(main)
    # Leaving the block has synced the file.
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    if profile is not None:
        profile.disable()
    assert scheduler.finished
    ledger.close()
    lines = sum(1 for _ in output.open("rb"))
    assert lines == segment.probes, f"{lines} lines of {segment.probes} hits"
    return Figure(lines, wall_s, cpu_s, ledger.commits, path.stat().st_size, output.stat().st_size)


def seen(number: int, node: Node) -> NodeSeen:
    return NodeSeen(number, node.node_id, "bench", 0, None, "i", "m", Environment(), now_ms())


def bare(directory: Path, figure: Figure) -> float:
    """Seconds to write as many bytes to two files, in as many pieces, each with its fsync."""
    begun = time.perf_counter()
    fds = []
    pieces = []
    for name, size in (("ledger", figure.ledger_bytes), ("json", figure.json_bytes)):
        fds.append(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        pieces.append(os.urandom(max(1, size // figure.commits)))
    begun = time.perf_counter()
    for _ in range(figure.commits):
        for fd, piece in zip(fds, pieces, strict=True):
            os.write(fd, piece)
        os.fsync(fds[0])
    os.fsync(fds[1])
    seconds = time.perf_counter() - begun
    for fd in fds:
        os.close(fd)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hits", type=int, default=400_000, help="of each run, at most")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    flags = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    kept = {}
    for size in map(int, flags.sizes.split(",")):
        hits = min(flags.hits, size * 100_000)
        figures, shares = [], []
        for turn in range(flags.rounds + 1):
            with tempfile.TemporaryDirectory(prefix="nray-bench-", dir=flags.directory) as name:
                profile = cProfile.Profile() if flags.profile and turn == flags.rounds else None
                figure = run(Path(name), size, hits, profile)
                if turn:  # the first warms up
                    figures.append(figure)
                    shares.append(bare(Path(name), figure) / figure.wall_s)
                if profile is not None:
                    pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        kept[size] = [
            asdict(figure) | {"share": share} for figure, share in zip(figures, shares, strict=True)
        ]
        rows.append(
            [
                f"{size:,}",
                spread([each.rate for each in figures], ",.0f"),
                spread([each.hits / each.cpu_s for each in figures], ",.0f"),
                f"{figures[0].ledger_bytes / figures[0].hits:.0f} + "
                f"{figures[0].json_bytes / figures[0].hits:.0f}",
                spread([each.commits for each in figures], ",.0f"),
                spread(shares),
            ]
        )
    head = ["hits a report", "hits/s", "hits/s of CPU", "bytes a hit", "commits", "share of bare"]
    print(table(head, rows))
    if not flags.profile:
        print(f"\nevery run: {keep('ingest', kept)}", file=sys.stderr)


if __name__ == "__main__":
    main()
