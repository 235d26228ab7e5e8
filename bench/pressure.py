"""How memory grows while an output stands still under full load (issue 12, 5).

.venv/bin/python bench/pressure.py [--hold 60]

A server and two nodes scan 512,000 probes into a named pipe; its reader is stopped for a minute
and then goes on. What is told is the sum of proportional set sizes (PSS) of all processes of all
three, in MB: the most before the stop, during it, and afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from common import keep, need, table
from lab.certs import make_credentials
from torture.ground import Ground
from torture.pressure import press

#: What the issue allows.
GROWS_MOST_BYTES = 50_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hold", type=float, default=60.0, help="seconds that the reader stops")
    flags = parser.parse_args()
    need()
    with tempfile.TemporaryDirectory(prefix="nray-bench-") as name, Ground() as ground:
        pressed = press(ground, Path(name), make_credentials(Path(name)), flags.hold)
    head = ["held, s", "events/s before", "MB before", "held", "after", "grown", "events", "faults"]
    row = [
        f"{flags.hold:g}",
        f"{pressed.rate:,.0f}",
        *(
            f"{size / 1e6:.1f}"
            for size in (pressed.before, pressed.held, pressed.after, pressed.grown)
        ),
        f"{pressed.events:,}",
        "; ".join(pressed.faults) or "none",
    ]
    print(table(head, [row]))
    print(f"\nkept: {keep('pressure', asdict(pressed))}", file=sys.stderr)
    return 1 if pressed.faults or pressed.grown > GROWS_MOST_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
