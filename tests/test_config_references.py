"""`!env` and `!file`: what they yield, what is told when they cannot, what is never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from nray.cli.config import config as config_command
from nray.config.errors import ConfigError, Problem
from nray.config.policy import parse_policy
from nray.config.reader import load, loads
from nray.config.references import VALUE_BYTES_MAX
from nray.config.secret import SecretText
from nray.config.writer import to_yaml

CANARY = "hunter2-canary"
PASS = "targetgenerator.ldap.ldapPass"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRAY_SECRET", CANARY)
    monkeypatch.setenv("NRAY_EMPTY", "")
    monkeypatch.delenv("NRAY_UNSET", raising=False)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "conf.yaml"


def problem(text: str, name: str = "conf.yaml") -> Problem:
    with pytest.raises(ConfigError) as raised:
        loads(text, name)
    (found,) = raised.value.problems
    assert CANARY not in str(raised.value)
    return found


def test_a_password_from_a_variable_and_from_a_file(conf: Path) -> None:
    (conf.parent / "pass").write_text(f"{CANARY}\n")
    conf.write_text(f"{PASS}: !file pass\ntargetgenerator.ldap.ldapUser: !env NRAY_SECRET\n")
    ldap = load(conf).targetgenerator.ldap
    assert (ldap.ldap_pass.reveal(), ldap.ldap_user) == (CANARY, CANARY)


@pytest.mark.parametrize(
    ("content", "value"),
    [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), (" p ", " p "), ("null", "null"), ("no", "no")],
)
def test_a_file_is_taken_as_it_is_but_for_its_line_end(
    content: str, value: str, conf: Path
) -> None:
    (conf.parent / "pass").write_bytes(content.encode())
    conf.write_text(f"{PASS}: !file pass\n")
    assert load(conf).targetgenerator.ldap.ldap_pass.reveal() == value


def test_every_kind_of_value_may_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"B": "true", "N": "8", "D": "3s", "L": "22 80", "P": "443"}.items():
        monkeypatch.setenv(f"NRAY_{name}", value)
    text = """\
debug: !env NRAY_B
pools: !env NRAY_N
statusPrintInterval: !env NRAY_D
targetgenerator.standard.tcpports: !env NRAY_L
targetgenerator.standard.udpports: ['53', !env NRAY_P, "x1"]
scannerconfig.udp.customHexPayloads: {19: !env NRAY_N}
events.terminal.filter:
  result.port: !env NRAY_P
  environment: {}
"""
    config = loads(text)
    assert (config.debug, config.pools, config.status_print_interval_s) == (True, 8, 3.0)
    standard = config.targetgenerator.standard
    assert (standard.tcp_ports, standard.udp_ports) == (("22", "80"), ("53", "443", "x1"))
    assert config.scannerconfig.udp.custom_hex_payloads == {19: b"8"}
    assert config.events.terminal is not None
    assert config.events.terminal.filter == {"result.port": 443, "environment": None}
    written = to_yaml(config)
    for line in (
        "debug: !env NRAY_B",
        "pools: !env NRAY_N",
        "tcpports: !env NRAY_L",
        "udpports: ['53', !env NRAY_P, \"x1\"]",
        "19: !env NRAY_N",
        "result.port: !env NRAY_P",
    ):
        assert f"{line}\n" in written
    assert loads(written) == config


def test_a_reference_is_shown_and_its_value_never(conf: Path) -> None:
    conf.write_text(f"{PASS}: !env NRAY_SECRET\n")
    result = CliRunner().invoke(config_command, ["show", str(conf)])
    assert "ldapPass: !env NRAY_SECRET\n" in result.stdout
    assert CANARY not in result.stdout + result.stderr + repr(load(conf))


def test_a_name_that_needs_quotes_gets_them(conf: Path) -> None:
    name = "a: b #c"
    (conf.parent / name).write_text(CANARY)
    conf.write_text(f"{PASS}: !file '{name}'\n")
    config = load(conf)
    assert loads(to_yaml(config), str(conf)) == config


@pytest.mark.parametrize(
    ("value", "seen", "right"),
    [
        ("!env NRAY_UNSET", "!env NRAY_UNSET: the variable is not set", "export NRAY_UNSET"),
        ("!env NRAY_EMPTY", "!env NRAY_EMPTY: the variable is empty", "give NRAY_EMPTY a value"),
        ("!env $NRAY_SECRET", "!env is not followed by the name of a variable", "without $"),
        (f"!env '{CANARY} !'", "!env is not followed by the name of a variable", "write !env"),
        ("!env", "!env is not followed by the name of a variable", "write !env NAME"),
        ("!file", "!file is not followed by the name of a file", "write !file PATH"),
        ("!file absent", "!file absent: cannot be read: No such file", "looked for"),
        ('!file "a\\0b"', "cannot be read", "looked for"),
        ("!file .", "is no regular file", "name one"),
        ("!file /dev/zero", "is no regular file", "name one"),
        ("!file pipe", "is no regular file", "name one"),
        ("!file empty", "!file empty: the file is empty", "write the value"),
        ("!file binary", "!file binary: the file is not UTF-8", "save it as UTF-8"),
        ("!file large", "!file large: more than 64 KiB", "one value"),
        ("!file lines", "the value of !file lines (2 lines) does not fit here", "text"),
        ("!file pem", "!file pem holds a certificate or key", "without !file"),
    ],
)
def test_what_leads_nowhere_is_told_with_line_and_key(
    value: str, seen: str, right: str, conf: Path
) -> None:
    files = {
        "empty": b"\n",
        "binary": b"\xff" + CANARY.encode(),
        "large": b"x" * (VALUE_BYTES_MAX + 1),
        "lines": f"{CANARY}\nmore\n".encode(),
        "pem": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n".encode(),
    }
    for name, content in files.items():
        (conf.parent / name).write_bytes(content)
    os.mkfifo(conf.parent / "pipe")
    found = problem(f"debug: no\n{PASS}: {value}\n", str(conf))
    assert (found.file, found.line, found.key) == (str(conf), 2, PASS)
    assert seen in found.seen
    assert right in found.right


@pytest.mark.parametrize(
    "key",
    [
        "debug", "pools", "statusPrintInterval", "scannerconfig.ratelimit", "scannerconfig.workers",
        "scannerconfig.zgrab2.ssh.subscribePorts", "events.terminal.format",
        "scannerconfig.zgrab2.enabledModules", "events.terminal.states",
        "targetgenerator.ldap.ldapPort", "scannerconfig.udp.customHexPayloads.x",
    ],
)  # fmt: skip
def test_no_kind_quotes_what_a_reference_has_brought(key: str) -> None:
    found = problem(f"{key}: !env NRAY_SECRET\n")
    assert found.key == key
    if "Payloads" not in key:  # there the port is what is wrong
        assert found.seen == "the value of !env NRAY_SECRET does not fit here"


def test_no_kind_of_text_quotes_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRAY_SECRET", f"\x07*{CANARY}\\q(")
    keys = ("host", "targetgenerator.certificatetransparency.domainRegex")
    for key in (*keys, "scannerconfig.udp.defaultHexPayload"):
        problem(f"{key}: !env NRAY_SECRET\n")
    problem("targetgenerator.standard.targets: [192.0.2.1, !env NRAY_SECRET]\n")


@pytest.mark.parametrize(
    "value",
    [f'"{CANARY}\\a"', f"*{CANARY}", f"!{CANARY}", f"!{CANARY} x", f"!<{CANARY}> x",
     f"[{CANARY}]", f"{{a: {CANARY}}}"],
)  # fmt: skip
def test_a_password_written_wrongly_is_not_quoted(value: str) -> None:
    assert problem(f"{PASS}: {value}\n").line == 1


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("TLS: !env NRAY_SECRET\n", "the value of !env NRAY_SECRET is no section"),
        ("host: !env [a]\n", "!env with a list or a section"),
        ("TLS: !file {enabled: true}\n", "!file with a list or a section"),
        ("!env NRAY_SECRET: 1\n", "a key that is a list, a section or a reference"),
        ("!env NRAY_SECRET\n", "the value of !env NRAY_SECRET is no configuration"),
        ("host: !ENV NRAY_SECRET\n", "the tag is not read"),
        ("host: !!env NRAY_SECRET\n", 'the tag "!!env" is not read'),
    ],
)
def test_a_reference_stands_for_a_value_alone(text: str, seen: str) -> None:
    assert seen in problem(text).seen


def test_a_policy_has_no_references() -> None:
    with pytest.raises(ConfigError, match="the tag is not read"):
        parse_policy("networks: !env NRAY_SECRET\n")


def test_a_secret_that_all_can_read_is_warned_of(conf: Path) -> None:
    def warned() -> str:
        result = CliRunner().invoke(config_command, ["check", str(conf)])
        assert result.exit_code == 0
        assert CANARY not in result.output
        return "".join(line for line in result.stderr.splitlines() if "all users" in line)

    secret = conf.parent / "pass"
    secret.write_text(CANARY)
    conf.touch(0o600)
    secret.chmod(0o644)
    conf.write_text(f"{PASS}: !file pass\n")
    assert f"{PASS}: all users can read it in {secret} (mode 0644)" in warned()
    secret.chmod(0o640)
    conf.chmod(0o644)
    assert warned() == ""  # the configuration holds no secret
    conf.write_text(f"{PASS}: {CANARY}\n")
    assert f"all users can read it in {conf} (mode 0644)" in warned()
    conf.write_text(f"{PASS}: !env NRAY_SECRET\n")
    assert warned() == ""


def test_a_secret_shows_nowhere() -> None:
    secret = SecretText(CANARY)
    assert CANARY not in f"{secret} {secret!r} {[secret]} {secret:}"
    assert (bool(secret), bool(SecretText())) == (True, False)
    assert secret == SecretText(CANARY) != SecretText("x")
    assert hash(secret) == hash(SecretText(CANARY))
    assert secret != CANARY


def test_what_was_written_is_read_without_its_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger's configuration, by somebody who has neither the variables nor the files."""
    text = """\
TLS: {cert: !file c, key: !env NRAY_UNSET, enabled: true}
pools: !env NRAY_UNSET
targetgenerator.standard.targets: [192.0.2.1, !file absent]
scannerconfig.udp.customHexPayloads: {19: !env NRAY_UNSET}
events.terminal.filter: {a: !env NRAY_UNSET}
"""
    config = loads(text, follow=False)
    assert (config.pools, config.tls.enabled, config.tls.cert) == (1, True, "")
    written = to_yaml(config)
    assert written.count("!env NRAY_UNSET") == 4
    assert "targets: [192.0.2.1, !file absent]" in written
    assert to_yaml(loads(written, follow=False)) == written


def test_tls_may_change_its_references_before_a_scan_goes_on() -> None:
    from nray.api.serve import _but_for_tls

    rest = "targetgenerator.ldap.ldapPass: !env NRAY_SECRET\npools: {}\nTLS: "
    then = loads(rest.format(2) + "{CA: !env NRAY_SECRET}")
    now = loads(rest.format(2) + "{CA: ca.pem, cert: !env NRAY_SECRET}")
    assert _but_for_tls(to_yaml(then), now) == to_yaml(now)
    assert _but_for_tls(to_yaml(now), then) == to_yaml(then)
    other = loads(rest.format(3) + "{CA: ca.pem}")
    assert _but_for_tls(to_yaml(then), other) != to_yaml(other)
