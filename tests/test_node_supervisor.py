"""The supervisor on fake workers that speak the real protocol, and die whenever a test likes.

The promise that is held here: a lease that was given is reported as done exactly once.
"""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from fakes import (
    Dies,
    FakeForkServer,
    FakeOffice,
    Given,
    counts_of,
    finds,
    hit,
    in_trio,
    segment_of,
    until,
)
from nray.node import supervisor as module
from nray.node.orders import Primed, prime
from nray.node.resolver import Resolver
from nray.node.supervisor import DEATHS_IN_A_ROW_MAX, DEATHS_MAX, Supervisor, WorkersFail
from nray.wire.messages import Settings
from nray.worker import protocol

SEGMENT = segment_of()
ONE = bytes([198, 18, 0, 1])
TWO = bytes([198, 18, 0, 2])


def leases(count, size=10, segment=0):
    return [Given(number + 1, segment, number * size, size) for number in range(count)]


class Bench:
    """A supervisor with its surroundings, in a nursery."""

    def __init__(self, nursery, behave, given, *, processes=2, segments=(SEGMENT,), **changes):
        self.office = FakeOffice(given)
        self.forks = FakeForkServer(nursery, behave)
        settings = changes.pop("settings", Settings())
        self.supervisor = Supervisor(self.forks, settings, processes, self.office, **changes)
        self.office.give = self.supervisor.give
        for segment in segments:
            self.supervisor.add_segment(segment)
        self.scope = trio.CancelScope()
        self.nursery = nursery
        nursery.start_soon(self.run)

    async def run(self):
        with self.scope:
            await self.supervisor.run()

    async def until_done(self, count):
        await until(lambda: len(self.office.done) >= count, 3000)
        await trio.sleep(5)  # for what should not come
        assert sorted(self.office.done) == list(range(1, count + 1))

    async def stop(self):
        self.scope.cancel()
        await until(lambda: not self.forks.alive)


async def closed(worker, work):
    """A slice in which nothing is open."""
    await worker.found(work)


@in_trio
async def test_every_lease_is_scanned_and_reported_once_and_workers_end_with_it():
    opened = {0: {0, 57, 58, 399}}
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, finds([SEGMENT], opened, 0.5), leases(40), processes=3)
        await bench.until_done(40)
        assert b"".join(each.hits for each in bench.office.outcomes) != b""
        found = {
            int.from_bytes(each.hits[at : at + 8], "little")
            for each in bench.office.outcomes
            for at in range(0, len(each.hits), 32)
        }
        assert found == opened[0]
        assert bench.supervisor.sent == 400
        assert bench.supervisor.leases == set()
        assert bench.supervisor.worker_pids == [1, 2, 3]
        assert bench.forks.spawned == 3
        await bench.stop()


@in_trio
async def test_it_asks_for_what_its_workers_want_and_what_lies_ahead_and_not_more():
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, closed, [], processes=3, ahead=4)
        await trio.sleep(1)
        assert bench.office.wanted == 3 * protocol.SLICES_AHEAD + 4
        bench.supervisor.ask_again()
        await trio.sleep(1)
        assert bench.office.wanted == 2 * (3 * protocol.SLICES_AHEAD + 4)
        await bench.stop()


@in_trio
async def test_no_worker_is_idle_while_there_is_stock_and_none_has_more_than_it_wants():
    async def slow(worker, work):
        await trio.sleep(1)
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, slow, leases(30), processes=3)
        before = trio.current_time()
        await until(lambda: len(bench.office.done) == 30, 100)
        assert trio.current_time() - before < 10.5  # 30 slices of 1 s on 3 workers
        assert {len(worker.heard) - 2 for worker in bench.forks.workers} == {10}
        await bench.stop()


@in_trio
async def test_a_worker_hears_how_to_scan_first_and_a_space_before_its_first_slice():
    two = segment_of("198.18.1.0/28")
    two = two.__class__(**{**two.__dict__, "id": 1})
    given = [*leases(6), *(Given(10 + n, 1, n * 10, 10) for n in range(4))]
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, closed, given, segments=(SEGMENT, two), processes=1)
        await until(lambda: len(bench.office.done) == 10)
        kinds = [type(each).__name__ for each in bench.forks.workers[0].heard]
        assert kinds[:2] == ["Configure", "Space"]
        assert kinds.count("Space") == 2
        await bench.stop()


@pytest.mark.parametrize(
    ("workers", "processes", "windows"),
    [(0, 2, [0, 0]), (7, 2, [4, 3]), (2, 4, [1, 1]), (1, 3, [1]), (100, 3, [34, 33, 33])],
)
@in_trio
async def test_probes_in_flight_are_shared_out_among_processes(workers, processes, windows):
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, closed, [], processes=processes, settings=Settings(workers=workers))
        await until(lambda: all(each.heard for each in bench.forks.alive))
        await trio.sleep(1)
        heard = [worker.heard[0].window for worker in bench.forks.workers]
        assert sorted(heard, reverse=True) == windows
        await bench.stop()


@in_trio
async def test_workers_asked_for_early_are_used_first_and_the_rest_is_let_go():
    async with trio.open_nursery() as nursery:
        forks = FakeForkServer(nursery, closed)
        office = FakeOffice(leases(4))
        primed = [Primed(forks.spawn()) for _ in range(4)]
        supervisor = Supervisor(forks, Settings(workers=2), 4, office, primed=primed)
        office.give = supervisor.give
        supervisor.add_segment(SEGMENT)
        async with trio.open_nursery() as inner:
            inner.start_soon(supervisor.run)
            await until(lambda: len(office.done) == 4)
            assert forks.spawned == 4
            assert len(forks.alive) == 2
            inner.cancel_scope.cancel()
        await until(lambda: not forks.alive)


@in_trio
async def test_what_was_given_before_the_loop_ran_is_done_once_even_if_its_worker_dies():
    given = leases(6)
    async with trio.open_nursery() as nursery:

        async def behave(worker, work):
            await trio.sleep(1)
            if worker.pid == 1:
                raise Dies
            await worker.found(work)

        forks = FakeForkServer(nursery, behave)
        office = FakeOffice(given[4:])
        primed = [Primed(forks.spawn()) for _ in range(2)]
        prime(primed, Settings(), {0: SEGMENT}, given[:4])
        supervisor = Supervisor(forks, Settings(), 2, office, primed=primed)
        office.give = supervisor.give
        supervisor.add_segment(SEGMENT)
        async with trio.open_nursery() as inner:
            inner.start_soon(supervisor.run)
            await trio.sleep(0.5)
            assert supervisor.leases == {1, 2, 3, 4}
            await until(lambda: len(office.done) >= 6)
            await trio.sleep(5)
            assert sorted(office.done) == [1, 2, 3, 4, 5, 6]
            inner.cancel_scope.cancel()


# ── workers that die ────────────────────────────────────────────────────────────────────────


@in_trio
async def test_a_worker_that_dies_is_replaced_and_its_slices_begin_again():
    died = []

    async def behave(worker, work):
        if work.start == 50 and not died:
            died.append(work.lease)
            await worker.found(work, hit(SEGMENT, 50), done=False)
            raise Dies
        await worker.found(work, hit(SEGMENT, work.start))

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, behave, leases(10))
        await bench.until_done(10)
        assert bench.forks.spawned == 3
        assert bench.office.tally.error == 0
        await bench.stop()


@pytest.mark.parametrize("seed", range(30))
@in_trio
async def test_whenever_workers_die_each_lease_is_reported_as_done_once(seed):
    rng = random.Random(seed)
    opened = {0: set(rng.sample(range(400), 40))}
    honest = finds([SEGMENT], opened)

    async def behave(worker, work):
        await trio.sleep(rng.expovariate(2))
        fate = rng.random()
        if fate < 0.06:
            raise Dies
        if fate < 0.12:
            found = sorted(n for n in opened[0] if work.start <= n < work.start + work.count)
            some = found[: rng.randint(0, len(found))]
            await worker.found(work, b"".join(hit(SEGMENT, n) for n in some), done=False)
            if fate < 0.09:
                raise Dies
        await honest(worker, work)
        if fate > 0.97:
            raise Dies

    async def killer(bench):
        while True:
            await trio.sleep(rng.expovariate(0.3))
            if bench.forks.alive:
                rng.choice(bench.forks.alive).die()

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, behave, leases(40), processes=rng.randint(1, 4), ahead=2)
        if seed % 2:
            nursery.start_soon(killer, bench)
        await bench.until_done(40)
        given_up = {
            outcome.lease for outcome in bench.office.outcomes if "worker-died" in outcome.errors
        }
        found = {
            int.from_bytes(each.hits[at : at + 8], "little")
            for each in bench.office.outcomes
            for at in range(0, len(each.hits), 32)
        }
        expected = {n for n in opened[0] if n // 10 + 1 not in given_up}
        assert expected <= found <= opened[0]
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_slice_that_ends_its_workers_is_given_up_and_the_rest_goes_on():
    async def behave(worker, work):
        await trio.sleep(0.1)
        if work.start == 70:
            raise Dies
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, behave, leases(30))
        await bench.until_done(30)
        (lost,) = [each for each in bench.office.outcomes if each.lease == 8]
        assert lost.counts == (0, 0, 0, 0, 10, 0, 0, 0, 0)
        assert lost.errors == {"worker-died": 10}
        assert bench.forks.spawned >= 2 + DEATHS_MAX
        await bench.stop()


@in_trio
async def test_being_killed_from_outside_is_no_reason_to_give_a_slice_up():
    async with trio.open_nursery() as nursery:

        async def slow(worker, work):
            await trio.sleep(10)
            await worker.found(work)

        bench = Bench(nursery, slow, leases(2), processes=1)
        ends = {}
        bench.forks.ended = lambda: ends
        for _ in range(2 * DEATHS_MAX):
            await until(lambda: bench.forks.alive and len(bench.forks.alive[0].heard) > 2)
            worker = bench.forks.alive[0]
            ends[worker.pid] = "killed by SIGKILL"
            worker.die()
            await trio.sleep(1)
        await bench.until_done(2)
        assert bench.office.tally.error == 0
        await bench.stop()


@in_trio
async def test_workers_that_cannot_live_end_the_node_with_a_reason():
    async def behave(worker, work):
        raise Dies

    forks = []

    async def work():
        async with trio.open_nursery() as nursery:
            forks.append(Bench(nursery, behave, leases(100)).forks)
            await trio.sleep(1000)

    with pytest.raises(BaseExceptionGroup) as raised:
        await work()
    assert raised.value.split(WorkersFail)[1] is None
    assert forks[0].spawned <= DEATHS_IN_A_ROW_MAX + 2


@in_trio
async def test_a_fork_server_that_has_gone_is_told_in_words():
    async def work():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, closed, [])
            await trio.sleep(1)
            bench.forks.gone = True
            bench.forks.alive[0].die()
            await trio.sleep(1000)

    with pytest.raises(BaseExceptionGroup) as raised:
        await work()
    found, other = raised.value.split(WorkersFail)
    assert other is None
    assert found is not None


@in_trio
async def test_what_a_dead_worker_held_is_never_missing_from_the_leases():
    # A node that registers again in that moment must not lose them.
    async with trio.open_nursery() as nursery:

        async def forever(worker, work):
            await trio.sleep_forever()

        bench = Bench(nursery, forever, leases(4))
        await until(lambda: sum(len(each.heard) for each in bench.forks.alive) == 8)
        missing = []

        async def look():
            while True:
                if bench.supervisor.leases != {1, 2, 3, 4}:
                    missing.append(bench.supervisor.leases)
                await trio.lowlevel.checkpoint()

        with trio.move_on_after(3) as scope:
            nursery.start_soon(trio.sleep, 0)
            for _ in range(2):
                async with trio.open_nursery() as inner:
                    inner.start_soon(look)
                    bench.forks.alive[0].die()
                    for _ in range(50):
                        await trio.lowlevel.checkpoint()
                    inner.cancel_scope.cancel()
                await trio.sleep(1)
        assert not scope.cancelled_caught
        assert missing == []
        await bench.stop()


# ── an office that is slow ──────────────────────────────────────────────────────────────────


@in_trio
async def test_a_slow_office_holds_the_workers_and_nothing_is_lost():
    async def behave(worker, work):
        for _ in range(3):
            await worker.found(work, hit(SEGMENT, work.start), done=False)
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, behave, leases(12), processes=3)
        bench.office.stand_still()
        await trio.sleep(100)
        assert bench.office.done == []
        assert bench.supervisor.leases == set(range(1, 7))
        bench.office.go_on()
        await bench.until_done(12)
        assert len(bench.office.outcomes) == 48
        await bench.stop()


@in_trio
async def test_a_lease_is_held_until_the_office_has_its_end():
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, closed, leases(1), processes=1)
        bench.office.stand_still()
        await trio.sleep(1)
        assert bench.supervisor.leases == {1}
        bench.office.go_on()
        await bench.until_done(1)
        assert bench.supervisor.leases == set()
        await bench.stop()


# ── pause ───────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_pause_reaches_every_worker_also_those_that_come_later_and_each_once():
    def pauses(worker):
        return [each.on for each in worker.heard if isinstance(each, protocol.Pause)]

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, closed, [])
        await trio.sleep(1)
        for on in (True, True, False, False, True):
            bench.supervisor.pause(on)
            await trio.sleep(1)
        assert [pauses(worker) for worker in bench.forks.alive] == [[True, False, True]] * 2
        bench.forks.alive[0].die()
        await trio.sleep(1)
        assert pauses(bench.forks.workers[-1]) == [True]
        assert isinstance(bench.forks.workers[-1].heard[0], protocol.Configure)
        await bench.stop()


# ── names ───────────────────────────────────────────────────────────────────────────────────


def resolver(table):
    def lookup(name):
        if name not in table:
            raise OSError("no such name")
        return table[name]

    return Resolver(lookup)


def in_real_time(test):
    """Look-ups are threads: on a mock clock they would take for ever."""

    async def bounded():
        with trio.fail_after(60):
            await test()

    return lambda: trio.run(bounded)


@in_real_time
async def test_names_are_resolved_here_and_those_without_an_address_are_told_so():
    segment = segment_of(["a.example", "b.example", "gone.example"], "1-3")
    table = {"a.example": [ONE], "b.example": [ONE, TWO]}
    told = {}

    async def behave(worker, work):
        told.update(work.addresses)
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        bench = Bench(
            nursery,
            behave,
            leases(3, 3),
            segments=[segment],
            processes=1,
            resolver=resolver(table),
        )
        await until(lambda: len(bench.office.done) == 3)
        by_name = {segment.names[index]: addresses for index, addresses in told.items()}
        assert by_name == {**table, "gone.example": []}
        await bench.stop()


@in_real_time
async def test_what_excluded_names_resolve_to_is_excluded_from_everything():
    segment = segment_of(["198.18.0.0/28"], "1", exclude=["away.example", "198.18.0.3"])
    table = {"away.example": [TWO, bytes(15) + b"\1"]}
    async with trio.open_nursery() as nursery:
        bench = Bench(
            nursery,
            closed,
            leases(1),
            segments=[segment],
            processes=1,
            resolver=resolver(table),
        )
        await until(lambda: bench.office.done)
        space = bench.forks.workers[0].spaces[0]
        assert protocol.range_pairs(space.excluded4, 4) == [(0xC6120002, 0xC6120003)]
        assert protocol.range_pairs(space.excluded6, 16) == [(1, 1)]
        await bench.stop()


@in_real_time
async def test_a_slow_look_up_holds_up_its_own_slice_alone():
    import threading

    held = threading.Event()
    names = segment_of("slow.example", "1-3")
    plain = segment_of("198.18.0.0/28", "1")
    plain = plain.__class__(**{**plain.__dict__, "id": 1})

    def lookup(name):
        held.wait(5)
        return [ONE]

    given = [Given(1, 0, 0, 3), *(Given(n + 2, 1, n, 1) for n in range(4))]
    async with trio.open_nursery() as nursery:
        bench = Bench(
            nursery,
            closed,
            given,
            segments=[names, plain],
            processes=1,
            resolver=Resolver(lookup),
        )
        await until(lambda: sorted(bench.office.done) == [2, 3, 4, 5], 3)
        assert bench.supervisor.leases == {1}
        held.set()
        await until(lambda: 1 in bench.office.done)
        await bench.stop()


@in_real_time
async def test_a_worker_that_dies_while_names_are_looked_up_costs_nothing():
    import threading

    held = threading.Event()
    segment = segment_of("slow.example", "1-3")

    def lookup(name):
        held.wait(5)
        return [ONE]

    async with trio.open_nursery() as nursery:
        bench = Bench(
            nursery,
            closed,
            leases(1, 3),
            segments=[segment],
            processes=1,
            resolver=Resolver(lookup),
        )
        bench.forks.ended = lambda: {1: "exit status 1"}
        await until(lambda: bench.supervisor.worker_pids)
        bench.forks.alive[0].die()
        await until(lambda: bench.forks.spawned == 2)
        held.set()
        await until(lambda: bench.office.done)
        await trio.sleep(0.05)
        assert bench.office.done == [1]
        await bench.stop()


def test_counts_of_a_given_up_slice_add_up():
    assert module.ERROR_COUNT == 4
    assert sum(counts_of(7, 2)) == 7


# ── workers that hang ───────────────────────────────────────────────────────────────────────


@in_trio
async def test_a_worker_that_is_silent_with_slices_in_hand_is_replaced(monkeypatch):
    ended = []
    monkeypatch.setattr(module, "_kill", ended.append)
    turns = []

    async def behave(worker, work):
        turns.append(work.lease)
        if len(turns) > 1:
            await worker.found(work)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, behave, leases(1, 5), processes=1)
        await until(lambda: len(bench.office.done) == 1, 10 * module.SILENT_S)
        assert len(bench.forks.workers) == 2
        assert len(ended) == 1
        assert turns[0] == turns[1]
        await bench.stop()


@in_trio
async def test_a_worker_that_has_nothing_to_do_may_be_silent(monkeypatch):
    monkeypatch.setattr(module, "_kill", lambda pid: pytest.fail("an idle worker was ended"))

    async def behave(worker, work):
        await worker.found(work)

    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, behave, leases(1, 5), processes=1)
        await trio.sleep(10 * module.SILENT_S)
        assert len(bench.forks.workers) == 1
        await bench.stop()


# ── hosts that need no more probes ──────────────────────────────────────────────────────────


def packed_host(position, segment=SEGMENT):
    family, number, _, _ = segment.space.at(position)
    return bytes([family]) + number.to_bytes(4, "big") + bytes(12)


@in_trio
async def test_hosts_are_spared_where_that_is_asked_for_and_else_not():
    for asked in (True, False):
        async with trio.open_nursery() as nursery:
            settings = Settings(first_open=asked)
            bench = Bench(nursery, finds([SEGMENT], {0: {5}}), leases(1), settings=settings)
            bench.supervisor.spare(packed_host(0))
            await bench.until_done(1)
            assert bench.forks.workers[0].heard[0].first_open is asked
            assert bench.forks.hosts.has(packed_host(0)) is asked
            # What a worker has found may still be lost, for all that is known here.
            assert not bench.forks.hosts.has(packed_host(5))
            await bench.stop()
