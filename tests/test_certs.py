"""``nray certs``: what is written, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certs_lab import certs, good, wrong
from nray.pki import files, office
from nray.pki.bundle import load_bundle
from nray.pki.errors import PkiError
from nray.pki.keys import load_identity, load_trust
from nray.pki.register import Entry, Register, state_of
from nray.pki.verify import PeerRejected, peer_name, verify_node, verify_server

DAY = datetime.timedelta(days=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an authority in ``nray-ca``."""
    monkeypatch.chdir(tmp_path)
    good("init")
    return tmp_path


def load(path: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def crl() -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(Path("nray-ca/crl.pem").read_bytes())


def crl_number() -> int:
    return crl().extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in good("list", "--json").splitlines()]


def states() -> list[tuple[str, str]]:
    return [(row["name"], row["state"]) for row in rows() if row["kind"] != "ca"]


# ── an authority ────────────────────────────────────────────────────────────────────────────


def test_an_authority_is_made(here: Path) -> None:
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (here / "nray-ca").iterdir()}
    assert names.pop("ca.pem") == names.pop("crl.pem") == 0o644
    assert names == {"ca-key.pem": 0o600, "issued.jsonl": 0o600}
    assert stat.S_IMODE((here / "nray-ca").stat().st_mode) == 0o700
    assert os.listdir(here) == ["nray-ca"]
    (ca,) = load_trust("nray-ca/ca.pem")
    assert ca.subject.rfc4514_string().startswith("CN=authority ")
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)
    assert crl().is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    assert (crl_number(), len(crl())) == (1, 0)


def test_two_authorities_have_two_names(here: Path) -> None:
    good("init", "--dir", "other")
    assert load("nray-ca/ca.pem").subject != load("other/ca.pem").subject


@pytest.mark.parametrize("there", ["ca.pem", "ca-key.pem", "notes.txt"])
def test_an_authority_is_made_in_no_place_that_holds_something(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    assert "error: " in wrong("init", "--dir", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_an_authority_is_made_in_an_empty_directory_but_not_in_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    good("init", "--dir", tmp_path / "empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "a directory of its own" in wrong("init", "--dir", ".")
    assert "no such file" in wrong("init", "--dir", "a/b")
    (tmp_path / "here" / "link").symlink_to("nowhere")
    assert "leads nowhere" in wrong("init", "--dir", "link")
    assert os.listdir() == ["link"]


def test_what_fails_half_way_leaves_no_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        raise PkiError(f"{path}: no space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(office, "write", fail)
    assert "no space left" in wrong("init")
    assert os.listdir() == []


def test_a_passphrase_keeps_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("open sesame\nsecond line\n")
    assert "encrypted" in good("init", "--passphrase-file", "secret")
    assert "ENCRYPTED" in Path("nray-ca/ca-key.pem").read_text()
    assert "NRAY_CA_PASSPHRASE" in wrong("issue", "node", "a")
    Path("bad").write_text("guess")
    assert "not the passphrase" in (said := wrong("crl", "--passphrase-file", "bad"))
    assert "guess" not in said
    good("issue", "node", "a", "--passphrase-file", "secret")
    monkeypatch.setenv("NRAY_CA_PASSPHRASE", "open sesame")
    good("issue", "node", "b")
    assert "no passphrase" in wrong("crl", "--passphrase-file", os.devnull)
    assert "no such file" in wrong("crl", "--passphrase-file", "none")
    good("list")  # needs none
    # A passphrase for a key that has none is no reason to stop.
    good("init", "--dir", "plain")
    monkeypatch.delenv("NRAY_CA_PASSPHRASE")
    good("init", "--dir", "open")
    good("crl", "--dir", "open", "--passphrase-file", "secret")


# ── certificates ────────────────────────────────────────────────────────────────────────────


def test_a_server_and_a_node_are_believed(here: Path) -> None:
    good("issue", "server", "localhost", "127.0.0.1", "--out", "server")
    good("issue", "node", "NYC1")
    trust, now = load_trust("nray-ca/ca.pem"), datetime.datetime.now(datetime.UTC)
    server = load_identity("server.pem", "server-key.pem").leaf
    verify_server(server, [], trust, peer_name("127.0.0.1"), now)
    node = load_identity("NYC1.pem", "NYC1-key.pem").leaf
    assert verify_node(node, [], trust, now).identity == "nyc1"
    assert node.subject.rfc4514_string() == "CN=NYC1,OU=node,O=nray"
    for one, days in ((server, 365), (node, 30)):
        assert abs(one.not_valid_after_utc - now - days * DAY) < datetime.timedelta(minutes=1)
        assert now - one.not_valid_before_utc >= datetime.timedelta(minutes=5)
        assert 0 < one.serial_number < 1 << 159
        san = one.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert not san.critical
    assert stat.S_IMODE(Path("server-key.pem").stat().st_mode) == 0o600
    assert states() == [("localhost", "valid"), ("NYC1", "valid")]


def test_the_identity_is_said_where_it_is_not_the_name(here: Path) -> None:
    assert "identity in events and for TLS.allowedNodes: nyc1\n" in good("issue", "node", "NYC1")
    assert "identity" not in good("issue", "node", "fra1")
    assert "identity" not in good("issue", "node", "vantage point 7")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", " a", "a ", "\u202ea"])
def test_a_name_that_would_disturb_a_terminal_is_refused(here: Path, name: str) -> None:
    said = wrong("issue", "node", name)
    assert "cannot be the name of a node" in said
    assert all(character.isprintable() or character == "\n" for character in said)
    assert states() == []


def test_an_rsa_key_is_made_where_it_is_asked_for(here: Path) -> None:
    good("issue", "node", "a", "--rsa", "2048", "--days", "3")
    key = load("a.pem").public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 2048
    good("renew", "a", "--replace")
    renewed = load("a.pem")
    assert isinstance(renewed.public_key(), rsa.RSAPublicKey)
    assert renewed.not_valid_after_utc - renewed.not_valid_before_utc < 4 * DAY
    assert "2048, 3072 or 4096" in wrong("issue", "node", "b", "--rsa", "1024")


@pytest.mark.parametrize(
    ("name", "file"),
    [("*.example.org", "example.org"), ("::1", "1"), ("a/../b", "a-..-b"), (".hidden", "hidden")],
)
def test_a_file_is_named_after_what_it_is_for(here: Path, name: str, file: str) -> None:
    kind = "node" if "/" in name or name.startswith(".") else "server"
    good("issue", kind, name)
    assert sorted(os.listdir()) == [f"{file}-key.pem", f"{file}.pem", "nray-ca"]


@pytest.mark.parametrize("taken", ["a.pem", "a-key.pem"])
def test_no_file_is_overwritten_and_nothing_issued_then(here: Path, taken: str) -> None:
    Path(taken).write_text("precious")
    assert f"{taken}: the file exists" in wrong("issue", "node", "a")
    assert Path(taken).read_text() == "precious"
    assert states() == []


def test_a_bundle_is_not_overwritten_either(here: Path) -> None:
    Path("a.nray").symlink_to("elsewhere")
    assert "a.nray: the file exists" in wrong("issue", "node", "a", "--bundle", "a.nray")
    good("issue", "node", "a", "--bundle", "a.nray", "--replace")
    assert not Path("elsewhere").exists()
    assert load_bundle("a.nray").identity.leaf == load("a.nray")


@pytest.mark.parametrize(
    "arguments",
    [
        "issue server my_host",
        "issue server",
        "issue server localhost:8601",
        "issue node",
        "issue node a b",
        "issue node " + "x" * 65,
        "issue node a --days 0",
        "issue node a --days 99999",
        "issue node a --days x",
        "issue node a --out x --bundle y",
        "issue node a --out none/x",
        "issue node a --bundle x --server-name my_host",
        "issue node a --dir elsewhere",
        "issue server localhost --bundle x",
        "renew a",
        "revoke a",
        "revoke",
        "revoke --serial 00",
        "revoke --serial 0123456789abcdef",
        "list --dir elsewhere",
        "crl --dir elsewhere",
        "check none.pem",
        "check",
        "nothing",
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_done(here: Path, arguments: str) -> None:
    assert "error: " in wrong(*arguments.split())
    assert states() == []
    assert os.listdir() == ["nray-ca"]


def test_a_leaf_ends_with_its_authority_and_that_is_said(tmp_path: Path) -> None:
    good("init", "--dir", tmp_path / "ca", "--days", "10")
    stem = tmp_path / "a"
    ended = certs("issue", "node", "a", "--out", stem, "--dir", tmp_path / "ca")
    assert ended.status == 0
    assert "it ends with its authority" in ended.err
    assert (
        load(f"{stem}.pem").not_valid_after_utc == load(f"{tmp_path}/ca/ca.pem").not_valid_after_utc
    )


def test_an_authority_that_has_ended_issues_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = datetime.datetime.now(datetime.UTC) + 1826 * DAY
    monkeypatch.setattr("nray.api.certs._now", lambda: later)
    assert "ended on" in wrong("issue", "node", "a")


def test_a_key_of_the_authority_that_others_can_read_is_warned_of(here: Path) -> None:
    os.chmod("nray-ca/ca-key.pem", 0o640)
    assert "open to other users (mode 0640)" in certs("issue", "node", "a").err


@pytest.mark.parametrize("content", ["", "no key", "-----BEGIN PRIVATE KEY-----\nx\n"])
def test_a_broken_authority_is_told_of(here: Path, content: str) -> None:
    Path("nray-ca/ca-key.pem").write_text(content)
    assert "nray-ca/ca-key.pem" in wrong("crl")
    good("init", "--dir", "other")
    Path("nray-ca/ca-key.pem").write_bytes(Path("other/ca-key.pem").read_bytes())
    assert "not the key of" in wrong("crl")


# ── renewing and revoking ───────────────────────────────────────────────────────────────────


def test_renewing_makes_new_key_and_certificate_for_the_same_names(here: Path) -> None:
    good("issue", "server", "localhost", "127.0.0.1", "::1", "--out", "server", "--days", "9")
    old, old_key = load("server.pem"), Path("server-key.pem").read_bytes()
    assert "server.pem: the file exists" in wrong("renew", "localhost")
    said = good("renew", "LOCALHOST", "--replace")
    new = load_identity("server.pem", "server-key.pem").leaf
    assert Path("server-key.pem").read_bytes() != old_key
    assert new.serial_number != old.serial_number
    for kind in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage):
        assert (
            new.extensions.get_extension_for_class(kind).value
            == old.extensions.get_extension_for_class(kind).value
        )
    assert new.not_valid_after_utc - old.not_valid_after_utc < DAY
    assert "stays good until" in said
    line = next(line for line in said.splitlines() if "revoke --serial" in line)
    good(*line.split()[2:])  # it can be pasted
    assert states() == [("localhost", "revoked"), ("localhost", "valid")]
    assert crl().get_revoked_certificate_by_serial_number(old.serial_number)


def test_renewing_can_revoke_what_was_before(here: Path) -> None:
    good("issue", "node", "a", "--bundle", "a.nray", "--server-name", "localhost")
    good("renew", "a", "--bundle", "b.nray")
    assert load_bundle("b.nray").server_name == "localhost"
    good("renew", "a", "--replace", "--revoke-old")
    assert [state for _, state in states()] == ["revoked", "revoked", "valid"]
    assert len(crl()) == 2
    assert load_bundle("b.nray").identity.leaf.serial_number == int(rows()[-1]["serial"], 16)
    assert load("a.nray").serial_number == int(rows()[1]["serial"], 16)  # not touched


def test_a_name_has_one_certificate_until_it_is_renewed_or_revoked(here: Path) -> None:
    good("issue", "node", "a")
    assert "nray certs renew a" in wrong("issue", "server", "a", "--out", "b")
    assert "revoked: node a" in good("revoke", "a")
    assert "has no certificate that is good: the last one is revoked" in wrong("revoke", "a")
    assert "is not renewed" in wrong("renew", "a", "--replace")
    good("issue", "node", "a", "--out", "b")
    assert states() == [("a", "revoked"), ("a", "valid")]


def test_revoking_by_serial(here: Path) -> None:
    good("issue", "node", "a")
    good("issue", "node", "b")
    serial = rows()[1]["serial"]
    assert "at least 8 digits" in wrong("revoke", "--serial", serial[:7])
    good("revoke", "--serial", ":".join(serial[i : i + 2] for i in range(0, 40, 2)).upper())
    assert "revoked already" in wrong("revoke", "--serial", serial)
    assert states() == [("a", "revoked"), ("b", "valid")]


def test_several_are_revoked_at_once_or_none(here: Path) -> None:
    good("issue", "node", "a")
    good("issue", "node", "b")
    assert "nothing was ever issued" in wrong("revoke", "a", "b", "nobody")
    assert states() == [("a", "valid"), ("b", "valid")]
    good("revoke", "a", "b")
    assert len(crl()) == 2


def test_numbers_of_lists_grow_even_if_one_is_lost(here: Path) -> None:
    good("crl")
    good("crl", "--days", "7")
    assert crl_number() == 3
    end = crl().next_update_utc
    assert end is not None
    assert end - datetime.datetime.now(datetime.UTC) < 7 * DAY
    os.unlink("nray-ca/crl.pem")
    assert "not up to date" in certs("list").err
    good("issue", "node", "a")  # signs one by the way
    assert crl_number() == 4
    identifier = crl().extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = load("nray-ca/ca.pem").extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert identifier.key_identifier == own.value.digest


def test_a_list_that_is_half_over_is_signed_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("issue", "node", "a")
    assert crl_number() == 1
    later = datetime.datetime.now(datetime.UTC) + 46 * DAY
    monkeypatch.setattr("nray.api.certs._now", lambda: later)
    good("issue", "node", "b")
    assert crl_number() == 2


# ── crashes and company ─────────────────────────────────────────────────────────────────────


class Crash(BaseException):
    """The process ends here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[Path]:
    """The process dies before so many files have been moved into place, in any module."""
    done: list[Path] = []
    real_rename, real_link = os.rename, os.link

    def stop(path: Path) -> None:
        if len(done) == step:
            raise Crash
        done.append(path)

    def rename(source: Path, target: Path) -> None:
        stop(target)
        real_rename(source, target)

    def link(source: Path, target: Path) -> None:
        stop(target)
        real_link(source, target)

    monkeypatch.setattr(files.os, "rename", rename)
    monkeypatch.setattr(files.os, "link", link)
    return done


@pytest.mark.parametrize("step", range(4))
def test_no_certificate_gets_out_that_could_not_be_revoked(
    here: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        try:
            certs("issue", "node", "a")
        except Crash:
            pass
    known = {int(row["serial"], 16) for row in rows()}
    out = [load("a.pem")] if Path("a.pem").exists() else []
    assert len(out) == (step == 3)
    assert {one.serial_number for one in out} <= known
    for key in Path(".").glob("*-key.pem"):
        load_identity("a.pem", key) if out else key.unlink()
    # And it goes on from there.
    again = "renew" if len(known) > 1 else "issue"
    good(*[again, "node", "a"] if again == "issue" else [again, "a", "--replace"])
    good("revoke", "a")


@pytest.mark.parametrize("step", range(3))
def test_what_was_revoked_stays_so(here: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    good("issue", "node", "a")
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        try:
            certs("revoke", "a")
        except Crash:
            pass
    assert states() == [("a", "valid" if step == 0 else "revoked")]
    assert len(crl()) == (step == 2)
    if step == 1:
        assert "not up to date" in certs("list").err
        good("issue", "node", "b")
        assert len(crl()) == 1


@pytest.mark.parametrize("what", ["a.pem", "a-key.pem"])
def test_a_certificate_that_cannot_be_written_is_revoked(
    here: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = files.write

    def write(path: Path, *arguments: object, **more: object) -> None:
        if path.name == what:
            raise PkiError(f"{path}: the file cannot be written (no space left on device)")
        real(path, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write)
        assert "no space left" in wrong("issue", "node", "a")
    assert os.listdir() == ["nray-ca"]
    assert states() == [("a", "revoked")]
    good("issue", "node", "a")


def test_what_a_killed_process_left_is_removed(here: Path) -> None:
    for name in (".issued.jsonl.0123456789abcdef", ".crl.pem.0123456789abcdef", ".crl.pem.notes"):
        Path("nray-ca", name).write_text("half")
    good("issue", "node", "a")
    hidden = [name for name in os.listdir("nray-ca") if name.startswith(".")]
    assert hidden == [".crl.pem.notes"]


def test_two_at_once_take_turns(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good("issue", "node", "a")
    monkeypatch.setattr(office, "LOCK_WAIT_S", 0.0)
    with open("nray-ca/lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another nray certs is at work" in wrong("issue", "node", "b")
        good("list")
    good("issue", "node", "b")


def test_many_at_once_lose_nothing(here: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from nray.api.certs import Place, issue

    def one(number: int) -> None:
        name = f"node{number}"
        issue(
            "nray-ca", "node", [name], Place(bundle=f"{name}.nray"),
            days=None, rsa_bits=0, passphrase=None,
        )  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(12)))
    assert sorted(states()) == sorted((f"node{number}", "valid") for number in range(12))
    known = {row["serial"] for row in rows()}
    assert {f"{load(str(path)).serial_number:040x}" for path in Path().glob("*.nray")} < known


def test_nothing_secret_is_ever_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRAY_CA_PASSPHRASE", "open sesame")
    told = [certs("init", "--dir", "b"), certs("issue", "node", "a", "--dir", "b")]
    told += [certs("issue", "node", "a", "--dir", "b"), certs("check", "a.pem", "--dir", "b")]
    monkeypatch.setenv("NRAY_CA_PASSPHRASE", "open barley")
    told += [certs("revoke", "a", "--dir", "b"), certs("list", "--json", "--dir", "b")]
    assert [ended.status for ended in told] == [0, 0, 2, 0, 2, 0]
    text = "".join(ended.out + ended.err for ended in told)
    text += Path("b/issued.jsonl").read_text()
    for key in ("b/ca-key.pem", "a-key.pem"):
        assert Path(key).read_text().splitlines()[1] not in text
    assert "PRIVATE KEY" not in text
    assert "sesame" not in text
    assert "barley" not in text


def test_no_key_is_ever_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a umask that forbids nothing: the mode is right from the first moment."""
    modes: list[int] = []
    real = os.open

    def watched(path: object, flags: int, mode: int = 0o777, **more: object) -> int:
        descriptor = real(path, flags, mode, **more)  # type: ignore[arg-type]
        if flags & os.O_CREAT and ("key" in str(path) or ".nray." in str(path)):
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.chdir(tmp_path)
    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "open", watched)
        good("init")
        good("issue", "server", "localhost")
        good("issue", "node", "a", "--bundle", "a.nray")
    finally:
        os.umask(before)
    assert modes == [0o600] * 3


# ── the register ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("x\n", "issued.jsonl:1"),
        ('{"nray_certs": 2}\n', "a newer nray"),
        ('{"nray_certs": 1}\n{"serial": 7}\n', "issued.jsonl:2"),
        ('{"nray_certs": 1}\n{}\n', "issued.jsonl:2"),
    ],
)
def test_a_damaged_register_stops_everything(here: Path, content: str, words: str) -> None:
    Path("nray-ca/issued.jsonl").write_text(content)
    for command in (["list"], ["crl"], ["issue", "node", "a"]):
        assert words in wrong(*command)
    os.unlink("nray-ca/issued.jsonl")
    assert "take it from a backup" in wrong("revoke", "a")
    assert Path("nray-ca/crl.pem").exists()


def test_a_register_is_read_as_it_was_written(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    entry = Entry(
        serial="0" * 40, kind="server", name="ü\n", names=["ü\n"], days=1, rsa_bits=0,
        begins=now, ends=now + DAY, stem="/a", revoked=now,
    )  # fmt: skip
    Register(tmp_path / "r", [entry], 7).save()
    read = Register.load(tmp_path / "r")
    assert (read.entries, read.crl_number) == ([entry], 7)
    assert list(read.revoked()) == [(0, now)]


@pytest.mark.parametrize(
    ("days", "left", "state"),
    [
        (365, 8 * DAY, "valid"),
        (365, 6 * DAY, "expires soon"),
        (30, 6.5 * DAY, "valid"),
        (30, 5.5 * DAY, "expires soon"),
        (5, 2 * DAY, "valid"),
        (5, DAY / 2, "expires soon"),
        (5, -DAY, "expired"),
    ],
)
def test_states(days: int, left: datetime.timedelta, state: str) -> None:
    end = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
    assert state_of(end - days * DAY, end, end - left) == state


def test_what_was_renewed_no_longer_asks_for_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("issue", "node", "a")
    later = datetime.datetime.now(datetime.UTC) + 25 * DAY
    monkeypatch.setattr("nray.api.certs._now", lambda: later)
    assert states() == [("a", "expires soon")]
    good("renew", "a", "--replace", "--days", "365")
    assert states() == [("a", "valid"), ("a", "valid")]


def test_what_was_revoked_first_stays_the_date(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    entry = Entry(
        serial="0" * 40, kind="node", name="a", names=[], days=1, rsa_bits=0,
        begins=now, ends=now + DAY,
    )  # fmt: skip
    register = Register(tmp_path / "r", [entry], 0)
    register.revoke({entry.serial}, now)
    register.revoke({entry.serial}, now + DAY)
    assert list(register.revoked()) == [(0, now)]


def test_a_file_that_comes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with pytest.raises(PkiError, match="not overwritten"):
        files.write(tmp_path / "a", b"new", 0o600)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_the_list_fits_a_terminal(here: Path) -> None:
    good("issue", "node", "x" * 64, "--out", "a")
    good("revoke", "x" * 64)
    lines = good("list").splitlines()
    assert lines[0].split() == ["NAME", "KIND", "SERIAL", "ENDS", "STATE"]
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    assert lines[2].endswith("revoked")


# ── bundles ─────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_holds_all_that_a_node_needs(here: Path) -> None:
    good("issue", "node", "nyc1", "--bundle", "nyc1.nray", "--server-name", "scan.example.org")
    assert stat.S_IMODE(Path("nyc1.nray").stat().st_mode) == 0o600
    bundle = load_bundle("nyc1.nray")
    assert list(bundle.trust) == load_trust("nray-ca/ca.pem")
    assert bundle.identity.chain == ()
    assert bundle.server_name == "scan.example.org"
    now = datetime.datetime.now(datetime.UTC)
    assert verify_node(bundle.identity.leaf, [], bundle.trust, now).identity == "nyc1"


def test_a_bundle_can_be_made_by_cat(here: Path) -> None:
    good("issue", "node", "a")
    parts = [Path(name).read_bytes() for name in ("a.pem", "a-key.pem", "nray-ca/ca.pem")]
    Path("a.nray").touch(0o600)
    for other in ("b.nray", "c.nray"):
        Path(other).touch(0o600)
    Path("a.nray").write_bytes(b"".join(parts))
    bundle = load_bundle("a.nray")
    assert (bundle.server_name, len(bundle.trust)) == (None, 1)
    # With an authority sent along, and two believed.
    Path("b.nray").write_bytes(parts[0] + parts[2] + parts[1] + parts[2] + parts[2])
    bundle = load_bundle("b.nray")
    assert (len(bundle.identity.chain), len(bundle.trust)) == (1, 2)
    for order in ((0, 1), (0, 2, 1), (1, 0, 2)):
        Path("c.nray").write_bytes(b"".join(parts[index] for index in order))
        with pytest.raises(PkiError, match=r"c\.nray: no authority stands behind the key"):
            load_bundle("c.nray")
    for broken in (b"", parts[0], parts[1] + parts[2], b"nray-server-name: a b\n" + parts[0]):
        Path("c.nray").write_bytes(broken)
        with pytest.raises(PkiError, match=r"c\.nray"):
            load_bundle("c.nray")
    Path("c.nray").write_bytes(b"nray-server-name: a b\n" + b"".join(parts))
    with pytest.raises(PkiError, match="nray-server-name"):
        load_bundle("c.nray")


@pytest.mark.parametrize(
    "flags", ["--tls-insecure", "--tls-ca-cert x", "--tls-client-cert x", "--tls-client-key x"]
)
def test_a_bundle_and_flags_that_say_the_same(flags: str) -> None:
    from nray.cli.root import _status

    assert _status(["node", "--bundle", "none.nray", *flags.split()], "nray") == 2


# ── check ───────────────────────────────────────────────────────────────────────────────────


def test_what_is_good_is_said_to_be_good(here: Path) -> None:
    good("issue", "server", "*.example.org", "::1", "--out", "server")
    good("issue", "node", "a", "--bundle", "a.nray")
    said = good("check", "server.pem", "server-key.pem", "a.nray", "nray-ca/ca.pem")
    assert "server.pem: good as a server, DNS:*.example.org, IP:::1, until" in said
    assert 'a.nray: good as a node, "a", until' in said
    assert "nray-ca/ca.pem: good as an authority" in said
    good("check", "server.pem", "--name", "b.example.org")
    assert "the key of server.pem" in good("check", "server-key.pem")
    Path("nray-ca").rename("elsewhere")
    good("check", "a.nray")  # holds its authority
    assert "no authority to judge it by" in wrong("check", "server.pem")
    good("check", "server.pem", "--ca", "elsewhere/ca.pem")
    good("check", "server.pem", "--dir", "elsewhere")


def test_what_would_be_refused_is_said_with_the_reason(here: Path) -> None:
    good("issue", "server", "localhost", "--out", "server")
    good("issue", "node", "a")

    def refused(*arguments: str) -> str:
        return wrong("check", *arguments, status=1)

    assert "refused as a server (wrong-name)" in refused("server.pem", "--name", "other")
    assert "refused as a node (wrong-use)" in refused("server.pem", "--as", "node")
    assert "refused as a server (wrong-use)" in refused("a.pem", "--as", "server", "--name", "a")
    assert "not the key of any" in refused("server.pem", "a-key.pem")
    assert "not the key of any" in refused("server.pem", "a.pem", "a-key.pem", "nray-ca/ca-key.pem")
    good("init", "--dir", "other")
    assert "(unknown-issuer)" in refused("server.pem", "--ca", "other/ca.pem")
    Path("server-key.pem").write_bytes(Path("a-key.pem").read_bytes())
    assert "this is not the key of the certificate" in refused("server.pem")  # lies beside it
    Path("a-key.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    assert "cannot be read" in refused("a.pem", "a-key.pem")
    assert "cannot be read" in refused("a-key.pem")
    Path("x.pem").write_text("nothing")
    assert "there is no PEM certificate" in refused("x.pem")


def test_what_was_revoked_would_be_refused(here: Path) -> None:
    good("issue", "node", "a")
    good("issue", "node", "b", "--bundle", "b.nray")
    shutil.copy("nray-ca/crl.pem", "before.pem")
    good("revoke", "a", "b")
    for file in ("a.pem", "b.nray"):
        assert "refused as a node (revoked)" in wrong("check", file, status=1)
    said = wrong("check", "a.pem", "nray-ca/crl.pem", "nray-ca/ca.pem", "--dir", "x", status=1)
    assert "nray-ca/crl.pem: good as a list of the revoked" in said
    assert "2 revoked, until" in said
    assert "(revoked)" in said
    good("check", "a.pem", "--crl", "before.pem")
    good("check", "a.pem", "--ca", "nray-ca/ca.pem", "--dir", "x")
    good("init", "--dir", "other")
    assert "not trusted here" in wrong("check", "a.pem", "--crl", "other/crl.pem", status=1)
    assert "no authority to judge it by" in wrong("check", "before.pem", "--dir", "x")


def test_an_end_that_is_near_is_warned_of(here: Path) -> None:
    good("issue", "node", "a", "--days", "3")
    good("crl", "--days", "3")
    said = certs("check", "a.pem", "nray-ca/crl.pem").err.splitlines()
    assert len(said) == 2
    assert "a.pem: the certificate expires on" in said[1]
    assert "nray-ca/crl.pem: the revocation list of" in said[0]


def test_a_key_open_to_others_is_warned_of(here: Path) -> None:
    good("issue", "node", "a")
    os.chmod("a-key.pem", 0o644)
    ended = certs("check", "a.pem")
    assert ended.status == 0
    assert "warning: a-key.pem: the private key is open to other users (mode 0644)" in ended.err


def test_odd_certificates_are_judged_as_peers_would(tmp_path: Path) -> None:
    import pki_lab as lab

    now = datetime.datetime.now(datetime.UTC)
    when = {"begin": now - DAY, "end": now + DAY}
    ca = lab.make_ca(lab.cn("ca"), **when)
    lab.write(tmp_path, "ca", ca)
    ed = lab.make_ca(lab.cn("ed"), key=lab.ed25519.Ed25519PrivateKey.generate(), **when)
    lab.write(tmp_path, "ed", ed)
    old = {"begin": now - 9 * DAY, "end": now - 2 * DAY}
    odd = {
        "old": (lab.make(lab.cn("old"), ca, eku=[lab.CLIENT_AUTH], **old), "(expired)"),
        "nosan": (lab.make(lab.cn("x"), ca, eku=[lab.SERVER_AUTH], **when), "no name at all"),
        "code": (lab.make(lab.cn("x"), ca, eku=[lab.CODE_SIGNING], **when), "(wrong-use)"),
        "edleaf": (lab.make(lab.cn("x"), ed, **when), "Ed25519"),
        "weak": (
            lab.make(lab.cn("x"), ca, public_key=lab.public_rsa(1024), **when),
            "RSA key has 1024 bits",
        ),
    }
    for name, (made, words) in odd.items():
        (tmp_path / f"{name}.pem").write_bytes(lab.pem(made))
        if made.key is not None:
            lab.write(tmp_path, name, made)
        said = wrong("check", tmp_path / f"{name}.pem", "--ca", tmp_path / "ca.pem", status=1)
        assert words in said, name
    assert "Ed25519" in wrong("check", tmp_path / "ed.pem", status=1)
    for name, more, words in (
        ("oldca", old, "(expired)"),
        ("newca", {"begin": now + DAY, "end": now + 2 * DAY}, "(not-yet-valid)"),
        ("nosign", {**when, "key_usage": lab.usage("crl_sign")}, "(wrong-use)"),
        ("weakca", {**when, "public_key": lab.public_rsa(1024)}, "(weak)"),
    ):
        made = lab.make_ca(lab.cn(name), **more)
        (tmp_path / f"{name}.pem").write_bytes(lab.pem(made))
        assert words in wrong("check", tmp_path / f"{name}.pem", status=1)
    both = lab.make(lab.cn("both"), ca, **when)  # as cfssl makes a node's
    (tmp_path / "both.pem").write_bytes(lab.pem(both))
    said = good("check", tmp_path / "both.pem", tmp_path / "ca.pem")
    assert "good as a node" in said
    assert "server" not in said


def test_a_refusal_of_the_real_judge_is_one_of_check(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check has no opinion of its own: what the judge refuses, it refuses."""
    good("issue", "node", "a")

    def refuse(*_: object) -> None:
        raise PeerRejected("weak", "says the judge")

    monkeypatch.setattr("nray.api.check_certs.verify_node", refuse)
    assert "(weak): says the judge" in wrong("check", "a.pem", status=1)
