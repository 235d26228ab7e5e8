"""OpenSSL's error reasons in words that say what to look at.

The reasons are those of OpenSSL 3.0 to 4.0 as pyOpenSSL passes them on; a reason that is not in
the table is shown as it is.
"""

from __future__ import annotations

from OpenSSL import SSL

from nray.pki.names import printable

#: The server's own reason when it demanded a certificate and none came.
NO_CLIENT_CERTIFICATE = "peer did not return a certificate"

_NOT_TLS = "the other end does not speak TLS (is it switched on there?)"
_TAMPERED = "a record was damaged or tampered with on the way"
_NO_VERSION = "the two ends have no TLS version in common; TLS 1.2 is the least"

_WORDS = {
    NO_CLIENT_CERTIFICATE: "the node showed no certificate",
    "http request": "this is plain HTTP, not TLS",
    "https proxy request": "this is a request to an HTTP proxy, not TLS",
    "wrong version number": _NOT_TLS,
    "packet length too long": _NOT_TLS,
    "record layer failure": _NOT_TLS,
    "unknown protocol": _NOT_TLS,
    "bad record type": _NOT_TLS,
    "unexpected message": "the other end sent a TLS message out of turn",
    "unsupported protocol": _NO_VERSION,
    "version too low": _NO_VERSION,
    "no shared cipher": "the two ends have no cipher in common",
    "decryption failed or bad record mac": _TAMPERED,
    "bad record mac": _TAMPERED,
    "digest check failed": _TAMPERED,
    "bad signature": "the other end does not hold the key of its certificate, or was tampered with",
    "no renegotiation": "the other end wanted to renegotiate, which is not allowed",
}

#: By what follows " alert ": the words before it change with version and release
#: ("tlsv13 alert certificate required", "tls alert handshake failure").
_ALERT_WORDS = {
    "certificate required": (
        "the server asks for a certificate of this node (--tls-client-cert and --tls-client-key)"
    ),
    "protocol version": _NO_VERSION,
    "handshake failure": (
        "the other end broke off the handshake; a server with TLS.forceClientAuth does so where"
        " a node shows no certificate (--tls-client-cert and --tls-client-key)"
    ),
    "bad record mac": "the other end received a damaged record",
    "unknown ca": "the other end does not know the authority of this certificate",
    "bad certificate": "the other end does not accept this certificate",
    "certificate expired": "the other end says that this certificate has expired",
    "certificate unknown": "the other end does not accept this certificate",
    "certificate revoked": "the other end says that this certificate was revoked",
    "unsupported certificate": "the other end does not accept certificates of this kind",
    "access denied": "the other end knows this certificate and does not let it in",
    "decrypt error": "the other end could not check a signature of ours",
    "internal error": "the other end failed (look at its log)",
    "no renegotiation": "the other end does not renegotiate",
}


def reason_of(error: SSL.Error) -> str:
    """OpenSSL's own reason, lower case; empty if there is none. Of several in its queue the
    first that has words here, for the later ones only say which layer passed it on."""
    queue = error.args[0] if error.args else ()
    entries = queue if isinstance(queue, list | tuple) else ()
    reasons = [str(entry[-1]).lower() for entry in entries if isinstance(entry, tuple) and entry]
    for reason in reasons:
        if reason in _WORDS or " alert " in reason:
            return reason
    return reasons[0] if reasons else ""


def words_for(error: SSL.Error) -> str:
    """One printable clause for a person: what happened, and what to look at."""
    reason = reason_of(error)
    if reason in _WORDS:
        return _WORDS[reason]
    _, alert, what = reason.partition(" alert ")
    if alert:
        return _ALERT_WORDS.get(what, f"the other end broke off (alert: {printable(what)})")
    return f"TLS failed ({printable(reason or str(error) or type(error).__name__)})"
