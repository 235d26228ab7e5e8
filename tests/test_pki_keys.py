"""Loading of certificates and keys: every way a file can be wrong has words of its own."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519

import pki_lab as lab
from nray import UserError
from nray.pki.contexts import ClientCertificate, node_context, server_context
from nray.pki.errors import PkiError
from nray.pki.keys import load_identity, load_trust

CA = lab.make_ca(lab.cn("ca"))


def leaf(**odd: object) -> lab.Made:
    return lab.make(lab.cn("leaf"), CA, **{"san": lab.dns("localhost"), **odd})


def load(directory: Path, made: lab.Made, *chain: lab.Made, now: datetime.datetime = lab.NOW):
    return load_identity(*lab.write(directory, "own", made, *chain), now=now)


@pytest.mark.parametrize("key", [lab.ec_key, lab.rsa_key, ed25519.Ed25519PrivateKey.generate])
def test_an_identity_is_loaded_and_usable(tmp_path: Path, key: Callable) -> None:
    made = leaf(key=key(), end=lab.NOW + 300 * lab.DAY)
    identity = load(tmp_path, made, CA)
    assert (identity.leaf, identity.chain) == (made.cert, (CA.cert,))
    assert identity.warnings == ()
    server_context(identity, ClientCertificate.REQUIRED)
    node_context(identity)


def test_key_files_of_the_old_form_and_with_parameters_are_read(tmp_path: Path) -> None:
    made = leaf()
    cert, key = lab.write(tmp_path, "own", made)
    plain = made.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    for data in (plain, parameters + plain, b"a remark\n" + plain + lab.pem(made)):
        key.write_bytes(data)
        assert load_identity(cert, key).leaf == made.cert


# ── warnings ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mode", "warned"),
    [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o644, True), (0o620, True)],
)
def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    cert, key = lab.write(tmp_path, "own", leaf(end=lab.NOW + 300 * lab.DAY))
    key.chmod(mode)
    warnings = load_identity(cert, key, now=lab.NOW).warnings
    assert bool(warnings) == warned
    if warned:
        assert f"{mode:04o}" in warnings[0]
        assert f"chmod 600 {key}" in warnings[0]


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (7, ""),
        (6.999, "in 6 days"),
        (1, "in 1 day"),
        (0.9, "in less than a day"),
        (0, "in less than a day"),
        (-1, "expired on 2026-05-31"),
    ],
)
def test_the_end_of_a_certificate_is_warned_of(tmp_path: Path, days: float, words: str) -> None:
    made = leaf(end=lab.NOW + days * lab.DAY)
    warnings = load(tmp_path, made).warnings
    assert len(warnings) == bool(words)
    assert words in "".join(warnings)


def test_a_certificate_of_tomorrow_is_warned_of(tmp_path: Path) -> None:
    made = leaf(begin=lab.NOW + lab.DAY, end=lab.NOW + 300 * lab.DAY)
    assert "clock" in load(tmp_path, made).warnings[0]


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def spoil_cert(data: bytes) -> Callable[[Path, Path], None]:
    return lambda cert, _: cert.write_bytes(data) and None


def spoil_key(data: bytes) -> Callable[[Path, Path], None]:
    return lambda _, key: key.write_bytes(data) and None


def swap(cert: Path, key: Path) -> None:
    both = cert.read_bytes(), key.read_bytes()
    cert.write_bytes(both[1])
    key.write_bytes(both[0])


def as_directory(cert: Path, key: Path) -> None:
    cert.unlink()
    cert.mkdir()


BROKEN = b"-----BEGIN %s-----\nMIIB\n-----END %s-----\n"
A_LEAF = leaf()


@pytest.mark.parametrize(
    ("spoil", "file", "words"),
    [
        pytest.param(lambda c, k: c.unlink(), "own.pem", "no such file", id="no certificate"),
        pytest.param(lambda c, k: k.unlink(), "own-key.pem", "no such file", id="no key"),
        pytest.param(as_directory, "own.pem", "is a directory", id="directory"),
        pytest.param(spoil_cert(b""), "own.pem", "empty", id="empty certificate"),
        pytest.param(spoil_cert(b"hello"), "own.pem", "no PEM certificate", id="not PEM"),
        pytest.param(
            spoil_cert(A_LEAF.cert.public_bytes(serialization.Encoding.DER)),
            "own.pem", "no PEM certificate", id="DER certificate",
        ),
        pytest.param(
            spoil_cert(BROKEN.replace(b"%s", b"CERTIFICATE")), "own.pem", "cannot be read",
            id="broken certificate",
        ),
        pytest.param(
            spoil_cert(lab.pem(A_LEAF)[:-30]), "own.pem", "cannot be read", id="cut certificate"
        ),
        pytest.param(spoil_key(b""), "own-key.pem", "no PEM private key", id="empty key"),
        pytest.param(spoil_key(b"\x30\x82\x01"), "own-key.pem", "no PEM private key", id="DER key"),
        pytest.param(
            spoil_key(BROKEN.replace(b"%s", b"PRIVATE KEY")), "own-key.pem", "cannot be read",
            id="broken key",
        ),
        pytest.param(
            spoil_key(lab.key_pem(lab.ec_key(), b"secret")), "own-key.pem", "encrypted",
            id="encrypted key",
        ),
        pytest.param(
            spoil_key(lab.ec_key().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.BestAvailableEncryption(b"secret"))),
            "own-key.pem", "encrypted", id="encrypted key of the old form",
        ),
        pytest.param(
            spoil_key(lab.key_pem(lab.ec_key())), "own-key.pem", "not the key of the certificate",
            id="key of another certificate",
        ),
        pytest.param(
            spoil_key(lab.key_pem(lab.rsa_key())), "own-key.pem", "not the key of the certificate",
            id="key of another kind",
        ),
        pytest.param(
            spoil_key(lab.key_pem(dsa.generate_private_key(1024))), "own-key.pem", "of this kind",
            id="DSA key",
        ),
        pytest.param(swap, "own.pem", "private key, not a certificate", id="swapped"),
        pytest.param(
            spoil_key(lab.pem(A_LEAF)), "own-key.pem", "certificate, not a private key",
            id="certificate twice",
        ),
        pytest.param(
            spoil_cert(bytes(2 << 20)), "own.pem", "larger than", id="too large"
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_named_with_its_fault(
    tmp_path: Path, spoil: Callable[[Path, Path], object], file: str, words: str
) -> None:
    cert, key = lab.write(tmp_path, "own", leaf())
    spoil(cert, key)
    with pytest.raises(PkiError) as caught:
        load_identity(cert, key)
    assert isinstance(caught.value, UserError)
    assert caught.value.message.startswith(f"{tmp_path / file}: ")
    assert words in caught.value.message


def test_a_leaf_that_does_not_stand_first_is_told_so(tmp_path: Path) -> None:
    made = leaf()
    cert, key = lab.write(tmp_path, "own", made)
    cert.write_bytes(lab.pem(CA, made))
    with pytest.raises(PkiError, match="does not stand first"):
        load_identity(cert, key)


def test_a_nul_in_a_path_is_an_error_of_the_user() -> None:
    with pytest.raises(PkiError):
        load_trust("a\0b")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: leaf(key=lab.rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (lambda: leaf(key=lab.ec_key(ec.SECP224R1())), "secp224r1"),
        (
            lambda: lab.make(
                lab.cn("x"), lab.make_ca(lab.cn("e"), key=ed25519.Ed25519PrivateKey.generate())
            ),
            "signed with Ed25519",
        ),
    ],
)
def test_what_every_peer_would_refuse_is_refused_at_start_up(
    tmp_path: Path, make: Callable[[], lab.Made], words: str
) -> None:
    with pytest.raises(PkiError, match=words) as caught:
        load(tmp_path, make())
    assert str(tmp_path / "own.pem") in caught.value.message


@pytest.mark.parametrize(("digest", "words"), [("sha256", "v1"), ("sha1", "SHA1")])
def test_so_is_what_old_programs_make(tmp_path: Path, digest: str, words: str) -> None:
    extensions = None if words == "v1" else "basicConstraints=critical,CA:FALSE"
    made = lab.signed_by_openssl(tmp_path, CA, "/CN=x", digest=digest, extensions=extensions)
    with pytest.raises(PkiError, match=words):
        load(tmp_path, made)


# ── whom to trust ───────────────────────────────────────────────────────────────────────────


def test_all_certificates_of_a_trust_file_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    other = lab.make_ca(lab.cn("other"))
    file.write_bytes(b"# ours\n" + lab.pem(CA) + b"\n# theirs\r\n" + lab.pem(other))
    assert load_trust(file) == [CA.cert, other.cert]
    assert load_trust(str(file)) == [CA.cert, other.cert]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"# nobody\n", "no PEM certificate"),
        (lab.key_pem(lab.ec_key()), "private key, not a certificate"),
        (lab.pem(CA) + BROKEN.replace(b"%s", b"CERTIFICATE"), "cannot be read"),
        (
            lab.pem(lab.make_ca(lab.cn("e"), key=ed25519.Ed25519PrivateKey.generate())),
            "Ed25519",
        ),
    ],
)
def test_a_trust_file_that_trusts_nobody_is_refused(
    tmp_path: Path, data: bytes, words: str
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(data)
    with pytest.raises(PkiError, match=words) as caught:
        load_trust(file)
    assert caught.value.message.startswith(f"{file}: ")


def test_a_pinned_ed25519_leaf_may_be_trusted(tmp_path: Path) -> None:
    file = tmp_path / "pin.pem"
    made = leaf(key=ed25519.Ed25519PrivateKey.generate())
    file.write_bytes(lab.pem(made))
    assert load_trust(file) == [made.cert]
