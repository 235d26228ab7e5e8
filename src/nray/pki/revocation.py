"""Lists of revoked certificates (RFC 5280, section 5): who was turned away before the time.

A list counts only if a trusted authority signed it, by its key and not by its name alone, for
two authorities may bear one name. One whose next edition is overdue still counts, and is warned
of: to drop it would let in again whom it names, to refuse everybody would let anybody stop the scan
who can keep an edition from coming. A certificate whose issuer has no list here passes.

Every certificate of a verified chain is looked up, the trusted one included, where the list of
its issuer is here. Being listed is enough, whatever date or reason stands with it. Lists of one
issuer add up. Not taken are lists that cannot be understood alone: deltas, indirect ones (which
speak for other issuers), and those with critical extensions that are unknown.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import hashes

from nray.pki.errors import PeerRejected, PkiError
from nray.pki.expiry import Ending
from nray.pki.keys import read_file
from nray.pki.names import printable, shown_name
from nray.pki.strength import WEAK_HASHES

#: Largest file of lists, bytes: half a million entries.
LIST_BYTES_MAX = 16 << 20
#: Most lists and certificates in a file; each costs signature checks.
BLOCKS_MAX = 256

_BLOCK = re.compile(rb"-----BEGIN (X509 CRL|CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)
_BEGIN = re.compile(rb"-----BEGIN ([^-]*)-----")

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True)
class RevocationList:
    """One list whose signature was checked.

    Attributes:
        issuer: the authority whose key signed it.
        serials: of the revoked certificates.
        source: what was read, for dates and reasons.
    """

    issuer: x509.Certificate
    serials: frozenset[int]
    source: x509.CertificateRevocationList


class Revocations:
    """All lists of a file.

    Attributes:
        lists: at least one.
    """

    def __init__(self, file: str, lists: Sequence[RevocationList]) -> None:
        self.file = file
        self.lists = tuple(lists)

    def demand(self, verified_chain: Sequence[x509.Certificate]) -> None:
        """Returns if none of these certificates is revoked.

        Args:
            verified_chain: from the leaf up.

        Raises:
            PeerRejected: one is.
        """
        for depth, certificate in enumerate(verified_chain):
            for each in self.lists:
                # Cheapest first: a signature is only checked for a serial that is listed.
                if (
                    certificate.serial_number in each.serials
                    and certificate.issuer == each.issuer.subject
                    and _signed_by(certificate, each.issuer)
                ):
                    whose = "the certificate" if depth == 0 else "the certificate of its issuer"
                    raise PeerRejected(
                        "revoked",
                        f"{whose} {shown_name(certificate.subject)} (serial"
                        f" {certificate.serial_number:x}) was revoked"
                        + _when_and_why(each, certificate),
                    )

    def endings(self) -> list[Ending]:
        """When the next edition of each issuer's list is due; of several, of the newest."""
        newest: dict[bytes, RevocationList] = {}
        for each in self.lists:
            key = each.issuer.fingerprint(hashes.SHA256())
            known = newest.get(key)
            if known is None or known.source.last_update_utc < each.source.last_update_utc:
                newest[key] = each
        return [
            Ending(
                self.file,
                f"the revocation list of {shown_name(each.issuer.subject)}",
                each.source.next_update_utc,
                "is to be renewed",
                "was to be renewed on {:%Y-%m-%d}: whoever was revoked since is let in",
            )
            for each in newest.values()
            if each.source.next_update_utc is not None
        ]

    def warnings(self, trust: Sequence[x509.Certificate], now: datetime.datetime) -> list[str]:
        """What is odd and no reason to stop, a sentence each; ends apart (`endings`)."""
        found = [
            f"{self.file}: the revocation list of {shown_name(each.issuer.subject)} begins on"
            f" {each.source.last_update_utc:%Y-%m-%d %H:%M} UTC, later than this machine's clock"
            for each in self.lists
            if each.source.last_update_utc > now
        ]
        found += [
            f"{self.file}: no list of {shown_name(authority.subject)}, whose certificates are"
            " therefore not looked up"
            for authority in trust
            if _is_authority(authority)
            and not any(_same_key(authority, each.issuer) for each in self.lists)
        ]
        return found


def load_revocations(
    path: str | os.PathLike[str], trust: Sequence[x509.Certificate]
) -> Revocations:
    """The lists of a file: PEM, any number, or DER, one.

    Certificates of subordinate authorities may stand between PEM lists, so that their own lists
    can be checked. They are believed if one of `trust`, or one of themselves that is, issued
    them, and for nothing else than that.

    Raises:
        PkiError: naming the file: not there, no list, half of one, or one that no trusted
            authority signed, or that cannot be taken (see above).
    """
    file = os.fspath(path)
    data, _ = read_file(file, LIST_BYTES_MAX)
    lists, helpers = _parse(file, data)
    authorities = _authorities(trust, helpers)
    return Revocations(file, [_checked(file, each, authorities) for each in lists])


# ── reading ─────────────────────────────────────────────────────────────────────────────────


def _parse(
    file: str, data: bytes
) -> tuple[list[x509.CertificateRevocationList], list[x509.Certificate]]:
    if not data.strip():
        raise PkiError(
            f"{file}: the file is empty", "it should hold a list of revoked certificates"
        )
    try:
        if b"-----BEGIN " not in data:
            return [x509.load_der_x509_crl(data)], []
        lists, helpers = [], []
        for kind, block in _blocks(file, data):
            if kind == b"CERTIFICATE":
                helpers.append(x509.load_pem_x509_certificate(block))
            else:
                lists.append(x509.load_pem_x509_crl(block))
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
        raise PkiError(
            f"{file}: there is no list of revoked certificates that can be read"
            f" ({printable(str(error))})",
            "it should be a CRL, PEM or DER; was it copied whole?",
        ) from error
    if not lists:
        raise PkiError(
            f"{file}: there is no list of revoked certificates in it",
            "a PEM list stands between -----BEGIN X509 CRL----- and -----END X509 CRL-----",
        )
    return lists, helpers


def _blocks(file: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and text of each block of PEM; half of one is an error, and not one less."""
    begun = _BEGIN.findall(data)
    whole = list(_BLOCK.finditer(data))
    if len(begun) > BLOCKS_MAX:
        raise PkiError(f"{file}: more than {BLOCKS_MAX} lists and certificates")
    if len(begun) != len(whole):
        odd = sorted({kind for kind in begun if kind not in (b"X509 CRL", b"CERTIFICATE")})
        if odd:
            shown = printable(odd[0].decode("ascii", "replace"))
            raise PkiError(
                f"{file}: there is something else than lists in it ({shown})",
                "only lists of revoked certificates, and their issuers' certificates, belong here",
            )
        raise PkiError(
            f"{file}: a list has no end", "was it copied whole, with its BEGIN and END lines?"
        )
    for match in whole:
        yield match[1], match[0]


# ── believing ───────────────────────────────────────────────────────────────────────────────


def _authorities(
    trust: Sequence[x509.Certificate], helpers: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Whose signature on a list counts."""
    believed = [certificate for certificate in trust if _is_authority(certificate)]
    waiting = [certificate for certificate in helpers if _is_authority(certificate)]
    while True:
        found = [
            certificate
            for certificate in waiting
            if any(
                issuer.subject == certificate.issuer and _signed_by(certificate, issuer)
                for issuer in believed
            )
        ]
        if not found:
            return believed
        believed += found
        waiting = [certificate for certificate in waiting if certificate not in found]


def _checked(
    file: str, source: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]
) -> RevocationList:
    shown = f"the revocation list of {shown_name(source.issuer)}"
    named = [authority for authority in authorities if authority.subject == source.issuer]
    if not named:
        raise PkiError(
            f"{file}: {shown} is of an authority that is not trusted here",
            "give its certificate with the trusted ones; that of a subordinate authority may"
            " stand in this file",
        )
    try:
        weak = isinstance(source.signature_hash_algorithm, WEAK_HASHES)
    except exceptions.UnsupportedAlgorithm:
        weak = False  # nobody's key will fit it
    if weak:
        raise PkiError(f"{file}: {shown} is signed with a weak hash", "SHA-256 is good")
    signers = [authority for authority in named if _signed_list(source, authority)]
    if not signers:
        raise PkiError(
            f"{file}: {shown} was not signed by the trusted authority of that name",
            "another authority may bear the same name, or the list was changed",
        )
    if not any(_may_sign_lists(authority) for authority in signers):
        raise PkiError(
            f"{file}: {shown} is signed by an authority that may not sign lists (keyUsage)",
            "its certificate needs cRLSign",
        )
    try:
        _demand_understood(file, shown, source)
        serials = frozenset(entry.serial_number for entry in source)
    except (
        ValueError,
        TypeError,
        exceptions.UnsupportedAlgorithm,
        x509.DuplicateExtension,
    ) as error:
        raise PkiError(f"{file}: {shown} cannot be read ({printable(str(error))})") from error
    return RevocationList(signers[0], serials, source)


def _demand_understood(file: str, shown: str, source: x509.CertificateRevocationList) -> None:
    for extension in source.extensions:
        value = extension.value
        if isinstance(value, x509.DeltaCRLIndicator):
            raise PkiError(f"{file}: {shown} holds changes only (a delta)", "give the whole list")
        if isinstance(value, x509.IssuingDistributionPoint) and value.indirect_crl:
            raise PkiError(
                f"{file}: {shown} speaks for other issuers too (indirect)", "give a list for each"
            )
        if extension.critical and isinstance(value, x509.UnrecognizedExtension):
            oid = extension.oid.dotted_string
            raise PkiError(f"{file}: {shown} has a critical extension that is unknown ({oid})")


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, exceptions.InvalidSignature, exceptions.UnsupportedAlgorithm):
        return False
    return True


def _signed_list(source: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return source.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm):
        return False


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _may_sign_lists(certificate: x509.Certificate) -> bool:
    usage = _extension(certificate, x509.KeyUsage)
    return usage is None or usage.crl_sign


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension):
        return None


def _same_key(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.subject == other.subject and one.public_key() == other.public_key()


def _when_and_why(of: RevocationList, certificate: x509.Certificate) -> str:
    """`` on 2026-05-01 (keyCompromise)``, as far as the list says it readably."""
    try:
        entry = of.source.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is None:
            return ""
        words = f" on {entry.revocation_date_utc:%Y-%m-%d}"
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return words
    except Exception:
        return ""
    return f"{words} ({printable(reason.value)})"
