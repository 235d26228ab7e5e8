"""``python -m tests.simulator SEED [--tell]``, or ``--seeds COUNT [--from SEED] [--jobs N]``.

``PLANTED=name`` plants a mistake (see `plants`). The exit status is 1 if a law was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .plants import PLANTS
from .runs import SWITCH, replay_command, run_many, run_seed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this one alone")
    parser.add_argument("--tell", action="store_true", help="print the scenario and each step")
    parser.add_argument("--seeds", type=int, default=0, help="run so many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="beginning with this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    told = parser.parse_args(arguments)
    planted = os.environ.get(SWITCH, "")
    if planted and planted not in PLANTS:
        parser.error(f"{SWITCH}={planted}: there are {', '.join(PLANTS)}")
    if (told.seed is None) == (told.seeds < 1):
        parser.error("give one seed, or --seeds and a count")
    if told.seed is None:
        return 1 if run_many(told.first, told.seeds, max(1, told.jobs), planted) else 0
    run = run_seed(told.seed, planted, told.tell)
    if run.breach is not None:
        print(run.breach)
        if not told.tell:
            print(f"  again: {replay_command(run.seed, planted)}")
    else:
        print(f"seed {run.seed}: all laws kept, {run.virtual_s:.2f} s on its clock")
    print(f"trace {run.trace}")
    return 0 if run.breach is None else 1


if __name__ == "__main__":
    sys.exit(main())
