"""Hits a second from packed reports to the durable ledger, on one core (issue 12, 4).

.venv/bin/python bench/ledger.py [--seconds 4] [--directory DIR]

The store alone: reports are there already, packed as they travel, and every 16th ends its slice.
A group of them is one commit, one fsync; a group holds what would have gathered meanwhile.
Beside it stands the bare cost: the same hits, 32 bytes each, written to a file in the same groups
with one fsync a group.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common import keep, spread, table
from nray.events.model import Environment
from nray.ledger.entries import Entry, Hits, NodeSeen, SliceDone
from nray.ledger.sqlite import SqliteLedger

#: Hits of one report: a sparse network, and one where everything answers.
SIZES = (1, 16, 256, 4096)
#: Hits of one commit at most, and reports: what the server gathers (`nray.server.books`).
GROUP_HITS = 65_536
GROUP_REPORTS = 2048
REPORTS_A_SLICE = 16
SLICE = 65_536
OPEN_SLICES = 32
ROUNDS = 5


@dataclass
class Figure:
    """One run. ``cpu_s`` is of this process, waiting for the disk left out."""

    hits: int
    bytes: int
    commits: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.hits / self.wall_s

    @property
    def rate_cpu(self) -> float:
        return self.hits / self.cpu_s


def groups(size: int) -> Iterator[list[Entry]]:
    """Commits of reports of ``size`` hits, of slices that end out of order. Without end."""
    draw = random.Random(size)
    reports = max(1, min(GROUP_REPORTS, GROUP_HITS // size))
    packed = b"".join(
        struct.pack("<Q16sIBBBB", n, os.urandom(16), 500, 64, 1, 1, 4) for n in range(size)
    )
    start = 0
    slices: list[list[int]] = []
    while True:
        group: list[Entry] = []
        for _ in range(reports):
            while len(slices) < OPEN_SLICES:
                slices.append([start, REPORTS_A_SLICE])
                start += SLICE
            chosen = draw.choice(slices)
            first = chosen[0].to_bytes(8, "little")
            group.append(Hits(1, 0, 0, chosen[0], 1_700_000_000_000, first + packed[8:]))
            chosen[1] -= 1
            if not chosen[1]:
                slices.remove(chosen)
                group.append(SliceDone(0, 0, chosen[0], SLICE, (0, SLICE, 0, 0, 0, 0, 0, 0)))
        yield group


def timed(size: int, seconds: float, write: object) -> Figure:
    """Write group after group; making them is not counted."""
    hits = size_bytes = 0
    wall = cpu = 0.0
    for commits, group in enumerate(groups(size), start=1):
        reports = [each.packed for each in group if isinstance(each, Hits)]
        began, used = time.perf_counter(), time.process_time()
        write(group, reports)  # type: ignore[operator]
        wall += time.perf_counter() - began
        cpu += time.process_time() - used
        hits += size * len(reports)
        size_bytes += sum(map(len, reports))
        if wall >= seconds:
            return Figure(hits, size_bytes, commits, wall, cpu)
    raise AssertionError


def ledger_run(directory: Path, size: int, seconds: float) -> Figure:
    path = directory / "bench.nray"
    path.unlink(missing_ok=True)
    ledger = SqliteLedger.create(path, scan="bench", settings=b"", segments=[(0, b"")])
    ledger.commit([NodeSeen(1, "n", "n", 0, None, "i", "m", Environment(), 0)])
    figure = timed(size, seconds, lambda group, _: ledger.commit(group))
    assert ledger.hits(0) == figure.hits
    ledger.close()
    path.unlink()
    return figure


def bare_run(directory: Path, size: int, seconds: float) -> Figure:
    path = directory / "bench.bare"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(_: object, reports: list[bytes]) -> None:
        os.write(fd, b"".join(reports))
        os.fsync(fd)

    figure = timed(size, seconds, write)
    os.close(fd)
    path.unlink()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    parser.add_argument("--directory", type=Path, help="on the disk to be measured")
    flags = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    figures = {}
    with tempfile.TemporaryDirectory(prefix="nray-bench-", dir=flags.directory) as name:
        for size in SIZES:
            pairs = []
            for turn in range(ROUNDS + 1):
                kinds = [ledger_run, bare_run][:: 1 if turn % 2 else -1]
                pair = {kind: kind(Path(name), size, flags.seconds) for kind in kinds}
                if turn:  # the first warms up
                    pairs.append((pair[ledger_run], pair[bare_run]))
            figures[size] = [[asdict(run) for run in pair] for pair in pairs]
            rows.append(
                [
                    f"{size:,}",
                    spread([one.rate for one, _ in pairs], ",.0f"),
                    spread([one.rate_cpu for one, _ in pairs], ",.0f"),
                    spread([1000 * one.wall_s / one.commits for one, _ in pairs], ".1f"),
                    spread([two.rate for _, two in pairs], ",.0f"),
                    spread([one.rate / two.rate for one, two in pairs]),
                ]
            )
    head = ["hits a report", "hits/s", "hits/s of CPU", "ms a commit", "bare hits/s", "share"]
    print(table(head, rows))
    print(f"\nevery run: {keep('ledger', figures)}", file=sys.stderr)


if __name__ == "__main__":
    main()
