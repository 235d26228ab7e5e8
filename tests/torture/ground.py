"""Where the scans take place: two namespaces, two links, listeners that tell open from closed.

The *hub* holds the server, the listeners and the near node; the far node has a namespace of its
own. Two links join them, so that the server's line can be cut while the targets stay in reach: a
scan that is cut off from its targets would rightly find them filtered, and prove nothing.
"""

from __future__ import annotations

import random
from types import TracebackType

from lab.namespaces import Namespace
from lab.network import listen

SERVER, FAR = "198.19.254.1", "198.19.254.2"
DATA_HUB, DATA_FAR = "198.19.255.2", "198.19.255.1"
#: The links, by the names of both their ends.
CONTROL, DATA = "ctl0", "lab0"
TARGETS_NET = "198.18.0.0/17"
TARGETS = tuple(f"198.18.3.{host}" for host in (1, 2, 3))
#: Below the ports that connections go out from: none can meet itself on ``lo``.
PORTS = range(1, 2001)
OPEN = 300
#: Every trial has the same targets: one undisturbed scan stands for all.
SEED = 12

#: (target, port) to state.
Outcome = dict[tuple[str, int], str]


def truth() -> Outcome:
    """What an undisturbed scan finds."""
    pairs = [(target, port) for target in TARGETS for port in PORTS]
    found = dict.fromkeys(pairs, "closed")
    found.update(dict.fromkeys(random.Random(SEED).sample(pairs, OPEN), "open"))
    return found


class Ground:
    """The namespaces with their links and listeners; a context manager that removes them."""

    def __init__(self) -> None:
        self.truth = truth()
        self.hub = Namespace("hub")
        try:
            self.far = Namespace("far")
        except BaseException:
            self.hub.close()
            raise
        try:
            self._join(CONTROL, SERVER, FAR)
            self._join(DATA, DATA_HUB, DATA_FAR)
            self.hub.ip("route", "add", "local", TARGETS_NET, "dev", "lo")
            self.far.ip("route", "add", TARGETS_NET, "via", DATA_HUB)
            self.hub.sysctl({"net.core.somaxconn": 65535, "net.ipv4.tcp_max_syn_backlog": 65535})
            self._listeners = listen(
                self.hub,
                [
                    ("tcp", target, port, "hold")
                    for (target, port), state in self.truth.items()
                    if state == "open"
                ],
            )
        except BaseException:
            self.close()
            raise

    def _join(self, name: str, hub: str, far: str) -> None:
        # fmt: off
        self.hub.ip(
            "link", "add", name, "type", "veth", "peer", "name", name, "netns", self.far.name,
        )
        # fmt: on
        for namespace, address in ((self.hub, hub), (self.far, far)):
            namespace.ip("link", "set", name, "up")
            namespace.ip("address", "add", f"{address}/30", "dev", name)

    def cut(self) -> None:
        """Take the far node's line to the server away."""
        self.hub.ip("link", "set", CONTROL, "down")

    def mend(self) -> None:
        """Give it back; does nothing if it is there."""
        self.hub.ip("link", "set", CONTROL, "up")

    def left(self) -> list[int]:
        """Processes in either namespace beside the listeners."""
        return [pid for pid in self.hub.pids() + self.far.pids() if pid != self._listeners.pid]

    def __enter__(self) -> Ground:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.far.close()
        self.hub.close()
