"""Several lines that say they are one node, and a mistake of our own: neither ends the server."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fakes import in_trio, registration, serve
from nray.server.scheduler import Scheduler
from nray.wire.channel import ChannelBroken, ChannelEnded
from nray.wire.messages import Ask, Lease, Registered

ENDS = (ChannelEnded, ChannelBroken, trio.ClosedResourceError)


async def is_over(peer):
    """Read to the end of a line."""
    with trio.fail_after(5):
        try:
            while True:
                await peer.channel.receive()
        except ENDS:
            return True


@in_trio
async def test_of_lines_that_register_as_one_node_at_once_one_is_served():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        peers = [await served.peer(register=False) for _ in range(4)]
        for peer in peers:
            await peer.channel.receive()
        async with trio.open_nursery() as at_once:
            for peer in peers:
                at_once.start_soon(peer.channel.send, registration(instance="one"))
        await trio.testing.wait_all_tasks_blocked()
        serving = []
        for peer in peers:
            try:
                assert isinstance(await peer.channel.receive(), Registered)
                await peer.channel.send(Ask(2))
                with trio.fail_after(5):
                    await peer.leases(2)
                serving.append(peer)
            except ENDS:
                pass
        assert len(serving) == 1
        for peer in peers:
            if peer not in serving:
                assert await is_over(peer)
        assert len(served.server._sessions) == 1
        other = await served.peer("other")
        await other.channel.send(Ask(1))
        assert isinstance(await other.hear(Lease), Lease)
        nursery.cancel_scope.cancel()


@in_trio
async def test_the_line_before_is_closed_when_its_node_comes_again():
    async with trio.open_nursery() as nursery:
        served = await serve(nursery)
        first = await served.peer(instance="one", machine_id="m")
        second = await served.peer(instance="one", machine_id="m")
        assert await is_over(first)
        await second.channel.send(Ask(1))
        await second.leases(1)
        assert second.registered.node_id == first.registered.node_id
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_mistake_of_ours_costs_one_line_and_not_the_scan(caplog):
    """A lease too many is one: its line ends, its slices go to others, the server stays."""
    grant = Scheduler.grant

    def greedy(self, node, now):
        node.wanted += node.wanted == 7
        return grant(self, node, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "grant", greedy)
        async with trio.open_nursery() as nursery:
            served = await serve(nursery)
            unlucky = await served.peer("unlucky")
            await unlucky.channel.send(Ask(7))
            await unlucky.leases(7)
            assert await is_over(unlucky)
            assert "mistake in talking to" in caplog.text
            assert len(served.server._sessions) == 0
            other = await served.peer("other")
            await other.channel.send(Ask(1))
            assert (await other.hear(Lease)).start == 0
            nursery.cancel_scope.cancel()
