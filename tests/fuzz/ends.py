"""The whole ends: a real `Server` or `Node`, in memory, on a mock clock, against a bad peer.

A server must end every line in time, tell why where the peer broke a rule, keep nothing of it,
and serve an honest node afterwards. A node must end with a reason for its user, or go on looking
for a server. Neither may have anything else come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio
import trio.testing

from fakes import FakeForkServer, Line, MemoryListener, MemoryNode, Served, serve
from nray.node.client import ServerRefuses
from nray.node.orders import DISCOVERY, METHODS
from nray.wire.errors import PeerFault
from nray.wire.framing import SERVER_FRAME_BYTES_MAX, FrameReader, decode_server_message
from nray.wire.messages import Ack, Ask, Heartbeat, Lease, Refused, ServerMessage

from .case import NODE, SERVER, Case
from .laws import WORDS_CHARS_MAX, Breach, check_refused
from .stage import closes_all, run
from .worlds import SLICE, worlds

#: What a server here takes for a node's end, seconds of silence; short, for quick cases.
EXPIRY_S: Final = 6.0
#: Virtual seconds for a server to end a line on which nothing more is said: the longest patience
#: is that with a registration (10 s), and it looks once a second.
LINE_S: Final = 15.0
#: For an honest node to register, get a slice and have its report acknowledged, when all that the
#: bad one had must first be given up.
HONEST_S: Final = 120.0
#: How long a node that has lost its server is left to look for it.
LOOKS_S: Final = 12.0


class Ended:
    """How the lines of a case have ended.

    Attributes:
        frames: that were sent before the other end closed.
        refusals: for each line the reason that was told, or None.
        finished: whether the scan ended meanwhile, and the server with it.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.refusals: list[str | None] = []
        self.finished = False


def play(case: Case, mistakes: Callable[[], list[str]]) -> Ended:
    """Let a whole end hear a case; within `stage.set_up`, which gives ``mistakes``.

    Raises:
        Breach: a law was broken.
        Exception: whatever comes out that should not; maybe in groups.
    """
    mistakes()
    ended = Ended()
    if case.end == SERVER:
        run(lambda: _attack_server(case, ended))
    else:
        assert case.end == NODE
        run(lambda: _attack_node(case, ended))
    if found := mistakes():
        raise Breach(f"a mistake was logged: {found[0]}")
    return ended


# ── a server ────────────────────────────────────────────────────────────────────────────────


class _BadNode:
    """One line of a bad node: says its frames, keeps what it hears."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.heard = bytearray()
        self.closed = trio.Event()

    async def listen(self) -> None:
        try:
            while data := await self.line.receive_some(1 << 20):
                self.heard += data
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed.set()

    async def say(self, frames: tuple[bytes, ...], silent: bool, ended: Ended) -> None:
        """Say all of it, each frame when the last one has had its effect; then wait for the end."""
        try:
            await trio.testing.wait_all_tasks_blocked()
            for frame in frames:
                if self.closed.is_set():
                    break
                ended.frames += 1
                await self.line.send_all(frame)
                await trio.testing.wait_all_tasks_blocked()
            if not silent:
                await self.line.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        with trio.move_on_after(LINE_S):
            await self.closed.wait()
        if not self.closed.is_set():
            raise Breach(f"the line was not ended within {LINE_S:g} s")

    @property
    def refusal(self) -> str | None:
        """The reason that was told last of all, if one was."""
        last: ServerMessage | None = None
        for message in _messages(self.heard):
            if isinstance(last, Refused):
                raise Breach(f"after its refusal the server said {message!r:.100}")
            last = message
        return check_refused(last).reason if isinstance(last, Refused) else None


def _messages(heard: bytearray) -> list[ServerMessage]:
    reader = FrameReader(SERVER_FRAME_BYTES_MAX)
    found = []
    reader.limit = len(heard) + SERVER_FRAME_BYTES_MAX
    reader.feed(heard)
    try:
        while (body := reader.next()) is not None:
            found.append(decode_server_message(body))
    except PeerFault as fault:
        raise Breach(f"the server said what is no message: {fault}") from fault
    return found


async def _attack_server(case: Case, ended: Ended) -> None:
    world = worlds()[case.world]
    async with trio.open_nursery() as nursery:
        served = await serve(
            nursery,
            list(world.segments),
            slice_most=SLICE,
            pools=world.pools,
            node_expiry_s=EXPIRY_S,
            several_per_machine=not case.alone,
            settings=world.settings,
        )
        peers = []

        async def one(frames: tuple[bytes, ...]) -> None:
            async with trio.open_nursery() as listening:
                try:
                    peer = _BadNode(await served.listener.dial())
                except ConnectionRefusedError:
                    if served.server.scheduler.finished:
                        return
                    raise
                peers.append(peer)
                listening.start_soon(peer.listen)
                await peer.say(frames, case.silent, ended)
                peer.line.cut()

        if case.together:
            async with trio.open_nursery() as talking:
                for frames in case.lines:
                    talking.start_soon(one, frames)
        else:
            for frames in case.lines:
                await one(frames)
        ended.refusals = [peer.refusal for peer in peers]
        ended.finished = served.server.scheduler.finished
        if not ended.finished:
            await _serves_on(served)
            await _keeps_nothing(served)
        nursery.cancel_scope.cancel()


async def _serves_on(served: Served) -> None:
    """An honest node is still welcome, gets work, and its report is acknowledged."""
    with trio.move_on_after(HONEST_S) as scope:
        methods = (*METHODS, DISCOVERY)
        peer = await served.peer("honest", instance="honest", machine_id="honest", methods=methods)
        await peer.channel.send(Ask(1))
        lease = await _hear(peer, Lease)
        number = await peer.report(lease)
        ack = await _hear(peer, Ack)
        if ack.report != number:
            raise Breach(f"an honest node was told {ack}")
        peer.cut()
    if scope.cancelled_caught:
        raise Breach(f"an honest node was not served within {HONEST_S:g} s")


async def _hear(peer: Any, kind: type) -> Any:
    """The next message of a kind; heartbeats meanwhile, as an honest node sends them."""
    while True:
        with trio.move_on_after(EXPIRY_S / 3):
            return await peer.hear(kind)
        await peer.channel.send(Heartbeat())


async def _keeps_nothing(served: Served) -> None:
    """What is left of lines and sessions when all are gone and given up."""
    await trio.sleep(LINE_S)
    server = served.server
    sessions = server._sessions
    if len(sessions):
        raise Breach(f"{len(sessions)} sessions are kept of nodes that are gone")
    if len(server.lobby):
        raise Breach(f"{len(server.lobby)} guests are counted where there are none")
    if any(pool.nodes for pool in server.scheduler.pools):
        raise Breach("the scheduler keeps nodes that are gone")
    returned = sum(
        len(each.returned) for pool in server.scheduler.pools for each in pool.segments.values()
    )
    held = {id(entry[1]) for entry in server.scheduler._by_lease.values()}
    if len(held) != returned:
        raise Breach(f"{len(held)} slices are open, {returned} wait for somebody")


# ── a node ──────────────────────────────────────────────────────────────────────────────────


async def _attack_node(case: Case, ended: Ended) -> None:
    listener = MemoryListener()
    gone = trio.Event()
    words: list[str] = []

    async with trio.open_nursery() as nursery:
        node = MemoryNode(listener, FakeForkServer(nursery, closes_all))

        async def live() -> None:
            try:
                await node.run()
            except* ServerRefuses as refused:
                words.extend(map(_words, _leaves(refused)))
            gone.set()

        nursery.start_soon(live)
        for frames in case.lines:
            await _bad_server(listener, frames, case.silent, gone, ended)
            ended.refusals.append(words[0] if words else None)
            if gone.is_set():
                break
        await listener.aclose()
        with trio.move_on_after(LOOKS_S):
            await gone.wait()
        nursery.cancel_scope.cancel()


async def _bad_server(
    listener: MemoryListener,
    frames: tuple[bytes, ...],
    silent: bool,
    gone: trio.Event,
    ended: Ended,
) -> None:
    line: Line | None = None
    with trio.move_on_after(60):
        while line is None and not gone.is_set():
            with trio.move_on_after(1):
                line = await listener.accept()
    if line is None:
        if not gone.is_set():
            raise Breach("the node looks for no server any more")
        return
    closed = trio.Event()

    async def listen() -> None:
        try:
            while await line.receive_some(1 << 20):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        try:
            await trio.testing.wait_all_tasks_blocked()
            for frame in frames:
                if closed.is_set():
                    break
                ended.frames += 1
                await line.send_all(frame)
                await trio.testing.wait_all_tasks_blocked()
            if not silent:
                await line.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await closed.wait()  # the patience of a node is bounded by `stage.OVER_S`
        line.cut()


def _words(error: BaseException) -> str:
    """What the node's user reads."""
    assert isinstance(error, ServerRefuses)
    words = f"{error}\n{getattr(error, 'hint', '') or ''}"
    if not 0 < len(words.strip()) <= WORDS_CHARS_MAX:
        raise Breach(f"{len(words)} characters for a node's user")
    return words


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for each in group.exceptions
        for leaf in (_leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    ]
