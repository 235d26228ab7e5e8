"""Which verified nodes may take part, and by what name they are known."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

import pki_lab as lab
from nray.config.errors import ConfigError
from nray.config.reader import loads
from nray.config.rules import relations
from nray.pki.allowed import AllowedNodes
from nray.pki.errors import PeerRejected
from nray.pki.names import SHOWN_CHARACTERS_MAX, _told_apart, identity_of
from nray.pki.verify import VerifiedPeer


def peer(identity: str) -> VerifiedPeer:
    return VerifiedPeer(identity, "CN=x", 1, datetime.datetime.now(datetime.UTC))


def admits(patterns: list[str], identity: str) -> bool:
    try:
        AllowedNodes(patterns).demand(peer(identity))
    except PeerRejected as rejected:
        return rejected.reason != "not-allowed"
    return True


@pytest.mark.parametrize(
    ("pattern", "identity", "fits"),
    [
        ("*", "", True),
        ("node7.lab", "node7.lab", True),
        ("node7.lab", "node7xlab", False),
        ("node7.lab", "node7.lab.evil.org", False),
        ("node7.lab", "xnode7.lab", False),
        ("node7.lab", "node7.lab\n", False),
        ("*.lab", "node7.lab", True),
        ("*.lab", "a.b.lab", True),
        ("*.lab", ".lab", True),
        ("*.lab", "lab", False),
        ("*.lab", "node7.lab.", False),
        ("*.lab", "node7.lab\\x00.evil", False),
        ("*.LAB", "Node7.lab", True),
        ("nyc[0-9]", "nyc7", True),
        ("nyc[!0-9]", "nyc7", False),
        ("nyc?", "nyc", False),
        ("spiffe://lab/nodes/*", "spiffe://lab/nodes/a/b", True),
        ("*@lab.example", "node@lab.example", True),
        ("node 7", "node 7", True),
        ("a|b", "a", False),
        ("a+", "aa", False),
    ],
)
def test_patterns(pattern: str, identity: str, fits: bool) -> None:
    assert admits([pattern], identity) is fits
    assert admits(["other", pattern], identity) is fits


def test_no_pattern_lets_nobody_in() -> None:
    assert not admits([], "node7.lab")


def test_the_refusal_names_who_and_what_is_allowed() -> None:
    with pytest.raises(PeerRejected, match=r"^not-allowed: eve .*alice, bob\*"):
        AllowedNodes(["alice", "bob*"]).demand(peer("eve"))


def test_many_stars_take_no_time() -> None:
    assert not admits(["*a" * 150 + "b"], "a" * 300)


# ── names ───────────────────────────────────────────────────────────────────────────────────


def uri(text: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(text)]


def mail(text: str) -> list[x509.GeneralName]:
    return [x509.RFC822Name(text)]


@pytest.mark.parametrize(
    ("san", "subject", "identity"),
    [
        (lab.dns("Node7.LAB"), lab.cn("x"), "node7.lab"),
        ([*uri("spiffe://Lab/n"), *lab.dns("n.lab")], lab.cn("x"), "n.lab"),
        ([*mail("n@lab"), *uri("spiffe://Lab/n")], lab.cn("x"), "spiffe://Lab/n"),
        ([*lab.ip("198.18.0.1"), *mail("N@lab")], lab.cn("x"), "N@lab"),
        (None, lab.cn("Node 7"), "Node 7"),
        (None, lab.cn("LAB\\node"), "LAB\\\\node"),
        (lab.dns("node7.lab\0.evil.org"), lab.cn("x"), "node7.lab\\x00.evil.org"),
        ([*lab.dns(""), *uri("spiffe://n")], lab.cn("x"), "spiffe://n"),
    ],
)
def test_the_name_of_a_node(san: list | None, subject: x509.Name, identity: str) -> None:
    assert identity_of(lab.make(subject, san=san).cert) == identity


@given(st.text(max_size=12), st.text(max_size=12))
def test_two_names_are_never_alike(one: str, other: str) -> None:
    assert (_told_apart(one) == _told_apart(other)) is (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a\nb", "a\\nb"),
        ("\\", "\\\\"),
        ("x" * 1000, "x" * 999 + "y"),
        ("x" * (SHOWN_CHARACTERS_MAX + 1), "x" * SHOWN_CHARACTERS_MAX),
    ],
)
def test_nor_such_as_are_made_to_be(one: str, other: str) -> None:
    assert _told_apart(one) != _told_apart(other)
    # Nor can the one be another's shown form.
    assert _told_apart(_told_apart(one)) != _told_apart(one) or "\\" not in _told_apart(one)


@given(st.text(max_size=400))
def test_they_are_printable_and_short(text: str) -> None:
    shown = _told_apart(text)
    assert shown.isprintable()
    assert len(shown) <= 10 * SHOWN_CHARACTERS_MAX


# ── the key ─────────────────────────────────────────────────────────────────────────────────

TLS = "TLS: {CA: ca.pem, cert: s.pem, key: k.pem, forceClientAuth: true, allowedNodes: %s}\n"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'*'", ("*",)),
        ("node 7", ("node 7",)),
        ("['*.lab', 'nyc[0-9]', 'a[]]b', 'a[!]]']", ("*.lab", "nyc[0-9]", "a[]]b", "a[!]]")),
        ("[one, one, '']", ("one",)),
    ],
)
def test_patterns_are_read(written: str, read: tuple[str, ...]) -> None:
    assert loads(TLS % written).tls.allowed_nodes == read


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "no value"),
        ("null", "no value"),
        ("[]", "at least one"),
        ("['']", "at least one"),
        ("['nyc[0-9']", "without its ]"),
        ("['nyc[9-0]']", "empty range, 9-0"),
        ("['nyc[]']", "without its ]"),
        ("['a ']", "space"),
        (f"['{'x' * 321}']", "321 characters"),
        ("{a: b}", "no list"),
        ("[[a]]", "no text"),
        ("[true]", "quotes"),
    ],
)
def test_what_is_no_pattern_is_told_with_its_key(written: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(TLS % written, "conf.yaml")
    said = f"{caught.value}\n{caught.value.hint}"
    assert "allowedNodes" in said
    assert "conf.yaml:1" in said
    assert words in said


@pytest.mark.parametrize(
    ("tls", "right"),
    [
        ("TLS: {cert: c, key: k, allowedNodes: [a]}", "TLS.forceClientAuth: true"),
        ("TLS: {allowedNodes: [a]}", "TLS.enabled: true"),
        ("TLS: {enabled: false, forceClientAuth: true, allowedNodes: [a]}", "TLS.enabled: true"),
    ],
)
def test_patterns_without_certificates_are_a_mistake(tls: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(tls)
    assert "TLS.allowedNodes" in str(caught.value)
    assert right in f"{caught.value}\n{caught.value.hint}"


def test_without_the_key_all_verified_nodes_may_come() -> None:
    assert loads("").tls.allowed_nodes == ("*",)
    assert list(relations(loads("TLS: {cert: c, key: k}"))) == []
