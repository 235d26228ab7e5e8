"""Many listeners on one machine, and what ``ss`` says of them."""

from __future__ import annotations

import random

from .namespaces import Namespace
from .network import Listener, listen

#: The loopback addresses that are scanned.
ADDRESSES = ("127.0.0.1", "::1")
#: Bound addresses and how many ports each gets. 127.0.0.2 must be found by neither scan.
_BOUND = {"127.0.0.1": 150, "::1": 150, "0.0.0.0": 80, "::": 80, "dual": 100, "127.0.0.2": 40}
#: A server of the tests listens here.
_RESERVED = frozenset({8601})
#: What `ss` calls the wildcard addresses that reach a loopback address.
_REACHES = {
    "127.0.0.1": frozenset({"127.0.0.1", "0.0.0.0", "*"}),
    "::1": frozenset({"[::1]", "[::]", "*"}),
}


def draw_listeners(seed: int) -> list[Listener]:
    """Several hundred listeners on random ports of all kinds of local addresses."""
    chance = random.Random(seed)
    ports = iter(chance.sample([port for port in range(1, 65536) if port not in _RESERVED], 1000))
    return [
        ("tcp", address, next(ports), chance.choice(("hold", "close")))
        for address, count in _BOUND.items()
        for _ in range(count)
    ]


def listen_everywhere(namespace: Namespace, seed: int) -> None:
    listen(namespace, draw_listeners(seed))


def reachable(namespace: Namespace, address: str) -> set[tuple[str, int]]:
    """(address, port) of what a connection to a loopback address reaches, as ``ss -ltnH`` tells."""
    found = set()
    for line in namespace.call(["ss", "-ltnH"]).splitlines():
        bound, _, port = line.split()[3].rpartition(":")
        if bound.partition("%")[0] in _REACHES[address]:
            found.add((address, int(port)))
    return found
