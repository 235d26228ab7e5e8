"""Certificates of every odd kind, for the tests of `nray.pki`. Nothing here is from `nray`: an
attacker does not use our code either.

Keys are P-256 and cheap, but for the few RSA keys, which are made once. `Lab.make` writes what
it is told to, right or wrong.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
CODE_SIGNING = ExtendedKeyUsageOID.CODE_SIGNING
BOTH = (SERVER_AUTH, CLIENT_AUTH)

#: The subject of the manual's guide, which its authority, server and node all bear.
GUIDE = x509.Name(
    [
        x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(x509.NameOID.LOCALITY_NAME, "Munich"),
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "nray-scanner"),
    ]
)

GUIDE_CSR_JSON = """{
    "key": {"algo": "rsa", "size": 2048},
    "names": [{"C": "DE", "L": "Munich", "O": "nray-scanner"}]
}
"""


@dataclass(frozen=True)
class Made:
    """A certificate and the key that belongs to it (None: nobody holds it)."""

    cert: x509.Certificate
    key: Any


def cn(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


def ip(*addresses: str) -> list[x509.GeneralName]:
    return [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


@functools.cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """A 2048-bit key; the same for the same number (making one takes 0.1 s)."""
    return rsa.generate_private_key(65537, 2048)


def public_rsa(bits: int) -> rsa.RSAPublicKey:
    """A public key of any size whose private key nobody has."""
    modulus = secrets.randbits(bits) | 1 << (bits - 1) | 1
    return rsa.RSAPublicNumbers(65537, modulus).public_key()


def usage(*names: str) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    assert set(names) <= set(every)
    return x509.KeyUsage(**{name: name in names for name in every})


LEAF_USAGE = usage("digital_signature", "key_encipherment")
CA_USAGE = usage("key_cert_sign", "crl_sign")


def make(
    subject: x509.Name,
    issuer: Made | None = None,
    *,
    key: Any = None,
    public_key: Any = None,
    issuer_name: x509.Name | None = None,
    ca: bool | None = False,
    pathlen: int | None = None,
    key_usage: x509.KeyUsage | None = LEAF_USAGE,
    eku: Sequence[x509.ObjectIdentifier] | None = BOTH,
    san: Sequence[x509.GeneralName] | None = None,
    aki: x509.Certificate | bool = True,
    begin: datetime.datetime = NOW - 30 * DAY,
    end: datetime.datetime = NOW + 30 * DAY,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Made:
    """One certificate. `issuer` None: self-signed. `ca` None: no basicConstraints. `aki` True:
    that of the issuer; a certificate: that of this one; False: none."""
    key = key or ec_key()
    signer = issuer.key if issuer else key
    name = issuer_name or (issuer.cert.subject if issuer else subject)
    public = public_key or key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, pathlen), critical=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(eku)), critical=False)
    if san is not None:
        # RFC 5280, 4.2.1.6: critical where the subject is empty.
        builder = builder.add_extension(
            x509.SubjectAlternativeName(list(san)), critical=not list(subject)
        )
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(public), critical=False
    )
    if aki is not False and issuer is not None:
        of = aki if isinstance(aki, x509.Certificate) else issuer.cert
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(of.public_key()), critical=False
        )
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Made(builder.sign(signer, digest), None if public_key else key)


def make_ca(subject: x509.Name, issuer: Made | None = None, **odd: Any) -> Made:
    """An authority; `odd` overrides any argument of `make`."""
    return make(subject, issuer, **{"ca": True, "key_usage": CA_USAGE, "eku": None, **odd})


def make_crl(
    issuer: Made,
    *revoked: Made | int,
    name: x509.Name | None = None,
    begin: datetime.datetime = NOW - DAY,
    end: datetime.datetime = NOW + 30 * DAY,
    reason: x509.ReasonFlags | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    digest: hashes.HashAlgorithm | None = None,
) -> x509.CertificateRevocationList:
    """A list of revoked certificates, or of serial numbers. `name` poses as another issuer."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name or issuer.cert.subject)
        .last_update(begin)
        .next_update(end)
    )
    for one in revoked:
        serial = one if isinstance(one, int) else one.cert.serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer.key, digest or hashes.SHA256())


def crl_pem(*lists: x509.CertificateRevocationList) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in lists)


# ── files ───────────────────────────────────────────────────────────────────────────────────


def pem(*made: Made) -> bytes:
    return b"".join(one.cert.public_bytes(serialization.Encoding.PEM) for one in made)


def key_pem(key: Any, password: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )


def write(directory: Path, stem: str, made: Made, *chain: Made) -> tuple[Path, Path]:
    cert, key = directory / f"{stem}.pem", directory / f"{stem}-key.pem"
    cert.write_bytes(pem(made, *chain))
    key.write_bytes(key_pem(made.key))
    key.chmod(0o600)
    return cert, key


# ── made by other programs ──────────────────────────────────────────────────────────────────


def openssl(directory: Path, *arguments: str) -> str:
    """Runs Debian's openssl; an error of it is an error of the test."""
    done = subprocess.run(
        ["openssl", *arguments], cwd=directory, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def signed_by_openssl(
    directory: Path, issuer: Made, subject: str, *, digest: str, extensions: str | None
) -> Made:
    """A leaf by ``openssl x509 -req``: with old digests, which pyca signs no more; without
    `extensions` OpenSSL 3.0 makes X.509 v1."""
    write(directory, "issuer", issuer)
    key = ec_key()
    (directory / "leaf-key.pem").write_bytes(key_pem(key))
    openssl(directory, "req", "-new", "-key", "leaf-key.pem", "-subj", subject, "-out", "leaf.csr")
    arguments = (
        f"x509 -req -in leaf.csr -CA issuer.pem -CAkey issuer-key.pem -set_serial 7 -{digest}"
        " -days 20000 -out leaf.pem"
    ).split()
    if extensions is not None:
        (directory / "ext.cnf").write_text(extensions)
        arguments += ["-extfile", "ext.cnf"]
    openssl(directory, *arguments)
    return Made(x509.load_pem_x509_certificate((directory / "leaf.pem").read_bytes()), key)


def cfssl_guide(directory: Path) -> None:
    """Follows the manual's guide to the letter: ca, server and client, each with -key.pem."""
    assert shutil.which("cfssl")
    (directory / "csr.json").write_text(GUIDE_CSR_JSON)
    for command in (
        "cfssl genkey -initca csr.json | cfssljson -bare ca",
        "cfssl gencert -ca ca.pem -ca-key ca-key.pem -hostname=localhost csr.json"
        " | cfssljson -bare server",
        "cfssl gencert -ca ca.pem -ca-key ca-key.pem csr.json | cfssljson -bare client",
    ):
        subprocess.run(
            command, shell=True, cwd=directory, check=True, capture_output=True, timeout=120
        )
