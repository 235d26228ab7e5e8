"""The server over lines in memory, on a mock clock: every peer here is moved by hand."""

from __future__ import annotations

import logging
import socket

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import (
    FakeHub,
    FakeLedger,
    Peer,
    books_over,
    counts_of,
    hit,
    in_trio,
    ledger_of,
    options,
    registration,
    segment_of,
    serve,
    until,
)
from nray import UserError
from nray.ledger.ledger import LedgerError, LedgerFull
from nray.server import books as books_module
from nray.server import server as server_module
from nray.server.accept import open_listeners
from nray.server.door import ADDRESS_PART, LINES_MAX, Stage
from nray.server.server import FAREWELL_S, REGISTER_S, Server
from nray.server.sessions import RECONNECT_S
from nray.server.summary import exit_status
from nray.targets.findings import expand
from nray.wire.channel import Channel, ChannelBroken, ChannelEnded
from nray.wire.errors import Reason
from nray.wire.framing import encode_frame
from nray.wire.messages import (
    Ack,
    Ask,
    Bye,
    Counts,
    Heartbeat,
    Lease,
    Pulse,
    Refused,
    Segment,
    Stop,
    Welcome,
)
from nray.wire.states import NodeEnd

GONE = (ChannelEnded, ChannelBroken)


async def scan_all(peer, hits=lambda lease: b""):
    """Ask and report until the server says Stop; then Bye. Returns the leases, and the Stop."""
    leases = []
    await peer.channel.send(Ask(1))
    while True:
        message = await peer.hear(Lease, Stop, Refused)
        if not isinstance(message, Lease):
            assert isinstance(message, Stop), message
            await peer.channel.send(Bye())
            return leases, message
        leases.append(message)
        await peer.report(message, hits(message))
        await peer.channel.send(Ask(1))


async def refusal(peer):
    """The refusal that a peer gets, Acks and the like left aside."""
    refused = await peer.hear(Refused)
    with pytest.raises(GONE):
        await peer.channel.receive()
    return refused


# ── a scan ──────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_one_node_scans_everything():
    segment = segment_of()
    opened = {5, 700, 2559}
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment])
        peer = await served.peer("one")

        def hits(lease):
            inside = range(lease.start, lease.start + lease.count)
            return b"".join(hit(segment, n) for n in sorted(opened) if n in inside)

        leases, stop = await scan_all(peer, hits)
        await served.finished.wait()
    assert stop == Stop(True)
    assert sum(lease.count for lease in leases) == segment.probes
    assert sorted(served.hub.found) == sorted(
        (finding.address, finding.port)
        for finding in expand(segment, b"".join(hit(segment, n) for n in opened))
    )
    assert served.hub.registrations == ["one"]
    assert exit_status(served.server.scheduler) == 0


@in_trio
async def test_errors_make_status_3():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-2")])
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        counts = Counts(0, 1, 0, 0, 1, 0, 0, 0)
        await peer.report(lease, counts=counts, errors={"name-not-resolved": 1})
        await peer.hear(Stop)
        await peer.channel.send(Bye())
        await served.finished.wait()
    assert exit_status(served.server.scheduler) == 3


@in_trio
async def test_a_segment_comes_before_its_first_lease_and_once_on_each_line():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of()], slice_most=10)
        for _ in range(2):
            peer = await served.peer(instance="same", machine_id="same")
            await peer.channel.send(Ask(2))
            seen = [type(await peer.hear(Segment, Lease)) for _ in range(3)]
            assert seen == [Segment, Lease, Lease]
            assert peer.segments[0] == served.segments[0]
            peer.cut()
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


@in_trio
async def test_no_lease_without_credit_and_none_beyond_it():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, slice_most=10)
        peer = await served.peer()
        await trio.sleep(1)
        assert not served.server.scheduler._by_lease
        await peer.channel.send(Ask(3))
        leases = await peer.leases(3)
        await trio.sleep(1)
        assert len(served.server.scheduler._by_lease) == 3
        await peer.report(leases[0])
        await peer.hear(Ack)
        assert len(served.server.scheduler._by_lease) == 2
        nursery.cancel_scope.cancel()


@in_trio
async def test_heartbeats_are_answered():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        peer = await served.peer()
        for sent in (1, 7):
            await peer.channel.send(Heartbeat(sent))
            assert await peer.hear() == Pulse()
        assert [session.sent for session in served.server._sessions] == [7]
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_hit_that_is_told_twice_makes_one_event():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, slice_most=10)
        segment = served.segments[0]
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        await peer.report(lease, hit(segment, 3), done=False)
        await peer.report(lease, hit(segment, 3) + hit(segment, 4), done=False)
        await peer.report(lease, hit(segment, 4) + hit(segment, 3))
        assert [(await peer.hear(Ack)).report for _ in range(3)] == [1, 2, 3]
        assert len(served.hub.found) == 2
        nursery.cancel_scope.cancel()


# ── the end ─────────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_all_nodes_are_told_to_stop_whether_they_wait_or_not():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        idle, hungry, worker = [await served.peer() for _ in range(3)]
        await hungry.channel.send(Ask(4))
        lease = await hungry.hear(Lease)
        await worker.channel.send(Ask(4))
        await hungry.report(lease)
        for peer in (idle, hungry, worker):
            assert (await peer.hear(Stop)).done
            await peer.channel.send(Bye())
        before = trio.current_time()
        await served.finished.wait()
    assert trio.current_time() - before < 0.1


@in_trio
async def test_a_node_that_registers_when_all_is_done_is_told_at_once():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        slow = await served.peer()  # keeps the server up: it has not said Bye yet
        await scan_all(await served.peer())
        await slow.hear(Stop)
        before = trio.current_time()
        late = await served.peer("late")
        assert (await late.hear()).done
        assert trio.current_time() - before < 0.1
        await late.channel.send(Bye())
        await slow.channel.send(Bye())
        await served.finished.wait()


@in_trio
async def test_a_node_that_is_just_coming_is_waited_for_and_told():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        guest = await served.peer(register=False)  # its line is up, and no more
        await scan_all(await served.peer())
        await trio.sleep(server_module.LATECOMER_S / 2)
        await guest.register(instance="late", machine_id="late")
        assert (await guest.hear()).done
        await guest.channel.send(Bye())
        await served.finished.wait()


@in_trio
async def test_a_line_that_never_registers_holds_the_end_up_but_a_little():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        await served.peer(register=False)
        await scan_all(await served.peer())
        before = trio.current_time()
        await served.finished.wait()
    assert trio.current_time() - before == pytest.approx(server_module.LATECOMER_S, abs=0.2)


@in_trio
async def test_a_node_that_lost_its_line_at_the_end_is_waited_for_and_told():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        away = await served.peer(instance="away", machine_id="away")
        away.cut()
        await trio.sleep(0.1)
        await scan_all(await served.peer())
        await trio.sleep(0.5)
        back = await served.peer(instance="away", machine_id="away")
        assert (await back.hear()).done
        await back.channel.send(Bye())
        await served.finished.wait()


@in_trio
async def test_a_node_that_never_says_bye_is_left_after_a_while(caplog):
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        mute = await served.peer()
        await scan_all(await served.peer())
        await mute.hear(Stop)
        before = trio.current_time()
        await served.finished.wait()
    assert trio.current_time() - before == pytest.approx(FAREWELL_S, abs=1)
    assert "1 nodes did not say good-bye" in caplog.text


@in_trio
async def test_interrupted_it_stops_all_nodes_takes_what_they_bring_and_is_not_complete():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, slice_most=10)
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        served.server.interrupt("x" * 1000)  # longer than a text may be
        stop = await peer.hear(Stop)
        assert not stop.done
        await peer.report(lease, hit(served.segments[0], lease.start), done=False)
        await peer.channel.send(Bye())
        assert (await peer.hear(Ack)).report == 1
        await served.finished.wait()
    assert served.server.interrupted
    assert len(served.hub.found) == 1
    assert exit_status(served.server.scheduler) == 3


@in_trio
async def test_an_interrupt_after_the_end_is_none():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        await peer.report(await peer.hear(Lease))
        stop = await peer.hear(Stop)
        served.server.interrupt("too late")
        await peer.channel.send(Bye())
        await served.finished.wait()
    assert stop.done
    assert not served.server.interrupted


@in_trio
async def test_a_node_that_leaves_gives_its_slices_to_others_at_once():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-5")])
        leaver, other = await served.peer(), await served.peer()
        await leaver.channel.send(Ask(1))
        lease = await leaver.hear(Lease)
        await other.channel.send(Ask(1))
        await leaver.channel.send(Bye())
        before = trio.current_time()
        again = await other.hear(Lease)
        assert (again.start, again.count) == (lease.start, lease.count)
        assert again.lease != lease.lease
        assert trio.current_time() == before
        nursery.cancel_scope.cancel()


# ── lines that are lost, and nodes that come back ───────────────────────────────────────────


@in_trio
async def test_back_within_the_grace_a_node_keeps_its_leases():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-100")], slice_most=10)
        peer = await served.peer(instance="i", machine_id="m")
        await peer.channel.send(Ask(3))
        leases = await peer.leases(3)
        peer.cut()
        await trio.sleep(RECONNECT_S * 0.9)
        kept = tuple(lease.lease for lease in leases[:2])  # the third was lost on the way
        back = await served.peer(instance="i", machine_id="m", leases=kept)
        assert back.registered.node_id == peer.registered.node_id
        await back.channel.send(Ask(1))
        again = await back.hear(Lease)
        assert (again.start, again.count) == (leases[2].start, leases[2].count)
        assert len(served.hub.registrations) == 1
        for lease in [*leases[:2], again]:
            await back.report(lease)
        await back.hear(Ack)
        await until(lambda: served.done == 30)
        nursery.cancel_scope.cancel()


@in_trio
async def test_after_the_grace_others_get_them_and_late_reports_count_where_still_open():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-20")], slice_most=10)
        segment = served.segments[0]
        peer = await served.peer(instance="i", machine_id="m")
        await peer.channel.send(Ask(2))
        leases = await peer.leases(2)
        peer.cut()
        other = await served.peer()
        await other.channel.send(Ask(2))
        before = trio.current_time()
        again = await other.leases(2)
        assert RECONNECT_S < trio.current_time() - before < RECONNECT_S + 1.5
        await other.report(again[0], hit(segment, 3))
        await other.hear(Ack)
        # Back at last; both slices are reported: one is ended already, one is not.
        back = await served.peer(instance="i", machine_id="m", leases=[e.lease for e in leases])
        await back.report(leases[0], hit(segment, 3) + hit(segment, 4))
        await back.report(leases[1], hit(segment, 15))
        assert (await back.hear(Ack)).report == 1
        await other.hear(Stop)
        for each in (back, other):
            await each.channel.send(Bye())
        await served.finished.wait()
    assert len(served.hub.found) == 2
    assert served.done == 20


@in_trio
async def test_a_silent_node_is_given_up_after_the_expiry_time():
    async with trio.open_nursery() as nursery:
        # Sooner than a slice may be leased a second time.
        served = await serve(nursery, [segment_of("198.18.0.1", "1-5")], node_expiry_s=20)
        silent, other = await served.peer(), await served.peer()
        assert silent.registered.heartbeat_s == 5
        await silent.channel.send(Ask(1))
        lease = await silent.hear(Lease)
        await other.channel.send(Ask(1))
        before = trio.current_time()

        async def beat():
            while True:
                await trio.sleep(5)
                await other.channel.send(Heartbeat(0))

        nursery.start_soon(beat)
        again = await other.hear(Lease)
        assert (again.start, again.count) == (lease.start, lease.count)
        assert 20 < trio.current_time() - before < 22
        with pytest.raises(GONE):
            await silent.hear(Lease)
        nursery.cancel_scope.cancel()


@in_trio
async def test_who_waits_gets_a_stragglers_slice_too_and_the_first_end_counts():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-5")])
        slow, idle = await served.peer(), await served.peer()

        async def beat():
            while True:
                await trio.sleep(5)
                await slow.channel.send(Heartbeat(0))
                await idle.channel.send(Heartbeat(0))

        await slow.channel.send(Ask(1))
        lease = await slow.hear(Lease)
        await idle.channel.send(Ask(1))
        async with trio.open_nursery() as beating:
            beating.start_soon(beat)
            with trio.fail_after(120):
                again = await idle.hear(Lease)
            beating.cancel_scope.cancel()
        assert (again.start, again.count) == (lease.start, lease.count)
        segment = served.segments[0]
        await idle.report(again, hit(segment, 2))
        await slow.report(lease, hit(segment, 2) + hit(segment, 3))  # too late, and no lie
        for peer in (idle, slow):
            await peer.hear(Stop)
            await peer.channel.send(Bye())
        await served.finished.wait()
    assert len(served.hub.found) == 1
    assert served.done == 5


@pytest.mark.parametrize(("expiry", "beat"), [(30, 5), (3, 1), (0.3, 0.1)])
@in_trio
async def test_heartbeats_are_frequent_enough_for_the_expiry_time(expiry, beat):
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, node_expiry_s=expiry)
        peer = await served.peer()
        assert peer.registered.heartbeat_s == pytest.approx(beat)
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_node_that_was_given_up_comes_back_to_its_pool():
    # Its late reports are of that pool's leases: in another pool they would look like lies.
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-5")], pools=2)
        first = await served.peer(instance="i", machine_id="m")
        assert first.registered.pool == 0
        await first.channel.send(Ask(1))
        lease = await first.hear(Lease)
        await served.peer()  # pool 1
        await served.peer(preferred_pool=0)
        first.cut()
        await trio.sleep(4)
        back = await served.peer(instance="i", machine_id="m", preferred_pool=1)
        assert back.registered.pool == 0
        assert back.registered.node_id == first.registered.node_id
        await back.report(lease, hit(served.segments[0], lease.start))
        assert (await back.hear(Ack)).report == 1
        assert [event.nodeID for event in served.hub.events] == [
            *("node-1", "node-2", "node-3"),  # registrations, none of them twice
            "node-1",
        ]
        nursery.cancel_scope.cancel()


@in_trio
async def test_of_two_lines_of_one_node_the_newer_counts():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-20")], slice_most=10)
        old = await served.peer(instance="i", machine_id="m")
        await old.channel.send(Ask(1))
        lease = await old.hear(Lease)
        new = await served.peer(instance="i", machine_id="m", leases=(lease.lease,))
        with pytest.raises(GONE):
            await old.hear(Lease)
        await new.report(lease)
        await new.hear(Ack)
        await scan_all(new)
        await served.finished.wait()
    assert served.done == 20


@in_trio
async def test_a_node_that_dies_while_it_registers_holds_nothing_up():
    # Its line breaks when Registered is sent: it is lost like any other, and its machine may
    # start another node.
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, several_per_machine=False)
        peer = await served.peer(register=False)
        await peer.channel.receive()
        await peer.channel.send(registration(machine_id="m", instance="one"))
        peer.cut()
        await trio.sleep(0.1)
        assert not served.server._sessions.connected()
        await served.peer(machine_id="m", instance="two")
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_line_that_breaks_in_the_registration_does_not_make_a_node_unknown():
    # The ledger takes no hits of a node that it does not know.
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-5")])
        peer = await served.peer(register=False)
        await peer.channel.receive()
        await peer.channel.send(registration(machine_id="m", instance="one"))
        peer.cut()
        await trio.sleep(0.1)
        segment = served.segments[0]
        await scan_all(
            await served.peer("again", machine_id="m", instance="one"),
            lambda lease: hit(segment, lease.start),
        )
        await served.finished.wait()
    assert len(served.hub.found) == 1
    assert len(served.hub.registrations) == 1


# ── what is durable, and what is not yet ────────────────────────────────────────────────────


async def undurable(nursery, **changes):
    """A server whose ledger stands still with one hit of a slice of ten; its peer and lease."""
    segments = [segment_of("198.18.0.1", "1-20")]
    served = await serve(nursery, segments, ledger=FakeLedger(segments), slice_most=10, **changes)
    peer = await served.peer(instance="i", machine_id="m")
    await peer.channel.send(Ask(1))
    lease = await peer.hear(Lease)
    served.ledger.stand_still()
    await peer.report(lease, hit(served.segments[0], 3))
    await until(lambda: served.server._not_durable)
    return served, peer, lease


async def silent(peer, kind, seconds=3):
    """No such message comes for a while."""
    with trio.move_on_after(seconds) as waited:
        await peer.hear(kind)
    assert waited.cancelled_caught, f"{kind.__name__} came"


@in_trio
async def test_a_report_is_acknowledged_when_the_ledger_has_it_and_not_before():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await undurable(nursery)
        await silent(peer, Ack)
        assert not served.hub.found
        served.ledger.go_on()
        await peer.hear(Ack)
        assert len(served.ledger.hit_keys) == 1
        await until(lambda: served.hub.found, 1)
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_report_is_acknowledged_though_no_output_has_it():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, slice_most=10)
        peer = await served.peer()
        await peer.channel.send(Ask(1))
        served.hub.stand_still()
        lease = await peer.hear(Lease)
        await peer.report(lease, hit(served.segments[0], lease.start))
        with trio.fail_after(1):
            await peer.hear(Ack)
        assert not served.hub.found
        nursery.cancel_scope.cancel()


@in_trio
async def test_one_word_for_many_reports_and_one_commit():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await undurable(nursery)
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        segment = served.segments[0]
        for position in range(10, 20):
            await peer.report(lease, hit(segment, position), done=False)
        await until(lambda: served.server._not_durable == 11)
        before = len(served.ledger.commits)
        served.ledger.go_on()
        heard = [(await peer.hear(Ack)).report]
        while heard[-1] < 11:
            heard.append((await peer.hear(Ack)).report)
        assert heard == sorted(heard)
        assert len(heard) <= 3
        assert len(served.ledger.commits) - before <= 3
        await until(lambda: len(served.hub.found) == 11, 1)
        nursery.cancel_scope.cancel()


@in_trio
async def test_what_is_dropped_is_acknowledged_in_its_turn_too():
    async with trio.open_nursery() as nursery:
        served, peer, lease = await undurable(nursery)
        segment = served.segments[0]
        # It was ended by the first, so these bring nothing; yet the first is not durable.
        await peer.report(lease, hit(segment, 3))
        await peer.report(lease, hit(segment, 4), done=False)
        await silent(peer, Ack)
        served.ledger.go_on()
        heard = 0
        while heard < 3:
            ack = (await peer.hear(Ack)).report
            assert ack > heard
            heard = ack
        assert len(served.ledger.hit_keys) == 1
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_hit_is_not_lost_with_the_line_that_brought_it():
    async with trio.open_nursery() as nursery:
        served, peer, lease = await undurable(nursery)
        peer.cut()
        await trio.sleep(1)
        back = await served.peer(instance="i", machine_id="m", leases=(lease.lease,))
        await back.report(lease, hit(served.segments[0], 3))
        await silent(back, Ack)
        served.ledger.go_on()
        await back.hear(Ack)
        assert len(served.ledger.hit_keys) == 1
        await scan_all(back)
        await served.finished.wait()
    assert len(served.hub.found) == 1


@in_trio
async def test_a_hit_is_not_lost_when_a_lease_breaks_on_the_line_meanwhile():
    # The task that sends fails first and cancels the one that listens.
    segments = [segment_of("198.18.0.1", "1-20")]
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=FakeLedger(segments), slice_most=10)
        peer, other = await served.peer(), await served.peer()
        await peer.channel.send(Ask(1))
        lease = await peer.hear(Lease)
        await other.channel.send(Ask(1))
        await other.hear(Lease)
        await peer.channel.send(Ask(1))
        served.ledger.stand_still()
        await peer.report(lease, hit(served.segments[0], 3))
        await until(lambda: served.server._not_durable)
        peer.cut()
        await other.channel.send(Bye())  # what it had is for the peer, whose line is cut
        await trio.sleep(1)
        served.ledger.go_on()
        await trio.sleep(1)
        assert len(served.hub.found) == 1
        nursery.cancel_scope.cancel()


@in_trio
async def test_the_scan_is_over_when_all_is_durable_not_when_all_is_done():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await undurable(nursery)
        other = await served.peer()
        await other.channel.send(Ask(1))
        await other.report(await other.hear(Lease))  # ends the last slice, and holds no hit
        await until(lambda: served.server.scheduler.finished)
        await silent(other, Stop, 20)
        served.ledger.go_on()
        for each in (peer, other):
            await each.hear(Stop)
            await each.channel.send(Bye())
        await served.finished.wait()
    assert len(served.hub.found) == 1


@in_trio
async def test_the_scan_is_not_over_when_an_earlier_report_becomes_durable():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await undurable(nursery)
        served.ledger.takes_s = 5.0
        await peer.channel.send(Ask(1))
        await peer.report(await peer.hear(Lease))
        await until(lambda: served.server.scheduler.finished)
        served.ledger.go_on()
        assert (await peer.hear(Ack, Stop)).report == 1
        await silent(peer, Stop, 4)
        assert await peer.hear(Stop)
        assert len(served.ledger.ended) == 2
        nursery.cancel_scope.cancel()


@in_trio
async def test_who_says_bye_hears_that_its_last_report_is_durable():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await undurable(nursery)
        await peer.channel.send(Bye())
        await trio.sleep(1)
        served.ledger.go_on()
        assert (await peer.hear(Ack)).report == 1
        nursery.cancel_scope.cancel()


# ── a disk that is full, and one that fails ─────────────────────────────────────────────────


@in_trio
async def test_a_full_disk_pauses_the_scan_and_nobody_is_given_up(caplog, monkeypatch):
    monkeypatch.setattr(books_module, "PENDING_ENTRIES_MAX", 4)
    segments = [segment_of("198.18.0.1", "1-200")]
    ledger = FakeLedger(segments)
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, segments, ledger=ledger, slice_most=10, node_expiry_s=12)
        peer, quiet = await served.peer(), await served.peer()
        ledger.trouble = LedgerFull("no room for state.nray")
        stops = []

        async def scan():
            leases, stop = await scan_all(peer, lambda lease: hit(segments[0], lease.start + 4))
            stops.append((len(leases), stop))

        async def beat():
            while True:
                await quiet.channel.send(Heartbeat(0))
                with trio.fail_after(served.server._heartbeat_s + 1):
                    await quiet.hear(Pulse, Stop)
                await trio.sleep(served.server._heartbeat_s)

        async with trio.open_nursery() as scans:
            scans.start_soon(scan)
            scans.start_soon(beat)
            await trio.sleep(200)
            assert not stops
            assert not served.hub.found
            # What is in memory meanwhile has a bound.
            assert served.server._not_durable < 10
            assert len(served.server._sessions.connected()) == 2
            ledger.trouble = None
            await until(lambda: stops, 10)
            scans.cancel_scope.cancel()
        await quiet.channel.send(Bye())
        await served.finished.wait()
    assert stops == [(20, Stop(True))]
    assert len(set(served.hub.found)) == len(served.hub.found) == 20
    assert len(served.hub.registrations) == 2
    said = [each.getMessage() for each in caplog.records]
    assert said.count("paused: no room for state.nray; the scan goes on when there is room") == 1
    assert said.count("there is room again; the scan goes on") == 1
    assert not [each for each in said if "gone" in each or "lost" in each]


@in_trio
async def test_a_disk_that_fails_ends_the_server_with_that_error():
    segments = [segment_of("198.18.0.1", "1-20")]
    ledger = FakeLedger(segments)
    error = LedgerError("state.nray: Input/output error")

    async def scan():
        async with trio.open_nursery() as nursery:
            served = await serve(nursery, segments, ledger=ledger)
            peer = await served.peer()
            await peer.channel.send(Ask(1))
            lease = await peer.hear(Lease)
            ledger.trouble = error
            await peer.report(lease, hit(segments[0], 3))
            with pytest.raises(GONE):
                await peer.hear(Ack)

    with pytest.raises(BaseExceptionGroup) as caught:
        await scan()
    raised = caught.value
    while isinstance(raised, BaseExceptionGroup):
        (raised,) = raised.exceptions
    assert raised is error
    assert not ledger.hit_keys


# ── slow outputs ────────────────────────────────────────────────────────────────────────────


async def stuck(nursery, **changes):
    """A server whose output stands still and is as far behind as it may be: reports wait.

    Also its peer, and the lease of ten of which six hits are told, and not all taken.
    """
    served = await serve(
        nursery, [segment_of("198.18.0.1", "1-20")], slice_most=10, channelsize=1, **changes
    )
    peer = await served.peer(instance="i", machine_id="m")
    await peer.channel.send(Ask(1))
    lease = await peer.hear(Lease)
    await until(lambda: served.hub.registrations)
    served.hub.stand_still()
    for position in range(6):
        await peer.report(lease, hit(served.segments[0], position), done=False)
        await trio.sleep(0.1)
    await until(lambda: any(session.busy for session in served.server._sessions))
    return served, peer, lease


@in_trio
async def test_a_slow_output_holds_the_nodes_and_loses_nothing():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await stuck(nursery)
        await trio.sleep(100)
        taken = len(served.ledger.read(0, 100)) - 1
        assert taken < 4
        served.hub.go_on()
        heard = 0
        while heard < 6:
            heard = (await peer.hear(Ack)).report
        await until(lambda: len(served.hub.found) == 6, 1)
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_node_is_not_given_up_for_our_own_slowness_and_hears_that_we_live():
    async with trio.open_nursery() as nursery:
        served, peer, lease = await stuck(nursery, node_expiry_s=30)
        await peer.channel.send(Heartbeat(0))  # not read before the output goes on
        before = trio.current_time()
        for _ in range(20):
            with trio.fail_after(6):
                await peer.hear(Pulse)
        assert trio.current_time() - before > 90
        served.hub.go_on()
        await peer.report(lease)
        await scan_all(peer)
        await served.finished.wait()
    assert len(served.hub.registrations) == 1
    assert len(served.hub.found) == 6


@in_trio
async def test_a_node_is_held_no_longer_than_its_line():
    async with trio.open_nursery() as nursery:
        served, peer, _ = await stuck(nursery)
        peer.cut()
        await trio.sleep(10)
        served.hub.go_on()
        await trio.sleep(10)
        assert not len(served.server._sessions)
        assert len(set(served.hub.found)) == len(served.hub.found)
        nursery.cancel_scope.cancel()


@in_trio
async def test_nodes_are_dismissed_before_a_slow_output_has_everything():
    async with trio.open_nursery() as nursery:
        segment = segment_of("198.18.0.1", "1-20")
        served = await serve(nursery, [segment], slice_most=10)
        peer = await served.peer()
        await until(lambda: served.hub.registrations)
        served.hub.stand_still()
        await scan_all(peer, lambda lease: hit(segment, lease.start))
        with trio.fail_after(1):
            await served.over.wait()
        await trio.sleep(100)
        assert not served.finished.is_set()
        served.hub.go_on()
        await served.finished.wait()
    assert len(served.hub.found) == 2


@in_trio
async def test_interrupted_with_slow_outputs_what_was_told_is_still_written():
    async with trio.open_nursery() as nursery:
        served, _, _ = await stuck(nursery)
        served.server.interrupt("enough")
        await trio.sleep(FAREWELL_S + 5)
        assert served.over.is_set()
        assert not served.finished.is_set()
        durable = len(served.ledger.read(0, 100)) - 1
        assert durable
        served.hub.go_on()
        await served.finished.wait()
    assert len(served.hub.found) == durable


@in_trio
async def test_cancelled_it_ends_at_once_even_with_slow_outputs():
    with trio.move_on_after(1000) as scope:
        async with trio.open_nursery() as nursery:
            await stuck(nursery)
            before = trio.current_time()
            scope.cancel()
    assert trio.current_time() == before


# ── peers that lie, and peers that do not know the rules ────────────────────────────────────


def wrong_address(segment, position):
    record = bytearray(hit(segment, position))
    record[8] ^= 1
    return bytes(record)


LIES = {
    "a hit outside of its slice": lambda segment: {"hits": hit(segment, 15)},
    "a hit outside of the space": lambda segment: {"hits": b"\xff" * 8 + b"\0" * 24},
    "an address that does not stand there": lambda segment: {"hits": wrong_address(segment, 3)},
    "an unknown state": lambda segment: {"hits": hit(segment, 3, state=77)},
    "no state": lambda segment: {"hits": hit(segment, 3, state=0)},
    "counts too small": lambda segment: {"counts": Counts(0, 9)},
    "counts too large": lambda segment: {"counts": Counts(0, 11)},
    "addresses without names": lambda segment: {"counts": Counts(0, 11, addresses=1)},
    "a lease that was never given": lambda segment: {"lease": 99 << 40},
}


@pytest.mark.parametrize("lie", LIES)
@in_trio
async def test_a_lying_node_is_refused_and_its_slices_go_to_others(lie):
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-20")], slice_most=10)
        liar, honest = await served.peer(), await served.peer()
        await liar.channel.send(Ask(1))
        lease = await liar.hear(Lease)
        await liar.report(lease, **LIES[lie](served.segments[0]))
        refused = await refusal(liar)
        assert refused.reason == Reason.PROTOCOL
        assert refused.detail
        leases, _ = await scan_all(honest)
        await served.finished.wait()
    assert sum(each.count for each in leases) == 20
    assert served.hub.found == []


@in_trio
async def test_a_lease_of_another_pool_is_a_lie():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, pools=2)
        one, two = await served.peer(), await served.peer()
        assert [one.registered.pool, two.registered.pool] == [0, 1]
        await one.channel.send(Ask(1))
        await two.report(await one.hear(Lease))
        assert (await refusal(two)).reason == Reason.PROTOCOL
        nursery.cancel_scope.cancel()


@in_trio
async def test_another_version_is_refused_with_that_reason():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        peer = await served.peer(register=False)
        assert isinstance(await peer.channel.receive(), Welcome)
        # Past our own end, which would not say it.
        await peer.channel._stream.send_all(encode_frame(registration(protocol=999)))
        assert (await refusal(peer)).reason == Reason.VERSION
        assert not len(served.server._sessions)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\0\0\0\x03abc", b"\0\0\0\0"],
)
@in_trio
async def test_what_speaks_something_else_is_refused_and_the_server_goes_on(said):
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1")])
        stranger = await served.peer(register=False)
        await stranger.channel.receive()
        await stranger.channel._stream.send_all(said)
        assert isinstance(await stranger.hear(), Refused)
        await scan_all(await served.peer())
        await served.finished.wait()


@in_trio
async def test_words_out_of_turn_are_refused_and_the_slices_go_to_others():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment_of("198.18.0.1", "1-5")])
        peer, other = await served.peer(), await served.peer()
        await peer.channel.send(Ask(1))
        await peer.hear(Lease)
        await peer.channel._stream.send_all(encode_frame(Welcome(1, "x")))
        await refusal(peer)
        await scan_all(other)
        await served.finished.wait()


@in_trio
async def test_who_does_not_register_in_time_is_let_go():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        peer = await served.peer(register=False)
        await peer.channel.receive()
        before = trio.current_time()
        with pytest.raises(GONE):
            await peer.channel.receive()
        assert trio.current_time() - before == pytest.approx(REGISTER_S, abs=0.1)
        await until(lambda: not len(served.server.lobby))
        nursery.cancel_scope.cancel()


@in_trio
async def test_guests_are_bounded_and_the_oldest_make_room_for_others():
    most = LINES_MAX[Stage.ADMITTED] // ADDRESS_PART
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        registered = await served.peer()
        guests = [await served.peer(register=False) for _ in range(most)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(served.server.lobby) == most
        one_more = await served.peer(register=False)
        assert isinstance(await one_more.channel.receive(), Welcome)
        assert len(served.server.lobby) == most
        await guests[0].channel.receive()
        with pytest.raises(GONE):
            await guests[0].channel.receive()
        await registered.channel.send(Heartbeat(1))  # those that are in do not mind
        assert await registered.hear() == Pulse()
        await served.peer()
        assert len(served.server.lobby) == most - 1
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_second_node_of_a_machine_is_refused_until_the_first_has_gone():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, several_per_machine=False)
        first = await served.peer("first", machine_id="m", instance="one")
        second = await served.peer(register=False)
        await second.channel.receive()
        await second.channel.send(registration(machine_id="m", instance="two"))
        refused = await refusal(second)
        assert refused.reason == Reason.DUPLICATE_MACHINE
        assert refused.retry
        assert "first" in refused.detail
        assert "allowMultipleNodesPerHost" in refused.detail
        await served.peer("elsewhere", machine_id="other", instance="three")
        await served.peer("first", machine_id="m", instance="one")  # its own return is none
        with pytest.raises(GONE):
            await first.hear(Lease)
        for session in served.server._sessions:
            if session.machine == "m":
                await trio.aclose_forcefully(session.channel)
        await trio.sleep(0.1)
        await served.peer("second", machine_id="m", instance="two")
        nursery.cancel_scope.cancel()


@in_trio
async def test_several_nodes_of_a_machine_where_that_is_allowed():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, several_per_machine=True)
        for _ in range(3):
            await served.peer(machine_id="m")
        assert len(served.server._sessions.connected()) == 3
        nursery.cancel_scope.cancel()


# ── pools ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("by_preference", "wishes", "pools"),
    [
        (True, [-1, -1, -1, -1], [0, 1, 2, 0]),
        (True, [2, 2, -1, -1], [2, 2, 0, 1]),
        (True, [3, 99, -1, 0], [0, 1, 2, 0]),
        (False, [2, 2, 2, 2], [0, 1, 2, 0]),
    ],
)
@in_trio
async def test_nodes_go_where_they_want_or_where_fewest_are(by_preference, wishes, pools):
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, pools=3, pool_by_preference=by_preference)
        peers = [await served.peer(preferred_pool=wish) for wish in wishes]
        assert [peer.registered.pool for peer in peers] == pools
        nursery.cancel_scope.cancel()


@in_trio
async def test_each_pool_scans_everything_and_tells_its_hits():
    segment = segment_of("198.18.0.1", "1-9")
    async with trio.open_nursery() as nursery:
        served = await serve(nursery, [segment], pools=2)
        stops = []

        async def scan(peer):
            stops.append(await scan_all(peer, lambda lease: hit(segment, lease.start)))

        async with trio.open_nursery() as scans:
            for _ in range(2):
                scans.start_soon(scan, await served.peer())
        await served.finished.wait()
    assert served.done == 18
    events = [event for event in served.hub.events if event.result]
    assert sorted(event.pool for event in events) == [0, 1]
    assert len({event.result.port for event in events}) == 1


# ── what a node may make up, decoded ────────────────────────────────────────────────────────

FUZZED = [
    segment_of(["198.18.0.0/30", "2001:db8::/126"], "1-3,U:5"),
    segment_of("a.example", "1-3", exclude=["198.18.0.7"]),
]


@given(st.sampled_from(FUZZED), st.binary(max_size=32 * 3))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_anything_but_a_value_error(segment, raw):
    try:
        findings = expand(segment, raw)
    except ValueError:
        return
    assert len(findings) == len(raw) // 32


@given(st.sampled_from(FUZZED), st.integers(0, 40), st.binary(min_size=24, max_size=24))
@settings(max_examples=300, deadline=None)
def test_no_record_at_a_true_position_does_either(segment, position, rest):
    try:
        expand(segment, position.to_bytes(8, "little") + rest)
    except ValueError:
        pass


# ── listening ───────────────────────────────────────────────────────────────────────────────


def test_a_port_that_is_taken_is_told_and_no_listener_is_left():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            number = free.getsockname()[1]
            free.close()
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is taken") as error:
                await open_listeners("127.0.0.1", [number, port])
            assert "listen:" in error.value.hint
            # The first one was closed again.
            (listener,) = await open_listeners("127.0.0.1", [number])
            await listener.aclose()

    trio.run(main)


def test_an_address_that_is_not_ours_is_told():
    async def main():
        with pytest.raises(UserError, match="no such address"):
            await open_listeners("198.51.100.77", [0])

    trio.run(main)


# ── a real line ─────────────────────────────────────────────────────────────────────────────


def test_over_loopback_a_registration_and_its_end(caplog):
    caplog.set_level(logging.INFO)

    async def main():
        listeners = await open_listeners("127.0.0.1", [0])
        port = listeners[0].socket.getsockname()[1]
        segments = [segment_of("198.18.0.1", "1")]
        async with books_over(FakeHub(), ledger_of(segments), segments) as books:
            server = Server(options(), segments, books)
            await talk(server, listeners, port)
        assert server.scheduler.finished

    async def talk(server, listeners, port):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run, listeners)
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                peer = Peer(Channel(stream, NodeEnd()))
                await peer.register()
                await scan_all(peer)
                await peer.channel.aclose()

    trio.run(main)
    assert "node-1 (peer) registered from 127.0.0.1:" in caplog.text
    assert counts_of(1) == (0, 1, 0, 0, 0, 0, 0, 0, 0)
