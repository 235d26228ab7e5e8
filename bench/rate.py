"""Judges ``ratelimit`` by capture over 20 s, as DESIGN.md says (issue 11, 8).

sudo .venv/bin/python bench/rate.py [--seconds 20]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import keep, need, table
from lab.capture import Capture
from lab.certs import make_credentials
from lab.cluster import Cluster
from lab.judge import BUCKET_S, judge_gaps, judge_rate
from lab.network import INTERFACE, Lab
from lab.nray import scan
from lab.truth import Truth

TARGET = "198.18.1.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=20)
    flags = parser.parse_args()
    need("nft")
    seconds = flags.seconds
    rows = []
    figures = {}
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name, Lab() as lab:
        directory = Path(name)
        credentials = make_credentials(directory)
        lab.keep_to(Truth())

        def scanned(rate: int, processes: int) -> None:
            # fmt: off
            scan(
                lab.scanner, "-t", TARGET, "-p", f"1-{rate * seconds + rate // 20 + 1}",
                "--rate", str(rate), "--processes", str(processes), timeout_s=seconds * 3 + 30,
            ).expect(0)
            # fmt: on

        def served(rate: int, _: int) -> None:
            ports = f"1-{rate * seconds + rate // 20 + 1}"
            cluster = Cluster(lab.scanner, directory, credentials)
            cluster.start_server(
                {"targets": [TARGET], "tcpports": [ports], "udpports": []}, {"ratelimit": rate}
            )
            cluster.start_node("one")
            cluster.expect_end(seconds * 3 + 30)

        kinds = [
            ("scan, 1 process", scanned, 1000, 1),
            ("scan, 2 processes", scanned, 1000, 2),
            ("server + node", served, 1000, 0),
            ("scan, 1 process", scanned, 10, 1),
            ("scan, 2 processes", scanned, 10, 2),
        ]
        for kind, go, rate, processes in kinds:
            with Capture(lab.scanner, INTERFACE, directory / "capture") as capture:
                go(rate, processes)
            times = [packet.time_s for packet in capture.probes()]
            if rate * BUCKET_S >= 10:
                faults = judge_rate(times, rate, seconds)
            else:
                faults = judge_gaps(times, rate)
            buckets = Counter(int((time - times[0]) / BUCKET_S) for time in times)
            counts = [buckets[number] for number in range(int(seconds / BUCKET_S))]
            figures[f"{kind}, {rate}/s"] = {"faults": faults, "buckets": counts}
            whole = (len(times) - 1) / (times[-1] - times[0])
            # fmt: off
            rows.append([
                kind, str(rate), f"{whole:.1f}", str(min(counts)), str(max(counts)),
                "kept" if not faults else "; ".join(faults),
            ])
            # fmt: on
    print(table(["kind", "rate", "whole", "least in 100 ms", "most in 100 ms", "verdict"], rows))
    print(f"\nevery bucket: {keep('rate', figures)}")
    sys.exit(1 if any(figure["faults"] for figure in figures.values()) else 0)


if __name__ == "__main__":
    main()
