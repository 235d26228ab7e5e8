"""The rate that a path bears: found on simulated paths, whatever they lose by themselves."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nray.node.pacing import BELOW, BLIND, CAP, FLOOR, START, Pacer, Stretch

STEP_S = 0.01
#: What workers sample: one packet in eight, at most 500 a second.
SHARE, SAMPLES_A_SECOND = 1 / 8, 500
#: From the end of a stretch until its answers are known: all there, and some lost.
SHORT_S, LONG_S = 0.05, 0.3


@dataclass
class Path:
    """A path with a queue before its narrowest place, which loses some packets by itself.

    Attributes:
        capacity: packets a second; 0 is no limit.
        queue_s: what the queue holds, in seconds at that rate.
        loss: share lost anywhere, by chance.
    """

    capacity: float
    queue_s: float
    loss: float
    chance: random.Random
    time_s: float = 0.0
    rates: list[tuple[float, float]] = field(default_factory=list)
    queued: float = 0.0

    def carry(self, rate: float, seconds: float) -> tuple[int, int]:
        """Samples asked and lost in so much time at a rate."""
        asked = lost = 0
        due = 0.0
        for _ in range(round(seconds / STEP_S)):
            dropped = 0.0
            if self.capacity:
                self.queued = max(0.0, self.queued + (rate - self.capacity) * STEP_S)
                over = self.queued - self.queue_s * self.capacity
                if over > 0:
                    self.queued -= over
                    dropped = min(1.0, over / (rate * STEP_S))
            due += min(rate * SHARE, SAMPLES_A_SECOND) * STEP_S
            while due >= 1:
                due -= 1
                asked += 1
                lost += self.chance.random() < dropped or self.chance.random() < self.loss
            self.time_s += STEP_S
            self.rates.append((self.time_s, rate))
        return asked, lost

    def drive(self, pacer: Pacer, seconds: float) -> float:
        """Let a pacer find its rate; the mean rate of the second half."""
        begun = self.time_s
        while self.time_s < begun + seconds:
            asked, lost = self.carry(pacer.rate, pacer.stretch_s)
            clear = pacer.is_clear(asked, asked - lost)
            self.carry(pacer.rate, SHORT_S if clear else LONG_S)
            pacer.judge(Stretch(asked, lost, pacer.rate))
        return statistics.mean(rate for time, rate in self.rates if time > begun + seconds / 2)


def path(capacity: float, queue_s: float, loss: float, seed: int) -> Path:
    return Path(capacity, queue_s, loss, random.Random(seed))


@pytest.mark.parametrize("loss", [0, 0.01, 0.03, 0.05])
@pytest.mark.parametrize("queue_s", [0, 0.05])
@pytest.mark.parametrize("capacity", [2000, 20_000, 60_000])
def test_finds_what_a_path_bears(capacity: float, queue_s: float, loss: float) -> None:
    means = [path(capacity, queue_s, loss, seed).drive(Pacer(), 24) for seed in range(3)]
    assert all(0.7 * capacity <= mean <= 1.1 * capacity for mean in means)


@pytest.mark.parametrize("loss", [0, 0.01, 0.02, 0.05])
def test_chance_alone_does_not_slow_it(loss: float) -> None:
    for seed in range(5):
        assert path(0, 0, loss, seed).drive(Pacer(), 24) >= 0.7 * CAP


def test_much_of_it_slows_the_beginning_alone() -> None:
    for seed in range(5):
        pacer = Pacer()
        path(0, 0, 0.12, seed).drive(pacer, 40)
        assert pacer.rate >= 0.7 * CAP


@settings(max_examples=25, deadline=None)
@given(
    st.floats(500, 80_000),
    st.floats(0, 0.2),
    st.floats(0, 0.05),
    st.integers(0, 2**32),
)
def test_whatever_the_path(capacity: float, queue_s: float, loss: float, seed: int) -> None:
    # Wider than above: of thousands of seeds some are unlucky.
    mean = path(capacity, queue_s, loss, seed).drive(Pacer(), 24)
    assert 0.6 * capacity <= mean <= 1.25 * capacity


def test_a_path_that_gets_worse_and_better() -> None:
    changing = path(20_000, 0, 0.01, 1)
    pacer = Pacer()
    changing.drive(pacer, 10)
    changing.capacity = 4000
    assert 0.7 * 4000 <= changing.drive(pacer, 20) <= 1.2 * 4000
    changing.capacity = 40_000
    assert changing.drive(pacer, 30) >= 0.7 * 40_000


def test_it_begins_low_and_doubles() -> None:
    pacer = Pacer()
    assert pacer.rate == START
    for _ in range(3):
        pacer.judge(Stretch(60, 0, pacer.rate))
    assert pacer.rate == 8 * START
    assert pacer.limit == 0


@pytest.mark.parametrize("cap", [50, 700, 5000])
def test_a_cap_is_never_exceeded(cap: float) -> None:
    pacer = Pacer(cap)
    for _ in range(30):
        assert pacer.rate <= cap
        pacer.judge(Stretch(60, 0, pacer.rate))
    assert pacer.rate == cap


def test_no_cap_is_the_greatest() -> None:
    pacer = Pacer(0)
    for _ in range(30):
        pacer.judge(Stretch(60, 0, pacer.rate))
    assert pacer.rate == CAP


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1), st.integers(0, 5)), max_size=60))
def test_the_rate_stays_within_its_bounds(seen: list[tuple[int, float, int]]) -> None:
    pacer = Pacer()
    for asked, share, drops in seen:
        pacer.judge(Stretch(asked, int(asked * share), pacer.rate, drops))
        assert FLOOR <= pacer.rate <= CAP
        assert 0 <= pacer.usual <= 0.25


def test_where_nothing_answers_it_stays_low() -> None:
    pacer = Pacer()
    for _ in range(50):
        pacer.judge(Stretch(0, 0, pacer.rate))
    assert pacer.rate == BLIND
    fast = Pacer()
    for _ in range(5):
        fast.judge(Stretch(60, 0, fast.rate))
    before = fast.rate
    fast.judge(Stretch(3, 3, fast.rate))
    assert fast.rate == before, "three samples say nothing"


def test_a_rate_that_was_not_reached_is_not_raised() -> None:
    pacer = Pacer()
    pacer.judge(Stretch(60, 0, 0.5 * pacer.rate))
    assert pacer.rate == START
    pacer.judge(Stretch(0, 0, 0.5 * pacer.rate))
    assert pacer.rate == START


def test_answers_lost_on_this_machine_lower_it() -> None:
    pacer = Pacer()
    for _ in range(5):
        pacer.judge(Stretch(60, 0, pacer.rate))
    before = pacer.rate
    pacer.judge(Stretch(60, 0, pacer.rate, drops=1))
    assert pacer.rate == pytest.approx(0.7 * before)


def test_a_plain_loss_tells_the_capacity_at_once() -> None:
    pacer = Pacer()
    pacer.usual = 0.0
    for _ in range(4):
        pacer.judge(Stretch(60, 0, pacer.rate))
    before = pacer.rate
    pacer.judge(Stretch(100, 50, pacer.rate))
    assert pacer.limit == pytest.approx(before / 2, rel=0.05)
    assert pacer.rate == pytest.approx(BELOW * before / 2, rel=0.05)


def test_a_small_loss_gets_a_second_look() -> None:
    pacer = Pacer()
    pacer.judge(Stretch(60, 0, pacer.rate))
    before = pacer.rate
    pacer.judge(Stretch(60, 8, pacer.rate))
    assert pacer.rate == before
    pacer.judge(Stretch(60, 0, pacer.rate))
    assert pacer.rate == 2 * before, "it was chance"


def test_a_loss_that_a_lower_rate_has_too_is_the_path_s_own() -> None:
    pacer = Pacer()
    for _ in range(3):
        pacer.judge(Stretch(60, 0, pacer.rate))
    before = pacer.rate
    lowest = before
    for _ in range(12):
        pacer.judge(Stretch(100, 12, pacer.rate))
        lowest = min(lowest, pacer.rate)
    assert lowest < before
    assert pacer.usual == pytest.approx(0.12, abs=0.02)
    assert pacer.rate > before


def test_half_of_all_lost_at_any_rate_is_never_usual() -> None:
    """Targets that have had enough of us look so; the polite reading is that we are too fast."""
    pacer = Pacer()
    for _ in range(40):
        pacer.judge(Stretch(100, 50, pacer.rate))
    assert pacer.rate == FLOOR
