"""Whose handshake may begin: a fair queue, and a bound on what handshakes cost.

One handshake is a millisecond or two of signing and checking, and a peer can ask for it with a
copied hello. So handshakes have a share of the processor: saved up while nothing comes, so that
a fleet of nodes gets in at once, and spent evenly when more come than that. Addresses take
turns, whoever of them asks more often.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from nray.server.pace import Bucket

#: Of the processor, for handshakes: seconds in a second. 50 to 100 handshakes.
SHARE: Final = 0.1

#: Seconds of it that are saved up: some 500 nodes that all come back to a server at once.
SAVED_S: Final = 1.0

#: What a handshake is taken to cost until it has shown what it costs, seconds.
ASSUMED_S: Final = 0.002

#: What can be owed at most, seconds: however much some peer has cost, others get in again soon.
OWED_S_MAX: Final = 0.5

#: What is lost in sums of floats: nobody sleeps for less.
_ROUNDING_S: Final = 1e-9


class Turns:
    """The queue. `run` must be running where more come than there are turns."""

    def __init__(self, share: float = SHARE, saved_s: float = SAVED_S) -> None:
        self._purse = Bucket(share, saved_s)
        # By address, first the one whose turn it is; of each, who waits, the first one first.
        self._queues: dict[str, dict[trio.Event, None]] = {}
        self._news = trio.Event()

    @property
    def waiting(self) -> int:
        """Those who have no turn yet."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[Callable[[float], None]]:
        """Wait for a turn and have it. What is given is to be told of each piece of processor
        time spent, in seconds."""
        await trio.lowlevel.checkpoint()
        if self._queues or self._purse.level(trio.current_time()) <= 0:
            await self._wait(address)
        else:
            self._spend(ASSUMED_S)
        try:
            yield self._spend
        finally:
            self._spend(-ASSUMED_S)

    async def run(self) -> None:
        """Give turns to who waits, as they can be afforded."""
        while True:
            while not self._queues:
                self._news = trio.Event()
                await self._news.wait()
            await trio.sleep(self._purse.take(0.0, trio.current_time()))
            if self._queues and self._purse.level(trio.current_time()) > -_ROUNDING_S:
                self._next()

    async def _wait(self, address: str) -> None:
        mine = trio.Event()
        self._queues.setdefault(address, {})[mine] = None
        self._news.set()
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():  # it came too late to be used
                self._spend(-ASSUMED_S)
            else:
                self._leave(address, mine)
            raise

    def _leave(self, address: str, mine: trio.Event) -> None:
        queue = self._queues[address]
        del queue[mine]
        if not queue:
            del self._queues[address]

    def _next(self) -> None:
        address, queue = next(iter(self._queues.items()))
        first = next(iter(queue))
        del self._queues[address], queue[first]
        if queue:  # behind the other addresses
            self._queues[address] = queue
        self._spend(ASSUMED_S)
        first.set()

    def _spend(self, seconds: float) -> None:
        now = trio.current_time()
        self._purse.take(min(seconds, self._purse.level(now) + OWED_S_MAX), now)
