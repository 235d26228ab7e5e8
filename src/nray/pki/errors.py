"""What can be wrong with our own files (`PkiError`) or with a peer (`PeerRejected`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nray import UserError

if TYPE_CHECKING:
    from nray.pki.stream import TlsStream

#: Why a peer is turned away. The set is small on purpose: it is what an unverified peer is told.
#: ``malformed`` means broken, or of a form that the verification does not take (X.509 v1, an
#: Ed25519 issuer, an unknown critical extension). ``revoked`` and ``not-allowed`` are only said of
#: certificates that are good apart from that.
Reason = Literal[
    "expired",
    "not-yet-valid",
    "unknown-issuer",
    "wrong-use",
    "wrong-name",
    "weak",
    "malformed",
    "none-shown",
    "revoked",
    "not-allowed",
]


class PkiError(UserError):
    """A certificate, key, trust file or name of our own side that its user can mend."""


class PeerRejected(Exception):
    """A peer was not verified; no application byte was taken from it or sent to it.

    Attributes:
        reason: one of `Reason`; may be told to the peer.
        detail: one sentence for our own log. It quotes the **unverified** certificate, made
            printable and cut to a bounded length.
        stream: the open stream to the unverified peer where the handshake had ended, so that it
            can be told (`nray.pki.endpoint.close_gently`); whoever catches the exception then
            closes it. None if the connection is closed already.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
        self.stream: TlsStream | None = None
