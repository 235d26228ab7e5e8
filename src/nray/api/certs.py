"""What ``nray certs`` does: an authority in a directory, and the certificates that it issues.

Each call does its work and returns what to tell of it. Nothing that exists is overwritten unless
that is asked for, and a certificate is in the authority's register before its file is made.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nray import UserError
from nray.pki import office as offices
from nray.pki.authority import Pair, issue_node, issue_server
from nray.pki.bundle import bundle_pem
from nray.pki.errors import PkiError
from nray.pki.files import KEY_MODE, demand_free, pair_paths, write, write_pair
from nray.pki.names import identity_of, peer_name, printable, shown_alternative_names
from nray.pki.office import CRL_DAYS, PASSPHRASE_VARIABLE, Office
from nray.pki.register import Entry, Kind, Register, serial_of, state_of

if TYPE_CHECKING:
    from cryptography import x509

#: Lifetimes unless told otherwise, days. A node's key lies on a machine that may be lost: its
#: certificate is short-lived, so that a loss that nobody noticed heals by itself.
AUTHORITY_DAYS = 1825
SERVER_DAYS = 365
NODE_DAYS = 30

#: Longest passphrase that is read, bytes.
PASSPHRASE_BYTES_MAX = 4096

#: Fewest digits by which a serial number may be given.
SERIAL_DIGITS_MIN = 8

#: The table of ``list`` is 80 columns wide.
_NAME_COLUMNS = 28
_SERIAL_COLUMNS = 16


@dataclass
class Told:
    """What to print: `lines` are the result, `warnings` words beside it."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a certificate goes.

    Attributes:
        stem: ``STEM.pem`` and ``STEM-key.pem``; empty: after the name, here.
        bundle: one file in place of the two; only for nodes.
        server_name: what a node with this bundle checks its server for.
        replace: put it in the place of files that are there.
    """

    stem: str = ""
    bundle: str = ""
    server_name: str = ""
    replace: bool = False


def passphrase(file: str | None) -> bytes | None:
    """The passphrase of the authority's key: from a file's first line, else from the environment;
    None if neither is given.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    if file is None:
        text = os.environ.get(PASSPHRASE_VARIABLE)
        return text.encode() if text else None
    try:
        with open(file, "rb") as opened:
            line = opened.read(PASSPHRASE_BYTES_MAX).partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{file}: the passphrase cannot be read ({reason})") from error
    if not line:
        raise UserError(f"{file}: there is no passphrase in its first line")
    return line


# ── an authority ────────────────────────────────────────────────────────────────────────────


def init(
    directory: str, *, name: str | None, days: int, rsa_bits: int, passphrase: bytes | None
) -> Told:
    """A new authority in a directory that is not there yet, or empty."""
    place = Path(directory)
    # Two authorities of one name would only confuse whoever reads of them.
    common_name = name or f"authority {secrets.token_hex(3)}"
    end = offices.found(place, common_name, days, rsa_bits, passphrase).not_valid_after_utc
    files = [
        (offices.CERTIFICATE, "its certificate, for the server and all nodes"),
        (offices.KEY, f"its key{', encrypted' if passphrase else ''}; keep it here, and secret"),
        (offices.REVOKED, "what it has revoked, for the server's TLS.crl"),
        (offices.REGISTER, "what it has issued"),
    ]
    width = max(len(str(place / file)) for file, _ in files)
    return Told(
        [
            f'a new authority, "{printable(common_name)}", until {end:%Y-%m-%d}',
            *(f"  {place / file!s:{width}}  {words}" for file, words in files),
        ]
    )


def sign_revocations(directory: str, *, days: int | None, passphrase: bytes | None) -> Told:
    """The list of the revoked, signed anew."""
    with offices.opened(Path(directory), passphrase) as office:
        signed = office.sign_revocations(days or CRL_DAYS)
        return Told([_crl_words(office, signed)], office.warnings)


# ── certificates ────────────────────────────────────────────────────────────────────────────


def issue(
    directory: str,
    kind: Kind,
    names: Sequence[str],
    place: Place,
    *,
    days: int | None,
    rsa_bits: int,
    passphrase: bytes | None,
) -> Told:
    """A certificate for a server of these names, or for a node of this one name."""
    now = _now()
    with offices.opened(Path(directory), passphrase) as office:
        if there := office.register.live(names[0], now):
            entry = there[-1]
            raise UserError(
                f"{_shown(entry)} has a certificate until {entry.ends:%Y-%m-%d}",
                f"nray certs renew {entry.name} makes a new one; another name is free",
            )
        lifetime = days or (NODE_DAYS if kind == "node" else SERVER_DAYS)
        return _issue(office, kind, names, _settled(place, names[0]), lifetime, rsa_bits, now)


def renew(
    directory: str,
    name: str,
    place: Place,
    *,
    days: int | None,
    rsa_bits: int | None,
    revoke_old: bool,
    passphrase: bytes | None,
) -> Told:
    """A new certificate with a new key for what has one: of the same names, lifetime and kind of
    key, written to the same place, unless told otherwise."""
    now = _now()
    with offices.opened(Path(directory), passphrase) as office:
        old = _known(office.register, name)[-1]
        if old.revoked is not None:
            raise UserError(
                f"{_shown(old)} was revoked on {old.revoked:%Y-%m-%d}, and is not renewed",
                f"nray certs issue {old.kind} {old.name} makes a certificate without a past",
            )
        told = _issue(
            office,
            old.kind,
            old.names if old.kind == "server" else [old.name],
            _renewed_place(old, place),
            days or old.days,
            old.rsa_bits if rsa_bits is None else rsa_bits,
            now,
        )
        live = [one for one in office.register.live(name, now) if one.serial != _last(office)]
        if revoke_old and live:
            office.revoke({one.serial for one in live}, now)
            told.lines += [f"revoked: {_shown(one)}, serial {one.serial}" for one in live]
            told.lines.append(_hand_over(office))
        elif live:
            end = max(one.ends for one in live)
            flags = " ".join(f"--serial {one.serial[:_SERIAL_COLUMNS]}" for one in live)
            told.lines += [
                f"what it had before stays good until {end:%Y-%m-%d %H:%M} UTC; to end that now:",
                f"  nray certs revoke {flags}",
            ]
        return told


def revoke(
    directory: str, names: Sequence[str], serials: Sequence[str], *, passphrase: bytes | None
) -> Told:
    """Revokes all that these names have, and the certificates of these serial numbers."""
    now = _now()
    with offices.opened(Path(directory), passphrase) as office:
        chosen = []
        for name in names:
            live = office.register.live(name, now)
            if not live:
                last = _known(office.register, name)[-1]
                raise UserError(
                    f"{_shown(last)} has no certificate that is good: "
                    f"the last one is {last.state(now)}"
                )
            chosen += live
        chosen += [_by_serial(office.register, serial) for serial in serials]
        office.revoke({entry.serial for entry in chosen}, now)
        lines = [f"revoked: {_shown(one)}, serial {one.serial}" for one in chosen]
        return Told([*lines, _hand_over(office)], office.warnings)


# ── looking ─────────────────────────────────────────────────────────────────────────────────


def listing(directory: str, *, as_json: bool) -> Told:
    """What an authority has issued and how it stands, for people or a JSON object a line."""
    place, now = Path(directory), _now()
    certificate = offices.certificate_of(place)
    register = Register.load(place / offices.REGISTER)
    rows = [_authority_row(certificate, now)]
    newest = {entry.name.casefold(): entry.serial for entry in register.entries}
    rows += [
        _row(entry, now, renewed=newest[entry.name.casefold()] != entry.serial)
        for entry in register.entries
    ]
    warnings = []
    if offices.lacks(offices.revocations(place), register, now):
        warnings.append(
            f"{place / offices.REVOKED} is not up to date: nray certs crl signs it anew"
        )
    if as_json:
        return Told([json.dumps(row) for row in rows], warnings)
    lines = [_columns("NAME", "KIND", "SERIAL", "ENDS", "STATE")]
    for row in rows:
        name, serial = str(row["name"]), str(row["serial"])
        ends = str(row["ends"])[:10]
        lines.append(
            _columns(name, str(row["kind"]), serial[:_SERIAL_COLUMNS], ends, str(row["state"]))
        )
    return Told(lines, warnings)


def _authority_row(certificate: x509.Certificate, now: datetime.datetime) -> dict[str, object]:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return {
        "name": identity_of(certificate),
        "kind": "ca",
        "serial": serial_of(certificate),
        "begins": begins.isoformat(),
        "ends": ends.isoformat(),
        "state": state_of(begins, ends, now),
    }


def _row(entry: Entry, now: datetime.datetime, *, renewed: bool) -> dict[str, object]:
    state = entry.state(now)
    if renewed and state == "expires soon":
        state = "valid"  # there is nothing left to do about it
    row: dict[str, object] = {
        "name": entry.name,
        "kind": entry.kind,
        "serial": entry.serial,
        "begins": entry.begins.isoformat(),
        "ends": entry.ends.isoformat(),
        "state": state,
    }
    if entry.kind == "server":
        row["names"] = entry.names
    if entry.revoked is not None:
        row["revoked"] = entry.revoked.isoformat()
    return row


def _columns(name: str, kind: str, serial: str, ends: str, state: str) -> str:
    name = printable(name)
    if len(name) > _NAME_COLUMNS:
        name = name[: _NAME_COLUMNS - 1] + "…"
    return f"{name:{_NAME_COLUMNS}}  {kind:6}  {serial:{_SERIAL_COLUMNS}}  {ends:10}  {state}"


# ── making ──────────────────────────────────────────────────────────────────────────────────


def _issue(
    office: Office,
    kind: Kind,
    names: Sequence[str],
    place: Place,
    days: int,
    rsa_bits: int,
    now: datetime.datetime,
) -> Told:
    end = office.pair.certificate.not_valid_after_utc
    if now >= end:
        raise PkiError(
            f"the authority in {office.directory} ended on {end:%Y-%m-%d}",
            "make a new one: nray certs init --dir DIR; all its certificates are made anew too",
        )
    if not all(name.isprintable() and name == name.strip() for name in names):
        shown = ", ".join(printable(name) for name in names)
        raise UserError(
            f'"{shown}" cannot be the name of a {kind}',
            "no control characters, and no blanks at its ends",
        )
    if place.server_name:
        peer_name(place.server_name)
    files = _files(place)
    if not place.replace:
        _demand_free(files)
    _demand_directory(files[0].parent)
    if kind == "server":
        pair = issue_server(office.pair, names, days, rsa_bits)
    else:
        pair = issue_node(office.pair, names[0], days, rsa_bits)
    entry = _entry(kind, names, place, days, rsa_bits, pair)
    office.enter(entry)
    try:
        _write(office, entry, pair, place)
    except PkiError:
        # Its key is nowhere: the name is free for another try.
        office.revoke({entry.serial}, now)
        raise
    office.freshen_revocations(now)
    told = Told(_issued_lines(entry, pair, files), office.warnings)
    if entry.ends < now + datetime.timedelta(days=days) - datetime.timedelta(minutes=1):
        told.warnings.append(
            f"it ends with its authority, {entry.ends:%Y-%m-%d}, and not after {days} days"
        )
    return told


def _entry(
    kind: Kind, names: Sequence[str], place: Place, days: int, rsa_bits: int, pair: Pair
) -> Entry:
    return Entry(
        serial=serial_of(pair.certificate),
        kind=kind,
        name=names[0],
        names=list(names) if kind == "server" else [],
        days=days,
        rsa_bits=rsa_bits,
        begins=pair.certificate.not_valid_before_utc,
        ends=pair.certificate.not_valid_after_utc,
        stem=os.path.abspath(place.stem) if place.stem else "",
        bundle=os.path.abspath(place.bundle) if place.bundle else "",
        server_name=place.server_name,
    )


def _write(office: Office, entry: Entry, pair: Pair, place: Place) -> None:
    if place.bundle:
        about = (
            f"nray bundle: node {entry.name}, until {entry.ends:%Y-%m-%d}, for nray node --bundle"
        )
        authority = office.pair.certificate
        data = bundle_pem(pair, authority, about, place.server_name or None)
        write(Path(place.bundle), data, KEY_MODE, replace=place.replace)
        return
    directory, stem = os.path.split(place.stem)
    write_pair(directory, stem, *pair, replace=place.replace)


def _issued_lines(entry: Entry, pair: Pair, files: Sequence[Path]) -> list[str]:
    lines = [
        f"{_shown(entry)}, until {entry.ends:%Y-%m-%d %H:%M} UTC",
        f"  serial {entry.serial}",
    ]
    if entry.kind == "server":
        lines.append(f"  for {shown_alternative_names(pair.certificate)}")
    elif (identity := identity_of(pair.certificate)) != entry.name:
        lines.append(f"  its identity in events and for TLS.allowedNodes: {identity}")
    if entry.bundle:
        lines.append(f"  {files[0]}: all that the node needs (secret)")
        lines.append(f"there: nray node --bundle {files[0].name} -s SERVER")
    else:
        lines.append(f"  {files[0]}")
        lines.append(f"  {files[1]}: its key (secret)")
    return lines


# ── places ──────────────────────────────────────────────────────────────────────────────────


def _settled(place: Place, name: str) -> Place:
    """With a stem after the name, if nothing else is said."""
    if place.stem or place.bundle:
        return place
    # "*.example.org", "::1", "vantage point 7": what is odd in a file's name becomes a hyphen.
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return Place(stem or "server", "", place.server_name, place.replace)


def _renewed_place(old: Entry, place: Place) -> Place:
    if place.bundle and old.kind != "node":
        raise UserError("a bundle is for a node, and this is a server", "use --out")
    server_name = place.server_name or old.server_name
    if place.stem or place.bundle:
        return Place(place.stem, place.bundle, server_name, place.replace)
    return Place(_relative(old.stem), _relative(old.bundle), server_name, place.replace)


def _relative(path: str) -> str:
    """Short, where it is below the working directory."""
    here = os.getcwd() + os.sep
    return path[len(here) :] if path.startswith(here) else path


def _files(place: Place) -> list[Path]:
    return [Path(place.bundle)] if place.bundle else list(pair_paths(place.stem))


def _demand_free(files: Sequence[Path]) -> None:
    try:
        demand_free(*files)
    except PkiError as error:
        raise PkiError(
            error.message, "move it away, name another place (--out, --bundle), or say --replace"
        ) from error


def _demand_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory")


# ── words ───────────────────────────────────────────────────────────────────────────────────


def _shown(entry: Entry) -> str:
    return f"{entry.kind} {printable(entry.name)}"


def _last(office: Office) -> str:
    return office.register.entries[-1].serial


def _known(register: Register, name: str) -> list[Entry]:
    entries = register.named(name)
    if not entries:
        raise UserError(
            f'nothing was ever issued to "{printable(name)}"',
            "nray certs list shows what was, by the first name of each",
        )
    return entries


def _by_serial(register: Register, serial: str) -> Entry:
    digits = serial.lower().replace(":", "")
    found = [entry for entry in register.entries if entry.serial.startswith(digits)]
    if len(digits) < SERIAL_DIGITS_MIN or len(found) != 1:
        why = f"{len(found)} certificates have one that begins so" if found else "nothing has it"
        if len(digits) < SERIAL_DIGITS_MIN:
            why = f"at least {SERIAL_DIGITS_MIN} digits are needed"
        raise UserError(f"serial {printable(serial)}: {why}", "nray certs list shows them")
    if found[0].revoked is not None:
        raise UserError(f"serial {printable(serial)} is revoked already")
    return found[0]


def _crl_words(office: Office, signed: x509.CertificateRevocationList) -> str:
    end = f"{signed.next_update_utc:%Y-%m-%d}" if signed.next_update_utc else "ever"
    return (
        f"{office.directory / offices.REVOKED}: list {office.register.crl_number},"
        f" {len(signed)} revoked, good until {end}"
    )


def _hand_over(office: Office) -> str:
    signed = offices.revocations(office.directory)
    words = _crl_words(office, signed) if signed is not None else ""
    return f"{words}\n  for the server's TLS.crl; a running server reads a new one within seconds"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
