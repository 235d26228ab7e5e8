"""Listening and accepting, at a pace that leaves the loop to the nodes that are in."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from nray import UserError
from nray.server.door import Lobby
from nray.server.pace import Bucket

#: Lines that are let in: so many a second, and so many at once after a rest. One that comes to
#: nothing costs 0.5 to 1 ms, so a flood of them has about 5 % of the loop, and a sudden storm holds
#: it up for a quarter of a second.
ENTRIES_A_SECOND: Final = 100.0
ENTRIES_AT_ONCE: Final = 300.0

#: Lines beyond that are closed as soon as they are accepted, many at a time: were they left to the
#: kernel, an honest node would wait behind them all. It comes again in a tenth of a second,
#: and is soon the one that is let in. More than so many a second the kernel has to keep, or drop.
CLOSED_A_SECOND: Final = 1000.0
CLOSED_AT_ONCE: Final = 50.0
CLOSED_TOGETHER: Final = 32

#: Lines that the kernel keeps for us: half a second's worth.
BACKLOG: Final = 512

#: Pause after the system had no descriptor for a line, seconds.
RETRY_S: Final = 0.1

#: The system cannot take a line now, and will later.
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


async def accept_lines(
    listener: trio.abc.Listener[Any],
    handle: Callable[[Any], Awaitable[None]],
    nursery: trio.Nursery,
    lobby: Lobby,
) -> None:
    """Start ``handle`` for each line, for ever; the listener is closed at the end."""
    entries = Bucket(ENTRIES_A_SECOND, ENTRIES_AT_ONCE)
    closed = Bucket(CLOSED_A_SECOND, CLOSED_AT_ONCE)
    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                words = os.strerror(error.errno)
                lobby.complaints.say("lines that the system had no room for", "accept: %s", words)
                lobby.shed()
                await trio.sleep(RETRY_S)
                continue
            now = trio.current_time()
            if entries.level(now) >= 1.0:
                entries.take(1.0, now)
                nursery.start_soon(handle, stream)
                continue
            await trio.aclose_forcefully(stream)
            count = 1 + _close_waiting(listener)
            lobby.complaints.say(
                "lines closed at once, because too many came",
                "too many lines come; %d were closed",
                count,
                times=count,
            )
            await trio.sleep(closed.take(count, now))


def _close_waiting(listener: trio.abc.Listener[Any]) -> int:
    """Close lines that wait in the kernel, without the cost of making streams of them; how many."""
    if not isinstance(listener, trio.SocketListener):
        return 0
    count = 0
    with socket.socket(fileno=os.dup(listener.socket.fileno())) as raw:
        try:
            while count < CLOSED_TOGETHER:
                raw.accept()[0].close()
                count += 1
        except OSError:  # nobody waits, or there is no descriptor
            pass
    return count


async def open_listeners(host: str, ports: Sequence[int]) -> list[trio.SocketListener]:
    """Listeners on all ports, or none.

    Raises:
        UserError: a port cannot be listened on.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for port in ports:
            listeners += await trio.open_tcp_listeners(port, host=host or None, backlog=BACKLOG)
    except OSError as error:
        for listener in listeners:
            await listener.aclose()
        raise _cannot_listen(host, port, error) from error
    return listeners


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    where = f"port {port} of {host or 'all addresses'}"
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"{where} is taken by another program",
            f"choose another one with listen:, or see who has it: ss -ltnp 'sport = :{port}'",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(
            f"{where}: this machine has no such address",
            "host: is the address to listen on; 0.0.0.0 is all of IPv4, :: all there is",
        )
    if error.errno == errno.EACCES:
        return UserError(f"{where} may not be listened on", "ports below 1024 need privileges")
    return UserError(f"{where} cannot be listened on: {error.strerror or error}")
