"""All that a node needs in one PEM file: certificate, key, and whom to believe.

The order says what is what: the node's certificate (and, after it, authorities that are sent
along), its key, then the authorities that may vouch for the server. Text between the blocks is
no part of PEM; a line of it may name what the server is checked for. ``cat client.pem
client-key.pem ca.pem`` makes one too, and every program that reads PEM can read it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass

from cryptography import x509

from nray.pki.authority import Pair
from nray.pki.errors import PkiError
from nray.pki.files import certificate_pem, key_pem
from nray.pki.keys import FILE_BYTES_MAX, Identity, load_identity
from nray.pki.names import peer_name, printable

_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_SERVER_NAME = "nray-server-name"
_SERVER_NAME_LINE = re.compile(rf"^{_SERVER_NAME}: *(.*?)\s*$".encode(), re.MULTILINE)

#: Text of a bundle in which the name of the server is looked for, bytes: what stands before the
#: first block is a few lines.
_TEXT_BYTES_MAX = 4096


@dataclass(frozen=True)
class Bundle:
    """What stood in a bundle, checked to be fit for use.

    Attributes:
        identity: what this node shows.
        trust: who may vouch for its server; at least one.
        server_name: the name to look for in the server's certificate; None: the one dialled.
    """

    identity: Identity
    trust: tuple[x509.Certificate, ...]
    server_name: str | None


def bundle_pem(
    pair: Pair, authority: x509.Certificate, about: str, server_name: str | None = None
) -> bytes:
    """A bundle's content.

    Args:
        about: a line for whoever opens the file.

    Raises:
        PkiError: `server_name` is no name that a certificate could hold.
    """
    lines = [printable(about), "It holds a private key: keep it secret."]
    if server_name is not None:
        peer_name(server_name)
        lines.append(f"{_SERVER_NAME}: {server_name}")
    return b"".join(
        [
            "\n".join([*lines, ""]).encode(),
            certificate_pem(pair.certificate),
            key_pem(pair.key),
            certificate_pem(authority),
        ]
    )


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """A bundle from its file.

    Raises:
        PkiError: naming the file: as `nray.pki.keys.load_identity`, or there is no authority
            behind the key.
    """
    file = os.fspath(path)
    identity = load_identity(file, file)
    try:
        with open(file, "rb") as opened:
            data = opened.read(FILE_BYTES_MAX)
    except OSError as error:  # it was there a moment ago
        raise PkiError(f"{file}: the file cannot be read ({error.strerror})") from error
    ours = data[: data.index(b"PRIVATE KEY-----")].count(_BEGIN_CERTIFICATE)
    certificates = (identity.leaf, *identity.chain)
    if ours == 0 or ours >= len(certificates):
        raise PkiError(
            f"{file}: no authority stands behind the key, so no server could be believed",
            "the order is: certificate, key, authority (cat client.pem client-key.pem ca.pem)",
        )
    return Bundle(
        dataclasses.replace(identity, chain=certificates[1:ours]),
        certificates[ours:],
        _server_name(file, data[:_TEXT_BYTES_MAX].partition(b"-----BEGIN")[0]),
    )


def _server_name(file: str, text: bytes) -> str | None:
    line = _SERVER_NAME_LINE.search(text)
    if line is None:
        return None
    name = line[1].decode("utf-8", "backslashreplace")
    try:
        peer_name(name)
    except PkiError as error:
        raise PkiError(f"{file}: {_SERVER_NAME}: {error.message}") from error
    return name
