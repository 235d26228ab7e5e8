"""Leases belong to the name in a certificate: what an impostor, itself a verified node, cannot do.

Verified nodes are moved by hand here; whose certificate each of them has shown is what the
doorman says, in the order in which they dial.
"""

from __future__ import annotations

from collections import deque

import pytest
import trio

from fakes import (
    FakeLedger,
    Peer,
    hit,
    in_trio,
    registration,
    segment_of,
    serve,
    until,
)
from nray.ledger.entries import SliceDone
from nray.server.door import Doorman
from nray.server.sessions import RECONNECT_S
from nray.wire.channel import ChannelBroken, ChannelEnded
from nray.wire.errors import Reason
from nray.wire.messages import Ack, Ask, Bye, Lease, Refused, Stop

GONE = (ChannelEnded, ChannelBroken)


class Badges(Doorman):
    """Who dials next is of this name; None: showed no certificate."""

    def __init__(self) -> None:
        self.next: deque[str | None] = deque()

    async def admit(self, stream, guest):
        await trio.lowlevel.checkpoint()
        return stream, self.next.popleft()


class Site:
    """A server whose peers have certificates."""

    def __init__(self, served, badges) -> None:
        self.served = served
        self.badges = badges

    @property
    def scheduler(self):
        return self.served.server.scheduler

    async def peer(self, identity: str | None, **changes) -> Peer:
        self.badges.next.append(identity)
        return await self.served.peer(**changes)

    async def refused(self, identity: str | None, **changes) -> Refused:
        """What one hears whose registration is not taken."""
        self.badges.next.append(identity)
        peer = await self.served.peer(register=False)
        await peer.channel.receive()
        await peer.channel.send(registration(**changes))
        refused = await peer.hear()
        assert isinstance(refused, Refused), refused
        with pytest.raises(GONE):
            await peer.channel.receive()
        return refused


async def site(nursery, **changes) -> Site:
    badges = Badges()
    changes = {"segments": [segment_of("198.18.0.1", "1-40")], "slice_most": 10, **changes}
    return Site(await serve(nursery, doorman=badges, **changes), badges)


OTHERS = pytest.mark.parametrize("impostor", ["mallory", None, "Alice", "alice "])


@OTHERS
@in_trio
async def test_an_impostor_cannot_take_a_connected_node_over(impostor, caplog):
    async with trio.open_nursery() as nursery:
        place = await site(nursery)
        alice = await place.peer("alice", instance="a", machine_id="m")
        await alice.channel.send(Ask(2))
        leases = await alice.leases(2)
        refused = await place.refused(
            impostor, instance="a", machine_id="m", leases=tuple(each.lease for each in leases)
        )
        assert refused.reason == Reason.NOT_ALLOWED
        assert not refused.retry
        assert "another certificate" in refused.detail
        # Nothing of hers is told, not even who she is; that is for the log.
        assert "alice" not in refused.detail
        assert "known by another certificate" in caplog.text
        # Her line was not touched, and neither were her leases.
        for each in leases:
            await alice.report(each)
        await until(lambda: place.served.done == 20)
        nursery.cancel_scope.cancel()


@OTHERS
@in_trio
async def test_nor_one_whose_line_is_lost(impostor):
    async with trio.open_nursery() as nursery:
        place = await site(nursery)
        alice = await place.peer("alice", instance="a")
        await alice.channel.send(Ask(2))
        leases = await alice.leases(2)
        alice.cut()
        await trio.sleep(RECONNECT_S / 4)
        # Naming no leases would give hers to others.
        assert (await place.refused(impostor, instance="a")).reason == Reason.NOT_ALLOWED
        back = await place.peer("alice", instance="a", leases=tuple(e.lease for e in leases))
        assert back.registered.node_id == alice.registered.node_id
        await back.report(leases[0])
        await back.hear(Ack)
        nursery.cancel_scope.cancel()


@OTHERS
@in_trio
async def test_nor_one_that_was_given_up(impostor):
    async with trio.open_nursery() as nursery:
        place = await site(nursery)
        alice = await place.peer("alice", instance="a")
        await alice.channel.send(Ask(1))
        lease = await alice.hear(Lease)
        alice.cut()
        await until(lambda: not len(place.served.server._sessions))
        assert (await place.refused(impostor, instance="a")).reason == Reason.NOT_ALLOWED
        back = await place.peer("alice", instance="a", leases=(lease.lease,))
        assert back.registered.node_id == alice.registered.node_id
        await back.report(lease)  # late, and still open: taken
        await until(lambda: place.served.done == 10)
        nursery.cancel_scope.cancel()


@OTHERS
@in_trio
async def test_nor_one_of_an_earlier_server_process(impostor):
    segments = [segment_of("198.18.0.1", "1-40")]
    ledger = FakeLedger(segments)
    async with trio.open_nursery() as nursery:
        place = await site(nursery, segments=segments, ledger=ledger)
        alice = await place.peer("alice", instance="a")
        await until(ledger.nodes)
        await place.served.kill()
        again = await site(nursery, segments=segments, ledger=ledger.reopened())
        assert (await again.refused(impostor, instance="a")).reason == Reason.NOT_ALLOWED
        back = await again.peer("alice", instance="a")
        assert back.registered.node_id == alice.registered.node_id
        nursery.cancel_scope.cancel()


@in_trio
async def test_one_without_a_certificate_is_not_taken_over_by_one_with():
    async with trio.open_nursery() as nursery:
        place = await site(nursery)
        await place.peer(None, instance="a")
        assert (await place.refused("mallory", instance="a")).reason == Reason.NOT_ALLOWED
        assert [each.identity for each in place.served.server._sessions] == [None]
        nursery.cancel_scope.cancel()


@in_trio
async def test_of_two_nodes_with_one_certificate_each_has_its_own_leases():
    """The guide has one certificate for all nodes: there, only the instance tells them apart."""
    async with trio.open_nursery() as nursery:
        place = await site(nursery)
        one = await place.peer("nodes")
        two = await place.peer("nodes")
        await one.channel.send(Ask(1))
        await two.report(await one.hear(Lease))
        assert (await two.hear(Refused)).reason == Reason.PROTOCOL
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("done", [True, False])
@in_trio
async def test_nobody_reports_under_anothers_lease(done):
    """Neither closes it, nor slips findings into it; and the refusal says nothing of the slice."""
    segment = segment_of("198.18.0.1", "1-40")
    async with trio.open_nursery() as nursery:
        place = await site(nursery, segments=[segment])
        alice = await place.peer("alice")
        mallory = await place.peer("mallory")
        await alice.channel.send(Ask(1))
        lease = await alice.hear(Lease)
        await mallory.report(lease, hit(segment, lease.start), done=done)
        refused = await mallory.hear(Refused, Ack)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.PROTOCOL
        assert refused.detail == f"lease {lease.lease} was never given to this node"
        assert place.served.done == 0
        assert place.served.hub.found == []
        await alice.report(lease)
        assert (await alice.hear(Ack)).report == 1
        assert place.served.done == lease.count
        nursery.cancel_scope.cancel()


@in_trio
async def test_nor_under_one_that_others_have_by_now():
    """Alice is gone, Bob has her slice: her lease is still hers alone, his is his."""
    async with trio.open_nursery() as nursery:
        place = await site(nursery, segments=[segment_of("198.18.0.1", "1-10")])
        alice = await place.peer("alice")
        await alice.channel.send(Ask(1))
        hers = await alice.hear(Lease)
        await alice.channel.send(Bye())
        bob = await place.peer("bob")
        await bob.channel.send(Ask(1))
        his = await bob.hear(Lease)
        assert (his.start, his.count) == (hers.start, hers.count)
        for stolen in (hers, his):
            mallory = await place.peer("mallory")
            await mallory.report(stolen)
            assert (await mallory.hear(Refused, Ack)).reason == Reason.PROTOCOL
        await bob.report(his)
        await bob.hear(Stop)
        nursery.cancel_scope.cancel()


@in_trio
async def test_leases_that_a_registration_names_are_its_own_or_nothing():
    async with trio.open_nursery() as nursery:
        place = await site(nursery)
        alice = await place.peer("alice")
        await alice.channel.send(Ask(2))
        leases = await alice.leases(2)
        # New, and come back: neither gets them, tells by them, or takes them from her.
        for _ in range(2):
            mallory = await place.peer(
                "mallory", instance="mine", leases=tuple(each.lease for each in leases)
            )
            assert not hasattr(mallory.registered, "leases")
            mallory.cut()
            await trio.sleep(0.1)
        (held,) = [each.node.holds for each in place.served.server._sessions if each.channel]
        assert sorted(work.start for work in held) == sorted(each.start for each in leases)
        for each in leases:
            await alice.report(each)
        await until(lambda: place.served.done == 20)
        nursery.cancel_scope.cancel()


@in_trio
async def test_the_identity_stands_in_the_registration_and_with_the_findings():
    segments = [segment_of("198.18.0.1", "1-10")]
    ledger = FakeLedger(segments)
    async with trio.open_nursery() as nursery:
        place = await site(nursery, segments=segments, ledger=ledger)
        alice = await place.peer("alice", name="I am bob")
        await alice.channel.send(Ask(1))
        lease = await alice.hear(Lease)
        await alice.report(lease, hit(segments[0], 0))
        await alice.hear(Ack)
        await until(lambda: len(place.served.hub.events) == 2)
        assert [event.identity for event in place.served.hub.events] == ["alice", "alice"]
        assert place.served.hub.registrations == ["I am bob"]
        assert [node.identity for node in ledger.nodes()] == ["alice"]
        assert any(isinstance(each, SliceDone) for each in ledger.ended)
        nursery.cancel_scope.cancel()
