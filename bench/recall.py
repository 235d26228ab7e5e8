"""Recall of a SYN scan of 65,536 hosts × 2 ports, and what nmap says of 1,000 of them (issue 14).

Truth is drawn from a seed. Judged: at a fixed rate and at one that is found (--rate auto) nothing
missing, nothing false, every state and reason right; at 5 % loss on either way, with two retries,
at least 0.999 of the open ports.

    sudo .venv/bin/python bench/recall.py [--seed 1] [--rate 100000] [--hosts 16] [--only 4 6]
"""

from __future__ import annotations

import argparse
import ipaddress
import random
import sys
import tempfile
from pathlib import Path

from common import installed, keep, need, table
from lab.judge import judge_set, judge_states
from lab.measure import measure
from lab.network import Lab
from lab.nmap import syn_states
from lab.nray import environment, open_pairs, read_events, states
from lab.truth import ADMIN, CLOSED, OPEN, SILENT, Truth, draw_space, rejected

NETWORKS = {4: "198.18.0.0", 6: "2001:db8:1::"}
PORTS = (80, 443)
SHARES = {OPEN: 0.2, SILENT: 0.3, CLOSED: 0.49, ADMIN: 0.01}
LOSS = 0.05
RECALL_UNDER_LOSS = 0.999
#: Hosts and ports that nmap is asked about: 1,000 pairs.
NMAP_HOSTS, NMAP_PORTS = 50, 20


class Bench:
    """A lab, and where runs leave their output."""

    def __init__(self, lab: Lab, directory: Path, rate: int) -> None:
        self.lab = lab
        self.directory = directory
        self.rate = rate

    def scan(self, network: str, ports: str, *flags: str) -> tuple[list[dict[str, object]], float]:
        """The events of a scan, and the seconds it took, start and end included."""
        rate = () if "--rate" in flags else ("--rate", str(self.rate))
        # fmt: off
        command = installed(
            "scan", "--syn", "-t", network, "-p", ports, "--show", "closed,filtered",
            "--format", "json", *rate, *flags,
        )
        # fmt: on
        run = measure([command], self.directory, namespace=self.lab.scanner, env=environment())
        said = (self.directory / "0.err").read_text()
        if run.statuses != [0] or "lost" in said:
            print(f"exit {run.statuses}: {said[-500:]}", file=sys.stderr)
        return read_events((self.directory / "0.out").read_text()), run.wall_s


def recall(
    bench: Bench, network: str, truth: Truth, *flags: str
) -> tuple[list[str], dict[str, object]]:
    """A row of the table, and the figures."""
    events, seconds = bench.scan(network, ",".join(map(str, PORTS)), *flags)
    found, wanted = open_pairs(events), truth.open_pairs()
    share = len(wanted & set(found)) / len(wanted)
    figures = {
        "recall": share,
        "false": len(set(found) - wanted),
        "faults": judge_set(found, wanted)[:5],
        "states": judge_states(states(events), truth, "syn")[:5],
        "wrong_states": len(judge_states(states(events), truth, "syn")),
        "seconds": seconds,
    }
    row = [f"{share:.5f}", str(figures["false"]), str(figures["wrong_states"]), f"{seconds:.2f}"]
    return row, figures


def against_nmap(bench: Bench, version: int, seed: int) -> tuple[int, list[str]]:
    """How many of 1,000 pairs were compared, and which differ."""
    base = int(ipaddress.ip_address(NETWORKS[version]))
    chance = random.Random(seed)
    hosts = [str(ipaddress.ip_address(base + n)) for n in chance.sample(range(1 << 16), NMAP_HOSTS)]
    ports = chance.sample(range(1, 65536), NMAP_PORTS)
    shares = {OPEN: 0.2, SILENT: 0.2} | dict.fromkeys(
        rejected(version), 0.5 / len(rejected(version))
    )
    fates = {}
    for host in hosts:
        row = draw_space(chance.getrandbits(30), f"{host}", ports, {}).fates
        names = list(shares)
        for probe in row:
            [fate] = chance.choices([*names, CLOSED], [*shares.values(), 0.1])
            fates[probe] = fate
    bench.lab.keep_to(Truth(fates))
    events, _ = bench.scan(",".join(hosts), ",".join(map(str, ports)))
    ours = states(events)
    theirs = syn_states(bench.lab.scanner, hosts, ports)
    differ = [
        f"{pair}: {ours.get(pair)}, nmap {theirs[pair]}"
        for pair in theirs
        if ours.get(pair) != theirs[pair]
    ]
    return len(theirs), differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=100_000)
    parser.add_argument("--hosts", type=int, default=16, help="bits of the host part")
    parser.add_argument("--only", type=int, nargs="*", default=[4, 6])
    flags = parser.parse_args()
    need("nft", "nmap")
    rows, figures = [], {}
    missed = False
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name, Lab() as lab:
        bench = Bench(lab, Path(name), flags.rate)
        for version in flags.only:
            network = f"{NETWORKS[version]}/{ {4: 32, 6: 128}[version] - flags.hosts }"
            truth = draw_space(flags.seed, network, PORTS, SHARES)
            lab.keep_to(truth)
            row, figures[f"IPv{version}"] = recall(bench, network, truth)
            kept = row[:3] == ["1.00000", "0", "0"]
            missed |= not kept
            rows.append([f"IPv{version}, {flags.rate}/s", *row, "kept" if kept else "MISSED"])
            row, figures[f"IPv{version} auto"] = recall(bench, network, truth, "--rate", "auto")
            kept = row[:3] == ["1.00000", "0", "0"]
            missed |= not kept
            rows.append([f"IPv{version}, auto", *row, "kept" if kept else "MISSED"])
            lab.keep_to(truth, loss=LOSS)
            row, figures[f"IPv{version} loss"] = recall(bench, network, truth, "--retries", "2")
            kept = float(row[0]) >= RECALL_UNDER_LOSS and row[1] == "0"
            missed |= not kept
            rows.append(
                [f"IPv{version}, 5 % loss each way, 2 retries", *row, "kept" if kept else "MISSED"]
            )
            count, differ = against_nmap(bench, version, flags.seed)
            figures[f"IPv{version} nmap"] = {"pairs": count, "differ": differ}
            missed |= bool(differ) or count != NMAP_HOSTS * NMAP_PORTS
            print(
                f"IPv{version}: {count} pairs, {len(differ)} differ from nmap's",
                *differ[:5],
                sep="\n  ",
            )
    print(table(["scan", "recall", "false open", "other states wrong", "s", "promise"], rows))
    print(f"\nevery run: {keep('recall', figures)}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
