"""An authority, a server's and a node's certificate, made with `cryptography` alone.

None of nray's own code is in it, so that nray's certificates are not judged by their maker.
P-256, valid from yesterday for a week.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Credentials:
    """Paths of PEM files, as the configuration and the flags want them."""

    ca: Path
    server: Path
    server_key: Path
    node: Path
    node_key: Path


def make_credentials(directory: Path) -> Credentials:
    """A fresh authority, a leaf for a server at 127.0.0.1, ::1 and localhost, one for nodes."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    usage_off = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )

    def key_of(path: Path) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return key

    def begin(name: str, key: ec.EllipticCurvePrivateKey, issuer: str) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=6))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )

    def finish(builder: x509.CertificateBuilder, path: Path) -> None:
        signed = builder.sign(ca_key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    ca_key = key_of(directory / "ca-key.pem")
    ca = (
        begin("nray lab authority", ca_key, "nray lab authority")
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(
            x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage_off),
            True,
        )
    )
    finish(ca, directory / "ca.pem")
    leaves = (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH),
        ("node", ExtendedKeyUsageOID.CLIENT_AUTH),
    )
    for name, purpose in leaves:
        key = key_of(directory / f"{name}-key.pem")
        names: list[x509.GeneralName] = [x509.DNSName(f"{name}.lab.example")]
        if name == "server":
            names += [
                x509.DNSName("localhost"),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                x509.IPAddress(ipaddress.ip_address("::1")),
            ]
        leaf = (
            begin(f"nray lab {name}", key, "nray lab authority")
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, key_cert_sign=False, crl_sign=False, **usage_off
                ),
                True,
            )
            .add_extension(x509.ExtendedKeyUsage([purpose]), False)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
            )
        )
        finish(leaf, directory / f"{name}.pem")
    return Credentials(
        directory / "ca.pem",
        directory / "server.pem",
        directory / "server-key.pem",
        directory / "node.pem",
        directory / "node-key.pem",
    )
