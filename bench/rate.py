"""Judges ``ratelimit`` by capture over 20 s, as DESIGN.md says (issue 11, 8; issue 14, 5).

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
from lab.judge import BUCKET_S, judge_gaps, judge_rate, judge_seconds
from lab.network import INTERFACE, Lab
from lab.nray import nray, run, scan
from lab.truth import Truth

TARGET = "198.18.1.1"
#: Of SYN scans, which are judged at rates for which one host has too few ports.
TARGETS = "198.18.1.0/30"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument(
        "--fifo", action="store_true", help="SYN scans ahead of all else on this machine (chrt)"
    )
    flags = parser.parse_args()
    need("nft", "chrt")
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

        def syn(rate: int, processes: int) -> None:
            # fmt: off
            command = nray(
                "scan", "--syn", "-t", TARGETS,
                "-p", f"1-{(rate * seconds + rate // 20) // 4 + 1}", "--timeout", "200ms",
                "--rate", str(rate), "--processes", str(processes),
            )
            ahead = ["chrt", "--fifo", "10"] if flags.fifo else []
            run(lab.scanner, [*ahead, *command], seconds * 3 + 30).expect(0)
            # fmt: on

        kinds = [
            ("SYN scan, 1 process", syn, 10_000, 1),
            ("SYN scan, 2 processes", syn, 10_000, 2),
            ("SYN scan, 2 processes", syn, 10, 2),
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
            bucket_s = BUCKET_S if go is not syn or rate < 10_000 else BUCKET_S / 10
            if rate * bucket_s >= 10:
                faults = judge_rate(times, rate, seconds, bucket_s)
            else:
                faults = judge_gaps(times, rate)
            faults += judge_seconds(times, rate)
            buckets = Counter(int((time - times[0]) / bucket_s) for time in times)
            counts = [buckets[number] for number in range(int(seconds / bucket_s))]
            figures[f"{kind}, {rate}/s"] = {"faults": faults, "buckets": counts}
            whole = (len(times) - 1) / (times[-1] - times[0])
            # fmt: off
            rows.append([
                kind, str(rate), f"{whole:.1f}", f"{bucket_s * 1000:.0f} ms", str(min(counts)),
                str(max(counts)),
                "kept" if not faults else "; ".join(faults),
            ])
            # fmt: on
    print(table(["kind", "rate", "whole", "bucket", "least", "most", "verdict"], rows))
    print(f"\nevery bucket: {keep('rate', figures)}")
    sys.exit(1 if any(figure["faults"] for figure in figures.values()) else 0)


if __name__ == "__main__":
    main()
