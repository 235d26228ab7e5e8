"""How fast the raw engine sends, beside a bare C loop, masscan and zmap, on one core (issue 14, 2).

The target drops everything at ingress. What is counted are the packets that the scanner's interface
has sent, over a while in the middle of each run; rounds alternate, and ratios are formed within.

    sudo .venv/bin/python bench/raw_send.py [--rounds 5] [--core 1]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from common import ROOT, keep, median, need, spread, table
from lab.network import INTERFACE, SCANNER4, SCANNER6, TARGETS4, TARGETS6, Lab
from nray import _core

OWN_MAC, TARGET_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
WARM_S, SAMPLE_S, LIMIT_S = 0.7, 1.5, 6.0
#: Ports of each of 32,768 hosts: more probes than any sender manages in the time.
PORTS = 400


def engine(version: int, **options: Any) -> tuple[_core.RawEngine, _core.Space]:
    """An engine on the lab's interface, of this process' namespace, and a large space."""
    fd = os.memfd_create("rate")
    os.ftruncate(fd, _core.Bucket.BYTES)
    bucket = _core.Bucket(fd)
    bucket.set_rate(options.pop("rate", 0))
    network = ip_network(TARGETS4 if version == 4 else TARGETS6)
    first, last = int(network[0]), min(int(network[-1]), int(network[0]) + 32767)
    own = ip_address(SCANNER4 if version == 4 else SCANNER6).packed
    mac = bytes.fromhex(TARGET_MAC.replace(":", ""))
    made = _core.RawEngine(
        bucket,
        key=bytes(range(16)),
        links=[
            (
                socket.if_nametoindex(INTERFACE),
                INTERFACE,
                True,
                bytes.fromhex(OWN_MAC.replace(":", "")),
                1500,
            )
        ],
        routes=[(version, first, last, 0, own, mac)],
        retries=0,
        tcp_timeout_s=0.1,
        xdp=options.pop("xdp", False),
    )
    if made.no_xdp:
        sys.exit(f"no AF_XDP: {os.strerror(made.no_xdp[0])}")
    ranges = [(first, last)]
    ports = [(6, port) for port in range(1, PORTS + 1)]
    space = _core.Space(
        ranges if version == 4 else [], ranges if version == 6 else [], 0, ports, bytes(16)
    )
    return made, space


def be_nray(version: int, xdp: bool) -> None:
    """The sender: to the end of the space or of the time."""
    made, space = engine(version, xdp=xdp)
    made.add_slice(1, 0, space.total, space, _core.Exclusions([], []))
    end = time.monotonic() + LIMIT_S
    while made.slices_open and time.monotonic() < end:
        made.pump(0.2)
        made.take()


def be_costs(version: int, count: int) -> None:
    made, space = engine(version)
    locate, cookie, build = _core._raw_costs(made, space, count)
    made.add_slice(1, 0, count, space, _core.Exclusions([], []))
    fill, frames = _core._raw_fill_benchmark(made)
    each = {"locate": locate / count, "cookie": cookie / count, "frame": build / count}
    print(json.dumps({k: v * 1e9 for k, v in (each | {"all": fill / frames}).items()}))


def processor_s(pid: int) -> float:
    """User and system time of a process, all its threads."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def rate_of(lab: Lab, core: int, command: list[str]) -> tuple[float, float]:
    """Packets that leave while this runs on one core: for each second, and for each second of its
    processor time, which tells more where other work shares the core."""
    process = lab.scanner.popen(
        [
            *(["nice", "-n", "-20"] if os.geteuid() == 0 else []),
            "taskset",
            "-c",
            str(core),
            *command,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

    def sent() -> int:
        shown = json.loads(lab.scanner.ip("-j", "-s", "link", "show", INTERFACE))
        return int(shown[0]["stats64"]["tx"]["packets"])

    before = sent()
    deadline = time.monotonic() + 10
    while sent() < before + 10_000:
        if time.monotonic() > deadline or process.poll() is not None:
            assert process.stderr is not None
            process.kill()
            sys.exit(f"{command[0]} sent nothing: {process.stderr.read().decode()[-500:]}")
        time.sleep(0.02)
    time.sleep(WARM_S)
    first, began, used = sent(), time.monotonic(), processor_s(process.pid)
    time.sleep(SAMPLE_S)
    last, ended, used = sent(), time.monotonic(), processor_s(process.pid) - used
    if process.poll() is not None:
        sys.exit(f"{command[0]} ended too early to be measured")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return (last - first) / (ended - began), (last - first) / max(used, 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--be", type=int, choices=(4, 6), help=argparse.SUPPRESS)
    parser.add_argument("--costs", type=int, choices=(4, 6), help=argparse.SUPPRESS)
    parser.add_argument("--xdp", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.be:
        be_nray(flags.be, flags.xdp)
        return
    if flags.costs:
        be_costs(flags.costs, 2_000_000)
        return
    need("nft", "gcc", "taskset", "masscan", "zmap")
    me = [sys.executable, __file__]
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name, Lab() as lab:
        bare = str(Path(name) / "bare_send")
        subprocess.run(["gcc", "-O2", "-o", bare, str(ROOT / "bench" / "bare_send.c")], check=True)
        rules = (
            "table netdev t { chain i { type filter hook ingress device lab0 priority 0\ndrop\n}\n}"
        )
        lab.target.call(["nft", "-f", "-"], rules + "\n")
        loop = [bare, INTERFACE, TARGET_MAC, OWN_MAC, str(LIMIT_S)]
        # fmt: off
        senders = {
            "bare loop, sendmmsg of 64": [*loop, "64", "mmsg"],
            "bare loop, of 1": [*loop, "1", "mmsg"],
            "bare loop, bypass": [*loop, "64", "mmsg-bypass"],
            "bare loop, TX_RING of 64": [*loop, "64", "ring"],
            "nray, IPv4": [*me, "--be", "4"],
            "nray, IPv6": [*me, "--be", "6"],
            "nray --xdp, IPv4": [*me, "--be", "4", "--xdp"],
            "nray --xdp, IPv6": [*me, "--be", "6", "--xdp"],
            "masscan": [
                "masscan", TARGETS4, "-p", f"1-{PORTS}", "--rate", "100000000", "-e", INTERFACE,
                "--source-ip", SCANNER4, "--router-mac", TARGET_MAC.replace(":", "-"),
                "--wait", "0",
            ],
            "zmap": [
                "zmap", "-p", "80", "-P", str(PORTS), "-i", INTERFACE, "-G", TARGET_MAC,
                "-S", SCANNER4, "-T", "1", "-r", "0", "-c", "0", "-o", "/dev/null",
                "--disable-syslog", "-q", "-b", "/dev/null", TARGETS4,
            ],
        }
        # fmt: on
        rounds: list[dict[str, tuple[float, float]]] = []
        for turn in range(flags.rounds + 1):
            order = list(senders) if turn % 2 else list(reversed(senders))
            rounds.append({sender: rate_of(lab, flags.core, senders[sender]) for sender in order})
        rounds = rounds[1:]  # the first warms up
        costs = {}
        for version in (4, 6):
            command = ["taskset", "-c", str(flags.core), *me, "--costs", str(version)]
            costs[version] = json.loads(lab.scanner.call(command))
    bare_name = "bare loop, sendmmsg of 64"
    for what, column in (("second", 0), ("second of processor time", 1)):
        rows = []
        for sender in senders:
            rates = [one[sender][column] / 1e6 for one in rounds]
            rows.append([sender, spread(rates), f"{1e3 / median(rates):.0f}"])
            for other in (bare_name, "masscan"):
                ratios = [one[sender][column] / one[other][column] for one in rounds]
                rows[-1].append(spread(ratios))
        head = ["sender", f"million a {what}", "ns each", "of the bare loop", "of masscan"]
        print(table(head, rows), end="\n\n")
    head = ["ns a probe", "locate", "cookie", "frame", "all but the system call"]
    print(
        table(
            head,
            [[f"IPv{v}", *(f"{costs[v][k]:.0f}" for k in costs[v])] for v in costs],
        )
    )
    print(f"\nevery run: {keep('raw-send', {'rounds': rounds, 'costs': costs})}")


if __name__ == "__main__":
    main()
