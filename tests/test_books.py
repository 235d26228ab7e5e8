"""The books: groups of entries into a ledger, and each output after it at its own pace."""

from __future__ import annotations

import os
import random

import pytest
import trio
import trio.testing

from fakes import FakeLedger, FakeSink, found_in, hit, in_trio, run_in_trio, segment_of, until
from nray.api import loop
from nray.events import model
from nray.events.hub import SinkPort
from nray.events.json_file import JsonFileSink
from nray.events.model import Environment
from nray.events.sink import SinkError
from nray.ledger.entries import CursorAt, Hits, NodeSeen, Registration, SliceDone
from nray.ledger.ledger import Cursor, LedgerError, LedgerFull
from nray.ledger.memory import MemoryLedger
from nray.ledger.sqlite import SqliteLedger
from nray.server import books as module
from nray.server.books import RETRY_S, entries_of, open_books
from nray.server.scheduler import Scheduler
from nray.targets.findings import expand

SEGMENT = segment_of("198.18.0.0/24", "1-100")
NODE = NodeSeen(1, "node-1", "nyc1", 0, None, "i", "m", Environment(hostname="h"), 5)
TIMEOUTS = {"tcp": 1000, "udp": 2000}


def hits(start, *more):
    """Hits of the slice from ``start``, at its first position and these."""
    packed = b"".join(hit(SEGMENT, position) for position in (start, *more))
    return Hits(1, 0, 0, start, 1_700_000_000_000, packed)


def done(start, count=1):
    return SliceDone(0, 0, start, count, (0, count, 0, 0, 0, 0, 0, 0, 0))


def books_on(ledger, *sinks, channelsize=1000):
    ports = [
        sink if isinstance(sink, SinkPort) else SinkPort(sink, channelsize=channelsize)
        for sink in sinks
    ]
    return open_books(ledger, ports, {0: SEGMENT}, TIMEOUTS)


def places(*positions):
    """(address, port) of these positions, as outputs get them."""
    found = expand(SEGMENT, b"".join(hit(SEGMENT, position) for position in positions))
    return [(each.address, each.port) for each in found]


def only(error):
    """What is in a group of one, of groups of one."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


def begun():
    """A ledger with a node in it."""
    made = FakeLedger([SEGMENT])
    made.commit([NODE])
    made.commits.clear()
    return made


# ── groups ──────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_many_submissions_cost_few_commits_and_keep_their_order():
    ledger = begun()
    ledger.takes_s = 0.1
    durable = []
    async with books_on(ledger) as books:
        for position in range(1000):
            await books.room()
            books.submit([hits(position), done(position)], lambda n=position: durable.append(n))
            await trio.sleep(0.001)
        await books.settled()
        assert durable == list(range(1000))
        assert len(ledger.commits) < 20
    starts = [entry.start for group in ledger.commits for entry in group if type(entry) is Hits]
    assert starts == list(range(1000))
    assert ledger.done(0, 0).total == 1000


@in_trio
async def test_what_is_called_is_called_when_it_is_durable_and_in_order_also_for_nothing():
    ledger = begun()
    called = []
    async with books_on(ledger) as books:
        ledger.stand_still()
        books.submit([hits(0)], lambda: called.append((1, ledger.last)))
        await trio.sleep(1)
        books.submit([], lambda: called.append((2, ledger.last)))
        books.submit([hits(7)])
        books.submit([done(0)], lambda: called.append((3, ledger.last)))
        await trio.sleep(5)
        assert called == []
        assert not books.idle
        ledger.go_on()
        await books.settled()
        assert books.idle
        assert called == [(1, 1), (2, 2), (3, 2)]


@in_trio
async def test_what_is_called_for_nothing_is_called_at_the_end_too():
    called = []
    async with books_on(begun()) as books:
        books.submit([], lambda: called.append(1))
        assert not books.idle
    assert called == [1]


@pytest.mark.parametrize("what", ["entries", "bytes"])
@in_trio
async def test_what_waits_for_a_commit_has_a_bound(what, monkeypatch):
    if what == "entries":
        monkeypatch.setattr(module, "PENDING_ENTRIES_MAX", 10)
    else:
        monkeypatch.setattr(module, "PENDING_BYTES_MAX", 10 * 32)
    ledger = begun()
    submitted = 0

    async def submit_all(books):
        nonlocal submitted
        for position in range(100):
            await books.room()
            books.submit([hits(position)])
            submitted += 1

    async with books_on(ledger) as books, trio.open_nursery() as nursery:
        ledger.stand_still()
        nursery.start_soon(submit_all, books)
        await trio.sleep(10)
        assert 10 <= submitted <= 21  # those under way, and those that wait
        ledger.go_on()
    assert submitted == len(ledger.hit_keys) == 100


@in_trio
async def test_leaving_waits_for_ledger_and_outputs():
    ledger = begun()
    ledger.takes_s = 1.0
    sink = FakeSink(each_s=1.0)
    async with books_on(ledger, sink) as books:
        for position in range(10):
            books.submit([hits(position)])
    assert found_in(sink.events) == places(*range(10))
    assert ledger.cursor("fake") == Cursor(10)
    assert sink.syncs


@in_trio
async def test_outputs_get_what_is_durable_and_nothing_else():
    ledger = begun()
    sink = FakeSink()
    async with books_on(ledger, sink) as books:
        ledger.stand_still()
        books.submit([hits(0)])
        await trio.sleep(10)
        assert sink.events == []
        ledger.go_on()
        await until(lambda: sink.events, 0.1)


@in_trio
async def test_left_by_an_exception_it_waits_for_nobody():
    ledger = begun()
    sink = FakeSink()
    before = trio.current_time()

    async def leave():
        async with books_on(ledger, sink) as books:
            sink.stand_still()
            books.submit([hits(0)])
            await trio.sleep(1)
            raise KeyError("mine")

    with pytest.raises(BaseExceptionGroup) as caught:
        await leave()
    assert isinstance(only(caught.value), KeyError)
    assert trio.current_time() - before < 5
    assert ledger.cursor("fake") is None
    assert len(ledger.hit_keys) == 1


# ── a disk that is full, or fails ───────────────────────────────────────────────────────────


@in_trio
async def test_a_full_disk_is_waited_for_and_told_of_once(caplog):
    caplog.set_level("INFO")
    ledger = begun()
    durable = []
    sink = FakeSink()
    async with books_on(ledger, sink) as books:
        for turn in range(2):
            ledger.trouble = LedgerFull("no room")
            tries = ledger.tries
            books.submit([hits(turn)], lambda n=turn: durable.append(n))
            await trio.sleep(100 * RETRY_S)
            assert ledger.tries - tries == pytest.approx(100, abs=2)
            assert durable == list(range(turn))
            assert len(found_in(sink.events)) == turn
            ledger.trouble = None
            await books.settled()
            assert durable == list(range(turn + 1))
    said = [record.getMessage() for record in caplog.records]
    paused = "paused: no room; the scan goes on when there is room"
    room = "there is room again; the scan goes on"
    assert said == [paused, room] * 2
    assert found_in(sink.events) == places(0, 1)


@pytest.mark.parametrize(
    ("entry", "kind"), [(hits(0), LedgerError), (Hits(9, 0, 0, 0, 1, hit(SEGMENT, 0)), ValueError)]
)
@in_trio
async def test_what_cannot_be_written_ends_the_books_and_nothing_is_called_durable(entry, kind):
    ledger = begun()
    durable = []

    async def write():
        async with books_on(ledger) as books:
            if kind is LedgerError:
                ledger.trouble = LedgerError("broken")
            books.submit([entry], lambda: durable.append(1))
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await write()
    assert type(only(caught.value)) is kind
    assert durable == []


def test_a_users_error_comes_out_of_a_loop_as_itself():
    ledger = MemoryLedger(scan="", segments=[(0, b"")], ended=True)
    ledger.commit([NODE])
    error = LedgerError("broken")

    async def main():
        async with books_on(ledger) as books:
            ledger.fail_next(error)
            books.submit([hits(0)])
            await trio.sleep_forever()

    with pytest.raises(LedgerError) as caught:
        loop.run(main)
    assert caught.value is error


def test_an_outputs_error_comes_out_of_a_loop_as_itself():
    class Broken(FakeSink):
        def write(self, events):
            raise SinkError("broken")

    async def main():
        ledger = MemoryLedger(scan="", segments=[(0, b"")], ended=True)
        ledger.commit([NODE])
        async with books_on(ledger, Broken(), channelsize=1) as books:
            books.submit([hits(0), hits(1), hits(2), hits(3)])
            await trio.sleep_forever()

    with pytest.raises(SinkError, match="broken"):
        loop.run(main)


# ── outputs ─────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_a_stuck_output_holds_everything_within_bounds_and_misses_nothing_later():
    ledger = begun()
    ledger.takes_s = 0.001
    size = 50
    sink, quick = FakeSink("slow"), FakeSink("quick")
    sink.stand_still()
    submitted = 0

    async def submit_all(books):
        nonlocal submitted
        for position in range(2000):
            await books.room()
            books.submit([hits(position)])
            submitted += 1
            await trio.sleep(0.0001)

    async with (
        books_on(ledger, SinkPort(sink, channelsize=size), quick) as books,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(submit_all, books)
        await trio.sleep(100)
        # In the queue, behind it in the journal, and what came before the commit showed.
        assert 2 * size <= submitted <= 2 * size + 30
        assert len(found_in(quick.events)) == submitted  # the other has all the same
        sink.go_on()
    for each in (sink, quick):
        assert found_in(each.events) == places(*range(2000))


@pytest.mark.parametrize("size", [1, 7])
@in_trio
async def test_two_outputs_of_different_pace_get_the_same_each_once_and_in_order(size):
    ledger = begun()
    slow, quick = FakeSink("slow", each_s=0.1), FakeSink("quick")
    async with books_on(ledger, SinkPort(slow, channelsize=size), quick) as books:
        books.submit([Registration(1, 5)])
        for position in range(0, 100, 2):
            await books.room()
            books.submit([hits(position, position + 1), done(position, 2)])
            assert len(quick.events) - len(slow.events) <= 2 * size + 20
    assert slow.events == quick.events
    assert [each.nodeName for each in slow.events if each.environment] == ["nyc1"]
    assert found_in(slow.events) == places(*range(100))


@in_trio
async def test_events_are_made_once_for_all_outputs_and_not_kept_longer_than_needed():
    ledger = begun()
    sinks = [FakeSink(str(number), each_s=0.01 * number) for number in range(3)]
    async with books_on(ledger, *sinks, channelsize=1) as books:
        for position in range(20):
            books.submit([hits(position)])
        await trio.sleep(0.05)
        assert books._translator._kept
        await books.written()
        assert not books._translator._kept
        assert books._translator._kept_events == 0
    for one, two, three in zip(*[sink.events for sink in sinks], strict=True):
        assert one is two is three
    alone = FakeSink("alone")
    async with books_on(ledger, alone) as books:
        await books.written()
        assert not books._translator._kept
    assert alone.events == sinks[0].events


@in_trio
async def test_what_is_kept_for_a_slow_output_has_a_bound(monkeypatch):
    monkeypatch.setattr(module, "CACHED_EVENTS_MAX", 10)
    ledger = begun()
    slow, quick = FakeSink("slow"), FakeSink("quick")
    slow.stand_still()
    async with books_on(ledger, slow, quick, channelsize=2) as books:
        for position in range(50):
            books.submit([hits(position)])
        await until(lambda: len(quick.events) == 50)
        assert len(books._translator._kept) <= 5
        slow.go_on()
        await books.written()
        assert not books._translator._kept
    assert slow.events == quick.events


class SlowToRead(FakeLedger):
    """What it reads is as old as the reading took."""

    def read(self, after, most):
        rows = super().read(after, most)

        async def later():
            await trio.sleep(0.1)
            return rows

        return later()


@in_trio
async def test_what_is_committed_while_an_output_reads_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "CURSOR_SOON_S", 1000.0)
    ledger = SlowToRead([SEGMENT])
    ledger.commit([NODE])
    sink = FakeSink()
    async with books_on(ledger, sink) as books:
        books.submit([hits(0)])
        await until(lambda: sink.events, 1)
        await trio.sleep(0.05)  # it looks for more, and will find nothing
        books.submit([hits(1)])
        await until(lambda: len(sink.events) == 2, 1)


@in_trio
async def test_an_output_goes_on_after_its_cursor():
    ledger = begun()
    ledger.commit([hits(position) for position in range(10)])
    ledger.set_cursor("fake", Cursor(6))
    sink, fresh = FakeSink(), FakeSink("fresh")
    async with books_on(ledger, sink, fresh) as books:
        await books.written()
        assert books._clerk.hits == 10
        assert [feeder.lag for feeder in books._feeders] == [0, 0]
    assert found_in(sink.events) == places(*range(6, 10))
    assert found_in(fresh.events) == places(*range(10))


@in_trio
async def test_a_cursor_never_says_more_than_what_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    written = []
    ledger = begun()
    sink = JsonFileSink(str(path), synctimer_s=1000.0)

    def fsync(fd):
        written.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    async with books_on(ledger, sink) as books:
        for position in range(100):
            books.submit([hits(position)])
            await trio.sleep(0.3)
    at = [each for group in ledger.commits for each in group if isinstance(each, CursorAt)]
    assert 4 <= len(at) <= 10
    assert at[-1].cursor == Cursor(100, path.stat().st_size)
    data = path.read_bytes()
    for each in at:
        assert each.cursor.position in written
        assert data[: each.cursor.position].count(b"\n") == each.cursor.seq


@in_trio
async def test_a_cursor_that_stays_costs_nothing():
    ledger = begun()
    async with books_on(ledger, FakeSink()) as books:
        books.submit([hits(0)])
        await trio.sleep(1000)
        assert len(ledger.commits) == 2  # the hit, the cursor
        assert ledger.cursor("fake") == Cursor(1)
    assert len(ledger.commits) == 2


@in_trio
async def test_without_outputs_it_writes_down_all_the_same():
    ledger = begun()
    async with books_on(ledger) as books:
        for position in range(10):
            await books.room()
            books.submit([hits(position)])
        await books.written()
    assert len(ledger.hit_keys) == 10


@in_trio
async def test_a_ledger_in_memory_lets_go_what_all_outputs_have():
    ledger = MemoryLedger(scan="", segments=[(0, b"")], ended=True, release=["slow", "quick"])
    slow, quick = FakeSink("slow", each_s=0.01), FakeSink("quick")
    held = 0
    async with books_on(ledger, slow, quick, channelsize=20) as books:
        books.submit([NODE])
        for position in range(1000):
            await books.room()
            books.submit([hits(position)])
            await trio.sleep(0)
            held = max(held, len(ledger._store.rows))
        await books.written()
        assert ledger._store.rows == []
    assert held < 400
    assert found_in(slow.events) == found_in(quick.events) == places(*range(1000))


@in_trio
async def test_filters_and_states_do_not_hold_a_cursor_back():
    ledger = begun()
    nothing = SinkPort(FakeSink(), {"result.port": 99999}, channelsize=1)
    async with books_on(ledger, nothing) as books:
        for position in range(100):
            await books.room()
            books.submit([hits(position)])
    assert nothing.sink.events == []
    assert ledger.cursor("fake") == Cursor(100)


# ── what a report becomes ───────────────────────────────────────────────────────────────────


def test_a_report_is_its_new_hits_and_its_end():
    scheduler = Scheduler()
    scheduler.add_segment(SEGMENT)
    node = scheduler.join("a", 0, 1)
    scheduler.want(node, 1)
    (grant,) = scheduler.grant(node, 0.0)
    first, second = hit(SEGMENT, grant.start), hit(SEGMENT, grant.start + 1)
    counts = (2, grant.count - 2, 0, 0, 0, 0, 0, 0, 0)

    def entries(packed, ended):
        taken = scheduler.report(grant.lease, packed, done=ended, counts=counts if ended else ())
        return entries_of(taken, counts, {"x": 1}, 4)

    (row,) = entries(first, False)
    assert (row.node, row.pool, row.segment, row.start, row.packed) == (4, 0, 0, grant.start, first)
    assert entries(first, False) == []
    row, end = entries(first + second, True)
    assert row.packed == second
    assert end == SliceDone(0, 0, grant.start, grant.count, counts, {"x": 1})


# ── after a crash ───────────────────────────────────────────────────────────────────────────


def tear(rng, path, position):
    """What a killed process leaves of its output: all that the cursor says, and some more."""
    if path.exists():
        os.truncate(path, rng.randint(position, path.stat().st_size))


@pytest.mark.parametrize("seed", range(15))
def test_a_file_is_continued_whatever_moment_it_was_cut_at(seed, tmp_path, monkeypatch):
    rng = random.Random(seed)
    path = tmp_path / "out.json"
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    async def lives():
        ledger = begun()
        submitted = 0
        while submitted < 300:
            ledger.takes_s = rng.choice([0.0, 0.01, 0.3])
            cursor = ledger.cursor(f"json-file {path}")
            position = cursor.position if cursor else 0
            tear(rng, path, position)
            sink = JsonFileSink(str(path), resume_at=position)
            with trio.move_on_after(rng.expovariate(0.2)):
                async with books_on(
                    ledger, SinkPort(sink, channelsize=rng.choice([1, 10, 500]))
                ) as books:
                    submitted = len(ledger.hit_keys)
                    while submitted < 300:
                        await books.room()
                        books.submit([hits(submitted)])
                        submitted += 1
                        await trio.sleep(rng.expovariate(10))
            submitted = len(ledger.hit_keys)
            ledger = ledger.reopened()
        sink = JsonFileSink(str(path), resume_at=ledger.cursor(f"json-file {path}").position)
        async with books_on(ledger, sink) as books:
            await books.written()

    run_in_trio(lives)
    found = found_in([model.decode(line) for line in path.read_bytes().splitlines()])
    assert found == places(*range(300))


def test_with_a_ledger_and_outputs_on_a_disk(tmp_path):
    """The same once with threads and files."""
    state, out = tmp_path / "state.nray", tmp_path / "out.json"
    ledger = SqliteLedger.create(state, scan="s", settings=b"", segments=[(0, b"")], ended=True)
    ledger.commit([NODE])

    async def first():
        with trio.CancelScope() as scope:
            async with books_on(ledger, JsonFileSink(str(out)), channelsize=10) as books:
                for position in range(10_000):
                    await books.room()
                    books.submit([hits(position), done(position)])
                    if ledger.done(0, 0).total:
                        scope.cancel()

    trio.run(first)
    durable = ledger.done(0, 0).total
    assert 0 < durable < 10_000
    ledger.close()
    ledger = SqliteLedger.open(state)
    cursor = ledger.cursor(f"json-file {out}") or Cursor(0)

    async def second():
        sink = JsonFileSink(str(out), resume_at=cursor.position)
        with trio.fail_after(60):
            async with books_on(ledger, sink) as books:
                books.submit([hits(durable), done(durable)])

    trio.run(second)
    ledger.close()
    found = found_in([model.decode(line) for line in out.read_bytes().splitlines()])
    assert found == places(*range(durable + 1))
