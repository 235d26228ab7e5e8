"""Many trials, one after another on each of several grounds."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.certs import make_credentials

from .ground import Ground
from .plan import Plan, draw
from .trial import Trial, Verdict


@dataclass
class Campaign:
    """Trials until enough blows have landed.

    Args:
        root: a directory; that of a trial that failed stays in it.
        tell: called with each verdict as it comes.
    """

    root: Path
    tell: Callable[[Verdict], None] = lambda verdict: None
    verdicts: list[Verdict] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def landed(self) -> int:
        return sum(verdict.landed for verdict in self.verdicts)

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.faults]

    def run(self, plans: Iterator[Plan], jobs: int) -> None:
        """Carry the plans out on ``jobs`` grounds at a time; raises what a ground raised."""
        credentials = make_credentials(self.root)
        turn = threading.Lock()

        def work() -> None:
            try:
                with Ground() as ground:
                    while not self.errors:
                        with turn:
                            plan = next(plans, None)
                        if plan is None:
                            return
                        directory = self.root / f"seed-{plan.seed}"
                        directory.mkdir(exist_ok=True)
                        verdict = Trial(plan, ground, directory, credentials).run()
                        with turn:
                            self.verdicts.append(verdict)
                            self.tell(verdict)
                        if not verdict.faults:
                            shutil.rmtree(directory)
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def until(self, blows: int, first: int) -> Iterator[Plan]:
        """Plans of the seeds from ``first`` on, until so many blows have landed."""
        seed = first
        while self.landed < blows:
            yield draw(seed)
            seed += 1


def describe(verdict: Verdict) -> str:
    """A verdict for people, with what to do about it."""
    lines = [f"{verdict.seconds:5.1f} s  {verdict.plan}"]
    if verdict.waiting:
        lines.append(f"         still looking for a server that had ended: {verdict.waiting}")
    if verdict.faults:
        lines += [f"    FAULT {fault}" for fault in verdict.faults]
        lines.append(verdict.said)
        lines.append(f"    again: .venv/bin/python -m tests.torture {verdict.plan.seed}")
    return "\n".join(lines)
