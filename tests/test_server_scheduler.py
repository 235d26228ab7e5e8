"""Slices and leases: the laws under arbitrary histories, and the sizes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from fakes import counts_of
from nray.server.scheduler import (
    PROCESSES_MOST,
    SHARE,
    SLICE_FIRST,
    SLICE_LEAST,
    SLICE_NAMES_MOST,
    SLICE_SECONDS,
    STRAGGLER_FACTOR,
    STRAGGLER_S,
    FaultyReport,
    Scheduler,
)


@dataclass(frozen=True)
class Seg:
    """A segment, as much as the scheduler sees of it."""

    id: int
    probes: int
    names: tuple[str, ...] = ()


def record(position, address=b""):
    return position.to_bytes(8, "little") + address.ljust(16, b"\0") + b"\0" * 8


def positions(hits):
    return [int.from_bytes(hits[i : i + 8], "little") for i in range(0, len(hits), 32)]


def scheduler_of(*totals, **changes):
    made = Scheduler(**changes)
    for number, total in enumerate(totals):
        made.add_segment(Seg(number, total))
    made.end_segments()
    return made


def granted(scheduler, node, count=1, now=0.0):
    scheduler.want(node, count)
    return scheduler.grant(node, now)


def end(scheduler, grant, hits=b"", now=0.0):
    opened = len(hits) // 32
    counts = counts_of(grant.count, min(opened, grant.count))
    return scheduler.report(grant.lease, hits, done=True, counts=counts, now=now)


def run_to_its_end(scheduler, node, now=0.0, took=1.0):
    """Every slice that is left, done by this node; the grants in order."""
    grants = []
    while batch := granted(scheduler, node, now=now):
        grants += batch
        now += took
        for grant in batch:
            assert end(scheduler, grant, now=now) is not None
    return grants


# ── the laws ────────────────────────────────────────────────────────────────────────────────


class Histories(RuleBasedStateMachine):
    """Nodes come, ask, report in parts, die, come back and report late, in any order.

    A third of all positions answer. Each run of a slice may find any part of them in its
    partial reports; the report that ends it tells what that run has not yet told.
    """

    nodes = Bundle("nodes")
    leases = Bundle("leases")

    @initialize(
        pools=st.integers(1, 3),
        totals=st.lists(st.integers(1, 3000), min_size=1, max_size=3),
        most=st.sampled_from([0, 0, 7, 100]),
        rate=st.sampled_from([0.0, 0.0, 0.5, 10.0, 1e5]),
    )
    def begin(self, pools, totals, most, rate):
        self.scheduler = scheduler_of(*totals, pools=pools, slice_most=most, ratelimit=rate)
        self.totals = totals
        self.gone = set()
        self.given = {}  # lease: (pool, grant)
        self.told = {}  # lease: positions reported under it
        self.handed = [set() for _ in range(pools)]  # by pool: (segment, position)
        self.now = 0.0

    def answers(self, segment, start, count):
        return {n for n in range(start, start + count) if (n * 7 + segment) % 3 == 0}

    @rule(target=nodes, preferred=st.integers(-1, 4), processes=st.integers(1, 4))
    def join(self, preferred, processes):
        pool = self.scheduler.choose_pool(preferred)
        if 0 <= preferred < len(self.scheduler.pools):
            assert pool == preferred
        else:
            sizes = [len(each.nodes) for each in self.scheduler.pools]
            assert pool == sizes.index(min(sizes))
        return self.scheduler.join("node", pool, processes)

    @rule(node=nodes)
    def leave(self, node):
        held = len(node.holds)
        assert self.scheduler.leave(node) == held
        self.gone.add(id(node))

    @rule(node=nodes, keep=st.sets(st.integers(1, 40)))
    def come_back(self, node, keep):
        if id(node) in self.gone:
            return
        held = {each.holders[node][0] for each in node.holds}
        assert self.scheduler.keep_only(node, keep) == len(held - keep)
        assert {each.holders[node][0] for each in node.holds} == held & keep

    @rule(
        target=leases,
        node=nodes,
        count=st.integers(1, 5),
        passed=st.floats(0, 3) | st.floats(0, 100),
    )
    def ask(self, node, count, passed):
        if id(node) in self.gone:
            return multiple()
        self.now += passed
        grants = granted(self.scheduler, node, count, self.now)
        node.wanted = 0
        assert len(grants) <= count
        for grant in grants:
            assert grant.lease not in self.given, "a lease number was given twice"
            self.given[grant.lease] = (node.pool, grant)
            self.told[grant.lease] = set()
        return multiple(*[grant.lease for grant in grants])

    @rule(lease=leases, done=st.booleans(), part=st.integers(0, 2**16), twice=st.booleans())
    def report(self, lease, done, part, twice):
        pool, grant = self.given[lease]
        there = sorted(self.answers(grant.segment, grant.start, grant.count))
        if done:
            found = [n for n in there if n not in self.told[lease]]
        else:
            found = [n for n in there if part >> (n % 16) & 1]
        self.told[lease] |= set(found)
        hits = b"".join(map(record, found + (found if twice else [])))
        self.now += 0.01
        taken = self.scheduler.report(
            lease,
            hits,
            done=done,
            counts=counts_of(grant.count, len(there)) if done else (),
            now=self.now,
        )
        if taken is None:
            return  # late, and dropped: never an error
        assert (taken[0].number, taken[1]) == (pool, grant.segment)
        fresh = [(grant.segment, n) for n in positions(taken[2])]
        assert len(set(fresh)) == len(fresh)
        assert self.handed[pool].isdisjoint(fresh), "a hit was handed on twice"
        assert {n for _, n in fresh} <= set(found)
        self.handed[pool] |= set(fresh)
        if done:
            expected = {(grant.segment, n) for n in there}
            assert expected <= self.handed[pool], "a slice ended and a hit is missing"

    @invariant()
    def each_position_is_in_one_state(self):
        if not hasattr(self, "scheduler"):
            return
        for pool in self.scheduler.pools:
            for number, progress in pool.segments.items():
                open_ = {
                    id(work): work
                    for of, work, _ in self.scheduler._by_lease.values()
                    if of is pool and work.segment == number
                }.values()
                spans = [(work.start, work.start + work.count) for work in open_]
                spans += list(progress.done)
                at = 0
                for start, stop in sorted(spans):
                    assert start == at, "a position is in two states or in none"
                    at = stop
                assert at + progress.never_leased == progress.total

    @invariant()
    def each_open_slice_is_held_by_one_or_by_a_second_too_or_waits(self):
        if not hasattr(self, "scheduler"):
            return
        for pool in self.scheduler.pools:
            waiting = {id(work) for each in pool.segments.values() for work in each.returned}
            open_ = {
                id(work): work for of, work, _ in self.scheduler._by_lease.values() if of is pool
            }
            for work in open_.values():
                assert len(work.holders) <= 2
                assert (id(work) in waiting) == (not work.holders)
                assert {id(node) for node in work.holders} == {
                    id(node) for node in pool.nodes if work in node.holds
                }
            assert waiting <= set(open_)
            assert all(id(work) in open_ for node in pool.nodes for work in node.holds)

    def teardown(self):
        """Whatever has happened: lose every node, add one a pool, and it finishes."""
        if not hasattr(self, "scheduler"):
            return
        for pool in self.scheduler.pools:
            for node in list(pool.nodes):
                self.scheduler.leave(node)
        for pool in self.scheduler.pools:
            last = self.scheduler.join("last", pool.number, 2)
            while batch := granted(self.scheduler, last, now=self.now):
                for grant in batch:
                    self.given[grant.lease] = (pool.number, grant)
                    self.told[grant.lease] = set()
                    self.report(grant.lease, True, 0, False)
        assert self.scheduler.finished
        for pool, handed in zip(self.scheduler.pools, self.handed, strict=True):
            assert pool.left == 0
            assert pool.done == pool.total == sum(self.totals)
            expected = {
                (number, n)
                for number, total in enumerate(self.totals)
                for n in self.answers(number, 0, total)
            }
            assert handed == expected
            assert pool.hits == len(expected)
            assert pool.tally.open == len(expected)
            assert pool.tally.closed == sum(self.totals) - len(expected)
        assert not self.scheduler._by_lease


Histories.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


# ── sizes ───────────────────────────────────────────────────────────────────────────────────


def test_first_slices_are_small_and_then_they_grow_by_two_at_most():
    scheduler = scheduler_of(10_000_000)
    grants = run_to_its_end(scheduler, scheduler.join("a", 0, 1), took=0.01)
    sizes = [grant.count for grant in grants]
    assert sizes[0] == SLICE_FIRST
    grown = [two / one for one, two in itertools.pairwise(sizes)]
    assert max(grown) <= 2
    assert max(sizes) > 50 * SLICE_FIRST


@given(
    total=st.integers(1, 200_000),
    nodes=st.integers(1, 5),
    processes=st.integers(1, 8),
    took=st.floats(1e-3, 10),
)
@settings(max_examples=50, deadline=None)
def test_a_slice_is_a_quarter_of_a_nodes_share_at_most_or_the_least(total, nodes, processes, took):
    scheduler = scheduler_of(total)
    joined = [scheduler.join(str(n), 0, processes) for n in range(nodes)]
    left, now = total, 0.0
    while left:
        for node in joined:
            for grant in granted(scheduler, node, now=now):
                assert grant.count <= max(left // (SHARE * nodes), min(SLICE_LEAST, left))
                left -= grant.count
                now += took
                end(scheduler, grant, now=now)
    assert not granted(scheduler, joined[0])


@pytest.mark.parametrize("per_second", [20.0, 300.0, 4000.0])
def test_a_slice_is_fifteen_seconds_of_work_at_most(per_second):
    scheduler = scheduler_of(10**9)
    node = scheduler.join("a", 0, 1)
    now = 0.0
    for _ in range(60):
        (grant,) = granted(scheduler, node, now=now)
        took = grant.count / per_second
        assert took <= SLICE_SECONDS or grant.count <= SLICE_FIRST
        now += took
        end(scheduler, grant, now=now)
    assert grant.count > SLICE_SECONDS * per_second * 0.9  # and it is used


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 10.0, 1000.0])
@pytest.mark.parametrize("processes", [1, 2, 16])
def test_with_a_rate_the_first_slices_are_a_second_and_all_fifteen_at_most(rate, processes):
    scheduler = scheduler_of(10**6, ratelimit=rate)
    node = scheduler.join("a", 0, processes)
    each = rate / processes
    now = 0.0
    for turn in range(20):
        (grant,) = granted(scheduler, node, now=now)
        limit = SLICE_SECONDS if turn else 1.0
        assert grant.count <= max(1, limit * each)
        now += grant.count / each
        end(scheduler, grant, now=now)


def test_slices_of_one_where_a_second_has_less_than_one_probe():
    scheduler = scheduler_of(20, ratelimit=0.05)
    node = scheduler.join("a", 0, 1)
    assert [grant.count for grant in run_to_its_end(scheduler, node, took=20)] == [1] * 20


@pytest.mark.parametrize("most", [1, 3, 150])
def test_the_cap_of_the_batch_keys_holds_throughout(most):
    scheduler = scheduler_of(1000, slice_most=most)
    grants = run_to_its_end(scheduler, scheduler.join("a", 0, 2), took=0.001)
    assert max(grant.count for grant in grants) == most
    assert sum(grant.count for grant in grants) == 1000


@pytest.mark.parametrize("total", [1, 2, 63, 64, 65])
def test_the_smallest_scans(total):
    scheduler = scheduler_of(total)
    grants = run_to_its_end(scheduler, scheduler.join("a", 0, 4))
    assert sum(grant.count for grant in grants) == total
    assert scheduler.finished


def test_names_come_in_slices_that_can_be_walked():
    scheduler = Scheduler()
    scheduler.add_segment(Seg(0, 10**7, ("a.example",)))
    node = scheduler.join("a", 0, 1)
    node.rate, node.largest = 1e9, 10**6
    (grant,) = granted(scheduler, node)
    assert grant.count == SLICE_NAMES_MOST


def test_a_false_number_of_processes_does_not_cut_the_slices_of_others():
    scheduler = scheduler_of(10**9)
    scheduler.join("liar", 0, 2**62)
    honest = scheduler.join("honest", 0, 2)
    honest.rate, honest.largest = 1e6, 10**6
    (grant,) = granted(scheduler, honest)
    assert grant.count > 10**9 // (4 * PROCESSES_MOST)


def test_a_late_report_does_not_make_the_present_holder_look_fast():
    scheduler = scheduler_of(10**6)
    slow, other = scheduler.join("slow", 0, 1), scheduler.join("other", 0, 1)
    (lost,) = granted(scheduler, slow)
    scheduler.leave(slow)
    (again,) = granted(scheduler, other, now=100.0)
    assert (again.start, again.count) == (lost.start, lost.count)
    end(scheduler, lost, now=100.0)
    assert (other.rate, other.largest) == (0.0, 0)
    assert not other.holds
    assert end(scheduler, again, now=200.0) is None  # and this one is too late, and no error


# ── pools ───────────────────────────────────────────────────────────────────────────────────


def test_nodes_that_are_coming_count_as_if_they_were_there():
    scheduler = scheduler_of(10, pools=3)
    assert scheduler.choose_pool() == 0
    assert scheduler.choose_pool(coming=[0]) == 1
    assert scheduler.choose_pool(coming=[0, 1, 1]) == 2
    assert scheduler.choose_pool(coming=[0, 1, 2, 2]) == 0
    assert scheduler.choose_pool(1, coming=[1, 1]) == 1
    scheduler.join("a", 2, 1)
    assert scheduler.choose_pool(coming=[0, 1]) == 0
    assert scheduler.choose_pool(coming=[0, 0]) == 1


def test_each_pool_scans_everything_and_counts_for_itself():
    scheduler = scheduler_of(1000, 500, pools=3)
    for number in range(3):
        assert not scheduler.finished
        run_to_its_end(scheduler, scheduler.join("n", number, 1))
        assert scheduler.pools[number].done == 1500
    assert scheduler.finished


def test_a_hit_is_handed_on_once_for_each_pool():
    scheduler = scheduler_of(10, pools=2)
    for number in range(2):
        (grant,) = granted(scheduler, scheduler.join("n", number, 1))
        assert positions(end(scheduler, grant, record(3))[2]) == [3]


def test_segments_that_come_later_are_everybodys():
    scheduler = Scheduler(pools=2)
    scheduler.add_segment(Seg(0, 10))
    nodes = [scheduler.join("n", number, 1) for number in range(2)]
    for node in nodes:
        run_to_its_end(scheduler, node)
    assert not scheduler.finished  # more may come
    scheduler.add_segment(Seg(1, 5))
    scheduler.end_segments()
    assert not scheduler.finished
    for node in nodes:
        assert [grant.segment for grant in run_to_its_end(scheduler, node)] == [1]
    assert scheduler.finished


# ── reports that cannot be true ─────────────────────────────────────────────────────────────


@pytest.fixture
def one():
    scheduler = scheduler_of(100, pools=2, slice_most=10)
    node = scheduler.join("a", 0, 1)
    granted(scheduler, node)
    (grant,) = granted(scheduler, node)
    assert (grant.start, grant.count) == (10, 10)
    return scheduler, node, grant


@pytest.mark.parametrize("position", [0, 9, 20, 99, 2**63, 2**64 - 1])
def test_a_hit_outside_of_its_slice_is_faulty_and_changes_nothing(one, position):
    scheduler, _, grant = one
    with pytest.raises(FaultyReport, match="outside"):
        scheduler.report(grant.lease, record(12) + record(position))
    assert scheduler.pools[0].hits == 0
    assert positions(scheduler.report(grant.lease, record(12))[2]) == [12]


@pytest.mark.parametrize("hits", [b"x", b"\0" * 31, b"\0" * 33])
def test_hits_that_are_no_records_are_faulty(one, hits):
    with pytest.raises(FaultyReport, match="whole records"):
        one[0].report(one[2].lease, hits)


@pytest.mark.parametrize(
    "counts",
    [
        (),
        (0,) * 9,
        (0, 9, 0, 0, 0, 0, 0, 0, 0),
        (0, 11, 0, 0, 0, 0, 0, 0, 0),
        (-1, 11, 0, 0, 0, 0, 0, 0, 0),
        (0, 10, 0, 0, 0, 0, 0, 0),
        (0, 10, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 11, 0, 0, 0, 0, 0, 1, 0),  # further addresses without a name
        (0, 10, 0, 0, 0, 0, 0, 0, 1),  # one refused that is counted elsewhere, too
        (0, 0, 0, 0, 0, 0, 0, 0, 9),
    ],
)
def test_counts_that_do_not_add_up_are_faulty_and_end_nothing(one, counts):
    scheduler, _, grant = one
    with pytest.raises(FaultyReport):
        scheduler.report(grant.lease, b"", done=True, counts=counts)
    assert scheduler.pools[0].done == 0
    assert end(scheduler, grant) is not None


def test_a_names_further_addresses_count_beside_the_total():
    scheduler = Scheduler()
    scheduler.add_segment(Seg(0, 4, ("a.example", "b.example")))
    (grant,) = granted(scheduler, scheduler.join("a", 0, 1))
    hits = record(1, b"\1") + record(1, b"\2") + record(1, b"\1")
    counts = (2, 5, 0, 0, 0, 0, 0, 3, 0)
    _, _, fresh, *_ = scheduler.report(grant.lease, hits, done=True, counts=counts)
    assert fresh == hits[:64]  # one for each address
    assert scheduler.pools[0].done == 4
    assert scheduler.pools[0].tally.addresses == 3


def test_a_lease_that_was_never_given_or_is_of_another_pool_is_faulty(one):
    scheduler, node, grant = one
    other = scheduler.join("b", 1, 1)
    for lease in (0, -1, grant.lease + 1, 2**62):
        with pytest.raises(FaultyReport, match="never given"):
            scheduler.place(lease, node)
    with pytest.raises(FaultyReport, match="to this node"):
        scheduler.place(grant.lease, other)
    assert scheduler.place(grant.lease, node) == 0
    end(scheduler, grant)
    assert scheduler.place(grant.lease, node) is None


def test_reasons_of_errors_are_summed():
    scheduler = scheduler_of(20, slice_most=10)
    for grant in granted(scheduler, scheduler.join("a", 0, 1), 2):
        counts = (0, 8, 0, 0, 2, 0, 0, 0, 0)
        scheduler.report(grant.lease, b"", done=True, counts=counts, errors={"x": 1, "y": 1})
    assert scheduler.pools[0].errors == {"x": 2, "y": 2}
    assert scheduler.pools[0].tally.error == 4


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(0, 40))
def test_new_hits_keep_their_order_and_bytes(found, cut):
    assume(found)
    scheduler = scheduler_of(21)
    (grant,) = granted(scheduler, scheduler.join("a", 0, 1))
    parts = [found[:cut], found[cut:]]
    fresh = []
    for part in parts:
        _, _, hits, *_ = scheduler.report(grant.lease, b"".join(map(record, part)))
        fresh += positions(hits)
    assert fresh == list(dict.fromkeys(found))


# ── second leases ───────────────────────────────────────────────────────────────────────────


def straggling(rate=100.0):
    """One slice of 100, which a slow node has had since 0; and a faster one, who asks."""
    scheduler = scheduler_of(100, slice_most=100)
    slow, fast = scheduler.join("slow", 0, 1), scheduler.join("fast", 0, 1)
    grants = []
    while batch := granted(scheduler, slow):
        grants += batch
    slow.wanted = 0
    for grant in grants[1:]:
        end(scheduler, grant)
    slow.rate = 0.0
    fast.rate, fast.largest = rate, 100
    return scheduler, slow, fast, grants[0]


def test_a_straggler_is_leased_again_when_nothing_else_is_left_and_not_sooner():
    scheduler, slow, fast, first = straggling(rate=10.0)
    limit = STRAGGLER_FACTOR * first.count / fast.rate
    assert limit > STRAGGLER_S
    assert not granted(scheduler, fast, now=limit * 0.99)
    (again,) = scheduler.grant(fast, limit * 1.01)
    assert (again.start, again.count) == (first.start, first.count)
    assert not granted(scheduler, fast, now=1000.0), "the same slice twice to one node"
    assert not granted(scheduler, slow, now=1000.0)
    third = scheduler.join("third", 0, 1)
    third.rate = 1000.0
    assert not granted(scheduler, third, now=1000.0), "a third lease"


def test_the_first_end_counts_and_the_other_is_dropped():
    for winner in range(2):
        scheduler, slow, fast, first = straggling()
        (again,) = granted(scheduler, fast, now=50.0)
        order = [first, again] if winner == 0 else [again, first]
        hits = record(first.start)
        assert end(scheduler, order[0], hits, now=60.0).fresh == hits
        assert scheduler.finished
        assert end(scheduler, order[1], hits, now=70.0) is None
        assert not slow.holds
        assert not fast.holds
        assert scheduler.pools[0].hits == 1


def test_if_one_of_two_is_lost_the_other_goes_on_and_if_both_are_it_waits():
    scheduler, slow, fast, first = straggling()
    (again,) = granted(scheduler, fast, now=50.0)
    assert scheduler.keep_only(slow, set()) == 1
    assert scheduler.pools[0].left == 0
    assert end(scheduler, again, record(first.start), now=51.0) is not None
    scheduler, slow, fast, first = straggling()
    granted(scheduler, fast, now=50.0)
    scheduler.leave(slow)
    scheduler.leave(fast)
    assert scheduler.pools[0].left == first.count
    assert end(scheduler, first) is not None
    assert scheduler.finished
