"""The small authority: accepted by ourselves, by `openssl verify`, and by a stock policy."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

import pki_lab as lab
from nray.pki.authority import Pair, create_authority, issue_node, issue_server, write_pair
from nray.pki.errors import PkiError
from nray.pki.keys import load_identity, load_trust
from nray.pki.verify import PeerRejected, peer_name, verify_node, verify_server

NAMES = ["localhost", "127.0.0.1", "::1", "*.lab.example", "bücher.example"]


def now() -> datetime.datetime:
    """Asked each time: in a long session this file was read longer ago than certificates begin."""
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def ca() -> Pair:
    return create_authority("nray demo authority", 30)


def test_servers_and_nodes_are_accepted_for_what_they_are(ca: Pair) -> None:
    trust = [ca.certificate]
    server = issue_server(ca, NAMES, 7).certificate
    for name in ("localhost", "127.0.0.1", "[::1]", "a.lab.example", "bücher.example"):
        verify_server(server, [], trust, peer_name(name), now())
    node = issue_node(ca, "vantage point 7", 7).certificate
    assert verify_node(node, [], trust, now()).identity == "vantage point 7"
    named = issue_node(ca, "node7.lab", 7).certificate
    assert verify_node(named, [], trust, now()).identity == "node7.lab"


def test_neither_can_pose_as_the_other(ca: Pair) -> None:
    trust = [ca.certificate]
    server = issue_server(ca, NAMES, 7).certificate
    node = issue_node(ca, "localhost", 7).certificate
    with pytest.raises(PeerRejected, match="wrong-use"):
        verify_node(server, [], trust, now())
    with pytest.raises(PeerRejected, match="wrong-use"):
        verify_server(node, [], trust, peer_name("localhost"), now())


def test_openssl_agrees(ca: Pair, tmp_path: Path) -> None:
    write_pair(tmp_path, "ca", *ca)
    write_pair(tmp_path, "server", *issue_server(ca, NAMES, 7))
    write_pair(tmp_path, "node", *issue_node(ca, "node 7", 7))
    verify = ["verify", "-x509_strict", "-check_ss_sig", "-CAfile", "ca.pem", "-purpose"]
    lab.openssl(tmp_path, *verify, "sslserver", "-verify_hostname", "localhost", "server.pem")
    lab.openssl(tmp_path, *verify, "sslserver", "-verify_ip", "::1", "server.pem")
    lab.openssl(tmp_path, *verify, "sslclient", "node.pem")
    with pytest.raises(AssertionError, match="purpose"):
        lab.openssl(tmp_path, *verify, "sslserver", "node.pem")


def test_a_stock_policy_agrees(ca: Pair) -> None:
    builder = PolicyBuilder().store(Store([ca.certificate])).time(now())
    server = issue_server(ca, NAMES, 7).certificate
    builder.build_server_verifier(x509.DNSName("localhost")).verify(server, [])
    builder.build_client_verifier().verify(issue_node(ca, "node7.lab", 7).certificate, [])


def test_subjects_serials_and_keys_are_distinct(ca: Pair) -> None:
    made = [ca, issue_server(ca, NAMES, 7), issue_node(ca, "a", 7), issue_node(ca, "b", 7)]
    assert len({pair.certificate.subject for pair in made}) == 4
    assert len({pair.certificate.serial_number for pair in made}) == 4
    assert len({pair.key.private_numbers().private_value for pair in made}) == 4


def test_a_leaf_ends_no_later_than_its_authority(ca: Pair) -> None:
    leaf = issue_node(ca, "a", 365).certificate
    assert leaf.not_valid_after_utc == ca.certificate.not_valid_after_utc
    short = issue_node(ca, "a", 1).certificate
    assert abs(short.not_valid_after_utc - now() - lab.DAY) < datetime.timedelta(minutes=5)
    assert short.not_valid_before_utc < now()


def test_the_authority_issues_no_authorities(ca: Pair) -> None:
    sub = lab.make_ca(
        lab.cn("sub"), lab.Made(ca.certificate, ca.key), begin=now() - lab.DAY, end=now() + lab.DAY
    )
    leaf = lab.make(lab.cn("leaf"), sub, begin=now() - lab.DAY, end=now() + lab.DAY)
    with pytest.raises(PeerRejected, match="wrong-use"):
        verify_node(leaf.cert, [sub.cert], [ca.certificate], now())


def test_an_authority_made_by_openssl_can_issue_too(tmp_path: Path) -> None:
    lab.openssl(
        tmp_path, *["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca-key.pem"]
    )  # fmt: skip
    request = ["req", "-x509", "-key", "ca-key.pem", "-subj", "/CN=by-openssl", "-out", "ca.pem"]
    lab.openssl(tmp_path, *request)
    identity = load_identity(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    leaf = issue_server(Pair(identity.leaf, identity.key), ["localhost"], 7).certificate
    # openssl's certificates begin at the very second.
    soon = now() + datetime.timedelta(minutes=1)
    verify_server(leaf, [], load_trust(tmp_path / "ca.pem"), peer_name("localhost"), soon)


@pytest.mark.parametrize(
    "call",
    [
        lambda ca: create_authority("", 1),
        lambda ca: create_authority("x" * 65, 1),
        lambda ca: create_authority("x", 0),
        lambda ca: create_authority("x", 1_000_000),
        lambda ca: issue_server(ca, [], 1),
        lambda ca: issue_server(ca, ["my_host"], 1),
        lambda ca: issue_server(ca, ["localhost:8601"], 1),
        lambda ca: issue_server(ca, ["*"], 1),
        lambda ca: issue_server(ca, ["*.org"], 1),
        lambda ca: issue_server(ca, ["*.10.0.0.1"], 1),
        lambda ca: issue_server(ca, ["localhost"], -1),
        lambda ca: issue_node(ca, "", 1),
        lambda ca: issue_node(ca, "x" * 65, 1),
    ],
)
def test_what_cannot_be_issued_is_an_error_of_the_user(ca: Pair, call) -> None:
    with pytest.raises(PkiError) as caught:
        call(ca)
    assert "--tls-server-SAN" not in caught.value.hint


def test_a_long_name_of_a_server_is_no_common_name(ca: Pair) -> None:
    name = ".".join(["a" * 40] * 3)
    leaf = issue_server(ca, [name], 1).certificate
    verify_server(leaf, [], [ca.certificate], peer_name(name), now())


# ── files ───────────────────────────────────────────────────────────────────────────────────


def test_a_pair_is_written_and_loaded_again(ca: Pair, tmp_path: Path) -> None:
    pair = issue_server(ca, NAMES, 365)
    cert, key = write_pair(tmp_path, "server", *pair)
    assert (cert, key) == (tmp_path / "server.pem", tmp_path / "server-key.pem")
    assert load_identity(cert, key).leaf == pair.certificate
    assert sorted(os.listdir(tmp_path)) == ["server-key.pem", "server.pem"]


def test_a_key_is_never_open_to_others(ca: Pair, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        _, key = write_pair(tmp_path, "a", *ca)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize("there", ["a.pem", "a-key.pem"])
def test_nothing_is_overwritten(ca: Pair, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(PkiError, match="not overwritten") as caught:
        write_pair(tmp_path, "a", *ca)
    assert there in caught.value.message
    assert os.listdir(tmp_path) == [there]
    assert (tmp_path / there).read_text() == "precious"


def test_a_link_in_place_of_a_key_is_not_followed(ca: Pair, tmp_path: Path) -> None:
    (tmp_path / "a-key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PkiError):
        write_pair(tmp_path, "a", *ca)
    assert os.listdir(tmp_path) == ["a-key.pem"]


def test_a_directory_that_is_not_there_is_an_error_of_the_user(ca: Pair, tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="no such file or directory"):
        write_pair(tmp_path / "none", "a", *ca)
