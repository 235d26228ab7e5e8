"""The channel over streams in memory; clocks are trio's mock, so nothing here waits."""

from __future__ import annotations

import random
from functools import wraps

import pytest
import trio
import trio.testing

from nray.wire import channel as channel_module
from nray.wire.channel import Channel, ChannelBroken, ChannelEnded
from nray.wire.errors import LocalFault, PeerFault, Reason
from nray.wire.framing import GREETING_BYTES_MAX, encode_frame
from nray.wire.messages import (
    Ack,
    Ask,
    Bye,
    Heartbeat,
    Pulse,
    Refused,
    Report,
    Segment,
    ServerMessage,
    Stop,
)
from nray.wire.rules import SEGMENT_BYTES_MAX
from nray.wire.states import NodeEnd, ServerEnd, State
from test_wire_messages import CASES, REGISTER, REGISTERED, WELCOME, changed
from test_wire_states import PATHS


def in_trio(test):
    """Run a coroutine test on an autojump clock: a wait for ever fails after 60 mock seconds."""

    @wraps(test)
    def run(*args, **kwargs):
        async def bounded():
            with trio.fail_after(180):
                await test(*args, **kwargs)

        trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


def pair():
    """A server's and a node's channel, joined."""
    ours, theirs = trio.testing.memory_stream_pair()
    return Channel(ours, ServerEnd()), Channel(theirs, NodeEnd())


async def talk(server, node, messages):
    for message in messages:
        ends = (server, node) if isinstance(message, ServerMessage) else (node, server)
        await ends[0].send(message)
        assert await ends[1].receive() == message


async def active_pair():
    server, node = pair()
    await talk(server, node, PATHS[State.ACTIVE])
    return server, node


async def half_open(state=State.ACTIVE):
    """A server's channel in a state, and the bare stream of its peer."""
    ours, theirs = trio.testing.memory_stream_pair()
    server = Channel(ours, ServerEnd())
    for message in PATHS[state]:
        if isinstance(message, ServerMessage):
            await server.send(message)
            await theirs.receive_some()
        else:
            await theirs.send_all(encode_frame(message))
            await server.receive()
    return server, theirs


@in_trio
async def test_every_message_goes_through():
    for tag in CASES:
        for path in PATHS.values():
            server, node = pair()
            await talk(server, node, path)
            sender, receiver = (
                (server, node) if isinstance(CASES[tag], ServerMessage) else (node, server)
            )
            try:
                await sender.send(CASES[tag])
            except (LocalFault, ChannelEnded):
                continue
            assert await receiver.receive() == CASES[tag]
            break
        else:
            pytest.fail(f"{tag} went through in no state")


@in_trio
async def test_a_frame_in_single_bytes_and_two_frames_at_once():
    server, peer = await half_open(State.WELCOMED)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def trickle():
            for byte in encode_frame(REGISTER):
                await peer.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()

        assert await server.receive() == REGISTER
    await server.send(REGISTERED)
    await peer.send_all(encode_frame(Ask(1)) + encode_frame(Heartbeat(5)))
    assert [await server.receive(), await server.receive()] == [Ask(1), Heartbeat(5)]


@in_trio
async def test_the_largest_segment_passes():
    server, node = await active_pair()
    body = random.Random(1).randbytes(SEGMENT_BYTES_MAX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send, Segment(1, body))
        assert (await node.receive()).body == body


@in_trio
async def test_several_tasks_send_whole_frames_in_their_order():
    """The stream takes a few bytes at a time, so that frames would mix if they could."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    server, node = Channel(ours, ServerEnd()), Channel(theirs, NodeEnd())
    sent, seen = [], []
    async with trio.open_nursery() as nursery:

        async def deliver(channel, count):
            for _ in range(count):
                seen.append(await channel.receive())

        for message in [WELCOME, REGISTER, REGISTERED]:
            ends = (server, node) if isinstance(message, ServerMessage) else (node, server)
            nursery.start_soon(ends[0].send, message)
            await ends[1].receive()

        async def speak(number):
            message = Segment(number, bytes([number]) * (number * 997))
            await server.send(message)
            sent.append(message)

        for number in range(20):
            nursery.start_soon(speak, number)
        nursery.start_soon(deliver, node, 20)
    assert seen == sent
    assert len(seen) == 20


# ── ends of a connection ────────────────────────────────────────────────────────────────────


@in_trio
async def test_a_clean_end_says_how_far_it_had_come():
    server, node = await active_pair()
    await node.send(Bye())
    await node.aclose()
    assert await server.receive() == Bye()
    for _ in range(2):
        with pytest.raises(ChannelEnded) as caught:
            await server.receive()
        assert caught.value.state is State.LEAVING


@pytest.mark.parametrize("cut", [1, 3, 4, 5, -1])
@in_trio
async def test_an_end_within_a_frame_is_a_lost_connection(cut):
    server, peer = await half_open()
    await peer.send_all(encode_frame(Heartbeat(1)) + encode_frame(Report(2, 7))[:cut])
    await peer.send_eof()
    assert await server.receive() == Heartbeat(1)
    with pytest.raises(ChannelBroken, match="within a frame"):
        await server.receive()


@in_trio
async def test_a_lost_connection_is_one_exception_both_ways():
    server, peer = await half_open()
    peer.receive_stream.close()
    with pytest.raises(ChannelBroken, match="while sending"):
        await server.send(Pulse())
    with pytest.raises(ChannelBroken, match="earlier"):
        await server.send(Pulse())


@in_trio
async def test_after_closing_both_ways_say_closed():
    server, _ = await active_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def waiting():
            with pytest.raises(trio.ClosedResourceError):
                await server.receive()

        await trio.testing.wait_all_tasks_blocked()
        await server.aclose()
    for call in (server.receive, lambda: server.send(Pulse())):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    await server.aclose()
    assert server.state is State.CLOSED


@in_trio
async def test_the_channel_closes_its_stream():
    server, peer = await half_open()
    async with server:
        pass
    assert await peer.receive_some() == b""


# ── faults ──────────────────────────────────────────────────────────────────────────────────

BAD = {
    "zero": (State.ACTIVE, b"\x00\x00\x00\x00", Reason.MALFORMED),
    "oversize": (State.ACTIVE, b"\x7f\xff\xff\xff", Reason.OVERSIZE),
    "oversize greeting": (
        State.WELCOMED,
        (GREETING_BYTES_MAX + 1).to_bytes(4, "big"),
        Reason.OVERSIZE,
    ),
    "web": (State.NEW, b"GET / HTTP/1.0\r\n\r\n", Reason.OVERSIZE),
    "garbage": (State.ACTIVE, b"\x00\x00\x00\x02\xc1\xc1", Reason.MALFORMED),
    "wrong state": (State.NEW, encode_frame(REGISTER), Reason.UNEXPECTED),
    "wrong content": (State.ACTIVE, encode_frame(Report(9, 7)), Reason.PROTOCOL),
    "version": (State.WELCOMED, encode_frame(changed(REGISTER, protocol=9)), Reason.VERSION),
}


@pytest.mark.parametrize(("state", "data", "reason"), BAD.values(), ids=BAD)
@in_trio
async def test_a_fault_is_raised_for_ever_and_its_refusal_arrives(state, data, reason):
    server, peer = await half_open(state)
    await peer.send_all(data + encode_frame(Heartbeat(1)))
    for _ in range(2):
        with pytest.raises(PeerFault) as caught:
            await server.receive()
        assert caught.value.reason is reason
    assert server.state is state
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.refuse, caught.value.reason, caught.value.detail)
        got = b""
        while chunk := await peer.receive_some():
            got += chunk
        assert got == encode_frame(caught.value.refusal)
        await peer.aclose()
    assert server.state is State.CLOSED


@in_trio
async def test_a_node_learns_why():
    server, node = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.refuse, Reason.DUPLICATE_MACHINE, "d" * 999)
        answer = await node.receive()
        assert isinstance(answer, Refused)
        assert (answer.reason, answer.retry) == ("duplicate-machine", True)
        with pytest.raises(ChannelEnded):
            await node.receive()
        with pytest.raises(ChannelEnded):
            await node.send(REGISTER)
        await node.aclose()
    with pytest.raises(ChannelEnded):
        await server.send(Ack(1))


@in_trio
async def test_a_refusal_waits_neither_for_one_who_does_not_read_nor_for_one_who_does_not_end():
    for stuck in (True, False):
        ours, peer = trio.testing.lockstep_stream_pair()
        server = Channel(ours, ServerEnd())
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.refuse, Reason.BUSY)
            if not stuck:
                await peer.receive_some()
        assert trio.current_time() - began == pytest.approx(channel_module.REFUSE_S)


@in_trio
async def test_a_refusal_reads_away_what_was_under_way_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(channel_module, "DRAIN_BYTES_MAX", 3 * channel_module.RECEIVE_BYTES)
    server, peer = await half_open()
    await peer.send_all(bytes(5 * channel_module.RECEIVE_BYTES))
    began = trio.current_time()
    await server.refuse(Reason.BUSY)
    assert trio.current_time() == began
    assert len(await server._stream.receive_some()) == 2 * channel_module.RECEIVE_BYTES


@in_trio
async def test_refusing_is_safe_whatever_has_happened_before():
    server, peer = await half_open()
    await peer.aclose()
    await server.refuse(Reason.BUSY)  # lost
    await server.refuse(Reason.BUSY)  # refused
    await server.aclose()
    await server.refuse(Reason.BUSY)  # closed
    server, peer = await half_open()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def another_task_receives():
            with pytest.raises(ChannelEnded):
                await server.receive()

        await trio.testing.wait_all_tasks_blocked()
        await server.refuse(Reason.SHUTTING_DOWN)
        assert await peer.receive_some()
        await peer.aclose()


@in_trio
async def test_two_tasks_may_refuse_and_the_first_is_heard():
    ours, theirs = trio.testing.lockstep_stream_pair()
    server, node = Channel(ours, ServerEnd()), Channel(theirs, NodeEnd())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send, WELCOME)
        await trio.testing.wait_all_tasks_blocked()
        for reason in (Reason.BUSY, Reason.WEAK):
            nursery.start_soon(server.refuse, reason)
            await trio.testing.wait_all_tasks_blocked()
        assert await node.receive() == WELCOME
        assert (await node.receive()).reason == "busy"
        await node.aclose()


@in_trio
async def test_a_node_cannot_refuse():
    _, node = await active_pair()
    with pytest.raises(LocalFault):
        await node.refuse(Reason.BUSY)


@in_trio
async def test_what_may_not_be_sent_leaves_the_channel_as_it_was():
    server, node = await active_pair()
    for message in (Ack(99), WELCOME, Segment(1, bytes(SEGMENT_BYTES_MAX + 2000))):
        with pytest.raises(LocalFault):
            await server.send(message)
    await talk(server, node, [Pulse(), Ack(1)])


@in_trio
async def test_settings_too_large_for_a_frame_leave_the_node_unregistered():
    """Within the rules one by one, beyond the frame together: the only message that can be so."""
    server, node = pair()
    await talk(server, node, PATHS[State.REGISTERING])
    payloads = dict.fromkeys(range(1, 300), bytes(65_507))
    with pytest.raises(LocalFault, match="registered takes"):
        await server.send(changed(REGISTERED, settings__udp_payloads=payloads))
    await talk(server, node, [REGISTERED])


# ── cancellation ────────────────────────────────────────────────────────────────────────────


@in_trio
async def test_a_send_cut_short_breaks_sending_and_says_so_but_receiving_goes_on():
    ours, peer = trio.testing.lockstep_stream_pair()
    server = Channel(ours, ServerEnd())
    with trio.move_on_after(1) as scope:
        await server.send(WELCOME)
    assert scope.cancelled_caught
    with pytest.raises(ChannelBroken, match="cut short"):
        await server.send(Refused("busy"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, encode_frame(REGISTER))
        assert await server.receive() == REGISTER


@in_trio
async def test_a_send_cancelled_while_it_waits_for_its_turn_leaves_no_trace():
    ours, theirs = trio.testing.lockstep_stream_pair()
    server, node = Channel(ours, ServerEnd()), Channel(theirs, NodeEnd())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send, WELCOME)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await server.send(Refused("busy"))
        assert scope.cancelled_caught
        assert server.state is State.WELCOMED
        assert await node.receive() == WELCOME
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.send, REGISTER)
        assert await server.receive() == REGISTER


@in_trio
async def test_a_receive_cancelled_within_a_frame_loses_nothing():
    server, peer = await half_open()
    frame = encode_frame(Report(2, 7, b"\x01" * 320))
    for begin in range(0, len(frame), 50):
        with trio.move_on_after(1) as scope:
            await server.receive()
        assert scope.cancelled_caught
        await peer.send_all(frame[begin : begin + 50])
    assert await server.receive() == Report(2, 7, b"\x01" * 320)


@in_trio
async def test_every_receive_lets_others_run():
    """Also when its frame is here already; else one busy peer would starve the rest."""
    server, peer = await half_open()
    await peer.send_all(encode_frame(Heartbeat(1)) * 3)
    for _ in range(3):
        with trio.testing.assert_checkpoints():
            await server.receive()


@in_trio
async def test_two_tasks_may_not_receive():
    server, _ = await half_open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await server.receive()
        nursery.cancel_scope.cancel()


def test_a_refusal_reaches_a_node_that_is_sending():
    """Over TCP on loopback and on the real clock: memory streams know no reset."""

    async def main():
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def serve():
            async with Channel(await listeners[0].accept(), ServerEnd()) as server:
                await server.send(WELCOME)
                await server.receive()
                await server.refuse(Reason.NOT_ALLOWED, "go away")

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery, listeners[0]:
                nursery.start_soon(serve)
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                async with Channel(stream, NodeEnd()) as node:
                    assert await node.receive() == WELCOME
                    await node.send(REGISTER)
                    # The server reads none of these as frames. Closing upon them would reset.
                    await stream.send_all(bytes(300_000))
                    await trio.sleep(0.05)
                    assert await node.receive() == Refused("not-allowed", "go away")

    trio.run(main)


@in_trio
async def test_a_whole_talk():
    server, node = await active_pair()
    assert server.credit == node.credit == 8
    await talk(server, node, [Report(2, 7, done=True), Ack(2), Stop(True), Bye("done"), Ack(2)])
    await node.aclose()
    with pytest.raises(ChannelEnded):
        await server.receive()
