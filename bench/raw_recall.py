"""What the raw engine finds of 65,536 hosts × 2 ports, set against the truth (issue 14, 1).

One engine, in the scanner's namespace, driven directly: at a fixed rate, without a limit, and with
loss on either way.

    sudo .venv/bin/python bench/raw_recall.py [--rate 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from ipaddress import ip_address
from typing import Any

from common import keep, need, table
from lab.network import INTERFACE, SCANNER4, SCANNER6, TARGET4, Lab
from lab.truth import OPEN, SILENT, draw_hosts
from nray import _core

FIRST = {4: "198.18.0.0", 6: "2001:db8:1::"}
NETWORK = {4: "198.18.0.0/16", 6: "2001:db8:1::/112"}
HOSTS = 65536
PORTS = (80, 443)
OWN_MAC, TARGET_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


#: Probes and answers lost, one as independently of the other as netem would, in per cent each.
LOSS = """table netdev loss {{
chain there {{
type filter hook ingress device lab0 priority 0
numgen random mod 100 < {0} drop
}}
}}
table inet lossback {{
chain back {{
type filter hook output priority 0
numgen random mod 100 < {0} drop
}}
}}
"""


def scan(version: int, rate: float, retries: int, slices: int) -> dict[str, Any]:
    """A whole scan by one engine of this process; open ones, counts and what was sent."""
    fd = os.memfd_create("rate")
    os.ftruncate(fd, _core.Bucket.BYTES)
    bucket = _core.Bucket(fd)
    bucket.set_rate(rate)
    first = int(ip_address(FIRST[version]))
    own = ip_address(SCANNER4 if version == 4 else SCANNER6).packed
    engine = _core.RawEngine(
        bucket,
        key=os.urandom(16),
        links=[(socket.if_nametoindex(INTERFACE), INTERFACE, True, OWN_MAC, 1500)],
        routes=[(version, first, first + HOSTS - 1, 0, own, TARGET_MAC)],
        retries=retries,
        tcp_timeout_s=1.0,
    )
    ranges = [(first, first + HOSTS - 1)]
    ports = [(6, port) for port in PORTS]
    space = _core.Space(
        ranges if version == 4 else [], ranges if version == 6 else [], 0, ports, os.urandom(16)
    )
    share = space.total // slices
    began = time.monotonic()
    for k in range(slices):
        engine.add_slice(k, k * share, share, space, None)
    found = []
    counts = [0] * 9
    while engine.slices_open:
        engine.pump(1.0)
        for _, hits, done, told, _ in engine.take():
            found += [
                space.at(int.from_bytes(hits[i : i + 8], "little"))[1::2]
                for i in range(0, len(hits), _core.HIT_BYTES)
            ]
            if done:
                counts = [a + b for a, b in zip(counts, told, strict=True)]
    return {
        "open": found,
        "counts": counts,
        "sent": engine.sent,
        "drops": engine.drops,
        "duplicates": engine.duplicates,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=100_000)
    parser.add_argument("--be", type=json.loads, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.be:
        print(json.dumps(scan(*flags.be)))
        return
    need("nft")
    rows = []
    figures = {}
    with Lab() as lab:
        lab.scanner.ip("route", "add", "198.18.128.0/17", "via", TARGET4)
        lab.target.ip("route", "add", "local", "198.18.128.0/17", "dev", "lo")
        for version in (4, 6):
            truth = draw_hosts(1, NETWORK[version], PORTS[0], {OPEN: 0.05, SILENT: 0.2})
            truth.fates.update(
                draw_hosts(2, NETWORK[version], PORTS[1], {OPEN: 0.05, SILENT: 0.2}).fates
            )
            lab.keep_to(truth)
            wanted = {(int(ip_address(address)), port) for address, port in truth.open_pairs()}
            for name, rate, retries, loss in [
                ("fixed rate", flags.rate, 1, 0),
                ("no limit", 0.0, 1, 0),
                ("5 % loss each way, retries 2", flags.rate, 2, 5),
            ]:
                if loss:
                    lab.target.call(["nft", "-f", "-"], LOSS.format(loss))
                command = [
                    sys.executable,
                    __file__,
                    "--be",
                    str([version, rate, retries, 8]),
                ]
                told = json.loads(lab.scanner.call(command))
                found = {tuple(pair) for pair in told.pop("open")}
                recall = len(found & wanted) / len(wanted)
                figures[f"IPv{version}, {name}"] = told | {
                    "recall": recall,
                    "false": len(found - wanted),
                }
                # fmt: off
                rows.append([
                    f"IPv{version}, {name}", f"{recall:.5f}", str(len(found - wanted)),
                    f"{told['seconds']:.1f}", str(told["sent"]), str(told["drops"]),
                    str(told["duplicates"]),
                ])
                # fmt: on
    print(table(["", "recall", "false", "seconds", "sent", "ring drops", "duplicates"], rows))
    print(f"\nevery figure: {keep('raw-recall', figures)}")


if __name__ == "__main__":
    main()
