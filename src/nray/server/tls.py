"""Who may talk: the TLS side of the door. Judges before any application byte is read."""

from __future__ import annotations

import logging

import trio

from nray.pki.endpoint import ServerTls, close_gently
from nray.pki.errors import PeerRejected
from nray.pki.stream import TlsError
from nray.server.server import Doorman, peer_name, reason_for
from nray.wire.errors import EXPLANATIONS, refusal
from nray.wire.framing import encode_frame

log = logging.getLogger("nray.server")

#: For a handshake; a second would do on any path, a slow machine gets ten.
HANDSHAKE_S = 10.0


class TlsDoorman(Doorman):
    """Admits peers whose certificate `nray.pki` accepts, and tells the others why not."""

    def __init__(self, tls: ServerTls) -> None:
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
