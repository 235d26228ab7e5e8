"""For tests of the raw engine: answers built by hand, and a network whose far end is the test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time
from ipaddress import ip_address, ip_network
from typing import Any

from core_lab import (
    ACK,
    ICMP,
    IFF_NO_PI,
    IFF_TUN,
    SYN,
    TCP,
    TUNSETIFF,
    UDP,
    Drive,
    bucket,
    ip_packet,
)
from lab.checksum import checksum
from lab.namespaces import Namespace
from nray import _core

COOKIE_KEY = bytes(range(16))
OWN_MAC, NEXT_MAC = bytes.fromhex("020000000001"), bytes.fromhex("02000000000a")
#: Types of request and reply (RFC 792, RFC 4443).
ECHO = {4: (8, 0), 6: (128, 129)}
IFF_TAP = 0x0002
#: Extension headers (RFC 8200).
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60


def extended(packet: bytes, *kinds: int, words: int = 0) -> bytes:
    """An IPv6 packet with extension headers of these kinds, each ``words`` × 8 bytes longer than
    the shortest (but a fragment's, which says that it is the first of several)."""
    following = packet[6]
    headers = b""
    for kind in reversed(kinds):
        if kind == FRAGMENT:
            header = bytes([following, 0, 0, 1, 1, 2, 3, 4])
        else:
            # one option that pads (RFC 8200, section 4.2)
            size = 8 * (words + 1)
            header = bytes([following, words, 1, size - 4]) + bytes(size - 4)
        headers = header + headers
        following = kind
    length = len(headers) + len(packet) - 40
    return packet[:4] + struct.pack("!HB", length, following) + packet[7:40] + headers + packet[40:]


def source_port(made: bytes, version: int) -> int:
    return int.from_bytes(made[14 + (20 if version == 4 else 40) :][:2], "big")


def tcp_answer(probe: bytes, flags: int, ahead: int = 1, options: int = 0) -> bytes:
    """What a target sends back for a probe's frame; ``ahead``: acknowledgement minus number."""
    source, target, sport, dport, body = taken_apart(probe)
    number = int.from_bytes(body[4:8], "big") + ahead & 0xFFFFFFFF
    reply = struct.pack("!HHIIBBHHH", dport, sport, 7, number, 5 << 4, flags, 1000, 0, 0)
    return ip_packet(target, source, TCP, reply, options)


def taken_apart(probe: bytes) -> tuple[bytes, bytes, int, int, bytes]:
    packet = probe[14:]
    if packet[0] >> 4 == 4:
        source, target, body = packet[12:16], packet[16:20], packet[20:]
    else:
        source, target, body = packet[8:24], packet[24:40], packet[40:]
    return source, target, *struct.unpack_from("!HH", body), body


def icmp_error(
    probe: bytes, kind: int, code: int, options: int = 0, inner: int = 0, cut: int | None = None
) -> bytes:
    """An ICMP error that quotes a probe's frame, perhaps with IPv4 options in either header."""
    source = taken_apart(probe)[0]
    quoted = probe[14:]
    if inner:
        quoted = bytes([0x40 | 5 + inner]) + quoted[1:20] + b"\x01" * (4 * inner) + quoted[20:]
    body = struct.pack("!BBHI", kind, code, 0, 0) + quoted[:cut]
    router = source[:-1] + bytes([source[-1] ^ 1])
    return ip_packet(router, source, ICMP[4 if len(source) == 4 else 6], body, options)


def udp_answer(probe: bytes, payload: bytes) -> bytes:
    source, target, sport, dport, _ = taken_apart(probe)
    body = struct.pack("!HHHH", dport, sport, 8 + len(payload), 0) + payload
    if len(source) == 16:
        total = checksum(source + target + struct.pack("!IHBB", len(body), 0, 0, UDP) + body)
        body = body[:6] + struct.pack("!H", total or 0xFFFF) + body[8:]
    return ip_packet(target, source, UDP, body)


def echo_answer(probe: bytes) -> bytes:
    """The reply to an echo request: the same identifier, number and data."""
    version = probe[14] >> 4
    source, target, *_, body = taken_apart(probe)
    reply = bytes([ECHO[version][1], 0, 0, 0]) + body[4:]
    if version == 6:
        total = checksum(target + source + struct.pack("!IHBB", len(reply), 0, 0, 58) + reply)
        reply = reply[:2] + struct.pack("!H", total) + reply[4:]
    return ip_packet(target, source, ICMP[version], reply)


def target_of(probe: bytes) -> tuple[str, int]:
    _, target, _, dport, _ = taken_apart(probe)
    return str(ip_address(target)), dport


class FarEnd:
    """The far end of an interface in the namespace that this thread is in, `inside` only.

    With ``ethernet`` it is a TAP, whose frames go to a gateway (or, where `links` say so, to each
    target), else a TUN. The kernel there has a route, too, and so sends its RSTs; nothing else.
    """

    NETWORKS = ("198.18.0.0/16", "2001:db8:1::/48")
    OWN = ("198.19.0.1", "2001:db8:ffff::1")

    def __init__(self, namespace: Namespace, ethernet: bool) -> None:
        self.ethernet = ethernet
        name = "tap0" if ethernet else "tun0"
        flags = (IFF_TAP if ethernet else IFF_TUN) | IFF_NO_PI
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if ethernet:
            namespace.ip("link", "set", name, "address", OWN_MAC.hex(":"))
        namespace.ip("address", "add", f"{self.OWN[0]}/32", "dev", name)
        namespace.ip("address", "add", f"{self.OWN[1]}/128", "dev", name, "nodad")
        namespace.ip("link", "set", name, "txqueuelen", "20000", "up")
        namespace.ip("route", "add", self.NETWORKS[0], "dev", name)
        namespace.ip("-6", "route", "add", self.NETWORKS[1], "dev", name)
        self.name = name
        self.index = socket.if_nametoindex(name)

    def __enter__(self) -> FarEnd:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def ways(self, direct: bool = False) -> dict[str, Any]:
        """The engine's links and routes; ``direct``: the targets are neighbours."""
        mac = OWN_MAC if self.ethernet else b""
        gateway = NEXT_MAC if self.ethernet and not direct else b""
        routes = []
        for text, own in zip(self.NETWORKS, self.OWN, strict=True):
            network = ip_network(text)
            ends = int(network.network_address), int(network.broadcast_address)
            routes.append((network.version, *ends, 0, ip_address(own).packed, gateway))
        return {"links": [(self.index, self.name, self.ethernet, mac, 1500)], "routes": routes}

    def engine(self, direct: bool = False, **options: Any) -> _core.RawEngine:
        shared = options.pop("shared", None) or bucket(options.pop("rate", 0))
        given = {"key": COOKIE_KEY, "states": _core.STATES[1:], "tcp_timeout_s": 0.1, "retries": 0}
        return _core.RawEngine(shared, **(given | self.ways(direct) | options))

    def frames(self, wait_s: float = 0) -> list[bytes]:
        """All that has come out since the last call, behind 14 bytes of Ethernet or of nothing."""
        found = []
        select.select([self.fd], [], [], wait_s)
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self.fd, 65536)
                found.append(data if self.ethernet else bytes(14) + data)
        return found

    def probes(self, wait_s: float = 0) -> list[bytes]:
        """The SYNs and datagrams among them; what is for another gateway fails the test."""
        return [frame for frame in self.frames(wait_s) if self.is_probe(frame)]

    @staticmethod
    def is_probe(frame: bytes) -> bool:
        packet = frame[14:]
        version = packet[0] >> 4
        if version not in (4, 6):
            return False
        protocol = packet[9 if version == 4 else 6]
        if protocol == ICMP[version]:
            return packet[20 if version == 4 else 40] == ECHO[version][0]
        if protocol != TCP:
            return protocol == UDP
        return packet[(20 if version == 4 else 40) + 13] & (SYN | ACK) == SYN

    def put(self, packet: bytes) -> None:
        """A packet towards the engine, its checksums made good where they are the header's."""
        if packet[0] >> 4 == 4:
            head = (packet[0] & 15) * 4
            bare = packet[:10] + bytes(2) + packet[12:head]
            packet = bare[:10] + struct.pack("!H", checksum(bare)) + bare[12:] + packet[head:]
        if self.ethernet:
            kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
            packet = OWN_MAC + NEXT_MAC + kind + packet
        os.write(self.fd, packet)

    def start(
        self, drive: Drive, where: _core.Space, count: int | None = None, lease: int = 1
    ) -> list[bytes]:
        """Begin a whole space; its first ``count`` probes (all, if not told) once they are out."""
        drive.engine.add_slice(lease, 0, where.total, where, None)
        return self.gather(drive, where.total if count is None else count)

    def gather(self, drive: Drive, count: int, limit_s: float = 60.0) -> list[bytes]:
        """Pump until so many probes have come out."""
        found: list[bytes] = []
        deadline = time.monotonic() + limit_s
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} probes came out"
            drive.pump(0.001)
            found += self.probes()
        return found
