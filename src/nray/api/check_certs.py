"""What ``nray certs check`` says of files: what would be refused, where, and why.

The judge is the one that both ends ask, `nray.pki.verify`; one's own files are read by what reads
them at a start, `nray.pki.keys`. So what is good here is good there.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from nray import UserError
from nray.pki.bundle import load_bundle
from nray.pki.errors import PeerRejected, PkiError
from nray.pki.expiry import certificate_ending
from nray.pki.keys import FILE_BYTES_MAX, load_identity, load_trust
from nray.pki.names import alternative_names, peer_name, shown_alternative_names, shown_name
from nray.pki.office import CERTIFICATE, REVOKED
from nray.pki.revocation import RevocationList, Revocations, load_revocations
from nray.pki.strength import key_weakness, signature_weakness
from nray.pki.verify import verify_node, verify_server

_KEY = b"PRIVATE KEY-----"
_CERT = b"-----BEGIN CERTIFICATE-----"
_LIST = b"-----BEGIN X509 CRL-----"


@dataclass
class Report:
    """What was found.

    Attributes:
        lines: for each file what it is good for, or what refuses it and why.
        warnings: what works and should be mended.
        refused: whether anything would be refused.
    """

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: bool = False

    def refuse(self, line: str) -> None:
        """A line about something that would be refused."""
        self.lines.append(line)
        self.refused = True


def check(
    files: Sequence[str],
    *,
    authority: str | None,
    crl: str | None = None,
    directory: str,
    name: str | None,
    use: str | None,
    now: datetime.datetime | None = None,
) -> Report:
    """Judges certificates, with their keys, authorities, and lists of the revoked.

    A key belongs to the certificate among `files` that it fits, else to the one of its name
    (``STEM.pem`` to ``STEM-key.pem``).

    Args:
        authority: the file of whom to trust. Without one: the authorities among `files`, then
            those in the certificate's own file, then the one in `directory`.
        crl: a file of who was revoked, beside the lists among `files`. Where there is none, the
            list of the authority in `directory` counts, if that is the one trusted.
        name: what nodes look for in a server's certificate; None: the first name it has.
        use: "server" or "node"; None: what it is made for.
        now: when to judge at, aware; None: now.

    Raises:
        UserError: a file cannot be read, or there is no authority to judge by.
    """
    moment = now or datetime.datetime.now(datetime.UTC)
    report = Report()
    datas = {file: _read(file) for file in files}
    keys = {file for file, data in datas.items() if _KEY in data and _CERT not in data}
    # Certificates of other authorities may stand in a file of lists; lists in no other file.
    lists = [file for file, data in datas.items() if _LIST in data]
    certificates = [file for file in files if file not in keys and file not in lists]
    trust = load_trust(authority) if authority else []
    leaves = []
    for file in certificates:
        found = _load(file, report)
        if found and _is_authority(found[0]):
            _judge_authority(file, found[0], moment, report)
            trust = trust if authority else [*trust, *found]
        elif found:
            leaves.append((file, found))
    revoked = _revoked(lists, crl, trust, directory, moment, report)
    fits = _pairs(keys, leaves, report)
    peer = peer_name(name) if name else None
    for file, found in leaves:
        key = file if _KEY in datas[file] else fits.get(file) or _key_beside(file)
        if not _own_faults(file, key, moment, report):
            chain = trust or _trust_of(file, found, directory)
            on_lists = revoked or _revoked_beside(chain, directory)
            _judge_leaf(file, found, chain, on_lists, peer, use, moment, report)
    report.warnings = list(dict.fromkeys(report.warnings))
    return report


# ── files ───────────────────────────────────────────────────────────────────────────────────


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(FILE_BYTES_MAX)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{file}: the file cannot be read ({reason})") from error


def _load(file: str, report: Report) -> list[x509.Certificate]:
    try:
        return load_trust(file)
    except PkiError as error:
        report.refuse(str(error))
        return []


def _pairs(
    keys: set[str], leaves: list[tuple[str, list[x509.Certificate]]], report: Report
) -> dict[str, str]:
    """Which key file belongs to which certificate; a key without one is told of."""
    fits: dict[str, str] = {}
    for key in sorted(keys):
        data = _public_half(key)
        if data is None:
            # Whatever reads it at a start says best what is wrong with it.
            partner = leaves[0][0] if leaves else _certificate_beside(key)
            if partner is not None:
                _own_faults(partner, key, None, report)
            continue
        of = [file for file, found in leaves if _public(found[0].public_key()) == data]
        fits |= dict.fromkeys(of, key)
        if not of and (beside := _certificate_beside(key)) is not None and not leaves:
            if not _own_faults(beside, key, None, report):
                report.lines.append(f"{key}: the key of {beside}")
        elif not of:
            report.refuse(f"{key}: this is not the key of any certificate given")
    return fits


def _public_half(key_file: str) -> bytes | None:
    """The public key of a key file; None if that cannot be read."""
    data = _read(key_file)
    begin = data.rfind(b"-----BEGIN", 0, data.index(_KEY))
    try:
        key = serialization.load_pem_private_key(data[max(begin, 0) :], None)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm):
        return None
    return _public(key.public_key())


def _public(key: object) -> bytes:
    data: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _key_beside(file: str) -> str | None:
    beside = f"{file.removesuffix('.pem')}-key.pem"
    return beside if os.path.exists(beside) else None


def _certificate_beside(key: str) -> str | None:
    beside = f"{key.removesuffix('-key.pem')}.pem"
    return beside if beside != key and os.path.exists(beside) else None


def _trust_of(
    file: str, found: Sequence[x509.Certificate], directory: str
) -> Sequence[x509.Certificate]:
    own = [one for one in found[1:] if _is_authority(one)]
    return own or _trust_beside(file, directory)


def _trust_beside(file: str, directory: str) -> Sequence[x509.Certificate]:
    beside = os.path.join(directory, CERTIFICATE)
    if os.path.exists(beside):
        return load_trust(beside)
    raise UserError(
        f"{file}: there is no authority to judge it by",
        "give its file too, or --ca FILE, or the directory of an authority with --dir",
    )


# ── the revoked ─────────────────────────────────────────────────────────────────────────────


def _revoked(
    files: Sequence[str],
    crl: str | None,
    trust: Sequence[x509.Certificate],
    directory: str,
    now: datetime.datetime,
    report: Report,
) -> Revocations | None:
    """The lists that were given, all together; None if none was. Told in the report."""
    found: list[RevocationList] = []
    for file in [*files, *([crl] if crl else [])]:
        authorities = trust or _trust_beside(file, directory)
        try:
            loaded = load_revocations(file, authorities)
        except PkiError as error:
            report.refuse(str(error))
            continue
        found += loaded.lists
        for each in loaded.lists:
            due = each.source.next_update_utc
            report.lines.append(
                f"{file}: good as a list of the revoked, of {shown_name(each.issuer.subject)},"
                f" {len(each.serials)} revoked" + (f", until {due:%Y-%m-%d}" if due else "")
            )
        warnings = [ending.warning(now) for ending in loaded.endings()]
        report.warnings += [*filter(None, warnings), *loaded.warnings(authorities, now)]
    return Revocations("", found) if found else None


def _revoked_beside(trust: Sequence[x509.Certificate], directory: str) -> Revocations | None:
    """The list of the authority in a directory, where it is the one that is trusted."""
    authority, beside = (os.path.join(directory, name) for name in (CERTIFICATE, REVOKED))
    if not os.path.exists(beside) or not os.path.exists(authority):
        return None
    ours = load_trust(authority)
    return load_revocations(beside, ours) if any(one in trust for one in ours) else None


# ── judging ─────────────────────────────────────────────────────────────────────────────────


def _own_faults(file: str, key: str | None, now: datetime.datetime | None, report: Report) -> bool:
    """Whether our own end would refuse to start with certificate and key; told in the report."""
    if key is None:
        return False
    try:
        identity = load_identity(file, key, now=now)
        if key == file and len(identity.chain):
            load_bundle(file)
    except PkiError as error:
        report.refuse(str(error))
        return True
    for warning in identity.warnings:
        # The judge tells of a certificate that is out of its time, and better.
        if "peers" not in warning:
            report.warnings.append(warning)
    return False


def _judge_leaf(
    file: str,
    found: list[x509.Certificate],
    trust: Sequence[x509.Certificate],
    revoked: Revocations | None,
    peer: x509.DNSName | x509.IPAddress | None,
    use: str | None,
    now: datetime.datetime,
    report: Report,
) -> None:
    leaf, others = found[0], found[1:]
    for each in [use] if use else _uses(leaf):
        try:
            if each == "node":
                verified = verify_node(leaf, others, trust, now, revoked)
                who = f'"{verified.identity}"'
            else:
                looked_for = peer or _first_name(leaf)
                verify_server(leaf, others, trust, looked_for, now, revoked)
                who = shown_alternative_names(leaf)
        except PeerRejected as rejected:
            report.refuse(f"{file}: refused as a {each} ({rejected.reason}): {rejected.detail}")
        except PkiError as error:
            report.refuse(f"{file}: refused as a server: {error.message}")
        else:
            end = leaf.not_valid_after_utc
            report.lines.append(f"{file}: good as a {each}, {who}, until {end:%Y-%m-%d %H:%M} UTC")
            if warning := certificate_ending(file, leaf).warning(now):
                report.warnings.append(warning)


def _uses(leaf: x509.Certificate) -> list[str]:
    """What a certificate is made for; both if it does not say, or says something else."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return ["server", "node"] if alternative_names(leaf) else ["node"]
    server = ExtendedKeyUsageOID.SERVER_AUTH in usage
    node = ExtendedKeyUsageOID.CLIENT_AUTH in usage
    if server and node and not alternative_names(leaf):
        return ["node"]  # cfssl writes both uses everywhere; without a name it is no server's
    if server == node:
        return ["server", "node"]
    return ["server"] if server else ["node"]


def _first_name(leaf: x509.Certificate) -> x509.DNSName | x509.IPAddress:
    for name in alternative_names(leaf):
        if isinstance(name, x509.IPAddress):
            return name
        if isinstance(name, x509.DNSName):
            # A wildcard stands for any one label.
            return x509.DNSName(name.value.replace("*", "any", 1))
    raise PkiError("it holds no name at all (subjectAltName) that a node could look for")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _judge_authority(
    file: str, certificate: x509.Certificate, now: datetime.datetime, report: Report
) -> None:
    shown = shown_name(certificate.subject)
    end, begin = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    weakness = key_weakness(certificate) or signature_weakness(certificate)
    fault = ""
    if weakness:
        fault = f"(weak): its {weakness}"
    elif now > end:
        fault = f"(expired): it ended {end:%Y-%m-%d %H:%M} UTC"
    elif now < begin:
        fault = f"(not-yet-valid): it begins {begin:%Y-%m-%d %H:%M} UTC"
    elif not _may_sign(certificate):
        fault = "(wrong-use): it may not sign certificates (keyUsage)"
    if fault:
        report.refuse(f"{file}: refused as an authority {fault}, {shown}")
    else:
        report.lines.append(f"{file}: good as an authority, {shown}, until {end:%Y-%m-%d}")


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True
