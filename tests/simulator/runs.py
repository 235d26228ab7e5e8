"""Seeds run one by one or by the thousand; a failing one is told with how to replay it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from .plants import PLANTS
from .replaced import replaced
from .scenario import draw
from .world import Breach, World

#: A run takes some 30 ms. One that takes so long, seconds of real time, goes round in a circle at
#: one moment of the virtual clock.
REAL_S_MAX = 60.0
#: And so many more until it is torn out of it.
GRACE_S: Final = 10.0
#: Seeds that a process takes at a time.
CHUNK: Final = 50
#: Name of the environment's switch for a planted mistake.
SWITCH: Final = "PLANTED"


@dataclass(frozen=True)
class Run:
    """What became of a seed.

    Attributes:
        trace: the same for two runs that took the same steps.
        virtual_s: how long the scan took on its own clock.
        breach: the law that was broken, in words; None for none.
    """

    seed: int
    trace: str
    virtual_s: float
    breach: str | None


def run_seed(seed: int, planted: str = "", tell: bool = False) -> Run:
    """Run a seed, with a planted mistake if one is named (see `plants`).

    Args:
        tell: print the scenario and every step.
    """
    scenario = draw(seed)
    if tell:
        print(scenario.tell(), file=sys.stderr)
    world = World(scenario, tell)
    changes = list(PLANTS[planted]()) if planted else []
    breach = None
    with _patience(world), replaced(changes):
        try:
            world.run()
        except Breach as error:
            breach = str(error)
            if tell and error.__cause__ is not None:
                sys.excepthook(
                    type(error.__cause__), error.__cause__, error.__cause__.__traceback__
                )
    return Run(seed, world.trace, world.finished_at or 0.0, breach)


class Endless(Exception):
    """Raised into a run that does not come back to its loop."""


@contextmanager
def _patience(world: World) -> Iterator[None]:
    """No run for ever; and no collections of garbage, which a short run can do without."""
    rings = 0

    def ring(*_: object) -> None:
        nonlocal rings
        rings += 1
        if rings == 1:
            world.end_soon()
        else:  # it does not even come back to its loop, whose state is now of no matter
            raise Endless

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, REAL_S_MAX, GRACE_S)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if enabled:
            gc.enable()


def first_breach(seeds: Sequence[int], planted: str = "") -> Run | None:
    """The first of these seeds that breaks a law; None if all keep them."""
    for seed in seeds:
        run = run_seed(seed, planted)
        if run.breach is not None:
            return run
    return None


def _run_chunk(seeds: Sequence[int], planted: str) -> list[Run]:
    return [run for run in (run_seed(seed, planted) for seed in seeds) if run.breach is not None]


def replay_command(seed: int, planted: str = "") -> str:
    """What to type to see a seed again, every step of it."""
    switch = f"{SWITCH}={planted} " if planted else ""
    return f"{switch}{os.path.relpath(sys.executable)} -m tests.simulator {seed} --tell"


def run_many(first: int, count: int, jobs: int, planted: str = "") -> int:
    """Run seeds in processes and tell how it goes; how many broke a law."""
    begun = time.monotonic()
    chunks = [
        range(start, min(start + CHUNK, first + count))
        for start in range(first, first + count, CHUNK)
    ]
    done = broken = 0
    print(f"seeds {first} to {first + count - 1} on {jobs} processes", flush=True)
    with ProcessPoolExecutor(jobs) as pool:
        waiting: dict[Future[list[Run]], int] = {
            pool.submit(_run_chunk, chunk, planted): len(chunk) for chunk in chunks
        }
        try:
            for future in as_completed(waiting):
                for run in future.result():
                    broken += 1
                    print(
                        f"\n{run.breach}\n  again: {replay_command(run.seed, planted)}", flush=True
                    )
                done += waiting[future]
                _tell_progress(done, count, broken, time.monotonic() - begun)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    took_s = time.monotonic() - begun
    print(
        f"{done} seeds in {took_s:.1f} s ({1000 * took_s * jobs / max(1, done):.1f} ms each), "
        f"{broken} broke a law"
    )
    return broken


def _tell_progress(done: int, count: int, broken: int, took_s: float) -> None:
    if sys.stdout.isatty():
        print(f"\r{done} of {count}, {broken} broken, {took_s:.0f} s", end="", flush=True)
        if done == count:
            print()
    elif done % (20 * CHUNK) == 0:
        print(f"{done} of {count}, {broken} broken, {took_s:.0f} s", flush=True)
