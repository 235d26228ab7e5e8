"""One worker process, by its socket: what it says, how it works, and how it ends."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from core_lab import COUNTED, Hit, expect_seconds, own
from lab.namespaces import alive
from nray import _core
from nray.worker.forkserver import ForkServer
from nray.worker.protocol import (
    SLICES_AHEAD,
    Configure,
    Found,
    FromWorker,
    Pause,
    Raw,
    Slice,
    Space,
    Started,
    ToWorker,
    Unpacker,
    Want,
    pack,
    range_bytes,
)

KEY = b"worker tests key"
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    made = ForkServer()
    yield made
    made.close()


class Node:
    """The node's end: sends, and reads until something is there."""

    def __init__(self, fork_server: ForkServer) -> None:
        self.fork_server = fork_server
        self.socket = fork_server.spawn()
        self.unpacker = Unpacker(at_worker=False)
        self.heard: list[FromWorker] = []
        self.ended = False
        self.until(lambda: bool(self.heard))
        assert isinstance(self.heard[0], Started)
        self.pid = self.heard[0].pid

    def send(self, *messages: ToWorker) -> None:
        self.socket.sendall(b"".join(map(pack, messages)))

    def hear(self, wait_s: float) -> None:
        if select.select([self.socket], [], [], wait_s)[0]:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            self.ended = not data
            self.heard += self.unpacker.feed(data)

    def until(self, met: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not met():
            assert time.monotonic() < deadline, f"not within {limit_s} s: {self.heard[-5:]}"
            assert not self.ended, "the worker has ended"
            self.hear(0.1)

    def expect_end(self) -> str:
        """The worker ends by itself, soon; returns how, as the fork server tells it."""
        deadline = time.monotonic() + LIMIT_S
        found: dict[int, str] = {}
        while self.pid not in found:
            assert time.monotonic() < deadline, "the worker goes on"
            time.sleep(0.005)
            found |= self.fork_server.ended()
        assert not alive(self.pid)
        return found[self.pid]

    def expect_closed(self) -> None:
        """Its socket ends, after what it had said."""
        deadline = time.monotonic() + LIMIT_S
        while not self.ended:
            assert time.monotonic() < deadline, "the socket stays open"
            self.hear(0.1)

    def of(self, kind: type) -> list[FromWorker]:
        return [message for message in self.heard if isinstance(message, kind)]

    def done(self) -> dict[int, Found]:
        """The last word about each lease that has ended; no lease has two."""
        found = [m for m in self.heard if isinstance(m, Found) and m.done]
        assert len({m.lease for m in found}) == len(found)
        return {m.lease: m for m in found}

    def hits(self, lease: int) -> list[Hit]:
        parts = [m.hits for m in self.heard if isinstance(m, Found) and m.lease == lease]
        return Hit.unpack_all(b"".join(parts))

    @property
    def wanted(self) -> int:
        return SLICES_AHEAD + sum(m.slices for m in self.heard if isinstance(m, Want))


@pytest.fixture
def node(fork_server: ForkServer) -> Iterator[Node]:
    fork_server.set_rate(0)
    made = Node(fork_server)
    yield made
    made.socket.close()
    if not made.ended:
        made.expect_end()


def configure(states: tuple[str, ...] = _core.STATES[1:], **other: object) -> Configure:
    told = {
        "window": 0,
        "tcp_timeout_s": 1.0,
        "udp_timeout_s": 0.2,
        "states": states,
        "payload": b"nray",
        "payloads": {},
        "udp_fast": False,
        "adaptive": False,
    }
    return Configure(**(told | other))  # type: ignore[arg-type]


def segment(
    ports: list[tuple[int, int]], number: int = 0, names: int = 0, version: int = 4
) -> Space:
    mine = int(ip_address(own(version)))
    ranges = {4: b"", 6: b""}
    if not names:
        ranges[version] = range_bytes([(mine, mine)], 4 if version == 4 else 16)
    return Space(number, ranges[4], ranges[6], names, ports, KEY, b"", b"")


def tcp(count: int) -> list[tuple[int, int]]:
    return [(6, port) for port in range(1, count + 1)]


def test_a_slice_is_worked_off(node: Node, version: int) -> None:
    node.send(configure(), segment(tcp(1000), version=version), Slice(77, 0, 100, 300))
    node.until(lambda: 77 in node.done())
    last = node.done()[77]
    assert dict(zip(COUNTED, last.counts, strict=True))["closed"] + last.counts[0] == 300
    assert last.errors == {}
    assert last.sent == 300
    assert {hit.position for hit in node.hits(77)} == set(range(100, 400))


@pytest.mark.lab
def test_hosts_are_looked_for_by_packets_of_its_own_and_ports_probed_by_connecting(
    node: Node, version: int
) -> None:
    """Two engines in one worker, both with slices at once. Of IPv6 the one address that is ours."""
    mine = ip_address(own(version))
    last, count = (mine + 8, 3) if version == 4 else (mine, 1)
    some = {4: b"", 6: b""}
    some[version] = range_bytes([(int(mine), int(last))], len(mine.packed))
    route = (version, mine.packed, last.packed, 0, mine.packed, b"")
    raw = Raw(bytes(16), 0, 1, 0, [(1, "lo", False, b"", 65536)], [route])
    pings = Space(0, some[4], some[6], 0, [(1, 0)], KEY, b"", b"", search=1, raw=True)
    node.send(configure(raw=raw), pings, segment(tcp(300), 1, version=version))
    for lease in range(1, 4):
        start = count * (lease - 1) if version == 4 else 0
        node.send(Slice(lease, 0, start, count), Slice(10 + lease, 1, 100 * lease - 100, 100))
    node.until(lambda: len(node.done()) == 6)
    for lease in range(1, 4):
        assert node.done()[lease].counts[0] == count
        assert {hit.reason for hit in node.hits(lease)} == {"echo-reply"}
        assert sum(node.done()[10 + lease].counts) == 100
    assert "conn-refused" in {hit.reason for lease in range(11, 14) for hit in node.hits(lease)}
    assert max(found.sent for found in node.done().values()) == 300 + 3 * count


@pytest.mark.parametrize("asked", [True, False])
def test_hosts_that_the_node_knows_are_left_out_where_that_is_asked_for(
    node: Node, asked: bool
) -> None:
    known = node.fork_server.shown()
    known.renew()
    known.add(bytes([4, 127, 0, 0, 1]) + bytes(12))
    node.send(configure(first_open=asked), segment(tcp(50)), Slice(1, 0, 0, 50))
    node.until(lambda: 1 in node.done())
    last = node.done()[1]
    assert last.sent == (0 if asked else 50)
    assert last.errors == ({_core.SPARED: 50} if asked else {})
    assert last.counts[6] == (50 if asked else 0)


def test_everything_may_come_in_bits(node: Node) -> None:
    stream = b"".join(map(pack, [configure(), segment(tcp(10)), Slice(1, 0, 0, 10)]))
    for i in range(0, len(stream), 7):
        node.socket.sendall(stream[i : i + 7])
        time.sleep(0.0005)
    node.until(lambda: 1 in node.done())
    assert sum(node.done()[1].counts) == 10


def test_it_wants_as_many_slices_as_it_has_begun(node: Node) -> None:
    """Slices are given as they are wanted, until there are no more; then it wants the two that
    it likes to have ahead, and no more."""
    node.send(configure(states=()), segment(tcp(2000)))
    given = 0
    while given < 40:
        node.until(lambda given=given: node.wanted > given)  # type: ignore[misc]
        assert node.wanted - given <= SLICES_AHEAD
        while node.wanted > given and given < 40:
            node.send(Slice(given, 0, given * 50, 50))
            given += 1
    node.until(lambda: len(node.done()) == 40)
    node.until(lambda: node.wanted == 40 + SLICES_AHEAD)
    node.hear(0.02)
    assert node.wanted == 40 + SLICES_AHEAD
    assert all(sum(found.counts) == 50 for found in node.done().values())


def test_the_next_slice_is_wanted_before_the_last_answers_are_there(
    node: Node, version: int
) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as silent:
        silent.bind((own(version), 0))
        port = silent.getsockname()[1]
        node.send(
            configure(udp_timeout_s=60.0),
            segment([(17, port)], version=version),
            Slice(1, 0, 0, 1),
            Slice(2, 0, 0, 1),
        )
        node.until(lambda: node.wanted == 2 + SLICES_AHEAD)
        assert node.done() == {}


def test_names(node: Node) -> None:
    addresses = {0: [ip_address("127.0.0.1").packed, ip_address("::1").packed], 1: []}
    node.send(configure(), segment(tcp(2), 5, names=2), Slice(1, 5, 0, 4, addresses))
    node.until(lambda: 1 in node.done())
    assert node.done()[1].counts[7] == 2
    assert node.done()[1].errors == {"name-not-resolved": 2}
    assert Counter(hit.address for hit in node.hits(1)) == {"127.0.0.1": 2, "::1": 2}


def test_two_segments(node: Node) -> None:
    node.send(configure(), segment(tcp(3), 8), segment(tcp(9), 9))
    node.send(Slice(1, 9, 0, 9), Slice(2, 8, 0, 3))
    node.until(lambda: {1, 2} <= set(node.done()))
    assert (sum(node.done()[1].counts), sum(node.done()[2].counts)) == (9, 3)


def test_a_pause_holds_and_lets_go(node: Node) -> None:
    node.send(configure(), segment(tcp(10)), Pause(True), Slice(1, 0, 0, 10))
    node.hear(0.1)
    assert not node.of(Found)
    node.send(Pause(False))
    node.until(lambda: 1 in node.done())


def test_a_node_that_does_not_read_holds_the_worker_and_loses_nothing(node: Node) -> None:
    # fmt: off
    node.send(
        configure(), segment(tcp(60_000)),
        Slice(1, 0, 0, 30_000), Slice(2, 0, 30_000, 30_000),
    )
    # fmt: on
    time.sleep(0.3)
    node.until(lambda: len(node.done()) == 2, 20)
    for lease, begin in ((1, 0), (2, 30_000)):
        positions = [hit.position for hit in node.hits(lease)]
        assert sorted(positions) == list(range(begin, begin + 30_000))
        assert sum(node.done()[lease].counts) == 30_000


# ── how it ends ─────────────────────────────────────────────────────────────────────────────


def silent_slice(node: Node) -> socket.socket:
    """Give it something to wait for: a UDP port that nobody answers from."""
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    node.send(configure(udp_timeout_s=60.0), segment([(17, port)]), Slice(1, 0, 0, 1))
    assert silent.recv(100) == b"nray"
    return silent


@pytest.mark.parametrize("when", ["at once", "configured", "half a message", "waiting", "paused"])
def test_it_ends_when_the_node_s_end_is_closed(fork_server: ForkServer, when: str) -> None:
    node = Node(fork_server)
    if when == "configured":
        node.send(configure(), segment(tcp(10)))
    elif when == "half a message":
        node.socket.sendall(pack(configure()) + pack(segment(tcp(10)))[:9])
    elif when == "waiting":
        silent_slice(node).close()
    elif when == "paused":
        node.send(configure(), segment(tcp(10)), Pause(True), Slice(1, 0, 0, 10))
    node.socket.close()
    assert node.expect_end() == "exit status 0"


def test_it_ends_when_the_node_dies_without_reading(fork_server: ForkServer) -> None:
    """Blocked in the middle of a write, and with things unread at its own end."""
    node = Node(fork_server)
    node.send(configure(), segment(tcp(60_000)), Slice(1, 0, 0, 60_000))
    time.sleep(0.2)
    node.send(Pause(True), Pause(False))
    node.socket.close()
    assert node.expect_end() == "exit status 0"


@pytest.mark.parametrize(
    "words",
    [
        b"\x01\x00\x00\x00\xc1",  # no msgpack
        pack(configure()) + pack(Slice(1, 99, 0, 1)),  # a segment that it does not know
        pack(configure()) + pack(segment(tcp(3))) + pack(Slice(1, 0, 2, 2)),  # beyond its end
        pack(Slice(1, 0, 0, 1)),  # not configured
    ],
)
def test_what_it_cannot_do_ends_it(fork_server: ForkServer, words: bytes) -> None:
    """With a status that tells; the node begins its slices again elsewhere."""
    node = Node(fork_server)
    node.socket.sendall(words)
    assert node.expect_end() == "exit status 1"
    node.expect_closed()
    node.socket.close()


def test_a_killed_one_is_told_by_its_signal(fork_server: ForkServer) -> None:
    node = Node(fork_server)
    silent_slice(node).close()
    os.kill(node.pid, signal.SIGKILL)
    assert node.expect_end() == "killed by SIGKILL"
    node.expect_closed()
    node.socket.close()


def test_ctrl_c_is_not_for_workers(node: Node) -> None:
    silent = silent_slice(node)
    for _ in range(3):
        os.kill(node.pid, signal.SIGINT)
    time.sleep(0.02)
    silent.close()
    node.send(segment(tcp(5), 1), Slice(2, 1, 0, 5))
    node.until(lambda: 2 in node.done())


def test_stopped_and_continued_it_goes_on(node: Node) -> None:
    silent = silent_slice(node)
    os.kill(node.pid, signal.SIGSTOP)
    node.send(segment(tcp(5), 1), Slice(2, 1, 0, 5))
    time.sleep(0.02)
    os.kill(node.pid, signal.SIGCONT)
    node.until(lambda: 2 in node.done())
    silent.close()


# ── together ────────────────────────────────────────────────────────────────────────────────


def test_workers_of_one_fork_server_share_its_rate(fork_server: ForkServer) -> None:
    nodes = [Node(fork_server) for _ in range(3)]
    leases = itertools.count(1)
    for node in nodes:
        node.send(configure(states=()), segment(tcp(30)))

    def scan() -> None:
        lease = next(leases)
        for node in nodes:
            node.send(Slice(lease, 0, 0, 30))
        for node in nodes:
            node.until(lambda node=node: lease in node.done())  # type: ignore[misc]

    fork_server.set_rate(300)
    # 90 probes, of which 4 ms and one may come at once.
    expect_seconds(scan, 89 / 300 - 0.005, 0.5)
    fork_server.set_rate(0)
    for node in nodes:
        node.socket.close()
        node.expect_end()


def test_a_worker_holds_no_other_worker_s_socket(fork_server: ForkServer) -> None:
    """Or the first would not see its end while the second lives."""
    first, second = Node(fork_server), Node(fork_server)
    first.socket.close()
    assert first.expect_end() == "exit status 0"
    kinds = Counter(
        os.readlink(path).partition(":")[0] for path in Path(f"/proc/{second.pid}/fd").iterdir()
    )
    assert kinds["socket"] == 1
    assert kinds["pipe"] <= 1  # pytest's own, as standard error
    second.socket.close()
    second.expect_end()
