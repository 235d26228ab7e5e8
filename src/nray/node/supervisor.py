"""Keeps the worker processes of a node busy, and replaces those that die.

It takes leases from its *office* (a server at the other end of a wire, or the scheduler in the
same process), hands each to one worker, and brings the findings back. What it promises: a lease
that was given is reported as done exactly once, whatever becomes of the worker that had it,
unless the supervisor itself is cancelled. Hits may be reported twice when a slice was begun
again; the scheduler takes each once.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import trio

from nray import UserError
from nray.node import orders
from nray.node.orders import LeaseLike, Primed
from nray.node.pacing import CAP, Pacer
from nray.node.policy import Policy
from nray.node.raw import RawNet
from nray.node.resolver import Resolver
from nray.node.tempo import keep_tempo, links_bear
from nray.targets.ranges import Ranges
from nray.targets.segment import Segment
from nray.wire.messages import Counts, Settings
from nray.worker import protocol
from nray.worker.forkserver import ForkServer

log = logging.getLogger("nray.node")

#: A slice that has seen so many workers die is given up: it is likely to be the cause.
DEATHS_MAX = 3
#: Ends that come from outside, whatever slice a worker had in hand: not a reason to give one up.
_FROM_OUTSIDE = ("killed by SIGKILL", "killed by SIGTERM", "killed by SIGINT", "killed by SIGHUP")
#: The notice of how a worker ended comes a little later than the end of its socket; seconds that
#: it is waited for, and between two looks.
NOTICE_S = 0.5
NOTICE_EVERY_S = 0.01
#: Workers that died in a row without ending a single slice, after which it is this machine
#: that cannot run workers.
DEATHS_IN_A_ROW_MAX = 12
RECEIVE_BYTES = 1 << 18
#: A worker that has slices says something each 5 s. One that was silent for so long hangs (or was
#: stopped by somebody): it is ended, and its slices begin again.
SILENT_S = 30.0
#: Of the secret by which a worker knows answers to its own packets.
RAW_KEY_BYTES = 16
#: Workers that share the source ports of packets of their own making: what the core can part.
SHARDS_MAX = 512
#: Positions among the counts of a slice.
ERROR_COUNT = Counts.__struct_fields__.index("error")
REFUSED_COUNT = Counts.__struct_fields__.index("refused")


class WorkersFail(UserError):
    """Worker processes die as fast as they are started."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Part of what a lease has brought; with ``done``, the last part, counts set."""

    lease: int
    hits: bytes
    done: bool
    counts: tuple[int, ...]
    errors: dict[str, int]


class Office(Protocol):
    """Where leases come from and findings go."""

    def want(self, leases: int) -> None:
        """So many leases more are wanted. Must not block."""

    async def found(self, outcome: Outcome) -> None:
        """Take a part of a lease's findings; waiting holds the worker back."""


@dataclass(eq=False)
class _Hand:
    """One worker process, as seen from here."""

    stream: trio.SocketStream
    pid: int = 0
    wants: int = protocol.SLICES_AHEAD
    holds: dict[int, LeaseLike] = field(default_factory=dict)
    spaces: set[int] = field(default_factory=set)
    lock: trio.Lock = field(default_factory=trio.Lock)
    sent: int = 0
    silent: bool = False
    paused: bool = False
    #: Ended by us, because what it was told is true no more.
    outdated: bool = False

    async def send(self, *messages: protocol.ToWorker) -> None:
        """A worker that is gone is noticed where its socket is read, not here."""
        async with self.lock:
            try:
                await self.stream.send_all(b"".join(map(protocol.pack, messages)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


class Supervisor:
    """Runs a scan's leases on worker processes.

    Args:
        fork_server: starts workers; stays the caller's to close.
        settings: how to scan.
        processes: how many workers.
        office: where leases come from.
        ahead: leases kept here beyond what the workers have: one round trip's worth.
        primed: workers that were already asked for, to be used first; none of them configured
            where there is a policy.
        policy: what this node will ever do; None: all it is told.
        raw: what workers that send packets of their own need; None where the settings do not ask
            for that.
    """

    def __init__(
        self,
        fork_server: ForkServer,
        settings: Settings,
        processes: int,
        office: Office,
        *,
        ahead: int = 0,
        resolver: Resolver | None = None,
        primed: list[Primed] | None = None,
        policy: Policy | None = None,
        raw: RawNet | None = None,
    ) -> None:
        assert (raw is not None) == orders.needs_raw(settings)
        self._raw = raw
        self._said_drops = False
        self._noted: set[str] = set()
        if policy is not None:
            assert not any(each.configured for each in primed or ())
            settings = policy.restrict(settings)
        self._policy = policy
        self._policy_order = policy.order() if policy is not None else None
        #: Segments of which the policy refuses all, so that no worker need look.
        self._refused: set[int] = set()
        self._fork_server = fork_server
        self._settings = settings
        # With fewer probes in flight than processes, some would have nothing to do.
        self._processes = min(processes, settings.workers or processes)
        if raw is not None:
            self._processes = min(self._processes, SHARDS_MAX)
        self._office = office
        self._ahead = ahead
        self._resolver = resolver or Resolver()
        self._ready = list(primed or ())
        self._hands: set[_Hand] = set()
        # Workers that have ended, until what they held has found another place.
        self._dead: set[_Hand] = set()
        self._stock: deque[LeaseLike] = deque()
        self._asked = 0
        self._segments: dict[int, Segment] = {}
        self._spaces: dict[int, protocol.Space] = {}
        #: By segment, the addresses here of names that it excludes.
        self._away: dict[int, set[bytes]] = {}
        self._deaths: dict[int, int] = {}
        # How workers ended, by pid: told for all of them at once.
        self._endings: dict[int, str] = {}
        self._deaths_in_a_row = 0
        self._sent_before = 0
        self._paused = False
        self._changed = trio.Event()
        self._pacer: Pacer | None = None
        if orders.finds_rate(settings):
            self._pacer = Pacer(min(settings.ratelimit or CAP, self._links_bear() or CAP))
        self._shown = fork_server.shown() if settings.first_open else None
        fork_server.set_rate(self._pacer.rate if self._pacer else settings.ratelimit)

    def _links_bear(self) -> float:
        assert self._raw is not None
        links, _ = self._raw.routes.rows({})
        return links_bear([name for _, name, *_ in links])

    # ── from the office ─────────────────────────────────────────────────────────────────────

    def add_segment(self, segment: Segment) -> None:
        """Make a segment known, before its first lease."""
        self._segments[segment.id] = segment
        if self._policy is not None and self._policy.refuses_whole(segment):
            self._refused.add(segment.id)
        if self._raw is not None and self._raw.want(*self._networks(segment)):
            self._begin_again()

    def _networks(self, segment: Segment) -> tuple[Ranges, Ranges]:
        """Where packets of our own go for a segment, as far as no name decides that."""
        if segment.id in self._refused or not orders.goes_raw(self._settings, segment):
            return (), ()
        if self._policy is not None:
            return self._policy.networks_of(segment)
        return segment.ranges4, segment.ranges6

    def _begin_again(self) -> None:
        """Workers that there are get no more slices: a way out is needed that they do not know."""
        for hand in self._hands:
            hand.outdated = True

    def give(self, lease: LeaseLike) -> None:
        """Take a lease to be scanned."""
        self._asked = max(0, self._asked - 1)
        self._stock.append(lease)
        self._changed.set()

    def ask_again(self) -> None:
        """The office has forgotten what was asked of it (a new connection): ask anew."""
        self._asked = 0
        self._changed.set()

    def pause(self, on: bool) -> None:
        """Hold new probes back, or go on; those in flight end as ever.

        Never waits: whoever calls this may be the one that makes room for what workers send.
        """
        self._paused = on
        self._changed.set()

    def spare(self, hosts: bytes) -> None:
        """Have hosts probed no further, packed as `nray._core.HostSet` has them.

        Only those whose findings are safe. A node knows nothing by itself: what it has reported
        under a lease of a server that is no more is forgotten, and its slice begun again.

        Does nothing in a scan that probes all. ValueError: they are no hosts.
        """
        if self._shown is not None:
            self._shown.add(hosts)

    @property
    def sent(self) -> int:
        """Probes started so far."""
        return self._sent_before + sum(hand.sent for hand in self._hands)

    @property
    def leases(self) -> set[int]:
        """Leases that were given and are not done."""
        holds = (hand.holds for hand in self._hands | self._dead)
        return {each.lease for each in self._stock}.union(*holds)

    @property
    def worker_pids(self) -> list[int]:
        """Of the workers that have started."""
        return sorted(hand.pid for hand in self._hands if hand.pid)

    # ── its own life ────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Work until cancelled; workers then end, and what they had in hand is lost.

        Raises:
            WorkersFail: workers die one after the other.
        """
        while len(self._ready) > self._processes:
            self._ready.pop().socket.close()
        async with trio.open_nursery() as nursery:
            if self._raw is not None:
                nursery.start_soon(self._raw.run)
                nursery.start_soon(self._pass_on, self._raw)
            if self._pacer is not None:
                nursery.start_soon(keep_tempo, self._fork_server.bucket(), self._pacer)
            for index in range(self._processes):
                nursery.start_soon(self._keep_worker, index)
            while True:
                await self._dispatch(nursery)
                await self._changed.wait()
                self._changed = trio.Event()

    async def _keep_worker(self, index: int) -> None:
        while True:
            # First of all: what it is told comes before it may be given slices.
            order = await self._configured(index)
            start = self._ready.pop(0) if self._ready else Primed(self._spawn())
            hand = _Hand(
                trio.SocketStream(trio.socket.from_stdlib_socket(start.socket)),
                wants=max(0, protocol.SLICES_AHEAD - len(start.holds)),
                holds=start.holds,
                spaces=start.spaces,
            )
            self._hands.add(hand)
            try:
                if not start.configured:
                    await hand.send(order)
                await self._serve(hand)
            finally:
                self._hands.discard(hand)
                self._dead.add(hand)
                self._sent_before += hand.sent
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(hand.stream)
            await self._bury(hand)
            self._dead.discard(hand)

    async def _configured(self, index: int) -> protocol.Configure:
        raw = None
        if self._raw is not None:
            links, routes = await self._raw.rows()
            # A key of its own: what answers the packets of one that has died is not believed.
            key = secrets.token_bytes(RAW_KEY_BYTES)
            raw = orders.raw(
                self._settings, index, self._processes, key, links, routes, self._raw.xdp
            )
        return orders.configure(self._settings, index, self._processes, self._policy_order, raw)

    async def _pass_on(self, raw: RawNet) -> None:
        """Tell workers of neighbours; begin anew with those whose gateway has moved."""
        async with trio.open_nursery() as nursery:

            async def renew() -> None:
                while True:
                    await raw.moved.wait()
                    raw.moved = trio.Event()
                    for hand in list(self._hands):
                        hand.outdated = True
                        await trio.aclose_forcefully(hand.stream)

            nursery.start_soon(renew)
            while True:
                await raw.news.wait()
                message = protocol.Neighbours(raw.told())
                for hand in list(self._hands):
                    await hand.send(message)

    def _spawn(self) -> socket.socket:
        try:
            return self._fork_server.spawn()
        except OSError as error:
            raise WorkersFail(
                f"no worker process can be started any more: {error.strerror or error}"
            ) from error

    async def _serve(self, hand: _Hand) -> None:
        """Talk to a worker until it ends."""
        self._changed.set()
        unpacker = protocol.Unpacker(at_worker=False)
        while True:
            data = b""
            try:
                with trio.move_on_after(SILENT_S) as silence:
                    data = await hand.stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if silence.cancelled_caught:
                if not hand.holds:
                    continue
                hand.silent = True
                if hand.pid:
                    _kill(hand.pid)
                return
            if not data:
                return
            for message in unpacker.feed(data):
                await self._handle(hand, message)

    async def _handle(self, hand: _Hand, message: object) -> None:
        match message:
            case protocol.Started(pid):
                hand.pid = pid
            case protocol.Alive(sent):
                hand.sent = sent
            case protocol.Want(slices):
                hand.wants += slices
                self._changed.set()
            case protocol.Wonder(wanted):
                assert self._raw is not None
                self._raw.ask(wanted)
            case protocol.Note(text):
                self._note(text)
            case protocol.Unfit(why):
                raise WorkersFail(f"workers cannot scan as they are told: {why}")
            case protocol.Found(lease, hits, done, counts, errors, sent, drops):
                hand.sent = sent
                if drops:
                    self._tell_drops()
                await self._office.found(Outcome(lease, hits, done, counts, errors))
                if done:  # only now: until the office has it, it is among `leases`
                    hand.holds.pop(lease, None)
                    self._deaths.pop(lease, None)
                    self._deaths_in_a_row = 0

    async def _bury(self, hand: _Hand) -> None:
        """A worker has died: its slices begin again with others, unless they are the cause."""
        if hand.outdated:
            self._stock.extendleft(reversed(hand.holds.values()))
            self._changed.set()
            return
        how = await self._ending(hand.pid)
        if hand.silent:
            how = f"was silent for {SILENT_S:g} s and was ended"
        log.warning(
            "worker %s %s; its %d slices begin again", hand.pid or "?", how, len(hand.holds)
        )
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > DEATHS_IN_A_ROW_MAX:
            raise WorkersFail(f"worker processes die one after the other, the last: {how}")
        if hand.silent or how not in _FROM_OUTSIDE:
            for lease in hand.holds.values():
                self._deaths[lease.lease] = self._deaths.get(lease.lease, 0) + 1
        guilty = [each for each in hand.holds.values() if self._is_guilty(each)]
        again = [each for each in hand.holds.values() if not self._is_guilty(each)]
        self._stock.extendleft(reversed(again))
        self._changed.set()
        for lease in guilty:
            await self._give_up(lease)

    def _tell_drops(self) -> None:
        if not self._said_drops:
            self._said_drops = True
            log.warning(
                "answers were lost on this machine, which reads them slower than they come; what"
                " is lost in every try looks filtered: a lower rate helps, or more retries"
            )

    def _note(self, text: str) -> None:
        # Workers that begin again have the same to say.
        if text not in self._noted:
            self._noted.add(text)
            log.warning("%s", text)

    def _is_guilty(self, lease: LeaseLike) -> bool:
        return self._deaths.get(lease.lease, 0) >= DEATHS_MAX

    async def _ending(self, pid: int) -> str:
        """How a worker ended, in words."""
        with trio.move_on_after(NOTICE_S):
            while pid:
                self._endings |= self._fork_server.ended()
                if pid in self._endings:
                    return self._endings.pop(pid)
                await trio.sleep(NOTICE_EVERY_S)
        return "gone"

    async def _give_up(self, lease: LeaseLike) -> None:
        log.error("slice %d+%d ended %d workers; given up", lease.start, lease.count, DEATHS_MAX)
        self._deaths.pop(lease.lease, None)
        await self._end(lease, ERROR_COUNT, {"worker-died": lease.count})

    async def _end(self, lease: LeaseLike, count: int, errors: dict[str, int]) -> None:
        """Report a lease as done without a worker, all of it counted as the one thing."""
        counts = [0] * len(Counts.__struct_fields__)
        counts[count] = lease.count
        await self._office.found(Outcome(lease.lease, b"", True, tuple(counts), errors))

    # ── leases to workers ───────────────────────────────────────────────────────────────────

    async def _dispatch(self, nursery: trio.Nursery) -> None:
        """Hand the stock out, and ask for what is missing."""
        for each in list(self._hands):
            if each.paused != self._paused:
                each.paused = self._paused
                await each.send(protocol.Pause(each.paused))
        while self._stock:
            if self._stock[0].segment in self._refused:
                # Still in stock until the office has it: it is among `leases`.
                lease = self._stock[0]
                await self._end(lease, REFUSED_COUNT, {})
                self._stock.remove(lease)
                continue
            fit = (each for each in self._hands if not each.outdated)
            hand = max(fit, key=lambda each: each.wants, default=None)
            if hand is None or hand.wants <= 0:
                break
            lease = self._stock.popleft()
            hand.wants -= 1
            hand.holds[lease.lease] = lease
            segment = self._segments[lease.segment]
            if orders.needs_names(segment):
                nursery.start_soon(self._hand_over, hand, lease, segment)
            else:
                await self._hand_over(hand, lease, segment)
        room = sum(max(0, each.wants) for each in self._hands) + self._ahead
        missing = room - len(self._stock) - self._asked
        if missing > 0:
            self._asked += missing
            self._office.want(missing)

    async def _hand_over(self, hand: _Hand, lease: LeaseLike, segment: Segment) -> None:
        addresses = None
        if segment.names:
            addresses = await self._addresses(segment, lease)
        messages: list[protocol.ToWorker] = []
        space = await self._space(segment)
        if self._raw is not None and space.raw and addresses:
            if self._raw.want_hosts(self._probed(segment, addresses)):
                self._begin_again()
            if hand.outdated:
                return  # what it holds goes to another, told of this way
        if segment.id not in hand.spaces:
            hand.spaces.add(segment.id)
            messages.append(space)
        messages.append(
            protocol.Slice(lease.lease, lease.segment, lease.start, lease.count, addresses)
        )
        await hand.send(*messages)

    async def _addresses(self, segment: Segment, lease: LeaseLike) -> dict[int, list[bytes]]:
        """What the names in a slice resolve to, by their index."""
        at = segment.space.at
        probes = (at(position) for position in range(lease.start, lease.start + lease.count))
        indexes = {number for family, number, _, _ in probes if family == 0}
        if self._policy is not None and not self._policy.names:
            return {index: [b""] for index in indexes}
        found = await self._resolver.all({segment.names[index] for index in indexes})
        return {index: found[segment.names[index]] for index in indexes}

    def _probed(self, segment: Segment, addresses: dict[int, list[bytes]]) -> set[bytes]:
        """Those of the addresses to which probes may go: neither excluded nor refused."""

        def may_be(address: bytes) -> bool:
            number = int.from_bytes(address, "big")
            if segment.exclusions.covers(4 if len(address) == 4 else 6, number):
                return False
            return self._policy is None or self._policy.allows(address)

        every = {each for some in addresses.values() for each in some if each}
        return set(filter(may_be, every - self._away[segment.id]))

    async def _space(self, segment: Segment) -> protocol.Space:
        """The space as workers get it: exclusions with what excluded names resolve to here."""
        if segment.id not in self._spaces:
            away = await self._resolver.exclusions(set(segment.excluded_names))
            for name, addresses in away.items():
                if not addresses:
                    log.warning("excluded name %s has no address here: nothing to exclude", name)
            self._away[segment.id] = {each for addresses in away.values() for each in addresses}
            self._spaces[segment.id] = orders.space(
                segment,
                list(self._away[segment.id]),
                raw=orders.goes_raw(self._settings, segment),
            )
        return self._spaces[segment.id]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just ended by itself
