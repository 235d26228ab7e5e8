"""A canary as each secret, and every command run with it: it shows nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli_lab import command_line, free_port, own_address, started, until

CANARY = "hunter2-canary-5f1c"
ADDRESS = own_address(9)

CONFIGURATION = """\
listen: {port}
targetgenerator.standard:
  targets: [{address}]
  tcpports: ["21000-21009"]
  udpports: []
targetgenerator.ldap:
  ldapPass: {secret}
  ldapUser: !env NRAY_CANARY
  baseDN: !file secret
scannerconfig.udp.defaultHexPayload: !env NRAY_CANARY
events.json-file.filename: out.json
"""


def command_lines(session: int) -> bytes:
    """The command lines of all processes of a session."""
    found = b""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == session:
                found += (entry / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def assert_unseen(directory: Path) -> None:
    """In no file of the directory, the ledger and its log among them, but those that hold it."""
    for file in directory.iterdir():
        if file.name not in ("secret", "conf.yaml"):
            assert CANARY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("secret", [CANARY, "!env NRAY_CANARY", "!file secret"])
def test_no_command_shows_a_secret(
    secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRAY_CANARY", CANARY)
    port = free_port()
    (tmp_path / "secret").write_text(f"{CANARY}\n")
    (tmp_path / "conf.yaml").write_text(
        CONFIGURATION.format(port=port, address=ADDRESS, secret=secret)
    )
    serve = ("server", "-c", "conf.yaml", "--debug")
    with started(command_line(*serve), tmp_path, "server") as server:
        until(lambda: "waiting for nodes" in server.said, why=lambda: server.said)
        assert command_lines(server.popen.pid)
        assert CANARY.encode() not in command_lines(server.popen.pid)
        until(
            (tmp_path / "conf.yaml.ledger-wal").exists,
            why=lambda: f"{os.listdir(tmp_path)}, {server.popen.poll()}: {server.said}",
        )
        assert_unseen(tmp_path)  # the log of the ledger, while it is written
        server.interrupt()
        assert server.end() == 130, server.said
    for number, words in enumerate(
        [
            ("config", "show", "conf.yaml"),
            ("config", "check", "conf.yaml"),
            ("status", "conf.yaml.ledger"),
        ]
    ):
        with started(command_line(*words), tmp_path, f"command{number}") as command:
            assert command.end() == 0, command.said
    resume = command_line(*serve, "--resume")
    with started(resume, tmp_path, "resumed") as server:
        until(lambda: "waiting for nodes" in server.said, why=lambda: server.said)
        words = ("node", "-s", "127.0.0.1", "-p", str(port), "--debug", "--processes", "1")
        with started(command_line(*words), tmp_path, "node") as node:
            assert server.end() == 0, server.said
            assert node.end() == 0, node.said
    # Whatever is told of a configuration that was changed, or is wrong.
    changed = (tmp_path / "conf.yaml").read_text()
    (tmp_path / "conf.yaml").write_text(changed + "pools: !env NRAY_CANARY\nhost: [x]\n")
    for number, words in enumerate([serve, (*serve, "--resume"), ("config", "check", "conf.yaml")]):
        with started(command_line(*words), tmp_path, f"wrong{number}") as command:
            assert command.end() == 2, command.said
            assert "!env NRAY_CANARY" in command.said
    assert_unseen(tmp_path)
