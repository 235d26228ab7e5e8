"""Mistakes that can be planted, each of which the laws must find: a fuzzer must be able to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import msgspec
import trio

from nray.node import bounds, client
from nray.server import scheduler, server, sessions
from nray.targets import findings, segment
from nray.wire import channel, framing, rules, states
from nray.wire.errors import PeerFault, Reason, clip
from nray.wire.messages import Ask, Lease, Report

#: An owner, one of its names, and what that stands for from now on.
Change = tuple[Any, str, Any]


def _nothing(*_: object, **__: object) -> None:
    pass


async def _nothing_said(*_: object, **__: object) -> None:
    pass


def _unknown_lease_crashes(self: scheduler.Scheduler, lease: int, node: object) -> int:
    return self._by_lease[lease][1].segment


def _out_of_state() -> Sequence[Change]:
    table = {state: dict(row) for state, row in states.NODE_SAYS.items()}
    table[states.State.WELCOMED][Ask] = states.State.WELCOMED
    return [(states.ServerEnd, "hears", table)]


def _after_bye() -> Sequence[Change]:
    table = {state: dict(row) for state, row in states.NODE_SAYS.items()}
    table[states.State.LEAVING][Report] = states.State.LEAVING
    return [(states.ServerEnd, "hears", table)]


def _no_order(self: object, message: object) -> None:
    return None


def _decode_some(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PeerFault(Reason.MALFORMED, clip(str(error))) from error


def _decode_shallow(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except ValueError as error:
        raise PeerFault(Reason.MALFORMED, clip(str(error))) from error


def _anything(name: str, value: Any, *_: object, **__: object) -> None:
    return None


def _limitless() -> Sequence[Change]:
    most = property(lambda self: 2**32)
    return [(states.ServerEnd, "receive_limit", most), (states.NodeEnd, "receive_limit", most)]


def _give_too_much() -> Sequence[Change]:
    grant = scheduler.Scheduler.grant

    def greedy(self: scheduler.Scheduler, node: scheduler.Node, now: float) -> Any:
        node.wanted += node.wanted > 0
        return grant(self, node, now)

    return [(scheduler.Scheduler, "grant", greedy)]


def _half_noted() -> Sequence[Change]:
    receive = states.End.receive

    def note(self: Any, message: Any) -> None:
        if isinstance(message, Ask):
            self.credit += message.leases
            if self.credit > rules.ASKED_MAX:
                raise PeerFault(Reason.PROTOCOL, "too many")
            return
        receive(self, message)

    return [(states.ServerEnd, "receive", note)]


def _late_to_enter() -> Sequence[Change]:
    enter = server.Server._enter

    async def wait_first(self: Any, channel: Any, register: Any, identity: Any) -> Any:
        before = self._sessions.known(register.instance)
        if before is not None and before.channel is not None:
            await trio.aclose_forcefully(before.channel)
        return await enter(self, channel, register, identity)

    return [(server.Server, "_enter", wait_first), (server, "_first", _first_of_all)]


def _first_of_all(faults: BaseExceptionGroup[Any]) -> Any:
    raise faults


def _keep_forever(self: sessions.Sessions, session: sessions.Session) -> int:
    return self._scheduler.leave(session.node)


def _enumerate() -> Sequence[Change]:
    unpack = segment.Segment.unpack.__func__  # type: ignore[attr-defined]

    def listed(cls: type[segment.Segment], packed: bytes) -> segment.Segment:
        made: segment.Segment = unpack(cls, packed)
        assert list(range(min(made.probes, 2**20)))
        return made

    return [(segment.Segment, "unpack", classmethod(listed))]


def _spin() -> Sequence[Change]:
    check = bounds.Segments.check

    def slow(self: bounds.Segments, lease: Lease) -> None:
        check(self, lease)
        for _ in range(lease.start, lease.start + lease.count):
            pass

    return [(bounds.Segments, "check", slow)]


PLANTS: Final[dict[str, Callable[[], Sequence[Change]]]] = {
    # the decoder
    "bad-text-comes-out": lambda: [(framing, "_decode", _decode_some)],
    "deep-nesting-comes-out": lambda: [(framing, "_decode", _decode_shallow)],
    "frames-of-any-size": _limitless,
    # rules and states
    "no-bound-on-asks": lambda: [(states, "ASKED_MAX", 2**60)],
    "no-bound-on-numbers": lambda: [(rules, "_number", _anything)],
    "no-bound-on-texts": lambda: [(rules, "_text", _anything)],
    "ask-before-register": _out_of_state,
    "report-after-bye": _after_bye,
    "no-order-of-reports": lambda: [(states.End, "_out_of_order", _no_order)],
    "refused-but-noted": _half_noted,
    # a server
    "unknown-lease-crashes": lambda: [(scheduler.Scheduler, "place", _unknown_lease_crashes)],
    "hits-unchecked": lambda: [
        (findings, "check", _nothing),
        (server, "check", _nothing),
    ],
    "counts-unchecked": lambda: [(scheduler, "_check_counts", _nothing)],
    "more-than-was-asked": _give_too_much,
    "lines-of-one-node-race": _late_to_enter,
    "sessions-kept": lambda: [(sessions.Sessions, "left", _keep_forever)],
    "silence-suffered": lambda: [(server, "REGISTER_S", 1e6)],
    "refusal-unsaid": lambda: [(channel.Channel, "refuse", _nothing_said)],
    # a node
    "settings-unchecked": lambda: [(client, "check_settings", _nothing)],
    "segments-unchecked": lambda: [(segment.Segment, "_check", _nothing)],
    "searches-unchecked": lambda: [(segment.Segment, "_check_search", _nothing)],
    "leases-unchecked": lambda: [(bounds.Segments, "check", _nothing)],
    "segment-enumerated": _enumerate,
    "lease-walked-through": _spin,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """A mistake for the length of a block; an empty name is none."""
    with ExitStack() as stack:
        for owner, attribute, value in PLANTS[name]() if name else ():
            stack.enter_context(mock.patch.object(owner, attribute, value))
        yield
