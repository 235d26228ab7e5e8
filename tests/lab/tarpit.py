"""Answers every SYN that comes out of a tun device with a SYN-ACK: a program of its own.

    tarpit.py DEVICE DELAY_S

It prints ``ready`` and serves until it is killed. Whatever else comes is not answered.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

from checksum import checksum  # beside it: this is a program

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SYN, ACK = 0x02, 0x10
TCP = 6
SEQUENCE = 0x6E726179


def reply(packet: bytes) -> bytes | None:
    """The SYN-ACK for a packet that is a SYN, else None."""
    version = packet[0] >> 4
    if version == 4 and packet[9] == TCP:
        source, target, tcp = packet[12:16], packet[16:20], packet[(packet[0] & 15) * 4 :]
    elif version == 6 and packet[6] == TCP:
        source, target, tcp = packet[8:24], packet[24:40], packet[40:]
    else:
        return None
    if len(tcp) < 20 or tcp[13] & (SYN | ACK) != SYN:
        return None
    theirs, ours, number = struct.unpack_from("!HHI", tcp)
    acknowledged = (number + 1) & 0xFFFFFFFF
    head = struct.pack("!HHIIBBHHH", ours, theirs, SEQUENCE, acknowledged, 0x50, 0x12, 1024, 0, 0)
    pseudo = target + source + struct.pack("!II", len(head), TCP)
    head = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, len(head), TCP, 64) + target + source + head
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(head), 0, 0x4000, 64, TCP, 0) + target + source
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + head


def main() -> None:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(
        device, TUNSETIFF, struct.pack("16sH14x", sys.argv[1].encode(), IFF_TUN | IFF_NO_PI)
    )
    delay_s = float(sys.argv[2])
    print("ready", flush=True)
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([device], [], [], timeout)[0]:
            answer = reply(os.read(device, 2048))
            if answer is not None:
                waiting.append((time.monotonic() + delay_s, answer))
        while waiting and waiting[0][0] <= time.monotonic():
            os.write(device, waiting.popleft()[1])


if __name__ == "__main__":
    main()
