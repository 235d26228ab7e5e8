"""Certificates, keys and lists on the disk: whole or not at all, and nothing overwritten unasked.

Every file is written under a name of its own, forced to the disk, and only then moved to where it
belongs; a key has its mode of 0600 from its first moment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nray.pki.errors import PkiError

KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644

#: Randomness in the name of a draft.
_DRAFT_BYTES = 8


def key_pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, passphrase: bytes | None = None
) -> bytes:
    """The key in PEM (PKCS #8), encrypted if there is a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def pair_paths(stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Where the certificate and the key of a stem lie: ``STEM.pem`` and ``STEM-key.pem``."""
    return Path(f"{os.fspath(stem)}.pem"), Path(f"{os.fspath(stem)}-key.pem")


def write_pair(
    directory: str | os.PathLike[str],
    stem: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    *,
    replace: bool = False,
) -> tuple[Path, Path]:
    """Writes ``STEM.pem`` and ``STEM-key.pem`` (mode 0600) into an existing directory, each
    whole or not at all, and overwrites nothing unless told to.

    Returns:
        The paths of certificate and key.

    Raises:
        PkiError: a file of that name exists, or cannot be written.
    """
    certificate_path, key_path = pair_paths(Path(directory, stem))
    if not replace:
        demand_free(certificate_path, key_path)
    write(key_path, key_pem(key), KEY_MODE, replace=replace)
    try:
        write(certificate_path, certificate_pem(certificate), CERTIFICATE_MODE, replace=replace)
    except PkiError:
        if not replace:
            os.unlink(key_path)  # made a moment ago, and of no use alone
        raise
    return certificate_path, key_path


def demand_free(*paths: Path) -> None:
    """Raises PkiError, naming it, if one of the paths is taken; by a dangling link too."""
    for path in paths:
        if os.path.lexists(path):
            raise _exists(path)


def write(path: Path, data: bytes, mode: int, *, replace: bool = False) -> None:
    """Writes a file of this mode, whole or not at all; after the return it survives a crash.

    Args:
        replace: put it in the place of a file that is there. Otherwise that is an error.

    Raises:
        PkiError: the file exists, or cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(_DRAFT_BYTES)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.rename(draft, path)
            else:
                os.link(draft, path)  # unlike a rename it fails where the name is taken
        finally:
            if not replace or os.path.lexists(draft):
                os.unlink(draft)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(f"{path}: the file cannot be written ({reason})") from error


def remove_drafts(*paths: Path) -> None:
    """Removes what a process that was killed in `write` has left of these files. To be called
    only where nobody else can be writing them."""
    for path in paths:
        for draft in path.parent.glob(f".{path.name}." + "[0-9a-f]" * 2 * _DRAFT_BYTES):
            with contextlib.suppress(OSError):
                draft.unlink()


def sync_directory(directory: Path) -> None:
    """Forces what was made, renamed or removed in a directory to the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> PkiError:
    return PkiError(f"{path}: the file exists and is not overwritten", "move it away first")
