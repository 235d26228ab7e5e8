"""Who may talk: the TLS side of the door. Judges before any application byte is read."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Protocol

import trio

from nray.pki.endpoint import AcceptedPeer, close_gently
from nray.pki.errors import PeerRejected
from nray.pki.stream import TlsError, TlsStream
from nray.pki.verify import VerifiedPeer
from nray.server.door import Doorman, Guest, Stage
from nray.server.server import reason_for
from nray.server.turns import Turns
from nray.wire.errors import EXPLANATIONS, Reason, refusal
from nray.wire.framing import encode_frame

#: For a node's first byte, which it sends as soon as the line is up.
FIRST_WORD_S = 5.0

#: For its turn, and then for the handshake; a second would do on any path, a slow machine gets ten.
TURN_S = 10.0
HANDSHAKE_S = 10.0


class Judge(Protocol):
    """Who decides on peers; what it goes by may change."""

    async def accept(
        self,
        transport: trio.abc.Stream,
        *,
        timeout_s: float,
        spent: Callable[[float], None] | None = None,
    ) -> AcceptedPeer:
        """As `nray.pki.endpoint.ServerTls.accept`."""

    def objection(self, peer: VerifiedPeer) -> PeerRejected | None:
        """As `nray.pki.endpoint.ServerTls.objection`."""

    async def changed(self) -> None:
        """Wait until it goes by something else."""

    def briefly(self) -> list[str]:
        """What ends soon, for the status line."""


class TlsDoorman(Doorman):
    """Admits peers whose certificate `nray.pki` accepts, and tells the others why not."""

    def __init__(self, tls: Judge) -> None:
        self._tls = tls
        self._turns = Turns()

    async def run(self) -> None:
        await self._turns.run()

    async def admit(
        self, stream: trio.abc.Stream, guest: Guest
    ) -> tuple[trio.abc.Stream, str | None] | None:
        # Nothing is set up for a peer that says nothing.
        with trio.move_on_after(FIRST_WORD_S) as first_word:
            if not await has_spoken(stream):
                return None
        if first_word.cancelled_caught:
            guest.complaints.say(
                "peers that said nothing", "%s said nothing", guest.peer, level=logging.INFO
            )
            return None
        guest.advance(Stage.WAITING)
        return await self._judge(stream, guest)

    async def _judge(
        self, stream: trio.abc.Stream, guest: Guest
    ) -> tuple[trio.abc.Stream, str | None] | None:
        peer, complaints = guest.peer, guest.complaints
        try:
            accepted = await self._shake(stream, guest)
        except PeerRejected as rejected:
            reason = reason_for(rejected.reason)
            complaints.say(
                "nodes refused for their certificates",
                "refused a node at %s: %s: %s",
                peer,
                EXPLANATIONS[reason],
                rejected.detail,
            )
            if rejected.stream is not None:
                await close_gently(rejected.stream, encode_frame(refusal(reason)))
            return None
        except (TlsError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            complaints.say(
                "peers without good TLS",
                "%s, a peer without good TLS: %s",
                peer,
                error,
                level=logging.INFO,
            )
            return None
        return accepted.stream, accepted.peer.identity if accepted.peer else None

    def objection(self, stream: trio.abc.Stream) -> tuple[Reason, str] | None:
        """See `Doorman.objection`."""
        if not isinstance(stream, TlsStream) or stream.verified_peer is None:
            return None
        rejected = self._tls.objection(stream.verified_peer)
        return None if rejected is None else (reason_for(rejected.reason), rejected.detail)

    async def changed(self) -> None:
        """See `Doorman.changed`."""
        await self._tls.changed()

    def briefly(self) -> list[str]:
        """See `Doorman.briefly`."""
        return self._tls.briefly()

    async def _shake(self, stream: trio.abc.Stream, guest: Guest) -> AcceptedPeer:
        with trio.move_on_after(TURN_S) as waiting:
            async with self._turns.turn(guest.address) as spent:
                waiting.deadline = float("inf")
                guest.advance(Stage.SHAKING)
                return await self._tls.accept(stream, timeout_s=HANDSHAKE_S, spent=spent)
        raise TlsError(f"too many handshakes: no turn within {TURN_S:g} s")


async def has_spoken(stream: trio.abc.Stream) -> bool:
    """Wait until there is something to be read, without reading it; False if the peer has gone.

    Of a stream that is no socket it is taken to be so.
    """
    if not isinstance(stream, trio.SocketStream):
        await trio.lowlevel.checkpoint()
        return True
    try:
        return bool(await stream.socket.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
