"""Who may talk: the TLS side of the door. Judges before any application byte is read."""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from nray.pki.endpoint import AcceptedPeer, close_gently
from nray.pki.errors import PeerRejected
from nray.pki.stream import TlsError, TlsStream
from nray.pki.verify import VerifiedPeer
from nray.server.server import Doorman, peer_name, reason_for
from nray.wire.errors import EXPLANATIONS, Reason, refusal
from nray.wire.framing import encode_frame

log = logging.getLogger("nray.server")

#: For a handshake; a second would do on any path, a slow machine gets ten.
HANDSHAKE_S = 10.0


class Judge(Protocol):
    """Who decides on peers; what it goes by may change."""

    async def accept(self, transport: trio.abc.Stream, *, timeout_s: float) -> AcceptedPeer:
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

    async def admit(self, stream: trio.abc.Stream) -> tuple[trio.abc.Stream, str | None] | None:
        peer = peer_name(stream)
        try:
            accepted = await self._tls.accept(stream, timeout_s=HANDSHAKE_S)
        except PeerRejected as rejected:
            reason = reason_for(rejected.reason)
            log.warning("refused a node at %s: %s: %s", peer, EXPLANATIONS[reason], rejected.detail)
            if rejected.stream is not None:
                await close_gently(rejected.stream, encode_frame(refusal(reason)))
            return None
        except (TlsError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.info("%s, a peer without good TLS: %s", peer, error)
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
