"""The nodes of a server: who is registered, connected, silent. No I/O, no clock of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import trio

from nray.ledger.entries import NodeSeen
from nray.server.scheduler import Node, Scheduler
from nray.wire.channel import Channel
from nray.wire.messages import NodeMessage, Register, ServerMessage

#: A node whose line was lost is waited for so long, seconds, before its slices go to others; it
#: may still come back later, and its late reports are taken. Short, because all that is lost
#: by being wrong is some work done twice.
RECONNECT_S = 2.0

#: Nodes at one time. A node that makes up a new instance on each line would have us keep them
#: all: some 2 KB each, and a line of its own.
NODES_MAX = 4096

#: Instances ever met in one scan: of each a number, its pool and a row of the ledger are kept.
INSTANCES_MAX = 100_000


@dataclass(eq=False)
class Session:
    """One node, over any number of connections."""

    node: Node
    name: str
    instance: str
    machine: str
    identity: str | None
    seen_at: float
    channel: Channel[ServerMessage, NodeMessage] | None = None
    lost_at: float | None = None
    sent: int = 0
    #: Set when there may be something to lease to this node.
    kick: trio.Event = field(default_factory=trio.Event)
    #: It waits for room in the books: we do not listen meanwhile, so its silence is our own.
    busy: int = 0
    #: By which the ledger knows it.
    number: int = 0
    #: What its own policy allows, in its words; empty without one.
    policy: str = ""
    #: Whether it knows what `Shown` tells.
    spares: bool = False


class Sessions:
    """Registration, duplicates, expiry.

    Args:
        expiry_s: a node silent for so long is given up.
        several_per_machine: whether a second node of one machine is welcome.
        pool_by_preference: whether a node may choose its pool.
        seen: nodes of an earlier server process, which are known again.
        awaited: whether these may still be looking for a server.
        return_by: until when they will have found it, on the clock of ``now``; they go back to
            their pools, so others are not sent there until then.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        expiry_s: float,
        several_per_machine: bool,
        pool_by_preference: bool,
        seen: Sequence[NodeSeen] = (),
        awaited: bool = True,
        return_by: float = 0.0,
    ) -> None:
        self._scheduler = scheduler
        self._expiry_s = expiry_s
        self._several = several_per_machine
        self._preference = pool_by_preference
        self._by_instance: dict[str, Session] = {}
        # A node that was given up and comes back goes to its own pool: its late reports are of
        # that pool's leases. Grows by one small entry for each node that has left.
        self._pools: dict[str, int] = {node.instance: node.pool for node in seen}
        # Nodes of an earlier server process that were not heard of again.
        self.awaited = {node.instance for node in seen} if awaited else set()
        self._return_by = return_by
        # Every node ever met keeps its number, and with it its id, and its certificate's name.
        self._numbers: dict[str, int] = {node.instance: node.node for node in seen}
        self._identities: dict[str, str | None] = {node.instance: node.identity for node in seen}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_instance.values()))

    def __len__(self) -> int:
        return len(self._by_instance)

    def connected(self) -> list[Session]:
        """Those with a line now."""
        return [each for each in self if each.channel is not None]

    def known(self, instance: str) -> Session | None:
        """The session of a node that comes back."""
        return self._by_instance.get(instance)

    def full(self, register: Register) -> bool:
        """Whether a node that is not known yet is one too many."""
        if register.instance in self._by_instance:
            return False
        if len(self._by_instance) >= NODES_MAX:
            return True
        return register.instance not in self._numbers and len(self._numbers) >= INSTANCES_MAX

    def duplicate(self, register: Register) -> Session | None:
        """Another live node of the same machine, where that is not allowed."""
        if self._several:
            return None
        for each in self:
            if (
                each.machine == register.machine_id
                and each.instance != register.instance
                and each.channel is not None
            ):
                return each
        return None

    def impostor(self, register: Register, identity: str | None) -> bool:
        """Whether this is not the node that it says it is: that one's certificate bears another
        name, or it had one and this has none, or the other way round.

        Leases and reports belong to an instance, and with this to the identity of whoever
        registered it first.
        """
        instance = register.instance
        return instance in self._numbers and self._identities.get(instance) != identity

    def enter(self, register: Register, identity: str | None, now: float) -> Session:
        """Register a node, new or come back; not an `impostor`."""
        self.awaited.discard(register.instance)
        session = self._by_instance.get(register.instance)
        if session is not None:
            self._come_back(session, register, now)
            return session
        number = self._numbers.get(register.instance)
        if number is None:
            number = self._numbers[register.instance] = len(self._numbers) + 1
            self._identities[register.instance] = identity
        preferred = register.preferred_pool if self._preference else -1
        pool = self._pools.pop(register.instance, None)
        if pool is None:
            awaited = self.awaited if now < self._return_by else ()
            coming = [self._pools[each] for each in awaited]
            pool = self._scheduler.choose_pool(preferred, coming)
        node = self._scheduler.join(f"node-{number}", pool, register.processes)
        session = Session(
            node, register.name, register.instance, register.machine_id, identity, now,
            number=number,
        )  # fmt: skip
        self._by_instance[register.instance] = session
        return session

    def met(self, instance: str) -> bool:
        """Whether a node was ever registered in this scan, by any server process."""
        return instance in self._numbers

    def _come_back(self, session: Session, register: Register, now: float) -> None:
        session.seen_at = now
        session.lost_at = None
        session.node.wanted = 0
        self._scheduler.keep_only(session.node, set(register.leases))

    def lost(self, session: Session, now: float) -> None:
        """The line to a node is lost; it may come back."""
        session.channel = None
        session.lost_at = now
        session.node.wanted = 0

    def left(self, session: Session) -> int:
        """A node is gone for good; how many slices go to others."""
        if self._by_instance.get(session.instance) is not session:
            return 0  # gone before; under its name there may be its next session
        del self._by_instance[session.instance]
        self._pools[session.instance] = session.node.pool
        return self._scheduler.leave(session.node)

    def expired(self, now: float) -> list[Session]:
        """Nodes that were silent or away for too long."""
        return [
            each
            for each in self
            if not each.busy
            and (
                now - each.seen_at > self._expiry_s
                or (each.lost_at is not None and now - each.lost_at > RECONNECT_S)
            )
        ]

    def kick(self, pool: int | None = None) -> None:
        """There may be new work for the nodes of a pool (None: of all)."""
        for each in self:
            if pool is None or each.node.pool == pool:
                each.kick.set()
