"""What discovery has found becomes segments: once, whatever ends when."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import trio

from core_lab import host
from fakes import (
    FakeHub,
    books_over,
    counts_of,
    hit,
    in_trio,
    registration,
    serve,
)
from nray.ledger.entries import Hits, NodeSeen, SliceDone
from nray.ledger.memory import MemoryLedger
from nray.server.books import entries_of
from nray.server.discovery import Search
from nray.server.restore import restore
from nray.server.scheduler import Scheduler
from nray.server.summary import exit_status, found, status_line, summary_lines
from nray.targets.plan import plan
from nray.targets.segment import Segment
from nray.wire.messages import Ask, Bye, Refused, Stop, Welcome

NODE = NodeSeen(1, "node-1", "n", 0, None, "i", "m", None, 1)
COUNTS = 9


#: So many hosts, by IP version.
SIXTEEN = {4: "198.18.0.0/28", 6: "2001:db8::/124"}
MORE = {4: "198.18.0.0/24", 6: "2001:db8::/120"}


def segments_of(discovery="syn:80", targets=SIXTEEN[4], ports="22,23"):
    return plan(targets, tcp=ports, discovery=discovery, seed=1).segments


def ledger_of(segments):
    ledger = MemoryLedger(scan="s", segments=[(each.id, each.pack()) for each in segments])
    ledger.commit([NODE])
    return ledger


class Life:
    """One server process's scheduler, books and search, joined as the server joins them."""

    def __init__(self, ledger, books, pools=1):
        self.segments = {n: Segment.unpack(body) for n, body in ledger.segments()}
        self.scheduler = Scheduler(pools=pools, generation=ledger.generation)
        for each in self.segments.values():
            self.scheduler.add_segment(each, discovery=bool(each.search))
        self.books = books
        self.added = []
        self.search = Search(list(self.segments.values()), self.scheduler, books, self._added)
        restore(self.scheduler, ledger)
        self.search.begin()
        self.nodes = [self.scheduler.join(f"n{pool}", pool, 1) for pool in range(pools)]

    def _added(self, segments):
        self.added.append([each.id for each in segments])
        self.segments |= {each.id: each for each in segments}

    def grant(self, pool=0):
        self.scheduler.want(self.nodes[pool], 1)
        grants = self.scheduler.grant(self.nodes[pool], 0.0)
        self.nodes[pool].wanted = 0
        return grants

    def work(self, up=lambda host: False, pool=0, most=1000, search=True):
        """Scan what there is to be had, until nothing is, or so many slices; hosts that are up
        by the last byte of their address."""
        for _ in range(most):
            grants = self.grant(pool)
            if not grants:
                return
            (grant,) = grants
            segment = self.segments[grant.segment]
            inside = range(grant.start, grant.start + grant.count)
            hits = [
                hit(segment, at) for at in inside if up(segment.space.at(at)[1] & 255)
            ]  # fmt: skip
            counts = counts_of(grant.count, len(hits))
            taken = self.scheduler.report(grant.lease, b"".join(hits), done=True, counts=counts)
            self.books.submit(entries_of(taken, counts, {}, 1))
            if search:
                self.search.take(taken)


def last_bytes(segment):
    ranges = segment.ranges4 + segment.ranges6
    return {each & 255 for first, last in ranges for each in range(first, last + 1)}


@in_trio
async def test_what_is_found_is_scanned_and_told_and_nothing_else(version):
    ledger, hub = ledger_of(made := segments_of(targets=SIXTEEN[version])), FakeHub()
    async with books_over(hub, ledger, made) as books:
        life = Life(ledger, books)
        life.work(lambda host: host in (3, 9))
        assert not life.scheduler.finished
        await books.settled()
        assert life.added == [[1]]
        assert last_bytes(life.segments[1]) == {3, 9}
        assert ledger.segments_ended
        life.work(lambda host: host == 9)
        await books.settled()
        assert life.scheduler.finished
        books.finish()
    nine = {4: "198.18.0.9", 6: "2001:db8::9"}[version]
    assert sorted((e.result.target, e.result.port) for e in hub.events) == [
        (nine, 22),
        (nine, 23),
    ]
    assert (ledger.tally(0)[0], ledger.tally(0, True)[0], ledger.hits(0)) == (2, 2, 2)
    assert exit_status(life.scheduler) == 0


@in_trio
async def test_nobody_is_there_and_the_scan_is_over(version):
    ledger = ledger_of(made := segments_of(targets=SIXTEEN[version]))
    async with books_over(FakeHub(), ledger, made) as books:
        life = Life(ledger, books)
        life.work()
        await books.settled()
        assert life.scheduler.finished
        assert life.added == [[]]
    assert [number for number, _ in ledger.segments()] == [0]
    # Gone on with, there is nothing to append, and it is over at once.
    ledger = ledger.crash()
    async with books_over(FakeHub(), ledger, made) as books:
        assert Life(ledger, books).scheduler.finished


@in_trio
async def test_every_pool_looks_and_scans_what_any_of_them_found(version):
    ledger = ledger_of(made := segments_of(targets=SIXTEEN[version]))
    async with books_over(FakeHub(), ledger, made) as books:
        life = Life(ledger, books, pools=2)
        life.work(lambda host: host == 3, pool=0)
        await books.settled()
        assert life.added == []
        assert not life.grant(0)
        life.work(lambda host: host == 9, pool=1)
        await books.settled()
        assert life.added == [[1]]
        for pool in (0, 1):
            (grant,) = life.grant(pool)
            assert (grant.segment, grant.count) == (1, 4)


@in_trio
async def test_auto_scans_what_answered_and_asks_the_silent_by_syns(version):
    ledger = ledger_of(made := segments_of("auto", SIXTEEN[version]))
    async with books_over(FakeHub(), ledger, made) as books:
        life = Life(ledger, books)
        life.work(lambda host: host == 3)
        await books.settled()
        assert life.added == [[1, 2]]
        assert not ledger.segments_ended
        scanned, asked = life.segments[1], life.segments[2]
        assert (last_bytes(scanned), scanned.ports) == ({3}, ((6, 22), (6, 23)))
        assert (last_bytes(asked), asked.ports) == ({*range(16)} - {3}, ((6, 80), (6, 443)))
        life.work(lambda host: host == 5)
        await books.settled()
        assert life.added == [[1, 2], [3]]
        assert last_bytes(life.segments[3]) == {5}
        life.work()
        await books.settled()
        assert life.scheduler.finished


@pytest.mark.parametrize("pools", [1, 2])
@in_trio
async def test_killed_between_the_last_slice_and_what_follows_it(pools, version):
    ledger = ledger_of(made := segments_of("auto", SIXTEEN[version]))
    async with books_over(FakeHub(), ledger, made) as books:
        life = Life(ledger, books, pools)
        for pool in range(pools):  # all is written down, and nobody follows it
            life.work(lambda host, pool=pool: host == 3 + pool, pool=pool, search=False)
        await books.settled()
    assert len(ledger.segments()) == 1
    for attempt in range(2):
        ledger = ledger.crash()
        before = [Segment.unpack(body) for _, body in ledger.segments()]
        async with books_over(FakeHub(), ledger, before) as books:
            life = Life(ledger, books, pools)
            await books.settled()
            # The first goes on where it stood; the second finds that it was done.
            assert life.added == ([] if attempt else [[1, 2]])
        assert [number for number, _ in ledger.segments()] == [0, 1, 2]
        assert last_bytes(life.segments[1]) == ({3} if pools == 1 else {3, 4})


@in_trio
async def test_killed_amid_discovery_what_was_found_before_counts_too(version):
    ledger = ledger_of(made := segments_of("syn:80", MORE[version]))
    async with books_over(FakeHub(), ledger, made) as books:
        Life(ledger, books).work(lambda host: host % 2 == 0, most=2)
    assert ledger.done(0, 0).total < 256
    ledger = ledger.crash()
    async with books_over(FakeHub(), ledger, made) as books:
        life = Life(ledger, books)
        life.work(lambda host: host % 2 == 0)
        await books.settled()
        assert last_bytes(life.segments[1]) == set(range(0, 256, 2))


@in_trio
async def test_names_are_found_by_any_of_their_addresses(version):
    ledger = ledger_of(made := segments_of("ping", "a.example,b.example,c.example"))
    async with books_over(FakeHub(), ledger, made) as books:
        life = Life(ledger, books)
        (grant,) = life.grant()
        at = [p for p in range(3) if made[0].names[made[0].space.at(p)[1]] != "b.example"]
        hits = b"".join(hit(made[0], p, ip_address(host(version, p)).packed) for p in at)
        counts = counts_of(3, 2)
        taken = life.scheduler.report(grant.lease, hits, done=True, counts=counts)
        books.submit(entries_of(taken, counts, {}, 1))
        life.search.take(taken)
        await books.settled()
        assert life.segments[1].names == ("a.example", "c.example")


def test_what_cannot_be_sent_in_discovery_makes_the_scan_incomplete():
    (segment,) = segments_of("arp")
    scheduler = Scheduler()
    scheduler.add_segment(segment, discovery=True)
    node = scheduler.join("n", 0, 1)
    scheduler.want(node, 1)
    (grant,) = scheduler.grant(node, 0.0)
    counts = (0, 0, 0, 0, grant.count, 0, 0, 0, 0)
    scheduler.report(
        grant.lease, b"", done=True, counts=counts, errors={"not-on-link": grant.count}
    )
    scheduler.end_segments()
    assert scheduler.finished
    assert exit_status(scheduler) == 3
    lines = summary_lines(scheduler, 1.0, segments=[segment])
    assert lines[0].startswith("0 probes and 16 of discovery in 1.00 s")
    assert "16 × not on a local link, where alone ARP reaches" in lines[-1]  # --show tells no more


def test_discovery_is_told_apart_while_it_runs_and_at_the_end():
    (segment,) = segments_of("syn:80", "198.18.0.0/24")
    scheduler = Scheduler(slice_most=64)
    scheduler.add_segment(segment, discovery=True)
    node = scheduler.join("n", 0, 1)
    scheduler.want(node, 1)
    (grant,) = scheduler.grant(node, 0.0)
    counts = counts_of(grant.count, 2)
    hits = hit(segment, grant.start) + hit(segment, grant.start + 1)
    taken = scheduler.report(grant.lease, hits, done=True, counts=counts, now=1.0)
    assert taken.discovery
    assert status_line(scheduler, 1) == (
        "looking for hosts: 25.0 % done: 64 of 256 probes, 2 answers; 1 node"
    )
    pool = scheduler.pools[0]
    assert (pool.hits, pool.tally.open, pool.discovery.hits, pool.discovery.tally.open) == (
        0, 0, 2, 2,
    )  # fmt: skip
    assert found(scheduler).startswith("0 probes, 0 open")
    lines = summary_lines(scheduler, 1.0, segments=[segment])
    assert "256 hosts looked for, 0 up so far; no others were scanned" in lines
    assert "not finished: 192 of 256 of discovery to do, then what it finds" in lines


def test_how_fast_a_node_is_at_discovery_says_nothing_of_ports():
    made = plan("198.18.0.0/16", tcp="80", discovery="ping", seed=1).segments
    scheduler = Scheduler()
    scheduler.add_segment(made[0], discovery=True)
    node = scheduler.join("n", 0, 1)

    def one(now):
        scheduler.want(node, 1)
        return scheduler.grant(node, now)[0]

    sizes = []
    for now in range(6):
        grant = one(float(now))
        sizes.append(grant.count)
        scheduler.report(
            grant.lease, b"", done=True, counts=counts_of(grant.count), now=now + 0.001
        )
    assert sizes[-1] > 8 * sizes[0]
    (plain,) = plan("198.18.0.0/16", tcp="80", seed=1).segments
    scheduler.pools[0].segments.clear()
    scheduler.add_segment(plain)
    assert one(9.0).count == sizes[0]


def test_rows_of_before_discovery_read_as_of_the_scan_itself():
    import msgspec

    from nray.ledger.entries import pack_rows, unpack_rows

    row = Hits(1, 0, 0, 0, 5, bytes(32))
    short = msgspec.msgpack.decode(pack_rows([row]))[0][:-1]
    assert unpack_rows(msgspec.msgpack.encode([short])) == [row]
    assert not SliceDone(0, 0, 0, 1).discovery


@in_trio
async def test_a_node_that_knows_no_discovery_is_not_let_in():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments_of(), ledger=ledger_of(segments_of()))
        peer = await served.peer(register=False)
        assert isinstance(await peer.hear(), Welcome)
        await peer.channel.send(registration(methods=("connect", "syn")))
        refused = await peer.hear()
        assert isinstance(refused, Refused)
        assert refused.reason == "not-allowed"
        assert "discovery looks for hosts first" in refused.detail
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_node_is_told_of_what_was_found_and_then_that_it_is_over():
    (first,) = segments_of()
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [first], ledger=ledger_of([first]))
        peer = await served.peer(methods=("connect", "discovery"))
        await peer.channel.send(Ask(3))
        (lease,) = await peer.leases(1)
        assert (lease.segment, lease.count) == (0, 16)
        await peer.report(lease, hit(first, 2) + hit(first, 7))
        (lease,) = await peer.leases(1)
        assert (lease.segment, lease.count) == (1, 4)
        assert peer.segments[1].hosts == 2
        assert not served.over.is_set()
        await peer.report(lease, hit(peer.segments[1], 0))
        stop = await peer.hear(Stop)
        assert stop.done
        await peer.channel.send(Bye())
        await served.finished.wait()
    assert [event.result.port for event in served.hub.events if event.result] == [
        peer.segments[1].space.at(0)[3]
    ]
    assert served.ledger.segments_ended
    assert len(served.server.segments) == 2
