"""Names to addresses, as this machine sees them: what a name means depends on the vantage point."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from nray import UserError

#: Look-ups under way at once. They wait in threads, and more would only queue in the resolver.
LOOKUPS_MAX = 32
#: A look-up that has taken longer is given up; glibc's own limit is three tries of 5 s.
LOOKUP_S = 20.0

#: Tries of looking up an excluded name, and the pause after each, seconds.
EXCLUSION_TRIES = 3
EXCLUSION_PAUSE_S = 1.0
#: Answers that say that there is no such name, or no address of it (RFC 3493, section 6.4).
NO_SUCH_NAME = {
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
}

Lookup = Callable[[str], list[bytes]]


def system_lookup(name: str) -> list[bytes]:
    """The addresses of a name, 4 or 16 bytes each, in the system's order; blocks.

    Families that this machine has no address of are left out (AI_ADDRCONFIG, RFC 3493).

    Raises:
        OSError: the name has no address, or nobody could be asked.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    addresses = [
        socket.inet_pton(family, str(where[0]).partition("%")[0])
        for family, _, _, _, where in found
    ]
    return list(dict.fromkeys(addresses))


def system_lookup_all(name: str) -> list[bytes]:
    """As `system_lookup`, with addresses of families that this machine has none of: for what
    must not be probed."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(
        dict.fromkeys(
            socket.inet_pton(family, str(where[0]).partition("%")[0])
            for family, _, _, _, where in found
        )
    )


class ExclusionUnknown(UserError):
    """An excluded name cannot be looked up just now, so nothing may be scanned."""

    exit_status = 1


class Resolver:
    """Looks names up, each once, a bounded number at a time.

    Args:
        lookup: how; blocks, runs in a thread, raises OSError where there is no address.
        lookup_all: the same for names that are excluded; left out, ``lookup`` is used if it was
            given.
    """

    def __init__(self, lookup: Lookup | None = None, lookup_all: Lookup | None = None) -> None:
        self._lookup = lookup or system_lookup
        self._lookup_all = lookup_all or lookup or system_lookup_all
        self._known: dict[str, list[bytes]] = {}
        self._under_way: dict[str, trio.Event] = {}
        self._limiter = trio.CapacityLimiter(LOOKUPS_MAX)
        #: Names without an address, with the resolver's words.
        self.failures: dict[str, str] = {}

    async def addresses(self, name: str) -> list[bytes]:
        """The addresses of a name; none if it has none. Cancellation loses nothing."""
        key = name.lower().rstrip(".")
        while key not in self._known:
            if key in self._under_way:
                await self._under_way[key].wait()
                continue
            self._under_way[key] = trio.Event()
            try:
                self._known[key] = await self._ask(key)
            finally:
                self._under_way.pop(key).set()
        return self._known[key]

    async def _ask(self, name: str) -> list[bytes]:
        # The wait for a turn is not the look-up's: its time begins when somebody is asked.
        async with self._limiter:
            with trio.move_on_after(LOOKUP_S):
                try:
                    return await trio.to_thread.run_sync(
                        self._lookup, name, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
                    )
                except (OSError, UnicodeError) as error:
                    self.failures[name] = getattr(error, "strerror", None) or str(error)
                    return []
        self.failures[name] = f"no answer within {LOOKUP_S:g} s"
        return []

    async def all(self, names: set[str]) -> dict[str, list[bytes]]:
        """The addresses of each of the names."""
        found: dict[str, list[bytes]] = {}

        async def one(name: str) -> None:
            found[name] = await self.addresses(name)

        await _each(names, one)
        return found

    async def exclusions(self, names: set[str]) -> dict[str, list[bytes]]:
        """The addresses of each of these names, which must not be probed.

        A name that does not exist excludes nothing. One of which nobody knows just now whether
        it exists is another thing: exclusions win.

        Raises:
            ExclusionUnknown: a name could not be looked up in several tries.
        """
        found: dict[str, list[bytes]] = {}

        async def one(name: str) -> None:
            found[name] = await self._exclusion(name)

        await _each(names, one)
        return found

    async def _exclusion(self, name: str) -> list[bytes]:
        words = f"no answer within {LOOKUP_S:g} s"
        for _ in range(EXCLUSION_TRIES):
            async with self._limiter:
                with trio.move_on_after(LOOKUP_S):
                    try:
                        return await trio.to_thread.run_sync(
                            self._lookup_all,
                            name,
                            abandon_on_cancel=True,
                            limiter=trio.CapacityLimiter(1),
                        )
                    except (OSError, UnicodeError) as error:
                        if isinstance(error, UnicodeError) or error.errno in NO_SUCH_NAME:
                            return []
                        words = error.strerror or str(error)
            await trio.sleep(EXCLUSION_PAUSE_S)
        raise ExclusionUnknown(
            f"the excluded name {name} cannot be looked up here ({words})",
            "nothing is scanned, since exclusions win: mend the resolver, or exclude addresses",
        )


async def _each(names: set[str], one: Callable[[str], Awaitable[None]]) -> None:
    """Do something for each name, for `LOOKUPS_MAX` of them at a time: a server may list names by
    the million, and a task takes some kilobytes."""
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:  # all take from the same
            await one(name)

    async with trio.open_nursery() as nursery:
        for _ in range(min(LOOKUPS_MAX, len(names))):
            nursery.start_soon(work)
