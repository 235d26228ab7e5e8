"""``python -m tests.torture [SEED…]``: trials by their seeds, or many."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path

# The laboratory is a package beside this one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.namespaces import missing

from .campaign import Campaign, describe
from .plan import UNDISTURBED, draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, help="0 is the undisturbed scan")
    parser.add_argument("--first", type=int, default=1, help="seed to begin with")
    parser.add_argument("--count", type=int, default=200, help="blows to be struck")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    flags = parser.parse_args()
    if reason := missing():
        sys.exit(f"no torture here: {reason}")
    root = Path(tempfile.mkdtemp(prefix="nray-torture-"))
    campaign = Campaign(root, lambda verdict: print(describe(verdict), flush=True))
    begun = time.monotonic()
    if flags.seeds:
        campaign.run((draw(seed) if seed else UNDISTURBED for seed in flags.seeds), 1)
    else:
        plans = itertools.chain([UNDISTURBED], campaign.until(flags.count, flags.first))
        campaign.run(plans, flags.jobs)
    failed = [verdict.plan.seed for verdict in campaign.failed]
    print(
        f"{campaign.landed} blows in {len(campaign.verdicts)} trials, "
        f"{(time.monotonic() - begun) / 60:.1f} minutes; failed: {failed or 'none'}"
    )
    if failed:
        print(f"their files: {root}")
    else:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
