"""nray and its peers side by side: wall time, processor time for each probe, memory, recall.

In two namespaces (tests/lab), in alternating pairs, the start of every process included. Prints
tables, and stores every single run under bench/results. Memory is sampled in a run of its own, for
sampling costs time.

    sudo .venv/bin/python bench/compare.py [--pairs 7] [host] [hosts] [cluster]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import installed, keep, median, need, spread, table
from lab.certs import Credentials, make_credentials
from lab.cluster import configuration, node_command, server_command
from lab.judge import judge_set
from lab.measure import Weighed, measure
from lab.network import Lab
from lab.nray import environment, open_pairs, read_events
from lab.truth import CLOSED, OPEN, SILENT, Truth, draw_hosts, draw_ports

HOST = "198.18.1.1"
HOSTS = "198.18.0.0/20"
SEED = 20


@dataclass(frozen=True)
class Peer:
    """A way to do a work.

    Attributes:
        commands: all started at the same moment.
        found: reads (address, port) of what is open from the directory of the run.
    """

    name: str
    commands: list[list[str]]
    found: Callable[[Path], list[tuple[str, int]]]


@dataclass(frozen=True)
class Work:
    """What is to be scanned, by nray (first) and by its peers."""

    name: str
    probes: int
    truth: Truth
    peers: list[Peer]


def found_by_nray(directory: Path) -> list[tuple[str, int]]:
    return open_pairs(read_events((directory / "0.out").read_text()))


def found_by_server(directory: Path) -> list[tuple[str, int]]:
    return open_pairs(read_events((directory / "out.json").read_text()))


def found_by_nmap(directory: Path) -> list[tuple[str, int]]:
    found = []
    for line in (directory / "0.out").read_text().splitlines():
        host = re.match(r"Host: (\S+) .*Ports: (.*)", line)
        if host:
            ports = re.findall(r"(\d+)/open/tcp", host[2])
            found += [(host[1], int(port)) for port in ports]
    return found


def found_by_rustscan(directory: Path) -> list[tuple[str, int]]:
    found = []
    for line in (directory / "0.out").read_text().splitlines():
        host = re.match(r"(\S+) -> \[([\d,]*)\]", line)
        if host:
            found += [(host[1], int(port)) for port in host[2].split(",") if port]
    return found


def nmap(name: str, *words: str) -> Peer:
    return Peer(name, [["nmap", "-n", "-Pn", "-oG", "-", *words]], found_by_nmap)


def rustscan(*words: str) -> list[Peer]:
    """RustScan with the batch size that REFERENCE.md measured, if it is there."""
    program = shutil.which("rustscan") or shutil.which("rustscan", path="/root/.cargo/bin")
    if program is None:
        return []
    flags = ["--no-config", "-g", "-b", "4500", "-t", "1000", "--scripts", "none"]
    return [Peer("rustscan -b 4500", [[program, *flags, *words]], found_by_rustscan)]


def cluster(directory: Path, credentials: Credentials) -> Peer:
    """A server and two nodes on mutual TLS, with default settings."""
    targets = {"targets": [HOST], "tcpports": ["1-65535"], "udpports": []}
    written = configuration(directory, credentials, targets, {"tcp": {"timeout": "1000ms"}})
    commands = [
        server_command(written),
        node_command(credentials, "one"),
        node_command(credentials, "two"),
    ]
    return Peer("nray server + 2 nodes", [installed(*c[3:]) for c in commands], found_by_server)


def works(directory: Path, credentials: Credentials) -> dict[str, Work]:
    host = draw_ports(SEED, HOST, {OPEN: 300})
    hosts = draw_hosts(SEED, HOSTS, 80, {OPEN: 0.2, SILENT: 0.4, CLOSED: 0.4})
    whole = ["-p", "1-65535", HOST]
    nmap_host = nmap("nmap -sT -T5 --min-rate 100000", "-sT", "-T5", "--min-rate", "100000", *whole)
    fast = ["-p", "80", "--max-retries", "1", HOSTS]
    scan = ["scan", "-t", HOST, "-p", "1-65535"]
    many = ["scan", "-t", HOSTS, "-p", "80"]
    work_list = [
        Work(
            "host",
            65535,
            host,
            [
                Peer("nray scan", [installed(*scan)], found_by_nray),
                nmap_host,
                *rustscan("-a", HOST, "-r", "1-65535"),
            ],
        ),
        Work(
            "hosts",
            4096,
            hosts,
            [
                Peer("nray scan", [installed(*many)], found_by_nray),
                Peer(
                    "nray scan --timeout 300ms",
                    [installed(*many, "--timeout", "300ms")],
                    found_by_nray,
                ),
                nmap("nmap -sT -T5 --min-rate 5000", "-sT", "-T5", "--min-rate", "5000", *fast),
                nmap("nmap -sT -T5 --min-rate 100000", "-sT", "-T5", "--min-rate", "100000", *fast),
                *rustscan("-a", HOSTS, "-p", "80"),
            ],
        ),
        Work("cluster", 65535, host, [cluster(directory, credentials), nmap_host]),
    ]
    return {work.name: work for work in work_list}


@dataclass
class Runs:
    """Everything measured of one peer at one work."""

    weighed: list[Weighed] = dataclasses.field(default_factory=list)
    faults: list[list[str]] = dataclasses.field(default_factory=list)
    memory_bytes: int = 0


def run_once(lab: Lab, work: Work, peer: Peer, directory: Path, memory: bool = False) -> Weighed:
    return measure(
        peer.commands,
        directory,
        namespace=lab.scanner,
        memory=memory,
        env=environment(),
        timeout_s=120,
    )


def compare(lab: Lab, work: Work, pairs: int, directory: Path) -> dict[str, Runs]:
    """Run every peer in every round, the order turned round each time."""
    lab.keep_to(work.truth)
    truth = work.truth.open_pairs()
    runs = {peer.name: Runs() for peer in work.peers}
    for number in range(pairs + 1):
        for peer in work.peers if number % 2 else reversed(work.peers):
            weighed = run_once(lab, work, peer, directory, memory=number == 0)
            kept = runs[peer.name]
            if any(weighed.statuses):
                said = "\n".join(path.read_text()[-500:] for path in directory.glob("*.err"))
                sys.exit(f"{peer.name}: exit {weighed.statuses}\n{said}")
            kept.faults.append(judge_set(peer.found(directory), truth))
            if number == 0:  # The first run warms up, and is the one that memory is sampled in.
                kept.memory_bytes = weighed.memory_bytes
            else:
                kept.weighed.append(weighed)
    return runs


def show(work: Work, runs: dict[str, Runs]) -> dict[str, Any]:
    """Print the table of a work; the figures for the file."""
    first = runs[work.peers[0].name]
    rows = []
    figures = {}
    for name, kept in runs.items():
        walls = [weighed.wall_s for weighed in kept.weighed]
        pairs = zip(first.weighed, kept.weighed, strict=True)
        ratios = [ours.wall_s / theirs.wall_s for ours, theirs in pairs]
        cpu_us = median([weighed.cpu_s for weighed in kept.weighed]) / work.probes * 1e6
        largest = max(weighed.maxrss_bytes for weighed in kept.weighed)
        exact = sum(not faults for faults in kept.faults)
        left = sum(weighed.left for weighed in kept.weighed)
        rows.append(
            [
                name,
                spread(walls),
                spread(ratios),
                f"{cpu_us:.1f}",
                f"{kept.memory_bytes / 1e6:.0f}",
                f"{largest / 1e6:.0f}",
                f"{exact}/{len(kept.faults)}",
                str(left),
            ]
        )
        figures[name] = {
            "runs": [dataclasses.asdict(weighed) for weighed in kept.weighed],
            "faults": kept.faults,
            "memory_bytes": kept.memory_bytes,
            "ratio": median(ratios),
        }
    # fmt: off
    head = [
        "peer", "wall s", f"{work.peers[0].name} : this", "CPU µs/probe",
        "PSS MB", "largest RSS MB", "exact", "left behind",
    ]
    # fmt: on
    print(f"\n{work.name}: {work.probes} probes, {len(work.truth.open_pairs())} open\n")
    print(table(head, rows))
    for name, kept in runs.items():
        for faults in filter(None, kept.faults):
            print(f"  {name}: {json.dumps(faults)[:300]}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("works", nargs="*", metavar="host|hosts|cluster")
    flags = parser.parse_args()
    need("nft", "nmap")
    figures = {}
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name, Lab() as lab:
        directory = Path(name)
        known = works(directory, make_credentials(directory))
        for wanted in flags.works or known:
            if wanted not in known:
                parser.error(f"no work {wanted!r}: one of {', '.join(known)}")
            runs = compare(lab, known[wanted], flags.pairs, directory)
            figures[wanted] = show(known[wanted], runs)
    print(f"\nevery run: {keep('compare', figures)}")


if __name__ == "__main__":
    main()
