"""Why a peer was refused, in words of ours. It judges nothing: it is asked after the refusal.

The library that judges reports the fault of the last candidate that it tried, which for
certificates of one and the same subject is seldom the fault that a person should mend. So the
way from the leaf to a trusted certificate is looked for here once more, with the checks in an
order that suits people: readable? strong? issued by whom we trust? in time? for this use? of
this name? Of several ways the one that got furthest is told of.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import TypeVar

from cryptography import exceptions, x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from nray.pki.errors import Reason
from nray.pki.names import alternative_names, printable, shown_alternative_names, shown_name
from nray.pki.strength import RSA_BITS_MIN, key_weakness, signature_weakness

#: Most certificates in a way that is looked for, leaf and trusted one included.
WAY_CERTIFICATES_MAX = 6

#: Most signatures checked to name a cause; a sent chain can be made to offer any number.
SIGNATURE_CHECKS_MAX = 32

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)
_Cause = tuple[Reason, str]
#: How far a way got (larger is further) and what stopped it.
_Finding = tuple[int, _Cause]


def find_cause(
    unverified_leaf: x509.Certificate,
    unverified_others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
    name: x509.DNSName | x509.IPAddress | None,
    now: datetime.datetime,
    judged: str,
) -> tuple[Reason, str]:
    """The reason and one sentence of detail for a refusal that has been spoken already.

    Args:
        name: the name that a server was looked for by; None if the peer is a node.
        judged: what the judge said, told where no better cause is found.

    Never raises on account of the peer's certificates: what cannot be read is ``malformed``.
    """
    try:
        return _find(unverified_leaf, unverified_others, trust, name, now) or (
            "malformed",
            f"the certificate was refused: {printable(judged)}",
        )
    except Exception as error:
        return "malformed", f"the certificate cannot be read: {printable(str(error))}"


def _find(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
    name: x509.DNSName | x509.IPAddress | None,
    now: datetime.datetime,
) -> _Cause | None:
    cause = _unreadable(leaf) or _weak_leaf(leaf)
    if cause:
        return cause
    best: _Finding | None = None
    for way in _ways(leaf, others, trust):
        finding = _first_fault(way, name, now)
        if finding is None:
            return None
        if best is None or finding[0] > best[0]:
            best = finding
    return best[1] if best else _no_way(leaf, others, trust)


# ── the leaf alone ──────────────────────────────────────────────────────────────────────────


def _unreadable(leaf: x509.Certificate) -> _Cause | None:
    if leaf.version is not x509.Version.v3:
        return "malformed", "the certificate is X.509 v1, which cannot say what it is for"
    for extension in leaf.extensions:
        if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
            oid = extension.oid.dotted_string
            return "malformed", f"the certificate has a critical extension that is unknown ({oid})"
    return None


def _weak_leaf(leaf: x509.Certificate) -> _Cause | None:
    weakness = signature_weakness(leaf)
    if weakness:
        return "weak", f"the certificate of {shown_name(leaf.subject)} is {weakness}"
    weakness = key_weakness(leaf)
    if weakness:
        return "weak", f"the certificate of {shown_name(leaf.subject)}: its {weakness}"
    return None


# ── ways to a trusted certificate ───────────────────────────────────────────────────────────


def _ways(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
) -> Iterator[list[x509.Certificate]]:
    """Chains from the leaf to a member of `trust` in which each signed the one before it."""
    if leaf in trust:
        yield [leaf]
    checks_left = SIGNATURE_CHECKS_MAX
    open_ways = [[leaf]]
    while open_ways:
        way = open_ways.pop()
        for trusted, issuer in [*((True, t) for t in trust), *((False, o) for o in others)]:
            if issuer in way or issuer.subject != way[-1].issuer:
                continue
            if checks_left == 0:
                return
            checks_left -= 1
            if not _signed_by(way[-1], issuer):
                continue
            longer = [*way, issuer]
            if trusted:
                yield longer
            elif len(longer) < WAY_CERTIFICATES_MAX:
                open_ways.append(longer)


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except exceptions.UnsupportedAlgorithm:
        # A hash too old to be checked at all; what matters is that it is too old.
        return bool(signature_weakness(certificate))
    except (exceptions.InvalidSignature, ValueError, TypeError):
        return False
    return True


def _no_way(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    trust: Sequence[x509.Certificate],
) -> _Cause:
    issuer = shown_name(leaf.issuer)
    if not trust:
        return "unknown-issuer", "no certificate is trusted at all"
    if _signed_by(leaf, leaf):
        return "unknown-issuer", f"{shown_name(leaf.subject)} signed its certificate itself"
    if any(trusted.subject == leaf.issuer for trusted in trust):
        return (
            "unknown-issuer",
            f"it names {issuer} as its issuer, but the trusted authority of that name did not"
            " sign it",
        )
    if any(other.subject == leaf.issuer for other in others):
        return "unknown-issuer", f"its issuer {issuer} does not lead to a trusted authority"
    return (
        "unknown-issuer",
        f"its issuer {issuer} is not trusted, and no certificate that leads further was sent",
    )


# ── faults of a way, in the order in which they are told ────────────────────────────────────


def _first_fault(
    way: list[x509.Certificate],
    name: x509.DNSName | x509.IPAddress | None,
    now: datetime.datetime,
) -> _Finding | None:
    leaf, issuers = way[0], way[1:]
    faults: list[_Cause | None] = [
        _weak_issuer(way),
        _out_of_time(way, now),
        _wrong_issuer(issuers, name),
        _wrong_use(leaf, name),
        _wrong_name(leaf, name),
        _constrained(issuers),
    ]
    for rank, fault in enumerate(faults):
        if fault:
            return rank, fault
    return None


def _weak_issuer(way: list[x509.Certificate]) -> _Cause | None:
    for certificate in way[1:]:
        shown = shown_name(certificate.subject)
        key = certificate.public_key()
        if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            return "malformed", f"its issuer {shown} signs with Ed25519, which is not supported"
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            return "weak", f"its issuer {shown} has a key of a kind that is not taken"
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_MIN:
            return "weak", f"its issuer {shown} has an RSA key of {key.key_size} bits"
    for certificate in way[1:-1]:
        weakness = signature_weakness(certificate)
        if weakness:
            shown = shown_name(certificate.subject)
            return "weak", f"the certificate of its issuer {shown} is {weakness}"
    return None


def _out_of_time(way: list[x509.Certificate], now: datetime.datetime) -> _Cause | None:
    for index, certificate in enumerate(way):
        whose = "the certificate" if index == 0 else "the certificate of its issuer"
        shown = shown_name(certificate.subject)
        if now > certificate.not_valid_after_utc:
            return "expired", f"{whose} {shown} ended {_utc(certificate.not_valid_after_utc)}"
        if now < certificate.not_valid_before_utc:
            return (
                "not-yet-valid",
                f"{whose} {shown} begins {_utc(certificate.not_valid_before_utc)}; this"
                f" machine's clock says {_utc(now)}",
            )
    return None


def _wrong_issuer(
    issuers: list[x509.Certificate], name: x509.DNSName | x509.IPAddress | None
) -> _Cause | None:
    for below, issuer in enumerate(issuers):
        shown = shown_name(issuer.subject)
        cause = _unreadable(issuer)
        if cause:
            return cause[0], f"of its issuer {shown}: {cause[1]}"
        constraints = _extension(issuer, x509.BasicConstraints)
        if constraints is None or not constraints.ca:
            return "wrong-use", f"its issuer {shown} is no authority and may not issue certificates"
        usage = _extension(issuer, x509.KeyUsage)
        if usage is not None and not usage.key_cert_sign:
            return "wrong-use", f"its issuer {shown} may not sign certificates (keyUsage)"
        if constraints.path_length is not None and below > constraints.path_length:
            return "wrong-use", f"its issuer {shown} allows fewer authorities below itself"
        if not _serves(_extension(issuer, x509.ExtendedKeyUsage), name, for_authority=True):
            return "wrong-use", f"its issuer {shown} is not meant for this use (extendedKeyUsage)"
    return None


def _wrong_use(leaf: x509.Certificate, name: x509.DNSName | x509.IPAddress | None) -> _Cause | None:
    shown = shown_name(leaf.subject)
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        return "wrong-use", f"{shown} is the certificate of an authority, not of a peer"
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and usage.key_cert_sign:
        return "wrong-use", f"the certificate of {shown} may sign certificates (keyUsage)"
    if usage is not None and not usage.digital_signature:
        return "wrong-use", f"the certificate of {shown} may not sign (keyUsage)"
    if not _serves(_extension(leaf, x509.ExtendedKeyUsage), name, for_authority=False):
        wanted = "a client (clientAuth)" if name is None else "a server (serverAuth)"
        return "wrong-use", f"the certificate of {shown} is not made for {wanted}"
    return None


def _serves(
    usage: x509.ExtendedKeyUsage | None,
    name: x509.DNSName | x509.IPAddress | None,
    *,
    for_authority: bool,
) -> bool:
    if usage is None:
        return True
    oids = ExtendedKeyUsageOID
    wanted = oids.CLIENT_AUTH if name is None else oids.SERVER_AUTH
    return wanted in usage or (for_authority and oids.ANY_EXTENDED_KEY_USAGE in usage)


def _wrong_name(
    leaf: x509.Certificate, name: x509.DNSName | x509.IPAddress | None
) -> _Cause | None:
    if name is None or any(_covers(given, name) for given in alternative_names(leaf)):
        return None
    return (
        "wrong-name",
        f"the certificate is for {shown_alternative_names(leaf)}, not for"
        f" {printable(str(name.value))}",
    )


def _covers(given: x509.GeneralName, name: x509.DNSName | x509.IPAddress) -> bool:
    if isinstance(given, x509.IPAddress) or isinstance(name, x509.IPAddress):
        return isinstance(given, x509.IPAddress) and given.value == name.value
    if not isinstance(given, x509.DNSName):
        return False
    pattern, wanted = given.value.lower(), name.value.lower()
    if pattern.startswith("*."):
        return wanted.partition(".")[2] == pattern[2:]
    return pattern == wanted


def _constrained(issuers: list[x509.Certificate]) -> _Cause | None:
    for issuer in issuers:
        if _extension(issuer, x509.NameConstraints) is not None:
            shown = shown_name(issuer.subject)
            return "wrong-name", f"its issuer {shown} may not certify such names (nameConstraints)"
    return None


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _utc(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
