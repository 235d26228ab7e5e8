"""``python -m tests.fuzz --frames N --jobs N``, or ``--replay FILE``.

``--plant NAME`` plants a mistake (see `plants`). The exit status is 1 if a law was broken; the
case then lies in the directory of ``--out``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .case import load, save
from .fuzzer import CORPUS, WHOLE_ONE_IN, Fuzzer, Tally, kept, replay
from .plants import PLANTS, planted
from .smaller import smaller


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="changed frames to be heard")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=None, help="left out: drawn, and printed")
    parser.add_argument("--whole-one-in", type=int, default=WHOLE_ONE_IN, metavar="N")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="for failing cases")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play the cases of a file")
    parser.add_argument(
        "--keep", action="store_true", help="write the smallest corpus that covers as much"
    )
    told = parser.parse_args(arguments)
    if told.replay is not None:
        return _replay(told.replay, told.plant)
    seed = told.seed if told.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"seed {seed}, {told.jobs} processes", flush=True)
    share = -(-told.frames // told.jobs)
    work = partial(_work, frames=share, whole=told.whole_one_in, plant=told.plant)
    seeds = [seed + number for number in range(told.jobs)]
    if told.jobs == 1:
        tallies = [work(seed)]
    else:
        with multiprocessing.get_context("fork").Pool(told.jobs) as pool:
            tallies = pool.map(work, seeds, chunksize=1)
    failures = _tell(tallies, told.out)
    if told.keep and not failures:
        cases = [*kept(), *(case for tally in tallies for case in tally.corpus)]
        for end, chosen in smaller(cases).items():
            save(CORPUS / f"{end}.jsonl", chosen)
            print(f"{end}: {len(chosen)} cases kept")
    return 1 if failures else 0


def _work(seed: int, *, frames: int, whole: int, plant: str) -> Tally:
    with planted(plant):
        return Fuzzer(seed, whole, tell=True).run(frames)


def _tell(tallies: Sequence[Tally], out: Path) -> int:
    """Print what has come of it; returns how many failures."""
    refusals: Counter[str] = Counter()
    edges: set[int] = set()
    words = set()
    for tally in tallies:
        refusals += tally.refusals
        edges |= tally.edges
        words |= tally.words
    seconds = max(tally.seconds for tally in tallies)
    frames = sum(tally.frames for tally in tallies)
    print(
        f"{sum(tally.changed for tally in tallies):,} mutated frames of {frames:,} heard "
        f"in {sum(tally.cases for tally in tallies):,} cases, "
        f"{seconds:.0f} s, {frames / seconds:,.0f} frames/s"
    )
    print(
        f"of these by whole ends: {sum(tally.whole_frames for tally in tallies):,} frames "
        f"in {sum(tally.whole_cases for tally in tallies):,} cases"
    )
    corpus = sum(len(tally.corpus) for tally in tallies)
    print(f"edges {len(edges):,}, words {len(words):,}, corpus {corpus:,}")
    for tally in tallies:
        print(
            f"seed {tally.seed}: RSS {tally.rss_first >> 20} MiB after the first fifth, "
            f"{tally.rss_last >> 20} at the end, {tally.rss_peak >> 20} at most; Python's blocks "
            f"{tally.blocks_first:,}, {tally.blocks_last:,}; "
            f"a byte took {tally.swell_most:.0f} bytes at most"
        )
    print("refusals: " + ", ".join(f"{name} {count:,}" for name, count in refusals.most_common()))
    failures = [failure for tally in tallies for failure in tally.failures]
    for failure in failures:
        path = out / f"{failure.case.name}.jsonl"
        save(path, [failure.case])
        print(f"\n{failure.error}\n{failure.trace}")
        print(f"again: python -m tests.fuzz --replay {path}")
    print("all laws kept" if not failures else f"{len(failures)} laws broken")
    return len(failures)


def _replay(path: Path, plant: str) -> int:
    status = 0
    with planted(plant):
        for case in load(path):
            print(f"{case.name}: {case.end}, {case.world}, {list(map(len, case.lines))} frames")
            trouble = replay(case)
            print(trouble or "all laws kept")
            status |= trouble is not None
    return status


if __name__ == "__main__":
    sys.exit(main())
