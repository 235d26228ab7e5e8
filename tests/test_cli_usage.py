"""Flags are those of REFERENCE.md; what is used wrongly is told with what would be right."""

from __future__ import annotations

import click
import pytest

from cli_lab import parse
from nray import UserError
from nray.api import scan
from nray.cli.command import Number, Rate, hint_of, message_of, nearest
from nray.cli.root import COMMANDS, nray
from nray.cli.scan import RETRIES_MAX, InFlight, States, Timeout
from nray.config import kinds
from nray.node import bounds

#: REFERENCE.md's table of command lines; ``-h`` is on every command.
REFERENCE = {
    "server": [{"-c", "--config"}],
    "node": [
        {"-s", "--server"},
        {"-p", "--port"},
        {"--node-name"},
        {"--preferred-pool"},
        {"--debug"},
        {"--use-tls"},
        {"--tls-insecure"},
        {"--tls-ca-cert"},
        {"--tls-client-cert"},
        {"--tls-client-key"},
        {"--tls-server-SAN"},
    ],
    "scan": [
        {"-t", "--targets"},
        {"-p", "--ports"},
        {"-u", "--udp"},
        {"--timeout"},
        {"-o", "--output"},
        {"-w", "--workers"},
    ],
}

SCAN_HINT = (
    "for example: nray scan -t 198.18.0.0/24,192.0.2.7 -p 22,80\n  nray scan --help tells more"
)


def command(name: str) -> click.Command:
    found = nray.get_command(click.Context(nray), name)
    assert found is not None
    return found


def wrong(*arguments: str) -> tuple[str, str]:
    """Message and hint of a usage error."""
    with pytest.raises(click.UsageError) as caught:
        nray.main(list(arguments), prog_name="nray", standalone_mode=False)
    return message_of(caught.value), hint_of(caught.value)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_flags_of_the_first_nray_are_there(name: str) -> None:
    ours = [set(param.opts) for param in command(name).params]
    for flags in REFERENCE[name]:
        assert flags in ours, f"nray {name} has not exactly {flags}"


def test_their_defaults_and_values() -> None:
    node = parse("node").params
    assert (node["host"], node["port"], node["preferred_pool"]) == ("localhost", 8601, -1)
    # fmt: off
    node = parse(
        "node", "-s", "192.0.2.1", "-p", "99", "--node-name", "x" * 40, "--preferred-pool", "2",
        "--debug", "--use-tls", "--tls-insecure", "--tls-ca-cert", "ca.pem", "--tls-client-cert",
        "client.pem", "--tls-client-key", "client-key.pem", "--tls-server-SAN", "localhost",
    ).params
    # fmt: on
    assert (node["host"], node["port"], node["preferred_pool"]) == ("192.0.2.1", 99, 2)
    assert [node["use_tls"], node["tls_insecure"], node["debug"]] == [True] * 3
    assert node["tls_server_san"] == "localhost"
    scan = parse("scan", "-t", "192.0.2.1", "-p", "22", "-u", "--timeout", "1500ms", "-w", "1000")
    assert scan.params["timeout"] == 1.5
    assert scan.params["workers"] == 1000
    assert scan.params["udp"] is True
    assert parse("server", "-c", "conf.yaml").params["config"] == "conf.yaml"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        assert nray.main([name, flag], prog_name="nray", standalone_mode=False) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        assert "..." not in text.replace("[ARGS]...", ""), "click cut a line short"
        assert "Example" in text


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["scna"], "there is no command 'scna'", "did you mean 'scan'?"),
        (["SERVER"], "there is no command 'SERVER'", "did you mean 'server'?"),
        (["zzz"], "there is no command 'zzz'", "nray --help lists the commands"),
        (["config", "chekc"], "there is no command 'chekc'", "did you mean 'check'?"),
        (["--verion"], "there is no option --verion", "did you mean --version?"),
        (["scan", "--timout", "1s"], "there is no option --timout", "did you mean --timeout?"),
        (["scan", "--TARGETS", "x"], "there is no option --TARGETS", "did you mean --targets?"),
        (["scan", "--zzz"], "there is no option --zzz", "nray scan --help lists the options"),
        (["node", "--tls-server-san", "x"], "there is no option --tls-server-san",
         "did you mean --tls-server-SAN?"),
        (["node", "--tls-client-crt", "x"], "there is no option --tls-client-crt",
         "did you mean --tls-client-cert?"),
        (["scan"], "no targets are given (-t/--targets or --target-file)",
         SCAN_HINT),
        (["scan", "-t", "127.0.0.1"], "no ports are given (-p/--ports)",
         SCAN_HINT),
        (["scan", "127.0.0.1"], "got unexpected extra argument (127.0.0.1)",
         SCAN_HINT),
        (["server", "conf.yaml"], "-c/--config is missing",
         "for example: nray server -c conf.yaml\n  nray server --help tells more"),
        (["config", "check"], "FILE is missing", "nray config check --help tells more"),
        (["scan", "-t", "::1", "-p", "1", "--count"], "--count goes with --list", ""),
        (["node", "-p", "0"], "-p/--port: '0' is not a port: a whole number from 1 to 65535", ""),
        (["node", "-p", "x"], "-p/--port: 'x' is not a port: a whole number from 1 to 65535", ""),
        (["scan", "--timeout", "1000"],
         '--timeout: "1000" has no unit; write 1000s or 1000ms, say', ""),
        (["scan", "--show", "opne"],
         "--show: there is no state 'opne': closed, filtered, open|filtered, error", ""),
        (["scan", "--format", "xml"], "--format: 'xml' is not one of 'auto', 'text', 'json'", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_would_be_right(
    arguments: list[str], message: str, hint: str
) -> None:
    assert wrong(*arguments) == (message, hint)


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_a_group_alone_asks_for_a_command(arguments: list[str]) -> None:
    assert wrong(*arguments)[0] == "a command is missing"


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Number("a port", 1, 65535), "65535", 65535),
        (Number("a rate", 0.001, whole=False), "0.5", 0.5),
        (Rate("a rate", 0.001, whole=False), "0.5", 0.5),
        (Rate("a rate", 0.001, whole=False), "Auto", "auto"),
        (Number("a seed", 0, 2**64 - 1), "0", 0),
        (InFlight("probes", 1, 10), "auto", 0),
        (InFlight("probes", 1, 10), "10", 10),
        (Timeout(), "2500ms", 2.5),
        (Timeout(), "60m", 3600),
        (States(), "", ()),
        (States(), "open", ()),
        (States(), "closed, filtered", ("closed", "filtered")),
        (States(), "open|filtered,open,error", ("open|filtered", "error")),
    ],
)
def test_values(kind: click.ParamType, text: str, value: object) -> None:  # type: ignore[type-arg]
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((Number("a port", 1, 65535), text) for text in ("0", "65536", "", "1.5", "-1", "1e3")),
        *((Rate("a rate", 0.001, whole=False), text) for text in ("0", "automatic", "")),
        *((Number("a rate", 0.001, whole=False), text) for text in ("0", "nan", "inf", "1e99")),
        *((InFlight("probes", 1, 10), text) for text in ("0", "11", "Auto", "")),
        *((Timeout(), text) for text in ("", "1", "0s", "61m", "-1s", "1 parsec")),
        *((States(), text) for text in ("close", "closed;filtered", "all")),
    ],
)  # fmt: skip
def test_values_refused(kind: click.ParamType, text: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


def test_nearest() -> None:
    assert nearest("Scan", ["server", "scan"]) == "scan"
    assert nearest("q", ["server", "scan"]) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["server", "-c", "nope.yaml"], "nope.yaml: cannot be read"),
        (["server", "-c", "/"], "/: cannot be read: Is a directory"),
        (["scan", "-t", "127.0.0.1", "-p", "1,22x"], "no port: '22x'"),
        (["scan", "-t", "127.0.0.300", "-p", "1"], "'127.0.0.300' has a part"),
        (["scan", "-t", "http://x/", "-p", "1"], "'http://x/' is no network"),
        (["scan", "--target-file", "nope", "-p", "1"], "cannot read 'nope': No such file"),
        (["scan", "--target-file", "/", "-p", "1"], "cannot read '/': Is a directory"),
        (["scan", "-t", "127.0.0.1", "--exclude-file", "nope", "-p", "1"], "cannot read 'nope'"),
        (["node", "-s", "198.18.0.1"], "without TLS everybody on the way to 198.18.0.1"),
    ],
)
def test_what_its_user_can_mend(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        nray.main(arguments, prog_name="nray", standalone_mode=False)
    assert words in caught.value.message
    assert caught.value.exit_status == 2


def test_retries_are_those_of_a_syn_scan_and_of_one_number_everywhere() -> None:
    base = ("scan", "-t", "127.0.0.1", "-p", "1")
    assert "goes with --syn" in wrong(*base, "--retries", "2")[0]
    assert "10" in "".join(wrong(*base, "--syn", "--retries", "11"))
    assert parse(*base, "--syn", "--retries", "0").params["retries"] == 0
    assert RETRIES_MAX == bounds.RETRIES_MAX == scan.RETRIES_MAX
    assert kinds.RETRIES.high == RETRIES_MAX
    for flag in (("--syn",), ("--retries", "0"), ("--keep-tarpits",)):
        assert "is settled" in wrong("scan", "--resume", "x", *flag)[0]


def test_ways_to_look_for_hosts() -> None:
    base = ("scan", "-t", "127.0.0.1", "-p", "1")
    assert parse(*base).params["discovery"] == "none"
    assert parse(*base, "--discovery", "SYN:443,80").params["discovery"] == "syn:80,443"
    said = wrong(*base, "--discovery", "pong")[0]
    assert "'pong' is no way to look for hosts" in said
    assert "none, ping, arp, auto, syn:PORTS" in said
    # Pings are packets of nray's own, which are sent again.
    assert parse(*base, "--discovery", "ping", "--retries", "3").params["retries"] == 3
    assert "goes with --syn" in wrong(*base, "--discovery", "syn:80", "--retries", "3")[0]
    assert "--discovery is settled" in wrong("scan", "--resume", "x", "--discovery", "ping")[0]


def test_totals_tell_discovery_apart(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["scan", "-t", "198.18.0.0/28", "-p", "1-10", "--list", "--discovery", "auto"]
    nray.main([*base, "--count"], prog_name="nray", standalone_mode=False)
    told = capsys.readouterr().out.splitlines()
    assert told == ["hosts 16", "ports 10", "probes 160", "excluded 0", "discovery 48"]
