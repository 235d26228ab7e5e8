"""Names to addresses, as this machine sees them: what a name means depends on the vantage point."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

#: Look-ups under way at once. They wait in threads, and more would only queue in the resolver.
LOOKUPS_MAX = 32
#: A look-up that has taken longer is given up; glibc's own limit is three tries of 5 s.
LOOKUP_S = 20.0

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


class Resolver:
    """Looks names up, each once, a bounded number at a time.

    Args:
        lookup: how; blocks, runs in a thread, raises OSError where there is no address.
    """

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
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

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(one, name)
        return found
