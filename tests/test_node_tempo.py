"""Between the workers' counters and the pacer: what a stretch is, and when it is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from nray.node import tempo
from nray.node.pacing import FAST_S, START, STRETCH_MOST_S, Pacer, Stretch
from nray.node.tempo import ANSWERS_MOST_S, keep_tempo, links_bear


class FakeCounters:
    """Counts as a path would make workers count: samples at a rate, answered after a while."""

    def __init__(self, every_s: float, answered: Callable[[int], bool], after_s: float) -> None:
        self.every_s = every_s
        self.answered = answered
        self.after_s = after_s
        self.rate = 0.0
        self.rates: list[tuple[float, float]] = []
        self.drops = 0
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.going = False
        self._counted_at = 0.0
        self._sent = 0.0

    @property
    def sent(self) -> int:
        now = trio.current_time()
        self._sent += self.rate * (now - self._counted_at)
        self._counted_at = now
        return int(self._sent)

    def set_rate(self, per_second: float) -> None:
        _ = self.sent
        self.rate = per_second
        self.rates.append((trio.current_time(), per_second))

    def begin_stretch(self) -> int:
        self.going = True
        self.begun.append(trio.current_time())
        return len(self.begun)

    def end_stretch(self) -> None:
        if self.going:
            self.ended.append(trio.current_time())
        self.going = False

    def samples(self, stretch: int) -> tuple[int, int, int]:
        now = trio.current_time()
        begun = self.begun[stretch - 1]
        end = now if self.going else self.ended[stretch - 1]
        asked = int((end - begun) / self.every_s + 1e-9)
        heard = [k for k in range(asked) if begun + k * self.every_s + self.after_s <= now]
        answered = sum(map(self.answered, heard))
        return asked, answered, 0


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run_it() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    run_it.__name__ = test.__name__
    return run_it


async def run(counters: FakeCounters, pacer: Pacer, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await keep_tempo(counters, pacer)
    assert not counters.going, "no samples when nobody counts them"


@on_mock_clock
async def test_it_doubles_while_all_is_answered() -> None:
    counters = FakeCounters(0.004, lambda _: True, 0.001)
    await run(counters, Pacer(), 10 * FAST_S)
    rates = [rate for _, rate in counters.rates]
    assert rates[:4] == [START, 2 * START, 4 * START, 8 * START]
    # Nothing is waited for where all has come.
    assert counters.rates[3][0] - counters.rates[0][0] < 3 * (FAST_S + 3 * tempo.LOOK_S)


@on_mock_clock
async def test_a_stretch_goes_on_until_it_has_samples_enough() -> None:
    counters = FakeCounters(0.05, lambda _: True, 0.001)
    await run(counters, Pacer(), 5)
    took = counters.ended[0] - counters.begun[0]
    assert 1.4 <= took < STRETCH_MOST_S


@on_mock_clock
async def test_answers_are_waited_for_and_no_longer() -> None:
    seen: list[Stretch] = []

    class Spy(Pacer):
        def judge(self, seen_now: Stretch) -> None:
            seen.append(seen_now)
            super().judge(seen_now)

    late = FakeCounters(0.005, lambda _: True, 0.8)
    await run(late, Spy(), 3)
    assert seen[0].lost < 0.2 * seen[0].asked, "as soon as few enough can be missing"
    seen.clear()
    half = FakeCounters(0.005, lambda k: k % 2 == 0, 0.01)
    await run(half, Spy(), FAST_S + ANSWERS_MOST_S + 0.1)
    assert seen[0].asked == pytest.approx(50, abs=3)
    assert seen[0].lost == pytest.approx(25, abs=3)
    assert half.rates[1][1] < START


@on_mock_clock
async def test_a_stretch_in_which_nothing_was_sent_says_nothing() -> None:
    counters = FakeCounters(1e9, lambda _: True, 0.0)
    counters.set_rate = lambda rate: counters.rates.append((trio.current_time(), rate))  # type: ignore[method-assign]
    await run(counters, Pacer(), 20)
    assert {rate for _, rate in counters.rates} == {START}


def test_the_slowest_link_that_tells_its_speed_bounds_it(tmp_path: Path) -> None:
    for name, speed in (("ten", "10\n"), ("fast", "10000\n"), ("radio", "-1\n"), ("odd", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(speed)
    assert links_bear(["fast", "ten", "radio", "odd", "none"], tmp_path) == pytest.approx(
        10e6 / 672 * 0.8
    )
    assert links_bear(["radio", "odd", "none"], tmp_path) == 0
