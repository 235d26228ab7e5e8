"""The one judge of peers: `cryptography.x509.verification`, with the policy that nray needs.

A peer is verified or `PeerRejected` is raised; nothing here answers true or false. OpenSSL only
proves, in the handshake, that the peer holds the key of the leaf that it shows.

Beside the rules of the web's PKI (RFC 5280, CA/Browser Forum), which the library applies, three
are relaxed, because certificates made as the manual says, or by ``openssl req -x509``, need it:
a leaf may lack the authority key identifier, a node's leaf may lack alternative names, an
authority may lack keyUsage. Two are added, which the library leaves to its caller: the strength
of the leaf's own key, and digitalSignature without keyCertSign on a leaf that has keyUsage.

The library knows no lists of revoked certificates: the chain that it has found is looked up in
them afterwards (`nray.pki.revocation`).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
)

from nray.pki.cause import find_cause
from nray.pki.errors import PeerRejected
from nray.pki.names import identity_of, peer_name, printable
from nray.pki.revocation import Revocations
from nray.pki.strength import key_weakness

__all__ = [
    "CHAIN_DEPTH_MAX",
    "PeerRejected",
    "VerifiedPeer",
    "peer_name",
    "verify_node",
    "verify_server",
]

#: Most authorities between a leaf and the trusted one. Real chains have one or two; the bound
#: keeps a chain made to cost time short.
CHAIN_DEPTH_MAX = 4


@dataclass(frozen=True)
class VerifiedPeer:
    """Who a verified peer is.

    Attributes:
        identity: what to call it (see `nray.pki.names.identity_of`); printable.
        subject: the subject of its certificate (RFC 4514), printable.
        serial: the serial number of its certificate.
        not_after: end of its certificate's validity, UTC.
        chain: by which it was verified, from its certificate to the trusted one.
        at: the time that it was judged at.
    """

    identity: str
    subject: str
    serial: int
    not_after: datetime.datetime
    chain: tuple[x509.Certificate, ...] = ()
    at: datetime.datetime | None = None


def verify_server(
    unverified_leaf: x509.Certificate,
    unverified_others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
    name: x509.DNSName | x509.IPAddress,
    now: datetime.datetime,
    revocations: Revocations | None = None,
) -> VerifiedPeer:
    """The server that showed this chain, if it may be believed to be `name`.

    Args:
        unverified_leaf, unverified_others: what the peer showed, in the order it did.
        trust: authorities (root or subordinate) or pinned leaves.
        name: see `peer_name`.
        now: the time to judge at, aware.
        revocations: lists of certificates that no longer count; None: there are none.

    Raises:
        PeerRejected: in every other case, whatever the cause.
    """
    return _judge(unverified_leaf, unverified_others, trust, name, now, revocations)


def verify_node(
    unverified_leaf: x509.Certificate,
    unverified_others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
    now: datetime.datetime,
    revocations: Revocations | None = None,
) -> VerifiedPeer:
    """The node that showed this chain, if one of `trust` vouches for it. No name is demanded;
    the arguments and errors are those of `verify_server`."""
    return _judge(unverified_leaf, unverified_others, trust, None, now, revocations)


def _judge(
    unverified_leaf: x509.Certificate,
    unverified_others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
    name: x509.DNSName | x509.IPAddress | None,
    now: datetime.datetime,
    revocations: Revocations | None,
) -> VerifiedPeer:
    # A leaf among the others counts as a candidate for its own issuer where all subjects are
    # alike, and only muddles the cause.
    others = [other for other in unverified_others if other != unverified_leaf]
    try:
        chain = _verify(unverified_leaf, others, trust, name, now)
        if revocations is not None:
            revocations.demand(chain)
        return _verified(unverified_leaf, chain, now)
    except PeerRejected:  # revoked: good apart from that
        raise
    except BaseException as refusal:
        # Whatever is raised means refused: verification errors, an empty trust list
        # (ValueError), extensions that do not parse, a panic of the Rust library (a
        # BaseException). Only what is not of the peer's making goes on as it is.
        if not isinstance(refusal, Exception) and type(refusal).__name__ != "PanicException":
            raise
        reason, detail = find_cause(unverified_leaf, others, trust, name, now, str(refusal))
        raise PeerRejected(reason, detail) from refusal


def _verify(
    leaf: x509.Certificate,
    others: list[x509.Certificate],
    trust: Sequence[x509.Certificate],
    name: x509.DNSName | x509.IPAddress | None,
    now: datetime.datetime,
) -> list[x509.Certificate]:
    """The chain if all holds, from the leaf to the trusted one; else raises anything."""
    if now.tzinfo is None:
        raise ValueError("the time to judge at has no time zone")
    weakness = key_weakness(leaf)
    if weakness:
        raise ValueError(f"its {weakness}")
    builder = (
        PolicyBuilder()
        .store(Store(list(trust)))
        .time(now.astimezone(datetime.UTC))
        .max_chain_depth(CHAIN_DEPTH_MAX)
    )
    if name is None:
        builder = builder.extension_policies(ca_policy=_AUTHORITY, ee_policy=_NODE)
        return builder.build_client_verifier().verify(leaf, others).chain
    builder = builder.extension_policies(ca_policy=_AUTHORITY, ee_policy=_SERVER)
    return builder.build_server_verifier(name).verify(leaf, others)


def _verified(
    leaf: x509.Certificate, chain: Sequence[x509.Certificate], now: datetime.datetime
) -> VerifiedPeer:
    return VerifiedPeer(
        identity=identity_of(leaf),
        subject=printable(leaf.subject.rfc4514_string()),
        serial=leaf.serial_number,
        not_after=leaf.not_valid_after_utc,
        chain=tuple(chain),
        at=now,
    )


# ── policies ────────────────────────────────────────────────────────────────────────────────


def _leaf_usage(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is None:
        return
    if not usage.digital_signature:
        raise ValueError("keyUsage of the leaf lacks digitalSignature")
    if usage.key_cert_sign:
        raise ValueError("keyUsage of the leaf has keyCertSign")


def _authority_usage(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("keyUsage of an authority lacks keyCertSign")


_SERVER = (
    ExtensionPolicy.webpki_defaults_ee()
    .may_be_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _leaf_usage)
)
_NODE = _SERVER.may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
_AUTHORITY = ExtensionPolicy.webpki_defaults_ca().may_be_present(
    x509.KeyUsage, Criticality.AGNOSTIC, _authority_usage
)
