"""For tests of the compiled engine: run it in this very thread, inside a namespace if need be.

A `Tun` is a network of which the test itself is the far end: it sees each packet that the engine
sends and answers with whatever it likes, whenever it likes. So an answer that is late, doubled,
stale or about something else is made, not hoped for.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pickle
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import ClassVar, TypeVar

from lab.checksum import checksum
from lab.namespaces import NETNS_DIR, Namespace
from nray import _core

T = TypeVar("T")

KEY = b"core tests' key."
TCP, UDP = 6, 17
CLONE_NEWNET = 0x40000000
#: tun(4): TUNSETIFF, and IFF_TUN without a header of its own.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
COUNTED = (
    "open",
    "closed",
    "filtered",
    "open|filtered",
    "error",
    "excluded",
    "skipped",
    "more",
    "refused",
)
ALL_STATES = _core.STATES[1:]
SYN, RST, ACK, FIN = 2, 4, 16, 1
#: Of IPv4, of IPv6.
ICMP = {4: 1, 6: 58}
#: ICMP type and code (RFC 792, RFC 1812; RFC 4443), by IP version.
UNREACHABLE, PROHIBITED = {4: (3, 3), 6: (1, 4)}, {4: (3, 13), 6: (1, 1)}
#: Of the networks whose far end a test is.
BASE = {4: int(ip_address("198.18.0.0")), 6: int(ip_address("2001:db8:1::"))}


@contextlib.contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """This thread is in the namespace for as long as the block lasts (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(NETNS_DIR / namespace.name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(there, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if libc.setns(before, CLONE_NEWNET) != 0:
                os._exit(70)  # never go on in the wrong network
    finally:
        os.close(there)
        os.close(before)


def bucket(rate: float = 0) -> _core.Bucket:
    """A rate of its own."""
    fd = os.memfd_create("test-rate", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _core.Bucket.BYTES)
        made = _core.Bucket(fd)
    finally:
        os.close(fd)
    made.set_rate(rate)
    return made


def space(networks: Sequence[str], ports: Sequence[tuple[int, int]], names: int = 0) -> _core.Space:
    """Of single addresses or ``first-last`` ranges, given in ascending order."""
    ranges = _ranges(networks)
    return _core.Space(ranges[4], ranges[6], names, ports, KEY)


def host(version: int, number: int, network: int = 0) -> str:
    """An address that a test may answer for, of the /24 (or /56 of IPv6) with this number."""
    return str(ip_address(BASE[version] + (network << (8 if version == 4 else 72)) + number))


def hosts(version: int, first: int, last: int, network: int = 0) -> str:
    """The range of such addresses, for `space` and `exclusions`."""
    return f"{host(version, first, network)}-{host(version, last, network)}"


def own(version: int) -> str:
    """This machine."""
    return "127.0.0.1" if version == 4 else "::1"


def _ranges(networks: Sequence[str]) -> dict[int, list[tuple[int, int]]]:
    ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for text in networks:
        first, _, last = text.partition("-")
        begin, end = ip_address(first), ip_address(last or first)
        ranges[begin.version].append((int(begin), int(end)))
    return ranges


def exclusions(*networks: str) -> _core.Exclusions:
    """Of single addresses or ``first-last`` ranges of either family."""
    ranges = _ranges(networks)
    return _core.Exclusions(ranges[4], ranges[6])


def tcp(*ports: int) -> list[tuple[int, int]]:
    return [(TCP, port) for port in ports]


def udp(*ports: int) -> list[tuple[int, int]]:
    return [(UDP, port) for port in ports]


@dataclass(frozen=True, order=True)
class Hit:
    """A packed hit, unpacked here by HIT_FORMAT and nothing else."""

    position: int
    address: str
    state: str
    reason: str
    rtt_us: int

    @classmethod
    def unpack_all(cls, packed: bytes) -> list[Hit]:
        hits = []
        for position, raw, rtt, _, state, reason, family in struct.iter_unpack(
            _core.HIT_FORMAT, packed
        ):
            address = str(ip_address(raw[:4] if family == 4 else raw))
            hits.append(cls(position, address, _core.STATES[state], _core.REASONS[reason], rtt))
        return hits


@dataclass
class Ended:
    """What the engine has reported of one slice."""

    hits: list[Hit] = field(default_factory=list)
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def states(self) -> dict[int, tuple[str, str]]:
        """Position to state and reason; a position that came twice fails the test."""
        found = {hit.position: (hit.state, hit.reason) for hit in self.hits}
        assert len(found) == len(self.hits), "a position was reported twice"
        return found


class Drive:
    """Pumps an engine and gathers its reports by lease."""

    def __init__(self, engine: _core.Engine | _core.RawEngine) -> None:
        self.engine = engine
        self.leases: dict[int, Ended] = {}
        self.pumps = 0

    def pump(self, seconds: float) -> None:
        """One pump and what it brought."""
        self.engine.pump(seconds)
        self.pumps += 1
        for lease, hits, done, counts, errors in self.engine.take():
            ended = self.leases.setdefault(lease, Ended())
            assert not ended.done, "a report after the end"
            assert len(hits) % _core.HIT_BYTES == 0
            ended.hits += Hit.unpack_all(hits)
            if done:
                ended.done += 1
                ended.counts = dict(zip(COUNTED, counts, strict=True))
                ended.errors = errors

    def until(self, met: Callable[[], bool], limit_s: float = 60.0, step_s: float = 0.5) -> None:
        """Pump until the condition is met; fails the test when that takes too long."""
        deadline = time.monotonic() + limit_s
        while not met():
            assert time.monotonic() < deadline, f"not within {limit_s} s: {self.leases}"
            self.pump(step_s)

    def to_end(self, limit_s: float = 60.0) -> Ended:
        """Pump until no slice is open; returns the report of the last lease."""
        self.until(lambda: self.engine.slices_open == 0, limit_s)
        return self.leases[max(self.leases)]


def in_child(work: Callable[[], T]) -> tuple[int, Callable[[], T]]:
    """Start the work in a forked process; returns its id and what waits for its result."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            result: object = work()
        except BaseException as error:
            result = error
        with os.fdopen(write, "wb") as out:
            out.write(pickle.dumps(result))
        os._exit(0)
    os.close(write)

    def wait() -> T:
        with os.fdopen(read, "rb") as told:
            data = told.read()
        os.waitpid(pid, 0)
        got = pickle.loads(data)
        if isinstance(got, BaseException):
            raise got
        return got  # type: ignore[no-any-return]

    return pid, wait


def expect_seconds(
    work: Callable[[], object], least_s: float, most_s: float, tries: int = 5
) -> None:
    """The work takes at least so long, always; and at most so long in one of a few tries: what
    else runs on this machine can make it later, and never earlier."""
    taken = []
    for _ in range(tries):
        began = time.monotonic()
        work()
        taken.append(time.monotonic() - began)
        assert taken[-1] >= least_s, taken
        if taken[-1] <= most_s:
            return
    raise AssertionError(f"{taken} s, never within {most_s} s")


def run(
    engine: _core.Engine | _core.RawEngine,
    where: _core.Space,
    exclusions: _core.Exclusions | None = None,
) -> Ended:
    """Scan a whole space as one slice."""
    engine.add_slice(1, 0, where.total, where, exclusions)
    return Drive(engine).to_end()


def ip_packet(source: bytes, target: bytes, protocol: int, body: bytes, options: int = 0) -> bytes:
    """An IP packet, with so many words of IPv4 options (no-operations)."""
    if len(source) == 4:
        # fmt: off
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x40 | 5 + options, 0, 20 + 4 * options + len(body), 0, 0, 55,
            protocol, 0, source, target,
        )
        # fmt: on
        return header + b"\x01" * (4 * options) + body
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 55, source, target) + body


def summed(packet: bytes) -> bytes:
    """With the checksums that a kernel wants to see: of IPv4's header, and of what is within."""
    if packet[0] >> 4 == 4:
        size, protocol, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
        bare = packet[:10] + bytes(2) + packet[12:size]
        head = bare[:10] + struct.pack("!H", checksum(bare)) + bare[12:]
    else:
        size, protocol, addresses = 40, packet[6], packet[8:40]
        head = packet[:size]
    body = packet[size:]
    at = {TCP: 16, UDP: 6}.get(protocol, 2)
    # As a sum the pseudo headers of both families are alike (RFC 768, RFC 8200 section 8.1).
    pseudo = b"" if protocol == ICMP[4] else addresses + struct.pack("!II", len(body), protocol)
    total = checksum(pseudo + body[:at] + bytes(2) + body[at + 2 :])
    if protocol == UDP and total == 0:
        total = 0xFFFF
    return head + body[:at] + struct.pack("!H", total) + body[at + 2 :]


@dataclass(frozen=True)
class Packet:
    """One packet of TCP or UDP as it came out of the engine."""

    source: str
    target: str
    protocol: int
    sport: int
    dport: int
    flags: int
    seq: int
    payload: bytes
    raw: bytes

    @property
    def version(self) -> int:
        return self.raw[0] >> 4


class Tun:
    """The far end of a network interface in the namespace that this thread is in.

    `NETWORKS` are routed into it, from `OWN`. To be made and used `inside` only.
    """

    NETWORKS = ("198.18.0.0/16", "2001:db8::/32")
    OWN: ClassVar = {4: "198.19.0.1", 6: "2001:db8:ffff::1"}

    def __init__(self, namespace: Namespace) -> None:
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        namespace.ip("address", "add", f"{self.OWN[4]}/32", "dev", "tun0")
        # Room for all that an engine has in flight, thrice, read or not: a second try and a third.
        namespace.ip("link", "set", "tun0", "txqueuelen", "50000", "up")
        namespace.ip("address", "add", f"{self.OWN[6]}/128", "dev", "tun0", "nodad")
        for version, network in zip((4, 6), self.NETWORKS, strict=True):
            namespace.ip(f"-{version}", "route", "add", network, "dev", "tun0")

    def __enter__(self) -> Tun:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def sent(self, wait_s: float = 0) -> list[Packet]:
        """The TCP and UDP packets that have come out since the last call."""
        packets = []
        select.select([self.fd], [], [], wait_s)
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._parse(os.read(self.fd, 65536))
                if packet is not None:
                    packets.append(packet)
        return packets

    @staticmethod
    def _parse(raw: bytes) -> Packet | None:
        four = raw[0] >> 4 == 4
        protocol = raw[9 if four else 6]
        if protocol not in (TCP, UDP):
            return None
        body = raw[(raw[0] & 15) * 4 :] if four else raw[40:]
        sport, dport = struct.unpack_from("!HH", body)
        addresses = (raw[12:16], raw[16:20]) if four else (raw[8:24], raw[24:40])
        source, target = (str(ip_address(each)) for each in addresses)
        if protocol == UDP:
            return Packet(source, target, UDP, sport, dport, 0, 0, body[8:], raw)
        seq = struct.unpack_from("!I", body, 4)[0]
        flags, payload = body[13], body[(body[12] >> 4) * 4 :]
        return Packet(source, target, TCP, sport, dport, flags, seq, payload, raw)

    def _put(self, protocol: int, source: str, target: str, body: bytes) -> None:
        packet = ip_packet(ip_address(source).packed, ip_address(target).packed, protocol, body)
        os.write(self.fd, summed(packet))

    def answer_tcp(self, probe: Packet, flags: int, seq: int = 1000) -> None:
        """A segment from the probe's target back to where the probe came from."""
        # fmt: off
        body = struct.pack(
            "!HHIIBBHHH", probe.dport, probe.sport, seq, probe.seq + 1 & 0xFFFFFFFF,
            5 << 4, flags, 65535, 0, 0,
        )
        # fmt: on
        self._put(TCP, probe.target, probe.source, body)

    def answer_udp(self, probe: Packet, payload: bytes) -> None:
        """A datagram back to where the probe came from."""
        body = struct.pack("!HHHH", probe.dport, probe.sport, 8 + len(payload), 0) + payload
        self._put(UDP, probe.target, probe.source, body)

    def answer_icmp(self, probe: Packet, kind: int, code: int) -> None:
        """An ICMP error about the probe (RFC 792, RFC 4443), from a router."""
        version = probe.version
        # Of IPv4 the least that is quoted; of IPv6 as much as fits.
        body = struct.pack("!BBHI", kind, code, 0, 0) + probe.raw[: 28 if version == 4 else 1000]
        self._put(ICMP[version], host(version, 254, 255), probe.source, body)
