"""Hosts that are probed up to their first open port: one is told of each, whoever finds it, and the
nodes of its pool hear of it once it is safe."""

from __future__ import annotations

import pytest
import trio

from fakes import FakeLedger, hit, in_trio, ledger_of, segment_of, serve
from nray import _core
from nray.api.standing import _pool_lines
from nray.ledger.entries import NodeSeen
from nray.server.books import entries_of
from nray.server.refusals import others
from nray.server.restore import restore
from nray.server.scheduler import FaultyReport, Scheduler
from nray.server.server import SHOWN_EVERY_S
from nray.server.summary import exit_status, found, summary_lines
from nray.targets.findings import SPARED, TARPIT_NUMBER, HostSet
from nray.wire.messages import Ask, Bye, Counts, Lease, Settings, Shown, Stop
from nray.wire.rules import HIT_BYTES, HOST_BYTES, SHOWN_MAX

SEGMENT = segment_of("198.18.0.0/29", "1-20")
NODE = 1
KNOWS = {"methods": ("connect", "first-open")}


def begun(pools: int = 1) -> Scheduler:
    """Of slices of 64, 64 and 32 probes."""
    made = Scheduler(pools=pools, first_open=True)
    made.add_segment(SEGMENT)
    made.end_segments()
    return made


def counts(opened: int, count: int = 64, skipped: int = 0) -> tuple[int, ...]:
    return (opened, count - opened - skipped, 0, 0, 0, 0, skipped, 0, 0)


def host(position: int) -> bytes:
    """The host at a position, packed."""
    family, number, _, _ = SEGMENT.space.at(position)
    return bytes([family]) + number.to_bytes(4, "big") + bytes(12)


def of_host(last: int, inside: range = range(160)) -> list[int]:
    """Positions of the host whose address ends so."""
    return [n for n in inside if SEGMENT.space.at(n)[1] & 7 == last]


def run_of(lease: Lease) -> range:
    return range(lease.start, lease.start + lease.count)


def hosts_in(shown: Shown) -> set[bytes]:
    packed = shown.hosts
    return {packed[at : at + HOST_BYTES] for at in range(0, len(packed), HOST_BYTES)}


def test_of_each_host_one_open_port_is_handed_on_in_each_pool() -> None:
    scheduler = begun(pools=2)
    nodes = [scheduler.join(name, pool, 1) for name, pool in (("a", 0), ("b", 0), ("c", 1))]
    fresh = []
    for node in nodes:
        scheduler.want(node, 1)
        (grant,) = scheduler.grant(node, 0.0)
        inside = range(grant.start, grant.start + grant.count)
        first, second, *_ = of_host(3, inside)
        other = of_host(5, inside)[0]
        closed = hit(SEGMENT, of_host(3, inside)[2], state=_core.STATES.index("closed"))
        told = hit(SEGMENT, first) + closed + hit(SEGMENT, other) + hit(SEGMENT, second)
        taken = scheduler.report(grant.lease, told, done=True, counts=counts(3))
        assert taken is not None
        fresh.append([taken.fresh[at : at + HIT_BYTES] for at in range(0, len(taken.fresh), 32)])
    assert [len(each) for each in fresh] == [3, 1, 3]
    assert {record[29] for record in fresh[1]} == {_core.STATES.index("closed")}
    assert [pool.hits for pool in scheduler.pools] == [4, 3]
    assert [pool.tally.open for pool in scheduler.pools] == [6, 3]


def test_without_it_every_port_is_handed_on() -> None:
    scheduler = Scheduler()
    assert scheduler.pools[0].shown is None
    twice = hit(SEGMENT, of_host(3)[0]) + hit(SEGMENT, of_host(3)[1])
    assert scheduler.pools[0].told_once(twice) == twice


def test_a_tarpit_and_an_open_port_of_one_host_are_one_finding() -> None:
    pool = begun().pools[0]
    first, second = (hit(SEGMENT, n) for n in of_host(3)[:2])
    tarpit = second[:30] + bytes([TARPIT_NUMBER]) + second[31:]
    assert pool.told_once(first + tarpit) == first
    other, more = (hit(SEGMENT, n) for n in of_host(4)[:2])
    trap = other[:30] + bytes([TARPIT_NUMBER]) + other[31:]
    assert pool.told_once(trap + more) == trap


def test_answers_of_discovery_are_no_open_ports() -> None:
    scheduler = Scheduler(first_open=True)
    scheduler.add_segment(SEGMENT, discovery=True)
    node = scheduler.join("a", 0, 1)
    scheduler.want(node, 1)
    (grant,) = scheduler.grant(node, 0.0)
    told = b"".join(hit(SEGMENT, n) for n in of_host(3)[:2])
    taken = scheduler.report(grant.lease, told)
    assert taken is not None
    assert taken.fresh == told
    assert scheduler.pools[0].shown is not None
    assert len(scheduler.pools[0].shown) == 0


@pytest.mark.parametrize("spared", [-1, 11])
def test_more_spared_than_skipped_is_a_lie_and_changes_nothing(spared: int) -> None:
    scheduler = begun()
    node = scheduler.join("a", 0, 1)
    scheduler.want(node, 1)
    (grant,) = scheduler.grant(node, 0.0)
    with pytest.raises(FaultyReport, match="spared"):
        scheduler.report(
            grant.lease,
            hit(SEGMENT, of_host(3)[0]),
            done=True,
            counts=counts(1, skipped=10),
            errors={SPARED: spared},
        )
    pool = scheduler.pools[0]
    assert (pool.done, pool.hits, len(pool.shown or ())) == (0, 0, 0)


@pytest.mark.parametrize("ended", [False, True])
def test_after_a_restart_no_host_is_told_again(ended: bool) -> None:
    """Whether the slice that told of it had ended, or not."""
    ledger = ledger_of([SEGMENT])
    ledger.commit([NodeSeen(NODE, "node-1", "a", 0, None, "i", "m", None, 5)])
    first = begun()
    node = first.join("a", 0, 1)
    first.want(node, 1)
    (grant,) = first.grant(node, 0.0)
    mine = of_host(3)
    taken = first.report(grant.lease, hit(SEGMENT, mine[0]))
    assert taken is not None
    ledger.commit(entries_of(taken, (), {}, NODE))
    if ended:
        errors = {SPARED: 7}
        told = counts(1, skipped=7)
        taken = first.report(grant.lease, b"", done=True, counts=told, errors=errors)
        assert taken is not None
        ledger.commit(entries_of(taken, told, errors, NODE))
    again = begun()
    restore(again, ledger)
    pool = again.pools[0]
    assert pool.shown is not None
    assert pool.shown.packed(0, pool.safe) == host(mine[0])
    assert pool.spared == (7 if ended else 0)
    node = again.join("a", 0, 1)
    again.want(node, 3)
    last, other = mine[-1], of_host(4)[-1]
    for grant in again.grant(node, 0.0):
        inside = range(grant.start, grant.start + grant.count)
        taken = again.report(
            grant.lease, b"".join(hit(SEGMENT, n) for n in (last, other) if n in inside)
        )
        assert taken is not None
        assert taken.fresh == (hit(SEGMENT, other) if other in inside else b"")


async def settle() -> None:
    await trio.sleep(3 * SHOWN_EVERY_S)


@in_trio
async def test_the_others_hear_of_it_when_it_is_on_the_disk_and_not_before() -> None:
    ledger = FakeLedger([SEGMENT])
    async with trio.open_nursery() as nursery:
        settings = Settings(first_open=True)
        served = await serve(nursery, [SEGMENT], ledger=ledger, slice_most=64, settings=settings)
        one, other = await served.peer(**KNOWS), await served.peer(**KNOWS)
        await one.channel.send(Ask(1))
        lease = await one.hear(Lease)
        assert isinstance(lease, Lease)
        mine = of_host(3, run_of(lease))
        heard: list[set[bytes]] = []

        async def listen() -> None:
            while True:
                told = await other.hear(Shown)
                assert isinstance(told, Shown)
                heard.append(hosts_in(told))

        nursery.start_soon(listen)
        ledger.stand_still()
        await one.report(lease, hit(SEGMENT, mine[0]), done=False)
        await settle()
        assert heard == []
        ledger.go_on()
        await settle()
        assert heard == [{host(mine[0])}]
        # Each once; and all of them to who comes late, or again.
        await one.report(lease, hit(SEGMENT, of_host(5, run_of(lease))[0]), done=False)
        await one.report(lease, hit(SEGMENT, mine[1]), done=False)
        await settle()
        assert heard[1:] == [{host(of_host(5)[0])}]
        late = await served.peer(**KNOWS)
        told = await late.hear(Shown)
        assert isinstance(told, Shown)
        assert hosts_in(told) == {host(mine[0]), host(of_host(5)[0])}
        nursery.cancel_scope.cancel()


@in_trio
async def test_who_does_not_know_it_hears_nothing_of_it_and_works_on() -> None:
    async with trio.open_nursery() as nursery:
        settings = Settings(first_open=True)
        served = await serve(nursery, [SEGMENT], slice_most=64, settings=settings)
        peer = await served.peer()
        await peer.channel.send(Ask(3))
        for lease in await peer.leases(3):
            mine = of_host(3, run_of(lease))
            await peer.report(lease, b"".join(hit(SEGMENT, n) for n in mine[:2]))
        await settle()
        message = await peer.hear(Shown, Stop)
        assert isinstance(message, Stop)
        await peer.channel.send(Bye())
        await served.finished.wait()
    assert len(served.hub.found) == 1


@in_trio
async def test_of_many_hosts_each_word_holds_so_many() -> None:
    segment = segment_of("198.18.0.0/18", "80")
    count = SHOWN_MAX + 10
    async with trio.open_nursery() as nursery:
        settings = Settings(first_open=True)
        served = await serve(nursery, [segment], settings=settings)
        peer = await served.peer(**KNOWS)
        pool = served.server.scheduler.pools[0]
        assert pool.shown is not None
        pool.shown.fresh(b"".join(hit(segment, n) for n in range(count)))
        pool.safe = len(pool.shown)
        heard: list[int] = []
        while sum(heard) < count:
            told = await peer.hear(Shown)
            assert isinstance(told, Shown)
            heard.append(len(told.hosts) // HOST_BYTES)
        assert heard == [SHOWN_MAX, 10]
        nursery.cancel_scope.cancel()


@in_trio
async def test_what_was_left_out_is_told_as_that() -> None:
    async with trio.open_nursery() as nursery:
        settings = Settings(first_open=True)
        served = await serve(nursery, [SEGMENT], slice_most=64, pools=2, settings=settings)
        for _ in range(2):
            peer = await served.peer()
            await peer.channel.send(Ask(3))
            for lease in await peer.leases(3):
                hits = hit(SEGMENT, of_host(3, run_of(lease))[0])
                told = Counts(*counts(1, lease.count, skipped=4))
                await peer.report(lease, hits, counts=told, errors={SPARED: 4})
            nursery.start_soon(peer.hear, Stop)
        await settle()
        scheduler = served.server.scheduler
        assert exit_status(scheduler) == 0
        lines = summary_lines(scheduler, 2.0)
        assert lines[0].startswith("320 probes in 2.00 s (148 a second)"), "24 were not sent"
        assert summary_lines(scheduler, 2.0, before=100)[0].startswith("320 probes in 2.00 s:")
        assert lines[0].endswith(": 6 open, 290 closed, 24 left out")
        assert lines[1:] == [
            "1 host has an open port: one of them is told, and the host is probed no further"
        ]
        assert found(scheduler) == "320 probes, 6 open, 290 closed, 24 left out"
        shown = _pool_lines(served.ledger, 0, [SEGMENT])
        assert "  left out: 12 (an open port of the host was known)" in shown
        assert others({SPARED: 3, "local-error": 1}) == {"local-error": 1}
        nursery.cancel_scope.cancel()
    assert len(served.hub.found) == 2  # one for each pool


def test_a_set_of_hosts_is_the_core_s() -> None:
    assert HostSet is _core.HostSet
    assert HOST_BYTES == _core.HOST_BYTES
