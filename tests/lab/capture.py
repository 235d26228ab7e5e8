"""Counts the probes that leave an interface: a program of its own, and the class that drives it.

An AF_PACKET socket with a filter in the kernel (classic BPF) passes outgoing probes only: TCP SYN
without ACK, and UDP. Each is stamped by the kernel, so that a busy machine does not blur its time,
and kept raw until the end, so that the reader is fast enough for 100,000 a second. Packets that the
kernel had to drop are counted, and `Capture.stop` refuses such a capture: what it did not see
proves nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .namespaces import Namespace

#: 200,000 probes fit even if the reader gets no turn: the kernel charges some 800 bytes each.
RECEIVE_BUFFER_BYTES = 256 << 20
#: IPv6 header and TCP header with room for IPv4 options; the rest is of no interest.
SNAP_BYTES = 100
#: After the end is asked for: as long as packets keep coming, at most this long.
DRAIN_S = 2.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 120.0
FOREVER = 1 << 62

SO_RCVBUFFORCE = 33
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SOL_PACKET = 263
PACKET_STATISTICS = 6
ETH_P_ALL = 3
#: One captured packet: time (ns since the epoch), destination (IPv4 mapped), port, protocol, flags.
RECORD = struct.Struct("!Q16sHBB")

_TCP, _UDP = 6, 17
_SYN, _ACK = 0x02, 0x10
_MAPPED = bytes(10) + b"\xff\xff"


class Packet(NamedTuple):
    """A packet that left the interface; ``time_s`` since the epoch, by the kernel's clock."""

    time_s: float
    address: str
    port: int
    protocol: str
    flags: int

    @property
    def is_probe(self) -> bool:
        return self.protocol == "udp" or self.flags & (_SYN | _ACK) == _SYN


def probe_filter(answers_to: str | None) -> list[tuple[int, int, int, int]]:
    """The BPF program: outgoing TCP SYN without ACK, and UDP, over IPv4 and IPv6.

    Args:
        answers_to: an address; if given, *every* packet of its family to any other one passes too.
            On ``lo`` the answers to probes leave by the same interface, to this address.
    """
    own = ipaddress.ip_address(answers_to) if answers_to is not None else None
    load_word, load_byte, load_byte_x = 0x20, 0x30, 0x50
    load_x_header, jump_equal, mask, end = 0xB1, 0x15, 0x54, 0x06
    packet_type, outgoing = 0xFFFFF000 + 4, 4
    program: list[tuple[int, str, str, int]] = [
        # (operation, label if true, label if false, operand); "" is the next line
        (load_word, "", "", packet_type),
        (jump_equal, "", "drop", outgoing),
        (load_byte, "", "", 0),
        (mask, "", "", 0xF0),
        (jump_equal, "four", "", 0x40),
        (jump_equal, "six", "drop", 0x60),
    ]
    labels: dict[str, int] = {"four": len(program)}
    if own is not None and own.version == 4:
        program += [(load_word, "", "", 16), (jump_equal, "", "pass", int(own))]
    program += [
        (load_byte, "", "", 9),
        (jump_equal, "pass", "", _UDP),
        (jump_equal, "", "drop", _TCP),
        (load_x_header, "", "", 0),
        (load_byte_x, "", "", 13),
        (mask, "", "", _SYN | _ACK),
        (jump_equal, "pass", "drop", _SYN),
    ]
    labels["six"] = len(program)
    if own is not None and own.version == 6:
        for at in range(0, 16, 4):
            wanted = int.from_bytes(own.packed[at : at + 4], "big")
            program += [(load_word, "", "", 24 + at), (jump_equal, "", "pass", wanted)]
    program += [
        (load_byte, "", "", 6),
        (jump_equal, "pass", "", _UDP),
        (jump_equal, "", "drop", _TCP),
        (load_byte, "", "", 40 + 13),
        (mask, "", "", _SYN | _ACK),
        (jump_equal, "pass", "drop", _SYN),
    ]
    labels["pass"] = len(program)
    program.append((end, "", "", SNAP_BYTES))
    labels["drop"] = len(program)
    program.append((end, "", "", 0))
    return [
        (
            operation,
            labels[true] - at - 1 if true else 0,
            labels[false] - at - 1 if false else 0,
            operand,
        )
        for at, (operation, true, false, operand) in enumerate(program)
    ]


def open_socket(interface: str, answers_to: str | None) -> socket.socket:
    """A filtered packet socket on the interface, link headers cut off. Raises OSError."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    program = b"".join(struct.pack("HBBI", *line) for line in probe_filter(answers_to))
    held = ctypes.create_string_buffer(program, len(program))
    attached = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, attached)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    sock.bind((interface, ETH_P_ALL))
    return sock


def record(data: bytes, stamp: bytes) -> bytes | None:
    """A `RECORD` of a packet that begins with its IP header; None if it is none of TCP and UDP."""
    seconds, nanoseconds = struct.unpack("qq", stamp)
    if data[0] >> 4 == 4:
        protocol, destination = data[9], _MAPPED + data[16:20]
        rest = data[(data[0] & 15) * 4 :]
    else:
        protocol, destination = data[6], data[24:40]
        rest = data[40:]
    port, flags = 0, 0
    if protocol in (_TCP, _UDP) and len(rest) >= 4:
        port = int.from_bytes(rest[2:4], "big")
    if protocol == _TCP and len(rest) >= 14:
        flags = rest[13]
    return RECORD.pack(seconds * 10**9 + nanoseconds, destination, port, protocol, flags)


def collect(sock: socket.socket, kept: list[tuple[bytes, bytes]]) -> None:
    """Append packets and their stamps until standard input ends, then until it is quiet."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    ends_at: float = FOREVER
    while time.monotonic() < ends_at:
        ready = poll.poll(50)
        if any(fd == 0 for fd, _ in ready):
            poll.unregister(0)
            ends_at = time.monotonic() + DRAIN_S
        if ends_at != FOREVER and not any(fd == sock.fileno() for fd, _ in ready):
            return
        try:
            while True:
                data, control, _, _ = sock.recvmsg(SNAP_BYTES, 64)
                kept.append((data, control[0][2]))
        except BlockingIOError:
            continue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("interface")
    parser.add_argument("file")
    parser.add_argument("--answers-to")
    flags = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for pytest, which ends us in order.
    sock = open_socket(flags.interface, flags.answers_to)
    print("ready", flush=True)
    kept: list[tuple[bytes, bytes]] = []
    collect(sock, kept)
    seen, dropped = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    with Path(flags.file).open("wb") as file:
        file.writelines(filter(None, (record(data, stamp) for data, stamp in kept)))
    print(json.dumps({"seen": seen, "dropped": dropped, "kept": len(kept)}), flush=True)


class Capture:
    """A capture in a namespace, running when the constructor returns.

    Used as a context manager it is stopped at the end of the block; `packets` then holds all, in
    the order of time.

    Raises:
        RuntimeError: at its start, if it did not come up; at its end, if the kernel lost packets.
    """

    def __init__(
        self, namespace: Namespace, interface: str, file: Path, answers_to: str | None = None
    ) -> None:
        self.packets: list[Packet] = []
        self._file = file
        command = [sys.executable, "-S", "-E", __file__, interface, str(file)]
        if answers_to is not None:
            command += ["--answers-to", answers_to]
        self._process = namespace.popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        if not ready or self._process.stdout.readline() != "ready\n":
            self._process.kill()
            raise RuntimeError("the capture did not start")

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.stop()
        else:
            self._process.kill()
            self._process.communicate()

    def stop(self) -> list[Packet]:
        """End the capture and return what was seen."""
        out, _ = self._process.communicate(timeout=STOP_TIMEOUT_S)
        counts = json.loads(out)
        if counts["dropped"]:
            raise RuntimeError(f"the capture lost packets: {counts}")
        names = {_TCP: "tcp", _UDP: "udp"}
        texts: dict[bytes, str] = {}
        for stamp, raw, port, protocol, flags in RECORD.iter_unpack(self._file.read_bytes()):
            address = texts.get(raw)
            if address is None:
                parsed = ipaddress.IPv6Address(raw)
                address = texts[raw] = str(parsed.ipv4_mapped or parsed)
            name = names.get(protocol, str(protocol))
            self.packets.append(Packet(stamp / 1e9, address, port, name, flags))
        self.packets.sort()
        return self.packets

    def probes(self) -> list[Packet]:
        """TCP SYNs without ACK and UDP datagrams, in the order of time."""
        return [packet for packet in self.packets if packet.is_probe]


if __name__ == "__main__":
    main()
