"""A small authority: one root that issues leaves for servers and nodes, and revokes them.

Every certificate is as RFC 5280, section 4.2, asks: key identifiers, basicConstraints, keyUsage,
extendedKeyUsage of one kind only (the key of a node cannot pose as a server whatever its name),
and subjects of their own. The root may issue leaves but no further authorities (pathlen 0). Keys
are P-256, or RSA where that is asked for.

Who holds the root's key file can make a server or a node that all others believe; it is needed
on the machine that issues, and nowhere else. What lies on the disk is for `nray.pki.office`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from nray.pki.errors import PkiError
from nray.pki.files import write_pair
from nray.pki.names import peer_name, printable

__all__ = [
    "CLOCK_SKEW",
    "COMMON_NAME_CHARACTERS_MAX",
    "DAYS_MAX",
    "RSA_BITS",
    "Pair",
    "create_authority",
    "issue_node",
    "issue_server",
    "sign_revocations",
    "write_pair",
]

#: How long before its making a certificate begins: clocks of other machines may be behind.
CLOCK_SKEW = datetime.timedelta(minutes=5)

#: Longest common name, characters (RFC 5280, appendix A.1, ub-common-name).
COMMON_NAME_CHARACTERS_MAX = 64

#: Longest validity, days: a century. More is a slip of the keyboard.
DAYS_MAX = 36_525

#: Sizes of RSA keys that are made, bits. More than the last costs seconds and gains nothing here.
RSA_BITS = (2048, 3072, 4096)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Pair(NamedTuple):
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: Key


def create_authority(common_name: str, days: int, rsa_bits: int = 0) -> Pair:
    """A new root, good for `days` from now.

    Args:
        rsa_bits: one of `RSA_BITS` for an RSA key; 0 for P-256.

    Raises:
        PkiError: `common_name` is empty or longer than 64 characters; `days` is out of range;
            an RSA key of another size.
    """
    key = _new_key(rsa_bits)
    name = _subject(common_name)
    begin, end = _validity(days)
    certificate = (
        _builder(name, name, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(_own_identifier(key), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def issue_server(authority: Pair, names: Sequence[str], days: int, rsa_bits: int = 0) -> Pair:
    """A server's certificate for `names`: DNS names (``*.example.org`` too) and addresses. It
    ends no later than its authority.

    Raises:
        PkiError: no names, one that a certificate cannot hold, `days` out of range.
    """
    if not names:
        raise PkiError("a server's certificate needs at least one name or address")
    alternatives = [_server_name(name) for name in names]
    common_name = str(alternatives[0].value)
    if len(common_name) > COMMON_NAME_CHARACTERS_MAX:
        common_name = "nray server"  # the name that counts is among the alternatives
    key = _new_key(rsa_bits)
    oid = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(authority, _subject(common_name, "server"), alternatives, oid, days, key)


def issue_node(authority: Pair, name: str, days: int, rsa_bits: int = 0) -> Pair:
    """A node's certificate. `name` becomes its common name, and its alternative name where it
    could be the name of a host. It ends no later than its authority.

    Raises:
        PkiError: `name` is empty or longer than 64 characters; `days` is out of range.
    """
    try:
        alternatives = [peer_name(name)]
    except PkiError:
        alternatives = []  # a name for people: RFC 5280 is content with the subject
    key = _new_key(rsa_bits)
    oid = ExtendedKeyUsageOID.CLIENT_AUTH
    return _issue(authority, _subject(name, "node"), alternatives, oid, days, key)


def sign_revocations(
    authority: Pair,
    revoked: Iterable[tuple[int, datetime.datetime]],
    number: int,
    days: int,
) -> x509.CertificateRevocationList:
    """A list of revoked certificates (RFC 5280, section 5), the whole of them.

    Args:
        revoked: serial number, and when it was revoked (UTC).
        number: of this list; each must have a larger one than the one before.
        days: how long it is good; then a newer one should have come.

    Raises:
        PkiError: `days` is out of range.
    """
    begin, end = _validity(days, "a list of revoked certificates")
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(begin)
        .next_update(end)
        .add_extension(_issuer_identifier(authority.certificate), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, when in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        )
    return builder.sign(authority.key, hashes.SHA256())


# ── making ──────────────────────────────────────────────────────────────────────────────────


def _issue(
    authority: Pair,
    subject: x509.Name,
    alternatives: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    days: int,
    key: Key,
) -> Pair:
    begin, end = _validity(days)
    builder = (
        _builder(
            subject,
            authority.certificate.subject,
            key,
            begin,
            min(end, authority.certificate.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(_own_identifier(key), critical=False)
        .add_extension(_issuer_identifier(authority.certificate), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _new_key(rsa_bits: int) -> Key:
    if not rsa_bits:
        return ec.generate_private_key(ec.SECP256R1())
    if rsa_bits not in RSA_BITS:
        raise PkiError(
            f"no RSA keys of {rsa_bits} bits are made",
            "one of " + ", ".join(str(bits) for bits in RSA_BITS),
        )
    return rsa.generate_private_key(65537, rsa_bits)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _own_identifier(key: Key) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier(
            x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest, None, None
        )
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)


def _subject(common_name: str, unit: str = "") -> x509.Name:
    """`unit` keeps a node, a server and an authority of one name apart."""
    if not common_name or len(common_name) > COMMON_NAME_CHARACTERS_MAX:
        raise PkiError(
            f'"{printable(common_name)}" cannot be the common name of a certificate',
            f"it should have 1 to {COMMON_NAME_CHARACTERS_MAX} characters",
        )
    units = [x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "nray"),
            *units,
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )


def _server_name(text: str) -> x509.GeneralName:
    if text.startswith("*."):
        # A wildcard stands for one label, and not for all names of a top-level domain.
        name = peer_name(text[2:])
        if isinstance(name, x509.DNSName) and "." in name.value:
            return x509.DNSName(f"*.{name.value}")
        raise PkiError(f'"{printable(text)}" is too wide for a wildcard, or no name at all')
    try:
        return peer_name(text)
    except PkiError as error:
        raise PkiError(error.message) from error  # its hint is for those who dial


def _validity(
    days: int, what: str = "a certificate"
) -> tuple[datetime.datetime, datetime.datetime]:
    if not 1 <= days <= DAYS_MAX:
        raise PkiError(f"{what} cannot be valid for {days} days", f"1 to {DAYS_MAX} are possible")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return now - CLOCK_SKEW, now + datetime.timedelta(days=days)
