"""Hosts that send only so many ICMP errors a second: a clock of ours, hosts that are sums."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_lab import BASE, host
from nray import _core

SECOND = 10**9
MOST = 60 * SECOND
CLOSED = 7
#: Longer than any of these runs may last: slots, trials, the most a probe waits.
STEPS_MAX = 200_000


@pytest.fixture
def one(version: int) -> bytes:
    """A host; the laws are the same whichever its family."""
    return ip_address(host(version, 1)).packed


@pytest.fixture
def other(version: int) -> bytes:
    return ip_address(host(version, 2)).packed


@dataclass
class Target:
    """Answers about a closed port as long as it has tokens; begins with none, as after a scan."""

    per_s: float
    burst: float
    closed: set[int]
    tokens: float = 0.0
    at: int = 0
    asked: list[int] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def answers(self, port: int, now: int) -> bool:
        self.asked.append(now)
        self.ports.append(port)
        self.tokens = min(self.burst, self.tokens + (now - self.at) / SECOND * self.per_s)
        self.at = now
        if port not in self.closed or self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def run(
    limits: _core._Limits,
    target: Target,
    ports: list[int],
    keep: bool = True,
    wait: int = SECOND,
    address: bytes = bytes([198, 18, 0, 1]),
    every: int = 0,
    late: Iterable[int] = (),
) -> tuple[set[int], dict[int, int]]:
    """Push the ports and follow the clock: those found closed, and when the others were told.

    ``every``: packets to the host may leave so far apart, ns; ``late``: how much later than it
    wanted the engine gets its turns.
    """
    limits.note(address, CLOSED)
    for port in ports:
        assert limits.push(address, port, 0)
    found: set[int] = set()
    silent: dict[int, int] = {}
    asked: list[tuple[int, int]] = []
    turns = iter(late)
    now = allowed = 0
    for _ in range(STEPS_MAX):
        while (token := limits.settle(now)) is not None:
            assert token not in silent
            if token not in found:
                silent[token] = now
        while (due := limits.take(now, keep, allowed)) is not None or limits.wake <= now:
            if due is None:
                continue  # it was put off
            allowed = now + every
            what, host, number = due
            assert host == address
            if what == "try":
                assert number == CLOSED
                if target.answers(CLOSED, now):
                    assert limits.note(address, CLOSED)
            elif target.answers(number, now):
                found.add(number)
            elif not keep:
                asked.append((number, now + wait))
        if limits.wake == 2**63 - 1:
            break
        assert limits.wake > now
        now = limits.wake + next(turns, 0)
    else:
        raise AssertionError("no end")
    silent |= dict(asked)
    return found, silent


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("per_s", "burst", "within_s"),
    # Linux, Cisco, some firewall, BSD, and one that has no limit.
    [(1, 6, 46), (2, 10, 46), (10, 10, 20), (200, 200, 4), (10**6, 1, 4)],
)
def test_states_converge_to_closed(per_s, burst, within_s, keep, one):
    ports = list(range(1000, 1036))
    closed = set(ports[:30])
    target = Target(per_s, burst, closed | {CLOSED})
    found, silent = run(_core._Limits(SECOND), target, ports, keep, address=one)
    assert found == closed
    assert set(silent) == set(ports) - closed
    assert max(silent.values()) <= within_s * SECOND
    # each once, and trials of twenty, some of them cut short
    assert len(target.asked) <= len(ports) + 60


def test_an_unlimited_host_is_asked_twenty_times_to_know():
    target = Target(10**6, 10, {CLOSED})
    run(_core._Limits(SECOND), target, [1, 2])
    assert len(target.asked) <= 20 + 2


def test_who_says_nothing_any_more_is_waited_for_as_long_as_the_slowest():
    ports = list(range(100, 200))
    target = Target(0, 0, set())
    found, silent = run(_core._Limits(SECOND), target, ports)
    assert found == set()
    assert set(silent) == set(ports)
    assert max(silent.values()) <= MOST + SECOND
    assert len(target.asked) < 60 + 60


def test_engines_that_share_a_host_share_its_pace():
    ports = list(range(100, 110))
    target = Target(0, 0, set())
    run(_core._Limits(SECOND, 4), target, ports)
    gaps = [after - before for before, after in itertools.pairwise(target.asked)]
    assert gaps[-1] == 4_400_000_000


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.5, 2000),
    st.integers(1, 50),
    st.sets(st.integers(1, 40)),
    st.sets(st.integers(1, 40)),
    st.booleans(),
    st.integers(10**7, 3 * SECOND),
)
def test_each_is_found_or_told_once_and_in_time(per_s, burst, ports, closed, keep, timeout):
    target = Target(per_s, burst, {*closed, CLOSED})
    wait = min(timeout, SECOND)
    found, silent = run(_core._Limits(timeout), target, sorted(ports), keep, wait)
    assert found | set(silent) == ports
    assert not found & set(silent)
    assert found <= {*closed, CLOSED}
    assert all(at <= MOST + wait for at in silent.values())


@settings(max_examples=200, deadline=None)
@given(
    st.just(1.0) | st.floats(1, 2000),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(10**7, 3 * SECOND),
    st.booleans(),
    st.just(0) | st.integers(10**6, SECOND),
    st.just([]) | st.lists(st.integers(0, SECOND // 10), max_size=60),
)
def test_what_was_closed_is_found_closed(per_s, burst, full, timeout, keep, every, late):
    """Of a host as slow as Linux, or faster: however much of its burst is left, however long
    answers are waited for, whatever cap there is, and however busy this machine."""
    ports = list(range(1, 13))
    target = Target(per_s, burst, {*ports[:10], CLOSED}, full * burst)
    wait = min(timeout, SECOND)
    found, silent = run(_core._Limits(timeout), target, ports, keep, wait, every=every, late=late)
    assert found == {*ports[:10], CLOSED} & {*ports}
    assert set(silent) == {11, 12}
    # Whoever is told of was asked before, and not more often than the cap lets.
    assert {11, 12} <= set(target.ports)
    assert all(after - before >= every for before, after in itertools.pairwise(target.asked))


def test_a_trial_that_was_slower_than_meant_says_how_fast_a_host_may_be_asked():
    ports = set(range(100, 200))
    target = Target(33, 6, {CLOSED, *ports})
    late = itertools.repeat(25_000_000, 22)
    found, _ = run(_core._Limits(SECOND), target, sorted(ports), late=late)
    assert found == ports


def test_trials_that_a_cap_makes_slower_than_any_are_left_out():
    target = Target(1, 6, {CLOSED, 1, 2})
    run(_core._Limits(SECOND), target, [1, 2, 3], every=200_000_000)
    assert target.ports == [CLOSED, 1, 2, 3]


def test_a_trial_goes_on_as_slowly_as_a_cap_lets_it():
    target = Target(10**6, 20, {CLOSED, 1})
    found, _ = run(_core._Limits(SECOND), target, [1, 2], every=100_000_000)
    assert found == {1}
    assert target.ports == [CLOSED] * 20 + [1, 2]
    gaps = [after - before for before, after in itertools.pairwise(target.asked)]
    assert set(gaps[:19]) == {100_000_000}
    assert gaps[-1] == 200_000_000


@pytest.mark.parametrize(("sharers", "off"), [(1, True), (2, False)])
def test_what_was_asked_as_slowly_as_can_be_is_not_asked_again(one, sharers, off):
    limits = _core._Limits(SECOND, sharers)
    limits.spaced(1_100_000_000)
    limits.note(one, CLOSED)
    assert limits.push(one, 1, 0) is not off


def test_hosts_that_never_spoke_are_not_asked_again(one, other):
    limits = _core._Limits(SECOND)
    assert not limits.push(one, 1, 0)
    limits.note(one, CLOSED)
    assert not limits.push(other, 1, 0)
    assert limits.wake == 2**63 - 1


def test_no_more_wait_than_there_is_room_for(one):
    limits = _core._Limits(SECOND)
    limits.note(one, CLOSED)
    taken = sum(limits.push(one, number, 0) for number in range(70_000))
    assert taken == 65_536
    told = 0
    while limits.settle(MOST) is not None:
        told += 1
    assert told == taken
    assert limits.push(one, 1, MOST)


def test_a_host_makes_room_for_another_when_nothing_waits_for_it(version, one):
    """Of 100,000 hosts 4,096 are kept; those that something waits for are."""
    limits = _core._Limits(SECOND)
    limits.note(one, CLOSED)
    assert limits.push(one, 1, 0)
    others = [(BASE[version] + number).to_bytes(len(one), "big") for number in range(1000, 101_000)]
    for other in others:
        limits.note(other, 9)
    known = sum(limits.push(other, 2, 0) for other in others)
    assert 3000 < known <= 4095
    assert limits.push(one, 3, 0)
    assert limits.hosts_waiting == known + 1


def test_what_is_dropped_is_neither_asked_nor_told(one, other):
    limits = _core._Limits(SECOND)
    for each in (one, other):
        limits.note(each, CLOSED)
        for number in range(8):
            limits.push(each, (number & 1) << 32 | number, 0)
    assert limits.drop(1) == 8
    assert limits.drop(1) == 0
    assert limits.drop(2) == 0
    told = set()
    while (token := limits.settle(MOST)) is not None:
        told.add(token)
    assert told == {0, 2, 4, 6}
    assert limits.hosts_waiting == 0
    for each in (one, other):
        assert limits.push(each, 5 << 32, 0)
    assert limits.drop(5) == 2
    assert limits.hosts_waiting == 0
