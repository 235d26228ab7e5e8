"""An authority in a directory: its certificate and key, the register of what it issued, and the
list of what it revoked.

- One process at a time changes it: the others wait a moment, then say so.
- First the register, then anything else: a certificate that got out can be revoked, and what was
  revoked stays so; a list that lags behind the register after a crash is signed anew by whatever
  is done next.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nray.pki.authority import Pair, create_authority, sign_revocations
from nray.pki.errors import PkiError
from nray.pki.files import (
    CERTIFICATE_MODE,
    KEY_MODE,
    certificate_pem,
    key_pem,
    remove_drafts,
    sync_directory,
    write,
)
from nray.pki.keys import load_trust
from nray.pki.register import Entry, Register

CERTIFICATE = "ca.pem"
KEY = "ca-key.pem"
REVOKED = "crl.pem"
REGISTER = "issued.jsonl"
LOCK = "lock"

#: How long a list of revoked certificates is good, days, unless told otherwise.
CRL_DAYS = 90

#: How long to wait for another process to be done, seconds: making an RSA key takes one or two.
LOCK_WAIT_S = 10.0
_LOCK_STEP_S = 0.05

#: The environment variable that may hold the passphrase of an authority's key.
PASSPHRASE_VARIABLE = "NRAY_CA_PASSPHRASE"


class Office:
    """An authority that is open to be used, by nobody else meanwhile (see `opened`).

    Attributes:
        directory: where it is.
        pair: its certificate and key.
        register: what it issued.
        warnings: sentences about what is not well with it.
    """

    def __init__(
        self, directory: Path, pair: Pair, register: Register, warnings: list[str]
    ) -> None:
        self.directory = directory
        self.pair = pair
        self.register = register
        self.warnings = warnings

    def enter(self, entry: Entry) -> None:
        """Writes a new certificate down. To be done before it is put anywhere."""
        self.register.entries.append(entry)
        self.register.save()

    def revoke(self, serials: set[str], when: datetime.datetime) -> None:
        """Revokes them, and signs the list of the revoked anew."""
        self.register.revoke(serials, when)
        self.sign_revocations()

    def sign_revocations(self, days: int = CRL_DAYS) -> x509.CertificateRevocationList:
        """A new list in the place of the old one, with the next number. It is written down
        first, so that no number comes twice."""
        shown = revocations(self.directory)
        number = max(self.register.crl_number, _number(shown)) + 1
        self.register.crl_number = number
        signed = sign_revocations(self.pair, self.register.revoked(), number, days)
        self.register.save()
        pem = signed.public_bytes(serialization.Encoding.PEM)
        write(self.directory / REVOKED, pem, CERTIFICATE_MODE, replace=True)
        return signed

    def freshen_revocations(self, now: datetime.datetime) -> bool:
        """Signs the list anew if it lacks something or half of its time is over; whether so."""
        if lacks(revocations(self.directory), self.register, now):
            self.sign_revocations()
            return True
        return False


def found(
    directory: Path, common_name: str, days: int, rsa_bits: int, passphrase: bytes | None
) -> x509.Certificate:
    """A new authority; the directory is there with all that belongs to it, or not at all.

    Raises:
        PkiError: there is something in the directory; a wrong argument; it cannot be written.
    """
    _demand_nothing(directory)
    pair = create_authority(common_name, days, rsa_bits)
    place = directory.parent / f".{directory.name}.{secrets.token_hex(8)}"
    try:
        os.mkdir(place, 0o700)
        try:
            register = Register(place / REGISTER, [], 0)
            register.save()
            write(place / KEY, key_pem(pair.key, passphrase), KEY_MODE)
            write(place / CERTIFICATE, certificate_pem(pair.certificate), CERTIFICATE_MODE)
            Office(place, pair, register, []).sign_revocations()
            os.rename(place, directory)  # fails if anything has come there meanwhile
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        sync_directory(directory.parent)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{directory}: the authority cannot be made ({reason})") from error
    return pair.certificate


@contextlib.contextmanager
def opened(directory: Path, passphrase: bytes | None) -> Iterator[Office]:
    """The authority in a directory, to be used by this process alone.

    Raises:
        PkiError: there is none, it is not whole, its key is encrypted and the passphrase missing
            or wrong, or another process has it.
    """
    certificate = certificate_of(directory)
    with _locked(directory):
        key, warnings = _load_key(directory / KEY, passphrase)
        if _public(key.public_key()) != _public(certificate.public_key()):
            raise PkiError(
                f"{directory / KEY}: this is not the key of {directory / CERTIFICATE}",
                "take both from a backup of the same time",
            )
        register = Register.load(directory / REGISTER)
        remove_drafts(directory / REGISTER, directory / REVOKED)
        yield Office(directory, Pair(certificate, key), register, warnings)


def certificate_of(directory: Path) -> x509.Certificate:
    """The certificate of the authority in a directory. Raises PkiError if there is none."""
    if not os.path.lexists(directory / CERTIFICATE):
        raise PkiError(
            f"{directory}: there is no authority here",
            f"nray certs init --dir {directory} makes one; --dir names another place",
        )
    return load_trust(directory / CERTIFICATE)[0]


def revocations(directory: Path) -> x509.CertificateRevocationList | None:
    """The list of the revoked as it lies there; None if there is none that can be read."""
    try:
        return x509.load_pem_x509_crl((directory / REVOKED).read_bytes())
    except (OSError, ValueError, exceptions.UnsupportedAlgorithm):
        return None


def lacks(
    shown: x509.CertificateRevocationList | None, register: Register, now: datetime.datetime
) -> bool:
    """Whether a list lags behind its register, or half of its time is over."""
    if shown is None or shown.next_update_utc is None:
        return True
    if now - shown.last_update_utc > (shown.next_update_utc - shown.last_update_utc) / 2:
        return True
    return not {serial for serial, _ in register.revoked()} <= {one.serial_number for one in shown}


def _number(shown: x509.CertificateRevocationList | None) -> int:
    if shown is None:
        return 0
    try:
        return shown.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, ValueError):
        return 0


def _demand_nothing(directory: Path) -> None:
    if os.path.lexists(directory / CERTIFICATE) or os.path.lexists(directory / KEY):
        raise PkiError(
            f"{directory}: there is an authority already, and it is not overwritten",
            "use it, or name another place with --dir",
        )
    try:
        if os.listdir(directory):
            raise PkiError(
                f"{directory}: the directory is not empty",
                "name one that is not there yet with --dir",
            )
        if os.path.samefile(directory, os.curdir):
            raise PkiError(
                f"{directory}: an authority needs a directory of its own",
                "name one that is not there yet with --dir",
            )
    except FileNotFoundError:
        if os.path.islink(directory):
            raise PkiError(f"{directory}: this is a link that leads nowhere") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{directory}: the authority cannot be made ({reason})") from error


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    path = directory / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, KEY_MODE)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{path}: the authority cannot be locked ({reason})") from error
    try:
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise PkiError(
                        f"{directory}: another nray certs is at work with this authority",
                        "wait for its end",
                    ) from None
                time.sleep(_LOCK_STEP_S)
            except OSError as error:
                raise PkiError(
                    f"{path}: the file system has no locks ({(error.strerror or '').lower()})",
                    "keep the authority on a local disk",
                ) from error
        yield
    finally:
        os.close(descriptor)


def _load_key(
    path: Path, passphrase: bytes | None
) -> tuple[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, list[str]]:
    try:
        mode = os.stat(path).st_mode
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{path}: the authority's key cannot be read ({reason})") from error
    encrypted = b"ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise PkiError(
            f"{path}: the authority's key is encrypted",
            f"give its passphrase in a file, --passphrase-file, or in {PASSPHRASE_VARIABLE}",
        )
    try:
        key = serialization.load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
        if encrypted:
            raise PkiError(f"{path}: this is not the passphrase of the authority's key") from error
        raise PkiError(
            f"{path}: the authority's key cannot be read", "take it from a backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise PkiError(
            f"{path}: an authority's key of this kind cannot be used", "RSA and P-256 keys can"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return key, [
            f"{path}: the authority's key is open to other users "
            f"(mode {stat.S_IMODE(mode):04o}); chmod 600 {path}"
        ]
    return key, []


def _public(key: object) -> bytes:
    data: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data
