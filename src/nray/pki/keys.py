"""Loading of our own certificates and keys, with errors that say what to mend.

Files are read by `cryptography` and handed to OpenSSL as objects: left to itself, OpenSSL asks
for a password on the terminal and tells a missing file from a broken one in riddles.
"""

from __future__ import annotations

import datetime
import os
import stat
from dataclasses import dataclass
from typing import Any

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from nray.pki.errors import PkiError
from nray.pki.expiry import certificate_ending
from nray.pki.names import printable, shown_name
from nray.pki.strength import is_edwards_signed, key_weakness, signature_weakness

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

#: Largest file that is read, bytes: the trusted roots of an operating system take a quarter.
FILE_BYTES_MAX = 1 << 20

_NO_PEM_HINT = (
    "a PEM file holds text with -----BEGIN ...----- lines; a DER file is converted by:"
    " openssl {tool} -inform der -in FILE -out FILE.pem"
)


@dataclass(frozen=True)
class Identity:
    """What this end shows to its peer, checked to be fit for it.

    Attributes:
        leaf: our certificate.
        chain: further certificates of its file, sent along (authorities between leaf and root).
        key: the private key of `leaf`.
        warnings: sentences for the log at start-up: nothing that keeps us from working.
    """

    leaf: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey
    warnings: tuple[str, ...] = ()


def load_identity(
    cert_path: str | os.PathLike[str],
    key_path: str | os.PathLike[str],
    *,
    now: datetime.datetime | None = None,
) -> Identity:
    """Our certificate (with what stands after it in its file) and its private key.

    Args:
        now: the time by which the certificate's end is warned of, aware; default: the clock.

    Raises:
        PkiError: naming the file: not there, not PEM, an encrypted key, the key of another
            certificate, or a certificate that no peer of ours would accept.
    """
    cert_file, key_file = os.fspath(cert_path), os.fspath(key_path)
    certificates = _load_certificates(cert_file)
    leaf = certificates[0]
    _demand_fit(cert_file, leaf)
    key, warnings = _load_key(key_file)
    _demand_pair(cert_file, certificates, key_file, key)
    warnings += _expiry_warnings(cert_file, leaf, now or datetime.datetime.now(datetime.UTC))
    return Identity(leaf, tuple(certificates[1:]), key, tuple(warnings))


def load_trust(path: str | os.PathLike[str]) -> list[x509.Certificate]:
    """The certificates of a PEM file that says whom to trust; at least one.

    Raises:
        PkiError: naming the file: not there, not PEM, empty, or with nothing in it that could
            vouch for anybody.
    """
    file = os.fspath(path)
    certificates = _load_certificates(file)
    if all(_is_edwards_authority(certificate) for certificate in certificates):
        raise PkiError(
            f"{file}: the authority {shown_name(certificates[0].subject)} signs with Ed25519,"
            " which nray cannot verify",
            "make an authority with an RSA (2048 bits) or P-256 key",
        )
    return certificates


# ── certificates ────────────────────────────────────────────────────────────────────────────


def _load_certificates(file: str) -> list[x509.Certificate]:
    data, _ = read_file(file)
    if not data.strip():
        raise PkiError(f"{file}: the file is empty", "it should hold a certificate in PEM")
    if b"-----BEGIN CERTIFICATE-----" not in data:
        if b"PRIVATE KEY-----" in data:
            raise PkiError(
                f"{file}: this is a private key, not a certificate",
                "perhaps the files of certificate and key are swapped",
            )
        raise PkiError(f"{file}: there is no PEM certificate", _NO_PEM_HINT.format(tool="x509"))
    try:
        certificates = x509.load_pem_x509_certificates(data)
        for certificate in certificates:
            # Parsed only when asked for; better asked for here than by the first peer.
            certificate.public_key()
            len(certificate.extensions)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
        raise PkiError(
            f"{file}: a certificate cannot be read ({printable(str(error))})",
            "was it copied whole, with its BEGIN and END lines?",
        ) from error
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise PkiError(
            f"{file}: a certificate cannot be read ({printable(str(error))})",
            "make it anew: no peer would accept it",
        ) from error
    return certificates


def _demand_fit(file: str, leaf: x509.Certificate) -> None:
    """Refuses at start-up what every peer would refuse later, with less to say about it."""
    if leaf.version is not x509.Version.v3:
        raise PkiError(
            f"{file}: this is an X.509 v1 certificate, which nray's peers refuse",
            "openssl x509 -req makes version 3 if -extfile gives it extensions (basicConstraints)",
        )
    if is_edwards_signed(leaf):
        raise PkiError(
            f"{file}: this certificate is signed with Ed25519, which nray's peers cannot verify",
            "its authority needs an RSA (2048 bits) or P-256 key; its own key may be Ed25519",
        )
    weakness = key_weakness(leaf)
    if weakness:
        raise PkiError(f"{file}: too weak, its {weakness}", "make a new key and certificate")
    weakness = signature_weakness(leaf)
    if weakness:
        raise PkiError(
            f"{file}: too weak, it is {weakness}", "have it signed anew with SHA-256 or better"
        )


def _is_edwards_authority(certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    if not isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return False
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _expiry_warnings(file: str, leaf: x509.Certificate, now: datetime.datetime) -> list[str]:
    begin = leaf.not_valid_before_utc
    if now < begin:
        return [
            f"{file}: the certificate begins on {begin:%Y-%m-%d %H:%M} UTC, later than this"
            " machine's clock; peers may refuse it"
        ]
    warning = certificate_ending(file, leaf).warning(now)
    return [warning] if warning else []


# ── keys ────────────────────────────────────────────────────────────────────────────────────


def _load_key(file: str) -> tuple[PrivateKey, list[str]]:
    data, mode = read_file(file)
    if b"PRIVATE KEY-----" not in data:
        if b"-----BEGIN CERTIFICATE-----" in data:
            raise PkiError(
                f"{file}: this is a certificate, not a private key",
                "perhaps the files of certificate and key are swapped",
            )
        raise PkiError(f"{file}: there is no PEM private key", _NO_PEM_HINT.format(tool="pkey"))
    try:
        # Other blocks may stand before the key (openssl ecparam writes the parameters there).
        key = serialization.load_pem_private_key(_key_block(data), password=None)
    except TypeError as error:
        raise PkiError(
            f"{file}: the key is encrypted, and nray asks for no passwords",
            f"openssl pkey -in {file} -out PLAIN.pem writes it without one; chmod 600 PLAIN.pem",
        ) from error
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise PkiError(
            f"{file}: the private key cannot be read",
            "was it copied whole, with its BEGIN and END lines?",
        ) from error
    if not isinstance(key, PrivateKey):
        raise PkiError(
            f"{file}: a key of this kind cannot be used with TLS",
            "RSA (2048 bits) and P-256 keys can",
        )
    return key, _mode_warnings(file, mode)


def _key_block(data: bytes) -> bytes:
    end = data.index(b"PRIVATE KEY-----")
    return data[data.rindex(b"-----BEGIN", 0, end) :] if b"-----BEGIN" in data[:end] else data


def _demand_pair(
    cert_file: str, certificates: list[x509.Certificate], key_file: str, key: PrivateKey
) -> None:
    ours = _public_bytes(key.public_key())
    if ours == _public_bytes(certificates[0].public_key()):
        return
    for certificate in certificates[1:]:
        if ours == _public_bytes(certificate.public_key()):
            raise PkiError(
                f"{cert_file}: the certificate of the key {key_file} does not stand first",
                "put it first, followed by the authority that signed it",
            )
    raise PkiError(
        f"{key_file}: this is not the key of the certificate in {cert_file}",
        f"that certificate is of {shown_name(certificates[0].subject)}",
    )


def _public_bytes(key: Any) -> bytes:
    data: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _mode_warnings(file: str, mode: int) -> list[str]:
    if not stat.S_ISREG(mode) or not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return []
    return [
        f"{file}: the private key is open to other users (mode {stat.S_IMODE(mode):04o});"
        f" chmod 600 {file}"
    ]


# ── files ───────────────────────────────────────────────────────────────────────────────────


def read_file(file: str, bytes_max: int = FILE_BYTES_MAX) -> tuple[bytes, int]:
    """Content and mode of a file, both of the same open file.

    Raises:
        PkiError: it is not there, cannot be read, or is larger than `bytes_max`.
    """
    try:
        with open(file, "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(bytes_max + 1)
    except FileNotFoundError as error:
        raise PkiError(f"{file}: there is no such file") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{file}: the file cannot be read ({reason})") from error
    except ValueError as error:  # a NUL in the path
        raise PkiError(f"{printable(file)}: no file can have this name") from error
    if len(data) > bytes_max:
        raise PkiError(
            f"{file}: larger than {bytes_max >> 20} MiB, so neither certificate, key nor list"
        )
    return data, mode
