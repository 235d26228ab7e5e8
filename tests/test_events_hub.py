"""The hub: back-pressure, order, errors, cancellation; on fake sinks whose pace the test sets."""

import math
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import nray.events.hub as hub_module
from nray.events import model
from nray.events.filters import FilterError
from nray.events.hub import BATCH_EVENTS_MAX, Hub, SinkPort, open_hub
from nray.events.json_file import JsonFileSink
from nray.events.sink import SinkClosed, SinkError, SinkStartError
from nray.events.terminal import TerminalSink

PATIENCE_S = 60.0  # a test that hangs fails after so long


def event(port: int = 80, **changes: Any) -> model.Event:
    fields: dict[str, Any] = {
        "node_id": "n1",
        "node_name": "node-a",
        "timestamp_ms": 1767323045123,
        "target": "198.18.0.5",
        "address": "198.18.0.5",
        "state": "open",
        "reason": "syn-ack",
        "timeout_ms": 1000,
    }
    return model.port_event(port=port, **(fields | changes))


def events(count: int, first: int = 1) -> list[model.Event]:
    return [event(port) for port in range(first, first + count)]


class FakeSink:
    """Keeps what it gets. With `held`, each write waits until the test calls `let`."""

    def __init__(self, name: str = "fake", held: bool = False, abandonable: bool = False) -> None:
        self.name = name
        self.abandonable = abandonable
        self.calls: list[str] = []
        self.batches: list[list[model.Event]] = []
        self.error: Exception | None = None
        self.error_at = ""
        self.due_s = math.inf
        self.written = threading.Event()
        self._gate = threading.Semaphore(0 if held else 1_000_000)

    def let(self, writes: int = 1) -> None:
        self._gate.release(writes)

    def open(self) -> None:
        self._call("open")

    def write(self, events: Sequence[model.Event]) -> None:
        if not self._gate.acquire(timeout=PATIENCE_S):
            raise AssertionError("the test never let this write go on")
        self._call("write")
        self.batches.append(list(events))
        self.written.set()

    def sync_due_s(self) -> float:
        return self.due_s

    def sync(self) -> None:
        self.due_s = math.inf
        self._call("sync")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.error_at and self.error is not None:
            raise self.error

    @property
    def got(self) -> list[model.Event]:
        return [e for batch in self.batches for e in batch]


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run the test; a hang fails it even where another exception hides the cancellation."""
    patience = trio.CancelScope(deadline=math.inf)

    async def timed() -> None:
        patience.deadline = trio.current_time() + PATIENCE_S
        with patience:
            await test()

    try:
        trio.run(timed)
    finally:
        assert not patience.cancel_called, f"not done after {PATIENCE_S} s"


def failing(sink: FakeSink, at: str, error: Exception) -> FakeSink:
    sink.error_at, sink.error = at, error
    return sink


# ── the plain way ───────────────────────────────────────────────────────────────────────────


def test_every_sink_gets_what_it_wants_in_order() -> None:
    everything, some = FakeSink("a"), FakeSink("b")

    async def test() -> None:
        ports = [
            SinkPort(everything, states=("closed",)),
            SinkPort(some, {"result.port": [2, 3]}, channelsize=1),
        ]
        async with open_hub(ports) as hub:
            await hub.publish([event(1), event(2), event(3, state="closed")])
            await hub.publish([])
            await hub.publish([event(2, pool=7)])
            await hub.flush()
            a, b = hub.statistics()
            assert (a.accepted, a.written, a.skipped, a.pending) == (4, 4, 0, 0)
            assert (b.accepted, b.written, b.skipped, b.pending) == (2, 2, 2, 0)

    run(test)
    assert everything.got == [event(1), event(2), event(3, state="closed"), event(2, pool=7)]
    assert some.got == [event(2), event(2, pool=7)]
    for sink in (everything, some):
        assert sink.calls[0] == "open"
        assert sink.calls[-1] == "close"
        assert sink.calls.count("close") == 1


def test_leaving_the_block_writes_what_is_queued() -> None:
    sink = FakeSink()

    async def test() -> None:
        async with open_hub([SinkPort(sink)]) as hub:
            await hub.publish(events(10))

    run(test)
    assert sink.got == events(10)


def test_no_sinks_at_all() -> None:
    async def test() -> None:
        async with open_hub([]) as hub:
            await hub.publish(events(3))
            await hub.flush()

    run(test)


def test_an_idle_sink_writes_one_event_at_once() -> None:
    sink = FakeSink()

    async def test() -> None:
        async with open_hub([SinkPort(sink)]) as hub:
            for port in range(3):
                sink.written.clear()
                await hub.publish([event(port)])
                await trio.to_thread.run_sync(sink.written.wait, PATIENCE_S)
                assert sink.batches[-1] == [event(port)]

    run(test)


def test_a_pipe_has_an_event_before_the_block_ends() -> None:
    read, end = os.pipe()

    async def test() -> None:
        async with open_hub([SinkPort(TerminalSink(fd=end))]) as hub:
            await hub.publish([event()])
            data = await trio.to_thread.run_sync(os.read, read, 4096)
            assert data == model.encode_lines([event()])

    run(test)
    os.close(read)
    os.close(end)


def test_what_gathers_while_a_sink_is_busy_is_one_batch() -> None:
    sink = FakeSink(held=True)

    async def test() -> None:
        async with open_hub([SinkPort(sink)]) as hub:
            for port in range(5):
                await hub.publish([event(port)])
                await wait_all_tasks_blocked()
            sink.let(2)

    run(test)
    assert [len(batch) for batch in sink.batches] == [1, 4]


def test_a_batch_has_a_bound() -> None:
    sink = FakeSink()

    async def test() -> None:
        async with open_hub([SinkPort(sink, channelsize=100_000)]) as hub:
            await hub.publish(events(BATCH_EVENTS_MAX + 1))

    run(test)
    assert [len(batch) for batch in sink.batches] == [BATCH_EVENTS_MAX, 1]


# ── back-pressure ───────────────────────────────────────────────────────────────────────────


def test_publish_waits_for_a_slow_sink_and_memory_stays_bounded() -> None:
    slow, quick = FakeSink("slow", held=True), FakeSink("quick")

    async def test() -> None:
        async with open_hub([SinkPort(slow, channelsize=4), SinkPort(quick)]) as hub:
            ended = trio.Event()

            async def publisher() -> None:
                await hub.publish(events(10))
                ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher)
                for written in (0, 4, 8):
                    while hub.statistics()[0].accepted < min(written + 4, 10):
                        await trio.sleep(0.001)
                    await wait_all_tasks_blocked()
                    now = hub.statistics()[0]
                    assert now.written == written
                    assert now.pending == min(4, 10 - written)  # the write under way included
                    assert now.waiting == (written < 8)
                    assert ended.is_set() == (written == 8)
                    slow.let()
                await hub.flush()
            assert quick.got == events(10)  # it never waited for the slow one

    run(test)
    assert slow.got == events(10)
    assert all(len(batch) <= 4 for batch in slow.batches)


def test_publishers_wait_in_their_order() -> None:
    sink = FakeSink(held=True)

    async def test() -> None:
        async with (
            open_hub([SinkPort(sink, channelsize=1)]) as hub,
            trio.open_nursery() as nursery,
        ):
            for port in range(5):
                nursery.start_soon(hub.publish, [event(port)])
                await wait_all_tasks_blocked()
            assert hub.statistics()[0].waiting == 4
            sink.let(5)

    run(test)
    assert sink.got == events(5, first=0)


def test_whoever_comes_later_does_not_overtake_those_who_wait() -> None:
    sink = FakeSink()

    async def test() -> None:
        async with (
            open_hub([SinkPort(sink)]) as hub,
            trio.open_nursery() as nursery,
            hub._lanes[0].turn,  # somebody waits, and room has just come
        ):
            nursery.start_soon(hub.publish, [event(2)])
            await wait_all_tasks_blocked()
            assert hub.statistics()[0].accepted == 0

    run(test)
    assert sink.got == [event(2)]


def test_many_publishers_lose_and_double_nothing() -> None:
    sink = FakeSink()

    async def test() -> None:
        async with open_hub([SinkPort(sink, channelsize=7)]) as hub:

            async def publisher(first: int) -> None:
                for at in range(first, first + 100, 10):
                    await hub.publish(events(10, first=at))

            async with trio.open_nursery() as nursery:
                for first in range(0, 1000, 100):
                    nursery.start_soon(publisher, first)
            await hub.flush()
            assert len(sink.got) == 1000

    run(test)
    ports = [e.result.port for e in sink.got if isinstance(e.result, model.Result)]
    assert sorted(ports) == list(range(1000))
    for first in range(0, 1000, 100):  # each publisher's own order
        own = [port for port in ports if first <= port < first + 100]
        assert own == sorted(own)


def test_flush_waits_for_what_was_published_before_it_only() -> None:
    sink = FakeSink(held=True)

    async def test() -> None:
        async with open_hub([SinkPort(sink)]) as hub:
            await hub.publish([event(1)])
            await wait_all_tasks_blocked()
            with trio.move_on_after(0.01) as scope:
                await hub.flush()
            assert scope.cancelled_caught
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hub.flush)
                await wait_all_tasks_blocked()
                await hub.publish([event(2)])
                sink.let()  # the first write alone
            assert sink.got == [event(1)]
            sink.let()

    run(test)
    assert sink.got == [event(1), event(2)]


# ── sync ────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_hub_syncs_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "out.json"

    async def test() -> None:
        async with open_hub([SinkPort(JsonFileSink(str(path), synctimer_s=0.01))]) as hub:
            await hub.publish([event()])
            while not synced:
                await trio.sleep(0.002)
            await trio.sleep(0.03)  # and not again while there is nothing new

    run(test)
    assert len(synced) == 1


def test_sync_brings_what_was_published_before_it_onto_every_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    files = [JsonFileSink(str(tmp_path / name), synctimer_s=1000.0) for name in ("a", "b")]

    async def test() -> None:
        async with open_hub([SinkPort(file) for file in files]) as hub:
            for count in (3, 2):
                await hub.publish(events(count))
                await hub.sync()
                assert [file.position for file in files] == [
                    os.stat(file.filename).st_size for file in files
                ]
            before = len(synced)
            await hub.sync()  # nothing new
            assert len(synced) == before

    run(test)
    assert files[0].position == len(model.encode_lines(events(3) + events(2)))


def test_sync_waits_for_the_write_under_way() -> None:
    sink = FakeSink(held=True)

    async def test() -> None:
        async with open_hub([SinkPort(sink)]) as hub, trio.open_nursery() as nursery:
            await hub.publish([event()])
            nursery.start_soon(hub.sync)
            await wait_all_tasks_blocked()
            assert "sync" not in sink.calls
            sink.let()

    run(test)
    assert sink.calls == ["open", "write", "sync", "close"]


def test_a_sync_that_fails_raises_and_ends_the_hub() -> None:
    bad = failing(FakeSink("bad"), "sync", SinkError("the disk did not take it"))
    good = FakeSink("good")
    seen: list[BaseException] = []

    async def test() -> None:
        async with open_hub([SinkPort(bad), SinkPort(good)]) as hub:
            await hub.publish(events(3))
            try:
                await hub.sync()
            except SinkError as error:
                seen.append(error)
            with pytest.raises(SinkError):
                await hub.publish([event()])
            await trio.sleep_forever()

    with pytest.raises(SinkError, match="did not take it") as caught:
        run(test)
    assert seen == [caught.value]
    assert good.got == events(3)


def test_sync_of_a_hub_that_has_ended_is_refused() -> None:
    async def test() -> None:
        async with open_hub([SinkPort(FakeSink())]) as hub:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await hub.sync()

    run(test)


# ── a full disk ─────────────────────────────────────────────────────────────────────────────


class FullSink(FakeSink):
    """Has room for so many events; what comes after that is to be tried again."""

    def __init__(self, name: str = "file", room: int = 0) -> None:
        super().__init__(name)
        self.room = room
        self.tries = 0

    def write(self, events: Sequence[model.Event]) -> None:
        self.tries += 1
        taken = list(events[: self.room])
        self.room -= len(taken)
        self.batches.append(taken)
        if len(taken) < len(events):
            raise SinkError(f"{self.name}: no space", retry=True, written_events=len(taken))


@pytest.mark.parametrize("room", [0, 3])
def test_a_full_disk_is_waited_for_told_of_once_and_loses_nothing(
    room: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "RETRY_S", 0.005)
    caplog.set_level("INFO")
    full, other = FullSink(room=room), FakeSink("other")

    async def test() -> None:
        async with open_hub([SinkPort(full), SinkPort(other)]) as hub:
            await hub.publish(events(10))
            while full.tries < 4:
                await trio.sleep(0.001)
            await trio.to_thread.run_sync(other.written.wait, PATIENCE_S)
            assert hub.statistics()[0].pending == 10 - room
            full.room = 4  # some, and not enough
            while hub.statistics()[0].pending > 6 - room:
                await trio.sleep(0.001)
            full.room = 100
            await hub.flush()
            full.room = 0  # and again
            await hub.publish(events(1))
            tries = full.tries
            while full.tries < tries + 3:
                await trio.sleep(0.001)
            full.room = 1
            await hub.sync()

    run(test)
    assert full.got == other.got == events(10) + events(1)
    told = ["paused: file: no space; it goes on when there is room", "file: there is room again"]
    assert [record.getMessage() for record in caplog.records] == told * 2


def test_while_a_disk_is_full_publishers_wait_and_memory_stays_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "RETRY_S", 0.005)
    full = FullSink()

    async def test() -> None:
        async with open_hub([SinkPort(full, channelsize=4)]) as hub, trio.open_nursery() as nursery:
            nursery.start_soon(hub.publish, events(20))
            while full.tries < 4:
                await trio.sleep(0.001)
            assert hub.statistics()[0].accepted == 4
            full.room = 100

    run(test)
    assert full.got == events(20)


def test_a_disk_that_is_full_at_the_end_is_not_waited_for() -> None:
    full = FullSink(room=2)

    async def test() -> None:
        async with open_hub([SinkPort(full)]) as hub:
            await hub.publish(events(5))
            while not full.tries:
                await trio.sleep(0.001)

    with pytest.raises(SinkError, match="no space"):
        run(test)
    assert full.got == events(2)
    assert full.calls[-1] == "close"


def test_an_error_after_the_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RETRY_S", 0.005)
    full = FullSink()

    def broken(events: Sequence[model.Event]) -> None:
        raise SinkError("file: the disk is gone")

    async def test() -> None:
        async with open_hub([SinkPort(full)]) as hub:
            await hub.publish(events(5))
            while full.tries < 2:
                await trio.sleep(0.001)
            monkeypatch.setattr(full, "write", broken)
            await trio.sleep_forever()

    with pytest.raises(SinkError, match="the disk is gone"):
        run(test)


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def test_a_sinks_error_cancels_the_block_and_comes_out_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "STALLED_GRACE_S", math.inf)  # cancelled now, not then
    bad = failing(FakeSink("bad"), "write", SinkError("bad out.json: disk full"))
    good = FakeSink("good")

    async def test() -> None:
        async with open_hub([SinkPort(bad), SinkPort(good)]) as hub:
            await hub.publish([event()])
            await trio.sleep_forever()

    with pytest.raises(SinkError, match=r"bad out\.json: disk full"):
        run(test)
    assert good.got == [event()]
    assert bad.calls == ["open", "write", "close"]
    assert good.calls[-1] == "close"


def test_publish_and_flush_raise_the_error_outside_of_the_block_too() -> None:
    bad = failing(FakeSink("bad", held=True), "write", SinkError("no space"))
    seen: list[BaseException] = []

    async def test() -> None:
        async def outside(call: Callable[[], Awaitable[None]]) -> None:
            try:
                await call()
            except SinkError as error:
                seen.append(error)

        async def inside(nursery: trio.Nursery) -> None:
            async with open_hub([SinkPort(bad, channelsize=1)]) as hub:
                nursery.start_soon(outside, lambda: hub.publish(events(5)))
                await wait_all_tasks_blocked()
                nursery.start_soon(outside, hub.flush)
                await wait_all_tasks_blocked()
                hubs.append(hub)
                bad.let()
                await trio.sleep_forever()

        hubs: list[Hub] = []
        async with trio.open_nursery() as nursery:
            with pytest.raises(SinkError) as caught:
                await inside(nursery)
            await outside(lambda: hubs[0].publish([event()]))
        assert seen == [caught.value] * 3

    run(test)


def test_any_other_exception_of_a_sink_names_the_sink() -> None:
    bad = failing(FakeSink("json-file out.json"), "write", OSError(5, "Input/output error"))

    async def test() -> None:
        async with open_hub([SinkPort(bad)]) as hub:
            await hub.publish([event()])
            await hub.flush()

    with pytest.raises(SinkError, match=r"json-file out\.json: .*Input/output") as caught:
        run(test)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("at", ["close", "sync"])
def test_errors_at_the_end_are_errors(at: str) -> None:
    bad = failing(FakeSink("bad"), at, SinkError("the disk did not take it"))
    bad.due_s = 0.0

    async def test() -> None:
        async with open_hub([SinkPort(bad)]) as hub:
            await hub.publish([event()])

    with pytest.raises(SinkError, match="did not take it"):
        run(test)
    assert bad.calls[-1] == "close"


def test_the_blocks_own_exception_comes_out_as_it_is_after_all_is_written() -> None:
    sink = FakeSink()

    async def test() -> None:
        async with open_hub([SinkPort(sink)]) as hub:
            await hub.publish(events(3))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(test)
    assert sink.got == events(3)
    assert sink.calls[-1] == "close"


def test_a_sinks_error_wins_over_the_blocks_and_mentions_it() -> None:
    bad = failing(FakeSink("bad"), "write", SinkError("no space"))

    async def test() -> None:
        async with open_hub([SinkPort(bad)]) as hub:
            await hub.publish([event()])
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("mine")

    with pytest.raises(SinkError, match="no space") as caught:
        run(test)
    assert any("KeyError('mine')" in note for note in caught.value.__notes__)


def test_ctrl_c_wins_over_a_sinks_error() -> None:
    bad = failing(FakeSink("bad"), "write", SinkError("no space"))

    async def test() -> None:
        async with open_hub([SinkPort(bad)]) as hub:
            await hub.publish([event()])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(test)


def test_if_one_sink_cannot_open_the_others_are_closed() -> None:
    first, never = FakeSink("first"), FakeSink("never")
    bad = failing(FakeSink("bad"), "open", SinkStartError("bad: exists"))

    async def test() -> None:
        async with open_hub([SinkPort(first), SinkPort(bad), SinkPort(never)]):
            raise AssertionError("the block must not begin")

    with pytest.raises(SinkStartError, match="exists"):
        run(test)
    assert (first.calls, bad.calls, never.calls) == (["open", "close"], ["open"], [])


def test_a_hub_whose_block_has_ended_is_closed_for_good() -> None:
    async def test() -> None:
        async with open_hub([SinkPort(FakeSink())]) as hub:
            pass
        for call in (hub.publish([event()]), hub.flush()):
            with pytest.raises(trio.ClosedResourceError):
                await call

    run(test)


# ── cancellation ────────────────────────────────────────────────────────────────────────────


def test_cancelled_publish_and_what_was_taken_is_written() -> None:
    sink = FakeSink(held=True)

    async def test() -> None:
        async with open_hub([SinkPort(sink, channelsize=3)]) as hub:
            with trio.move_on_after(0.01):
                await hub.publish(events(10))
            assert hub.statistics()[0].waiting == 0
            sink.let(3)

    run(test)
    assert sink.got == events(3)


def test_a_cancelled_block_still_writes_what_was_published() -> None:
    sink = FakeSink(held=True)

    async def test() -> None:
        with trio.CancelScope() as scope:
            async with open_hub([SinkPort(sink)]) as hub:
                await hub.publish(events(5))
                scope.cancel()
                sink.let(2)
                await trio.sleep_forever()
        assert scope.cancelled_caught

    run(test)
    assert sink.got == events(5)
    assert sink.calls[-1] == "close"


def test_an_error_is_not_swallowed_by_a_cancellation_at_the_same_time() -> None:
    bad = failing(FakeSink("bad", held=True), "write", SinkError("no space"))

    async def test() -> None:
        with trio.CancelScope() as scope:
            async with open_hub([SinkPort(bad)]) as hub:
                await hub.publish(events(5))
                await wait_all_tasks_blocked()
                scope.cancel()
                bad.let()
                await trio.sleep_forever()

    with pytest.raises(SinkError, match="no space"):
        run(test)


def test_the_blocks_exception_is_not_swallowed_by_a_cancellation_either() -> None:
    stalled = FakeSink(held=True, abandonable=True)  # its writer ends as cancelled

    async def test() -> None:
        with trio.CancelScope() as scope:
            async with open_hub([SinkPort(stalled)]) as hub:
                await hub.publish([event()])
                await wait_all_tasks_blocked()
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    stalled.let()
                    raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(test)


def test_a_stalled_reader_does_not_hold_up_cancellation() -> None:
    stalled, file = FakeSink("terminal", held=True, abandonable=True), FakeSink("file")

    async def test() -> None:
        with trio.CancelScope() as scope:
            async with open_hub([SinkPort(stalled), SinkPort(file)]) as hub:
                await hub.publish(events(5))
                await wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
        stalled.let()  # ends the thread that was left behind

    run(test)
    assert stalled.calls in (["open"], ["open", "write"])  # not closed: a thread still uses it
    assert file.got == events(5)


def test_a_stalled_reader_does_not_hold_up_an_error_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "STALLED_GRACE_S", 0.02)
    stalled = FakeSink("terminal", held=True, abandonable=True)
    bad = failing(FakeSink("file"), "write", SinkError("no space"))

    async def test() -> None:
        try:
            async with open_hub([SinkPort(stalled), SinkPort(bad)]) as hub:
                await hub.publish(events(5))
                await trio.sleep_forever()
        finally:
            stalled.let()

    with pytest.raises(SinkError, match="no space"):
        run(test)


# ── with real sinks ─────────────────────────────────────────────────────────────────────────


def test_into_a_file_with_flush(tmp_path: Path) -> None:
    path = tmp_path / "out.json"

    async def test() -> None:
        async with open_hub([SinkPort(JsonFileSink(str(path)), states=("closed",))]) as hub:
            await hub.publish([event(1), event(2, state="closed")])
            await hub.flush()
            assert [model.decode(x).result for x in path.read_bytes().splitlines()] == [
                event(1).result,
                event(2, state="closed").result,
            ]

    run(test)


def test_a_closed_pipe_ends_the_hub_cleanly() -> None:
    read, end = os.pipe()
    os.close(read)

    async def test() -> None:
        async with open_hub([SinkPort(TerminalSink(fd=end))]) as hub:
            await hub.publish([event()])
            await trio.sleep_forever()

    with pytest.raises(SinkClosed):
        run(test)
    os.close(end)


# ── ports ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, -1])
def test_a_channel_holds_at_least_one_event(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SinkPort(FakeSink(), channelsize=size)


def test_a_bad_filter_is_found_before_anything_is_opened() -> None:
    sink = JsonFileSink("out.json")
    with pytest.raises(FilterError, match=r"events\.json-file\.filter: no event has 'result\.pr"):
        SinkPort(sink, {"result.prot": 1})
    with pytest.raises(FilterError, match=r"conf\.yaml: events\.x\.states"):
        SinkPort(sink, states=["shut"], where="conf.yaml: events.x")


def test_statistics_before_the_start() -> None:
    (stats,) = Hub([SinkPort(FakeSink("f"), channelsize=9)]).statistics()
    assert (stats.name, stats.channelsize, stats.pending, stats.batches) == ("f", 9, 0, 0)
