"""What the log is told of bad peers: the first few of a kind as they are, the rest as a number.

Else whoever reaches the port could fill the disk, and hide in it what matters.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import trio

log = logging.getLogger("nray.server")

#: Of one kind, told in full within `TOGETHER_S`.
TOLD_IN_FULL: Final = 5

#: Seconds that are summed up in one line.
TOGETHER_S: Final = 10.0

#: Different kinds in one period; they are the program's own, not the peers'.
KINDS_MAX: Final = 64


class Complaints:
    """`say` what is wrong; `run` tells the numbers."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()
        self._happened: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._level: dict[str, int] = {}

    def say(
        self,
        kind: str,
        message: str,
        *arguments: object,
        level: int = logging.WARNING,
        times: int = 1,
    ) -> None:
        """Log a message, or count it.

        Args:
            kind: a few words for the line with the number, "peers without good TLS".
            times: how often it has happened.
        """
        if kind not in self._said and len(self._said) >= KINDS_MAX:
            return
        self._said[kind] += 1
        self._happened[kind] += times
        self._level[kind] = level
        if self._said[kind] <= TOLD_IN_FULL:
            self._told[kind] += times
            log.log(level, message, *arguments)

    def settle(self) -> None:
        """Tell how many were not told in full, and begin anew."""
        for kind, times in self._happened.items():
            more = times - self._told[kind]
            if more:
                log.log(self._level[kind], "%s: %s more", kind, f"{more:,}")
        for counter in (self._said, self._happened, self._told):
            counter.clear()
        self._level.clear()

    async def run(self) -> None:
        """Settle every `TOGETHER_S`, and when it is cancelled."""
        try:
            while True:
                await trio.sleep(TOGETHER_S)
                self.settle()
        finally:
            self.settle()
