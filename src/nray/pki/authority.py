"""A small authority: one root that issues leaves for servers and nodes, all P-256.

Every certificate is as RFC 5280, section 4.2, asks: key identifiers, basicConstraints, keyUsage,
extendedKeyUsage of one kind only (the key of a node cannot pose as a server whatever its name),
and subjects of their own. The root may issue leaves but no further authorities (pathlen 0).

Who holds the root's key file can make a server or a node that all others believe; it is needed
on the machine that issues, and nowhere else. Nothing can be revoked.
"""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from nray.pki.errors import PkiError
from nray.pki.names import peer_name, printable

#: How long before its making a certificate begins: clocks of other machines may be behind.
CLOCK_SKEW = datetime.timedelta(minutes=5)

#: Longest common name, characters (RFC 5280, appendix A.1, ub-common-name).
COMMON_NAME_CHARACTERS_MAX = 64

#: Longest validity, days: a century. More is a slip of the keyboard.
DAYS_MAX = 36_525


class Pair(NamedTuple):
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create_authority(common_name: str, days: int) -> Pair:
    """A new root, good for `days` from now.

    Raises:
        PkiError: `common_name` is empty or longer than 64 characters; `days` is out of range.
    """
    key = ec.generate_private_key(ec.SECP256R1())
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


def issue_server(authority: Pair, names: Sequence[str], days: int) -> Pair:
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
    return _issue(authority, common_name, alternatives, ExtendedKeyUsageOID.SERVER_AUTH, days)


def issue_node(authority: Pair, name: str, days: int) -> Pair:
    """A node's certificate. `name` becomes its common name, and its alternative name where it
    could be the name of a host. It ends no later than its authority.

    Raises:
        PkiError: `name` is empty or longer than 64 characters; `days` is out of range.
    """
    try:
        alternatives = [peer_name(name)]
    except PkiError:
        alternatives = []  # a name for people: RFC 5280 is content with the subject
    return _issue(authority, name, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def write_pair(
    directory: str | os.PathLike[str],
    stem: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
) -> tuple[Path, Path]:
    """Writes ``STEM.pem`` and ``STEM-key.pem`` (mode 0600) into an existing directory, each
    whole or not at all, and overwrites nothing.

    Returns:
        The paths of certificate and key.

    Raises:
        PkiError: a file of that name exists, or cannot be written.
    """
    certificate_path = Path(directory, f"{stem}.pem")
    key_path = Path(directory, f"{stem}-key.pem")
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if certificate_path.exists():
        raise _exists(certificate_path)
    _write_new(key_path, key_pem, 0o600)
    _write_new(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate_path, key_path


# ── making ──────────────────────────────────────────────────────────────────────────────────


def _issue(
    authority: Pair,
    common_name: str,
    alternatives: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    days: int,
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    begin, end = _validity(days)
    builder = (
        _builder(
            _subject(common_name),
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
    key: ec.EllipticCurvePrivateKey,
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


def _own_identifier(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier(
            x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest, None, None
        )
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)


def _subject(common_name: str) -> x509.Name:
    if not common_name or len(common_name) > COMMON_NAME_CHARACTERS_MAX:
        raise PkiError(
            f'"{printable(common_name)}" cannot be the common name of a certificate',
            f"it should have 1 to {COMMON_NAME_CHARACTERS_MAX} characters",
        )
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "nray"),
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


def _validity(days: int) -> tuple[datetime.datetime, datetime.datetime]:
    if not 1 <= days <= DAYS_MAX:
        raise PkiError(
            f"a certificate cannot be valid for {days} days", f"1 to {DAYS_MAX} are possible"
        )
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return now - CLOCK_SKEW, now + datetime.timedelta(days=days)


# ── writing ─────────────────────────────────────────────────────────────────────────────────


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Under a name of its own first, then linked into place: `link` fails where the name is
    taken, and never shows half a file."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        finally:
            os.unlink(draft)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{path}: the file cannot be written ({reason})") from error


def _exists(path: Path) -> PkiError:
    return PkiError(f"{path}: the file exists and is not overwritten", "move it away first")
