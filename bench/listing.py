"""Time and memory of listing all of IPv4, plain and with 10,000 networks excluded (issue 11, 5).

.venv/bin/python bench/listing.py [--times 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path

from common import installed, keep, spread, table
from lab.listing import COMMAND, NETWORKS, draw_networks
from lab.measure import measure
from lab.nray import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=5)
    flags = parser.parse_args()
    rows = []
    figures = {}
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name:
        directory = Path(name)
        file = directory / "networks.txt"
        file.write_text("".join(f"{network}\n" for network in draw_networks()))
        for exclusions in ([], ["--exclude-file", str(file)]):
            command = installed("scan", "--list", *COMMAND, *exclusions)
            first_line = ["sh", "-c", f"{shlex.join(command)} | head -1"]
            for kind, line in (("first line", first_line), ("count", [*command, "--count"])):
                runs = [
                    measure([line], directory, env=environment(), timeout_s=60)
                    for _ in range(flags.times)
                ]
                if any(run.statuses != [0] for run in runs):
                    sys.exit((directory / "0.err").read_text())
                label = f"{kind}{f', {NETWORKS} excluded' if exclusions else ''}"
                figures[label] = [dataclasses.asdict(run) for run in runs]
                largest = max(run.maxrss_bytes for run in runs)
                rows.append([label, spread([run.wall_s for run in runs]), f"{largest / 1e6:.0f}"])
    print(table(["listing", "wall s", "largest RSS MB"], rows))
    print(f"\nevery run: {keep('listing', figures)}")


if __name__ == "__main__":
    main()
