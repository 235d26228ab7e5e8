"""Keeps a node at the rate that its path bears: between the counters of its workers and `pacing`.

One for the whole node, in the supervisor's process: its workers share one rate, so one must decide,
and a worker that dies must not take what was learned with it. They count in the memory that holds
the rate (no message has to be waited for: a worker in its engine says nothing for seconds).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

import trio

from nray.node.pacing import SAMPLES_WANTED, STRETCH_MOST_S, Pacer, Stretch

log = logging.getLogger("nray.node")

#: Between two looks at the counters, seconds.
LOOK_S = 0.02
#: After a stretch: longer than samples wait for their answers (a second), for workers that tell
#: late.
ANSWERS_MOST_S = 1.3
#: Bits on the wire of the smallest Ethernet frame, preamble and gap included; and how much of a
#: link's speed is for probes.
FRAME_BITS, LINK_SHARE = 672, 0.8
#: The limit is told of again when it has moved so far.
TOLD_AGAIN = 0.25


class Counters(Protocol):
    """What of `nray._core.Bucket` is needed here."""

    @property
    def sent(self) -> int: ...
    @property
    def drops(self) -> int: ...
    def set_rate(self, per_second: float) -> None: ...
    def begin_stretch(self) -> int: ...
    def end_stretch(self) -> None: ...
    def samples(self, stretch: int) -> tuple[int, int, int]: ...


async def keep_tempo(shared: Counters, pacer: Pacer) -> None:
    """Set the shared rate, again and again, until cancelled."""
    told = 0.0
    try:
        while True:
            shared.set_rate(pacer.rate)
            seen = await _stretch(shared, pacer)
            if seen.sent_rate:
                pacer.judge(seen)
            if pacer.limit and abs(pacer.limit - told) > TOLD_AGAIN * told:
                told = pacer.limit
                log.info("the way to the targets bears some %s probes a second", f"{told:,.0f}")
    finally:
        shared.end_stretch()


async def _stretch(shared: Counters, pacer: Pacer) -> Stretch:
    """What a stretch at the rate that is set brings."""
    sent, drops = shared.sent, shared.drops
    begun = trio.current_time()
    number = shared.begin_stretch()
    await trio.sleep(pacer.stretch_s)
    while trio.current_time() - begun < STRETCH_MOST_S:
        if shared.samples(number)[0] >= SAMPLES_WANTED:
            break
        await trio.sleep(LOOK_S)
    shared.end_stretch()
    took = trio.current_time() - begun
    sent_rate = (shared.sent - sent) / took
    ended = trio.current_time()
    while trio.current_time() - ended < ANSWERS_MOST_S:
        asked, answered, lost = shared.samples(number)
        if answered + lost >= asked or pacer.is_clear(asked, answered):
            break
        await trio.sleep(LOOK_S)
    asked, answered, _ = shared.samples(number)
    # A worker that ended meanwhile has told of neither: that is no loss of the path's, but rare.
    return Stretch(asked, max(0, asked - answered), sent_rate, shared.drops - drops)


def links_bear(names: list[str], root: Path = Path("/sys/class/net")) -> float:
    """Probes a second that the slowest of these links carries; 0 where none tells its speed."""
    found = []
    for name in names:
        try:
            megabits = int((root / name / "speed").read_text())
        except (OSError, ValueError):
            continue  # loopback, tunnels and radio links do not know
        if megabits > 0:
            found.append(megabits * 1e6 / FRAME_BITS * LINK_SHARE)
    return min(found, default=0.0)
