"""What is put in place of the world while the whole ends run: threads, names, this machine.

No packet leaves, and no name is ever looked up: a look-up that gets through is a breach, and so is
a frame.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn
from unittest import mock

import trio
import trio.testing
from trio._core import _run as trio_run

from fakes import FakeWorker, inline
from nray.events import hub
from nray.node import client, machine, netlink, resolver, supervisor
from nray.node.raw import RawNet
from nray.node.routes import Routes, Span, Way
from nray.server import books, scheduler, server
from nray.wire.messages import Environment
from nray.worker import protocol
from simulator.replaced import replaced

from .laws import Breach

#: Virtual seconds within which everything must be over: longer than every patience of both ends,
#: a heartbeat of a day (`nray.node.bounds`) missed four times among them.
OVER_S = 5 * 86_400.0


class FakeResolver:
    """Knows an address of every name."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    async def all(self, names: set[str]) -> dict[str, list[bytes]]:
        await trio.lowlevel.checkpoint()
        return {name: [bytes([198, 18, 0, 1])] for name in sorted(names)}

    async def exclusions(self, names: set[str]) -> dict[str, list[bytes]]:
        return await self.all(names)


def _no_lookup(name: str) -> NoReturn:
    raise Breach(f"{name!r:.80} was to be looked up")


class _NoWire:
    """Frames of the local links: none leaves, none comes."""

    def send(self, link: int, frame: bytes) -> None:
        raise Breach("a frame was to be sent")

    async def receive(self) -> list[tuple[int, bytes]]:
        await trio.sleep_forever()
        raise AssertionError

    def close(self) -> None:
        pass


_MAC: Final = bytes.fromhex("020000000001")
_GATEWAY: Final = bytes([198, 19, 0, 1])
_LINK: Final = netlink.Link(2, "none0", netlink.ARPHRD_ETHER, 1, _MAC, 1500)


def _net(**_: object) -> RawNet:
    """What packets of a node's own would need: one gateway for all, whose MAC is known."""
    way = Way(_LINK.index, bytes([198, 19, 0, 7]), _GATEWAY)
    routes = Routes({_LINK.index: _LINK}, {4: [Span(1, 2**32 - 1, way)], 6: []})
    known = netlink.Neighbour(_LINK.index, _GATEWAY, _MAC, netlink.NUD_PERMANENT)
    return RawNet(routes, _NoWire(), [known])


async def _no_tempo(*_: object) -> None:
    """Looks ten times a second how much gets lost: of nothing, for days."""


class _Words(logging.Handler):
    """Words at the level of errors are mistakes of ours, not of a peer."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.mistakes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if record.levelno >= logging.ERROR:
            what = repr(record.exc_info[1]) if record.exc_info else ""
            self.mistakes.append(f"{words} {what}".strip())


@contextmanager
def set_up() -> Iterator[Callable[[], list[str]]]:
    """Everything in place; gives what takes the mistakes that were logged since the last time."""
    words = _Words()
    logger = logging.getLogger("nray")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.handlers[:] = [words]
    logger.propagate = False
    logger.setLevel(logging.DEBUG)

    def taken() -> list[str]:
        mistakes, words.mistakes = words.mistakes, []
        return mistakes

    with (
        mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(server, "now_ms", return_value=1_700_000_000_000),
        mock.patch.object(hub, "_in_thread", inline),
        mock.patch.object(books, "_in_thread", inline),
        mock.patch.object(supervisor, "Resolver", FakeResolver),
        mock.patch.object(supervisor, "keep_tempo", _no_tempo),
        mock.patch.object(supervisor, "links_bear", return_value=0.0),
        mock.patch.object(client, "net_for", _net),
        mock.patch.object(resolver, "system_lookup", _no_lookup),
        mock.patch.object(resolver, "system_lookup_all", _no_lookup),
        mock.patch.object(machine, "machine_id", return_value="machine"),
        mock.patch.object(machine, "environment", return_value=Environment(hostname="here", pid=1)),
        mock.patch.object(client.secrets, "token_hex", return_value="instance"),
    ):
        try:
            yield taken
        finally:
            logger.level, logger.propagate, logger.handlers[:] = before


def run(main: Callable[[], Awaitable[None]]) -> None:
    """On a clock that jumps: a wait for ever is an error after `OVER_S` of it."""

    async def bounded() -> None:
        with trio.move_on_after(OVER_S) as scope:
            await main()
        if scope.cancelled_caught:
            raise Breach(f"not over after {OVER_S:g} s of virtual time")

    # One order of steps, and of what stands in sets, or a case would not be the same twice.
    trio_run._r.seed(0)  # type: ignore[attr-defined]
    by_birth = _numbered()
    with replaced([(each, "__hash__", by_birth) for each in _IN_SETS]):
        trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


_IN_SETS: Final = (supervisor._Hand, scheduler.Node, scheduler._Slice)


def _numbered() -> Callable[[object], int]:
    """A hash by order of birth, in place of one by address."""
    born: dict[int, tuple[int, object]] = {}

    def number(self: object) -> int:
        # Kept alive with its number, or its id would come again.
        return born.setdefault(id(self), (len(born), self))[0]

    return number


async def closes_all(worker: FakeWorker, work: protocol.Slice) -> None:
    """What a worker finds: nothing, at once and in two parts, as those that were recorded."""
    await worker.found(work, done=False)
    await worker.found(work)
