"""Lists of revoked certificates: who is believed to issue them, what they say, what is refused."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import pki_lab as lab
from nray.pki.errors import PeerRejected, PkiError
from nray.pki.revocation import BLOCKS_MAX, LIST_BYTES_MAX, Revocations, load_revocations
from nray.pki.verify import VerifiedPeer, peer_name, verify_node, verify_server


@functools.cache
def root() -> lab.Made:
    return lab.make_ca(lab.cn("root"))


@functools.cache
def namesake() -> lab.Made:
    """Another authority of the very same subject."""
    return lab.make_ca(lab.cn("root"))


@functools.cache
def sub() -> lab.Made:
    return lab.make_ca(lab.cn("sub"), root())


@functools.cache
def leaf(issuer=root, name: str = "leaf") -> lab.Made:
    return lab.make(lab.cn(name), issuer(), san=lab.dns("localhost"))


def load(tmp_path: Path, data: bytes, *trust: lab.Made) -> Revocations:
    file = tmp_path / "revoked.pem"
    file.write_bytes(data)
    return load_revocations(file, [one.cert for one in trust or (root(),)])


def judge(
    revocations: Revocations,
    made: lab.Made,
    *others: lab.Made,
    trust: tuple[lab.Made, ...] = (),
    end: str = "c",
) -> VerifiedPeer:
    sent = [one.cert for one in others]
    anchors = [one.cert for one in trust or (root(),)]
    if end == "s":
        return verify_server(made.cert, sent, anchors, peer_name("localhost"), lab.NOW, revocations)
    return verify_node(made.cert, sent, anchors, lab.NOW, revocations)


BOTH = pytest.mark.parametrize("end", ["s", "c"])


@BOTH
def test_a_revoked_leaf_is_refused_and_others_are_not(tmp_path: Path, end: str) -> None:
    crl = lab.make_crl(root(), leaf(), reason=x509.ReasonFlags.key_compromise)
    revocations = load(tmp_path, lab.crl_pem(crl))
    with pytest.raises(PeerRejected) as caught:
        judge(revocations, leaf(), end=end)
    assert caught.value.reason == "revoked"
    assert "was revoked on 2026-05-31 (keyCompromise)" in caught.value.detail
    assert f"{leaf().cert.serial_number:x}" in caught.value.detail
    judge(revocations, leaf(name="other"), end=end)


@BOTH
def test_so_is_what_a_revoked_sub_authority_issued(tmp_path: Path, end: str) -> None:
    revocations = load(tmp_path, lab.crl_pem(lab.make_crl(root(), sub())))
    with pytest.raises(PeerRejected, match=r'revoked: the certificate of its issuer "CN=sub"'):
        judge(revocations, leaf(sub), sub(), end=end)


@BOTH
def test_also_where_the_sub_authority_itself_is_trusted(tmp_path: Path, end: str) -> None:
    """The chain then ends at it, and its own issuer's list is asked all the same."""
    trust = (sub(), root())
    revocations = load(tmp_path, lab.crl_pem(lab.make_crl(root(), sub())), *trust)
    with pytest.raises(PeerRejected, match="revoked"):
        judge(revocations, leaf(sub), trust=trust, end=end)


@BOTH
def test_a_leaf_of_a_sub_authority_revoked_by_that(tmp_path: Path, end: str) -> None:
    crl = lab.crl_pem(lab.make_crl(sub(), leaf(sub)))
    revocations = load(tmp_path, lab.pem(sub()) + crl)
    with pytest.raises(PeerRejected, match="revoked"):
        judge(revocations, leaf(sub), sub(), end=end)
    judge(revocations, leaf(sub, "other"), sub(), end=end)


def test_a_pinned_leaf_that_its_issuer_revoked(tmp_path: Path) -> None:
    trust = (leaf(), root())
    revocations = load(tmp_path, lab.crl_pem(lab.make_crl(root(), leaf())), *trust)
    with pytest.raises(PeerRejected, match="revoked"):
        judge(revocations, leaf(), trust=trust)


@BOTH
@pytest.mark.parametrize("order", [1, -1])
def test_the_same_serial_of_a_namesake_is_not_meant(tmp_path: Path, end: str, order: int) -> None:
    """Two trusted authorities of one subject: a list of one says nothing of the other's."""
    trust = (root(), namesake())[::order]
    crl = lab.crl_pem(lab.make_crl(namesake(), leaf()))
    revocations = load(tmp_path, crl, *trust)
    judge(revocations, leaf(), trust=trust, end=end)
    crls = crl + lab.crl_pem(lab.make_crl(root(), leaf()))
    with pytest.raises(PeerRejected, match="revoked"):
        judge(load(tmp_path, crls, *trust), leaf(), trust=trust, end=end)


def test_other_faults_come_first(tmp_path: Path) -> None:
    """A certificate of a stranger is not looked up: its serial is whatever he likes."""
    revocations = load(tmp_path, lab.crl_pem(lab.make_crl(root(), leaf())))
    forged = lab.make(lab.cn("x"), namesake(), san=lab.dns("localhost"))
    with pytest.raises(PeerRejected, match="unknown-issuer"):
        judge(revocations, forged)


def test_lists_of_one_issuer_add_up(tmp_path: Path) -> None:
    other = leaf(name="other")
    crls = lab.crl_pem(lab.make_crl(root(), leaf()), lab.make_crl(root(), other))
    for revoked in (leaf(), other):
        with pytest.raises(PeerRejected, match="revoked"):
            judge(load(tmp_path, crls), revoked)


def test_der_and_words_around_pem(tmp_path: Path) -> None:
    crl = lab.make_crl(root(), leaf())
    der = crl.public_bytes(serialization.Encoding.DER)
    for data in (der, b"Revoked by us:\r\n" + lab.crl_pem(crl).replace(b"\n", b"\r\n")):
        with pytest.raises(PeerRejected, match="revoked"):
            judge(load(tmp_path, data), leaf())


@pytest.mark.parametrize("digest", [hashes.SHA384(), hashes.SHA512()])
def test_lists_by_openssl_and_with_other_hashes(tmp_path: Path, digest) -> None:
    with pytest.raises(PeerRejected, match="revoked"):
        judge(load(tmp_path, lab.crl_pem(lab.make_crl(root(), leaf(), digest=digest))), leaf())


@pytest.mark.parametrize("days", [-1, 30])
def test_a_list_that_is_overdue_still_counts(tmp_path: Path, days: int) -> None:
    end = lab.NOW + days * lab.DAY
    begin = lab.NOW - 60 * lab.DAY
    revocations = load(tmp_path, lab.crl_pem(lab.make_crl(root(), leaf(), begin=begin, end=end)))
    with pytest.raises(PeerRejected, match="revoked"):
        judge(revocations, leaf())
    judge(revocations, leaf(name="other"))
    (ending,) = revocations.endings()
    assert bool(ending.warning(lab.NOW)) == (days < 7)
    if days < 0:
        assert "revoked.pem" in ending.warning(lab.NOW)
        assert "since is let in" in ending.warning(lab.NOW)
        assert 'list of "CN=root" has expired' in ending.brief(lab.NOW)


def test_of_two_editions_the_newer_ones_end_counts(tmp_path: Path) -> None:
    old = lab.make_crl(root(), begin=lab.NOW - 9 * lab.DAY, end=lab.NOW - lab.DAY)
    revocations = load(tmp_path, lab.crl_pem(old, lab.make_crl(root())))
    assert [ending.warning(lab.NOW) for ending in revocations.endings()] == [""]


def test_what_is_odd_is_warned_of(tmp_path: Path) -> None:
    trust = [root().cert, sub().cert, leaf().cert]
    crl = lab.make_crl(root(), begin=lab.NOW + lab.DAY)
    revocations = load(tmp_path, lab.crl_pem(crl))
    clock, missing = revocations.warnings(trust, lab.NOW)
    assert "later than this machine's clock" in clock
    assert "no list of" in missing
    assert "CN=sub" in missing


# ── what is refused at start-up ─────────────────────────────────────────────────────────────


def own_key_lists() -> bytes:
    crl = lab.make_crl(leaf(), leaf(), name=lab.cn("leaf"))
    return lab.crl_pem(crl)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
INDIRECT = x509.IssuingDistributionPoint(
    full_name=lab.dns("crl.example"),
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=True,
    only_contains_attribute_certs=False,
)
USERS_ONLY = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=True,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


def flipped() -> bytes:
    data = bytearray(lab.make_crl(root(), leaf()).public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    return bytes(data)


WHOLE = lab.crl_pem(lab.make_crl(root(), 7))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "is empty"),
        (lambda: b" \n", "is empty"),
        (lambda: b"hello", "no list of revoked certificates that can be read"),
        (lambda: b"\x30\x82\xff", "can be read"),
        (lambda: WHOLE[: len(WHOLE) // 2], "has no end"),
        (lambda: WHOLE + WHOLE[: len(WHOLE) // 2], "has no end"),
        (lambda: WHOLE[len(WHOLE) // 2 :], "can be read"),
        (lambda: WHOLE.replace(b"M", b"?"), "can be read"),
        (lambda: lab.pem(root()), "no list of revoked certificates in it"),
        (lambda: WHOLE + lab.key_pem(root().key), "something else than lists in it (PRIVATE KEY)"),
        (lambda: WHOLE * (BLOCKS_MAX + 1), f"more than {BLOCKS_MAX}"),
        (lambda: b"\0" * (LIST_BYTES_MAX + 1), "larger than 16 MiB"),
        (lambda: lab.crl_pem(lab.make_crl(sub(), 7)), 'of "CN=sub" is of an authority that is not'),
        (lambda: WHOLE + lab.crl_pem(lab.make_crl(sub(), 7)), "not trusted here"),
        (
            lambda: lab.crl_pem(lab.make_crl(namesake(), 7)),
            "not signed by the trusted authority of that name",
        ),
        (flipped, "not signed by"),
        (
            lambda: lab.crl_pem(lab.make_crl(sub(), 7, name=lab.cn("root"))),
            "not signed by",
        ),
        (own_key_lists, "not trusted here"),
        (lambda: lab.pem(leaf()) + own_key_lists(), "not trusted here"),
        (
            # A stranger's authority beside his own list does not make it trusted.
            lambda: lab.pem(namesake(), lab.make_ca(lab.cn("x"))) + lab.crl_pem(
                lab.make_crl(namesake(), 7)
            ),
            "not signed by",
        ),
        (
            lambda: lab.crl_pem(
                lab.make_crl(root(), extra=[(x509.DeltaCRLIndicator(1), True)])
            ),
            "a delta",
        ),
        (lambda: lab.crl_pem(lab.make_crl(root(), extra=[(INDIRECT, True)])), "indirect"),
        (lambda: lab.crl_pem(lab.make_crl(root(), extra=[(UNKNOWN, True)])), "1.2.3.4.5"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_named_with_its_fault(tmp_path: Path, make, words: str) -> None:
    with pytest.raises(PkiError) as caught:
        load(tmp_path, make())
    assert str(tmp_path / "revoked.pem") in caught.value.message
    assert words in caught.value.message


def test_an_issuer_that_may_not_sign_lists(tmp_path: Path) -> None:
    ca = lab.make_ca(lab.cn("no lists"), key_usage=lab.usage("key_cert_sign"))
    with pytest.raises(PkiError, match="keyUsage") as caught:
        load(tmp_path, lab.crl_pem(lab.make_crl(ca, 7)), ca)
    assert "cRLSign" in caught.value.hint


def test_one_without_key_usage_may(tmp_path: Path) -> None:
    ca = lab.make_ca(lab.cn("req -x509"), key_usage=None)
    made = lab.make(lab.cn("leaf"), ca)
    revocations = load(tmp_path, lab.crl_pem(lab.make_crl(ca, made)), ca)
    with pytest.raises(PeerRejected, match="revoked"):
        judge(revocations, made, trust=(ca,))


def test_a_weak_signature_on_a_list(tmp_path: Path) -> None:
    made = lab.make_ca(
        lab.cn("old"), key=lab.rsa_key(0), begin=TODAY - lab.DAY, end=TODAY + lab.DAY
    )
    lab.write(tmp_path, "ca", made)
    (tmp_path / "index.txt").write_text("")
    (tmp_path / "ca.cnf").write_text(
        "[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\ndefault_md=sha1\ndefault_crl_days=1\n"
    )
    command = "ca -config ca.cnf -gencrl -keyfile ca-key.pem -cert ca.pem -out old.pem"
    lab.openssl(tmp_path, *command.split())
    with pytest.raises(PkiError, match="weak hash"):
        load_revocations(tmp_path / "old.pem", [made.cert])
    # The control: the same with SHA-256, version 1, without any extension.
    lab.openssl(tmp_path, *command.replace("-out", "-md sha256 -out").split())
    assert load_revocations(tmp_path / "old.pem", [made.cert]).lists[0].serials == frozenset()


TODAY = datetime.datetime.now(datetime.UTC)


def test_a_list_of_a_part_is_taken_for_what_it_lists(tmp_path: Path) -> None:
    crl = lab.make_crl(root(), leaf(), extra=[(USERS_ONLY, True)])
    with pytest.raises(PeerRejected, match="revoked"):
        judge(load(tmp_path, lab.crl_pem(crl)), leaf())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="no such file"):
        load_revocations(tmp_path / "none.pem", [root().cert])
