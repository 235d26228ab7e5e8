"""What an authority has issued and revoked: one file, JSON, a line for each certificate.

A certificate is in it before its file is anywhere, so that there is none that could not be
revoked. The file is replaced as a whole: what is read is what was once written.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509

from nray.pki.errors import PkiError
from nray.pki.expiry import WARNED_BEFORE
from nray.pki.files import KEY_MODE, write
from nray.pki.names import printable

Kind = Literal["server", "node"]
State = Literal["valid", "expires soon", "expired", "revoked"]

#: The form of the file; another number is another program's.
FORMAT = 1

#: Largest register, bytes: some hundred thousand certificates.
REGISTER_BYTES_MAX = 1 << 28

#: How long before its end a certificate "expires soon"; of a short-lived one the last fifth.
SOON = WARNED_BEFORE
SOON_SHARE = 5


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line.

    Attributes:
        nray_certs: `FORMAT`.
        crl_number: the number of the last list of revoked certificates.
    """

    nray_certs: int
    crl_number: int = 0


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A certificate.

    Attributes:
        serial: hexadecimal, lower case.
        kind: what it may be.
        name: what it goes by here: of a server its first name.
        names: all names of a server.
        days: the lifetime that was asked for.
        rsa_bits: of its key; 0: P-256.
        begins, ends: of its validity, UTC.
        stem, bundle: where it was written, absolute; one of them is empty.
        server_name: in its bundle; may be empty.
        revoked: when; None: it is not.
    """

    serial: str
    kind: Kind
    name: str
    names: list[str]
    days: int
    rsa_bits: int
    begins: datetime.datetime
    ends: datetime.datetime
    stem: str = ""
    bundle: str = ""
    server_name: str = ""
    revoked: datetime.datetime | None = None

    def state(self, now: datetime.datetime) -> State:
        """What it is worth at a moment."""
        if self.revoked is not None:
            return "revoked"
        return state_of(self.begins, self.ends, now)


def state_of(begins: datetime.datetime, ends: datetime.datetime, now: datetime.datetime) -> State:
    """The state of what is not revoked."""
    if now > ends:
        return "expired"
    soon = now > ends - min(SOON, (ends - begins) / SOON_SHARE)
    return "expires soon" if soon else "valid"


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number as a register has it."""
    return f"{certificate.serial_number:040x}"


class Register:
    """The entries of a file, in the order of issue."""

    def __init__(self, path: Path, entries: list[Entry], crl_number: int) -> None:
        self.path = path
        self.entries = entries
        self.crl_number = crl_number

    @classmethod
    def load(cls, path: Path) -> Register:
        """Raises PkiError, naming file and line, if it is not there or not right."""
        lines = _read(path).splitlines()
        if not lines:
            raise PkiError(f"{path}: the file is empty", _BROKEN)
        number = 1
        try:
            header = msgspec.json.decode(lines[0], type=Header)
            if header.nray_certs != FORMAT:
                raise PkiError(
                    f"{path}: a register of form {header.nray_certs}, this nray knows {FORMAT}",
                    "a newer nray wrote it: use that one",
                )
            decoder = msgspec.json.Decoder(Entry)
            entries = []
            for number, line in enumerate(lines[1:], 2):  # noqa: B007
                entries.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PkiError(f"{path}:{number}: {printable(str(error))}", _BROKEN) from error
        return cls(path, entries, header.crl_number)

    def save(self) -> None:
        """To the disk. Raises PkiError if that fails; the file is then as it was."""
        rows = [Header(FORMAT, self.crl_number), *self.entries]
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        write(self.path, data, KEY_MODE, replace=True)

    def live(self, name: str, now: datetime.datetime) -> list[Entry]:
        """What a name has that is neither revoked nor expired."""
        return [
            entry for entry in self.named(name) if entry.state(now) in ("valid", "expires soon")
        ]

    def named(self, name: str) -> list[Entry]:
        """All that a name ever had; upper and lower case are the same."""
        return [entry for entry in self.entries if entry.name.casefold() == name.casefold()]

    def revoke(self, serials: set[str], when: datetime.datetime) -> None:
        """Marks them, in memory."""
        self.entries = [
            msgspec.structs.replace(entry, revoked=when)
            if entry.serial in serials and entry.revoked is None
            else entry
            for entry in self.entries
        ]

    def revoked(self) -> Iterator[tuple[int, datetime.datetime]]:
        """Serial number and moment of all that was revoked. Those that have expired stay: clocks
        differ, and a list of them is short."""
        for entry in self.entries:
            if entry.revoked is not None:
                yield int(entry.serial, 16), entry.revoked


_BROKEN = "it was changed by hand or damaged: take it from a backup"


def _read(path: Path) -> bytes:
    try:
        if os.stat(path).st_size > REGISTER_BYTES_MAX:
            raise PkiError(f"{path}: larger than a register can be")
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PkiError(
            f"{path}: the register of what was issued cannot be read ({reason})",
            "without it nothing can be issued or revoked: take it from a backup",
        ) from error
