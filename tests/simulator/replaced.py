"""Everything that is put in place of something real while a run lasts, in one list."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio
from trio._core import _run as trio_run

from nray.events import hub, json_file
from nray.node import client, machine, supervisor
from nray.server import books, scheduler, server
from nray.wire.messages import Environment

from .truth import addresses_of

if TYPE_CHECKING:
    from .world import World

#: One name of a module or class, and what it stands for from now on.
Replacement = tuple[Any, str, Any]

ENVIRONMENT = Environment(hostname="sim", os="Linux", pid=1)


class _Resolver:
    """Names at once, the same for everybody."""

    async def all(self, names: set[str]) -> dict[str, list[bytes]]:
        await trio.lowlevel.checkpoint()
        return {name: addresses_of(name) for name in sorted(names)}

    exclusions = all


def _numbered(numbers: Iterator[int]) -> Any:
    """A hash by order of birth: sets then have one order, whatever the memory's addresses."""
    born: dict[int, tuple[int, object]] = {}

    def number(self: object) -> int:
        if id(self) not in born:
            born[id(self)] = (next(numbers), self)  # kept alive, or the id would come again
        return born[id(self)][0]

    return number


def replacements(world: World) -> list[Replacement]:
    """What a run puts in place of what."""
    by_birth = _numbered(itertools.count(1))
    trio_in_memory = SimpleNamespace(**vars(trio))
    trio_in_memory.SocketStream = lambda sock: sock.stream
    trio_in_memory.socket = SimpleNamespace(from_stdlib_socket=lambda sock: sock)
    return [
        # The order of steps within one moment comes from the seed.
        (trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (trio_run, "_r", random.Random(world.scenario.seed)),
        (supervisor._Hand, "__hash__", by_birth),
        (scheduler.Node, "__hash__", by_birth),
        (scheduler._Slice, "__hash__", by_birth),
        # Time, and threads that take it.
        (books, "now_ms", world.now_ms),
        (server, "now_ms", world.now_ms),
        (books, "_in_thread", world.in_thread),
        (hub, "_in_thread", world.in_thread),
        # The output's disk.
        (json_file, "os", world.disk),
        (json_file, "fcntl", SimpleNamespace(flock=world.disk.flock, LOCK_EX=2, LOCK_NB=4)),
        (json_file, "_sync_directory", world.disk.sync_directory),
        # Worker processes and names.
        (supervisor, "trio", trio_in_memory),
        (supervisor, "_kill", world.kill_pid),
        (supervisor, "Resolver", _Resolver),
        (machine, "machine_id", lambda: ""),
        (machine, "environment", lambda: ENVIRONMENT),
        # Where the judge looks on.
        (server, "Scheduler", world.scheduler_class),
        (client, "_Scan", world.scan_class),
    ]


@contextmanager
def replaced(changes: list[Replacement]) -> Iterator[None]:
    """Make the changes, and undo them."""
    before = []
    try:
        for owner, name, value in changes:
            if not hasattr(owner, name):
                raise AttributeError(f"{owner!r} has no {name} any more: see simulator/replaced.py")
            before.append((owner, name, owner.__dict__.get(name, _ABSENT)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


_ABSENT = object()
