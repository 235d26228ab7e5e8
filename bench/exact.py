"""Twenty scans of each kind on fresh random listeners, each compared with ``ss``: the tally.

Issue 11, 3. Exit status 1 if a single one was not exact.

    sudo .venv/bin/python bench/exact.py [--times 20]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import keep, need, table
from lab.certs import Credentials, make_credentials
from lab.cluster import Cluster
from lab.exact import ADDRESSES, listen_everywhere, reachable
from lab.judge import judge_set
from lab.namespaces import Namespace
from lab.nray import limited, nray, open_pairs, run

Trial = Callable[[Namespace, str], list[str]]


def scan(nofile: int | None) -> Trial:
    def trial(namespace: Namespace, address: str) -> list[str]:
        truth = reachable(namespace, address)
        command = nray("scan", "-t", address, "-p", "1-65535")
        done = run(namespace, limited(nofile, command) if nofile else command).expect(0)
        return judge_set(open_pairs(done.events), truth)

    return trial


def served(credentials: Credentials) -> Trial:
    def trial(namespace: Namespace, address: str) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="nray-bench-") as name:
            cluster = Cluster(namespace, Path(name), credentials)
            targets = {"targets": [address], "tcpports": ["1-65535"], "udpports": []}
            cluster.start_server(targets, {"tcp": {"timeout": "1000ms"}})
            cluster.until(lambda: ("127.0.0.1", 8601) in reachable(namespace, "127.0.0.1"), 15)
            truth = reachable(namespace, address)
            cluster.start_node("one")
            cluster.start_node("two")
            cluster.expect_end()
            return judge_set(open_pairs(cluster.events()), truth)

    return trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    flags = parser.parse_args()
    need("ss")
    rows = []
    figures = {}
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name:
        credentials = make_credentials(Path(name))
        kinds = {
            "scan": scan(None),
            "scan, ulimit -n 64": scan(64),
            "server + 2 nodes": served(credentials),
        }
        for kind, trial in kinds.items():
            for address in ADDRESSES:
                outcomes = []
                for seed in range(flags.times):
                    with Namespace("exact") as namespace:
                        listen_everywhere(namespace, seed)
                        try:
                            faults = trial(namespace, address)
                        except AssertionError as error:
                            faults = [str(error)]
                    outcomes.append(faults)
                    for fault in faults:
                        print(f"{kind}, {address}, seed {seed}: {fault}", file=sys.stderr)
                exact = sum(not faults for faults in outcomes)
                figures[f"{kind}, {address}"] = outcomes
                rows.append([kind, address, f"{exact}/{flags.times}"])
    print(table(["kind", "address", "exact"], rows))
    print(f"\nevery run: {keep('exact', figures)}")
    sys.exit(1 if any(fault for outcomes in figures.values() for fault in outcomes) else 0)


if __name__ == "__main__":
    main()
