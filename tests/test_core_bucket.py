"""The rate that workers share: laws on injected times, and real processes on real memory."""

from __future__ import annotations

import itertools
import math
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_lab import bucket
from nray import _core

#: bucket.pxi's CATCH_UP_NS: what a rate may make up for.
CATCH_UP_NS = 4_000_000
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
    return 1e9 / rate


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
    assert at_once == 5  # 4 ms, and the one that is due


def test_ten_million_a_second_is_exact_to_a_thousandth() -> None:
    b = bucket(1e7)
    now = 10**12
    first = b.take(now)
    for _ in range(99_999):
        last = b.take(now)
    assert (last - first) / 99_999 == pytest.approx(100, rel=1e-3)


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


# ── changes of the rate ─────────────────────────────────────────────────────────────────────


def test_the_same_rate_again_is_no_present() -> None:
    b = bucket(1)
    now = 10**12
    turns = []
    for _ in range(20):
        turns.append(b.take(now))
        b.set_rate(1)
    assert [after - before for before, after in itertools.pairwise(turns)] == [10**9] * 19


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
    assert b.take() - time.monotonic_ns() <= 10_000_000


def test_a_limit_that_is_taken_away_and_comes_back() -> None:
    b = bucket(1)
    for _ in range(5):
        b.take()
    b.set_rate(0)
    now = time.monotonic_ns()
    assert b.take(now) == now
    b.set_rate(1)
    assert b.take(now) - time.monotonic_ns() <= 10**9


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
    assert {after - before for before, after in itertools.pairwise(turns)} == {1000}


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
    assert ours.take(now) - first == 2_000_000
