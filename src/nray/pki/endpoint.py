"""Both ends of a connection: handshake within a time limit, then the judgement, then a stream.

What comes out of `ServerTls.accept` or `NodeTls.connect` has been judged; until then the peer
got nothing but a handshake, and nothing of it was read but a handshake.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio
from cryptography import x509
from OpenSSL import SSL

from nray.pki.allowed import AllowedNodes
from nray.pki.contexts import (
    ClientCertificate,
    node_connection,
    node_context,
    server_connection,
    server_context,
)
from nray.pki.errors import PeerRejected, PkiError
from nray.pki.keys import Identity
from nray.pki.names import peer_name, printable
from nray.pki.revocation import Revocations
from nray.pki.stream import TlsError, TlsStream
from nray.pki.verify import VerifiedPeer, verify_node, verify_server
from nray.pki.words import NO_CLIENT_CERTIFICATE

#: Bounds of a gentle close: enough for a round trip on any path worth scanning from, and for the
#: frames that a node may have sent before it read our refusal.
GENTLE_TIMEOUT_S = 2.0
GENTLE_DRAIN_BYTES = 256 * 1024


@dataclass(frozen=True)
class AcceptedPeer:
    """A node that may be spoken to.

    Attributes:
        stream: what it is spoken to by; whoever holds this closes it.
        peer: who it is; None if it showed no certificate and none was demanded.
    """

    stream: TlsStream
    peer: VerifiedPeer | None


class ServerTls:
    """The accepting end: one for each server, used for every connection."""

    def __init__(
        self,
        identity: Identity,
        trust: Sequence[x509.Certificate] | None,
        require_client: bool,
        allowed: AllowedNodes | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        """
        Args:
            identity: what the server shows.
            trust: who may vouch for nodes; None: nodes are not asked for a certificate.
            require_client: refuse nodes that show none. One that is shown must verify anyway.
            allowed: which of the verified ones to take; None: all.
            revocations: lists of certificates that no longer count.

        Raises:
            PkiError: certificates are demanded, but nobody is trusted to issue them; or OpenSSL
                refuses our own.
        """
        if trust is not None and not trust:
            raise PkiError("no authority is trusted to issue the certificates of nodes")
        if require_client and trust is None:
            raise PkiError(
                "nodes are to show certificates, but no authority is trusted to issue them",
                "name the authority's certificate: TLS.CA",
            )
        if trust is None:
            client = ClientCertificate.NOT_ASKED
        else:
            client = ClientCertificate.REQUIRED if require_client else ClientCertificate.OPTIONAL
        self._trust = trust
        self._required = require_client
        self._allowed = allowed
        self._revocations = revocations
        with _own_faults():
            self._context = server_context(identity, client)

    async def accept(
        self,
        transport: trio.abc.Stream,
        *,
        timeout_s: float,
        spent: Callable[[float], None] | None = None,
    ) -> AcceptedPeer:
        """The handshake with a node, and the judgement of it.

        On any error, and if it is cancelled, the connection is closed; except that a
        `PeerRejected` whose ``stream`` is set leaves that open for `close_gently`.

        Args:
            timeout_s: for all of it, seconds.
            spent: told of each piece of processor time that the handshake took, seconds.

        Raises:
            PeerRejected: its certificate is not good, or there is none and one is demanded.
            TlsError: no TLS, none that we accept, not within the time, or the transport broke.
        """
        async with _closed_on_error(transport):
            stream = TlsStream(transport, server_connection(self._context))
            try:
                await _shake(stream, timeout_s, spent)
            except TlsError as error:
                if error.reason == NO_CLIENT_CERTIFICATE:
                    await _drain_briefly(stream)
                    raise PeerRejected("none-shown", str(error)) from error
                raise
            try:
                stream.verified_peer = self._judge(stream)
            except PeerRejected as rejected:
                rejected.stream = stream
                raise
            return AcceptedPeer(stream, stream.verified_peer)

    def _judge(self, stream: TlsStream) -> VerifiedPeer | None:
        if self._trust is None:
            return None
        shown = stream.unverified_certificates()
        if shown is None:
            if self._required:
                raise PeerRejected("none-shown", "the node showed no certificate")
            return None
        peer = verify_node(*shown, self._trust, _now(), self._revocations)
        if self._allowed is not None:
            self._allowed.demand(peer)
        return peer

    def objection(self, peer: VerifiedPeer) -> PeerRejected | None:
        """Why a node that was let in, perhaps by other files than those of now, would not be let
        in today; None if it would. That its certificate has ended since is no reason: it may
        stay as long as its line holds."""
        if self._trust is None or peer.at is None:
            return None
        try:
            if self._revocations is not None:
                self._revocations.demand(peer.chain)
            leaf, *others = peer.chain
            verify_node(leaf, others, self._trust, peer.at, self._revocations)
            if self._allowed is not None:
                self._allowed.demand(peer)
        except PeerRejected as rejected:
            return rejected
        return None


class NodeTls:
    """The connecting end: one for each node, used for every connection."""

    def __init__(
        self,
        trust: Sequence[x509.Certificate] | None,
        *,
        insecure: bool,
        identity: Identity | None,
        server_name: str | None,
        revocations: Revocations | None = None,
    ) -> None:
        """
        Args:
            trust: who may vouch for the server.
            insecure: take any server for the right one. **Whoever sits on the path can then
                read and change everything.**
            identity: shown where the server asks for it.
            server_name: looked for in the server's certificate in place of the host dialled;
                nothing else of the check changes. Also the SNI, unless it is an address.
            revocations: lists of certificates that no longer count.

        Raises:
            PkiError: there is nobody to trust, `server_name` is no name, or OpenSSL refuses
                our own certificate.
        """
        if not insecure and not trust:
            raise PkiError(
                "no authority is given by which the server's certificate could be checked",
                "give its certificate with --tls-ca-cert; --tls-insecure checks nothing",
            )
        self._trust: Sequence[x509.Certificate] = trust or ()
        self._revocations = revocations
        self._insecure = insecure
        self._name = None if server_name is None else peer_name(server_name)
        with _own_faults():
            self._context = node_context(identity)

    async def connect(
        self, transport: trio.abc.Stream, host: str, *, timeout_s: float
    ) -> TlsStream:
        """The handshake with the server at `host`, and the judgement of it.

        The stream may be read and written at once, but a node is in only when the server's
        first frame says so: the server judges after this returns (TLS 1.3). On any error, and
        if it is cancelled, the connection is closed.

        Args:
            host: the name or address dialled.
            timeout_s: for all of it, seconds.

        Raises:
            PkiError: `host` is no name that a certificate could hold.
            PeerRejected: the server's certificate is not good.
            TlsError: no TLS, none that we accept, not within the time, or the transport broke.
        """
        async with _closed_on_error(transport):
            name = self._name_for(host)
            sni = name.value if isinstance(name, x509.DNSName) else None
            stream = TlsStream(transport, node_connection(self._context, sni))
            await _shake(stream, timeout_s)
            try:
                if not self._insecure:
                    stream.verified_peer = self._judge(stream, name)
            except PeerRejected:
                await stream.aclose()
                raise
            return stream

    def _name_for(self, host: str) -> x509.DNSName | x509.IPAddress | None:
        if self._name is not None:
            return self._name
        try:
            return peer_name(host)
        except PkiError:
            if self._insecure:  # no name is checked; only the SNI is missing
                return None
            raise

    def _judge(self, stream: TlsStream, name: x509.DNSName | x509.IPAddress | None) -> VerifiedPeer:
        shown = stream.unverified_certificates()
        if shown is None or name is None:
            raise PeerRejected("none-shown", "the server showed no certificate")
        return verify_server(*shown, self._trust, name, _now(), self._revocations)


def usable(identity: Identity) -> Identity:
    """The same, if OpenSSL takes it.

    Raises:
        PkiError: it does not.
    """
    with _own_faults():
        node_context(identity)
    return identity


async def close_gently(
    stream: TlsStream,
    final_bytes: bytes,
    timeout_s: float = GENTLE_TIMEOUT_S,
    drain_bytes: int = GENTLE_DRAIN_BYTES,
) -> None:
    """Last words that arrive: send them, close_notify, half-close, then throw away what the
    peer still sends until it has closed, `drain_bytes` have come or `timeout_s` has passed
    (for all of it); then close. Nothing that the peer sends is parsed.

    Never raises on account of the peer; cancellation still closes everything.
    """
    try:
        with trio.move_on_after(timeout_s):
            await stream.send_all(final_bytes)
            await stream.half_close()
            await stream.end_and_drain(drain_bytes)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def _shake(
    stream: TlsStream, timeout_s: float, spent: Callable[[float], None] | None = None
) -> None:
    try:
        with trio.move_on_after(timeout_s) as scope:
            await stream.do_handshake(spent)
    except TlsError:
        raise
    except trio.BrokenResourceError as error:
        raise TlsError("the other end closed the connection in the handshake") from error
    if scope.cancelled_caught:
        raise TlsError(f"no TLS handshake within {timeout_s:g} s")


async def _drain_briefly(stream: TlsStream) -> None:
    """Lets the alert that says why arrive (see `close_gently`)."""
    with trio.move_on_after(GENTLE_TIMEOUT_S):
        try:
            await stream.end_and_drain(GENTLE_DRAIN_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def _closed_on_error(transport: trio.abc.Stream) -> AsyncIterator[None]:
    try:
        yield
    except BaseException as error:
        # An open stream that an error carries is for its catcher to close.
        if not isinstance(error, PeerRejected) or error.stream is None:
            await trio.aclose_forcefully(transport)
        raise


@contextmanager
def _own_faults() -> Iterator[None]:
    """What OpenSSL does not like about our own certificate is for our user to mend."""
    try:
        yield
    except SSL.Error as error:
        raise PkiError(
            f"OpenSSL refuses our own certificate or key: {printable(str(error))}"
        ) from error


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
