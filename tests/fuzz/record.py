"""Real sessions of a real server and real nodes, in memory: what the mutations begin from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

import trio

from fakes import (
    Behaviour,
    FakeForkServer,
    FakeWorker,
    Line,
    MemoryListener,
    MemoryNode,
    Served,
    hit,
    registration,
    serve,
    until,
)
from nray.node.policy import Policy
from nray.targets.findings import TARPIT_NUMBER, WITHHELD
from nray.targets.segment import Segment
from nray.wire.messages import Settings
from nray.worker import protocol

from .case import NODE, SERVER, Case, frames_in
from .stage import run, set_up
from .worlds import SLICE, unlike_defaults, worlds

#: Frames that are kept of a talk: enough for every state, few enough to be quick.
FRAMES_KEPT: Final = 40


class _Tap(Line):
    """A line whose two directions are kept."""

    def __init__(self, line: Line) -> None:
        super().__init__(line._out, line._back)
        self.said = bytearray()
        self.heard = bytearray()

    async def send_all(self, data: bytes) -> None:
        self.said += data
        await super().send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await super().receive_some(max_bytes)
        self.heard += data
        return data


class _TappedListener(MemoryListener):
    def __init__(self) -> None:
        super().__init__()
        self.taps: list[_Tap] = []

    async def dial(self) -> Line:
        tap = _Tap(await super().dial())
        self.taps.append(tap)
        return tap


def _finds(known: Mapping[int, Segment], each_s: float = 0.01) -> Behaviour:
    """Every 16th position is open, told in two parts; of ports, every 64th is that of a tarpit."""

    async def behave(worker: FakeWorker, work: protocol.Slice) -> None:
        await trio.sleep(each_s)
        segment = known[work.segment]
        names = bytes([198, 19, 0, 1]) if segment.names else b""
        found = [
            hit(segment, position, names)
            for position in range(work.start, work.start + work.count)
            if position % 16 == 0
        ]
        tarpits = 0 if segment.search else sum(map(_is_tarpit, found))
        if tarpits:
            found = [_tarpit(each) if _is_tarpit(each) else each for each in found]
        if len(found) > 1:
            await worker.found(work, found[0], done=False)
        errors = {"out-of-descriptors": 3, "local-error": 1} if work.start % 128 == 0 else {}
        if tarpits:
            errors |= {WITHHELD: tarpits}
        counts = (len(found), work.count - len(found), 0, 0, 0, 0, 0, 0, 0)
        await worker.found(work, b"".join(found), counts=counts, errors=errors)

    return behave


def _is_tarpit(record: bytes) -> bool:
    return int.from_bytes(record[:8], "little") % 64 == 0


def _tarpit(record: bytes) -> bytes:
    return record[:30] + bytes([TARPIT_NUMBER]) + record[31:]


Scene = Callable[[trio.Nursery, Served, MemoryNode], Awaitable[None]]


async def _to_the_end(nursery: trio.Nursery, served: Served, node: MemoryNode) -> None:
    await until(lambda: node.ended)


async def _cut(nursery: trio.Nursery, served: Served, node: MemoryNode) -> None:
    """The line breaks twice; the node comes back with its leases."""
    for done in (SLICE, 5 * SLICE):
        await until(lambda done=done: served.done >= done)  # type: ignore[misc]
        served.listener.ends[-1].cut()
        await trio.sleep(1)
    await until(lambda: node.ended)


async def _interrupt(nursery: trio.Nursery, served: Served, node: MemoryNode) -> None:
    await until(lambda: served.done >= 4 * SLICE)
    served.server.pause(True)
    await trio.sleep(20)
    served.server.pause(False)
    await trio.sleep(0.015)
    served.server.interrupt("Ctrl+C")
    await until(lambda: node.ended)


async def _beats(nursery: trio.Nursery, served: Served, node: MemoryNode) -> None:
    """Slow work, so that heartbeats are seen."""
    await until(lambda: served.done >= 12 * SLICE, 3600)


async def _refused(nursery: trio.Nursery, served: Served, node: MemoryNode) -> None:
    """A second node of the machine is refused."""
    await until(lambda: served.done >= SLICE)
    peer = await served.peer(register=False)
    await peer.channel.receive()
    await peer.channel.send(registration(machine_id="machine", instance="another"))
    await peer.channel.receive()
    await until(lambda: node.ended)


def _record(
    name: str,
    scene: Scene = _to_the_end,
    each_s: float = 0.01,
    node_changes: dict[str, Any] | None = None,
    server_changes: dict[str, Any] | None = None,
) -> list[Case]:
    """Both directions of each line of a scan."""
    world = worlds()[name]
    listener = _TappedListener()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            served = await serve(
                nursery,
                list(world.segments),
                listener=listener,
                slice_most=SLICE,
                pools=world.pools,
                **{"settings": world.settings, **(server_changes or {})},
            )
            office = FakeForkServer(nursery, _finds(served.server._segments, each_s))
            node = MemoryNode(listener, office, **(node_changes or {}))
            nursery.start_soon(node.run)
            await scene(nursery, served, node)
            nursery.cancel_scope.cancel()

    run(main)
    taps = [tap for tap in listener.taps if tap.said or tap.heard]
    alone = not (server_changes or {}).get("several_per_machine", True)
    return [
        Case(SERVER, name, tuple(_short(frames_in(tap.said)) for tap in taps), alone=alone),
        Case(NODE, name, tuple(_short(frames_in(tap.heard)) for tap in taps), alone=alone),
    ]


def _short(frames: list[bytes]) -> tuple[bytes, ...]:
    """Beginning and end of a talk."""
    if len(frames) <= FRAMES_KEPT:
        return tuple(frames)
    return (*frames[: FRAMES_KEPT - 3], *frames[-3:])


@cache
def recorded() -> tuple[Case, ...]:
    """All sessions, the same each time."""
    policy = Policy.of(
        ((0, 2**32 - 1),), ((0, 2**128 - 1),), ((0xC6120000, 0xC61200FF),), (), [(6, 1, 1000)]
    )
    with set_up():
        talks = [
            case
            for cases in (
                _record("v4"),
                _record("v6", _interrupt, node_changes={"preferred_pool": 1}),
                _record("names"),
                _record("mixed", server_changes={"settings": unlike_defaults(pings=False)}),
                _record("pinged"),
                _record("searched"),
                _record("mixed", node_changes={"policy": policy}),
                _record("v4", node_changes={"processes": 16}),
                _record("v4", _cut),
                _record("names", _cut),
                _record("v4", _interrupt),
                _record("wide", _interrupt),
                _record("v4", _beats, 6.0),
                _record("v4", each_s=0.3, server_changes={"settings": Settings(first_open=True)}),
                _record("v4", _refused, server_changes={"several_per_machine": False}),
            )
            for case in cases
        ]
    # Several lines at once: of nodes that call themselves the same, and of one that is refused.
    crowd = [
        replace(talks[0], lines=(talks[0].lines[0][:12],) * 3, together=True, silent=silent)
        for silent in (False, True)
    ]
    return (*talks, *crowd, replace(crowd[0], alone=True))
