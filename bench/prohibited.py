"""How much 500 admin-prohibited ports add to the time of a scan (issue 11, 9): alternating pairs.

The same host and ports, once with 500 of the closed ports rejected by ICMP instead.

    sudo .venv/bin/python bench/prohibited.py [--pairs 7]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import installed, keep, median, need, spread, table
from lab.measure import measure
from lab.network import Lab
from lab.nray import environment, read_events, states
from lab.truth import ADMIN, OPEN, Truth, draw_ports

HOSTS = {4: "198.18.1.1", 6: "2001:db8:1::1"}
PORTS = 20_000
COUNT = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    flags = parser.parse_args()
    need("nft")
    rows = []
    figures = {}
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name, Lab() as lab:
        if not lab.icmp_unlimited:
            sys.exit("this kernel does not let a namespace lift its ICMP limits")
        directory = Path(name)

        def seconds(truth: Truth, host: str, wanted: int) -> float:
            lab.keep_to(truth)
            command = installed("scan", "-t", host, "-p", f"1-{PORTS}", "--show", "filtered")
            run = measure([command], directory, namespace=lab.scanner, env=environment())
            found = states(read_events((directory / "0.out").read_text())).values()
            told = sum(reason == "admin-prohibited" for _, reason in found)
            if run.statuses != [0] or told != wanted:
                sys.exit(f"exit {run.statuses}, {told} told as admin-prohibited, not {wanted}")
            return run.wall_s

        for version, host in HOSTS.items():
            plain = draw_ports(1, host, {OPEN: 100}, range(1, PORTS + 1))
            both = draw_ports(1, host, {OPEN: 100, ADMIN: COUNT}, range(1, PORTS + 1))
            without, including = [], []
            for _ in range(flags.pairs):
                without.append(seconds(plain, host, 0))
                including.append(seconds(both, host, COUNT))
            added = [more - less for more, less in zip(including, without, strict=True)]
            figures[f"IPv{version}"] = {"without": without, "with": including}
            rows.append([f"IPv{version}", spread(without), spread(including), spread(added, ".3f")])
            rows[-1].append("kept" if median(added) < 0.2 else "MISSED")
    print(table(["", "without s", f"with {COUNT} s", "added s", "under 0.2 s"], rows))
    print(f"\nevery run: {keep('prohibited', figures)}")


if __name__ == "__main__":
    main()
