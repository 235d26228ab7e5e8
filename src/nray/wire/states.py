"""Who may say what, and when: both ends of a connection as tables, without I/O or a clock.

The talk of one connection, as the server sees it:

    NEW --Welcome--> WELCOMED --(Register)--> REGISTERING --Registered--> ACTIVE
    ACTIVE --Stop--> DRAINING --(Bye)--> LEAVING          ACTIVE --(Bye)--> LEAVING
    any --Refused--> CLOSED

where a message in brackets comes from the node. Three rules hold it together:

1. Everything that decides whether a message is in order lives here and in `rules`.
2. A refused message changes nothing.
3. One table for each speaker judges both ends: what a server may say is what a node must hear.
   The ends learn things at different times, so whatever may cross another message on the way is
   allowed on both sides of it: a node's Ask after Stop, a server's Lease after Bye.

What is checked beyond the table, alike on both ends and for one connection (a new connection
starts anew): reports are numbered without gaps, from wherever the first one starts (a node sends
its unacknowledged ones again after a reconnect); an Ack names a report that came on this
connection and never goes back; a Lease was asked for and its segment announced.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Final, Generic, TypeVar

from nray.wire.errors import LocalFault, PeerFault, Reason
from nray.wire.framing import (
    GREETING_BYTES_MAX,
    NODE_FRAME_BYTES_MAX,
    SERVER_FRAME_BYTES_MAX,
    decode_node_message,
    decode_server_message,
)
from nray.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ask,
    Bye,
    Heartbeat,
    Lease,
    Message,
    NodeMessage,
    Pulse,
    Refused,
    Register,
    Registered,
    Report,
    Segment,
    ServerMessage,
    Shown,
    Stop,
    Welcome,
)
from nray.wire.rules import ASKED_MAX, HIT_BYTES, trouble_in

__all__ = ["HIT_BYTES", "End", "NodeEnd", "ServerEnd", "State"]


class State(Enum):
    """How far the talk of one connection has come. Each end has its own view of it."""

    NEW = "new"
    WELCOMED = "welcomed"
    REGISTERING = "registering"
    ACTIVE = "active"
    DRAINING = "draining"  # Stop was said: reports may come in, no new work goes out
    LEAVING = "leaving"  # Bye was said: the node is silent and waits for its last Ack
    CLOSED = "closed"


Table = Mapping[State, Mapping[type[Message], State]]

_S = State

#: What a server may say in which state, and the state that follows.
SERVER_SAYS: Final[Table] = {
    _S.NEW: {Welcome: _S.WELCOMED, Refused: _S.CLOSED},
    _S.WELCOMED: {Refused: _S.CLOSED},
    _S.REGISTERING: {Registered: _S.ACTIVE, Refused: _S.CLOSED},
    _S.ACTIVE: {
        Segment: _S.ACTIVE,
        Lease: _S.ACTIVE,
        Ack: _S.ACTIVE,
        Pulse: _S.ACTIVE,
        Shown: _S.ACTIVE,
        Stop: _S.DRAINING,
        Refused: _S.CLOSED,
    },
    _S.DRAINING: {
        Ack: _S.DRAINING,
        Pulse: _S.DRAINING,
        Shown: _S.DRAINING,
        Refused: _S.CLOSED,
    },
    # All of ACTIVE, for it may cross the node's Bye on the way. The node drops it, Acks apart.
    _S.LEAVING: {
        Segment: _S.LEAVING,
        Lease: _S.LEAVING,
        Ack: _S.LEAVING,
        Pulse: _S.LEAVING,
        Shown: _S.LEAVING,
        Stop: _S.LEAVING,
        Refused: _S.CLOSED,
    },
    _S.CLOSED: {},
}

#: What a node may say in which state.
NODE_SAYS: Final[Table] = {
    _S.NEW: {},
    _S.WELCOMED: {Register: _S.REGISTERING},
    _S.REGISTERING: {},
    _S.ACTIVE: {Ask: _S.ACTIVE, Report: _S.ACTIVE, Heartbeat: _S.ACTIVE, Bye: _S.LEAVING},
    # Ask stays: a node may have asked before it heard of the end.
    _S.DRAINING: {
        Ask: _S.DRAINING,
        Report: _S.DRAINING,
        Heartbeat: _S.DRAINING,
        Bye: _S.LEAVING,
    },
    _S.LEAVING: {},
    _S.CLOSED: {},
}

_Out = TypeVar("_Out", bound=Message)
_In = TypeVar("_In", bound=Message)
_Trouble = tuple[Reason, str]


class End(Generic[_Out, _In]):
    """One end of one connection: asked before a message goes out and after one came in.

    It does not know which end it plays; the tables of a subclass do.

    Attributes:
        state: how far the talk has come, as this end knows it.
        credit: slices asked for and not yet leased.
        reported: number of the last report that passed on this connection, 0 for none.
        acked: number of the last report acknowledged on this connection, 0 for none.
    """

    says: ClassVar[Table]
    hears: ClassVar[Table]

    def __init__(self) -> None:
        self.state = State.NEW
        self.credit = 0
        self.reported = 0
        self.acked = 0
        # Grows by one number for each segment, whose body the node has to keep anyway.
        self._segments: set[int] = set()

    @property
    def receive_limit(self) -> int:
        """Bytes of the largest frame to be taken from the peer now."""
        raise NotImplementedError

    def decode(self, body: bytes) -> _In:
        """A frame's body as a message of the other end.

        Raises:
            PeerFault: it is none.
        """
        raise NotImplementedError

    def send(self, message: _Out) -> None:
        """Note that this message goes out now.

        Raises:
            LocalFault: it may not; nothing has changed.
        """
        trouble = self._trouble(message, self.says)
        if trouble is not None:
            raise LocalFault(f"{type(self).__name__} may not send this: {trouble[1]}")
        self._note(message, self.says)

    def receive(self, message: _In) -> None:
        """Note that this message came in.

        Raises:
            PeerFault: the peer should not have sent it; nothing has changed.
        """
        trouble = self._trouble(message, self.hears)
        if trouble is not None:
            raise PeerFault(*trouble)
        self._note(message, self.hears)

    def close(self) -> None:
        """The connection is over, whoever ended it: nothing may be said or heard any more."""
        self.state = State.CLOSED

    def _trouble(self, message: Message, table: Table) -> _Trouble | None:
        if type(message) not in table[self.state]:
            seen = f"{message.__struct_config__.tag} in state {self.state.value}"
            allowed = ", ".join(str(kind.__struct_config__.tag) for kind in table[self.state])
            return Reason.UNEXPECTED, f"{seen}; allowed: {allowed or 'nothing'}"
        # Before the rest: another version's message may well break rules of this one.
        if isinstance(message, Welcome | Register) and message.protocol != PROTOCOL_VERSION:
            return Reason.VERSION, f"protocol {message.protocol}; this end: {PROTOCOL_VERSION}"
        broken = trouble_in(message) or self._out_of_order(message)
        return (Reason.PROTOCOL, broken) if broken is not None else None

    def _out_of_order(self, message: Message) -> str | None:
        """What does not go with what was said before, in words."""
        match message:
            case Ask(leases) if self.credit + leases > ASKED_MAX:
                return f"ask: {self.credit} + {leases} slices asked for, more than {ASKED_MAX}"
            case Lease(segment=segment) if segment not in self._segments:
                return f"lease: segment {segment} was not announced on this connection"
            case Lease() if self.credit == 0:
                return "lease: it was not asked for"
            case Report(report) if self.reported and report != self.reported + 1:
                return f"report: number {report} after {self.reported}"
            case Ack(report) if report > self.reported:
                return f"ack: of report {report}; the last one here was {self.reported}"
            case Ack(report) if report < self.acked:
                return f"ack: of report {report} after {self.acked}"
        return None

    def _note(self, message: Message, table: Table) -> None:
        """The one place where anything changes; called once nothing can fail any more."""
        self.state = table[self.state][type(message)]
        match message:
            case Segment(segment):
                self._segments.add(segment)
            case Ask(leases):
                self.credit += leases
            case Lease():
                self.credit -= 1
            case Report(report):
                self.reported = report
            case Ack(report):
                self.acked = report


class ServerEnd(End[ServerMessage, NodeMessage]):
    """The server's end: sends `ServerMessage`, receives `NodeMessage`."""

    says = SERVER_SAYS
    hears = NODE_SAYS

    @property
    def receive_limit(self) -> int:
        """Small until the node is registered, see `framing`."""
        greeting = self.state in (State.NEW, State.WELCOMED, State.REGISTERING)
        return GREETING_BYTES_MAX if greeting else NODE_FRAME_BYTES_MAX

    def decode(self, body: bytes) -> NodeMessage:
        """See `End.decode`."""
        return decode_node_message(body)


class NodeEnd(End[NodeMessage, ServerMessage]):
    """The node's end: sends `NodeMessage`, receives `ServerMessage`."""

    says = NODE_SAYS
    hears = SERVER_SAYS

    @property
    def receive_limit(self) -> int:
        """Small until the first frame has shown that a server of ours is there."""
        return GREETING_BYTES_MAX if self.state is State.NEW else SERVER_FRAME_BYTES_MAX

    def decode(self, body: bytes) -> ServerMessage:
        """See `End.decode`."""
        return decode_server_message(body)
