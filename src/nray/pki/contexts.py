"""OpenSSL contexts and connections for both ends.

OpenSSL is told to accept every certificate, and that is meant: it proves that the peer holds the
key, and `nray.pki.verify` alone judges the chain, before any application byte. Two judges would
add up what each of them accepts. It follows that **no connection made here is to be used before
its peer has been judged**; `nray.pki.endpoint` sees to that.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

if TYPE_CHECKING:
    from nray.pki.keys import Identity

#: For TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325, section 4.2). Both
#: ends are nray, so nothing older is owed. TLS 1.3 has its own list, all of it sound.
CIPHERS_TLS12 = b"ECDHE+AESGCM:ECDHE+CHACHA20"


class ClientCertificate(Enum):
    """Whether a server asks its clients for a certificate."""

    NOT_ASKED = SSL.VERIFY_NONE
    OPTIONAL = SSL.VERIFY_PEER
    REQUIRED = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


def server_context(identity: Identity, client: ClientCertificate) -> SSL.Context:
    """A context for the accepting end."""
    context = _context(identity)
    context.set_verify(client.value, _judged_afterwards)
    return context


def node_context(identity: Identity | None) -> SSL.Context:
    """A context for the connecting end; `identity` is shown if the server asks for one."""
    context = _context(identity)
    context.set_verify(SSL.VERIFY_PEER, _judged_afterwards)
    return context


def server_connection(context: SSL.Context) -> SSL.Connection:
    """One connection over memory BIOs, ready to accept."""
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    return connection


def node_connection(context: SSL.Context, sni: str | None) -> SSL.Connection:
    """One connection over memory BIOs, ready to connect; `sni` is an ASCII DNS name."""
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    if sni is not None:
        connection.set_tlsext_host_name(sni.encode("ascii"))
    return connection


def _context(identity: Identity | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # A resumed session shows no certificate and calls no callback: there is none to resume. (In
    # TLS 1.3 OpenSSL sends tickets all the same; pyOpenSSL has no switch for that. They name
    # sessions that no cache holds, and whoever offers one gets a full handshake.)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_cipher_list(CIPHERS_TLS12)
    if identity is not None:
        context.use_certificate(identity.leaf)
        for certificate in identity.chain:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(identity.key)
        context.check_privatekey()
    return context


def _judged_afterwards(*_: Any) -> bool:
    return True
