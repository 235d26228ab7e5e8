"""The same as bench/ingest.py through the whole server: mutual TLS, frames, a real process.

.venv/bin/python bench/ingest_wire.py [--hits 400000] [--sizes 16,256,4096]

`nray server` is bound to the first core. Four peers, in this process on the last core, take its
leases and report at once that every probe is open; no packet goes to any target. Time runs from
the first report to the end of the server, when all is committed, in the file, and synced.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from common import keep, spread, table
from ingest import REPORTS_A_SLICE, SEED, UNACKNOWLEDGED, packed_space, target_of
from lab.certs import Credentials, make_credentials
from lab.cluster import PORT, configuration, server_command
from nray.events.model import Environment
from nray.pki.endpoint import NodeTls
from nray.pki.keys import load_identity, load_trust
from nray.targets.segment import Segment
from nray.wire.channel import Channel
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Counts,
    Heartbeat,
    Lease,
    NodeMessage,
    Register,
    Registered,
    Report,
    ServerMessage,
    Stop,
    Welcome,
)
from nray.wire.messages import Segment as SegmentMessage
from nray.wire.states import NodeEnd

PEERS = 4
SIZES = (16, 256, 4096)
ROUNDS = 3
#: Leases that a peer has in hand.
AHEAD = 4


@dataclass
class Figure:
    """One run; ``cpu_s`` is the server's."""

    hits: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.hits / self.wall_s


class Peer:
    """A node that has no need to probe: it reports each slice as all open.

    Args:
        packed: the hits of the whole space.
        size: hits of one report.
    """

    def __init__(self, name: str, packed: bytes, size: int) -> None:
        self._name = name
        self._packed = packed
        self._size = size
        self._leases: deque[Lease] = deque()
        self._sent = self._acknowledged = 0
        self._news = trio.Event()
        self._over = False
        self.began: float | None = None

    async def run(self, stream: trio.abc.Stream, segment: Segment) -> None:
        channel: Channel[NodeMessage, ServerMessage] = Channel(stream, NodeEnd())
        assert isinstance(await channel.receive(), Welcome)
        await channel.send(
            Register(
                PROTOCOL_VERSION, "bench", "machine", self._name, self._name, -1, 1, Environment()
            )
        )
        assert isinstance(await channel.receive(), Registered)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, channel)
            while not self._over:
                match await channel.receive():
                    case Lease() as lease:
                        self._leases.append(lease)
                    case Ack(report):
                        self._acknowledged = report
                    case SegmentMessage(_, body):
                        assert Segment.unpack(body) == segment
                    case Stop():
                        self._over = True
                self._news.set()
        await channel.send(Bye())
        await channel.aclose()

    async def _send(self, channel: Channel[NodeMessage, ServerMessage]) -> None:
        await channel.send(Ask(AHEAD))
        while not self._over:
            self._news = trio.Event()
            if not self._leases:
                with trio.move_on_after(1.0):
                    await self._news.wait()
                await channel.send(Heartbeat())
                continue
            lease = self._leases.popleft()
            self.began = self.began or time.perf_counter()
            await channel.send(Ask(1))
            for start in range(0, lease.count, self._size):
                await self._room()
                count = min(self._size, lease.count - start)
                first = 32 * (lease.start + start)
                done = start + count == lease.count
                self._sent += 1
                hits = self._packed[first : first + 32 * count]
                counts = Counts(lease.count) if done else Counts()
                await channel.send(Report(self._sent, lease.lease, hits, done, counts))

    async def _room(self) -> None:
        while self._sent - self._acknowledged >= UNACKNOWLEDGED and not self._over:
            self._news = trio.Event()
            await self._news.wait()


def run(directory: Path, credentials: Credentials, size: int, hits: int) -> Figure:
    segment, network = target_of(hits)
    packed = packed_space(segment)
    targets = {
        "targets": [network],
        "tcpports": ["443"],
        "udpports": [],
        "maxHostsPerBatch": size * REPORTS_A_SLICE,
        "maxTcpPortsPerBatch": 1,
    }
    path = configuration(directory, credentials, targets, {}, {"seed": SEED})
    tls = NodeTls(
        load_trust(str(credentials.ca)),
        insecure=False,
        identity=load_identity(str(credentials.node), str(credentials.node_key)),
        server_name=None,
    )
    with (directory / "err").open("wb") as err:
        server = subprocess.Popen(
            server_command(path),
            stderr=err,
            preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        )
    peers = [Peer(f"peer-{number}", packed, size) for number in range(PEERS)]

    async def connected() -> trio.abc.Stream:
        with trio.fail_after(10):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", PORT)
                    break
                except OSError:
                    await trio.sleep(0.05)
        return await tls.connect(stream, "127.0.0.1", timeout_s=10)

    async def main() -> float:
        streams = [await connected() for _ in peers]
        used = cpu_of(server.pid)
        async with trio.open_nursery() as nursery:
            for peer, stream in zip(peers, streams, strict=True):
                nursery.start_soon(peer.run, stream, segment)
        return used

    try:
        used = trio.run(main)
        _, status, usage = os.wait4(server.pid, 0)
        ended = time.perf_counter()
        server.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if server.returncode is None:
            server.kill()
            server.wait()
    assert server.returncode == 0, (directory / "err").read_text()
    lines = sum(b'"portscan"' in line for line in (directory / "out.json").open("rb"))
    assert lines == segment.probes, f"{lines} lines of {segment.probes} hits"
    began = min(peer.began for peer in peers if peer.began is not None)
    return Figure(lines, ended - began, usage.ru_utime + usage.ru_stime - used)


def cpu_of(pid: int) -> float:
    """Seconds of processor time so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hits", type=int, default=500_000, help="of each run, at most")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured")
    flags = parser.parse_args()
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        sys.exit("this benchmark needs two cores")
    rows, kept = [], {}
    for size in map(int, flags.sizes.split(",")):
        figures = []
        for _ in range(flags.rounds):
            with tempfile.TemporaryDirectory(prefix="nray-bench-", dir=flags.directory) as name:
                os.sched_setaffinity(0, cores)
                credentials = make_credentials(Path(name))
                figures.append(run(Path(name), credentials, size, flags.hits))
        kept[size] = [asdict(figure) for figure in figures]
        rows.append(
            [
                f"{size:,}",
                spread([each.rate for each in figures], ",.0f"),
                spread([each.hits / each.cpu_s for each in figures], ",.0f"),
            ]
        )
    print(table(["hits a report", "hits/s", "hits/s of the server's CPU"], rows))
    print(f"\nevery run: {keep('ingest-wire', kept)}", file=sys.stderr)


if __name__ == "__main__":
    main()
