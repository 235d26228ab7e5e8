"""The judge of peers against the table of attacks, certificate by certificate, without a socket."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

import pki_lab as lab
from nray.pki.allowed import AllowedNodes
from nray.pki.errors import PkiError
from nray.pki.names import printable
from nray.pki.verify import PeerRejected, peer_name, verify_node, verify_server
from pki_attacks import CASES, NAME, Case, G, Shown, guide_ca, guide_leaf, leaf, root

# ── the judging ─────────────────────────────────────────────────────────────────────────────


def judge(shown: Shown, end: str) -> object:
    certs = [one.cert for one in shown.others]
    trust = [one.cert for one in shown.trust]
    if end == "s":
        name = peer_name(shown.name)
        return verify_server(shown.leaf.cert, certs, trust, name, shown.now, shown.revocations)
    peer = verify_node(shown.leaf.cert, certs, trust, shown.now, shown.revocations)
    AllowedNodes(shown.allowed).demand(peer)
    return peer


def both_ends() -> list:
    return [
        pytest.param(one, end, id=f"{'server' if end == 's' else 'node'}: {one.title}")
        for one in CASES
        for end in one.ends
    ]


@pytest.mark.parametrize(("one", "end"), both_ends())
def test_table_of_attacks(one: Case, end: str) -> None:
    shown = one.make()
    if one.reason is None:
        peer = judge(shown, end)
        assert peer.serial == shown.leaf.cert.serial_number
        assert peer.not_after == shown.leaf.cert.not_valid_after_utc
        return
    with pytest.raises(PeerRejected) as caught:
        judge(shown, end)
    assert caught.value.reason == one.reason, caught.value.detail
    assert one.detail in caught.value.detail
    assert caught.value.detail.isprintable()
    assert caught.value.stream is None


def test_a_time_without_zone_is_refused_not_guessed() -> None:
    with pytest.raises(PeerRejected):
        verify_node(leaf().cert, [], [root().cert], lab.NOW.replace(tzinfo=None))


def test_a_panic_of_the_library_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 names it."""

    def panic(_: object) -> None:
        raise PanicException("called unwrap on a None value")

    monkeypatch.setattr("nray.pki.verify.key_weakness", panic)
    with pytest.raises(PeerRejected, match="malformed"):
        verify_node(leaf().cert, [], [root().cert], lab.NOW)


def test_an_interrupt_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nray.pki.verify.key_weakness", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify_node(leaf().cert, [], [root().cert], lab.NOW)


def test_terminal_escapes_in_an_unverified_certificate_do_not_reach_the_log() -> None:
    evil = lab.make(lab.cn("x\x1b[2J\nserver: all is well"), san=lab.dns(NAME))
    with pytest.raises(PeerRejected) as caught:
        verify_node(evil.cert, [], [root().cert], lab.NOW)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("san", "subject", "identity"),
    [
        (lab.dns("node-7.lab"), lab.cn("other"), "node-7.lab"),
        (
            [x509.UniformResourceIdentifier("spiffe://lab/n7"), *lab.ip("::1")],
            lab.cn("o"),
            "spiffe://lab/n7",
        ),
        (lab.ip("10.0.0.7"), lab.cn("other"), "10.0.0.7"),
        (None, lab.cn("node 7"), "node 7"),
        (None, G, "O=nray-scanner,L=Munich,C=DE"),
        (None, lab.cn("a\nb"), "a\\nb"),
    ],
)
def test_identity_of_a_verified_peer(san: list | None, subject: x509.Name, identity: str) -> None:
    made = lab.make(subject, root(), san=san)
    assert verify_node(made.cert, [], [root().cert], lab.NOW).identity == identity


def test_the_two_cas_of_a_renewal_do_not_hide_the_cause() -> None:
    """Old and new authority of one key: the name is wrong, not the old one's time."""
    key = lab.rsa_key(0)
    old = lab.make_ca(G, key=key, end=lab.NOW - lab.DAY)
    new = lab.make_ca(G, key=key)
    for trust in ([old, new], [new, old]):
        with pytest.raises(PeerRejected) as caught:
            judge(Shown(guide_leaf(new), trust, name="other.org"), "s")
        assert caught.value.reason == "wrong-name"


# ── names that are dialled ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST", "localhost"),
        ("host.example.", "host.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%eth0]", "fe80::1"),
    ],
)
def test_peer_name(text: str, value: str) -> None:
    assert str(peer_name(text).value) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "my_host", "host:8601", "[::1]:8601", "a..b", "-a.org", "a-.org", "*.ex.org", "a b",
     "1.2.3", "10.0.0.256", "x" * 64, "a." * 127 + "ab", "a\nb", "https://host/", "\u2024", "::g"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(PkiError) as caught:
        peer_name(text)
    assert "--tls-server-SAN" in caught.value.hint
    assert caught.value.message.isprintable()


@given(st.text(max_size=40) | st.text("abc-.:[]%_0129", max_size=40))
def test_any_text_is_a_name_that_the_judge_takes_or_a_user_error(text: str) -> None:
    try:
        name = peer_name(text)
    except PkiError:
        return
    with pytest.raises(PeerRejected) as caught:
        verify_server(guide_ca().cert, [], [root().cert], name, lab.NOW)
    assert "invalid" not in str(caught.value.__cause__)


@given(st.text(max_size=400))
def test_printable_is_printable_and_short(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 160 * 10
