"""Finds a rate that a path bears, out of what becomes of packets to ports that are known to answer.

No clock, no I/O: told what a stretch of time at one rate has brought, it says the next rate.

A loss by itself says nothing: radio links, busy targets and limits on their side lose packets at
any rate. What counts is loss that a *higher* rate has brought. So a share of loss is learned at
rates below those that were too high, and a rate is too high where significantly more is lost than
that. What then came through, over what came through below, is an estimate of the path's capacity
(a queue that is full lets through just that), and the rate goes a little below it. Where a lower
rate loses as much as a higher one did, the loss is the path's own: it is learned, and the rate
goes back.

At first the rate doubles with each stretch. Once a limit is known, it stays below for a while, then
creeps up to it, and beyond it faster and faster, for the path may have changed: the shape of CUBIC
(Ha, Rhee and Xu 2008), with an estimate in place of a fixed decrease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Probes a second: where it begins, and what it never goes below and above.
START = 1000.0
FLOOR = 100.0
#: Some 60 Mbit/s of SYNs. Who knows that a path bears more can say so, with a fixed rate.
CAP = 100_000.0
#: Where nothing answers nothing can be learned: no more than this.
BLIND = 2000.0
#: Stretches, seconds: while the rate doubles, and later.
FAST_S, STEADY_S = 0.25, 0.5
#: A stretch without so many samples goes on, for at most so long; with fewer it says nothing.
SAMPLES_WANTED = 30
STRETCH_MOST_S = 2.0
SAMPLES_LEAST = 8
#: Standard deviations, and samples, by which loss has to be above what is usual.
SIGMAS = 3.0
SPARE = 1.0
#: No path is thought to be better than this: else the first lost sample would be a sign.
LOSS_LEAST = 0.005
#: What is thought usual before anything is known, and the most that is ever learned to be.
LOSS_AT_FIRST = 0.02
LOSS_MOST = 0.25
#: Share of the old in what is learned.
MEMORY = 0.8
#: A loss so much above what is usual needs no second look.
PLAIN = 0.25
#: Of the estimated capacity: where the rate goes, and the bounds of one decrease.
BELOW = 0.9
DECREASE_MOST, DECREASE_LEAST = 0.4, 0.95
#: Where this machine itself lost answers, and so cannot tell how much was too much.
LOCAL_DECREASE = 0.7
#: Steady stretches below a limit, before it is tried; the step towards it; how far beyond it steps
#: begin to double.
HOLD = 6
STEP = 0.02
BEYOND = 1.08
#: A rate of which less leaves than this is not in force: it says nothing about a higher one.
IN_FORCE = 0.8


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a stretch of time at one rate has brought.

    Attributes:
        asked, lost: samples sent, and those that were not answered in time.
        sent_rate: packets that left, a second.
        drops: answers that this machine had no room for.
    """

    asked: int
    lost: int
    sent_rate: float
    drops: int = 0


class Pacer:
    """The rate of one node.

    Args:
        cap: never more, probes a second.
    """

    def __init__(self, cap: float = CAP) -> None:
        self._cap = min(cap, CAP) if cap else CAP
        self._floor = min(FLOOR, self._cap)
        self.rate = min(START, self._cap)
        #: The share of samples that is lost at rates that are not too high.
        self.usual = LOSS_AT_FIRST
        #: What the path is thought to bear; 0: no limit was met.
        self.limit = 0.0
        self._learned = False
        self._held = 0
        self._step = STEP
        self._doubt: Stretch | None = None
        #: The rate and the share lost that a decrease answered, until it is known to have helped.
        self._before: tuple[float, float] | None = None
        self._in_vain = 0

    @property
    def stretch_s(self) -> float:
        """How long the next stretch is."""
        return STEADY_S if self.limit else FAST_S

    def is_clear(self, asked: int, answered: int) -> bool:
        """Whether a stretch is fine even if nothing more is answered."""
        return asked >= SAMPLES_LEAST and not self._is_much(asked, asked - answered)

    def judge(self, seen: Stretch) -> None:
        """Go on from what a stretch has brought, at `rate`."""
        if seen.drops:
            self._limit_at(self.rate * LOCAL_DECREASE / BELOW)
            self._before = None
            return
        if seen.asked < SAMPLES_LEAST:
            if self.rate < BLIND and seen.sent_rate >= IN_FORCE * self.rate:
                self._set(min(BLIND, self.rate * 1.5))
            return
        doubt, self._doubt = self._doubt, None
        if doubt is not None and self._is_much(seen.asked, seen.lost):
            seen = Stretch(seen.asked + doubt.asked, seen.lost + doubt.lost, seen.sent_rate)
        self._decide(seen, sure=doubt is not None)

    def _is_much(self, asked: int, lost: int) -> bool:
        usual = max(self.usual, LOSS_LEAST)
        spread = math.sqrt(asked * usual * (1 - usual))
        return lost > asked * usual + SIGMAS * spread + SPARE

    def _decide(self, seen: Stretch, sure: bool) -> None:
        share = seen.lost / seen.asked
        if not self._is_much(seen.asked, seen.lost):
            self._before = None
            self._in_vain = 0
            self._learn(share)
            if seen.sent_rate >= IN_FORCE * self.rate:
                self._grow()
        elif not sure and share < self.usual + PLAIN:
            self._doubt = seen  # at the same rate again: chance does not strike twice
        elif self._before is not None and self._is_as_before(seen):
            self._in_vain += 1
            if self._in_vain >= 2:
                self._take_for_usual(share)
        else:
            self._before = (self.rate, share)
            self._in_vain = 0
            through = (1 - share) / (1 - self.usual)
            self._limit_at(
                self.rate * min(max(through, DECREASE_MOST / BELOW), DECREASE_LEAST / BELOW)
            )

    def _is_as_before(self, seen: Stretch) -> bool:
        """Whether a lower rate loses what the higher one lost, more than it would if that had been
        too much: then it would be little by now."""
        assert self._before is not None
        before = self._before[1]
        spread = math.sqrt(seen.asked * before * (1 - before))
        return before <= LOSS_MOST and seen.lost >= seen.asked * before - 2 * spread - SPARE

    def _take_for_usual(self, share: float) -> None:
        assert self._before is not None
        rate, before = self._before
        self.usual = min(LOSS_MOST, (share + before) / 2)
        self._learned = True
        self._before = None
        self._in_vain = 0
        self.limit = 0.0
        self._set(rate)

    def _learn(self, share: float) -> None:
        if self.limit and self.rate > self.limit * (BELOW + 0.02):
            return  # near a limit what is lost may be the limit's doing
        if self._learned:
            share = MEMORY * self.usual + (1 - MEMORY) * share
        else:
            share = (self.usual + share) / 2
        self._learned = True
        self.usual = min(LOSS_MOST, share)

    def _grow(self) -> None:
        if not self.limit:
            self._set(self.rate * 2)
        elif self._held < HOLD:
            self._held += 1
        else:
            if self.rate > self.limit * BEYOND:
                self._step = min(1.0, 2 * self._step)
            self._set(self.rate * (1 + self._step))

    def _limit_at(self, capacity: float) -> None:
        self.limit = capacity
        self._held = 0
        self._step = STEP
        self._set(capacity * BELOW)

    def _set(self, rate: float) -> None:
        self.rate = min(max(rate, self._floor), self._cap)
