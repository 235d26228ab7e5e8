"""A server that dies and goes on from its ledger: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import (
    Dies,
    FakeForkServer,
    FakeLedger,
    MemoryNode,
    counts_of,
    found_in,
    hit,
    in_trio,
    run_in_trio,
    segment_of,
    serve,
    until,
)
from nray.events import model
from nray.events.hub import SinkPort
from nray.events.json_file import JsonFileSink
from nray.ledger.entries import NodeSeen
from nray.ledger.intervals import IntervalSet
from nray.ledger.memory import MemoryLedger
from nray.server.books import entries_of
from nray.server.restore import restore
from nray.server.scheduler import LEASE_BITS, FaultyReport, Scheduler
from nray.server.server import RETURN_S
from nray.server.summary import exit_status
from nray.targets.findings import expand
from nray.wire.messages import Ack, Ask, Bye, Lease, Stop

# ── the scheduler ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Seg:
    """A segment, as much as the scheduler sees of it."""

    id: int
    probes: int
    names: tuple[str, ...] = ()


def record(position, address=b""):
    return position.to_bytes(8, "little") + address.ljust(16, b"\0") + b"\0" * 8


def keys(packed):
    return [packed[at : at + 24] for at in range(0, len(packed), 32)]


def scheduler_of(total, **changes):
    made = Scheduler(**changes)
    made.add_segment(Seg(0, total))
    made.end_segments()
    return made


def granted(scheduler, node, count=1):
    scheduler.want(node, count)
    grants = scheduler.grant(node, 0.0)
    node.wanted = 0
    return grants


spans = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=8)


@given(
    total=st.integers(1, 400),
    spans=spans,
    reported=st.sets(st.tuples(st.integers(0, 399), st.integers(0, 2)), max_size=60),
    most=st.sampled_from([0, 1, 7, 50]),
    pieces=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_it_goes_on_with_what_is_not_done_and_knows_what_was_reported(
    total, spans, reported, most, pieces
):
    done = IntervalSet()
    for start, count in spans:
        end = min(start + count, total)
        if start < end and not any(n in done for n in range(start, end)):
            done.add(start, end)
    told = [record(n, bytes([a])) for n, a in sorted(reported) if n < total and n not in done]
    scheduler = scheduler_of(total, slice_most=most)
    parts = [b"".join(told[piece::pieces]) for piece in range(pieces)]
    scheduler.restore(0, 0, done.copy(), parts)
    pool = scheduler.pools[0]
    assert (pool.done, pool.left) == (done.total, total - done.total)
    node = scheduler.join("a", 0, 1)
    covered = []
    fresh = []
    while grants := granted(scheduler, node):
        (grant,) = grants
        inside = range(grant.start, grant.start + grant.count)
        covered += inside
        # It finds all that was reported before again, and one address more.
        found = [record(n, bytes([a])) for n in inside for a in (0, 1, 2, 3)]
        taken = scheduler.report(
            grant.lease, b"".join(found), done=True, counts=counts_of(grant.count)
        )
        fresh += keys(taken.fresh)
    assert scheduler.finished
    assert covered == [n for n in range(total) if n not in done]
    every = {record(n, bytes([a]))[:24] for n in covered for a in (0, 1, 2, 3)}
    assert len(fresh) == len(set(fresh))
    assert set(fresh) == every - {each[:24] for each in told}


def test_lease_numbers_of_two_generations_are_never_the_same():
    given_out = []
    for generation in range(4):
        scheduler = scheduler_of(1000, slice_most=1, generation=generation)
        given_out.append(
            [each.lease for each in granted(scheduler, scheduler.join("a", 0, 1), 500)]
        )
    every = [lease for leases in given_out for lease in leases]
    assert len(every) == 4 * 500 == len(set(every))
    assert every == sorted(every)
    assert given_out[3][0] == (3 << LEASE_BITS) + 1


def test_leases_of_an_earlier_generation_are_over_and_of_a_later_one_are_lies():
    scheduler = scheduler_of(100, generation=2)
    node = scheduler.join("a", 0, 1)
    granted(scheduler, node)
    for lease in (1, (1 << LEASE_BITS) + 1, (2 << LEASE_BITS) - 1):
        assert scheduler.place(lease, node) is None
        assert scheduler.report(lease, b"") is None
    with pytest.raises(FaultyReport, match="never given"):
        scheduler.place((3 << LEASE_BITS) + 1, node)


def test_sums_go_on_too():
    scheduler = scheduler_of(10)
    scheduler.restore_sums(0, (1, 2, 3, 0, 0, 0, 0, 0, 0), {"x": 2}, 5)
    (grant,) = granted(scheduler, scheduler.join("a", 0, 1))
    counts = (1, 8, 0, 0, 1, 0, 0, 0, 0)
    scheduler.report(grant.lease, record(0), done=True, counts=counts, errors={"x": 1, "y": 1})
    pool = scheduler.pools[0]
    assert (pool.tally.open, pool.tally.closed, pool.tally.filtered) == (2, 10, 3)
    assert pool.errors == {"x": 3, "y": 1}
    assert pool.hits == 6


# ── scheduler and ledger ────────────────────────────────────────────────────────────────────


class Lives:
    """A scheduler over a ledger, by turns new; without any loop."""

    def __init__(self, total, pools, most):
        self.total, self.pools, self.most = total, pools, most
        self.ledger = MemoryLedger(scan="s", segments=[(0, b""), (1, b"")], ended=True)
        self.ledger.commit([NodeSeen(1, "n", "n", 0, None, "i", "m", None, 1)])
        self.leases = set()
        self.begin()

    def begin(self):
        self.scheduler = Scheduler(
            pools=self.pools, slice_most=self.most, generation=self.ledger.generation
        )
        for number in range(2):
            self.scheduler.add_segment(Seg(number, self.total))
        self.scheduler.end_segments()
        restore(self.scheduler, self.ledger)
        self.nodes = [self.scheduler.join("n", pool, 1) for pool in range(self.pools)]
        self.open = []

    def crash(self):
        self.ledger = self.ledger.crash()
        self.begin()

    def ask(self, pool):
        for grant in granted(self.scheduler, self.nodes[pool]):
            assert grant.lease not in self.leases
            self.leases.add(grant.lease)
            self.open.append(grant)

    def report(self, which, ended, part):
        """A random part of what answers; the end brings all of it."""
        if not self.open:
            return
        grant = self.open[which % len(self.open)]
        there = [n for n in range(grant.start, grant.start + grant.count) if n % 3 == 0]
        found = there if ended else [n for n in there if (n * 31 + part) % 2]
        counts = counts_of(grant.count, len(there)) if ended else (0,) * 9
        packed = b"".join(map(record, found))
        taken = self.scheduler.report(grant.lease, packed, done=ended, counts=counts)
        self.ledger.commit(entries_of(taken, counts, {}, 1))
        if ended:
            self.open.remove(grant)


@given(
    total=st.integers(1, 200),
    pools=st.integers(1, 2),
    most=st.sampled_from([0, 3, 20]),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "part", "end", "crash"]), st.integers(0, 99)),
        max_size=60,
    ),
)
@settings(max_examples=100, deadline=None)
def test_crashes_between_any_two_commits_lose_and_double_nothing(total, pools, most, steps):
    lives = Lives(total, pools, most)
    for step, number in steps:
        match step:
            case "ask":
                lives.ask(number % pools)
            case "part" | "end":
                lives.report(number, step == "end", number)
            case "crash":
                lives.crash()
    lives.crash()
    for pool in range(pools):
        lives.ask(pool)
        while lives.open:
            lives.report(0, True, 0)
            lives.ask(pool)
    assert lives.scheduler.finished
    every = []
    for _, row in lives.ledger.read(0, 10**6):
        every += [(row.pool, row.segment, key) for key in keys(row.packed)]
    expected = {
        (pool, segment, record(n)[:24])
        for pool in range(pools)
        for segment in range(2)
        for n in range(0, total, 3)
    }
    assert len(every) == len(set(every))
    assert set(every) == expected
    for number, pool in enumerate(lives.scheduler.pools):
        assert pool.done == 2 * total
        assert pool.hits == lives.ledger.hits(number) == 2 * len(range(0, total, 3))
        assert pool.tally.open == pool.hits == lives.ledger.tally(number)[0]


# ── a server, and peers that are moved by hand ──────────────────────────────────────────────


@in_trio
async def test_a_node_is_known_again_by_the_next_server_and_what_it_told_is_not_told_twice():
    segments = [segment_of("198.18.0.1", "1-20")]
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=FakeLedger(segments), slice_most=10, pools=2)
        await served.peer("other", instance="o")
        peer = await served.peer("one", instance="i", preferred_pool=1)
        assert (peer.registered.node_id, peer.registered.pool) == ("node-2", 1)
        await peer.channel.send(Ask(2))
        ended, lease = await peer.leases(2)
        await peer.report(ended, hit(segments[0], ended.start))
        part = hit(segments[0], lease.start + 2)
        await peer.report(lease, part, done=False)
        heard = 0
        while heard < 2:
            heard = (await peer.hear(Ack)).report
        await until(lambda: len(served.hub.found) == 2)
        await served.kill()

        again = await serve(
            nursery, segments, ledger=served.ledger.reopened(), slice_most=10, pools=2
        )
        assert again.done == 10
        assert again.server.done_before == 10
        held = (lease.lease,)
        back = await again.peer("one", instance="i", preferred_pool=0, leases=held)
        assert (back.registered.node_id, back.registered.pool) == ("node-2", 1)
        assert back.registered.scan == peer.registered.scan
        # A late report: its lease is over, whoever had it. No lie, and acknowledged.
        await back.report(lease, part + hit(segments[0], lease.start + 3))
        assert (await back.hear(Ack)).report == 1
        assert again.done == 10
        await back.channel.send(Ask(1))
        fresh = await back.hear(Lease)
        assert (fresh.start, fresh.count) == (lease.start, lease.count)
        assert fresh.lease >> LEASE_BITS == 2
        await back.report(fresh, part + hit(segments[0], lease.start + 3))
        await back.hear(Ack)
        new = await again.peer("new", instance="n")
        assert new.registered.node_id == "node-3"
        await until(lambda: len(again.hub.registrations) == 3)
        nursery.cancel_scope.cancel()
    keys = again.ledger.hit_keys
    assert len(keys) == len(set(keys)) == 3
    # An output without a cursor gets it all; the node of old is announced once.
    assert again.hub.registrations == ["other", "one", "new"]
    assert len(again.hub.found) == 3


@in_trio
async def test_a_scan_that_was_done_is_over_at_once():
    segments = [segment_of("198.18.0.1", "1-5")]
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=FakeLedger(segments))
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        await peer.report(await peer.hear(Lease), hit(segments[0], 2))
        await peer.hear(Stop)
        await served.kill()  # before the outputs have all
        again = await serve(nursery, segments, ledger=served.ledger.reopened())
        # Its node may be looking for it, to be told: it is waited for, but not for long.
        with trio.fail_after(RETURN_S + 1):
            await again.finished.wait()
        again.ledger.finish()
        third = await serve(nursery, segments, ledger=again.ledger.reopened())
        with trio.fail_after(1):
            await third.finished.wait()
    assert len(again.hub.found) == 1
    assert exit_status(again.server.scheduler) == 0


@in_trio
async def test_a_node_that_comes_back_after_the_end_is_told_so():
    segments = [segment_of("198.18.0.1", "1-5")]
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=FakeLedger(segments))
        away = await served.peer(instance="away")
        peer = await served.peer(instance="here")
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        await served.kill()
        again = await serve(nursery, segments, ledger=served.ledger.reopened())
        back = await again.peer(instance="here")
        await back.channel.send(Ask(1))
        await back.report(await back.hear(Lease), hit(segments[0], 2))
        await back.hear(Stop)
        await back.channel.send(Bye())
        await trio.sleep(RETURN_S - 1)
        late = await again.peer(instance="away")
        assert await late.hear(Stop) == Stop(True)
        await late.channel.send(Bye())
        with trio.fail_after(1):
            await again.finished.wait()
    assert lease.lease
    assert away.registered.scan == late.registered.scan


@in_trio
async def test_others_are_not_sent_where_nodes_are_coming_back_to():
    # Both would be in one pool, and nobody in the other, for ever.
    segments = [segment_of("198.18.0.1", "1-20")]
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=FakeLedger(segments), pools=2)
        first = await served.peer(instance="first")
        assert first.registered.pool == 0
        await served.kill()
        again = await serve(nursery, segments, ledger=served.ledger.reopened(), pools=2)
        second = await again.peer(instance="second")
        back = await again.peer(instance="first")
        assert (second.registered.pool, back.registered.pool) == (1, 0)
        await again.kill()
        third = await serve(nursery, segments, ledger=again.ledger.reopened(), pools=2)
        await trio.sleep(RETURN_S + 1)  # they do not come any more
        for number in range(2):
            new = await third.peer(instance=f"new{number}")
            assert new.registered.pool == number
        nursery.cancel_scope.cancel()


@in_trio
async def test_what_was_not_durable_is_scanned_again_and_acknowledged_then():
    segments = [segment_of("198.18.0.1", "1-5")]
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=FakeLedger(segments))
        peer = await served.peer(instance="i")
        await peer.channel.send(Ask(1))
        served.ledger.stand_still()
        await peer.report(await peer.hear(Lease), hit(segments[0], 2))
        await until(lambda: served.server._not_durable)
        served.ledger.go_on()
        await served.kill(in_commit=True)
        assert served.ledger.ended == []
        again = await serve(nursery, segments, ledger=served.ledger.reopened())
        assert again.done == 0
        back = await again.peer(instance="i")
        await back.channel.send(Ask(1))
        await back.report(await back.hear(Lease), hit(segments[0], 2))
        # Which of the two comes first is nobody's promise.
        assert {type(await back.hear(Ack, Stop)) for _ in range(2)} == {Ack, Stop}
        await back.channel.send(Bye())
        await again.finished.wait()
    assert len(again.hub.found) == 1
    assert again.hub.registrations == ["peer1"]


# ── servers, nodes and a file ───────────────────────────────────────────────────────────────


KILLS_MOST = 12


class World:
    """A scan whose server is killed again and again, at moments drawn from a seed."""

    def __init__(self, nursery, seed, path):
        self.rng = random.Random(seed)
        self.nursery = nursery
        self.path = path
        self.segment = segment_of("198.18.0.0/26", "1-20")
        self.opened = set(self.rng.sample(range(self.segment.probes), 90))
        self.ledger = FakeLedger([self.segment])
        self.pools = self.rng.choice([1, 1, 2])
        self.forks = FakeForkServer(nursery, self.work)
        self.forks.ended = lambda: {each.pid: "killed by SIGKILL" for each in self.forks.workers}
        self.nodes = []

    async def work(self, worker, work):
        rng = self.rng
        inside = range(work.start, work.start + work.count)
        found = sorted(self.opened.intersection(inside))
        await trio.sleep(rng.expovariate(3))
        if rng.random() < 0.2:
            some = rng.sample(found, rng.randint(0, len(found)))
            await worker.found(work, b"".join(hit(self.segment, n) for n in some), done=False)
        if rng.random() < 0.02:
            raise Dies
        await trio.sleep(rng.expovariate(3))
        await worker.found(work, b"".join(hit(self.segment, n) for n in found))

    async def begin_server(self):
        name = f"json-file {self.path}"
        cursor = self.ledger.cursor(name)
        position = cursor.position if cursor else 0
        if self.path.exists():
            os.truncate(self.path, self.rng.randint(position, self.path.stat().st_size))
        self.ledger.takes_s = self.rng.choice([0.0, 0.01, 0.5])
        port = SinkPort(
            JsonFileSink(str(self.path), resume_at=position),
            channelsize=self.rng.choice([1, 20, 1000]),
        )
        self.served = await serve(
            self.nursery,
            [self.segment],
            ledger=self.ledger,
            ports=[port],
            slice_most=self.rng.choice([5, 40]),
            pools=self.pools,
        )
        for node in self.nodes:
            node._listener = self.served.listener

    def begin_nodes(self):
        for number in range(self.rng.randint(2, 4)):
            node = MemoryNode(self.served.listener, self.forks, f"n{number}", processes=2)
            self.nodes.append(node)
            self.nursery.start_soon(node.run)

    async def live(self):
        """The scan to its end; returns how often the server was killed."""
        await self.begin_server()
        self.begin_nodes()
        for kills in range(KILLS_MOST):
            with trio.move_on_after(self.rng.expovariate(0.15)):
                await self.served.finished.wait()
                return kills
            for _ in range(self.rng.randrange(20)):
                await trio.lowlevel.checkpoint()
            if self.served.over.is_set():
                await self.served.finished.wait()
                return kills
            await self.served.kill(in_commit=self.rng.random() < 0.5)
            await trio.sleep(self.rng.expovariate(0.5))
            self.ledger = self.ledger.reopened()
            await self.begin_server()
        with trio.fail_after(300):  # left alone, it ends
            await self.served.finished.wait()
        return KILLS_MOST


@pytest.mark.parametrize("seed", range(25))
def test_whenever_the_server_dies_each_hit_is_in_the_file_once(seed, tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    given_out = []
    grant = Scheduler.grant

    def recorded(self, node, now):
        granted = grant(self, node, now)
        given_out.extend(each.lease for each in granted)
        return granted

    monkeypatch.setattr(Scheduler, "grant", recorded)

    async def main():
        async with trio.open_nursery() as nursery:
            world = World(nursery, seed, path)
            kills = await world.live()
            await until(lambda: all(node.ended for node in world.nodes))
            nursery.cancel_scope.cancel()
        assert world.ledger.generation == kills + 1
        truth = expand(world.segment, b"".join(hit(world.segment, n) for n in world.opened))
        expected = sorted([(each.address, each.port) for each in truth] * world.pools)
        keys = world.ledger.hit_keys
        assert len(keys) == len(set(keys)) == len(expected)
        data = path.read_bytes()
        assert data.endswith(b"\n")
        events = [model.decode(line) for line in data.splitlines()]
        assert sorted(found_in(events)) == expected
        names = [event.nodeName for event in events if event.environment]
        assert sorted(names) == sorted(node._options.name for node in world.nodes)
        assert world.served.done == world.pools * world.segment.probes
        assert exit_status(world.served.server.scheduler) == 0
        assert len(given_out) == len(set(given_out))

    run_in_trio(main)
