"""A scan beside an attack on its server: what it costs the scan, and what it costs in memory.

.venv/bin/python bench/siege.py [--rounds 3] [--scans rate,cpu] [--half-open 2000]

`nray server` and two `nray node` over mutual TLS on loopback, in alternating pairs: alone, and
besieged by

- 2,000 half-open peers: they connect, a third of them with the first bytes of a hello, and sit;
  one that is closed comes again after five seconds,
- 50 slow-loris peers, which send a byte a second of a TLS record that never ends,
- a node with a good certificate that sends heartbeats, and reports of nothing, as fast as the
  server reads them.

Scans: *rate* (a rate limit, about 12 s) and *cpu* (no limit: 127.0.0.0/16 times some ports, which
keeps both cores busy). Laws, each of which makes the exit status 1 when broken: the median ratio
of the times is at most 1.2 (for *cpu*: reported, and judged only with --judge-cpu, since on two
cores the attackers' own processor time is taken from the nodes too), all probes are covered in
each run, and the server's memory does not grow by more than 24 MB from 4 s on, and not by more
than 60 MB beyond what it takes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common import keep, median, spread, table
from lab.certs import Credentials, make_credentials
from lab.cluster import PORT, configuration, node_command, server_command

RATIO_MAX = 1.2
GROWTH_BYTES_MAX = 24 * 1024 * 1024
BEYOND_BYTES_MAX = 60 * 1024 * 1024
WARM_S = 4.0
NODES = 2
HALF_OPEN = 2000
LORIS = 50
AGAIN_S = 5.0
#: From when the server listens until the nodes come: what the first storm of lines takes.
STANDS_S = 4.0
#: A run that is not over by then has failed.
RUN_S_MAX = 120.0
#: The begin of a TLS record: a hello of 512 bytes, of which no more comes.
BEGUN = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
#: Targets and settings; about 12 s each on two cores. Nothing listens there but what the machine
#: itself has.
SCANS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "rate": ({"targets": ["127.0.0.0/20"], "tcpports": ["10-15"]}, {"ratelimit": 1000}),
    "cpu": ({"targets": ["127.0.0.0/16"], "tcpports": ["10-15"]}, {}),
}


@dataclass
class Figure:
    """One run."""

    wall_s: float
    server_cpu_s: float
    rss: list[tuple[float, int]]
    attackers_cpu_s: float
    frames: int

    @property
    def warm(self) -> list[int]:
        """Sizes after the warm-up, and before the process begins to let go of its memory."""
        end = self.rss[-1][0] - 1.0
        return [size for at, size in self.rss if WARM_S <= at <= end] or [self.rss[-1][1]]

    @property
    def growth(self) -> int:
        return max(self.warm) - min(self.warm)


# ── the attackers, each a process of this file ──────────────────────────────────────────────


def sit(count: int, loris: int) -> None:
    """Half-open and slow-loris peers; a closed one comes again. Ends when its parent does."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    selector = selectors.DefaultSelector()
    due: list[tuple[float, int]] = [(0.0, number) for number in range(count + loris)]
    creeping: dict[socket.socket, int] = {}
    opened = 0
    beat = time.monotonic()
    while os.getppid() != 1:
        now = time.monotonic()
        later = []
        for at, number in due:
            if at > now:
                later.append((at, number))
                continue
            line = socket.socket()
            line.setblocking(False)
            line.connect_ex(("127.0.0.1", PORT))
            selector.register(line, selectors.EVENT_WRITE, number)
            opened += 1
        due = later
        if now - beat >= 1.0:
            beat = now
            for line in list(creeping):
                try:
                    line.send(b"\0")
                except OSError:
                    pass  # told by the selector
        for key, events in selector.select(0.2):
            line, number = key.fileobj, key.data
            assert isinstance(line, socket.socket)
            gone = False
            try:
                if events & selectors.EVENT_WRITE:
                    gone = line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
                    if not gone:
                        selector.modify(line, selectors.EVENT_READ, number)
                        if number >= count:
                            creeping[line] = number
                        if number >= count or number % 3 == 0:
                            line.send(BEGUN)
                else:
                    gone = not line.recv(4096)
            except OSError:
                gone = True
            if gone:
                selector.unregister(line)
                creeping.pop(line, None)
                line.close()
                due.append((now + AGAIN_S, number))


def pour(ca: str, cert: str, key: str) -> None:
    """A node with a good certificate that brings nothing, as fast as it is read; prints frames."""
    import trio

    from nray.events.model import Environment
    from nray.pki.endpoint import NodeTls
    from nray.pki.keys import load_identity, load_trust
    from nray.wire.channel import Channel, ChannelEnded
    from nray.wire.framing import encode_frame
    from nray.wire.messages import (
        PROTOCOL_VERSION,
        Heartbeat,
        NodeMessage,
        Register,
        ServerMessage,
        Stop,
    )
    from nray.wire.states import NodeEnd

    tls = NodeTls(
        load_trust(ca), insecure=False, identity=load_identity(cert, key), server_name=None
    )
    frames = 0
    beats = b"".join(encode_frame(Heartbeat(number)) for number in range(100))

    async def main() -> None:
        nonlocal frames
        while True:
            try:
                tcp = await trio.open_tcp_stream("127.0.0.1", PORT)
                stream = await tls.connect(tcp, "127.0.0.1", timeout_s=10)
                break
            except (OSError, trio.BrokenResourceError):
                await trio.sleep(0.1)
        channel: Channel[NodeMessage, ServerMessage] = Channel(stream, NodeEnd())
        await channel.receive()
        await channel.send(
            Register(PROTOCOL_VERSION, "x", "flood", "flood", "flood", -1, 1, Environment())
        )
        await channel.receive()
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                nonlocal frames
                while True:
                    # Past our own end of the protocol, which is slower than the attack.
                    await stream.send_all(beats)
                    frames += 100

            nursery.start_soon(flood)
            while not isinstance(await channel.receive(), Stop):
                pass
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except BaseException as error:  # whatever ended it: the server has gone, mostly
        if not isinstance(error, BaseExceptionGroup | ChannelEnded | trio.BrokenResourceError):
            raise
    print(json.dumps(frames))


# ── one run ─────────────────────────────────────────────────────────────────────────────────


def cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def rss_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def run(
    directory: Path, credentials: Credentials, scan: str, besieged: bool, half_open: int
) -> Figure:
    targets, scanner = SCANS[scan]
    path = configuration(
        directory, credentials, {**targets, "udpports": []}, scanner, {"ledger": "none"}
    )
    attackers: list[subprocess.Popen[str]] = []
    nodes: list[subprocess.Popen[bytes]] = []
    with (directory / "err").open("wb") as err:
        server = subprocess.Popen(server_command(path), stderr=err, cwd=directory)
    begun = time.perf_counter()
    try:
        if besieged:
            mine = [sys.executable, __file__]
            # fmt: off
            words = [
                [*mine, "--sit", str(half_open), str(LORIS)],
                [*mine, "--pour", str(credentials.ca), str(credentials.node),
                 str(credentials.node_key)],
            ]
            # fmt: on
            for each in words:
                attackers.append(subprocess.Popen(each, stdout=subprocess.PIPE, text=True))
        while b"listening on" not in (directory / "err").read_bytes():
            if server.poll() is not None or time.perf_counter() - begun > 30:
                sys.exit(f"the server does not listen: {(directory / 'err').read_text()}")
            time.sleep(0.05)
        time.sleep(STANDS_S)  # the siege stands when the nodes come; alone it is the same
        started = time.perf_counter()
        for number in range(NODES):
            command = node_command(credentials, f"node{number}")
            nodes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=directory))
        rss: list[tuple[float, int]] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.25):
                try:
                    size = rss_of(server.pid)
                    if size:  # else it has ended, and is not waited for yet
                        rss.append((time.perf_counter() - begun, size))
                except (OSError, IndexError):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        killer = threading.Timer(RUN_S_MAX, server.kill)
        killer.start()
        attack_cpu = 0.0
        try:
            while os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                time.sleep(0.02)
            ended = time.perf_counter()
        finally:
            killer.cancel()
            over.set()
            watcher.join()
        attack_cpu = sum(cpu_of(each.pid) for each in attackers if each.poll() is None)
        _, status, usage = os.wait4(server.pid, 0)
        server.returncode = os.waitstatus_to_exitcode(status)
    finally:
        for process in (server, *nodes, *attackers):
            if process.returncode is None and process.poll() is None:
                process.terminate() if process in attackers else process.kill()
    frames = 0
    for process in (*nodes, *attackers):
        out, _ = process.communicate(timeout=10)
        if out and isinstance(out, str) and out.strip().isdigit():
            frames += int(out)
    said = (directory / "err").read_text(errors="replace")
    if server.returncode != 0:
        sys.exit(f"the scan failed (status {server.returncode}): {said[-2000:]}")
    return Figure(ended - started, usage.ru_utime + usage.ru_stime, rss, attack_cpu, frames)


def main() -> None:
    if sys.argv[1:2] == ["--sit"]:
        return sit(int(sys.argv[2]), int(sys.argv[3]))
    if sys.argv[1:2] == ["--pour"]:
        return pour(*sys.argv[2:5])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scans", default=",".join(SCANS))
    parser.add_argument("--half-open", type=int, default=HALF_OPEN)
    parser.add_argument("--judge-cpu", action="store_true")
    flags = parser.parse_args()
    rows, kept, broken = [], {}, []
    for scan in flags.scans.split(","):
        pairs = []
        for number in range(flags.rounds):
            figures = {}
            for besieged in (False, True) if number % 2 == 0 else (True, False):
                with tempfile.TemporaryDirectory(prefix="nray-siege-") as name:
                    credentials = make_credentials(Path(name))
                    figure = run(Path(name), credentials, scan, besieged, flags.half_open)
                figures[besieged] = figure
                print(
                    f"{scan} {'besieged' if besieged else 'alone'}: {figure.wall_s:.2f} s,"
                    f" server {figure.server_cpu_s:.2f} s of processor, memory"
                    f" {max(figure.warm) / 1e6:.0f} MB, grown {figure.growth / 1e6:.1f} MB;"
                    f" attackers {figure.attackers_cpu_s:.2f} s, {figure.frames:,} frames",
                    file=sys.stderr,
                    flush=True,
                )
            pairs.append((figures[False], figures[True]))
        ratios = [one.wall_s / alone.wall_s for alone, one in pairs]
        growth = [one.growth for _, one in pairs]
        beyond = [max(one.warm) - max(alone.warm) for alone, one in pairs]
        kept[scan] = [[asdict(each) for each in pair] for pair in pairs]
        if median(ratios) > RATIO_MAX and (scan != "cpu" or flags.judge_cpu):
            broken.append(f"{scan}: the siege makes it {median(ratios):.2f} times as long")
        if max(growth) > GROWTH_BYTES_MAX or max(beyond) > BEYOND_BYTES_MAX:
            broken.append(f"{scan}: memory grows with the siege")
        rows.append(
            [
                scan,
                spread([alone.wall_s for alone, _ in pairs]),
                spread([one.wall_s for _, one in pairs]),
                spread(ratios),
                spread([one.server_cpu_s - alone.server_cpu_s for alone, one in pairs]),
                spread([size / 1e6 for size in growth], ".1f"),
                spread([size / 1e6 for size in beyond], ".1f"),
            ]
        )
    head = ["scan", "alone s", "besieged s", "ratio", "server's CPU more s", "grown MB", "more MB"]
    print(table(head, rows))
    print(f"\nevery run: {keep('siege', kept)}", file=sys.stderr)
    for words in broken:
        print(f"broken: {words}", file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
