"""Whose mistake it was: `PeerFault` for the other end's, `LocalFault` for ours.

A `PeerFault` carries the refusal that the peer is to be sent, so whoever catches it need not
make up words of their own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from nray.wire.messages import Refused

#: Longest text of a field, characters: the longest host name has 253 octets (RFC 1035), a CPU's
#: name some 50, and a sentence for a person should fit three lines of a terminal.
TEXT_CHARS_MAX: Final = 256


class Reason(StrEnum):
    """Why a peer is refused: a small set, so that a program can act on it.

    What a person is to read stands in `EXPLANATIONS` and in a refusal's ``detail``.
    """

    # The peer's talk
    PROTOCOL = "protocol"
    VERSION = "version"
    OVERSIZE = "oversize"
    UNEXPECTED = "unexpected"
    MALFORMED = "malformed"
    # The server's choice
    BUSY = "busy"
    DUPLICATE_MACHINE = "duplicate-machine"
    NOT_ALLOWED = "not-allowed"
    SHUTTING_DOWN = "shutting-down"
    # The peer's certificate
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    UNKNOWN_ISSUER = "unknown-issuer"
    WRONG_USE = "wrong-use"
    WEAK = "weak"
    MALFORMED_CERTIFICATE = "malformed-certificate"
    NONE_SHOWN = "none-shown"
    REVOKED = "revoked"


#: One sentence a reason, for people. docs/protocol.md lists the same (a test compares them).
EXPLANATIONS: Final[dict[Reason, str]] = {
    Reason.PROTOCOL: "a message broke a rule of the protocol",
    Reason.VERSION: "the other end speaks another version of the protocol",
    Reason.OVERSIZE: "a frame was announced that is larger than allowed at that point",
    Reason.UNEXPECTED: "a message came at a time when it may not be sent",
    Reason.MALFORMED: "a frame holds no message that this end knows",
    Reason.BUSY: "the server has as many nodes as it can serve",
    Reason.DUPLICATE_MACHINE: "another node of the same machine is registered",
    Reason.NOT_ALLOWED: "the server takes no node of that name (TLS.allowedNodes)",
    Reason.SHUTTING_DOWN: "the server is ending",
    Reason.EXPIRED: "the certificate is no longer valid",
    Reason.NOT_YET_VALID: "the certificate is not valid yet, or a clock is wrong",
    Reason.UNKNOWN_ISSUER: "the certificate comes from an authority that is not trusted here",
    Reason.WRONG_USE: "the certificate is not meant for this use",
    Reason.WEAK: "the certificate's key or signature is too weak",
    Reason.MALFORMED_CERTIFICATE: "the certificate breaks the rules for certificates",
    Reason.NONE_SHOWN: "no certificate was shown, and one is demanded",
    Reason.REVOKED: "the certificate was revoked",
}

#: The reasons that may be gone later without anybody changing anything at the node.
RETRY_HELPS: Final = frozenset({Reason.BUSY, Reason.DUPLICATE_MACHINE, Reason.NOT_YET_VALID})


def clip(text: str, chars: int = TEXT_CHARS_MAX) -> str:
    """Make any text fit to be sent: at most ``chars`` characters, no lone surrogates."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= chars else text[: chars - 1] + "…"


def refusal(reason: Reason, detail: str = "", retry: bool | None = None) -> Refused:
    """The last message to a peer; the detail is clipped, ``retry`` follows from the reason.

    Args:
        retry: set it where the caller knows better than `RETRY_HELPS`.
    """
    helps = reason in RETRY_HELPS if retry is None else retry
    return Refused(reason.value, clip(detail), helps)


class PeerFault(Exception):
    """The other end broke the protocol: this connection cannot go on, others are not touched.

    Attributes:
        reason: one of a small set, for programs.
        detail: one sentence on what was seen and what would be right. It may quote the peer.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    @property
    def refusal(self) -> Refused:
        """What the peer is sent, if there is still a way to send it."""
        return refusal(self.reason, self.detail)


class LocalFault(Exception):
    """Our own code tried to send or feed what it may not: a bug here, nothing was sent."""
