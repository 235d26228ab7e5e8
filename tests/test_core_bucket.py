"""The rate that workers share: laws on injected times, and real processes on real memory."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_lab import bucket
from lab.judge import judge_gaps, judge_rate, most_within
from nray import _core

#: bucket.pxi's CATCH_UP_NS, LATE_NS, PACE_MORE: what a rate may make up for, how long after its
#: turn a probe may leave for nothing, and what turns are further apart for that.
CATCH_UP_NS = 4_000_000
LATE_NS = 5_000_000
PACE_MORE = 200
SECOND_NS = 10**9
YEAR_NS = 365 * 86400 * 10**9


def shared(count: int) -> list[_core.Bucket]:
    """So many buckets on one memory, as so many processes have them."""
    fd = os.memfd_create("test-rate", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _core.Bucket.BYTES)
        return [_core.Bucket(fd) for _ in range(count)]
    finally:
        os.close(fd)


def interval_ns(rate: float) -> float:
    """Between two turns."""
    return 1e9 / rate * (1 + 1 / PACE_MORE)


rates = st.floats(0.01, 2e6)
begins = st.integers(10**9, 15 * YEAR_NS)


def check_windows(used: list[int], rate: float) -> None:
    """No window of any length holds more than the rate and what it may catch up with.

    Each pair of uses makes a window; a turn is used once it is due. The 2 are the ends.
    """
    for i in range(len(used)):
        for j in range(i, len(used)):
            span = used[j] - used[i] + CATCH_UP_NS
            assert j - i + 1 <= span / interval_ns(rate) + 2


@given(rates, begins, st.lists(st.integers(0, 30_000_000), min_size=1, max_size=40))
def test_one_taker_never_exceeds_the_rate(rate: float, now: int, late: list[int]) -> None:
    b = bucket(rate)
    used = []
    turns = []
    for lateness in late:
        turn = b.take(now)
        turns.append(turn)
        now = max(now, turn)
        used.append(now)
        now += lateness
    for before, after in itertools.pairwise(turns):
        assert after - before >= math.floor(interval_ns(rate))
    check_windows(used, rate)


@given(
    rates,
    begins,
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10_000_000)), min_size=1, max_size=60),
)
def test_takers_of_one_memory_share_one_rate(
    rate: float, begin: int, steps: list[tuple[int, int]]
) -> None:
    """Each taker has its own clock, which may be behind the others': it was not scheduled."""
    takers = shared(3)
    takers[0].set_rate(rate)
    clocks = [begin] * 3
    turns = []
    for who, lateness in steps:
        clocks[who] += lateness
        turn = takers[who].take(clocks[who])
        clocks[who] = max(clocks[who], turn)
        turns.append(turn)
    for before, after in itertools.pairwise(turns):
        assert after - before >= math.floor(interval_ns(rate))


@given(st.floats(0.01, 249), begins, st.lists(st.integers(0, 3 * 10**9), max_size=20))
def test_slow_rates_make_up_for_nothing(rate: float, now: int, late: list[int]) -> None:
    b = bucket(rate)
    before = None
    for lateness in late:
        turn = b.take(now)
        assert turn >= now
        if before is not None:
            assert turn >= before + math.floor(interval_ns(rate))
        before = turn
        now = max(now, turn) + lateness


@pytest.mark.parametrize("rate", [0.5, 10, 100, 1000, 33_333, 1e6])
def test_turns_taken_ahead_are_exactly_spaced(rate: float) -> None:
    b = bucket(rate)
    now = 10**12
    turns = [b.take(now) for _ in range(1000)]
    ideal = [turns[0] + i * interval_ns(rate) for i in range(1000)]
    # Never early by more than the ns that times are told in, late by a ten-thousandth at most.
    for turn, wanted in zip(turns, ideal, strict=True):
        assert wanted - 1 <= turn <= wanted + (wanted - turns[0]) * 1e-4 + 1


def test_a_fast_rate_catches_up_with_4_ms_and_no_more() -> None:
    b = bucket(1000)
    now = 10**12
    b.take(now)
    now += 10**9
    at_once = 0
    while b.take(now) <= now:
        at_once += 1
    assert at_once == 4  # what 4 ms hold, at a pace of 1.005 ms


def test_ten_million_a_second_is_exact_to_a_thousandth() -> None:
    b = bucket(1e7)
    now = 10**12
    first = b.take(now)
    for _ in range(99_999):
        last = b.take(now)
    assert (last - first) / 99_999 == pytest.approx(100.5, rel=1e-3)


@pytest.mark.parametrize("years", [0.1, 1, 1.15, 2, 10, 17])
@pytest.mark.parametrize("rate", [0.1, 10, 1e5])
def test_a_long_uptime_does_not_lift_the_rate(years: float, rate: float) -> None:
    """CLOCK_MONOTONIC begins at boot; times in too fine a unit run over, and limit nothing."""
    b = bucket(rate)
    now = int(years * YEAR_NS)
    first = b.take(now)
    assert now - CATCH_UP_NS <= first <= now
    assert b.take(now) - first == pytest.approx(interval_ns(rate), rel=1e-3, abs=1)


def test_no_limit() -> None:
    b = bucket(0)
    assert b.rate == 0
    assert [b.take(5 * 10**12) for _ in range(3)] == [5 * 10**12] * 3


@pytest.mark.parametrize("rate", [-1, -1e-9, math.nan, -math.inf])
def test_a_rate_is_a_number_from_0_on(rate: float) -> None:
    b = bucket(8)
    with pytest.raises(ValueError, match="rate"):
        b.set_rate(rate)
    assert b.rate == 8


@pytest.mark.parametrize("rate", [1e-12, 1e-7, 1, 1234.5, 1e6, 1e9, 1e12, math.inf])
def test_extreme_rates_are_held_as_near_as_can_be(rate: float) -> None:
    told = bucket(rate).rate
    slowest, fastest = 1 / (366 * 86400), 16e9
    assert told == pytest.approx(min(max(rate, slowest), fastest), rel=2e-2)
    assert told <= max(rate, 1 / (364 * 86400))


@given(st.floats(1e-7, 1e8))
def test_rounding_goes_to_the_slower_side(rate: float) -> None:
    assert bucket(rate).rate <= rate * (1 + 1e-12)


# ── a second ────────────────────────────────────────────────────────────────────────────────


class Late:
    """Delays in ns, again and again."""

    def __init__(self, delays: list[int]) -> None:
        self._delays = itertools.cycle(delays)

    def __call__(self) -> int:
        return next(self._delays)


class Taker:
    """What an engine does with turns: takes one, sleeps until then, looks at the clock, takes those
    that are due besides, sends them at once, looks at the clock again."""

    def __init__(self, bucket: _core.Bucket, woken: Late, held: Late, idle: Late) -> None:
        self.bucket = bucket
        self.woken = woken
        self.held = held
        self.idle = idle
        self.step: Callable[[int], int] = self.take
        self.at = 0
        self.batch: list[int] = []
        self.used: list[int] = []

    def take(self, now: int) -> int:
        self.at = self.bucket.take(now)
        self.step = self.use
        return max(now, self.at) + self.woken()

    def use(self, now: int) -> int:
        kept = self.bucket.keep(self.at, now)
        if kept is None:
            return self.take(now)
        self.batch = [kept]
        while len(self.batch) < 64:
            self.at = self.bucket.take(now)
            if self.at > now:
                break
            self.batch.append(self.at)
        self.step = self.sent
        return now + self.held()

    def sent(self, now: int) -> int:
        self.used += [now] * len(self.batch)
        self.step = self.settle
        return now + 1000

    def settle(self, now: int) -> int:
        self.bucket.settle(min(self.batch), now, len(self.batch))
        self.step = self.use if self.at > now - SECOND_NS else self.take
        return max(now, self.at) + self.woken() + self.idle()


def play(takers: list[Taker], begin: int, until: int) -> list[int]:
    """Let takers run on one clock; when probes left, sorted."""
    due = [(begin, number) for number in range(len(takers))]
    heapq.heapify(due)
    while due:
        now, number = heapq.heappop(due)
        if now < until:
            heapq.heappush(due, (takers[number].step(now), number))
    return sorted(itertools.chain.from_iterable(taker.used for taker in takers))


def delays(most: int) -> st.SearchStrategy[list[int]]:
    """Mostly short ones, as on a machine that is not always busy."""
    short = st.integers(0, 200_000)
    return st.lists(short | short | st.integers(0, most), min_size=1, max_size=50)


#: (rate, takers, longest delay between the look at the clock and the wire). Where takers have
#: turns half a second ahead, nothing makes up for a long one.
crowds = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 4), st.just(500_000)),
    st.tuples(st.floats(20, 200), st.integers(1, 4), st.just(200_000_000)),
    st.tuples(st.floats(200, 3000), st.integers(1, 3), st.just(300_000_000)),
)


@settings(max_examples=60, deadline=None)
@given(crowds, st.data())
def test_no_second_holds_more_than_the_rate(
    crowd: tuple[float, int, int], data: st.DataObject
) -> None:
    """However late takers wake, are held up between clock and wire, or idle."""
    rate, count, held_most = crowd
    buckets = shared(count)
    buckets[0].set_rate(rate)
    takers = [
        Taker(
            each,
            Late(data.draw(delays(400_000_000))),
            Late(data.draw(delays(held_most))),
            Late(data.draw(st.just([0]) | delays(1_500_000_000))),
        )
        for each in buckets
    ]
    run_s = 3 + 10 / rate
    used = play(takers, 10**12, 10**12 + int(run_s * SECOND_NS))
    assert most_within(used, SECOND_NS) <= math.ceil(rate)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rate", [1, 10, 100, 1000, 10_000])
def test_undisturbed_takers_keep_to_the_rate_evenly(rate: int, count: int) -> None:
    """0.05 to 0.15 ms late, as a machine with nothing else to do wakes a process."""
    buckets = shared(count)
    buckets[0].set_rate(rate)
    chance = random.Random(rate)
    takers = [
        Taker(
            each, Late([chance.randrange(50_000, 150_000) for _ in range(97)]), Late([0]), Late([0])
        )
        for each in buckets
    ]
    used = play(takers, 10**12, 10**12 + int(max(3.0, 30 / rate) * SECOND_NS))
    assert most_within(used, SECOND_NS) <= rate
    times_s = [each / 1e9 for each in used]
    if rate >= 1000:
        assert judge_rate(times_s, rate, 2.5, bucket_s=0.01) == []
    else:
        assert judge_gaps(times_s, rate) == []


@pytest.mark.parametrize("held", [8_000_000, 30_000_000, 150_000_000])
def test_a_probe_that_leaves_late_is_charged_for(held: int) -> None:
    """One is held up at the last moment, and the other goes on meanwhile."""
    one, other = shared(2)
    one.set_rate(100)
    even = Late([0])
    takers = [Taker(one, even, Late([held] + [0] * 1000), even), Taker(other, even, even, even)]
    assert most_within(play(takers, 10**12, 10**12 + 3 * SECOND_NS), SECOND_NS) <= 100


def test_a_late_turn_is_used_at_slow_rates_and_moves_the_next_one() -> None:
    b = bucket(10)
    now = 10**12
    at = b.take(now)
    assert b.keep(at, at + CATCH_UP_NS) == at
    assert b.take(at) == at + 100_500_000
    b = bucket(10)
    at = b.take(now)
    late = 60_000_000
    assert b.keep(at, at + late) == at + late - CATCH_UP_NS
    assert b.take(at + late) == at + 100_500_000 + late - CATCH_UP_NS


def test_a_late_turn_is_void_where_another_has_had_one_since() -> None:
    one, other = shared(2)
    one.set_rate(10)
    at = one.take(10**12)
    following = other.take(10**12)
    assert one.keep(at, at + 12_000_000) == at + 12_000_000 - CATCH_UP_NS, "an eighth of the gap"
    assert other.take(10**12) == following + 100_500_000 + 12_000_000 - CATCH_UP_NS
    assert one.keep(at, at + 13_000_000) is None
    assert one.keep(following, following + 2 * SECOND_NS) is None


def test_a_turn_is_void_when_it_is_too_late_to_charge_for_it() -> None:
    """Its charge would move a turn that is more than a second away."""
    one, other = shared(2)
    one.set_rate(1)
    at = one.take(10**12)
    other.take(10**12)
    assert one.keep(at, at + CATCH_UP_NS) == at
    assert one.keep(at, at + CATCH_UP_NS + 1) is None


# ── changes of the rate ─────────────────────────────────────────────────────────────────────


def test_the_same_rate_again_is_no_present() -> None:
    b = bucket(1)
    now = 10**12
    turns = []
    for _ in range(20):
        turns.append(b.take(now))
        b.set_rate(1)
    gaps = {after - before for before, after in itertools.pairwise(turns)}
    assert gaps == {10**9 + 10**9 // PACE_MORE}


def test_a_changed_rate_is_no_present_either() -> None:
    """A share that moves up and down a little each time must not add a burst each time."""
    b = bucket(10)
    now = time.monotonic_ns()
    first = b.take(now)
    for i in range(50):
        b.set_rate(10 + (i % 2) * 0.1)
    assert b.take(now) - first >= 0.098 * 10**9


def test_after_a_slow_rate_a_fast_one_begins_within_its_interval() -> None:
    b = bucket(1e-6)
    for _ in range(5):
        b.take()
    b.set_rate(100)
    assert b.take() - time.monotonic_ns() <= 10_050_000


def test_a_limit_that_is_taken_away_and_comes_back() -> None:
    b = bucket(1)
    for _ in range(5):
        b.take()
    b.set_rate(0)
    now = time.monotonic_ns()
    assert b.take(now) == now
    b.set_rate(1)
    assert b.take(now) - time.monotonic_ns() <= 1.005 * 10**9


def test_one_sets_the_rate_all_have_it() -> None:
    one, other = shared(2)
    one.set_rate(50)
    assert other.rate == 50
    other.set_rate(0)
    assert one.rate == 0


# ── real memory, real processes ─────────────────────────────────────────────────────────────


def test_what_is_no_memory_is_refused() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="shared rate"):
            _core.Bucket(read)
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(OSError):
        _core.Bucket(-1)


def test_processes_never_get_the_same_turn() -> None:
    ours, theirs = shared(2)
    ours.set_rate(1e6)
    each = 20_000
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mine = [theirs.take(10**12) for _ in range(each)]
            with os.fdopen(write, "w") as out:
                out.write(" ".join(map(str, mine)))
        finally:
            os._exit(0)
    os.close(write)
    turns = [ours.take(10**12) for _ in range(each)]
    with os.fdopen(read) as told:
        turns += map(int, told.read().split())
    os.waitpid(child, 0)
    turns.sort()
    assert len(turns) == 2 * each
    assert {after - before for before, after in itertools.pairwise(turns)} == {1005}


def test_a_taker_that_dies_takes_one_turn_with_it_and_no_more() -> None:
    ours, theirs = shared(2)
    ours.set_rate(1000)
    now = 10**12
    first = ours.take(now)
    child = os.fork()
    if child == 0:
        theirs.take(now)
        os._exit(0)
    os.waitpid(child, 0)
    assert ours.take(now) - first == 2_010_000
