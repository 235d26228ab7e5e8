"""`nray config check` and `nray config show`: words, streams, exit statuses."""

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from nray.cli.config import config
from nray.config.reader import load

GOOD = "targetgenerator.standard.targets: [192.0.2.1]\nevents.terminal:\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "conf.yaml"


def test_check_says_ok(conf: Path) -> None:
    conf.write_text(GOOD)
    result = CliRunner().invoke(config, ["check", str(conf)])
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{conf}: ok\n", "")


def test_check_warns_and_is_content(conf: Path) -> None:
    conf.write_text(GOOD + "scannerconfig.zgrab2.enabledModules: [ssh]\n")
    result = CliRunner().invoke(config, ["check", str(conf)])
    assert (result.exit_code, result.stdout) == (0, f"{conf}: ok\n")
    assert result.stderr.startswith(f"{conf}: warning: scannerconfig.zgrab2.enabledModules: ")


@pytest.mark.parametrize("command", ["check", "show"])
def test_mistakes_go_to_stderr_with_status_2(command: str, conf: Path) -> None:
    conf.write_text("debug: true\npoolz: 1\nhost: [a]\n")
    result = CliRunner().invoke(config, [command, str(conf)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"{conf}:2: poolz: unknown key",
        "  did you mean pools?",
        f"{conf}:3: host: a list is no text",
        "  write text, in quotes if need be",
    ]


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_file_that_is_not_there(command: str, conf: Path) -> None:
    result = CliRunner().invoke(config, [command, str(conf)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{conf}: cannot be read: No such file or directory\n"
    assert CliRunner().invoke(config, [command]).exit_code == 2


def test_show_prints_what_reads_back(conf: Path, tmp_path: Path) -> None:
    conf.write_text(GOOD + "TLS: {cert: c, key: k}\ntargetgenerator.ldap.ldapPass: hunter2\n")
    result = CliRunner().invoke(config, ["show", str(conf)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert yaml.safe_load(result.stdout)["TLS"]["enabled"] is True
    assert "hunter2" not in result.stdout
    again = tmp_path / "again.yaml"
    again.write_text(result.stdout)
    assert CliRunner().invoke(config, ["show", str(again)]).stdout == result.stdout
    assert load(again).tls == load(conf).tls


@pytest.mark.parametrize("name", [None, "check", "show"])
def test_help_has_a_line_to_paste(name: str | None) -> None:
    result = CliRunner().invoke(config, [name, "--help"] if name else ["--help"])
    assert result.exit_code == 0
    command = config if name is None else config.commands[name]
    assert isinstance(command, click.Command)
    assert "Example: nray config " in result.stdout
